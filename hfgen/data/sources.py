"""From the name of a data set to a `datasets` object and its columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from hfgen.data.columns import Image, Label, SourceColumn, Text
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError, one_line


def load_source(config: DataConfig, token: str | None = None) -> tuple[Any, str]:
    """Loads the `datasets` object, map-style or streaming, and the name to call it by."""
    import datasets
    from datasets import load_dataset

    if config.train_data_dir is None and config.dataset_name in (None, "digits"):
        if config.dataset_split != "train":
            raise UserError(f"`dataset_split` {config.dataset_split} does not exist in digits: leave it out.")
        return _digits(), "digits"
    source = config.train_data_dir or config.dataset_name
    assert source is not None
    flag = "`train_data_dir`" if config.train_data_dir else "`dataset_name`"
    folder = Path(source).expanduser()
    kwargs: dict[str, Any] = {"split": config.dataset_split, "streaming": config.streaming}
    if config.cache_dir:
        kwargs["cache_dir"] = config.cache_dir
    try:
        if config.train_data_dir:
            if not folder.is_dir():
                raise UserError(f"{flag} {source} is not a folder: give the folder that holds the images.")
            if not config.streaming and not any(map(_is_image_file, folder.rglob("*"))):
                raise UserError(f"{flag} {source} holds no images: give a folder with PNG, JPEG or other image files.")
            return load_dataset("imagefolder", data_dir=str(folder.resolve()), **kwargs), folder.resolve().name
        if folder.is_dir() and (folder / "state.json").exists():  # written by Dataset.save_to_disk
            if config.dataset_split != "train":
                raise ValueError(f"it has no splits, and `dataset_split` is {config.dataset_split}")
            dataset = datasets.load_from_disk(str(folder))
            return dataset.to_iterable_dataset(num_shards=64) if config.streaming else dataset, folder.resolve().name
        if folder.is_dir() and (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
            if config.dataset_split not in splits:
                raise ValueError(f"Unknown split {config.dataset_split!r}. It has {sorted(splits)}")
            dataset = splits[config.dataset_split]
            return dataset.to_iterable_dataset(num_shards=64) if config.streaming else dataset, folder.resolve().name
        if _is_image_folder(folder, config):  # read like `train_data_dir`, so that both share what is cached
            return load_dataset("imagefolder", data_dir=str(folder.resolve()), **kwargs), folder.resolve().name
        path = str(folder.resolve()) if folder.is_dir() else source
        dataset = load_dataset(path, config.dataset_config_name, token=token, **kwargs)
        return dataset, folder.resolve().name if folder.is_dir() else source
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen kinds of errors for a name that leads nowhere
        raise UserError(
            f"{flag} {source} cannot be loaded: {one_line(error)}. Give a Hub id, a folder with parquet, arrow or "
            "image files, or `digits`; `dataset_split` and `dataset_config_name` choose within it."
        ) from None


def _digits() -> Any:
    """Loads the 1797 handwritten digits of UCI (8x8, 16 gray levels) that scikit-learn ships."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [PIL.fromarray(image) for image in np.round(digits.images * (255 / 16)).astype(np.uint8)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in PIL.registered_extensions() and path.is_file()


def _is_image_folder(folder: Path, config: DataConfig) -> bool:
    """Says whether `datasets` would read a folder as one of image files, with no options of its own."""
    from datasets import load_dataset_builder

    if config.streaming or config.dataset_config_name or not folder.is_dir() or (folder / "README.md").exists():
        return False
    return load_dataset_builder(str(folder)).name == "imagefolder"


def find_columns(features: Any, columns: Mapping[str, SourceColumn], config: DataConfig) -> dict[str, str]:
    """Finds the columns of a data set that a family asks for.

    A column that neither the family nor an option names is found by its type: `Image`, `ClassLabel`, or strings. If
    several of a type are to be found, and for texts, one of the same name comes first.

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
    for kind, fits, content, option in (
        (Image, _is_image, "images", "image_column"),
        (Label, _is_classes, "classes", "label_column"),
        (Text, _is_text, "texts", None),
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
        if len(unnamed) > 1 or kind is Text:
            same = [name for name in unnamed if name in features and fits(features[name])]
            chosen |= {name: name for name in same if name not in chosen.values()}
        for name in unnamed:
            free = [column for column, feature in features.items() if fits(feature) and column not in chosen.values()]
            if name in chosen:
                continue
            if free:
                chosen[name] = free[0]
            elif kind is not Label:
                other = "other " if any(fits(features[column]) for column in chosen.values()) else ""
                raise UserError(
                    f"the data has no {other}column with {content} for {name!r}; it has: {listing}. Use other data."
                )
    return chosen


def _is_image(feature: Any) -> bool:
    from datasets import Image as ImageFeature

    # Parquet files written without datasets hold images as a struct of bytes and path.
    return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_classes(feature: Any) -> bool:
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)


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
