"""The script of autoregressive models as users run it, what it leaves, and what they can get wrong."""

import json
import re

import pytest
import torch
from helpers import ROOT, TINY_AR, Command, metrics, python, run

from hfgen import AutoregressivePipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import image_generators


@pytest.fixture(scope="module")
def script():
    return Command("train autoregressive")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "ar-tiny"
    result = run("train_autoregressive", *TINY_AR, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_directory(trained):
    folder, result = trained
    wanted = "README.md model_index.json model run.json samples samples.png logs"
    assert set(wanted.split()) <= {path.name for path in folder.iterdir()}
    assert not (folder / "vae").exists()
    assert f"Pipeline: {folder}" in result.stdout
    (line, *_) = metrics(folder)
    assert {"loss", "bits_per_dim"} <= line.keys()


def test_the_card(trained, monkeypatch):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    assert "An autoregressive model (gated PixelCNN, categorical)" in card
    assert "knows the exact probability of every image" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the card's own snippet
    assert len(namespace["images"]) == 4 and namespace["nats"].shape == (4,)


def test_the_readmes_example(trained):
    folder, _ = trained
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from hfgen import AutoregressivePipeline.*?)```", readme, re.DOTALL)
    namespace = {}
    exec(code.replace("out/autoregressive-mnist", str(folder)), namespace)
    assert len(namespace["completed"]) == 1


def test_a_fresh_process_loads_it(trained):
    folder, _ = trained
    code = "from hfgen import AutoregressivePipeline as Pipe\n"
    assert python(f"{code}print(Pipe.from_pretrained({str(folder)!r})(2).images[0].size)") == "(8, 8)"


def test_sampling_by_command(trained, tmp_path):
    sample = Command("sample").main
    folder, _ = trained
    sample(f"--model {folder} --num_images 3 --temperature 0.8 --top_p 0.9 --output_dir {tmp_path / 'it'}".split())
    record = json.loads((tmp_path / "it" / "samples.json").read_text())
    assert record["temperature"] == 0.8 and record["top_p"] == 0.9 and "prior" not in record
    with pytest.raises(UserError, match="which has temperature, top_p instead"):
        sample(["--model", str(folder), "--output_dir", str(tmp_path / "x"), "--prior", "normal"])
    with pytest.raises(UserError, match="--top_p 0.0 is out of range"):
        sample(["--model", str(folder), "--output_dir", str(tmp_path / "x"), "--top_p", "0"])


def test_bits_per_dimension_by_command(trained, tmp_path):
    folder, _ = trained
    flags = "--dataset_name digits --metrics bits_per_dim --likelihood_images 20".split()
    Command("evaluate").main(["--model", str(folder), *flags, "--output", str(tmp_path / "evaluation.json")])
    (report,) = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    result = report["results"]["bits_per_dim"]
    assert result["details"]["bound"] == "exact" and 0 < result["value"] < 10
    assert result["details"]["elbo"] == result["value"]


@pytest.mark.parametrize("preset", ["digits", "pixelcnn", "transformer"])
def test_every_preset_runs(script, tmp_path, preset):
    small = "--hidden_size 16 --num_layers 1 --max_train_steps 3 --eval_batch_size 10".split()
    script.main(["--preset", preset, *TINY_AR, *small, "--output_dir", str(tmp_path)])
    pipe = AutoregressivePipeline.from_pretrained(tmp_path)
    first = pipe(4, generator=image_generators(0, range(4)), output_type="pt").images
    alone = pipe(1, generator=image_generators(0, [2]), output_type="pt").images
    torch.testing.assert_close(first[2:3], alone, rtol=0, atol=1e-5)


def test_a_vq_vae_and_its_second_stage_by_command(tmp_path, monkeypatch):
    """As the README shows it."""
    data = "--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 4 --save_images_epochs 0"
    data += " --mixed_precision no"
    vq = f"--preset vq {data} --block_out_channels 8 8 --latent_channels 4 --num_vq_embeddings 16"
    Command("train vae").main([*vq.split(), "--output_dir", str(tmp_path / "vq")])
    small = f"{data} --hidden_size 16 --num_layers 1 --num_attention_heads 2 --lr_warmup_steps 2"
    codes = ["--preset", "codes", "--codes_from", str(tmp_path / "vq"), *small.split()]
    Command("train autoregressive").main([*codes, "--output_dir", str(tmp_path / "codes")])
    index = json.loads((tmp_path / "codes" / "model_index.json").read_text())
    assert index["vae"][1] == "VQVAE" and index["model"][1] == "CausalTransformer"
    sample = ["--model", str(tmp_path / "codes"), "--num_images", "2", "--output_dir", str(tmp_path / "samples")]
    Command("sample").main(sample)
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 2


@pytest.mark.slow
def test_compile(tmp_path):
    result = run("train_autoregressive", *TINY_AR, "--compile", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset codes", "--codes_from is missing: train a VQ-VAE with `hfgen train vae --preset vq`"),
        ("--preset codes --codes_from nowhere/at/all", "--codes_from nowhere/at/all holds no pipeline"),
        ("--codes_from x", "--codes_from is for --draws codes, not for pixels"),
        ("--kernel_size 4", "--kernel_size 4 is even"),
        ("--likelihood categorical --image_mode RGB", "--likelihood categorical does not fit the images"),
        ("--likelihood gaussian", "invalid choice: 'gaussian'"),
        ("--dropout 1", "--dropout 1.0 is out of range"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, script, arguments, message):
    with pytest.raises(UserError) as error:
        script.main([*TINY_AR, "--output_dir", str(tmp_path / "run"), *arguments.split()])
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
