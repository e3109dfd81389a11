"""Objectives of translation: contrast of places, and the pool."""

import math

import pytest
import torch
from torch.nn import functional as F

from hfgen.objectives.translation import ImagePool, PatchProjection, patch_contrast


def test_contrast_is_cross_entropy():
    torch.manual_seed(0)
    query, key = (F.normalize(torch.randn(3, 7, 5), dim=-1) for _ in range(2))
    expected = torch.stack([F.cross_entropy(q @ k.T / 0.07, torch.arange(7)) for q, k in zip(query, key, strict=True)])
    torch.testing.assert_close(patch_contrast(query, key), expected)
    same = torch.ones(2, 7, 5) / 5**0.5
    torch.testing.assert_close(patch_contrast(same, same), torch.full((2,), math.log(7)))
    apart = torch.eye(5).expand(2, 5, 5)
    assert (patch_contrast(apart, apart) < 1e-4).all()


def test_no_gradient_goes_to_the_input():
    query, key = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 4, 3, requires_grad=True)
    patch_contrast(query, key).sum().backward()
    assert query.grad is not None and key.grad is None


def test_projection():
    torch.manual_seed(0)
    project = PatchProjection([3, 6], width=8)
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 6, 2, 2)]
    places = torch.rand(2, 10)
    first, second = project(maps, places)
    assert first.shape == second.shape == (2, 10, 8)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2, 10))
    row, column = divmod(int(places[1, 4] * 64), 8)
    torch.testing.assert_close(first[1, 4], F.normalize(project.layers[0](maps[0][1, :, row, column]), dim=-1))


def reference(size, images, draws):
    """The pool as it is usually written."""
    pool, seen = [], []
    for image, (chance, place) in zip(images, draws, strict=True):
        if len(pool) < size:
            pool.append(image)
            seen.append(image)
        elif chance < 0.5:
            index = int(place * size)
            seen.append(pool[index])
            pool[index] = image
        else:
            seen.append(image)
    return torch.stack(seen)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_pool(size):
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 1, 2, 2)
    draws = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    pool, expected = ImagePool(size, (1, 2, 2)), reference(size, images, draws)
    seen = [pool.exchange(images[start : start + 8], draws[start : start + 8]) for start in range(0, 40, 8)]
    assert torch.equal(torch.cat(seen), expected)
    again = ImagePool(size, (1, 2, 2))
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.exchange(images, draws), pool.exchange(images, draws))


def test_without_a_pool():
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(ImagePool(0, (1, 2, 2)).exchange(images, torch.zeros(2, 2)), images)
