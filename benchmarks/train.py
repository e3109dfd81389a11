"""Measures what the training loop costs: ours beside a bare one, the limit, and one as diffusers' example has it.

All three train the same networks with the same losses, on the same data, with the same batch and precision, in turns
and in one process, so that noise of the machine hits all alike:

- `hfgen`: a step of our loop, its progress bar, and its metrics when they are due;
- `bare`: forward, backward, clipping, fused AdamW and the moving average, on images that are floats already;
- `diffusers-style`: the steps of diffusers' script for unconditional generation: images decoded and resized by
  `set_transform`, a DataLoader, Accelerate's `prepare` and `accumulate`, AdamW, `EMAModel`, and the loss read in each
  step.

Memory and start-up are those of processes of their own. All flags besides the benchmark's own are those of
`hfgen train`. Examples:

    python benchmarks/train.py --output benchmarks/train.json
    python benchmarks/train.py --dataset_name ylecun/mnist --cpu_threads 1 --clock cpu
    python benchmarks/train.py --family ddpm --preset cifar10 --mixed_precision bf16
"""

import contextlib
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from common import BenchmarkOptions, command_of, peak_memory, publish, read_beside_training
from loops import (
    LOOPS,
    WARM_UP,
    count_flops,
    cycle,
    in_a_folder,
    plus_minus,
    read_run,
    start_alone,
    statistics_of,
    timed,
)

from hfgen.commands.cli import one_line_errors
from hfgen.registry import families
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.training.config import TrainingConfig
from hfgen.training.options import RunOptions

FAMILIES = tuple(families())
AIM, AIMS = 0.05, {"ddpm": 0.02}  # overhead over the bare loop, at most
IMPORT_AIM, HELP_AIM = 0.2, 2.0  # seconds, at most
HELPS = ("--help", "train gan --help")
PEAKS = {  # dense bf16 FLOP/s as the makers state them, by what the device's name holds; the first that fits
    **{"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12},
    **{"A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12},
}


@dataclass(frozen=True)
class TrainBenchmark(BenchmarkOptions):
    """Benchmark: what to measure, and for how long."""

    family: tuple[str, ...] = option(FAMILIES, "families to train", choices=FAMILIES)
    rounds: int = option(40, "how often each loop gets its turn", least=1)
    round_seconds: float = option(1.0, "length of a turn, about: short, so that noise hits all loops alike", above=0)
    clock: str = option(
        "wall", "what seconds are; `cpu` leaves out those of other work: for one thread on a busy CPU",
        choices=("wall", "cpu"),
    )  # fmt: skip
    start_ups: int = option(5, "how often each start-up is measured; 0 leaves start-up and memory out", least=0)

    def validate(self) -> None:
        super().validate()
        if not self.family:
            raise UserError(f"`family` is empty: choose from {' '.join(FAMILIES)}.")


def read_options(argv: Sequence[str] | None = None) -> tuple[TrainBenchmark, dict[str, RunOptions]]:
    config, others = read_beside_training(TrainBenchmark, argv, __doc__)
    return config, {family: read_run(family, others) for family in config.family}


def main(argv: Sequence[str] | None = None) -> None:
    config, runs = read_options(argv)

    from hfgen.runtime.launch import describe

    accelerator = start_alone(runs[config.family[0]])
    on_cpu = accelerator.device.type == "cpu"
    if config.clock == "cpu" and not on_cpu:
        raise UserError("`clock` cpu is for a CPU: leave it out.")
    machine = describe(accelerator, accelerator.mixed_precision)
    print(f"{machine}; seconds of the {config.clock} clock", flush=True)
    measured: dict[str, Any] = {family: measure_speed(config, options) for family, options in runs.items()}
    tables: dict[str, list[list[str]]] = {"Images per second": speed_table(measured)}
    tables["Work"] = work_table(measured, "" if on_cpu else machine)
    notes = [verdict(family, measured[family]) for family in runs]
    if config.start_ups:
        for family, options in runs.items():
            measured[family]["processes"] = measure_processes(config, options)
        tables["Memory and start-up of training"] = process_table(measured)
        starts = measure_starts(config)
        tables["Start-up"] = [["", "seconds"], *([f"`{name}`", plus_minus(starts[name], 3)] for name in starts)]
        notes.append(start_verdict(starts))
        measured["starts"] = starts
    notes.append(
        f"Seconds are of the {config.clock} clock. Ratios are taken turn by turn. Behind ± is the deviation of "
        f"{config.rounds} turns or {config.start_ups} start-ups; for the overhead, the error of the median."
    )
    values: dict[str, Any] = {"benchmark": as_dict([config])}
    values |= {family: options.values for family, options in runs.items()}
    command = command_of(__file__, [TrainBenchmark, TrainingConfig], argv)
    publish(config.output, command, machine, values, tables, notes, measured)


def measure_speed(config: TrainBenchmark, options: RunOptions) -> dict[str, Any]:
    """Images per second of the loops, in turns of whole cycles, and the work that an image is."""
    from hfgen.training.api import open_recipe

    size, rows, family = options.training.train_batch_size, [], options.family.name
    with in_a_folder(options) as options:
        data = str(open_recipe(options, start_alone(options))[1].info)
        flops = count_flops(options)
        steps = {name: make(options) for name, make in LOOPS.items()}
        counts, length = {}, cycle(options)
        for name, step in steps.items():
            timed(config.clock, step, length + WARM_UP)
            each = timed(config.clock, step, length)
            counts[name] = length * max(1, round(config.round_seconds / each))
        for number in range(config.rounds):
            first, row = number % len(steps), {}
            for name in [*steps][first:] + [*steps][:first]:
                row[name] = counts[name] * size / timed(config.clock, steps[name], counts[name])
            rows.append({name: row[name] for name in steps})
    ratios = {name: statistics_of([row["hfgen"] / row[name] for row in rows]) for name in LOOPS if name != "hfgen"}
    speeds = {name: statistics_of([row[name] for row in rows]) for name in LOOPS}
    shown = ", ".join(f"{name} {speed['median']:.0f}" for name, speed in speeds.items())
    print(f"{family}: {shown} images/s", flush=True)
    found = {"data": data, "batch": size, "flops_per_image": flops, "turns": rows}
    return found | {"images_per_second": speeds, "hfgen_over": ratios}


# Processes of their own


def measure_processes(config: TrainBenchmark, options: RunOptions) -> dict[str, Any]:
    """Seconds to the end of the first step, and the peak of memory in MB, of each loop."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    for _ in range(config.start_ups):
        for name in LOOPS:
            started = time.time()
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[name].append(pool.submit(first_steps, name, options, config.clock, started).result())
    return {
        name: {key: statistics_of([turn[key] for turn in turns]) for key in turns[0]} for name, turns in found.items()
    }


def first_steps(name: str, options: RunOptions, clock: str, started: float) -> dict[str, float]:
    import torch

    with in_a_folder(options) as options, contextlib.redirect_stdout(None):
        step = LOOPS[name](options)
        timed(clock, step, 1)
        seconds = time.process_time() if clock == "cpu" else time.time() - started
        timed(clock, step, cycle(options) + WARM_UP)
    found = {"seconds": seconds, "megabytes": peak_memory() or math.nan}
    if torch.cuda.is_available():
        found["gpu_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def measure_starts(config: TrainBenchmark) -> dict[str, dict[str, float]]:
    """Seconds of imports, and of `--help`."""
    now = "time.process_time()" if config.clock == "cpu" else "time.perf_counter()"
    code = f"import time; a = {now}; import torch; b = {now}; import hfgen; print(b - a, {now} - b)"
    found: dict[str, list[float]] = {}
    for _ in range(config.start_ups):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for name, seconds in zip(("import torch", "import hfgen"), result.stdout.split(), strict=True):
            found.setdefault(name, []).append(float(seconds))
        for words in HELPS:
            before = children_time(config.clock)
            subprocess.run([sys.executable, "-m", "hfgen", *words.split()], capture_output=True, check=True)
            found.setdefault(f"hfgen {words}", []).append(children_time(config.clock) - before)
    return {name: statistics_of(seconds) for name, seconds in found.items()}


def children_time(clock: str) -> float:
    times = os.times()
    return times.children_user + times.children_system if clock == "cpu" else time.perf_counter()


# The tables


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
    ratio, aim = found["hfgen_over"]["bare"], AIMS.get(family, AIM)
    overhead, times = 1 - ratio["median"], found["hfgen_over"]["diffusers-style"]["median"]
    return (
        f"{family}: overhead over the bare loop {overhead:.1%} ± {ratio['error']:.1%} (aim: at most {aim:.0%}, "
        f"{met(overhead <= aim)}); {times:.2f} times as fast as the diffusers-style loop (aim: at least 1, "
        f"{met(times >= 1)})."
    )


def start_verdict(starts: dict[str, dict[str, float]]) -> str:
    seconds = {name: found["median"] for name, found in starts.items()}
    added, longest = seconds["import hfgen"], max(seconds[f"hfgen {words}"] for words in HELPS)
    return (
        f"`import hfgen` adds {added:.3f} s to `import torch` (aim: at most {IMPORT_AIM:g} s, "
        f"{met(added <= IMPORT_AIM)}); the slowest help takes {longest:.2f} s (aim: at most {HELP_AIM:g} s, "
        f"{met(longest <= HELP_AIM)})."
    )


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


if __name__ == "__main__":
    with one_line_errors():
        main()
