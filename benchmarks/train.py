"""Measures what the training loop costs: ours beside a bare one, the limit, and one as diffusers' example has it.

All three train the same networks with the same losses, on the same data, with the same batch and precision, in turns
and in one process, so that noise of the machine hits all alike:

- `hfgen`: a step of our loop, its progress bar, and its metrics when they are due;
- `bare`: forward, backward, clipping, fused AdamW and the moving average, on images that are floats already;
- `diffusers-style`: the steps of diffusers' script for unconditional generation: images decoded and resized by
  `set_transform`, a DataLoader, Accelerate's `prepare` and `accumulate`, AdamW, `EMAModel`, and the loss read in each
  step.

Memory and start-up are those of processes of their own. All flags besides the benchmark's own are those of the
training script of the family. Examples:

    python scripts/benchmark_train.py --output benchmarks/train.json
    python scripts/benchmark_train.py --dataset_name ylecun/mnist --cpu_threads 1 --clock cpu
    python scripts/benchmark_train.py --family ddpm --preset cifar10 --mixed_precision bf16
"""

import contextlib
import importlib
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hfgen
from hfgen.commands.cli import command_line, one_line_errors, parse
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option, require_positive
from hfgen.training.config import TrainingConfig

SCRIPTS = Path(__file__).parent
sys.path.insert(0, str(SCRIPTS))

FAMILIES = ("ddpm", "gan", "vae")
AIMS = {"ddpm": 0.02, "gan": 0.05, "vae": 0.05}  # overhead over the bare loop, at most
IMPORT_AIM, HELP_AIM = 0.2, 2.0  # seconds, at most
PEAKS = {  # dense bf16 FLOP/s as the makers state them, by what the device's name holds; the first that fits
    **{"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12},
    **{"A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12},
}
WARM_UP = 8  # steps
Step = Callable[[], None]

# What is measured


@dataclass(frozen=True)
class Job:
    """What a training script would run."""

    family: str
    data: DataConfig
    training: TrainingConfig
    options: Any

    @property
    def groups(self) -> int:
        return 0 if self.options.class_conditional else getattr(self.options, "num_clusters", 0)

    @property
    def cycle(self) -> int:
        """After so many steps the same work comes again."""
        intervals = (getattr(self.options, name, 1) for name in ("penalty_interval", "discriminator_steps"))
        return math.lcm(*intervals)

    def recipe(self, info: Any) -> Any:
        import torch

        torch.manual_seed(self.training.seed)
        return getattr(hfgen, f"{self.family.upper()}Recipe")(self.options, info)


def ours(job: Job) -> Step:
    from hfgen.training.loop import Trainer

    from hfgen.data.columns import DEFAULT
    from hfgen.data.streams import open_stream
    from hfgen.training.folder import Run

    batches = open_stream(DEFAULT, job.data, job.training.seed, job.training.hub_token, job.groups)
    run = Run(job.family, (job.data, job.training, job.options), [])
    trainer = Trainer(job.recipe(batches.info), batches, run, job.data)
    bar = hidden(trainer._progress_bar)

    def step() -> None:
        trainer._step()
        bar.update(trainer.length.batch)
        if trainer._due(trainer.length.logging):
            bar.set_postfix(trainer._log(), refresh=False)

    return step


def bare(job: Job) -> Step:
    import torch

    from hfgen.data.augment import prepare
    from hfgen.data.columns import DEFAULT
    from hfgen.data.streams import open_stream
    from hfgen.runtime.launch import make_accelerator
    from hfgen.training.ema import EMA
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch, Progress

    config, size = job.training, job.training.train_batch_size
    batches = open_stream(DEFAULT, job.data, config.seed, config.hub_token, job.groups)
    recipe, accelerator = job.recipe(batches.info), make_accelerator(config.mixed_precision, config.cpu_threads)
    device = accelerator.device
    modules = place(job, recipe, device)
    ema = None
    if config.use_ema:
        ema = EMA({name: modules[name] for name in recipe.averaged}, config.ema_half_life, config.ema_ramp)
    compile_(job, recipe)
    parameters = {phase.name: parameters_of(recipe, phase) for phase in recipe.phases}
    fused = device.type in ("cpu", "cuda")
    optimizers = {
        phase.name: torch.optim.AdamW(parameters[phase.name], **settings(phase), fused=fused)
        for phase in recipe.phases
    }
    batches.to(device)
    stored = batches.read(0, min(8192, batches.info.num_images or 8192))
    images = prepare(stored, job.data, StepRandom(config.seed, 0, len(stored["image"]), device=device))["image"]
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    random, number = StepRandom(config.seed, 0, size, device=device), 0

    def step() -> None:
        nonlocal number
        rows = torch.randint(len(images), (size,), device=device)
        chosen = images[rows].contiguous(memory_format=layout)
        batch = Batch(chosen, stored["label"][rows] if "label" in stored else None, random)
        for phase in recipe.phases:
            if number % phase.every:
                continue
            train_only(recipe, phase)
            with accelerator.autocast():
                loss, _ = recipe.loss(phase, batch, Progress(number * size, 0.0, number))
            loss.backward()
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters[phase.name], config.max_grad_norm)
            optimizers[phase.name].step()
            optimizers[phase.name].zero_grad(set_to_none=True)
        recipe.after_step(size)
        number += 1
        if ema is not None:
            ema.update(size, number * size)

    return step


def diffusers_style(job: Job) -> Step:
    import torch
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    from hfgen.data.cache import open_images
    from hfgen.data.groups import with_groups
    from hfgen.runtime.launch import make_accelerator
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch, Progress

    config, size = job.training, job.training.train_batch_size
    decoded = open_images(job.data, config.hub_token)  # for its labels, and groups in their place
    decoded = with_groups(decoded, "label", job.groups) if job.groups else decoded
    recipe, chosen = (
        job.recipe(decoded.info),
        make_accelerator(config.mixed_precision, config.cpu_threads),
    )  # which sets threads and precision
    accelerator = Accelerator(cpu=chosen.device.type == "cpu", mixed_precision=chosen.mixed_precision)
    modules = place(job, recipe, accelerator.device)
    averages = {
        name: EMAModel(modules[name].parameters(), decay=0.9999, use_ema_warmup=True)
        for name in (recipe.averaged if config.use_ema else ())
    }
    compile_(job, recipe)
    loader = accelerator.prepare(
        torch.utils.data.DataLoader(transformed(job, decoded), batch_size=size, shuffle=True, drop_last=True)
    )
    for name in modules:
        modules[name] = accelerator.prepare(modules[name])
    parameters, optimizers, schedules = {}, {}, {}
    for phase in recipe.phases:
        parameters[phase.name] = parameters_of(recipe, phase)
        optimizer = torch.optim.AdamW(parameters[phase.name], **settings(phase))
        length = {"num_warmup_steps": config.lr_warmup_steps, "num_training_steps": 1_000_000}
        schedule = get_scheduler(config.lr_scheduler, optimizer, **length)
        optimizers[phase.name], schedules[phase.name] = accelerator.prepare(optimizer, schedule)
    random, number = StepRandom(config.seed, 0, size, device=accelerator.device), 0
    bar, batches = hidden(tqdm), endless(loader)

    def step() -> None:
        nonlocal number
        given = next(batches)
        batch, logs = Batch(given["input"], given.get("label"), random), {}
        for phase in recipe.phases:
            if number % phase.every:
                continue
            train_only(recipe, phase)
            with accelerator.accumulate(*(modules[name] for name in phase.updates)), accelerator.autocast():
                if job.family == "ddpm":
                    loss = denoising_loss(recipe, batch)
                else:
                    loss, _ = recipe.loss(phase, batch, Progress(number * size, 0.0, number))
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(parameters[phase.name], config.max_grad_norm)
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


LOOPS: dict[str, Callable[[Job], Step]] = {"hfgen": ours, "bare": bare, "diffusers-style": diffusers_style}

# What the loops share


def place(job: Job, recipe: Any, device: Any) -> dict[str, Any]:
    import torch

    for module in recipe.modules.values():
        module.to(device).train()
        if job.training.channels_last:
            module.to(memory_format=torch.channels_last)
        if job.training.gradient_checkpointing:
            module.enable_gradient_checkpointing()
    return recipe.modules


def compile_(job: Job, recipe: Any) -> None:
    for name, module in recipe.modules.items():
        if job.training.compile and name not in recipe.uncompiled:
            module.compile()


def train_only(recipe: Any, phase: Any) -> None:
    """Freezes what a phase does not update; with one phase there is nothing to freeze."""
    if len(recipe.phases) > 1:
        for name, module in recipe.modules.items():
            module.requires_grad_(name in phase.updates)


def parameters_of(recipe: Any, phase: Any) -> list[Any]:
    return [parameter for name in phase.updates for parameter in recipe.modules[name].parameters()]


def settings(phase: Any) -> dict[str, Any]:
    """Of AdamW."""
    return {"lr": phase.learning_rate, "betas": phase.betas, "eps": phase.eps, "weight_decay": phase.weight_decay}


def hidden(make_bar: Callable[[], Any]) -> Any:
    """A progress bar that nobody sees."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        return make_bar()


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


# What diffusers' example does to images, and its loss


def transformed(job: Job, decoded: Any) -> Any:
    """The data set as `datasets` has it, each image being decoded and transformed whenever it is asked for."""
    import random

    import datasets
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from hfgen.data.columns import DEFAULT
    from hfgen.data.sources import find_columns, load_source

    info, data = decoded.info, job.data
    dataset, _ = load_source(data, job.training.hub_token)
    column = find_columns(dataset.features, DEFAULT, data)["image"]
    dataset = dataset.select_columns([column]).cast_column(column, datasets.Image())
    if decoded.labels is not None:
        dataset = dataset.add_column("label", decoded.labels.tolist())

    def to_tensor(image: Any) -> torch.Tensor:
        image = ImageOps.fit(image.convert(info.mode), (info.resolution, info.resolution), Image.Resampling.BILINEAR)
        if data.random_flip and random.random() < 0.5:
            image = ImageOps.mirror(image)
        array = np.array(image).reshape(info.resolution, info.resolution, info.channels)
        return (torch.from_numpy(array).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5

    def transform(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [to_tensor(image) for image in examples[column]]
        return {"input": images} | ({"label": examples["label"]} if "label" in examples else {})

    dataset.set_transform(transform)
    return dataset


def denoising_loss(recipe: Any, batch: Any) -> Any:
    import torch

    clean, scheduler = batch.images, recipe.scheduler
    noise = torch.randn_like(clean)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    prediction = recipe.modules["unet"](noisy, timesteps, class_labels=batch.labels if recipe.class_names else None)
    if recipe.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(clean, noise, timesteps)
    else:
        target = noise if recipe.config.prediction_type == "epsilon" else clean
    return torch.nn.functional.mse_loss(prediction.sample.float(), target)


# The measuring


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark: what to measure, and for how long."""

    family: tuple[str, ...] = option(FAMILIES, "families to train", choices=FAMILIES)
    rounds: int = option(40, "how often each loop gets its turn")
    round_seconds: float = option(1.0, "length of a turn, about: short, so that noise hits all loops alike")
    clock: str = option(
        "wall", "what seconds are; `cpu` leaves out those of other work: for one thread on a busy CPU",
        choices=("wall", "cpu"),
    )  # fmt: skip
    start_ups: int = option(5, "how often each start-up is measured; 0 leaves start-up and memory out")
    output: str | None = option(None, "JSON file for the figures")

    def validate(self) -> None:
        require_positive(self, "rounds", "round_seconds")
        if self.start_ups < 0:
            raise UserError(f"--start_ups {self.start_ups} is negative: use 0 to leave it out, or more.")
        if not self.family:
            raise UserError(f"--family is empty: choose from {' '.join(FAMILIES)}.")


def separate(kind: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a dataclass (and `--help`), and all others, each with its values."""
    names = {"-h", "--help", *(f"--{name}" for name in kind.__dataclass_fields__)}  # type: ignore[attr-defined]
    mine: list[str] = []
    others: list[str] = []
    taken = False
    for argument in argv:
        if argument.startswith("-") and not argument[1:2].isdigit():
            taken = argument.partition("=")[0] in names
        (mine if taken else others).append(argument)
    return mine, others


def read_options(argv: Sequence[str] | None = None) -> tuple[BenchmarkConfig, dict[str, Job]]:
    arguments = sys.argv[1:] if argv is None else argv
    mine, others = separate(BenchmarkConfig, arguments)
    description = f"{str(__doc__).partition(chr(10))[0]} All other flags are those of the family's training script."
    (benchmark,) = parse((BenchmarkConfig,), mine, description=description)
    benchmark.validate()
    return benchmark, {family: read_job(family, others) for family in benchmark.family}


def read_job(family: str, arguments: Sequence[str]) -> Job:
    """Reads the flags of a training script."""
    job = Job(family, *importlib.import_module(f"train_{family}").read_options(arguments))
    training = job.training
    if training.gradient_accumulation_steps > 1:
        raise UserError(
            f"--gradient_accumulation_steps {training.gradient_accumulation_steps}: the loops are compared on whole "
            "batches. Leave it out."
        )
    if training.mixed_precision == "fp16" or job.data.streaming:
        flag = "--streaming" if job.data.streaming else "--mixed_precision fp16"
        raise UserError(f"{flag}: the bare loop cannot do that. Leave it out.")
    return job


def main(argv: Sequence[str] | None = None) -> None:
    benchmark, jobs = read_options(argv)

    from common import markdown, save_report

    from hfgen.runtime.launch import describe, make_accelerator

    first = jobs[benchmark.family[0]].training
    accelerator = make_accelerator(first.mixed_precision, first.cpu_threads)
    on_cpu = accelerator.device.type == "cpu"
    if accelerator.num_processes > 1 or (benchmark.clock == "cpu" and not on_cpu):
        raise UserError("this is for one process, and --clock cpu for a CPU: start it with plain python.")
    machine = describe(accelerator, accelerator.mixed_precision)
    print(f"{machine}; seconds of the {benchmark.clock} clock", flush=True)
    measured: dict[str, Any] = {family: measure_speed(benchmark, job) for family, job in jobs.items()}
    tables: dict[str, Sequence[Sequence[str]]] = {"Images per second": speed_table(measured)}
    tables["Work"] = work_table(measured, "" if on_cpu else machine)
    notes = [verdict(family, measured[family]) for family in jobs]
    if benchmark.start_ups:
        for family, job in jobs.items():
            measured[family]["processes"] = measure_processes(benchmark, job)
        tables["Memory and start-up of training"] = process_table(measured)
        imports = measure_imports(benchmark)
        tables["Start-up"] = [["", "seconds"], *([f"`{name}`", plus_minus(imports[name], 3)] for name in imports)]
        notes.append(import_verdict(imports))
        measured["imports"] = imports
    notes.append(
        f"Seconds are of the {benchmark.clock} clock. Ratios are taken turn by turn. Behind ± is the deviation of "
        f"{benchmark.rounds} turns or {benchmark.start_ups} start-ups; for the overhead, the error of the median."
    )
    for title, table in tables.items():
        print(f"\n{title}\n\n{markdown(table)}")
    print("", *notes, sep="\n")
    if benchmark.output:
        config = {"benchmark": as_dict([benchmark])}
        config |= {family: as_dict([job.data, job.training, job.options]) for family, job in jobs.items()}
        command = command_line([BenchmarkConfig, TrainingConfig], argv)
        save_report(Path(benchmark.output), command, machine, config, tables, notes, measured)


@contextlib.contextmanager
def in_a_folder(job: Job) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        yield replace(job, training=replace(job.training, output_dir=folder, resume_from_checkpoint=None))


def measure_speed(benchmark: BenchmarkConfig, job: Job) -> dict[str, Any]:
    """Images per second of the loops, in turns of whole cycles, and the work that an image is."""
    from hfgen.data.columns import DEFAULT
    from hfgen.data.streams import open_stream

    size, rows = job.training.train_batch_size, []
    with in_a_folder(job) as job:
        data = str(open_stream(DEFAULT, job.data, job.training.seed, job.training.hub_token, job.groups).info)
        flops = count_flops(job)
        steps = {name: make(job) for name, make in LOOPS.items()}
        counts = {}
        for name, step in steps.items():
            timed(benchmark.clock, step, job.cycle + WARM_UP)
            each = timed(benchmark.clock, step, job.cycle)
            counts[name] = job.cycle * max(1, round(benchmark.round_seconds / each))
        for number in range(benchmark.rounds):
            first, row = number % len(steps), {}
            for name in [*steps][first:] + [*steps][:first]:
                row[name] = counts[name] * size / timed(benchmark.clock, steps[name], counts[name])
            rows.append({name: row[name] for name in steps})
    ratios = {name: statistics_of([row["hfgen"] / row[name] for row in rows]) for name in LOOPS if name != "hfgen"}
    speeds = {name: statistics_of([row[name] for row in rows]) for name in LOOPS}
    shown = ", ".join(f"{name} {speed['median']:.0f}" for name, speed in speeds.items())
    print(f"{job.family}: {shown} images/s", flush=True)
    found = {"data": data, "batch": size, "flops_per_image": flops, "turns": rows}
    return found | {"images_per_second": speeds, "hfgen_over": ratios}


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


def count_flops(job: Job) -> float:
    """Floating-point operations per image of forward and backward passes: products and convolutions, as torch counts
    them in a cycle of steps."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        """As torch's FlopCounterMode, which fails at gradients of gradients by the input of a network (WGAN-GP)."""

        total = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = operation(*args, **(kwargs or {}))
            if operation.overloadpacket in flop_registry:
                self.total += flop_registry[operation.overloadpacket](*args, **(kwargs or {}), out_val=found)
            return found

    step = bare(replace(job, training=replace(job.training, compile=False)))
    with Counter() as counter:
        for _ in range(job.cycle):
            step()
    return counter.total / (job.cycle * job.training.train_batch_size)


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    error = 1.25 * deviation / len(values) ** 0.5  # of the median, were the noise normal
    return {"median": statistics.median(values), "deviation": deviation, "error": error}


# Processes of their own


def measure_processes(benchmark: BenchmarkConfig, job: Job) -> dict[str, Any]:
    """Seconds to the end of the first step, and the peak of memory in MB, of each loop."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    for _ in range(benchmark.start_ups):
        for name in LOOPS:
            started = time.time()
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[name].append(pool.submit(first_steps, name, job, benchmark.clock, started).result())
    return {
        name: {key: statistics_of([turn[key] for turn in turns]) for key in turns[0]} for name, turns in found.items()
    }


def first_steps(name: str, job: Job, clock: str, started: float) -> dict[str, float]:
    import torch

    with in_a_folder(job) as job, contextlib.redirect_stdout(None):
        step = LOOPS[name](job)
        timed(clock, step, 1)
        seconds = time.process_time() if clock == "cpu" else time.time() - started
        timed(clock, step, job.cycle + WARM_UP)
    from common import peak_memory

    found = {"seconds": seconds, "megabytes": peak_memory() or math.nan}
    if torch.cuda.is_available():
        found["gpu_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def measure_imports(benchmark: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Seconds of imports, and of `--help` of each script."""
    now = "time.process_time()" if benchmark.clock == "cpu" else "time.perf_counter()"
    code = f"import time; a = {now}; import torch; b = {now}; import hfgen; print(b - a, {now} - b)"
    found: dict[str, list[float]] = {}
    for _ in range(benchmark.start_ups):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for name, seconds in zip(("import torch", "import hfgen"), result.stdout.split(), strict=True):
            found.setdefault(name, []).append(float(seconds))
        for script in sorted(SCRIPTS.glob("*.py")):
            before = children_time(benchmark.clock)
            subprocess.run([sys.executable, script, "--help"], capture_output=True, check=True)
            found.setdefault(f"{script.name} --help", []).append(children_time(benchmark.clock) - before)
    return {name: statistics_of(seconds) for name, seconds in found.items()}


def children_time(clock: str) -> float:
    times = os.times()
    return times.children_user + times.children_system if clock == "cpu" else time.perf_counter()


# The tables


def plus_minus(found: dict[str, float], digits: int) -> str:
    spread = f" ± {found['deviation']:,.{digits}f}" if found["deviation"] else ""
    return f"{found['median']:,.{digits}f}{spread}"


def speed_table(measured: dict[str, Any]) -> list[list[str]]:
    rows = [["", *LOOPS, *(f"hfgen / {name}" for name in LOOPS if name != "hfgen")]]
    for family, found in measured.items():
        speeds = [plus_minus(speed, 0) for speed in found["images_per_second"].values()]
        rows.append([family, *speeds, *(plus_minus(ratio, 3) for ratio in found["hfgen_over"].values())])
    return rows


def work_table(measured: dict[str, Any], machine: str) -> list[list[str]]:
    """FLOP/s of our loop, and their share of what the device is made for."""
    peak = next((peak for name, peak in PEAKS.items() if name in machine and machine.endswith("bf16")), None)
    rows = [["", "data", "batch", "MFLOP per image", "GFLOP/s of hfgen", *(["utilisation"] if peak else [])]]
    for family, found in measured.items():
        speed = found["flops_per_image"] * found["images_per_second"]["hfgen"]["median"]
        share = [f"{speed / peak:.1%}"] if peak else []
        work = [f"{found['flops_per_image'] / 1e6:,.0f}", f"{speed / 1e9:,.1f}"]
        rows.append([family, found["data"], f"{found['batch']}", *work, *share])
    return rows


def process_table(measured: dict[str, Any]) -> list[list[str]]:
    rows = [["", "", "seconds to the end of step 1", "peak memory, MB"]]
    for family, found in measured.items():
        for name, process in found["processes"].items():
            row = [family, name, plus_minus(process["seconds"], 1), plus_minus(process["megabytes"], 0)]
            if "gpu_megabytes" in process:
                row[-1] += f"; of the GPU {process['gpu_megabytes']['median']:,.0f}"
            rows.append(row)
    return rows


def verdict(family: str, found: dict[str, Any]) -> str:
    ratio, aim = found["hfgen_over"]["bare"], AIMS[family]
    overhead, times = 1 - ratio["median"], found["hfgen_over"]["diffusers-style"]["median"]
    return (
        f"{family}: overhead over the bare loop {overhead:.1%} ± {ratio['error']:.1%} (aim: at most {aim:.0%}, "
        f"{met(overhead <= aim)}); {times:.2f} times as fast as the diffusers-style loop (aim: at least 1, "
        f"{met(times >= 1)})."
    )


def import_verdict(imports: dict[str, dict[str, float]]) -> str:
    seconds = {name: found["median"] for name, found in imports.items()}
    added = seconds["import hfgen"]
    slowest, longest = max(((name, seconds[name]) for name in seconds if "--help" in name), key=lambda pair: pair[1])
    return (
        f"`import hfgen` adds {added:.3f} s to `import torch` (aim: at most {IMPORT_AIM:g} s, "
        f"{met(added <= IMPORT_AIM)}); the slowest help, `{slowest}`, takes {longest:.2f} s (aim: at most "
        f"{HELP_AIM:g} s, {met(longest <= HELP_AIM)})."
    )


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


if __name__ == "__main__":
    with one_line_errors():
        main()
