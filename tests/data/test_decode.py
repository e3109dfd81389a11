"""From the bytes of an image file to pixels."""

import numpy as np
import pytest
from PIL import Image

from hfgen.data.decode import fill_hidden, fit, image_mode, to_mode


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("1", "L"),
        ("L", "L"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("LA", "RGBA"),
        ("CMYK", "RGB"),
        ("I;16", "L"),
    ],
)
def test_channels_follow_the_image(mode, wanted):
    image = Image.new(mode, (4, 4))
    assert image_mode(image) == wanted
    assert to_mode(image, wanted).mode == wanted


def test_palette_with_transparency():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    assert image_mode(image) == "RGBA"


def test_16_bit_images_keep_their_range():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert np.asarray(to_mode(Image.fromarray(values), "L")).tolist() == [[0, 1, 128, 255]]


def test_fit_centre_crop_and_strips():
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    pixels, length, transposed = fit(image, 6, center_crop=True)
    assert pixels.shape == (1, 6, 6)
    assert (pixels[0] == np.asarray(image)[:, 2:8]).all()
    assert (length, transposed) == (6, False)
    pixels, length, transposed = fit(image.transpose(Image.Transpose.ROTATE_90), 6, center_crop=False)
    assert pixels.shape == (1, 6, 10)
    assert (length, transposed) == (10, True)
    panorama, length, _ = fit(Image.new("L", (100, 5)), 5, center_crop=False)
    assert panorama.shape == (1, 5, 10)  # what is kept of very oblong images


def test_hidden_colours_are_those_around_them():
    """What is hidden is black in most files, and models showed it as dark fringes."""
    pixels = np.zeros((4, 13, 22), np.uint8)
    pixels[:, 4:9, 3:8] = np.array([250, 40, 10, 255])[:, None, None]
    filled = fill_hidden(pixels)
    assert (filled[:3].reshape(3, -1).T == (250, 40, 10)).all() and (filled[3] == pixels[3]).all()
    pixels[:, 4:9, 14:20] = np.array([20, 40, 210, 128])[:, None, None]
    filled = fill_hidden(pixels)
    seen = pixels[3] > 0
    assert (filled[:, seen] == pixels[:, seen]).all(), "what is seen, half or wholly, stays"
    assert filled[0, 6, 1] > 200 > 70 > filled[0, 6, 21], "the nearer the more"
    assert (filled[1] == 40).all() and (filled[0] >= 20).all() and (filled[0] <= 250).all()
    assert (fill_hidden(filled) == filled).all()
    for plain in (np.full((4, 5, 5), 255, np.uint8), np.zeros((4, 5, 5), np.uint8)):
        assert fill_hidden(plain) is plain
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    kept, _, _ = fit(image, 13, True, keep_hidden=True)
    assert kept[:3, 0, 0].tolist() == [0, 0, 0] and fit(image, 13, True)[0][1, 0, 0] == 40
