"""Groups of similar images."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from hfgen.data.cache import open_images
from hfgen.data.columns import DEFAULT, Image
from hfgen.data.config import DataConfig
from hfgen.data.groups import ImageModel, cluster, with_groups
from hfgen.data.store import SUMS, _write_sums
from hfgen.data.streams import open_stream
from hfgen.runtime.errors import UserError


def test_well_separated_images_are_told_apart():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 300)
    images = generator.integers(0, 40, (300, 3, 40, 48)).astype(np.uint8)
    for group in range(3):
        images[truth == group, group] += 150
    found = cluster(images, 3)
    pairs = set(zip(truth.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 3  # one group each
    assert found.dtype == np.int64
    assert np.array_equal(found, cluster(images, 3))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_equal_images_make_no_noise():
    assert len(cluster(np.full((64, 1, 8, 8), 3, np.uint8), 2)) == 64


def test_groups_follow_the_digits(tmp_path):
    data = open_images(DataConfig(resolution=16, cache_dir=str(tmp_path)))
    digits = data.labels
    grouped = with_groups(data, "label", 30)
    purest = sum(np.bincount(digits[grouped.labels == group]).max() for group in range(30))
    assert purest / len(digits) > 0.8  # measured: 0.92; a tenth by chance
    assert grouped.info.class_names == tuple(map(str, range(30)))
    assert sum(grouped.info.classes.shares) == pytest.approx(1)
    assert "30 groups of similar images" in str(grouped.info)
    assert data.info.class_names == tuple(map(str, range(10)))  # the labels of the cache stay


def test_groups_are_kept_beside_the_images(tmp_path):
    config = DataConfig(resolution=8, cache_dir=str(tmp_path))
    first = open_stream(DEFAULT, config, 0, groups=5)
    (path,) = tmp_path.rglob("groups-5/groups.npy")
    assert first.info.fingerprint == open_stream(DEFAULT, config, 0, groups=5).info.fingerprint
    assert first.info.fingerprint != open_stream(DEFAULT, config, 0).info.fingerprint
    kept = np.zeros(1797, np.int64)
    np.save(path, kept)
    (path.parent / SUMS).unlink()
    _write_sums(path.parent)
    again = open_stream(DEFAULT, config, 0, groups=5)
    assert set(first.read(0, 64)["label"].tolist()) > {0}
    assert set(again.read(0, 64)["label"].tolist()) == {0}  # read, not found anew
    assert again.info.fingerprint != first.info.fingerprint  # and a run that goes on will notice


def test_mistakes(tmp_path):
    config = DataConfig(resolution=8, cache_dir=str(tmp_path))
    for count in (1, 1798):
        with pytest.raises(UserError, match=f"`num_clusters` {count} does not fit 1797 images"):
            open_stream(DEFAULT, config, 0, groups=count)
    with pytest.raises(UserError, match="`balance_classes` is about labels"):
        open_stream(DEFAULT, dataclasses.replace(config, balance_classes=True), 0, groups=5)
    streaming = dataclasses.replace(config, dataset_name="somewhere", streaming=True)
    with pytest.raises(UserError, match="`num_clusters` 5 needs all images"):
        open_stream(DEFAULT, streaming, 0, groups=5)
    with pytest.raises(UserError, match="`num_clusters` 5 makes classes of images, and these are not used here"):
        open_stream({"image": Image()}, config, 0, groups=5)


def test_data_without_classes_gets_groups(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        PIL.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    config = DataConfig(train_data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    assert open_stream(DEFAULT, config, 0).info.classes is None
    stream = open_stream(DEFAULT, config, 0, groups=3)
    assert stream.info.classes.groups and stream.info.classes.unlabelled == 0
    assert set(stream.read(0, 12)["label"].tolist()) == {0, 1, 2}


def test_groups_are_of_what_training_shows(tmp_path):
    """Oblong images wait for their crop transposed and padded: which way they are does not decide their group."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    kinds = draw.integers(0, 2, 60)
    for number, kind in enumerate(kinds):
        square = np.full((16, 16), 40, np.uint8)
        square[6 * kind + 2 : 6 * kind + 8] = 220  # a bar above or below the middle
        pixels = np.pad(square, ((0, 0), (6, 6)) if number % 2 else ((6, 6), (0, 0)), mode="edge")
        noisy = np.clip(pixels + draw.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        PIL.fromarray(noisy).save(tmp_path / "images" / f"{number:02}.png")
    config = DataConfig(train_data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"), resolution=16)
    data = open_images(config)
    assert data.images.shape == (60, 1, 16, 28)
    groups = with_groups(data, "label", 2).labels
    assert len(set(zip(groups.tolist(), kinds.tolist(), strict=True))) == 2
    centred = dataclasses.replace(config, center_crop=True)
    assert np.array_equal(groups, with_groups(open_images(centred), "label", 2).labels)
    assert len(list(tmp_path.rglob("groups-2-centre/groups.npy"))) == 1


def stripes(number=80):
    """Stripes of two directions, of any colours and phase, in images of 16 pixels."""
    draw = np.random.default_rng(0)
    kinds, place = draw.integers(0, 2, number), np.indices((16, 16))
    images = np.empty((number, 3, 16, 16), np.uint8)
    for image, kind in zip(images, kinds, strict=True):
        wave = np.sin((place[kind] + draw.uniform(0, 8)) * np.pi / 2.5)
        colours = draw.uniform(0, 255, (2, 3, 1, 1))
        image[:] = np.where(wave > 0, *colours)
    return kinds, images


def test_colour_images_are_grouped_by_what_they_are_made_of(tmp_path):
    kinds, images = stripes()

    def agreement(groups):
        return max((groups == kinds).mean(), (groups != kinds).mean())

    assert agreement(cluster(images, 2, "patches")) > 0.9
    assert np.array_equal(cluster(images, 2, "patches"), cluster(images, 2, "patches"))
    assert agreement(cluster(images, 2, "pixels")) < 0.8
    for size in ((5, 7), (64, 64)):
        small = np.random.default_rng(0).integers(0, 256, (20, 3, *size), dtype=np.uint8)
        assert set(cluster(small, 2, "patches").tolist()) == {0, 1}
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        PIL.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "images" / f"{number:02}.png")
    config = DataConfig(train_data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    colour = open_images(config)
    assert agreement(with_groups(colour, "label", 2).labels) > 0.9
    pixels = open_images(dataclasses.replace(config, cluster_features="pixels"))
    assert agreement(with_groups(pixels, "label", 2).labels) < 0.8
    gray = open_images(dataclasses.replace(config, image_mode="L"))
    assert gray.config.features_for(gray.info.mode) == "pixels"


def test_a_network_says_what_is_similar(tmp_path):
    kinds, images = stripes()
    asked = []

    def load(name):
        asked.append(name)
        return ImageModel("0" * 64, lambda part: torch.stack([line_difference(part), torch.ones(len(part))], 1))

    def line_difference(part):
        return part.float().diff(dim=2).abs().mean((1, 2, 3)) - part.float().diff(dim=3).abs().mean((1, 2, 3))

    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        PIL.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "images" / f"{number:02}.png")
    folder = {"train_data_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    data = open_images(DataConfig(**folder, cluster_features="some/model"))
    groups = with_groups(data, "label", 2, load).labels
    assert asked == ["some/model"] and max((groups == kinds).mean(), (groups != kinds).mean()) > 0.9
    with pytest.raises(UserError, match="`cluster_features` some/model is not known here: use pixels or patches"):
        with_groups(data, "label", 2)


def test_a_number_that_is_left_open(tmp_path):
    config = DataConfig(resolution=8, num_clusters=None, cache_dir=str(tmp_path))
    assert [config.groups_for(images) for images in (60_000, 1_797, 300, 80, 32, 31, 2, None)] == [
        100, 100, 18, 5, 2, 0, 0, 0,
    ]  # fmt: skip
    assert len(open_stream(DEFAULT, config, 0, groups=None).info.classes.names) == 100
    balanced = dataclasses.replace(config, balance_classes=True)
    assert open_stream(DEFAULT, balanced, 0, groups=None).info.classes.kind == "labels"  # there is something to go by
    assert dataclasses.replace(config, dataset_name="a/b", streaming=True).groups_for(60_000) == 0
    assert open_stream({"image": Image()}, config, 0, groups=None).info.classes is None


def test_features_that_compare_nothing_are_said(tmp_path, told):
    config = DataConfig(resolution=8, cache_dir=str(tmp_path), cluster_features="patches")
    open_stream(DEFAULT, config, 0)
    assert len(told) == 1 and told[0].startswith("`cluster_features` patches has nothing to do, as no groups")
    open_stream(DEFAULT, dataclasses.replace(config, cluster_features="pixels"), 0)  # as records of older runs have it
    assert len(told) == 1
