"""Measures what images of each size take: parameters, the memory of a training step, and images per second.

Each family trains its default network for a few steps on images of random pixels, each time in a process of its own.
The memory is the most that the process holds above what it held before: weights, and all that a step adds. "estimate"
is what a run compares with the memory of the machine before its first step. Examples:

    python benchmarks/sizes.py --output benchmarks/sizes.json
    python benchmarks/sizes.py --families vae --resolutions 64 --seconds 60
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import BenchmarkOptions, command_of, peak_memory, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.registry import families
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option


@dataclass(frozen=True)
class SizesBenchmark(BenchmarkOptions):
    """Benchmark: what to train, and how long."""

    families: tuple[str, ...] = option(("ddpm", "gan", "vae"), "families", choices=tuple(families()))
    resolutions: tuple[int, ...] = option((32, 64, 128, 256), "sides of the images in pixels", least=8, most=256)
    num_images: int = option(300, "images of random pixels", least=16)
    seconds: float = option(30.0, "time to take steps in, behind a first one; there is at least one more", above=0)


def read_options(argv: Sequence[str] | None = None) -> SizesBenchmark:
    (config,) = parse((SizesBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    from hfgen.runtime.launch import cores, cpu_name

    head = ["", "pixels", "parameters", "images per step", "MB", "estimate", "images/s", "CPU s per image"]
    table = [[*head, *(f"{name}, checkpointed" for name in head[4:])]]
    results = []
    with tempfile.TemporaryDirectory() as name:
        for resolution in config.resolutions:
            draw(Path(name) / str(resolution), resolution, config.num_images)
        for family in config.families:
            for resolution in config.resolutions:
                found = [alone(family, name, resolution, config.seconds, again) for again in (False, True)]
                results += found
                millions, batch = f"{found[0]['parameters'] / 1e6:.2f} M", str(found[0]["batch"])
                cells = [f"{one[key]:{form}}" for one in found for key, form in COLUMNS.items()]
                table.append([family, str(resolution), millions, batch, *cells])
                print(*table[-1], flush=True)
    notes = [
        f"{cores()} cores; {config.num_images} images of random pixels; as many steps as begin in {config.seconds:g} "
        "seconds, behind a first one.",
        "MB: the most that the process held, above what it held before there were networks. Much of what is above the "
        "estimate is memory that the allocator keeps.",
        "checkpointed: with `--gradient_checkpointing`. CPU s: of all cores together; beside other work they say more "
        "than images/s.",
    ]
    command, tables = command_of(__file__, [SizesBenchmark], argv), {"Sizes": table}
    publish(config.output, command, cpu_name(), as_dict([config]), tables, notes, results)


COLUMNS = {"megabytes": ",.0f", "estimate": ",.0f", "images_per_second": ".3g", "cpu_seconds_per_image": ".3g"}


def draw(folder: Path, resolution: int, count: int) -> None:
    """Fills a folder with images of random pixels."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png", compress_level=1)


def alone(*arguments: Any) -> dict[str, Any]:
    """Calls `measure` in a process of its own, whose memory nobody has used before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def measure(family: str, folder: str, resolution: int, seconds: float, checkpointing: bool) -> dict[str, Any]:
    """Trains for some steps.

    Raises:
        UserError: Where the system does not tell the memory of a process.
    """
    import gc
    import time

    import torch

    from hfgen.runtime.launch import make_accelerator
    from hfgen.training.api import open_recipe, recipe_of
    from hfgen.training.engine import Engine
    from hfgen.training.memory import step_memory
    from hfgen.training.options import collect
    from hfgen.training.schedules import Schedule

    options = collect(
        family,
        train_data_dir=f"{folder}/{resolution}",
        resolution=resolution,
        cache_dir=f"{folder}/cache",
        output_dir=f"{folder}/out",
        gradient_checkpointing=checkpointing,
    )
    accelerator = make_accelerator(options.training.mixed_precision)
    recipe, stream, options, live = open_recipe(options, accelerator)
    info, config = stream.info, options.training
    estimate = step_memory(recipe_of(options.family), options, info)
    modules = [network.module for network in recipe.networks.values()]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    weights = 1e-6 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    gc.collect()
    release()
    before = peak_memory(reset=True)
    schedule = Schedule(config, info.num_images)
    engine = Engine(recipe, config, schedule, options.data, accelerator, live)
    steps, start, cpu = -1, time.perf_counter(), time.process_time()
    while steps < 1 or time.perf_counter() - start < seconds:
        if steps == 0:  # what the first one does for all is done
            start, cpu = time.perf_counter(), time.process_time()
        seen = (steps + 1) * schedule.batch
        engine.step(seen, [stream.read(seen + offset, schedule.micro_batch) for offset in schedule.starts])
        steps += 1
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    images, most = steps * schedule.batch, peak_memory()
    if before is None or most is None:
        raise UserError("this system does not tell the memory of a process in /proc: use Linux.")
    return {
        "family": family,
        "resolution": resolution,
        "gradient_checkpointing": checkpointing,
        "parameters": sum(parameter.numel() for module in modules for parameter in module.parameters()),
        "batch": schedule.batch,
        "precision": config.mixed_precision,
        "threads": torch.get_num_threads(),
        "megabytes": most - before + weights,
        "process_megabytes": most,
        "estimate": 1e-6 * estimate if estimate is not None else float("nan"),
        "steps": steps,
        "images_per_second": images / took,
        "cpu_seconds_per_image": cpu / images,
    }


def release() -> None:
    """Gives memory back that was freed, so that what comes is not hidden in it."""
    import contextlib
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    with one_line_errors():
        main()
