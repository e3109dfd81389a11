"""The run: its end is rehearsed before it begins, it goes on by its own record, and its errors say what happened."""

import json
import random
import time

import datasets
import numpy as np
import pytest
import torch
from helpers import metrics
from PIL import Image

import hfgen
from hfgen.families.vae.recipe import VAERecipe
from hfgen.runtime.errors import UserError
from hfgen.training.api import prepare
from hfgen.training.folder import RunFolder
from hfgen.training.options import collect
from hfgen.training.run import Run

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TINY = {
    "dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "max_train_steps": 4, "latent_channels": 4,
    "block_out_channels": (8, 8), "logging_steps": 2, "checkpointing_steps": 2, "eval_batch_size": 4,
    "save_images_epochs": 0.0, "mixed_precision": "no", "lr_warmup_steps": 2, "prior_components": 2, "cpu_threads": 1,
}  # fmt: skip


def tiny(tmp_path, family="vae", preset=None, **changes):
    return collect(family, preset, **TINY | {"output_dir": str(tmp_path / "run")} | changes)


def test_the_rehearsal_leaves_random_numbers_as_they_were(tmp_path, monkeypatch):
    run = prepare(tiny(tmp_path))
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    start = time.perf_counter()
    run.publisher.rehearse(run.record())
    assert time.perf_counter() - start < 5
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_folder_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.runtime.lock.PATIENCE", 0.1)
    latest = {"resume_from_checkpoint": "latest"}
    first = prepare(tiny(tmp_path, **latest))
    with pytest.raises(UserError, match="`output_dir` .*run is in use by another run in this process"):
        prepare(tiny(tmp_path, **latest))
    assert first.train().images_seen == 64  # and it gives the folder back
    resume = Run._resume

    def meanwhile(self):
        if self.schedule.total == 128:  # another one begins and ends while this one reads its checkpoint
            prepare(tiny(tmp_path, **latest, max_train_steps=6)).train()
        return resume(self)

    monkeypatch.setattr(Run, "_resume", meanwhile)
    with pytest.raises(UserError, match="another run has written checkpoints since this one began. Repeat the comm"):
        prepare(tiny(tmp_path, **latest, max_train_steps=8))
    monkeypatch.undo()
    assert prepare(tiny(tmp_path, **latest, max_train_steps=8)).train().images_seen == 128


def test_an_end_that_fails_is_told_at_the_beginning(tmp_path, monkeypatch):
    def fail(self, modules, fitted=None):
        raise AttributeError("this pipeline is not finished")

    monkeypatch.setattr(VAERecipe, "pipeline", fail)
    with pytest.raises(AttributeError, match="not finished"):
        prepare(tiny(tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_template_is_not_called_a_full_disk(tmp_path, monkeypatch):
    import jinja2

    def fail(*args):
        raise jinja2.TemplateNotFound("absent.md")

    monkeypatch.setattr("hfgen.training.publisher.write_card", fail)
    with pytest.raises(jinja2.TemplateNotFound):
        prepare(tiny(tmp_path))


def test_a_disk_without_room_is_told_at_the_beginning(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="0 MB left.*`checkpoints_total_limit`"):
        prepare(tiny(tmp_path))
    assert not (tmp_path / "run").exists()


def test_what_another_program_wrote_is_not_replaced(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="holds model, which the pipeline would replace"):
        prepare(tiny(tmp_path))
    assert (tmp_path / "run" / "model" / "precious.txt").read_text() == "mine"


def test_the_sampling_of_a_rehearsal_takes_the_fewest_steps(tmp_path):
    run = prepare(
        collect(
            "ddpm", **{k: v for k, v in TINY.items() if k not in ("latent_channels", "prior_components")},
            norm_num_groups=4, attention_head_dim=8, ddpm_num_inference_steps=100, output_dir=str(tmp_path / "run"),
        )
    )  # fmt: skip
    with run.publisher.pipeline() as pipeline:
        sampler = run.publisher.sampler(pipeline)
        assert sampler.settings["num_inference_steps"] > 50
        assert sampler.fastest().options.num_inference_steps <= 2


def test_a_run_goes_on_by_its_own_record(tmp_path):
    hfgen.train("vae", **TINY, beta=2.0, output_dir=str(tmp_path / "whole"), lr_scheduler="constant")
    first = TINY | {"max_train_steps": 2}
    hfgen.train("vae", **first, beta=2.0, output_dir=str(tmp_path / "half"), lr_scheduler="constant")
    resumed = hfgen.train("vae", resume_from_checkpoint="latest", output_dir=str(tmp_path / "half"), max_train_steps=4)
    assert resumed.options.own.beta == 2.0 and resumed.options.training.lr_scheduler == "constant"
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "half")
    with pytest.raises(UserError, match="`beta` 2.0 there, 3.0 here"):
        collected = collect("vae", resume_from_checkpoint="latest", output_dir=str(tmp_path / "half"), beta=3.0)
        prepare(collected)
    with pytest.raises(UserError, match="a run of vae, not of gan"):
        collect("gan", resume_from_checkpoint="latest", output_dir=str(tmp_path / "half"))


def test_options_are_resolved_before_they_are_recorded(tmp_path):
    run = hfgen.train(
        "vae", **TINY | {"latent_channels": None, "max_train_steps": 1}, output_dir=str(tmp_path / "run")
    )
    config = json.loads((run.folder.path / "run.json").read_text())["config"]
    assert config["latent_channels"] == 32 and config["image_mode"] == "L" and config["mixed_precision"] == "no"


def test_another_split_of_the_batch_is_said_where_it_matters(tmp_path):
    gan = {k: v for k, v in TINY.items() if k not in ("latent_channels", "prior_components", "block_out_channels")}
    gan |= {"base_channels": 8, "latent_dim": 4, "max_train_steps": 2, "output_dir": str(tmp_path / "run")}
    hfgen.train("gan", **gan)
    said = []
    split = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "max_train_steps": 3}
    hfgen.train("gan", **gan | split, resume_from_checkpoint="latest", say=said.append)
    assert any("split into parts of 16 images and is now split into parts of 8" in text for text in said)


def test_a_run_of_an_earlier_version_keeps_its_classes(tmp_path, monkeypatch):
    """It made a class of each number from 0 to the greatest, and recorded these."""
    rows = {"image": [Image.new("L", (8, 8), 60 * n) for n in (1, 2, 3, 1)], "label": [1, 2, 3, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    options = TINY | {"dataset_name": str(tmp_path / "set"), "label_column": "label", "cache_dir": str(tmp_path)}
    options |= {"output_dir": str(tmp_path / "run"), "train_batch_size": 4, "prior_components": 0}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "recorded_classes", tuple("0123"))
        hfgen.train("vae", "conditional", **options | {"max_train_steps": 2}, resume_from_checkpoint="latest")
    said = []
    run = hfgen.train("vae", "conditional", **options, resume_from_checkpoint="latest", say=said.append)
    assert run.stream.info.class_names == tuple("0123") and run.images_seen == 16
    assert said[0] == "set: classes without an image: 1 of 4 (0)."
    other = prepare(collect("vae", "conditional", **options | {"output_dir": str(tmp_path / "new")}))
    assert other.stream.info.class_names == tuple("123")
    assert (other.options.data.image_column, other.options.data.label_column) == ("image", "label")


def test_options_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="`latent_chanels` is no option here. Did you mean latent_channels"):
        hfgen.train("vae", latent_chanels=3)
    with pytest.raises(UserError, match="`train_batch_size` is '16', but must be int"):
        hfgen.train("vae", train_batch_size="16")
    with pytest.raises(UserError, match="no family 'vea'.*Did you mean vae"):
        hfgen.train("vea")


def test_the_call_is_recorded_without_secrets(tmp_path):
    run = prepare(tiny(tmp_path))
    assert run.record()["command"] == ""
    run = hfgen.train("vae", **TINY | {"max_train_steps": 1}, output_dir=str(tmp_path / "b"), hub_token="hf_secret")
    command = run.record()["command"]
    assert command.startswith("hfgen.train('vae', dataset_name='digits'") and "hf_secret" not in json.dumps(
        run.record()
    )
