"""What a family asks of its data, and what is said of it."""

import dataclasses
import json

import pytest

from hfgen.data.columns import DEFAULT, Classes, Derived, Image, Label, Sources, Text, resolve
from hfgen.data.config import DataConfig
from hfgen.data.info import DataInfo, DerivedInfo, ImageInfo, LabelInfo, SourceInfo, TextInfo
from hfgen.runtime.errors import UserError

CONFIG, OTHER = DataConfig(), DataConfig(dataset_name="other")
TWO = Sources({"a": Image(), "b": Image(source="b")}, {"b": OTHER})
LATENT = {"image": Image(), "text": Text(), "latent": Derived(("image",))}


def test_columns_by_source():
    assert resolve(DEFAULT, CONFIG) == {"train": (CONFIG, dict(DEFAULT))}
    spec = Sources({"b": Image(source="b"), "a": Image(), "c": Text(source="b")}, {"b": OTHER})
    sources = resolve(spec, CONFIG)
    assert list(sources) == ["b", "train"] and sources["train"] == (CONFIG, {"a": Image()})
    assert sources["b"] == (OTHER, {"b": Image(source="b"), "c": Text(source="b")})


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ({"b": Image(source="b")}, {}, "the column 'b' is of a source 'b', which is not declared"),
        (LATENT | {"y": Derived(("latent",))}, {}, "'y' is made from latent: name columns of one source"),
        ({"image": Image(), "x": Derived(("imge",))}, {}, "'x' is made from imge: .*, out of image"),
        ({"image": Image(), "x": Derived(())}, {}, "'x' is made from nothing"),
        (
            {"image": Image(), "x": Derived(("image",), ("flip",))},
            {},
            "'x' has the variants flip: use plain, or plain and",
        ),
        (
            LATENT,
            {"random_flip": True},
            "`random_flip` True changes images, and the column 'latent' .* turn it off, or",
        ),
        (LATENT, {"random_rotation": 5.0}, "`random_rotation` 5.0 .* let the family encode live"),
        (LATENT, {"color_jitter": 0.1}, "`color_jitter` 0.1"),
        (LATENT, {"streaming": True, "dataset_name": "x"}, "`streaming` keeps nothing, and the column 'latent'"),
        (
            TWO,
            {"streaming": True, "dataset_name": "x"},
            "`streaming` reads one source",
        ),
        (
            TWO,
            {"random_crop": 2},
            "`random_crop` is 2 for the run and 0 for the source 'b'",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(spec, options, message):
    with pytest.raises(UserError, match=message):
        resolve(spec, dataclasses.replace(CONFIG, **options))


def test_what_derived_columns_allow():
    flipped = LATENT | {"latent": Derived(("image",), ("plain", "flip"))}
    live = LATENT | {"latent": Derived(("image",), live=True)}
    text = LATENT | {"latent": Derived(("text",))}
    resolve(flipped, dataclasses.replace(CONFIG, random_flip=True))
    for spec in (live, text):
        resolve(spec, dataclasses.replace(CONFIG, random_flip=True, random_rotation=5.0))
    resolve(live, DataConfig(streaming=True, dataset_name="x"))


SOURCE = SourceInfo("digits", "train", 10, 2, "abc")
CLASSES = Classes(("a", "b"), unlabelled=3)


def test_records():
    info = DataInfo({"train": SOURCE}, {"image": ImageInfo("RGB", 8), "label": LabelInfo(CLASSES)})
    assert (info.channels, info.class_names, info.fingerprint) == (3, ("a", "b"), "abc")
    assert info.as_record() == {
        "name": "digits",
        "split": "train",
        "num_images": 10,
        "skipped": 2,
        "unlabelled": 3,
        "mode": "RGB",
        "resolution": 8,
        "class_names": ["a", "b"],
        "fingerprint": "abc",
        "class_shares": None,
        "class_kind": "labels",
    }
    assert str(info) == "digits [train]: 10 images, 8x8 RGB, 2 classes, 2 corrupt ones skipped"
    plain = DataInfo({"train": SOURCE}, {"image": ImageInfo("L", 8)})
    assert plain.classes is None and plain.as_record()["class_names"] is None and "columns" not in plain.as_record()
    groups = dataclasses.replace(info, columns={**info.columns, "label": LabelInfo(Classes(("0",), "groups", (1.0,)))})
    assert groups.classes.groups and groups.as_record()["class_shares"] == [1.0]
    assert "1 groups of similar images" in str(groups)


def test_records_of_several():
    columns = {"image": ImageInfo("L", 8), "b": ImageInfo("RGB", 16, "b"), "text": TextInfo(1, "b")}
    columns["latent"] = DerivedInfo((4, 2, 2))
    info = DataInfo({"train": SOURCE, "b": SourceInfo("other", "test", None, 0, "def")}, columns)
    record = json.loads(json.dumps(info.as_record()))
    assert (record["resolution"], record["num_images"]) == (8, 10)
    assert record["sources"]["b"]["fingerprint"] == "def" and record["columns"]["latent"]["shape"] == [4, 2, 2]
    assert record["fingerprint"] not in ("abc", "def")
    shown = "digits [train]: 10 images, 8x8 L, 4x2x2 float32, 2 corrupt ones skipped; "
    assert str(info) == shown + "other [test]: a stream of images, 16x16 RGB, texts (1 missing)"
    assert Label().source == "train"
