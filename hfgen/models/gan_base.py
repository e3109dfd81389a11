"""Parts that the GANs share: their outputs, the bound of images, and the sizes of feature maps."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class GeneratorOutput(BaseOutput):
    """
    The output of a generator.

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`): Images, float32, in or about [-1, 1].
    """

    sample: torch.Tensor


@dataclass
class DiscriminatorOutput(BaseOutput):
    """
    The output of a discriminator.

    Args:
        logits (`torch.Tensor` of shape `(B,)`): float32; large for what is taken to be real.
    """

    logits: torch.Tensor


def output_bound(activation: str | None) -> nn.Module:
    """Returns the last layer of a generator: for `"tanh"` one that keeps images within [-1, 1], for `None` none.

    Without it a generator must learn where black and white end: in the data they lie exactly at -1 and 1, in its
    images a little to both sides, by which a discriminator tells the images from the data whatever they show.

    Raises:
        ValueError: For another activation.
    """
    if activation not in ("tanh", None):
        raise ValueError(f"output_activation is {activation!r}, but must be 'tanh' or None.")
    return nn.Identity() if activation is None else nn.Tanh()


def check_size(sample_size: int) -> None:
    """Raises `ValueError` if the size is not between 8 and 256."""
    if not 8 <= sample_size <= 256:
        raise ValueError(f"sample_size is {sample_size}, but this network makes images of 8 to 256 pixels.")


def stage_sizes(sample_size: int) -> list[int]:
    """Returns the sizes of the feature maps from the smallest, 4 to 7 pixels, to one that holds the image: 28 gives 7,
    14, 28.

    Raises:
        ValueError: If the size is not between 8 and 256.
    """
    check_size(sample_size)
    stages = 1
    while -(-sample_size // 2**stages) > 7:
        stages += 1
    start = -(-sample_size // 2**stages)
    return [start * 2**stage for stage in range(stages + 1)]
