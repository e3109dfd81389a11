"""The probability flow of diffusion models, which gives images a log-probability.

Notation: `x = alpha x_0 + sigma eps` with `alpha^2 + sigma^2 = 1`, and `l = log(alpha / sigma)`, half the logarithm of
the signal-to-noise ratio, which falls as noise is added. There is an ordinary differential equation that carries
images to noise and back and has, at each `l`, the same density as the noisy images
(https://huggingface.co/papers/2011.13456, equation 13). With `x_0` the network's prediction of the clean image,

    dx/dl = alpha (x_0 - alpha x) = -alpha sigma v,      d log p(x)/dl = -div(dx/dl),

the latter along the way of an image (equation 38 there). All of it is finite where nothing is left of the image, at
zero terminal signal-to-noise ratio.

The flow begins at the least noise of the schedule, `l_1`, where an image is `x_1`. The step from there to the 8-bit
image `x` is that of the variational bound (https://huggingface.co/papers/2006.11239, equations 5 and 13):

    log P(x) >= E[log p(x_1) + log P(x | x_1) - log q(x_1 | x)],      x_1 drawn from q, a normal distribution.

All functions compute in float32, or in float64 for such input.
"""

import math
from collections.abc import Callable

import torch

from hfgen.objectives import elbo
from hfgen.objectives.denoising import PREDICTION_TYPES


def amplitudes(log_ratio: float) -> tuple[float, float]:
    """Returns `alpha` and `sigma` for their logarithmic ratio `l`."""
    return math.sqrt(1 / (1 + math.exp(-2 * log_ratio))), math.sqrt(1 / (1 + math.exp(2 * log_ratio)))


def drift(prediction_type: str, output: torch.Tensor, noisy: torch.Tensor, log_ratio: float) -> torch.Tensor:
    """Returns `dx/dl` of the probability flow, written for each prediction type without a division.

    Args:
        prediction_type (`str`): One of [`~denoising.PREDICTION_TYPES`].
        output, noisy (`torch.Tensor` of shape `(B, C, H, W)`): What the network predicts, and of which images.
        log_ratio (`float`): `l` of these images.

    Raises:
        ValueError: For an unknown prediction type.
    """
    alpha, sigma = amplitudes(log_ratio)
    if prediction_type == "epsilon":
        return sigma**2 * noisy - sigma * output
    if prediction_type == "sample":
        return alpha * output - alpha**2 * noisy
    if prediction_type == "v_prediction":
        return -alpha * sigma * output
    raise ValueError(f"prediction_type is {prediction_type!r}, but must be one of {PREDICTION_TYPES}.")


def expected(prediction_type: str, output: torch.Tensor, noisy: torch.Tensor, log_ratio: float) -> torch.Tensor:
    """Returns the clean images `(B, C, H, W)` that the network expects; arguments as for [`drift`]."""
    alpha, _ = amplitudes(log_ratio)
    return alpha * noisy + drift(prediction_type, output, noisy, log_ratio) / alpha


def divergence(values: torch.Tensor, inputs: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    """Estimates the sum of `d values_i / d inputs_i` of each image without bias: `probe^T J probe`
    (https://huggingface.co/papers/1810.01367, equation 7).

    Args:
        values, inputs (`torch.Tensor` of shape `(B, C, H, W)`): A function of the inputs, and these. Each image's
            values depend on its own inputs alone.
        probe (`torch.Tensor` of shape `(B, C, H, W)`): Independent of each other, with mean 0 and variance 1. Signs
            -1 and 1 have the least variance, which comes from derivatives with respect to other pixels alone.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    (product,) = torch.autograd.grad(values, inputs, probe)
    return (product * probe).flatten(1).sum(1)


def integrate(
    slope: Callable[[torch.Tensor, float], tuple[torch.Tensor, ...]],
    state: tuple[torch.Tensor, ...],
    first: float,
    last: float,
    num_steps: int,
) -> tuple[torch.Tensor, ...]:
    """Follows a differential equation by the classic Runge-Kutta method of fourth order, in equal steps: four
    evaluations a step.

    Args:
        slope (`Callable`): The derivatives of all of the state, from its first part and the place.
        state (`tuple` of `torch.Tensor`): Where to begin.
        first, last (`float`): From where to where.
        num_steps (`int`): Steps between them.

    Returns:
        `tuple` of `torch.Tensor`: The state at `last`.
    """
    step = (last - first) / num_steps
    for index in range(num_steps):
        start, x = first + index * step, state[0]
        k1 = slope(x, start)
        k2 = slope(x + step / 2 * k1[0], start + step / 2)
        k3 = slope(x + step / 2 * k2[0], start + step / 2)
        k4 = slope(x + step * k3[0], start + step)
        parts = zip(state, k1, k2, k3, k4, strict=True)
        state = tuple(y + step / 6 * (a + 2 * b + 2 * c + d) for y, a, b, c, d in parts)
    return state


def flow_log_prob(
    drift_at: Callable[[torch.Tensor, float], torch.Tensor],
    noisy: torch.Tensor,
    first: float,
    last: float,
    num_steps: int,
    draw_probe: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Estimates the log-density of noisy images: that of the noise they are carried to, and what the flow adds to it
    on the way (https://huggingface.co/papers/2011.13456, equation 39).

    By [`integrate`], in equal steps of `l`. Each evaluation has a probe of its own, so that their errors average out.

    Args:
        drift_at (`Callable`): `dx/dl` for images `(B, C, H, W)` and `l`; see [`drift`]. It is differentiated.
        noisy (`torch.Tensor` of shape `(B, C, H, W)`): Images at `first`.
        first, last (`float`): `l` of the images, and where noise is standard normal.
        num_steps (`int`): Steps between them.
        draw_probe (`Callable`): Draws a probe for [`divergence`], `(B, C, H, W)`.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats.
    """

    def slope(x: torch.Tensor, log_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = drift_at(x, log_ratio)
            change = divergence(values, x, draw_probe())
        return values.detach(), change

    nothing = torch.zeros(len(noisy), dtype=noisy.dtype, device=noisy.device)
    x, added = integrate(slope, (noisy, nothing), first, last, num_steps)
    return elbo.log_normal(x) + added


def last_step(
    prediction_type: str,
    output: torch.Tensor,
    noisy: torch.Tensor,
    noise: torch.Tensor,
    images: torch.Tensor,
    log_ratio: float,
) -> torch.Tensor:
    """Computes `log P(x | x_1) - log q(x_1 | x)`, which turns the density of `x_1` into a bound for 8-bit images.

    `P(x | x_1)` is a normal distribution around the clean image that the network predicts, integrated over the bins of
    the levels. Its deviation is that of `q`, `sigma / alpha` on clean images. With it the bound is exact where nearby
    levels are about equally likely; where a pixel is sure, such as a flat background, it costs up to
    `-log2 P(|n| < 1 / (255 sigma))` bits.

    Args:
        prediction_type (`str`): One of [`~denoising.PREDICTION_TYPES`].
        output (`torch.Tensor` of shape `(B, C, H, W)`): What the network predicts of `noisy`.
        noisy, noise, images (`torch.Tensor` of shape `(B, C, H, W)`): `x_1`, the standard normal noise in it, and the
            8-bit images, in [-1, 1].
        log_ratio (`float`): `l` of `noisy`.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats.
    """
    alpha, sigma = amplitudes(log_ratio)
    clean = expected(prediction_type, output, noisy, log_ratio)
    scale = torch.as_tensor(sigma / alpha, dtype=clean.dtype, device=clean.device)
    decoder = elbo.gaussian_bins(images, clean, scale).flatten(1).sum(1)
    return decoder - elbo.log_normal(noise) + noise[0].numel() * math.log(sigma)
