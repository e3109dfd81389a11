"""The real images of an evaluation: which ones they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfgen.data.config import IMAGE_MODES, DataConfig
from hfgen.data.images import ImageData, open_images
from hfgen.errors import UserError
from hfgen.evaluation.config import ReferenceConfig

DATA_SEED = 0  # decides which real images are taken: the same ones whatever is compared with them


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        data ([`ImageData`]): The split, at the size of the model's images and in their mode.
        rows (`np.ndarray` of shape `(N,)`): Which of its images, ascending.
    """

    data: ImageData
    rows: np.ndarray

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """uint8, `(B, C, H, W)`."""
        return torch.from_numpy(np.array(self.data.images[self.rows[indices]]))

    def describe(self) -> dict[str, Any]:
        info = self.data.info
        return {"split": info.split, "fingerprint": info.fingerprint, "num_images": len(self.rows)}


@dataclass(frozen=True)
class Reference:
    """The real images of an evaluation.

    Attributes:
        real ([`Part`]): To compare with.
        held_out ([`Part`]): Others, on which no model was trained.
        train ([`Part`]): All that the model was, or may have been, trained on.
        notes (`tuple` of `str`): What a reader has to know.
    """

    real: Part
    held_out: Part
    train: Part
    notes: tuple[str, ...]


def open_reference(
    config: ReferenceConfig, image_shape: tuple[int, int, int], num_real: int, num_held_out: int
) -> Reference:
    """Opens the data and draws images from it, the same ones each time.

    Args:
        config ([`ReferenceConfig`]): Which data.
        image_shape (`tuple[int, int, int]`): Channels, height and width of the model's images.
        num_real, num_held_out (`int`): How many images; fewer, if there are not so many.

    Raises:
        UserError: If the data cannot be read.
    """

    def open_split(split: str) -> ImageData:
        channels, size, _ = image_shape
        mode = next(mode for mode, number in IMAGE_MODES.items() if number == channels)
        return open_images(
            DataConfig(
                dataset_name=config.dataset_name,
                dataset_split=split,
                label_column=config.label_column,
                cache_dir=config.cache_dir,
                resolution=size,
                center_crop=True,
                image_mode=mode,
            )
        )

    channels, height, width = image_shape
    if channels not in IMAGE_MODES.values() or height != width:
        raise UserError(
            f"the model makes images of {channels} channels and {height}x{width} pixels: only square gray and colour "
            "images can be compared with data."
        )
    data = open_split(config.dataset_split)
    split = config.held_out_split or "test"
    other, notes, reason = None, [], f"--dataset_split is {split!r}, too"
    if config.dataset_name in (None, "digits") and config.held_out_split is None:
        reason = "the digits have one split only"
    elif split != config.dataset_split:
        try:
            other = open_split(split)
        except UserError as error:
            if config.held_out_split:
                raise UserError(f"--held_out_split {split}: {error}") from None
            reason = f"the split {split!r} cannot be read ({str(error).split('. ')[0].rstrip('.')})"
    order = np.random.default_rng(DATA_SEED).permutation(len(data.images))
    if other is None:
        half = len(order) // 2
        order, rest = order[:half], order[half:]
        other = data
        notes.append(
            f"{reason}: half of {config.dataset_split!r} is held out in its place, on which the model was probably "
            "trained; --held_out_split names a better one"
        )
    else:
        rest = np.random.default_rng(DATA_SEED).permutation(len(other.images))
    return Reference(
        real=Part(data, np.sort(order[:num_real])),
        held_out=Part(other, np.sort(rest[:num_held_out])),
        train=Part(data, np.sort(order)),
        notes=tuple(notes),
    )


def transform(part: Part) -> dict[str, Any]:
    """What was done to the real images."""
    info = part.data.info
    return {"resolution": info.resolution, "mode": info.mode, "center_crop": True, "resample": "bicubic"}
