"""Grids."""

import torch

from hfgen.runtime.png import make_grid


def test_grid():
    images = list(torch.arange(3 * 2 * 2, dtype=torch.uint8).reshape(3, 2, 2, 1).numpy())
    grid = make_grid(images, columns=2, cell=4, gap=1)
    assert grid.size == (2 * 5 + 1, 2 * 5 + 1)
    assert grid.getpixel((1, 1)) == 0
    assert grid.getpixel((9, 4)) == 7  # last pixel of the second image
    assert grid.getpixel((2, 7)) == 8
    assert grid.getpixel((0, 0)) == 96
