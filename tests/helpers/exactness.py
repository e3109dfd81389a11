"""Runs that are killed and resumed, and what they must share with one that was not."""

import time

import torch
from safetensors.torch import load_file

from helpers import metrics, run, start
from hfgen.training import checkpoint


def finished(folder, *options, script="train_ddpm", **kwargs):
    result = run(script, *options, "--output_dir", folder, **kwargs)
    assert result.returncode == 0, result.stderr
    return folder


def state(folder):
    """Everything that the last checkpoint holds."""
    tensors, _ = checkpoint.load(checkpoint.list_checkpoints(folder)[-1])
    return {f"{file}.{name}": value for file, content in tensors.items() for name, value in content.items()}


def assert_identical(first, second):
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []
    assert metrics(first) == metrics(second)
    published = list(first.glob("[a-z]*/diffusion_pytorch_model.safetensors"))
    assert published
    for path in published:
        weights, others = load_file(path), load_file(second / path.relative_to(first))
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def kill_and_resume(folder, options, rng, script="train_ddpm", launcher=None, **kwargs):
    """Kills a run with SIGKILL at three random moments, and lets it finish, then under a launcher if one is named."""
    options = [*options, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    for times in (1, 3, 6):
        process = start(script, *options, **kwargs)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            done = checkpoint.list_checkpoints(folder)
            if done and int(done[-1].name.rpartition("-")[2]) >= times * 6 * 16:
                time.sleep(rng.random() * 0.3)
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
    result = run(script, *options, launcher=launcher, **kwargs)
    assert result.returncode == 0, result.stderr
    assert "Resuming from" in result.stdout
    return folder
