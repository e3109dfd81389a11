"""Images on the way: what each family shows of its steps, and that the last is the image."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from hfgen.models.glow import Glow
from hfgen.models.pixelcnn import PixelCNN
from hfgen.models.tarflow import TarFlow
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.pipelines.flow import FlowPipeline
from hfgen.sampling.capabilities import HasSteps, adapter_of, evenly
from hfgen.sampling.sampler import image_generators

CODES = {"sample_size": 8, "latent_channels": 4, "block_out_channels": (8, 8), "num_vq_embeddings": 8}


def unet(classes=None):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    return UNet2DModel(8, 3, 3, block_out_channels=(8, 8), layers_per_block=1, num_class_embeds=classes, **blocks)


def scheduler(kind="epsilon"):
    return DDPMScheduler(num_train_timesteps=50, prediction_type=kind)


def codes():
    vae = VQVAE(**CODES)
    size = vae.latent_shape[1]
    return AutoregressivePipeline(PixelCNN(sample_size=size, base_channels=8, dilations=(1,), num_levels=8), vae)


MODELS = {
    "ddpm": lambda: DDPMPipeline(unet(), scheduler()),
    "v": lambda: DDPMPipeline(unet(), scheduler("v_prediction")),
    "guided": lambda: ClassConditionalDDPMPipeline(
        unet(4), scheduler("sample"), {0: "a", 1: "b", 2: "c"}, guidance_scale=2.0
    ),
    "groups": lambda: ClassConditionalDDPMPipeline(unet(2), scheduler(), {0: "a", 1: "b"}, class_shares=[0.5, 0.5]),
    "pixels": lambda: AutoregressivePipeline(PixelCNN(sample_size=8, base_channels=8, dilations=(1,), in_channels=3)),
    "codes": codes,
    "tarflow": lambda: FlowPipeline(TarFlow(8, 1, 4, 3, 1, 8, 8, 4), noise_std=6.4),
}


def make(name):
    torch.manual_seed(0)
    pipe = MODELS[name]()
    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return adapter_of(pipe)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_step_is_the_image(name):
    adapter = make(name)
    assert adapter.obstacle(HasSteps) is None
    labels = torch.tensor([1, 0]) if name == "guided" else None
    made = adapter.generate(image_generators(0, (0, 1)), labels, adapter.options())
    for most in (2, 5, 10**4):
        text, steps = adapter.steps(image_generators(0, (0, 1)), labels, adapter.options(), most)
        assert text and 2 <= len(steps) <= most
        for step in steps:
            assert step.title and set(step.images) == set(steps[0].images)
            for images in step.images.values():
                assert images.shape == made.shape and images.min() >= 0 and images.max() <= 1
        for images in steps[-1].images.values():
            torch.testing.assert_close(images, made, rtol=0, atol=1e-5)
        assert not torch.equal(next(iter(steps[0].images.values())), made)


def test_what_a_diffusion_expects_is_what_its_network_says():
    adapter = make("ddpm")
    options = adapter.options(num_inference_steps=4, sampler="ddim")
    _, steps = adapter.steps(image_generators(0, (0,)), None, options, 10)
    assert [step.title for step in steps] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4", "image"]
    noise = torch.randn(1, 3, 8, 8, generator=image_generators(0, (0,))[0])
    torch.testing.assert_close(steps[0].images["noisy"], (noise / 2 + 0.5).clamp(0, 1))
    timestep = adapter.scheduler(options).timesteps[0]
    alpha = adapter.pipe.scheduler.alphas_cumprod[timestep]
    with torch.no_grad():
        said = adapter.pipe.unet(noise, timestep).sample
    expected = (noise - (1 - alpha).sqrt() * said) / alpha.sqrt()
    torch.testing.assert_close(steps[0].images["expected"], (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


def test_what_is_not_drawn_yet_is_gray():
    adapter = make("pixels")
    _, steps = adapter.steps(image_generators(0, (0, 1)), None, adapter.options(), 65)
    assert len(steps) == 64 and steps[0].title == "1 of 64" and steps[9].title == "10 of 64"
    half, whole = steps[9].images["image"].flatten(2), steps[-1].images["image"].flatten(2)
    assert torch.equal(half[:, :, :10], whole[:, :, :10]) and (half[:, :, 10:] == 0.5).all()


def test_blocks_of_a_flow_stand_upright():
    """Each block sees the patches turned around; what is shown is not, whatever their number."""
    adapter = make("tarflow")
    with torch.no_grad():
        for parameter in adapter.pipe.model.parameters():
            parameter.zero_()  # each block only turns
    _, steps = adapter.steps(image_generators(0, (0,)), None, adapter.options(), 10)
    assert [step.title for step in steps] == ["noise", "block 1", "block 2", "block 3"]
    for step in steps[:-1]:  # the last is without noise
        torch.testing.assert_close(step.images["image"], steps[0].images["image"])


def test_one_pass_has_no_steps():
    adapter = adapter_of(FlowPipeline(Glow(sample_size=8)))
    assert adapter.obstacle(HasSteps) == "is a flow of this kind that makes an image in one pass"
    with pytest.raises(ValueError, match="on_block is given, but a Glow decodes in one pass"):
        adapter.pipe(1, on_block=print)


def test_evenly():
    assert evenly(3, 5) == [0, 1, 2] and evenly(11, 3) == [0, 5, 10] and evenly(1, 2) == evenly(9, 1) == [0]
