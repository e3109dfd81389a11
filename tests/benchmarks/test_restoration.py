"""The benchmark of restoring: a row for each model, task and method, and mistakes."""

import json

import pytest
import restoration as BENCHMARK
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from evaluation.tiny import save_classifier, save_data, save_model
from helpers import spelled

from hfgen.runtime.errors import UserError


def test_a_run(tmp_path, capsys):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "ddpm")
    save_model(tmp_path / "vae", "vae")
    save_classifier(tmp_path / "classifier")
    save_data(tmp_path / "digits")
    models = ["--model", str(tmp_path / "ddpm"), str(tmp_path / "vae"), "--extractor", str(tmp_path / "classifier")]
    options = ["--dataset_name", str(tmp_path / "digits"), "--num_images", "6", "--batch_size", "4", "--steps", "2"]
    file = tmp_path / "report.json"
    BENCHMARK.main([*models, *options, "--factor", "2", "--output", str(file)])
    rows = json.loads(file.read_text())["measured"]
    ways = [(row["task"], row["method"], row.get("resamples")) for row in rows]
    drawn = [("ddnm", None), ("ddnm", 10), ("posterior", None)]
    expected = [("inpaint", *way) for way in [*drawn, ("repaint", 10)]] + [("super_resolve", *way) for way in drawn]
    expected += [(task, way, None) for task in ("inpaint", "super_resolve") for way in ("gradient", "langevin")]
    assert ways == expected
    for row in rows:
        assert 0 <= row["label_kept"] <= 1 and row["rmse"] > 0 and row["images"] == 6
        assert row["seen_levels"] < 0.1 or row["task"] == "super_resolve"  # where pixels may have to be clipped
    assert "| model | task | method | class kept |" in capsys.readouterr().out
    save_model(tmp_path / "gan", "gan")
    few = ["--model", str(tmp_path / "ddpm"), str(tmp_path / "gan"), *options[:2], "--num_images", "2", "--steps", "1"]
    few += ["--extractor", str(tmp_path / "classifier"), "--factor", "2", "--output", str(tmp_path / "few.json")]
    BENCHMARK.main([*few, "--methods", "posterior", "--tasks", "inpaint"])
    rows = json.loads((tmp_path / "few.json").read_text())["measured"]
    assert [row["method"] for row in rows] == ["posterior", "its own"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--extractor c", "--model is missing"),
        ("--model m", "--extractor is missing"),
        ("--model m --extractor c --factor 1", "--factor 1 is out of range"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message), spelled():
        BENCHMARK.read_options(arguments.split())
