"""What the record of a training says of its data, for whoever measures the model or shows it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hfgen.data.columns import Image, sources_of
from hfgen.data.config import DataConfig, ImagesConfig
from hfgen.evaluation.config import SplitsConfig
from hfgen.registry import Family, find_family
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import checked
from hfgen.runtime.provenance import read_run
from hfgen.sampling.config import given_values

Config = TypeVar("Config", bound=ImagesConfig)
Splits = TypeVar("Splits", bound=SplitsConfig)


def read_record(name: str) -> dict[str, Any]:
    """Reads the `run.json` of a folder; empty for a model that hfgen did not train, or that came without.

    Raises:
        UserError: If it is broken.
    """
    record, file = read_run(Path(name)), Path(name) / "run.json"
    try:
        for field in dataclasses.fields(DataConfig):
            if field.name in record.get("config", {}):
                checked(DataConfig, field, record["config"][field.name])
    except UserError as error:
        raise UserError(f"{file} is broken: {one_line(error)}. Restore it, or take it away.") from None
    return record


def training_data(name: str) -> dict[str, Any] | None:
    """Reads what a folder was trained on, if hfgen did it."""
    data = read_record(name).get("data", {})
    keys = ("name", "split", "num_images", "fingerprint")
    return {key: data[key] for key in keys} if data.keys() >= set(keys) else None


def following(config: Config, name: str) -> Config:
    """Returns the data as the training of a model saw it, in what was not asked for: where oblong images are cropped,
    what transparent ones lie over, and, if it is the same data, which columns are meant, what became black and white,
    and what was left out of training.

    Without a record of the training, oblong images are cropped in the centre and transparent ones lie over white.
    """
    trained = read_record(name).get("config", {})
    recorded = trained if is_source(config, trained) else {}
    found = {key: trained.get(key) for key in ("center_crop", "background")}
    found |= {key: recorded.get(key) for key in ("dataset_config_name", "image_column", "label_column", "value_range")}
    if recorded.get("dataset_split") == config.dataset_split:
        found |= {"held_out_split": recorded.get("validation_split"), "group_column": recorded.get("group_column")}
    found["value_range"] = tuple(found["value_range"] or ()) or None
    open_ones = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None}
    return dataclasses.replace(config, **{key: value for key, value in found.items() if key in open_ones})


def is_source(config: ImagesConfig, trained: Mapping[str, Any]) -> bool:
    """Says whether these are the images that a model was trained on, whichever split of them.

    Args:
        config ([`ImagesConfig`]): The images.
        trained (`Mapping`): The options of the training, out of its record.
    """
    folder = trained.get("train_data_dir")
    ours, theirs = Path(config.source), Path(folder or trained.get("dataset_name") or "digits")
    if ours.exists() and theirs.exists():
        return ours.resolve() == theirs.resolve()
    if ours.exists() or folder:  # it has moved since, or its record was published, which names no other folders
        return ours.resolve().name == theirs.resolve().name
    return ours == theirs  # on the Hub


def image_sources(family: Family, options: Any, data: DataConfig) -> dict[str, DataConfig]:
    """Returns where the images of a training come from, by the names that its family has for them.

    Args:
        family ([`~registry.Family`]), options, data ([`~data.config.DataConfig`]): The family, and the options of the
            training.

    Raises:
        UserError: If the options do not go together.
    """
    found, sources = sources_of(family.load("spec"), options, data), {}
    for name, column in found.columns.items():
        if isinstance(column, Image):
            own = found.sources.get(column.source, data)
            sources[name] = dataclasses.replace(own, image_column=column.column or own.image_column)
    return sources


def recorded_sources(name: str) -> dict[str, DataConfig]:
    """Returns what [`image_sources`] says of the training of a model; nothing, if that is not known.

    Raises:
        UserError: If its record is broken.
    """
    record = read_record(name)
    if not record.get("config") or not record.get("family"):
        return {}
    try:
        family = find_family(record["family"])
        options, data = (_made(kind, record["config"]) for kind in (family.load("options"), DataConfig))
        return image_sources(family, options, data)
    except UserError as error:
        raise UserError(f"{Path(name) / 'run.json'} is of no use here: {one_line(error)}.") from None


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    fields = [field for field in dataclasses.fields(kind) if field.name in values]
    return kind(**{field.name: checked(kind, field, values[field.name]) for field in fields})


def as_images(data: DataConfig, config: Splits) -> Splits:
    """Returns options of images for the data of a training, and what it left out is what is held out; what differs
    from its default in `config` stays."""
    names = [field.name for field in dataclasses.fields(ImagesConfig)]
    values = {name: getattr(data, name) for name in (*names, "group_column", "center_crop")}
    values["held_out_split"] = data.validation_split
    return dataclasses.replace(config, **{**values, **given_values([config])})
