"""A gated PixelCNN (https://huggingface.co/papers/1606.05328): masked convolutions that look at the pixels before.

Two stacks of layers go through the image. The vertical one sees all rows above, by convolutions over past rows; the
horizontal one sees what is to the left in the row, and takes in the vertical one's features at each layer (figure 2 of
the paper). Together they see every pixel before, without the blind spot of a single stack of masked kernels. The
distribution of a pixel is that of PixelCNN++ (https://huggingface.co/papers/1701.05517) or a softmax over levels.

Instead of masks the inputs are shifted, by a row and by a column, and each convolution is given what lies before its
block of rows or columns: zeros for a whole image, or what a cache kept, when sampling goes pixel by pixel. Both are
the same code on blocks of another size, so that no position is ever computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from hfgen.models.autoregressive_base import Autoregressive, AutoregressiveOutput, start_distribution_
from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.labels import check_classes
from hfgen.objectives import autoregressive

EMBEDDING = 32  # numbers that stand for a level, where levels have no order


@dataclass
class PixelCNNCache:
    """
    What sampling keeps from one pixel to the next.

    Args:
        batch_size (`int`): Images.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.
        position (`int`): The pixel that comes next, in raster order.
        row (`torch.Tensor` of shape `(B, C + 1, 1, W)`, *optional*): The inputs of the row that is being made.
        rows (`list` of `torch.Tensor`): Of each vertical convolution the rows that it still looks back at.
        features (`list` of `torch.Tensor` of shape `(B, 2 D, 1, W)`): What the vertical stack says about the row.
        columns (`list` of `torch.Tensor`): Of each horizontal convolution the columns that it still looks back at.
    """

    batch_size: int
    class_labels: torch.Tensor | None
    position: int = 0
    row: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)
    features: list[torch.Tensor] = field(default_factory=list)
    columns: list[torch.Tensor] = field(default_factory=list)


class CausalConv(nn.Conv2d):
    """A convolution that looks back along one axis: over rows (and to both sides within them), or over columns."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], dilation: int, axis: int):
        side = dilation * (kernel[1] // 2) if axis == 2 else 0
        super().__init__(in_channels, out_channels, kernel, dilation=dilation, padding=(0, side))
        self.axis = axis
        self.reach = dilation * (kernel[axis - 2] - 1)  # rows or columns before the block that are needed

    def advance(self, block: torch.Tensor, before: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes a block.

        Args:
            block (`torch.Tensor` of shape `(B, C, R, S)`): The inputs.
            before (`torch.Tensor`, *optional*): What lies before them; zeros, where that is nothing.

        Returns:
            The outputs, and what lies before the next block, if anything lay before this one.
        """
        if before is None:
            return self(F.pad(block, (0, 0, self.reach, 0) if self.axis == 2 else (self.reach, 0, 0, 0))), None
        seen = torch.cat([before, block], dim=self.axis)
        return self(seen), seen.narrow(self.axis, block.shape[self.axis], self.reach)


class GatedLayer(nn.Module):
    """A layer of both stacks."""

    def __init__(self, channels: int, kernel: int, dilation: int, classes: int | None, dropout: float):
        super().__init__()
        self.vertical = CausalConv(channels, 2 * channels, (kernel // 2 + 1, kernel), dilation, axis=2)
        self.horizontal = CausalConv(channels, 2 * channels, (1, kernel // 2 + 1), dilation, axis=3)
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.classes = nn.Embedding(classes, 2 * channels) if classes else None
        self.dropout = nn.Dropout(dropout)

    def down(
        self, hidden: torch.Tensor, class_labels: torch.Tensor | None, before: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Computes the layer of the vertical stack: its features, those that the horizontal one takes in, and what
        lies before the next block."""
        gates, after = self.vertical.advance(hidden, before)
        if self.classes is not None:
            gates = gates + self.classes(class_labels)[:, :, None, None]
        return hidden + self.dropout(F.glu(gates, dim=1)), self.link(gates), after

    def across(
        self, hidden: torch.Tensor, feature: torch.Tensor, before: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes the layer of the horizontal stack: its features, and what lies before the next block."""
        gates, after = self.horizontal.advance(hidden, before)
        return hidden + self.out(self.dropout(F.glu(gates + feature, dim=1))), after


class PixelCNN(Checkpointing, ModelMixin, Autoregressive, ConfigMixin):
    r"""
    A gated PixelCNN.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        base_channels (`int`, *optional*, defaults to 64):
            Channels of each stack, D.
        dilations (`Sequence[int]`, *optional*, defaults to `(1, 2, 4, 1)`):
            Of each layer, how far apart the pixels are that it looks at.
        kernel_size (`int`, *optional*, defaults to 5):
            Width of the vertical convolutions, odd; they look at half as many rows, rounded up, and the horizontal
            ones at as many columns.
        dropout (`float`, *optional*, defaults to 0.0):
            Share of the features of each layer that training drops.
        num_class_embeds (`int`, *optional*):
            Number of classes; by default the network knows none.
        likelihood (`str`, *optional*, defaults to `"logistic_mixture"`):
            `"logistic_mixture"`, or `"categorical"` for images of one channel.
        num_mixtures (`int`, *optional*, defaults to 10):
            Components of the mixture.
        num_levels (`int`, *optional*, defaults to 256):
            Levels of each channel of a pixel.
        embed_levels (`bool`, *optional*, defaults to `False`):
            Whether the network sees an embedding of each level instead of a number: for codes, which have no order.

    Raises:
        ValueError: For an even kernel, no layers, or a likelihood that does not fit.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        base_channels: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 1),
        kernel_size: int = 5,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        likelihood: str = "logistic_mixture",
        num_mixtures: int = 10,
        num_levels: int = 256,
        embed_levels: bool = False,
    ):
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, but must be odd, and at least 3.")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations is {tuple(dilations)}, but must have a number from 1 on for each layer.")
        outputs = autoregressive.num_parameters(likelihood, in_channels, num_levels, num_mixtures)
        if embed_levels and in_channels != 1:
            raise ValueError(f"embed_levels is for one channel, but there are {in_channels}: leave it out.")
        self.embed: Any = nn.Embedding(num_levels, EMBEDDING) if embed_levels else None
        inputs = 1 + (EMBEDDING if embed_levels else in_channels)  # with a channel that is 1 inside the image
        reach = kernel_size // 2 + 1
        self.vertical_in = CausalConv(inputs, base_channels, (reach, kernel_size), 1, axis=2)
        self.horizontal_in = CausalConv(inputs, base_channels, (1, reach), 1, axis=3)
        self.link_in = nn.Conv2d(base_channels, base_channels, 1)
        self.layers: Any = nn.ModuleList(
            GatedLayer(base_channels, kernel_size, dilation, num_class_embeds, dropout) for dilation in dilations
        )
        self.conv_out = nn.Conv2d(base_channels, outputs, 1)
        start_distribution_(self.conv_out, likelihood, in_channels, num_mixtures)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[torch.Tensor]:
        r"""
        Computes the distribution of each pixel given those before it.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Levels, int64.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`AutoregressiveOutput`] instead of a tuple.

        Raises:
            ValueError: For a sample of the wrong shape or type, or missing, unexpected or unknown classes.
        """
        self._check(sample, class_labels)
        inputs = self._inputs(sample)
        features, _ = self._rows(F.pad(inputs, (0, 0, 1, 0))[:, :, :-1], class_labels, None)
        parameters, _ = self._columns(F.pad(inputs, (1, 0, 0, 0))[..., :-1], features, None)
        return AutoregressiveOutput(parameters=parameters) if return_dict else (parameters,)

    def start(self, batch_size: int, class_labels: torch.Tensor | None = None) -> PixelCNNCache:
        r"""
        Begins to make images pixel by pixel.

        Args:
            batch_size (`int`): Images that are made together.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.

        Returns:
            [`PixelCNNCache`]: What [`PixelCNN.step`] is to be given, which changes it.

        Raises:
            ValueError: For missing, unexpected or unknown classes.
        """
        check_classes(class_labels, self.config.num_class_embeds, batch_size)
        return PixelCNNCache(batch_size, class_labels)

    def step(self, cache: PixelCNNCache, levels: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        Computes the distribution of the next pixel.

        Args:
            cache ([`PixelCNNCache`]): What is kept of the pixels before; it moves on by one.
            levels (`torch.Tensor` of shape `(B, C)`): The levels of the pixel before, int64; `None` for the first.

        Returns:
            `torch.Tensor` of shape `(B, P)`, float32.
        """
        width = self.config.sample_size
        column = cache.position % width
        weight = self.conv_out.weight
        if cache.position == 0:
            cache.rows = [
                weight.new_zeros(cache.batch_size, conv.in_channels, conv.reach, width) for conv in self._vertical
            ]
        shape = (cache.batch_size, self.vertical_in.in_channels, 1)
        pixel = weight.new_zeros(*shape, 1) if levels is None else self._inputs(levels[:, :, None, None])
        if cache.row is not None:
            cache.row[..., (column - 1) % width] = pixel[..., 0]
        if column == 0:
            row = weight.new_zeros(*shape, width)  # above the image
            cache.features, cache.rows = self._rows(
                row if cache.row is None else cache.row, cache.class_labels, cache.rows
            )
            cache.row, pixel = torch.zeros_like(row), weight.new_zeros(*shape, 1)  # to the left of the image
            cache.columns = [
                weight.new_zeros(cache.batch_size, conv.in_channels, 1, conv.reach) for conv in self._horizontal
            ]
        at_pixel = [feature[..., column : column + 1] for feature in cache.features]
        parameters, cache.columns = self._columns(pixel, at_pixel, cache.columns)
        cache.position += 1
        return parameters[..., 0, 0]

    @property
    def _vertical(self) -> list[CausalConv]:
        return [self.vertical_in, *(layer.vertical for layer in self.layers)]

    @property
    def _horizontal(self) -> list[CausalConv]:
        return [self.horizontal_in, *(layer.horizontal for layer in self.layers)]

    def _inputs(self, levels: torch.Tensor) -> torch.Tensor:
        """Converts levels to what the stacks see: numbers in [-1, 1], or their embeddings, and 1 to tell them from the
        zeros outside."""
        if self.embed is not None:
            values = self.embed(levels[:, 0]).permute(0, 3, 1, 2)
        else:
            values = autoregressive.to_values(levels, self.config.num_levels).to(self.conv_out.weight.dtype)
        return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)

    def _rows(
        self, inputs: torch.Tensor, class_labels: torch.Tensor | None, before: Sequence[torch.Tensor] | None
    ) -> tuple[list[torch.Tensor], list[Any]]:
        """Runs the vertical stack over a block of rows, `inputs` being those just above each of them.

        Args:
            inputs (`torch.Tensor` of shape `(B, C + 1, R, W)`), class_labels: The inputs.
            before (`Sequence` of `torch.Tensor`, *optional*): What each convolution looks back at before the block.

        Returns:
            The features that the horizontal stack takes in at its beginning and at each layer, and what the
            convolutions look back at after the block, unless it is a whole image.
        """
        contexts: Any = before or [None] * (len(self.layers) + 1)
        hidden, seen = self.vertical_in.advance(inputs, contexts[0])
        features, after = [self.link_in(hidden)], [seen]
        for layer, context in zip(self.layers, contexts[1:], strict=True):
            hidden, feature, seen = self.checkpointed(layer.down, hidden, class_labels, context)
            features.append(feature)
            after.append(seen)
        return features, after

    def _columns(
        self, inputs: torch.Tensor, features: Sequence[torch.Tensor], before: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, list[Any]]:
        """Runs the horizontal stack over a block of columns, `inputs` being those just to the left of each of them.

        Returns:
            Parameters `(B, P, R, S)`, float32, and what the convolutions look back at after the block, unless it is a
            whole image.
        """
        contexts: Any = before or [None] * (len(self.layers) + 1)
        hidden, seen = self.horizontal_in.advance(inputs, contexts[0])
        hidden, after = hidden + features[0], [seen]
        for layer, feature, context in zip(self.layers, features[1:], contexts[1:], strict=True):
            hidden, seen = self.checkpointed(layer.across, hidden, feature, context)
            after.append(seen)
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            parameters = self.conv_out(F.silu(hidden.to(self.conv_out.weight.dtype))).float()
        return parameters, after
