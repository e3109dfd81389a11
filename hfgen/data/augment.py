"""From stored uint8 images to the floats in [-1, 1] that networks see, with augmentation, on the device.

Every image draws its own numbers, and they come from the step's random stream: resuming repeats them.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F

from hfgen.data.config import DataConfig
from hfgen.data.streams import RawBatch


class Uniform(Protocol):
    """Draws numbers in [0, 1), one row per image."""

    def uniform(self, *shape: int) -> torch.Tensor: ...


def prepare(batch: RawBatch, config: DataConfig, random: Uniform) -> torch.Tensor:
    """Crops, scales and augments a batch.

    Args:
        batch ([`~data.batches.RawBatch`]): Images `(B, C, R, L)` in uint8.
        config ([`DataConfig`]): Which augmentations, and how strong; each is off by default.
        random: The random numbers of this batch, `uniform(n)` giving a tensor of shape `(B, n)`.

    Returns:
        `torch.Tensor` of shape `(B, C, R, R)`: float32 in [-1, 1].
    """
    images = batch.images
    if batch.layout is not None:
        images = crop_strips(images, batch.layout, random.uniform(1))
    images = images.float().div_(127.5).sub_(1)
    if config.random_flip:
        mirrored = random.uniform(1).view(-1, 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if config.random_rotation or config.random_scale or config.random_crop:
        images = move(images, config, random.uniform(4))
    if config.color_jitter:
        images = jitter(images, config.color_jitter, random.uniform(3))
    return images


def crop_strips(strips: torch.Tensor, layout: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Cuts a square out of each oblong image.

    Args:
        strips (`torch.Tensor` of shape `(B, C, R, L)`): Images whose longer side runs along `L`, padded at its end.
        layout (`torch.Tensor` of shape `(B, 2)`): Length of the longer side, and whether the image was transposed.
        place (`torch.Tensor` of shape `(B, 1)`): Where to cut, in [0, 1).
    """
    size = strips.shape[2]
    start = (place * (layout[:, :1] - size + 1)).long()
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
