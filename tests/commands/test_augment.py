"""`hfgen augment`: a split for a generator, a comparison, its record, and what is refused."""

import json

import pytest
from evaluation.test_augment import pictures
from evaluation.tiny import save_model
from helpers import Command

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.evaluation.classifier import open_parts
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict

TINY = "--resolution 8 --base_channels 4 --num_epochs 2 --train_batch_size 16 --num_seeds 2 --ratios 1".split()


@pytest.fixture(scope="module")
def command():
    return Command("augment")


@pytest.fixture
def scans(tmp_path):
    """Two classes, five images of each of 16 patients."""
    folder = tmp_path / "scans"
    pictures(folder, (50, 30), names=("3", "8"))
    rows = [f"{path.relative_to(folder)},p{int(path.stem) // 5}{path.parent.name}" for path in folder.rglob("*.png")]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    return folder


def patients(folder, split):
    from datasets import load_dataset

    return set(load_dataset(str(folder), split=split)["patient"])


def test_from_a_split_to_a_report(command, scans, tmp_path, capsys):
    """As the text of the command says, with a generator that nothing has trained."""
    split = tmp_path / "split"
    command.main(
        ["--train_data_dir", str(scans), "--group_column", "patient", "--split_only", str(split), "--seed", "1"]
    )
    out = capsys.readouterr().out
    assert "65 images: 40 3, 25 8\n15 images: 10 3, 5 8\n" in out
    assert f"hfgen train gan --preset=conditional --dataset_name={split}\n" in out
    assert f"hfgen augment --dataset_name={split} --group_column=patient --model out/gan-split\n" in out
    assert {path.name for path in split.iterdir()} == {"README.md", "data", "split.json"}
    assert not patients(split, "train") & patients(split, "test")
    assert len(patients(split, "train") | patients(split, "test")) == 16
    assert "`test` is held out" in (split / "README.md").read_text()
    assert (
        len(open_images(DataConfig(dataset_name=str(split))))
        == json.loads((split / "split.json").read_text())["train"]["num_images"]
    )

    model, output = save_model(tmp_path / "gan", "gan"), tmp_path / "out"
    given = ["--dataset_name", str(split), "--group_column", "patient", "--model", model, *TINY]
    command.main([*given, "--drop_unlikely", "0.25", "--output_dir", str(output)])
    out = capsys.readouterr().out
    report = json.loads((output / "augment.json").read_text())
    assert out.count("\nSeed ") == 6 and "2 seeds show no difference, whichever way it goes: use --num_seeds" in out
    assert "| real + 1 x generated |" in out and "No group of the column patient is both" in out
    assert report["splits"][0]["test_data"]["split"] == "test"
    assert report["command"].startswith("hfgen augment --dataset_name")

    (augment, data, config, *_), _ = command.read_options(["--config", str(output / "augment.json")])
    assert as_dict([data, config, augment]) == report["config"]


def test_options(command):
    (augment, data, config, *_), given = command.read_options(["--model", "m", "n", "--guidance_scale", "2"])
    assert augment.model == ("m", "n") and given == {"guidance_scale": 2.0}
    assert data.dataset_name == "digits" and data.resolution == 16 and config.num_epochs == 20, "as hfgen classify"
    assert augment.output_dir == config.output_dir == "out/augment-digits"
    (augment, data, *_), _ = command.read_options(["--generated", "g", "--train_data_dir", "x/y"])
    assert data.random_crop == 2 and data.dataset_name is None and augment.output_dir == "out/augment-y"
    (augment, *_), _ = command.read_options(["--generated", "g", "--splits", "out/a", "out/b"])
    assert augment.output_dir == "out/augment-a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--model is missing: give a generator that knows the classes, or images by --generated"),
        ("--model {tmp}/none", "none holds no pipeline: there is no such folder"),
        ("--model {vae} --train_data_dir {scans}", "--model .*vae knows no classes, and images without a class teach"),
        ("--model {gan} --train_data_dir {scans} --group_column name", "--group_column name is not a column of scans"),
        ("--split_only {tmp}/s --train_data_dir {scans} --group_column file", "file is not a column"),
        ("--generated g --output_dir {scans}", "--output_dir .* is not empty: give a new folder"),
        ("--generated g --ratios 0", "--ratios 0.0 is out of range: use more than 0"),
        ("--generated g --drop_unlikely 1", "--drop_unlikely 1.0 is out of range"),
        ("--generated g --test_split 1.5", "--test_split 1.5 is no share of the images"),
    ],
)
def test_mistakes(command, scans, tmp_path, arguments, message):
    places = {"scans": scans, "tmp": tmp_path}
    for kind in ("gan", "vae"):
        if f"{{{kind}}}" in arguments:
            places[kind] = save_model(tmp_path / kind, kind)
    given = arguments.format(**places).split()
    output = [] if "--output_dir" in given else ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message) as error:
        command.main([*given, *output])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists() and not (tmp_path / "s").exists()


def test_one_patient_of_a_class_is_too_few(command, scans, tmp_path):
    table = scans / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(f"{line.partition(',')[0]},one" if line.startswith("8/") else line for line in lines))
    with pytest.raises(UserError) as error:
        command.main(
            ["--train_data_dir", str(scans), "--group_column", "patient", "--split_only", str(tmp_path / "split")]
        )
    text = str(error.value)
    assert "--group_column patient: of class '8' there are only 0 images" in text and "one (30 images)" in text


def test_hfgen_classify_keeps_groups_together(scans, tmp_path):
    """Its own split, that of a share, and what a training leaves out."""
    classify = Command("classify")
    plain = ["--train_data_dir", str(scans), "--group_column", "patient", "--resolution", "8"]
    for more, share in ([], 0.2), (["--test_split", "0.4"], 0.4), (["--validation_split", "0.3"], 0.3):
        train, test = open_parts(*classify.read_options([*plain, *more]))
        assert len(test.rows) == pytest.approx(80 * share, abs=5) and len(train.rows) + len(test.rows) == 80
        images = [{bytes(image) for image in part.data.squares(part.rows)} for part in (train, test)]
        assert not images[0] & images[1]


def test_what_is_left_out_of_training_is_not_mixed_up(scans):
    """A fifth of what `validation_split` leaves: rows of one were taken for rows of all images."""
    options = ["--train_data_dir", str(scans), "--validation_split", "0.25", "--test_split", "train"]
    train, test = open_parts(*Command("classify").read_options([*options, "--resolution", "8"]))
    images = [{bytes(image) for image in part.data.squares(part.rows)} for part in (train, test)]
    assert len(train.rows) + len(test.rows) == 60 and not images[0] & images[1]
