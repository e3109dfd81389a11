"""Measures what data costs, from a thousand images to a million: its cache, reading, streaming, start and memory.

The images are synthetic, gray PNG files in parquet, in a temporary folder; a million of them take about 1 GiB there.
Each measurement has fresh processes, and the numbers of images take turns. Examples:

    python benchmarks/data.py --output data.json
    python benchmarks/data.py --sizes 1000 10000 --repeats 5
    python benchmarks/data.py --sizes 1000 100000 --resolution 64 --processes 1
"""

import contextlib
import io
import itertools
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import BenchmarkOptions, command_of, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option

if TYPE_CHECKING:
    from hfgen.data.streams import Stream

SEED = 0
DISTINCT = 1000  # images, in a row group; the other groups have the same ones in another order
FILE_ROWS = 100_000  # of a parquet file
BUILT_ONCE = 100_000  # images, from which on a cache is built once only
MEMORY = ("megabytes", "resident_megabytes")
CONSTANT = 0.05  # what a cost per image may grow by

Row = dict[str, Any]


@dataclass(frozen=True)
class DataBenchmark(BenchmarkOptions):
    """Benchmark: on how many images, how often."""

    sizes: tuple[int, ...] = option((1_000, 10_000, 100_000, 1_000_000), "numbers of images", least=1)
    resolution: int = option(28, "height and width of the images", least=4)
    processes: tuple[int, ...] = option((1, 2), "numbers of processes", least=1)
    batch_size: int = option(64, "images per batch and process", least=1)
    num_read: int = option(2_000_000, "images that each process reads from a cache", least=1)
    num_streamed: int = option(20_000, "images that each process reads from a stream", least=1)
    repeats: int = option(3, f"how often to measure; caches of {BUILT_ONCE:,} images and more are built once", least=1)

    def validate(self) -> None:
        super().validate()
        for name in ("sizes", "processes"):
            if not getattr(self, name):
                raise UserError(f"`{name}` has no numbers: give some, or leave it out.")


def read_options(argv: Sequence[str] | None = None) -> DataBenchmark:
    (config,) = parse((DataBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    return config


# The data


def make_data(folder: Path, size: int, resolution: int) -> None:
    """Writes parquet files as they are on the Hub: images of 4 gray levels in random blocks, with ten classes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    rng = np.random.default_rng(SEED)
    blocks = rng.integers(0, 4, (DISTINCT, *[-(-resolution // 4)] * 2), dtype=np.uint8) * np.uint8(85)
    files = []
    for pixels in blocks.repeat(4, 1).repeat(4, 2)[:, :resolution, :resolution]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    schema = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=10)}).arrow_schema
    images = pa.array(files, schema.field("image").type)
    labels = pa.array(np.arange(DISTINCT) % 10, pa.int64())
    folder.mkdir(parents=True)
    count = -(-size // FILE_ROWS)
    for number, first in enumerate(range(0, size, FILE_ROWS)):
        with pq.ParquetWriter(folder / f"train-{number:05d}-of-{count:05d}.parquet", schema) as writer:
            for start in range(first, min(first + FILE_ROWS, size), DISTINCT):
                rows = rng.permutation(DISTINCT)[: size - start]
                writer.write_table(pa.table([images.take(rows), labels.take(rows)], schema=schema))


# The measuring, in a process of its own


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a function returns, its seconds, and its seconds of CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - start, time.process_time() - cpu


def memory(kind: str) -> float | None:
    """Memory of this process in MB: VmHWM is its peak, RssAnon what holds no file; None where the system is silent."""
    with contextlib.suppress(OSError, IndexError):
        return 1.024e-3 * int(re.findall(rf"{kind}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    return None


@contextlib.contextmanager
def watched_memory(found: Row) -> Iterator[None]:
    """Adds the peaks: of memory that no file backs, and with the pages of files, which make room when it is needed."""
    seen, done = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(memory("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        known = [value for value in [*seen, memory("RssAnon")] if value is not None]
        found["megabytes"] = max(known) - known[0] if known else None
        found["resident_megabytes"] = memory("VmHWM")


def start_process(barrier: Any) -> None:
    """Imports what takes seconds, and waits for the other processes."""
    import torch

    import hfgen.data.cache
    import hfgen.training.random  # noqa: F401

    torch.set_num_threads(1)
    barrier.wait()


def build(config: DataConfig, size: int, rank: int, world: int) -> Row:
    """Makes the cache; opening it once more shows the part that does not depend on the number of images."""
    from hfgen.data.cache import open_images
    from hfgen.data.sources import load_source

    found: Row = {}
    _, found["source_seconds"], _ = timed(lambda: load_source(config))  # from parquet to the cache of `datasets`
    with watched_memory(found):
        _, seconds, cpu = timed(lambda: open_images(config))
    _, again, cpu_again = timed(lambda: open_images(config))
    return found | {"images": size, "seconds": seconds - again, "cpu": cpu - cpu_again, "start_seconds": again}


def read(config: DataConfig, count: int, size: int, rank: int, world: int) -> Row:
    """Starts as a training does, from the cache or a stream, and reads `count` images in batches of `size`."""
    from hfgen.data.augment import prepare
    from hfgen.data.columns import DEFAULT
    from hfgen.data.streams import open_stream
    from hfgen.training.random import StepRandom

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}

    def take(batches: "Stream", numbers: range) -> "Stream":
        for number in numbers:
            start = (number * world + rank) * size
            prepare(batches.read(start, size), config, StepRandom(SEED, start, size, purpose="augmentation"))
        return batches

    found: Row = {}
    numbers = range(1, 1 + -(-count // size))
    with watched_memory(found):
        batches, found["start_seconds"], _ = timed(lambda: take(open_stream(DEFAULT, config, SEED), range(1)))
        _, found["seconds"], found["cpu"] = timed(lambda: take(batches, numbers))
    return found | {"images": len(numbers) * size}


# In turns, and what they say


def in_processes(world: int, function: Callable[..., Row], *arguments: Any) -> list[Row]:
    """Runs a measurement in fresh processes at once, numbered as a launcher numbers them."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(world)
    with ProcessPoolExecutor(world, context, initializer=start_process, initargs=(barrier,)) as pool:
        return [job.result() for job in [pool.submit(function, *arguments, rank, world) for rank in range(world)]]


def measure(config: DataBenchmark, folder: Path) -> list[Row]:
    """All rows: one for each kind, size and number of processes."""
    turns: dict[tuple[str, int, int], list[list[Row]]] = {}
    sources = {size: folder / str(size) for size in config.sizes}
    for size, source in sources.items():
        make_data(source, size, config.resolution)

    def take(kind: str, size: int, world: int, function: Callable[..., Row], *arguments: Any) -> None:
        found = in_processes(world, function, *arguments)
        turns.setdefault((kind, size, world), []).append(found)
        print(f"{kind}, {size:,} images, {world} processes: {found[0]['seconds']:.2f} s", flush=True)

    for turn, size, world in itertools.product(range(config.repeats), config.sizes, config.processes):
        cache = folder / f"cache-{size}"
        data = DataConfig(dataset_name=str(sources[size]), cache_dir=str(cache))
        if not turn or size < BUILT_ONCE:
            shutil.rmtree(cache, ignore_errors=True)
            take("cache", size, world, build, data, size)
        take("read", size, world, read, data, config.num_read, config.batch_size)
        stream = DataConfig(dataset_name=str(sources[size]), cache_dir=str(cache), streaming=True)
        take("stream", size, world, read, stream, config.num_streamed, config.batch_size)
    return [summary(*key, found) for key, found in turns.items()]


def summary(kind: str, size: int, world: int, turns: list[list[Row]]) -> Row:
    """What all turns say: medians, and the most memory of any process."""

    def median(value: Callable[[list[Row]], float]) -> float:
        return statistics.median(map(value, turns))

    def most(name: str) -> float | None:
        return max((row[name] for found in turns for row in found if row[name] is not None), default=None)

    def images(found: list[Row]) -> int:
        return size if kind == "cache" else sum(row["images"] for row in found)  # one process makes the cache

    return {
        "kind": kind,
        "size": size,
        "processes": world,
        "images_per_second": median(lambda found: images(found) / max(row["seconds"] for row in found)),
        "cpu_per_image": median(lambda found: sum(row["cpu"] for row in found) / images(found)),
        "start_seconds": median(lambda found: max(row["start_seconds"] for row in found)),
        "megabytes": most("megabytes"),
        "resident_megabytes": most("resident_megabytes"),
        "turns": turns,
    }


def growth(rows: Sequence[Row]) -> list[Row]:
    """What becomes of the costs from the fewest images to the most."""
    found = []
    for kind, world in dict.fromkeys((row["kind"], row["processes"]) for row in rows):
        own = [row for row in rows if (row["kind"], row["processes"]) == (kind, world)]
        first, last = min(own, key=lambda row: row["size"]), max(own, key=lambda row: row["size"])
        ratio, more = last["cpu_per_image"] / first["cpu_per_image"], last["size"] - first["size"]
        known = more and first["megabytes"] is not None
        found.append(
            {
                "kind": kind,
                "processes": world,
                "sizes": [first["size"], last["size"]],
                "cost_ratio": ratio,
                "more_per_image": last["cpu_per_image"] - first["cpu_per_image"],
                "constant": ratio <= 1 + CONSTANT,
                "bytes_per_image": 1e6 * (last["megabytes"] - first["megabytes"]) / more if known else None,
            }
        )
    return found


# Tables

TITLES = {"cache": "Making the cache", "read": "Reading from the cache", "stream": "Streaming"}


def table(rows: Sequence[Row], kind: str) -> list[list[str]]:
    start = "opening, s" if kind == "cache" else "start, s"
    lines = [["images", "processes", "images/s", "CPU µs per image", start, "MB", "MB with files"]]
    for row in (row for row in rows if row["kind"] == kind):
        megabytes = ["" if (value := row[name]) is None else f"{value:,.0f}" for name in MEMORY]
        cost = f"{1e6 * row['cpu_per_image']:.3g}"
        speed = f"{row['images_per_second']:,.0f}"
        lines.append(
            [f"{row['size']:,}", str(row["processes"]), speed, cost, f"{row['start_seconds']:.2f}", *megabytes]
        )
    return lines


def growth_table(rows: Sequence[Row]) -> list[list[str]]:
    head = ["", "processes", "from", "to", "cost per image", "more, µs", f"grows by {CONSTANT:.0%} at most"]
    lines = [[*head, "bytes per image"]]
    for row in rows:
        memory = "" if row["bytes_per_image"] is None else f"{row['bytes_per_image']:,.0f}"
        answer = "yes" if row["constant"] else "no"
        ratio = f"times {row['cost_ratio']:.3f}"
        sizes, more = [f"{size:,}" for size in row["sizes"]], f"{1e6 * row['more_per_image']:+.2f}"
        lines.append([TITLES[row["kind"]], str(row["processes"]), *sizes, ratio, more, answer, memory])
    return lines


def notes_for(config: DataBenchmark) -> list[str]:
    return [
        f"Images: {config.resolution}x{config.resolution}, gray, PNG in parquet, {DISTINCT:,} different ones over and "
        "over; all processes on one machine, one thread each.",
        "CPU: seconds of all threads and processes over their images, the median of the turns; images/s are by the "
        "clock, and all processes together.",
        "Making the cache: from the first open_images to the second, which only opens it, so without the copy of the "
        "parquet files that `datasets` makes before. Of several processes, one makes it.",
        f"Reading: {config.num_read:,} images per process in batches of {config.batch_size}, as floats in [-1, 1]; "
        f"streaming: {config.num_streamed:,}. Both include what happens once, such as the first look at a page of a "
        "file. Start: to the first batch, with the import of `datasets`, without that of torch.",
        "MB: the peak of a process, less what it held when it had imported torch; without pages of files, which "
        "the system takes back when it needs them. MB with files: all of it. Bytes per image: by how much the former "
        "grows.",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)

    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(config, Path(folder))
    grown = growth(rows)
    tables = {title: table(rows, kind) for kind, title in TITLES.items()}
    tables["Cost per image and memory"] = growth_table(grown)

    from hfgen.runtime.launch import cpu_name

    command, measured = command_of(__file__, [DataBenchmark], argv), {"rows": rows, "growth": grown}
    publish(config.output, command, cpu_name(), as_dict([config]), tables, notes_for(config), measured)


if __name__ == "__main__":
    with one_line_errors():
        main()
