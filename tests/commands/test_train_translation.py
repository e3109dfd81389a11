"""The translation script as users run it, what it leaves, and what they can get wrong."""

import json
import re

import numpy as np
import pytest
from helpers import TINY_TRANSLATION, Command, metrics, run, save_pairs
from PIL import Image

from hfgen import ImageTranslationPipeline
from hfgen.runtime.errors import UserError


@pytest.fixture(scope="module")
def script():
    return Command("train translation")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return save_pairs(tmp_path_factory.mktemp("data") / "pairs")


def columns(pairs, mode="--image_mode_b"):
    return ["--dataset_a", str(pairs), "--image_column", "a", "--image_column_b", "b", mode, "RGB"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "translation-tiny"
    result = run("train_translation", *TINY_TRANSLATION, *columns(pairs), "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_directory(trained):
    folder, result = trained
    wanted = "README.md model_index.json a2b b2a run.json samples samples.png reconstructions.png logs"
    assert set(wanted.split()) <= {path.name for path in folder.iterdir()}
    assert (
        f"Pipeline: {folder}" in result.stdout and f"hfgen translate --model {folder} --input FOLDER" in result.stdout
    )
    (line, *_) = metrics(folder)
    wanted = {"g_loss", "d_loss", "cycle_error", "ranked_right", "diversity", "correlation", "black"}
    assert wanted <= line.keys() and "identity_error" not in line  # the sets have other channels
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["dataset_b"] is None and record["config"]["image_column_b"] == "b"
    assert record["data"]["columns"]["b"]["mode"] == "RGB" and record["data"]["columns"]["a"]["mode"] == "L"
    # Rows of A, there, back, and the same of B.
    assert Image.open(folder / "samples.png").height > 5 * 64


def test_the_card(trained, monkeypatch):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    assert "CycleGAN-style, trained without pairs" in card and "pipeline_tag: image-to-image" in card
    assert "(column a) images that could be of *pairs* (column b), and the other way round" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the card's own snippet
    assert namespace["translated"].mode == "RGB" and namespace["back"].mode == "L"


@pytest.mark.parametrize("preset", ["cyclegan", "cut", "fastcut", "pix2pix"])
def test_every_preset_runs(script, pairs, tmp_path, preset):
    given = columns(pairs, "--image_mode")
    script.main([*TINY_TRANSLATION, *given, "--preset", preset, "--output_dir", str(tmp_path)])
    pipe = ImageTranslationPipeline.from_pretrained(tmp_path)
    assert pipe.directions == (("a2b", "b2a") if preset == "cyclegan" else ("a2b",))
    (made,) = pipe(Image.fromarray(np.zeros((11, 20), np.uint8))).images
    assert made.size == (20, 11) and made.mode == "RGB"
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card and "{%" not in card and "None" not in card


def test_two_folders(script, tmp_path):
    """Of other sizes and channels each, and two splits of one."""
    for name, mode in (("photos", "RGB"), ("drawings", "L")):
        for number in range(12):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new(mode, (9 + number, 12), number).save(tmp_path / name / f"{number}.png")
    given = [*TINY_TRANSLATION, "--max_train_steps", "2", "--dataset_b", str(tmp_path / "drawings")]
    for name in ("--dataset_a", "--train_data_dir", "--dataset_name"):
        out = tmp_path / name[2:]
        with pytest.raises(
            UserError, match="the first set are RGB, and those of the second L: .* `?-*image_mode_b`? L"
        ):
            script.main([*given, name, str(tmp_path / "photos"), "--output_dir", str(out)])
        script.main([*given, "--image_mode_b", "L", name, str(tmp_path / "photos"), "--output_dir", str(out)])
        record = json.loads((out / "run.json").read_text())
        assert record["data"]["sources"]["b"]["name"] == "drawings" and record["data"]["name"] == "photos"
        assert record["config"]["dataset_a"] is None
    with pytest.raises(UserError, match="--dataset_a x and --dataset_name .* are one option"):
        script.main([*given, "--dataset_a", "x", "--dataset_name", "y"])


def test_it_is_said_what_a_translator_cannot_do(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(UserError, match="is a translator, which makes no images from seeds"):
        Command("sample").main(["--model", str(folder), "--output_dir", str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--dataset_b is missing: name the second set"),
        ("--dataset_b nowhere/at/all", "nowhere"),
        ("--image_column a --image_column_b c", "c"),
        (
            "--preset pix2pix --image_column a --dataset_b {pairs}",
            "--dataset_b .* is another, whose rows belong to none",
        ),
        ("--image_column b --image_column_b b --resolution 4", "--resolution 4 does not fit resnet"),
        ("--image_column a --image_column_b b", "first set are L, and those of the second RGB: bring both to one"),
        ("--preset pix2pix --image_column a --image_column_b b", "pairs are read in one mode: .* --image_mode"),
        ("--preset cut --image_column a --image_column_b b --image_mode_b RGB", "compares images with their"),
        ("--image_column a --image_column_b b --cycle_weight 0 --identity_weight 0", "nothing ties a translation"),
        ("--image_column a --image_column_b b --streaming --max_train_steps 3", "--streaming reads one source"),
    ],
)
def test_mistakes(script, pairs, tmp_path, arguments, message):
    given = ["--dataset_a", str(pairs), *TINY_TRANSLATION, *arguments.format(pairs=pairs).split()]
    with pytest.raises(UserError, match=message) as error:
        script.main([*given, "--output_dir", str(tmp_path / "x")])
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()
