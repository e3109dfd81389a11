"""The GAN script as users run it, what it leaves, and what they can get wrong."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY_GAN, Command, metrics, python, run
from PIL import Image

from hfgen import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import image_generators


@pytest.fixture(scope="module")
def script():
    return Command("train gan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "gan-tiny"
    result = run("train_gan", *TINY_GAN, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_directory(trained):
    folder, result = trained
    assert {"README.md", "model_index.json", "model", "run.json", "samples", "samples.png", "logs"} <= {
        path.name for path in folder.iterdir()
    }
    assert "digits [train]: 1797 images, 8x8 L, 100 groups of similar images" in result.stdout
    assert f"Pipeline: {folder}" in result.stdout
    assert not any("discriminator" in path.name for path in (folder / "model").rglob("*"))
    (line, *_) = metrics(folder)
    for name in ("d_loss", "g_loss", "logit_gap", "ranked_right", "r1", "r2", "diversity"):
        assert name in line
    assert {"lr_generator", "lr_discriminator"} <= line.keys()


def test_the_card(trained, monkeypatch):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    assert "dcgan, relativistic objective" in card
    assert "which of 100 groups of similar images" in card
    assert "R1 with gamma 0.05, R2 with gamma 0.05 every 4 steps" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the card's own snippet
    assert len(namespace["images"]) == 4


def test_the_readmes_example(trained):
    folder, _ = trained
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\n\nfrom hfgen import GANPipeline.*?)```", readme, re.DOTALL)
    namespace = {}
    exec(code.replace("out/gan-mnist", str(folder)).replace("walk.gif", str(folder.parent / "walk.gif")), namespace)
    assert (folder.parent / "walk.gif").exists()
    assert len(namespace["edited"][0]) == 3


def test_a_fresh_process_loads_it(trained):
    """Nothing but `GANPipeline` is imported: the networks are found."""
    folder, _ = trained
    code = f"from hfgen import GANPipeline; print(GANPipeline.from_pretrained({str(folder)!r})(2).images[0].size)"
    assert python(code) == "(8, 8)"


@pytest.mark.parametrize(
    "preset", ["digits", "mlp", "dcgan", "fastgan", "conditional", "wgan-gp", "stable", "stylegan2-64"]
)
def test_every_preset_runs(script, tmp_path, preset):
    options = [*TINY_GAN, *"--max_train_steps 5 --eval_batch_size 20".split()]
    script.main(["--preset", preset, *options, "--output_dir", str(tmp_path)])
    pipe = GANPipeline.from_pretrained(tmp_path)
    first = pipe(4, generator=image_generators(0, range(4)), output_type="pt").images
    alone = pipe(1, generator=image_generators(0, [2]), output_type="pt").images
    torch.testing.assert_close(first[2:3], alone, rtol=0, atol=1e-5)
    classes = {"conditional": 10, "stable": 100, "digits": 100}.get(preset, 0)
    assert len(pipe.class_names) == classes
    assert pipe.config.class_kind == {100: "groups", 10: "labels", 0: None}[classes]
    assert (pipe.config.class_shares is not None) == (classes > 0)
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card and "{%" not in card and "None" not in card


def test_sampling_script(script, trained, tmp_path):
    sample = Command("sample").main
    folder, _ = trained
    sample(["--model", str(folder), "--num_images", "3", "--output_dir", str(tmp_path / "plain")])
    record = json.loads((tmp_path / "plain" / "samples.json").read_text())
    assert record["truncation"] == 1.0 and "sampler" not in record
    assert record["images"][0]["class_label"] is None  # the groups have no meaning
    pipe = GANPipeline.from_pretrained(folder)
    for row in record["images"]:  # by its seed, user code makes the same image
        saved = np.asarray(Image.open(tmp_path / "plain" / row["file"])).astype(int)
        again = np.asarray(pipe(generator=torch.Generator().manual_seed(row["seed"])).images[0]).astype(int)
        assert np.abs(saved - again).max() <= 1
    labelled = tmp_path / "labelled"
    script.main([*TINY_GAN, "--preset", "conditional", "--output_dir", str(labelled)])
    sample(["--model", str(labelled), "--num_images", "3", "--class_labels", "7", "3"])
    record = json.loads((labelled / "images" / "samples.json").read_text())
    assert [image["class_label"] for image in record["images"]] == [7, 3, 7]
    for arguments, message in (
        ("--num_inference_steps 3", "--num_inference_steps 3: .* is a GAN, which has truncation instead"),
        ("--truncation 0.5", "--truncation 0.5: .* has no mean latent"),
    ):
        with pytest.raises(UserError, match=message):
            sample(["--model", str(folder), "--output_dir", str(tmp_path / "x"), *arguments.split()])


def test_compile_leaves_a_penalised_discriminator_alone(script, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    script.main([*TINY_GAN, "--compile", "--output_dir", str(tmp_path)])
    assert compiled == ["DCGANGenerator"]
    assert "--compile leaves the network 'discriminator' alone: its gradient penalty differentiates twice" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_compile(tmp_path):
    result = run("train_gan", *TINY_GAN, "--compile", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr


def test_balanced_classes(script, tmp_path):
    script.main([*TINY_GAN, "--preset", "conditional", "--balance_classes", "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "run.json").read_text())["config"]["balance_classes"] is True


def test_an_alarm_reaches_the_user(script, tmp_path, capsys, monkeypatch):
    """A discriminator that wins: high learning rate, no penalty, a generator that hardly learns."""
    from hfgen.families.gan import recipe as gan

    monkeypatch.setattr(gan.Alarms.__init__, "__defaults__", (100,))
    options = [*TINY_GAN, *"--max_train_steps 80 --logging_steps 2 --objective nonsaturating".split()]
    options += "--r1_gamma 0 --r2_gamma 0 --learning_rate 1e-7 --discriminator_learning_rate 1e-2".split()
    script.main([*options, "--output_dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search("Warning: for 1[0-9]{2} images the discriminator is saturated", out)


def test_a_grid_of_few_classes_is_about_square(tmp_path, script):
    for number in range(6):
        folder = tmp_path / "images" / ("dark" if number % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 if number % 2 else 220).save(folder / f"{number}.png")
    options = [*TINY_GAN[2:], "--train_data_dir", str(tmp_path / "images"), "--class_conditional"]
    options += ["--eval_batch_size", "16", "--max_train_steps", "2", "--train_batch_size", "4"]
    script.main([*options, "--output_dir", str(tmp_path / "out")])
    (grid,) = (tmp_path / "out" / "samples").iterdir()
    assert Image.open(grid).size == (4 * 68 + 4, 4 * 68 + 4 + 20), "two columns for each, under its name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--label_column kind --class_conditional", "--label_column kind is not a column"),
        ("--resolution 300", "--resolution 300 is out of range: GANs make images of 8 to 256 pixels"),
        ("--resolution 7", "--resolution 7 is out of range"),
        (
            "--balance_classes --num_clusters 100",
            "--balance_classes is about labels, and --num_clusters 100 puts groups in their place",
        ),
        ("--cluster_features patchs", "--cluster_features patchs is unknown: use pixels, patches, or the Hub id"),
        ("--augmentations blur", "--augmentations: invalid choice: 'blur'"),
        ("--train_batch_size 1", "--train_batch_size 1: batch normalisation needs several images"),
        ("--architecture stylegan2 --train_batch_size 37", "--train_batch_size 37: minibatch statistics need groups"),
        ("--objective hinge --label_smoothing 0.1", "--objective hinge has no target to lower"),
        ("--objectiv hinge", "unknown flag --objectiv. Did you mean --objective?"),
        ("--balance_classes --streaming --dataset_name x", "--balance_classes needs all labels at hand"),
        ("--truncation 0.5", "--truncation 0.5: dcgan has no mean latent"),
        ("--discriminator_norm batch", "--discriminator_norm batch mixes images"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, script, arguments, message):
    with pytest.raises(UserError) as error:
        script.main([*TINY_GAN, "--output_dir", str(tmp_path / "run"), *arguments.split()])
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_main_job_as_it_stands(tmp_path):
    """`accelerate launch scripts/train_gan.py`, without arguments: digits that a classifier recognises."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    result = run("train_gan", cwd=tmp_path, launcher="accelerate", timeout=1800)
    assert result.returncode == 0, result.stderr
    pipe = GANPipeline.from_pretrained(tmp_path / "out" / "gan-digits")
    images = pipe(500, generator=image_generators(0, range(500)), output_type="pt").images
    small = torch.nn.functional.avg_pool2d(images, 2).flatten(1).numpy() * 16
    digits = load_digits()
    judge = LogisticRegression(max_iter=3000).fit(digits.data, digits.target)
    sure = judge.predict_proba(small)
    assert (sure.max(1) > 0.9).mean() > 0.8
    assert len(set(sure.argmax(1))) == 10
