"""The discriminator of pix2pix and CycleGAN (PatchGAN): a logit for each patch of an image."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.translator_base import InstanceNorm, check_channels, start


@dataclass
class PatchDiscriminatorOutput(BaseOutput):
    """
    The output of a discriminator of patches.

    Args:
        logits (`torch.Tensor` of shape `(B, h, w)`): float32; large where an image is taken to be real.
    """

    logits: torch.Tensor


class PatchDiscriminator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Tells real patches of images from generated ones (https://huggingface.co/papers/1611.07004, appendix 6.1.2).

    Parameters:
        in_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        base_channels (`int`, *optional*, defaults to 64):
            Channels of the first layer; they double with each further one, up to 8 times as many.
        num_layers (`int`, *optional*, defaults to 3):
            How often images are halved: a logit sees 16, 34 or 70 pixels of a side for 1, 2 or 3.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        widths = [base_channels * min(8, 2**level) for level in range(num_layers + 1)]
        strides = [2] * num_layers + [1]
        layers: list[nn.Module] = []
        for number, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            before = widths[number - 1] if number else in_channels
            layers.append(nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=not number))
            layers += [InstanceNorm()] * bool(number) + [nn.LeakyReLU(0.2)]
        self.layers = nn.ModuleList(layers)
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, padding=1)
        start(self)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> PatchDiscriminatorOutput | tuple[torch.Tensor]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`PatchDiscriminatorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of another number of channels.
        """
        check_channels(sample, self.config.in_channels)
        hidden = self.in_blocks(self.layers, nn.Conv2d, sample)
        with torch.autocast(sample.device.type, enabled=False):  # losses are about small differences of logits
            logits = self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()[:, 0]
        return PatchDiscriminatorOutput(logits=logits) if return_dict else (logits,)
