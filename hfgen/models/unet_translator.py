"""The U-Net of pix2pix (https://huggingface.co/papers/1611.07004, section 3.2 and appendix 6.1)."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.translator_base import InstanceNorm, Translator, start

DROPPED = 3  # of the layers that enlarge, from the smallest map on, have dropout


class Enlarge(nn.Module):
    """Repeats pixels, a convolution, normalisation, dropout."""

    def __init__(self, before: int, width: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.norm, self.drop = InstanceNorm(), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        larger = x.relu().repeat_interleave(2, -1).repeat_interleave(2, -2)
        return self.drop(self.norm(self.conv(larger)))


class UNetTranslator(Translator, ModelMixin, ConfigMixin):
    r"""
    Turns images into others of the same size: halves them to a few pixels and doubles them again, with all that was
    halved beside.

    As in the paper, but instances are normalised instead of batches, larger maps are made by repeating pixels before
    a convolution, and dropout ends with training, so that an image has one translation.

    Parameters:
        sample_size (`int`, *optional*, defaults to 64):
            Height and width of the images in training; it takes others, too.
        in_channels, out_channels (`int`, *optional*, defaults to 3):
            Channels of the images, and of those that it makes.
        base_channels (`int`, *optional*, defaults to 64):
            Channels of the first layer; they double with each halving up to 8 times as many.
        num_downsamples (`int`, *optional*):
            How often images are halved; by default until 2 to 3 pixels are left, and 7 times at most.
        dropout (`float`, *optional*, defaults to 0.5):
            Dropout of the three smallest layers that enlarge.

    Raises:
        ValueError: If the size is less than 4.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        base_channels: int = 64,
        num_downsamples: int | None = None,
        dropout: float = 0.5,
    ):
        super().__init__()
        if sample_size < 4:
            raise ValueError(f"sample_size is {sample_size}, but must be at least 4.")
        levels = min(7, sample_size.bit_length() - 2) if num_downsamples is None else num_downsamples
        widths = [base_channels * min(8, 2**level) for level in range(levels)]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            if level == 0:
                self.down.append(nn.Conv2d(in_channels, width, 4, stride=2, padding=1))
            else:
                conv = nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1, bias=False)
                self.down.append(nn.Sequential(nn.LeakyReLU(0.2), conv, InstanceNorm()))
        self.up = nn.ModuleList()
        for number, level in enumerate(reversed(range(levels))):
            before = widths[level] * (2 if number else 1)  # beside what was halved
            dropped = dropout if number < DROPPED else 0.0
            self.up.append(Enlarge(before, widths[max(0, level - 1)], dropped))
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        start(self)

    @property
    def multiple(self) -> int:
        return 2 ** len(self.down)

    def _translate(self, sample: torch.Tensor) -> torch.Tensor:
        hidden, kept = sample, []
        for block in self.down:
            hidden = self.checkpointed(block, hidden)
            kept.append(hidden)
        for number, block in enumerate(self.up):
            hidden = self.checkpointed(block, torch.cat([hidden, kept[-1 - number]], 1) if number else hidden)
        return self.conv_out(hidden.relu()).float().tanh()
