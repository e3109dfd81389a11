"""Data sets of generated images: files that `datasets` and hfgen read as any other data."""

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from hfgen.data.export import write_parquet
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import TEMPORARY, write_at_once, write_json, write_text
from hfgen.runtime.png import enlarge, save_png, to_pil
from hfgen.runtime.version import __version__
from hfgen.sampling.folder import CARD, RECORD, clear, dataset_files, existing_files, origin_of_image, sampled
from hfgen.sampling.sampler import Sampler

Describe = Callable[[Mapping[str, int], dict[str, Any]], str]


def check_free(folder: Path) -> None:
    """Raises [`UserError`] if a folder holds what a data set would stand among, or replace, and that hfgen did not
    write."""
    ours = existing_files(folder)
    held = [folder / CARD, *(folder / "train").rglob("*"), *(folder / "data").rglob("*")]
    foreign = [path for path in held if path.is_file() and path not in ours]
    if foreign:
        raise UserError(
            f"`output_dir` {folder} holds {foreign[0].relative_to(folder)}, which `hfgen sample` did not write: give "
            "another folder."
        )


def class_names(sampler: Sampler) -> tuple[str, ...]:
    """Returns the names of the classes that a data set has: none of groups, which mean nothing."""
    return () if sampler.grouped else sampler.class_names


def write_dataset(
    sampler: Sampler,
    accelerator: Accelerator,
    folder: Path,
    kind: str,
    num_images: int,
    seed: int = 0,
    batch_size: int | None = None,
    origin: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    scale: int = 1,
    describe: Describe | None = None,
) -> None:
    """Writes the images of a seeded set as a data set, in place of the one that the folder holds: a column `image`;
    the class as `label`, if the model has classes with a meaning; and `seed`, which repeats the image alone. Every
    process must call this.

    Args:
        sampler ([`Sampler`]): Makes the images.
        accelerator (`Accelerator`): The processes, which take batches in turn.
        folder (`Path`): Where to write.
        kind (`str`): `"imagefolder"`, PNG files in a folder for each class, whose seeds are in `samples.json`, or
            `"parquet"`, one file for each process.
        num_images (`int`), seed (`int`), batch_size (`int`, *optional*): As for [`~sampling.folder.write_images`].
        origin, record, scale (*optional*): As there.
        describe (`Callable`, *optional*): Makes the card: from the number of images of each class, and what they were
            made with.

    Raises:
        UserError: If the names of classes are no names of folders, or the folder holds files of something else.
    """
    check_free(folder)
    names = class_names(sampler)
    if kind == "imagefolder" and len({name.casefold() for name in names if is_folder(name)}) < len(names):
        wrong = next((name for name in names if not is_folder(name)), "two that differ in capitals")
        raise UserError(
            f"`as_dataset` imagefolder has a folder for each class, which cannot be called {wrong!r}: use parquet."
        )
    new = folder / f"{TEMPORARY}dataset"  # what was there stays until all of it is
    if accelerator.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
    accelerator.wait_for_everyone()
    rows = _rows(sampler, accelerator, num_images, seed, batch_size, names, origin, scale)
    write = _write_parquet if kind == "parquet" else _write_files
    lines = dict(gather_object(list(write(new, rows, names, accelerator).items())))
    if accelerator.is_main_process:
        table = [lines[index] for index in sorted(lines)]
        counts = Counter(line["class"] for line in table if line["class"] is not None)
        about = {**(record or {}), "seed": seed, **sampler.settings, "precision": sampler.precision}
        write_json(new / RECORD, {**about, "hfgen": __version__, "as_dataset": kind, "images": table})
        if describe:
            write_text(new / CARD, describe(counts, about))
        clear(folder)
        for path in dataset_files(new):
            target = folder / path.relative_to(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(new)
    accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Row:
    """An image of a data set: its number, its class by number and by name, its seed, and the PNG file."""

    index: int
    label: int | None
    class_name: str | None
    seed: int
    png: bytes

    @property
    def name(self) -> str:
        return f"{self.index:06d}.png"


def _rows(
    sampler: Sampler,
    accelerator: Accelerator,
    num_images: int,
    seed: int,
    batch_size: int | None,
    names: tuple[str, ...],
    origin: dict[str, Any] | None,
    scale: int,
) -> Iterator[Row]:
    """Makes the images of this process, as PNG files in memory."""
    for index, image in sampled(sampler, accelerator, num_images, seed, batch_size):
        own = origin_of_image(sampler, index, seed)
        label = own["class_label"] if names else None
        name = None if label is None else names[label]
        yield Row(index, label, name, own["seed"], _png(image, scale, origin and origin | own))


def _png(image: np.ndarray, scale: int, origin: dict[str, Any] | None) -> bytes:
    file = io.BytesIO()
    save_png(to_pil(enlarge(image, scale)), file, origin)
    return file.getvalue()


def is_folder(name: str) -> bool:
    """Says whether the name of a class can be that of a folder, on any system and for `datasets`."""
    return (
        bool(re.fullmatch(r"[^\\/:*?\"<>|\[\]\x00-\x1f]{1,200}", name))
        and not name.startswith((".", "_"))
        and name.strip(". ") == name
    )


def _write_files(
    folder: Path, rows: Iterator[Row], names: tuple[str, ...], accelerator: Accelerator
) -> dict[int, dict[str, Any]]:
    """Writes the images of this process as files; returns what `samples.json` says of each, by its number."""
    table = {}
    for row in rows:
        file = "/".join(["train", *([row.class_name] if row.class_name is not None else []), row.name])
        with write_at_once(folder / file) as temporary:
            temporary.write_bytes(row.png)
        table[row.index] = {"file": file, "class": row.class_name, "seed": row.seed}
    return table


def _write_parquet(
    folder: Path, rows: Iterator[Row], names: tuple[str, ...], accelerator: Accelerator
) -> dict[int, dict[str, Any]]:
    """Writes the images of this process as a file; returns what `samples.json` says of each, by its number."""
    table = {}
    file = f"data/train-{accelerator.process_index:05d}-of-{accelerator.num_processes:05d}.parquet"

    def listed() -> Iterator[tuple[str, bytes, int | None, int]]:
        for row in rows:
            table[row.index] = {"file": file, "class": row.class_name, "seed": row.seed}
            yield row.name, row.png, row.label, row.seed

    write_parquet(folder / file, listed(), names)
    return table
