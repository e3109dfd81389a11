"""The residual translator of CycleGAN (https://huggingface.co/papers/1703.10593, appendix 7.2)."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.translator_base import InstanceNorm, Translator, start


class ResidualBlock(nn.Module):
    """`x + norm(conv(relu(norm(conv(x)))))`, padded by reflection."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm = InstanceNorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv2(self.norm(self.conv1(x)).relu()))


class ResNetTranslator(Translator, ModelMixin, ConfigMixin):
    r"""
    Turns images into others of the same size: halves them, residual blocks, and doubles them again.

    As in the paper, but larger maps are made by repeating pixels before a convolution in place of a transposed one,
    whose uneven overlaps show as a checkerboard (https://distill.pub/2016/deconv-checkerboard).

    Parameters:
        sample_size (`int`, *optional*, defaults to 64):
            Height and width of the images in training; it takes others, too.
        in_channels, out_channels (`int`, *optional*, defaults to 3):
            Channels of the images, and of those that it makes.
        base_channels (`int`, *optional*, defaults to 32):
            Channels of the first layer; 64 in the paper.
        num_blocks (`int`, *optional*, defaults to 6):
            Residual blocks: 6 up to 128 pixels and 9 from 256 on in the paper.
        num_downsamples (`int`, *optional*, defaults to 2):
            How often images are halved.
        learn_residual (`bool`, *optional*, defaults to `False`):
            Whether it computes what is to be added to an image in place of the image that is to become of it
            (https://huggingface.co/papers/1711.07064, section 3.2): it begins with leaving images as they are, and
            learns with few of them.

    Raises:
        ValueError: If the smallest maps would have fewer than 2x2 pixels, or for `learn_residual` with other channels
            than those of the images.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        base_channels: int = 32,
        num_blocks: int = 6,
        num_downsamples: int = 2,
        learn_residual: bool = False,
    ):
        super().__init__()
        if learn_residual and in_channels != out_channels:
            raise ValueError(
                f"learn_residual adds to images of {in_channels} channels, and out_channels is {out_channels}: use "
                "equal numbers, or False."
            )
        if sample_size < 2 ** (num_downsamples + 1):
            raise ValueError(
                f"sample_size is {sample_size}, but {num_downsamples} times halved it must be 2 or more: use a larger "
                "one, or fewer downsamples."
            )
        widths = [base_channels * 2**level for level in range(num_downsamples + 1)]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 7, padding=3, padding_mode="reflect", bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(width, after, 3, stride=2, padding=1, bias=False)
            for width, after in zip(widths, widths[1:], strict=False)
        )
        self.blocks = nn.ModuleList(ResidualBlock(widths[-1]) for _ in range(num_blocks))
        self.up = nn.ModuleList(
            nn.Conv2d(after, width, 3, padding=1, padding_mode="reflect", bias=False)
            for width, after in reversed(list(zip(widths, widths[1:], strict=False)))
        )
        self.conv_out = nn.Conv2d(widths[0], out_channels, 7, padding=3, padding_mode="reflect")
        self.norm = InstanceNorm()
        start(self)
        if learn_residual:
            nn.init.zeros_(self.conv_out.weight)

    @property
    def multiple(self) -> int:
        return 2**self.config.num_downsamples

    @property
    def feature_channels(self) -> list[int]:
        """Channels of what [`features`] returns."""
        base, halved = self.config.base_channels, self.config.num_downsamples
        widest = base * 2**halved
        return [self.config.in_channels, *(base * 2**level for level in range(1, halved + 1)), widest, widest]

    def features(self, sample: torch.Tensor) -> list[torch.Tensor]:
        """Computes the maps that a contrastive loss compares (https://huggingface.co/papers/2007.15651, appendix
        C.1): the image, what each halving makes of it, and what the first residual block and the one in the middle
        make of that.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1], of sides that the halvings divide.
        """
        maps, hidden = [sample], self.norm(self.conv_in(sample)).relu()
        for conv in self.down:
            hidden = self.norm(conv(hidden)).relu()
            maps.append(hidden)
        middle = (len(self.blocks) + 1) // 2
        for number, block in enumerate(self.blocks[:middle]):
            hidden = self.checkpointed(block, hidden)
            if number == 0:
                maps.append(hidden)
        return [*maps, hidden]

    def _translate(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv_in(sample)).relu()
        for conv in self.down:
            hidden = self.norm(conv(hidden)).relu()
        for block in self.blocks:
            hidden = self.checkpointed(block, hidden)
        for conv in self.up:
            larger = hidden.repeat_interleave(2, -1).repeat_interleave(2, -2)
            hidden = self.norm(conv(larger)).relu()
        made = self.conv_out(hidden).float()
        return sample.float() + made if self.config.learn_residual else made.tanh()
