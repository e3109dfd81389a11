"""The pipeline of translation: kinds and sizes of images, both ways, and mistakes."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import ImageTranslationPipeline, ResNetTranslator


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    options = {"sample_size": 8, "base_channels": 4, "num_blocks": 1}
    there = ResNetTranslator(**options, in_channels=1, out_channels=3)
    return ImageTranslationPipeline(there, ResNetTranslator(**options, in_channels=3, out_channels=1))


def test_kinds_of_images(pipe):
    pixels = (torch.rand(2, 1, 12, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    expected = pipe(pixels, output_type="pt").images
    assert expected.shape == (2, 3, 12, 8) and expected.min() >= 0 and expected.max() <= 1
    arrays = pixels.movedim(1, -1).numpy()
    pictures = [Image.fromarray((array[..., 0] * 255).round().astype(np.uint8)) for array in arrays]
    for given in (arrays, list(arrays), pictures, list(pixels), [picture.convert("RGB") for picture in pictures]):
        found = pipe(given, output_type="pt").images
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert torch.equal(pipe(pixels[0], output_type="pt").images, pipe(pixels[:1], output_type="pt").images)
    assert pipe(pixels, output_type="np").images.shape == (2, 12, 8, 3)
    made = pipe(pixels).images
    assert [image.size for image in made] == [(8, 12)] * 2 and made[0].mode == "RGB"
    (listed,) = pipe(pixels, return_dict=False)
    assert len(listed) == 2


def test_images_of_several_sizes(pipe):
    given = [Image.new("L", (8, 8), 9), Image.new("L", (20, 11), 99)]
    made = pipe(given).images
    assert [image.size for image in made] == [(8, 8), (20, 11)]
    tensors = pipe(given, output_type="pt").images
    assert [tuple(tensor.shape) for tensor in tensors] == [(3, 8, 8), (3, 11, 20)]


def test_both_ways(pipe):
    back = pipe(torch.rand(1, 3, 8, 8), direction="b2a", output_type="pt").images
    assert back.shape == (1, 1, 8, 8) and pipe.directions == ("a2b", "b2a")
    lone = ImageTranslationPipeline(pipe.a2b)
    assert lone.directions == ("a2b",)
    with pytest.raises(ValueError, match="direction is 'b2a', but must be one of a2b"):
        lone(torch.rand(1, 3, 8, 8), direction="b2a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(1, 3, 8, 8), "image has 3 channels, but this direction takes 1: convert it"),
        (torch.rand(1, 1, 8, 8) + 1, "must be in .0, 1.: scale it"),
        ([], "image has no images"),
        ("photo.png", "image is a str: give PIL images, arrays or tensors"),
        ([torch.rand(2, 1, 8, 8), torch.rand(1, 1, 9, 8)], "image has batches of several sizes"),
        (torch.rand(8, 8), r"image has shape \(8, 8\), but must be an image or a batch of them"),
    ],
)
def test_mistakes(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        pipe(given)
    with pytest.raises(ValueError, match="output_type is 'jpg', but must be one of pil, np, pt"):
        pipe(torch.rand(1, 1, 8, 8), output_type="jpg")
