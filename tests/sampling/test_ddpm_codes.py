"""The noise that denoising networks have for images: of a perfect one against the truth, and what follows from it."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from oracle import Oracle
from sampling.test_ddpm_density import DATA, classes, unet

from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.sampling import ddpm, latents
from hfgen.sampling.capabilities import Encodes, HasLatents, adapter_of


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    ("schedule", "kind", "zero_snr"),
    [
        ("squaredcos_cap_v2", "v_prediction", False),
        ("linear", "epsilon", False),
        ("linear", "sample", False),
        ("linear", "v_prediction", True),
    ],
)
def test_a_network_without_errors(schedule, kind, zero_snr, data):
    """Of independent pixels the flow makes normal numbers of the same rank."""
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    network = Oracle(scheduler, DATA[data], sample_size=8)
    adapter = ddpm.DDPMAdapter(SimpleNamespace(unet=network, scheduler=scheduler, device="cpu"))
    images = (network.quantiles(64) / 2 + 0.5).float().view(1, 1, 8, 8)
    codes = adapter.encode(images)
    ranks = (torch.arange(64) + 0.5) / 64
    normal = torch.distributions.Normal(0.0, 1.0).icdf(ranks)
    assert (codes.flatten() - normal).abs().max() < 0.1
    assert (adapter.decode(codes) - images).abs().mean() < 0.005


def test_any_network_comes_back_to_its_images():
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")))
    assert adapter.obstacle(Encodes) is None and adapter.obstacle(HasLatents) is not None
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = adapter.encode(images)
    assert codes.shape == images.shape and codes.dtype == torch.float32
    assert (adapter.decode(codes) - images).abs().max() < 0.02
    torch.testing.assert_close(adapter.encode(images[1:2]), codes[1:2], rtol=0, atol=1e-4)
    frames = latents.walk(adapter, codes[:2], 5)
    assert frames.shape == (5, 1, 8, 8) and (frames[0] - images[0]).abs().max() < 0.02
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    options = adapter.options(num_inference_steps=3)
    drawn, labels = adapter.draw(generators, None, options)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    made = adapter.generate(generators, None, options)
    assert labels is None and (adapter.decode(drawn) - made).abs().max() < 0.05


def test_a_class_is_another_way():
    """An image is carried to noise as one class, and back as another; and without a class, as none."""
    adapter = adapter_of(classes())
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = torch.tensor([0, 0]), torch.tensor([1, 1])
    codes = adapter.encode(images, one)
    assert (adapter.decode(codes, one) - images).abs().max() < 0.03
    assert not torch.allclose(adapter.decode(codes, other), images, atol=0.03)
    assert torch.equal(adapter.encode(images), adapter.encode(images, torch.tensor([2, 2])))


def test_the_class_of_an_image_is_found():
    """Of a network whose classes are images of different lightness."""
    scheduler = DDPMScheduler(prediction_type="sample")

    class Constant(torch.nn.Module):
        dtype, config = torch.float32, SimpleNamespace(in_channels=1, out_channels=1, sample_size=4)

        def forward(self, noisy, timestep, class_labels=None):
            shade = torch.tensor([-0.5, 0.0, 0.8])[class_labels].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=torch.zeros_like(noisy) + shade)

    pipe = ClassConditionalDDPMPipeline(unet(num_class_embeds=3), scheduler, {0: "dark", 1: "gray", 2: "light"})
    pipe.__dict__["unet"] = Constant()
    adapter = adapter_of(pipe)
    shades = torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1, 1).expand(-1, 1, 4, 4)
    assert adapter.classes_of(shades).tolist() == [2, 1, 0]
    assert adapter_of(DDPMPipeline(unet(), DDPMScheduler())).classes_of(shades) is None


def test_without_a_flow():
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler(1)))
    assert adapter.obstacle(Encodes) == "has a single timestep, and no flow, so that no noise belongs to an image"
