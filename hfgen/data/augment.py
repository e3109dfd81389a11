"""From stored uint8 images to the floats in [-1, 1] that networks see, with augmentation, on the device.

Every image draws its own numbers, and they come from the step's random stream: resuming repeats them.
"""

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from hfgen.data.config import DataConfig
from hfgen.data.streams import RawBatch


class Uniform(Protocol):
    """Draws numbers in [0, 1), one row per image."""

    def uniform(self, *shape: int) -> torch.Tensor: ...


def prepare(raw: RawBatch, config: DataConfig, random: Uniform) -> dict[str, Any]:
    """Crops, scales and augments the images of a batch.

    All images of one row are augmented alike, so that pairs stay aligned; sources draw one after the other.

    Args:
        raw ([`~data.streams.RawBatch`]): Columns as they are stored.
        config ([`DataConfig`]): Which augmentations, and how strong; each is off by default.
        random: The random numbers of this batch, `uniform(n)` giving a tensor of shape `(B, n)`.

    Returns:
        `dict`: All columns: images `(B, C, R, R)` in float32 in [-1, 1]; of derived columns the variant that goes with
        the images of their source; classes and texts as they are.
    """
    batch = dict(raw)
    images = {name: value for name, value in batch.items() if getattr(value, "dtype", None) == torch.uint8}
    mirrored: dict[str, torch.Tensor] = {}  # by source
    for source in dict.fromkeys(raw.sources.get(name, "") for name in images):
        own = {name: value for name, value in images.items() if raw.sources.get(name, "") == source}
        if raw.layouts.keys() & own.keys():
            crops = random.uniform(1)
            own = {name: crop_strips(value, raw.layouts[name], crops) for name, value in own.items()}
        own = {name: to_float(value) for name, value in own.items()}
        if config.random_flip:
            flip = mirrored[source] = random.uniform(1)[:, 0] < 0.5
            own = {name: torch.where(_expand(flip, value), value.flip(-1), value) for name, value in own.items()}
        if config.random_rotation or config.random_scale or config.random_crop:
            draws = random.uniform(4)
            own = {name: move(value, config, draws) for name, value in own.items()}
        if config.color_jitter:
            draws = random.uniform(3)
            own = {name: jitter(value, config.color_jitter, draws) for name, value in own.items()}
        batch |= own
    for name, value in raw.items():
        if getattr(value, "dtype", None) == torch.float32:
            batch[name] = value[:, 0]
            if value.shape[1] > 1 and config.random_flip:
                flip = _expand(mirrored[raw.sources.get(name, "")], batch[name])
                batch[name] = torch.where(flip, value[:, 1], batch[name])
    return batch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Converts uint8 to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def _expand(chosen: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Reshapes `(B,)` to as many dimensions as `values` has."""
    return chosen.view(-1, *[1] * (values.ndim - 1))


def crop_strips(strips: torch.Tensor, layout: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Cuts a square out of each oblong image.

    Args:
        strips (`torch.Tensor` of shape `(B, C, R, L)`): Images whose longer side runs along `L`, padded at its end.
        layout (`torch.Tensor` of shape `(B, 2)`): Length of the longer side, and whether the image was transposed.
        offset (`torch.Tensor` of shape `(B, 1)`): Where to cut, in [0, 1).
    """
    size = strips.shape[2]
    start = (offset * (layout[:, :1] - size + 1)).long()
    columns = (start + torch.arange(size, device=strips.device)).view(-1, 1, 1, size)
    squares = strips.gather(3, columns.expand(-1, *strips.shape[1:3], -1))
    return torch.where(layout[:, 1].bool().view(-1, 1, 1, 1), squares.transpose(2, 3), squares)


def move(images: torch.Tensor, config: DataConfig, draws: torch.Tensor) -> torch.Tensor:
    """Rotates, zooms and shifts each image by one bilinear look-up; what comes in from outside is a reflection."""
    signed = draws * 2 - 1
    angle = signed[:, 0] * math.radians(config.random_rotation)
    zoom = torch.exp(signed[:, 1] * math.log1p(config.random_scale))
    # Whole pixels: a shift alone leaves the image sharp. grid_sample counts from -1 to 1 over the width.
    reach = 2 * config.random_crop + 1
    shift = ((draws[:, 2:] * reach).floor() - config.random_crop) * (2 / images.shape[-1])
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = (torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter(images: torch.Tensor, strength: float, draws: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and (with three colours) saturation, each by a factor in 1 ± strength."""
    brightness, contrast, saturation = (1 + (draws * 2 - 1) * strength).view(-1, 3, 1, 1, 1).unbind(1)
    colors, alpha = (images[:, :3], images[:, 3:]) if images.shape[1] == 4 else (images, images[:, :0])
    colors = (colors + 1) * brightness - 1
    mean = colors.mean(dim=(1, 2, 3), keepdim=True)
    colors = (colors - mean) * contrast + mean
    if colors.shape[1] == 3:
        gray = (colors * colors.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        colors = (colors - gray) * saturation + gray
    return torch.cat([colors, alpha], 1).clamp(-1, 1)
