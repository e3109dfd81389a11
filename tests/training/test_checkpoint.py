"""Checkpoints: whole or absent."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hfgen.runtime.errors import UserError
from hfgen.training import checkpoint
from hfgen.training.api import prepare
from hfgen.training.checkpoint import Checkpoints
from hfgen.training.folder import RunFolder
from hfgen.training.options import collect


def test_round_trip_and_pruning(tmp_path):
    for images in (64, 128, 192, 1024):
        checkpoint.save(tmp_path, images, {"unet": {"w": torch.full((2,), float(images))}}, {"note": images})
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        "checkpoint-000000000192",
        "checkpoint-000000001024",
    ]
    tensors, state = checkpoint.load(checkpoint.list_checkpoints(tmp_path)[-1])
    assert tensors["unet"]["w"].tolist() == [1024, 1024]
    assert (state["images_seen"], state["note"]) == (1024, 1024)
    assert {path.suffix for path in checkpoint.list_checkpoints(tmp_path)[0].iterdir()} == {".json", ".safetensors"}


def test_saving_again_replaces(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 64, {"unet": {"w": torch.tensor([value])}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000064"]
    assert checkpoint.load(tmp_path / "checkpoint-000000000064")[0]["unet"]["w"].item() == 2.0


WRITE = """
import resource, signal, sys, torch
from pathlib import Path
from hfgen.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 64, {"unet": {"w": torch.zeros(1000)}}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses larger files, as a full disk does
checkpoint.save(folder, 128, {"unet": {"w": torch.zeros(1_000_000)}}, {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the file size as Linux does")
def test_no_space_leaves_the_last_good_checkpoint(tmp_path):
    result = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], capture_output=True, text=True)
    message = result.stderr.strip().splitlines()[-1]
    assert "the checkpoint at 128 images cannot be written" in message
    assert os.strerror(errno.EFBIG) in message
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-000000000064'}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000064"]
    checkpoint.load(tmp_path / "checkpoint-000000000064")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, 64, {"unet": {"w": torch.zeros(3)}}, {})
    (path / "unet.safetensors").write_bytes(b"\x80\x04evil pickle")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    state = json.loads((path / "state.json").read_text()) | {"format": 99}
    (path / "unet.safetensors").unlink()
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="has format 99"):
        checkpoint.load(path)


TINY = {
    "dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "max_train_steps": 4, "latent_channels": 4,
    "block_out_channels": (8, 8), "checkpointing_steps": 2, "eval_batch_size": 4, "save_images_epochs": 0.0,
    "mixed_precision": "no", "prior_components": 2, "cpu_threads": 1,
}  # fmt: skip
OLD, NEW = "checkpoint-000000000032", "checkpoint-000000000064"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        prepare(collect("vae", **TINY, output_dir=str(folder))).train()
    return folder


def flip(path):
    content = bytearray((path / "vae.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "vae.safetensors").write_bytes(content)


def change_state(path, **changes):
    """As a checkpoint of an earlier version, which does not say which files it has, with some values changed."""
    state = json.loads((path / "state.json").read_text())
    del state["files"], state["digest"]
    (path / "state.json").write_text(json.dumps({k: v for k, v in (state | changes).items() if v is not None}))


def replace_in_state(path, old, new):
    text = (path / "state.json").read_text()
    assert old in text
    (path / "state.json").write_text(text.replace(old, new))


def drop_from_an_earlier_one(path):
    change_state(path)
    (path / "optimizer_vae.safetensors").unlink()


BROKEN = {
    "cut": (lambda path: os.truncate(path / "vae.safetensors", 100), "vae.safetensors is cut short or was changed"),
    "a flipped bit": (flip, "vae.safetensors is cut short or was changed"),
    "a file less": (lambda path: (path / "ema_vae.safetensors").unlink(), "ema_vae.safetensors is missing"),
    "no state": (lambda path: (path / "state.json").unlink(), "No such file or directory"),
    "an empty state": (lambda path: (path / "state.json").write_text(""), "Expecting value"),
    "another JSON": (lambda path: (path / "state.json").write_text("{}"), "state.json is not what hfgen writes"),
    "deep nesting": (lambda path: (path / "state.json").write_text("[" * 100_000), "recursion"),
    "a list": (lambda path: (path / "state.json").write_text("[1]"), "state.json is not what hfgen writes"),
    "a changed value": (lambda path: replace_in_state(path, '"seconds": ', '"seconds": 1'), "state.json was changed"),
    "a value less": (lambda path: change_state(path, seconds=None), "state.json lacks seconds"),
    "a wrong value": (lambda path: change_state(path, streams=[]), "state.json lacks streams"),
    "a wrong type": (lambda path: change_state(path, frozen=[1]), "state.json lacks frozen"),
    "another position": (lambda path: change_state(path, images_seen=5), "state.json says that it is of 5 images"),
    "an earlier one": (drop_from_an_earlier_one, "optimizer_vae.safetensors is missing"),
}


@pytest.fixture
def resume(tmp_path, on_the_cpu):
    """Gives an engine the state of a checkpoint in a folder; returns what a run does, and what it says."""
    run = prepare(collect("vae", **TINY, output_dir=str(tmp_path / "other")))

    def call(folder, name="latest", **more):
        said = []
        options = {**TINY, "output_dir": str(folder), "resume_from_checkpoint": name, **more}
        place = RunFolder(collect("vae", **options))
        state = Checkpoints(run.engine, run.stream, place).resume(said.append)
        return state["images_seen"], place.checkpoint, said

    return call


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_latest_is_the_newest_checkpoint_that_is_whole(trained, resume, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert resume(folder)[0] == 64
    for kind, (damage, reason) in BROKEN.items():
        shutil.rmtree(folder / NEW)
        shutil.copytree(trained / NEW, folder / NEW)
        damage(folder / NEW)
        before = files_in(folder)
        images_seen, checkpoint, (warning, remedy) = resume(folder)
        assert images_seen == 32 and checkpoint == folder / OLD
        assert warning.startswith(f"Warning: {folder / NEW} cannot be read: "), kind
        assert reason in warning and "\n" not in warning, kind
        assert f"{folder / OLD} is the newest checkpoint that is whole" in remedy
        with pytest.raises(UserError, match=f"`resume_from_checkpoint` {NEW}: .*read is .*{OLD}: give that[.]$"):
            resume(folder, NEW)  # which was asked for by name
        assert before == files_in(folder)

    (folder / OLD / "state.json").write_text("")
    for name in ("latest", NEW):
        with pytest.raises(UserError, match="There is no older one that can be read: start anew"):
            resume(folder, name)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_run_goes_on_from_the_newest_that_can_be_read(trained, tmp_path):
    folder, said = tmp_path / "run", []
    shutil.copytree(trained, folder)
    os.truncate(folder / NEW / "vae.safetensors", 100)
    options = {**TINY, "output_dir": str(folder), "resume_from_checkpoint": "latest"}
    prepare(collect("vae", **options), said.append).train()
    assert any(text.startswith(f"Warning: {folder / NEW} cannot be read: ") for text in said)
    assert f"Resuming from {folder / OLD}, at 32 images" in said
    assert (folder / f"abandoned-{NEW}").is_dir()  # what is left of it is kept
    one, other = (load_file(place / NEW / "vae.safetensors") for place in (trained, folder))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_of_an_earlier_version_resumes(trained, resume, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    change_state(folder / NEW)
    assert resume(folder)[0] == 64
