"""Training from Python."""

import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hfgen.data.columns import Derived, kept_columns, sources_of
from hfgen.data.derived import derive
from hfgen.data.groups import ImageModel
from hfgen.data.streams import Stream, StreamedStream, open_stream
from hfgen.hub.push import check_push, push_folder
from hfgen.registry import Family
from hfgen.runtime.errors import UserError
from hfgen.runtime.launch import make_accelerator
from hfgen.runtime.lock import FolderLock
from hfgen.runtime.machine import Machine, weight_bytes
from hfgen.runtime.notes import note, notes_to
from hfgen.runtime.notes import say as print_line
from hfgen.runtime.options import as_text
from hfgen.runtime.seeds import seed_from
from hfgen.training.engine import digest
from hfgen.training.folder import RunFolder
from hfgen.training.lora import adapt, adapted_name, require_peft
from hfgen.training.memory import check_step, most_a_step_takes
from hfgen.training.options import RunOptions, collect
from hfgen.training.recipe import FROZEN, TRAINED, Recipe
from hfgen.training.run import Run
from hfgen.training.start import Start

FIRST = 256  # rows that a recipe checks beforehand


def train(
    family: str,
    preset: str | None = None,
    *,
    command: str = "",
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Run:
    """Trains a generator, with the options, defaults and errors of the command `hfgen train`.

    ```py
    run = hfgen.train("gan", dataset_name="ylecun/mnist", num_epochs=2, output_dir="out/gan")
    pipe = hfgen.GANPipeline.from_pretrained(run.folder.path)
    ```

    Args:
        family (`str`):
            `"ddpm"`, `"gan"`, `"vae"`, `"autoregressive"`, `"flow"`, or one that an installed package adds.
        preset (`str`, *optional*): A set of defaults that fit together.
        command (`str`, *optional*): What repeats the run, for its record; by default this call.
        say (`Callable`, *optional*): Told what a person should know; by default it is printed.
        options: See [`DataConfig`], [`TrainingConfig`] and the options of the family.

    Returns:
        [`Run`]: At its end; `run.folder.path` is the folder of the pipeline.

    Raises:
        UserError: For whatever a user can fix.
    """
    return run_training(collect(family, preset, command or call(family, preset, options), **options), say)


def run_training(options: RunOptions, say: Callable[[str], None] | None = None) -> Run:
    """Trains with options that were collected, and pushes the result if they ask for it: see [`train`]."""
    threads, numbers = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        with notes_to(say or print_line):
            run = prepare(options, say).train()
    finally:  # for the notebook that goes on
        torch.set_num_threads(threads)
        torch.random.set_rng_state(numbers)
    config = run.config
    if config.push_to_hub and run.main and not run.stopped_by:
        private, token = config.hub_private_repo, config.hub_token
        run.say(f"Pushed:   {push_folder(run.folder.path, run.folder.model_id, private=private, token=token)}")
    return run


def call(family: str, preset: str | None, options: dict[str, Any]) -> str:
    """Writes the call of [`train`] as text, without secrets."""
    secret = ("hub_token",)
    preset_text = [f"preset={preset!r}"] if preset else []
    values = [f"{name}={'***' if name in secret else repr(value)}" for name, value in options.items()]
    return f"hfgen.train({', '.join([repr(family), *preset_text, *values])})"


def prepare(options: RunOptions, say: Callable[[str], None] | None = None) -> Run:
    """Opens the data, makes the recipe and the run, and rehearses its end; nothing is trained yet.

    Raises:
        UserError: For whatever a user can fix.
    """
    training = options.training
    if training.push_to_hub:
        model_id = training.hub_model_id or RunFolder(options).model_id
        if os.environ.get("RANK", "0") == "0":  # one process asks, and takes the others down if the answer is no
            model_id = check_push(model_id, training.hub_private_repo, training.hub_token)
        options = dataclasses.replace(options, training=dataclasses.replace(training, hub_model_id=model_id))
    folder = RunFolder(options)  # mistakes in the folder are told before any data is read
    if os.environ.get("RANK", "0") == "0":
        FolderLock(folder.path).check()
    tracker = None if training.logger == "none" else training.logger
    accelerator = make_accelerator(training.mixed_precision, training.cpu_threads, tracker, training.output_dir)
    recipe, stream, options, live = open_recipe(options, accelerator)
    return Run(recipe, stream, options, accelerator, live, say)


def recipe_of(family: Family) -> Any:
    """Imports the recipe of a family.

    Raises:
        UserError: If it is no [`Recipe`], or one that lacks a part.
    """
    kind = family.load("recipe")
    if not (isinstance(kind, type) and issubclass(kind, Recipe)):
        raise UserError(f"{family.recipe}, the recipe of {family.name!r}, must derive from hfgen.Recipe.")
    lacking = [name for name in ("loss", "pipeline") if getattr(kind, name) is getattr(Recipe, name)]
    if lacking:
        raise UserError(f"{family.recipe}, the recipe of {family.name!r}, lacks {', '.join(lacking)}: write it.")
    return kind


def _image_model(device: Any, name: str) -> ImageModel:
    """Loads the network by whose features similar images are found."""
    from hfgen.evaluation.features import load_extractor

    try:
        extractor = load_extractor(name, device=device)
    except UserError as error:
        raise UserError(f"`cluster_features` {name}: {error}") from None
    return ImageModel(extractor.fingerprint, lambda images: extractor(images)["features"])


def check_memory(options: RunOptions, info: Any, machine: Machine, asked: RunOptions | None = None) -> None:
    """Makes sure that the images of a step, the networks with what training adds to them, and all that a step makes,
    would fit into an empty memory, before any of it is asked for.

    Args:
        options ([`RunOptions`]), info ([`~data.info.DataInfo`]), machine ([`~runtime.machine.Machine`]): What it is
            about.
        asked ([`RunOptions`], *optional*): The options before they were resolved.

    Raises:
        UserError: If they do not, with the options that decide it.
    """
    training = options.training
    shape = (info.channels, info.resolution, info.resolution)
    step = training.train_batch_size * training.gradient_accumulation_steps
    parts = ["train_batch_size"] + ["gradient_accumulation_steps"] * (training.gradient_accumulation_steps > 1)
    machine.require_images(step, shape, " ".join(f"`{name}` {getattr(training, name)}" for name in parts))
    machine.require_images(training.eval_batch_size, shape, f"`eval_batch_size` {training.eval_batch_size}")
    if options.data.streaming:
        buffer = options.data.shuffle_buffer_size
        Machine.host().require(buffer * math.prod(shape), f"`shuffle_buffer_size` {buffer}: so many images in memory")
    try:
        with torch.device("meta"):  # which has shapes, and no memory
            networks = recipe_of(options.family)(options.own, info).networks
    except UserError:
        raise
    except Exception:  # a family may make networks in ways that need memory: then they are made without an estimate
        return
    needed = sum(
        weight_bytes(
            network.module,
            network.role == TRAINED and not (training.lora_rank and network.adaptable),
            network.averaged and training.use_ema,
        )
        for network in networks.values()
    )
    count = sum(parameter.numel() for network in networks.values() for parameter in network.module.parameters())
    machine.require(needed, f"{weighty(options)}: {count / 1e6:,.0f} M weights, with all that training adds,")
    share = machine.share if training.lora_rank is None else None  # what adapters save is not estimated
    if share is not None and needed + most_a_step_takes(networks.values(), options, info) > share:
        check_step(recipe_of(options.family), options, info, machine, asked)


def weighty(options: RunOptions) -> str:
    """Names the options that decide how large the networks are, with their values: those that were given or are in a
    preset; without any, all of them."""
    values, chosen = {}, set()
    for part in options.parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.metadata.get("weighs") and value is not None:
                values[field.name] = as_text(value)
                if field.name in options.given or field.default not in (None, value):
                    chosen.add(field.name)
    return " ".join(f"`{name}` {value}" for name, value in values.items() if name in chosen or not chosen)


def open_recipe(options: RunOptions, accelerator: Any) -> tuple[Recipe, Stream, RunOptions, bool]:
    """Opens the data and makes the networks.

    Returns:
        The recipe, the data, the options with numbers in place of what was left to data and machine, and whether
        derived columns are encoded in each step.

    Raises:
        UserError: For data that cannot be used, or that do not fit the options.
    """
    training = options.training
    recipe_of(options.family)  # before the data is read
    if training.lora_rank is not None:
        require_peft()
    start = None
    if training.init_from and RunFolder(options).checkpoint is None:
        start = Start(training.init_from, training.hub_token)
        options = options.adopt(start.options(options.family))
    sources = sources_of(options.family.load("spec"), options.own, options.data)
    groups = 0 if getattr(options.own, "class_conditional", False) else options.data.num_clusters
    goes_on = training.resume_from_checkpoint and not groups
    classes = RunFolder(options).recorded_classes if goes_on else None
    load = partial(_image_model, accelerator.device)
    stream = open_stream(sources, options.data, training.seed, training.hub_token, groups, classes, load)
    machine = dataclasses.replace(Machine.here(), processes=accelerator.num_processes)
    asked, options = options, options.resolve(stream.info, machine, accelerator.mixed_precision)
    check_memory(options, stream.info, machine, asked)
    torch.manual_seed(seed_from(training.seed, "weights"))
    recipe = recipe_of(options.family)(options.own, stream.info)
    for text in start.load(recipe, options) if start else ():
        note(text)
    if training.lora_rank is not None:
        torch.manual_seed(seed_from(training.seed, "adapters"))
        adapt(recipe.networks[adapted_name(recipe.networks, options.family.name)].module, training)
    if isinstance(stream, StreamedStream):  # its images come once
        stream.needs_labels = recipe.needs_labels
    else:
        recipe.check_images(stream.read(0, min(FIRST, stream.info.num_images or FIRST)))
    kept = kept_columns(sources)
    if kept:
        frozen = [n.module.to(accelerator.device).eval() for n in recipe.networks.values() if n.role == FROZEN]
        if not frozen:
            raise UserError(f"the family {options.family.name!r} derives {', '.join(kept)} by no frozen network.")
        weights = "-".join(map(digest, frozen))
        stream = derive(stream, sources, recipe.encode, weights, accelerator.device, training.train_batch_size)
    live = any(isinstance(column, Derived) and column.live for column in sources.columns.values())
    return recipe, stream, options, live
