"""A residual GAN without normalisation for 8 to 256 pixels, after R3GAN (https://huggingface.co/papers/2501.05441).

Written from section 4 and appendix of the paper. What makes it train without normalisation is how it starts: the last
convolution of each residual branch is zero, and the others are scaled down with the depth (Fixup,
https://huggingface.co/papers/1901.09321).
"""

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.gan_base import (
    DiscriminatorOutput,
    GeneratorOutput,
    check_images,
    cropped,
    output_bound,
    stage_sizes,
    with_class,
)

ResidualGeneratorOutput, ResidualDiscriminatorOutput = GeneratorOutput, DiscriminatorOutput  # their earlier names


def stage_widths(block_out_channels: Sequence[int], stages: int) -> list[int]:
    """Returns the channels of each stage from the smallest size up; the last given width serves all the larger
    sizes."""
    widths = list(block_out_channels)
    return (widths + widths[-1:] * stages)[:stages]


class ResidualBlock(nn.Module):
    """`x + conv1x1(act(conv3x3(act(conv1x1(x)))))`, twice as wide inside, with a bias in each activation.

    Args:
        width (`int`): Channels.
        group_width (`int`): Channels per group of the 3x3 convolution; 0 for a plain one.
        total_blocks (`int`): Residual blocks of the whole network, which the initial scale depends on.
    """

    def __init__(self, width: int, group_width: int, total_blocks: int):
        super().__init__()
        inner = 2 * width
        groups = inner // group_width if group_width else 1
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bias1 = nn.Parameter(torch.zeros(inner, 1, 1))
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)
        self.bias2 = nn.Parameter(torch.zeros(inner, 1, 1))
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        # Fixup: L^(-1 / (2m - 2)) with m = 3 convolutions per branch, the last of them 0.
        for conv in (self.conv1, self.conv2):
            scaled_he_(conv, total_blocks**-0.25)
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(self.conv1(x) + self.bias1, 0.2)
        hidden = F.leaky_relu(self.conv2(hidden) + self.bias2, 0.2)
        return x + self.conv3(hidden)


def scaled_he_(layer: nn.Conv2d | nn.Linear, scale: float) -> None:
    """Initialises a convolution as He does for leaky ReLUs with a slope of 0.2, times `scale`."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=scale * math.sqrt(2 / (1 + 0.2**2) / fan_in))


class ResidualGenerator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Makes images from latents: a learned basis for the smallest feature map, residual blocks, linear upsampling.

    Parameters:
        sample_size (`int`, *optional*, defaults to 32):
            Height and width of the images, 8 to 256.
        out_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        latent_dim (`int`, *optional*, defaults to 64):
            Length of the latents, which are standard normal.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(192, 192, 192, 192)`):
            Channels of each stage, from the smallest size up; the last one serves all further stages.
        layers_per_block (`int`, *optional*, defaults to 2):
            Residual blocks per stage.
        group_width (`int`, *optional*, defaults to 16):
            Channels per group of the 3x3 convolutions, as in the paper; 0 for plain convolutions, which are faster on
            a CPU.
        num_class_embeds (`int`, *optional*):
            Number of classes. Their embedding of length `latent_dim` is appended to the latents.
        output_activation (`str`, *optional*):
            `"tanh"` keeps images within [-1, 1]. By default they have no bound: clamp them before you show them.

    Raises:
        ValueError: If the size is out of range, or the activation is another one.
    """

    noise_shapes: tuple[tuple[int, ...], ...] = ()  # it takes no noise beside the latents
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        out_channels: int = 3,
        latent_dim: int = 64,
        block_out_channels: Sequence[int] = (192, 192, 192, 192),
        layers_per_block: int = 2,
        group_width: int = 16,
        num_class_embeds: int | None = None,
        output_activation: str | None = None,
    ):
        super().__init__()
        sizes = stage_sizes(sample_size)
        widths = stage_widths(block_out_channels, len(sizes))
        total = layers_per_block * len(sizes)
        self.class_embedding = nn.Embedding(num_class_embeds, latent_dim) if num_class_embeds else None
        self.basis = nn.Parameter(torch.randn(widths[0], sizes[0], sizes[0]))
        self.linear = nn.Linear(latent_dim * (2 if num_class_embeds else 1), widths[0], bias=False)
        scaled_he_(self.linear, math.sqrt((1 + 0.2**2) / 2))
        self.projections, self.stages = nn.ModuleList(), nn.ModuleList()
        for number, width in enumerate(widths):
            previous = widths[max(0, number - 1)]
            project = nn.Conv2d(previous, width, 1, bias=False) if previous != width else nn.Identity()
            if isinstance(project, nn.Conv2d):
                scaled_he_(project, math.sqrt((1 + 0.2**2) / 2))
            blocks = [ResidualBlock(width, group_width, total) for _ in range(layers_per_block)]
            self.projections.append(project)
            self.stages.append(nn.Sequential(*blocks))
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1, bias=False)
        scaled_he_(self.conv_out, math.sqrt((1 + 0.2**2) / 2))
        self.bound = output_bound(output_activation)

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
            ValueError: For latents of the wrong shape, or missing or unexpected classes.
        """
        latents = with_class(latents, class_labels, self.config, self.class_embedding)
        hidden = self.basis * self.linear(latents)[:, :, None, None]
        for number, (project, stage) in enumerate(zip(self.projections, self.stages, strict=True)):
            if number:  # projected before it grows: the same result for a quarter of the work
                hidden = F.interpolate(project(hidden), scale_factor=2, mode="bilinear", align_corners=False)
            hidden = self.in_blocks(stage, ResidualBlock, hidden)
        sample = self.conv_out(hidden).float()
        sample = self.bound(cropped(sample, self.config.sample_size))
        return GeneratorOutput(sample=sample) if return_dict else (sample,)

    def latent_weight(self) -> torch.Tensor:
        """Returns the weight that the latent meets first: `(N, latent_dim)`. Its singular vectors are directions of
        change (SeFa)."""
        return self.linear.weight[:, : self.config.latent_dim]


class ResidualDiscriminator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Tells real images from generated ones: the mirror image of [`ResidualGenerator`].

    Parameters:
        sample_size (`int`, *optional*, defaults to 32):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(192, 192, 192, 192)`):
            Channels of each stage, from the smallest size up, as for the generator.
        layers_per_block (`int`, *optional*, defaults to 2):
            Residual blocks per stage.
        group_width (`int`, *optional*, defaults to 16):
            Channels per group of the 3x3 convolutions; 0 for plain convolutions, which are faster on a CPU.
        num_class_embeds (`int`, *optional*):
            Number of classes; the logit is then the projection of the features on the embedding of the class.

    Raises:
        ValueError: If the size is out of range.
    """

    mixes_samples = False  # the logit of an image depends on no other image of its batch
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        block_out_channels: Sequence[int] = (192, 192, 192, 192),
        layers_per_block: int = 2,
        group_width: int = 16,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        sizes = stage_sizes(sample_size)
        widths = stage_widths(block_out_channels, len(sizes))[::-1]
        total = layers_per_block * len(sizes)
        linear = math.sqrt((1 + 0.2**2) / 2)  # He's gain for a layer without an activation: 1
        self.pad = sizes[-1] - sample_size  # up to the size that can be halved
        self.conv_in = nn.Conv2d(in_channels, widths[0], 1, bias=False)
        scaled_he_(self.conv_in, linear)
        self.projections, self.stages = nn.ModuleList(), nn.ModuleList()
        for number, width in enumerate(widths):
            following = widths[min(number + 1, len(widths) - 1)]
            project = nn.Conv2d(width, following, 1, bias=False) if following != width else nn.Identity()
            if isinstance(project, nn.Conv2d):
                scaled_he_(project, linear)
            blocks = [ResidualBlock(width, group_width, total) for _ in range(layers_per_block)]
            self.stages.append(nn.Sequential(*blocks))
            self.projections.append(project)
        # A depthwise convolution that covers the whole smallest feature map: (B, C, s, s) -> (B, C).
        self.basis = nn.Parameter(torch.randn(widths[-1], sizes[0], sizes[0]) / sizes[0])
        features = widths[-1] if num_class_embeds else 1
        self.linear = nn.Linear(widths[-1], features, bias=False)
        scaled_he_(self.linear, linear)
        self.class_embedding = nn.Embedding(num_class_embeds, features) if num_class_embeds else None

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
        before, after = self.pad // 2, self.pad - self.pad // 2
        hidden = self.conv_in(F.pad(sample, (before, after, before, after)))
        for number, (stage, project) in enumerate(zip(self.stages, self.projections, strict=True)):
            hidden = self.in_blocks(stage, ResidualBlock, hidden)
            if number < len(self.stages) - 1:
                hidden = project(F.avg_pool2d(hidden, 2))
        with torch.autocast(sample.device.type, enabled=False):  # losses are about small differences of logits
            features = self.linear((hidden.to(self.basis.dtype) * self.basis).sum((2, 3)))
            if self.class_embedding is not None:
                features = features * self.class_embedding(class_labels) / math.sqrt(features.shape[1])
            logits = features.sum(1).float()
        return DiscriminatorOutput(logits=logits) if return_dict else (logits,)
