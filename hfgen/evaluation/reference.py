"""The real images of an evaluation: which ones they are, and their features."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hfgen.data.cache import SourceData, open_images
from hfgen.data.columns import Classes
from hfgen.data.config import IMAGE_MODES, share_of
from hfgen.data.splits import check_groups, draw_held_out
from hfgen.evaluation.config import SplitsConfig
from hfgen.evaluation.features import Extractor
from hfgen.evaluation.metrics import Images
from hfgen.runtime.distributed import Table, map_over_processes
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.files import write_at_once

CACHE_FORMAT = 1  # part of the key: raise it when the same images would get other features
REAL_BATCH = 256  # real images at once
DATA_SEED = 0  # decides which real images are taken: the same ones whatever is compared with them


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Oblong images that training crops at random places are cropped so here, too, each at the same place every time.

    Attributes:
        data ([`~data.cache.SourceData`]): The split, at the size of the model's images and in their mode.
        rows (`np.ndarray` of shape `(N,)`): Which of its images, ascending.
    """

    data: SourceData
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Returns images, uint8 `(B, C, H, W)`."""
        rows = self.rows[indices]
        return torch.from_numpy(np.array(self.data.squares(rows, self._offsets[rows])))

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return np.random.default_rng(DATA_SEED).random(len(self.data))

    def describe(self) -> dict[str, Any]:
        info = self.data.info
        return {"split": info.split, "fingerprint": info.fingerprint, "num_images": len(self.rows)}


@dataclass(frozen=True)
class Reference:
    """The real images of an evaluation.

    Attributes:
        real ([`Part`]): To compare with.
        held_out ([`Part`]): Others, on which no model was trained, as far as is known.
        train ([`Part`]): All that the model was, or may have been, trained on.
        apart (`bool`): Whether the held-out images are other data than these, or a half of them that stands in.
        notes (`tuple` of `str`): What a reader has to know.
    """

    real: Part
    held_out: Part
    train: Part
    apart: bool
    notes: tuple[str, ...]


def open_reference(
    config: SplitsConfig, image_shape: tuple[int, int, int], num_real: int, num_held_out: int
) -> Reference:
    """Opens the data and draws images from it, the same ones each time.

    Args:
        config ([`SplitsConfig`]): Which data.
        image_shape (`tuple[int, int, int]`): Channels, height and width of the model's images.
        num_real, num_held_out (`int`): How many images; fewer, if there are not so many.

    Raises:
        UserError: If the data cannot be read.
    """

    def open_split(split: str | None, held_out: bool = False) -> SourceData:
        center_crop = config.center_crop is not False
        left_out = None if share is None else str(share)
        wanted = config.data(image_shape, split, center_crop, left_out, config.group_column)
        return open_images(wanted, held_out=held_out)

    channels, height, width = image_shape
    if channels not in IMAGE_MODES.values() or height != width:
        raise UserError(
            f"the model makes images of {channels} channels and {height}x{width} pixels: only square gray and colour "
            "images can be compared with data."
        )
    share = share_of(config.held_out_split)
    data = open_split(config.dataset_split)
    split = config.held_out_split or "test"
    other, notes, reason = None, [], f"`dataset_split` is {split!r}, too"
    if share is not None:
        other = open_split(config.dataset_split, held_out=True)
    elif config.has_one_split and config.held_out_split is None:
        reason = f"{data.info.name} has one split only"
    elif split != config.dataset_split:
        try:
            other = open_split(split)
        except UserError as error:
            if config.held_out_split:
                raise UserError(f"`held_out_split` {split}: {error}") from None
            reason = f"the split {split!r} cannot be read ({one_line(error)})"
    order = np.random.default_rng(DATA_SEED).permutation(len(data))
    train, apart = Part(data, np.arange(len(data))), other is not None
    groups, theirs = data.groups, None if other is None else other.groups
    if groups is not None and theirs is not None:
        check_groups(groups, theirs, str(config.group_column))
    if other is None:
        other, half = data, np.arange(len(order)) >= len(order) // 2
        if groups is not None:
            half = draw_held_out(np.zeros(len(data), np.int64), 0.5, DATA_SEED, groups)[order]
        order, rest = order[~half], order[half]
        notes.append(
            f"{reason}: half of {config.dataset_split!r} is held out in its place, which the model may have seen in "
            "training; `held_out_split` names a better one, and training with `validation_split` leaves one out"
        )
    else:
        rest = np.random.default_rng(DATA_SEED).permutation(len(other))
    return Reference(
        real=Part(data, np.sort(order[:num_real])),
        held_out=Part(other, np.sort(rest[:num_held_out])),
        train=train,
        apart=apart,
        notes=tuple(notes),
    )


def transform(part: Part) -> dict[str, Any]:
    """Describes what was done to the real images."""
    info, crop = part.data.info, part.data.config.center_crop
    return {"resolution": info.resolution, "mode": info.mode, "center_crop": crop, "resample": "bicubic"}


# Their features


def features_of(images: torch.Tensor, extractor: Extractor, kinds: bool) -> Table:
    """Computes features and logits of images `(B, C, H, W)`, uint8, and the classes of their channels if asked for."""
    table = dict(extractor(images))
    if kinds:
        logits = extractor(images.flatten(0, 1).unsqueeze(1))["logits"]
        table["kinds"] = logits.argmax(1).view(images.shape[:2])
    return table


def real_images(
    part: Part, extractor: Extractor, accelerator: Accelerator, cache: Path, kinds: bool, text: str, leave: bool = True
) -> Images | None:
    """Returns the features of real images, from the cache or into it; in the first process only.

    The key covers the decoded images, which of them, how they were brought to size, and the extractor with its weights
    and preprocessing.

    Raises:
        UserError: If the cache cannot be written.
    """
    info = part.data.info
    source = {
        "format": CACHE_FORMAT,
        "data": info.fingerprint,
        "split": info.split,
        "rows": hashlib.sha256(part.rows.astype(np.int64).tobytes()).hexdigest(),
        "transform": transform(part),
        "extractor": extractor.fingerprint,
        "kinds": kinds,
    }
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / f"{key}.safetensors"
    table = read_cache(path) if accelerator.is_main_process else None
    present = [table is not None]  # what the first process sees counts for all
    broadcast_object_list(present)
    if not present[0]:

        def extract(indices: list[int]) -> Table:
            return features_of(part.images(indices), extractor, kinds)

        table = map_over_processes(accelerator, len(part.rows), REAL_BATCH, extract, text, leave)
        if accelerator.is_main_process:
            write_cache(path, table, source | {"name": info.name})
    if table is None or not accelerator.is_main_process:
        return None
    labels, numbers = None, class_numbers(info.class_names, extractor)
    if part.data.labels is not None and numbers is not None:
        labels = torch.tensor([*numbers, -1])[torch.from_numpy(part.data.labels[part.rows])]  # -1 stays -1
    return Images(**table, labels=labels)


def read_cache(path: Path) -> Table | None:
    """Reads the features that [`write_cache`] wrote; `None` if there are none, or they are not as they were."""
    try:
        with safe_open(path, "pt") as file:
            table = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return table if (file.metadata() or {}).get("digest") == digest_of(table) else None
    except (OSError, SafetensorError):
        return None


def write_cache(path: Path, tensors: Table, source: dict[str, Any]) -> None:
    """Writes features, all of them or nothing, with what they were computed from."""
    try:
        with write_at_once(path) as temporary:
            save_file(tensors, temporary, metadata={"source": json.dumps(source), "digest": digest_of(tensors)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the features of real images cannot be written to {path.parent}: {error}. Free some space or give "
            "another `cache_dir`."
        ) from None


def digest_of(table: Table) -> str:
    """Computes the digest of some tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(table.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_folder(config: SplitsConfig) -> Path:
    """Returns the folder where features of real images are kept."""
    from huggingface_hub import constants

    root = Path(config.cache_dir).expanduser() if config.cache_dir else Path(constants.HF_HOME) / "hfgen"
    return root / "features"


def shares_of(part: Part, classes: Classes) -> tuple[tuple[float, ...] | None, list[str]]:
    """Counts how often each of a model's classes is among real images: classes are the same if their names are.

    Returns:
        The shares by the model's numbers, `None` if the images have none of these classes; and what a reader of a
        comparison has to know.
    """
    info, labels = part.data.info, part.data.labels
    if labels is None or info.class_names is None:
        return None, [f"{info.name} has no classes that would say how often the model is to make each of its own"]
    numbers = np.array([*classes.numbers(info.class_names), -1])[labels[part.rows]]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(classes.names))
    if not counts.any():
        return None, [f"{info.name} has none of the model's classes ({', '.join(classes.names[:20])})"]
    unknown, notes = int((numbers < 0).sum()), []
    if unknown:
        notes.append(f"{unknown} of {len(numbers)} real images have no class, or one that the model does not know")
    return tuple((counts / counts.sum()).tolist()), notes


def class_numbers(names: Sequence[str] | None, extractor: Extractor) -> list[int] | None:
    """Returns the classifier's number of each class; `None` if it does not know them all."""
    labels = extractor.labels or ()
    return [labels.index(name) for name in names] if names and set(names) <= set(labels) else None
