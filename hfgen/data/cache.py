"""From any `datasets` source to memory-mapped columns: uint8 images, classes, texts.

Images are decoded, resized and cropped once; training then reads rows of an array and runs no Python per image. Each
column has a folder of its own, under a key made of what was resolved: the rows of the source, the column, the mode and
the size. How an option was spelt, or left out, is no part of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hfgen.data.columns import DEFAULT, TRAIN, Classes, Image, Label, SourceColumn, Text, by_source
from hfgen.data.config import IMAGE_MODES, DataConfig
from hfgen.data.decode import LONGEST_SIDE, Header, decode, fit, is_deep, read_header, to_mode
from hfgen.data.info import ColumnInfo, DataInfo, ImageInfo, LabelInfo, SourceInfo, TextInfo
from hfgen.data.sources import class_names, find_columns, load_source, raw_images, read_groups
from hfgen.data.splits import draw_held_out
from hfgen.data.store import META, build_once, cache_key, cache_root
from hfgen.data.survey import REST, Survey, survey
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import listed, note

SCAN_FORMAT = 2  # of what is known of all images before they are decoded
MANY_CLASSES = 100  # so many values are classes, even if each image has its own
TASK_SIZE = 16  # images that a thread decodes in one go


class Texts:
    """Texts in one piece of UTF-8, to be read by row; `None` where a row has none."""

    def __init__(self, folder: Path):
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.missing = np.load(folder / "missing.npy", mmap_mode="r")
        size = int(self._offsets[-1])
        self._text = np.memmap(folder / "text.utf8", dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, rows: Iterable[int]) -> tuple[str | None, ...]:
        return tuple(
            None if self.missing[row] else bytes(self._text[self._offsets[row] : self._offsets[row + 1]]).decode()
            for row in rows
        )


@dataclass(frozen=True)
class Column:
    """A column as it is stored.

    Attributes:
        info (`ColumnInfo`): What it is.
        digest (`str`): Digest of its values.
        arrays: Images `(N, C, R, L)` in uint8, memory-mapped; classes `(N,)` in int64, -1 for none; [`Texts`]; or for
            each variant what was derived, `(N, ...)` in float32, memory-mapped. `L` equals the resolution `R` unless
            oblong images wait for their random crop: then the longer side runs along `L`.
        layout (`np.ndarray` of shape `(N, 2)`, int32, or `None`): For random crops, the length of the longer side and
            whether the image was transposed so that this side runs along `L`.
        index (`np.ndarray`, or `None`): Which of the stored rows are used, where another column lacks some.
        folder (`Path`, or `None`): Where it is kept.
    """

    info: ColumnInfo
    digest: str
    arrays: tuple[Any, ...]
    layout: np.ndarray | None = None
    index: np.ndarray | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class SourceData:
    """The columns of one data set; their rows belong together.

    Attributes:
        config ([`DataConfig`]): The options that it was opened with.
        info ([`DataInfo`]): What is known of it.
        columns (`Mapping[str, Column]`): The columns by name.
        rows (`np.ndarray` of shape `(N,)`): Which rows of the split they are: without those that are skipped or held
            out.
    """

    config: DataConfig
    info: DataInfo
    columns: Mapping[str, Column]
    rows: np.ndarray

    def __len__(self) -> int:
        """Returns the number of rows."""
        count = next(iter(self.info.sources.values())).num_images
        assert count is not None  # it is no stream
        return count

    def _first(self, kind: type) -> Column | None:
        return next((column for column in self.columns.values() if isinstance(column.info, kind)), None)

    @property
    def images(self) -> np.ndarray:
        """Returns the first column of images: `(N, C, R, L)`, uint8."""
        column = self._first(ImageInfo)
        assert column is not None
        return column.arrays[0] if column.index is None else column.arrays[0][column.index]

    def strips(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns some images of the first column as they are stored, `(B, C, R, L)`, uint8: see [`Column`]."""
        column = self._first(ImageInfo)
        assert column is not None
        return np.asarray(column.arrays[0][rows if column.index is None else column.index[rows]])

    def squares(self, rows: np.ndarray, offsets: np.ndarray | float = 0.5) -> np.ndarray:
        """Returns some images of the first column: `(B, C, R, R)`, uint8.

        Args:
            rows (`np.ndarray` of shape `(B,)`): Which.
            offsets (`np.ndarray` of shape `(B,)` or `float`): Where oblong images are cropped, in [0, 1); by default
                in the centre.
        """
        column = self._first(ImageInfo)
        assert column is not None
        stored = rows if column.index is None else column.index[rows]
        strips = np.asarray(column.arrays[0][stored])
        return strips if column.layout is None else cut_squares(strips, column.layout[stored], offsets)

    @property
    def labels(self) -> np.ndarray | None:
        """Returns the first column of classes: `(N,)`, int64."""
        column = self._first(LabelInfo)
        if column is None:
            return None
        return column.arrays[0] if column.index is None else column.arrays[0][column.index]

    @property
    def groups(self) -> np.ndarray | None:
        """Returns the groups of `group_column`: `(N,)`, strings; `None` if none is given. See [`read_groups`]."""
        column = self.config.group_column
        return (
            None if column is None else read_groups(*load_source(self.config)[:1], column, self.info.name)[self.rows]
        )

    @property
    def layout(self) -> np.ndarray | None:
        """Returns the layout of the first column of images: see [`Column`]."""
        column = self._first(ImageInfo)
        assert column is not None
        return column.layout if column.layout is None or column.index is None else column.layout[column.index]


def cut_squares(strips: np.ndarray, layout: np.ndarray, offsets: np.ndarray | float = 0.5) -> np.ndarray:
    """Cuts a square out of each oblong image, as [`~data.augment.crop_strips`] does on the device.

    Args:
        strips (`np.ndarray` of shape `(B, C, R, L)`), layout (`np.ndarray` of shape `(B, 2)`): See [`Column`].
        offsets (`np.ndarray` of shape `(B,)` or `float`): Where to cut, in [0, 1); by default in the centre.
    """
    size, (length, transposed) = strips.shape[2], layout.T
    start = np.asarray(offsets * (length - size + 1)).astype(np.int64)
    cut = np.take_along_axis(strips, start[:, None, None, None] + np.arange(size), axis=3)
    return np.where(transposed.astype(bool)[:, None, None, None], cut.swapaxes(2, 3), cut)


def open_images(config: DataConfig, token: str | None = None, held_out: bool = False) -> SourceData:
    """Opens the images, and classes if there are any, of the data set that the options name: see [`open_source`]."""
    return open_source(config, by_source(DEFAULT)[TRAIN], TRAIN, token, held_out)


def open_source(
    config: DataConfig,
    columns: Mapping[str, SourceColumn],
    source: str = TRAIN,
    token: str | None = None,
    held_out: bool = False,
    recorded_classes: tuple[str, ...] | None = None,
) -> SourceData:
    """Opens columns of a data set, from the cache or by making it.

    Several processes may call this at once: one builds, the others wait, and what was not finished is never used
    because it gets its name last.

    Args:
        config ([`DataConfig`]): The options.
        columns (`Mapping[str, Image | Label | Text]`): What is asked for.
        source (`str`, *optional*): What the family calls the data set.
        token (`str`, *optional*): For private data sets on the Hub.
        held_out (`bool`, *optional*, defaults to `False`): Whether to open the share that `validation_split` leaves
            out of training, instead of the rest.
        recorded_classes (`tuple[str, ...]`, *optional*): The names of the classes that a run numbered before.

    Raises:
        UserError: If the data set, its columns or one of its images cannot be used.
    """
    dataset, name = load_source(config, token)
    chosen = find_columns(dataset.features, columns, config)
    if len(dataset) == 0:
        raise UserError(f"the data set has no rows in split {config.dataset_split!r}: use another `dataset_split`.")
    root = cache_root(config)
    stored: dict[str, Column] = {}
    skipped: dict[str, np.ndarray] = {}  # by column
    for key, column in chosen.items():
        if isinstance(columns[key], Image):
            stored[key], skipped[key] = _images(root, dataset, column, config, source, name)
    gone = np.unique(np.concatenate([np.empty(0, np.int64), *skipped.values()]))
    rows = np.delete(np.arange(len(dataset)), gone)
    if not len(rows):
        raise UserError(f"none of the {len(dataset)} rows has all its images: use other data.")
    for key, own in skipped.items():
        if len(own) < len(gone):  # rows that only other columns lack
            present = np.delete(np.arange(len(dataset)), own)
            stored[key] = replace(stored[key], index=np.searchsorted(present, rows))
    for key, column in chosen.items():
        if isinstance(columns[key], Label):
            stored[key] = _labels(root, dataset, column, rows, source, name, recorded_classes)
        elif isinstance(columns[key], Text):
            stored[key] = _texts(root, dataset, column, rows, source)
    for key, asked in columns.items():
        found = stored[key].info if key in stored else None
        if asked.column is None and isinstance(found, ImageInfo | LabelInfo):
            stored[key] = replace(stored[key], info=replace(found, column=chosen[key]))
    stored = {key: stored[key] for key in columns if key in stored}
    if config.validation_share is not None:
        groups = None if config.group_column is None else read_groups(dataset, config.group_column, name)
        left_out = _held_out(len(dataset), config.validation_share, groups)
        part = np.flatnonzero(np.isin(rows, left_out, invert=not held_out))
        if not len(left_out):
            raise UserError(
                f"`validation_split` {config.validation_split} cannot divide {len(dataset)} images of one group: "
                f"`group_column` {config.group_column} has {groups[0]} for all of them. Give another column."  # type: ignore[index]
            )
        if not len(part):
            raise UserError(f"`validation_split` {config.validation_split} leaves nothing of {len(rows)} rows.")
        stored, rows = {key: _some_rows(column, part) for key, column in stored.items()}, rows[part]
    split = f"{config.validation_split} of {config.dataset_split}" if held_out else config.dataset_split
    info = SourceInfo(name, split, len(rows), len(gone), _fingerprint(stored))
    infos = {key: column.info for key, column in stored.items()}
    return SourceData(config, DataInfo({source: info}, infos), stored, rows)


def _held_out(count: int, share: float, groups: np.ndarray | None) -> np.ndarray:
    """Draws the rows that training leaves out, in whole groups if there are any: the same ones for each seed of a
    training, and whatever the images and the classes of some rows are like."""
    if groups is not None:
        return np.flatnonzero(draw_held_out(np.zeros(count, np.int64), share, 0, groups))
    return np.random.default_rng(0).permutation(count)[: max(1, round(share * count))]


def _some_rows(column: Column, part: np.ndarray) -> Column:
    """Returns a column that uses only some of its rows; its classes are still those of all rows."""
    info, index = column.info, part if column.index is None else column.index[part]
    if isinstance(info, LabelInfo):
        info = replace(info, classes=_classes(info.classes.names, column.arrays[0][index]))
    elif isinstance(info, TextInfo):
        info = replace(info, missing=int(column.arrays[0].missing[index].sum()))
    return replace(column, info=info, index=index)


def _classes(names: tuple[str, ...], labels: np.ndarray) -> Classes:
    """Counts the classes, -1 for none."""
    present = labels[labels >= 0]
    shares = tuple((np.bincount(present, minlength=len(names)) / max(1, len(present))).tolist())
    return Classes(names, shares=shares if len(present) else None, unlabelled=int((labels < 0).sum()))


def _fingerprint(columns: Mapping[str, Column]) -> str:
    """Computes the digest of the first images with the first classes behind them, and then of all other columns."""
    images = next((column for column in columns.values() if isinstance(column.info, ImageInfo)), None)
    labels = next((column for column in columns.values() if isinstance(column.info, LabelInfo)), None)
    first, parts = images.digest if images else "", []
    if images is not None and labels is not None:
        values = labels.arrays[0]

        def build(folder: Path) -> None:  # reads all images once
            digest = hashlib.sha256()
            with open(images.folder / "images.u8", "rb") as file:  # type: ignore[operator]
                while block := file.read(2**24):
                    digest.update(block)
            digest.update(values.data)
            (folder / META).write_text(json.dumps(digest.hexdigest()[:32]))

        assert images.folder is not None
        first = json.loads((build_once(images.folder / f"with-labels-{labels.digest}", build) / META).read_text())
    for name, column in columns.items():
        if column is not images and column is not labels or column.index is not None:
            index = "" if column.index is None else hashlib.sha256(column.index.tobytes()).hexdigest()
            parts.append((name, column.digest, index))
    return hashlib.sha256(repr((first, parts)).encode()).hexdigest()[:32] if parts else first


# Images


def _images(
    root: Path, dataset: Any, column: str, config: DataConfig, source: str, name: str
) -> tuple[Column, np.ndarray]:
    """Decodes a column of images; also returns the rows whose image is corrupt."""
    from datasets import is_progress_bar_enabled

    quiet = not is_progress_bar_enabled()
    folder = root / f"scan-{cache_key(rows=dataset._fingerprint, column=column, scan=SCAN_FORMAT)}"
    scan = json.loads((build_once(folder, lambda new: _scan(new, dataset, column, config, quiet)) / META).read_text())
    corrupt = scan.pop("corrupt")
    _refuse(corrupt, config)
    seen = Survey(**scan)
    mode, resolution = config.image_mode or seen.mode, config.resolution or seen.resolution
    longest = 1 if config.center_crop else LONGEST_SIDE
    length = min(max(resolution, round(seen.ratio * resolution)), longest * resolution)
    shape = (IMAGE_MODES[mode], resolution, length)
    more: dict[str, Any] = {}  # what matters for some images only, so that all others keep their keys
    value_range = seen.value_range(config)
    if value_range:
        more["value_range"] = value_range
        if corrupt:
            more["finite"] = True  # an earlier version kept pixels that are no numbers as black ones
    if mode != "RGBA" and "RGBA" in seen.modes and config.background != "none":
        more["background"] = config.background
    if mode == "RGBA" and config.background != "none":
        more["hidden"] = "filled"
    key = cache_key(rows=dataset._fingerprint, column=column, mode=mode, shape=shape, **more)

    def build(folder: Path) -> None:
        _decode(folder, dataset, column, config, mode, shape, value_range, quiet)

    folder = build_once(root / f"images-{key}", build, config.verify_cache)
    meta = json.loads((folder / META).read_text())
    _refuse(meta["corrupt"], config)
    seen.tell(name, config, mode, meta.get("levels"))
    pixels = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=tuple(meta["shape"]))
    layout = np.load(folder / "layout.npy") if length > resolution else None
    info = ImageInfo(mode, resolution, source, value_range)
    stored = Column(info, meta["digest"], (pixels,), layout, folder=folder)
    return stored, np.array([row for row, *_ in meta["corrupt"]], dtype=np.int64)


def _decode(
    folder: Path,
    dataset: Any,
    column: str,
    config: DataConfig,
    mode: str,
    shape: tuple[int, int, int],
    value_range: tuple[float, ...] | None,
    quiet: bool,
) -> None:
    """Decodes all images into a folder."""
    from tqdm.auto import tqdm

    resolution, length = shape[1:]

    def pixels(value: dict[str, Any] | None) -> tuple[np.ndarray, int, bool, np.ndarray | int] | OSError:
        try:
            image = decode(value)
            # Rounding may make an image of the greatest ratio one pixel longer than that ratio says.
            array, long, transposed = fit(
                to_mode(image, mode, value_range, config.background),
                resolution,
                length == resolution,
                config.background == "none",
            )
            array = array[:, :, :length]
            levels = np.bincount(array.ravel(), minlength=256) if is_deep(image) else 0
            return array, min(long, length), transposed, levels
        except OSError as error:
            return error

    digest, corrupt, layout = hashlib.sha256(), [], []
    levels: Any = 0  # how often each level is, in images of more than 8 bits
    row = 0
    with (
        ThreadPoolExecutor() as pool,
        open(folder / "images.u8", "wb") as file,
        tqdm(total=len(dataset), desc="Decoding images", unit="img", disable=quiet) as bar,
    ):
        for values in raw_images(dataset, column):
            block = np.zeros((len(values), *shape), dtype=np.uint8)
            layouts = np.empty((len(values), 2), dtype=np.int32)
            count = 0
            for value, result in zip(values, _in_threads(pool, pixels, values), strict=True):
                if isinstance(result, OSError):
                    corrupt.append(_report(row, value, result))
                    _refuse(corrupt, config)
                else:
                    block[count, :, :, : result[1]] = result[0]
                    layouts[count] = result[1:3]
                    levels = levels + result[3]
                    count += 1
                row += 1
            file.write(block[:count].data)
            digest.update(block[:count].data)
            layout.append(layouts[:count])
            bar.update(len(values))
    kept = len(dataset) - len(corrupt)
    if not kept:
        raise UserError(f"none of the {len(dataset)} images can be read: use other data.")
    if length > resolution:
        np.save(folder / "layout.npy", np.concatenate(layout))
    meta = {
        "column": column,
        "mode": mode,
        "shape": [kept, *shape],
        "corrupt": corrupt,
        "digest": digest.hexdigest()[:32],
    }
    if value_range:
        shares = np.cumsum(levels) / max(1, np.sum(levels))
        meta["levels"] = np.searchsorted(shares, (REST / 2, 1 - REST / 2)).tolist()
    (folder / META).write_text(json.dumps(meta))


def _scan(folder: Path, dataset: Any, column: str, config: DataConfig, quiet: bool) -> None:
    """Reads the channels and sizes of all images from the headers of their files, and the extrema of deep pixels."""
    from tqdm.auto import tqdm

    corrupt: list[tuple[int, str | None, str]] = []

    def headers() -> Iterator[Header]:
        row = 0
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=len(dataset), desc="Looking at images", unit="img", disable=quiet) as bar,
        ):
            for values in raw_images(dataset, column):
                for value, header in zip(values, _in_threads(pool, read_header, values), strict=True):
                    if isinstance(header, OSError):
                        corrupt[:] = corrupt or [_report(row, value, header)]
                        _refuse(corrupt, config)
                    else:
                        yield header
                    row += 1
                bar.update(len(values))

    readable = headers()
    first = next(readable, None)
    if first is None:
        raise UserError(f"none of the {len(dataset)} images can be read: use other data.")
    (folder / META).write_text(json.dumps({**asdict(survey(chain([first], readable))), "corrupt": corrupt}))


def _in_threads(pool: ThreadPoolExecutor, function: Callable[[Any], Any], values: list[Any]) -> Iterator[Any]:
    """Does the same as `pool.map`, with several values per task, since a task costs as much as to decode a small
    image."""
    tasks = [values[start : start + TASK_SIZE] for start in range(0, len(values), TASK_SIZE)]
    return chain.from_iterable(pool.map(lambda task: list(map(function, task)), tasks))


def _report(row: int, value: dict[str, Any] | None, error: OSError) -> tuple[int, str | None, str]:
    return row, (value or {}).get("path"), str(error)


def _refuse(corrupt: list[Any], config: DataConfig) -> None:
    if corrupt and not config.skip_corrupt_images:
        row, path, error = corrupt[0]
        where = f"image {row}" + (f" ({path})" if path else "")
        raise UserError(f"{where} cannot be read: {error}. Fix it, or add `skip_corrupt_images`.")


# Classes and texts


def _labels(
    root: Path,
    dataset: Any,
    column: str,
    rows: np.ndarray,
    source: str,
    name: str,
    recorded: tuple[str, ...] | None = None,
) -> Column:
    """Reads a column of classes: -1 for rows that have none.

    A `ClassLabel` column brings its names. Of strings and whole numbers, the distinct values are the classes, in
    ascending order; -1, as `ClassLabel` has it, means no class. Names that a run has recorded go before: an earlier
    version made a class of each number from 0 to the greatest.
    """
    known = class_names(dataset.features[column])

    def build(folder: Path) -> None:
        values = dataset.select_columns([column]).with_format(None)[:][column]
        if len(rows) < len(values):
            values = [values[row] for row in rows]
        labels, names = _number(values, column, known, recorded)
        np.save(folder / "labels.npy", labels)
        digest = hashlib.sha256(labels.data).hexdigest()[:32]
        (folder / META).write_text(json.dumps({"column": column, "class_names": names, "digest": digest}))

    more = {} if known else {"values": recorded or True}
    folder = build_once(root / f"labels-{_key_of_rows(dataset, column, rows, names=known, **more)}", build)
    meta, labels = json.loads((folder / META).read_text()), np.load(folder / "labels.npy")
    classes = _classes(tuple(meta["class_names"]), labels)
    _tell_classes(name, classes, labels)
    return Column(LabelInfo(classes, source), meta["digest"], (labels,), folder=folder)


def _tell_classes(name: str, classes: Classes, labels: np.ndarray) -> None:
    """Says which classes have no images, and how many images have no class."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes.names))
    empty = [own for own, count in zip(classes.names, counts, strict=True) if not count]
    if empty:
        note(f"{name}: classes without an image: {len(empty)} of {len(classes.names)} ({listed(empty)}).")
    if classes.unlabelled:
        note(f"{name}: images without a class: {classes.unlabelled} of {len(labels)}.")


def _key_of_rows(dataset: Any, column: str, rows: np.ndarray, **more: Any) -> str:
    used = None if len(rows) == len(dataset) else hashlib.sha256(rows.tobytes()).hexdigest()
    return cache_key(rows=dataset._fingerprint, column=column, used=used, **more)


def _number(
    values: list[Any], column: str, known: tuple[str, ...] | None, recorded: tuple[str, ...] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Numbers the class of each value; also returns the names of the classes."""
    if known is not None:
        numbers = range(len(known))
        return np.array([value if value in numbers else -1 for value in values], dtype=np.int64), list(known)
    kinds = sorted({type(value).__name__ for value in values if value is not None and value != -1})
    if len(kinds) != 1 or kinds[0] not in ("str", "int", "bool"):
        held = ", ".join(kinds) or "no classes"
        raise UserError(f"`label_column` {column} holds {held}: give a column with strings or whole numbers.")
    present = {value for value in values if value is not None and value != -1}
    if kinds[0] == "int" and min(present) < 0:
        raise UserError(
            f"`label_column` {column} holds {min(present)}: classes are whole numbers from 0 on, -1 for none."
        )
    if len(present) > max(MANY_CLASSES, len(values) // 2):
        raise UserError(
            f"`label_column` {column} has {len(present)} different values in {len(values)} rows, too many to be "
            "classes: give another column, or data with fewer of them."
        )
    spelt = {value: str(int(value) if kinds[0] == "bool" else value) for value in sorted(present)}
    names = list(spelt.values())
    if recorded and set(names) <= set(recorded):
        names = list(recorded)
    numbered = {own: number for number, own in enumerate(names)}
    return np.array([numbered[spelt[value]] if value in present else -1 for value in values], dtype=np.int64), names


def _texts(root: Path, dataset: Any, column: str, rows: np.ndarray, source: str) -> Column:
    """Reads a column of texts."""

    def build(folder: Path) -> None:
        selected = dataset.select_columns([column]).with_format(None)
        digest = hashlib.sha256()
        lengths: list[int] = []
        missing = np.zeros(len(rows), dtype=bool)
        with open(folder / "text.utf8", "wb") as file:
            for start in range(0, len(rows), 1000):
                values = selected[rows[start : start + 1000]][column]
                encoded = [(value or "").encode() for value in values]
                missing[start : start + len(values)] = [value is None for value in values]
                lengths += map(len, encoded)
                file.write(b"".join(encoded))
                digest.update(b"".join(encoded))
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        np.save(folder / "offsets.npy", offsets)
        np.save(folder / "missing.npy", missing)
        digest.update(offsets.data)
        digest.update(missing.data)
        meta = {"column": column, "missing": int(missing.sum()), "digest": digest.hexdigest()[:32]}
        (folder / META).write_text(json.dumps(meta))

    folder = build_once(root / f"text-{_key_of_rows(dataset, column, rows)}", build)
    meta = json.loads((folder / META).read_text())
    return Column(TextInfo(meta["missing"], source), meta["digest"], (Texts(folder),), folder=folder)
