"""What becomes of images that have more than 8 bits, transparency or frames, and what is said of it."""

import dataclasses
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.columns import DEFAULT
from hfgen.data.config import DataConfig, ImagesConfig
from hfgen.data.decode import find_range, to_mode
from hfgen.data.streams import StreamedStream, open_stream
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import notes_to

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def save(folder, *arrays, suffix="tiff"):
    folder.mkdir(exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.{suffix}")
    return folder


def opened(folder, config, **changes):
    return open_images(dataclasses.replace(config, train_data_dir=str(folder), **changes))


@pytest.mark.parametrize(
    ("extrema", "expected"),
    [
        ((0, 100, True), (0, 255)),
        ((5, 255, True), (0, 255)),
        ((0, 3000, True), (0, 4095)),
        ((0, 40000, True), (0, 65535)),
        ((0, 200000, True), (0, 262143)),
        ((-1000, 3000, True), (-1000, 3000)),
        ((0.1, 0.9, False), (0, 1)),
        ((-1, 1, False), (-1, 1)),
        ((0, 4.5, False), (0, 4.5)),
        ((-3, -3, True), (-3, -2)),
    ],
)
def test_one_range(extrema, expected):
    assert find_range(*extrema) == expected


@pytest.mark.parametrize(
    ("kind", "peaks", "brightest", "said"),
    [
        (np.uint16, (4095, 3000), [255, 187], "2 of 2, with values from 0 to 4095; the range 0 to 4095"),
        (np.int32, (40000, 260, 200), [156, 1, 1], "3 of 3, with values from 0 to 40000; the range 0 to 65535"),
        (np.float32, (1.0, 0.5), [255, 128], "2 of 2, with values from 0 to 1; the range 0 to 1"),
    ],
)
def test_all_images_of_a_data_set_have_one_range(config, tmp_path, told, kind, peaks, brightest, said):
    folder = save(tmp_path / "set", *((RAMP * peak).astype(kind) for peak in peaks))
    data = opened(folder, config)
    assert data.images.max(axis=(1, 2, 3)).tolist() == brightest
    assert told == [f"set: images of more than 8 bits: {said} (`value_range`) becomes 0 to 255."]
    assert data.info.as_record()["value_range"] == list(data.info.value_range)


def test_a_window_clips_and_is_part_of_the_key(config, tmp_path, told):
    folder = save(tmp_path / "ct", (RAMP * 4000 - 1000).astype(np.int32))
    whole, window = opened(folder, config), opened(folder, config, value_range=(-200, 300))
    assert (whole.images == np.round(RAMP * 255)).mean() > 0.9
    assert window.images[0, 0, 0, 0] == 0 and window.images[0, 0, 7, 7] == 255
    inside = (window.images > 0) & (window.images < 255)
    assert 0.05 < inside.mean() < 0.2 and window.info.fingerprint != whole.info.fingerprint
    measured = ImagesConfig(dataset_name=str(folder), cache_dir=config.cache_dir, value_range=(-200.0, 300.0))
    again = open_images(measured.data((1, 8, 8), "train"))
    assert again.images.filename == window.images.filename  # what it was trained with, measured with


def test_an_empty_range_is_said_with_a_better_one(config, tmp_path, told):
    dark = (RAMP * 200).astype(np.uint16)
    hot = dark.copy()
    hot[0, 0] = 60000
    folder = save(tmp_path / "set", *[dark] * 20, hot)
    data = opened(folder, config)
    assert data.info.value_range == (0, 65535) and data.images.max() == 233
    for again in (False, True):  # also when it is in the cache
        with notes_to(told.append):
            opened(folder, dataclasses.replace(config, skip_corrupt_images=again))
        assert told[-1].endswith(
            "; most of that is empty: 99.8% of the pixels have 2 of the 256 levels, and `value_range` 0 257 would "
            "spread them."
        )
    assert len(told) == 3


def test_8_bits_keep_their_range_and_their_place_in_the_cache(config, tmp_path, told):
    folder = save(tmp_path / "set", (RAMP * 100).astype(np.uint8), suffix="png")
    data = opened(folder, config)
    assert data.images.max() == 100 and data.info.value_range is None and told == []
    same = opened(folder, config, value_range=(0, 100), background="black")
    assert same.images.filename == data.images.filename
    assert told == ["set: `value_range` changes nothing, as no image has more than 8 bits in one channel."]


def test_pixels_that_are_no_numbers(config, tmp_path):
    holes = RAMP.astype(np.float32)
    holes[3, 3] = np.nan
    folder = save(tmp_path / "set", RAMP.astype(np.float32), holes)
    with pytest.raises(UserError, match=r"image 1 .* pixels that are no finite numbers.*`skip_corrupt_images`"):
        opened(folder, config)


@pytest.mark.parametrize("value_range", [None, (0, 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_with_pixels_that_are_no_numbers_are_skipped(config, tmp_path, streaming, value_range):
    arrays = [RAMP.astype(np.float32) for _ in range(6)]
    for array in arrays[1::2]:
        array[:4] = np.nan
    folder = save(tmp_path / "set", *arrays)
    if streaming:
        config = dataclasses.replace(config, train_data_dir=str(folder), streaming=True, value_range=value_range)
        with pytest.raises(UserError, match=r"image 1 .*no finite numbers.*`skip_corrupt_images`"):
            StreamedStream(config, seed=0).read(0, 6)
        images = StreamedStream(dataclasses.replace(config, skip_corrupt_images=True), seed=0).read(0, 9)["image"]
    else:
        with pytest.raises(UserError, match=r"image 1 .*no finite numbers.*`skip_corrupt_images`"):
            opened(folder, config, value_range=value_range)
        data = opened(folder, config, skip_corrupt_images=True, value_range=value_range)
        assert (data.info.num_images, data.info.as_record()["skipped"]) == (3, 3)
        images = data.images
    assert all((np.asarray(image) == np.asarray(images[0])).all() for image in images) and images[0].max() > 100


@pytest.mark.parametrize("value", [(1,), (2, 1), (1, 2, 3), (3, 3)])
def test_ranges_that_are_none(value):
    with pytest.raises(UserError, match="`value_range` .* is no range: give two numbers"):
        DataConfig(value_range=value)


def test_the_range_of_a_stream(tmp_path, told):
    folder = save(tmp_path / "set", *((RAMP * peak).astype(np.uint16) for peak in (4095, 3000)))
    stream = StreamedStream(DataConfig(train_data_dir=str(folder), streaming=True), seed=0)
    assert sorted(stream.read(0, 2)["image"].amax(dim=(1, 2, 3)).tolist()) == [187, 255]
    assert "set, its first 2 images: images of more than 8 bits: 2 of 2" in told[0]
    given = StreamedStream(DataConfig(train_data_dir=str(folder), streaming=True, value_range=(0, 8190)), seed=0)
    assert sorted(given.read(0, 2)["image"].amax(dim=(1, 2, 3)).tolist()) == [93, 128]


def test_a_stream_whose_first_images_have_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.data.streams.PEEKED", 1)
    folder = save(tmp_path / "set", (RAMP * 255).astype(np.uint8), (RAMP * 4095).astype(np.uint16))
    with pytest.raises(UserError, match="image 1 of the stream has more than 8 bits, .* give their `value_range`"):
        StreamedStream(DataConfig(train_data_dir=str(folder), streaming=True), seed=0).read(0, 2)


# Transparency


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (9, 9, 9)), ("L", 9), ("1", 0), ("I;16", 900)])
def test_one_transparent_colour_is_kept(config, tmp_path, mode, clear):
    image = Image.new(mode, (8, 8), clear)
    image.paste(200 if mode != "RGB" else (255, 0, 0), (0, 0, 8, 4))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "0.png", transparency=clear)
    data = opened(tmp_path / "set", config)
    assert data.info.mode == "RGBA"
    assert data.images[0, 3, :4].min() == 255 and data.images[0, 3, 4:].max() == 0


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("none", 77)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_hidden_colours_are_covered(config, tmp_path, told, background, level, mode):
    pixels = np.full((8, 8, 4), 77, np.uint8)
    pixels[..., 3] = 0
    pixels[2:4, 2:4] = (100, 100, 100, 255)
    folder = save(tmp_path / "set", pixels, suffix="png")
    data = opened(folder, config, image_mode=mode, background=background)
    assert np.unique(data.images).tolist() == sorted([level, 100])
    how = "is dropped" if background == "none" else f"lies over {background}"
    assert told == [
        f"set: images with transparency: 1 of 1; in {mode} it {how} (`background`), and `image_mode` RGBA keeps it."
    ]


def test_opaque_pixels_stay_what_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(to_mode(image, "RGB")), pixels[..., :3])
    assert np.array_equal(np.asarray(to_mode(image, "L")), np.asarray(image.convert("L")))


def test_frames_and_16_bit_colours_are_said(config, tmp_path, told):
    (tmp_path / "set").mkdir()
    frames = [Image.new("L", (8, 8), value) for value in (10, 20, 30)]
    frames[0].save(tmp_path / "set" / "stack.tiff", save_all=True, append_images=frames[1:])
    data = opened(tmp_path / "set", config)
    assert np.unique(data.images).tolist() == [10]
    assert told == ["set: images of several frames, of which the first is read: 1 of 1."]
    head = b"IHDR" + struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress((b"\0" + b"\x12\x34" * 24) * 8)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, rows, b"IEND")]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert np.unique(opened(tmp_path / "deep", config).images).tolist() == [0x12]
    assert told[1:] == ["deep: images with 16 bits per colour, of which the upper 8 are read: 1 of 1."]


# Choices


def test_usual_names_come_first_and_choices_are_said(tmp_path, told):
    levels = {"control_image": 7, "image": 200, "mask": 1}
    rows = {name: [Image.new("L", (6, 6), level)] * 2 for name, level in levels.items()}
    rows |= {"split_id": [0, 1], "label": [1, 0]}
    kinds = dict.fromkeys(levels, datasets.Image())
    kinds |= dict.fromkeys(("split_id", "label"), datasets.ClassLabel(names=["a", "b"]))
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    table.to_parquet(tmp_path / "set" / "train.parquet")
    config = DataConfig(dataset_name=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    stream = open_stream(DEFAULT, config, seed=0)
    assert np.unique(stream.read(0, 2)["image"]).tolist() == [200]
    assert told == [
        "The images are those of the column image; `image_column` takes others: control_image, mask.",
        "The classes are those of the column label; `label_column` takes others: split_id.",
    ]
    assert [stream.info.columns[name].column for name in ("image", "label")] == ["image", "label"]
    told.clear()
    given = open_stream(DEFAULT, dataclasses.replace(config, image_column="mask", label_column="split_id"), seed=0)
    assert np.unique(given.read(0, 2)["image"]).tolist() == [1] and told == []
