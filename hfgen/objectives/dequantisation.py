"""Dequantisation: probabilities of 8-bit images by a density of continuous ones.

A flow is a density, and 8-bit images are points on a lattice: fitted to the points themselves, a density grows without
limit. Noise `q(z|x)` on the images prevents that, and with every noise and every density p(z)

    log P(x) >= E_q(z|x)[log p(z) + log P(x|z) - log q(z|x)]

bounds the probability of 8-bit images (variational dequantisation, https://huggingface.co/papers/1902.00275; with a
decoder P(x|z), https://huggingface.co/papers/2007.02731). The last two terms, the *correction* of a density, are known
in advance:

- *uniform* noise over the bin of a level: `P(x|z)` is 1, and `-log q` the logarithm of the bin's width;
- *gaussian* noise with a standard deviation of s levels: `P(x|z)` is the posterior of the 256 levels, a softmax of
  `log w - log s - (z - level)^2 / (2 s^2)`. With little noise (s of about 0.3) it is nearly certain. With the noise of
  TarFlow's paper (s of about 6) the bound still holds, but says little.

Noise costs bits in two ways: little noise where pixels are uncertain by many levels, for which a wide one would be
right; much noise where they are certain, and neighbours are taken for them. Certain are, in drawings and on black
grounds, the first and the last level. So noise below one level is smaller by `END_NOISE` there, and these two levels
weigh w = `END_WEIGHT` in the posterior: with s = 0.3 a certain end costs 0.01 bits instead of 0.17.

Everything is in nats, and summed over the pixels of an image. Images are in [-1, 1]; level k lies at `2k / 255 - 1`.
`noise_std` is s, and `None` for uniform noise.
"""

import math

import torch

from hfgen.objectives.elbo import precise

LEVEL = 2 / 255  # the distance of two levels
END_NOISE = 0.5  # of the first and the last level
END_WEIGHT = math.exp(2)


def dequantise(images: torch.Tensor, noise: torch.Tensor, noise_std: float | None) -> torch.Tensor:
    """Adds noise to 8-bit images.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1], on the levels of 8 bit.
        noise (`torch.Tensor` of the same shape): Numbers that are standard normal, or uniform in [0, 1).
        noise_std (`float`, *optional*): The standard deviation of Gaussian noise, in levels.

    Returns:
        `torch.Tensor` of the same shape, float32 (float64 for float64): Images in about [-1, 1].
    """
    images, noise = precise(images, noise)
    if noise_std is None:
        return images + LEVEL * (noise - 0.5)
    std, _ = _noise_of(((images + 1) / LEVEL).round(), noise_std)
    return images + LEVEL * std * noise


def correction(images: torch.Tensor, noisy: torch.Tensor, noise_std: float | None) -> torch.Tensor:
    """Computes `log P(x|z) - log q(z|x)`, which makes a bound of a log-density.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images x in [-1, 1], on the levels of 8 bit.
        noisy (`torch.Tensor` of the same shape): The same ones with the noise of `dequantise`, z.
        noise_std (`float`, *optional*): The standard deviation of Gaussian noise, in levels.

    Returns:
        `torch.Tensor` of shape `(B,)`: Nats.
    """
    images, noisy = precise(images, noisy)
    if noise_std is None:
        return images.new_full((len(images),), images[0].numel() * math.log(LEVEL))
    # The density of the noise is in log P(x|z) and in log q(z|x), and cancels. What remains of the softmax is its
    # denominator, of which levels far from z have no share in float32.
    place = (noisy + 1) / LEVEL
    _, own = _noise_of(((images + 1) / LEVEL).round(), noise_std)
    nearest, total = place.round().clamp(0, 255), torch.full_like(place, -math.inf)
    reach = min(255, math.ceil(7 * noise_std) + 1)
    for offset in range(-reach, reach + 1):
        level = nearest + offset
        std, log_weight = _noise_of(level, noise_std)
        term = log_weight - std.log() - 0.5 * ((place - level) / std).square()
        total = torch.logaddexp(total, torch.where((level >= 0) & (level <= 255), term, -math.inf))
    pixels = own - total + math.log(LEVEL) + 0.5 * math.log(2 * math.pi)
    return pixels.flatten(1).sum(1)


def _noise_of(level: torch.Tensor, noise_std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the standard deviation of Gaussian noise on levels, and the logarithm of their weight."""
    ends = ((level == 0) | (level == 255)) & (noise_std < 1)
    std = torch.where(ends, END_NOISE * noise_std, noise_std).to(level.dtype)
    return std, torch.where(ends, math.log(END_WEIGHT), 0.0).to(level.dtype)


def bound(terms: torch.Tensor) -> torch.Tensor:
    """Computes the importance-weighted bound `(B,)` on `log P(x)` from S drawings `(S, B)` of what the first equation
    above averages; it rises with S."""
    return terms.logsumexp(0) - math.log(len(terms))


def round_to_levels(images: torch.Tensor) -> torch.Tensor:
    """Rounds images in [-1, 1] to the levels of 8 bit, float32."""
    (images,) = precise(images)
    return ((images + 1) / LEVEL).round().clamp(0, 255) * LEVEL - 1


def on_levels(images: torch.Tensor) -> bool:
    """Returns whether images are on the levels of 8 bit. Reads the values: not for every step."""
    return bool(((round_to_levels(images) - images).abs() < LEVEL / 100).all())
