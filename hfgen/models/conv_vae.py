"""The small convolutional VAE (https://huggingface.co/papers/1312.6114) for 8 to 256 pixels, by class if asked to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin


@dataclass
class ConvVAEDecoderOutput(BaseOutput):
    """
    The output of [`ConvVAE.decode`].

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`): The expected images, float32, about [-1, 1].
        parameters (`torch.Tensor` of shape `(B, P, H, W)`): Parameters of the likelihood, float32.
    """

    sample: torch.Tensor
    parameters: torch.Tensor


def num_parameters(likelihood: str, channels: int, num_mixtures: int) -> int:
    """Numbers that a decoder emits per pixel, P.

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
    """The expected image `(B, C, H, W)` under the parameters `(B, P, H, W)` of a likelihood, float32.

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
    """Biases with which a logistic likelihood starts broad, the means of its components spread over [-1, 1]."""
    if likelihood not in ("logistic", "logistic_mixture") or layer.bias is None:
        return
    nn.init.zeros_(layer.bias)
    if likelihood == "logistic":
        layer.bias[channels:] = -1.5
    else:
        places = (2 * torch.arange(num_mixtures) + 1) / num_mixtures - 1
        layer.bias[num_mixtures : (1 + channels) * num_mixtures] = places.repeat(channels)
        layer.bias[(1 + channels) * num_mixtures : (1 + 2 * channels) * num_mixtures] = -1.5


def feature_sizes(sample_size: int, halvings: int) -> list[int]:
    """Sizes of the feature maps from the image's to the smallest: 28 gives 28, 14, 7, 4.

    Raises:
        ValueError: If the size is not between 8 and 256.
    """
    if not 8 <= sample_size <= 256:
        raise ValueError(f"sample_size is {sample_size}, but this network takes images of 8 to 256 pixels.")
    return [-(-sample_size // 2**level) for level in range(halvings + 1)]


def check_classes(class_labels: torch.Tensor | None, num_class_embeds: int | None, batch_size: int) -> None:
    """Raises `ValueError` if labels are missing, unexpected, too few or too many, or out of range."""
    if (class_labels is None) != (num_class_embeds is None):
        expected = "expects class_labels" if class_labels is None else "knows no classes: leave class_labels out"
        raise ValueError(f"num_class_embeds is {num_class_embeds}, so this network {expected}.")
    if class_labels is None or num_class_embeds is None:
        return
    if class_labels.shape != (batch_size,):
        raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}, but must be ({batch_size},).")
    # Looking at values on a GPU would wait for it.
    if class_labels.device.type == "cpu" and not ((class_labels >= 0) & (class_labels < num_class_embeds)).all():
        raise ValueError(f"class_labels is {class_labels.tolist()}, but must be from 0 to {num_class_embeds - 1}.")


class ConvVAE(ModelMixin, ConfigMixin):
    r"""
    The VAE of tutorials: strided convolutions to a vector of latents, transposed convolutions back.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_channels (`int`, *optional*, defaults to 32):
            Length of the latents, which are `(B, latent_channels, 1, 1)` and a priori standard normal.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(32, 64, 128)`):
            Channels after each halving. The feature map that is left is flattened: give more of them for large images.
        num_class_embeds (`int`, *optional*):
            Number of classes. An embedding is added to the encoder's first features, another appended to the latents.
        class_embed_dim (`int`, *optional*, defaults to 32):
            Length of the latter.
        likelihood (`str`, *optional*, defaults to `"gaussian"`):
            What the decoder's numbers mean: `"gaussian"`, `"bernoulli"`, `"logistic"` or `"logistic_mixture"`.
        num_mixtures (`int`, *optional*, defaults to 5):
            Components of the mixture.

    The buffer `variance` is the Gaussian likelihood's; training sets it.

    Raises:
        ValueError: If the size is out of range, or for an unknown likelihood.
    """

    variance: torch.Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        latent_channels: int = 32,
        block_out_channels: Sequence[int] = (32, 64, 128),
        num_class_embeds: int | None = None,
        class_embed_dim: int = 32,
        likelihood: str = "gaussian",
        num_mixtures: int = 5,
    ):
        super().__init__()
        self.sizes = feature_sizes(sample_size, len(block_out_channels))
        first, last = block_out_channels[0], block_out_channels[-1]
        features = last * self.sizes[-1] ** 2
        self.register_buffer("variance", torch.ones(()))
        self.encoder_classes = nn.Embedding(num_class_embeds, first) if num_class_embeds else None
        self.decoder_classes = nn.Embedding(num_class_embeds, class_embed_dim) if num_class_embeds else None
        widths = [in_channels, *block_out_channels]
        self.encoder = nn.ModuleList(
            nn.Conv2d(width, wider, 3, stride=2, padding=1) for width, wider in zip(widths, widths[1:], strict=False)
        )
        self.mean = nn.Linear(features, latent_channels)
        self.logvar = nn.Linear(features, latent_channels)
        self.linear = nn.Linear(latent_channels + (class_embed_dim if num_class_embeds else 0), features)
        widths = [last, *block_out_channels[-2::-1], first]
        # A kernel of 4 is a multiple of the stride of 2: all pixels get the same number of contributions.
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)
            for width, narrower in zip(widths, widths[1:], strict=False)
        )
        self.conv_out = nn.Conv2d(first, num_parameters(likelihood, in_channels, num_mixtures), 3, padding=1)
        # He initialisation, with which the latents matter from the first step: PyTorch's own nearly silences them.
        for layer in (*self.encoder, self.mean, self.linear, *self.decoder):
            # Of a kernel of 4 with a stride of 2, 4 weights per channel meet in a pixel.
            fan_in = layer.in_channels * 4 if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
        nn.init.zeros_(self.logvar.weight)
        start_likelihood_(self.conv_out, likelihood, in_channels, num_mixtures)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of an image's latents."""
        return (self.config.latent_channels, 1, 1)

    def encode(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        r"""
        The posterior of images.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an `AutoencoderKLOutput` with `latent_dist` instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        channels, size = self.config.in_channels, self.config.sample_size
        if tuple(sample.shape[1:]) != (channels, size, size):
            raise ValueError(f"sample has shape {tuple(sample.shape)}, but must be (B, {channels}, {size}, {size}).")
        check_classes(class_labels, self.config.num_class_embeds, len(sample))
        hidden = sample.to(self.mean.weight.dtype)
        for level, layer in enumerate(self.encoder):
            hidden = layer(hidden)
            if level == 0 and self.encoder_classes is not None:
                hidden = hidden + self.encoder_classes(class_labels)[:, :, None, None].to(hidden.dtype)
            hidden = F.relu(hidden)
        hidden = hidden.flatten(1).to(self.mean.weight.dtype)
        with torch.autocast(sample.device.type, enabled=False):  # the KL divergence is about small differences
            moments = torch.cat([self.mean(hidden), self.logvar(hidden)], dim=1).float()
        posterior = DiagonalGaussianDistribution(moments[:, :, None, None])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> ConvVAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Images from latents.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, 1, 1)`): A priori standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`ConvVAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing, unexpected or unknown classes.
        """
        if tuple(latents.shape[1:]) != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but must be (B, {expected}).")
        check_classes(class_labels, self.config.num_class_embeds, len(latents))
        hidden = latents.flatten(1).to(self.linear.weight.dtype)
        if self.decoder_classes is not None:
            hidden = torch.cat([hidden, self.decoder_classes(class_labels)], dim=1)
        hidden = F.relu(self.linear(hidden)).unflatten(1, (-1, self.sizes[-1], self.sizes[-1]))
        for layer, size in zip(self.decoder, reversed(self.sizes[:-1]), strict=True):
            hidden = F.relu(layer(hidden)[..., :size, :size])
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            parameters = self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()
        sample = mean_image(parameters, self.config.likelihood, self.config.in_channels, self.config.num_mixtures)
        return ConvVAEDecoderOutput(sample=sample, parameters=parameters) if return_dict else (sample, parameters)

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> ConvVAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Reconstructions of images.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            sample_posterior (`bool`, *optional*, defaults to `False`):
                Whether to draw the latents from the posterior instead of taking its mode.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`ConvVAEDecoderOutput`] instead of a tuple.
            generator (`torch.Generator`, *optional*): For drawing the latents.
        """
        (posterior,) = self.encode(sample, class_labels, return_dict=False)
        latents = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(latents, class_labels, return_dict=return_dict)
