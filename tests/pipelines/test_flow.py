"""FlowPipeline: what it makes, what it knows, and what it refuses."""

import math

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from hfgen.models.flow_base import FlowDecoderOutput, FlowEncoderOutput
from hfgen.models.glow import Glow
from hfgen.models.tarflow import TarFlow
from hfgen.pipelines.flow import LEVEL, FlowPipeline
from hfgen.sampling.capabilities import adapter_of

SMALL = {"sample_size": 8, "in_channels": 1}
KINDS = {
    "tarflow": (TarFlow, {"patch_size": 4, "num_blocks": 2, "hidden_size": 16, "attention_head_dim": 8}),
    "glow": (Glow, {"num_steps": 2, "hidden_channels": 8}),
}
every = pytest.mark.parametrize("kind", KINDS)


def make(kind="tarflow", classes=None, **options):
    torch.manual_seed(0)
    network, config = KINDS[kind]
    model = network(**SMALL, **config, num_class_embeds=classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return FlowPipeline(model.eval(), **options)


def seeded(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def pictures(count=2, seed=5):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@every
def test_encoding_and_decoding(kind):
    pipe = make(kind, classes=3)
    latents = pipe.encode(pictures(), [0, 2])
    assert latents.shape == (2, 1, 8, 8) and latents.dtype == torch.float32
    again = pipe.decode(latents, [0, 2], output_type="pt")
    torch.testing.assert_close(again, pictures(), rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe(latents=latents, class_labels=[0, 2], output_type="pt").images, again)
    assert not torch.allclose(pipe.encode(pictures(), [1, 2])[0], latents[0])
    drawn = pipe(2, [0, 2], generator=torch.Generator().manual_seed(3), output_type="latent").images
    images = pipe(2, [0, 2], generator=torch.Generator().manual_seed(3), output_type="pt").images
    torch.testing.assert_close(pipe.decode(drawn, [0, 2], output_type="pt"), images)


@every
def test_the_density_is_that_of_the_change_of_variables(kind):
    pipe = make(kind)
    nats = pipe.log_prob(pictures())
    for image, expected in zip(pictures(), nats, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda pixels: pipe.model.encode(pixels.view(1, 1, 8, 8)).latents.flatten(), (2 * image - 1).flatten()
        )
        latents = pipe.encode(image)
        normal = -0.5 * (latents.square().sum() + 64 * math.log(2 * math.pi))
        torch.testing.assert_close(normal + torch.linalg.slogdet(jacobian).logabsdet, expected, rtol=1e-3, atol=1e-2)


def test_temperature():
    pipe = make()
    seeds = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    one = pipe(2, **seeds).images
    half = pipe(2, temperature=0.5, generator=torch.Generator().manual_seed(0), output_type="latent").images
    torch.testing.assert_close(half, one / 2)
    zero = pipe(2, temperature=0, output_type="pt").images
    torch.testing.assert_close(zero[0], zero[1])


class Noisy(ModelMixin, ConfigMixin):
    """The density of images that are 0, with noise: a normal one."""

    latent_shape = (1, 8, 8)

    @register_to_config
    def __init__(self, std=0.1, sample_size=8, in_channels=1, num_class_embeds=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(std))

    def encode(self, sample, class_labels=None):
        log_det = -64 * self.scale.log().expand(len(sample))
        return FlowEncoderOutput(latents=sample / self.scale, log_det=log_det)

    def decode(self, latents, class_labels=None):
        return FlowDecoderOutput(sample=latents * self.scale)


def test_denoising_takes_off_the_noise_of_training():
    """One step along the gradient of the density is the mean of the image given the noisy one: here 0."""
    std = 10 * LEVEL
    pipe = FlowPipeline(Noisy(std), noise_std=10.0)
    assert pipe.denoises
    noisy = pipe(4, denoise=False, output_type="pt").images
    assert (noisy - 0.5).abs().max() > LEVEL
    clean = pipe(4, output_type="pt").images
    torch.testing.assert_close(clean, torch.full_like(clean, 0.5))
    small = FlowPipeline(Noisy(0.25 * LEVEL), noise_std=0.25)
    assert not small.denoises  # rounding does it
    clean = small(4, denoise=True, output_type="pt").images
    torch.testing.assert_close(clean, torch.full_like(clean, 0.5))
    assert not any(parameter.grad is not None for parameter in small.model.parameters())


def test_guidance_needs_no_class():
    pipe = make(classes=4, id2label={0: "a", 1: "b", 2: "c"})
    assert pipe.null_class == 3 and pipe.class_names == ["a", "b", "c"]
    plain, strong = (
        pipe(2, ["a", "c"], guidance_scale=scale, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for scale in (1, 4)
    )
    assert not torch.allclose(plain, strong, atol=1e-4)
    assert make(classes=3).null_class is None
    for other in (make(classes=3), make(), make("glow", classes=3)):
        with pytest.raises(
            ValueError, match="guidance_scale is 2, but this network was trained without label dropout"
        ):
            other(1, guidance_scale=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(2, 1, 7, 7)}, r"latents has shape \(2, 1, 7, 7\), but must have \(2, 1, 8, 8\)"),
        ({"latents": torch.zeros(2, 64)}, r"latents has shape \(2, 64\)"),
        ({"latents": torch.full((1, 1, 8, 8), float("nan"))}, "latents has NaN"),
        ({"latents": torch.zeros(1, 1, 8, 8), "temperature": 0.5}, "temperature is 0.5, but does not change given"),
        ({"temperature": -1}, "temperature is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"class_labels": 1}, "this model knows no classes"),
        ({"denoise": True}, "denoise is True, but this model was trained with uniform noise"),
        ({"output_type": "x"}, "output_type is 'x'"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_a_flow_of_groups_or_classes_says_how_probable_images_are_without_them():
    for kind in ("groups", "labels"):
        pipe = make(classes=4, id2label={0: "0", 1: "1", 2: "2"}, class_kind=kind)
        adapter, images = adapter_of(pipe), (pictures() * 255).round() / 127.5 - 1
        assert adapter.without_classes
        found, null = (
            adapter.log_prob(images, labels, torch.Generator().manual_seed(0), 2).estimate
            for labels in (None, torch.full((2,), 3))
        )
        assert torch.equal(found, null)
    assert not adapter_of(make(classes=3)).without_classes


def test_what_the_adapter_draws_is_what_samples_are_made_from():
    pipe = make(classes=3, noise_std=6.4)
    adapter = adapter_of(pipe)
    options = adapter.options(temperature=0.7)
    latents, labels = adapter.draw(seeded(3), None, options)
    assert len(labels.unique()) == 1
    made = pipe(class_labels=labels, temperature=0.7, generator=seeded(3), output_type="pt").images
    torch.testing.assert_close(adapter.decode(latents, labels), made)  # denoised, both
    first = pipe(temperature=0.7, generator=seeded(1), output_type="pt").images
    torch.testing.assert_close(made[:1], first)


def test_guidance_of_a_network_that_has_none():
    pipe = make("glow", classes=4, id2label={0: "0", 1: "1", 2: "2"})
    with pytest.raises(ValueError, match="guidance_scale is 2, which Glow does not know"):
        pipe(class_labels=[0], guidance_scale=2)


def test_steps_of_an_image():
    options = adapter_of(make()).options
    assert adapter_of(make()).passes(options()) == 8  # four patches, two blocks
    assert adapter_of(make(classes=2, id2label={0: "0"})).passes(options(guidance_scale=2)) == 16
    assert adapter_of(make("glow")).passes(options()) == 1


def test_latents_as_an_array():
    pipe = make()
    latents = pipe.encode(pictures())
    assert torch.equal(pipe.decode(latents.numpy(), output_type="pt"), pipe.decode(latents, output_type="pt"))


def test_mistakes_of_other_methods():
    pipe = make(classes=3)
    with pytest.raises(ValueError, match=r"latents has shape \(2, 1, 4, 4\), but must have \(2, 1, 8, 8\)"):
        pipe.decode(torch.zeros(2, 1, 4, 4), 0)
    with pytest.raises(ValueError, match="latents is a list"):
        pipe.decode([["x"]], 0)
    for method in (pipe.encode, pipe.log_prob):
        with pytest.raises(ValueError, match=r"image has shape \(2, 1, 4, 4\)"):
            method(torch.zeros(2, 1, 4, 4), 0)
        with pytest.raises(ValueError, match="image goes from"):
            method(pictures() * 255, 0)
        with pytest.raises(ValueError, match="class_labels is missing"):
            method(pictures())
    with pytest.raises(ValueError, match="noise_std is 0"):
        make(noise_std=0)
    with pytest.raises(ValueError, match="id2label has the keys"):
        make(classes=3, id2label={0: "a"})
