"""From any source to uint8 images."""

import dataclasses
import io
import multiprocessing
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.data.decode import fit, image_mode, to_mode
from hfgen.runtime.errors import UserError


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, rng):
    """An image folder with two classes of gray 10x10 images."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (10, 10), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_digits(config):
    data = open_images(config)
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == np.uint8
    assert data.images.max() == 255  # 16 gray levels, spread over all 256
    assert data.info.class_names == tuple("0123456789")
    assert np.bincount(data.labels).min() > 170
    assert str(data.info) == "digits [train]: 1797 images, 8x8 L, 10 classes"
    larger = open_images(dataclasses.replace(config, resolution=16))
    assert larger.images.shape == (1797, 1, 16, 16)
    assert larger.info.fingerprint != data.info.fingerprint


def test_image_folder(config, folder):
    data = open_images(dataclasses.replace(config, train_data_dir=str(folder)))
    assert data.info.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    first = np.asarray(Image.open(folder / "cat" / "0.png"))
    assert (data.images[0, 0] == first).all()  # 10x10 is kept: all share it


def test_parquet_with_columns_found_by_type(config, tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    table = datasets.Dataset.from_dict(
        {"id": list(range(5)), "img": [Image.fromarray(p) for p in pixels], "kind": [0, 1, 1, 0, 1]},
        features=datasets.Features(
            {"id": datasets.Value("int64"), "img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
        ),
    )
    (tmp_path / "set" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    data = open_images(dataclasses.replace(config, dataset_name=str(tmp_path / "set")))
    assert (data.images == pixels.transpose(0, 3, 1, 2)).all()
    assert data.labels.tolist() == [0, 1, 1, 0, 1]
    assert data.info.mode == "RGB"


def test_foreign_parquet_and_save_to_disk(config, tmp_path, rng):
    pixels = rng.integers(0, 256, (4, 9, 9), dtype=np.uint8)
    rows = {"picture": [{"bytes": png(p), "path": None} for p in pixels], "kind": ["b", "a", "b", None]}
    plain = datasets.Dataset.from_dict(rows)
    plain.save_to_disk(tmp_path / "arrow")
    (tmp_path / "foreign").mkdir()
    plain.to_parquet(tmp_path / "foreign" / "train.parquet")
    for name in ("arrow", "foreign"):
        data = open_images(dataclasses.replace(config, dataset_name=str(tmp_path / name), label_column="kind"))
        assert (data.images[:, 0] == pixels).all()
        assert data.info.class_names == ("a", "b")
        assert data.labels.tolist() == [1, 0, 1, -1]


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


def test_mixed_channels_become_the_richest(config, tmp_path):
    (tmp_path / "mixed").mkdir()
    Image.new("L", (8, 8), 7).save(tmp_path / "mixed" / "a.png")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "mixed" / "b.png")
    config = dataclasses.replace(config, train_data_dir=str(tmp_path / "mixed"))
    data = open_images(config)
    assert data.info.mode == "RGB"
    assert data.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]
    assert open_images(dataclasses.replace(config, image_mode="L")).info.channels == 1


def test_orientation_of_photos(config, tmp_path):
    (tmp_path / "photos").mkdir()
    image = Image.new("L", (8, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    image.save(tmp_path / "photos" / "a.jpg", exif=exif)
    data = open_images(dataclasses.replace(config, train_data_dir=str(tmp_path / "photos"), resolution=8))
    assert data.images.shape == (1, 1, 8, 16)
    assert data.layout.tolist() == [[16, 0]]  # upright it is wider than high


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


def test_default_resolution(config, tmp_path):
    (tmp_path / "large").mkdir()
    Image.new("L", (80, 100)).save(tmp_path / "large" / "a.png")
    data = open_images(dataclasses.replace(config, train_data_dir=str(tmp_path / "large"), center_crop=True))
    assert data.images.shape == (1, 1, 64, 64)


def test_the_cache_is_used_again(config, folder, monkeypatch):
    config = dataclasses.replace(config, train_data_dir=str(folder))
    first = open_images(config)
    monkeypatch.setattr("hfgen.data.cache._build_cache", lambda *args: pytest.fail("decoded again"))
    again = open_images(config)
    assert again.info == first.info
    assert (again.images == first.images).all()


def test_changed_data_makes_a_new_cache(config, folder):
    config = dataclasses.replace(config, train_data_dir=str(folder))
    first = open_images(config).info
    Image.new("L", (10, 10), 200).save(folder / "dog" / "3.png")
    second = open_images(config).info
    assert second.num_images == first.num_images + 1
    assert second.fingerprint != first.fingerprint


def test_a_half_built_cache_is_never_used(config, folder, monkeypatch):
    config = dataclasses.replace(config, train_data_dir=str(folder))
    with monkeypatch.context() as patch:
        patch.setattr("hfgen.data.cache._labels", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_images(config)
    root = Path(config.cache_dir)
    assert [path for path in root.iterdir() if path.is_dir() and (path / "meta.json").exists()] == []
    data = open_images(config)
    # One without meta.json, as a copy that broke off would leave it, is built again.
    folder = next(path for path in root.iterdir() if (path / "meta.json").exists())
    (folder / "meta.json").unlink()
    (folder / "images.u8").write_bytes(b"half")
    assert open_images(config).info == data.info


def build(config, queue):
    queue.put(open_images(config).info.fingerprint)


def test_several_processes_build_at_once(config):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=build, args=(config, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert found == {open_images(config).info.fingerprint}
    finished = [path for path in Path(config.cache_dir).iterdir() if path.is_dir() and path.name != "datasets"]
    assert len(finished) == 1  # and no temporary folder is left


def error(config, **changes):
    with pytest.raises(UserError) as caught:
        open_images(dataclasses.replace(config, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes(config, folder, tmp_path):
    assert "--dataset_name absent/absent cannot be loaded" in error(config, dataset_name="absent/absent")
    assert "is not a folder" in error(config, train_data_dir=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert "holds no images" in error(config, train_data_dir=str(tmp_path / "empty"))
    message = error(config, train_data_dir=str(folder), image_column="picture")
    assert "--image_column picture is not a column of the data; it has: image (Image), label (ClassLabel)" in message
    assert "--image_column label holds no images" in error(config, train_data_dir=str(folder), image_column="label")
    assert "--label_column kind is not a column" in error(config, train_data_dir=str(folder), label_column="kind")
    assert "exclude each other" in error(config, train_data_dir=str(folder), dataset_name="digits")
    assert "--label_column image holds" in error(config, train_data_dir=str(folder), label_column="image")
    assert "Unknown split" in error(config, train_data_dir=str(folder), dataset_split="tset")


@pytest.mark.parametrize("broken", [b"no image at all", None])
def test_a_corrupt_image_is_named_or_skipped(config, folder, broken):
    good = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(broken or good[: len(good) - 60])  # cut short: its head is fine
    message = error(config, train_data_dir=str(folder))
    assert "image 1 (" in message
    assert "1.png" in message
    assert "--skip_corrupt_images" in message
    data = open_images(dataclasses.replace(config, train_data_dir=str(folder), skip_corrupt_images=True))
    assert (data.info.num_images, data.info.skipped) == (5, 1)
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.images[1, 0] == np.asarray(Image.open(folder / "cat" / "2.png"))).all()
