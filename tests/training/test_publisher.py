"""What a run shows and shares: sample grids, pipelines that are whole or absent, and what they say of their origin."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hfgen
from hfgen.runtime.errors import UserError
from hfgen.training import publisher
from hfgen.training.api import prepare
from hfgen.training.options import collect
from hfgen.training.publisher import module_size, random_state_restored, save_all_but_weights

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TINY = {
    "dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "max_train_steps": 2, "latent_channels": 4,
    "checkpointing_steps": 1, "block_out_channels": (8, 8), "eval_batch_size": 4, "mixed_precision": "no",
    "prior_components": 2, "cpu_threads": 1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of a VAE that has not taken a step."""
    return prepare(collect("vae", **TINY, output_dir=str(tmp_path / "run")))


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_pipeline_is_of_what_is_published_and_is_left_as_it_was(run):
    module = run.engine.published["vae"].train()
    with run.publisher.pipeline() as pipeline:
        assert pipeline.model is module and not module.training and pipeline.prior is None
    assert module.training
    with run.publisher.pipeline(run.publisher.batches()) as pipeline:
        assert pipeline.prior is not None  # fitted


def test_the_batches_after_training_are_those_of_its_beginning(run):
    first, second = (next(run.publisher.batches()) for _ in range(2))
    assert torch.equal(first["image"], second["image"]) and len(first["image"]) == 16
    assert torch.equal(first.random.normal(3), second.random.normal(3))
    batches = run.publisher.batches()
    next(batches)
    assert not torch.equal(next(batches)["image"], first["image"])


def test_a_sample_grid_repeats_itself_and_says_what_made_it(run):
    with run.publisher.pipeline() as pipeline:
        run.publisher.sample_grid(pipeline, 16)
        torch.randn(7)
        run.publisher.sample_grid(pipeline, 32)
    one, two = run.folder.grid(16), run.folder.grid(32)
    assert np.array_equal(pixels(one), pixels(two))
    origin = json.loads(Image.open(one).text["Comment"])
    assert origin == {"model": "run", "images_seen": 16, "seed": 0}


def test_provenance_can_be_left_out(tmp_path):
    run = prepare(collect("vae", **TINY, output_dir=str(tmp_path / "run"), provenance=False))
    with run.publisher.pipeline() as pipeline:
        run.publisher.sample_grid(pipeline, 16)
    assert not Image.open(run.folder.grid(16)).text


def test_what_is_published_is_whole(run, tmp_path):
    target = tmp_path / "elsewhere"
    with run.publisher.pipeline(run.publisher.batches()) as pipeline:
        run.publisher.publish(pipeline, target, run.record(), last=True)
    names = {path.name for path in target.iterdir()}
    assert {
        "model_index.json",
        "README.md",
        "run.json",
        "samples.png",
        "reconstructions.png",
        "model",
        "prior",
    } <= names
    assert json.loads((target / "run.json").read_text())["images_seen"] == 0
    assert np.array_equal(pixels(target / "samples.png"), pixels(run.folder.grid(0)))
    pipe = hfgen.VAEPipeline.from_pretrained(target)
    for name, value in run.engine.published["vae"].state_dict().items():
        assert torch.equal(value, pipe.model.state_dict()[name])


def test_code_of_an_earlier_version_goes(run, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    stale, mine = target / "pipeline_hfgen_vae__0123456789ab.py", target / "mine.py"
    for file in (stale, mine):
        file.write_text("")
    with run.publisher.pipeline() as pipeline:
        run.publisher.publish(pipeline, target, run.record(), last=True)
    assert not stale.exists() and mine.exists() and (target / "pipeline_hfgen_vae.py").exists()


def test_a_publication_that_fails_leaves_the_last_one(run, tmp_path, monkeypatch):
    target = tmp_path / "elsewhere"
    with run.publisher.pipeline() as pipeline:
        run.publisher.publish(pipeline, target, run.record(), last=True)
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(publisher, "write_card", fail)
        with pytest.raises(UserError, match="`output_dir` .*run cannot be written: .*No space left"):
            run.publisher.publish(pipeline, target, run.record(), last=True)
    assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_pushes_are_told_of_all_but_the_last(run, tmp_path):
    class Pushes:
        made = []

        def push(self, target, message):
            self.made.append((target, message))

    run.publisher.pushes = Pushes()
    with run.publisher.pipeline() as pipeline:
        for last in (False, True):
            run.publisher.publish(pipeline, tmp_path / "elsewhere", run.record(), last)
    assert Pushes.made == [(tmp_path / "elsewhere", "Training in progress: 0 images")]


def test_a_rehearsal_leaves_nothing_behind(run):
    before = {path: path.read_bytes() for path in run.folder.path.rglob("*") if path.is_file()}
    run.publisher.rehearse(run.record())
    assert before == {path: path.read_bytes() for path in run.folder.path.rglob("*") if path.is_file()}


def test_room_is_asked_for_by_what_will_be_written(run, monkeypatch):
    usage = shutil.disk_usage("/")
    vae, statistics = run.engine.modules["vae"], run.engine.modules["statistics"]
    moments = 2 * sum(4 * parameter.numel() for parameter in vae.parameters())
    checkpoint = 2 * module_size(vae) + module_size(statistics) + moments  # the moving average is kept, too
    needed = 100 + 3 * checkpoint  # two are kept, and a third is written beside them
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if enough:
            run.publisher._check_disk(100)
        else:
            with pytest.raises(UserError, match="`output_dir` .*the disk has 0 MB left"):
                run.publisher._check_disk(100)


def test_room_is_asked_for_as_many_checkpoints_as_there_will_be(tmp_path):
    """A limit that the run will never come to costs nothing."""
    options = TINY | {"output_dir": str(tmp_path / "few"), "checkpoints_total_limit": 2**30}
    prepare(collect("vae", **options))


def test_all_but_weights(run, tmp_path):
    with run.publisher.pipeline() as pipeline:
        weights = save_all_but_weights(pipeline, tmp_path / "light")
        pipeline.save_pretrained(tmp_path / "whole")
    light, whole = (
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("light", "whole")
    )
    assert {name for name in whole - light if name.endswith((".json", ".safetensors"))} == {
        "model/diffusion_pytorch_model.safetensors"
    }
    assert light <= whole
    assert weights == module_size(pipeline.model)


def test_random_numbers_are_as_they_were():
    import random

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError), random_state_restored(torch.device("cpu")):
        torch.randn(3), random.random(), np.random.rand()
        raise RuntimeError
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_sizes_count_weights_and_buffers():
    assert module_size(nn.BatchNorm1d(3)) == 4 * 12 + 8
