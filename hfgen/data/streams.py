"""Batches of uint8 images, in an order that is a pure function of the seed and the position.

Position `p` of the endless stream of training images is image `order(seed, p // N)[p % N]`: resuming needs no state,
and splitting a batch over processes or accumulation steps changes nothing.
"""

import atexit
import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hfgen.data.cache import DataInfo, ImageData, open_images
from hfgen.data.config import DataConfig
from hfgen.data.decode import common_resolution, decode, fit, look, richest_mode, to_mode
from hfgen.data.groups import with_clusters
from hfgen.data.sources import Columns, find_columns, load_source, without_decoding
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import seed_from

STOP_SECONDS = 10  # to wait for a reader of a stream at the end


@dataclass
class RawBatch:
    """Images as they are stored: `(B, C, R, L)` uint8, labels `(B,)` int64 or `None`, and the layout of
    [`~data.images.ImageData`] where oblong images still have to be cropped."""

    images: torch.Tensor
    labels: torch.Tensor | None
    layout: torch.Tensor | None = None

    def to(self, device: torch.device) -> "RawBatch":
        tensors = (self.images, self.labels, self.layout)
        return RawBatch(*(None if t is None else t.to(device, non_blocking=True) for t in tensors))  # type: ignore[arg-type]


class Batches(Protocol):
    """What the training loop asks of its data."""

    info: DataInfo

    def place(self, device: torch.device) -> None:
        """Chooses the device that batches come on."""

    def read(self, start: int, count: int) -> RawBatch:
        """The images at positions `start` to `start + count` of the endless stream, on the device."""

    def state(self) -> Any:
        """What this process needs, beside the position, to go on: JSON-ready; `None` for nothing."""

    def restore(self, state: Any) -> None:
        """Goes on from `state`."""


def open_batches(config: DataConfig, seed: int, token: str | None = None, num_clusters: int = 0) -> Batches:
    """Opens the data that the options name, cached or streamed; the part of this process, as its launcher numbered it.

    Args:
        config ([`DataConfig`]): The options.
        seed (`int`): Seed of the order.
        token (`str`, *optional*): For private data sets on the Hub.
        num_clusters (`int`, *optional*, defaults to 0): Replace the classes by this many groups of similar images.

    Raises:
        UserError: If the data cannot be used.
    """
    if not config.streaming:
        if num_clusters and config.balance_classes:
            raise UserError(
                f"`balance_classes` is about labels, and `num_clusters` {num_clusters} puts groups in their place: "
                "add `class_conditional` or `num_clusters` 0."
            )
        data = open_images(config, token)
        return CachedBatches(with_clusters(data, num_clusters) if num_clusters else data, seed, config.balance_classes)
    if num_clusters:
        raise UserError(
            f"`num_clusters` {num_clusters} needs all images, and `streaming` keeps none: use `num_clusters` 0."
        )
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return StreamedBatches(config, seed, token, rank, world_size)


def order(seed: int, epoch: int, size: int) -> torch.Tensor:
    """The permutation of `size` images in one epoch: a pure function of its arguments."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_from(seed, "order", epoch)))


def balanced_order(seed: int, epoch: int, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """As [`order`], with every class equally often; images without a class are left out.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): Classes, negative for none.
        classes (`int`): Number of classes.

    Returns:
        `torch.Tensor` of shape `(N,)`: Rows; those of a rare class come several times.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "balanced order", epoch))
    rows = [(labels == number).nonzero().flatten() for number in range(classes)]
    rows = [found for found in rows if len(found)]
    each = -(-len(labels) // len(rows))
    drawn = []
    for found in rows:
        rounds = [torch.randperm(len(found), generator=generator) for _ in range(-(-each // len(found)))]
        drawn.append(found[torch.cat(rounds)[:each]])
    mixed = torch.cat(drawn)
    return mixed[torch.randperm(len(mixed), generator=generator)][: len(labels)]


class CachedBatches:
    """Batches out of a memory-mapped cache.

    On a GPU the images stay there if they take at most a quarter of its free memory; otherwise a thread reads ahead.
    """

    def __init__(self, data: ImageData, seed: int, balanced: bool = False):
        self.info, self.seed = data.info, seed
        if balanced and (data.labels is None or not (data.labels >= 0).any()):
            raise UserError(
                f"`balance_classes` needs labels, and {data.info.name} has none: name the column with `label_column`."
            )
        self._balanced = torch.from_numpy(data.labels.copy()) if balanced and data.labels is not None else None
        self._orders: dict[int, torch.Tensor] = {}
        self._images: np.ndarray | torch.Tensor = data.images
        self._labels, self._layout = (None if t is None else torch.from_numpy(t) for t in (data.labels, data.layout))
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, int, Future] | None = None
        self._last: int | None = None  # where the last batch began
        self.device = torch.device("cpu")

    def place(self, device: torch.device) -> None:
        self.device = device
        self._labels, self._layout = (None if t is None else t.to(device) for t in (self._labels, self._layout))
        if device.type == "cuda":
            if self._images.nbytes <= torch.cuda.mem_get_info(device)[0] // 4:
                self._images = torch.from_numpy(np.array(self._images)).to(device)
            else:
                self._pool = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))

    def read(self, start: int, count: int) -> RawBatch:
        if self._pool is None:
            return self._read(start, count)
        if self._ahead is not None and self._ahead[:2] == (start, count):
            batch = self._ahead[2].result()
        else:
            if self._ahead is not None:
                self._ahead[2].result()  # one reader at a time
            batch = self._read(start, count)
        # Processes take turns in the stream, so a process's own batches stand a stride apart.
        stride = start - self._last if self._last is not None and start > self._last else count
        self._last = start
        self._ahead = (start + stride, count, self._pool.submit(self._read, start + stride, count))
        return batch

    def rows(self, start: int, count: int) -> torch.Tensor:
        """Which images stand at these positions."""
        size = len(self._images)
        parts = []
        while count:
            epoch, offset = divmod(start, size)
            if epoch not in self._orders:
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                if self._balanced is None:
                    self._orders[epoch] = order(self.seed, epoch, size)
                else:
                    classes = len(self.info.class_names or ())
                    self._orders[epoch] = balanced_order(self.seed, epoch, self._balanced, classes)
            taken = min(count, size - offset)
            parts.append(self._orders[epoch][offset : offset + taken])
            start, count = start + taken, count - taken
        return torch.cat(parts)

    def _read(self, start: int, count: int) -> RawBatch:
        rows = self.rows(start, count)
        on_device = rows.to(self.device, non_blocking=True)
        if isinstance(self._images, torch.Tensor):
            images = self._images[on_device]
        else:
            images = torch.from_numpy(self._images[rows.numpy()])
            if self._pool is not None:
                images = images.pin_memory()
            images = images.to(self.device, non_blocking=True)
        labels, layout = (None if t is None else t[on_device] for t in (self._labels, self._layout))
        return RawBatch(images, labels, layout)

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        pass


class StreamedBatches:
    """Batches out of a streamed data set, for data that fits no disk.

    Every process runs reader threads (decoding releases the interpreter lock). The shards of the data set are permuted
    anew in each epoch and dealt to the readers; where there are fewer shards than readers, each reader reads all of
    them and keeps its part of the images. A reader shuffles blocks of `shuffle_buffer_size` images; its state is the
    place of its block and the position within it, so that resuming is exact and reads at most one block again.
    """

    def __init__(self, config: DataConfig, seed: int, token: str | None = None, rank: int = 0, world_size: int = 1):
        self.config, self.seed, self.device = config, seed, torch.device("cpu")
        dataset, name = load_source(config, token)
        if dataset.features is None:
            dataset = dataset._resolve_features()
        columns = find_columns(dataset.features, config)
        if columns.label is not None and columns.class_names is None:
            raise UserError(
                f"`label_column` {columns.label} has no list of class names, which `streaming` needs beforehand: "
                "give a column of type ClassLabel or leave `streaming` out."
            )
        kept = [columns.image] + ([columns.label] if columns.label else [])
        self._dataset = without_decoding(dataset.select_columns(kept), columns.image)
        mode, resolution = self._peek(columns)
        self.info = DataInfo(
            name, config.dataset_split, None, 0, 0, mode, resolution, columns.class_names, self._fingerprint(name)
        )
        self._workers = max(1, config.dataloader_num_workers)
        readers = [rank * self._workers + worker for worker in range(self._workers)]
        self._readers = [_Reader(self, columns, reader, world_size * self._workers) for reader in readers]
        self._turn = 0  # the reader whose images come next

    def place(self, device: torch.device) -> None:
        self.device = device

    def _peek(self, columns: Columns) -> tuple[str, int]:
        """Takes the channels and the size from the first images, unless flags give them."""
        seen = [look(row[columns.image]) for row in self._dataset.take(100)]
        found = [result for result in seen if not isinstance(result, OSError)]
        if not found:
            raise UserError("none of the first 100 images of the stream can be read: use other data.")
        mode = self.config.image_mode or richest_mode(mode for mode, _ in found)
        return mode, self.config.resolution or common_resolution(np.array([size for _, size in found]))

    def _fingerprint(self, name: str) -> str:
        source = (name, self.config.dataset_config_name, self.config.dataset_split, self._dataset.num_shards)
        return hashlib.sha256(repr((source, self._dataset.features)).encode()).hexdigest()[:32]

    def read(self, start: int, count: int) -> RawBatch:
        images: list[np.ndarray] = []
        labels: list[int] = []
        while len(images) < count:
            image, label = self._readers[self._turn].next()
            self._turn = (self._turn + 1) % self._workers
            images.append(image)
            labels.append(label)
        stacked = torch.from_numpy(np.stack(images))
        batch = RawBatch(stacked, torch.tensor(labels) if self.info.class_names is not None else None)
        return batch.to(self.device)

    def state(self) -> dict[str, Any]:
        return {"turn": self._turn, "readers": [reader.state for reader in self._readers]}

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["readers"]) != self._workers:
            raise UserError(
                f"`dataloader_num_workers`: the checkpoint was written with {len(state['readers'])} readers per "
                f"process, this run has {self._workers}. A stream can only be resumed with the same number."
            )
        self._turn = state["turn"]
        for reader, saved in zip(self._readers, state["readers"], strict=True):
            reader.state = saved


class _Reader:
    """One thread that reads, shuffles and decodes its part of a stream."""

    def __init__(self, stream: StreamedBatches, columns: Columns, index: int, total: int):
        self.columns, self.index, self.total = columns, index, total
        self.stream = stream
        self.state: dict[str, Any] = {"epoch": 0, "shard": 0, "place": None, "row": 0, "block": 0, "offset": 0}
        self._queue: queue.Queue = queue.Queue(maxsize=256)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._open: tuple[Any, Any, Iterator] | None = None  # a place, the shard, and its rows from there on

    def next(self) -> tuple[np.ndarray, int]:
        if self._thread is None:  # started late, so that a restored state is where it starts
            self._thread = threading.Thread(target=self._fill, daemon=True)
            self._thread.start()
            atexit.register(self._stop)
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        image, label, self.state = item
        return image, label

    def _fill(self) -> None:
        try:
            for item in self._items(self.state):
                self._queue.put(item)
                if self._stopped:
                    return
        except Exception as error:
            self._queue.put(error)

    def _stop(self) -> None:
        """A thread that is still inside of a library when Python ends makes the program hang, or abort."""
        self._stopped = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()  # it may wait for room
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _items(self, state: dict[str, Any]) -> Iterator[tuple[np.ndarray, int, dict[str, Any]]]:
        """Images, labels, and the state in which the next image comes."""
        config, info, seed = self.stream.config, self.stream.info, self.stream.seed
        while True:
            block, following = self._block(state)
            draws = np.random.default_rng([seed_from(seed, "stream", self.index, state["epoch"], state["block"])])
            permutation, places = draws.permutation(len(block)), draws.random(len(block))
            for offset in range(state["offset"], len(block)):
                number, row = block[permutation[offset]]
                after = following if offset + 1 == len(block) else state | {"offset": offset + 1}
                try:
                    value = row[self.columns.image]
                    pixels, length, transposed = fit(
                        to_mode(decode(value), info.mode), info.resolution, config.center_crop
                    )
                except OSError as error:
                    if config.skip_corrupt_images:
                        continue
                    raise UserError(
                        f"image {number} of the stream ({(value or {}).get('path')}) cannot be read: {error}. "
                        "Fix it, or add `skip_corrupt_images`."
                    ) from None
                left = int(places[offset] * (length - info.resolution + 1))
                pixels = pixels[:, :, left : left + info.resolution]
                label = row[self.columns.label] if self.columns.label else None
                yield (
                    np.ascontiguousarray(pixels.transpose(0, 2, 1) if transposed else pixels),
                    -1 if label is None else label,
                    after,
                )
            state = following

    def _block(self, state: dict[str, Any]) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any]]:
        """Reads the block of encoded rows that begins at `state`, and the state after it."""
        dataset, size = self.stream._dataset, self.stream.config.shuffle_buffer_size
        shards = dataset.num_shards
        shared = shards < self.total  # then every reader reads all shards and keeps its part of the rows
        permutation = order(self.stream.seed, state["epoch"], shards).tolist()
        mine = permutation if shared else permutation[self.index :: self.total]
        shard, place, row = state["shard"], state["place"], state["row"]
        block: list[tuple[int, dict[str, Any]]] = []
        while shard < len(mine) and len(block) < size:
            part, rows = self._rows(mine[shard], place)
            for example in rows:
                if not shared or row % self.total == self.index:
                    block.append((row, example))
                row += 1
                if len(block) == size:
                    place = part.state_dict()
                    self._open = place, part, rows
                    break
            else:
                shard, place = shard + 1, None
        if not block and state["block"] == 0:
            raise UserError(f"a part of the stream holds no images: use fewer readers than {self.total}.")
        if shard == len(mine):
            return block, {"epoch": state["epoch"] + 1, "shard": 0, "place": None, "row": 0, "block": 0, "offset": 0}
        following = {"epoch": state["epoch"], "shard": shard, "place": place, "row": row}
        return block, following | {"block": state["block"] + 1, "offset": 0}

    def _rows(self, shard: int, place: Any) -> tuple[Any, Iterator]:
        """A shard and its rows from `place` on, which is where the last block ended, or where a run is resumed.

        Only the latter looks for the place: `datasets` finds it by reading all that comes before.
        """
        if self._open is not None and self._open[0] is place:
            return self._open[1:]
        dataset = self.stream._dataset
        part = dataset.shard(num_shards=dataset.num_shards, index=shard)  # a new object: its place is ours alone
        if place is not None:
            part.load_state_dict(place)
        return part, iter(part)
