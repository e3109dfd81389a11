"""Parts that translators of images share: normalisation, and images of any size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hfgen.models.checkpointing import Checkpointing
from hfgen.models.gan_base import GeneratorOutput


class InstanceNorm(nn.Module):
    """Normalises each channel of each image over its pixels, in float32, without scale and shift
    (https://huggingface.co/papers/1607.08022)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.instance_norm(x.float()).to(x.dtype)


def start(module: nn.Module) -> None:
    """Draws weights of convolutions from a normal distribution of deviation 0.02, as CycleGAN's paper does; biases
    begin at 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def at_multiples(
    make: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor, multiple: int, least: int
) -> torch.Tensor:
    """Calls `make` with images `(B, C, H, W)` that are enlarged below and on the right to sides of a multiple, at
    least so many pixels, by repeating their last row and column, and crops what comes out."""
    height, width = sample.shape[-2:]
    sizes = [max(least, -(-side // multiple) * multiple) for side in (height, width)]
    padded = F.pad(sample, (0, sizes[1] - width, 0, sizes[0] - height), mode="replicate")
    return make(padded)[..., :height, :width]


def check_channels(sample: torch.Tensor, channels: int) -> None:
    """Raises `ValueError` for images of another number of channels."""
    if sample.ndim != 4 or sample.shape[1] != channels:
        raise ValueError(f"sample has shape {tuple(sample.shape)}, but must be (B, {channels}, H, W).")


class Translator(Checkpointing):
    """Turns images into others of the same size: a part of networks that have `_translate`, for images whose sides are
    a `multiple`."""

    config: Any

    @property
    def multiple(self) -> int:
        """What the sides of images are divided by on the way."""
        raise NotImplementedError

    def _translate(self, sample: torch.Tensor) -> torch.Tensor:
        """Translates images `(B, C, H, W)` whose sides are a `multiple`, at least twice that."""
        raise NotImplementedError

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> GeneratorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] of any size.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`GeneratorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of another number of channels.
        """
        check_channels(sample, self.config.in_channels)
        made = at_multiples(self._translate, sample, self.multiple, 2 * self.multiple)
        return GeneratorOutput(sample=made) if return_dict else (made,)
