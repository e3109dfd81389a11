"""What flows have in common: outputs, checks, and the map of pixels to the real line."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from hfgen.models.labels import check_classes

PIXEL_MAPS = ("linear", "logit")
WIDTH = 0.3  # levels at each end over which the logit of `to_line` is nearly a straight line
LEVELS = 255.0


@dataclass
class FlowEncoderOutput(BaseOutput):
    """
    Output of [`TarFlow.encode`] and [`Glow.encode`].

    Args:
        latents (`torch.Tensor` of shape `(B, C, H, W)`): A priori standard normal; float32 (float64 for float64).
        log_det (`torch.Tensor` of shape `(B,)`):
            Logarithm of the determinant of the Jacobian of the latents: `log p(x) = log N(latents; 0, 1) + log_det`.
    """

    latents: torch.Tensor
    log_det: torch.Tensor


@dataclass
class FlowDecoderOutput(BaseOutput):
    """
    Output of [`TarFlow.decode`] and [`Glow.decode`].

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`):
            Images in about [-1, 1], with the noise that flows are trained with; float32 (float64 for float64).
    """

    sample: torch.Tensor


class Flow:
    """The base of flows between images and latents of the same shape."""

    config: Any
    encode: Any

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of an image's latents."""
        return (self.config.in_channels, self.config.sample_size, self.config.sample_size)

    @property
    def decoding_steps(self) -> int:
        """How often a part of the network runs for an image that is decoded; 1, where all of it runs once."""
        return 1

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> FlowEncoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        See `encode`.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in about [-1, 1], with noise.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FlowEncoderOutput`] instead of a tuple.
        """
        return self.encode(sample, class_labels, return_dict)


def to_line(sample: torch.Tensor, pixel_map: str) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Maps pixels to the line on which a flow sees them.

    `"linear"` leaves them in [-1, 1]. `"logit"` spreads the ends of the range, where many pixels are nearly or exactly
    black or white, as the logit of RealNVP (https://huggingface.co/papers/1605.08803, section 4.1) does: with the
    level `v` in [0, 255], `y = (asinh(v) - asinh(255 - v)) / 4`, which is `log(v / (255 - v)) / 4` but within about a
    level of the ends. There it is nearly a straight line, and so takes noise that leaves the range.

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`): Pixels in about [-1, 1], float32 or float64.
        pixel_map (`str`): One of `PIXEL_MAPS`.

    Returns:
        The values `(B, C, H, W)`, and the log-determinant `(B,)`.
    """
    if pixel_map == "linear":
        return sample, sample.new_zeros(len(sample))
    low = (sample + 1) * (LEVELS / 2) / WIDTH
    high = LEVELS / WIDTH - low
    slope = (1 + low.square()).rsqrt() + (1 + high.square()).rsqrt()
    constant = math.log(LEVELS / 2 / WIDTH / 4)
    return (low.asinh() - high.asinh()) / 4, (slope.log() + constant).flatten(1).sum(1)


def from_line(values: torch.Tensor, pixel_map: str) -> torch.Tensor:
    """Inverts [`to_line`]: the pixels alone."""
    if pixel_map == "linear":
        return values
    # With a = asinh(v) and b = asinh(255 - v), a - b is given, and sinh(a) + sinh(b) = 255 gives their mean.
    half = (2 * values).clamp(-40, 40)  # far outside: what is more would be infinite in float32
    mean = (LEVELS / WIDTH / 2 / half.cosh()).asinh()
    low, high = (mean + half).sinh(), (mean - half).sinh()
    # Each is exact near its own end.
    return torch.where(values < 0, low * WIDTH * (2 / LEVELS) - 1, 1 - high * WIDTH * (2 / LEVELS))


def check_options(config: Any) -> None:
    """Raises `ValueError` for an unknown map of pixels, or an image size out of range."""
    if config.pixel_map not in PIXEL_MAPS:
        raise ValueError(f"pixel_map is {config.pixel_map!r}, but must be one of {', '.join(PIXEL_MAPS)}.")
    if not 4 <= config.sample_size <= 256:
        raise ValueError(f"sample_size is {config.sample_size}, but this network takes images of 4 to 256 pixels.")


def check_input(tensor: torch.Tensor, name: str, class_labels: torch.Tensor | None, config: Any) -> None:
    """Raises `ValueError` for images or latents, which have the same shape, of another one than the network's, or
    missing, unexpected or unknown classes."""
    channels, size = config.in_channels, config.sample_size
    if tuple(tensor.shape[1:]) != (channels, size, size):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but must be (B, {channels}, {size}, {size}).")
    check_classes(class_labels, config.num_class_embeds, len(tensor))
