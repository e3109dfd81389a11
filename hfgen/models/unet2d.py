"""diffusers' `UNet2DModel` for images of any size, initialised as in DDPM."""

from collections.abc import Sequence

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn


def build_unet(
    sample_size: int,
    channels: int,
    block_out_channels: Sequence[int],
    layers_per_block: int = 1,
    attention_resolutions: Sequence[int] | None = None,
    attention_head_dim: int = 32,
    norm_num_groups: int = 8,
    dropout: float = 0.0,
    num_class_embeds: int | None = None,
    channels_beside: int = 0,
) -> UNet2DModel:
    """Builds a UNet whose residual branches and output start at zero.

    Args:
        sample_size (`int`): Height and width of the images; it is halved between any two levels.
        channels (`int`): Channels of the images.
        block_out_channels (`Sequence[int]`): Channels of each level, from the full size down.
        layers_per_block (`int`, *optional*, defaults to 1): Residual blocks per level.
        attention_resolutions (`Sequence[int]`, *optional*): Heights of the feature maps that get self-attention;
            by default the lowest one. The middle block always has it.
        attention_head_dim (`int`, *optional*, defaults to 32): Channels per attention head.
        norm_num_groups (`int`, *optional*, defaults to 8): Groups of the group normalisation.
        dropout (`float`, *optional*, defaults to 0.0): Dropout in the residual blocks.
        num_class_embeds (`int`, *optional*): Number of classes, "no class" included.
        channels_beside (`int`, *optional*, defaults to 0): Channels of what it sees beside the noisy images.

    Raises:
        ValueError: If the size cannot be halved often enough, or attention is asked for at a size that does not occur,
            or with heads that are wider than its level.
    """
    levels = len(block_out_channels)
    sizes = level_sizes(sample_size, levels)
    attention = [sizes[-1]] if attention_resolutions is None else list(attention_resolutions)
    missing = [size for size in attention if size not in sizes]
    if missing:
        raise ValueError(f"attention_resolutions has {missing[0]}, but the feature maps are {sizes} pixels high.")
    attended = [width for width, size in zip(block_out_channels, sizes, strict=True) if size in attention]
    narrowest = min([*attended, block_out_channels[-1]])  # the last is that of the middle block
    if narrowest < attention_head_dim:
        raise ValueError(f"attention_head_dim is {attention_head_dim}, but a level with attention has {narrowest}.")
    down = tuple("AttnDownBlock2D" if size in attention else "DownBlock2D" for size in sizes)
    up = tuple("AttnUpBlock2D" if size in attention else "UpBlock2D" for size in reversed(sizes))
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=channels + channels_beside,
        out_channels=channels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=attention_head_dim,
        norm_num_groups=norm_num_groups,
        dropout=dropout,
        num_class_embeds=num_class_embeds,
    )
    zero_init_(unet)
    return unet


def level_sizes(sample_size: int, levels: int) -> list[int]:
    """Returns the heights of the feature maps, from the full size down.

    Raises:
        ValueError: If `sample_size` cannot be halved `levels - 1` times.
    """
    factor = 2 ** (levels - 1)
    if sample_size % factor or sample_size < factor:
        raise ValueError(f"{sample_size} pixels cannot be halved {levels - 1} times: use a multiple of {factor}.")
    return [sample_size >> level for level in range(levels)]


def use_plain_attention_(unet: UNet2DModel) -> None:
    """Computes attention as two matrix products instead of by torch's fused kernel.

    For the few hundred positions of small feature maps this is faster on a CPU.
    """
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def zero_init_(unet: UNet2DModel) -> None:
    """Lets residual branches and the output start at zero, as DDPM and EDM do and diffusers does not.

    The network then starts as the identity of its skip connections and its first loss is exactly that of predicting
    zero. Weights change, the file format does not.
    """
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith((".conv2", ".to_out.0")):
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
