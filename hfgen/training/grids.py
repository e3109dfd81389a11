"""Grids of images, and who makes which of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def chunks(count: int, size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """The image numbers of each batch of one process: batches of `size` are dealt to the processes in turn."""
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    return batches[rank::world_size]


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """`(B, C, H, W)` in [0, 1] to `(B, H, W, C)` in uint8."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(image: np.ndarray) -> Image.Image:
    """`(H, W, C)` in uint8 to an image with 1, 3 or 4 channels."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def make_grid(images: Sequence[np.ndarray], columns: int | None = None, cell: int = 64, gap: int = 4) -> Image.Image:
    """A near-square grid of images of shape `(H, W, C)`, row by row.

    Small images are enlarged by a whole factor, without smoothing, to at most `cell` pixels; `gap` gray pixels part
    them.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = int(np.ceil(len(images) / columns))
    factor = max(1, cell // max(images[0].shape[:2]))
    height, width = images[0].shape[0] * factor + gap, images[0].shape[1] * factor + gap
    canvas = np.full((rows * height + gap, columns * width + gap, images[0].shape[2]), 96, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height + gap, number % columns * width + gap
        canvas[top : top + height - gap, left : left + width - gap] = image.repeat(factor, 0).repeat(factor, 1)
    return to_pil(canvas)


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG")
    temporary.replace(path)
