"""Measures whether the training loop of one checkout is slower than that of another.

A machine is not equally fast all day, so both take turns: each pair is the same short training in both checkouts, in
random order and fresh processes. What counts is the ratio within a pair. Examples:

    python benchmarks/pairs.py --before ../before --after .
    python benchmarks/pairs.py --before ../before --after . --family gan --pairs 10 --output pairs.json
    python benchmarks/pairs.py --before . --after . --pairs 5    # what the measurement itself is good for: 1 is within
"""

import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import BenchmarkOptions, command_of, publish, require_least

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option

STEPS = {"ddpm": 150, "gan": 350, "vae": 350}  # ten to twenty seconds on one core
RESAMPLES = 10_000
THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Nothing but steps: no grid but the last, which is small, and no checkpoint but the last.
QUIET = "--save_images_epochs 0 --eval_batch_size 1 --checkpointing_steps 1000000000 --cpu_threads 1"

Row = dict[str, Any]


@dataclass(frozen=True)
class PairsBenchmark(BenchmarkOptions):
    """Benchmark: of which checkouts, on what."""

    before: str | None = option(None, "folder of the checkout to compare with")
    after: str | None = option(None, "folder of the checkout in question")
    family: str = option("ddpm", "what to train", choices=tuple(STEPS))
    pairs: int = option(20, "number of pairs")
    steps: int | None = option(None, "steps of each training (default: by the family)")
    logging_steps: int = option(50, "steps of an interval")
    options: str = option("", "further options of the training, in quotes")
    seed: int = option(0, "decides which comes first in which pair")

    def validate(self) -> None:
        super().validate()
        require_least(self, 1, "pairs", "steps", "logging_steps")
        for name in ("before", "after"):
            if getattr(self, name) is None:
                raise UserError(f"`{name}` is missing: give the folder of a checkout.")


class Checkout:
    """Runs trainings in a checkout.

    Args:
        path (`Path`): The repository's folder.
        folder (`Path`): Where its runs and its cache go.
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path.resolve(), folder
        folder.mkdir()
        self.environment = os.environ | THREAD | {"PYTHONPATH": str(self.path), "HF_HOME": str(folder / "hf_home")}
        self.machine = ""

    def check(self) -> None:
        """Makes sure that the processes import this checkout, and not one that is installed."""
        code = "import hfgen; print(hfgen.__file__)"
        found = Path(self._run([sys.executable, "-c", code]).strip().splitlines()[-1])
        if not found.is_relative_to(self.path):
            raise UserError(f"{self.path} has no hfgen, the processes would use {found}: give a checkout.")

    def seconds_per_image(self, family: str, options: Sequence[str]) -> float:
        """Trains once; the median of the intervals between two lines of metrics, without the first, which is slow."""
        output = self.folder / f"run-{time.time_ns()}"
        script = str(self.path / "scripts" / f"train_{family}.py")  # which older checkouts have, too
        self._run([sys.executable, script, *options, "--output_dir", str(output)])
        self.machine = json.loads((output / "run.json").read_text())["machine"]
        lines = [json.loads(line) for line in (output / "logs" / "metrics.jsonl").read_text().splitlines()]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line][1:]
        if not speeds:
            raise UserError("the run has one line of metrics only: give more `steps`.")
        return 1 / statistics.median(speeds)

    def _run(self, command: list[str]) -> str:
        # Not from the working folder, which Python might search for modules.
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"{shlex.join(command)}: exit code {result.returncode}: {result.stderr.strip()[-2000:]}")
        return result.stdout


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the median, by resampling with replacement."""
    rng = random.Random(seed)
    found = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return found[round(0.025 * (RESAMPLES - 1))], found[round(0.975 * (RESAMPLES - 1))]


def measure(checkouts: dict[str, Checkout], family: str, options: Sequence[str], pairs: int, seed: int) -> list[Row]:
    """Takes the pairs, and prints each."""
    names, rows = list(checkouts), []
    orders = [names[:: -1 if number % 2 else 1] for number in range(pairs)]  # each comes first equally often
    random.Random(seed).shuffle(orders)
    for number, order in enumerate(orders):
        row: Row = {"first": order[0]}
        for name in order:
            row[name] = checkouts[name].seconds_per_image(family, options)
        row["ratio"] = row["after"] / row["before"]
        rows.append(row)
        shown = ", ".join(f"{name} {1e6 * row[name]:.1f}" for name in checkouts)
        print(f"pair {number + 1} of {pairs}: µs per image: {shown}; ratio {row['ratio']:.4f}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((PairsBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    length = f"--preset digits --max_train_steps {config.steps or STEPS[config.family]}"
    options = f"{length} --logging_steps {config.logging_steps} {QUIET} {config.options}".split()
    with tempfile.TemporaryDirectory() as folder:
        # Paths of one length: even the size of the environment can change how fast a process is.
        checkouts = {
            name: Checkout(Path(getattr(config, name)), Path(folder) / str(number))
            for number, name in enumerate(("before", "after"))
        }
        for checkout in checkouts.values():
            checkout.check()
        rows = measure(checkouts, config.family, options, config.pairs, config.seed)
    ratios = [row["ratio"] for row in rows]
    ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
    verdict = "no difference is seen" if low <= 1 <= high else "slower" if ratio > 1 else "faster"
    note = f"after / before, seconds per image: {ratio:.4f}, 95 % interval {low:.4f} to {high:.4f}: {verdict}"
    medians = [f"{1e6 * statistics.median(row[name] for row in rows):.1f}" for name in checkouts]
    table = [["", *checkouts, "ratio", "95 % interval"], [config.family, *medians, f"{ratio:.4f}"]]
    table[1].append(f"{low:.4f} to {high:.4f}")
    measured = {"ratio": ratio, "interval": [low, high], "pairs": rows, "options": options}
    command, machine = command_of(__file__, [PairsBenchmark], argv), checkouts["after"].machine
    publish(config.output, command, machine, as_dict([config]), {"µs per image": table}, [note], measured)


if __name__ == "__main__":
    with one_line_errors():
        main()
