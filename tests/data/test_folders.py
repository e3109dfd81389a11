"""A folder of images is loaded as a person sees it, or a line says what is left out."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.data.decode import readable_suffixes
from hfgen.data.folders import find_layout, list_files, open_folder
from hfgen.data.streams import StreamedStream
from hfgen.runtime.errors import UserError


def save_flat(path, value=0):
    """Writes an image of one gray value, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 6), value).save(path)


def fill(folder, *paths):
    """Writes images whose gray value is their number."""
    for number, path in enumerate(paths):
        save_flat(folder / path, number)
    return folder


def opened(folder, config, option="train_data_dir", **changes):
    return open_images(dataclasses.replace(config, **{option: str(folder)}, **changes))


def seen(data):
    """The gray value of each image, and the name of its class."""
    names = data.info.class_names
    values = data.images[:, 0, 0, 0].tolist()
    return (
        values
        if names is None
        else [(v, names[n] if n >= 0 else None) for v, n in zip(values, data.labels, strict=True)]
    )


@pytest.mark.parametrize(
    ("paths", "root", "splits", "classes"),
    [
        ("a.png b.png", "", {}, []),
        ("stress-test-1.png train-0.png", "", {}, []),
        ("cat/1.png dog/2.png", "", {}, ["cat", "dog"]),
        ("bus/1.png car/1.png train/1.png", "", {}, ["bus", "car", "train"]),
        ("control/1.png test/1.png val/1.png", "", {}, ["control", "test", "val"]),
        ("test_negative/1.png test_positive/1.png", "", {}, ["test_negative", "test_positive"]),
        ("train/1.png test/1.png", "", {"test": "test", "train": "train"}, []),
        ("set/train2017/1.png set/val2017/1.png", "set/", {"train2017": "train", "val2017": "validation"}, []),
        ("Train/cat/1.png Train/dog/1.png Test/cat/1.png", "", {"Test": "test", "Train": "train"}, ["cat", "dog"]),
        ("test/1.png test/2.png", "", {"test": "test"}, []),
        ("dev-board/1.png dev-board/2.png", "dev-board/", {}, []),
        ("photos/cat/1.png photos/dog/1.png", "photos/", {}, ["cat", "dog"]),
        ("cover.png cat/1.png dog/1.png", "", {}, ["cat", "dog"]),
        ("cat/1.png cat/old/2.png dog/1.png", "", {}, ["cat", "dog"]),
        ("big/cat/1.png big/dog/2.png small/cat/1.png", "", {}, ["cat", "dog"]),
        ("cover.png cat/1.png", "", {}, []),
    ],
)
def test_layouts(paths, root, splits, classes):
    layout = find_layout(paths.split())
    assert (layout.root, layout.splits, layout.classes) == (root, splits, classes)


def test_names_make_no_splits_and_links_are_followed(config, tmp_path, told):
    store = fill(tmp_path / "store", "1.png", "2.png")
    folder = fill(
        tmp_path / "set", "cat/stress-test.png", "cat/val 1.png", "train/a.png", ".hidden/b.png", "cat/.c.png"
    )
    (folder / "dog").symlink_to(store)
    (folder / "dog" / "up").symlink_to(folder)  # never comes to an end
    (folder / "itself").symlink_to(folder / "itself")
    data = opened(folder, config)
    assert seen(data) == [(0, "cat"), (1, "cat"), (0, "dog"), (1, "dog"), (2, "train")]
    assert told == ["set: files left out, as Pillow does not read them: 1 of 6 (1 without a suffix)."]
    assert seen(opened(folder, config, "dataset_name")) == seen(data)


def test_a_name_is_no_pattern(config, tmp_path):
    for number, name in enumerate(("faces[12]", "faces1", "new?", "newX", "a*", "ab")):
        save_flat(tmp_path / name / "0.png", number)
    for number, name in ((0, "faces[12]"), (2, "new?"), (4, "a*")):
        assert seen(opened(tmp_path / name, config)) == [number]
        assert seen(opened(tmp_path / name, config, "dataset_name")) == [number]
    tables = tmp_path / "set[1]"
    tables.mkdir()
    (tables / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"`dataset_name` .*set\[1\] cannot be loaded: .*rename the folder"):
        opened(tables, config, "dataset_name")


def test_what_cannot_be_read_is_said_each_time(config, tmp_path, told):
    folder = fill(tmp_path / "phone", "1.png", "2.png")
    for name in ("a.HEIC", "b.heic", "c.svg", "notes.txt"):
        (folder / name).write_bytes(b"no image")
    if ".heic" in readable_suffixes():
        pytest.skip("pillow-heif is installed")
    heif = "2 .heic (which needs `pip install pillow-heif`)"
    line = f"phone: files left out, as Pillow does not read them: 3 of 5 ({heif}, 1 .svg)."
    assert seen(opened(folder, config)) == [0, 1] and told == [line]
    told.clear()
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no images, only 2 \.heic \(which needs .*pillow-heif"):
        opened(folder, config)
    assert not list_files(tmp_path / "phone").images


def test_avif(config, tmp_path):
    if ".avif" not in readable_suffixes():
        pytest.skip("this Pillow reads no AVIF")
    (tmp_path / "set").mkdir()
    Image.new("L", (8, 8), 200).save(tmp_path / "set" / "a.avif", quality=100)
    assert opened(tmp_path / "set", config).info.num_images == 1


def test_a_stray_picture_costs_no_labels(config, tmp_path, told):
    folder = fill(tmp_path / "set", "cover.png", "cat/1.png", "dog/1.png")
    assert seen(opened(folder, config)) == [(1, "cat"), (0, None), (2, "dog")]
    assert told == ["set: images beside the folders of the classes: 1 of 3.", "set: images without a class: 1 of 3."]


def test_splits(config, tmp_path, told):
    folder = fill(tmp_path / "set", "cover.png", "test/cat/1.png", "train/cat/2.png", "train/dog/3.png")
    assert seen(opened(folder, config)) == [(2, "cat"), (3, "dog")]
    assert seen(opened(folder, config, dataset_split="test")) == [(1, "cat")]
    assert told[0] == "set: images in no split, as they lie beside test, train: 1 of 4."
    assert seen(opened(folder, config, dataset_split="train[1:]+test")) == [(3, "dog"), (1, "cat")]
    with pytest.raises(UserError, match=r"Unknown split \"validation\". Should be one of \['test', 'train'\]"):
        opened(folder, config, dataset_split="validation")
    flat = fill(tmp_path / "flat", "train_1.png", "test_1.png")
    assert len(opened(flat, config).images) == 2
    assert told[-1].startswith("flat: all images are one split, though their names speak of test, train")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_beside_the_images(config, tmp_path, told, kind):
    folder = fill(tmp_path / "set", "cat/1.png", "dog/2.png", "dog/3.png")
    rows = [("dog/3.png", 70), ("cat/1.png", 50)]
    lines = ["file_name,age", *(f"{name},{age}" for name, age in rows)]
    if kind == "jsonl":
        lines = [f'{{"file_name": "{name}", "age": {age}}}' for name, age in rows]
    (folder / f"metadata.{kind}").write_text("\n".join(lines))
    assert seen(opened(folder, config)) == [(2, "dog"), (0, "cat")]  # the folders stay the classes
    assert told == [f"set: images left out, as metadata.{kind} does not name them: 1 of 3."]
    assert opened(folder, config, label_column="age").info.class_names == ("50", "70")


def test_classes_of_a_table(config, tmp_path, told):
    folder = fill(tmp_path / "set", "cat/1.png", "dog/2.png")
    (folder / "metadata.csv").write_text("file_name,label\ncat/1.png,tabby\ndog/2.png,pug\n")
    assert seen(opened(folder, config)) == [0, 1]
    assert any(
        "the folders (cat, dog) are not the classes, as metadata.csv has a column label" in line for line in told
    )
    assert seen(opened(folder, config, label_column="label")) == [(0, "tabby"), (1, "pug")]


@pytest.mark.parametrize(
    ("values", "expected", "kept"),
    [
        (["1", "", "2", "2"], ["1", None, "2", "2"], "int64"),  # missing is no class
        (["10", "9", "-1", "9"], ["10", "9", None, "9"], "int64"),
        (["01067", "1067", "1067", "2"], ["01067", "1067", "1067", "2"], "string"),
        (["NA", "None", "", "nan"], ["NA", "None", None, "nan"], "string"),
        (["True", "false", "", "True"], ["1", "0", None, "1"], "bool"),
    ],
)
def test_classes_of_a_csv_table_are_read_as_they_are_written(config, tmp_path, values, expected, kept):
    folder = fill(tmp_path / "set", *(f"{number}.png" for number in range(4)))
    lines = [f"{number}.png,{value}" for number, value in enumerate(values)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert seen(opened(folder, config, label_column="label")) == list(enumerate(expected))
    assert str(open_folder(folder, list_files(folder), config).features["label"].dtype) == kept


def test_the_types_of_a_csv_table(config, tmp_path):
    folder = fill(tmp_path / "set", "1/1.png", "2/1.png")
    for number, (code, text) in enumerate([("01067", "a cat, NA"), ("1067", "")], 1):
        table = f'file_name,code,text,score,mask_file_name\n1.png,{code},"{text}",0.5,1.png\n'
        (folder / f"{number}" / "metadata.csv").write_text(table)
    rows = open_folder(folder, list_files(folder), config)
    assert rows["code"][:] == ["01067", "1067"] and rows["text"][:] == ["a cat, NA", None]
    assert rows["score"][:] == [0.5, 0.5] and rows.column_names[:2] == ["image", "code"]
    assert [type(rows.features[name]).__name__ for name in ("image", "mask")] == ["Image", "Image"]


def test_an_empty_folder_is_said(config, tmp_path, told):
    folder = fill(tmp_path / "set", "cat/1.png", "dog/2.png")
    (folder / "bird" / "more").mkdir(parents=True)
    assert seen(opened(folder, config)) == [(0, "cat"), (1, "dog")]
    line = "set: folders left out, as they hold no image that can be read: 1 of {} (bird)."
    assert told == [line.format(3)]
    shutil.rmtree(folder / "dog")
    assert seen(opened(folder, config)) == [0] and told[1] == line.format(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\n", r"metadata\.csv has no rows, and so names no image"),
        ("name,age\n1.png,3\n", r"metadata\.csv has no column file_name, .*\(it has name, age\)"),
        ("file_name\n../1.png\n", r"metadata\.csv names \.\./1\.png, which is not in its folder"),
        ("file_name\n2.png\n", r"image 0 \(.*2\.png\) cannot be read"),
    ],
)
def test_mistakes_in_tables(config, tmp_path, text, message):
    folder = fill(tmp_path / "set", "1.png")
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        opened(folder, config)
    assert "\n" not in str(error.value)


def test_a_readme_and_other_files_do_not_hide_images(config, tmp_path):
    folder = fill(tmp_path / "set", "cat/1.png", "dog/2.png")
    (folder / "README.md").write_text("My photos of *cats* and dogs")
    (folder / "data.json").write_text("{}")
    first = opened(folder, config, "dataset_name")
    assert seen(first) == [(0, "cat"), (1, "dog")]
    assert opened(folder, config).images.filename == first.images.filename  # one copy
    Image.new("L", (6, 6), 9).save(folder / "dog" / "2.png")
    assert seen(opened(folder, config)) == [(0, "cat"), (9, "dog")]
    shutil.rmtree(folder / "cat")
    assert seen(opened(folder, config)) == [9]


@pytest.mark.parametrize("option", ["train_data_dir", "dataset_name"])
def test_a_stream_of_a_folder_is_the_same(tmp_path, option):
    folder = fill(tmp_path / "set", "bus/test-1.png", "bus/2.png", "train/3.png", "val/4.png")
    config = DataConfig(**{option: str(folder)}, streaming=True)
    batch = StreamedStream(config, seed=0).read(0, 4)
    values, labels = batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()
    assert sorted(zip(values, labels, strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert np.unique(batch["image"]).tolist() == [0, 1, 2, 3]
