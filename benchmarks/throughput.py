"""Measures how fast networks train, with bf16, compilation and channels-last memory on and off.

The settings of a network take turns, each in a process of its own, so that noise of the machine hits all alike; one
that waits keeps its weights, and gives the memory of its activations back. The step is that of our loop, with its
progress bar and its metrics. `float32` is what torch makes of it: a GPU may use TF32 in convolutions. What does not
fit, or cannot be compiled, is left out and said.

All flags besides the benchmark's own are those of `hfgen train`, for all networks alike. Examples:

    python benchmarks/throughput.py --output benchmarks/throughput.json
    python benchmarks/throughput.py --networks gan-stable gan-dcgan --dataset_name ylecun/mnist
    python benchmarks/throughput.py --networks vae --settings float32 bf16 --cpu_threads 1 --rounds 5
"""

import contextlib
import multiprocessing
import shlex
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import BenchmarkOptions, command_of, publish, read_beside_training
from loops import (
    WARM_UP,
    Step,
    count_flops,
    cycle,
    hfgen_loop,
    in_a_folder,
    plus_minus,
    read_run,
    start_alone,
    statistics_of,
    timed,
)
from train import PEAKS

from hfgen.commands.cli import one_line_errors
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.training.config import TrainingConfig
from hfgen.training.options import RunOptions

NETWORKS = {  # name -> family, and flags of `hfgen train`
    "ddpm-small": ("ddpm", "--preset cifar10 --block_out_channels 64 128 128 128"),
    "ddpm": ("ddpm", "--preset cifar10"),
    "ddpm-large": ("ddpm", "--preset cifar10 --block_out_channels 192 384 384 384"),
    **{
        f"gan-{preset}": ("gan", f"--preset {preset}")
        for preset in ("stable", "conditional", "dcgan", "wgan-gp", "mlp", "stylegan2")
    },
    "vae": ("vae", "--preset residual"),
    "vae-hierarchical": ("vae", "--preset hierarchical"),
}
PRECISIONS = {"float32": "no", "bf16": "bf16"}  # name -> --mixed_precision
SWITCHES = {  # name -> how it shows in the name of a setting, and what stands there without it
    "bf16": ("bf16", "float32"),
    "compile": ("+compile", ""),
    "channels_last": ("+channels_last", ""),
}
SETTINGS = tuple(
    f"{precision}{compiled}{layout}"
    for precision in PRECISIONS
    for compiled in ("", "+compile")
    for layout in ("", "+channels_last")
)
REFUSED = {  # flags of `hfgen train` -> what to use here
    "preset": "the networks have theirs. Choose with --networks.",
    **dict.fromkeys(("mixed_precision", "compile", "channels_last"), "it is compared. Choose with --settings."),
    "hub_token": "the commands of the report would show it. Set HF_TOKEN.",
}
FLOPS_BATCH = 16  # images; operations per image do not depend on it


@dataclass(frozen=True)
class ThroughputBenchmark(BenchmarkOptions):
    """Benchmark: what to measure, and for how long."""

    networks: tuple[str, ...] = option(tuple(NETWORKS), "networks to train", choices=tuple(NETWORKS))
    settings: tuple[str, ...] = option(SETTINGS, "what to train them with", choices=SETTINGS)
    rounds: int = option(20, "how often each setting gets its turn", least=1)
    round_seconds: float = option(1.0, "length of a turn, about", above=0)
    minutes: float = option(10.0, "length of the training runs that commands are written for", above=0)

    def validate(self) -> None:
        super().validate()
        for name in ("networks", "settings"):
            if not getattr(self, name):
                raise UserError(f"`{name}` is empty: leave it out for all, or see --help for the names.")


def read_options(
    argv: Sequence[str] | None = None,
) -> tuple[ThroughputBenchmark, dict[str, RunOptions], list[str]]:
    """The benchmark's own options, what to train by name, and the flags that all training has in common."""
    config, others = read_beside_training(ThroughputBenchmark, argv, __doc__)
    given = {argument.partition("=")[0] for argument in others if argument.startswith("--")}
    for flag in given:
        remedy = REFUSED.get(flag.removeprefix("--").removeprefix("no_"))
        if remedy:
            raise UserError(f"{flag} does not go with this benchmark: {remedy}")
    if not given & {"--dataset_name", "--train_data_dir", "--config"}:
        others = ["--dataset_name", "uoft-cs/cifar10", *others]
    runs = {name: read_run(NETWORKS[name][0], network_flags(name, others)) for name in config.networks}
    return config, runs, others


def network_flags(network: str, others: Sequence[str]) -> list[str]:
    return [*NETWORKS[network][1].split(), *others]


def main(argv: Sequence[str] | None = None) -> None:
    config, runs, others = read_options(argv)
    with worker() as pool:  # all networks before the first is measured: mistakes show at once
        measured = {
            name: pool.submit(describe_run, with_setting(options, "float32")).result()
            for name, options in runs.items()
        }
    machine = measured[config.networks[0]]["machine"]
    print(machine, flush=True)
    for name, options in runs.items():
        measured[name] |= measure(config, options)
        speeds = measured[name]["images_per_second"]
        shown = ", ".join(f"{setting} {speed['median']:,.0f}" for setting, speed in speeds.items())
        print(f"{name}: {shown or 'nothing'} images/s", flush=True)
    tables: dict[str, list[list[str]]] = {
        "Images per second": speed_table(config, measured),
        "Speed-up by each switch: median over what it is added to (least to most)": ratio_table(measured),
        "Work": work_table(measured),
    }
    if any(any(found["gpu_megabytes"].values()) for found in measured.values()):
        tables["Peak memory of the GPU, and share of its dense bf16 FLOP/s"] = gpu_table(config, measured)
    notes = [note for name in runs for note in notes_on(config, name, runs[name], measured[name], others)]
    notes.append(
        f"Ratios are taken turn by turn; behind ± is the deviation of {config.rounds} turns. The runs are for one "
        "device (with several, `accelerate launch --num_processes 1`); start-up, compilation, sample grids and "
        "checkpoints come on top of their minutes."
    )
    values: dict[str, Any] = {"benchmark": as_dict([config])}
    values |= {name: options.values for name, options in runs.items()}
    command = command_of(__file__, [ThroughputBenchmark, TrainingConfig], argv)
    publish(config.output, command, machine, values, tables, notes, measured)


# The measuring


def with_setting(options: RunOptions, setting: str) -> RunOptions:
    precision, *switches = setting.split("+")
    training = replace(
        options.training,
        mixed_precision=PRECISIONS[precision],
        compile="compile" in switches,
        channels_last="channels_last" in switches,
    )
    return replace(options, training=training)


def measure(config: ThroughputBenchmark, options: RunOptions) -> dict[str, Any]:
    """Images per second with each setting, in turns of whole cycles; the reason for each setting that failed."""
    pools: dict[str, ProcessPoolExecutor] = {}
    failed: dict[str, str] = {}

    def ask(setting: str, function: Any, *arguments: Any) -> Any:
        """What a function returns in the process of a setting; one that fails is out."""
        try:
            return pools[setting].submit(function, *arguments).result()
        except (UserError, BrokenExecutor) as error:
            failed[setting] = str(error)
            pools.pop(setting).shutdown()  # and what it holds of the device

    counts, turns, size = {}, [], options.training.train_batch_size
    with contextlib.ExitStack() as stack:
        for setting in config.settings:
            placed = stack.enter_context(in_a_folder(with_setting(options, setting)))
            pools[setting] = stack.enter_context(worker())
            counts[setting] = ask(setting, set_up, placed, config.round_seconds)
        for number in range(config.rounds):
            first, row = number % len(config.settings), {}
            for setting in config.settings[first:] + config.settings[:first]:
                seconds = ask(setting, take_turn, counts[setting], cycle(options)) if setting in pools else None
                if seconds:
                    row[setting] = counts[setting] * size / seconds
            turns.append(row)
        memory = {setting: ask(setting, gpu_megabytes) for setting in [*pools]}
    measured = [setting for setting in config.settings if setting not in failed]
    turns = [{setting: row[setting] for setting in measured} for row in turns]
    speeds = {setting: statistics_of([row[setting] for row in turns]) for setting in measured}
    found = {"turns": turns, "images_per_second": speeds, "speed_ups": speed_ups(turns)}
    return found | {"gpu_megabytes": memory, "failed": failed}


def speed_ups(turns: Sequence[dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """For each switch and each setting that has it: how much faster that is than the setting without."""
    found: dict[str, dict[str, dict[str, float]]] = {switch: {} for switch in SWITCHES}
    for switch, (on, off) in SWITCHES.items():
        for setting in turns[0]:
            without = setting.replace(on, off)
            if on in setting and without in turns[0]:
                found[switch][setting] = statistics_of([row[setting] / row[without] for row in turns])
    return found


# What runs in the processes


def worker() -> ProcessPoolExecutor:
    """A fresh process: Accelerate and torch keep precision for as long as one lives."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


step: Step  # of the setting that a process is for


def describe_run(options: RunOptions) -> dict[str, Any]:
    """The machine, the data and the work that an image is, without the settings."""
    from hfgen.runtime.launch import describe
    from hfgen.training.api import open_recipe

    accelerator = start_alone(options)
    recipe, stream, _, _ = open_recipe(options, accelerator)
    size = options.training.train_batch_size
    few = replace(options, training=replace(options.training, train_batch_size=min(size, FLOPS_BATCH)))
    return {
        "machine": describe(accelerator, "by setting"),
        "data": str(stream.info),
        "batch": size,
        "flops_per_image": count_flops(few),
        "uncompiled": {name: n.eager_reason for name, n in recipe.networks.items() if n.eager_reason},
    }


def set_up(options: RunOptions, seconds: float) -> int:
    """Builds and compiles the loop; returns how many steps make a turn."""
    global step
    import torch

    with in_words(), contextlib.redirect_stdout(None):
        step = hfgen_loop(options)
        timed("wall", step, cycle(options) + WARM_UP)
        each = timed("wall", step, cycle(options))
        torch.cuda.empty_cache()
    return cycle(options) * max(1, round(seconds / each))


def take_turn(count: int, length: int) -> float:
    """Seconds of some steps."""
    import torch

    with in_words():
        timed("wall", step, length)  # takes the memory of the GPU anew
        seconds = timed("wall", step, count)
        torch.cuda.empty_cache()  # it is the next one's turn
    return seconds


def gpu_megabytes() -> float | None:
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Turns any error into one line, which can be sent to another process."""
    try:
        yield
    except Exception as error:
        raise UserError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


# The tables and notes


def speed_table(config: ThroughputBenchmark, measured: dict[str, Any]) -> list[list[str]]:
    rows = [["", *config.settings]]
    for name, found in measured.items():
        speeds = {setting: plus_minus(speed, 0) for setting, speed in found["images_per_second"].items()}
        speeds |= {setting: word(reason) for setting, reason in found["failed"].items()}
        rows.append([name, *(speeds[setting] for setting in config.settings)])
    return rows


def word(reason: str) -> str:
    return "out of memory" if "out of memory" in reason else "failed"


def ratio_table(measured: dict[str, Any]) -> list[list[str]]:
    rows = [["", *SWITCHES]]
    for name, found in measured.items():
        row = [name]
        for pairs in found["speed_ups"].values():
            ratios = [ratio["median"] for ratio in pairs.values()]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
            row.append(f"{statistics.median(ratios):.2f}{spread}" if ratios else "")
        rows.append(row)
    return rows


def work_table(measured: dict[str, Any]) -> list[list[str]]:
    rows = [["", "data", "batch", "MFLOP per image"]]
    for name, found in measured.items():
        flops = found["flops_per_image"]
        rows.append([name, found["data"], f"{found['batch']}", f"{flops / 1e6:,.0f}"])
    return rows


def gpu_table(config: ThroughputBenchmark, measured: dict[str, Any]) -> list[list[str]]:
    """MB; with bf16, on a device whose peak is known, also the share of it."""
    rows = [["", *config.settings]]
    for name, found in measured.items():
        peak = next((peak for device, peak in PEAKS.items() if device in found["machine"]), None)
        cells = []
        for setting in config.settings:
            if setting in found["failed"]:
                cells.append("")
                continue
            cells.append(f"{found['gpu_megabytes'][setting]:,.0f} MB")
            if peak and setting.startswith("bf16"):
                speed = found["flops_per_image"] * found["images_per_second"][setting]["median"]
                cells[-1] += f", {speed / peak:.1%}"
        rows.append([name, *cells])
    return rows


def notes_on(
    config: ThroughputBenchmark, name: str, options: RunOptions, found: dict[str, Any], others: Sequence[str]
) -> Iterator[str]:
    speeds = {setting: speed["median"] for setting, speed in found["images_per_second"].items()}
    if speeds:
        fastest = max(speeds, key=lambda setting: speeds[setting])
        steps = max(1, int(config.minutes * 60 * speeds[fastest] / found["batch"]))
        yield (
            f"{name}: fastest with {fastest}. About {config.minutes:g} minutes: "
            f"`{training_command(name, options, fastest, steps, others)}`"
        )
    for setting, reason in found["failed"].items():
        yield f"{name}: {setting} failed: {reason}"
    for module in found["uncompiled"] if any("compile" in setting for setting in config.settings) else ():
        yield f"{name}: compile leaves the {module} alone."


def training_command(name: str, options: RunOptions, setting: str, steps: int, others: Sequence[str]) -> str:
    training = with_setting(options, setting).training
    flags = [*network_flags(name, others), "--mixed_precision", training.mixed_precision]
    for switch in ("compile", "channels_last"):
        if getattr(training, switch):
            flags.append(f"--{switch}")
        elif getattr(options.training, switch):  # by the preset
            flags.append(f"--no_{switch}")
    data = Path(options.data.train_data_dir or options.data.dataset_name or "digits").resolve().name
    flags += ["--max_train_steps", str(steps), "--output_dir", f"out/{name}-{data}"]
    return shlex.join(["accelerate", "launch", "-m", "hfgen", "train", options.family.name, *flags])


if __name__ == "__main__":
    with one_line_errors():
        main()
