"""Files of images and classes that `datasets` reads."""

from collections.abc import Iterable
from pathlib import Path

from hfgen.runtime.files import write_at_once

AT_ONCE = 100  # rows in memory


def write_parquet(
    path: Path, rows: Iterable[tuple[str, bytes, int | None, int]], class_names: tuple[str, ...]
) -> None:
    """Writes rows into a parquet file, a block at a time, with the columns `image`, `label` (if there are classes) and
    `seed`.

    Args:
        path (`Path`): The file, which is there when all of it is.
        rows: The name and the content of an image file, the number of its class, and its seed.
        class_names (`tuple[str, ...]`): The classes by number; empty for none.
    """
    from datasets import ClassLabel, Features, Image, Value
    from datasets.arrow_writer import ParquetWriter

    features = {"image": Image(), "seed": Value("uint32")}
    if class_names:
        features = {"image": Image(), "label": ClassLabel(names=list(class_names)), "seed": Value("uint32")}
    with (
        write_at_once(path) as temporary,
        ParquetWriter(features=Features(features), path=str(temporary), writer_batch_size=AT_ONCE) as writer,
    ):
        for name, content, label, seed in rows:
            classes = {"label": label} if class_names else {}
            writer.write({"image": {"path": name, "bytes": content}, **classes, "seed": seed})
        writer.finalize()
