"""Data sets by name, and the columns that are found in them."""

import dataclasses

import datasets
import pytest

from hfgen.data.cache import open_images
from hfgen.data.columns import DEFAULT, Image, Label, Text
from hfgen.data.config import DataConfig
from hfgen.data.sources import find_columns
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
