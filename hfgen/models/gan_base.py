"""Parts that the GANs share: outputs, checks of what comes in, the bound of images, sizes of feature maps, and
normalisation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hfgen.models.labels import check_presence


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


def with_class(
    latents: torch.Tensor, class_labels: torch.Tensor | None, config: Any, embedding: nn.Module | None
) -> torch.Tensor:
    """Appends the embedding of the class to latents, for a network that has one.

    Args:
        latents (`torch.Tensor` of shape `(B, latent_dim)`): Latents.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes.
        config: That of the generator.
        embedding (`nn.Module`, *optional*): Its embedding of classes.

    Raises:
        ValueError: For latents of the wrong shape, or missing or unexpected classes.
    """
    if latents.ndim != 2 or latents.shape[1] != config.latent_dim:
        raise ValueError(f"latents has shape {tuple(latents.shape)}, but must be (B, {config.latent_dim}).")
    check_presence(class_labels, config.num_class_embeds)
    return latents if embedding is None else torch.cat([latents, embedding(class_labels).to(latents.dtype)], dim=1)


def check_several(latents: torch.Tensor, training: bool) -> None:
    """Raises `ValueError` for a single image in training mode, as batch normalisation learns from several."""
    if training and len(latents) == 1:
        raise ValueError("latents has one row, but batch normalisation learns from several: use a larger batch.")


def cropped(sample: torch.Tensor, size: int) -> torch.Tensor:
    """Crops images `(B, C, H, H)` in the centre to the size that was asked for."""
    margin = (sample.shape[-1] - size) // 2
    return sample[..., margin : margin + size, margin : margin + size]


def check_images(sample: torch.Tensor, class_labels: torch.Tensor | None, config: Any) -> None:
    """Raises `ValueError` for images of another shape than a discriminator's, or missing or unexpected classes."""
    channels, size = config.in_channels, config.sample_size
    if tuple(sample.shape[1:]) != (channels, size, size):
        raise ValueError(f"sample has shape {tuple(sample.shape)}, but must be (B, {channels}, {size}, {size}).")
    check_presence(class_labels, config.num_class_embeds)


def normalisation(norm: str, num_groups: int) -> Callable[[int], nn.Module]:
    """Returns a function from a number of channels to the layer that normalises them.

    Raises:
        ValueError: For another one than `"group"`, `"batch"` and `"none"`.
    """
    norms: dict[str, Callable[[int], nn.Module]] = {
        "group": lambda width: nn.GroupNorm(num_groups, width),
        "batch": nn.BatchNorm2d,
        "none": lambda width: nn.Identity(),
    }
    if norm not in norms:
        raise ValueError(f"norm is {norm!r}, but must be one of {', '.join(norms)}.")
    return norms[norm]


def start_classes(discriminator: nn.Module, spectral: bool) -> None:
    """Lets the classes of a discriminator, its `class_embedding`, begin without a meaning, at 0. With spectral
    normalisation, all weights are divided by their largest singular value instead
    (https://huggingface.co/papers/1802.05957), of which 0 has none."""
    embedding: Any = discriminator.class_embedding
    if spectral:
        for part in list(discriminator.modules()):
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.Embedding)):
                spectral_norm(part)
    elif embedding is not None:
        nn.init.zeros_(embedding.weight)
