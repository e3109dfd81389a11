"""A translator in miniature, the features it is judged by, and a pool of past translations."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin


class Translator(ModelMixin, ConfigMixin):
    """Images of one set in, images of the other out; `base` is never trained."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, width: int = 4):
        super().__init__()
        self.base = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From images to images `(B, C, H, W)` in [-1, 1]."""
        return self.tail(self.head(self.base(images).relu()).relu()).tanh()


class Features(nn.Module):
    """Fixed features of an image: `(B, 4)`; dropout shows whether it is in evaluation mode."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).mean((2, 3))


class Pool(nn.Module):
    """The last translations, other ones in each process."""

    past: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("past", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, images: torch.Tensor) -> None:
        """Puts images in the places of the oldest."""
        places = (self.count + torch.arange(len(images), device=images.device)) % len(self.past)
        self.past[places] = images.float()
        self.count += len(images)
