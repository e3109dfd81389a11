"""Data sets of generated images: files that `datasets` and hfgen read as any other data."""

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hfgen.data.export import write_parquet
from hfgen.runtime.distributed import batches_of_process
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import TEMPORARY, write_at_once, write_json, write_text
from hfgen.runtime.png import enlarge, save_png, to_pil
from hfgen.runtime.seeds import image_seed
from hfgen.runtime.version import __version__
from hfgen.sampling.folder import AT_ONCE, RECORD
from hfgen.sampling.sampler import Sampler

Describe = Callable[[Mapping[str, int], dict[str, Any]], str]
KINDS = ("imagefolder", "parquet")
CARD = "README.md"
FILES = (CARD, RECORD, "train/*.png", "train/*/*.png", "data/train-*.parquet")


def dataset_files(folder: Path) -> list[Path]:
    """Returns the files that [`write_dataset`] wrote into a folder, or would replace."""
    return [path for pattern in FILES for path in sorted(folder.glob(pattern))]


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
        UserError: If the names of classes are no names of folders.
    """
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
    table = sorted(gather_object(write(new, rows, names, accelerator)), key=lambda line: line["file"])
    if accelerator.is_main_process:
        counts = Counter(line["class"] for line in table if line["class"] is not None)
        about = {**(record or {}), "seed": seed, **sampler.settings, "precision": sampler.precision}
        write_json(new / RECORD, {**about, "hfgen": __version__, "images": table})
        if describe:
            write_text(new / CARD, describe(counts, about))
        for path in dataset_files(folder):
            path.unlink()
        for path in (*folder.glob("train/*"), folder / "train", folder / "data"):  # of classes that are no more
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for path in dataset_files(new):
            target = folder / path.relative_to(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(new)
    accelerator.wait_for_everyone()


def _rows(
    sampler: Sampler,
    accelerator: Accelerator,
    num_images: int,
    seed: int,
    batch_size: int | None,
    names: tuple[str, ...],
    origin: dict[str, Any] | None,
    scale: int,
) -> Iterator[dict[str, Any]]:
    """Makes the images of this process, as PNG files in memory."""
    size = batch_size or min(AT_ONCE, num_images)
    with tqdm(total=num_images, unit="img", disable=not accelerator.is_main_process) as bar:
        for batch in batches_of_process(num_images, size, accelerator.process_index, accelerator.num_processes):
            for index, image in zip(batch, sampler(batch, seed).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                own = {"seed": image_seed(seed, index), "class_label": sampler.class_of(index, seed)}
                yield {
                    "name": f"{index:06d}.png",
                    "label": own["class_label"] if names else None,
                    "class": names[own["class_label"]] if names and own["class_label"] is not None else None,
                    "seed": own["seed"],
                    "png": _png(image, scale, origin and origin | own),
                }
            bar.update(min(len(batch) * accelerator.num_processes, num_images - int(bar.n)))


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
    folder: Path, rows: Iterator[dict[str, Any]], names: tuple[str, ...], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Writes the images of this process as files; returns what `samples.json` says of them."""
    table = []
    for row in rows:
        file = "/".join(["train", *([row["class"]] if row["class"] is not None else []), row["name"]])
        with write_at_once(folder / file) as temporary:
            temporary.write_bytes(row["png"])
        table.append({"file": file, "class": row["class"], "seed": row["seed"]})
    return table


def _write_parquet(
    folder: Path, rows: Iterator[dict[str, Any]], names: tuple[str, ...], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Writes the images of this process as a file; returns what `samples.json` says of them."""
    table = []

    def listed() -> Iterator[tuple[str, bytes, int | None, int]]:
        for row in rows:
            table.append({"file": row["name"], "class": row["class"], "seed": row["seed"]})
            yield row["name"], row["png"], row["label"], row["seed"]

    name = f"train-{accelerator.process_index:05d}-of-{accelerator.num_processes:05d}.parquet"
    write_parquet(folder / "data" / name, listed(), names)
    return table
