"""A PixelCNN in miniature (https://huggingface.co/papers/1601.06759): each pixel from those above and to its left."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin

LEVELS = 256


class MaskedConv(nn.Conv2d):
    """A 3x3 convolution that sees only what comes before a pixel, and the pixel itself if it may."""

    def __init__(self, channels_in: int, channels_out: int, sees_itself: bool):
        super().__init__(channels_in, channels_out, 3, padding=1)
        mask = torch.zeros(3, 3)
        mask[0], mask[1, 0], mask[1, 1] = 1, 1, float(sees_itself)
        self.register_buffer("mask", mask)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.conv2d(inputs, self.weight * self.mask, self.bias, padding=1)


class PixelCNN(ModelMixin, ConfigMixin):
    """Logits of the levels of each pixel of a gray image."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, width: int = 16):
        super().__init__()
        self.first, self.second = MaskedConv(1, width, False), MaskedConv(width, width, True)
        self.last = nn.Conv2d(width, LEVELS, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From images `(B, 1, H, W)` in [-1, 1] to logits `(B, 256, H, W)`."""
        return self.last(F.relu(self.second(F.relu(self.first(images)))))

    def nats(self, images: torch.Tensor) -> torch.Tensor:
        """The negative log-probability of each 8-bit image: `(B,)`."""
        levels = ((images[:, 0] + 1) * 127.5).round().long()
        return F.cross_entropy(self(images).float(), levels, reduction="none").flatten(1).sum(1)
