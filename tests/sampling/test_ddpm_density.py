"""The likelihood of denoising networks: of a perfect one against the truth, of tiny real ones against itself."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from oracle import Oracle

from hfgen.objectives.elbo import bits_per_dim
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, log_ratios
from hfgen.sampling import ddpm
from hfgen.sampling.capabilities import Generates, HasDensity, adapter_of

DATA = {"normal": [(1.0, 0.1, 0.1)], "two modes": [(0.6, -0.8, 0.05), (0.4, 0.5, 0.1)]}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(*shape):
    return torch.randint(0, 256, shape, generator=seeded()) / 127.5 - 1


def unet(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        **{"in_channels": 1, "out_channels": 1} | options,
    ).eval()  # fmt: skip


def classes(dropout=True):
    network = unet(num_class_embeds=2 + dropout)
    torch.nn.init.normal_(network.class_embedding.weight, std=3)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    return ClassConditionalDDPMPipeline(network, scheduler, {0: "a", 1: "b"})


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    ("schedule", "kind", "zero_snr"),
    [
        ("squaredcos_cap_v2", "v_prediction", False),
        ("squaredcos_cap_v2", "epsilon", False),
        ("squaredcos_cap_v2", "sample", True),
        ("linear", "epsilon", False),
        ("linear", "sample", False),
        ("linear", "v_prediction", True),
    ],
)
def test_a_network_without_errors(schedule, kind, zero_snr, data):
    """The images' true probability is that of independent pixels: integrals over bins. The bound costs 0.04 bits."""
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    network = Oracle(scheduler, DATA[data], sample_size=8)
    pixels = (network.quantiles(64) * 127.5 + 127.5).round() / 127.5 - 1
    normals = torch.distributions.Normal(network.means, network.deviations)
    upper, lower = (normals.cdf(pixels[:, None] + side / 255) for side in (1, -1))
    true = -((upper - lower) @ network.weights).log2().mean().item()
    adapter = ddpm.DDPMAdapter(SimpleNamespace(unet=network, scheduler=scheduler))
    images = pixels.float().view(1, 1, 8, 8).expand(16, -1, -1, -1)
    nats = adapter.log_prob(images, generator=seeded()).estimate
    found = bits_per_dim(-nats, 64)
    assert -0.01 < found.mean() - true < 0.06 and found.std() < 0.1


def test_of_an_image_it_does_not_matter_with_which_others_it_is_computed(monkeypatch):
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler()))
    images = levels(3, 1, 8, 8)
    whole = adapter.log_prob(images, generator=seeded())
    assert torch.equal(whole.lower, whole.estimate) and whole.estimate.isfinite().all()
    assert torch.equal(adapter.log_prob(images, generator=seeded()).estimate, whole.estimate)
    assert not torch.equal(adapter.log_prob(images, generator=seeded(1)).estimate, whole.estimate)
    monkeypatch.setattr(ddpm, "FLOW_VALUES", 2 * 64)
    torch.testing.assert_close(adapter.log_prob(images, generator=seeded()).estimate, whole.estimate)


def test_the_number_of_steps_hardly_matters(monkeypatch):
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")))
    images = levels(8, 1, 8, 8)
    found = []
    for steps in (ddpm.FLOW_STEPS, 2 * ddpm.FLOW_STEPS):
        monkeypatch.setattr(ddpm, "FLOW_STEPS", steps)
        found.append(bits_per_dim(-adapter.log_prob(images, generator=seeded()).estimate, 64).mean().item())
    assert found[0] == pytest.approx(found[1], abs=0.05)


def test_draws_are_averaged_and_not_too_many():
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler()))
    assert [adapter.samples(asked) for asked in (None, 3, 10**6)] == [1, 3, ddpm.MOST_SAMPLES]
    images = levels(1, 1, 8, 8)
    one, two = (adapter.log_prob(images, generator=seeded(), num_samples=count).estimate for count in (1, 2))
    assert not torch.equal(one, two) and torch.isclose(one, two, rtol=0.2)
    details = adapter.details(2)
    assert (details["kind"], details["probes"], details["evaluations"]) == ("estimate", 2, 200)
    assert "deviation 0.01," in details["dequantisation"]  # sqrt(beta_1)


def test_classes():
    """An image has a probability for each class, and one without."""
    adapter, images = adapter_of(classes()), levels(1, 1, 8, 8)
    given = [adapter.log_prob(images, torch.tensor([number]), seeded()).estimate for number in range(3)]
    assert len({nats.item() for nats in given}) == 3
    assert adapter.without_classes and torch.equal(adapter.log_prob(images, None, seeded()).estimate, given[2])
    assert not adapter_of(classes(dropout=False)).without_classes
    assert "guidance" not in adapter.details(1)["bound"]  # which changes samples alone
    adapter.pipe.register_to_config(guidance_scale=1.5)
    assert adapter.details(1)["bound"].endswith("; of the model without guidance")


def test_pipelines_without_a_flow():
    for network, scheduler, message in (
        (
            unet(),
            FlowMatchEulerDiscreteScheduler(),
            "has a FlowMatchEulerDiscreteScheduler with noise levels of its own",
        ),
        (unet(out_channels=2), DDPMScheduler(), "makes 2 channels of 1: more than the noise"),
        (unet(), DDPMScheduler(prediction_type="flow"), "predicts flow, none of epsilon, v_prediction, sample"),
        (unet(), DDPMScheduler(1), "has a single timestep, and no flow"),
        (unet(), DDPMScheduler(3, trained_betas=[0.0, 0.1, 0.2]), "has timesteps without noise"),
        (
            unet(time_embedding_type="learned", num_train_timesteps=1000),
            DDPMScheduler(),
            "knows whole timesteps alone, and nothing between them",
        ),
    ):
        adapter = adapter_of(DDPMPipeline(network, scheduler))
        assert adapter.obstacle(HasDensity) == f"{message}, so that its likelihood is not known"
        assert adapter.obstacle(Generates) is None


def test_images_that_do_not_fit():
    adapter = adapter_of(DDPMPipeline(unet(), DDPMScheduler()))
    with pytest.raises(ValueError, match=r"images has shape \(1, 3, 8, 8\), but must be \(B, 1, 8, 8\)"):
        adapter.log_prob(levels(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"values from -1 to 3, but must be in \[-1, 1\]"):
        adapter.log_prob(torch.tensor([-1.0, 3.0]).repeat(32).view(1, 1, 8, 8))


def test_timesteps_lie_between_trained_ones():
    ratios = log_ratios(DDPMScheduler())
    assert ddpm.timestep_of(ratios, ratios[0].item()) == 0
    assert ddpm.timestep_of(ratios, ratios[999].item()) == 999
    assert ddpm.timestep_of(ratios, ratios[40].item()) == pytest.approx(40)
    assert ddpm.timestep_of(ratios, (0.75 * ratios[7] + 0.25 * ratios[8]).item()) == pytest.approx(7.25)


def test_half_precision():
    adapter, images = adapter_of(DDPMPipeline(unet(), DDPMScheduler())), levels(2, 1, 8, 8)
    exact = adapter.log_prob(images, generator=seeded()).estimate
    adapter.pipe.to(torch.bfloat16)
    found = adapter.log_prob(images, generator=seeded()).estimate
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
