"""The order of the data, cached and streamed."""

import dataclasses
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.data.streams import CachedBatches, StreamedBatches, balanced_order, order
from hfgen.runtime.errors import UserError


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return CachedBatches(open_images(DataConfig(cache_dir=str(tmp_path_factory.mktemp("cache")))), seed=3)


def test_an_epoch_is_a_permutation_and_epochs_differ(cached):
    size = cached.info.num_images
    assert sorted(cached.rows(0, size).tolist()) == list(range(size))
    assert cached.rows(0, size).tolist() != cached.rows(size, size).tolist()
    assert order(3, 0, 50).tolist() == order(3, 0, 50).tolist()
    assert order(3, 0, 50).tolist() != order(4, 0, 50).tolist()


def test_rows_depend_on_the_position_alone(cached):
    size = cached.info.num_images
    whole = cached.rows(size - 10, 3 * size)  # over two ends of an epoch
    parts = torch.cat([cached.rows(size - 10 + start, 7) for start in range(0, 3 * size - 7, 7)])
    assert torch.equal(whole[: len(parts)], parts)


def test_read(cached):
    batch = cached.read(100, 5)
    rows = cached.rows(100, 5).numpy()
    assert (batch.images.numpy() == cached._images[rows]).all()
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == (5,)


@pytest.fixture(scope="module")
def stream_config(tmp_path_factory):
    """Twelve gray images in each of four parquet files; image n has the gray value n and the label n % 2."""
    folder = tmp_path_factory.mktemp("stream")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    for shard in range(4):
        numbers = range(shard * 12, shard * 12 + 12)
        images = [Image.new("L", (6, 6), number) for number in numbers]
        rows = {"image": images, "label": [number % 2 for number in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{shard}.parquet")
    return DataConfig(dataset_name=str(folder), streaming=True, shuffle_buffer_size=5)


def numbers(batches, count):
    return batches.read(0, count).images[:, 0, 0, 0].tolist()


def test_stream_info(stream_config):
    info = StreamedBatches(stream_config, seed=0).info
    assert (info.num_images, info.mode, info.resolution, info.class_names) == (None, "L", 6, ("even", "odd"))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_once_per_epoch(stream_config, world_size, workers):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers)
    share = 48 // world_size
    counts = Counter()
    readers = world_size * max(1, workers)
    for rank in range(world_size):
        counts.update(numbers(StreamedBatches(config, 0, rank=rank, world_size=world_size), share))
    if 48 % readers == 0 and (readers <= 4 and 4 % readers == 0 or readers > 4):  # equal shares
        assert counts == Counter(range(48))
    else:
        assert set(counts) <= set(range(48)) and max(counts.values()) <= 2


def test_a_stream_is_shuffled_differently_in_each_epoch_and_labels_belong(stream_config):
    batches = StreamedBatches(stream_config, seed=0)
    first, second = batches.read(0, 48), batches.read(0, 48)
    assert first.images[:, 0, 0, 0].tolist() != second.images[:, 0, 0, 0].tolist()
    assert first.images[:, 0, 0, 0].tolist() != list(range(48))
    assert torch.equal(first.images[:, 0, 0, 0] % 2, first.labels)
    assert numbers(StreamedBatches(stream_config, seed=1), 48) != first.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("rank", "world_size", "workers"), [(0, 1, 0), (1, 2, 0), (0, 1, 3), (2, 6, 0), (1, 2, 3)])
@pytest.mark.parametrize("taken", [1, 7, 23, 48, 61])
def test_a_resumed_stream_goes_on_exactly(stream_config, rank, world_size, workers, taken):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers)
    whole = StreamedBatches(config, 5, rank=rank, world_size=world_size)
    expected = numbers(whole, taken + 40)[taken:]
    first = StreamedBatches(config, 5, rank=rank, world_size=world_size)
    first.read(0, taken)
    state = first.state()
    second = StreamedBatches(config, 5, rank=rank, world_size=world_size)
    second.restore(state)
    assert numbers(second, 40) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_one_file_larger_than_the_buffer(tmp_path, workers):
    features = datasets.Features({"image": datasets.Image()})
    images = [Image.new("L", (6, 6), number) for number in range(40)]
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "train.parquet")
    config = DataConfig(
        dataset_name=str(tmp_path), streaming=True, shuffle_buffer_size=7, dataloader_num_workers=workers
    )
    batches = StreamedBatches(config, seed=0)
    for _ in range(3):
        assert sorted(numbers(batches, 40)) == list(range(40))
    expected = numbers(batches, 60)
    again = StreamedBatches(config, seed=0)
    again.read(0, 73)  # into the second epoch
    state = again.state()
    resumed = StreamedBatches(config, seed=0)
    resumed.restore(state)
    assert numbers(resumed, 47 + 60)[47:] == expected


@pytest.mark.parametrize("workers", [1, 6])
def test_a_file_is_opened_once_however_many_blocks_it_has(stream_config, workers, monkeypatch):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers, shuffle_buffer_size=2)
    reader, other = (StreamedBatches(config, seed=0)._readers[0] for _ in range(2))
    opened, shard = [], datasets.IterableDataset.shard

    def counted(dataset, **options):
        if dataset is reader.stream._dataset:  # readers of other tests may be at work
            opened.append(options)
        return shard(dataset, **options)

    monkeypatch.setattr(datasets.IterableDataset, "shard", counted)
    state, states, blocks = reader.state, [], []
    while state["epoch"] < 2:
        states.append(state)
        block, state = reader._block(state)
        blocks.append(block)
    assert len(opened) == 2 * 4 and len(states) > len(opened)
    for state, block in zip(states, blocks, strict=True):
        other._open = None  # as after a restart
        assert other._block(state)[0] == block


def test_readers_stop(stream_config):
    batches = StreamedBatches(dataclasses.replace(stream_config, dataloader_num_workers=2), seed=0)
    batches.read(0, 6)
    for reader in batches._readers:
        assert reader._thread.is_alive()
        reader._stop()
        assert not reader._thread.is_alive()


def test_a_stream_of_oblong_images_is_cropped(tmp_path):
    pixels = np.tile(np.arange(24, dtype=np.uint8), (8, 1))
    for number in range(8):
        Image.fromarray(pixels if number % 2 else pixels.T).save(tmp_path / f"{number}.png")
    config = DataConfig(train_data_dir=str(tmp_path), streaming=True, resolution=8)
    images = StreamedBatches(config, seed=0).read(0, 8).images
    assert images.shape == (8, 1, 8, 8)
    starts = images[:, 0].amin(dim=(1, 2)).tolist()
    assert len(set(starts)) > 2  # at different places


def test_corrupt_images_in_a_stream(tmp_path):
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    good = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(good[: len(good) // 2])
    config = DataConfig(train_data_dir=str(tmp_path), streaming=True)
    with pytest.raises(UserError, match=r"3\.png.*skip_corrupt_images"):
        StreamedBatches(config, seed=0).read(0, 6)
    config = dataclasses.replace(config, skip_corrupt_images=True)
    assert sorted(numbers(StreamedBatches(config, seed=0), 5)) == [0, 1, 2, 4, 5]


def test_other_number_of_readers_cannot_resume(stream_config):
    state = StreamedBatches(stream_config, 0).state()
    with pytest.raises(UserError, match="dataloader_num_workers"):
        StreamedBatches(dataclasses.replace(stream_config, dataloader_num_workers=2), 0).restore(state)


def test_balanced_order():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 5 + [-1] * 5)
    rows = balanced_order(3, 0, labels, 4)  # class 3 has no image
    assert len(rows) == 100
    counts = labels[rows].bincount(minlength=4).tolist()
    assert min(counts[:3]) >= 32 and counts[3] == 0
    assert rows[labels[rows] == 2].bincount(minlength=95)[90:].min() >= 6  # images of a rare class come in turn
    assert torch.equal(rows, balanced_order(3, 0, labels, 4))
    assert not torch.equal(rows, balanced_order(3, 1, labels, 4))
    assert not torch.equal(labels[rows], labels[rows].sort().values)
