"""Splits that are drawn: shares of the classes, whole groups, what is refused, and what is written."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from hfgen.data.cache import open_images, open_source
from hfgen.data.columns import Image as ImageColumn
from hfgen.data.config import DataConfig
from hfgen.data.splits import check_sides, draw_held_out, write_split
from hfgen.runtime.errors import UserError

NAMES = ("a", "b")
UNBALANCED = np.array([0] * 240 + [1] * 60)


def scans(folder, table=True, patients=10, classes=("ill", "well")):
    """A folder of scans by class, four of each patient, with a table that says of whom each is."""
    rows = []
    for number in range(4 * patients):
        kind = classes[number % patients % len(classes)]
        file = f"{kind}/{number:02d}.png"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * number).save(folder / file)
        rows.append({"file_name": file, "patient": f"p{number % patients}", "age": number})
    if table:
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.mark.parametrize("share", [0.2, 0.5, 0.77])
def test_each_class_has_its_share(share):
    held_out = draw_held_out(UNBALANCED, share, 0)
    assert np.bincount(UNBALANCED[held_out]).tolist() == [round(240 * share), round(60 * share)]
    assert (draw_held_out(UNBALANCED, share, 0) == held_out).all()
    assert (draw_held_out(UNBALANCED, share, 1) != held_out).any()


@pytest.mark.parametrize("seed", range(10))
def test_no_group_is_cut(seed):
    """Groups of 1 to 12 images, of which some have both classes: shares are as near as whole groups allow."""
    groups = np.repeat(np.arange(60), np.random.default_rng(seed).integers(1, 13, 60))
    labels = np.random.default_rng(seed).integers(0, 5, len(groups)) // 4
    held_out = draw_held_out(labels, 0.25, seed, groups)
    assert not set(groups[held_out]) & set(groups[~held_out])
    shares = np.bincount(labels[held_out]) / np.bincount(labels)
    assert np.allclose(shares, 0.25, atol=0.06), shares


def test_a_rare_class_is_on_both_sides_if_it_can_be():
    labels = np.array([0] * 100 + [1] * 2)
    assert sorted(np.bincount(labels[draw_held_out(labels, 0.1, 3)])) == [1, 10]
    labels, groups = np.array([0] * 90 + [1] * 30), np.array([*range(90), *[100] * 18, *[101] * 12])
    held_out = draw_held_out(labels, 0.1, 0, groups)
    assert set(groups[held_out]) & {100, 101} and set(groups[~held_out]) & {100, 101}
    alone = np.where(groups < 100, groups, 100)
    assert not (labels[draw_held_out(labels, 0.1, 0, alone)] == 1).any()


def test_what_a_split_lacks_is_said():
    labels, groups = np.array([0] * 90 + [1] * 30), np.array([f"p{number}" for number in [*range(90), *[100] * 30]])
    held_out = draw_held_out(labels, 0.1, 0, groups)
    sides = (labels[~held_out], labels[held_out]), (groups[~held_out], groups[held_out])
    with pytest.raises(UserError) as error:
        check_sides(*sides, NAMES, "patient")
    text = str(error.value)
    assert text.startswith("`group_column` patient: of class 'b' there are only 0 images held out, and 30 others")
    assert "of 1 group, which no split may cut: p100 (30 images)" in text and "give more groups" in text
    with pytest.raises(UserError, match=r"patient: groups with images both to train on and held out: 1 \(p3\)"):
        check_sides((labels[:2], labels[-2:]), (groups[2:4], groups[3:5]), NAMES, "patient")
    with pytest.raises(
        UserError, match="of class 'b' there are only 1 images held out, and 3 others: each side needs 2"
    ):
        check_sides((UNBALANCED[-5:-2], UNBALANCED[-1:]), None, NAMES, "", 2)
    check_sides((UNBALANCED[200:-5], UNBALANCED[:5]), None, ("a",), "", 2)  # a class without any image does not count


def test_groups_are_read(tmp_path):
    folder = scans(tmp_path / "scans")

    def groups(column, **options):
        data = open_images(DataConfig(train_data_dir=str(folder), group_column=column, **options))
        return data.groups, data

    (own, _), (ages, _) = groups("patient"), groups("age")
    assert [f"p{int(age) % 10}" for age in ages] == own.tolist() and len(set(own)) == 10
    assert groups(None)[0] is None
    with pytest.raises(UserError, match=r"`group_column` patients is not a column of scans; it has: image \(Image\)"):
        groups("patients")
    with pytest.raises(UserError, match="`group_column` image holds"):
        groups("image")
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("p7", ""))
    with pytest.raises(UserError, match="has no value for 4 of 40 images of scans, which may be of any group"):
        groups("patient")


def test_what_training_leaves_out_is_of_whole_groups(tmp_path):
    """The same images are left out with and without classes, and nothing of one patient is on both sides."""
    folder = scans(tmp_path / "scans")
    config = DataConfig(train_data_dir=str(folder), group_column="patient", validation_split="0.3")
    sides = [open_images(config, held_out=held_out) for held_out in (False, True)]
    assert [len(side) for side in sides] == [28, 12]
    assert [len(set(side.groups)) for side in sides] == [7, 3] and not set(sides[0].groups) & set(sides[1].groups)
    assert "0.3 of train" in str(sides[1].info)
    unlabelled = open_source(config, {"image": ImageColumn()}, held_out=True)
    assert (unlabelled.rows == sides[1].rows).all()
    alone = dataclasses.replace(config, group_column="hospital")
    table = folder / "metadata.csv"
    rows = list(csv.DictReader(table.open()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "hospital"])
        writer.writeheader()
        writer.writerows(row | {"hospital": "one"} for row in rows)
    for held_out in (False, True):
        with pytest.raises(
            UserError, match="`validation_split` 0.3 cannot divide 40 images of one group: `group_column`"
        ):
            open_images(alone, held_out=held_out)


def test_a_split_is_written_as_it_is(tmp_path):
    """Image files byte for byte, all columns, and classes by name."""
    data = open_images(DataConfig(train_data_dir=str(scans(tmp_path / "scans")), group_column="patient"))
    rows = np.arange(40)
    write_split(data, {"train": rows[10:], "test": rows[:10]}, tmp_path / "split")
    for split, own in (("train", rows[10:]), ("test", rows[:10])):
        part = open_images(
            DataConfig(dataset_name=str(tmp_path / "split"), dataset_split=split, group_column="patient")
        )
        assert (part.images == data.images[own]).all() and (part.labels == data.labels[own]).all()
        assert part.info.class_names == ("ill", "well")
        assert part.groups.tolist() == data.groups[own].tolist()
    from datasets import load_dataset

    first = load_dataset(str(tmp_path / "split"), split="test").with_format("arrow")[0]["image"][0].as_py()
    assert first["bytes"] == (tmp_path / "scans" / "ill" / "00.png").read_bytes()


def test_classes_of_strings_become_those_of_the_split(tmp_path):
    scans(tmp_path / "scans")
    config = DataConfig(train_data_dir=str(tmp_path / "scans"), label_column="patient")
    data = open_images(config)
    write_split(data, {"train": np.arange(20), "test": np.arange(20, 21)}, tmp_path / "split")
    part = open_images(DataConfig(dataset_name=str(tmp_path / "split"), dataset_split="test"))
    assert part.info.class_names == data.info.class_names and part.labels[0] == data.labels[20]
