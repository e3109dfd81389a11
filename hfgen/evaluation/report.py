"""The results of an evaluation: the report, a table, a chart of several checkpoints, and the text for a card."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hfgen.evaluation.explanations import explain, explain_density, explain_mixture
from hfgen.evaluation.features import NO_FEATURES, RESERVED
from hfgen.evaluation.inception import sha256_of
from hfgen.evaluation.trained import training_data
from hfgen.runtime.png import ascii_only
from hfgen.runtime.provenance import record

PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
ARROWS = {"lower": "↓", "higher": "↑"}

# The chart, in pixels.
WIDTH, MARGIN, NUMBERS, BAR, GAP, FONT = 900, 16, 90, 16, 8, 14
TICKS, SMOOTH = 56, 4  # of a plot: room for the numbers at its side, and how many times larger its lines are drawn
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
INK, REAL = "#222222", "#888888"


def wrap(
    reports: Sequence[dict[str, Any]],
    extractor: dict[str, Any],
    command: str,
    config: dict[str, Any],
    machine: str,
) -> dict[str, Any]:
    """Makes the whole report: the results, and what it takes to repeat them.

    Args:
        reports (`Sequence[dict]`): What [`~runner.evaluate`] returned for each model.
        extractor (`dict`): What the extractor says of itself.
        command, machine (`str`): In words.
        config (`dict`): All options.
    """
    return record(command, config=config, machine=machine, extractor=extractor, models=list(reports))


def describe_model(model: str, revision: str | None = None, token: str | None = None) -> dict[str, Any]:
    """Describes which weights a checkpoint has, and what it was trained on as far as its folder tells.

    Args:
        model (`str`): Folder or Hub id; of the latter, the copy in the cache.
        revision, token (`str`, *optional*): For the Hub.
    """
    from huggingface_hub import snapshot_download

    folder, commit = Path(model), None
    if not folder.is_dir():
        # A pipeline is downloaded without its code: of the copy no more is asked than this.
        needed = "model_index.json"
        folder = Path(
            snapshot_download(model, revision=revision, token=token, local_files_only=True, allow_patterns=needed)
        )
        commit = folder.name
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    name = index.pop("_class_name")
    components = [name for name, value in index.items() if isinstance(value, list)]
    files = [path for name in components for path in sorted((folder / name).glob("*.safetensors"))]
    return {
        "pipeline": name[-1] if isinstance(name, list) else name,
        "revision": revision,
        "commit": commit,
        "weights": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
        "trained_on": training_data(str(folder)),
    }


def origin_of(model: str, revision: str | None = None, token: str | None = None, **settings: Any) -> dict[str, Any]:
    """Returns what a PNG file says of the model that made it: of a folder its name alone, without the path."""
    about = describe_model(model, revision, token)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return {"model": name, "commit": about["commit"], "weights": about["weights"], **settings}


def number(value: float | None, error: float | None = None) -> str:
    """Rounds a number for people."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if error is None else f"{text} ± {f'{error:,.0f}' if error >= 100 else f'{error:.2g}'}"


def cell(result: dict[str, Any]) -> str:
    """Returns a result as a table shows it: a number, and of which kind it is, if there are several; or where there is
    none, `missing`, which may say why."""
    if result["value"] is None:
        return result.get("missing", "–")
    return number(result["value"], result["error"]) + kind_of(result)


def kind_of(result: dict[str, Any]) -> str:
    """Returns `" (exact)"`, `" (bound)"` or `" (estimate)"`; nothing for numbers that are of no such kind."""
    kind = result.get("details", {}).get("kind")
    return f" ({kind})" if kind else ""


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table of the results of one model or several, beside those of held-out real images."""
    same = comparable(reports)
    rows = [["", *short_names(reports), *["real images"] * same]]
    for key, (title, better) in titles(reports).items():
        results = [report["results"].get(key) for report in reports]
        cells = [cell(result) if result else "" for result in results]
        rows.append([f"{title} {ARROWS.get(better or '', '')}".strip(), *cells])
        rows[-1] += [number(find_real(reports, key))] * same
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def titles(reports: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """Returns the title of each result of any report, and whether lower or higher values are better."""
    results = [item for report in reports for item in report["results"].items()]
    return {key: (result["title"], result["better"]) for key, result in results}


def comparable(reports: Sequence[dict[str, Any]]) -> bool:
    """Returns whether all models were compared with the same images, at the same size."""
    return all(report["data"] == reports[0]["data"] for report in reports)


def find_real(reports: Sequence[dict[str, Any]], key: str) -> float | None:
    """Returns the results of held-out real images, if they are the same ones for all models."""
    values = [report["results"][key]["real"] for report in reports if key in report["results"] and comparable(reports)]
    return next((real for real in values if real is not None), None)


def short_names(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the last part of each model's name, or where two have the same, all of it."""
    names = [report["model"]["name"].rstrip("/") for report in reports]
    last_parts = [name.rpartition("/")[2] for name in names]
    return last_parts if len(set(last_parts)) == len(last_parts) else names


def remarks(report: dict[str, Any], extractor: dict[str, Any]) -> list[str]:
    """Returns the remarks on one model's numbers, each once."""
    notes = [*extractor["notes"], *report["notes"]]
    notes += [note for result in report["results"].values() for note in result["notes"]]
    if (density := report["results"].get("bits_per_dim")) is not None:
        notes += explain_density(density["details"])
    if any(key.startswith(("fd_", "kd_", "cs_")) for key in report["results"]):
        notes.append(
            "distances in the features of this extractor can only be compared with each other: they are no FID or KID"
        )
    names = (report["model"]["name"], *short_names([report]))
    return [sentence(note, names) for note in dict.fromkeys(notes)]


def mixed_remarks(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the remarks on the numbers of several models beside each other."""
    densities = [report["results"].get("bits_per_dim", {}).get("details", {}) for report in reports]
    return [sentence(note) for note in explain_mixture(details.get("kind") for details in densities)]


def sentence(note: str, names: tuple[str, ...] = ()) -> str:
    """Returns a note with a full stop and, unless it begins with one of these names, a capital letter."""
    first = note[:1] if note.startswith(tuple(f"{name} " for name in names)) else note[:1].upper()
    return first + note[1:].rstrip(".") + "."


def heading(report: dict[str, Any], extractor: dict[str, Any]) -> str:
    """Says in one line what was compared with what, by whose features."""
    data, generation = report["data"], report["generation"]
    repeats = f"{len(generation['seeds'])} x " if len(generation["seeds"]) > 1 else ""
    network = extractor["id"]
    if network == NO_FEATURES:
        return f"likelihood of images of {data['name']} [{data['held_out']['split']}]"
    if not (extractor["verified"] and network in RESERVED):
        network += f" ({extractor['fingerprint'][:8]})"
    return (
        f"{repeats}{generation['num_images']:,} images against {data['num_images']:,} of {data['name']} "
        f"[{data['split']}], features of {network}"
    )


def card_section(report: dict[str, Any], whole: dict[str, Any]) -> str:
    """Writes the results of one model for its card, in Markdown. The first line is a heading that names what was
    measured.

    Args:
        report (`dict`): Of the model.
        whole (`dict`): What [`wrap`] made; its `command` is shown, which may be several lines.
    """
    extractor, generation, held_out = whole["extractor"], report["generation"], report["data"]["held_out"]
    settings = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in generation.items()
        if name not in ("num_images", "seeds", "batch_size", "classes", "class_shares", "precision")
        and value is not None
    ]
    if generation.get("class_shares"):
        settings.append("classes as often as among the real images")
    seeds = " and ".join(map(str, generation["seeds"]))
    generated = ", ".join([f"Generated from seed {seeds}", *settings, f"in {PRECISIONS[generation['precision']]}"])
    lines = [f"### {heading(report, extractor)}", "", table([report]), "", f"{generated}."]
    if held_out:
        lines[-1] += (
            f" *Real images* are {held_out['num_images']:,} others, of split `{held_out['split']}`, measured in the "
            "same way."
        )
    lines += ["", *(f"- {note}" for note in remarks(report, extractor)), ""]
    explained = [(result["title"], explain(key)) for key, result in report["results"].items()]
    lines += ["What the numbers say:", "", *(f"- **{title}:** {text}" for title, text in explained if text), ""]
    return "\n".join([*lines, "```bash", whole["command"], "```", ""])


def chart(reports: Sequence[dict[str, Any]]) -> Image.Image:
    """Draws bars of several models, a panel with its own scale for each number; a line marks held-out real images."""
    shown, height = drawable(reports), panel_height(len(reports))
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + len(shown) * height), "white")
    for index, key in enumerate(shown):
        bars(canvas, reports, key, MARGIN, MARGIN + index * height, WIDTH - 2 * MARGIN)
    return canvas


def drawable(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the numbers that at least one model has."""
    return [
        key
        for key in titles(reports)
        if any(report["results"].get(key, {}).get("value") is not None for report in reports)
    ]


def panel_height(models: int) -> int:
    """Returns the height of what [`bars`] draws, with the space below it."""
    return FONT + 3 * GAP + models * (BAR + GAP)


def write(canvas: Image.Image, x: float, y: float, text: str, colour: str = INK, anchor: str = "la") -> float:
    """Writes a line in the one font that PIL brings along; returns its length in pixels."""
    font = ImageFont.load_default(size=FONT)
    ImageDraw.Draw(canvas).text((x, y), ascii_only(text), fill=colour, font=font, anchor=anchor)
    return length(text)


def length(text: str) -> float:
    """Returns the length of a line in pixels, as [`write`] writes it."""
    return ImageFont.load_default(size=FONT).getlength(ascii_only(text))


def bars(canvas: Image.Image, reports: Sequence[dict[str, Any]], key: str, x: int, y: int, width: int) -> None:
    """Draws the panel of one number, from the corner `(x, y)` on."""
    draw = ImageDraw.Draw(canvas)
    title, better = titles(reports)[key]
    results = [report["results"].get(key) or {"value": None} for report in reports]
    ends = [
        result["value"] + sign * (result["error"] or 0)
        for result in results
        if result["value"] is not None
        for sign in (-1, 1)
    ]
    real = find_real(reports, key)
    shown = [0.0, *ends, *([] if real is None else [real])]
    first, row = y + FONT + GAP, BAR + GAP
    beside = 0.0 if real is None else length(f"real images {number(real)}") + GAP
    whole = f"{title} ({better} is better)" if better else title
    write(canvas, x, y, whole if length(whole) + beside <= width else title)
    rows = enumerate(short_names(reports))
    names = 2 * GAP + max(write(canvas, x, first + index * row, name[-28:]) for index, name in rows)
    known = [result["value"] is not None for result in results]
    texts = [
        number(result["value"]) + kind_of(result) if each else result.get("missing", "none")
        for result, each in zip(results, known, strict=True)
    ]
    numbers = max(NUMBERS, *(math.ceil(length(text)) + 2 * GAP for text in texts))
    low, unit = min(shown), (width - names - numbers) / ((max(shown) - min(shown)) or 1.0)
    left = x + names - low * unit  # where 0 is
    for index, result in enumerate(results):
        top = first + index * row
        write(canvas, x + width, top, texts[index], anchor="ra")
        if not known[index]:
            continue
        right = left + result["value"] * unit
        draw.rectangle((min(left, right), top, max(left, right), top + BAR), fill=COLOURS[index % len(COLOURS)])
        if result["error"]:
            reach = result["error"] * unit
            draw.line((right - reach, top + BAR // 2, right + reach, top + BAR // 2), fill=INK, width=2)
    if real is not None:
        offset = left + real * unit
        draw.line((offset, first - GAP // 2, offset, first + len(reports) * row - GAP // 2), fill=REAL, width=2)
        write(canvas, x + width, y, f"real images {number(real)}", REAL, "ra")


def curves(
    canvas: Image.Image,
    lines: Sequence[Sequence[tuple[float, float]]],
    title: str,
    level: float,
    box: tuple[int, int, int, int],
) -> None:
    """Draws how a number, on a logarithmic scale, changes over time, one line for each model.

    Args:
        canvas (`Image`): Where to draw.
        lines (`Sequence` of `(time, value)` pairs): Of each model; without points for one that has none.
        title (`str`): What both axes are.
        level (`float`): Is marked by a line across.
        box (`tuple[int, int, int, int]`): Left, top, width and height.
    """
    x, y, width, height = box
    values = [value for line in lines for _, value in line if value > 0] + [level]
    low, high = math.log10(min(values)) - 0.03, math.log10(max(values)) + 0.03
    end = max((time for line in lines for time, _ in line), default=0) * 1.03 or 1.0
    left, top = x + TICKS, y + FONT + 2 * GAP
    wide, tall = x + width - left, y + height - FONT - GAP - top

    def position(time: float, value: float) -> tuple[float, float]:
        return time / end * wide, (high - math.log10(value)) / (high - low) * tall

    large = Image.new("RGB", (wide * SMOOTH, tall * SMOOTH), "white")  # PIL draws jagged lines
    draw = ImageDraw.Draw(large)

    def line(points: Sequence[tuple[float, float]], colour: str, thickness: int) -> None:
        draw.line([(a * SMOOTH, b * SMOOTH) for a, b in points], colour, thickness * SMOOTH, joint="curve")

    steps = [a * 10.0**b for b in range(math.floor(low), math.ceil(high)) for a in (1, 2, 5)]
    ticks = [step for step in steps if low <= math.log10(step) <= high]
    for tick in ticks if len(ticks) > 1 else (min(values), max(values)):
        line([position(0, tick), position(end, tick)], "#dddddd", 1)
        write(canvas, left - GAP, top + position(0, tick)[1], number(tick), anchor="rm")
    line([position(0, level), position(end, level)], REAL, 2)
    for index, points in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        positions = [position(time, value) for time, value in points if value > 0]
        if positions:
            line(positions, colour, 2)
        for a, b in positions:
            draw.circle((a * SMOOTH, b * SMOOTH), 3 * SMOOTH, fill=colour)
    canvas.paste(large.reduce(SMOOTH), (left, top))
    ImageDraw.Draw(canvas).rectangle((left, top, left + wide, top + tall), outline=REAL)
    write(canvas, x, y, title)
    spacing = next(step for step in (a * 10.0**b for b in range(-3, 9) for a in (1, 2, 5)) if end / step <= 6)
    for count in range(int(end / spacing) + 1):
        write(canvas, left + count * spacing / end * wide, top + tall + GAP // 2, number(count * spacing), anchor="ma")
