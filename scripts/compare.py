"""Compares a GAN, a VAE and a DDPM trained on the same data: one table and one picture of quality, diversity and cost.

Without arguments it trains all three, and the classifier in whose features they are judged, on the handwritten digits
that ship with the installation. A model that the folder holds already is not trained again, and a training that was
interrupted goes on. Examples:

    python scripts/compare.py
    python scripts/compare.py --dataset_name ylecun/mnist
    python scripts/compare.py --model out/gan-mnist user/ddpm-mnist --dataset_name ylecun/mnist \
        --extractor out/classifier-mnist

The folder then holds `compare.json`, with what it takes to repeat it, and `compare.png`. With --update_card the
results go into the cards of the checkpoints, which are then ready to be pushed. Ours were made by

    python scripts/compare.py --dataset_name ylecun/mnist --metrics all --update_card --sampler dpmsolver++
"""

import dataclasses
import importlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgen.commands.cli import command_line, one_line_errors, parse
from hfgen.evaluation.config import METRICS, ReferenceConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.sampling.config import all_sampling_options, given_values, share_options

if TYPE_CHECKING:  # they take seconds to import, and `--help` does not need them
    from PIL import Image

    from hfgen.sampling.sampler import Sampler

SCRIPTS = Path(__file__).parent
# The families, with the options that they need for other data than the digits: about ten minutes each for MNIST.
FAMILIES = {"gan": ["--num_epochs", "10"], "vae": [], "ddpm": ["--preset", "mnist", "--resolution", "none"]}
NUM_IMAGES = 5000
EVALUATIONS, EVALUATION_IMAGES = 10, 1000  # while training
TURNS, TURN_SECONDS = 5, 0.5  # of timing
COLUMNS, ROWS, CELL, SPACE = 4, 6, 64, 32  # of the samples, and pixels


@dataclass(frozen=True)
class CompareConfig:
    """Comparison: of what, by what, and where it goes."""

    model: tuple[str, ...] | None = option(
        None, "folders or Hub ids of checkpoints (default: a GAN, a VAE and a DDPM, trained here)"
    )
    output_dir: str | None = option(
        None, "folder of the report and of what is trained (default: out/compare-<name of the data>)"
    )
    extractor: str | None = option(
        None, "features, as for evaluate.py (default: a classifier trained here; with --model, inception)"
    )
    extractor_weights: str | None = option(
        None, "of inception: a file, a Hub id, or `download` (default: what was downloaded before)"
    )
    metrics: tuple[str, ...] = option(
        ("fd", "precision_recall", "density_coverage"), "what to measure", choices=(*METRICS, "all")
    )
    num_images: int | None = option(
        None,
        f"images to generate, per seed (default: {NUM_IMAGES}, or as many as there are real ones to compare with)",
    )
    seed: int = option(0, "seed of the first image; each following one has the next")
    seeds: int = option(1, "how often to repeat it with other images, for a mean and a deviation")
    batch_size: int = option(64, "images at once")
    quality: float | None = option(
        None, "Frechet distance while training, the time to which is compared (default: one that all of them reach)"
    )
    max_train_steps: int | None = option(None, "length of each training in updates (default: that of its preset)")
    cpu_threads: int | None = option(None, "threads on a CPU (default: all cores)")
    overwrite_report: bool = option(False, "replace the report that --output_dir holds")
    update_card: bool = option(False, "write the results into the cards in the checkpoints' folders")

    def validate(self) -> None:
        if self.model is not None and not self.model:
            raise UserError("--model has no names: give some, or leave it out.")
        if self.model and len(set(self.model)) < len(self.model):
            raise UserError(f"--model {' '.join(self.model)} has a checkpoint twice: give each once.")
        if self.model and self.max_train_steps is not None:
            raise UserError("--max_train_steps: with --model nothing is trained. Leave one of them out.")
        if not self.metrics:
            raise UserError("--metrics has no names: give some, or leave it out.")
        for name in ("seeds", "batch_size", "max_train_steps", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} is out of range: use 1 or more.")
        if self.num_images is not None and self.num_images < 2:
            raise UserError(f"--num_images {self.num_images} is out of range: use 2 or more.")
        if self.quality is not None and not self.quality > 0:
            raise UserError(f"--quality {self.quality} is out of range: use more than 0.")
        if not 0 <= self.seed <= 2**32 - 1 - self.seeds * (self.num_images or NUM_IMAGES):
            raise UserError(f"--seed {self.seed} is out of range: use 0 to 2**32 - 1 - seeds * num_images.")


def read_options(argv: Sequence[str] | None = None) -> list[Any]:
    kinds = (CompareConfig, ReferenceConfig, *all_sampling_options())
    config, reference, *sampling = parse(kinds, argv, description=str(__doc__).partition("\n")[0])
    config.validate()
    folder = config.output_dir or f"out/compare-{data_name(reference)}"
    return [dataclasses.replace(config, output_dir=folder), reference, *sampling]


def data_name(reference: ReferenceConfig) -> str:
    return Path(reference.dataset_name or "digits").resolve().name


# Training


def train_missing(config: CompareConfig, reference: ReferenceConfig, folder: Path) -> tuple[list[str], str]:
    """Trains what the folder does not hold yet; returns the folders of the models, and the extractor."""
    names = ("dataset_name", "dataset_config_name", "dataset_split", "image_column", "label_column", "cache_dir")
    data = [f"--{name}={value}" for name in names if (value := getattr(reference, name)) is not None]
    data += ["--skip_corrupt_images"] if reference.skip_corrupt_images else []
    extractor = config.extractor or str(folder / "classifier")
    if not config.extractor and not (folder / "classifier" / "config.json").exists():
        run_script("train_classifier", [*data, "--output_dir", extractor])
    models = [str(folder / f"{family}-{data_name(reference)}") for family in FAMILIES]
    for family, model in zip(FAMILIES, models, strict=True):
        if (Path(model) / "model_index.json").exists():
            print(f"{model} is there already", flush=True)
            continue
        flags = [*data, "--output_dir", model, "--resume_from_checkpoint", "latest"]
        flags += FAMILIES[family] if reference.dataset_name not in (None, "digits") else []
        for name in ("max_train_steps", "cpu_threads"):
            flags += [f"--{name}={value}"] if (value := getattr(config, name)) is not None else []
        if config.extractor_weights is not None:
            flags.append(f"--eval_extractor_weights={config.extractor_weights}")
        run_script(f"train_{family}", [*flags, "--eval_extractor", extractor, *evaluation_flags(family, flags)])
    return models, extractor


def evaluation_flags(family: str, flags: list[str]) -> list[str]:
    """The options that have a training measure its own quality every now and then."""
    from hfgen.data.cache import open_images
    from hfgen.training.schedules import Length

    sys.path.insert(0, str(SCRIPTS))
    data, training, _ = importlib.import_module(f"train_{family}").read_options(flags)
    length = Length(training, 1, open_images(data).info.num_images)
    every = -(-length.total // length.batch // EVALUATIONS)  # rounded up: the last one comes anyway
    return f"--eval_every {every} --eval_metrics fd --eval_num_images {EVALUATION_IMAGES}".split()


def run_script(name: str, flags: list[str]) -> None:
    """Runs another script to its end, and hands on the signals that ask to stop.

    Raises:
        UserError: If it fails.
    """
    print(f"\n{shlex.join(['python', f'scripts/{name}.py', *flags])}\n", flush=True)
    with subprocess.Popen([sys.executable, str(SCRIPTS / f"{name}.py"), *flags]) as process:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda which, frame: process.send_signal(which)) for number in numbers]
        code = process.wait()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if code:
        raise UserError(
            f"{shlex.join([f'{name}.py', *flags])} ended with exit code {code}, for the reason above. What is done "
            "stays: once that is fixed, the same command goes on."
        )


# Costs


def load_samplers(models: Sequence[str], given: Mapping[str, Any], device: Any) -> list["Sampler"]:
    """Loads the checkpoints, each with those of the given sampling options that it has.

    Raises:
        UserError: If one cannot be loaded, an option fits none of them, or their images differ in size.
    """
    from hfgen.sampling.sampler import Sampler, load_sampler

    loading = {name: value for name, value in given.items() if name == "mixed_precision"}
    adapters = {model: load_sampler(model, loading, device).adapter for model in models}
    options = share_options(adapters, given)
    shapes = {model: "x".join(map(str, adapter.image_shape)) for model, adapter in adapters.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{shape} of {name}" for name, shape in shapes.items())
        raise UserError(f"--model: images of different sizes cannot be compared: {sizes} (channels, height, width).")
    return [
        Sampler(adapters[model], own, model, class_labels=common.class_labels, precision=common.mixed_precision)
        for model, (common, own) in options.items()
    ]


def time_samplers(samplers: Sequence["Sampler"], batch_size: int, seed: int) -> list[list[float]]:
    """Images per second of each model, from seeds to 8-bit images, in turns, so that noise hits all of them alike."""
    batch = list(range(batch_size))

    def speed(sampler: "Sampler") -> float:
        start, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < TURN_SECONDS or not count:
            sampler(batch, seed).cpu()  # waits for the device
            count += batch_size
        return count / seconds

    for sampler in samplers:
        speed(sampler)  # the first turn warms up
    turns = [[speed(sampler) for sampler in samplers] for _ in range(TURNS)]
    return [list(column) for column in zip(*turns, strict=True)]


def costs(sampler: "Sampler", speeds: list[float], quality_key: str) -> dict[str, Any]:
    """What a model costs to sample and, if its folder tells, what it cost to train."""
    from torch import nn

    modules = [module for module in sampler.pipe.components.values() if isinstance(module, nn.Module)]
    record, lines = read_run(Path(sampler.name))
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {
        "sampling_images_per_second": statistics.median(speeds),
        "sampling_deviation": statistics.stdev(speeds),
        "sampling_turns": speeds,
        "network_evaluations_per_image": sampler.adapter.passes(sampler.options),
        "parameters": sum(weight.numel() for module in modules for weight in module.parameters()),
        "training_parameters": sum(record["parameters"].values()) if "parameters" in record else None,
        "training_machine": record.get("machine"),
        "training_seconds": record.get("training_seconds"),
        "training_images_seen": record.get("images_seen"),
        "training_images_per_second": statistics.median(rates) if rates else None,
        "training_quality": [
            {"images_seen": line["images_seen"], "seconds": line["training_seconds"], "value": line[quality_key]}
            for line in lines
            if line.get(quality_key) is not None
        ],
    }


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run and its lines of metrics; empty for a checkpoint that came without."""
    record_file = folder / "run.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.exists() else {}
    log = folder / record.get("config", {}).get("logging_dir", "logs") / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    return record, [json.loads(line) for line in lines if line.endswith("\n")]  # one may be cut short


def time_to_quality(found: Sequence[dict[str, Any]], wanted: float | None) -> float | None:
    """Adds to the costs of each model when it reached a Frechet distance while training; returns that distance."""
    last = [cost["training_quality"][-1]["value"] for cost in found if cost["training_quality"]]
    quality = wanted or max(last, default=None)
    for cost in found:
        measured = cost["training_quality"]
        reached = [point for point in measured if quality is not None and point["value"] <= quality]
        status = "reached" if reached else "not reached" if measured else "not measured"
        first = reached[0] if reached else {"seconds": None, "images_seen": None}
        cost["time_to_quality"] = {"status": status, "seconds": first["seconds"], "images_seen": first["images_seen"]}
    return quality


def with_costs(report: dict[str, Any], quality: float | None) -> dict[str, Any]:
    """A report whose results have the costs among them, for the table and the bars."""
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


# The whole


def own_remarks(reports: Sequence[dict[str, Any]], config: CompareConfig, quality: float | None) -> list[str]:
    """What a reader of this comparison has to know, beside what holds for each evaluation."""
    found = [report["cost"] for report in reports]
    turns = f"the median of {TURNS} turns, ± their deviation, in batches of {config.batch_size}"
    remarks = [f"Images/s at sampling: {turns}, from seeds to 8-bit images; in training: the median of the log."]
    count = reports[0]["generation"]["num_images"]
    if config.num_images is None and count < NUM_IMAGES:
        remarks.append(f"{count:,} images were generated of each, as there are no more real ones to compare with.")
    if any(report["model"]["family"] == "VAE" for report in reports):
        remarks.append("The parameters of a VAE include those of its encoder, which sampling does not need.")
    machines = sorted({cost["training_machine"] for cost in found if cost["training_machine"]})
    if machines:
        remarks.append(f"Trained on: {'; '.join(machines)}.")
    if len(machines) > 1:
        remarks.append("The models were trained on different machines: their times cannot be compared.")
    data = [report["model"]["trained_on"] or {} for report in reports]  # the fingerprint may be one of groups
    if len({(each.get("name"), each.get("split"), each.get("num_images")) for each in data}) > 1:
        remarks.append("The models were not trained on the same data, or it is not known.")
    if quality is not None:
        chosen = "as asked for" if config.quality else "the worst of the last values"
        remarks.append(
            f"Time to quality: to a Fréchet distance of {quality:.4g} ({chosen}), measured now and then in training, "
            "with another number of images than the one in this table and so with another bias: do not compare them."
        )
    if len(reports) == 1:
        remarks.append("There is only one checkpoint, so nothing to compare it with.")
    return remarks


def picture(
    reports: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]], blocks: Sequence[Any], title: str, quality: Any
) -> "Image.Image":
    """Samples side by side; below them, at the left, quality and its course in training, and at the right, costs."""
    from PIL import Image

    from hfgen.evaluation import report as draw
    from hfgen.runtime.png import make_grid

    names = ["real images", *draw.short_names(reports)]
    colours = [draw.REAL, *(draw.COLOURS[index % len(draw.COLOURS)] for index in range(len(reports)))]
    grids = [make_grid(list(block), COLUMNS, CELL).convert("RGB") for block in blocks]
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
    for place, (name, colour, grid) in enumerate(zip(names, colours, grids, strict=True)):
        x, y = SPACE + place % 4 * wide, 3 * draw.FONT + place // 4 * tall
        canvas.paste(colour, (x, y, x + draw.FONT, y + draw.FONT))
        draw.write(canvas, x + draw.FONT + draw.GAP, y - 2, name[-32:])
        canvas.paste(grid, (x, y + draw.FONT + draw.GAP))
    for keys, x in ((left, SPACE), (right, 2 * SPACE + half)):
        for place, key in enumerate(keys):
            draw.bars(canvas, shown, key, x, top + place * panel, half)
    if any(lines):
        start = len(left) * panel
        title = f"Fréchet distance, by seconds of training; the line is at {quality:.4g}"
        draw.curves(canvas, lines, title, quality, (SPACE, top + start, half, height - start))
    return canvas


def check_output(folder: Path, config: CompareConfig) -> Path:
    """The file of the report. Raises [`UserError`] if it cannot be written, or a card that is to have the results."""
    for model in (config.model or ()) if config.update_card else ():
        if not (Path(model) / "README.md").is_file():
            raise UserError(f"--update_card: {model} is no folder with a README.md: leave it out, or give one.")
    path = folder / "compare.json"
    if path.exists() and not config.overwrite_report:
        raise UserError(f"{path} is another report: add --overwrite_report or give another --output_dir.")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--output_dir {folder} cannot be written to, as {parent} is no such folder: give another.")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    options = read_options(argv)
    config, reference, *sampling = options
    common, given = sampling[0], given_values(sampling)
    folder = Path(str(config.output_dir))
    output = check_output(folder, config)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("speeds are compared in one process: start this script with python.")

    import numpy as np

    from hfgen.evaluation.features import load_extractor, metric_prefix
    from hfgen.evaluation.reference import open_reference
    from hfgen.evaluation.report import card_section, describe_model, heading, remarks, short_names, table, wrap
    from hfgen.evaluation.runner import evaluate
    from hfgen.hub.card import add_results, plain, shown_command
    from hfgen.runtime.files import write_json
    from hfgen.runtime.launch import describe, make_accelerator
    from hfgen.runtime.png import save_png

    if config.model:
        models, judge = list(config.model), config.extractor or "inception"
    else:
        if config.extractor:
            load_extractor(config.extractor, config.extractor_weights)  # before the hours of training
        models, judge = train_missing(config, reference, folder)

    accelerator = make_accelerator(cpu_threads=config.cpu_threads)
    extractor = load_extractor(judge, config.extractor_weights, accelerator.device)
    samplers = load_samplers(models, given, accelerator.device)
    parts = open_reference(reference, samplers[0].image_shape, NUM_IMAGES, NUM_IMAGES)
    count = config.num_images or min(NUM_IMAGES, len(parts.real.rows), len(parts.held_out.rows))
    reports = []
    for sampler in samplers:
        print(f"\n{sampler.name}", flush=True)
        report = evaluate(
            sampler, reference, extractor, accelerator, config.metrics, count, config.seed, config.seeds,
            config.batch_size,
        )  # fmt: skip
        report["model"] |= describe_model(sampler.name)
        reports.append(report)
    speeds = time_samplers(samplers, config.batch_size, config.seed)
    for report, sampler, turns in zip(reports, samplers, speeds, strict=True):
        report["cost"] = costs(sampler, turns, f"eval_{metric_prefix(extractor)}")
    quality = time_to_quality([report["cost"] for report in reports], config.quality)

    shown = [with_costs(report, quality) for report in reports]
    described = extractor.describe()
    notes = [note for report in reports for note in remarks(report, described)]
    notes = [*dict.fromkeys(notes), *own_remarks(reports, config, quality)]
    command = command_line([type(part) for part in options], argv)
    machine = describe(accelerator, common.mixed_precision)
    whole = wrap(reports, described, command, as_dict(options), machine) | {"quality": quality, "remarks": notes}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(output, whole)
    for report, sampler in zip(reports, samplers, strict=True) if config.update_card else ():
        section = card_section(plain(report), plain(whole) | {"command": shown_command(command)})
        add_results(Path(sampler.name), report, described, section)

    some = np.linspace(0, len(parts.real.rows) - 1, COLUMNS * ROWS).astype(int).tolist()
    images = [parts.real.images(some)] + [sampler(list(range(COLUMNS * ROWS)), config.seed) for sampler in samplers]
    blocks = [block.permute(0, 2, 3, 1).cpu().numpy() for block in images]
    title = heading(reports[0], described)
    origin = {"model": ", ".join(short_names(reports)), "seed": config.seed} if common.provenance else None
    save_png(picture(reports, shown, blocks, title, quality), output.with_suffix(".png"), origin, composite=True)
    print(f"\n{', '.join(short_names(reports))}: {title}\n\n{table(shown)}\n")
    print(*(f"- {note}" for note in notes), sep="\n")
    print(f"\nPicture: {output.with_suffix('.png')}\nReport:  {output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
