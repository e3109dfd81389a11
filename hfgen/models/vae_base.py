"""Parts that the VAEs share: the likelihoods of their decoders, the sizes of their feature maps, their outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import nn

from hfgen.models.labels import check_classes


@dataclass
class VAEDecoderOutput(BaseOutput):
    """
    The output of `decode`.

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`): The expected images, float32, about [-1, 1].
        parameters (`torch.Tensor` of shape `(B, P, H, W)`): Parameters of the likelihood, float32.
    """

    sample: torch.Tensor
    parameters: torch.Tensor


def num_parameters(likelihood: str, channels: int, num_mixtures: int) -> int:
    """Returns the number of values that a decoder emits per pixel, P.

    - `"gaussian"`: C means. `"bernoulli"`: C logits of white.
    - `"logistic"`: C means, C log-scales.
    - `"logistic_mixture"` of K components (https://huggingface.co/papers/1701.05517): K logits, means as (C, K),
      log-scales as (C, K), and coefficients, before their tanh, as (pairs, K) for the pairs (1, 0), (2, 0), (2, 1) and
      so on of a channel and one that it depends on.

    Raises:
        ValueError: For an unknown likelihood.
    """
    counts = {
        "gaussian": channels,
        "bernoulli": channels,
        "logistic": 2 * channels,
        "logistic_mixture": num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2),
    }
    if likelihood not in counts:
        raise ValueError(f"likelihood is {likelihood!r}, but must be one of {', '.join(counts)}.")
    return counts[likelihood]


def mean_image(parameters: torch.Tensor, likelihood: str, channels: int, num_mixtures: int) -> torch.Tensor:
    """Computes the expected image `(B, C, H, W)` under the parameters `(B, P, H, W)` of a likelihood, float32.

    Gaussian means are not bounded. Logistic ones are clamped to [-1, 1], where the levels are, component by component:
    a mean far outside stands for a pixel that is surely black or white.
    """
    parameters = parameters.float()
    if likelihood == "gaussian":
        return parameters
    if likelihood == "bernoulli":
        return 2 * parameters.sigmoid() - 1
    if likelihood == "logistic":
        return parameters[:, :channels].clamp(-1, 1)
    weights = parameters[:, :num_mixtures].softmax(1)
    means = parameters[:, num_mixtures : (1 + channels) * num_mixtures].unflatten(1, (channels, num_mixtures))
    coefficients = parameters[:, (1 + 2 * channels) * num_mixtures :].tanh().split(num_mixtures, dim=1)
    expected: list[torch.Tensor] = []  # channel by channel, each (B, K, H, W)
    for channel in range(channels):
        mean, first = means[:, channel], channel * (channel - 1) // 2
        for before in range(channel):
            mean = mean + coefficients[first + before] * expected[before]
        expected.append(mean.clamp(-1, 1))
    return torch.stack([(weights * mean).sum(1) for mean in expected], dim=1)


@torch.no_grad()
def start_likelihood_(layer: nn.Conv2d, likelihood: str, channels: int, num_mixtures: int) -> None:
    """Sets biases with which a logistic likelihood starts broad, the means of its components spread over [-1, 1]."""
    if likelihood not in ("logistic", "logistic_mixture") or layer.bias is None:
        return
    nn.init.zeros_(layer.bias)
    if likelihood == "logistic":
        layer.bias[channels:] = -1.5
    else:
        means = (2 * torch.arange(num_mixtures) + 1) / num_mixtures - 1
        layer.bias[num_mixtures : (1 + channels) * num_mixtures] = means.repeat(channels)
        layer.bias[(1 + channels) * num_mixtures : (1 + 2 * channels) * num_mixtures] = -1.5


def feature_sizes(sample_size: int, halvings: int) -> list[int]:
    """Returns the sizes of the feature maps from the image's to the smallest: 28 gives 28, 14, 7, 4.

    Raises:
        ValueError: If the size is not between 8 and 256.
    """
    if not 8 <= sample_size <= 256:
        raise ValueError(f"sample_size is {sample_size}, but this network takes images of 8 to 256 pixels.")
    return [-(-sample_size // 2**level) for level in range(halvings + 1)]


def check_images(sample: torch.Tensor, class_labels: torch.Tensor | None, config: Any) -> None:
    """Raises `ValueError` for images of another shape than a VAE's, or missing, unexpected or unknown classes."""
    channels, size = config.in_channels, config.sample_size
    if tuple(sample.shape[1:]) != (channels, size, size):
        raise ValueError(f"sample has shape {tuple(sample.shape)}, but must be (B, {channels}, {size}, {size}).")
    check_classes(class_labels, config.num_class_embeds, len(sample))


def check_latents(latents: torch.Tensor, latent_shape: tuple[int, int, int]) -> None:
    """Raises `ValueError` for latents of another shape than a VAE's."""
    if tuple(latents.shape[1:]) != latent_shape:
        expected = ", ".join(map(str, latent_shape))
        raise ValueError(f"latents has shape {tuple(latents.shape)}, but must be (B, {expected}).")


def decoder_output(parameters: torch.Tensor, config: Any, return_dict: bool) -> VAEDecoderOutput | tuple:
    """Makes the output of a decoder from the parameters `(B, P, H, W)` of its likelihood."""
    sample = mean_image(parameters, config.likelihood, config.in_channels, config.num_mixtures)
    return VAEDecoderOutput(sample=sample, parameters=parameters) if return_dict else (sample, parameters)


class GaussianVAE:
    """The base of VAEs with one Gaussian posterior of all latents."""

    encode: Any
    decode: Any

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Reconstructs images.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            sample_posterior (`bool`, *optional*, defaults to `False`):
                Whether to draw the latents from the posterior instead of taking its mode.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.
            generator (`torch.Generator`, *optional*): For drawing the latents.
        """
        (posterior,) = self.encode(sample, class_labels, return_dict=False)
        latents = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(latents, class_labels, return_dict=return_dict)
