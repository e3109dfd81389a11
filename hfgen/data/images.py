"""From any `datasets` source to one memory-mapped array of uint8 images.

Images are decoded, resized and cropped once; training then reads rows of an array and runs no Python per image.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hfgen.data.config import IMAGE_MODES, DataConfig, ImagesConfig
from hfgen.errors import UserError

CACHE_FORMAT = 1  # part of the cache key: raise it when the same data would be decoded to other pixels
GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L")
TASK_SIZE = 16  # images that a thread decodes in one go
LONGEST_SIDE = 2  # times the resolution: what is kept of an oblong image for random crops


@dataclass(frozen=True)
class DataInfo:
    """What a run has to know, and to record, about its data."""

    name: str
    split: str
    num_images: int | None
    """Number of images, `None` for a stream."""
    skipped: int
    """Number of corrupt images left out."""
    unlabelled: int
    """Number of images without a class, in data with classes."""
    mode: str
    """PIL mode: `L`, `RGB` or `RGBA`."""
    resolution: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    """Digest of the decoded images and labels; of the source's files for a stream."""
    class_shares: tuple[float, ...] | None = None
    """Share of the images in each class, where the classes are groups that were found by clustering."""

    @property
    def channels(self) -> int:
        return IMAGE_MODES[self.mode]

    def __str__(self) -> str:
        count = "a stream of images" if self.num_images is None else f"{self.num_images} images"
        kind = "classes" if self.class_shares is None else "groups of similar images"
        classes = f", {len(self.class_names)} {kind}" if self.class_names else ""
        skipped = f", {self.skipped} corrupt ones skipped" if self.skipped else ""
        return (
            f"{self.name} [{self.split}]: {count}, {self.resolution}x{self.resolution} {self.mode}{classes}{skipped}"
        )


@dataclass(frozen=True)
class ImageData:
    """Decoded images.

    Attributes:
        images (`np.ndarray` of shape `(N, C, R, L)`, uint8): Memory-mapped. `L` equals the resolution `R` unless
            oblong images wait for their random crop: then the longer side runs along `L`.
        labels (`np.ndarray` of shape `(N,)`, int64, or `None`): Classes.
        layout (`np.ndarray` of shape `(N, 2)`, int32, or `None`): For random crops, the length of the longer side and
            whether the image was transposed so that this side runs along `L`.
    """

    images: np.ndarray
    labels: np.ndarray | None
    layout: np.ndarray | None
    info: DataInfo


def open_images(config: DataConfig, token: str | None = None) -> ImageData:
    """Opens the data set that the options name, from its cache of decoded images or by making that cache.

    Several processes may call this at once: one builds, the others wait, and a cache that was not finished is never
    used because it gets its name last.

    Args:
        config ([`DataConfig`]): The options.
        token (`str`, *optional*): For private data sets on the Hub.

    Raises:
        UserError: If the data set, its columns or one of its images cannot be used.
    """
    import filelock
    from datasets import config as datasets_config

    config.validate()
    dataset, source = load_source(config, token)
    root = Path(config.cache_dir or Path(datasets_config.HF_CACHE_HOME) / "hfgen").expanduser()
    columns = find_columns(dataset.features, config)
    key = _cache_key(dataset, columns, config)
    folder = root / key
    if not (folder / "meta.json").exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(root / f"{key}.lock"):
                if not (folder / "meta.json").exists():
                    _build_cache(folder, dataset, columns, config)
        except OSError as error:
            raise UserError(
                f"the cache of decoded images in {root} cannot be written: {error}. "
                "Free some space or give another --cache_dir."
            ) from None
    meta = json.loads((folder / "meta.json").read_text())
    images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=tuple(meta["shape"]))
    names = meta["class_names"]
    labels = np.load(folder / "labels.npy") if names is not None else None
    info = DataInfo(
        name=source,
        split=config.dataset_split,
        num_images=len(images),
        skipped=meta["skipped"],
        unlabelled=int((labels < 0).sum()) if labels is not None else 0,
        mode=meta["mode"],
        resolution=images.shape[2],
        class_names=tuple(names) if names is not None else None,
        fingerprint=meta["fingerprint"],
    )
    layout = np.load(folder / "layout.npy") if (folder / "layout.npy").exists() else None
    return ImageData(images, labels, layout, info)


def load_source(config: DataConfig, token: str | None = None) -> tuple[Any, str]:
    """Loads the `datasets` object, map-style or streaming, and the name to call it by."""
    import datasets
    from datasets import load_dataset

    if config.train_data_dir is None and config.dataset_name in (None, "digits"):
        if config.dataset_split != "train":
            raise UserError(f"--dataset_split {config.dataset_split} does not exist in digits: leave it out.")
        return _digits(), "digits"
    source = config.train_data_dir or config.dataset_name
    assert source is not None
    flag = "--train_data_dir" if config.train_data_dir else "--dataset_name"
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
                raise ValueError(f"it has no splits, and --dataset_split is {config.dataset_split}")
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
            "image files, or `digits`; --dataset_split and --dataset_config_name choose within it."
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
        raise UserError("the columns of this stream have no types: load it without --streaming.")

    def is_image(feature: Any) -> bool:
        # Parquet files written without datasets hold images as a struct of bytes and path.
        return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    image, label = config.image_column, config.label_column
    if image is None:
        image = next((name for name, feature in features.items() if is_image(feature)), None)
        if image is None:
            raise UserError(f"the data has no column with images; it has: {listing}. Use other data.")
    for flag, name in (("--image_column", image), ("--label_column", label)):
        if name is not None and name not in features:
            raise UserError(f"{flag} {name} is not a column of the data; it has: {listing}. Give one of these.")
    if not is_image(features[image]):
        raise UserError(f"--image_column {image} holds no images; the columns are: {listing}. Give one with images.")
    if label is None:
        label = next((name for name, feature in features.items() if isinstance(feature, ClassLabel)), None)
    names = tuple(features[label].names) if label and isinstance(features[label], ClassLabel) else None
    return Columns(image, label, names)


@contextlib.contextmanager
def open_image(value: dict[str, Any] | None) -> Iterator[Image.Image]:
    """Opens the `{"bytes", "path"}` of one row; whatever PIL raises for a broken file becomes an `OSError`."""
    if value is None or (value.get("bytes") is None and value.get("path") is None):
        raise OSError("there is no image in this row")
    try:
        with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]) as image:
            yield image
    except UnidentifiedImageError:
        raise OSError("it is no image, or of an unknown format") from None
    except (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None


def decode(value: dict[str, Any] | None) -> Image.Image:
    """Decodes one row, upright.

    Raises:
        OSError: If there is no image, or a broken one.
    """
    with open_image(value) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def image_mode(image: Image.Image) -> str:
    """The mode that keeps all that the image has: `L`, `RGB` or `RGBA`."""
    if image.mode in GRAY_MODES:
        return "L"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        return "RGBA"
    return "RGB"  # RGB, palette, CMYK, YCbCr, ...


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to 8 bits per channel in the given mode; 16-bit gray images keep their range."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        # PIL holds 16-bit PNG files as I;16 or I; an I image within 0..255 is an 8-bit one in a wide format.
        peak = 65535 if image.mode != "I" or values.max(initial=0) > 255 else 255
        image = Image.fromarray(np.clip(np.round(values * (255 / peak)), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise OSError("it has 32-bit floating-point pixels, whose range is not defined; convert it to 8 or 16 bits")
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, resolution: int, center_crop: bool) -> tuple[np.ndarray, int, bool]:
    """Resizes the shorter side to `resolution` and crops.

    Returns:
        Pixels of shape `(C, R, L)` in uint8, the length `L` of the longer side (`R` after a centre crop), and whether
        height and width were exchanged so that the longer side is the last.
    """
    width, height = image.size
    scale = resolution / min(width, height)
    longest = resolution if center_crop else LONGEST_SIDE * resolution
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)  # PIL filters properly when it shrinks
    width, height = image.size
    keep_width, keep_height = min(width, longest), min(height, longest)
    if (keep_width, keep_height) != (width, height):
        left, top = (width - keep_width) // 2, (height - keep_height) // 2
        image = image.crop((left, top, left + keep_width, top + keep_height))
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    transposed = keep_height > keep_width
    if transposed:
        pixels = pixels.transpose(0, 2, 1)
    return pixels, pixels.shape[2], transposed


def _cache_key(dataset: Any, columns: Columns, config: DataConfig) -> str:
    parts = {
        "format": CACHE_FORMAT,
        "data": dataset._fingerprint,
        "columns": asdict(columns),
        "resolution": config.resolution,
        "center_crop": config.center_crop,
        "mode": config.image_mode,
        "skip_corrupt": config.skip_corrupt_images,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _raw_rows(dataset: Any, column: str, size: int = 1000) -> Iterator[list[dict[str, Any] | None]]:
    """The encoded images of a map-style data set, `size` rows at a time."""
    encoded = without_decoding(dataset.select_columns([column]), column)
    for start in range(0, len(dataset), size):
        yield encoded[start : start + size][column]


def without_decoding(dataset: Any, column: str) -> Any:
    """Makes `datasets` hand out `{"bytes", "path"}` instead of images."""
    from datasets import Image as ImageFeature

    return dataset.cast_column(column, ImageFeature(decode=False))


def _build_cache(folder: Path, dataset: Any, columns: Columns, config: DataConfig) -> None:
    """Decodes all images and writes them, under a temporary name until they are all there."""
    from datasets import is_progress_bar_enabled
    from tqdm.auto import tqdm

    if len(dataset) == 0:
        raise UserError(f"the data set has no rows in split {config.dataset_split!r}: use another --dataset_split.")
    quiet = not is_progress_bar_enabled()
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        with ThreadPoolExecutor() as pool, open(temporary / "images.u8", "wb") as file:
            scan = _scan(pool, dataset, columns, config, quiet)
            shape = (IMAGE_MODES[scan.mode], scan.resolution, scan.length)
            digest = hashlib.sha256()
            skipped: list[int] = []
            layout: list[np.ndarray] = []

            def pixels(value: dict[str, Any] | None) -> tuple[np.ndarray, int, bool] | OSError:
                try:
                    return fit(to_mode(decode(value), scan.mode), scan.resolution, config.center_crop)
                except OSError as error:
                    return error

            row = 0
            with tqdm(total=len(dataset), desc="Decoding images", unit="img", disable=quiet) as bar:
                for values in _raw_rows(dataset, columns.image):
                    block = np.zeros((len(values), *shape), dtype=np.uint8)
                    places = np.empty((len(values), 2), dtype=np.int32)
                    count = 0
                    for value, result in zip(values, _in_threads(pool, pixels, values), strict=True):
                        if isinstance(result, OSError):
                            _refuse(row, value, result, config)
                            skipped.append(row)
                        else:
                            block[count, :, :, : result[1]] = result[0]
                            places[count] = result[1:]
                            count += 1
                        row += 1
                    file.write(block[:count].data)
                    digest.update(block[:count].data)
                    if scan.length > scan.resolution:
                        layout.append(places[:count])
                    bar.update(len(values))
            file.flush()
            os.fsync(file.fileno())
        kept = len(dataset) - len(skipped)
        if not kept:
            raise UserError(f"none of the {len(dataset)} images can be read: use other data.")
        names = None
        if columns.label is not None:
            labels, names = _labels(dataset, columns, skipped)
            np.save(temporary / "labels.npy", labels)
            digest.update(labels.data)
        if layout:
            np.save(temporary / "layout.npy", np.concatenate(layout))
        meta = {
            "shape": [kept, *shape],
            "skipped": len(skipped),
            "mode": scan.mode,
            "class_names": names,
            "fingerprint": digest.hexdigest()[:32],
        }
        (temporary / "meta.json").write_text(json.dumps(meta))
        if folder.exists():  # left by something that is not a finished cache: meta.json is missing
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_threads(pool: ThreadPoolExecutor, function: Callable[[Any], Any], values: list[Any]) -> Iterator[Any]:
    """As `pool.map`, with several values per task, since a task costs as much as to decode a small image."""
    tasks = [values[start : start + TASK_SIZE] for start in range(0, len(values), TASK_SIZE)]
    return chain.from_iterable(pool.map(lambda task: list(map(function, task)), tasks))


def _refuse(row: int, value: dict[str, Any] | None, error: OSError, config: DataConfig) -> None:
    if not config.skip_corrupt_images:
        path = (value or {}).get("path")
        where = f"image {row}" + (f" ({path})" if path else "")
        raise UserError(f"{where} cannot be read: {error}. Mend it, or add --skip_corrupt_images.")


@dataclass(frozen=True)
class _Scan:
    mode: str
    resolution: int
    length: int
    """Of the longest side of any image, once it is resized and cut."""


def look(value: dict[str, Any] | None) -> tuple[str, tuple[int, int]] | OSError:
    """Reads mode and upright size from the head of a file, without decoding the pixels."""
    try:
        with open_image(value) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image_mode(image), image.size[::-1] if sideways else image.size
    except OSError as error:
        return error


def _scan(pool: ThreadPoolExecutor, dataset: Any, columns: Columns, config: DataConfig, quiet: bool) -> _Scan:
    """Learns the channels and sizes of all images from their heads."""
    from tqdm.auto import tqdm

    modes: Counter[str] = Counter()
    sizes: set[tuple[int, int]] = set()
    row = 0
    with tqdm(total=len(dataset), desc="Looking at images", unit="img", disable=quiet) as bar:
        for values in _raw_rows(dataset, columns.image):
            for value, seen in zip(values, _in_threads(pool, look, values), strict=True):
                if isinstance(seen, OSError):
                    _refuse(row, value, seen, config)
                else:
                    modes[seen[0]] += 1
                    sizes.add(seen[1])
                row += 1
            bar.update(len(values))
    if not sizes:
        raise UserError(f"none of the {len(dataset)} images can be read: use other data.")
    mode = config.image_mode or richest_mode(modes)
    if len(modes) > 1 and not quiet:
        counts = ", ".join(f"{count} {name}" for name, count in modes.most_common())
        tqdm.write(f"The images differ in their channels ({counts}); all become {mode}. --image_mode chooses another.")
    distinct = np.array(list(sizes))
    shorter, longer = np.sort(distinct, axis=1).T
    resolution = config.resolution or common_resolution(distinct)
    length = resolution
    if not config.center_crop:
        length = min(max(resolution, round((longer / shorter).max() * resolution)), LONGEST_SIDE * resolution)
    return _Scan(mode, resolution, int(length))


def richest_mode(modes: Iterable[str]) -> str:
    """The mode that loses nothing of any image."""
    return max(modes, key=list(IMAGE_MODES).index)


def common_resolution(sizes: np.ndarray) -> int:
    """The size that all images share if they are square and at most 64 pixels wide, else 64."""
    side = int(sizes[0, 0])
    return side if side <= 64 and (sizes == side).all() else 64


def _labels(dataset: Any, columns: Columns, skipped: list[int]) -> tuple[np.ndarray, list[str]]:
    """The class of each image that is not skipped, -1 where it has none, and the names of the classes.

    A `ClassLabel` column brings its names; whole numbers from 0 on are taken as they are; strings are sorted and
    numbered.
    """
    values = dataset.select_columns([columns.label]).with_format(None)[:][columns.label]
    if skipped:
        gone = set(skipped)
        values = [value for row, value in enumerate(values) if row not in gone]
    present = [value for value in values if value is not None]
    if columns.class_names is not None:
        names = list(columns.class_names)
    elif present and all(isinstance(value, int) and value >= 0 for value in present):
        names = [str(value) for value in range(max(present) + 1)]
    elif present and all(isinstance(value, str) for value in present):
        names = sorted(set(present))
        numbers = {name: number for number, name in enumerate(names)}
        values = [numbers.get(value) for value in values]
    else:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise UserError(
            f"--label_column {columns.label} holds {kinds}: give a column with whole numbers from 0 on, or strings."
        )
    known = range(len(names))
    return np.array([value if value in known else -1 for value in values], dtype=np.int64), names


def pick_images(
    config: ImagesConfig, image_shape: tuple[int, int, int], count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None, DataInfo]:
    """Draws images without replacement, at a model's size and in its mode.

    Args:
        config ([`ImagesConfig`]): Which data.
        image_shape (`tuple[int, int, int]`): Channels, height and width; square.
        count (`int`): How many; all, if there are not more.
        seed (`int`): Decides which.

    Returns:
        uint8 images `(N, C, H, W)` in the order of the data, their classes `(N,)` if they have any, and what is known
        of the data.

    Raises:
        UserError: If the data cannot be read.
    """
    split = "train" if config.dataset_name in (None, "digits") else config.dataset_split
    data = open_images(config.data(image_shape, split))
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.images))[:count])
    return np.array(data.images[rows]), None if data.labels is None else data.labels[rows], data.info
