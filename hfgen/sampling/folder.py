"""Folders of sampled images: PNG files named by their numbers, a grid, and a record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hfgen.runtime.distributed import batches_of_process
from hfgen.runtime.files import write_json
from hfgen.runtime.png import enlarge, save_png, to_pil
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.grid import sample_grid
from hfgen.sampling.sampler import Sampler

RECORD, CARD = "samples.json", "README.md"
DATASET = (CARD, RECORD, "train/*.png", "train/*/*.png", "data/train-*.parquet")
IN_GRID = 100  # images, at most
AT_ONCE = 64  # images, unless told otherwise


def existing_files(folder: Path) -> list[Path]:
    """Returns the files of sampled images that a folder holds, and which others would replace: images and their grid,
    or a data set."""
    images = [path for path in folder.glob("*.png") if path.stem.isdecimal() or path.name == "grid.png"]
    return list(dict.fromkeys([*sorted(images), *folder.glob(RECORD), *dataset_files(folder)]))


def dataset_files(folder: Path) -> list[Path]:
    """Returns the files that [`~sampling.dataset.write_dataset`] wrote into a folder, as its record lists them."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        written = {CARD, RECORD, *(line["file"] for line in record["images"])} if record["as_dataset"] else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    paths = [path for pattern in DATASET for path in sorted(folder.glob(pattern))]
    return [path for path in paths if path.relative_to(folder).as_posix() in written]


def clear(folder: Path) -> None:
    """Deletes what [`existing_files`] lists, and the folders of a data set that are empty then."""
    for path in existing_files(folder):
        path.unlink()
    for path in (*folder.glob("train/*"), folder / "train", folder / "data"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def sampled(
    sampler: Sampler, accelerator: Accelerator, num_images: int, seed: int, batch_size: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the numbers and the images `(H, W, C)` in uint8 of this process, of a seeded set; shows how far it is.
    For the arguments see [`write_images`]."""
    size = batch_size or min(AT_ONCE, num_images)
    with tqdm(total=num_images, unit="img", disable=not accelerator.is_main_process) as bar:
        for batch in batches_of_process(num_images, size, accelerator.process_index, accelerator.num_processes):
            arrays = sampler(batch, seed).permute(0, 2, 3, 1).cpu().numpy()
            yield from zip(batch, arrays, strict=True)
            bar.update(min(len(batch) * accelerator.num_processes, num_images - int(bar.n)))


def origin_of_image(sampler: Sampler, index: int, seed: int) -> dict[str, Any]:
    """Returns what repeats an image of a seeded set alone: its own seed and its class."""
    return {"seed": image_seed(seed, index), "class_label": sampler.class_of(index, seed)}


def write_images(
    sampler: Sampler,
    accelerator: Accelerator,
    folder: Path,
    num_images: int,
    seed: int = 0,
    batch_size: int | None = None,
    origin: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    scale: int = 1,
) -> int:
    """Writes the images of a seeded set, in place of those that the folder holds. Every process must call this.

    Args:
        sampler ([`Sampler`]): Makes the images.
        accelerator (`Accelerator`): The processes, which take batches in turn, the same ones whatever their number.
        folder (`Path`): Where to write.
        num_images (`int`), seed (`int`): Which images: the first ones of the set with this seed.
        batch_size (`int`, *optional*): Images at once per process.
        origin (`dict`, *optional*): What the files say of the model that made them: see [`~runtime.png.save_png`].
        record (`dict`, *optional*): What `samples.json` says of the model.
        scale (`int`, *optional*, defaults to 1): How many times the files, but not the grid, are enlarged, without
            smoothing.

    Returns:
        `int`: How many images are in the grid.
    """
    images = dict(sampled(sampler, accelerator, num_images, seed, batch_size))
    own = {index: origin_of_image(sampler, index, seed) for index in range(num_images)}
    names = {index: f"{index:06d}.png" for index in own}
    if accelerator.is_main_process:
        clear(folder)
    accelerator.wait_for_everyone()
    for index, image in images.items():
        save_png(to_pil(enlarge(image, scale)), folder / names[index], origin and origin | own[index])
    shown = dict(gather_object([(index, image) for index, image in images.items() if index < IN_GRID]))
    if accelerator.is_main_process:
        grid = sample_grid(sampler, [shown[index] for index in sorted(shown)], seed)
        save_png(grid, folder / "grid.png", origin and origin | {"seed": seed, "num_images": len(shown)})
        rows = [{"file": names[index], **own[index]} for index in own]
        write_json(
            folder / RECORD,
            {**(record or {}), "seed": seed, **sampler.settings, "precision": sampler.precision, "images": rows},
        )
    return len(shown)
