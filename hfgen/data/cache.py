"""From any `datasets` source to one memory-mapped array of uint8 images.

Images are decoded, resized and cropped once; training then reads rows of an array and runs no Python per image.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hfgen.data.config import IMAGE_MODES, DataConfig
from hfgen.data.decode import LONGEST_SIDE, common_resolution, decode, fit, look, richest_mode, to_mode
from hfgen.data.sources import Columns, _raw_rows, find_columns, load_source
from hfgen.runtime.errors import UserError

CACHE_FORMAT = 1  # part of the cache key: raise it when the same data would be decoded to other pixels
TASK_SIZE = 16  # images that a thread decodes in one go


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
                "Free some space or give another `cache_dir`."
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


def _build_cache(folder: Path, dataset: Any, columns: Columns, config: DataConfig) -> None:
    """Decodes all images and writes them, under a temporary name until they are all there."""
    from datasets import is_progress_bar_enabled
    from tqdm.auto import tqdm

    if len(dataset) == 0:
        raise UserError(f"the data set has no rows in split {config.dataset_split!r}: use another `dataset_split`.")
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
        raise UserError(f"{where} cannot be read: {error}. Fix it, or add `skip_corrupt_images`.")


@dataclass(frozen=True)
class _Scan:
    mode: str
    resolution: int
    length: int
    """Of the longest side of any image, once it is resized and cut."""


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
        tqdm.write(f"The images differ in their channels ({counts}); all become {mode}. `image_mode` chooses another.")
    distinct = np.array(list(sizes))
    shorter, longer = np.sort(distinct, axis=1).T
    resolution = config.resolution or common_resolution(distinct)
    length = resolution
    if not config.center_crop:
        length = min(max(resolution, round((longer / shorter).max() * resolution)), LONGEST_SIDE * resolution)
    return _Scan(mode, resolution, int(length))


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
            f"`label_column` {columns.label} holds {kinds}: give a column with whole numbers from 0 on, or strings."
        )
    known = range(len(names))
    return np.array([value if value in known else -1 for value in values], dtype=np.int64), names
