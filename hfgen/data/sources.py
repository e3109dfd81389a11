"""From the name of a data set to a `datasets` object and its columns."""

import glob
import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from hfgen.data.columns import Image, Label, SourceColumn, Text
from hfgen.data.config import DataConfig
from hfgen.data.folders import (
    LABELS,
    TEXTS,
    is_declared,
    is_image_folder,
    list_files,
    list_paths,
    names_split,
    open_folder,
    split_of,
)
from hfgen.data.own_files import OwnFiles, is_image, own_files_of
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.notes import listed, note

IMAGES = ("image", "img", "images", "picture")  # what columns of images are usually called


def load_source(config: DataConfig, token: str | None = None) -> tuple[Any, str]:
    """Loads the `datasets` object, map-style or streaming, and the name to call it by."""
    dataset, name, _ = load_with_files(config, token)
    return dataset, name


def load_with_files(config: DataConfig, token: str | None = None) -> tuple[Any, str, OwnFiles | None]:
    """Loads the same as [`load_source`], and says where files that rows of a stream name may lie; `None` for anywhere.

    Those of a map-style data set are looked at here. An image folder that the user names is what a person sees in it:
    its links are followed.

    Raises:
        UserError: If it cannot be loaded, and for a file that is not its own, unless that is allowed.
    """
    if config.train_data_dir is None and config.dataset_name in (None, "digits"):
        if config.dataset_split != "train":
            raise UserError(f"`dataset_split` {config.dataset_split} does not exist in digits: leave it out.")
        return _digits(), "digits", None
    source = config.train_data_dir or config.dataset_name
    assert source is not None
    flag = "`train_data_dir`" if config.train_data_dir else "`dataset_name`"
    folder = Path(source).expanduser()
    if config.train_data_dir and not folder.is_dir():
        raise UserError(f"{flag} {source} is not a folder: give the folder that holds the images.")
    options: dict[str, Any] = {"token": token}
    if config.cache_dir:
        options["cache_dir"] = config.cache_dir
    try:
        if folder.is_dir():
            dataset, own_files = _load_folder(folder.resolve(), f"{flag} {source}", config, options)
            return dataset, folder.resolve().name, own_files
        dataset, own_files = _build(source, f"{flag} {source}", config, options)
        return dataset, source, own_files
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen kinds of errors for a name that leads nowhere
        raise UserError(
            f"{flag} {source} cannot be loaded: {reason(error)}. Give a Hub id, a folder with parquet, arrow or "
            "image files, or `digits`; `dataset_split` and `dataset_config_name` choose within it."
        ) from None


def reason(error: BaseException) -> str:
    """Returns what an error of `datasets` says, in one line, and what its cause says, which tells more."""
    from datasets.exceptions import DatasetGenerationError

    if type(error) is DatasetGenerationError and error.__cause__ is not None:  # it says nothing itself
        return reason(error.__cause__)
    text = one_line(error)
    cause = "" if error.__cause__ is None else reason(error.__cause__)
    return text if cause in text else f"{text} ({cause})"


def _load_folder(folder: Path, name: str, config: DataConfig, options: dict[str, Any]) -> tuple[Any, OwnFiles | None]:
    """Loads what a folder holds: image files; or, if it is called a data set, also what `datasets` wrote or reads."""
    from datasets import Dataset, IterableDataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    split, dataset = config.dataset_split, None
    if config.train_data_dir is None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        dataset = load_from_disk(str(folder))  # written by save_to_disk
        if isinstance(dataset, Dataset):
            if split != "train":
                raise ValueError(f"it has no splits, and `dataset_split` is {split}")
        elif split not in dataset:
            raise ValueError(f"Unknown split {split!r}. It has {sorted(dataset)}")
        else:
            dataset = dataset[split]
        if not config.allow_outside_files:
            own_files = OwnFiles(name, str(folder))
            for file in dataset.cache_files:
                own_files.check(file["filename"])
            own_files.check_rows(dataset)
        return (dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if config.streaming else dataset), None
    files = list_files(folder)
    if config.train_data_dir and not files.images:
        beside = f", only {files.leftovers}" * bool(files.left_out)
        raise ValueError(f"it holds no images{beside}")
    if config.train_data_dir or (config.dataset_config_name is None and is_image_folder(folder, files)):
        dataset = open_folder(folder, files, config)
        if not config.streaming:
            return dataset, None
        # As `datasets` would stream a folder: runs that go on bring states of such a stream.
        rows, table = _rows_of, dataset.data.table
        stream = IterableDataset.from_generator(rows, features=dataset.features, gen_kwargs={"table": table})
        return stream, None
    if glob.has_magic(str(folder)):
        raise ValueError("`datasets` takes [, ? and * in its path for a pattern: rename the folder")
    data_files = None if config.dataset_config_name or is_declared(folder) else _one_split(folder, options)
    try:
        return _build(str(folder), name, config, options | {"data_files": data_files})
    except DatasetGenerationError as error:
        archives = "; archives may have to be unpacked" * (".zip" in files.left_out)
        raise ValueError(f"{reason(error)}{archives}") from None


def _build(source: str, name: str, config: DataConfig, options: dict[str, Any]) -> tuple[Any, OwnFiles | None]:
    """Does what `load_dataset` does, and checks that the files are the data set's own."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(source, config.dataset_config_name, **options)
    own_files = None if config.allow_outside_files else own_files_of(builder, name, source)
    if own_files:
        for files in (builder.config.data_files or {}).values():
            for file in files:
                own_files.check(str(file))
    if config.streaming:
        stream = builder.as_streaming_dataset(split=config.dataset_split)._resolve_features()
        # Of a folder on the Hub, `datasets` streams images that it has decoded.
        return (stream.decode(False) if stream.features else stream), own_files
    builder.download_and_prepare()
    dataset = builder.as_dataset(split=config.dataset_split)
    if own_files:
        own_files.check_rows(dataset)
    return dataset, own_files


def _one_split(folder: Path, options: dict[str, Any]) -> dict[str, list[str]] | None:
    """Compares the files in a folder with those that `datasets` finds by patterns, and says which it leaves out.

    `datasets` reads all files if no name contains a word such as "test", and otherwise only files with such words.

    Returns:
        `dict[str, list[str]]`: All files as one split, if such words are only parts of some names; `None` for what
        `datasets` finds.
    """
    from datasets import load_dataset_builder
    from datasets.data_files import FILES_TO_IGNORE

    builder = load_dataset_builder(str(folder), cache_dir=options.get("cache_dir"))
    files = builder.config.data_files or {}
    found = {os.path.relpath(path, folder).replace(os.sep, "/"): split for split, own in files.items() for path in own}
    suffixes = {posixpath.splitext(path)[1] for path in found}  # in the case that `datasets` knows
    cached = os.path.relpath(os.path.dirname(builder.cache_dir), folder)  # what it writes, if its cache is around
    present = {
        path: posixpath.splitext(path)[1]
        for path in list_paths(folder)
        if posixpath.basename(path) not in FILES_TO_IGNORE and "/__" not in f"/{posixpath.dirname(path)}"
        if not path.startswith(f"{cached.replace(os.sep, '/')}/")
    }
    alike = sorted(path for path, suffix in present.items() if suffix in suffixes)
    more = sorted(path for path in alike if path not in found)
    others = sorted(path for path, suffix in present.items() if suffix not in suffixes and suffix.lower() not in TEXTS)
    kinds, total = " and ".join(sorted(suffixes)), len(alike) + len(others)
    if others:
        note(
            f"{folder.name}: files left out, as only {kinds} files are read: {len(others)} of {total} "
            f"({listed(others)})."
        )
    if not more:
        return None
    if (len(files) > 1 and "train" in files) or any(map(names_split, found)):
        note(
            f"{folder.name}: files left out, as their names speak of no split, unlike others: {len(more)} of {total} "
            f"({listed(more)}). `train` in front of a name would make it one of that split."
        )
        return None
    speak = sorted(path for path in found if any(map(split_of, path.split("/"))))
    if speak:
        note(
            f"{folder.name}: all {len(alike)} {kinds} files are one split, `train`, though names speak of "
            f"{listed(sorted(map(str, files)))}: {listed(speak)}. Folders with these names would keep them apart."
        )
    return {"train": [glob.escape(str(folder / path)) for path in alike]}


def _rows_of(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def _digits() -> Any:
    """Loads the 1797 handwritten digits of UCI (8x8, 16 gray levels) that scikit-learn ships."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [PIL.fromarray(image) for image in np.round(digits.images * (255 / 16)).astype(np.uint8)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)


def find_columns(features: Any, columns: Mapping[str, SourceColumn], config: DataConfig) -> dict[str, str]:
    """Finds the columns of a data set that a family asks for, and tells where there were several to choose from.

    A column that neither the family nor an option names is found by its type: `Image`, `ClassLabel`, or strings. If
    several of a type are asked for, and for texts, one of the same name comes first; then those that are called as
    such columns usually are. Where there is a `ClassLabel`, classes may be a column of numbers or strings with such a
    name, too, unless they are streamed.

    Args:
        features (`datasets.Features`): The columns of the data set.
        columns (`Mapping[str, Image | Label | Text]`): What is asked for.
        config ([`DataConfig`]): The options.

    Returns:
        `dict[str, str]`: The column of the data set for each that is asked for. Labels that it does not have are left
        out.

    Raises:
        UserError: For columns that it does not have, or that hold something else.
    """
    if features is None:
        raise UserError("the columns of this stream have no types: load it without `streaming`.")
    listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    chosen: dict[str, str] = {}
    for kind, fits, content, option, usual in (
        (Image, is_image, "images", "image_column", IMAGES),
        (Label, _is_classes, "classes", "label_column", LABELS),
        (Text, _is_text, "texts", None, ()),
    ):
        asked = {name: column.column for name, column in columns.items() if isinstance(column, kind)}
        spelt = {name: f"{column!r} (for {name!r})" for name, column in asked.items()}
        if option and getattr(config, option) is not None:
            first = next((name for name, column in asked.items() if column is None), None)
            if first is not None:
                asked[first] = getattr(config, option)
                spelt[first] = f"`{option}` {asked[first]}"
        for name, column in asked.items():
            if column is None:
                continue
            if column not in features:
                raise UserError(f"{spelt[name]} is not a column of the data; it has: {listing}. Give one of these.")
            if kind is not Label and not fits(features[column]):  # other columns can be read as classes, too
                raise UserError(
                    f"{spelt[name]} holds no {content}; the columns are: {listing}. Give one with {content}."
                )
            chosen[name] = column
        unnamed = [name for name, column in asked.items() if column is None]
        if len(asked) > 1 or kind is Text:
            same = [name for name in unnamed if name in features and fits(features[name])]
            chosen |= {name: name for name in same if name not in chosen.values()}
        order = [name for name in usual if name in features] + [name for name in features if name not in usual]
        found = [column for column in order if fits(features[column])]
        if kind is Label and found and not config.streaming:  # a usual name counts for more than the type
            typed = [column for column in found if column in usual]
            named = [column for column in usual if column in features and _makes_classes(features[column])]
            found = [*typed, *named, *(column for column in found if column not in typed)]
        for name in unnamed:
            free = [column for column in found if column not in chosen.values()]
            if name in chosen:
                continue
            if free:
                chosen[name] = free[0]
            elif kind is not Label:
                other = "other " if any(fits(features[column]) for column in chosen.values()) else ""
                raise UserError(
                    f"the data has no {other}column with {content} for {name!r}; it has: {listing}. Use other data."
                )
        if option and unnamed:
            _tell_columns(features, option, content, usual, [chosen[n] for n in asked if n in chosen], free, config)
    return chosen


def _tell_columns(
    features: Any,
    option: str,
    content: str,
    usual: tuple[str, ...],
    taken: list[str],
    free: list[str],
    config: DataConfig,
) -> None:
    """Says which columns were taken, if others could have been."""
    more = [column for column in free if column not in taken]
    if taken and more:
        note(f"The {content} are those of the column {', '.join(taken)}; `{option}` takes others: {listed(more)}.")
    readable = [name for name in usual if name in features and _makes_classes(features[name])]
    if config.streaming and readable and not set(taken) & set(usual):
        text = f"those of the column {taken[0]}" if taken else "not used"
        note(
            f"The classes are {text}, as the column {readable[0]} is not of type ClassLabel, which lists the classes "
            f"beforehand, as `streaming` needs it; without `streaming`, `{option}` {readable[0]} makes classes of "
            "that column."
        )
    elif not taken and readable:
        note(f"The data has no column of type ClassLabel; `{option}` {readable[0]} makes classes of that column.")


def _is_classes(feature: Any) -> bool:
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)


def _makes_classes(feature: Any) -> bool:
    """Says whether a column that is no `ClassLabel` holds what classes can be made of."""
    kind = str(getattr(feature, "dtype", ""))
    return not _is_classes(feature) and kind.startswith(("int", "uint", "bool", "string", "large_s"))


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes of a column, which a `ClassLabel` knows beforehand."""
    return tuple(feature.names) if _is_classes(feature) else None


def raw_images(dataset: Any, column: str, size: int = 1000) -> Iterator[list[dict[str, Any] | None]]:
    """Yields the encoded images of a map-style data set, `size` rows at a time."""
    encoded = without_decoding(dataset.select_columns([column]), column)
    for start in range(0, len(dataset), size):
        yield encoded[start : start + size][column]


def without_decoding(dataset: Any, column: str) -> Any:
    """Makes `datasets` hand out `{"bytes", "path"}` instead of images."""
    from datasets import Image as ImageFeature

    return dataset.cast_column(column, ImageFeature(decode=False))


def read_groups(dataset: Any, column: str, name: str) -> np.ndarray:
    """Reads a column of groups, of which no split may cut one, such as patients: `(N,)`, strings.

    Args:
        dataset (`datasets.Dataset`): The data set.
        column (`str`): The column.
        name (`str`): What to call the data set.

    Raises:
        UserError: If there is no such column, it holds something else than strings and whole numbers, or a row has no
            value there.
    """
    if column not in dataset.features:
        kinds = ", ".join(f"{own} ({type(feature).__name__})" for own, feature in dataset.features.items())
        raise UserError(f"`group_column` {column} is not a column of {name}; it has: {kinds}. Give one of these.")
    values = dataset.select_columns([column]).with_format(None)[:][column]
    wrong = next((value for value in values if value is not None and not isinstance(value, str | int)), None)
    if wrong is not None:
        raise UserError(
            f"`group_column` {column} holds {type(wrong).__name__}: give a column with strings or whole numbers."
        )
    missing = sum(value is None or value == "" for value in values)
    if missing:
        raise UserError(
            f"`group_column` {column} has no value for {missing} of {len(values)} images of {name}, which may be of "
            "any group: fill it in, or leave these images out."
        )
    return np.array([str(value) for value in values])
