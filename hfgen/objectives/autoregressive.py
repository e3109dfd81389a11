"""Distributions of one position of a grid given those before it: their parameters, probabilities, and draws.

An autoregressive model factorises the probability of an image, `log p(x) = sum_i log p(x_i | x_1, ..., x_(i-1))`, in
raster order (PixelRNN, https://huggingface.co/papers/1601.06759, equation 1), and its network gives the parameters of
each factor. Positions hold levels, integers from 0 to L - 1: those of the pixels' channels, or numbers of codes.

- `"categorical"`: L logits, for one channel. It knows nothing of the order of levels, and can give each any share.
- `"logistic_mixture"`: PixelCNN++'s mixture of logistics over the interval [-1, 1] that the levels divide, for any
  number of channels; see [`~objectives.elbo.mixture_log_likelihood`].

All is computed in float32, under autocast too (in float64 for float64 parameters).
"""

import torch
from torch.nn import functional as F

from hfgen.objectives import elbo

LIKELIHOODS = ("categorical", "logistic_mixture")
LEVELS = 256  # of 8-bit pixels


def num_parameters(likelihood: str, channels: int, num_levels: int, num_mixtures: int) -> int:
    """Returns the number of parameters of a position, P.

    Raises:
        ValueError: For an unknown likelihood, a categorical one of several channels, or fewer than 2 levels.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is {likelihood!r}, but must be one of {', '.join(LIKELIHOODS)}.")
    if num_levels < 2:
        raise ValueError(f"num_levels is {num_levels}, but there must be at least 2.")
    if likelihood == "logistic_mixture":
        return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)
    if channels != 1:
        raise ValueError(
            f"likelihood is 'categorical', which is for one channel, but there are {channels}: use "
            "'logistic_mixture', whose channels depend on each other."
        )
    return num_levels


def to_values(levels: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Converts levels to numbers in [-1, 1], float32; of 256 levels these are the pixels of an 8-bit image."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def to_levels(values: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Converts numbers in [-1, 1] to the nearest levels, int64."""
    return ((values.float() + 1) * ((num_levels - 1) / 2)).round().long().clamp(0, num_levels - 1)


def log_prob(
    levels: torch.Tensor, parameters: torch.Tensor, likelihood: str, num_levels: int, num_mixtures: int
) -> torch.Tensor:
    """Computes `log p(x_i | x_1, ..., x_(i-1))` at each position, of all channels together.

    Args:
        levels (`torch.Tensor` of shape `(B, C, H, W)`): int64.
        parameters (`torch.Tensor` of shape `(B, P, H, W)`): What the network gives.
        likelihood (`str`), num_levels (`int`), num_mixtures (`int`): The kind of distribution.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`: nats.
    """
    with torch.autocast(levels.device.type, enabled=False):
        (parameters,) = elbo.precise(parameters)
        if likelihood == "categorical":
            return -F.cross_entropy(parameters, levels[:, 0], reduction="none")
        values = to_values(levels, num_levels).to(parameters.dtype)
        return elbo.mixture_log_likelihood(values, parameters, num_mixtures, 1 / (num_levels - 1))


def level_log_probs(
    parameters: torch.Tensor,
    before: torch.Tensor,
    channels: int,
    likelihood: str,
    num_levels: int,
    num_mixtures: int,
) -> torch.Tensor:
    """Computes the log-probability of each level of one channel of a position.

    Args:
        parameters (`torch.Tensor` of shape `(B, P)`): Those of the position.
        before (`torch.Tensor` of shape `(B, c)`): The levels of its channels before, int64; c of them for channel c.
        channels (`int`): Their number, C.
        likelihood (`str`), num_levels (`int`), num_mixtures (`int`): The kind of distribution.

    Returns:
        `torch.Tensor` of shape `(B, num_levels)`: nats.
    """
    (parameters,) = elbo.precise(parameters)
    if likelihood == "categorical":
        return parameters.log_softmax(1)
    logits, means, log_scales, coefficients = elbo.split_mixture(parameters, channels, num_mixtures)
    half_bin, channel = 1 / (num_levels - 1), before.shape[1]
    values = to_values(before, num_levels).to(parameters.dtype)
    all_values = to_values(torch.arange(num_levels, device=parameters.device), num_levels).to(parameters.dtype)
    weights = logits.log_softmax(1)  # (B, K), of the components given the channels before
    for index in range(channel + 1):
        first = index * (index - 1) // 2
        mean = means[:, index] + (coefficients[:, first : first + index] * values[:, :index, None]).sum(1)
        if index < channel:
            weights = weights + elbo.logistic_bins(values[:, index, None], mean, log_scales[:, index], half_bin)
    scale = log_scales[:, channel].unsqueeze(2)
    bins = elbo.logistic_bins(all_values, mean.unsqueeze(2), scale, half_bin)  # (B, K, L)
    return (weights.log_softmax(1).unsqueeze(2) + bins).logsumexp(1)


def draw_levels(
    log_probs: torch.Tensor, quantiles: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """Draws a level for each row, by the inverse of its distribution function.

    Args:
        log_probs (`torch.Tensor` of shape `(B, L)`): Log-probabilities of the levels.
        quantiles (`torch.Tensor` of shape `(B,)`): Uniform numbers in [0, 1]: all that is random.
        temperature (`float`, *optional*, defaults to 1.0): Divides the log-probabilities; 0 for the likeliest level.
        top_p (`float`, *optional*, defaults to 1.0): Leaves the fewest likeliest levels whose shares reach it together
            (nucleus sampling, https://huggingface.co/papers/1904.09751).

    Returns:
        `torch.Tensor` of shape `(B,)`, int64.
    """
    if temperature == 0:
        return log_probs.argmax(1)
    device, log_probs, quantiles = log_probs.device, in_float64(log_probs), in_float64(quantiles)
    shares = (log_probs / temperature).softmax(1)
    if top_p < 1:
        ordered, order = shares.sort(dim=1, descending=True, stable=True)
        kept = ordered.cumsum(1) - ordered < top_p
        shares = shares * torch.zeros_like(shares).scatter(1, order, kept.to(shares))
    upper = shares.cumsum(1)
    # Below the sum of all, as rounding may make the last quantile reach it: a level of no share is never drawn.
    targets = torch.minimum(quantiles.unsqueeze(1) * upper[:, -1:], upper[:, -1:] * (1 - 1e-12))
    return torch.searchsorted(upper, targets, right=True).squeeze(1).to(device)


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in float64; that of an Apple GPU, which has none, on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()
