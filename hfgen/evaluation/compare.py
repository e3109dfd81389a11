"""Compares generators of the same data: quality and diversity beside what they cost to train and to sample."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import nn

from hfgen.evaluation import report as draw
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.features import Extractor, metric_prefix
from hfgen.evaluation.reference import open_reference
from hfgen.evaluation.report import describe_model, mixed_remarks, remarks
from hfgen.evaluation.runner import evaluate, lacking
from hfgen.evaluation.trained import read_record
from hfgen.evaluation.translations import ready
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.png import make_grid
from hfgen.sampling.api import ready_sampler
from hfgen.sampling.config import share_options
from hfgen.sampling.sampler import Sampler, sampler_class

NUM_IMAGES = 5000  # of each model, at most, unless told otherwise
TURNS, TURN_SECONDS = 5, 0.5  # of timing
COLUMNS, ROWS, CELL, SPACE = 4, 6, 64, 32  # of the samples, and pixels


def load_samplers(models: Sequence[str], given: Mapping[str, Any], device: Any) -> list[Sampler]:
    """Loads the checkpoints, each with those of the given sampling options that it has.

    Raises:
        UserError: If one cannot be loaded, an option fits none of them, or their images differ in size.
    """
    loading = {name: value for name, value in given.items() if name == "mixed_precision"}
    adapters = {model: ready_sampler(model, loading, device, translates=True).adapter for model in models}
    options = share_options(adapters, given)
    shapes = {model: "x".join(map(str, adapter.image_shape)) for model, adapter in adapters.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{shape} of {name}" for name, shape in shapes.items())
        raise UserError(f"`model`: images of different sizes cannot be compared: {sizes} (channels, height, width).")
    return [
        sampler_class(adapters[model])(
            adapters[model], own, model, class_labels=common.class_labels, precision=common.mixed_precision
        )
        for model, (common, own) in options.items()
    ]


def time_samplers(samplers: Sequence[Sampler], batch_size: int, seed: int) -> list[list[float]]:
    """Measures the images per second of each model, from seeds to 8-bit images, in turns, so that noise hits all of
    them alike."""
    batch = list(range(batch_size))

    def speed(sampler: Sampler) -> float:
        start, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < TURN_SECONDS or not count:
            sampler(batch, seed).cpu()  # waits for the device
            count += batch_size
        return count / seconds

    for sampler in samplers:
        speed(sampler)  # the first turn warms up
    turns = [[speed(sampler) for sampler in samplers] for _ in range(TURNS)]
    return [list(column) for column in zip(*turns, strict=True)]


def costs(sampler: Sampler, speeds: list[float], quality_key: str) -> dict[str, Any]:
    """Returns the cost of sampling from a model and, if its folder tells, that of training it."""
    adapter: Any = sampler.adapter
    modules = [module for module in sampler.pipe.components.values() if isinstance(module, nn.Module)]
    record, lines = read_run(Path(sampler.name))
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {
        "sampling_images_per_second": statistics.median(speeds),
        "sampling_deviation": statistics.stdev(speeds),
        "sampling_turns": speeds,
        "network_evaluations_per_image": adapter.passes(sampler.options),
        "parameters": sum(weight.numel() for module in modules for weight in module.parameters()),
        "has_encoder": any(hasattr(module, "encode") for module in modules),
        "training_parameters": sum(record["parameters"].values()) if "parameters" in record else None,
        "training_machine": record.get("machine"),
        "training_seconds": record.get("training_seconds"),
        "training_images_seen": record.get("images_seen"),
        "training_images_per_second": statistics.median(rates) if rates else None,
        "training_quality": [
            {"images_seen": line["images_seen"], "seconds": line["training_seconds"], "value": line[quality_key]}
            for line in lines
            if line.get(quality_key) is not None and "training_seconds" in line
        ],
    }


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the record of a run and its lines of metrics; both are empty for a checkpoint that came without.

    Raises:
        UserError: If one of them is broken.
    """
    record = read_record(str(folder))
    log = folder / str(record.get("config", {}).get("logging_dir", "logs")) / "metrics.jsonl"
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
        values = [json.loads(line) for line in lines if line.endswith("\n")]  # one may be cut short
        for number, line in enumerate(values, start=1):
            if not isinstance(line, dict) or not isinstance(line.get("images_seen"), int):
                raise ValueError(f"line {number} is not what hfgen writes")
            for key, value in line.items():
                if key.startswith(("eval_", "images_per_", "training_")) and not isinstance(value, int | float):
                    raise ValueError(f"line {number} has {value!r} as {key}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{log} is broken: {one_line(error)}. Restore it, or take it away.") from None
    return record, values


def time_to_quality(all_costs: Sequence[dict[str, Any]], given: float | None) -> float | None:
    """Adds to the costs of each model when it reached a Frechet distance while training; returns that distance."""
    last = [cost["training_quality"][-1]["value"] for cost in all_costs if cost["training_quality"]]
    quality = given or max(last, default=None)
    for cost in all_costs:
        measured = cost["training_quality"]
        reached = [point for point in measured if quality is not None and point["value"] <= quality]
        status = "reached" if reached else "not reached" if measured else "not measured"
        first = reached[0] if reached else {"seconds": None, "images_seen": None}
        cost["time_to_quality"] = {"status": status, "seconds": first["seconds"], "images_seen": first["images_seen"]}
    return quality


def with_costs(report: dict[str, Any], quality: float | None) -> dict[str, Any]:
    """Returns a report whose results include the costs, for the table and the bars."""
    cost, reach = report["cost"], report["cost"]["time_to_quality"]
    target = "" if quality is None else f" {quality:.4g}"
    rows: list[tuple[str, str, Any, str | None]] = [
        ("sampling", "Images/s at sampling", cost["sampling_images_per_second"], "higher"),
        ("evaluations", "Network evaluations per image", cost["network_evaluations_per_image"], "lower"),
        ("parameters", "Parameters in millions", cost["parameters"] / 1e6, "lower"),
        ("training_speed", "Images/s in training", cost["training_images_per_second"], "higher"),
        ("seen", "Images seen in training", cost["training_images_seen"], None),
        ("seconds", "Seconds of training", cost["training_seconds"], "lower"),
        ("quality", f"Seconds of training to Fréchet distance{target}", reach["seconds"], "lower"),
    ]
    results = {
        key: {"title": title, "better": better, "value": value, "error": None, "real": None}
        for key, title, value, better in rows
    }
    results["sampling"]["error"] = cost["sampling_deviation"]
    results["quality"]["missing"] = reach["status"]
    return report | {"results": report["results"] | results}


def own_remarks(
    reports: Sequence[dict[str, Any]], batch_size: int, few: bool, quality: float | None, chosen: bool
) -> list[str]:
    """Returns the remarks on this comparison, beside those that hold for each evaluation."""
    all_costs = [report["cost"] for report in reports]
    turns = f"the median of {TURNS} turns, ± their deviation, in batches of {batch_size}"
    notes = [f"Images/s at sampling: {turns}, from seeds to 8-bit images; in training: the median of the log."]
    count = reports[0]["generation"]["num_images"]
    if few:
        notes.append(f"{count:,} images were generated of each, as there are no more real ones to compare with.")
    if any(cost["has_encoder"] for cost in all_costs):
        notes.append("The parameters of a model with an encoder include the encoder's, which sampling does not need.")
    machines = sorted({cost["training_machine"] for cost in all_costs if cost["training_machine"]})
    if machines:
        notes.append(f"Trained on: {'; '.join(machines)}.")
    if len(machines) > 1:
        notes.append("The models were trained on different machines: their times cannot be compared.")
    data = [report["model"]["trained_on"] or {} for report in reports]  # the fingerprint may be one of groups
    if len({(each.get("name"), each.get("split"), each.get("num_images")) for each in data}) > 1:
        notes.append("The models were not trained on the same data, or it is not known.")
    if quality is not None:
        origin = "as asked for" if chosen else "the worst of the last values"
        notes.append(
            f"Time to quality: to a Fréchet distance of {quality:.4g} ({origin}), measured at intervals in training, "
            "with another number of images than the one in this table and so with another bias: do not compare them."
        )
    if len(reports) == 1:
        notes.append("There is only one checkpoint, so nothing to compare it with.")
    return notes


@dataclass(frozen=True)
class Comparison:
    """The measurements of several models.

    Attributes:
        reports (`list` of `dict`): What [`~runner.evaluate`] returned for each, and under `"cost"` what it costs.
        shown (`list` of `dict`): The same with the costs among the results, for tables and bars.
        quality (`float`, *optional*): The Frechet distance to which the times of training are compared.
        remarks (`list` of `str`): What a reader has to know.
        blocks (`list` of `np.ndarray`): Some real images, and some of each model, `(N, H, W, C)` in uint8.
    """

    reports: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    quality: float | None
    remarks: list[str]
    blocks: list[np.ndarray]


def compare_models(
    samplers: Sequence[Sampler],
    config: ReferenceConfig,
    extractor: Extractor,
    accelerator: Accelerator,
    metrics: Sequence[str],
    num_images: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    batch_size: int = 64,
    likelihood_samples: int | None = None,
    likelihood_images: int | None = None,
    quality: float | None = None,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Evaluates models against the same data, and measures what they cost.

    Args:
        samplers (`Sequence` of [`~sampling.Sampler`]): The models: see [`load_samplers`].
        config, extractor, accelerator, metrics, seed, seeds, batch_size, likelihood_samples,
            likelihood_images: As for [`~runner.evaluate`].
        num_images (`int`, *optional*): Images to generate of each, per seed; by default as many as there are real
            ones, at most 5000.
        quality (`float`, *optional*): The Frechet distance to which the times of training are compared; by default
            one that all of them reach.
        say (`Callable`, *optional*): Prints a line.

    Raises:
        UserError: In several processes, whose speeds say nothing, and for what [`~runner.evaluate`] refuses.
    """
    if accelerator.num_processes > 1:
        raise UserError("speeds are compared in one process: start this without a launcher.")
    for sampler in samplers:
        sampler.check_batch(batch_size)  # in which speeds are measured
    reasons = {metric: [lacking(metric, sampler) for sampler in samplers] for metric in metrics}
    for metric, obstacles in reasons.items():
        if all(obstacles):
            raise UserError(f"`metrics` {metric}: {obstacles[0]}.")
    prepared = [ready(sampler, config, NUM_IMAGES) for sampler in samplers]
    samplers = [sampler for sampler, _, _ in prepared]
    parts = open_reference(prepared[0][1], samplers[0].image_shape, NUM_IMAGES, NUM_IMAGES)
    count = num_images or min(NUM_IMAGES, len(parts.real.rows), len(parts.held_out.rows))
    reports = []
    for index, sampler in enumerate(samplers):
        say(f"\n{sampler.name}")
        left_out = {metric: reason for metric in metrics if (reason := reasons[metric][index])}
        report = evaluate(
            sampler,
            config,
            extractor,
            accelerator,
            [metric for metric in metrics if metric not in left_out],
            count,
            seed,
            seeds,
            batch_size,
            likelihood_samples,
            likelihood_images,
        )
        report["model"] |= describe_model(sampler.name)
        report["left_out"] |= left_out
        for metric, reason in left_out.items():
            report["notes"].append(f"without {metric}: {reason.removesuffix(': leave it out')}")
        reports.append(report)
    speeds = time_samplers(samplers, batch_size, seed)
    for report, sampler, turns in zip(reports, samplers, speeds, strict=True):
        report["cost"] = costs(sampler, turns, f"eval_{metric_prefix(extractor)}")
    reached = time_to_quality([report["cost"] for report in reports], quality)
    notes = [note for report in reports for note in remarks(report, extractor.describe())]
    few = num_images is None and count < NUM_IMAGES
    notes += mixed_remarks(reports)
    notes = [*dict.fromkeys(notes), *own_remarks(reports, batch_size, few, reached, quality is not None)]
    some = np.linspace(0, len(parts.real.rows) - 1, COLUMNS * ROWS).astype(int).tolist()
    images = [parts.real.images(some)] + [sampler(list(range(COLUMNS * ROWS)), seed) for sampler in samplers]
    blocks = [block.permute(0, 2, 3, 1).cpu().numpy() for block in images]
    return Comparison(reports, [with_costs(report, reached) for report in reports], reached, notes, blocks)


def draw_comparison(comparison: Comparison, title: str) -> Image.Image:
    """Draws samples side by side; below them, at the left, quality and its course in training, at the right, costs."""
    reports, shown, quality = comparison.reports, comparison.shown, comparison.quality
    names = ["real images", *draw.short_names(reports)]
    colours = [draw.REAL, *(draw.COLOURS[index % len(draw.COLOURS)] for index in range(len(reports)))]
    grids = [make_grid(list(block), COLUMNS, CELL).convert("RGB") for block in comparison.blocks]
    wide, tall = grids[0].width + SPACE, grids[0].height + SPACE + 2 * draw.FONT
    width = 4 * wide + SPACE
    half = (width - 3 * SPACE) // 2

    left = draw.drawable(reports)
    right = [key for key in draw.drawable(shown) if key not in left]
    panel = draw.panel_height(len(reports))
    lines = [
        [(point["seconds"], point["value"]) for point in report["cost"]["training_quality"]] for report in reports
    ]
    top = 3 * draw.FONT + -(-len(grids) // 4) * tall
    height = max(len(left) * panel + (2 * panel + draw.GAP if any(lines) else 0), len(right) * panel)

    canvas = Image.new("RGB", (width, top + height + SPACE), "white")
    draw.write(canvas, SPACE, draw.FONT, title)
    for index, (name, colour, grid) in enumerate(zip(names, colours, grids, strict=True)):
        x, y = SPACE + index % 4 * wide, 3 * draw.FONT + index // 4 * tall
        canvas.paste(colour, (x, y, x + draw.FONT, y + draw.FONT))
        draw.write(canvas, x + draw.FONT + draw.GAP, y - 2, name[-32:])
        canvas.paste(grid, (x, y + draw.FONT + draw.GAP))
    for keys, x in ((left, SPACE), (right, 2 * SPACE + half)):
        for index, key in enumerate(keys):
            draw.bars(canvas, shown, key, x, top + index * panel, half)
    if any(lines) and quality is not None:
        start = len(left) * panel
        title = f"Fréchet distance, by seconds of training; the line is at {quality:.4g}"
        draw.curves(canvas, lines, title, quality, (SPACE, top + start, half, height - start))
    return canvas
