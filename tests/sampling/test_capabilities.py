"""What pipelines can do, who says so, and what is said of those that cannot."""

import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import hfgen
from hfgen import registry
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.glow import Glow
from hfgen.models.pixelcnn import PixelCNN
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.flow import FlowPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import (
    Encodes,
    Generates,
    HasDensity,
    HasLatents,
    HasSteps,
    HasStyles,
    Restores,
    Translates,
    adapter_of,
    require,
)

CAPABILITIES = (Generates, HasDensity, Encodes, HasLatents, HasSteps, HasStyles, Restores, Translates)
TINY = {"latent_channels": 4, "block_out_channels": (8, 8)}


def dcgan(**options):
    return GANPipeline(DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4, **options))


def vae(**options):
    return VAEPipeline(ConvVAE(sample_size=8, **TINY), **options)


@pytest.mark.parametrize(
    ("make", "kind", "can", "density"),
    [
        (dcgan, "GAN", {Generates, Encodes, HasLatents, Restores}, None),
        (
            lambda: GANPipeline(StyleGAN2Generator(sample_size=8, latent_dim=4, channel_base=64, channel_max=8)),
            "GAN",
            {Generates, Encodes, HasLatents, HasStyles, Restores},
            None,
        ),
        (vae, "VAE", {Generates, HasDensity, Encodes, HasLatents, Restores}, "bound"),
        (lambda: vae(task="denoise", task_level=0.3), "VAE", {Generates, Restores}, None),
        (
            lambda: VAEPipeline(VQVAE(sample_size=8, **TINY)),
            "VAE",
            {HasDensity, Encodes, HasLatents, Restores},
            "bound",
        ),
        (
            lambda: DDPMPipeline(UNet2DModel(sample_size=8, block_out_channels=(32,) * 4), DDPMScheduler()),
            "DDPM",
            {Generates, HasDensity, HasSteps, Encodes, Restores},
            "estimate",
        ),
        (lambda: FlowPipeline(Glow(sample_size=8)), "flow", {Generates, HasDensity, Encodes, HasLatents}, "bound"),
        (
            lambda: AutoregressivePipeline(PixelCNN(sample_size=8)),
            "autoregressive model",
            {Generates, HasDensity, HasSteps, Restores},
            "exact",
        ),
    ],
    ids=["dcgan", "stylegan2", "vae", "denoiser", "vqvae", "ddpm", "flow", "pixelcnn"],
)
def test_what_each_can_do(make, kind, can, density):
    adapter = adapter_of(make())
    assert adapter.kind == kind
    assert {capability for capability in CAPABILITIES if adapter.obstacle(capability) is None} == can
    if HasDensity in can:
        assert adapter.details(adapter.samples(None))["kind"] == density


def test_a_capability_that_is_lacking_is_one_line():
    for pipe, capability, message in (
        (dcgan(), HasDensity, "it is a GAN, whose likelihood is not known."),
        (dcgan(), HasStyles, "it is no StyleGAN2."),
        (dcgan(), Translates, "it is a GAN, which translates no images."),
        (vae(task="denoise", task_level=0.3), HasDensity, "it is trained to denoise, not to model images."),
    ):
        with pytest.raises(UserError) as error:
            require(adapter_of(pipe), capability, "it")
        assert str(error.value) == message
    require(adapter_of(dcgan()), Generates, "it")


def test_subclasses_of_a_pipeline_have_its_adapter():
    class Mine(GANPipeline):
        pass

    assert type(adapter_of(Mine(dcgan().model))).__name__ == "GANAdapter"


def test_a_pipeline_of_no_family_is_refused():
    with pytest.raises(UserError, match="object is no pipeline of a family .*DDPMPipeline, .*GANPipeline"):
        adapter_of(object())


@pytest.mark.usefixtures("toys")
def test_a_family_from_outside_needs_two_methods(tmp_path):
    from toy_ar.model import PixelCNN
    from toy_ar.pipeline import ToyARPipeline

    adapter = adapter_of(ToyARPipeline(PixelCNN(sample_size=8)))
    assert (adapter.kind, adapter.image_shape, adapter.classes) == ("PixelCNN", (1, 8, 8), None)
    assert {one for one in CAPABILITIES if adapter.obstacle(one) is None} == {Generates, HasDensity}
    assert adapter.sliders() == {} and adapter.details(7) == {"kind": "exact", "bound": "exact"}
    adapter.pipe.save_pretrained(tmp_path)
    loaded = hfgen.load_pipeline(str(tmp_path))
    assert type(loaded) is ToyARPipeline
    images = [
        adapter_of(pipe).generate([torch.Generator().manual_seed(1)], None, None) for pipe in (adapter.pipe, loaded)
    ]
    assert torch.equal(*images)


def test_an_adapter_that_lacks_a_method_is_named(monkeypatch):
    entry = registry.PipelineEntry("x:GANPipeline", f"{__name__}:Half")
    monkeypatch.setattr("hfgen.sampling.capabilities.pipeline_entries", lambda: {"GANPipeline": entry})
    with pytest.raises(UserError, match=f"{__name__}:Half, the adapter of GANPipeline, lacks generate, log_prob"):
        adapter_of(dcgan())


class Half(Generates, HasDensity):
    pass


def test_declaring_an_adapter_imports_no_torch():
    code = "import sys, hfgen.sampling.capabilities; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_loading_has_its_old_address(tmp_path):
    from hfgen.pipelines import load_pipeline

    assert load_pipeline is hfgen.load_pipeline
    (tmp_path / "model_index.json").write_text('{"_class_name": "Unheard"}')
    with pytest.raises(UserError, match="holds a Unheard, .* DDPMPipeline, .* If it is of another package, install"):
        load_pipeline(str(tmp_path))
    assert registry.pipeline_entries()["DDPMPipeline"].pipeline == "diffusers:DDPMPipeline" and DDPMPipeline
