"""What makes a run repeatable: killed and resumed, accumulated, or on two processes, it computes the same."""

import os
import random
import re
import signal
import time

import pytest
import torch
from helpers import (
    TINY,
    TINY_AR,
    TINY_FLOW,
    TINY_GAN,
    TINY_GLOW,
    TINY_TRANSLATION,
    TINY_VAE,
    metrics,
    run,
    save_pairs,
    start,
)
from helpers.exactness import assert_identical, finished, kill_and_resume, state

from hfgen.training import checkpoint

HARD = (
    "--class_conditional --label_dropout 0.3 --dropout 0.1 --random_flip --random_rotation 10 --random_crop 1".split()
)
STEPS = "--max_train_steps 40 --checkpointing_steps 3 --logging_steps 4".split()
LONG = [*TINY, *HARD, *STEPS]
REGULARISED = "--residual_discriminator --path_length_weight 2 --path_length_interval 2 --style_mixing 0.9"


@pytest.mark.parametrize(
    ("extra", "processes", "launcher"),
    [
        ("--train_batch_size 16", 1, "accelerate"),
        ("--train_batch_size 8 --gradient_accumulation_steps 2 --mixed_precision bf16", 1, None),
        ("--train_batch_size 4 --gradient_accumulation_steps 2", 2, "torchrun"),
        pytest.param("--train_batch_size 16 --no_class_conditional --num_clusters 5", 1, None, marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulation, bf16", "two processes, accumulation", "groups"],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, extra, processes, launcher):
    options = [*LONG, *extra.split()]
    whole = finished(tmp_path / "whole", *options, processes=processes)
    assert len(metrics(whole)) == 10
    rng = random.Random(0)
    if launcher == "torchrun":  # of the command; the others are of the script
        options, script = ["hfgen", "train", "ddpm", *options], "-m"
    else:
        script = "train_ddpm"
    killed = kill_and_resume(tmp_path / "killed", options, rng, script, launcher, processes=processes)
    assert_identical(whole, killed)
    if launcher:
        starts = {"accelerate": "accelerate launch .*train_ddpm.py", "torchrun": "torchrun .* 2 -m hfgen train ddpm"}
        assert re.search(f'"command": "{starts[launcher]} --dataset_name digits', (killed / "run.json").read_text())


ADAPTIVE = "--ada_target 0.6 --ada_images 500000 --augment_probability 0.3"


@pytest.mark.parametrize(
    ("extra", "processes"),
    [
        ("--class_conditional --train_batch_size 8 --gradient_accumulation_steps 2 --mixed_precision bf16", 1),
        pytest.param(
            f"--architecture stylegan2 --base_channels 4 --train_batch_size 8 {REGULARISED}", 2, marks=pytest.mark.slow
        ),
    ],
    ids=["dcgan, accumulation, bf16", "stylegan2, two processes"],
)
def test_a_killed_gan_ends_like_an_uninterrupted_one(tmp_path, extra, processes):
    options = [*TINY_GAN, *STEPS, *ADAPTIVE.split(), *extra.split()]
    whole = finished(tmp_path / "whole", *options, script="train_gan", processes=processes)
    assert 0 < state(whole)["augmentation.probability"] != 0.3  # it has been adapted
    killed = kill_and_resume(tmp_path / "killed", options, random.Random(2), script="train_gan", processes=processes)
    assert_identical(whole, killed)


@pytest.mark.parametrize(
    ("extra", "processes"),
    [
        ("--class_conditional --train_batch_size 8 --gradient_accumulation_steps 2 --mixed_precision bf16", 1),
        pytest.param("--architecture vq --train_batch_size 8", 2, marks=pytest.mark.slow),
        pytest.param(
            "--architecture hierarchical --likelihood logistic_mixture --kl_warmup 0.5 --prior_components 0",
            1,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["residual, accumulation, bf16", "vq, two processes", "hierarchical"],
)
def test_a_killed_vae_ends_like_an_uninterrupted_one(tmp_path, extra, processes):
    options = [*TINY_VAE, *STEPS, *extra.split()]
    whole = finished(tmp_path / "whole", *options, script="train_vae", processes=processes)
    killed = kill_and_resume(tmp_path / "killed", options, random.Random(3), script="train_vae", processes=processes)
    assert_identical(whole, killed)


@pytest.mark.parametrize(
    ("extra", "processes"),
    [
        ("--dropout 0.1 --train_batch_size 8 --gradient_accumulation_steps 2 --mixed_precision bf16", 1),
        pytest.param("--architecture transformer --hidden_size 16 --train_batch_size 8", 2, marks=pytest.mark.slow),
    ],
    ids=["pixelcnn, accumulation, bf16", "transformer, two processes"],
)
def test_a_killed_autoregressive_model_ends_like_an_uninterrupted_one(tmp_path, extra, processes):
    options, script = [*TINY_AR, *STEPS, *extra.split()], "train_autoregressive"
    whole = finished(tmp_path / "whole", *options, script=script, processes=processes)
    killed = kill_and_resume(tmp_path / "killed", options, random.Random(4), script=script, processes=processes)
    assert_identical(whole, killed)


@pytest.mark.parametrize(
    "architecture", ["pixelcnn", pytest.param("transformer --hidden_size 16", marks=pytest.mark.slow)]
)
def test_however_the_batch_of_an_autoregressive_model_is_split_the_same_is_learnt(tmp_path, architecture):
    options = [*TINY_AR, *f"--architecture {architecture} --class_conditional --max_train_steps 8".split()]
    options += "--logging_steps 1 --ema_ramp 0 --ema_half_life 100".split()
    splits = {"whole": ("32", "1", 1), "accumulated": ("8", "4", 1), "two processes": ("8", "2", 2)}
    runs = {
        name: finished(
            tmp_path / name, *options, "--train_batch_size", batch, "--gradient_accumulation_steps", parts,
            script="train_autoregressive", processes=processes,
        )
        for name, (batch, parts, processes) in splits.items()
    }  # fmt: skip
    wanted, lines = state(runs["whole"]), metrics(runs["whole"])
    for name in ("accumulated", "two processes"):
        for line, reference in zip(metrics(runs[name]), lines, strict=True):
            assert line["bits_per_dim"] == pytest.approx(reference["bits_per_dim"], rel=1e-4)
        for key, value in state(runs[name]).items():
            if key.startswith(("model", "ema_")):
                torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-3, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize(
    ("tiny", "extra", "processes"),
    [
        (
            TINY_FLOW,
            "--class_conditional --train_batch_size 8 --gradient_accumulation_steps 2 --mixed_precision bf16",
            1,
        ),
        pytest.param(TINY_GLOW, "--train_batch_size 4 --gradient_accumulation_steps 2", 2, marks=pytest.mark.slow),
    ],
    ids=["tarflow, accumulation, bf16", "glow, two processes, accumulation"],
)
def test_a_killed_flow_ends_like_an_uninterrupted_one(tmp_path, tiny, extra, processes):
    options = [*tiny, *STEPS, *extra.split()]
    whole = finished(tmp_path / "whole", *options, script="train_flow", processes=processes)
    killed = kill_and_resume(tmp_path / "killed", options, random.Random(4), script="train_flow", processes=processes)
    assert_identical(whole, killed)


@pytest.mark.parametrize(
    ("preset", "processes"),
    [
        ("cyclegan", 1),
        pytest.param("pix2pix", 2, marks=pytest.mark.slow),
        pytest.param("cut", 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_translation_ends_like_an_uninterrupted_one(tmp_path, preset, processes):
    """The pool of earlier translations goes on as it was, in each process."""
    data = [
        "--dataset_a",
        save_pairs(tmp_path / "pairs"),
        "--image_column",
        "a",
        "--image_column_b",
        "b",
        "--image_mode",
        "RGB",
    ]
    options = [*TINY_TRANSLATION, *STEPS, *data, "--preset", preset, "--gradient_accumulation_steps", 2]
    options += ["--pool_size", 5] if preset != "cut" else []
    whole = finished(tmp_path / "whole", *options, script="train_translation", processes=processes)
    killed = kill_and_resume(
        tmp_path / "killed", options, random.Random(5), script="train_translation", processes=processes
    )
    assert_identical(whole, killed)


def test_a_killed_run_on_a_stream_ends_like_an_uninterrupted_one(tmp_path):
    import datasets

    from hfgen.data.sources import _digits

    digits = _digits()
    for shard in range(3):
        part = digits.shard(num_shards=3, index=shard)
        part.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data" / f"train-{shard}.parquet")
    options = [*LONG, "--dataset_name", tmp_path / "data", "--streaming", "--shuffle_buffer_size", 100]
    options += ["--dataloader_num_workers", 2]
    whole = finished(tmp_path / "whole", *options)
    killed = kill_and_resume(tmp_path / "killed", options, random.Random(1))
    assert_identical(whole, killed)


def test_however_a_batch_is_split_the_same_is_learnt(tmp_path):
    options = [*TINY, *"--class_conditional --random_flip --random_rotation 10 --max_train_steps 8".split()]
    options += "--lr_scheduler linear --logging_steps 1 --ema_ramp 0 --ema_half_life 100".split()
    splits = {
        "whole": ("--train_batch_size 64", 1),
        "accumulated": ("--train_batch_size 16 --gradient_accumulation_steps 4", 1),
        "two processes": ("--train_batch_size 32", 2),
        "both": ("--train_batch_size 16 --gradient_accumulation_steps 2", 2),
    }
    runs = {
        name: finished(tmp_path / name, *options, *flags.split(), processes=processes)
        for name, (flags, processes) in splits.items()
    }
    wanted, lines = state(runs["whole"]), metrics(runs["whole"])
    for name in ("accumulated", "two processes", "both"):
        other = metrics(runs[name])
        assert [line["lr"] for line in other] == [line["lr"] for line in lines]
        assert [line["images_seen"] for line in other] == [line["images_seen"] for line in lines]
        for line, reference in zip(other, lines, strict=True):
            # The loss of a step shows that the same images, noise, timesteps and labels were seen.
            assert line["loss"] == pytest.approx(reference["loss"], rel=1e-4)
        for key, value in state(runs[name]).items():
            if key.startswith(("unet", "ema_unet")):
                torch.testing.assert_close(
                    value, wanted[key], rtol=0, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
                )


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["residual", f"stylegan2 --minibatch_std_group 0 {REGULARISED}"], ids=["residual", "stylegan2"]
)
def test_however_the_batch_of_a_gan_is_split_the_same_is_learnt(tmp_path, architecture):
    """With the networks whose images do not mix; batch normalisation knows only its own micro-batch."""
    options = [*TINY_GAN, *f"--architecture {architecture} --class_conditional".split()]
    options += "--max_train_steps 8 --logging_steps 1".split()
    options += "--ada_target 0.6 --augment_probability 0.3 --ema_ramp 0 --ema_half_life 100".split()
    splits = {"whole": ("32", "1", 1), "accumulated": ("8", "4", 1), "two processes": ("8", "2", 2)}
    runs = {
        name: finished(
            tmp_path / name, *options, "--train_batch_size", batch, "--gradient_accumulation_steps", parts,
            script="train_gan", processes=processes,
        )
        for name, (batch, parts, processes) in splits.items()
    }  # fmt: skip
    wanted, lines = state(runs["whole"]), metrics(runs["whole"])
    for name in ("accumulated", "two processes"):
        for line, reference in zip(metrics(runs[name]), lines, strict=True):
            for metric in ("d_loss", "g_loss", "logit_gap"):
                assert line[metric] == pytest.approx(reference[metric], rel=1e-3, abs=1e-4)
        for key, value in state(runs[name]).items():
            if key.startswith(("generator", "discriminator", "ema_", "augmentation", "path_length")):
                if key.endswith("w_avg"):  # it follows each micro-batch
                    continue
                torch.testing.assert_close(
                    value, wanted[key], rtol=0, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}"
                )


@pytest.mark.slow  # a launcher that is killed, below, sends its workers a SIGTERM as well
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number, processes):
    options = [*TINY, "--output_dir", tmp_path, "--max_train_steps", 100_000, "--logging_steps", 5]
    options += ["--checkpointing_steps", 100_000]
    launcher = "torchrun" if processes > 1 else "accelerate"
    process = start("train_ddpm", *options, processes=processes, launcher=launcher, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "logs" / "metrics.jsonl").exists() or not metrics(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)  # as a scheduler does, to the launcher
    out, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "Stopped by signal" in out
    assert "--resume_from_checkpoint latest" in out
    (saved,) = checkpoint.list_checkpoints(tmp_path)
    _, where = checkpoint.load(saved)
    steps = where["images_seen"] // (16 * processes) + 3
    result = run(
        "train_ddpm", *options, "--resume_from_checkpoint", "latest", "--max_train_steps", steps, processes=processes
    )
    assert result.returncode == 0, result.stderr
    assert f"at {where['images_seen']} images" in result.stdout
    assert "is now" in result.stdout  # the length was changed, and it says so


@pytest.mark.parametrize(
    "architecture", ["residual", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hierarchical", "vq"))]
)
def test_however_the_batch_of_a_vae_is_split_the_same_is_learnt(tmp_path, architecture):
    options = [*TINY_VAE, *f"--architecture {architecture} --max_train_steps 8 --logging_steps 1".split()]
    options += "--prior_components 0 --ema_ramp 0 --ema_half_life 100 --learning_rate 1e-3".split()
    splits = {"whole": ("32", "1", 1), "accumulated": ("8", "4", 1), "two processes": ("8", "2", 2)}
    runs = {
        name: finished(
            tmp_path / name, *options, "--train_batch_size", batch, "--gradient_accumulation_steps", parts,
            script="train_vae", processes=processes,
        )
        for name, (batch, parts, processes) in splits.items()
    }  # fmt: skip
    wanted, lines = state(runs["whole"]), metrics(runs["whole"])
    for name in ("accumulated", "two processes"):
        for line, reference in zip(metrics(runs[name]), lines, strict=True):
            for metric in ("loss", "rate", "mse"):
                assert line[metric] == pytest.approx(reference[metric], rel=1e-3)
        for key, value in state(runs[name]).items():
            if key.startswith(("vae", "ema_vae", "statistics")):  # Adam makes whole steps of the smallest gradients
                torch.testing.assert_close(
                    value, wanted[key], rtol=0, atol=3e-3, msg=lambda text, key=key: f"{key}: {text}"
                )


def test_workers_end_with_their_launcher(tmp_path):
    """A launcher that is killed hands nothing on: its workers notice, save and end, and the same command goes on."""
    options = [*TINY, "--output_dir", tmp_path, "--max_train_steps", 100_000, "--checkpointing_steps", 100_000]
    options += ["--resume_from_checkpoint", "latest"]
    process = start("train_ddpm", *options, processes=2, launcher="torchrun")
    deadline = time.monotonic() + 120
    while not (tmp_path / "logs" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert not checkpoint.list_checkpoints(tmp_path)
    process.kill()
    process.communicate()  # until the last worker has closed what it prints to
    (saved,) = checkpoint.list_checkpoints(tmp_path)
    images_seen = int(saved.name.rpartition("-")[2])
    result = run("train_ddpm", *options, "--max_train_steps", images_seen // 32 + 2, processes=2)
    assert result.returncode == 0, result.stderr
    assert f"at {images_seen} images" in result.stdout
