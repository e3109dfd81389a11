"""Measures whether memory grows during a training: the resident size of its process, over and over.

The training runs as a user would run it, with metrics, checkpoints and sample grids, until the time is over. All flags
besides the benchmark's own are those of `hfgen train`. Examples:

    python benchmarks/memory.py --minutes 60 --output memory.json
    python benchmarks/memory.py --minutes 10 --family gan --dataset_name ylecun/mnist
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import BenchmarkOptions, command_of, publish, read_beside_training

from hfgen.commands.cli import one_line_errors
from hfgen.commands.train import read_options as read_training
from hfgen.registry import families
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.training.config import TrainingConfig

POINTS = 60  # of the curve that is kept
SETTLING = 0.2  # share of the time that is left out of the slope: imports come first, and allocators fill
FLAT = 0.02  # growth per hour, as a share of the size, at most


@dataclass(frozen=True)
class MemoryBenchmark(BenchmarkOptions):
    """Benchmark: what to run, and how long."""

    family: str = option("ddpm", "what to train", choices=tuple(families()))
    minutes: float = option(60.0, "length of the run", above=0)


def read_options(argv: Sequence[str] | None = None) -> tuple[MemoryBenchmark, Any, list[str]]:
    """The benchmark's own options, those of training, and the flags of the latter."""
    config, others = read_beside_training(MemoryBenchmark, argv, __doc__)
    return config, read_training([config.family, *others]), others


def main(argv: Sequence[str] | None = None) -> None:
    config, training, others = read_options(argv)

    import numpy as np

    from hfgen.runtime.launch import cpu_name

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "hfgen", "train", config.family, *others]
        command += ["--output_dir", f"{folder}/run", "--max_train_steps", f"{10**9}"]  # who stops it is `watch`
        samples = watch(command, folder / "run" / "logs" / "metrics.jsonl", folder / "log", 60 * config.minutes)
        done = progress(folder / "run")
    found = growth(samples)
    verdict = "flat" if found["flat"] else "it grows"
    if 2 * found["error"] > FLAT * found["mean"]:
        verdict = "too short to tell"
    slope = f"{found['slope']:+.1f} ± {found['error']:.1f}"
    rows = [
        ["", "minutes", "mean MB", "most MB", "MB per hour", f"at most {FLAT:.0%} per hour"],
        [config.family, f"{config.minutes:g}", f"{found['mean']:.0f}", f"{samples[:, 1].max():.0f}", slope, verdict],
    ]
    notes = [f"A line through all but the first {SETTLING:.0%} of the time. The run has written {done}."]
    curve = [part.mean(0).tolist() for part in np.array_split(samples, min(POINTS, len(samples)))]
    options, measured = as_dict([config, *training]), found | {"minutes_and_mb": curve}
    shown = command_of(__file__, [MemoryBenchmark, TrainingConfig], argv)
    publish(config.output, shown, cpu_name(), options, {"Resident size": rows}, notes, measured)


def growth(samples: Any) -> dict[str, Any]:
    """MB per hour, with its error, by a line through pairs of minutes and MB; their mean, and whether that is flat."""
    import numpy as np

    minutes, size = samples[int(SETTLING * len(samples)) :].T
    (slope, _), covariance = np.polyfit(minutes, size, 1, cov=True)
    found = {"slope": 60 * slope, "error": 60 * covariance[0, 0] ** 0.5, "mean": size.mean()}
    found = {name: float(value) for name, value in found.items()}
    return found | {"flat": found["slope"] <= FLAT * found["mean"]}


def watch(command: Sequence[str], begun: Path, log: Path, seconds: float) -> Any:
    """Runs a command for some seconds from when a file is there; returns minutes and resident sizes in MB, `(N, 2)`.

    Raises:
        UserError: If the command ends before.
    """
    import numpy as np

    samples: list[tuple[float, float]] = []
    start, now = None, time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while start is None or now - start < seconds:
                if process.poll() is not None:
                    lines = log.read_text().strip().splitlines()
                    raise UserError(f"the training ended by itself: {lines[-1] if lines else process.returncode}")
                if start is None and begun.exists():
                    start = now
                if start is not None:
                    samples.append(((now - start) / 60, resident_size(process.pid)))
                time.sleep(min(2.0, seconds / 300))
                now = time.monotonic()  # read once, so that no sample is of later than it was to be
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
    return np.array(samples)


def resident_size(process: int) -> float:
    """In MB.

    Raises:
        UserError: Where the system does not tell.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        raise UserError("this system does not tell the memory of a process in /proc: use Linux.") from None
    found = re.search(r"VmRSS:\s*(\d+) kB", status)
    return 1.024e-3 * int(found[1]) if found else 0.0  # none: it has just ended


def progress(run: Path) -> str:
    lines = (run / "logs" / "metrics.jsonl").read_text().splitlines()
    images = json.loads(lines[-1])["images_seen"] if lines else 0
    grids = len([*(run / "samples").glob("*.png")])
    last = sorted(run.glob("checkpoint-*"))
    saved = int(last[-1].name.rpartition("-")[2]) if last else 0
    return f"{len(lines)} lines of metrics ({images:,} images), {grids} sample grids and checkpoints up to {saved:,}"


if __name__ == "__main__":
    with one_line_errors():
        main()
