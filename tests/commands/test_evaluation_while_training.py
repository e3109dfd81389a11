"""--eval_every and --metric_for_best_model, as users run them."""

import json
import os
import random
import re
import time

import numpy as np
import pytest
import torch
from evaluation.tiny import save_classifier
from helpers import TINY, TINY_GAN, TINY_VAE, Command, metrics, verb_of
from helpers.exactness import assert_identical, finished, kill_and_resume
from PIL import Image
from safetensors.torch import load_file

from hfgen import GANPipeline, VAEPipeline
from hfgen.evaluation.metrics import Result
from hfgen.runtime.errors import UserError
from hfgen.training.evaluation import repeats_training_images

TINY_OF = {"train_ddpm": TINY, "train_gan": TINY_GAN, "train_vae": TINY_VAE}
BEST = ["--metric_for_best_model", "fd"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def evaluated(classifier):
    metrics = "--eval_every 2 --eval_num_images 40 --eval_metrics fd precision_recall label_divergence".split()
    return [*metrics, "--eval_extractor", classifier]


def trained(folder, *options, script):
    """Trains in this process, which is as good and much faster where nothing is killed."""
    Command(verb_of(script)).main([*options, "--output_dir", str(folder), "--cpu_threads", "1"])
    return folder


def evaluations(folder):
    return [line for line in metrics(folder) if any(key.startswith("eval_") for key in line)]


def distance(line):
    return next(value for key, value in line.items() if key.startswith("eval_fd_"))


def weights_in(folder):
    return {
        f"{path.parent.name}.{name}": value
        for path in folder.glob("[a-z]*/diffusion_pytorch_model.safetensors")
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("script", TINY_OF)
def test_metrics_are_logged_and_the_best_pipeline_is_kept(script, evaluated, tmp_path):
    options = [*TINY_OF[script], *evaluated, *BEST, "--learning_rate", "0.05", "--max_train_steps", "8"]
    folder = trained(tmp_path / "run", *options, script=script)
    lines = evaluations(folder)
    assert [line["images_seen"] for line in lines] == [32, 64, 96, 128]
    assert {"eval_precision", "eval_recall", "eval_label_kl"} <= set(lines[0])
    logged = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["training_seconds"] for line in logged if "eval_precision" in line]
    assert seconds == sorted(seconds)
    best = min(lines, key=distance)
    record = json.loads((folder / "best" / "run.json").read_text())
    assert record["images_seen"] == record["evaluation"]["images_seen"] == best["images_seen"]
    assert record["evaluation"]["value"] == distance(best)
    assert json.loads((folder / "run.json").read_text())["images_seen"] == 128
    assert (folder / "best" / "samples.png").read_bytes() == (
        folder / "samples" / f"{best['images_seen']:012d}.png"
    ).read_bytes()
    cards = [(place / "README.md").read_text() for place in (folder, folder / "best")]
    assert 'from_pretrained(".")' in cards[0] and "had the best" not in cards[0]
    assert 'from_pretrained(".")' in cards[1] and "this one had the best `fd_" in cards[1]
    assert "measured neither" not in cards[0] + cards[1]
    first, last = weights_in(folder / "best"), weights_in(folder)
    assert first.keys() == last.keys()
    same = all(torch.equal(first[name], last[name]) for name in last)
    assert same == (best["images_seen"] == 128)


def test_the_last_is_not_always_the_best(evaluated, tmp_path):
    """A rate at which the generator is soon lost: what is kept is what it was before."""
    options = [*TINY_GAN, *evaluated, *BEST, "--learning_rate", "0.5", "--no_use_ema", "--lr_scheduler", "constant"]
    folder = trained(tmp_path / "run", *options, "--max_train_steps", "12", script="train_gan")
    lines = evaluations(folder)
    best = min(lines, key=distance)
    assert best["images_seen"] < lines[-1]["images_seen"]
    assert json.loads((folder / "best" / "run.json").read_text())["images_seen"] == best["images_seen"]
    assert GANPipeline.from_pretrained(folder / "best")(2, output_type="pt").images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("script", TINY_OF)
def test_evaluating_changes_nothing(script, evaluated, tmp_path):
    """Neither batch statistics nor dropout nor the order of random numbers."""
    more = {"train_ddpm": ["--dropout", "0.2"], "train_gan": ["--preset", "dcgan"]}.get(script, [])
    options = [*more, *TINY_OF[script], "--no_use_ema"]
    with_it = trained(tmp_path / "with", *options, *evaluated, *BEST, script=script)
    without = trained(tmp_path / "without", *options, script=script)
    first, second = weights_in(with_it), weights_in(without)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [line for line in metrics(with_it) if "loss" in str(line)] == metrics(without)


def test_a_run_ends_when_it_gets_no_better(evaluated, tmp_path, capsys):
    """A rate at which nothing is learnt after the first evaluation: two more, and the run ends as a whole one."""
    options = [*TINY_GAN, *evaluated, *BEST, "--learning_rate", "1e-9", "--early_stopping_patience", "2"]
    folder = trained(tmp_path / "run", *options, "--max_train_steps", "40", script="train_gan")
    told = capsys.readouterr()
    positions = [line["images_seen"] for line in evaluations(folder)]
    best = json.loads((folder / "best" / "run.json").read_text())["images_seen"]
    assert positions[-1] == best + 64 < 640 and "Ends early: fd_" in told.out + told.err
    assert f"at {best} images in 2 evaluations" in told.out + told.err and "Done:" in told.out + told.err
    record = json.loads((folder / "run.json").read_text())
    assert record["images_seen"] == record["images_total"] == positions[-1]  # a whole run, to whoever reads it
    assert GANPipeline.from_pretrained(folder)(1, output_type="pt").images.shape == (1, 1, 8, 8)
    before = metrics(folder)
    trained(folder, *options, "--max_train_steps", "40", "--resume_from_checkpoint", "latest", script="train_gan")
    assert metrics(folder) == before  # it is over, and stays so
    more = ["--max_train_steps", "40", "--early_stopping_patience", "none", "--resume_from_checkpoint", "latest"]
    trained(folder, *options, *more, script="train_gan")
    assert evaluations(folder)[-1]["images_seen"] == 640


def test_samples_that_become_copies(classifier, tmp_path, capsys):
    """Twenty images of noise, which a network can only learn by heart: it is said, and none is the best."""
    random = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for number in range(20):
        pixels = 255 * random.integers(0, 2, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "noise" / f"{number}.png")
    options = "--preset transformer --resolution 4 --image_mode L --hidden_size 32 --num_layers 2 --no_use_ema"
    options += " --max_train_steps 400 --train_batch_size 20 --learning_rate 0.01 --eval_every 100"
    options += " --metric_for_best_model bits_per_dim --eval_metrics bits_per_dim memorisation --eval_num_images 40"
    data = ["--train_data_dir", str(tmp_path / "noise"), "--save_images_epochs", "0", "--eval_extractor", classifier]
    folder = trained(tmp_path / "run", *data, *options.split(), script="train_autoregressive")
    told = "".join(capsys.readouterr())
    assert told.count("the model repeats training images, and does not count as the best") == 1
    lines = evaluations(folder)
    assert lines[-1]["eval_near_duplicates"] > 0.8 and lines[-1]["eval_authpct"] < 20
    new = [line["images_seen"] for line in lines if line["eval_near_duplicates"] < 0.2]
    assert lines[-1]["eval_bits_per_dim"] < lines[0]["eval_bits_per_dim"]  # to which copies look good
    if new:
        assert json.loads((folder / "best" / "run.json").read_text())["images_seen"] in new
    else:
        assert not (folder / "best").exists()


def test_what_chance_makes_of_new_images():
    details = {"quantile": 0.01, "new_images": 1000, "generated_images": 1000}
    for value, said in ((0.01, False), (0.02, False), (0.03, True), (1.0, True)):
        result = Result("memorisation", "near_duplicates", "", value, "lower", real=0.011, details=details)
        assert bool(repeats_training_images(result)) == said
    few = details | {"quantile": 1 / 41, "new_images": 80}
    assert not repeats_training_images(Result("memorisation", "near_duplicates", "", 0.07, real=0.0125, details=few))
    assert repeats_training_images(Result("memorisation", "near_duplicates", "", 0.09, real=0.0125, details=few))


@pytest.mark.slow
def test_killed_and_resumed(evaluated, tmp_path):
    """The same evaluations and the same best pipeline as without the interruption."""
    steps = "--max_train_steps 40 --checkpointing_steps 3 --logging_steps 4 --eval_every 5 --cpu_threads 1".split()
    options = [*TINY_VAE, *evaluated, *BEST, *steps]
    whole = finished(tmp_path / "whole", *options, script="train_vae")
    seed = int(os.environ.get("KILL_SEED", time.time()))
    print(f"KILL_SEED={seed}")
    kill_and_resume(tmp_path / "killed", options, random.Random(seed), script="train_vae")
    assert_identical(tmp_path / "killed", whole)
    first, second = (json.loads((tmp_path / name / "best" / "run.json").read_text()) for name in ("killed", "whole"))
    assert first["evaluation"] == second["evaluation"]
    assert all(
        torch.equal(tensor, weights_in(tmp_path / "killed" / "best")[name])
        for name, tensor in weights_in(whole / "best").items()
    )


def test_values_that_were_measured_otherwise_are_not_compared(classifier, tmp_path):
    """Fewer images make a distance larger: an old value of more of them would never be reached again."""
    options = [*TINY_GAN, "--eval_every", "2", "--eval_extractor", classifier, *BEST, "--learning_rate", "1e-9"]
    folder = trained(tmp_path / "run", *options, "--eval_num_images", "200", script="train_gan")
    more = ["--max_train_steps", "14", "--resume_from_checkpoint", "latest"]
    trained(folder, *options, "--eval_num_images", "10", *more, script="train_gan")
    record = json.loads((folder / "best" / "run.json").read_text())["evaluation"]
    assert record["num_images"] == 10 and record["images_seen"] > 128


@pytest.mark.slow
def test_two_processes(evaluated, tmp_path):
    options = [*TINY_VAE, *evaluated, *BEST, "--eval_metrics", "fd", "bits_per_dim", "--cpu_threads", "1"]
    folder = finished(tmp_path / "run", *options, "--save_model_epochs", "0.02", script="train_vae", processes=2)
    lines = evaluations(folder)
    assert [line["images_seen"] for line in lines] == [64, 128, 192]
    assert all(0 < line["eval_bits_per_dim"] < 20 for line in lines)
    assert VAEPipeline.from_pretrained(folder / "best").prior is not None


def test_another_run_takes_the_folder(evaluated, tmp_path):
    options = [*TINY_GAN, *evaluated, *BEST]
    folder = trained(tmp_path / "run", *options, script="train_gan")
    assert (folder / "best").is_dir()
    trained(folder, *TINY_GAN, "--overwrite_output_dir", script="train_gan")
    assert not (folder / "best").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--eval_every 2", "--eval_extractor_weights download"),
        ("--eval_every 0", "--eval_every 0 is out of range"),
        ("--metric_for_best_model fd", "--metric_for_best_model fd is measured by evaluations: give --eval_every"),
        ("--early_stopping_patience 2", "--early_stopping_patience 2 needs a metric to get better: give --metric_for"),
        ("--eval_every 2 --metric_for_best_model kd", "give kd among --eval_metrics"),
        ("--eval_every 2 --eval_metrics fdd", "invalid choice: 'fdd'"),
        ("--eval_every 2 --eval_num_images 1", "--eval_num_images 1 is out of range: use 2 to"),
        ("--eval_every 2 --eval_extractor {classifier} --eval_metrics ppl", "--eval_metrics ppl"),
        ("--eval_every 2 --eval_extractor {classifier} --eval_metrics is --eval_num_images 5", "eval_num_images is 5"),
        ("--eval_every 2 --eval_extractor /absent/model", "/absent/model"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(options, message, classifier, tmp_path):
    given = options.format(classifier=classifier).split()
    with pytest.raises(UserError, match=re.escape(message)):
        trained(tmp_path / "run", *TINY_GAN, *given, script="train_gan")
    assert not (tmp_path / "run").exists()
