"""The small convolutional VAE (https://huggingface.co/papers/1312.6114) for 8 to 256 pixels, by class if asked to."""

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.labels import check_classes
from hfgen.models.vae_base import (
    GaussianVAE,
    VAEDecoderOutput,
    check_images,
    check_latents,
    decoder_output,
    feature_sizes,
    num_parameters,
    start_likelihood_,
)

ConvVAEDecoderOutput = VAEDecoderOutput  # its earlier name


class ConvVAE(GaussianVAE, Checkpointing, ModelMixin, ConfigMixin):
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
    _supports_gradient_checkpointing = True

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
        Encodes images into the posterior of their latents.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an `AutoencoderKLOutput` with `latent_dist` instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_images(sample, class_labels, self.config)
        hidden = self.checkpointed(self._down, sample.to(self.mean.weight.dtype), class_labels)
        hidden = hidden.flatten(1).to(self.mean.weight.dtype)
        with torch.autocast(sample.device.type, enabled=False):  # the KL divergence is about small differences
            moments = torch.cat([self.mean(hidden), self.logvar(hidden)], dim=1).float()
        posterior = DiagonalGaussianDistribution(moments[:, :, None, None])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Decodes latents into images.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, 1, 1)`): A priori standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_latents(latents, self.latent_shape)
        check_classes(class_labels, self.config.num_class_embeds, len(latents))
        hidden = latents.flatten(1).to(self.linear.weight.dtype)
        if self.decoder_classes is not None:
            hidden = torch.cat([hidden, self.decoder_classes(class_labels)], dim=1)
        hidden = F.relu(self.linear(hidden)).unflatten(1, (-1, self.sizes[-1], self.sizes[-1]))
        return decoder_output(self.checkpointed(self._up, hidden), self.config, return_dict)

    def _down(self, hidden: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        for level, layer in enumerate(self.encoder):
            hidden = layer(hidden)
            if level == 0 and self.encoder_classes is not None:
                hidden = hidden + self.encoder_classes(class_labels)[:, :, None, None].to(hidden.dtype)
            hidden = F.relu(hidden)
        return hidden

    def _up(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer, size in zip(self.decoder, reversed(self.sizes[:-1]), strict=True):
            hidden = F.relu(layer(hidden)[..., :size, :size])
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            return self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()
