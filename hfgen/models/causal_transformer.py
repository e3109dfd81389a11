"""A causal transformer over a grid, position by position: of the pixels of small images, or of codes of a VQ-VAE.

As in Image Transformer and iGPT (https://huggingface.co/papers/1802.05751), in the form of today's language models:
normalisation before each part (https://huggingface.co/papers/2002.04745) by root mean squares, and of queries and keys
(https://huggingface.co/papers/2302.05442); learnt embeddings of rows and columns.
"""

from dataclasses import dataclass
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


@dataclass
class CausalTransformerCache:
    """
    What sampling keeps from one position to the next.

    Args:
        batch_size (`int`): Grids.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.
        keys, values (`torch.Tensor` of shape `(layers, B, heads, H W, head_dim)`, *optional*): Of all positions;
            filled up to the current one.
        position (`int`): The position that comes next, in raster order.
    """

    batch_size: int
    class_labels: torch.Tensor | None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    position: int = 0


class TransformerBlock(nn.Module):
    """Attention to the positions before, and a perceptron; both are added to what they are given."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, head_dim = num_heads, hidden_size // num_heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.norm_query, self.norm_key = nn.RMSNorm(head_dim), nn.RMSNorm(head_dim)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.to_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, 4 * hidden_size)
        self.down = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes the block for all positions, `(B, N, hidden)`."""
        return self.finish(hidden, self.attend(*self.project(hidden), is_causal=True))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes queries, keys and values, each `(B, heads, N, head_dim)`, of hidden features `(B, N, hidden)`."""
        heads = self.to_qkv(self.norm1(hidden)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        wide = self.norm_key.weight.dtype  # under autocast the projections are narrower
        # On CPUs the backward pass of attention takes five to ten times as long in bfloat16, of 49 and 16 positions.
        used = wide if hidden.device.type == "cpu" else value.dtype
        return self.norm_query(query.to(wide)).to(used), self.norm_key(key.to(wide)).to(used), value.to(used)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool) -> torch.Tensor:
        """Looks at the positions of `key` and `value`; with `is_causal`, only at those before and the same one."""
        with torch.autocast(query.device.type, enabled=False):  # which would make them narrower again
            return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Adds what attention and the perceptron make to the hidden features."""
        hidden = hidden + self.dropout(self.to_out(attended.transpose(1, 2).flatten(2)))
        inner = F.gelu(self.up(self.norm2(hidden)), approximate="tanh")
        return hidden + self.dropout(self.down(inner))


class CausalTransformer(Checkpointing, ModelMixin, Autoregressive, ConfigMixin):
    r"""
    A causal transformer over the positions of a grid.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the grid: of the images, or of the codes of an image.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images; 1 for codes.
        hidden_size (`int`, *optional*, defaults to 128):
            Features of each position.
        num_layers (`int`, *optional*, defaults to 4):
            Blocks of attention and a perceptron.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of the attention.
        dropout (`float`, *optional*, defaults to 0.0):
            Share of what each part of a block adds that training drops.
        num_class_embeds (`int`, *optional*):
            Number of classes; by default the network knows none.
        likelihood (`str`, *optional*, defaults to `"logistic_mixture"`):
            `"logistic_mixture"`, or `"categorical"` for one channel.
        num_mixtures (`int`, *optional*, defaults to 10):
            Components of the mixture.
        num_levels (`int`, *optional*, defaults to 256):
            Levels of each channel of a pixel, or number of codes.
        embed_levels (`bool`, *optional*, defaults to `False`):
            Whether the network sees an embedding of each level instead of a number: for codes, which have no order.

    Raises:
        ValueError: If the heads do not divide the features, or for a likelihood that does not fit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _repeated_blocks = ["TransformerBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_attention_heads: int = 4,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        likelihood: str = "logistic_mixture",
        num_mixtures: int = 10,
        num_levels: int = 256,
        embed_levels: bool = False,
    ):
        super().__init__()
        if embed_levels and in_channels != 1:
            raise ValueError(f"embed_levels is for one channel, but there are {in_channels}: leave it out.")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {num_attention_heads}, but must divide hidden_size, which is {hidden_size}."
            )
        outputs = autoregressive.num_parameters(likelihood, in_channels, num_levels, num_mixtures)
        self.embed: Any = (
            nn.Embedding(num_levels, hidden_size) if embed_levels else nn.Linear(in_channels, hidden_size, bias=False)
        )
        self.first = nn.Parameter(torch.zeros(hidden_size))  # stands where nothing is before
        self.rows = nn.Embedding(sample_size, hidden_size)
        self.columns = nn.Embedding(sample_size, hidden_size)
        self.classes = nn.Embedding(num_class_embeds, hidden_size) if num_class_embeds else None
        nn.init.normal_(self.first, std=0.02)
        for embedding in (self.embed, self.rows, self.columns, self.classes):
            if isinstance(embedding, nn.Embedding):
                nn.init.normal_(embedding.weight, std=0.02)
        blocks = [TransformerBlock(hidden_size, num_attention_heads, dropout) for _ in range(num_layers)]
        for block in blocks:  # what is added grows with the depth: it begins small (GPT-2)
            for layer in (block.to_out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / (2 * num_layers) ** 0.5)
        self.blocks: Any = nn.ModuleList(blocks)
        self.norm_out = nn.RMSNorm(hidden_size)
        self.linear_out = nn.Linear(hidden_size, outputs)
        start_distribution_(self.linear_out, likelihood, in_channels, num_mixtures)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[torch.Tensor]:
        r"""
        Computes the distribution of each position given those before it.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Levels, int64.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`AutoregressiveOutput`] instead of a tuple.

        Raises:
            ValueError: For a sample of the wrong shape or type, or missing, unexpected or unknown classes.
        """
        self._check(sample, class_labels)
        values = self._embed(sample.flatten(2).transpose(1, 2)[:, :-1])
        first = self.first.expand(len(sample), 1, -1).to(values.dtype)
        hidden = torch.cat([first, values], dim=1) + self._places(torch.arange(values.shape[1] + 1), class_labels)
        for block in self.blocks:
            hidden = self.checkpointed(block, hidden)
        parameters = self._finish(hidden).transpose(1, 2).unflatten(2, sample.shape[2:])
        return AutoregressiveOutput(parameters=parameters) if return_dict else (parameters,)

    def start(self, batch_size: int, class_labels: torch.Tensor | None = None) -> CausalTransformerCache:
        r"""
        Begins to make grids position by position.

        Args:
            batch_size (`int`): Grids that are made together.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.

        Returns:
            [`CausalTransformerCache`]: What [`CausalTransformer.step`] is to be given, which changes it.

        Raises:
            ValueError: For missing, unexpected or unknown classes.
        """
        check_classes(class_labels, self.config.num_class_embeds, batch_size)
        return CausalTransformerCache(batch_size, class_labels)

    def step(self, cache: CausalTransformerCache, levels: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        Computes the distribution of the next position.

        Args:
            cache ([`CausalTransformerCache`]): What is kept of the positions before; it moves on by one.
            levels (`torch.Tensor` of shape `(B, C)`): The levels of the position before, int64; `None` for the first.

        Returns:
            `torch.Tensor` of shape `(B, P)`, float32.
        """
        position = cache.position
        value = self.first.expand(cache.batch_size, 1, -1) if levels is None else self._embed(levels[:, None])
        hidden = value + self._places(torch.tensor([position]), cache.class_labels)
        for index, block in enumerate(self.blocks):
            query, key, value = block.project(hidden)
            if cache.keys is None or cache.values is None:
                batch_size, heads, _, head_dim = key.shape
                shape = (len(self.blocks), batch_size, heads, self.config.sample_size**2, head_dim)
                cache.keys, cache.values = key.new_empty(shape), key.new_empty(shape)
            cache.keys[index, :, :, position], cache.values[index, :, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = (kept[index, :, :, : position + 1] for kept in (cache.keys, cache.values))
            hidden = block.finish(hidden, block.attend(query, keys, values, is_causal=False))
        cache.position += 1
        return self._finish(hidden)[:, 0]

    def _embed(self, levels: torch.Tensor) -> torch.Tensor:
        """Embeds levels `(B, N, C)`."""
        if isinstance(self.embed, nn.Embedding):
            return self.embed(levels[..., 0])
        values = autoregressive.to_values(levels, self.config.num_levels)
        return self.embed(values.to(self.linear_out.weight.dtype))

    def _places(self, positions: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Embeds positions `(N,)` in raster order and classes `(B,)`: `(1 or B, N, hidden)`."""
        positions, width = positions.to(self.first.device), self.config.sample_size
        places = (self.rows(positions // width) + self.columns(positions % width))[None]
        return places if self.classes is None else places + self.classes(class_labels)[:, None]

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            return self.linear_out(self.norm_out(hidden.to(self.linear_out.weight.dtype))).float()
