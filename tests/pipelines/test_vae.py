"""VAEPipeline: with a small VAE that was trained, one whose posterior is known exactly, and tiny ones of each kind."""

import json
import math
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from PIL import Image

from hfgen.families.vae.prior import fit_mixture
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.residual_vae import ResidualVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines import load_pipeline
from hfgen.pipelines.base import slerp
from hfgen.pipelines.restoration import enlarge, shrink
from hfgen.pipelines.vae import VAEPipeline
from hfgen.sampling.sampler import image_generators

SMALL = {"sample_size": 8, "in_channels": 1}
KINDS = {
    "conv": (ConvVAE, {"latent_channels": 5, "block_out_channels": (8, 16)}),
    "residual": (ResidualVAE, {"latent_channels": 5, "block_out_channels": (8, 16), "norm_num_groups": 4}),
    "spatial": (ResidualVAE, {"latent_channels": 2, "block_out_channels": (8,), "spatial": True}),
    "hierarchical": (HierarchicalVAE, {"latent_channels": 2, "block_out_channels": (8,), "layers_per_block": (1,)}),
    "vq": (VQVAE, {"latent_channels": 4, "num_vq_embeddings": 16, "block_out_channels": (8, 8), "norm_num_groups": 4}),
}
NAMES = {0: "cat", 1: "dog", 2: "eel"}
flat = pytest.mark.parametrize("kind", ["conv", "residual", "spatial", "hierarchical"])
every = pytest.mark.parametrize("kind", list(KINDS))
any_classes = pytest.mark.parametrize("classes", [None, 3])
PT = {"output_type": "pt"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pipeline(model, *arguments, **options):
    pipe = VAEPipeline(model.eval(), *arguments, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(kind="conv", classes=None, prior=False, task=None, level=None, **config):
    """A pipeline with a network that was not trained, but is no longer as even as it starts."""
    torch.manual_seed(0)
    network, options = KINDS[kind]
    model = network(**SMALL | options | config, num_class_embeds=classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.variance.fill_(0.04)
    mixture = None
    if prior:
        latents = torch.randn(60, *model.latent_shape, generator=seeded(1))
        labels = None if classes is None else torch.arange(60) % classes
        mixture = fit_mixture(latents, labels, 3, classes)
    return pipeline(model, mixture, NAMES if classes == 3 else None, task=task, task_level=level)


def pictures(count=2, channels=1, size=8, seed=5):
    """Random images."""
    return torch.rand(count, channels, size, size, generator=seeded(seed))


def squares(count, seed):
    """Bright squares of 3x3 pixels on a dark ground, which is less dark in the even ones."""
    generator = seeded(seed)
    images = torch.full((count, 1, 8, 8), 0.1)
    images[::2] = 0.4
    for number in range(count):
        top, left = torch.randint(6, (2,), generator=generator).tolist()
        images[number, :, top : top + 3, left : left + 3] = 0.9
    return images


@pytest.fixture(scope="module")
def trained():
    """A VAE of bright squares, and a mixture fitted to its latents."""
    torch.manual_seed(0)
    model, images = ConvVAE(**SMALL, latent_channels=6, block_out_channels=(16, 32)), 2 * squares(2000, 0) - 1
    adam, steps = torch.optim.Adam(model.parameters()), 500
    for step in range(steps):
        adam.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        batch = images[torch.randint(2000, (64,))]
        posterior = model.encode(batch).latent_dist
        error = (batch - model.decode(posterior.sample()).sample).square().mean()
        loss = 32 * error.log() + posterior.kl().mean()  # the Gaussian's variance at its best
        adam.zero_grad()
        loss.backward()
        adam.step()
        model.variance.lerp_(error.detach(), 0.05)
    latents = pipeline(model).encode(squares(1000, 0), sample=True, generator=seeded())
    return pipeline(model, fit_mixture(latents, num_components=20))


@dataclass
class Encoded(BaseOutput):
    latent_dist: DiagonalGaussianDistribution


@dataclass
class Decoded(BaseOutput):
    sample: torch.Tensor


class LinearVAE(ModelMixin, ConfigMixin):
    """Pixels are a linear function of the latent, so that the posterior is normal, and known."""

    @register_to_config
    def __init__(self, latent_channels=3, sample_size=8, in_channels=1, num_class_embeds=None):
        super().__init__()
        self.shape, self.latent_shape = (in_channels, sample_size, sample_size), (latent_channels, 1, 1)
        self.linear = torch.nn.Linear(latent_channels, math.prod(self.shape))
        torch.nn.init.normal_(self.linear.weight, std=0.05)  # pixels stay in [-1, 1]
        torch.nn.init.normal_(self.linear.bias, std=0.05)
        self.register_buffer("variance", torch.tensor(0.04))
        self.dropout = torch.nn.Dropout(0.5)  # to see that the pipeline turns it off

    def encode(self, sample, class_labels=None):
        moments = torch.zeros(len(sample), 2 * self.latent_shape[0], 1, 1)
        return Encoded(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents, class_labels=None):
        return Decoded(sample=self.dropout(self.linear(latents.flatten(1))).unflatten(1, self.shape))

    def posterior(self, damage, target, noise=0.0):
        """Mean and covariance of z given `target = damage @ pixels + noise`, all in [0, 1]."""
        weight, bias = damage @ self.linear.weight / 2, damage @ (self.linear.bias / 2 + 0.5)
        spread = self.variance / 4 * damage @ damage.T + noise**2 * torch.eye(len(damage))
        precision = torch.eye(weight.shape[1]) + weight.T @ spread.inverse() @ weight
        return precision.inverse() @ weight.T @ spread.inverse() @ (target - bias), precision.inverse()

    def restored(self, latent, damage, target, noise=0.0):
        """Mean of x given z and `target`."""
        image = self.linear(latent) / 2 + 0.5
        spread = self.variance / 4 * damage @ damage.T + noise**2 * torch.eye(len(damage))
        return image + self.variance / 4 * damage.T @ spread.inverse() @ (target - damage @ image)


@pytest.fixture
def linear():
    torch.manual_seed(1)
    return pipeline(LinearVAE())


MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[:, 4:] = True  # the right half
DAMAGES = {  # of flattened images; the argument that the method takes
    "inpaint": torch.eye(64)[~MASK.flatten()],
    "denoise": torch.eye(64),
    "super_resolve": torch.stack([shrink(one.view(8, 8), 2).flatten() for one in torch.eye(64)], dim=1),
}


def damaged(task, images, noise=0.0):
    """The arguments of the method, and what is known, `(B, M)`."""
    if task == "inpaint":
        return {"image": images, "mask": MASK}, images.flatten(1) @ DAMAGES[task].T
    if task == "denoise":
        noisy = images + noise * torch.randn(images.shape, generator=seeded(9))
        return {"image": noisy, "noise_level": noise}, noisy.flatten(1)
    return {"image": shrink(images, 2)}, shrink(images, 2).flatten(1)


def model_images(pipe, count):
    """Images as the model would have them, noise of the decoder and all."""
    images = pipe(count, generator=seeded(2), **PT).images
    return (images + 0.1 * torch.randn(images.shape, generator=seeded(3))).clamp(0, 1)


# Sampling


@every
@any_classes
def test_output_types(kind, classes):
    pipe = make(kind, classes, prior=True)
    tensors = pipe(2, generator=seeded(), output_type="pt").images
    arrays = pipe(2, generator=seeded(), output_type="np").images
    images = pipe(2, generator=seeded()).images
    assert tensors.shape == (2, 1, 8, 8) and tensors.dtype == torch.float32 and not tensors.requires_grad
    assert tensors.min() >= 0 and tensors.max() <= 1 and tensors.std() > 0.01
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert [(image.mode, image.size) for image in images] == [("L", (8, 8))] * 2
    assert np.abs(np.asarray(images[1])[:, :, None] / 255 - arrays[1]).max() < 0.003
    (as_tuple,) = pipe(2, generator=seeded(), output_type="np", return_dict=False)
    assert np.array_equal(as_tuple, arrays)


@every
@any_classes
@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_an_image_depends_on_its_own_seed_alone(kind, classes, prior):
    if kind == "vq" and prior == "normal":
        return  # see test_quantised_latents
    pipe = make(kind, classes, prior=True)

    def sample(indices):
        return pipe(len(indices), generator=tuple(image_generators(7, indices)), prior=prior, **PT).images

    together = sample([0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([sample([3]), sample([1, 2])]), together[[3, 1, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        pipe(generator=image_generators(7, [0]), prior=prior, **PT).images, together[:1], rtol=0, atol=1e-5
    )


def test_noise_is_drawn_first_then_classes():
    pipe, generator = make(classes=3), seeded(3)
    latents = torch.randn(4, *pipe.latent_shape, generator=generator)
    labels = pipe.class_numbers(None, 4, generator)
    expected = pipe(class_labels=labels, latents=latents, **PT).images
    assert torch.equal(pipe(4, generator=seeded(3), **PT).images, expected)
    decoded = pipe.model.decode(latents, labels).sample / 2 + 0.5
    torch.testing.assert_close(expected, decoded.clamp(0, 1))
    assert not torch.equal(expected, pipe(class_labels=(labels + 1) % 3, latents=latents, **PT).images)
    pipe = make(classes=3, prior=True)
    generator = seeded(3)
    noise = torch.randn(4, 1 + 5, generator=generator)
    labels = pipe.class_numbers(None, 4, generator)
    expected = pipe(latents=pipe.prior(noise, labels).sample, class_labels=labels, **PT).images
    torch.testing.assert_close(pipe(4, generator=seeded(3), **PT).images, expected)


def test_temperature_and_prior():
    pipe = make(prior=True)
    drawn = torch.randn(3, 5, 1, 1, generator=seeded())
    expected = pipe(latents=0.5 * drawn, **PT).images
    torch.testing.assert_close(pipe(3, temperature=0.5, generator=seeded(), prior="normal", **PT).images, expected)
    cold = pipe(3, temperature=0.0, generator=seeded(), prior="normal", **PT).images
    torch.testing.assert_close(cold, pipe(latents=torch.zeros(3, 5, 1, 1), **PT).images)
    mixture = pipe(3, generator=seeded(), prior="mixture", **PT).images
    assert torch.equal(mixture, pipe(3, generator=seeded(), **PT).images)  # the default
    assert not torch.equal(mixture, pipe(3, generator=seeded(), prior="normal", **PT).images)
    assert torch.equal(
        make()(3, generator=seeded(), **PT).images, pipe(3, generator=seeded(), prior="normal", **PT).images
    )
    latents = pipe.prior.sample(3, generator=seeded(), temperature=0.3)
    expected = pipe(latents=latents, **PT).images
    torch.testing.assert_close(pipe(3, temperature=0.3, generator=seeded(), **PT).images, expected)


def test_the_fitted_prior_makes_better_images(trained):
    possible = squares(2000, 8).unique(dim=0).flatten(1)
    errors = {}
    for prior in ("normal", "mixture"):
        images = trained(400, generator=seeded(), prior=prior, **PT).images.flatten(1)
        errors[prior] = torch.cdist(images, possible).min(1).values.square().mean().item() / 64
    assert errors["mixture"] < 0.5 * errors["normal"]


def test_quantised_latents():
    pipe = make("vq")
    with pytest.raises(ValueError, match="latents is missing: this model quantises latents and was trained without"):
        pipe(2)
    with pytest.raises(ValueError, match="prior is 'normal', but quantised latents are not normal: use 'mixture'"):
        make("vq", prior=True)(2, prior="normal")
    with pytest.raises(ValueError, match="sample is True, but this model's encoder gives one latent per image"):
        pipe.encode(pictures(), sample=True)
    with pytest.raises(ValueError, match="method is 'langevin', but this model has no prior to sample from"):
        pipe.inpaint(pictures(), MASK, method="langevin")
    latents = pipe.encode(pictures())
    quantised = pipe.model.quantize(latents).latents
    torch.testing.assert_close(pipe(latents=latents, **PT).images, pipe(latents=quantised, **PT).images)
    torch.testing.assert_close(pipe.reconstruct(pictures(), **PT), pipe(latents=latents, **PT).images)
    ends = pipe.interpolate(latents[0], latents[1], frames=3, **PT)
    middle = pipe(latents=latents.mean(0, keepdim=True), **PT).images
    torch.testing.assert_close(ends[1:2], middle)


# Encoding


@every
@any_classes
def test_encode_and_reconstruct(kind, classes):
    pipe, images = make(kind, classes), pictures(3)
    labels = None if classes is None else ["eel", "cat", "dog"]
    numbers = None if classes is None else torch.tensor([2, 0, 1])
    latents = pipe.encode(images, labels)
    assert latents.shape == (3, *pipe.latent_shape) and latents.dtype == torch.float32 and not latents.requires_grad
    output = pipe.model.encode(2 * images - 1, numbers)
    expected = output.latents if kind == "vq" else output.latent_dist.mode()
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(pipe.encode(images[1], labels and labels[1]), latents[1:2], rtol=0, atol=1e-5)
    decoded = (pipe.model.decode(expected, numbers).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe.reconstruct(images, labels, **PT), decoded)
    if kind == "vq":
        return
    drawn = pipe.encode(images, labels, sample=True, generator=image_generators(0, range(3)))
    alone = pipe.encode(images[2], labels and labels[2], sample=True, generator=image_generators(0, [2]))
    torch.testing.assert_close(alone, drawn[2:], rtol=0, atol=1e-5)
    assert not torch.allclose(drawn, latents, atol=0.01)
    noise = torch.cat([torch.randn(1, *pipe.latent_shape, generator=one) for one in image_generators(0, range(3))])
    posterior = pipe.model.encode(2 * images - 1, numbers).latent_dist
    by_hand = posterior.sample(noise=noise) if kind == "hierarchical" else posterior.mean + posterior.std * noise
    torch.testing.assert_close(drawn, by_hand)
    shown = pipe.reconstruct(images, labels, sample=True, generator=image_generators(0, range(3)), **PT)
    torch.testing.assert_close(shown, (pipe.model.decode(drawn, numbers).sample / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_kind(channels):
    pipe, tensors = make(in_channels=channels), pictures(channels=channels)
    arrays = tensors.permute(0, 2, 3, 1).numpy()
    expected = pipe.reconstruct(tensors, **PT)
    np.testing.assert_allclose(pipe.reconstruct(arrays, output_type="np"), expected.permute(0, 2, 3, 1), atol=1e-6)
    torch.testing.assert_close(pipe.reconstruct(arrays[1], **PT), expected[1:])
    images = pipe.numpy_to_pil(arrays)
    shown = pipe.reconstruct(images)
    assert [(one.mode, one.size) for one in shown] == [({1: "L", 3: "RGB"}[channels], (8, 8))] * 2
    read = np.stack([np.asarray(one).reshape(8, 8, channels) for one in images]) / 255
    exact = pipe.numpy_to_pil(pipe.reconstruct(read, output_type="np"))
    assert all(np.array_equal(*pair) for pair in zip(shown, exact, strict=True))
    assert np.array_equal(pipe.reconstruct(images[1])[0], shown[1])
    assert pipe.inpaint(images, MASK, steps=1)[0].mode == shown[0].mode
    assert np.array_equal(pipe.denoise(arrays, 0.1, steps=1, restarts=1, output_type="np").shape, arrays.shape)
    small = [one.resize((4, 4)) for one in images]
    assert [one.size for one in pipe.super_resolve(small, steps=1)] == [(8, 8)] * 2
    assert pipe.super_resolve(np.asarray(small[0]).reshape(4, 4, channels) / 255, steps=1)[0].size == (8, 8)


def test_many_images_are_made_in_parts():
    pipe, images = make(), pictures(70)
    torch.testing.assert_close(pipe.reconstruct(images, **PT)[66:], pipe.reconstruct(images[66:], **PT))
    assert len(pipe.interpolate(*images[:2], frames=70)) == 70


def test_other_numbers_of_channels():
    pipe = make(in_channels=2)
    assert pipe.reconstruct(pictures(channels=2), **PT).shape == (2, 2, 8, 8)
    with pytest.raises(ValueError, match="output_type is 'pil', which has no 2 channels: use 'np' or 'pt'"):
        pipe.reconstruct(pictures(channels=2))
    with pytest.raises(ValueError, match="image is 8x8 in mode L, but the model makes 8x8 in mode with 2 channels"):
        pipe.encode(Image.new("L", (8, 8)))


# Latent space


@every
def test_walks_meet_their_ends(kind):
    pipe, images = make(kind), pictures()
    frames = pipe.interpolate(images[0], images[1], frames=5, **PT)
    assert frames.shape == (5, 1, 8, 8)
    torch.testing.assert_close(frames[[0, 4]], pipe.reconstruct(images, **PT), rtol=0, atol=1e-4)
    latents = pipe.encode(images)
    torch.testing.assert_close(pipe.interpolate(latents[0], latents[1:], 5, **PT), frames)
    if kind != "vq":
        turned = slerp(*latents.flatten(1)[:, None], torch.tensor([0.25])).view(1, *pipe.latent_shape)
        torch.testing.assert_close(frames[1:2], pipe(latents=turned, **PT).images, rtol=0, atol=1e-5)
    assert isinstance(pipe.interpolate(images[0], latents[1], 2)[0], Image.Image)


def test_walks_take_the_class_of_the_nearer_end():
    pipe, latents = make(classes=3), torch.randn(2, 5, 1, 1, generator=seeded())
    frames = pipe.interpolate(latents[0], latents[1], 4, class_labels=["cat", "eel"], **PT)
    for labels, chosen in (("cat", [0, 1]), ("eel", [2, 3])):
        torch.testing.assert_close(pipe.interpolate(*latents, 4, class_labels=labels, **PT)[chosen], frames[chosen])


@every
@any_classes
def test_traverse(kind, classes):
    pipe, labels = make(kind, classes), None if classes is None else "dog"
    rows = pipe.traverse(1, [-2.0, 0, 2], class_labels=labels, **PT)
    latents = torch.zeros(3, *pipe.latent_shape)
    latents.flatten(1)[:, 1] = torch.tensor([-2.0, 0, 2])
    torch.testing.assert_close(rows[0], pipe(class_labels=classes and [1] * 3, latents=latents, **PT).images)
    images = pictures()
    rows = pipe.traverse(0, np.array([-1.0, 1.0]), images, classes and [0, 2], output_type="np")
    assert rows.shape == (2, 2, 8, 8, 1)
    latents = pipe.encode(images, classes and [0, 2])
    same = pipe.traverse(0, [-1, 1], latents, classes and [0, 2])
    assert [len(row) for row in same] == [2, 2]
    latents[1].flatten()[0] = 1
    expected = pipe(class_labels=classes and [2], latents=latents[1:], output_type="np").images
    np.testing.assert_allclose(rows[1, 1], expected[0], atol=1e-5)


def test_attribute_arithmetic(trained):
    images = squares(200, 3)
    direction = trained.attribute_direction(images[::2], images[1::2])
    assert direction.shape == (6, 1, 1)
    expected = trained.encode(images[::2]).mean(0) - trained.encode(images[1::2]).mean(0)
    torch.testing.assert_close(direction, expected)
    rows = trained.edit(images[1::2], direction, [0.0, 1.0], **PT)
    torch.testing.assert_close(rows[:, 0], trained.reconstruct(images[1::2], **PT))
    dark, light = rows.flatten(2).median(dim=2).values.mean(0).tolist()
    assert dark == pytest.approx(0.1, abs=0.05) and light > 0.25
    moved = (rows[:, 1] > 0.65) != (images[1::2] > 0.65)
    assert moved.float().mean() < 0.05  # the square stays where it is


def test_attributes_of_a_conditional_model():
    pipe, images = make(classes=3), pictures(4)
    direction = pipe.attribute_direction(images[:3], images[3:], [["cat", "dog", "dog"], 2])
    means = pipe.encode(images[:3], [0, 1, 1]).mean(0), pipe.encode(images[3:], 2).mean(0)
    torch.testing.assert_close(direction, means[0] - means[1])
    directions = [pipe.attribute_direction(images[:3], images[3:], labels) for labels in ("eel", [2, 2])]
    torch.testing.assert_close(*directions)
    rows = pipe.edit(images, direction, [1.0], class_labels=[0, 1, 2, 0])
    assert [len(row) for row in rows] == [1] * 4


# Restoring images


@pytest.mark.parametrize("task", list(DAMAGES))
def test_the_most_likely_latents_are_found(linear, task):
    noise = 0.2 if task == "denoise" else 0.0
    images = model_images(linear, 3)
    arguments, target = damaged(task, images, noise)
    found = getattr(linear, task)(**arguments, steps=300, learning_rate=0.3, generator=seeded(), **PT)
    for image, known in zip(found, target, strict=True):
        latent, _ = linear.model.posterior(DAMAGES[task], known, noise)
        expected = linear.model.restored(latent, DAMAGES[task], known, noise)
        torch.testing.assert_close(image.flatten(), expected.clamp(0, 1), rtol=0, atol=2e-3)


def test_a_mixture_as_prior_of_inference(linear):
    """One Gaussian that is not the standard one: the posterior is known again."""
    prior = GaussianMixturePrior(latent_shape=(3, 1, 1), num_components=1)
    prior.means.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    prior.factors.copy_(torch.diag(torch.tensor([0.2, 0.3, 0.1])))
    pipe, image = pipeline(linear.model, prior), model_images(linear, 1)
    weight, variance = linear.model.linear.weight[~MASK.flatten()], linear.model.variance
    bias = linear.model.linear.bias[~MASK.flatten()]
    precision = torch.diag(torch.tensor([0.2, 0.3, 0.1]) ** -2)
    known = (2 * image - 1).flatten()[~MASK.flatten()]
    right = precision @ prior.means[0] + weight.T @ (known - bias) / variance
    latent = torch.linalg.solve(precision + weight.T @ weight / variance, right)
    expected = torch.where(MASK, pipe(latents=latent.view(1, 3, 1, 1), **PT).images, image)
    found = pipe.inpaint(image, MASK, steps=300, learning_rate=0.3, generator=seeded(), **PT)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert not torch.allclose(pipe.inpaint(image, MASK, prior="normal", generator=seeded(), **PT), expected, atol=0.01)


def test_langevin_samples_the_posterior(linear):
    """2000 chains for one image: their mean and variance are those of the closed form."""
    image = model_images(linear, 1).repeat(2000, 1, 1, 1)
    found = linear.inpaint(image, MASK, method="langevin", steps=60, restarts=1, generator=seeded(), **PT)
    unknown = MASK.flatten()
    mean, covariance = linear.model.posterior(DAMAGES["inpaint"], image[0].flatten()[~unknown])
    weight = linear.model.linear.weight[unknown] / 2
    expected = weight @ mean + linear.model.linear.bias[unknown] / 2 + 0.5
    variance = (weight @ covariance @ weight.T).diagonal()
    pixels = found.flatten(1)[:, unknown]
    torch.testing.assert_close(pixels.mean(0), expected, rtol=0, atol=0.003)
    torch.testing.assert_close(pixels.var(0).sqrt(), variance.sqrt(), rtol=0.12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient", "langevin"])
def test_inpainting_a_trained_model(trained, method):
    """The right half of squares that are cut by the middle: what is seen tells what is missing."""
    images = squares(80, 5)
    cut = (images[..., 3] > 0.5).any(-1) & (images[..., 4] > 0.5).any(-1)
    images = images[cut[:, 0]]
    found = trained.inpaint(images, MASK, method=method, generator=seeded(), **PT)
    assert torch.equal(found[..., :4], images[..., :4])  # exactly
    mean = squares(500, 0).mean(0)
    assert (found - images)[..., 4:].square().mean() < 0.3 * (mean - images)[..., 4:].square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient", "langevin"])
def test_denoising_with_a_trained_model(trained, method):
    images = squares(40, 6)
    noisy = images + 0.3 * torch.randn(images.shape, generator=seeded())
    found = trained.denoise(noisy, 0.3, method=method, restarts=16, generator=seeded(), **PT)  # few get stuck
    assert (found - images).square().mean() < 0.25 * (noisy - images).square().mean()


@pytest.mark.slow
def test_super_resolution_with_a_trained_model(trained):
    images = squares(40, 7)
    small = shrink(images, 2)
    found = trained.super_resolve(small, generator=seeded(), **PT)
    assert (found - images).square().mean() < 0.4 * (enlarge(small, 2) - images).square().mean()
    assert (shrink(found, 2) - small).abs().mean() < 0.01  # what was given is met


def test_shrink_and_enlarge():
    images = pictures(3, 2, 8)
    torch.testing.assert_close(shrink(images, 4), torch.nn.functional.avg_pool2d(images, 4))
    assert torch.equal(enlarge(images, 3), torch.nn.functional.interpolate(images, scale_factor=3))
    torch.testing.assert_close(shrink(enlarge(images, 3), 3), images)


@every
@any_classes
@pytest.mark.parametrize("method", ["gradient", "langevin"])
def test_every_model_restores_and_repeats(kind, classes, method):
    pipe, images, labels = make(kind, classes, prior=True), pictures(3), classes and [0, 1, 2]
    options = {"class_labels": labels, "method": method, "steps": 3, **PT}
    for task in DAMAGES:
        arguments, _ = damaged(task, images, 0.1)
        restore = getattr(pipe, task)
        together = restore(**arguments, **options, generator=image_generators(0, range(3)))
        assert together.shape == images.shape and together.min() >= 0 and together.max() <= 1
        assert not together.requires_grad
        again = restore(**arguments, **options, generator=image_generators(0, range(3)))
        assert torch.equal(together, again)
        alone = dict(arguments, image=arguments["image"][2])
        found = restore(
            **alone, **options | {"class_labels": labels and labels[2]}, generator=image_generators(0, [2])
        )
        torch.testing.assert_close(found, together[2:], rtol=0, atol=1e-3)
    assert all(parameter.grad is None for parameter in pipe.model.parameters())


def test_quantised_latents_are_searched_without_a_prior():
    pipe = make("vq")
    images = pipe(latents=torch.randn(2, *pipe.latent_shape, generator=seeded()), **PT).images
    noisy = images + 0.1 * torch.randn(images.shape, generator=seeded())
    found = pipe.denoise(noisy, 0.1, steps=50, **PT)
    assert (found - images).square().mean() < (noisy - images).square().mean()


def test_restarts_count_the_best(linear):
    """With steps that lead nowhere, the most likely of the starts remains: here, that of the encoder, 0."""
    image = linear(latents=torch.zeros(1, 3, 1, 1), **PT).images
    found = linear.inpaint(image, MASK, steps=1, learning_rate=1e-9, restarts=5, **PT)
    torch.testing.assert_close(found, image)


def masks(one):
    """The same mask in all the ways that there are to give it, for two images."""
    array = one.numpy()
    picture = Image.fromarray(255 * array.astype(np.uint8))
    yield from (one, one[None], one[None, None], one.float(), one.repeat(2, 1, 1), one.repeat(2, 1, 1, 1))
    yield from (array, array[:, :, None], array[None], 0.5 * array, np.stack([array, array]))
    yield from (picture, picture.convert("1"), picture.convert("RGB"), [picture, picture])


def test_masks_of_every_kind(linear):
    images = model_images(linear, 2)
    options = {"steps": 2, "generator": None, "restarts": 1, **PT}
    expected = linear.inpaint(images, MASK, **options)
    assert torch.equal(expected[..., :4], images[..., :4]) and not torch.equal(expected, images)
    for mask in masks(MASK):
        assert torch.equal(linear.inpaint(images, mask, **options), expected)
    each = torch.stack([MASK, ~MASK])
    found = linear.inpaint(images, each, **options)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1, ..., 4:], images[1, ..., 4:])
    assert torch.equal(linear.inpaint(images, MASK & False, **options), images)


def test_known_pixels_of_pil_images_are_kept(linear):
    image = linear.numpy_to_pil(model_images(linear, 1).permute(0, 2, 3, 1).numpy())[0]
    found = linear.inpaint(image, MASK, steps=2)[0]
    assert np.array_equal(np.asarray(found)[:, :4], np.asarray(image)[:, :4])


# Models trained for a task


@any_classes
def test_amortised_inference_is_one_pass(classes):
    labels = classes and [0, 1]
    pipe, noisy = make(classes=classes, task="denoise", level=0.2), 1.4 * pictures() - 0.2
    expected = pipe.reconstruct(noisy.clamp(0, 1), labels, **PT)
    assert torch.equal(pipe.denoise(noisy, class_labels=labels, **PT), expected)
    assert torch.equal(pipe.denoise(noisy, 0.2, labels, method="amortised", **PT), expected)
    searched = pipe.denoise(noisy, 0.1, labels, method="gradient", steps=2, generator=seeded(), **PT)
    assert not torch.equal(searched, expected)
    pipe, small = make(classes=classes, task="super_resolve", level=2), pictures(size=4)
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    assert torch.equal(pipe.super_resolve(small, labels, **PT), pipe.reconstruct(large, labels, **PT))


def test_models_are_trained_on_what_the_pipeline_gives_them():
    from hfgen.families.vae.recipe import degrade
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch

    batch = Batch({"image": 2 * pictures(3) - 1}, StepRandom(0, 0, 3))
    for task, level in (("denoise", 0.3), ("super_resolve", 2.0)):
        pipe = make(task=task, level=level)
        with patch.object(pipe.model, "encode", wraps=pipe.model.encode) as encode:
            if task == "denoise":
                noise = StepRandom(0, 0, 3).normal(1, 8, 8)
                pipe.denoise(batch["image"] / 2 + 0.5 + level * noise, **PT)
            else:
                pipe.super_resolve(shrink(batch["image"] / 2 + 0.5, 2), **PT)
        torch.testing.assert_close(encode.call_args.args[0], degrade(batch, task, level))


# Saving, devices, precision


@every
@any_classes
@pytest.mark.parametrize("prior", [False, True])
def test_save_and_load(kind, classes, prior, tmp_path):
    pipe = make(kind, classes, prior, task="denoise", level=0.2)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if not key.startswith("_diff")} == {
        "_class_name": ["pipeline_hfgen_vae", "VAEPipeline"],
        "auto_map": {"AutoModel": "modeling_hfgen_auto.Model"},
        "class_kind": None,
        "class_shares": None,
        "id2label": {"0": "cat", "1": "dog", "2": "eel"} if classes else None,
        "model": [type(pipe.model).__module__.replace("hfgen.models.", "modeling_hfgen_"), type(pipe.model).__name__],
        "prior": ["modeling_hfgen_gaussian_mixture", "GaussianMixturePrior"] if prior else [None, None],
        "task": "denoise",
        "task_level": 0.2,
    }
    for loaded in (VAEPipeline.from_pretrained(tmp_path), load_pipeline(str(tmp_path))):
        assert (loaded.prior is None) != prior and loaded.class_names == pipe.class_names
        assert loaded.config.task == "denoise" and loaded.config.task_level == 0.2
        labels = classes and [0, 1]
        expected = pipe.denoise(pictures(), class_labels=labels, **PT)
        torch.testing.assert_close(loaded.denoise(pictures(), class_labels=labels, **PT), expected)
        if prior:
            sampled = loaded(2, generator=seeded(), **PT).images
            torch.testing.assert_close(sampled, pipe(2, generator=seeded(), **PT).images)


@every
def test_half_precision(kind):
    pipe = make(kind, 3, prior=True)
    full = pipe.reconstruct(pictures(), "cat", **PT)
    pipe.to(torch.bfloat16)
    half = pipe.reconstruct(pictures(), "cat", **PT)
    assert half.dtype == torch.float32
    assert kind == "vq" or (half - full).abs().max() < 0.1  # another code may be the nearest
    assert pipe(2, generator=seeded(), output_type="np").images.dtype == np.float32
    assert pipe.inpaint(pictures(), MASK, "cat", steps=2, method="langevin", **PT).isfinite().all()


def test_training_mode_is_left_and_restored(linear):
    images = pictures()
    expected = linear.inpaint(images, MASK, steps=2, generator=seeded(), **PT)
    linear.model.train()
    assert torch.equal(linear.inpaint(images, MASK, steps=2, generator=seeded(), **PT), expected)
    assert linear.model.training and linear.model.dropout.training
    with pytest.raises(ValueError, match="generator has 1 entries"):
        linear.inpaint(images, MASK, steps=2, generator=[seeded()])
    assert linear.model.dropout.training


def test_groups_are_drawn_as_often_as_they_are_in_the_data():
    pipe = VAEPipeline(make(classes=3).model, class_shares=[0.0, 0.25, 0.75])
    assert pipe.class_numbers(None, 4000, seeded()).bincount(minlength=3)[0] == 0
    assert pipe.config.class_shares == {"0": 0.0, "1": 0.25, "2": 0.75}


# Mistakes

WHITE = torch.ones(1, 1, 8, 8)
ZERO = torch.zeros(1, 5, 1, 1)
CLASSES = {"classes": 3}
# what the pipeline is made with, the method, its arguments, the beginning of the message
MISTAKES = [
    ({}, "__call__", {"output_type": "jpg"}, "output_type is 'jpg', but must be one of pil, np, pt, latent."),
    ({}, "__call__", {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    ({}, "__call__", {"temperature": -1}, "temperature is -1, but must be at least 0"),
    ({}, "__call__", {"temperature": 0.5, "latents": ZERO}, "temperature is 0.5, but does not change given latents"),
    ({}, "__call__", {"prior": "flow"}, "prior is 'flow', but must be one of normal, mixture."),
    ({}, "__call__", {"prior": "mixture"}, "prior is 'mixture', but this pipeline has none: fit one with hfgen"),
    ({}, "__call__", {"class_labels": 3}, "class_labels is 3, but this model knows no classes: leave it out"),
    (CLASSES, "__call__", {"class_labels": ["cow"]}, "class_labels has 'cow'"),
    ({}, "__call__", {"generator": image_generators(0, range(2))}, "generator has 2 entries for batch_size 1"),
    (
        {},
        "__call__",
        {"latents": torch.zeros(2, 4, 1, 1)},
        "latents has shape (2, 4, 1, 1), but must have (2, 5, 1, 1): one per image.",
    ),
    ({}, "__call__", {"latents": ZERO, "batch_size": 2}, "latents has shape (1, 5, 1, 1), but must have (2, 5, 1, 1)"),
    ({}, "__call__", {"latents": ZERO[0]}, "latents has shape (5, 1, 1), but must have (5, 5, 1, 1)"),
    ({}, "encode", {"image": Image.new("L", (7, 8))}, "image is 7x8 in mode L, but the model makes 8x8 in mode L"),
    ({}, "encode", {"image": Image.new("RGB", (8, 8))}, "image is 8x8 in mode RGB, but the model makes 8x8 in mode L"),
    ({}, "encode", {"image": WHITE[..., :7]}, "image has shape (1, 1, 8, 7), but the model makes (1, 8, 8)"),
    ({}, "encode", {"image": WHITE.repeat(1, 3, 1, 1)}, "image has shape (1, 3, 8, 8), but the model makes (1, 8, 8)"),
    ({}, "encode", {"image": 255 * WHITE}, "image goes from 255 to 255, but must be in [0, 1]: scale it."),
    ({}, "encode", {"image": "cat.png"}, "image is a str: give PIL images, an array or a tensor."),
    (CLASSES, "encode", {"image": WHITE}, "class_labels is missing: give the class of each image, of ['cat', 'dog', "),
    (CLASSES, "reconstruct", {"image": WHITE}, "class_labels is missing"),
    ({}, "reconstruct", {"image": WHITE, "output_type": "x"}, "output_type is 'x'"),
    ({}, "interpolate", {"start": WHITE, "end": WHITE, "frames": 1}, "frames is 1, but must be at least 2"),
    ({}, "interpolate", {"start": WHITE, "end": pictures()}, "end has 2 images: give one."),
    (
        {},
        "interpolate",
        {"start": WHITE[..., :7], "end": WHITE},
        "start has shape (1, 1, 8, 7), but must be images (1, 8, 8) or latents (5, 1, 1), or a batch of them.",
    ),
    ({}, "interpolate", {"start": WHITE, "end": ZERO[:0]}, "end has shape (0, 5, 1, 1), but must be images"),
    ({}, "interpolate", {"start": WHITE, "end": Image.new("L", (9, 9))}, "end is 9x9 in mode L, but the model makes"),
    (CLASSES, "interpolate", {"start": ZERO, "end": ZERO}, "class_labels is missing"),
    (
        CLASSES,
        "interpolate",
        {"start": ZERO, "end": ZERO, "class_labels": [0, 1, 2]},
        "class_labels has 3 entries for batch_size 2",
    ),
    ({}, "traverse", {"index": 5, "values": [0]}, "index is 5, but the latents have entries 0 to 4."),
    ({}, "traverse", {"index": 0, "values": []}, "len(values) is 0, but must be at least 1"),
    (CLASSES, "traverse", {"index": 0, "values": [0]}, "class_labels is missing"),
    ({}, "attribute_direction", {"images_with": WHITE, "images_without": -WHITE}, "images_without goes from -1 to -1"),
    (CLASSES, "attribute_direction", {"images_with": WHITE, "images_without": WHITE}, "class_labels is missing"),
    (
        CLASSES,
        "attribute_direction",
        {"images_with": WHITE, "images_without": WHITE, "class_labels": [0, 1, 1]},
        "class_labels has 3 entries: give one, or two, of images with and without it.",
    ),
    ({}, "edit", {"start": WHITE, "direction": ZERO[0], "strengths": []}, "len(strengths) is 0"),
    (
        {},
        "edit",
        {"start": WHITE, "direction": ZERO[0, :4], "strengths": [1]},
        "direction has shape (4, 1, 1), but must have (5, 1, 1).",
    ),
    ({}, "inpaint", {"image": WHITE, "mask": MASK[:7]}, "mask has shape (1, 7, 8), but must have (8, 8): one for all"),
    ({}, "inpaint", {"image": WHITE, "mask": MASK.repeat(2, 1, 1)}, "mask has shape (2, 8, 8), but must have (8, 8)"),
    ({}, "inpaint", {"image": WHITE, "mask": WHITE.repeat(1, 3, 1, 1)}, "mask has shape (1, 3, 8, 8), but must have"),
    (
        {},
        "inpaint",
        {"image": WHITE, "mask": Image.new("L", (8, 9))},
        "mask has shape (1, 9, 8), but must",
    ),
    (
        {},
        "inpaint",
        {"image": WHITE, "mask": [Image.new("L", (8, 8)), Image.new("L", (8, 9))]},
        "mask has the sizes [(8, 8), (8, 9)]: give one size.",
    ),
    ({}, "inpaint", {"image": WHITE, "mask": 255 * MASK}, "mask goes from 0 to 255, but must be in [0, 1]: scale it."),
    ({}, "inpaint", {"image": WHITE, "mask": "half"}, "mask is a str: give a PIL image, an array or a tensor."),
    ({}, "inpaint", {"image": 2 * WHITE, "mask": MASK}, "image goes from 2 to 2"),
    (
        {},
        "inpaint",
        {"image": WHITE, "mask": MASK, "method": "magic"},
        "method is 'magic', but must be one of",
    ),
    (
        {},
        "inpaint",
        {"image": WHITE, "mask": MASK, "method": "amortised"},
        "method is 'amortised', but this model was trained for no task, not to inpaint: use 'gradient' or 'langevin'.",
    ),
    (
        {"task": "denoise", "level": 0.2},
        "super_resolve",
        {"image": WHITE[..., :4, :4], "method": "amortised"},
        "method is 'amortised', but this model was trained to denoise, not to super_resolve",
    ),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "steps": 0}, "steps is 0, but must be at least 1"),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "restarts": 0}, "restarts is 0, but must be at least 1"),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "learning_rate": 0}, "learning_rate is 0, but must be more than 0"),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "prior": "mixture"}, "prior is 'mixture', but this pipeline has"),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "generator": [seeded()] * 2}, "generator has 2 entries for batch"),
    (CLASSES, "inpaint", {"image": WHITE, "mask": MASK}, "class_labels is missing"),
    ({}, "denoise", {"image": WHITE}, "noise_level is None, but must be more than 0: the standard deviation of the"),
    ({}, "denoise", {"image": WHITE, "noise_level": -0.1}, "noise_level is -0.1, but must be more than 0"),
    ({}, "denoise", {"image": 3 * WHITE, "noise_level": 0.1}, "image goes from 3 to 3, but must be in [-0.6, 1.6]"),
    (
        {"task": "denoise", "level": 0.2},
        "denoise",
        {"image": WHITE, "noise_level": 0.3},
        "noise_level is 0.3, but this model was trained for 0.2: use that, or method 'gradient'.",
    ),
    ({"task": "denoise", "level": 0.2}, "denoise", {"image": WHITE, "generator": 5}, "generator: 5 is no torch.Gen"),
    ({}, "denoise", {"image": WHITE, "noise_level": "1"}, "noise_level is '1', but must be a finite number."),
    ({}, "inpaint", {"image": WHITE, "mask": MASK, "steps": 2.5}, "steps is 2.5, but must be a whole number of at"),
    (CLASSES, "denoise", {"image": WHITE, "noise_level": 0.1}, "class_labels is missing"),
    (
        {},
        "super_resolve",
        {"image": WHITE},
        "image is 8x8, but must be the model's 8x8 divided by a whole number of 2 or more: resize it.",
    ),
    ({}, "super_resolve", {"image": Image.new("L", (3, 3))}, "image is 3x3, but must be the model's 8x8 divided"),
    ({}, "super_resolve", {"image": WHITE[..., :4, :2]}, "image is 2x4, but must be the model's 8x8 divided"),
    ({}, "super_resolve", {"image": np.ones((4, 4, 3))}, "image has shape (4, 4, 3), but must be (4, 4, 1): resize"),
    ({}, "super_resolve", {"image": Image.new("RGB", (4, 4))}, "image is 4x4 in mode RGB, but must be 4x4 in mode L"),
    ({}, "super_resolve", {"image": "x.png"}, "image is a str: give PIL images"),
    (
        {"task": "super_resolve", "level": 2},
        "super_resolve",
        {"image": WHITE[..., :2, :2]},
        "factor is 4, but this model was trained for 2: use that, or method 'gradient'.",
    ),
    (CLASSES, "super_resolve", {"image": WHITE[..., :4, :4]}, "class_labels is missing"),
]


@pytest.mark.parametrize(("made", "method", "arguments", "message"), MISTAKES)
def test_mistakes(made, method, arguments, message):
    with pytest.raises(ValueError) as caught:
        getattr(make(**made), method)(**arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id2label": {0: "cat"}}, r"id2label has the keys \['0'\], but the model has 0 classes"),
        ({"task": "colourise", "task_level": 1}, "task is 'colourise', but must be one of denoise, super_resolve, or"),
        ({"task": "denoise"}, "task is 'denoise' and task_level is None: give both or neither."),
        ({"task_level": 2}, "task is None and task_level is 2"),
        (
            {"prior": GaussianMixturePrior(latent_shape=(4, 1, 1))},
            r"prior has latents of shape \(4, 1, 1\)",
        ),
        (
            {"prior": GaussianMixturePrior(latent_shape=(5, 1, 1), num_class_embeds=2)},
            "prior has .* and 2 classes",
        ),
    ],
)
def test_what_a_pipeline_is_made_of_must_fit(options, message):
    with pytest.raises(ValueError, match=message):
        VAEPipeline(make().model, **options)
