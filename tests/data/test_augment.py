"""Augmentation: per image, on tensors, off by default."""

import pytest
import torch

from hfgen.data import augment
from hfgen.data.augment import crop_strips
from hfgen.data.config import DataConfig
from hfgen.data.streams import RawBatch
from hfgen.training.random import StepRandom


@pytest.fixture
def batch():
    images = torch.randint(0, 256, (16, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return RawBatch({"image": images})


def prepare(raw, config, random):
    return augment.prepare(raw, config, random)["image"]


def stream(start=0, stop=None, seed=0):
    return StepRandom(seed, 0, 16, start, stop, "augmentation")


def test_off_by_default(batch):
    images = prepare(batch, DataConfig(), stream())
    assert images.dtype == torch.float32
    assert torch.equal(((images + 1) * 127.5).round().to(torch.uint8), batch["image"])
    assert (images.min() >= -1) and (images.max() <= 1)


ALL = DataConfig(random_flip=True, random_rotation=20, random_scale=0.2, random_crop=2, color_jitter=0.3)


def test_each_image_draws_its_own_and_slices_agree(batch):
    images = prepare(batch, ALL, stream())
    assert torch.equal(images, prepare(batch, ALL, stream()))
    assert not torch.equal(images, prepare(batch, ALL, stream(seed=1)))
    assert images.abs().max() <= 1
    part = prepare(RawBatch({"image": batch["image"][5:9]}), ALL, stream(5, 9))
    torch.testing.assert_close(part, images[5:9], rtol=0, atol=1e-6)
    same = RawBatch({"image": batch["image"][:1].expand(16, -1, -1, -1)})
    assert len({tuple(image.flatten().tolist()) for image in prepare(same, ALL, stream())}) == 16


def test_flip_mirrors_about_half(batch):
    plain = prepare(batch, DataConfig(), stream())
    flipped = prepare(batch, DataConfig(random_flip=True), stream())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, plain, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, plain, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 4 <= sum(mirrored) <= 12


def test_a_shift_moves_whole_pixels(batch):
    plain = prepare(batch, DataConfig(), stream())
    moved = prepare(batch, DataConfig(random_crop=2), stream())
    shifts = set()
    for before, after in zip(plain, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.allclose(after[:, 2:7, 2:7], before[:, 2 + dy : 7 + dy, 2 + dx : 7 + dx], atol=1e-4)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 5


def test_rotation_and_scale_keep_the_centre(batch):
    plain = prepare(batch, DataConfig(), stream())
    for config in (DataConfig(random_rotation=30), DataConfig(random_scale=0.5)):
        moved = prepare(batch, config, stream())
        torch.testing.assert_close(moved[:, :, 4, 4], plain[:, :, 4, 4], atol=1e-4, rtol=0)
        assert not torch.allclose(moved, plain, atol=0.1)


def test_a_quarter_turn_is_exact(batch):
    plain = prepare(batch, DataConfig(), stream())

    class Quarter:
        def uniform(self, *shape):
            return torch.full((16, *shape), 1 - 1e-6)  # the largest angle

    turned = prepare(batch, DataConfig(random_rotation=90), Quarter())
    assert min((turned - plain.rot90(k, (2, 3))).abs().max().item() for k in (1, 3)) < 1e-4


def test_colour_leaves_alpha_alone():
    images = torch.randint(0, 256, (16, 4, 5, 5), dtype=torch.uint8)
    changed = prepare(RawBatch({"image": images}), DataConfig(color_jitter=0.5), stream())
    plain = prepare(RawBatch({"image": images}), DataConfig(), stream())
    assert torch.equal(changed[:, 3], plain[:, 3])
    assert not torch.allclose(changed[:, :3], plain[:, :3])


def test_strips_are_cropped_within_their_length():
    strips = torch.arange(10).repeat(4, 1, 4, 1)  # (B, C, R, L) with R 4 and L 10: the value is the column
    layout = torch.tensor([[10, 0], [10, 1], [6, 0], [4, 0]])
    cropped = crop_strips(strips, layout, torch.tensor([[0.0], [0.99], [0.99], [0.99]]))
    assert cropped[0, 0, 0].tolist() == [0, 1, 2, 3]
    assert cropped[1, 0, :, 0].tolist() == [6, 7, 8, 9]  # upright again
    assert cropped[2, 0, 0].tolist() == [2, 3, 4, 5]
    assert cropped[3, 0, 0].tolist() == [0, 1, 2, 3]


OPTIONS = {
    "random_flip": True,
    "random_rotation": 30.0,
    "random_scale": 0.3,
    "random_crop": 2,
    "color_jitter": 0.4,
}


@pytest.mark.parametrize("options", [*({name: value} for name, value in OPTIONS.items()), OPTIONS])
@pytest.mark.parametrize("oblong", [False, True])
def test_pairs_stay_aligned(batch, options, oblong):
    """What is done to an image does not depend on what stands beside it, and is done to its partner alike."""
    images, layouts = batch["image"], {}
    if oblong:
        images = torch.cat([images, images.flip(2)], 3)
        layout = torch.stack([torch.randint(9, 19, (16,)), torch.arange(16) % 2], 1)
        layouts = {"image": layout, "target": layout}
    pair = RawBatch({"image": images, "target": images.clone(), "label": torch.arange(16)}, layouts)
    config = DataConfig(**options)
    both = augment.prepare(pair, config, stream())
    alone = RawBatch({"image": images}, {"image": layouts["image"]} if oblong else {})
    assert torch.equal(both["image"], prepare(alone, config, stream()))
    assert torch.equal(both["image"], both["target"]) and torch.equal(both["label"], torch.arange(16))
    assert not torch.equal(both["image"], augment.prepare(pair, config, stream(seed=1))["image"])


def test_sources_draw_separately(batch):
    two = RawBatch({"a": batch["image"], "b": batch["image"].clone()}, sources={"a": "train", "b": "b"})
    prepared = augment.prepare(two, ALL, stream())
    assert torch.equal(prepared["a"], prepare(batch, ALL, stream()))
    assert not torch.equal(prepared["a"], prepared["b"])


def test_the_variant_follows_the_flip(batch):
    """Each row of the derived column says which of its variants it is."""
    variants = torch.stack([torch.zeros(16, 2, 3), torch.ones(16, 2, 3)], 1)
    raw = RawBatch({"image": batch["image"], "latent": variants, "text": ("a",) * 16})
    flipped = augment.prepare(raw, DataConfig(random_flip=True), stream())
    plain = augment.prepare(raw, DataConfig(), stream())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped["image"], plain["image"], strict=True)]
    assert flipped["latent"].shape == (16, 2, 3) and flipped["latent"][:, 0, 0].bool().tolist() == mirrored
    assert 0 < sum(mirrored) < 16 and not plain["latent"].any() and plain["text"] == raw["text"]
    one = augment.prepare(RawBatch({"latent": variants[:, :1]}), DataConfig(random_flip=True), stream())
    assert one["latent"].shape == (16, 2, 3)
