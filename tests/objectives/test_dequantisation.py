"""Dequantisation: bounds of probabilities that can be enumerated, and the noise they are made with."""

import math

import pytest
import torch

from hfgen.objectives.dequantisation import (
    END_NOISE,
    END_WEIGHT,
    LEVEL,
    bound,
    correction,
    dequantise,
    on_levels,
    round_to_levels,
)

LEVELS = (torch.arange(256).double() * LEVEL - 1)[:, None, None, None]  # 256 images of one pixel
NOISES = [None, 0.2, 0.3, 1.0, 6.4]


def noise_of(shape, noise_std, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if noise_std is None else torch.randn
    return draw(shape, generator=generator, dtype=torch.float64)


def mixture(values):
    """A density of one pixel: black with noise, or anywhere."""
    values = values.flatten(1)[:, 0]
    components = [
        math.log(share) + torch.distributions.Normal(mean, std).log_prob(values)
        for share, mean, std in ((0.7, -1.0, 0.003), (0.3, 0.2, 0.5))
    ]
    return torch.stack(components).logsumexp(0)


def discrete(noise_std, points=200_001):
    """What the density makes of the 256 levels: p(z) P(x|z), summed over a fine grid of z."""
    z = torch.linspace(-1.6, 1.6, points, dtype=torch.float64)
    step = (z[1] - z[0]).item()
    density = mixture(z[:, None]).exp()
    if noise_std is None:
        level = ((z + 1) / LEVEL).round()
        inside = (level >= 0) & (level <= 255)
        return torch.zeros(256, dtype=torch.float64).index_add(0, level[inside].long(), density[inside] * step)
    return (density[:, None] * posterior(z, noise_std)).sum(0) * step


def stds(noise_std):
    """Of the noise on each level: ends have less, if it is little."""
    std = torch.full((256,), noise_std * LEVEL, dtype=torch.float64)
    std[[0, -1]] *= END_NOISE if noise_std < 1 else 1
    return std


def posterior(z, noise_std):
    """P(x|z) of all 256 levels, `(N, 256)`."""
    weight = torch.ones(256, dtype=torch.float64)
    weight[[0, -1]] = END_WEIGHT if noise_std < 1 else 1.0
    likelihoods = torch.distributions.Normal(LEVELS.flatten(), stds(noise_std)).log_prob(z[:, None])
    return (likelihoods + weight.log()).softmax(1)


@pytest.mark.parametrize("noise_std", NOISES)
def test_bounds_are_below_the_probabilities_and_these_sum_to_one(noise_std):
    """The truth by enumeration: with P(x|z) as the decoder, 256 probabilities that sum to 1 at most."""
    truth = discrete(noise_std, 20_001 if noise_std else 200_001)
    assert 0.9 < truth.sum() <= 1 + 1e-3
    images = LEVELS.repeat_interleave(400, 0)
    noisy = dequantise(images, noise_of(images.shape, noise_std), noise_std)
    terms = mixture(noisy) + correction(images, noisy, noise_std)
    lower = terms.view(256, 400).mean(1)
    error = terms.view(256, 400).std(1) / 20
    assert (lower <= truth.log() + 4 * error + 1e-3).all()
    tighter = bound(terms.view(256, 400).T)
    assert (tighter >= lower).all()
    assert 0.85 < tighter.exp().sum() / truth.sum() < 1.05


def test_little_noise_is_tight_where_a_density_has_it():
    """A pixel that is surely black costs 0.25 bits with uniform noise and a normal density, and nearly 0 with noise
    that the density expects; one that may have any level costs nearly what it must."""
    black = torch.full((4000, 1, 1, 1), -1.0, dtype=torch.float64)

    def bits(noise_std, std):
        noisy = dequantise(black, noise_of(black.shape, noise_std), noise_std)
        density = torch.distributions.Normal(-1.0, std * LEVEL).log_prob(noisy).flatten()
        return -(density + correction(black, noisy, noise_std)).mean().item() / math.log(2)

    assert bits(None, 12**-0.5) == pytest.approx(0.254, abs=0.01)
    assert 0 <= bits(0.3, 0.3 * END_NOISE) < 0.01
    assert bits(6.4, 6.4) > 2
    grey = LEVELS[100:150].repeat(200, 1, 1, 1)
    noisy = dequantise(grey, noise_of(grey.shape, 0.3), 0.3)
    density = torch.full((len(grey),), -math.log(256 * LEVEL), dtype=torch.float64)
    assert -(density + correction(grey, noisy, 0.3)).mean().item() / math.log(2) == pytest.approx(8.04, abs=0.02)


@pytest.mark.parametrize("noise_std", [0.25, 3.0, 60.0])
def test_the_posterior_is_that_of_all_levels(noise_std):
    """Those that are left out have no share."""
    images = LEVELS[::5]
    noisy = dequantise(images, noise_of(images.shape, noise_std), noise_std)
    decoded = posterior(noisy.flatten(), noise_std)[torch.arange(len(images)), torch.arange(256)[::5]].log()
    own = torch.distributions.Normal(images.flatten(), stds(noise_std)[::5]).log_prob(noisy.flatten())
    torch.testing.assert_close(correction(images, noisy, noise_std), decoded - own)


def test_pixels_are_summed_and_precision_is_kept():
    images = round_to_levels(torch.rand(3, 2, 4, 4) * 2 - 1)
    for noise_std in NOISES:
        noisy = dequantise(images, noise_of(images.shape, noise_std).float(), noise_std)
        whole = correction(images, noisy, noise_std)
        parts = correction(images.reshape(-1, 1, 1, 1), noisy.reshape(-1, 1, 1, 1), noise_std)
        torch.testing.assert_close(whole, parts.view(3, -1).sum(1))
        assert (
            whole.dtype == torch.float32
            and correction(images.double(), noisy.double(), noise_std).dtype == torch.float64
        )
    assert dequantise(images.bfloat16(), images, 0.1).dtype == torch.float32


def test_levels():
    images = LEVELS.float()
    assert on_levels(images) and on_levels(round_to_levels(images + LEVEL / 3))
    torch.testing.assert_close(round_to_levels(images + LEVEL / 3), images, rtol=0, atol=1e-6)
    assert not on_levels(images + LEVEL / 3) and not on_levels(images + 1)
    assert round_to_levels(torch.tensor([1.2, -1.2])).tolist() == [1, -1]
