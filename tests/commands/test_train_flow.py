"""The flow script as users run it, what it leaves, and what they can get wrong."""

import json
import re

import pytest
import torch
from helpers import ROOT, TINY_FLOW, TINY_GLOW, Command, metrics, run

from hfgen import FlowPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import image_generators


@pytest.fixture(scope="module")
def script():
    return Command("train flow")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "flow-tiny"
    result = run("train_flow", *TINY_FLOW, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_directory(trained):
    folder, result = trained
    wanted = "README.md model_index.json model run.json samples samples.png logs"
    assert set(wanted.split()) <= {path.name for path in folder.iterdir()}
    assert f"Pipeline: {folder}" in result.stdout
    (line, *_) = metrics(folder)
    assert {"loss", "bits_per_dim", "latent_rms"} <= line.keys()


def test_the_card(trained, monkeypatch):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    assert "normalizing flow (TarFlow)" in card and "2 blocks of 1 transformer layer, patches of 4x4 pixels" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the card's own snippet
    assert len(namespace["images"]) == len(namespace["same"]) == len(namespace["nats"]) == 4


@pytest.mark.parametrize("family", ["flow", "vae"])
def test_the_card_of_a_model_of_groups(family, tmp_path, monkeypatch):
    small = {"flow": "--preset glow --num_steps 1 --hidden_size 8", "vae": "--block_out_channels 8 8"}[family]
    common = f"--num_clusters 3 --resolution 8 --max_train_steps 2 --eval_batch_size 4 --output_dir {tmp_path}"
    Command(f"train {family}").main(f"--dataset_name digits {small} {common}".split())
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL).group(1)
    assert "labels = [0, 0, 0, 0]  # groups of similar images\nimages = pipe(class_labels=labels" in code
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # it encodes images, for which a model needs the class


def test_the_readmes_example(trained):
    folder, _ = trained
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from hfgen import FlowPipeline.*?)```", readme, re.DOTALL)
    namespace = {}
    exec(code.replace("out/flow-mnist", str(folder)), namespace)
    assert (namespace["same"] - namespace["images"]).abs().max() < 1e-3 and len(namespace["nats"]) == 4


@pytest.mark.parametrize("preset", ["tarflow", "glow", "digits", "conditional"])
def test_every_preset_runs(script, tmp_path, preset):
    tiny = TINY_GLOW if preset == "glow" else TINY_FLOW
    script.main(
        [*tiny, "--preset", preset, *"--max_train_steps 3 --eval_batch_size 10 --output_dir".split(), str(tmp_path)]
    )
    pipe = FlowPipeline.from_pretrained(tmp_path)
    first = pipe(4, generator=image_generators(0, range(4)), output_type="pt").images
    alone = pipe(1, generator=image_generators(0, [2]), output_type="pt").images
    torch.testing.assert_close(first[2:3], alone, rtol=0, atol=1e-4)
    assert len(pipe.class_names) == (10 if preset == "conditional" else 0)
    assert (pipe.null_class is not None) == (preset == "conditional")
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card and "{%" not in card and "None" not in card


def test_sampling_and_evaluating(trained, tmp_path):
    folder, _ = trained
    Command("sample").main(f"--model {folder} --num_images 3 --temperature 0.5 --output_dir {tmp_path / 'x'}".split())
    record = json.loads((tmp_path / "x" / "samples.json").read_text())
    assert record["temperature"] == 0.5 and record["guidance_scale"] == 1.0 and record["denoise"] is False
    with pytest.raises(UserError, match="--guidance_scale 2.0 needs a model trained with --label_dropout"):
        Command("sample").main(f"--model {folder} --guidance_scale 2 --output_dir {tmp_path / 'y'}".split())
    options = f"--model {folder} --metrics bits_per_dim --likelihood_images 10 --likelihood_samples 3"
    Command("evaluate").main([*options.split(), "--output", str(tmp_path / "report.json")])
    report = (tmp_path / "report.json").read_text()
    assert '"bound": "dequantised-3"' in report


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY_FLOW, TINY_GLOW], ids=["tarflow", "glow"])
def test_compile(tmp_path, tiny):
    result = run("train_flow", *tiny, "--compile", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr


def test_augmentation_off_the_levels_is_said(script, tmp_path, capsys):
    script.main([*TINY_FLOW, "--random_rotation", "10", "--output_dir", str(tmp_path)])
    assert "augmentation takes images off the 256 levels of 8 bit: they are rounded" in capsys.readouterr().out
    script.main([*TINY_FLOW, "--random_flip", "--output_dir", str(tmp_path / "flip")])
    assert "rounded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--resolution 300", "does not fit the images"),
        ("--patch_size 3", "patch_size is 3, which does not divide the 8 pixels"),
        ("--architecture glow", "--patch_size is for tarflow, not for glow"),
        ("--architecture flow++", "invalid choice: 'flow++'"),
        ("--dequantisation uniform --noise_std 0.2", "--noise_std 0.2: uniform noise has none"),
        ("--noise_std 0", "--noise_std 0.0 is out of range"),
        ("--noise_sd 0.2", "unknown flag --noise_sd. Did you mean --noise_std?"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, script, arguments, message):
    with pytest.raises(UserError) as error:
        script.main([*TINY_FLOW, "--output_dir", str(tmp_path / "run"), *arguments.split()])
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
