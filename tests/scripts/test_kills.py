"""Runs that are killed in the midst of writing, at any call that changes the disk, end like those that were not."""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from evaluation.tiny import save_classifier
from helpers import TINY, TINY_GAN, TINY_VAE, metrics, run

KILL = Path(__file__).parents[1] / "helpers" / "kill"
OFTEN = "--max_train_steps 8 --checkpointing_steps 2 --logging_steps 2 --save_images_steps 3 --seed 5".split()
OFTEN += "--save_model_epochs 0.02 --eval_every 4 --eval_num_images 40 --metric_for_best_model fd".split()
RUNS = {
    "ddpm": ("ddpm", [*TINY, *"--class_conditional --gradient_accumulation_steps 2".split()]),
    "gan": ("gan", [*TINY_GAN, *"--ada_target 0.6 --augment_probability 0.3 --num_clusters 3".split()]),
    "wgan": ("gan", [*TINY_GAN, *"--preset wgan-gp --num_clusters 0".split()]),
    "vae": ("vae", [*TINY_VAE, "--class_conditional"]),
    "vq": ("vae", [*TINY_VAE, *"--architecture vq".split()]),
}
KILLS = 24  # of each; every other run is killed a second time while it goes on
# The last two name folders; the digest of a state covers its seconds.
CLOCK = {"training_seconds", "seconds", "digest", "written", "command", "config"}


def everything(folder):
    """What a run's folder holds, file by file, without what the clock says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == ".lock" or name.startswith("abandoned-"):
            continue
        if path.suffix == ".jsonl":
            found[name] = metrics(folder)
        elif path.name in ("run.json", "state.json"):
            values = json.loads(path.read_text())
            found[name] = {key: value for key, value in values.items() if key not in CLOCK}
        elif path.suffix == ".md":
            found[name] = re.sub(r"\| Time \| .* s \|", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_killed_at_any_call_that_changes_the_disk(case, tmp_path):
    family, options = RUNS[case]
    count, classifier = tmp_path / "count", save_classifier(tmp_path / "classifier")

    def start(folder, at):
        env = {"PYTHONPATH": str(KILL), "KILL_AT": str(at), "KILL_COUNT": str(count)}
        words = ["--output_dir", folder, "--resume_from_checkpoint", "latest", "--eval_extractor", classifier]
        result = run("-m", "hfgen", "train", family, *options, *OFTEN, *words, env=env)
        assert result.returncode in (0, -signal.SIGKILL), result.stderr
        return result.returncode == 0

    assert start(tmp_path / "first" / "run", 0)  # also makes the cache, which is no part of what is counted
    assert start(tmp_path / "whole" / "run", 0)
    wanted, calls = everything(tmp_path / "whole" / "run"), int(count.read_text())
    first = everything(tmp_path / "first" / "run")
    assert [name for name in wanted if first[name] != wanted[name]] == []
    rng = random.Random(case)
    for number in rng.sample(range(1, calls + 1), KILLS):
        folder = tmp_path / str(number) / "run"
        assert not start(folder, number)
        if number % 2:
            start(folder, rng.randint(1, calls // 3))  # it may come to its end before
        assert start(folder, 0)
        found = everything(folder)
        assert found.keys() == wanted.keys(), number
        assert [name for name in wanted if found[name] != wanted[name]] == [], number
        shutil.rmtree(folder)
