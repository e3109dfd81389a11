"""Dequantisation: bounds of probabilities that can be enumerated, and the noise they are made with."""

import math

import pytest
import torch

from hfgen.objectives.dequantisation import (
    LEVEL,
    bound,
    check_levels,
    correction,
    dequantise,
    on_levels,
    to_levels,
)

LEVELS = (torch.arange(256).double() * LEVEL - 1)[:, None, None, None]  # 256 images of one pixel
NOISES = [None, 0.15, 0.25, 1.0, 6.4]


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
    posterior = (-0.5 * ((z[:, None] - LEVELS.flatten()) / (noise_std * LEVEL)).square()).softmax(1)
    return (density[:, None] * posterior).sum(0) * step


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
    assert tighter.exp().sum().item() == pytest.approx(truth.sum().item(), abs=0.05)


def test_little_noise_is_tight_where_a_density_has_it():
    """A pixel that is surely black costs 0.25 bits with uniform noise and a normal density, and 0 with the noise that
    the density expects."""
    black = torch.full((4000, 1, 1, 1), -1.0, dtype=torch.float64)

    def bits(noise_std, std):
        noisy = dequantise(black, noise_of(black.shape, noise_std), noise_std)
        density = torch.distributions.Normal(-1.0, std * LEVEL).log_prob(noisy).flatten()
        return -(density + correction(black, noisy, noise_std)).mean().item() / math.log(2)

    assert bits(None, 12**-0.5) == pytest.approx(0.254, abs=0.01)
    assert 0 <= bits(0.2, 0.2) < 0.03 and 0 <= bits(0.25, 0.25) < 0.1
    assert bits(6.4, 6.4) > 2


@pytest.mark.parametrize("noise_std", [0.25, 3.0, 60.0])
def test_the_posterior_is_that_of_all_levels(noise_std):
    """Those that are left out have no share."""
    images = LEVELS[::5]
    noisy = dequantise(images, noise_of(images.shape, noise_std), noise_std)
    likelihoods = torch.distributions.Normal(LEVELS.flatten(), noise_std * LEVEL).log_prob(noisy.flatten()[:, None])
    posterior = likelihoods.log_softmax(1)[torch.arange(len(images)), torch.arange(256)[::5]]
    own = torch.distributions.Normal(images, noise_std * LEVEL).log_prob(noisy).flatten()
    torch.testing.assert_close(correction(images, noisy, noise_std), posterior - own)


def test_pixels_are_summed_and_precision_is_kept():
    images = to_levels(torch.rand(3, 2, 4, 4) * 2 - 1)
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
    assert on_levels(images) and on_levels(to_levels(images + LEVEL / 3))
    torch.testing.assert_close(to_levels(images + LEVEL / 3), images, rtol=0, atol=1e-6)
    assert not on_levels(images + LEVEL / 3) and not on_levels(images + 1)
    assert to_levels(torch.tensor([1.2, -1.2])).tolist() == [1, -1]
    check_levels(images)
    with pytest.raises(ValueError, match="between two of them"):
        check_levels(images * 0.9)
