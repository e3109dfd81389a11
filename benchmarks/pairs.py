"""Measures whether the training loop of one checkout is slower than that of another.

A machine is not equally fast all day, so both take turns: each pair is the same short training in both checkouts, in
random order and fresh processes. What counts is the ratio within a pair. Examples:

    python benchmarks/pairs.py --before ../before --after .
    python benchmarks/pairs.py --before ../before --after . --family gan --pairs 10 --output pairs.json
    python benchmarks/pairs.py --before . --after . --pairs 5    # what the measurement itself is good for: 1 is within
"""

import argparse
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
from pathlib import Path
from typing import Any

STEPS = {"ddpm": 150, "gan": 350, "vae": 350}  # ten to twenty seconds on one core
RESAMPLES = 10_000
THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Nothing but steps: no grid but the last, which is small, and no checkpoint but the last.
QUIET = "--save_images_epochs 0 --eval_batch_size 1 --checkpointing_steps 1000000000 --cpu_threads 1"

Row = dict[str, Any]


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
            raise SystemExit(f"error: {self.path} has no hfgen, the processes would use {found}: give a checkout.")

    def seconds_per_image(self, family: str, options: Sequence[str]) -> float:
        """Trains once; the median of the intervals between two lines of metrics, without the first, which is slow."""
        output = self.folder / f"run-{time.time_ns()}"
        script = str(self.path / "scripts" / f"train_{family}.py")
        self._run([sys.executable, script, *options, "--output_dir", str(output)])
        self.machine = json.loads((output / "run.json").read_text())["machine"]
        lines = [json.loads(line) for line in (output / "logs" / "metrics.jsonl").read_text().splitlines()]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line][1:]
        if not speeds:
            raise SystemExit("error: the run has one line of metrics only: give more --steps.")
        return 1 / statistics.median(speeds)

    def _run(self, command: list[str]) -> str:
        # Not from the working folder, which Python might search for modules.
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"error: {shlex.join(command)}: exit code {result.returncode}\n{result.stderr[-2000:]}")
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
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="folder of the checkout to compare with")
    parser.add_argument("--after", type=Path, required=True, help="folder of the checkout in question")
    parser.add_argument("--family", choices=STEPS, default="ddpm", help="what to train (default: ddpm)")
    parser.add_argument("--pairs", type=int, default=20, help="number of pairs (default: 20)")
    parser.add_argument("--steps", type=int, help=f"of each training (default: {STEPS})")
    parser.add_argument("--logging_steps", type=int, default=50, help="steps of an interval (default: 50)")
    parser.add_argument("--options", default="", help="further options of the training, in quotes")
    parser.add_argument("--seed", type=int, default=0, help="decides which comes first in which pair (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(argv)
    if given.pairs < 1:
        parser.error(f"--pairs {given.pairs} is out of range: use 1 or more.")
    length = f"--preset digits --max_train_steps {given.steps or STEPS[given.family]}"
    options = f"{length} --logging_steps {given.logging_steps} {QUIET} {given.options}".split()
    with tempfile.TemporaryDirectory() as folder:
        # Paths of one length: even the size of the environment can change how fast a process is.
        places = {"before": Path(folder) / "0", "after": Path(folder) / "1"}
        checkouts = {name: Checkout(getattr(given, name), place) for name, place in places.items()}
        for checkout in checkouts.values():
            checkout.check()
        rows = measure(checkouts, given.family, options, given.pairs, given.seed)
    ratios = [row["ratio"] for row in rows]
    ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
    verdict = "no difference is seen" if low <= 1 <= high else "slower" if ratio > 1 else "faster"
    print(f"after / before, seconds per image: {ratio:.4f}, 95 % interval {low:.4f} to {high:.4f}: {verdict}")
    if given.output:
        report = {
            "command": shlex.join(["python", "benchmarks/pairs.py", *(sys.argv[1:] if argv is None else argv)]),
            "machine": checkouts["after"].machine,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "family": given.family,
            "options": options,
            "ratio": ratio,
            "interval": [low, high],
            "pairs": rows,
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
