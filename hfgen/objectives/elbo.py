"""The evidence lower bound (VAE, https://huggingface.co/papers/1312.6114): likelihoods, KL, bounds and their health.

`log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))`, equation 3 of the paper. Everything is in nats, and *summed*
over pixels, channels and latents; only images are averaged. The classic mistake is to average the likelihood over D
pixels beside a summed KL: it weighs the KL by D, and the posterior collapses.

Images are in [-1, 1]; 8-bit level k lies at `2k / 255 - 1`, in the middle of a bin of half-width 1/255. All functions
compute in float32, under autocast too (in float64 for float64 input).
"""

import math
from typing import TypeVar

import torch
from torch.nn.functional import logsigmoid, tanh

LIKELIHOODS = ("gaussian", "bernoulli", "logistic", "logistic_mixture")
HALF_BIN = 1 / 255
LEVEL_BITS = math.log2(127.5)  # a level is 1 / 127.5 wide on [-1, 1]: its share of a density, in bits per dimension
EDGE = 1 - HALF_BIN  # what lies beyond is level 0 or 255, whose bins are open
PAIRWISE_ELEMENTS = 2**22  # 16 MiB
LOG_SCALES = (-7.0, 30.0)  # the lower one is PixelCNN++'s; beyond the upper one a bin has no probability in float32

Number = TypeVar("Number", float, torch.Tensor)


def precise(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the tensors in float32, or as they are if in float64."""
    return tuple(x if x.dtype == torch.float64 else x.float() for x in tensors)


def check_images(images: torch.Tensor, likelihood: str) -> None:
    """Raises `ValueError` for images that the likelihood does not fit. Reads the values: not for every training step.

    Args:
        images (`torch.Tensor`): Images, which must be in [-1, 1]; -1 or 1 for `"bernoulli"`; on the levels of 8 bit
            for `"logistic"` and `"logistic_mixture"`.
        likelihood (`str`): One of `LIKELIHOODS`.
    """
    (images,) = precise(images)
    low, high = images.min().item(), images.max().item()
    if not (low >= -1.00001 and high <= 1.00001):  # false for NaN too
        raise ValueError(f"images has values from {low:g} to {high:g}, but must be in [-1, 1]: rescale the images.")
    if likelihood == "bernoulli" and not (images.abs() == 1).all():
        raise ValueError(
            "likelihood is 'bernoulli', but images has values between -1 and 1, for which it is no probability: "
            "binarise the images, or use 'logistic_mixture' or 'gaussian'."
        )
    if likelihood in ("logistic", "logistic_mixture") and not on_levels(images):
        raise ValueError(
            f"likelihood is {likelihood!r}, which knows 256 levels, but images has values between two of them: "
            "round the images to 8 bit, or use 'gaussian'."
        )


def on_levels(images: torch.Tensor) -> bool:
    """Says whether all values of images in [-1, 1] are among the 256 levels of 8 bit."""
    levels = (images + 1) / (2 * HALF_BIN)
    return bool(((levels - levels.round()).abs() <= 0.01).all())


def logistic_bins(
    images: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor, half_bin: float = HALF_BIN
) -> torch.Tensor:
    """Log-probability of levels under a logistic distribution (PixelCNN++, equation 2), exact in the tails.

    With `a` and `b` the standardised ends of a bin,
    `sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a))`.
    The logarithm of each factor is stable, and `a - b` is the width of a bin, known without a subtraction.

    Args:
        images, means, log_scales (`torch.Tensor`): Of shapes that broadcast. Log-scales are clamped at -7.
        half_bin (`float`, *optional*, defaults to 1 / 255): Half the distance of two levels, of which there are
            `1 + 1 / half_bin`.
    """
    edge = 1 - half_bin
    inverse_scales = (-log_scales.clamp(*LOG_SCALES)).exp()
    centred = images - means
    below = logsigmoid((centred + half_bin) * inverse_scales)
    above = logsigmoid((half_bin - centred) * inverse_scales)
    inside = below + above + (-torch.expm1(-2 * half_bin * inverse_scales)).log()
    return torch.where(images < -edge, below, torch.where(images > edge, above, inside))


def log_normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """`log Phi(x)`, stable in both tails. PyTorch has it, but with a derivative that overflows far left (2.13)."""
    left, right = x.clamp(max=0), x.clamp(min=0)
    tail = (torch.special.erfcx(-left * math.sqrt(0.5)) / 2).log() - left.square() / 2
    return torch.where(x < 0, tail, torch.log1p(-torch.erfc(right * math.sqrt(0.5)) / 2))


def gaussian_bins(images: torch.Tensor, means: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Log-probability of 8-bit levels under a Gaussian: its integral over the bin, stable in the tails.

    `log(cdf(a) - cdf(b)) = log cdf(a) + log(1 - e^(log cdf(b) - log cdf(a)))`, on the side of the mean where both are
    small: `cdf(a) - cdf(b) = cdf(-b) - cdf(-a)`.

    Args:
        images, means, scales (`torch.Tensor`): Of shapes that broadcast; `scales` are standard deviations.
    """
    centred = images - means
    upper, lower = (centred + HALF_BIN) / scales, (centred - HALF_BIN) / scales
    below, above = log_normal_cdf(upper), log_normal_cdf(-lower)
    right = centred > 0
    larger = torch.where(right, above, below)
    smaller = log_normal_cdf(torch.where(right, -upper, lower))
    inside = larger + (-torch.expm1(smaller - larger)).log()
    return torch.where(images < -EDGE, below, torch.where(images > EDGE, above, inside))


def split_mixture(parameters: torch.Tensor, channels: int, num_mixtures: int) -> tuple[torch.Tensor, ...]:
    """Splits the parameters `(B, P, ...)` of a mixture of logistics, as [`mixture_log_likelihood`] describes them.

    Returns:
        Logits `(B, K, ...)`, means and log-scales `(B, C, K, ...)`, and coefficients `(B, pairs, K, ...)` in (-1, 1).
    """
    parts = (1, channels, channels, channels * (channels - 1) // 2)
    logits, means, log_scales, coefficients = (
        part.unflatten(1, (number, num_mixtures))
        for part, number in zip(parameters.split([number * num_mixtures for number in parts], 1), parts, strict=True)
    )
    return logits.squeeze(1), means, log_scales, tanh(coefficients) if channels > 1 else coefficients


def mixture_log_likelihood(
    images: torch.Tensor, parameters: torch.Tensor, num_mixtures: int, half_bin: float = HALF_BIN
) -> torch.Tensor:
    """PixelCNN++'s mixture of logistics (https://huggingface.co/papers/1701.05517, equations 2 and 3).

    A component is chosen for the whole pixel; within it, the mean of a channel depends linearly on the values of the
    channels before.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): On the levels of 8 bit, or of `half_bin`.
        parameters (`torch.Tensor` of shape `(B, K (1 + 2C + C(C-1)/2), H, W)`): For K components, in this order: K
            logits; means as (C, K); log-scales as (C, K); coefficients, before their tanh, as (pairs, K) with the
            pairs (1, 0), (2, 0), (2, 1), ...: first the channel, then the one that it depends on.
        num_mixtures (`int`): K.
        half_bin (`float`, *optional*, defaults to 1 / 255): Half the distance of two levels.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`: nats.
    """
    channels = images.shape[1]
    logits, means, log_scales, coefficients = split_mixture(parameters, channels, num_mixtures)
    values = images.unsqueeze(2)  # (B, C, 1, H, W), beside (B, C, K, H, W)
    if channels > 1:
        shifts = [torch.zeros_like(means[:, 0])]
        for channel in range(1, channels):
            first = channel * (channel - 1) // 2
            shifts.append((coefficients[:, first : first + channel] * values[:, :channel]).sum(1))
        means = means + torch.stack(shifts, dim=1)
    components = logistic_bins(values, means, log_scales, half_bin).sum(1)
    return (logits.log_softmax(1) + components).logsumexp(1)


def pixel_log_likelihood(
    images: torch.Tensor,
    parameters: torch.Tensor,
    likelihood: str,
    variance: float | torch.Tensor | None = None,
    num_mixtures: int = 5,
) -> torch.Tensor:
    """[`log_likelihood`] before the sum over pixels: `(B, H, W)`, summed over channels. For masks."""
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is {likelihood!r}, but must be one of {', '.join(LIKELIHOODS)}.")
    if likelihood == "gaussian" and variance is None:
        raise ValueError("variance is missing, but likelihood is 'gaussian': give it (see optimal_variance).")
    batch, channels, height, width = images.shape
    per_component = 1 + 2 * channels + channels * (channels - 1) // 2
    depth = {"logistic": 2 * channels, "logistic_mixture": num_mixtures * per_component}.get(likelihood, channels)
    if parameters.shape != (batch, depth, height, width):
        raise ValueError(
            f"parameters has shape {tuple(parameters.shape)}, but must be {(batch, depth, height, width)} for images "
            f"of shape {tuple(images.shape)} and likelihood {likelihood!r}."
        )
    with torch.autocast(images.device.type, enabled=False):
        images, parameters = precise(images, parameters)
        if likelihood == "gaussian":
            spread = torch.as_tensor(variance, dtype=parameters.dtype, device=parameters.device)
            return -0.5 * ((images - parameters).square() / spread + (2 * math.pi * spread).log()).sum(1)
        if likelihood == "bernoulli":
            return logsigmoid(images * parameters).sum(1)
        if likelihood == "logistic":
            means, log_scales = parameters.chunk(2, dim=1)
            return logistic_bins(images, means, log_scales).sum(1)
        return mixture_log_likelihood(images, parameters, num_mixtures)


def log_likelihood(
    images: torch.Tensor,
    parameters: torch.Tensor,
    likelihood: str,
    variance: float | torch.Tensor | None = None,
    num_mixtures: int = 5,
) -> torch.Tensor:
    """`log p(x|z)` of each image, summed over pixels and channels. Values and gradients are finite far in the tails.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] that fit the likelihood ([`check_images`]).
        parameters (`torch.Tensor` of shape `(B, P, H, W)`): What a decoder gives.
        likelihood (`str`):
            - `"gaussian"`: a *density*; P = C means. A decoder with one variance for all pixels is the calibrated one
              of σ-VAE (https://huggingface.co/papers/2006.13202).
            - `"bernoulli"`: probabilities of black (-1) and white (1); P = C logits of white.
            - `"logistic"`: probabilities of 8-bit levels; P = 2C, means then log-scales.
            - `"logistic_mixture"`: probabilities of 8-bit levels; see [`mixture_log_likelihood`].
        variance (`float` or `torch.Tensor` of shape `()`, *optional*): The variance of the Gaussian, which needs it.
        num_mixtures (`int`, *optional*, defaults to 5): Components of the mixture.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats.

    Raises:
        ValueError: For an unknown likelihood, a Gaussian without variance, or parameters of the wrong shape.
    """
    return pixel_log_likelihood(images, parameters, likelihood, variance, num_mixtures).sum((1, 2))


def discretised_gaussian(images: torch.Tensor, means: torch.Tensor, variance: float | torch.Tensor) -> torch.Tensor:
    """Log-probability of 8-bit images under a Gaussian decoder: its integral over the bins, the outer ones open.

    Use this to state bits per dimension of a Gaussian VAE: its density can be raised without limit on data that takes
    256 values, so that it cannot be compared with anything.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): On the levels of 8 bit.
        means (`torch.Tensor` of shape `(B, C, H, W)`): The decoder's parameters.
        variance (`float` or `torch.Tensor` of shape `()`): The decoder's variance.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats.
    """
    with torch.autocast(images.device.type, enabled=False):
        images, means = precise(images, means)
        spread = torch.as_tensor(variance, dtype=means.dtype, device=means.device)
        return gaussian_bins(images, means, spread.sqrt()).flatten(1).sum(1)


def level_log_likelihood(
    images: torch.Tensor,
    parameters: torch.Tensor,
    likelihood: str,
    variance: float | torch.Tensor | None = None,
    num_mixtures: int = 5,
) -> torch.Tensor:
    """Computes the log-probability `(B,)` of 8-bit images in nats, as [`log_likelihood`] does, and by
    [`discretised_gaussian`] where that is a density."""
    if likelihood == "gaussian":
        assert variance is not None
        return discretised_gaussian(images, parameters, variance)
    return log_likelihood(images, parameters, likelihood, None, num_mixtures)


def optimal_variance(squared_error: torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    """Returns the most likely variance of a Gaussian (σ-VAE, https://huggingface.co/papers/2006.13202, equation 4).

    It is the mean squared error. The standard deviation has `exp(-6)` added, a third of an 8-bit step, which is the
    authors' soft clamp `log σ = softplus(log sqrt(mse) + 6) - 6` written out: no likelihood without bound.

    Args:
        squared_error (`torch.Tensor` of shape `()`): Summed over images, channels and pixels.
        count (`int` or `torch.Tensor`): Number of summands.

    Returns:
        `torch.Tensor` of shape `()`: Without a gradient, as the likelihood is stationary in it.
    """
    (squared_error,) = precise(squared_error.detach())
    return ((squared_error / count).sqrt() + math.exp(-6)).square()


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """`KL(N(mean, exp(logvar)) || N(0, 1))` of each latent (VAE, appendix B).

    Args:
        mean, logvar (`torch.Tensor` of shape `(B, ...)`): Those of the posterior.

    Returns:
        `torch.Tensor` of shape `(B, ...)`: nats, not summed.
    """
    mean, logvar = precise(mean, logvar)
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar)


def free_bits(kl_per_latent: torch.Tensor, floor: float) -> torch.Tensor:
    """KL of which the first `floor` nats of each latent are free (https://huggingface.co/papers/1606.04934, eq. 15).

    The mean over the batch comes first: a latent is to be used on average, not for each image.

    Args:
        kl_per_latent (`torch.Tensor` of shape `(B, ...)`): As given by [`gaussian_kl`].
        floor (`float`): Nats per latent; 0 for none.

    Returns:
        `torch.Tensor` of shape `()`: Summed over latents.
    """
    (kl_per_latent,) = precise(kl_per_latent)
    return kl_per_latent.mean(0).clamp(min=floor).sum()


def kl_weight(fraction: float, warmup: float) -> float:
    """Raises the weight of the KL linearly from 0 to 1 (https://huggingface.co/papers/1602.02282, section 2.3).

    Args:
        fraction (`float`): The share of the training that is done, in [0, 1].
        warmup (`float`): The part of the training that warms up, in [0, 1].
    """
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is {warmup}, but is the part of the training that warms up: between 0 and 1.")
    return min(1.0, fraction / warmup) if warmup else 1.0


def bits_per_dim(nats: Number, dimensions: int) -> Number:
    """Bits per dimension of a *negative* log-likelihood or its bound (https://huggingface.co/papers/1511.01844, 3.1).

    If `nats` comes from a density on [-1, 1] and not from probabilities of levels, add `LEVEL_BITS` for a value in
    units of levels. That bounds the bits of 8-bit data only if the data was dequantised with uniform noise; without
    noise use [`discretised_gaussian`].

    Args:
        nats (`float` or `torch.Tensor`): `-log p(x)` per image, summed over its dimensions.
        dimensions (`int`): Channels times pixels.
    """
    return nats / (dimensions * math.log(2))


def log_normal(
    values: torch.Tensor, mean: torch.Tensor | None = None, logvar: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-density of a diagonal Gaussian, by default the standard one.

    Args:
        values (`torch.Tensor` of shape `(B, ...)`): For instance latents.
        mean, logvar (`torch.Tensor` of shape `(B, ...)`, *optional*, default to 0): The Gaussian's.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats, summed over all but the batch.
    """
    (values,) = precise(values)
    mean, logvar = precise(
        torch.zeros_like(values) if mean is None else mean, torch.zeros_like(values) if logvar is None else logvar
    )
    terms = (values - mean).square() * (-logvar).exp() + logvar + math.log(2 * math.pi)
    return -0.5 * terms.flatten(1).sum(1)


def importance_bound(
    log_p_x_given_z: torch.Tensor, log_prior: torch.Tensor, log_posterior: torch.Tensor
) -> torch.Tensor:
    """The importance-weighted bound on `log p(x)` (IWAE, https://huggingface.co/papers/1509.00519, equation 8).

    With one sample it is an estimate of the ELBO; it rises with the number of samples, to `log p(x)` in the limit.

    Args:
        log_p_x_given_z, log_prior, log_posterior (`torch.Tensor` of shape `(S, B)`):
            `log p(x|z)`, `log p(z)` and `log q(z|x)` of S samples `z ~ q(z|x)` for each of B images.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats.
    """
    log_p_x_given_z, log_prior, log_posterior = precise(log_p_x_given_z, log_prior, log_posterior)
    return (log_p_x_given_z + log_prior - log_posterior).logsumexp(0) - math.log(len(log_p_x_given_z))


def active_units(means: torch.Tensor, threshold: float = 0.01) -> torch.Tensor:
    """Counts the latents whose posterior mean varies over the data (IWAE, section 5.2).

    Args:
        means (`torch.Tensor` of shape `(N, ...)`): Posterior means of N images: thousands rather than tens.
        threshold (`float`, *optional*, defaults to 0.01): The variance from which on a latent counts as active.

    Returns:
        `torch.Tensor` of shape `()`: An integer.
    """
    (means,) = precise(means)
    return (means.var(0, correction=0) > threshold).sum()


def mutual_information(latents: torch.Tensor, means: torch.Tensor, logvars: torch.Tensor) -> torch.Tensor:
    """Information about the image in its latents, `I(x; z) = E KL(q(z|x) || p(z)) - KL(q(z) || p(z))`, in nats.

    ("ELBO surgery", Hoffman and Johnson, 2016; https://huggingface.co/papers/1802.04942.) The prior cancels, and what
    remains, `E[log q(z|x) - log q(z)]`, is estimated with one z per image and `q(z) = mean_j q(z|x_j)` over the batch.
    The batch is N images of which one is always the right one: the estimate cannot exceed log N, and says "log N or
    more" when it comes close. The rate minus it is `KL(q(z) || p(z))`: how far samples of the prior are from the
    latents that the decoder knows.

    Args:
        latents (`torch.Tensor` of shape `(N, ...)`): A sample of each image's posterior.
        means, logvars (`torch.Tensor` of shape `(N, ...)`): The posteriors.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    latents, means, logvars = (x.flatten(1) for x in precise(latents, means, logvars))
    precisions = (-logvars).exp()
    rows = max(1, PAIRWISE_ELEMENTS // means.numel())  # all pairs at once may not fit into memory
    distances = torch.cat([((z.unsqueeze(1) - means).square() * precisions).sum(2) for z in latents.split(rows)])
    # [i, j] is log q(z_i|x_j), but for a constant that cancels.
    pairs = -0.5 * (distances + logvars.sum(1))
    return (pairs.diagonal() - pairs.logsumexp(1)).mean() + math.log(len(latents))
