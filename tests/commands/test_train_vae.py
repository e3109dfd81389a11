"""The VAE script as users run it, what it leaves, and what they can get wrong."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY_VAE, Command, metrics, python, run
from PIL import Image

from hfgen import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.sampling.sampler import image_generators


@pytest.fixture(scope="module")
def script():
    return Command("train vae")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "vae-tiny"
    result = run("train_vae", *TINY_VAE, "--prior_components", "3", "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_directory(trained):
    folder, result = trained
    wanted = "README.md model_index.json model prior run.json samples samples.png reconstructions.png logs"
    assert set(wanted.split()) <= {path.name for path in folder.iterdir()}
    assert f"Pipeline: {folder}" in result.stdout
    (line, *_) = metrics(folder)
    for name in ("loss", "distortion", "rate", "bits_per_dim", "mse", "active_units", "kl_latent_03"):
        assert name in line


def test_the_card(trained, monkeypatch):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    assert "variational autoencoder (residual, logistic mixture likelihood)" in card
    assert "mixture of Gaussians" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the card's own snippet
    assert len(namespace["images"]) == len(namespace["same"]) == 4


def test_the_readmes_example(trained):
    folder, _ = trained
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from hfgen import VAEPipeline.*?)```", readme, re.DOTALL)
    namespace = {}
    exec(code.replace("out/vae-mnist", str(folder)), namespace)
    assert len(namespace["filled"]) == 1


def test_a_fresh_process_loads_it(trained):
    """Nothing but `VAEPipeline` is imported: the networks are found."""
    folder, _ = trained
    code = f"from hfgen import VAEPipeline; print(VAEPipeline.from_pretrained({str(folder)!r})(2).images[0].size)"
    assert python(code) == "(8, 8)"


@pytest.mark.parametrize(
    "preset",
    [
        "digits",
        "residual",
        "conv",
        "beta",
        "conditional",
        pytest.param("hierarchical", marks=pytest.mark.slow),
        "vq",
        "denoise",
        "super_resolve",
    ],
)
def test_every_preset_runs(script, tmp_path, preset):
    options = [*TINY_VAE, *"--max_train_steps 3 --eval_batch_size 10".split()]
    script.main(["--preset", preset, *options, "--output_dir", str(tmp_path)])
    pipe = VAEPipeline.from_pretrained(tmp_path)
    first = pipe(4, generator=image_generators(0, range(4)), output_type="pt").images
    alone = pipe(1, generator=image_generators(0, [2]), output_type="pt").images
    torch.testing.assert_close(first[2:3], alone, rtol=0, atol=1e-5)
    assert len(pipe.class_names) == (10 if preset == "conditional" else 0)
    task = {"denoise": "denoise", "super_resolve": "super_resolve"}.get(preset)
    assert pipe.config.task == task
    if task:
        size = 8 if task == "denoise" else 4
        done = getattr(pipe, task)(torch.rand(2, 1, size, size), output_type="pt")
        assert done.shape == (2, 1, 8, 8)
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card and "{%" not in card and "None" not in card


def test_sampling_script(trained, tmp_path):
    sample = Command("sample").main
    folder, _ = trained
    sample(["--model", str(folder), "--num_images", "3", "--output_dir", str(tmp_path / "plain")])
    record = json.loads((tmp_path / "plain" / "samples.json").read_text())
    assert record["temperature"] == 1.0 and record["prior"] is None and "sampler" not in record
    pipe = VAEPipeline.from_pretrained(folder)
    for row in record["images"]:  # by its seed, user code makes the same image
        saved = np.asarray(Image.open(tmp_path / "plain" / row["file"])).astype(int)
        again = np.asarray(pipe(generator=torch.Generator().manual_seed(row["seed"])).images[0]).astype(int)
        assert np.abs(saved - again).max() <= 1
    sample(f"--model {folder} --num_images 2 --prior normal --temperature 0 --output_dir {tmp_path / 'mean'}".split())
    first, second = (np.asarray(Image.open(tmp_path / "mean" / f"{seed:06d}.png")) for seed in range(2))
    assert np.array_equal(first, second)  # the mean of the prior
    for arguments, message in (
        ("--num_inference_steps 3", "--num_inference_steps 3: .* is a VAE, which has temperature, prior instead"),
        ("--truncation 0.5", "--truncation 0.5: .* is a VAE, which has temperature, prior instead"),
    ):
        with pytest.raises(UserError, match=message):
            sample(["--model", str(folder), "--output_dir", str(tmp_path / "x"), *arguments.split()])


@pytest.mark.slow
def test_compile(tmp_path):
    result = run("train_vae", *TINY_VAE, "--compile", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr


def test_an_alarm_reaches_the_user(script, tmp_path, capsys, monkeypatch):
    """The classic mistake: a likelihood averaged over pixels beside a summed KL divergence."""
    from hfgen.families.vae import recipe as vae

    monkeypatch.setattr(vae.CollapseAlarm.__init__, "__defaults__", (100,))
    options = [
        *TINY_VAE,
        *"--max_train_steps 200 --likelihood gaussian --beta 64 --variance 0.5 --learning_rate 1e-2".split(),
    ]
    script.main([*options, "--output_dir", str(tmp_path)])
    assert re.search("Warning: for 1[0-9]{2} images the posterior has collapsed", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--label_column kind --class_conditional", "--label_column kind is not a column"),
        ("--resolution 300", "does not fit the images"),
        ("--likelihood bernoulli", "--likelihood bernoulli is for black and white images"),
        ("--likelihood poisson", "invalid choice: 'poisson'"),
        ("--beta -1", "--beta -1.0 is out of range"),
        ("--task super_resolve --task_level 3", "--task_level 3 does not divide the 8 pixels"),
        ("--betta 2", "unknown flag --betta. Did you mean --beta?"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, script, arguments, message):
    with pytest.raises(UserError) as error:
        script.main([*TINY_VAE, "--output_dir", str(tmp_path / "run"), *arguments.split()])
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_step_that_the_memory_cannot_hold_is_told_before_anything_is_written(tmp_path, script, monkeypatch):
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls("cpu", 400_000)))
    options = [*TINY_VAE, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError) as error:
        script.main([*options, "--train_batch_size", "64"])
    told = str(error.value)
    assert told.startswith("--train_batch_size 64 at --resolution 8: a step takes about ")
    assert "and this machine has 400 kB for it. What fits: --train_batch_size " in told
    assert not (tmp_path / "run").exists()
    script.main([*options, *re.search("(--train_batch_size .*?) \\(", told.partition("What fits")[2])[1].split()])
    assert (tmp_path / "run" / "model_index.json").exists()
