"""Batches of rows, in an order that is a pure function of the seed and the position.

Position `p` of the endless stream of a source with `N` rows is its row `order(seed, p // N)[p % N]`: resuming needs no
state, and splitting a batch over processes or accumulation steps changes nothing. The first source has the seed of the
run, every other one its own, made of that and its name.
"""

import atexit
import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from hfgen.data.cache import SourceData, Texts, open_source
from hfgen.data.columns import (
    DEFAULT,
    TRAIN,
    Classes,
    Image,
    Label,
    SourceColumn,
    Sources,
    Spec,
    Text,
    by_source,
    kept_columns,
    resolve,
)
from hfgen.data.config import DataConfig
from hfgen.data.decode import decode, fit, is_deep, read_header, to_mode
from hfgen.data.groups import ImageModel, with_groups
from hfgen.data.info import ColumnInfo, DataInfo, DerivedInfo, ImageInfo, LabelInfo, SourceInfo, TextInfo
from hfgen.data.sources import class_names, find_columns, load_with_files, reason, without_decoding
from hfgen.data.survey import survey
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.runtime.seeds import seed_from

STOP_SECONDS = 10  # to wait for a reader of a stream at the end
PEEKED = 100  # images of a stream that are looked at beforehand


@dataclass(frozen=True, eq=False)
class RawBatch(Mapping[str, Any]):
    """Columns as they are stored, by name.

    Attributes:
        columns (`dict`): Images `(B, C, R, L)` in uint8; classes `(B,)` in int64, -1 for none; texts as a tuple,
            `None` for none; derived columns `(B, V, ...)` in float32 with all their variants.
        layouts (`dict[str, torch.Tensor]`): The layout of [`~data.cache.Column`] for images that still have to be
            cropped.
        sources (`dict[str, str]`): The source of each column; those that are left out are of one.
    """

    columns: Mapping[str, Any]
    layouts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def to(self, device: torch.device) -> "RawBatch":
        """Returns the same batch on a device; texts stay what they are."""

        def moved(values: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in values.items()
            }

        return RawBatch(moved(self.columns), moved(self.layouts), self.sources)


class Stream(Protocol):
    """What training asks of its data."""

    info: DataInfo

    def to(self, device: torch.device) -> None:
        """Chooses the device that batches come on."""

    def read(self, start: int, count: int) -> RawBatch:
        """Returns the rows at positions `start` to `start + count` of the endless stream, on the device."""

    def state(self) -> Any:
        """Returns what this process needs, beside the position, to go on: JSON-ready; `None` for nothing."""

    def restore(self, state: Any) -> None:
        """Goes on from `state`."""


def open_stream(
    spec: Spec | Sources,
    config: DataConfig,
    seed: int,
    token: str | None = None,
    groups: int | None = 0,
    recorded_classes: tuple[str, ...] | None = None,
    load_features: Callable[[str], ImageModel] | None = None,
) -> Stream:
    """Opens the columns that a family asks for, cached or streamed; the part of this process, as its launcher
    numbered it.

    Args:
        spec (`Spec` or [`~data.columns.Sources`]): The columns.
        config ([`DataConfig`]): The options of the run.
        seed (`int`): Seed of the order.
        token (`str`, *optional*): For private data sets on the Hub.
        groups (`int`, *optional*, defaults to 0): Replace the classes of the first source by this many groups of
            similar images; `None` lets their number decide.
        recorded_classes (`tuple[str, ...]`, *optional*): The names of the classes of the run that goes on: of the
            first source, in the order of their numbers.
        load_features (`Callable`, *optional*): Loads the [`~data.groups.ImageModel`] that finds the groups, by name.

    Raises:
        UserError: If the data cannot be used.
    """
    sources = resolve(spec, config)
    first, (own, columns) = next(iter(sources.items()))
    if groups:
        label = _grouped_column(own, columns, groups)
    if config.streaming:
        _tell_features(config)
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        return StreamedStream(config, seed, token, rank, world_size, columns, first)
    data = {
        name: open_source(own, columns, name, token, recorded_classes=recorded_classes if name == first else None)
        for name, (own, columns) in sources.items()
    }
    if groups is None:
        label = next((name for name, column in columns.items() if isinstance(column, Label)), "")
        groups = own.groups_for(data[first].info.num_images) if label else 0
    if groups:
        data[first] = with_groups(data[first], label, groups, load_features)
    else:
        _tell_features(own)
    stream = CachedStream(data, seed)
    for name, derived in kept_columns(spec).items():
        if any(column in stream._layouts for column in derived.inputs):
            raise UserError(
                f"`center_crop` is off, so that oblong images are cropped at random, and the column {name!r} is "
                "encoded once for each: set `center_crop`, or let the family encode live."
            )
    return stream


def _tell_features(config: DataConfig) -> None:
    """Says that nothing is compared, where an option says what: records of runs may have it, so that it is no
    mistake; the value of older ones, "pixels", says nothing."""
    if config.cluster_features not in (None, "pixels"):
        note(
            f"`cluster_features` {config.cluster_features} has nothing to do, as no groups of similar images are "
            "found: that needs `num_clusters`, and neither classes nor `streaming`."
        )


def _grouped_column(config: DataConfig, columns: Mapping[str, SourceColumn], count: int) -> str:
    """Finds the column of classes that groups of similar images replace."""
    if config.streaming:
        raise UserError(f"`num_clusters` {count} needs all images, and `streaming` keeps none: use `num_clusters` 0.")
    if config.balance_classes:
        raise UserError(
            f"`balance_classes` is about labels, and `num_clusters` {count} puts groups in their place: "
            "add `class_conditional` or `num_clusters` 0."
        )
    labels = [name for name, column in columns.items() if isinstance(column, Label)]
    if not labels or not any(isinstance(column, Image) for column in columns.values()):
        raise UserError(f"`num_clusters` {count} makes classes of images, and these are not used here: use 0.")
    return labels[0]


def order(seed: int, epoch: int, size: int) -> torch.Tensor:
    """Returns the permutation of `size` images in one epoch: a pure function of its arguments."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_from(seed, "order", epoch)))


def balanced_order(seed: int, epoch: int, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Returns the [`order`] in which every class is equally often; images without a class are left out.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): Classes, negative for none.
        classes (`int`): Number of classes.

    Returns:
        `torch.Tensor` of shape `(N,)`: Rows; those of a rare class come several times.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "balanced order", epoch))
    rows = [(labels == number).nonzero().flatten() for number in range(classes)]
    rows = [own for own in rows if len(own)]
    each = -(-len(labels) // len(rows))
    drawn = []
    for own in rows:
        rounds = [torch.randperm(len(own), generator=generator) for _ in range(-(-each // len(own)))]
        drawn.append(own[torch.cat(rounds)[:each]])
    mixed = torch.cat(drawn)
    return mixed[torch.randperm(len(mixed), generator=generator)][: len(labels)]


class CachedStream:
    """Batches out of memory-mapped columns.

    On a GPU they stay there if they take at most a quarter of its free memory; otherwise a thread reads ahead.

    Args:
        data (`Mapping[str, SourceData]`): The sources by name.
        seed (`int`): Seed of the order.

    Raises:
        UserError: If the columns do not go together.
    """

    def __init__(self, data: Mapping[str, SourceData], seed: int):
        self.data, self.seed, self.device = data, seed, torch.device("cpu")
        self._columns = {name: column for source in data.values() for name, column in source.columns.items()}
        self.info = DataInfo(
            {name: source.info.sources[name] for name, source in data.items()},
            {name: column.info for name, column in self._columns.items()},
        )
        self._balanced: dict[str, tuple[torch.Tensor, int]] = {}  # labels and number of classes
        for name, source in data.items():
            _check_pairs(source)
            if source.config.balance_classes:
                labels, classes = source.labels, source.info.classes
                if labels is None or classes is None or not (labels >= 0).any():
                    raise UserError(
                        f"`balance_classes` needs labels, and {source.info.name} has none: name the column with "
                        "`label_column`."
                    )
                self._balanced[name] = torch.from_numpy(labels.copy()), len(classes.names)
        self._orders: dict[tuple[str, int], torch.Tensor] = {}
        self._arrays = {name: column.arrays for name, column in self._columns.items()}
        self._layouts = {
            name: torch.from_numpy(column.layout)
            for name, column in self._columns.items()
            if column.layout is not None
        }
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, int, Future] | None = None
        self._last: int | None = None  # where the last batch began
        self.to(self.device)

    def to(self, device: torch.device) -> None:
        """Chooses the device that batches come on."""
        self.device = device
        self._layouts = {name: layout.to(device) for name, layout in self._layouts.items()}
        large = 0
        for name, column in self._columns.items():
            if isinstance(column.info, LabelInfo):
                self._arrays[name] = (torch.from_numpy(column.arrays[0]).to(device),)
            elif not isinstance(column.info, TextInfo):
                large += sum(array.nbytes for array in column.arrays)
        if device.type != "cuda":
            return
        if large > torch.cuda.mem_get_info(device)[0] // 4:
            self._pool = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
            return
        for name, column in self._columns.items():
            if isinstance(column.info, ImageInfo | DerivedInfo):
                self._arrays[name] = tuple(torch.from_numpy(np.array(array)).to(device) for array in column.arrays)

    def read(self, start: int, count: int) -> RawBatch:
        """Returns the rows at positions `start` to `start + count` of the endless stream, on the device."""
        if self._pool is None:
            return self._read(start, count)
        if self._ahead is not None and self._ahead[:2] == (start, count):
            batch = self._ahead[2].result()
        else:
            if self._ahead is not None:
                self._ahead[2].result()  # one reader at a time
            batch = self._read(start, count)
        # Processes take turns in the stream, so the batches of one process are a stride apart.
        stride = start - self._last if self._last is not None and start > self._last else count
        self._last = start
        self._ahead = (start + stride, count, self._pool.submit(self._read, start + stride, count))
        return batch

    def rows(self, start: int, count: int, source: str | None = None) -> torch.Tensor:
        """Returns the rows of a source, by default the first, at these positions."""
        first = next(iter(self.data))
        source = source or first
        size = self.info.sources[source].num_images
        assert size is not None
        seed = self.seed if source == first else seed_from(self.seed, "source", source)
        parts = []
        while count:
            epoch, offset = divmod(start, size)
            if (source, epoch) not in self._orders:
                self._orders = {k: o for k, o in self._orders.items() if k[0] != source or k[1] == epoch - 1}
                if source in self._balanced:
                    self._orders[source, epoch] = balanced_order(seed, epoch, *self._balanced[source])
                else:
                    self._orders[source, epoch] = order(seed, epoch, size)
            taken = min(count, size - offset)
            parts.append(self._orders[source, epoch][offset : offset + taken])
            start, count = start + taken, count - taken
        return torch.cat(parts)

    def _read(self, start: int, count: int) -> RawBatch:
        return self.take({source: self.rows(start, count, source) for source in self.data})

    def take(self, rows: Mapping[str, torch.Tensor]) -> RawBatch:
        """Returns some rows of each source, on the device."""
        on_device = {source: index.to(self.device, non_blocking=True) for source, index in rows.items()}
        columns: dict[str, Any] = {}
        layouts: dict[str, torch.Tensor] = {}
        for name, column in self._columns.items():
            index, there = rows[column.info.source], on_device[column.info.source]
            if column.index is not None:
                index = torch.from_numpy(column.index[index.numpy()])
                there = index.to(self.device, non_blocking=True)
            parts = [self._pick(array, index, there) for array in self._arrays[name]]
            columns[name] = torch.stack(parts, 1) if isinstance(column.info, DerivedInfo) else parts[0]
            if name in self._layouts:
                layouts[name] = self._layouts[name][there]
        return RawBatch(columns, layouts, {name: column.info.source for name, column in self._columns.items()})

    def _pick(self, array: Any, index: torch.Tensor, there: torch.Tensor) -> Any:
        if isinstance(array, torch.Tensor):
            return array[there]
        if isinstance(array, Texts):
            return array[index.tolist()]
        picked = torch.from_numpy(array[index.numpy()])
        if self._pool is not None:
            picked = picked.pin_memory()
        return picked.to(self.device, non_blocking=True)

    def state(self) -> None:
        """Returns nothing: the position is enough."""
        return None

    def restore(self, state: None) -> None:
        """Goes on from nothing."""


def _check_pairs(data: SourceData) -> None:
    """Refuses images of one source that no common augmentation would leave aligned."""
    images = {name: column for name, column in data.columns.items() if isinstance(column.info, ImageInfo)}
    names = list(images)
    for name in names[1:]:
        _check_resolutions(names[0], data.info.columns[names[0]], name, data.info.columns[name])
        layouts = [
            column.layout if column.layout is None or column.index is None else column.layout[column.index]
            for column in (images[names[0]], images[name])
        ]
        if not _equal(*layouts):
            raise UserError(
                f"the images of {names[0]!r} and {name!r} differ in shape, so that random crops would not agree: "
                "set `center_crop`."
            )


def _check_resolutions(name: str, info: Any, other: str, others: Any) -> None:
    if info.resolution != others.resolution:
        raise UserError(
            f"the images of {name!r} have {info.resolution} pixels and those of {other!r} {others.resolution}: give "
            "one `resolution` for both."
        )


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


class StreamedStream:
    """Batches out of a streamed data set, for data that fits no disk.

    Every process runs reader threads (decoding releases the interpreter lock). The shards of the data set are permuted
    anew in each epoch and dealt to the readers; where there are fewer shards than readers, each reader reads all of
    them and keeps its part of the rows. A reader shuffles blocks of `shuffle_buffer_size` rows; its state is where its
    block begins and the position within it, so that resuming is exact and reads at most one block again.

    Attributes:
        needs_labels (`bool`): Whether an image without a class is an error.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        token: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        columns: Mapping[str, SourceColumn] = by_source(DEFAULT)[TRAIN],
        source: str = TRAIN,
    ):
        self.config, self.seed, self.device = config, seed, torch.device("cpu")
        dataset, name, self.own_files = load_with_files(config, token)
        self.name, self.token = name, token
        self.needs_labels = False
        features = dataset.features
        chosen = find_columns(features, columns, config)
        self.columns = {key: chosen[key] for key in columns if key in chosen}
        self._dataset = dataset.select_columns(list(dict.fromkeys(self.columns.values())))
        images = {key: column for key, column in self.columns.items() if isinstance(columns[key], Image)}
        for column in images.values():
            self._dataset = without_decoding(self._dataset, column)
        first = self._first() if images else []
        infos: dict[str, ColumnInfo] = self._peek(first, images, source, name) if images else {}
        for key, column in self.columns.items():
            if isinstance(columns[key], Label):
                names = class_names(features[column])
                if names is None:
                    raise UserError(
                        f"`label_column` {column} has no list of class names, which `streaming` needs beforehand: "
                        "give a column of type ClassLabel or leave `streaming` out."
                    )
                infos[key] = LabelInfo(Classes(names), source)
                if first and all(row[column] in (None, -1) for row in first):
                    note(f"{name}: none of the first {len(first)} images of the stream has a class.")
            elif isinstance(columns[key], Text):
                infos[key] = TextInfo(None, source)
        infos = {key: infos[key] for key in self.columns}
        for key, info in infos.items():
            if columns[key].column is None and isinstance(info, ImageInfo | LabelInfo):
                infos[key] = replace(info, column=self.columns[key])
        sources = {source: SourceInfo(name, config.dataset_split, None, 0, self._fingerprint(name))}
        self.info = DataInfo(sources, infos)
        self._workers = max(1, config.dataloader_num_workers)
        readers = [rank * self._workers + worker for worker in range(self._workers)]
        self._readers = [_Reader(self, reader, world_size * self._workers) for reader in readers]
        self._turn = 0  # the reader whose rows come next

    def to(self, device: torch.device) -> None:
        """Chooses the device that batches come on."""
        self.device = device

    def _first(self) -> list[dict[str, Any]]:
        """Reads the first rows, encoded."""
        first = list(told(self._dataset.take(PEEKED), self.name))
        if not first:
            raise UserError(f"the stream of {self.name} has no rows: use another `dataset_split`.")
        return first

    def _peek(
        self, first: list[dict[str, Any]], images: Mapping[str, str], source: str, called: str
    ) -> dict[str, ColumnInfo]:
        """Takes the channels, the size and the range of each column from the first images, or from the options."""
        infos: dict[str, ColumnInfo] = {}
        for name, column in images.items():
            if self.own_files:
                for row in first:
                    self.own_files.check_image(row[column])
            headers = [read_header(row[column], self.token) for row in first]
            heads = [header for header in headers if not isinstance(header, OSError)]
            if not heads:
                raise UserError(
                    f"none of the first {len(first)} images of the stream can be read; the first: {headers[0]}. Use "
                    "other data."
                )
            seen = survey(heads)
            mode = self.config.image_mode or seen.mode
            resolution, value_range = self.config.resolution or seen.resolution, seen.value_range(self.config)
            seen.tell(f"{called}, its first {len(first)} images", self.config, mode)
            if value_range is None and self.config.value_range:  # images to come may need it
                value_range = self.config.value_range[0], self.config.value_range[1]
            infos[name] = ImageInfo(mode, resolution, source, value_range)
        head = next(iter(infos))
        for name, info in infos.items():
            _check_resolutions(head, infos[head], name, info)
        return infos

    def _fingerprint(self, name: str) -> str:
        source = (name, self.config.dataset_config_name, self.config.dataset_split, self._dataset.num_shards)
        return hashlib.sha256(repr((source, self._dataset.features)).encode()).hexdigest()[:32]

    def read(self, start: int, count: int) -> RawBatch:
        """Returns the next rows, on the device; streams know no positions."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            rows.append(self._readers[self._turn].next())
            self._turn = (self._turn + 1) % self._workers
        columns: dict[str, Any] = {}
        for name, info in self.info.columns.items():
            values = [row[name] for row in rows]
            if isinstance(info, ImageInfo):
                columns[name] = torch.from_numpy(np.stack(values))
            else:
                columns[name] = torch.tensor(values) if isinstance(info, LabelInfo) else tuple(values)
                if self.needs_labels and isinstance(info, LabelInfo) and -1 in values:
                    raise UserError(
                        f"an image of the stream of {self.name} has no class, and each needs one: label it, leave it "
                        "out, or train without classes."
                    )
        return RawBatch(columns, {}, {name: info.source for name, info in self.info.columns.items()}).to(self.device)

    def state(self) -> dict[str, Any]:
        """Returns the reader whose turn it is, and the position of each of them."""
        return {"turn": self._turn, "readers": [reader.state for reader in self._readers]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        if len(state["readers"]) != self._workers:
            raise UserError(
                f"`dataloader_num_workers`: the checkpoint was written with {len(state['readers'])} readers per "
                f"process, this run has {self._workers}. A stream can only be resumed with the same number."
            )
        self._turn = state["turn"]
        for reader, saved in zip(self._readers, state["readers"], strict=True):
            # Checkpoints of version 0.1 say "place".
            reader.state = {"shard_state" if key == "place" else key: value for key, value in saved.items()}


def told(rows: Iterable[Any], name: str) -> Iterator[Any]:
    """Yields rows of a stream; what goes wrong on the way there becomes a [`UserError`]."""
    try:
        for row in rows:  # noqa: UP028 (whoever stops here may go on with `rows`, which `yield from` would close)
            yield row
    except Exception as error:  # of `datasets` and a dozen other libraries
        raise UserError(
            f"the stream of {name} cannot be read: {reason(error)}. If it is no mistake in the data, give the same "
            "command again, with `resume_from_checkpoint` latest."
        ) from None


START: dict[str, Any] = {"epoch": 0, "shard": 0, "shard_state": None, "row": 0, "block": 0, "offset": 0}


class _Reader:
    """One thread that reads, shuffles and decodes its part of a stream."""

    def __init__(self, stream: StreamedStream, index: int, total: int):
        self.stream, self.index, self.total = stream, index, total
        self.state = START
        self._queue: queue.Queue = queue.Queue(maxsize=256)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._open: tuple[Any, Any, Iterator] | None = None  # a state, the shard, and its rows from there on

    def next(self) -> dict[str, Any]:
        if self._thread is None:  # started late, so that a restored state is where it starts
            self._thread = threading.Thread(target=self._fill, daemon=True)
            self._thread.start()
            atexit.register(self._stop)
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        row, self.state = item
        return row

    def _fill(self) -> None:
        try:
            for item in self._items(self.state):
                self._queue.put(item)
                if self._stopped:
                    return
        except Exception as error:
            self._queue.put(error)

    def _stop(self) -> None:
        """Stops the thread: one that is still inside a library when Python ends makes the program hang, or abort."""
        self._stopped = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()  # it may wait for room
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _items(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields rows, and the state in which the next one comes."""
        seed = self.stream.seed
        while True:
            block, following = self._block(state)
            block_seed = seed_from(seed, "stream", self.index, state["epoch"], state["block"])
            draws = np.random.default_rng([block_seed % 2**32])  # as in version 0.1
            permutation, crops = draws.permutation(len(block)), draws.random(len(block))
            for offset in range(state["offset"], len(block)):
                after = following if offset + 1 == len(block) else state | {"offset": offset + 1}
                number, values = block[permutation[offset]]
                row = self._decode(number, values, crops[offset])
                if row is not None:
                    yield row, after
            state = following

    def _decode(self, number: int, row: dict[str, Any], crop: float) -> dict[str, Any] | None:
        """Decodes the values of a row, its images cropped alike; `None` if one of them is corrupt and may be
        skipped."""
        config, decoded, shapes = self.stream.config, {}, set()
        for name, column in self.stream.columns.items():
            info, value = self.stream.info.columns[name], row[column]
            if isinstance(info, LabelInfo):
                decoded[name] = -1 if value is None else value
            elif not isinstance(info, ImageInfo):
                decoded[name] = value
            else:
                try:
                    if self.stream.own_files:
                        self.stream.own_files.check_image(value)
                    image = decode(value, self.stream.token)
                    if is_deep(image) and info.value_range is None:
                        raise UserError(
                            f"image {number} of the stream has more than 8 bits, and none of the first {PEEKED} has: "
                            "give their `value_range`."
                        )
                    image = to_mode(image, info.mode, info.value_range, config.background)
                    kept = config.background == "none"
                    pixels, length, transposed = fit(image, info.resolution, config.center_crop, kept)
                except OSError as error:
                    if config.skip_corrupt_images:
                        return None
                    raise UserError(
                        f"image {number} of the stream ({(value or {}).get('path')}) cannot be read: {error}. "
                        "Fix it, or add `skip_corrupt_images`."
                    ) from None
                left = int(crop * (length - info.resolution + 1))
                pixels = pixels[:, :, left : left + info.resolution]
                decoded[name] = np.ascontiguousarray(pixels.transpose(0, 2, 1) if transposed else pixels)
                shapes.add((length, transposed))
        if len(shapes) > 1:
            raise UserError(
                f"the images in row {number} of the stream differ in shape, so that random crops would not agree: set "
                "`center_crop`."
            )
        return decoded

    def _block(self, state: dict[str, Any]) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any]]:
        """Reads the block of encoded rows that begins at `state`, and the state after it."""
        dataset, size = self.stream._dataset, self.stream.config.shuffle_buffer_size
        shards = dataset.num_shards
        shared = shards < self.total  # then every reader reads all shards and keeps its part of the rows
        permutation = order(self.stream.seed, state["epoch"], shards).tolist()
        mine = permutation if shared else permutation[self.index :: self.total]
        shard, shard_state, row = state["shard"], state["shard_state"], state["row"]
        block: list[tuple[int, dict[str, Any]]] = []
        while shard < len(mine) and len(block) < size:
            part, rows = self._rows(mine[shard], shard_state)
            for example in told(rows, self.stream.name):
                if not shared or row % self.total == self.index:
                    block.append((row, example))
                row += 1
                if len(block) == size:
                    shard_state = part.state_dict()
                    self._open = shard_state, part, rows
                    break
            else:
                shard, shard_state = shard + 1, None
        if not block and state["block"] == 0:
            raise UserError(f"a part of the stream holds no images: use fewer readers than {self.total}.")
        if shard == len(mine):
            return block, START | {"epoch": state["epoch"] + 1}
        following = {"epoch": state["epoch"], "shard": shard, "shard_state": shard_state, "row": row}
        return block, following | {"block": state["block"] + 1, "offset": 0}

    def _rows(self, shard: int, state: Any) -> tuple[Any, Iterator]:
        """Yields a shard and its rows from `state` on, which is where the last block ended, or where a run is resumed.

        Only the latter is slow: `datasets` comes to a state by reading all rows before it.
        """
        if self._open is not None and self._open[0] is state:
            return self._open[1:]
        dataset = self.stream._dataset
        part = dataset.shard(num_shards=dataset.num_shards, index=shard)  # a new object: its state is ours alone
        if state is not None:
            part.load_state_dict(state)
        return part, iter(part)
