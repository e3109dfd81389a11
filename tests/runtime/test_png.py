"""Grids."""

import numpy as np
import torch
from PIL import Image, ImageFont

from hfgen.runtime.png import SQUARES, cut, enlarge, make_grid, make_table, save_gif, wrapped


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


def test_tables():
    image = np.full((8, 8, 1), 200, np.uint8)
    plain = make_table([[image, image, image], [image, None, image]], scale=2)
    assert plain.size == (3 * 20 + 4, 2 * 20 + 4) and plain.getpixel((4, 4)) == (200,) * 3
    assert plain.getpixel((26, 26)) == (96,) * 3 and plain.getpixel((0, 0)) == (96,) * 3
    assert make_table([[image]]).size == (104, 104)  # to about 96 pixels
    titled = make_table([[image, image]], ["a row"], ["left", ""], [["below", ""]])
    left = titled.width - (2 * 100 + 4)
    assert 30 < left < 100 and titled.height == 20 + 100 + 20 + 4
    pixels = np.asarray(titled)
    assert (pixels[24:120, left + 4 : left + 100] == 200).all()
    for part, written in (
        (pixels[:20, left : left + 100], True),
        (pixels[:20, left + 104 :], False),
        (pixels[20:, :left], True),
        (pixels[128:, left : left + 100], True),
        (pixels[128:, left + 104 :], False),
    ):
        assert (part.min() < 100) == written


def test_words_fit():
    font = ImageFont.load_default(size=14)
    assert cut("a name that is far too long", font, 40).startswith("a nam") and cut("\u3042", font, 40) == "?"
    lines = wrapped("nearest in the training set averyveryverylongwordindeed", font, 100)
    assert all(font.getlength(line) <= 100 for line in lines) and " ".join(lines).startswith("nearest in the")


def test_animations(tmp_path):
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    save_gif(frames, tmp_path / "a.gif", {"model": "it"}, last=500)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.info["loop"] == 0 and image.info["comment"].endswith(b": it")
        image.seek(2)
        assert image.info["duration"] == 600
