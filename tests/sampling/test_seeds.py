"""The seeds of images."""

import torch

from hfgen.sampling.sampler import image_generators


def test_an_images_seed_can_be_repeated_by_hand():
    (generator,) = image_generators(5, [3])
    assert torch.equal(torch.randn(4, generator=generator), torch.randn(4, generator=torch.Generator().manual_seed(8)))
