"""The report on what generated images are worth to a classifier: means, pairs, a verdict, a table and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hfgen.evaluation import report as draw
from hfgen.evaluation.classifier import Part
from hfgen.evaluation.config import AugmentConfig
from hfgen.runtime.files import write_json, write_text
from hfgen.runtime.png import GRID_GAP, make_grid, save_png, to_pil

ONLY_REAL = "real only"
METRICS = {"balanced_accuracy": "Balanced accuracy", "auc": "AUC"}
FEW = 20  # held-out images of a class, below which a note says what one of them weighs
LEVEL = 0.05  # chance to see an effect where there is none, of all comparisons together
LEAST_SEEDS = 3  # that an effect can be told from
CELL, MOST_CLASSES = 48, 6  # pixels of an image in the picture, and classes of which there are some


def compare(conditions: dict[str, dict[str, Any]]) -> None:
    """Adds to each condition its mean and deviation over the seeds, and its mean difference from real images only, of
    classifiers of the same seed, with its standard error; `None` of one seed."""
    base = conditions[ONLY_REAL]["values"]
    for name, condition in conditions.items():
        for key in ("mean", "deviation", "difference", "standard_error"):
            condition[key] = {}
        for metric, values in condition["values"].items():
            differences = np.subtract(values, base[metric])
            several = len(values) > 1
            condition["mean"][metric] = float(np.mean(values))
            condition["deviation"][metric] = float(np.std(values, ddof=1)) if several else None
            if name == ONLY_REAL:
                continue
            condition["difference"][metric] = float(differences.mean())
            error = float(differences.std(ddof=1) / math.sqrt(len(values))) if several else None
            condition["standard_error"][metric] = error


def verdict(conditions: dict[str, dict[str, Any]], mixtures: Sequence[str], seen: bool = False) -> str:
    """Says in plain words whether adding generated images helped, by the balanced accuracy.

    A difference counts if it is one by the t-test of pairs, at 5 % for all mixtures together (Bonferroni).

    Args:
        conditions (`dict`): What [`compare`] made.
        mixtures (`Sequence[str]`): Which of them are real images with generated ones.
        seen (`bool`, *optional*): Whether a generator has seen the held-out images.
    """
    from scipy.stats import t  # which scikit-learn needs

    seeds = len(conditions[ONLY_REAL]["values"]["balanced_accuracy"])
    if seeds < LEAST_SEEDS:
        return f"{seeds} seeds show no difference, whichever way it goes: use `num_seeds` {LEAST_SEEDS} or more."
    factor = float(t.ppf(1 - LEVEL / 2 / max(1, len(mixtures)), seeds - 1))

    def of(name: str) -> tuple[float, float]:
        condition = conditions[name]
        return condition["difference"]["balanced_accuracy"], condition["standard_error"]["balanced_accuracy"]

    def told(names: Sequence[str]) -> str:
        listed = ", ".join(f"{name.removeprefix('real + ')} by {points(*of(name))}" for name in names)
        return f"{listed} points of balanced accuracy"

    helped = [name for name in mixtures if of(name)[0] > factor * of(name)[1]]
    hurt = [name for name in mixtures if of(name)[0] < -factor * of(name)[1]]
    parts = [f"helped, {told(helped)}"] * bool(helped) + [f"hurt, {told(hurt)}"] * bool(hurt)
    if parts:
        text = f"Adding generated images {', and '.join(parts)}, the mean of {seeds} seeds."
    else:
        largest = max(mixtures, key=lambda name: abs(of(name)[0]))
        least = factor * max(of(name)[1] for name in mixtures)
        text = (
            f"No difference that {seeds} seeds can show: the largest, of {told([largest])}, may be "
            f"chance. What is less than about {100 * least:.2g} points either way they cannot tell from none."
        )
    return text + (" But a generator has seen the held-out images, so that this says nothing." if seen else "")


def points(difference: float, error: float | None) -> str:
    """Writes a difference of shares in points of a hundred, with its standard error."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def remarks(test_part: Part, augment: AugmentConfig, group_column: str | None, weighted: bool) -> list[str]:
    """Returns what a reader has to know.

    Args:
        test_part ([`~classifier.Part`]): The held-out images, of the first split.
        augment ([`AugmentConfig`]): The options.
        group_column (`str`, *optional*): What no split cuts.
        weighted (`bool`): Whether all classes count alike in training.
    """
    names, few = test_part.data.info.class_names or (), np.bincount(test_part.classes)
    notes = []
    if augment.splits and len(augment.splits) > 1:
        notes.append(f"The seeds take turns in {len(augment.splits)} splits, so that the spread includes the split.")
    else:
        notes.append(
            f"All seeds are tested on the same {len(test_part.rows):,} held-out images: the spread is that of "
            "training and of what is generated, and other held-out images would move all numbers."
        )
    if len(augment.model or ()) == 1:
        notes.append("There is one generator: another training of it may do otherwise.")
    if few.min() < FEW:
        notes.append(
            f"Class {names[few.argmin()]} has only {few.min()} held-out images: each is {100 / few.min():.0f} points "
            "of its accuracy."
        )
    if group_column:
        notes.append(f"No group of the column {group_column} is both trained on and held out.")
    if weighted:
        notes.append("All classes count alike in each training, whatever their share of its images.")
    notes.append("Generated images are of all classes alike, and each classifier sees as many images in training.")
    return notes


def table(report: dict[str, Any]) -> str:
    """Writes the results as a table, in Markdown: ± is the deviation over the seeds, of a difference its standard
    error."""
    head = ["trained on", "images", *(text for title in METRICS.values() for text in (title, "difference"))]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, condition in report["conditions"].items():
        counts = sorted({real + made for real, made in zip(condition["real"], condition["generated"], strict=True)})
        cells = [name, " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))]
        for metric in METRICS:
            deviation = condition["deviation"][metric]
            spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
            cells.append(f"{100 * condition['mean'][metric]:.2f} %{spread}")
            difference = condition["difference"].get(metric)
            cells.append("" if difference is None else points(difference, condition["standard_error"][metric]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(report: dict[str, Any]) -> str:
    """Writes the report for people, in Markdown."""
    lines = ["# Do generated images help?", "", f"**{report['verdict']}**", ""]
    lines += [line for text in report["warnings"] for line in (f"**Warning:** {text}", "")]
    lines += [table(report), "", f"± is the deviation over {len(report['seeds'])} seeds; of a difference from *real "
              "only*, of pairs of the same seed, its standard error in points.", ""]  # fmt: skip
    lines += [f"- {text}" for text in report["notes"]]
    lines += [
        "",
        "![Balanced accuracy and AUC of each seed](augment.png)",
        "",
        "```bash",
        report["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def draw_report(report: dict[str, Any], real: Part, images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Draws each metric with a point for each seed, the mean and its deviation; below, real images beside generated
    ones of each class."""
    conditions, names = report["conditions"], list(report["conditions"])
    row, margin, width = 26, draw.MARGIN, draw.WIDTH
    left = margin + math.ceil(max(map(draw.length, names))) + 2 * draw.GAP
    right = width - margin - 120
    panel = 3 * draw.FONT + len(names) * row + 2 * draw.FONT
    classes = list(enumerate(real.data.info.class_names or ()))[:MOST_CLASSES]
    half = (width - margin - left) // 2
    shown = (half - 2 * draw.GAP) // (CELL + GRID_GAP)
    grids = []
    for number, _ in classes:
        rows = real.rows[real.classes == number][:shown]
        parts = real.data.squares(rows), images[labels == number][:shown]
        grids.append([make_grid(cells(part), shown, CELL).convert("RGB") for part in parts])
    line = max(grid.height for pair in grids for grid in pair) + draw.GAP
    height = margin + 2 * panel + 2 * draw.FONT + len(grids) * line + margin
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (metric, title) in enumerate(METRICS.items()):
        top = margin + index * panel
        ends = [value for name in names for value in conditions[name]["values"][metric]]
        for name in names:
            mean, deviation = conditions[name]["mean"][metric], conditions[name]["deviation"][metric] or 0
            ends += [max(0.0, mean - deviation), min(1.0, mean + deviation)]
        low, high = min(ends), max(ends)
        low, high = (low, high) if high - low > 1e-6 else (max(0.0, low - 0.01), min(1.0, high + 0.01))
        step = next(s for s in (a * 10.0**b for b in range(-5, 1) for a in (1, 2, 5)) if (high - low) / s <= 6)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step

        def x(value: float, low: float = low, high: float = high) -> float:
            return left + (value - low) / (high - low) * (right - left)

        draw.write(canvas, margin, top, f"{title}: a point for each seed, mean and deviation")
        first, bottom = top + 2 * draw.FONT, top + 2 * draw.FONT + len(names) * row
        for count in range(round((high - low) / step) + 1):
            tick = low + count * step
            pen.line((x(tick), first, x(tick), bottom), "#e4e4e4")
            draw.write(canvas, x(tick), bottom + 4, f"{100 * tick:.4g} %", draw.REAL, "ma")
        base = conditions[ONLY_REAL]["mean"][metric]
        pen.line((x(base), first, x(base), bottom), draw.REAL, 2)
        for place, name in enumerate(names):
            condition, y = conditions[name], first + place * row + row // 2
            colour = draw.COLOURS[place % len(draw.COLOURS)]
            mean, deviation = condition["mean"][metric], condition["deviation"][metric]
            draw.write(canvas, margin, y, name, anchor="lm")
            if deviation:
                pen.line((x(max(0.0, mean - deviation)), y, x(min(1.0, mean + deviation)), y), draw.INK, 2)
            for value in condition["values"][metric]:
                pen.ellipse((x(value) - 4, y - 4, x(value) + 4, y + 4), fill=colour)
            pen.line((x(mean), y - 9, x(mean), y + 9), draw.INK, 3)
            text = f"{100 * mean:.2f}" + ("" if deviation is None else f" +- {100 * deviation:.2f}")
            draw.write(canvas, width - margin, y, text, anchor="rm")
    top = margin + 2 * panel
    for column, title in enumerate(("real, trained on", "generated")):
        draw.write(canvas, left + column * half, top, title)
    for place, ((_, name), pair) in enumerate(zip(classes, grids, strict=True)):
        y = top + 2 * draw.FONT + place * line
        draw.write(canvas, margin, y + line // 2, name[:24], anchor="lm")
        for column, grid in enumerate(pair):
            canvas.paste(grid, (left + column * half, y))
    return canvas


def cells(images: np.ndarray) -> list[np.ndarray]:
    """Returns images `(N, C, H, W)` as `(H, W, C)`, large ones made smaller."""
    arrays = list(np.asarray(images).transpose(0, 2, 3, 1))
    if images.shape[2] <= CELL:
        return arrays
    small = [np.asarray(to_pil(array).resize((CELL, CELL), Image.Resampling.BOX)) for array in arrays]
    return [array if array.ndim == 3 else array[..., None] for array in small]


def write_report(folder: Path, report: dict[str, Any], picture: Image.Image, provenance: bool = True) -> None:
    """Writes `augment.json`, `README.md` and `augment.png` into a folder; the picture says, unless it should not, of
    which models it has images."""
    write_json(folder / "augment.json", report)
    write_text(folder / "README.md", page(report))
    models = sorted({name for split in report["splits"] for name in split["generated"]})
    origin = {"model": ", ".join(Path(name).name if Path(name).exists() else name for name in models)}
    save_png(picture, folder / "augment.png", origin if provenance else None, composite=True)
