"""GaussianMixturePrior against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.sampling.sampler import image_generators


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(shape=(4, 1, 1), components=3, classes=None, rank=None):
    """A prior with made-up numbers."""
    prior = GaussianMixturePrior(latent_shape=shape, num_components=components, num_class_embeds=classes, rank=rank)
    generator, size = seeded(1), math.prod(shape)
    rank = rank or size
    prior.weights.copy_(torch.rand(prior.weights.shape, generator=generator).softmax(-1))
    prior.means.copy_(2 * torch.randn(components, rank, generator=generator))
    factors = 0.3 * torch.randn(components, rank, rank, generator=generator).tril(-1)
    prior.factors.copy_(factors + torch.diag_embed(0.2 + torch.rand(components, rank, generator=generator)))
    prior.offset.copy_(torch.randn(size, generator=generator))
    prior.basis.copy_(torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q)
    prior.residual.fill_(0.3)
    return prior


def reference(prior, label=0):
    """The same density as torch has it, over all dimensions."""
    basis = prior.basis
    outside = torch.eye(len(basis)) - basis @ basis.T
    covariances = basis @ prior.factors @ prior.factors.mT @ basis.T + prior.residual**2 * outside
    means = prior.offset + prior.means @ basis.T
    return MixtureSameFamily(Categorical(prior.weights[label]), MultivariateNormal(means, covariances))


@pytest.mark.parametrize(("shape", "rank"), [((4, 1, 1), None), ((2, 3, 2), None), ((2, 3, 2), 5), ((5, 1, 1), 1)])
def test_density(shape, rank):
    prior = make(shape, rank=rank)
    latents = 2 * torch.randn(9, *shape, generator=seeded())
    expected = reference(prior).log_prob(latents.flatten(1))
    torch.testing.assert_close(prior.log_prob(latents), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(prior.log_prob(latents.flatten(1)), prior.log_prob(latents))


@pytest.mark.parametrize("rank", [None, 3])
def test_samples_have_the_moments_of_the_density(rank):
    prior = make((2, 3, 1), rank=rank)
    drawn = prior.sample(20000, generator=seeded())
    assert drawn.shape == (20000, 2, 3, 1) and drawn.dtype == torch.float32
    wanted = reference(prior)
    torch.testing.assert_close(drawn.flatten(1).mean(0), wanted.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.flatten(1).var(0), wanted.variance, rtol=0.05, atol=0)
    torch.manual_seed(0)
    surprise = wanted.log_prob(drawn.flatten(1)).mean() - wanted.log_prob(wanted.sample((20000,))).mean()
    assert abs(surprise) < 0.1


def test_a_new_prior_is_standard_normal():
    prior = GaussianMixturePrior(latent_shape=(2, 2, 1))
    latents = torch.randn(5, 2, 2, 1, generator=seeded())
    expected = torch.distributions.Normal(0, 1).log_prob(latents).sum((1, 2, 3))
    torch.testing.assert_close(prior.log_prob(latents), expected)
    noise = torch.randn(5, 5, generator=seeded())
    assert torch.equal(prior(noise).sample.flatten(1), noise[:, 1:])


def test_a_sample_depends_on_its_own_generator_alone():
    prior = make(classes=2)
    labels = torch.tensor([0, 1, 1, 0])
    together = prior.sample(4, labels, image_generators(3, range(4)))
    torch.testing.assert_close(prior.sample(2, labels[2:], image_generators(3, [2, 3])), together[2:])
    torch.testing.assert_close(prior.sample(1, labels[:1], image_generators(3, [0])), together[:1])


def test_temperature_shrinks_components_to_their_means():
    prior = make(components=2)
    noise = torch.randn(50, 5, generator=seeded())
    means = (prior.offset + prior.means @ prior.basis.T).unflatten(1, (4, 1, 1))
    cold = prior(noise, temperature=0.0).sample
    distances = torch.cdist(cold.flatten(1), means.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(1).values.max() < 1e-5
    torch.testing.assert_close(prior(noise, temperature=0.5).sample, (cold + prior(noise).sample) / 2)


def test_classes_have_their_own_weights():
    prior = make(classes=2, components=2)
    prior.weights.copy_(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    noise = torch.randn(4000, 5, generator=seeded())
    means = prior.offset + prior.means @ prior.basis.T
    shares = []
    for label in (0, 1):
        drawn = prior(noise, torch.full((4000,), label), temperature=0.0).sample
        shares.append((torch.cdist(drawn.flatten(1), means).argmin(1) == 1).float().mean().item())
    assert shares[0] == 0 and shares[1] == pytest.approx(0.75, abs=0.03)
    latents, labels = torch.randn(2, 4, 1, 1, generator=seeded()), torch.tensor([0, 1])
    latents.requires_grad_()
    logs = prior.log_prob(latents, labels)
    expected = [reference(prior, label).log_prob(latents[label].flatten()) for label in (0, 1)]
    torch.testing.assert_close(logs, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(logs.sum(), latents)[0].isfinite().all()  # also where a weight is 0


def test_save_and_load(tmp_path):
    prior = make(classes=2, rank=2)
    prior.save_pretrained(tmp_path)
    loaded = GaussianMixturePrior.from_pretrained(tmp_path)
    latents, labels = torch.randn(3, 4, 1, 1), torch.tensor([0, 1, 0])
    assert torch.equal(loaded.log_prob(latents, labels), prior.log_prob(latents, labels))
    half = GaussianMixturePrior.from_pretrained(tmp_path, dtype=torch.bfloat16)
    drawn = half.sample(3, labels, seeded())
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, prior.sample(3, labels, seeded()), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixturePrior(latent_shape=(2, 1, 1), rank=3), "rank is 3, but latents of shape"),
        (lambda: make().log_prob(torch.zeros(2, 5)), r"latents has shape \(2, 5\), but must be"),
        (lambda: make()(torch.zeros(2, 4)), r"noise has shape \(2, 4\), but must be \(B, 5\)"),
        (lambda: make(classes=2).sample(2, torch.tensor([1])), r"class_labels has shape \(1,\), but must be \(2,\)"),
        (lambda: make(classes=2).sample(1, torch.tensor([2])), r"class_labels is \[2\], but must be from 0 to 1"),
        (lambda: make(classes=2).sample(1), "num_class_embeds is 2, so this network expects class_labels"),
        (
            lambda: make().sample(1, torch.zeros(1).long()),
            "num_class_embeds is None, so this network knows no classes",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
