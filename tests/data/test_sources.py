"""Data sets by name, and the columns that are found in them."""

import dataclasses
import shutil

import datasets
import pytest
from PIL import Image as PIL

from hfgen.data.cache import open_images
from hfgen.data.columns import DEFAULT, Image, Label, Text
from hfgen.data.config import DataConfig
from hfgen.data.decode import decode
from hfgen.data.sources import find_columns
from hfgen.data.streams import StreamedStream
from hfgen.runtime.errors import UserError


def error(config, **changes):
    with pytest.raises(UserError) as caught:
        open_images(dataclasses.replace(config, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes(config, folder, tmp_path):
    assert "`dataset_name` absent/absent cannot be loaded" in error(config, dataset_name="absent/absent")
    assert "is not a folder" in error(config, train_data_dir=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert "holds no images" in error(config, train_data_dir=str(tmp_path / "empty"))
    message = error(config, train_data_dir=str(folder), image_column="picture")
    assert "`image_column` picture is not a column of the data; it has: image (Image), label (ClassLabel)" in message
    assert "`image_column` label holds no images" in error(config, train_data_dir=str(folder), image_column="label")
    assert "`label_column` kind is not a column" in error(config, train_data_dir=str(folder), label_column="kind")
    assert "exclude each other" in error(config, train_data_dir=str(folder), dataset_name="digits")
    assert "`label_column` image holds" in error(config, train_data_dir=str(folder), label_column="image")
    assert "Unknown split" in error(config, train_data_dir=str(folder), dataset_split="tset")


FEATURES = datasets.Features(
    {
        "id": datasets.Value("int64"),
        "depth": datasets.Image(),
        "photo": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "target": datasets.Image(),
        "title": datasets.Value("string"),
        "caption": datasets.Value("large_string"),
        "kind": datasets.ClassLabel(names=["a", "b"]),
    }
)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (DEFAULT, {"image": "depth", "label": "kind"}),
        ({"target": Image()}, {"target": "depth"}),  # a single one is the first of its type
        ({"image": Image(), "target": Image()}, {"image": "depth", "target": "target"}),  # of several, names count
        (
            {"target": Image(), "photo": Image(), "image": Image()},
            {"target": "target", "photo": "photo", "image": "depth"},
        ),
        ({"image": Image(), "depth": Image()}, {"image": "photo", "depth": "depth"}),
        ({"image": Image(column="photo"), "b": Image()}, {"image": "photo", "b": "depth"}),
        ({"caption": Text(), "text": Text()}, {"caption": "caption", "text": "title"}),
        ({"label": Label(column="id"), "other": Label()}, {"label": "id", "other": "kind"}),
        ({"label": Label(), "other": Label()}, {"label": "kind"}),  # classes are not compulsory
    ],
)
def test_columns_are_found_by_type(columns, expected):
    assert find_columns(FEATURES, columns, DataConfig()) == expected


def test_options_name_the_first_column_that_the_family_leaves_open():
    config = DataConfig(image_column="target", label_column="title")
    columns = {"a": Image(column="depth"), "b": Image(), "c": Image(), "label": Label(), "text": Text()}
    expected = {"a": "depth", "b": "target", "c": "photo", "label": "title", "text": "caption"}
    assert find_columns(FEATURES, columns, config) == expected


LISTING = r"id \(Value\), depth \(Image\), photo \(dict\), .*kind \(ClassLabel\)"


@pytest.mark.parametrize(
    ("columns", "gone", "message"),
    [
        (
            {"image": Image()},
            ("depth", "photo", "target"),
            r"no column with images for 'image'; it has: id \(Value\), title",
        ),
        ({name: Image() for name in "abcd"}, (), f"no other column with images for 'd'; it has: {LISTING}"),
        ({"caption": Text()}, ("title", "caption"), "no column with texts for 'caption'; it has: id"),
        ({"mask": Image(column="mask")}, (), rf"'mask' \(for 'mask'\) is not a column of the data; it has: {LISTING}"),
        ({"mask": Image(column="id")}, (), rf"'id' \(for 'mask'\) holds no images; the columns are: {LISTING}"),
        (
            {"text": Text(column="kind")},
            (),
            r"'kind' \(for 'text'\) holds no texts; the columns are: .*Give one with texts",
        ),
    ],
)
def test_what_the_data_does_not_have_is_named_with_what_it_has(columns, gone, message):
    features = datasets.Features({name: feature for name, feature in FEATURES.items() if name not in gone})
    with pytest.raises(UserError, match=message):
        find_columns(features, columns, DataConfig())


def write_tables(folder, names, rows=3):
    """Writes parquet files, or pictures, and returns the gray values that they hold in order."""
    features = datasets.Features({"image": datasets.Image()})
    for number, name in enumerate(names.split()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            PIL.new("L", (6, 6), 99).save(path)
        else:
            images = [PIL.new("L", (6, 6), number) for _ in range(rows)]
            datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(path)
    return folder


SHARDED = "train-00000-of-00001.parquet test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "values", "line"),
    [
        (
            "part_0.parquet part_1.parquet part_2.parquet train-extra.parquet",
            [0, 1, 2, 3],
            "set: all 4 .parquet files are one split, `train`, though names speak of train: train-extra.parquet. "
            "Folders with these names would keep them apart.",
        ),
        ("a.parquet b.parquet data/train-extra.parquet", [0, 1, 2], "set: all 3 .parquet files are one split"),
        ("scan_1.parquet scan_2.parquet stress-test-1.parquet", [0, 1, 2], "though names speak of test: stress-test"),
        (
            "train.parquet test.parquet extra_test.parquet my.parquet",
            [0],
            "set: files left out, as their names speak of no split, unlike others: 1 of 4 (my.parquet). `train` in "
            "front of a name would make it one of that split.",
        ),
        (
            "a.parquet b.parquet c.png",
            [0, 1],
            "set: files left out, as only .parquet files are read: 1 of 3 (c.png).",
        ),
        ("a.parquet b.PARQUET __old/c.parquet", [0], "1 of 2 (b.PARQUET)"),
        (f"{SHARDED} my.parquet", [0], "1 of 3 (my.parquet)"),
        ("data/train-00000-of-00001.parquet my.parquet", [0], "1 of 2 (my.parquet)"),
        ("a.parquet b.parquet", [0, 1], None),
        (SHARDED, [0], None),
        (
            "data/train-00000-of-00002-1234567890ab.parquet data/train-00001-of-00002-1234567890ab.parquet",
            [0, 1],
            None,
        ),
        ("train/a.parquet train/b.parquet test/a.parquet", [0, 1], None),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_are_loaded_or_a_line_says_which_are_not(config, tmp_path, told, names, values, line, streaming):
    folder = write_tables(tmp_path / "set", names)
    config = dataclasses.replace(config, dataset_name=str(folder))
    if streaming:
        images = StreamedStream(dataclasses.replace(config, streaming=True), 0).read(0, 3 * len(values))["image"]
    else:
        images = open_images(config).images
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(3 * values)
    assert told == [] if line is None else len(told) == 1 and line in told[0]


def test_a_readme_that_names_the_files_is_followed(config, tmp_path, told):
    folder = write_tables(tmp_path / "set", "a.parquet b-train.parquet c.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: c.parquet\n---\n"
    )
    images = open_images(dataclasses.replace(config, dataset_name=str(folder))).images
    assert images[:, 0, 0, 0].tolist() == [2, 2, 2] and told == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_an_archive(config, tmp_path, kind, streaming):
    write_tables(tmp_path / "images", "a.png b.png c.png")
    (tmp_path / "set").mkdir()
    shutil.make_archive(str(tmp_path / "set" / "imgs"), kind, tmp_path / "images")
    config = dataclasses.replace(config, dataset_name=str(tmp_path / "set"))
    if streaming:
        images = StreamedStream(dataclasses.replace(config, streaming=True), 0).read(0, 3)["image"]
    else:
        images = open_images(config).images
    assert images[:, 0, 0, 0].tolist() == [99, 99, 99]


def test_an_archive_that_cannot_be_read(config, tmp_path):
    write_tables(tmp_path / "images", "a/1.png b/2.png")
    (tmp_path / "set").mkdir()
    shutil.make_archive(str(tmp_path / "set" / "imgs"), "zip", tmp_path / "images")
    message = error(config, dataset_name=str(tmp_path / "set"))  # `datasets` takes the folder for the class of all
    assert "Invalid string class label set; archives may have to be unpacked" in message
    value = {"path": f"zip://1.png::{tmp_path / 'images' / 'a' / '1.png'}"}
    with pytest.raises(OSError, match="not a zip file"):
        decode(value)


CLASSES = datasets.ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("kinds", "streaming", "taken", "line"),
    [
        (
            {"split_id": CLASSES, "label": datasets.Value("int64")},
            False,
            "label",
            "The classes are those of the column label; `label_column` takes others: split_id.",
        ),
        (
            {"split_id": CLASSES, "label": datasets.Value("string")},
            True,
            "split_id",
            "The classes are those of the column split_id, as the column label is not of type ClassLabel, which lists "
            "the classes beforehand, as `streaming` needs it; without `streaming`, `label_column` label makes classes "
            "of that column.",
        ),
        (
            {"label": datasets.Value("int64")},
            True,
            None,
            "The classes are not used, as the column label is not of type ClassLabel, which lists the classes "
            "beforehand, as `streaming` needs it; without `streaming`, `label_column` label makes classes of that "
            "column.",
        ),
        (
            {"label": datasets.Value("int64")},
            False,
            None,
            "The data has no column of type ClassLabel; `label_column` label makes classes of that column.",
        ),
        (
            {"category": datasets.Value("string"), "fine_label": CLASSES},
            False,
            "fine_label",
            "The classes are those of the column fine_label; `label_column` takes others: category.",
        ),
        ({"split_id": CLASSES, "label": datasets.Value("float32")}, False, "split_id", None),
        ({"label": CLASSES, "category": datasets.Value("string")}, True, "label", None),
    ],
)
def test_usual_names_of_classes_count_for_more_than_types(told, kinds, streaming, taken, line):
    features = datasets.Features({"image": datasets.Image(), **kinds})
    config = DataConfig(dataset_name="a/b", streaming=streaming)
    assert find_columns(features, DEFAULT, config).get("label") == taken
    assert told == ([line] if line else [])
