"""The training loops that benchmarks compare, the runs they stand for, and how steps are timed and counted."""

import contextlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hfgen.commands.train import read_given
from hfgen.runtime.errors import UserError
from hfgen.training.options import RunOptions, collect

WARM_UP = 8  # steps
Step = Callable[[], None]


def read_run(family: str, arguments: Sequence[str]) -> RunOptions:
    """Reads the flags of `hfgen train FAMILY`.

    Raises:
        UserError: For mistakes in them, and for what the bare loop cannot do.
    """
    chosen, given = read_given([family, *arguments])
    options = collect(chosen, given.preset, **given.values)
    accumulation = options.training.gradient_accumulation_steps
    if accumulation > 1:
        raise UserError(
            f"`gradient_accumulation_steps` {accumulation}: the loops are compared on whole batches. Leave it out."
        )
    if options.data.streaming:
        raise UserError("`streaming`: the bare loop cannot do that. Leave it out.")
    if options.training.mixed_precision == "fp16":
        raise UserError("`mixed_precision` fp16: the bare loop cannot do that. Leave it out.")
    return options


def cycle(options: RunOptions) -> int:
    """The number of steps after which the same work comes again."""
    intervals = (getattr(options.own, name, 1) for name in ("penalty_interval", "discriminator_steps"))
    return math.lcm(*intervals)


@contextlib.contextmanager
def in_a_folder(options: RunOptions) -> Iterator[RunOptions]:
    """Gives the same run a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield replace(options, training=replace(options.training, output_dir=folder, resume_from_checkpoint=None))


def start_alone(options: RunOptions) -> Any:
    """Returns the Accelerator of one process.

    Raises:
        UserError: If a launcher started several.
    """
    from hfgen.runtime.launch import make_accelerator

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("this is for one process: start it with plain python.")
    return make_accelerator(options.training.mixed_precision, options.training.cpu_threads)


# The loops


def hfgen_loop(options: RunOptions) -> Step:
    """Makes a step of our loop, with its progress bar, and its metrics when they are due."""
    from tqdm.auto import tqdm

    from hfgen.training.api import prepare

    run = prepare(options, say=lambda text: None)
    engine, schedule, images_seen = run.engine, run.schedule, 0
    bar = hidden(tqdm, mininterval=15.0)  # as a log file has it

    def step() -> None:
        nonlocal images_seen
        raws = [run.stream.read(images_seen + start, schedule.micro_batch) for start in schedule.starts]
        engine.step(images_seen, raws)
        images_seen += schedule.batch
        bar.update(schedule.batch)
        if schedule.due(schedule.logging, images_seen):
            engine.metrics.first_bad_step()
            means = engine.metrics.means()
            run.log.write(images_seen, means)
            bar.set_postfix(means, refresh=False)

    return step


def bare_loop(options: RunOptions) -> Step:
    """Makes a step of the limit: forward, backward, clipping, fused AdamW and the moving average, on floats."""
    import torch

    from hfgen.data.augment import prepare
    from hfgen.training.api import open_recipe
    from hfgen.training.ema import EMA
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch, Progress

    accelerator, config, size = start_alone(options), options.training, options.training.train_batch_size
    device = accelerator.device
    recipe, stream, options, _ = open_recipe(options, accelerator)
    modules = place(options, recipe, device)
    averaged = {name: modules[name] for name, network in recipe.networks.items() if network.averaged}
    ema = EMA(averaged, config.ema_half_life, config.ema_ramp) if config.use_ema else None
    compile_networks(options, recipe)
    parameters = phase_parameters(recipe)
    optimizers = make_optimizers(recipe, parameters, fused=device.type in ("cpu", "cuda"))
    stream.to(device)
    count = min(8192, stream.info.num_images or 8192)
    columns = prepare(stream.read(0, count), options.data, StepRandom(config.seed, 0, count, device=device))
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    random, number = StepRandom(config.seed, 0, size, device=device), 0

    def step() -> None:
        nonlocal number
        rows = torch.randint(count, (size,), device=device)
        chosen = {name: values[rows] for name, values in columns.items()}
        batch = Batch(chosen | {"image": chosen["image"].contiguous(memory_format=layout)}, random)
        for phase in recipe.phases:
            if number % phase.every:
                continue
            train_only(parameters, phase)
            with accelerator.autocast():
                loss, _ = recipe.loss(phase, batch, Progress(number * size, 0.0, number))
            loss.backward()
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters[phase.name].values(), config.max_grad_norm)
            optimizers[phase.name].step()
            optimizers[phase.name].zero_grad(set_to_none=True)
        recipe.after_step(size)
        number += 1
        if ema is not None:
            ema.update(size, number * size)

    return step


def diffusers_loop(options: RunOptions) -> Step:
    """Makes a step as diffusers' script for unconditional generation has it."""
    import torch
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    from hfgen.training.api import open_recipe
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch, Progress

    config, size = options.training, options.training.train_batch_size
    chosen = start_alone(options)  # which sets threads and precision
    recipe, stream, options, _ = open_recipe(options, chosen)  # the stream is read once, for its classes
    accelerator = Accelerator(cpu=chosen.device.type == "cpu", mixed_precision=chosen.mixed_precision)
    modules = place(options, recipe, accelerator.device)
    averages = {
        name: EMAModel(modules[name].parameters(), decay=0.9999, use_ema_warmup=True)
        for name, network in recipe.networks.items()
        if network.averaged and config.use_ema
    }
    compile_networks(options, recipe)
    dataset = transformed(options, stream.info)
    loader = accelerator.prepare(torch.utils.data.DataLoader(dataset, batch_size=size, shuffle=True, drop_last=True))
    for module in modules.values():
        accelerator.prepare(module)  # in place, for one process
    parameters, schedules = phase_parameters(recipe), {}
    optimizers = make_optimizers(recipe, parameters, fused=False)
    for name, optimizer in optimizers.items():
        length = {"num_warmup_steps": config.lr_warmup_steps, "num_training_steps": 1_000_000}
        schedule = get_scheduler(config.lr_scheduler, optimizer, **length)
        optimizers[name], schedules[name] = accelerator.prepare(optimizer, schedule)
    random, number = StepRandom(config.seed, 0, size, device=accelerator.device), 0
    bar, batches = hidden(tqdm), endless(loader)

    def step() -> None:
        nonlocal number
        batch, logs = Batch(next(batches), random), {}
        for phase in recipe.phases:
            if number % phase.every:
                continue
            train_only(parameters, phase)
            with accelerator.accumulate(*modules.values()), accelerator.autocast():
                if options.family.name == "ddpm":
                    loss = denoising_loss(recipe, batch)
                else:
                    loss, _ = recipe.loss(phase, batch, Progress(number * size, 0.0, number))
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(parameters[phase.name].values(), config.max_grad_norm)
                optimizers[phase.name].step()
                schedules[phase.name].step()
                optimizers[phase.name].zero_grad()
            logs[f"loss_{phase.name}"] = loss.detach().item()
            logs[f"lr_{phase.name}"] = schedules[phase.name].get_last_lr()[0]
        recipe.after_step(size)
        number += 1
        for name, average in averages.items():
            average.step(modules[name].parameters())
        bar.update(1)
        bar.set_postfix(**logs)

    return step


LOOPS: dict[str, Callable[[RunOptions], Step]] = {
    "hfgen": hfgen_loop,
    "bare": bare_loop,
    "diffusers-style": diffusers_loop,
}

# What the last two share


def place(options: RunOptions, recipe: Any, device: Any) -> dict[str, Any]:
    """Moves the networks to a device, as the options ask for; returns them by name."""
    import torch

    modules = {}
    for name, network in recipe.networks.items():
        modules[name] = network.module.to(device).train(network.role != "frozen")
        if options.training.channels_last:
            network.module.to(memory_format=torch.channels_last)
        network.module.requires_grad_(network.role == "trained")
        if network.role == "trained" and options.training.gradient_checkpointing:
            network.module.enable_gradient_checkpointing()
    return modules


def compile_networks(options: RunOptions, recipe: Any) -> None:
    for network in recipe.networks.values():
        if options.training.compile and not network.eager_reason:
            network.module.compile()


def phase_parameters(recipe: Any) -> dict[str, dict[str, Any]]:
    """The parameters that each phase updates, by their names."""
    from hfgen.training.optimizers import select

    candidates = {
        f"{name}.{own}": parameter
        for name, network in recipe.networks.items()
        for own, parameter in network.module.named_parameters()
        if parameter.requires_grad
    }
    return {phase.name: select(candidates, phase) for phase in recipe.phases}


def make_optimizers(recipe: Any, parameters: dict[str, dict[str, Any]], fused: bool) -> dict[str, Any]:
    from hfgen.training.optimizers import parameter_groups

    optimizers = {}
    for phase in recipe.phases:
        groups = [
            {"params": list(part.values()), "lr": rate, "weight_decay": decay}
            for part, rate, decay in parameter_groups(parameters[phase.name], phase.optimizer)
        ]
        optimizers[phase.name] = phase.optimizer.make(groups, fused=fused)
    return optimizers


def train_only(parameters: dict[str, dict[str, Any]], phase: Any) -> None:
    """Freezes what a phase does not update; with one phase there is nothing to freeze."""
    if len(parameters) > 1:
        for part in parameters.values():
            for name, parameter in part.items():
                parameter.requires_grad_(name in parameters[phase.name])


def hidden(make_bar: Callable[..., Any], **options: Any) -> Any:
    """Makes a progress bar that is written to nowhere."""
    return make_bar(file=open(os.devnull, "w"), **options)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


# What diffusers' example does to images, and its loss


def transformed(options: RunOptions, info: Any) -> Any:
    """The data set as `datasets` has it, each image being decoded and transformed whenever it is asked for."""
    import random

    import datasets
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from hfgen.data.cache import open_images
    from hfgen.data.columns import DEFAULT, TRAIN, by_source
    from hfgen.data.groups import with_groups
    from hfgen.data.sources import find_columns, load_source

    data, token = options.data, options.training.hub_token
    stored = open_images(data, token)  # for its labels, and groups in their place
    if info.classes and info.classes.groups:
        stored = with_groups(stored, "label", len(info.classes.names))
    dataset, _ = load_source(data, token)
    column = find_columns(dataset.features, by_source(DEFAULT)[TRAIN], data)["image"]
    dataset = dataset.select_columns([column]).cast_column(column, datasets.Image())
    if stored.labels is not None:
        dataset = dataset.add_column("label", stored.labels.tolist())

    def to_tensor(image: Any) -> torch.Tensor:
        image = ImageOps.fit(image.convert(info.mode), (info.resolution, info.resolution), Image.Resampling.BILINEAR)
        if data.random_flip and random.random() < 0.5:
            image = ImageOps.mirror(image)
        array = np.array(image).reshape(info.resolution, info.resolution, info.channels)
        return (torch.from_numpy(array).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5

    def transform(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [to_tensor(image) for image in examples[column]]
        return {"image": images} | ({"label": examples["label"]} if "label" in examples else {})

    dataset.set_transform(transform)
    return dataset


def denoising_loss(recipe: Any, batch: Any) -> Any:
    import torch

    clean, scheduler = batch["image"], recipe.scheduler
    noise = torch.randn_like(clean)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    labels = batch["label"] if recipe.class_names else None
    prediction = recipe.networks["unet"].module(noisy, timesteps, class_labels=labels)
    if recipe.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(clean, noise, timesteps)
    else:
        target = noise if recipe.config.prediction_type == "epsilon" else clean
    return torch.nn.functional.mse_loss(prediction.sample.float(), target)


# Timing and counting


def timed(clock: str, step: Step, count: int) -> float:
    """Seconds of some steps, until the device has done them."""
    import torch

    now = time.process_time if clock == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = now()
    for _ in range(count):
        step()
    wait()
    return now() - start


def count_flops(options: RunOptions) -> float:
    """Floating-point operations per image of forward and backward passes: products and convolutions, as torch counts
    them in a cycle of steps."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        """As torch's FlopCounterMode, which fails at gradients of gradients by the input of a network (WGAN-GP)."""

        total = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            if operation.overloadpacket in flop_registry:
                self.total += flop_registry[operation.overloadpacket](*args, **(kwargs or {}), out_val=result)
            return result

    step, steps = bare_loop(replace(options, training=replace(options.training, compile=False))), cycle(options)
    with Counter() as counter:
        for _ in range(steps):
            step()
    return counter.total / (steps * options.training.train_batch_size)


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    """Median, standard deviation, and the error of the median, were the noise normal."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "median": statistics.median(values),
        "deviation": deviation,
        "error": 1.25 * deviation / len(values) ** 0.5,
    }


def plus_minus(found: dict[str, float], digits: int) -> str:
    spread = f" ± {found['deviation']:,.{digits}f}" if found["deviation"] else ""
    return f"{found['median']:,.{digits}f}{spread}"
