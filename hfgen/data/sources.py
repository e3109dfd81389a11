"""From the name of a data set to a `datasets` object and its columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError


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
            return load_dataset("imagefolder", data_dir=str(folder), **kwargs), folder.resolve().name
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
        path = str(folder) if folder.is_dir() else source
        dataset = load_dataset(path, config.dataset_config_name, token=token, **kwargs)
        return dataset, folder.resolve().name if folder.is_dir() else source
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen kinds of errors for a name that leads nowhere
        reason = " ".join(str(error).split())
        if len(reason) > 400:
            reason = reason[:400] + "..."
        raise UserError(
            f"{flag} {source} cannot be loaded: {reason.rstrip('.')}. Give a Hub id, a folder with parquet, arrow or "
            "image files, or `digits`; `dataset_split` and `dataset_config_name` choose within it."
        ) from None


def _digits() -> Any:
    """The 1797 handwritten digits of UCI (8x8, 16 gray levels) that scikit-learn ships."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [Image.fromarray(image) for image in np.round(digits.images * (255 / 16)).astype(np.uint8)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions() and path.is_file()


@dataclass(frozen=True)
class Columns:
    """The columns that are used, and how the values of the label column become classes."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    """Known beforehand for a `ClassLabel`; otherwise read off the column."""


def find_columns(features: Any, config: DataConfig) -> Columns:
    """Finds the image column (the first of type `Image`) and the label column (the first `ClassLabel`)."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    if features is None:
        raise UserError("the columns of this stream have no types: load it without `streaming`.")

    def is_image(feature: Any) -> bool:
        # Parquet files written without datasets hold images as a struct of bytes and path.
        return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    image, label = config.image_column, config.label_column
    if image is None:
        image = next((name for name, feature in features.items() if is_image(feature)), None)
        if image is None:
            raise UserError(f"the data has no column with images; it has: {listing}. Use other data.")
    for flag, name in (("`image_column`", image), ("`label_column`", label)):
        if name is not None and name not in features:
            raise UserError(f"{flag} {name} is not a column of the data; it has: {listing}. Give one of these.")
    if not is_image(features[image]):
        raise UserError(f"`image_column` {image} holds no images; the columns are: {listing}. Give one with images.")
    if label is None:
        label = next((name for name, feature in features.items() if isinstance(feature, ClassLabel)), None)
    names = tuple(features[label].names) if label and isinstance(features[label], ClassLabel) else None
    return Columns(image, label, names)


def _raw_rows(dataset: Any, column: str, size: int = 1000) -> Iterator[list[dict[str, Any] | None]]:
    """The encoded images of a map-style data set, `size` rows at a time."""
    encoded = without_decoding(dataset.select_columns([column]), column)
    for start in range(0, len(dataset), size):
        yield encoded[start : start + size][column]


def without_decoding(dataset: Any, column: str) -> Any:
    """Makes `datasets` hand out `{"bytes", "path"}` instead of images."""
    from datasets import Image as ImageFeature

    return dataset.cast_column(column, ImageFeature(decode=False))
