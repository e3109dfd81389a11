"""Checkpoints: whole or absent."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from hfgen.runtime.errors import UserError
from hfgen.training import checkpoint


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
    checkpoint.prune(tmp_path, None)
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
