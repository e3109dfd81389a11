"""The benchmark of sampling with caches."""

import json

import caches as BENCHMARK
import pytest
import torch

from hfgen import AutoregressivePipeline, PixelCNN, UserError
from hfgen.pipelines.autoregressive import draw_grid


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = PixelCNN(sample_size=8, base_channels=8, dilations=(1, 2), likelihood="categorical", num_levels=16)
    AutoregressivePipeline(network).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_it_measures(saved, tmp_path, capsys):
    flags = "--num_images 8 --batch_size 2 --repeats 2 --cpu_threads 1".split()
    BENCHMARK.main(["--model", str(saved), "--output", str(tmp_path / "caches.json"), *flags])
    (row,) = json.loads((tmp_path / "caches.json").read_text())["measured"]
    assert row["positions"] == 64 and row["images"] == row["drawn_alike"] == 8
    assert row["largest_difference"] < 1e-5 and len(row["seconds_per_image"]) == 2
    assert "8 of 8" in capsys.readouterr().out


@torch.no_grad()
def test_images_that_whole_passes_would_draw_otherwise_are_counted(saved):
    network = AutoregressivePipeline.from_pretrained(saved).model
    latents = torch.randn(5, 1, 8, 8)
    levels = draw_grid(network, latents)
    assert torch.equal(draw_grid(BENCHMARK.Whole(network), latents), levels)
    levels[2, 0, 4, 4] = (levels[2, 0, 4, 4] + 1) % 16
    assert BENCHMARK.drawn_alike(network, levels, latents, None)[0] == 4


def test_other_models_are_refused(tmp_path):
    from hfgen import DCGANGenerator, GANPipeline

    GANPipeline(DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4)).save_pretrained(tmp_path / "gan")
    with pytest.raises(UserError, match="`model` .*gan is no autoregressive model"):
        BENCHMARK.main(["--model", str(tmp_path / "gan")])
