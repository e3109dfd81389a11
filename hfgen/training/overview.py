"""What a person looks at during a run and after it: losses and metrics over time, the same seeds over time, and what
each file of the folder is."""

import contextlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from hfgen.evaluation.report import GAP, INK, MARGIN, number, write
from hfgen.runtime.files import write_at_once, write_text
from hfgen.runtime.png import GRID_CELL, GRID_GAP, TITLE

FOLDER = "overview"
LINE, PALE = "#1f4e8c", "#a0a8b4"
PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 400, 96, 3
NO_METRICS = ("images_seen", "step", "epoch", "training_seconds", "images_per_second")
Points = list[tuple[int, float]]  # images seen, and the value

FRAMES, STRIP, FPS = 60, 8, 4  # grids of the GIF and of the strip, at most; grids per second
LARGEST = 768  # pixels of the GIF

FILES = {
    "README.md": "the model card: what this model is, how it was trained and measured, how to use it",
    "model_index.json": "with the folders beside it, the pipeline: `from_pretrained` takes this folder",
    "samples.png": "images of the finished model, for the card",
    "reconstructions.png": "training images, and what the model makes of them, for the card",
    "run.json": "every option, the data, the machine, and the command; as `config`, it repeats the run",
    "samples/": "a grid at intervals, named by the images seen; the same seeds each time",
    "overview/samples.gif": "these grids, one after another",
    "overview/samples.png": "the first images of some of them, from the beginning of the run downwards",
    "overview/metrics.png": "losses and metrics over the images seen",
    "logs/metrics.jsonl": "the same as numbers, a line for each interval",
    "checkpoint-*/": "the state of the training: `resume_from_checkpoint` latest goes on from the last",
    "best/": "the pipeline that was best by `metric_for_best_model`",
    "evaluation.json": "what `hfgen evaluate` measured",
    "images/": "what `hfgen sample` made",
    "shown/": "pictures of what the model can do, by `hfgen show`; its README.md explains them",
    "dataset/": "what `hfgen sample` made with `as_dataset`",
}


def write_overview(folder: Path, logs: Path, resolution: int) -> Path:
    """Writes the pictures of a run, and a page that explains its files, into `overview/`.

    Args:
        folder (`Path`): That of the run.
        logs (`Path`): Where its metrics are.
        resolution (`int`): Pixels of a side of its images.

    Returns:
        `Path`: The page.
    """
    target = folder / FOLDER
    lines = read_lines(logs / "metrics.jsonl")
    if len(lines) > 1:
        save(draw_metrics(lines), target / "metrics.png")
    grids = sorted(path for path in (folder / "samples").glob("*.png") if path.stem.isdecimal())
    if len(grids) > 1:
        write_strip(grids, target, resolution)
    rows = [f"| `{name}` | {text} |" for name, text in FILES.items() if any(folder.glob(name.rstrip("/")))]
    pictures = [name for name in ("metrics.png", "samples.png", "samples.gif") if (target / name).exists()]
    page = ["# The files of this run", "", "| file | what it is |", "|---|---|", *rows, ""]
    page += [line for name in pictures for line in (f"![{name}]({name})", "")]
    page += ["Only the pipeline, its card with its pictures, and `run.json` are pushed to the Hub.", ""]
    write_text(target / "README.md", "\n".join(page))
    return target / "README.md"


def save(image: Image.Image, path: Path, **options: Any) -> None:
    with write_at_once(path) as temporary:
        image.save(temporary, format=path.suffix[1:].upper(), **options)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics that are whole."""
    lines = []
    texts = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    for text in texts:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("images_seen"), int):
                lines.append(line)
    return lines


def draw_metrics(lines: Sequence[dict[str, Any]]) -> Image.Image:
    """Draws a panel with a scale of its own for each metric: losses, then what was evaluated, then the others. Those
    that differ in a number at their end, such as one for each latent, share a panel."""
    names = [name for line in lines for name in line if name not in NO_METRICS]
    order = sorted(dict.fromkeys(names), key=lambda name: (not name.endswith("loss"), not name.startswith("eval_")))
    panels: dict[str, list[Points]] = {}
    for name in order:
        points = [(line["images_seen"], line[name]) for line in lines if _is_number(line.get(name))]
        if points:
            panels.setdefault(re.sub(r"_\d+$", "_*", name), []).append(points)
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    height = PANEL_HEIGHT + 5 * GAP
    canvas = Image.new("RGB", (2 * MARGIN + COLUMNS * PANEL_WIDTH, 2 * MARGIN + rows * height), "white")
    last = max(1, *(line["images_seen"] for line in lines))
    for index, (name, series) in enumerate(panels.items()):
        left, top = MARGIN + index % COLUMNS * PANEL_WIDTH, MARGIN + index // COLUMNS * height
        draw_panel(canvas, name, series, last, left, top)
    return canvas


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw_panel(canvas: Image.Image, name: str, series: Sequence[Points], last: int, left: int, top: int) -> None:
    """Draws one metric, or several of a kind, from the corner `(left, top)` on: the name, the last value, and lines
    between the least and the greatest value."""
    draw, width = ImageDraw.Draw(canvas), PANEL_WIDTH - 4 * GAP
    values = [value for points in series for _, value in points]
    low, high = min(values), max(values)
    first, bottom = top + 3 * GAP, top + PANEL_HEIGHT
    write(canvas, left, top, name)
    write(
        canvas,
        left + width,
        top,
        number(series[0][-1][1]) if len(series) == 1 else f"{len(series)} of them",
        LINE,
        "ra",
    )
    draw.rectangle((left, first, left + width, bottom), outline=PALE)
    for points in series:
        places = [
            (
                left + width * seen / last,
                bottom - (bottom - first) * ((value - low) / (high - low) if high > low else 0.5),
            )
            for seen, value in points
        ]
        if len(places) > 1:
            draw.line(places, fill=LINE, width=2 if len(series) == 1 else 1)
        else:
            x, y = places[0]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=LINE)
    write(canvas, left + 4, first + 2, number(high), PALE)
    write(canvas, left + 4, bottom - 2, number(low), PALE, "ld")


def chosen(grids: Sequence[Path], most: int) -> list[Path]:
    """Chooses so many of some grids, evenly, the first and the last among them."""
    if len(grids) <= most:
        return list(grids)
    return [grids[round(number * (len(grids) - 1) / (most - 1))] for number in range(most)]


def write_strip(grids: Sequence[Path], target: Path, resolution: int) -> None:
    """Writes grids of the same seeds as a GIF, and the top of some of them below each other, with the images seen."""
    frames = []
    for path in chosen(grids, FRAMES):
        frame = Image.open(path).convert("RGB")
        frame.thumbnail((LARGEST, LARGEST))
        frames.append(frame)
    same = [frame for frame in frames if frame.size == frames[-1].size]
    duration = [round(1000 / FPS)] * (len(same) - 1) + [2000]
    save(same[0], target / "samples.gif", save_all=True, append_images=same[1:], duration=duration, loop=0)
    rows = [(int(path.stem), Image.open(path).convert("RGB")) for path in chosen(grids, STRIP)]
    row = resolution * max(1, GRID_CELL // resolution) + 2 * GRID_GAP
    height = min(row, max(image.height for _, image in rows))
    width = max(image.width for _, image in rows)
    beside = 100
    canvas = Image.new("RGB", (beside + width, len(rows) * height), "white")
    for index, (seen, image) in enumerate(rows):
        top = TITLE if image.getpixel((0, 0)) == (255, 255, 255) else 0  # below the names of classes
        canvas.paste(image.crop((0, top, image.width, top + height)), (beside, index * height))
        write(canvas, beside - 2 * GAP, index * height + height // 2, f"{seen:,}", INK, "rm")
    save(canvas, target / "samples.png")
