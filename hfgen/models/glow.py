"""Glow (https://huggingface.co/papers/1807.03039): a normalizing flow of coupling layers over squeezed images."""

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


class ActNorm(nn.Module):
    """A scale and a shift per channel, with which the first step's activations have mean 0 and standard deviation 1
    (section 3.1 of the paper).

    What is taken from the data stays in buffers, beside parameters that start as the identity: so the first step is
    like any other, and a run that is split over processes or micro-batches notes sums, see [`Glow.initialise_`].

    Args:
        channels (`int`): Channels.
    """

    mean: torch.Tensor
    std: torch.Tensor
    initialised: torch.Tensor
    noted_count: torch.Tensor
    noted_sum: torch.Tensor
    noted_squares: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("initialised", torch.zeros(()))
        self.register_buffer("noted_count", torch.zeros(()))
        self.register_buffer("noted_sum", torch.zeros(channels))
        self.register_buffer("noted_squares", torch.zeros(channels))

    def forward(self, hidden: torch.Tensor, observe: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalises `(B, C, H, W)`; returns it, and the log-determinant `()` of an image. With `observe`, what has no
        statistics yet takes the batch's, and notes them."""
        mean, std = self.mean.to(hidden.dtype), self.std.to(hidden.dtype)
        if observe:
            batch_mean, batch_std = self._note(hidden.detach())
            mean = torch.where(self.initialised > 0, mean, batch_mean)
            std = torch.where(self.initialised > 0, std, batch_std)
        log_scale = self.log_scale.to(hidden.dtype) - std.log()
        hidden = (hidden - _channels(mean)) * _channels(log_scale.exp()) + _channels(self.shift.to(hidden.dtype))
        return hidden, log_scale.sum() * hidden[0, 0].numel()

    def inverse(self, hidden: torch.Tensor) -> torch.Tensor:
        """Inverts `forward`."""
        mean, std, log_scale, shift = (
            _channels(one.to(hidden.dtype)) for one in (self.mean, self.std, self.log_scale, self.shift)
        )
        return (hidden - shift) * torch.exp(-log_scale) * std + mean

    @torch.no_grad()
    def _note(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = hidden.transpose(0, 1).flatten(1)  # (C, B * H * W)
        self.noted_count += values.shape[1]
        self.noted_sum += values.sum(1)
        self.noted_squares += values.square().sum(1)
        return values.mean(1), values.std(1, correction=0).clamp(min=SMALLEST_STD)

    @torch.no_grad()
    def initialise_(self) -> None:
        """Takes over what was noted, unless there are statistics already, and forgets it."""
        count = self.noted_count.clamp(min=1)
        mean = self.noted_sum / count
        std = (self.noted_squares / count - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()
        new = (self.initialised == 0) & (self.noted_count > 0)
        self.mean.copy_(torch.where(new, mean, self.mean))
        self.std.copy_(torch.where(new, std, self.std))
        self.initialised.copy_(torch.where(new, 1.0, self.initialised))
        for noted in (self.noted_count, self.noted_sum, self.noted_squares):
            noted.zero_()


SMALLEST_STD = 1e-3  # a channel that is constant in the first step keeps a scale that can be inverted


class InvertibleConv(nn.Module):
    """A 1x1 convolution whose matrix is `P L (U + diag(s))` (section 3.2 of the paper), so that its determinant is
    the product of s. It starts as a random rotation.

    Args:
        channels (`int`): Channels.
    """

    permutation: torch.Tensor
    sign: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.argmax(1))  # row i of P L is row permutation[i] of L
        self.register_buffer("sign", diagonal.sign().float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())

    def matrix(self, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
        """Returns the matrix `(C, C)`, on the device of the parameters unless told otherwise."""
        parts = (self.sign, self.log_diagonal, self.lower, self.upper)
        sign, log_diagonal, lower, upper = (part.to(device or part.device, dtype) for part in parts)
        unit = torch.eye(len(sign), dtype=sign.dtype, device=sign.device)
        triangles = (lower.tril(-1) + unit) @ (upper.triu(1) + torch.diag(sign * log_diagonal.exp()))
        return triangles[self.permutation.to(triangles.device)]

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes the channels of `(B, C, H, W)`; returns it, and the log-determinant `()` of an image."""
        log_det = self.log_diagonal.to(hidden.dtype).sum() * hidden[0, 0].numel()
        with torch.autocast(hidden.device.type, enabled=False):
            return F.conv2d(hidden, self.matrix(hidden.dtype)[:, :, None, None]), log_det

    def inverse(self, hidden: torch.Tensor) -> torch.Tensor:
        """Inverts `forward`."""
        with torch.autocast(hidden.device.type, enabled=False):
            place = torch.device("cpu") if hidden.device.type == "mps" else None  # an Apple GPU has no float64
            matrix = torch.linalg.inv(self.matrix(torch.float64, place)).to(hidden)
            return F.conv2d(hidden, matrix[:, :, None, None])


class Coupling(nn.Module):
    """An affine coupling: the second half of the channels, with a scale and a shift made of the first half.

    Args:
        channels (`int`): Channels, an even number.
        hidden_channels (`int`): Those of the network's two hidden layers.
        num_class_embeds (`int`, *optional*): Number of classes.
    """

    def __init__(self, channels: int, hidden_channels: int, num_class_embeds: int | None):
        super().__init__()
        self.conv_in = nn.Conv2d(channels // 2, hidden_channels, 3, padding=1)
        self.conv_mid = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.conv_out = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.classes = nn.Embedding(num_class_embeds, hidden_channels) if num_class_embeds else None
        for layer in (self.conv_in, self.conv_mid):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        zero_(self.conv_out)  # the identity, to begin with
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    def affine(self, fixed: torch.Tensor, class_labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes shift and log-scale, each `(B, C / 2, H, W)`, of the half that stays."""
        hidden = self.conv_in(fixed.to(self.conv_in.weight.dtype))
        if self.classes is not None:
            hidden = hidden + self.classes(class_labels)[:, :, None, None].to(hidden.dtype)
        hidden = F.relu(self.conv_mid(F.relu(hidden)))
        output = _exact_conv(self.conv_out, F.relu(hidden), fixed.dtype)
        shift, log_scale = output.chunk(2, dim=1)
        # Bounded: a scale near 0 would have no inverse in float32.
        return shift, 2 * torch.tanh(log_scale / 2)

    def forward(self, hidden: torch.Tensor, class_labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms `(B, C, H, W)`; returns it and the log-determinant `(B,)`."""
        fixed, changed = hidden.chunk(2, dim=1)
        shift, log_scale = self.affine(fixed, class_labels)
        return torch.cat([fixed, (changed + shift) * log_scale.exp()], dim=1), log_scale.flatten(1).sum(1)

    def inverse(self, hidden: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Inverts `forward`."""
        fixed, changed = hidden.chunk(2, dim=1)
        shift, log_scale = self.affine(fixed, class_labels)
        return torch.cat([fixed, changed * torch.exp(-log_scale) - shift], dim=1)


class Level(Checkpointing, nn.Module):
    """What happens at one resolution: some steps of actnorm, 1x1 convolution and coupling.

    Args:
        channels (`int`): Channels after squeezing.
        num_steps (`int`), hidden_channels (`int`), num_class_embeds (`int`, *optional*): As [`Glow`] has them.
    """

    def __init__(self, channels: int, num_steps: int, hidden_channels: int, num_class_embeds: int | None):
        super().__init__()
        self.norms = nn.ModuleList(ActNorm(channels) for _ in range(num_steps))
        self.convs = nn.ModuleList(InvertibleConv(channels) for _ in range(num_steps))
        self.couplings = nn.ModuleList(Coupling(channels, hidden_channels, num_class_embeds) for _ in range(num_steps))

    def forward(
        self, hidden: torch.Tensor, class_labels: torch.Tensor | None, observe: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms `(B, C, H, W)`; returns it and the log-determinant `(B,)`."""
        log_det = hidden.new_zeros(len(hidden))
        for norm, conv, coupling in zip(self.norms, self.convs, self.couplings, strict=True):
            hidden, scaled = norm(hidden, observe)
            hidden, mixed = conv(hidden)
            hidden, coupled = self.checkpointed(coupling, hidden, class_labels)
            log_det = log_det + scaled + mixed + coupled
        return hidden, log_det

    def inverse(self, hidden: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Inverts `forward`."""
        steps: Any = list(zip(self.norms, self.convs, self.couplings, strict=True))
        for norm, conv, coupling in reversed(steps):
            hidden = norm.inverse(conv.inverse(coupling.inverse(hidden, class_labels)))
        return hidden


class Glow(Flow, ModelMixin, ConfigMixin):
    r"""
    A flow of affine couplings: at each level the image is squeezed (2x2 pixels become channels), transformed by some
    steps of actnorm, invertible 1x1 convolution and coupling, and half of its channels leave. These are Gaussian given
    the other half, which goes on to the next level.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 4 to 256; a multiple of 2 to the power of `num_levels`.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        num_levels (`int`, *optional*, defaults to 2):
            How often the image is squeezed.
        num_steps (`int`, *optional*, defaults to 8):
            Steps per level.
        hidden_channels (`int`, *optional*, defaults to 64):
            Channels of the networks in the couplings.
        num_class_embeds (`int`, *optional*):
            Number of classes.
        pixel_map (`str`, *optional*, defaults to `"logit"`):
            `"linear"`, or `"logit"`, which spreads the ends of the range: see [`~models.flow_base.to_line`].

    Raises:
        ValueError: If the size is out of range or cannot be halved so often, or for an unknown map of pixels.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["Coupling"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        num_levels: int = 2,
        num_steps: int = 8,
        hidden_channels: int = 64,
        num_class_embeds: int | None = None,
        pixel_map: str = "logit",
    ):
        super().__init__()
        check_options(self.config)
        if num_levels < 1 or sample_size % 2**num_levels:
            raise ValueError(
                f"num_levels is {num_levels}, but the {sample_size} pixels of a side must be halved as often: at "
                "least once, and without a remainder."
            )
        channels = [in_channels * 4 * 2**level for level in range(num_levels)]  # after squeezing
        self.levels = nn.ModuleList(Level(number, num_steps, hidden_channels, num_class_embeds) for number in channels)
        # The prior of what leaves: of the other half, and of the class at the last level, where all leaves.
        self.priors = nn.ModuleList(nn.Conv2d(number // 2, number, 3, padding=1) for number in channels[:-1])
        for prior in self.priors:
            zero_(prior)
        self.top = nn.Embedding(num_class_embeds or 1, 2 * channels[-1])
        nn.init.zeros_(self.top.weight)

    def encode(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        observe: bool = False,
    ) -> FlowEncoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Maps images to latents: of each level what leaves there, whitened by its prior, at the pixels it comes from.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in about [-1, 1], with noise.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FlowEncoderOutput`] instead of a tuple.
            observe (`bool`, *optional*, defaults to `False`):
                Whether actnorm notes the statistics of these images, and normalises by them where it has none yet: for
                the first step of a training, which ends with `initialise_`.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_input(sample, "sample", class_labels, self.config)
        hidden, log_det = to_line(elbo.precise(sample)[0], self.config.pixel_map)
        left: list[torch.Tensor] = []
        for number, level in enumerate(self.levels):
            hidden, more = level(F.pixel_unshuffle(hidden, 2), class_labels, observe)
            hidden, leaving = (hidden, None) if number == len(self.priors) else hidden.chunk(2, dim=1)
            mean, log_std = self._prior(number, hidden, class_labels)
            whitened = ((hidden if leaving is None else leaving) - mean) * torch.exp(-log_std)
            log_det = log_det + more - log_std.flatten(1).sum(1)
            left.append(whitened)
        latents = F.pixel_shuffle(left.pop(), 2)
        while left:
            latents = F.pixel_shuffle(torch.cat([latents, left.pop()], dim=1), 2)
        return FlowEncoderOutput(latents=latents, log_det=log_det) if return_dict else (latents, log_det)

    def decode(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> FlowDecoderOutput | tuple[torch.Tensor]:
        r"""
        Inverts `encode`: maps latents to images.

        Args:
            latents (`torch.Tensor` of shape `(B, C, H, W)`): A priori standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`FlowDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_input(latents, "latents", class_labels, self.config)
        rest, left = elbo.precise(latents)[0], []
        for _ in self.priors:
            rest, leaving = F.pixel_unshuffle(rest, 2).chunk(2, dim=1)
            left.append(leaving)
        hidden = F.pixel_unshuffle(rest, 2)
        for number in reversed(range(len(self.levels))):
            whitened = hidden if number == len(self.priors) else left.pop()
            mean, log_std = self._prior(number, hidden, class_labels)
            values = whitened * log_std.exp() + mean
            hidden = values if number == len(self.priors) else torch.cat([hidden, values], dim=1)
            level: Any = self.levels[number]
            hidden = F.pixel_shuffle(level.inverse(hidden, class_labels), 2)
        sample = from_line(hidden, self.config.pixel_map)
        return FlowDecoderOutput(sample=sample) if return_dict else (sample,)

    def initialise_(self) -> None:
        """Gives actnorm the statistics that `encode` noted with `observe`; to be called once after each step. A
        function of the buffers alone, so that processes that agree on these agree on the result."""
        for module in self.modules():
            if isinstance(module, ActNorm):
                module.initialise_()

    def _prior(
        self, number: int, hidden: torch.Tensor, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and logarithm of the standard deviation of what leaves at a level."""
        if number < len(self.priors):
            layer: Any = self.priors[number]
            mean, log_std = _exact_conv(layer, hidden, hidden.dtype).chunk(2, dim=1)
        else:
            rows = self.top.weight if class_labels is None else self.top(class_labels)
            mean, log_std = rows.to(hidden.dtype)[:, :, None, None].expand(-1, -1, *hidden.shape[2:]).chunk(2, dim=1)
            mean, log_std = mean.expand(len(hidden), -1, -1, -1), log_std.expand(len(hidden), -1, -1, -1)
        return mean, 2 * torch.tanh(log_std / 2)


def zero_(layer: nn.Module) -> None:
    """Sets all parameters of a layer to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]


def _exact_conv(layer: nn.Conv2d, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Computes a convolution in `dtype`, whatever autocast says and the weights are."""
    assert layer.bias is not None
    with torch.autocast(hidden.device.type, enabled=False):
        return F.conv2d(hidden.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype), padding=layer.padding)
