"""A training that is repeated over seeds and values: what its runs found, and the table of it. No torch.

The spread is that over *training* runs, each with a seed of its own for weights, order, noise and samples.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfgen.evaluation.config import NUMBERS
from hfgen.runtime.files import write_json, write_text

FREE = ("output_dir", "resume_from_checkpoint")  # options that say nothing of what was trained
OPEN = (None, "auto")  # values in place of which a run has others
WAITING, FINISHED, FAILED, STOPPED = "waiting", "finished", "failed", "stopped"


@dataclass
class SweepRun:
    """One training of a sweep.

    Attributes:
        seed (`int`), folder (`Path`): Of the training.
        status (`str`): `"waiting"`, `"finished"`, `"failed"` or `"stopped"`.
        reason (`str`): Why it failed.
        results (`dict`): What was measured at its end, by name.
        seconds (`float`, *optional*): Of training.
    """

    seed: int
    folder: Path
    status: str = WAITING
    reason: str = ""
    results: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None

    def read(self, options: Mapping[str, Any]) -> bool:
        """Reads what the folder holds; returns whether that is the whole run, of these options and measured."""
        try:
            record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            config, total = record["config"], record["images_total"]
            lines = (self.folder / config["logging_dir"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            logged = [json.loads(line) for line in lines if '"eval_' in line]
            decided = {name: value for name, value in options.items() if name not in FREE and value not in OPEN}
            same = all(config.get(name, _plain(value)) == _plain(value) for name, value in decided.items())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        whole = record["images_seen"] >= total and (self.folder / "model_index.json").is_file()
        if not (same and whole and logged and logged[-1]["images_seen"] >= total):
            return False
        self.results = {
            name.removeprefix("eval_"): value for name, value in logged[-1].items() if name.startswith("eval_")
        }
        self.seconds, self.status = record["training_seconds"], FINISHED
        return True


@dataclass
class Setting:
    """Values that some runs share, and these runs.

    Attributes:
        values (`dict[str, str]`): Options by name, as they were written.
        runs (`list` of [`SweepRun`]): One for each seed.
    """

    values: dict[str, str]
    runs: list[SweepRun]

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values.items()) or "as given"

    @property
    def finished(self) -> list[SweepRun]:
        return [run for run in self.runs if run.status == FINISHED]

    def numbers(self, key: str) -> list[float]:
        """Returns a result of the runs that have it."""
        return [run.results[key] for run in self.finished if key in run.results]

    def mean(self, key: str) -> float | None:
        numbers = self.numbers(key)
        return statistics.fmean(numbers) if numbers else None

    def deviation(self, key: str) -> float | None:
        """Returns the standard deviation over the runs, an estimate from a sample; `None` for fewer than two."""
        numbers = self.numbers(key)
        return statistics.stdev(numbers) if len(numbers) > 1 else None


def folder_name(values: Mapping[str, str], seed: int) -> str:
    """Names the folder of a run after what it does not share with the others: `learning_rate-0.001-seed-0`."""
    text = "-".join([*(f"{name}-{value}" for name, value in values.items()), f"seed-{seed}"])
    return re.sub(r"[^\w.+-]+", "-", text)


def results(settings: Sequence[Setting]) -> list[str]:
    """Lists what was measured, by name."""
    names = (name for setting in settings for run in setting.finished for name in run.results)
    return list(dict.fromkeys(names))


def deciding(metrics: Sequence[str], settings: Sequence[Setting]) -> tuple[str, str] | None:
    """Returns the result by which settings are compared, that of the first metric that is one number, and which of its
    values are better; `None` without one."""
    for metric in metrics:
        if metric in NUMBERS:
            beginnings, better = NUMBERS[metric]
            names = [name for name in results(settings) if name.startswith(beginnings)]
            return (names[0], better) if names else None
    return None


def best(settings: Sequence[Setting], key: str, better: str) -> list[Setting]:
    """Sorts settings by the mean of a result, the best first: those with the most runs, as a setting that fails with
    some seeds is not better than one that does not."""
    most = max((len(setting.numbers(key)) for setting in settings), default=0)
    complete = [setting for setting in settings if most and len(setting.numbers(key)) == most]
    return sorted(complete, key=lambda setting: setting.mean(key) or 0.0, reverse=better == "higher")


def remarks(settings: Sequence[Setting], metrics: Sequence[str]) -> list[str]:
    """Says which setting is best, how sure that is, and which runs failed."""
    said = []
    chosen = deciding(metrics, settings)
    if chosen:
        key, better = chosen
        first, *others = best(settings, key, better)
        count, spread = len(first.numbers(key)), first.deviation(key)
        if others:
            said.append(f"Best by {key} ({better} is better): {first.name}.")
        if spread is None:
            said.append("With one run of each setting, the spread over training runs is not known: give more `seeds`.")
        elif others:
            next_best, own = others[0], others[0].deviation(key) or 0.0
            behind = abs((next_best.mean(key) or 0.0) - (first.mean(key) or 0.0))
            error = math.sqrt((spread**2 + own**2) / count)
            likely = behind >= 2 * error
            chance = "more than two of its standard errors" if likely else "which may be chance"
            said.append(f"{next_best.name} is {behind:.3g} behind: {chance}.")
    runs = [run for setting in settings for run in setting.runs]
    said += [f"{run.folder.name} failed: {run.reason}" for run in runs if run.status == FAILED]
    waiting = sum(run.status in (WAITING, STOPPED) for run in runs)
    if waiting:
        said.append(f"{waiting} {'runs have' if waiting > 1 else 'run has'} not ended: the same command goes on.")
    return said


def table(settings: Sequence[Setting], metrics: Sequence[str]) -> str:
    """Makes a Markdown table with a row for each setting: how many of its runs have ended well, and of each result the
    mean and the standard deviation over these; the best in bold."""
    keys, chosen = results(settings), deciding(metrics, settings)
    winner = best(settings, *chosen)[0] if chosen and len(settings) > 1 else None
    rows = [["setting", "runs", *keys, "seconds of training"]]
    for setting in settings:
        seconds = [run.seconds for run in setting.finished if run.seconds is not None]
        cells = [_cell(setting.mean(key), setting.deviation(key)) for key in keys]
        if setting is winner and chosen:
            cells[keys.index(chosen[0])] = f"**{cells[keys.index(chosen[0])]}**"
        time = f"{statistics.fmean(seconds):.0f}" if seconds else "–"
        rows.append([_in_table(setting.name), f"{len(setting.finished)} of {len(setting.runs)}", *cells, time])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write(folder: Path, settings: Sequence[Setting], metrics: Sequence[str], record: Mapping[str, Any]) -> None:
    """Writes `sweep.json` and `sweep.md`."""
    chosen, keys = deciding(metrics, settings), results(settings)
    order = best(settings, *chosen) if chosen else []
    values = {
        **record,
        "metric": chosen[0] if chosen else None,
        "best": order[0].values if order else None,
        "settings": [
            {
                "values": setting.values,
                "mean": {key: setting.mean(key) for key in keys},
                "standard_deviation": {key: setting.deviation(key) for key in keys},
                "runs": [vars(run) | {"folder": run.folder.name} for run in setting.runs],
            }
            for setting in settings
        ],
        "remarks": remarks(settings, metrics),
    }
    write_json(folder / "sweep.json", values)
    notes = "\n".join(f"- {_in_table(remark)}" for remark in values["remarks"])
    text = f"{table(settings, metrics)}\n\nMean ± standard deviation over training runs.\n\n{notes}"
    write_text(folder / "sweep.md", text.rstrip() + "\n")


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
