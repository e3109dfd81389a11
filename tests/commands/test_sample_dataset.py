"""A data set out of a model: read by `datasets` and by hfgen, with its classes, and a card that says what it is."""

import json
import shutil

import numpy as np
import pytest
from helpers import TINY_GAN, Command, run
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.hub.dataset import dataset_contents
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import sha256_of
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.dataset import is_folder
from hfgen.sampling.folder import dataset_files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    Command("train gan").main([*TINY_GAN, "--class_conditional", "--output_dir", str(folder / "labelled")])
    Command("train gan").main([*TINY_GAN, "--output_dir", str(folder / "groups")])
    return folder


def sample(model, output, kind, *options):
    Command("sample").main(
        ["--model", str(model), "--output_dir", str(output), "--as_dataset", kind, "--num_images", "23", *options]
    )
    return output


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_it_is_read_as_any_other_data(kind, models, tmp_path, capsys):
    from datasets import ClassLabel, load_dataset

    folder = sample(models / "labelled", tmp_path / "data", kind, "--seed", "3")
    assert f"hfgen train FAMILY --dataset_name {folder}" in capsys.readouterr().out
    data = load_dataset(str(folder), split="train")
    assert len(data) == 23, "and no grid among them"
    assert isinstance(data.features["label"], ClassLabel) and data.features["label"].names == list("0123456789")
    assert sorted(data["label"]) == sorted(index % 10 for index in range(23))
    seeds = [image_seed(3, index) for index in range(23)]
    record = json.loads((folder / "samples.json").read_text())["images"]
    assert {line["seed"]: line["class"] for line in record} == {seeds[i]: str(i % 10) for i in range(23)}
    if kind == "parquet":
        assert list(data["seed"]) == seeds and list(data["label"]) == [index % 10 for index in range(23)]
    assert data[0]["image"].size == (8, 8) and "trainedAlgorithmicMedia" in str(data[0]["image"].info)
    images = open_images(DataConfig(dataset_name=str(folder)))
    assert len(images.images) == 23 and images.info.class_names == tuple("0123456789")
    assert (np.asarray(data[7]["image"]) == images.images[7][0]).all()
    assert images.labels.tolist() == list(data["label"])


def test_the_images_are_those_of_the_set(models, tmp_path):
    plain = tmp_path / "plain"
    Command("sample").main(["--model", str(models / "labelled"), "--output_dir", str(plain), "--num_images", "23"])
    folder = sample(models / "labelled", tmp_path / "data", "imagefolder", "--batch_size", "5")
    for path in (folder / "train").glob("*/*.png"):
        first, second = (np.asarray(Image.open(file)).astype(int) for file in (path, plain / path.name))
        assert np.abs(first - second).max() <= 1


def test_two_processes(models, tmp_path):
    for kind in ("imagefolder", "parquet"):
        options = ["--model", models / "labelled", "--num_images", 23, "--batch_size", 4, "--as_dataset", kind]
        done = run("sample", *options, "--output_dir", tmp_path / kind, processes=2)
        assert done.returncode == 0, done.stderr
        images = open_images(DataConfig(dataset_name=str(tmp_path / kind)))
        assert sorted(images.labels.tolist()) == sorted(index % 10 for index in range(23))
    assert len(list((tmp_path / "parquet" / "data").glob("*.parquet"))) == 2


def test_what_was_there_stays_until_the_new_one_is_whole(models, tmp_path, monkeypatch):
    """A run that was killed left neither the old data set nor a new one."""
    from hfgen.hub import dataset

    folder = sample(models / "labelled", tmp_path / "data", "imagefolder")
    before = {path: path.read_bytes() for path in dataset_files(folder)}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "card", stop)
        with pytest.raises(KeyboardInterrupt):
            sample(models / "labelled", folder, "parquet", "--overwrite_output_dir")
    assert {path: path.read_bytes() for path in dataset_files(folder)} == before
    sample(models / "labelled", folder, "parquet", "--overwrite_output_dir", "--class_labels", "3")
    assert [path.name for path in sorted(folder.iterdir())] == ["README.md", "data", "samples.json"]


def test_groups_are_no_classes_and_files_can_be_large(models, tmp_path):
    folder = sample(models / "groups", tmp_path / "data", "imagefolder", "--scale", "4")
    assert len(list((folder / "train").glob("*.png"))) == 23
    assert Image.open(folder / "train" / "000004.png").size == (32, 32)
    card = (folder / "README.md").read_text()
    assert "unconditional-image-generation" in card and "| class |" not in card


def test_the_card(models, tmp_path):
    model = shutil.copytree(models / "labelled", tmp_path / "model")
    card = (sample(model, tmp_path / "a", "imagefolder") / "README.md").read_text()
    assert "All of them are synthetic" in card and "| 3 | 2 |" in card and "n<1K" in card
    assert "was not measured" in card and "hfgen evaluate --model model --metrics memorisation" in card
    assert "no guarantee of privacy" in card and str(tmp_path) not in card
    weights = next(model.glob("*/*.safetensors")).relative_to(model).as_posix()
    result = {"value": 0.031, "real": 0.0102}
    report = {"results": {"near_duplicates": result}, "model": {"weights": {weights: sha256_of(model / weights)}}}
    report |= {"data": {"name": "digits", "num_images": 900}, "generation": {"num_images": 500}}
    other = report | {"model": {"weights": {weights: "0"}}, "results": {"near_duplicates": {"value": 0, "real": 0}}}
    (model / "evaluation.json").write_text(json.dumps({"models": [other, report]}))
    card = (sample(model, tmp_path / "b", "imagefolder") / "README.md").read_text()
    assert "Near-copies of training images: 3.10 %" in card and "900 images of digits" in card and "1.02 %" in card


def test_what_is_there_stays_and_what_is_pushed(models, tmp_path):
    folder = sample(models / "labelled", tmp_path / "data", "parquet")
    with pytest.raises(UserError, match=r"--output_dir .* holds samples.json and 2 others: add --over"):
        sample(models / "labelled", folder, "imagefolder")
    (folder / "notes.txt").write_text("mine")
    sample(models / "labelled", folder, "imagefolder", "--overwrite_output_dir")
    assert not list(folder.glob("data/*.parquet")) and (folder / "notes.txt").exists()
    names = set(dataset_contents(folder))
    assert {"README.md", "samples.json", "train/0/000000.png"} <= names
    assert "notes.txt" not in names and len(names) == 23 + 2
    assert str(tmp_path) not in dataset_contents(folder)["samples.json"].decode(), "no folder of this machine"
    with pytest.raises(UserError, match="holds no data set: give the folder that `hfgen sample` wrote"):
        dataset_contents(models / "labelled")


def test_classes_that_are_no_folders():
    names = ["3", "Smileys & Emotion", "a/b", "..", "x[1]", "", "_hidden", "trailing.", "café"]
    assert [is_folder(name) for name in names] == [True, True, False, False, False, False, False, False, True]


def test_files_of_somebody_else_are_never_replaced(models, tmp_path):
    """A folder of real images, named by mistake with the flag that replaces what is there."""
    (tmp_path / "photos" / "train" / "3").mkdir(parents=True)
    mine = tmp_path / "photos" / "train" / "3" / "000003.png"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds train/3/000003.png, which `hfgen sample` did not write: give another"):
        sample(models / "labelled", tmp_path / "photos", "imagefolder", "--overwrite_output_dir")
    assert mine.read_bytes() == b"mine" and len(list((tmp_path / "photos").rglob("*.*"))) == 1
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds README.md, which"):
        sample(models / "labelled", tmp_path / "project", "parquet", "--overwrite_output_dir")


def test_images_and_a_data_set_replace_each_other(models, tmp_path):
    plain = ["--model", str(models / "labelled"), "--output_dir", str(tmp_path), "--num_images", "3"]
    Command("sample").main(plain)
    sample(models / "labelled", tmp_path, "parquet", "--overwrite_output_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "data", "samples.json"]
    Command("sample").main([*plain, "--overwrite_output_dir"])
    names = ["000000.png", "000001.png", "000002.png", "grid.png", "samples.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
