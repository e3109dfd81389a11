"""Measures whether the training loop of one checkout is slower than that of another.

A machine is not equally fast all day, so both take turns: a pair is the same training in both checkouts, in fresh
processes of which one runs at a time, a fraction of a second each. What counts is the ratio within a pair; it differs
between pairs, because a process is as fast as its memory happens to lie, and by who began. Examples:

    python benchmarks/pairs.py --before ../before --after .
    python benchmarks/pairs.py --before ../before --after . --family gan --pairs 10 --output pairs.json
    python benchmarks/pairs.py --before . --after . --pairs 5    # what the measurement itself is good for: 1 is within
"""

import contextlib
import math
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common import BenchmarkOptions, command_of, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option

PACED = Path(__file__).parent / "paced.py"
# Steps of an optimiser in a turn: about half a second on one core.
EVERY = {"autoregressive": 3, "ddpm": 4, "flow": 10, "gan": 30, "vae": 20}
FIRST = 4  # turns that are slow, and do not count
RESAMPLES = 10_000
THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Nothing but steps and their metrics: no grid and no checkpoint. The processes are stopped long before the end.
QUIET = "--save_images_epochs 0 --checkpointing_steps 1000000000 --max_train_steps 1000000 --cpu_threads 1"

Row = dict[str, Any]


@dataclass(frozen=True)
class PairsBenchmark(BenchmarkOptions):
    """Benchmark: of which checkouts, on what."""

    before: str | None = option(None, "folder of the checkout to compare with")
    after: str | None = option(None, "folder of the checkout in question")
    family: str = option("ddpm", "what to train", choices=tuple(EVERY))
    pairs: int = option(20, "number of pairs", least=1)
    turns: int = option(30, "turns of each process of a pair", least=1)
    logging_steps: int = option(10, "steps between two lines of metrics", least=1)
    options: str = option("", "further options of the training, in quotes")
    seed: int = option(0, "decides which comes first in which pair")

    def validate(self) -> None:
        super().validate()
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

    def check(self) -> None:
        """Makes sure that a process imports this checkout, and not one that is installed."""
        command = [sys.executable, "-c", "import hfgen; print(hfgen.__file__)"]
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if result.returncode or not Path(result.stdout.strip().splitlines()[-1]).is_relative_to(self.path):
            found = result.stdout.strip() or "none"
            raise UserError(f"{self.path} has no hfgen, its processes would use {found}: give a checkout.")

    @contextlib.contextmanager
    def training(self, family: str, options: Sequence[str]) -> Iterator["Training"]:
        """Trains in a process that waits for its turns, and ends it at last."""
        turns, out = os.pipe()
        into, times = os.pipe()
        script = str(self.path / "scripts" / f"train_{family}.py")  # which older checkouts have, too
        command = [sys.executable, str(PACED), str(EVERY[family]), str(turns), str(times), script, *options]
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as run,
            tempfile.TemporaryFile() as log,
            # Not from the working folder, which Python might search for modules.
            subprocess.Popen(
                [*command, "--output_dir", str(Path(run) / "run")],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                pass_fds=(turns, times),
            ) as process,
            open(into) as lines,
            open(out, "wb", buffering=0) as given,
        ):
            os.close(turns)
            os.close(times)
            try:
                yield Training(command, process, lines, given, log)
            finally:
                process.kill()


@dataclass
class Training:
    """A training that waits for its turns."""

    command: Sequence[str]
    process: subprocess.Popen
    lines: IO[str]
    given: IO[bytes]
    log: IO[bytes]

    def seconds(self) -> float:
        """Waits for the end of the turn that it has; the seconds that this turn took."""
        if line := self.lines.readline():
            return float(line)
        self.log.seek(0)
        text = self.log.read().decode(errors="replace").strip()[-2000:]
        raise UserError(f"{shlex.join(self.command)}: exit code {self.process.wait()}: {text}")

    def turn(self) -> float:
        """Gives it a turn; the seconds that this took."""
        self.given.write(b".")
        return self.seconds()


def typical(orders: Sequence[Sequence[float]]) -> float:
    """Returns the geometric mean of the medians: whoever begins is a little slower or faster, and that cancels."""
    return math.exp(statistics.fmean(math.log(statistics.median(ratios)) for ratios in orders))


def interval(orders: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of what is [`typical`], by resampling with replacement within each order."""
    rng = random.Random(seed)
    found = sorted(typical([rng.choices(own, k=len(own)) for own in orders]) for _ in range(RESAMPLES))
    return found[round(0.025 * (RESAMPLES - 1))], found[round(0.975 * (RESAMPLES - 1))]


def measure(checkouts: dict[str, Checkout], config: PairsBenchmark, options: Sequence[str]) -> list[Row]:
    """Takes the pairs, and prints each."""
    names, rows = list(checkouts), []
    orders = [names[:: -1 if number % 2 else 1] for number in range(config.pairs)]  # each is first equally often
    random.Random(config.seed).shuffle(orders)
    for number, order in enumerate(orders):
        with contextlib.ExitStack() as stack:
            trainings = {}
            for name in order:
                trainings[name] = stack.enter_context(checkouts[name].training(config.family, options))
                trainings[name].seconds()  # up to the first turn: imports, data, networks
            turns = [{name: trainings[name].turn() for name in order} for _ in range(FIRST + config.turns)][FIRST:]
        row: Row = {"first": order[0], "turns": turns}
        row |= {name: statistics.median(turn[name] for turn in turns) / EVERY[config.family] for name in names}
        row["ratio"] = statistics.median(turn["after"] / turn["before"] for turn in turns)
        rows.append(row)
        shown = ", ".join(f"{name} {1e3 * row[name]:.3f}" for name in names)
        print(f"pair {number + 1} of {config.pairs}: ms per step: {shown}; ratio {row['ratio']:.4f}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((PairsBenchmark,), argv, description=str(__doc__).partition("\n")[0])

    from hfgen.runtime.launch import cpu_name

    options = f"--preset digits --logging_steps {config.logging_steps} {QUIET} {config.options}".split()
    with tempfile.TemporaryDirectory() as folder:
        # Paths of one length: even the size of the environment can change how fast a process is.
        checkouts = {
            name: Checkout(Path(getattr(config, name)), Path(folder) / str(number))
            for number, name in enumerate(("before", "after"))
        }
        for checkout in checkouts.values():
            checkout.check()
        rows = measure(checkouts, config, options)
    orders = [own for name in checkouts if (own := [row["ratio"] for row in rows if row["first"] == name])]
    ratio, (low, high) = typical(orders), interval(orders)
    verdict = "no difference is seen" if low <= 1 <= high else "slower" if ratio > 1 else "faster"
    note = f"after / before, seconds per step: {ratio:.4f}, 95 % interval {low:.4f} to {high:.4f}: {verdict}"
    medians = [f"{1e3 * statistics.median(row[name] for row in rows):.3f}" for name in checkouts]
    table = [["", *checkouts, "ratio", "95 % interval"], [config.family, *medians, f"{ratio:.4f}"]]
    table[1].append(f"{low:.4f} to {high:.4f}")
    measured = {"ratio": ratio, "interval": [low, high], "pairs": rows, "options": options}
    command, machine = command_of(__file__, [PairsBenchmark], argv), f"{cpu_name()}, one thread"
    publish(config.output, command, machine, as_dict([config]), {"ms per step": table}, [note], measured)


if __name__ == "__main__":
    with one_line_errors():
        main()
