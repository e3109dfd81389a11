"""Sample grids: images of few classes in a block for each, under its name."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from hfgen.runtime.png import make_grid
from hfgen.sampling.sampler import Sampler

MOST_CLASSES = 16


def sample_grid(sampler: Sampler, images: Sequence[np.ndarray], seed: int) -> Image.Image:
    """Makes the grid of the first images `(H, W, C)` of a seeded set: about square; if they are of a few classes with
    a name, with a block of columns for each."""
    classes = [sampler.class_of(index, seed) for index in range(len(images))]
    shown = list(dict.fromkeys(number for number in classes if number is not None))
    if sampler.grouped or not 1 < len(shown) <= MOST_CLASSES:
        return make_grid(images)
    width = max(1, round(math.sqrt(len(images)) / len(shown)))  # columns of a class
    blocks = [[image for image, own in zip(images, classes, strict=True) if own == number] for number in shown]
    rows = max(-(-len(block) // width) for block in blocks)
    cells: list[np.ndarray | None] = []
    for row in range(rows):
        for block in blocks:
            part = block[row * width : (row + 1) * width]
            cells += [*part, *[None] * (width - len(part))]
    return make_grid(cells, width * len(shown), titles=[sampler.class_names[number] for number in shown])
