"""From any source to columns in the cache."""

import dataclasses
import hashlib
import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.forked import CONTEXT
from PIL import Image

from hfgen.data import store
from hfgen.data.cache import open_images, open_source
from hfgen.data.columns import TRAIN, Label, Text
from hfgen.data.columns import Image as ImageColumn
from hfgen.data.config import DataConfig, ImagesConfig
from hfgen.data.streams import CachedStream
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import notes_to

FINGERPRINT = "0b7e9c3202d7bcd255d6a19a238d3743"  # of the digits, as checkpoints hold it


def folders(config, kind):
    """The finished columns of a kind."""
    return [path.parent for path in Path(config.cache_dir).glob(f"{kind}-*/meta.json")]


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, format="PNG")
    return buffer.getvalue()


def test_digits(config):
    data = open_images(config)
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == np.uint8
    assert data.images.max() == 255  # 16 gray levels, spread over all 256
    assert data.info.class_names == tuple("0123456789")
    assert np.bincount(data.labels).min() > 170
    assert str(data.info) == "digits [train]: 1797 images, 8x8 L, 10 classes"
    assert data.info.fingerprint == FINGERPRINT
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


def test_default_resolution(config, tmp_path):
    (tmp_path / "large").mkdir()
    Image.new("L", (80, 100)).save(tmp_path / "large" / "a.png")
    data = open_images(dataclasses.replace(config, train_data_dir=str(tmp_path / "large"), center_crop=True))
    assert data.images.shape == (1, 1, 64, 64)


def test_the_cache_is_used_again(config, folder, monkeypatch):
    config = dataclasses.replace(config, train_data_dir=str(folder))
    first = open_images(config)
    monkeypatch.setattr("hfgen.data.cache._decode", lambda *args: pytest.fail("decoded again"))
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


@pytest.mark.parametrize(("kind", "name"), [("images", "fit"), ("labels", "_number")])
def test_a_half_built_cache_is_never_used(config, folder, monkeypatch, kind, name):
    config = dataclasses.replace(config, train_data_dir=str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(f"hfgen.data.cache.{name}", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_images(config)
    root = Path(config.cache_dir)
    assert folders(config, kind) == [] and list(root.glob(".tmp-*")) == []
    data = open_images(config)
    (built,) = folders(config, kind)
    (built / "meta.json").unlink()
    left = built.with_name(f".tmp-1234-0a1b2c3d-{built.name}")
    left.mkdir()
    assert open_images(config).info == data.info
    assert folders(config, kind) == [built] and not left.exists()


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


BROKEN = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": flipped,
    "a list": lambda content: b"[1, 2]",
    "other bytes": lambda content: b"\xff\x00" * len(content),
    "gone": None,
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_made_again(config, folder, change):
    """Whatever happens to whichever file of the cache: the same data, and a line that says so."""
    Image.new("L", (30, 10)).save(folder / "dog" / "long.png")  # so that there is a layout
    config = dataclasses.replace(config, train_data_dir=str(folder))
    first = open_images(config)
    pixels, root = first.images.copy(), Path(config.cache_dir)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    assert {path.name for path in files} == {"images.u8", "labels.npy", "layout.npy", "meta.json", "sums.json"}
    for path in files:
        content = path.read_bytes()
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(content))
        said = []
        with notes_to(said.append):
            data = open_images(config)
        assert data.info == first.info and (data.images == pixels).all() and (data.labels == first.labels).all()
        (line,) = [text for text in said if "broken" in text]
        assert str(path.parent) in line and "is made again" in line
        assert path.read_bytes() == content


def test_of_large_files_a_sample_is_checked_or_all(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK", 1024)
    monkeypatch.setattr(store, "CHECKED", 4)

    def build(folder):
        (folder / "large").write_bytes(bytes(16 * 1024))

    def opened(times, **options):
        said = []
        with notes_to(said.append):
            for _ in range(times):
                store.build_once(tmp_path / "it", build, **options)
        return said

    def change():
        with open(tmp_path / "it" / "large", "r+b") as file:
            file.seek(10 * 1024)
            file.write(b"x")

    assert opened(1) == []
    change()
    assert len(opened(200)) == 1  # others are checked each time: 200 samples of a quarter miss a block once in 10^25
    change()
    (line,) = opened(1, verify=True)
    assert "large was changed" in line


def build(config, queue):
    queue.put(open_images(config).info.fingerprint)


def test_several_processes_build_at_once(config):
    queue = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=build, args=(config, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert found == {open_images(config).info.fingerprint}
    assert len(folders(config, "images")) == len(folders(config, "labels")) == 1
    assert list(Path(config.cache_dir).rglob(".tmp-*")) == []


@pytest.mark.parametrize("broken", [b"no image at all", None])
def test_a_corrupt_image_is_named_or_skipped(config, folder, broken):
    good = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(broken or good[: len(good) - 60])  # cut short: its head is fine
    with pytest.raises(UserError, match=r"image 1 \(.*1\.png.*`skip_corrupt_images`") as caught:
        open_images(dataclasses.replace(config, train_data_dir=str(folder)))
    data = open_images(dataclasses.replace(config, train_data_dir=str(folder), skip_corrupt_images=True))
    assert (data.info.num_images, data.info.skipped) == (5, 1)
    with pytest.raises(UserError) as again:  # what was skipped once is not hidden for ever
        open_images(dataclasses.replace(config, train_data_dir=str(folder)))
    assert str(again.value) == str(caught.value)
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.images[1, 0] == np.asarray(Image.open(folder / "cat" / "2.png"))).all()


def test_one_copy_however_the_options_are_spelt(config, tmp_path, rng, monkeypatch):
    """Left out, given, with and without a crop that square images do not need, and as evaluation asks for it."""
    (tmp_path / "square").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / "square" / f"{number}.png")
    config = dataclasses.replace(config, train_data_dir=str(tmp_path / "square"))
    first = open_images(config)
    monkeypatch.setattr("hfgen.data.cache._decode", lambda *args: pytest.fail("decoded again"))
    monkeypatch.setattr("hfgen.data.cache._scan", lambda *args: pytest.fail("looked at again"))
    images = ImagesConfig(dataset_name=config.train_data_dir, cache_dir=config.cache_dir)
    for same in (
        dataclasses.replace(config, resolution=28),
        dataclasses.replace(config, center_crop=True),
        dataclasses.replace(config, image_mode="L", skip_corrupt_images=True),
        images.data((1, 28, 28), "train"),
    ):
        data = open_images(same)
        assert data.images.filename == first.images.filename and data.info == first.info
    assert len(folders(config, "images")) == 1


def test_oblong_images_are_kept_for_each_way_to_cut_them(config, tmp_path):
    (tmp_path / "wide").mkdir()
    Image.new("L", (75, 50)).save(tmp_path / "wide" / "a.png")
    config = dataclasses.replace(config, train_data_dir=str(tmp_path / "wide"), resolution=8)
    assert open_images(config).images.shape == (1, 1, 8, 12)
    assert open_images(dataclasses.replace(config, center_crop=True)).images.shape == (1, 1, 8, 8)
    # 10.5 pixels: rounded up and down, whether the ratio is multiplied or the size.
    assert open_images(dataclasses.replace(config, resolution=7)).images.shape == (1, 1, 7, 10)


@pytest.fixture
def pairs(tmp_path, rng):
    """Ten rows: two images, of which two and one are corrupt, classes, and texts of several scripts."""
    first, second = rng.integers(0, 256, (2, 10, 8, 8), dtype=np.uint8)
    files = [[{"bytes": png(pixels), "path": None} for pixels in images] for images in (first, second)]
    files[0][3] = files[0][4] = files[1][7] = {"bytes": b"no image", "path": None}
    texts = ["a cat", "Kätzchen", None, "猫", "", "🐈", None, "кот", "cat\n", "last"]
    columns = {"image": files[0], "target": files[1], "caption": texts, "kind": [*"abcdefghij"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "pairs" / "train.parquet")
    return tmp_path / "pairs", first, second, texts


PAIR = {"image": ImageColumn(), "target": ImageColumn()}


def test_rows_stay_together_where_one_column_is_corrupt(config, pairs):
    folder, first, second, texts = pairs
    config = dataclasses.replace(config, dataset_name=str(folder), skip_corrupt_images=True, label_column="kind")
    data = open_source(config, {**PAIR, "label": Label(), "caption": Text()})
    rows = [0, 1, 2, 5, 6, 8, 9]
    assert (data.info.num_images, data.info.skipped) == (7, 3)
    for name, pixels in (("image", first), ("target", second)):
        column = data.columns[name]
        assert (column.arrays[0][column.index][:, 0] == pixels[rows]).all()
    assert (data.images[:, 0] == first[rows]).all()
    assert data.info.class_names == tuple("abcfgij") and data.labels.tolist() == list(range(7))
    assert data.columns["caption"].arrays[0][range(7)] == tuple(texts[row] for row in rows)
    alone = open_source(config, {"target": ImageColumn(column="target")})  # the same copy, with more of its rows
    assert (alone.images[:, 0] == np.delete(second, 7, 0)).all() and len(folders(config, "images")) == 2
    with pytest.raises(UserError, match="image 3 cannot be read"):
        open_source(dataclasses.replace(config, skip_corrupt_images=False), PAIR)


def test_texts(config, pairs):
    folder, _, _, texts = pairs
    config = dataclasses.replace(config, dataset_name=str(folder))
    for _ in range(2):
        data = open_source(config, {"caption": Text()})
        assert data.columns["caption"].arrays[0][[9, 2, 3]] == ("last", None, "猫")
        assert data.columns["caption"].arrays[0][range(10)] == tuple(texts)
        assert data.info.columns["caption"].missing == 2
        assert str(data.info) == "pairs [train]: 10 rows, texts (2 missing)"
    assert len(folders(config, "text")) == 1


def test_the_fingerprint_is_of_images_then_classes_then_the_rest(config, pairs):
    data = open_images(config)
    digest = hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()[:32]
    assert data.info.fingerprint == digest == open_images(config).info.fingerprint
    config = dataclasses.replace(config, dataset_name=str(pairs[0]), skip_corrupt_images=True)
    alone = open_source(config, {"image": ImageColumn()})
    assert alone.info.fingerprint == hashlib.sha256(alone.images.tobytes()).hexdigest()[:32]
    several = [
        open_source(config, {"image": ImageColumn(), **more}) for more in ({"text": Text()}, {"b": ImageColumn()})
    ]
    assert len({alone.info.fingerprint, *(data.info.fingerprint for data in several)}) == 3


def test_some_images_are_held_out(config, pairs):
    """By a share: the same rows of every column, none in both parts, and the classes of all rows in each."""
    options = {"dataset_name": str(pairs[0]), "skip_corrupt_images": True, "label_column": "kind"}
    columns = {**PAIR, "label": Label(), "caption": Text()}

    def read(split=None, held_out=False):
        given = dataclasses.replace(config, **options, validation_split=split)
        data = open_source(given, columns, held_out=held_out)
        count = data.info.num_images
        batch = CachedStream({TRAIN: data}, 0).take({TRAIN: torch.arange(count)})
        assert len(data.images) == len(data.labels) == count and data.info.class_names == tuple("abcfgij")
        assert (data.squares(np.arange(count)) == data.images).all()
        rows = [batch["image"].flatten(1), batch["target"].flatten(1), batch["label"], batch["caption"]]
        return data.info, {str([a.tolist(), b.tolist(), int(c), d]) for a, b, c, d in zip(*rows, strict=True)}

    (whole, rows), (train, kept), (held, left) = read(), read("0.4"), read("0.4", held_out=True)
    assert kept | left == rows and not kept & left and len(left) == held.num_images in range(2, 5)
    assert (train.split, held.split) == ("train", "0.4 of train")
    assert len({whole.fingerprint, train.fingerprint, held.fingerprint}) == 3
    assert sum(share > 0 for share in held.classes.shares) == held.num_images  # each row has a class of its own
    assert read("0.4")[0] == train and len(folders(config, "images")) == 2  # one decoded copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"validation_split": "1.5"},
            "`validation_split` 1.5 is no share of the images: use a number between 0 and 1",
        ),
        ({"validation_split": "train"}, "`validation_split` train is what is trained on"),
        ({"validation_split": 0.1, "streaming": True, "dataset_name": "x"}, "`validation_split` 0.1 needs all images"),
    ],
)
def test_shares_that_cannot_be_held_out(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**options)


def labelled(folder, labels, feature):
    """Writes a data set of gray images with these classes."""
    rows = {"image": [Image.new("L", (6, 6), n % 256) for n in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return {"dataset_name": str(folder), "label_column": "label"}


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "lines"),
    [
        ([1, 0, 2, 1], "012", [1, 0, 2, 1], []),  # as they are
        ([1, 2, 3, 1], "123", [0, 1, 2, 0], []),
        ([10115, 99998, 10115, 7], ["7", "10115", "99998"], [1, 2, 1, 0], []),
        ([2_000_000_001, 2_000_000_002], ["2000000001", "2000000002"], [0, 1], []),
        ([0, 1, -1, 1], "01", [0, 1, -1, 1], ["set: images without a class: 1 of 4."]),
        ([0, None, 1, -1], "01", [0, -1, 1, -1], ["set: images without a class: 2 of 4."]),
    ],
)
def test_the_values_are_the_classes(config, tmp_path, told, labels, names, numbers, lines):
    source = labelled(tmp_path / "set", labels, datasets.Value("int64"))
    data = open_images(dataclasses.replace(config, **source))
    assert data.info.class_names == tuple(names) and data.labels.tolist() == numbers and told == lines


def test_names_without_images_are_kept_and_said_each_time(config, tmp_path, told):
    source = labelled(tmp_path / "set", [3, 7, 7, -1], datasets.ClassLabel(names=[*"abcdefgh"]))
    for _ in range(2):
        data = open_images(dataclasses.replace(config, **source))
        assert data.info.class_names == tuple("abcdefgh") and data.labels.tolist() == [3, 7, 7, -1]
    assert told == [
        "set: classes without an image: 6 of 8 (a, b, c, e, f and 1 more).", "set: images without a class: 1 of 4."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (list(range(1000, 1102)), "int64", "102 different values in 102 rows, too many to be classes"),
        ([f"photo {n}" for n in range(102)], "string", "102 different values in 102 rows, too many to be classes"),
        ([0.5, 1.5], "float64", "holds float: give a column with strings or whole numbers"),
        ([0, -2], "int64", "holds -2: classes are whole numbers from 0 on, -1 for none"),
        ([None, -1], "int64", "holds no classes"),
    ],
)
def test_columns_that_hold_no_classes(config, tmp_path, labels, kind, message):
    source = labelled(tmp_path / "set", labels, datasets.Value(kind))
    with pytest.raises(UserError, match=f"`label_column` label.* {message}"):
        open_images(dataclasses.replace(config, **source))


def test_a_run_that_goes_on_keeps_the_numbers_of_its_classes(config, tmp_path, told):
    """An earlier version made a class of each number from 0 to the greatest."""
    source = dataclasses.replace(config, **labelled(tmp_path / "set", [1, 3, 1], datasets.Value("int64")))
    assert open_images(source).labels.tolist() == [0, 1, 0]
    data = open_source(source, {"image": ImageColumn(), "label": Label()}, recorded_classes=tuple("0123"))
    assert data.info.class_names == tuple("0123") and data.labels.tolist() == [1, 3, 1]
    assert told == ["set: classes without an image: 2 of 4 (0, 2)."]
    other = open_source(source, {"image": ImageColumn(), "label": Label()}, recorded_classes=("a", "b"))
    assert other.info.class_names == ("1", "3")
