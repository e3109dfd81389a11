"""The probability flow against distributions whose densities are known."""

import math

import pytest
import torch
from diffusers import UNet2DModel

from hfgen.objectives import probability_flow as flow
from hfgen.objectives.denoising import PREDICTION_TYPES, add_noise, target

FIRST, NOISE = 4.6, -12.0


def noised(log_ratio, count=3):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, count, 1, 4, 4, generator=generator, dtype=torch.float64)
    alphas = torch.full((count,), flow.amplitudes(log_ratio)[0] ** 2, dtype=torch.float64)
    return clean, noise, add_noise(clean, noise, alphas), alphas


@pytest.mark.parametrize("log_ratio", [5.0, 0.3, -5.1, -40.0])
def test_the_drift_is_that_of_every_prediction(log_ratio):
    """`x = alpha x_0 + sigma eps` moves along the derivatives of `alpha` and `sigma`; nothing moves in pure noise."""
    clean, noise, noisy, alphas = noised(log_ratio)
    alpha, sigma = flow.amplitudes(log_ratio)
    expected = alpha * sigma**2 * clean - sigma * alpha**2 * noise
    for kind in PREDICTION_TYPES:
        output = target(kind, clean, noise, alphas)
        torch.testing.assert_close(flow.drift(kind, output, noisy, log_ratio), expected)
    with pytest.raises(ValueError, match="prediction_type is 'score', but must be one of"):
        flow.drift("score", noise, noisy, log_ratio)


def test_the_drift_is_the_derivative_of_the_noisy_image():
    clean, noise, _, _ = noised(0.7)
    before, after = (noised(0.7 + shift)[2] for shift in (-1e-5, 1e-5))
    _, _, noisy, _ = noised(0.7)
    torch.testing.assert_close(flow.drift("epsilon", noise, noisy, 0.7), (after - before) / 2e-5, rtol=1e-6, atol=1e-8)


def test_the_trace_of_a_network():
    """Against the whole matrix of derivatives: exactly with the unit vectors, and on average with random signs."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    ).eval()  # fmt: skip
    images = torch.randn(2, 1, 4, 4)

    def network(x):
        return unet(x, torch.tensor(3.5)).sample

    trace = torch.stack(
        [torch.autograd.functional.jacobian(network, image[None]).reshape(16, 16).trace() for image in images]
    )

    def estimate(probe):
        x = images.clone().requires_grad_()
        return flow.divergence(network(x), x, probe)

    units = torch.eye(16).reshape(16, 1, 1, 4, 4)
    exact = sum(estimate(unit.expand(2, -1, -1, -1)) for unit in units)
    torch.testing.assert_close(exact, trace, rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([estimate(torch.randint(2, (2, 1, 4, 4), generator=generator) * 2.0 - 1) for _ in range(300)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - trace).abs() < 4 * error).all() and (error > 0).all()


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_density_of_normal_images(kind):
    """Of pixels that depend on each other, whose best prediction of the noise is linear."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 4, dtype=torch.float64) * 0.3 + 0.2 * torch.eye(4, dtype=torch.float64)
    covariance, mean = mixing @ mixing.T, torch.tensor([0.5, -0.2, 0.1, 0.9], dtype=torch.float64)

    def best(x, log_ratio):
        alpha, sigma = flow.amplitudes(log_ratio)
        spread = alpha**2 * covariance + sigma**2 * torch.eye(4, dtype=torch.float64)
        noise = sigma * torch.linalg.solve(spread, (x.flatten(1) - alpha * mean).T).T.view_as(x)
        clean = (x - sigma * noise) / alpha
        output = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[kind]
        return flow.drift(kind, output, x, log_ratio)

    alpha, sigma = flow.amplitudes(FIRST)
    spread = alpha**2 * covariance + sigma**2 * torch.eye(4, dtype=torch.float64)
    images = torch.distributions.MultivariateNormal(alpha * mean, spread)
    x = images.sample((5,)).view(5, 1, 2, 2)
    expected = images.log_prob(x.flatten(1))

    def found(steps):
        # The trace exactly, as the sum over unit vectors in place of random probes.
        units = torch.eye(4, dtype=torch.float64).view(4, 1, 1, 2, 2)
        parts = [flow.flow_log_prob(best, x, FIRST, NOISE, steps, lambda u=u: u.expand_as(x)) for u in units]
        density = flow.flow_log_prob(best, x, FIRST, NOISE, steps, lambda: torch.zeros_like(x))
        return density + sum(part - density for part in parts)

    errors = [(found(steps) - expected).abs().max().item() for steps in (20, 40)]
    assert errors[0] / errors[1] > 10 and errors[1] < 0.01, errors  # of fourth order


def test_random_probes_are_right_on_average():
    """A drift that mixes pixels, of which signs see only a part at a time."""
    torch.manual_seed(0)
    matrix = torch.randn(4, 4, dtype=torch.float64) * 0.3
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64).expand(400, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)

    def drift_at(x, log_ratio):
        return (x.flatten(1) @ matrix.T).view_as(x)

    def found(draw):
        return flow.flow_log_prob(drift_at, x, 1.0, 0.0, 2, draw)

    draws = found(lambda: torch.randint(2, x.shape, generator=generator).double() * 2 - 1)
    end = torch.matrix_exp(-matrix) @ x[0].flatten()
    expected = -0.5 * end.square().sum() - 2 * math.log(2 * math.pi) - matrix.trace()
    assert abs(draws.mean() - expected) < 4 * draws.std() / 20 + 1e-3 and draws.std() > 0.01


def test_the_last_step():
    """Against the probabilities of levels and of the noise, by torch's own distributions."""
    images = torch.tensor([[-1.0, 1.0, 0.0039215, 51 / 127.5 - 1]], dtype=torch.float64).view(1, 1, 2, 2)
    noise = torch.tensor([[0.3, -1.2, 0.1, 2.0]], dtype=torch.float64).view(1, 1, 2, 2)
    alpha, sigma = flow.amplitudes(FIRST)
    noisy = alpha * images + sigma * noise
    clean = images + torch.tensor([[0.002, -0.001, 0.0, 0.01]], dtype=torch.float64).view(1, 1, 2, 2)
    levels = torch.distributions.Normal(clean, sigma / alpha)
    upper, lower = levels.cdf(images + 1 / 255), levels.cdf(images - 1 / 255)
    upper[images == 1], lower[images == -1] = 1, 0
    expected = (upper - lower).log() - torch.distributions.Normal(alpha * images, sigma).log_prob(noisy)
    for kind in PREDICTION_TYPES:
        implied = (noisy - alpha * clean) / sigma
        output = {"epsilon": implied, "sample": clean, "v_prediction": alpha * implied - sigma * clean}[kind]
        found = flow.last_step(kind, output, noisy, noise, images, FIRST)
        torch.testing.assert_close(found, expected.sum((1, 2, 3)))
