"""The order of the data, cached and streamed."""

import dataclasses
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.columns import DEFAULT, Derived, Label, Sources, Text
from hfgen.data.columns import Image as ImageColumn
from hfgen.data.config import DataConfig
from hfgen.data.streams import CachedStream, StreamedStream, balanced_order, open_stream, order
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import notes_to


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return CachedStream({"train": open_images(DataConfig(cache_dir=str(tmp_path_factory.mktemp("cache"))))}, seed=3)


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
    assert (batch["image"].numpy() == cached.data["train"].images[rows]).all()
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (5,)


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
    return batches.read(0, count)["image"][:, 0, 0, 0].tolist()


def test_stream_info(stream_config):
    info = StreamedStream(stream_config, seed=0).info
    assert (info.num_images, info.mode, info.resolution, info.class_names) == (None, "L", 6, ("even", "odd"))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_once_per_epoch(stream_config, world_size, workers):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers)
    share = 48 // world_size
    counts = Counter()
    readers = world_size * max(1, workers)
    for rank in range(world_size):
        counts.update(numbers(StreamedStream(config, 0, rank=rank, world_size=world_size), share))
    if 48 % readers == 0 and (readers <= 4 and 4 % readers == 0 or readers > 4):  # equal shares
        assert counts == Counter(range(48))
    else:
        assert set(counts) <= set(range(48)) and max(counts.values()) <= 2


def test_a_stream_is_shuffled_differently_in_each_epoch_and_labels_belong(stream_config):
    batches = StreamedStream(stream_config, seed=0)
    first, second = batches.read(0, 48), batches.read(0, 48)
    assert first["image"][:, 0, 0, 0].tolist() != second["image"][:, 0, 0, 0].tolist()
    assert first["image"][:, 0, 0, 0].tolist() != list(range(48))
    assert torch.equal(first["image"][:, 0, 0, 0] % 2, first["label"])
    assert numbers(StreamedStream(stream_config, seed=1), 48) != first["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("rank", "world_size", "workers"), [(0, 1, 0), (1, 2, 0), (0, 1, 3), (2, 6, 0), (1, 2, 3)])
@pytest.mark.parametrize("taken", [1, 23, 61])
def test_a_resumed_stream_goes_on_exactly(stream_config, rank, world_size, workers, taken):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers)
    whole = StreamedStream(config, 5, rank=rank, world_size=world_size)
    expected = numbers(whole, taken + 40)[taken:]
    first = StreamedStream(config, 5, rank=rank, world_size=world_size)
    first.read(0, taken)
    state = first.state()
    second = StreamedStream(config, 5, rank=rank, world_size=world_size)
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
    batches = StreamedStream(config, seed=0)
    for _ in range(3):
        assert sorted(numbers(batches, 40)) == list(range(40))
    expected = numbers(batches, 60)
    again = StreamedStream(config, seed=0)
    again.read(0, 73)  # into the second epoch
    state = again.state()
    resumed = StreamedStream(config, seed=0)
    resumed.restore(state)
    assert numbers(resumed, 47 + 60)[47:] == expected


@pytest.mark.parametrize("workers", [1, 6])
def test_a_file_is_opened_once_however_many_blocks_it_has(stream_config, workers, monkeypatch):
    config = dataclasses.replace(stream_config, dataloader_num_workers=workers, shuffle_buffer_size=2)
    reader, other = (StreamedStream(config, seed=0)._readers[0] for _ in range(2))
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
    batches = StreamedStream(dataclasses.replace(stream_config, dataloader_num_workers=2), seed=0)
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
    images = StreamedStream(config, seed=0).read(0, 8)["image"]
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
        StreamedStream(config, seed=0).read(0, 6)
    config = dataclasses.replace(config, skip_corrupt_images=True)
    assert sorted(numbers(StreamedStream(config, seed=0), 5)) == [0, 1, 2, 4, 5]


def labelled(folder, *labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.new("L", (6, 6), number) for number in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return DataConfig(dataset_name=str(folder), streaming=True)


@pytest.mark.parametrize(
    ("labels", "line"),
    [((0, None, -1, 1), []), ((None, -1), ["{}: none of the first 2 images of the stream has a class."])],
)
def test_images_without_a_class_in_a_stream(tmp_path, labels, line):
    told = []
    with notes_to(told.append):
        stream = StreamedStream(labelled(tmp_path, *labels), seed=0)
    assert told == [text.format(tmp_path.name) for text in line]
    assert sorted(stream.read(0, len(labels))["label"].tolist()) == sorted(
        -1 if label is None else label for label in labels
    )
    stream.needs_labels = True
    with pytest.raises(UserError, match="an image of the stream of .* has no class, and each needs one"):
        stream.read(0, len(labels))


def test_what_datasets_cannot_read_of_a_stream_is_one_line(tmp_path):
    config = labelled(tmp_path, *[0, 1] * 200)
    stream = StreamedStream(config, seed=0)  # which has looked at the first rows
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(
        UserError, match="the stream of .* cannot be read: .*train.parquet.*`resume_from_checkpoint`"
    ) as e:
        stream.read(0, 1)
    assert "\n" not in str(e.value)


def test_other_number_of_readers_cannot_resume(stream_config):
    state = StreamedStream(stream_config, 0).state()
    with pytest.raises(UserError, match="dataloader_num_workers"):
        StreamedStream(dataclasses.replace(stream_config, dataloader_num_workers=2), 0).restore(state)


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


# Several columns and sources


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two sets of 7 and 5 images whose gray values tell which they are."""
    folder = tmp_path_factory.mktemp("two")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    for name, numbers in (("a", range(7)), ("b", range(100, 105))):
        rows = {"image": [Image.new("L", (6, 6), number) for number in numbers], "label": [n % 2 for n in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / name / "train.parquet")
    a, b = (DataConfig(dataset_name=str(folder / name), cache_dir=str(folder / "cache")) for name in "ab")
    return a, Sources({"a": ImageColumn(), "b": ImageColumn(source="b"), "label": Label(source="b")}, {"b": b})


def test_two_sources_have_their_own_orders_and_lengths(two):
    config, spec = two
    stream = open_stream(spec, config, seed=3)
    assert stream.info.num_images == 7 and stream.info.sources["b"].num_images == 5
    batch = stream.read(0, 35)
    a, b = (batch[name][:, 0, 0, 0].tolist() for name in "ab")
    alone = open_stream({"a": ImageColumn()}, config, seed=3).read(0, 35)["a"]
    assert torch.equal(batch["a"], alone)  # the first source is not moved by another one
    for values, size, first in ((a, 7, 0), (b, 5, 100)):
        epochs = [values[start : start + size] for start in range(0, 35, size)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [value - 100 for value in b[:5]] != order(3, 0, 5).tolist()
    assert torch.equal(batch["b"][:, 0, 0, 0] % 2, batch["label"])
    parts = [stream.read(start, 4) for start in range(0, 32, 4)]
    assert torch.equal(torch.cat([part["b"] for part in parts]), batch["b"][:32])
    assert torch.equal(open_stream(spec, config, seed=3).read(9, 3)["b"], batch["b"][9:12])


def test_balance_is_of_the_source_that_asks_for_it(two):
    config, spec = two
    balanced = dataclasses.replace(spec.sources["b"], balance_classes=True)
    labels = open_stream(Sources(spec.columns, {"b": balanced}), config, seed=3).read(0, 50)["label"]
    assert labels.bincount().tolist() == [25, 25] or abs(labels.sum().item() - 25) <= 5
    with pytest.raises(UserError, match="`balance_classes` needs labels"):
        open_stream({"a": ImageColumn()}, dataclasses.replace(config, balance_classes=True), seed=3)


@pytest.fixture(scope="module")
def pair_config(tmp_path_factory):
    """Twelve rows in each of three files: gray values n and 100 + n, oblong, and a text that says n."""
    folder = tmp_path_factory.mktemp("pairs")
    ramp = np.tile(np.arange(12, dtype=np.uint8) * 5, (6, 1))
    features = datasets.Features(
        {"image": datasets.Image(), "target": datasets.Image(), "caption": datasets.Value("string")}
    )
    for shard in range(3):
        numbers = range(shard * 12, shard * 12 + 12)
        pixels = [ramp + number if number % 2 else ramp.T + number for number in numbers]
        rows = {
            "image": [Image.fromarray(array.astype(np.uint8)) for array in pixels],
            "target": [Image.fromarray((array + 100).astype(np.uint8)) for array in pixels],
            "caption": [None if number % 5 == 0 else f"№ {number}" for number in numbers],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"train-{shard}.parquet")
    return DataConfig(
        dataset_name=str(folder / "data"), resolution=6, shuffle_buffer_size=5, cache_dir=str(folder / "cache")
    )


PAIR = {"image": ImageColumn(), "target": ImageColumn(), "caption": Text()}


def test_pairs_and_texts_from_the_cache(pair_config):
    batch = open_stream(PAIR, pair_config, seed=0).read(0, 36)
    assert batch["image"].shape == (36, 1, 6, 12) and torch.equal(*batch.layouts.values())
    numbers = batch["image"][:, 0, 0, 0].tolist()
    assert torch.equal(batch["image"].int() + 100, batch["target"].int())
    assert batch["caption"] == tuple(None if number % 5 == 0 else f"№ {number}" for number in numbers)
    assert "label" not in batch and batch.get("label") is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 20, 36, 50])
def test_a_stream_of_pairs_and_texts_goes_on_exactly(pair_config, workers, taken):
    config = dataclasses.replace(pair_config, streaming=True, dataloader_num_workers=workers)
    whole = open_stream(PAIR, config, seed=5)
    first, expected = whole.read(0, taken), whole.read(0, 30)
    for batch in (first, expected):
        assert batch["image"].shape[1:] == (1, 6, 6)
        assert torch.equal(batch["image"].int() + 100, batch["target"].int())  # cropped alike
        numbers = batch["image"].amin(dim=(1, 2, 3)).tolist()
        for number, caption in zip(numbers, batch["caption"], strict=True):
            assert caption is None or (number - int(caption[2:])) % 5 == 0
    assert None in first["caption"] + expected["caption"]
    half = open_stream(PAIR, config, seed=5)
    half.read(0, taken)
    resumed = open_stream(PAIR, config, seed=5)
    resumed.restore(half.state())
    again = resumed.read(0, 30)
    assert again["caption"] == expected["caption"] and torch.equal(again["image"], expected["image"])


def test_the_state_of_an_older_stream_is_understood(stream_config):
    first, second = (StreamedStream(stream_config, seed=0) for _ in range(2))
    first.read(0, 7)
    state = first.state()
    assert state["readers"][0]["shard_state"] is not None
    state["readers"] = [{"place" if k == "shard_state" else k: v for k, v in r.items()} for r in state["readers"]]
    second.restore(state)
    assert numbers(second, 20) == numbers(first, 20)


def save(folder, *sizes):
    images = [{f"image{n}": Image.new("L", size) for n, size in enumerate(sizes)}]
    features = datasets.Features({name: datasets.Image() for name in images[0]})
    datasets.Dataset.from_list(images, features=features).to_parquet(folder / "data" / "train.parquet")
    return DataConfig(dataset_name=str(folder / "data"), cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_other_geometry_are_refused(tmp_path, streaming):
    spec = {"image": ImageColumn(), "target": ImageColumn()}
    config = dataclasses.replace(save(tmp_path, (8, 8), (16, 16)), streaming=streaming)
    with pytest.raises(UserError, match="'image' have 8 pixels and those of 'target' 16: give one `resolution`"):
        open_stream(spec, config, 0)
    assert open_stream(spec, dataclasses.replace(config, resolution=8), 0).read(0, 1)["target"].shape[2:] == (8, 8)
    config = dataclasses.replace(save(tmp_path / "wide", (8, 16), (16, 8)), resolution=8, streaming=streaming)
    with pytest.raises(UserError, match="differ in shape.*set `center_crop`"):
        open_stream(spec, config, 0).read(0, 1)
    assert len(open_stream(spec, dataclasses.replace(config, center_crop=True), 0).read(0, 1)) == 2


def test_kept_columns_of_oblong_images_are_refused(pair_config):
    spec = {"image": ImageColumn(), "latent": Derived(("image",))}
    with pytest.raises(UserError, match="`center_crop` is off.*'latent'.*encode live"):
        open_stream(spec, pair_config, 0)
    open_stream(spec, dataclasses.replace(pair_config, center_crop=True), 0)


def test_batches_move(cached):
    batch = cached.read(0, 3)
    moved = batch.to(torch.device("meta"))
    assert list(moved) == list(DEFAULT) and moved["image"].device.type == "meta"
    assert cached.state() is None
