"""Checkpoints whose weights, components or configurations do not fit: one line, before or at the first image."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import Command
from safetensors.torch import load_file, save_file

from hfgen import ConvVAE, DCGANGenerator, GANPipeline, GaussianMixturePrior, UserError, VAEPipeline, load_pipeline
from hfgen.sampling.api import ready_sampler
from hfgen.sampling.loading import check_checkpoint

UNET, MODEL = "unet/diffusion_pytorch_model.safetensors", "model/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"], "norm_num_groups": 4}
    unet = UNet2DModel(8, 1, 1, block_out_channels=[8], layers_per_block=1, attention_head_dim=8, **blocks)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder / "ddpm")
    network = DCGANGenerator(sample_size=8, latent_dim=4, base_channels=8)
    GANPipeline(network).save_pretrained(folder / "gan")
    vae = ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8))
    VAEPipeline(vae, GaussianMixturePrior(latent_shape=vae.latent_shape)).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return lambda kind: Path(shutil.copytree(saved / kind, tmp_path / kind))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def images(folder):
    return ready_sampler(str(folder), {}, "cpu").fastest()([0, 1], 0)


def as_type(kind):
    return lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()}


WRONG = {
    "lacks 1, such as conv_in.bias": lambda tensors: {n: t for n, t in tensors.items() if n != "conv_in.bias"},
    "has, beside it, 1, such as more": lambda tensors: tensors | {"more": torch.ones(2)},
    "has conv_in.bias of shape (1,) in place of (8,)": lambda tensors: tensors | {"conv_in.bias": torch.ones(1)},
    "of type I32 in place of float32": as_type(torch.int32),
    "of type BOOL in place of float32": as_type(torch.bool),
    "of type C64 in place of float32": as_type(torch.complex64),
}


@pytest.mark.parametrize("message", WRONG)
def test_weights_that_do_not_fit_are_refused(copy, message):
    folder = copy("ddpm")
    save_file(WRONG[message](load_file(folder / UNET)), folder / UNET, metadata={"format": "pt"})
    for load in (lambda: load_pipeline(str(folder)), lambda: check_checkpoint(folder)):
        with pytest.raises(UserError, match="does not hold the weights of the UNet2DModel") as error:
            load()
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_of_any_width_are_weights(saved, copy, kind):
    folder = copy("gan")
    weights = load_file(folder / MODEL)  # those of batch normalisation are integers, too
    halved = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(halved, folder / MODEL, metadata={"format": "pt"})
    assert (images(folder).int() - images(saved / "gan").int()).abs().max() < 4


def test_names_of_early_checkpoints_and_shards_with_a_variant_are_known(saved, copy):
    folder, expected = copy("ddpm"), images(saved / "ddpm")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def name_of(name):
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    weights = {name_of(name): tensor for name, tensor in load_file(folder / UNET).items()}
    assert any(".query." in name for name in weights)
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    assert torch.equal(images(folder), expected)
    shards = folder.parent / "shards"
    load_pipeline(str(saved / "ddpm")).save_pretrained(shards, max_shard_size="2KB", variant="fp16")
    assert len(list((shards / "unet").glob("*-of-*.safetensors"))) > 1
    assert torch.equal(load_pipeline(str(shards), variant="fp16").unet.conv_in.weight,
                       load_pipeline(str(saved / "ddpm")).unet.conv_in.weight)  # fmt: skip
    lost = min((shards / "unet").glob("*-of-*.safetensors"))
    save_file({}, lost, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks"):
        load_pipeline(str(shards), variant="fp16")


def test_components_that_a_pipeline_does_not_have_are_refused(copy):
    for kind, entry in (("gan", ["diffusers", "DDPMScheduler"]), ("ddpm", ["hfgen.models.dcgan", "DCGANGenerator"])):
        folder = copy(kind)
        change(folder / "model_index.json", more=entry)
        with pytest.raises(UserError, match="there is a component more, which a .*Pipeline does not have"):
            load_pipeline(str(folder))


ABSURD = [
    ("ddpm", "unet/config.json", {"norm_eps": "x"}),
    ("ddpm", "unet/config.json", {"norm_num_groups": -1}),
    ("ddpm", "unet/config.json", {"mid_block_scale_factor": [1]}),
    ("ddpm", "unet/config.json", {"freq_shift": "x"}),
    ("ddpm", "unet/config.json", {"class_embed_type": "timestep"}),
    ("ddpm", "unet/config.json", {"num_class_embeds": 3}),
    ("ddpm", "unet/config.json", {"sample_size": None}),
    ("ddpm", "scheduler/scheduler_config.json", {"prediction_type": "wrong"}),
    ("ddpm", "scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    ("ddpm", "scheduler/scheduler_config.json", {"trained_betas": False}),
    ("ddpm", "model_index.json", {"_class_name": "ClassConditionalDDPMPipeline", "guidance_scale": "x"}),
    ("gan", "model_index.json", {"_class_name": "VAEPipeline"}),
    ("vae", "model_index.json", {"_class_name": "GANPipeline", "prior": [None, None]}),
    ("vae", "prior/config.json", {"latent_shape": ["x"]}),
]


@pytest.mark.parametrize(("kind", "file", "values"), ABSURD)
def test_absurd_configurations_end_in_one_line(copy, tmp_path, kind, file, values):
    folder = copy(kind)
    change(folder / file, **values)
    with pytest.raises(UserError) as error:
        Command("sample").main(["--model", str(folder), "--output_dir", str(tmp_path / "images")])
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert not (tmp_path / "images").exists()
