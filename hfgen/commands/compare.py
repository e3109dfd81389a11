"""Compares one model of each family, of the same data, trained if need be: quality, diversity, cost.

Without arguments it trains all of them, and the classifier in whose features they are measured, on the digits that
ship with the installation. A model that the folder holds already is not trained again, and a training that was
interrupted goes on. The folder then holds `compare.json`, with what it takes to repeat it, and `compare.png`. With
`--update_card` the results go into the cards of the checkpoints, which can then be pushed.

    hfgen compare
    hfgen compare --dataset_name ylecun/mnist
    hfgen compare --dataset_name ylecun/mnist --metrics all --update_card --sampler dpmsolver++
    hfgen compare --model out/gan-mnist user/ddpm-mnist --dataset_name ylecun/mnist --extractor out/classifier-mnist
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import command_line, spell
from hfgen.commands.options import (
    MeasureOptions,
    card_commands,
    check_models,
    read_sampling,
    recorded,
)
from hfgen.commands.process import run_verb
from hfgen.data.config import DataConfig, share_of
from hfgen.evaluation.config import METRICS, MOST_IMAGES, ReferenceConfig
from hfgen.registry import Family, families
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option
from hfgen.training.config import LONG
from hfgen.training.options import collect

NUM_IMAGES = 5000
EVALUATIONS, EVALUATION_IMAGES = 10, 1000  # while training
DATA = (  # options of the reference that are those of a training, too
    *("dataset_name", "dataset_config_name", "train_data_dir", "dataset_split", "image_column", "label_column"),
    *("cache_dir", "value_range", "background", "skip_corrupt_images", "center_crop", "allow_outside_files"),
)


@dataclass(frozen=True)
class CompareConfig(MeasureOptions):
    """Comparison: the models, the metrics, and where it goes."""

    model: tuple[str, ...] | None = option(
        None, "folders or Hub ids of checkpoints (default: one of each family, trained here)"
    )
    output_dir: str | None = option(
        None, "folder of the report and of what is trained (default: out/compare-<name of the data>)"
    )
    extractor: str | None = option(
        None, "features, as for hfgen evaluate (default: a classifier trained here; with `model`, inception)"
    )
    metrics: tuple[str, ...] = option(
        ("fd", "precision_recall", "density_coverage"), "what to measure", choices=(*METRICS, "all")
    )
    num_images: int | None = option(  # type: ignore[assignment]  # by default not a number of its own
        None,
        f"images to generate, per seed (default: {NUM_IMAGES}, or as many as there are real ones to compare with)",
        least=2,
        most=MOST_IMAGES,
    )
    quality: float | None = option(
        None,
        "Frechet distance while training, the time to which is compared (default: one that all of them reach)",
        above=0,
        most=1e12,
    )
    max_train_steps: int | None = option(
        None, "length of each training, in updates (default: that of its preset)", least=1, most=LONG
    )

    def validate(self) -> None:
        super().validate()
        if self.model is not None and not self.model:
            raise UserError("`model` has no names: give some, or leave it out.")
        check_models(self.model or ())
        if self.model and self.max_train_steps is not None:
            raise UserError("`max_train_steps`: with `model` nothing is trained. Leave one of them out.")


KINDS = (CompareConfig, ReferenceConfig)


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    description = str(__doc__).partition("\n")[0]
    (config, *others), given = read_sampling(KINDS, argv, description=description, prog="hfgen compare")
    folder = config.output_dir or f"out/compare-{data_name(others[0])}"
    return [dataclasses.replace(config, output_dir=folder), *others], given


def data_name(reference: ReferenceConfig) -> str:
    return Path(reference.source).resolve().name


def train_missing(config: CompareConfig, reference: ReferenceConfig, folder: Path) -> tuple[list[str], str]:
    """Trains what the folder does not hold yet; returns the folders of the models, and the extractor."""
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    values = {name: getattr(reference, name) for name in DATA}
    data = {name: value for name, value in values.items() if value is not None and value != defaults[name]}
    if share_of(reference.held_out_split) is not None:
        data["validation_split"] = reference.held_out_split
        data |= {"group_column": column} if (column := reference.group_column) else {}
    extractor = config.extractor or str(folder / "classifier")
    if not config.extractor and not (folder / "classifier" / "config.json").exists():
        run(["classify"], data | {"output_dir": extractor})
    models = []
    for family in families().values():
        if family.compare is None:
            continue
        model = str(folder / f"{family.name}-{data_name(reference)}")
        models.append(model)
        if (Path(model) / "model_index.json").exists():
            print(f"{model} is already trained", flush=True)
            continue
        values = data | {"output_dir": model, "resume_from_checkpoint": "latest"}
        values |= family.compare if reference.source != "digits" else {}
        for name in ("max_train_steps", "cpu_threads"):
            values |= {name: value} if (value := getattr(config, name)) is not None else {}
        if config.extractor_weights is not None:
            values["eval_extractor_weights"] = config.extractor_weights
        run(["train", family.name], values | {"eval_extractor": extractor} | evaluations(family, values))
    return models, extractor


def evaluations(family: Family, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the options by which a training measures its own quality at intervals."""
    from hfgen.data.cache import open_images
    from hfgen.runtime.machine import Machine
    from hfgen.training.schedules import Schedule

    options = collect(family, **values)
    info = open_images(options.data).info
    options = options.resolve(info, Machine.here(), options.training.mixed_precision)
    schedule = Schedule(options.training, info.num_images)
    every = -(-schedule.total // schedule.batch // EVALUATIONS)  # rounded up: the last one comes anyway
    return {"eval_every": every, "eval_metrics": ("fd",), "eval_num_images": EVALUATION_IMAGES}


def run(verb: list[str], values: dict[str, Any]) -> None:
    """Runs another verb to its end, and hands on the signals that ask to stop.

    Raises:
        UserError: If it fails.
    """
    ended = run_verb(verb, values)
    if ended.code:
        raise UserError(
            f"{ended.command} ended with exit code {ended.code}, for the reason above. What is done stays: once that "
            "is fixed, the same command goes on."
        )


def check_output(folder: Path, config: CompareConfig) -> Path:
    """Returns the file of the report. Raises [`UserError`] if it, or a card to be updated, cannot be written."""
    for model in (config.model or ()) if config.update_card else ():
        if not (Path(model) / "README.md").is_file():
            raise UserError(f"`update_card`: {model} is no folder with a README.md: leave it out, or give one.")
    from hfgen.runtime.writable import require_folder, require_ours

    require_folder(folder, "output_dir")
    path = folder / "compare.json"
    if path.exists() and not config.overwrite_report:
        raise UserError(f"{path} is another report: add `overwrite_report` or give another `output_dir`.")
    if not config.overwrite_report:
        require_ours([path.with_suffix(".png")], "output_dir", "give another folder, or add `overwrite_report`")
    return path


def main(argv: Sequence[str]) -> None:
    options, given = read_options(argv)
    config, reference, common, *_ = options
    folder = Path(config.output_dir)
    output = check_output(folder, config)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # before the hours of training
        raise UserError("speeds are compared in one process: start this without a launcher.")

    from hfgen.evaluation.compare import compare_models, draw_comparison, load_samplers
    from hfgen.evaluation.features import NO_FEATURES, extractor_for
    from hfgen.evaluation.report import card_section, heading, short_names, table, wrap
    from hfgen.hub.card import add_results, escape_markdown
    from hfgen.runtime.files import write_json
    from hfgen.runtime.launch import describe, make_accelerator
    from hfgen.runtime.png import save_png

    if config.model:
        models, extractor_name = list(config.model), config.extractor or "inception"
    else:
        if config.extractor:
            extractor_for(config.metrics, config.extractor, config.extractor_weights)  # before the hours of training
        models, extractor_name = train_missing(config, reference, folder)

    accelerator = make_accelerator(cpu_threads=config.cpu_threads)
    extractor = extractor_for(config.metrics, extractor_name, config.extractor_weights, accelerator.device)
    samplers = load_samplers(models, given, accelerator.device)
    comparison = compare_models(
        samplers,
        reference,
        extractor,
        accelerator,
        config.metrics,
        config.num_images,
        config.seed,
        config.seeds,
        config.batch_size,
        config.likelihood_samples,
        config.likelihood_images,
        config.quality,
        say=lambda text: print(spell(text), flush=True),
    )
    described = extractor.describe()
    command = command_line("compare", KINDS, argv)
    machine = describe(accelerator, common.mixed_precision)
    whole = wrap(comparison.reports, described, command, recorded([config, reference, common], given), machine)
    whole |= {"quality": comparison.quality, "remarks": comparison.remarks}
    write_json(output, whole)
    for report, sampler in zip(comparison.reports, samplers, strict=True) if config.update_card else ():
        network = extractor_name if described["id"] != NO_FEATURES else None
        commands = card_commands(config, reference, given, report, network)
        section = card_section(escape_markdown(report), escape_markdown(whole) | {"command": commands})
        add_results(Path(sampler.name), report, described, section)
    names, title = ", ".join(short_names(comparison.reports)), heading(comparison.reports[0], described)
    origin = {"model": names, "seed": config.seed} if common.provenance else None
    save_png(draw_comparison(comparison, title), output.with_suffix(".png"), origin, composite=True)
    print(f"\n{names}: {title}\n\n{table(comparison.shown)}\n")
    print(*(f"- {spell(note)}" for note in comparison.remarks), sep="\n")
    print(f"\nFigure:  {output.with_suffix('.png')}\nReport:  {output}")
