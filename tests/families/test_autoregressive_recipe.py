"""The recipe of autoregressive models: what is learnt, of pixels and of codes, and what does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen import AutoregressiveConfig, AutoregressiveRecipe, UserError
from hfgen.sampling.capabilities import HasDensity

TINY = {"dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "logging_steps": 2, "eval_batch_size": 4}
TINY |= {"save_images_epochs": 0.0, "mixed_precision": "no", "cpu_threads": 1, "lr_warmup_steps": 2}
PIXELS = TINY | {"base_channels": 8, "dilations": (1, 2)}
CODES = TINY | {"preset": "codes", "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
VQ = TINY | {"preset": "vq", "block_out_channels": (8, 8), "latent_channels": 4, "num_vq_embeddings": 16}


def train(family, folder, steps=6, **options):
    options = options | {"max_train_steps": steps, "output_dir": str(folder)}
    return hfgen.train(family, **options)


def log(folder):
    return [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """A VQ-VAE that has seen a little."""
    folder = tmp_path_factory.mktemp("vq") / "vq"
    train("vae", folder, 30, **VQ)
    return folder


def test_the_likelihood_rises(tmp_path, on_the_cpu):
    train("autoregressive", tmp_path / "run", 60, **PIXELS)
    bits = [line["bits_per_dim"] for line in log(tmp_path / "run")]
    assert bits[0] > 7 and bits[-1] < bits[0] - 2
    pipe = hfgen.load_pipeline(str(tmp_path / "run"))
    assert pipe.model.config.likelihood == "categorical"  # gray
    assert pipe(2).images[0].size == (8, 8)


def test_colours_are_mixtures(tmp_path, on_the_cpu):
    train("autoregressive", tmp_path / "run", 3, **PIXELS, image_mode="RGB", class_conditional=True)
    pipe = hfgen.load_pipeline(str(tmp_path / "run"))
    assert pipe.model.config.likelihood == "logistic_mixture" and pipe.model.config.in_channels == 3
    assert pipe(class_labels=[3]).images[0].mode == "RGB"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["likelihood"] == "logistic_mixture"


def test_augmented_images_are_rounded_to_levels(tmp_path, on_the_cpu):
    train("autoregressive", tmp_path / "run", 3, **PIXELS, random_rotation=20, color_jitter=0.3)
    assert all(line["bits_per_dim"] < 10 for line in log(tmp_path / "run"))


def test_codes(vq, tmp_path, on_the_cpu):
    run = train("autoregressive", tmp_path / "run", 40, **CODES, codes_from=str(vq), class_conditional=True)
    lines = log(tmp_path / "run")
    assert lines[-1]["bits_per_code"] < lines[0]["bits_per_code"] <= 4.5  # of 16 codes
    pipe = hfgen.load_pipeline(str(tmp_path / "run"))
    assert pipe.image_shape == (1, 8, 8) and pipe.model.config.num_levels == 16
    assert pipe(class_labels=[3, 4]).images[0].size == (8, 8)
    # Its VQ-VAE is part of what is published, as it was, and of no checkpoint.
    theirs = load_file(vq / "model" / "diffusion_pytorch_model.safetensors")
    ours = load_file(tmp_path / "run" / "vae" / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = load_file(next((tmp_path / "run").glob("checkpoint-*/*model*.safetensors")))
    assert not [name for name in kept if "codebook" in name]
    assert run.engine.digests.keys() == {"vae"}
    adapter = hfgen.adapter_of(pipe)
    assert adapter.obstacle(HasDensity) is None
    card = (tmp_path / "run" / "README.md").read_text()
    assert "over the codes of a VQ-VAE" in card and "{{" not in card and "pipe.complete" not in card
    assert str(tmp_path) not in card and "those of the VQ-VAE `vq`" in card  # no folder of this machine
    assert f"--codes_from ../../{vq.parent.name}/vq --output_dir" in card
    assert "give your own with `--codes_from`" in card


def test_near_codes_begin_alike(vq):
    from hfgen.data.columns import TRAIN
    from hfgen.data.info import DataInfo, ImageInfo, SourceInfo

    data = DataInfo({TRAIN: SourceInfo("digits", "train", 1, 0, "")}, {"image": ImageInfo("L", 8)})
    for architecture in ("pixelcnn", "transformer"):
        options = AutoregressiveConfig(
            architecture=architecture, draws="codes", codes_from=str(vq), likelihood="categorical"
        )
        recipe = AutoregressiveRecipe(options, data)
        codes, embedded = recipe.vae.codes, recipe.model.embed.weight.detach()
        close = torch.corrcoef(torch.stack([torch.pdist(codes), torch.pdist(embedded)]))[0, 1]
        assert close > 0.8


def test_a_pixelcnn_over_codes(vq, tmp_path, on_the_cpu):
    small = {"base_channels": 8, "dilations": (1, 1), "architecture": "pixelcnn"}
    train("autoregressive", tmp_path / "run", 20, **CODES | small, codes_from=str(vq))
    lines = log(tmp_path / "run")
    assert lines[-1]["bits_per_code"] < lines[0]["bits_per_code"]
    assert "gated PixelCNN over the codes" in (tmp_path / "run" / "README.md").read_text()


def test_codes_of_mirrored_and_of_augmented_images(vq, tmp_path, on_the_cpu):
    for name, options in (("mirrored", {"random_flip": True}), ("moved", {"random_crop": 1})):
        train("autoregressive", tmp_path / name, 3, **CODES, codes_from=str(vq), **options)
        assert log(tmp_path / name)


def test_codes_resume(vq, tmp_path, on_the_cpu):
    options = CODES | {"codes_from": str(vq), "checkpointing_steps": 2}
    train("autoregressive", tmp_path / "whole", 6, **options, lr_scheduler="constant")
    train("autoregressive", tmp_path / "half", 4, **options, lr_scheduler="constant")
    train("autoregressive", tmp_path / "half", 6, resume_from_checkpoint="latest")
    one, other = (
        load_file(tmp_path / name / "model" / "diffusion_pytorch_model.safetensors") for name in ("whole", "half")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_codes_cannot_come_from(vq, tmp_path, on_the_cpu):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            train("autoregressive", tmp_path / "run", 1, **CODES | options)
        assert not (tmp_path / "run" / "model_index.json").exists()

    refused("`codes_from` .*absent holds no pipeline: there is no such folder", codes_from=str(tmp_path / "absent"))
    refused("VQ-VAE of images of 8 pixels and 1 channels, but the images have 16", codes_from=str(vq), resolution=16)
    refused("VQ-VAE of images of 8 pixels and 1 channels", codes_from=str(vq), image_mode="RGB")
    train("vae", tmp_path / "plain", 1, **VQ | {"preset": "conv", "num_vq_embeddings": 256})
    refused(
        "`codes_from` .*plain holds no VQ-VAE: train one with `hfgen train vae", codes_from=str(tmp_path / "plain")
    )
    refused("`codes_from` is for `draws` codes, not for pixels", codes_from=str(vq), draws="pixels")
    refused("logistic_mixture is for levels in an order", codes_from=str(vq), likelihood="logistic_mixture")
    refused("`codes_from` is missing: train a VQ-VAE", codes_from=None)


def test_codes_of_a_vq_vae_by_class(tmp_path, on_the_cpu):
    train("vae", tmp_path / "vq", 2, **VQ, class_conditional=True)
    with pytest.raises(UserError, match="is a VQ-VAE of 10 classes, and this run has 100: train both"):
        train("autoregressive", tmp_path / "run", 1, **CODES, codes_from=str(tmp_path / "vq"))
    train("autoregressive", tmp_path / "run", 2, **CODES, codes_from=str(tmp_path / "vq"), class_conditional=True)
    pipe = hfgen.load_pipeline(str(tmp_path / "run"))
    assert pipe.vae.config.num_class_embeds == 10 and len(pipe(class_labels=[3, 4]).images) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "`kernel_size` 4 is even"),
        ({"dilations": ()}, "`dilations` needs a number for each layer"),
        ({"architecture": "transformer", "num_attention_heads": 3}, "`num_attention_heads` 3 does not divide"),
        ({"likelihood": "categorical", "image_mode": "RGB"}, "`likelihood` categorical .* for one channel"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train("autoregressive", tmp_path / "run", 1, **PIXELS | options)
