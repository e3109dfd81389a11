"""DCGAN (https://huggingface.co/papers/1511.06434) for images of 8 to 256 pixels, by class if asked to."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.gan_base import (
    DiscriminatorOutput,
    GeneratorOutput,
    check_images,
    check_several,
    cropped,
    normalisation,
    stage_sizes,
    start_classes,
    with_class,
)

DCGANGeneratorOutput, DCGANDiscriminatorOutput = GeneratorOutput, DiscriminatorOutput  # their earlier names


class DCGANGenerator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Makes images from latents with transposed convolutions and batch normalisation.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        out_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_dim (`int`, *optional*, defaults to 100):
            Length of the latents, which are standard normal.
        base_channels (`int`, *optional*, defaults to 32):
            Channels at the full size; they double with each halving, up to 512.
        num_class_embeds (`int`, *optional*):
            Number of classes. Their embedding of length `class_embed_dim` is appended to the latents.
        class_embed_dim (`int`, *optional*, defaults to 32):
            Length of the class embedding.

    Raises:
        ValueError: If the size is out of range.
    """

    noise_shapes: tuple[tuple[int, ...], ...] = ()  # it takes no noise beside the latents
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        out_channels: int = 1,
        latent_dim: int = 100,
        base_channels: int = 32,
        num_class_embeds: int | None = None,
        class_embed_dim: int = 32,
    ):
        super().__init__()
        sizes = stage_sizes(sample_size)
        self.start_size = sizes[0]
        widths = [min(512, base_channels * 2**level) for level in reversed(range(len(sizes)))]
        self.class_embedding = nn.Embedding(num_class_embeds, class_embed_dim) if num_class_embeds else None
        inputs = latent_dim + (class_embed_dim if num_class_embeds else 0)
        self.linear = nn.Linear(inputs, widths[0] * self.start_size**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for wide, narrow in zip(widths, widths[1:], strict=False):
            # A kernel of 4 is a multiple of the stride of 2: all pixels get the same number of contributions.
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.02)  # DCGAN, section 4

    def forward(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            latents (`torch.Tensor` of shape `(B, latent_dim)`): Standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`GeneratorOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, missing or unexpected classes, or one image in training mode,
                whose batch normalisation needs several.
        """
        latents = with_class(latents, class_labels, self.config, self.class_embedding)
        check_several(latents, self.training)
        hidden = self.linear(latents).unflatten(1, (-1, self.start_size, self.start_size))
        sample = self.in_blocks([*self.layers, self.conv_out], nn.ConvTranspose2d, hidden).float().tanh()
        sample = cropped(sample, self.config.sample_size)
        return GeneratorOutput(sample=sample) if return_dict else (sample,)

    def latent_weight(self) -> torch.Tensor:
        """Returns the weight that the latent meets first: `(N, latent_dim)`. Its singular vectors are directions of
        change (SeFa)."""
        return self.linear.weight[:, : self.config.latent_dim]


class DCGANDiscriminator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Tells real images from generated ones with strided convolutions.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        base_channels (`int`, *optional*, defaults to 32):
            Channels after the first halving; they double with each further one, up to 512.
        norm (`str`, *optional*, defaults to `"group"`):
            Normalisation after all but the first convolution: `"group"` and `"none"` keep images independent, which
            gradient penalties need; `"batch"` is that of the paper.
        norm_num_groups (`int`, *optional*, defaults to 8):
            Groups of the group normalisation.
        spectral_norm (`bool`, *optional*, defaults to `False`):
            Whether to divide all weights by their largest singular value (https://huggingface.co/papers/1802.05957).
        num_class_embeds (`int`, *optional*):
            Number of classes; the logit then has the projection of the class on the features
            (https://huggingface.co/papers/1802.05637).

    Raises:
        ValueError: If the size is out of range, or for an unknown normalisation.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        base_channels: int = 32,
        norm: str = "group",
        norm_num_groups: int = 8,
        spectral_norm: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        layer_of = normalisation(norm, norm_num_groups)
        halvings = len(stage_sizes(sample_size)) - 1
        size, width = sample_size, in_channels
        layers: list[nn.Module] = []
        for level in range(halvings):
            wider = min(512, base_channels * 2**level)
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1)]
            layers += [layer_of(wider)] if level else []
            layers += [nn.LeakyReLU(0.2)]
            size, width = size // 2, wider
        wider = min(512, 2 * width)
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), layer_of(wider), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(wider * ((size + 1) // 2) ** 2, 1)
        self.class_embedding = nn.Embedding(num_class_embeds, wider) if num_class_embeds else None
        start_classes(self, spectral_norm)

    @property
    def mixes_samples(self) -> bool:
        """Whether the logit of an image depends on the other images of its batch."""
        return self.config.norm == "batch"

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`DiscriminatorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing or unexpected classes.
        """
        check_images(sample, class_labels, self.config)
        features = self.in_blocks(self.layers, nn.Conv2d, sample).to(self.linear.weight.dtype)
        with torch.autocast(sample.device.type, enabled=False):  # losses are about small differences of logits
            logits = self.linear(features.flatten(1)).squeeze(1).float()
            if self.class_embedding is not None:
                logits = logits + (self.class_embedding(class_labels) * features.sum((2, 3))).sum(1).float()
        return DiscriminatorOutput(logits=logits) if return_dict else (logits,)
