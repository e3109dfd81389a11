"""Sampling from a folder: the same images whatever the batch size and the number of processes."""

import json
import re

import numpy as np
import pytest
from helpers import TINY, Command, run
from PIL import Image

from hfgen.commands.main import main
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import image_seed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    train = Command("train ddpm")
    train.main([*TINY, "--output_dir", str(folder / "plain")])
    train.main([*TINY, "--class_conditional", "--output_dir", str(folder / "labelled")])
    return folder


@pytest.fixture
def sample():
    return Command("sample").main


def images(folder):
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("[0-9]*.png"))}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:  # rounding may differ by one gray level where kernels add up in another order
        assert np.abs(first[name] - second[name]).max() <= 1


def test_batch_size_and_seeds(models, tmp_path, sample):
    base = ["--model", str(models / "plain"), "--num_inference_steps", "4"]
    sample([*base, "--num_images", "7", "--output_dir", str(tmp_path / "a")])
    sample([*base, "--num_images", "7", "--batch_size", "2", "--output_dir", str(tmp_path / "b")])
    sample([*base, "--num_images", "3", "--seed", "4", "--output_dir", str(tmp_path / "c")])
    first = images(tmp_path / "a")
    assert list(first) == [f"{number:06d}.png" for number in range(7)]
    assert_same(first, images(tmp_path / "b"))
    others = images(tmp_path / "c")
    assert not any(np.array_equal(image, other) for image in first.values() for other in others.values())
    assert (tmp_path / "a" / "grid.png").exists()
    record = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert record["seed"] == 0
    assert record["images"][2] == {"file": "000002.png", "seed": image_seed(0, 2), "class_label": None}


def test_two_processes(models, tmp_path, sample):
    options = ["--model", models / "labelled", "--num_images", 9, "--batch_size", 2, "--num_inference_steps", 4]
    one = run("sample", *options, "--output_dir", tmp_path / "one")
    two = run("sample", *options, "--output_dir", tmp_path / "two", processes=2)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert_same(images(tmp_path / "one"), images(tmp_path / "two"))
    assert (tmp_path / "one" / "samples.json").read_text() == (tmp_path / "two" / "samples.json").read_text()


def test_labels(models, tmp_path, sample):
    base = ["--model", str(models / "labelled"), "--num_inference_steps", "2", "--guidance_scale", "2"]
    sample([*base, "--num_images", "12", "--output_dir", str(tmp_path / "all")])
    record = json.loads((tmp_path / "all" / "samples.json").read_text())
    assert [image["class_label"] for image in record["images"]] == [*range(10), 0, 1]
    sample([*base, "--num_images", "3", "--class_labels", "7", "3", "--output_dir", str(tmp_path / "some")])
    record = json.loads((tmp_path / "some" / "samples.json").read_text())
    assert [image["class_label"] for image in record["images"]] == [7, 3, 7]


@pytest.mark.parametrize("sampler", ["sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm"])
def test_samplers(models, tmp_path, sample, sampler):
    sample(["--model", str(models / "plain"), "--sampler", sampler, "--num_inference_steps", "5", "--num_images", "1",
            "--mixed_precision", "bf16", "--output_dir", str(tmp_path)])  # fmt: skip
    assert len(images(tmp_path)) == 1


def test_too_few_steps_are_told_by_flags(models, tmp_path, capsys, recwarn):
    arguments = "--sampler ddim --num_inference_steps 5 --num_images 2 --batch_size 1".split()
    main(["sample", "--model", str(models / "plain"), "--output_dir", str(tmp_path), *arguments])
    said = "--num_inference_steps 5 of --sampler ddim lose fine detail: use 50 or more, or leave --sampler out.\n"
    assert capsys.readouterr().out.count(said) == 1
    assert not [warning for warning in recwarn if "steps" in str(warning.message)]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("plain", "--class_labels 3", "knows no classes"),
        ("labelled", "--class_labels 3 cow", "has no such class"),
        ("absent", "", "holds no pipeline"),
        ("plain", "--num_images 0", "--num_images 0 is out of range"),
        ("plain", "--num_inference_steps 1001", "--num_inference_steps 1001 is out of .* 1000 timesteps. Use 1000 or"),
        ("labelled", "--guidance_scale -1", "--guidance_scale -1.0 is out of range"),
        ("plain", "--seed -1", "--seed -1 is out of range"),
        ("plain", "--mixed_precision fp16", "fp16 does not exist on a CPU"),
        ("plain", "--sampler euler", "invalid choice: 'euler'"),
    ],
)
def test_mistakes(models, tmp_path, sample, model, arguments, message):
    with pytest.raises(UserError) as error:
        sample(["--model", str(models / model), "--output_dir", str(tmp_path / "out"), *arguments.split()])
    assert re.search(message, str(error.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["samples.json", "grid.png", "7.png"])
def test_files_of_others_are_not_replaced_unasked(models, tmp_path, sample, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}: add --overwrite_output_dir or give another"):
        sample(["--model", str(models / "plain"), "--output_dir", str(tmp_path)])
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_images_are_not_replaced_unasked(models, tmp_path, sample):
    base = ["--model", str(models / "plain"), "--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    sample([*base, "--num_images", "3"])
    with pytest.raises(UserError, match="holds 000000.png and 4 others: add --overwrite_output_dir"):
        sample([*base, "--num_images", "1"])
    sample([*base, "--num_images", "1", "--overwrite_output_dir"])
    assert list(images(tmp_path)) == ["000000.png"]
