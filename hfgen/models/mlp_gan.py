"""The fully connected GAN of the first paper (https://huggingface.co/papers/1406.2661), by class if asked to."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.gan_base import (
    DiscriminatorOutput,
    GeneratorOutput,
    check_images,
    check_several,
    check_size,
    start_classes,
    with_class,
)

MLPGeneratorOutput, MLPDiscriminatorOutput = GeneratorOutput, DiscriminatorOutput  # their earlier names


class MLPGenerator(ModelMixin, ConfigMixin):
    r"""
    Makes images from latents: 100 -> 256 -> 512 -> 1024 -> pixels.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        out_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_dim (`int`, *optional*, defaults to 100):
            Length of the latents, which are standard normal.
        base_channels (`int`, *optional*, defaults to 256):
            Width of the first hidden layer; the next two are twice and four times as wide.
        num_class_embeds (`int`, *optional*):
            Number of classes. Their embedding of length `class_embed_dim` is appended to the latents.
        class_embed_dim (`int`, *optional*, defaults to 32):
            Length of the class embedding.

    Raises:
        ValueError: If the size is out of range.
    """

    noise_shapes: tuple[tuple[int, ...], ...] = ()  # it takes no noise beside the latents

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        out_channels: int = 1,
        latent_dim: int = 100,
        base_channels: int = 256,
        num_class_embeds: int | None = None,
        class_embed_dim: int = 32,
    ):
        super().__init__()
        check_size(sample_size)
        self.class_embedding = nn.Embedding(num_class_embeds, class_embed_dim) if num_class_embeds else None
        width = latent_dim + (class_embed_dim if num_class_embeds else 0)
        layers: list[nn.Module] = []
        for wider in (base_channels, 2 * base_channels, 4 * base_channels):
            layers += [nn.Linear(width, wider), nn.BatchNorm1d(wider), nn.LeakyReLU(0.2)]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_channels * sample_size**2))

    def forward(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            latents (`torch.Tensor` of shape `(B, latent_dim)`): Standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`GeneratorOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, missing or unexpected classes, or one image in training mode,
                whose batch normalisation needs several.
        """
        latents = with_class(latents, class_labels, self.config, self.class_embedding)
        check_several(latents, self.training)
        size = (self.config.out_channels, self.config.sample_size, self.config.sample_size)
        sample = self.layers(latents).float().tanh().unflatten(1, size)
        return GeneratorOutput(sample=sample) if return_dict else (sample,)

    def latent_weight(self) -> torch.Tensor:
        """Returns the weight that the latent meets first: `(N, latent_dim)`. Its singular vectors are directions of
        change (SeFa)."""
        return self.layers[0].get_parameter("weight")[:, : self.config.latent_dim]


class MLPDiscriminator(ModelMixin, ConfigMixin):
    r"""
    Tells real images from generated ones: pixels -> 1024 -> 512 -> 256 -> logit.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        base_channels (`int`, *optional*, defaults to 256):
            Width of the last hidden layer; the two before it are twice and four times as wide.
        spectral_norm (`bool`, *optional*, defaults to `False`):
            Whether to divide all weights by their largest singular value (https://huggingface.co/papers/1802.05957).
        num_class_embeds (`int`, *optional*):
            Number of classes; the logit then has the projection of the class on the last hidden layer
            (https://huggingface.co/papers/1802.05637).

    Raises:
        ValueError: If the size is out of range.
    """

    mixes_samples = False  # the logit of an image depends on no other image of its batch

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        base_channels: int = 256,
        spectral_norm: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        check_size(sample_size)
        width = in_channels * sample_size**2
        layers: list[nn.Module] = []
        for narrower in (4 * base_channels, 2 * base_channels, base_channels):
            layers += [nn.Linear(width, narrower), nn.LeakyReLU(0.2)]
            width = narrower
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(width, 1)
        self.class_embedding = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        start_classes(self, spectral_norm)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`DiscriminatorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing or unexpected classes.
        """
        check_images(sample, class_labels, self.config)
        features = self.layers(sample.flatten(1)).to(self.linear.weight.dtype)
        with torch.autocast(sample.device.type, enabled=False):  # losses are about small differences of logits
            logits = self.linear(features).squeeze(1).float()
            if self.class_embedding is not None:
                logits = logits + (self.class_embedding(class_labels) * features).sum(1).float()
        return DiscriminatorOutput(logits=logits) if return_dict else (logits,)
