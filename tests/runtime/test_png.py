"""Grids."""

import numpy as np
import torch

from hfgen.runtime.png import SQUARES, enlarge, make_grid


def test_grid():
    images = list(torch.arange(3 * 2 * 2, dtype=torch.uint8).reshape(3, 2, 2, 1).numpy())
    grid = make_grid(images, columns=2, cell=4, gap=1)
    assert grid.size == (2 * 5 + 1, 2 * 5 + 1)
    assert grid.getpixel((1, 1)) == 0
    assert grid.getpixel((9, 4)) == 7  # last pixel of the second image
    assert grid.getpixel((2, 7)) == 8
    assert grid.getpixel((0, 0)) == 96


def test_transparent_images_lie_over_squares():
    clear, red = np.zeros((4, 4, 4), np.uint8), np.tile(np.array([200, 0, 0, 255], np.uint8), (4, 4, 1))
    grid = make_grid([clear, red], columns=2, cell=32, gap=2)
    assert grid.mode == "RGB" and grid.size == (2 * 34 + 2, 36)
    left = np.asarray(grid)[2:34, 2:34]
    assert {tuple(pixel) for pixel in left.reshape(-1, 3)} == {(level,) * 3 for level in SQUARES}
    assert (np.asarray(grid)[2:34, 36:68] == (200, 0, 0)).all()


def test_titles_and_empty_places():
    image = np.full((8, 8, 1), 200, np.uint8)
    plain = make_grid([image, image, image, None], 2, cell=32)
    titled = make_grid([image, image, image, None], 2, cell=32, titles=["cats", "a name that is far too long"])
    assert titled.size == (plain.width, plain.height + 20)
    assert (np.asarray(titled)[20:] == np.asarray(plain)).all()
    assert np.asarray(titled)[:20].min() < 100 and (np.asarray(plain)[-30:-5, -30:-5] == 96).all()


def test_pixels_are_enlarged_as_they_are():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarge(image, 3)
    assert large.shape == (6, 6, 3) and (large[::3, ::3] == image).all() and (large[2, 5] == image[0, 1]).all()
