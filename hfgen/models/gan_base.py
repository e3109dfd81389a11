"""Parts that the GANs share: their outputs, and the sizes of their feature maps."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


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
