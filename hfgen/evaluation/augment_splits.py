"""Splits for a comparison of classifiers with and without generated images: no generator may have seen what is held
out, as far as its record tells."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.data.config import DataConfig, ImagesConfig, share_of
from hfgen.data.splits import check_sides, write_split
from hfgen.evaluation.classifier import Part, open_parts
from hfgen.evaluation.config import AugmentConfig, ClassifierConfig
from hfgen.evaluation.generated import Folder, Generator
from hfgen.evaluation.trained import is_source, read_record
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import new_folder_at_once, write_json, write_text
from hfgen.runtime.options import as_dict
from hfgen.runtime.provenance import record
from hfgen.sampling.api import ready_sampler
from hfgen.sampling.folder import RECORD

LEAST = 2  # images of a class, on each side
RECORD_OF_SPLIT = "split.json"


@dataclass(frozen=True)
class Split:
    """What is trained on and what is held out; its options, and the generated images that go with it."""

    data: DataConfig
    train: Part
    test: Part
    sources: tuple[Any, ...] = ()


def open_split(data: DataConfig, config: ClassifierConfig) -> Split:
    """Opens the images to train on and those held out, of which each class has enough.

    Raises:
        UserError: For what [`~classifier.open_parts`] refuses, and for a class with too few images.
    """
    train_part, test_part = open_parts(data, config)
    names = train_part.data.info.class_names or ()
    labels = train_part.classes, test_part.classes
    empty = [name for number, name in enumerate(names) if not any((own == number).any() for own in labels)]
    if empty:
        raise UserError(
            f"{train_part.data.info.name} has no image of class {', '.join(empty)}: leave the class out of the data."
        )
    check_sides(labels, None, names, data.group_column or "", LEAST)
    return Split(data, train_part, test_part)


def origin_of_split(data: DataConfig) -> ImagesConfig | None:
    """Reads out of what data a split was written; `None` for other data, and if it cannot be told."""
    try:
        found = json.loads((Path(data.dataset_name or "") / RECORD_OF_SPLIT).read_text(encoding="utf-8"))["config"]
        return ImagesConfig(dataset_name=found["dataset_name"], train_data_dir=found["train_data_dir"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def has_seen(model: str, split: Split, after: tuple[str, ...] = ()) -> tuple[bool, str]:
    """Says whether a generator was trained on the held-out images, as far as its record tells, and why.

    Args:
        model (`str`): The generator.
        split ([`Split`]): What is held out.
        after (`tuple[str, ...]`, *optional*): Models that began with its weights, of which this is asked already.

    Returns:
        Whether it was, and a sentence for the report.
    """
    trained = read_record(model).get("config", {})
    info, held_out = split.train.data.info, split.test.data.info.split
    if not trained:
        return False, (
            f"Nothing here says what {model} was trained on: the numbers hold only if it has not seen the held-out "
            "images."
        )
    before = str(trained.get("init_from") or model)
    if before not in (model, *after):
        seen, text = has_seen(before, split, (model, *after))
        if seen:
            return True, f"{model} began with the weights of {before}. {text}"
    ours = ImagesConfig(dataset_name=split.data.dataset_name, train_data_dir=split.data.train_data_dir)
    theirs, left_out = str(trained.get("dataset_split") or "train"), trained.get("validation_split")
    if is_source(ours, trained):
        own = split.test.data.config
        if own.dataset_split != split.train.data.config.dataset_split:  # a split with a name of its own
            seen = own.dataset_split in re.split(r"[+\[]", theirs)
        elif held_out != own.dataset_split:  # what a training left out
            drawn = (share_of(left_out), trained.get("group_column"))
            seen = drawn != (own.validation_share, own.group_column) or theirs != own.dataset_split
        else:  # drawn here
            seen = own.dataset_split in re.split(r"[+\[]", theirs)
        if seen:
            return True, (
                f"{model} was trained on images that are held out here: its record names {info.name} [{theirs}]. What "
                "its images gain says nothing. Write a split with `split_only`, and train the generator on that."
            )
        return False, f"As its record says, {model} was trained on {info.name} [{theirs}], not on the held-out images."
    origin = origin_of_split(split.data)
    if origin is not None and is_source(origin, trained):
        return True, (
            f"{model} was trained on {trained.get('train_data_dir') or trained.get('dataset_name')}, out of which the "
            f"split {info.name} was written, and so on images that are held out here. What its images gain says "
            "nothing: train the generator on the split."
        )
    name = trained.get("train_data_dir") or trained.get("dataset_name") or "digits"
    return False, f"As its record says, {model} was trained on {name}, which are other data than {info.name}."


def model_of_folder(folder: str) -> str | None:
    """Returns the model that made a folder of generated images, as its record says; `None` if it cannot be told."""
    try:
        name = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))["model"]
        Path(name).exists()  # an error for what is no path
        return name if name.isprintable() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def open_splits(
    data: DataConfig, config: ClassifierConfig, augment: AugmentConfig, given: Mapping[str, Any]
) -> tuple[list[Split], list[str], list[str]]:
    """Opens the data and the generated images of each split, in the order in which seeds take turns.

    Returns:
        The splits; warnings; and notes.

    Raises:
        UserError: For data that cannot be used, and generated images that do not fit it.
    """
    from accelerate import PartialState

    if given.get("class_labels"):
        raise UserError("`class_labels`: all classes of the data are generated, equally often. Leave it out.")
    samplers = {name: ready_sampler(name, given, PartialState().device) for name in augment.model or ()}
    if samplers and data.resolution is None:
        sizes = sorted({sampler.image_shape[1] for sampler in samplers.values()})
        data = dataclasses.replace(data, resolution=sizes[0])
    trained = read_record(augment.model[0]).get("config", {}) if augment.model and not augment.splits else {}
    ours = ImagesConfig(dataset_name=data.dataset_name, train_data_dir=data.train_data_dir)
    left_out = trained.get("validation_split")
    if left_out and config.test_split is None and data.validation_split is None and is_source(ours, trained):
        column = data.group_column or trained.get("group_column")
        data = dataclasses.replace(data, validation_split=str(left_out), group_column=column)
    if augment.splits:
        opened = []
        for folder in augment.splits:
            plain = dataclasses.replace(data, train_data_dir=None, dataset_config_name=None, validation_split=None)
            own = dataclasses.replace(plain, dataset_name=folder, dataset_split="train")
            opened.append(open_split(own, dataclasses.replace(config, test_split="test")))
    else:
        opened = [open_split(data, config)]
    names = opened[0].train.data.info.class_names or ()
    turns = max(len(opened), len(augment.model or ()), len(augment.generated or ()))
    generators = {name: Generator(sampler, names) for name, sampler in samplers.items()}
    folders: dict[str, Folder] = {}
    splits, warnings, notes = [], dict[str, None](), dict[str, None]()
    for turn in range(turns):
        split = opened[turn % len(opened)]
        info = split.train.data.info
        if info.class_names != names:
            raise UserError(f"`splits` {split.data.dataset_name} has other classes than the first: use one data set.")
        sources: list[Any] = []
        for kind, chosen in ((generators, augment.model or ()), (folders, augment.generated or ())):
            if not chosen:
                continue
            name = chosen[turn % len(chosen)]
            if kind is folders and name not in folders:
                folders[name] = Folder(name, info, split.data)
            sources.append(kind[name])
            model = name if kind is generators else model_of_folder(name)
            seen, text = has_seen(model or name, split)
            (warnings if seen else notes)[text] = None
        splits.append(dataclasses.replace(split, sources=tuple(sources)))
    return splits, list(warnings), list(notes)


def write_split_only(
    data: DataConfig, config: ClassifierConfig, folder: Path, command: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes a split of the data that a generator can be trained on: `train`, and `test`, which it must not see.

    Args:
        data ([`DataConfig`]), config ([`ClassifierConfig`]): The options; `test_split` is the share that is held out,
            by default a fifth.
        folder (`Path`): Where to write, a folder that is new or empty.
        command (`str`, *optional*): For the record.

    Returns:
        The records of both parts.

    Raises:
        UserError: As [`open_split`], and if the held-out images are a split already.
    """
    config = dataclasses.replace(config, test_split=config.test_split or data.dataset_split)
    if share_of(config.test_split) is None and config.test_split != data.dataset_split:
        raise UserError(
            f"`split_only` draws the images to hold out, and `test_split` {config.test_split} names them already: "
            "give a share, as 0.3, or leave it out."
        )
    split = open_split(data, config)
    parts = {"train": split.train, "test": split.test}
    records = {name: part.record() for name, part in parts.items()}
    with new_folder_at_once(folder) as temporary:
        write_split(split.train.data, {name: part.rows for name, part in parts.items()}, temporary)
        values = as_dict([data, config])
        source = {"train_data_dir": data.train_data_dir, "dataset_name": data.dataset_name}
        for name, place in source.items():
            if place and Path(place).exists():
                values[name] = str(Path(place).resolve())
        write_json(temporary / RECORD_OF_SPLIT, record(command, **records, config=values))
        write_text(temporary / "README.md", split_page(records, data.group_column, split.train.data.info.name))
    return records["train"], records["test"]


def split_page(records: dict[str, dict[str, Any]], group_column: str | None, name: str) -> str:
    """Writes the page of a split: how `datasets` reads it, and what it is for."""
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in records)
    rows = [f"| {split} | {part['num_images']:,} | {part['class_counts']} |" for split, part in records.items()]
    groups = f" No group of the column `{group_column}` is in both." if group_column else ""
    return "\n".join(
        [
            f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n# A split of {name}\n",
            f"`train` is for the training of a generator. `test` is held out: no generator whose images are judged by "
            f"it may see it.{groups}\n",
            "| split | images | of each class |\n|---|---|---|",
            *rows,
            "",
        ]
    )
