"""Distributions of a position's levels: what they sum to, that parts multiply to the whole, and draws."""

import pytest
import torch

from hfgen.objectives import autoregressive, elbo

KINDS = [("categorical", 1), ("logistic_mixture", 1), ("logistic_mixture", 3), ("logistic_mixture", 4)]
LEVELS, MIXTURES = 5, 3


def parameters_of(likelihood, channels, *shape):
    torch.manual_seed(channels)
    count = autoregressive.num_parameters(likelihood, channels, LEVELS, MIXTURES)
    return torch.randn(shape[0], count, *shape[1:])


@pytest.mark.parametrize(("likelihood", "channels"), KINDS)
def test_levels_of_a_channel_sum_to_one_and_channels_multiply_to_the_pixel(likelihood, channels):
    kind = (likelihood, LEVELS, MIXTURES)
    parameters = parameters_of(likelihood, channels, 6, 2, 2)
    levels = torch.randint(LEVELS, (6, channels, 2, 2))
    whole = autoregressive.log_prob(levels, parameters, *kind)
    total = torch.zeros(6)
    for channel in range(channels):
        each = autoregressive.level_log_probs(parameters[:, :, 1, 0], levels[:, :channel, 1, 0], channels, *kind)
        torch.testing.assert_close(each.exp().sum(1), torch.ones(6))
        total += each.gather(1, levels[:, channel, 1, 0, None])[:, 0]
    torch.testing.assert_close(whole[:, 1, 0], total)


def test_the_mixture_of_256_levels_is_that_of_the_vaes():
    parameters = torch.randn(2, MIXTURES * 10, 3, 3)
    levels = torch.randint(256, (2, 3, 3, 3))
    images = autoregressive.to_values(levels, 256)
    expected = elbo.log_likelihood(images, parameters, "logistic_mixture", None, MIXTURES)
    found = autoregressive.log_prob(levels, parameters, "logistic_mixture", 256, MIXTURES)
    torch.testing.assert_close(found.sum((1, 2)), expected)


@pytest.mark.parametrize("num_levels", [2, 4, 256, 2**18])
def test_levels_become_values_and_again_levels(num_levels):
    levels = torch.arange(num_levels)
    values = autoregressive.to_values(levels, num_levels)
    assert values[0] == -1 and values[-1] == 1
    assert torch.equal(autoregressive.to_levels(values, num_levels), levels)


def test_8_bit_pixels_are_256_levels():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(autoregressive.to_levels(pixels.float() / 127.5 - 1, 256), pixels.long())


def test_draws_are_as_frequent_as_they_are_probable():
    shares = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    quantiles = torch.linspace(0, 1, 10_001)
    drawn = autoregressive.draw_levels(shares.log().expand(10_001, -1), quantiles)
    torch.testing.assert_close(drawn.bincount(minlength=6) / 10_001, shares, atol=2e-4, rtol=0)
    assert (drawn.diff() >= 0).all()  # the inverse of a distribution function rises; its ends are levels that occur
    sharper = autoregressive.draw_levels(shares.log().expand(10_001, -1), quantiles, temperature=0.5)
    squares = shares.square() / shares.square().sum()
    torch.testing.assert_close(sharper.bincount(minlength=6) / 10_001, squares, atol=2e-4, rtol=0)


def test_temperature_0_and_the_nucleus():
    shares = torch.tensor([0.15, 0.5, 0.05, 0.3])
    many = shares.log().expand(1001, -1)
    quantiles = torch.linspace(0, 1, 1001)
    assert set(autoregressive.draw_levels(many, quantiles, temperature=0).tolist()) == {1}
    for top_p, left in ((1e-6, {1}), (0.5, {1}), (0.51, {1, 3}), (0.81, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        drawn = autoregressive.draw_levels(many, quantiles, top_p=top_p)
        assert set(drawn.tolist()) == left, top_p
    drawn = autoregressive.draw_levels(many, quantiles, top_p=0.7).bincount(minlength=4) / 1001
    torch.testing.assert_close(drawn, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("likelihood", "channels", "levels", "message"),
    [
        ("gaussian", 1, 256, "must be one of categorical, logistic_mixture"),
        ("categorical", 3, 256, "for one channel, but there are 3: use 'logistic_mixture'"),
        ("categorical", 1, 1, "num_levels is 1"),
    ],
)
def test_what_does_not_fit_is_refused(likelihood, channels, levels, message):
    with pytest.raises(ValueError, match=message):
        autoregressive.num_parameters(likelihood, channels, levels, 2)


def test_computed_in_float32_under_autocast():
    parameters = parameters_of("categorical", 1, 2, 2, 2)
    levels = torch.randint(LEVELS, (2, 1, 2, 2))
    expected = autoregressive.log_prob(levels, parameters, "categorical", LEVELS, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = autoregressive.log_prob(levels, parameters, "categorical", LEVELS, 0)
    assert torch.equal(found, expected)
    double = autoregressive.log_prob(levels, parameters.double(), "categorical", LEVELS, 0)
    assert double.dtype == torch.float64
