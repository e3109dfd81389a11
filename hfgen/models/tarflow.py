"""TarFlow (https://huggingface.co/papers/2412.06329): a normalizing flow of causal transformers over patches."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.flow_base import (
    Flow,
    FlowDecoderOutput,
    FlowEncoderOutput,
    check_input,
    check_options,
    from_line,
    to_line,
)
from hfgen.objectives import elbo

LARGEST_LOG_SCALE = 3.0  # of one block: what a block stretches by more cannot be inverted in float32


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a way past it.

    Args:
        width (`int`): Channels of a token.
        head_dim (`int`): Channels of an attention head.
    """

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.heads = width // head_dim
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(
        self,
        hidden: torch.Tensor,
        unseen: torch.Tensor | None = None,
        cache: torch.Tensor | None = None,
        index: int = 0,
    ) -> torch.Tensor:
        """Computes the layer for all tokens, or for the next one.

        Args:
            hidden (`torch.Tensor` of shape `(B, T, width)`): All tokens; with a `cache`, only that at `index`.
            unseen (`torch.Tensor` of shape `(T, T)`, *optional*): Which tokens a token does not see.
            cache (`torch.Tensor` of shape `(2, B, heads, T, head_dim)`, *optional*): Keys and values of the tokens
                before; those of this one are written into it.
            index (`int`, *optional*): Which token it is.
        """
        # (3, B, heads, T, head_dim)
        query, key, value = self.to_qkv(self.norm1(hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0, :, :, index], cache[1, :, :, index] = key[:, :, 0], value[:, :, 0]
            key, value = cache[:, :, :, : index + 1]
        # Written out: for so few tokens as fast as a fused kernel, and on CPUs five times as fast as the backward pass
        # of PyTorch's in bfloat16.
        scores = query @ key.transpose(2, 3) * key.shape[-1] ** -0.5
        scores = scores if unseen is None else scores.masked_fill(unseen, -torch.inf)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + self.to_out(attended)
        return hidden + self.contract(F.gelu(self.expand(self.norm2(hidden))))


class PatchHead(nn.Module):
    """Makes shift and log-scale of each number of a patch, of what the transformer knows of the patches before and,
    by a small network per number, of the numbers before it in the same patch.

    Without the latter, as in the paper, the numbers of a patch are independent given the patches that a block sees,
    and only small patches model images well.

    Args:
        width (`int`): Channels of a token.
        patch_dim (`int`): How many numbers a patch has.
        channels (`int`): Channels of the small networks; 0 for a linear layer in their place.
    """

    def __init__(self, width: int, patch_dim: int, channels: int):
        super().__init__()
        self.patch_dim, self.channels = patch_dim, channels
        self.norm = nn.LayerNorm(width)
        self.from_token = nn.Linear(width, patch_dim * (channels or 2))
        if channels:
            std = 1 / (2 * patch_dim**0.5)
            self.from_patch = nn.Parameter(std * torch.randn(patch_dim, patch_dim, channels))
            self.weight = nn.Parameter(torch.zeros(patch_dim, channels, 2))
            self.bias = nn.Parameter(torch.zeros(patch_dim, 2))
        else:
            nn.init.zeros_(self.from_token.weight)
            nn.init.zeros_(self.from_token.bias)

    def context(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Makes of tokens `(B, t, width)` what each number of their patches needs of them, `(B, t, D, channels)`."""
        normed = self.norm(hidden)
        if not self.channels:  # these are shifts and scales already
            with torch.autocast(hidden.device.type, enabled=False):
                weight, bias = self.from_token.weight.to(dtype), self.from_token.bias.to(dtype)
                return F.linear(normed.to(dtype), weight, bias).unflatten(2, (self.patch_dim, -1))
        return self.from_token(normed).to(dtype).unflatten(2, (self.patch_dim, -1))

    def forward(self, context: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes shifts and log-scales of whole patches, all `(B, t, D)`."""
        if not self.channels:
            return bounded(context)
        with torch.autocast(patches.device.type, enabled=False):
            size = self.patch_dim
            before = torch.ones(size, size, dtype=torch.bool, device=patches.device).triu(1)
            weight = (self.from_patch.to(patches.dtype) * before[:, :, None]).flatten(1)
            hidden = F.gelu(context.flatten(2) + patches @ weight)
            # One product with a matrix of blocks is faster than many small ones.
            blocks = self.weight.to(hidden.dtype)[:, :, None] * torch.eye(size, device=hidden.device)[:, None, :, None]
            return bounded((hidden @ blocks.flatten(2).flatten(0, 1)).unflatten(2, (size, 2)) + self.bias)

    def next(self, context: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes shift and log-scale `(B, t, 1)` of one number, given the n before it in its patch, `(B, t, n)`."""
        index = before.shape[2]
        context = context[:, :, index : index + 1]
        if not self.channels:
            return bounded(context)
        with torch.autocast(context.device.type, enabled=False):
            if index:
                context = context + (before @ self.from_patch[:index, index].to(context.dtype))[:, :, None]
            weight, bias = self.weight[index].to(context.dtype), self.bias[index]
            return bounded(F.gelu(context) @ weight + bias)


def bounded(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes shift and log-scale, the latter bounded, of pairs `(..., 2)`."""
    shift, log_scale = output.unbind(-1)
    return shift, LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE)


class FlowBlock(Checkpointing, nn.Module):
    """An affine autoregressive transformation: of each patch, with a shift and a scale made of those before it.

    Args:
        num_patches (`int`), patch_dim (`int`): How many patches an image has, and how many numbers a patch.
        width (`int`), num_layers (`int`), head_dim (`int`): The transformer's.
        pixel_channels (`int`): See [`PatchHead`].
        num_class_embeds (`int`, *optional*): Number of classes.
    """

    def __init__(
        self,
        num_patches: int,
        patch_dim: int,
        width: int,
        num_layers: int,
        head_dim: int,
        pixel_channels: int,
        num_class_embeds: int | None,
    ):
        super().__init__()
        self.heads = width // head_dim
        self.proj_in = nn.Linear(patch_dim, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))  # stands before the first patch
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, width))
        self.classes = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)
        self.layers = nn.ModuleList(TransformerLayer(width, head_dim) for _ in range(num_layers))
        self.head = PatchHead(width, patch_dim, pixel_channels)

    def embed(self, tokens: torch.Tensor, index: slice, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Adds to tokens `(B, t, width)` what says where they are and which class it is."""
        hidden = tokens + self.positions[index]
        return hidden if self.classes is None else hidden + self.classes(class_labels)[:, None]

    def forward(self, patches: torch.Tensor, class_labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms patches `(B, T, patch_dim)`; returns them and the log-determinant `(B,)`."""
        weight = self.proj_in.weight
        start = self.start.expand(len(patches), 1, -1)
        tokens = self.proj_in(patches[:, :-1].to(weight.dtype))
        hidden = self.embed(torch.cat([start.to(tokens.dtype), tokens], dim=1), slice(None), class_labels)
        later = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool, device=hidden.device).triu(1)
        for layer in self.layers:
            hidden = self.checkpointed(layer, hidden, later)
        shift, log_scale = self.checkpointed(self._shift_and_scale, hidden, patches)
        return (patches - shift) * torch.exp(-log_scale), -log_scale.flatten(1).sum(1)

    def _shift_and_scale(self, hidden: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(self.head.context(hidden, patches.dtype), patches)

    def inverse(
        self, values: torch.Tensor, class_labels: torch.Tensor | None, guidance: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Inverts [`forward`], patch by patch.

        Args:
            values (`torch.Tensor` of shape `(B, T, patch_dim)`): What `forward` returned.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): The classes; with guidance `(2 * B,)`, the
                second half being "no class".
            guidance (`torch.Tensor` of shape `(T,)`, *optional*): How far each patch's shift and log-scale move from
                those of no class beyond those of the class.
        """
        count, length = values.shape[:2]
        copies, weight = 1 if guidance is None else 2, self.proj_in.weight
        shape = (len(self.layers), 2, copies * count, self.heads, length, weight.shape[0] // self.heads)
        caches: Any = None
        known = values.new_empty(copies * count, length, values.shape[2])  # what has been found, for each copy
        token = self.start.expand(copies * count, 1, -1)
        for index in range(length):
            hidden = self.embed(token, slice(index, index + 1), class_labels)
            caches = hidden.new_empty(shape) if caches is None else caches
            for layer, cache in zip(self.layers, caches, strict=True):
                hidden = layer(hidden, cache=cache, index=index)
            context = self.head.context(hidden, values.dtype)
            patch = known[:, index : index + 1]
            for number in range(values.shape[2]):
                shift, log_scale = self.head.next(context, patch[:, :, :number])
                if guidance is not None:
                    (shift, no_shift), (log_scale, no_scale) = shift.chunk(2), log_scale.chunk(2)
                    shift = shift + guidance[index] * (shift - no_shift)
                    log_scale = log_scale + guidance[index] * (log_scale - no_scale)
                found = values[:, index : index + 1, number : number + 1] * torch.exp(log_scale) + shift
                patch[:, :, number : number + 1] = found.repeat(copies, 1, 1)
            token = self.proj_in(patch.to(weight.dtype))
        return known[:count]


class TarFlow(Flow, ModelMixin, ConfigMixin):
    r"""
    A flow of causal transformers, each an affine transformation of every patch given the patches before it; every
    second one sees them from the end. Unlike the paper's, the pixels of a patch see those before them, too.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 4 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        patch_size (`int`, *optional*, defaults to 4):
            Height and width of the patches; it must divide `sample_size`. Smaller ones model images better, and cost
            more: sampling takes as many steps as there are patches, for each block.
        num_blocks (`int`, *optional*, defaults to 4):
            Number of transformations.
        layers_per_block (`int`, *optional*, defaults to 2):
            Layers of each one's transformer.
        hidden_size (`int`, *optional*, defaults to 128):
            Channels of a token, a multiple of `attention_head_dim`.
        attention_head_dim (`int`, *optional*, defaults to 64):
            Channels of an attention head.
        pixel_channels (`int`, *optional*, defaults to 16):
            Channels of the small networks through which a pixel sees those before it in its patch; 0 for none, as in
            the paper.
        num_class_embeds (`int`, *optional*):
            Number of classes. For guidance, the last one must stand for "no class".
        pixel_map (`str`, *optional*, defaults to `"logit"`):
            `"linear"`, or `"logit"`, which spreads the ends of the range: see [`~models.flow_base.to_line`].

    Raises:
        ValueError: If the size is out of range, for patches that do not divide it, a `hidden_size` that is no multiple
            of `attention_head_dim`, or an unknown map of pixels.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["TransformerLayer"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        patch_size: int = 4,
        num_blocks: int = 4,
        layers_per_block: int = 2,
        hidden_size: int = 128,
        attention_head_dim: int = 64,
        pixel_channels: int = 16,
        num_class_embeds: int | None = None,
        pixel_map: str = "logit",
    ):
        super().__init__()
        check_options(self.config)
        if sample_size % patch_size:
            raise ValueError(f"patch_size is {patch_size}, which does not divide the {sample_size} pixels of a side.")
        if hidden_size % attention_head_dim:
            raise ValueError(
                f"hidden_size is {hidden_size}, but must be a multiple of attention_head_dim, {attention_head_dim}."
            )
        num_patches, patch_dim = (sample_size // patch_size) ** 2, in_channels * patch_size**2
        self.blocks = nn.ModuleList(
            FlowBlock(
                num_patches,
                patch_dim,
                hidden_size,
                layers_per_block,
                attention_head_dim,
                pixel_channels,
                num_class_embeds,
            )
            for _ in range(num_blocks)
        )

    @property
    def decoding_steps(self) -> int:
        return len(self.blocks) * (self.config.sample_size // self.config.patch_size) ** 2

    def encode(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> FlowEncoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Maps images to latents, in one pass.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in about [-1, 1], with noise.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FlowEncoderOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_input(sample, "sample", class_labels, self.config)
        values, log_det = to_line(elbo.precise(sample)[0], self.config.pixel_map)
        patches = self._to_patches(values)
        for block in self.blocks:
            patches, more = block(patches, class_labels)
            patches, log_det = patches.flip(1, 2), log_det + more
        latents = self._to_image(patches)
        return FlowEncoderOutput(latents=latents, log_det=log_det) if return_dict else (latents, log_det)

    def decode(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        return_dict: bool = True,
        on_block: Callable[[int, torch.Tensor], None] | None = None,
    ) -> FlowDecoderOutput | tuple[torch.Tensor]:
        r"""
        Inverts `encode`: maps latents to images, patch by patch.

        Args:
            latents (`torch.Tensor` of shape `(B, C, H, W)`): A priori standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Moves shifts and scales away from those of "no class", the last one. It begins with 1, which changes
                nothing, at the first patch of a block and grows linearly to this at the last one (section 2.6 of the
                paper, whose weight is this minus 1).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FlowDecoderOutput`] instead of a tuple.
            on_block (`Callable`, *optional*):
                Is given the number of blocks so far and the images `(B, C, H, W)`, in about [-1, 1], that they have
                made; first 0 and the latents, brought to pixels in the same way.

        Raises:
            ValueError: For latents of the wrong shape, missing, unexpected or unknown classes, or guidance of a
                network without classes.
        """
        check_input(latents, "latents", class_labels, self.config)
        patches, guidance = self._to_patches(elbo.precise(latents)[0]), None
        if guidance_scale != 1:
            if class_labels is None:
                raise ValueError(f"guidance_scale is {guidance_scale}, but this network knows no classes.")
            no_class = torch.full_like(class_labels, self.config.num_class_embeds - 1)
            class_labels = torch.cat([class_labels, no_class])
            guidance = torch.linspace(0, guidance_scale - 1, patches.shape[1]).to(patches)
        blocks: Any = list(self.blocks)
        for left in range(len(blocks), 0, -1):
            if on_block is not None:
                on_block(len(blocks) - left, self._seen(patches, left))
            patches = blocks[left - 1].inverse(patches.flip(1, 2), class_labels, guidance)
        sample = self._seen(patches, 0)
        if on_block is not None:
            on_block(len(blocks), sample)
        return FlowDecoderOutput(sample=sample) if return_dict else (sample,)

    def _seen(self, patches: torch.Tensor, left: int) -> torch.Tensor:
        """Makes pixels of patches that so many blocks are still to invert, each of which turns them around."""
        return from_line(self._to_image(patches.flip(1, 2) if left % 2 else patches), self.config.pixel_map)

    def _to_patches(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, T, C * p * p)`."""
        size = self.config.patch_size
        split = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, rows, p, columns, p)
        return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _to_image(self, patches: torch.Tensor) -> torch.Tensor:
        """Inverts `_to_patches`."""
        size, channels = self.config.patch_size, self.config.in_channels
        rows = self.config.sample_size // size
        split = patches.unflatten(2, (channels, size, size)).unflatten(1, (rows, rows))
        return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
