"""FastGAN (https://huggingface.co/papers/2101.04775) for 8 to 256 pixels: light networks for few images.

Written from sections 3.1 and 3.2 of the paper. What differs: the noise of the authors' program and its spectral
normalisation of the generator are left out, and a judgement is the mean over the map of logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    check_several,
    cropped,
    normalisation,
    stage_sizes,
    start_classes,
    with_class,
)

SKIPPED = 4  # stages that an excitation reaches over: from 4 to 64 pixels, from 8 to 128, from 16 to 256
LAST_SIZE = 8  # pixels down to which the discriminator halves its maps
MOST_CHANNELS = 512


def gated(width_in: int, width_out: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """Returns a convolution, a normalisation and a gated linear unit."""
    return nn.Sequential(
        nn.Conv2d(width_in, 2 * width_out, 3, padding=1, bias=False), norm(2 * width_out), nn.GLU(dim=1)
    )


class Excitation(nn.Module):
    """Skip-layer excitation: a small map says how much of each channel of a large one counts (equation 2).

    Args:
        width_small, width_large (`int`): Channels of the two maps.
    """

    def __init__(self, width_small: int, width_large: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width_small, width_large, 4), nn.LeakyReLU(0.1), nn.Conv2d(width_large, width_large, 1)
        )

    def forward(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        return large * self.layers(F.adaptive_avg_pool2d(small, 4)).sigmoid()


class FastGANGenerator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Makes images from latents with one gated convolution for each size, and excitations from small maps to large ones.

    Parameters:
        sample_size (`int`, *optional*, defaults to 64):
            Height and width of the images, 8 to 256.
        out_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        latent_dim (`int`, *optional*, defaults to 256):
            Length of the latents, which are standard normal.
        base_channels (`int`, *optional*, defaults to 32):
            Channels at the full size; they double with each halving, up to 512.
        num_class_embeds (`int`, *optional*):
            Number of classes. Their embedding of length `latent_dim` is appended to the latents.

    Raises:
        ValueError: If the size is out of range.
    """

    noise_shapes: tuple[tuple[int, ...], ...] = ()  # it takes no noise beside the latents
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        out_channels: int = 3,
        latent_dim: int = 256,
        base_channels: int = 32,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        sizes = stage_sizes(sample_size)
        widths = [min(MOST_CHANNELS, base_channels * 2**level) for level in reversed(range(len(sizes)))]
        self.start_size, self.skipped = sizes[0], min(SKIPPED, len(sizes) - 1)
        self.class_embedding = nn.Embedding(num_class_embeds, latent_dim) if num_class_embeds else None
        self.linear = nn.Linear(latent_dim * (2 if num_class_embeds else 1), 2 * widths[0] * sizes[0] ** 2, bias=False)
        self.norm = nn.BatchNorm2d(2 * widths[0])
        self.stages = nn.ModuleList(gated(*pair) for pair in zip(widths, widths[1:], strict=False))
        pairs = zip(widths, widths[self.skipped :], strict=False)
        self.excitations = nn.ModuleList(Excitation(*pair) for pair in pairs)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.02)  # as in DCGAN

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
        maps = [F.glu(self.norm(hidden), dim=1)]
        for number, stage in enumerate(self.stages, 1):
            hidden = self.checkpointed(stage, F.interpolate(maps[-1], scale_factor=2, mode="nearest"))
            if number >= self.skipped:
                hidden = self.excitations[number - self.skipped](maps[number - self.skipped], hidden)
            maps.append(hidden)
        sample = self.conv_out(maps[-1]).float().tanh()
        sample = cropped(sample, self.config.sample_size)
        return GeneratorOutput(sample=sample) if return_dict else (sample,)

    def latent_weight(self) -> torch.Tensor:
        """Returns the weight that the latent meets first: `(N, latent_dim)`. Its singular vectors are directions of
        change (SeFa)."""
        return self.linear.weight[:, : self.config.latent_dim]


@dataclass
class FastGANDiscriminatorOutput(DiscriminatorOutput):
    """
    The output of the discriminator.

    Args:
        logits (`torch.Tensor` of shape `(B,)`): float32; large for what is taken to be real.
        last_map, map_before (`torch.Tensor` of shape `(B, C, H, W)`): The features that
            [`FastGANDiscriminator.reconstruct`] decodes; the same map twice, if there is one only.
    """

    last_map: torch.Tensor
    map_before: torch.Tensor


class DownBlock(nn.Module):
    """Halves a map on two ways, by strided convolutions and by means of four pixels, and adds them."""

    def __init__(self, width_in: int, width_out: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, bias=False), norm(width_out), nn.LeakyReLU(0.2),
            nn.Conv2d(width_out, width_out, 3, padding=1, bias=False), norm(width_out), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.direct = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(width_in, width_out, 1, bias=False), norm(width_out), nn.LeakyReLU(0.2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.main(x) + self.direct(x)) / 2


class FastGANDiscriminator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Tells real images from generated ones, with features from which small decoders can restore the image: that keeps
    it from looking at a few details of few images (self-supervision, section 3.2).

    Parameters:
        sample_size (`int`, *optional*, defaults to 64):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        base_channels (`int`, *optional*, defaults to 32):
            Channels after the first halving; they double with each further one, up to 512.
        norm (`str`, *optional*, defaults to `"batch"`):
            Normalisation: `"batch"` is that of the paper; `"group"` and `"none"` keep images independent, which
            gradient penalties need.
        norm_num_groups (`int`, *optional*, defaults to 8):
            Groups of the group normalisation.
        spectral_norm (`bool`, *optional*, defaults to `False`):
            Whether to divide the weights, but for those of the decoders, by their largest singular value.
        reconstructs (`bool`, *optional*, defaults to `False`):
            Whether it has the decoders.
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
        sample_size: int = 64,
        in_channels: int = 3,
        base_channels: int = 32,
        norm: str = "batch",
        norm_num_groups: int = 8,
        spectral_norm: bool = False,
        reconstructs: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        layer_of = normalisation(norm, norm_num_groups)
        stage_sizes(sample_size)  # checks it
        self.conv_in = nn.Sequential(
            nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2)
        )
        size, widths = sample_size // 2, [base_channels]
        while size > LAST_SIZE:
            size, widths = size // 2, [*widths, min(MOST_CHANNELS, 2 * widths[-1])]
        self.stages = nn.ModuleList(DownBlock(*pair, layer_of) for pair in zip(widths, widths[1:], strict=False))
        last, wide = widths[-1], min(MOST_CHANNELS, 2 * widths[-1])
        self.head = nn.Sequential(nn.Conv2d(last, wide, 1, bias=False), layer_of(wide), nn.LeakyReLU(0.2))
        self.conv_out = nn.Conv2d(wide, 1, min(4, size))
        self.class_embedding = nn.Embedding(num_class_embeds, last) if num_class_embeds else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
        start_classes(self, spectral_norm)
        self.decoders: nn.ModuleList | None = None
        if reconstructs:  # from the last map the whole image, and from a quarter of the one before a quarter of it
            levels = (len(widths) - 1, max(0, len(widths) - 2))
            decoders = (self._decoder(widths[level], level + 1, in_channels) for level in levels)
            self.decoders = nn.ModuleList(decoders)

    @staticmethod
    def _decoder(width: int, doublings: int, channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(doublings):
            narrow = max(8, width // 2)
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), gated(width, narrow)]
            width = narrow
        return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    @property
    def mixes_samples(self) -> bool:
        """Whether the logit of an image depends on the other images of its batch."""
        return self.config.norm == "batch"

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> FastGANDiscriminatorOutput | tuple[torch.Tensor, ...]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FastGANDiscriminatorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing or unexpected classes.
        """
        check_images(sample, class_labels, self.config)
        maps = [self.checkpointed(self.conv_in, sample)]
        for stage in self.stages:
            maps.append(self.checkpointed(stage, maps[-1]))
        features = self.checkpointed(self.head, maps[-1])
        with torch.autocast(sample.device.type, enabled=False):  # losses are about small differences of logits
            logits = self.conv_out(features.to(self.conv_out.weight.dtype)).float().mean((1, 2, 3))
        if self.class_embedding is not None:
            embedded = self.class_embedding(class_labels).float()
            logits = logits + (embedded * maps[-1].float().sum((2, 3))).sum(1)
        values = (logits, maps[-1], maps[max(0, len(maps) - 2)])
        return FastGANDiscriminatorOutput(*values) if return_dict else values

    def reconstruct(
        self, last_map: torch.Tensor, map_before: torch.Tensor, quarters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes maps of features into images that [`reconstruction_targets`] should equal.

        Args:
            last_map, map_before (`torch.Tensor`): Of [`FastGANDiscriminatorOutput`].
            quarters (`torch.Tensor` of shape `(B,)`, int64): Which quarter of each image the second is about: 0 to 3,
                row by row.

        Returns:
            The whole images and the quarters, in [-1, 1], at the size that the decoders give them.

        Raises:
            ValueError: If the network has no decoders.
        """
        if self.decoders is None:
            raise ValueError("reconstructs is False: this network has no decoders.")
        whole, part = self.decoders
        return whole(last_map), part(quarter_of(map_before, quarters))


def quarter_of(images: torch.Tensor, quarters: torch.Tensor) -> torch.Tensor:
    """Cuts a quarter out of each of some images or maps `(B, C, H, W)`; an odd row or column in the middle is left."""
    height, width = images.shape[-2] // 2, images.shape[-1] // 2
    rows, columns = (slice(0, height), slice(-height, None)), (slice(0, width), slice(-width, None))
    parts = torch.stack([images[..., row, column] for row in rows for column in columns], 1)
    return parts[torch.arange(len(images), device=images.device), quarters]


def reconstruction_targets(
    images: torch.Tensor, quarters: torch.Tensor, like: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what [`FastGANDiscriminator.reconstruct`] should give: the images and their quarters, resized."""
    whole, part = (each.shape[-2:] for each in like)
    return (
        F.interpolate(images, whole, mode="bilinear", antialias=True),
        F.interpolate(quarter_of(images, quarters), part, mode="bilinear", antialias=True),
    )
