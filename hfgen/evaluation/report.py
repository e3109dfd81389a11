"""What is made of an evaluation: the report, a table, a chart of several checkpoints, and the text for a card."""

import json
import platform
import time
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hfgen.evaluation.features import RESERVED
from hfgen.evaluation.inception import sha256_of
from hfgen.evaluation.runner import training_data

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "pillow",
    "scikit-learn",
)
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
ARROWS = {"lower": "↓", "higher": "↑"}

# The chart, in pixels.
WIDTH, MARGIN, NAMES, NUMBERS, BAR, GAP, FONT = 900, 16, 220, 90, 16, 8, 14
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
INK, REAL = "#222222", "#888888"


def wrap(
    reports: Sequence[dict[str, Any]],
    extractor: dict[str, Any],
    command: str,
    config: dict[str, Any],
    machine: str,
) -> dict[str, Any]:
    """The whole report: what was found, and what it takes to find it again.

    Args:
        reports (`Sequence[dict]`): What [`~runner.evaluate`] returned for each model.
        extractor (`dict`): What the extractor says of itself.
        command, machine (`str`): In words.
        config (`dict`): All options.
    """
    return {
        "hfgen": version("hfgen"),
        "command": command,
        "config": config,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "extractor": extractor,
        "models": list(reports),
    }


def describe_model(model: str, revision: str | None = None, token: str | None = None) -> dict[str, Any]:
    """Which weights a checkpoint has, and what it was trained on as far as its folder tells.

    Args:
        model (`str`): Folder or Hub id; of the latter, the copy in the cache.
        revision, token (`str`, *optional*): For the Hub.
    """
    from huggingface_hub import snapshot_download

    folder, commit = Path(model), None
    if not folder.is_dir():
        folder = Path(snapshot_download(model, revision=revision, token=token, local_files_only=True))
        commit = folder.name
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = [name for name, value in index.items() if isinstance(value, list)]
    files = [path for name in components for path in sorted((folder / name).glob("*.safetensors"))]
    return {
        "pipeline": index["_class_name"],
        "revision": revision,
        "commit": commit,
        "weights": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
        "trained_on": training_data(str(folder)),
    }


def number(value: float | None, error: float | None = None) -> str:
    """Rounded for people."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if error is None else f"{text} ± {error:.2g}"


def table(reports: Sequence[dict[str, Any]]) -> str:
    """The results of one model or several as a Markdown table, beside those of held-out real images."""
    same = comparable(reports)
    rows = [["", *short_names(reports), *["real images"] * same]]
    for key, (title, better) in titles(reports).items():
        found = [report["results"].get(key) for report in reports]
        cells = [number(result["value"], result["error"]) if result else "" for result in found]
        rows.append([f"{title} {ARROWS.get(better or '', '')}".strip(), *cells])
        rows[-1] += [number(find_real(reports, key))] * same
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def titles(reports: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """Of each result of any report: its title, and whether lower or higher values are better."""
    results = [item for report in reports for item in report["results"].items()]
    return {key: (result["title"], result["better"]) for key, result in results}


def comparable(reports: Sequence[dict[str, Any]]) -> bool:
    """Whether all models were compared with the same images, at the same size."""
    return all(report["data"] == reports[0]["data"] for report in reports)


def find_real(reports: Sequence[dict[str, Any]], key: str) -> float | None:
    """What held-out real images get, if they are the same ones for all models."""
    found = [report["results"][key]["real"] for report in reports if key in report["results"] and comparable(reports)]
    return next((real for real in found if real is not None), None)


def short_names(reports: Sequence[dict[str, Any]]) -> list[str]:
    """The last part of each model's name, or where two have the same, all of it."""
    names = [report["model"]["name"].rstrip("/") for report in reports]
    short = [name.rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(short) else names


def remarks(report: dict[str, Any], extractor: dict[str, Any]) -> list[str]:
    """What a reader of one model's numbers has to know, each once."""
    found = [*extractor["notes"], *report["notes"]]
    found += [note for result in report["results"].values() for note in result["notes"]]
    if any(key.startswith(("fd_", "kd_", "cs_")) for key in report["results"]):
        found.append(
            "distances in the features of this extractor can only be compared with each other: they are no FID or KID"
        )
    return list(dict.fromkeys(note[:1].upper() + note[1:].rstrip(".") + "." for note in found))


def heading(report: dict[str, Any], extractor: dict[str, Any]) -> str:
    """Says in one line what was compared with what, in whose eyes."""
    data, generation = report["data"], report["generation"]
    repeats = f"{len(generation['seeds'])} x " if len(generation["seeds"]) > 1 else ""
    network = extractor["id"]
    if not (extractor["verified"] and network in RESERVED):
        network += f" ({extractor['fingerprint'][:8]})"
    return (
        f"{repeats}{generation['num_images']:,} images against {data['num_images']:,} of {data['name']} "
        f"[{data['split']}], features of {network}"
    )


def card_section(report: dict[str, Any], whole: dict[str, Any]) -> str:
    """The results of one model for its card, in Markdown. The first line is a heading that names what was measured.

    Args:
        report (`dict`): Of the model.
        whole (`dict`): What [`wrap`] made.
    """
    extractor, generation, held_out = whole["extractor"], report["generation"], report["data"]["held_out"]
    how = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in generation.items()
        if name not in ("num_images", "seeds", "batch_size", "classes", "precision") and value is not None
    ]
    seeds = " and ".join(map(str, generation["seeds"]))
    made = ", ".join([f"Generated from seed {seeds} on", *how, f"in {PRECISIONS[generation['precision']]}"])
    lines = [f"### {heading(report, extractor)}", "", table([report]), "", f"{made}."]
    if held_out:
        lines[-1] += (
            f" *Real images* are {held_out['num_images']:,} others, of split `{held_out['split']}`, measured in the "
            "same way."
        )
    lines += ["", *(f"- {note}" for note in remarks(report, extractor)), ""]
    return "\n".join([*lines, "```bash", whole["command"], "```", ""])


def chart(reports: Sequence[dict[str, Any]]) -> Image.Image:
    """Bars of several models, a panel with its own scale for each number; a line marks held-out real images."""
    font = ImageFont.load_default(size=FONT)
    row = BAR + GAP
    panels = [
        (key, *rest)
        for key, rest in titles(reports).items()
        if any(report["results"].get(key, {}).get("value") is not None for report in reports)
    ]
    panel = FONT + 3 * GAP + len(reports) * row
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + len(panels) * panel), "white")
    draw = ImageDraw.Draw(canvas)

    def write(x: int, y: int, text: str, colour: str = INK, anchor: str = "la") -> None:
        ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # what the font has
        draw.text((x, y), ascii_only, fill=colour, font=font, anchor=anchor)

    for place, (key, title, better) in enumerate(panels):
        top = MARGIN + place * panel
        first = top + FONT + GAP
        results = [report["results"].get(key) or {"value": None} for report in reports]
        ends = [
            result["value"] + sign * (result["error"] or 0)
            for result in results
            if result["value"] is not None
            for sign in (-1, 1)
        ]
        real = find_real(reports, key)
        shown = [0.0, *ends, *([] if real is None else [real])]
        low, unit = min(shown), (WIDTH - 2 * MARGIN - NAMES - NUMBERS) / ((max(shown) - min(shown)) or 1.0)
        left = MARGIN + NAMES - low * unit  # where 0 is
        write(MARGIN, top, f"{title} ({better} is better)" if better else title)
        for index, (name, result) in enumerate(zip(short_names(reports), results, strict=True)):
            y = first + index * row
            write(MARGIN, y, name[-28:])
            write(WIDTH - MARGIN, y, "none" if result["value"] is None else number(result["value"]), anchor="ra")
            if result["value"] is None:
                continue
            right = left + result["value"] * unit
            draw.rectangle((min(left, right), y, max(left, right), y + BAR), fill=COLOURS[index % len(COLOURS)])
            if result["error"]:
                reach = result["error"] * unit
                draw.line((right - reach, y + BAR // 2, right + reach, y + BAR // 2), fill=INK, width=2)
        if real is not None:
            x = left + real * unit
            draw.line((x, first - GAP // 2, x, first + len(reports) * row - GAP // 2), fill=REAL, width=2)
            write(WIDTH - MARGIN, top, f"real images {number(real)}", REAL, "ra")
    return canvas
