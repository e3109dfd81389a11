"""StyleGAN2 for small images: a generator steered by styles and its discriminator, in plain PyTorch.

Written from the papers: StyleGAN2 (https://huggingface.co/papers/1912.04958), by default with the small networks that
ADA (https://huggingface.co/papers/2006.06676) uses for CIFAR-10: a short mapping network and no residual blocks.
Learning rates are equalised: weights are drawn from N(0, 1) and scaled by `1 / sqrt(fan_in)` when they are used.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.gan_base import DiscriminatorOutput, GeneratorOutput, output_bound

StyleGAN2GeneratorOutput, StyleGAN2DiscriminatorOutput = GeneratorOutput, DiscriminatorOutput  # their earlier names

W_AVG_DECAY = 0.995


def stages(sample_size: int, channel_base: int, channel_max: int) -> tuple[list[int], list[int]]:
    """Returns heights and channels of the feature maps, from coarse to fine.

    Heights double, from at most 7 to `sample_size` or the next larger one that fits: 28 has 7, 14, 28, and 30 has
    4, 8, 16, 32, of which the centre is used. There are `channel_base / height` channels, at most `channel_max`.

    Raises:
        ValueError: If `sample_size` is not from 8 to 256, or no channel is left.
    """
    if not 8 <= sample_size <= 256:
        raise ValueError(
            f"sample_size is {sample_size}, but StyleGAN2 is made here for 8 to 256 pixels: resize the images."
        )
    doublings = next(k for k in range(1, 9) if sample_size <= 7 * 2**k)
    start = math.ceil(sample_size / 2**doublings)
    sizes = [start * 2**k for k in range(doublings + 1)]
    if channel_base < sizes[-1] or channel_max < 1:
        raise ValueError(
            f"channel_base is {channel_base} and channel_max {channel_max}, which leaves no channels for feature maps "
            f"of {sizes[-1]} pixels: use at least {sizes[-1]} and 1."
        )
    return sizes, [min(channel_base // size, channel_max) for size in sizes]


def check_labels(class_labels: torch.Tensor | None, num_class_embeds: int | None, batch_size: int) -> None:
    """Raises `ValueError` unless there is one label per image, or none for a network without classes."""
    if num_class_embeds is None:
        if class_labels is not None:
            raise ValueError("class_labels is given, but this network has num_class_embeds=None: leave it out.")
    elif class_labels is None:
        raise ValueError(f"class_labels is missing: this network has {num_class_embeds} classes, give one per image.")
    elif class_labels.shape != (batch_size,):
        raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}, but must be ({batch_size},).")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: torch.Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Scales each row of `(B, D)` to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def activate(x: torch.Tensor) -> torch.Tensor:
    """Applies a leaky ReLU with the gain that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class EqualizedLinear(nn.Module):
    """A linear layer `(B, in) -> (B, out)` that computes in float32; it learns `lr_multiplier` times as fast."""

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.lr_multiplier = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with without_autocast(x):
            weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
            return F.linear(at_least_float32(x), weight * self.scale, bias * self.lr_multiplier)


class Blur(nn.Module):
    """Smooths `(B, C, H, W)` with [1, 3, 3, 1] both ways and multiplies by `gain`; beyond the border are zeros.

    The result has `H + 2 * padding - 3` rows.
    """

    kernel: torch.Tensor

    def __init__(self, padding: int, gain: float = 1.0):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", gain * torch.outer(taps, taps), persistent=False)
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, padding=self.padding, groups=x.shape[1])


class ModulatedConv2d(nn.Module):
    """A convolution whose weights depend on the style of each image (StyleGAN2, equations 1 to 3).

    Weights of each image's own would need a grouped convolution. Scaling the input channels by the style and the
    output channels by the demodulation gives the same, with one convolution for the batch.

    Args:
        in_channels, out_channels, style_dim, kernel_size (`int`): Channels, length of a style, and size of the kernel.
        up (`bool`, *optional*, defaults to `False`): Whether to double height and width first.
        demodulate (`bool`, *optional*, defaults to `True`): Whether to bring outputs back to unit variance.
    """

    def __init__(self, in_channels, out_channels, style_dim, kernel_size=3, up=False, demodulate=True):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.blur = Blur(padding=1, gain=4.0) if up else None  # 4: of four pixels, three are the zeros put in between
        self.demodulate = demodulate

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Maps `x (B, in, H, W)` and `w (B, style_dim)` to `(B, out, H, W)`, or `2H, 2W` if `up`."""
        style = self.affine(w)
        weight = self.weight * self.scale
        x = x * style.to(x.dtype)[:, :, None, None]
        if self.blur is not None:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            with without_autocast(x):
                power = at_least_float32(weight).square().sum((2, 3))  # (out, in)
                factor = (style.square() @ power.T + 1e-8).rsqrt()  # (B, out)
            x = x * factor.to(x.dtype)[:, :, None, None]
        return x


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    noise: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, size: int, up: bool):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, style_dim, up=up)
        self.register_buffer("noise", torch.randn(1, size, size))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        noise = self.noise if noise is None else noise
        x = self.conv(x, w)
        x = x + (self.noise_strength * noise).to(x.dtype) + self.bias.to(x.dtype)[:, None, None]
        return activate(x)


class StyleGAN2Generator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    The generator of StyleGAN2 (https://huggingface.co/papers/1912.04958): a mapping network turns a latent z into a
    style w, and each convolution of the synthesis network is modulated by w.

    In training mode `map`, and with it `forward`, moves `w_avg` a little towards the mean of its batch.

    Parameters:
        sample_size (`int`, *optional*, defaults to 32): Height and width of the images, 8 to 256.
        out_channels (`int`, *optional*, defaults to 3): Channels of the images.
        latent_dim (`int`, *optional*, defaults to 512): Length of a latent z, which is drawn from N(0, 1).
        style_dim (`int`, *optional*): Length of a style w; by default `latent_dim`.
        mapping_layers (`int`, *optional*, defaults to 2): Layers of the mapping network.
        channel_base (`int`, *optional*, defaults to 8192): Feature maps of size `s` have `channel_base / s` channels,
        channel_max (`int`, *optional*, defaults to 256): but not more than this.
        num_class_embeds (`int`, *optional*): Number of classes; by default the network knows none.
        output_activation (`str`, *optional*): `"tanh"` keeps images within [-1, 1]. By default they have no bound, as
            in the paper, and learn to be about [-1, 1]: clamp them before you show them.

    Raises:
        ValueError: If `sample_size` is not from 8 to 256, `channel_base` leaves no channels, or the activation is
            another one.
    """

    w_avg: torch.Tensor
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        out_channels: int = 3,
        latent_dim: int = 512,
        style_dim: int | None = None,
        mapping_layers: int = 2,
        channel_base: int = 8192,
        channel_max: int = 256,
        num_class_embeds: int | None = None,
        output_activation: str | None = None,
    ):
        super().__init__()
        style_dim = style_dim or latent_dim
        sizes, channels = stages(sample_size, channel_base, channel_max)

        in_dim = latent_dim
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, latent_dim)
            in_dim += latent_dim
        dims = [in_dim] + [style_dim] * mapping_layers
        self.mapping = nn.ModuleList(
            EqualizedLinear(dims[i], dims[i + 1], lr_multiplier=0.01) for i in range(mapping_layers)
        )
        self.register_buffer("w_avg", torch.zeros(num_class_embeds or 1, style_dim))

        # One convolution at the start size, then two per size of which the first one doubles: 0 | 1 2 | 3 4 | ...
        self.constant = nn.Parameter(torch.randn(channels[0], sizes[0], sizes[0]))
        self.layers = nn.ModuleList([SynthesisLayer(channels[0], channels[0], style_dim, sizes[0], up=False)])
        for i in range(1, len(sizes)):
            self.layers.append(SynthesisLayer(channels[i - 1], channels[i], style_dim, sizes[i], up=True))
            self.layers.append(SynthesisLayer(channels[i], channels[i], style_dim, sizes[i], up=False))
        self.to_rgb = nn.ModuleList(
            ModulatedConv2d(count, out_channels, style_dim, kernel_size=1, demodulate=False) for count in channels
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.bound = output_bound(output_activation)
        self.num_layers = len(self.layers) + 1

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """The shape `(1, H, W)` of the noise of each convolution, from coarse to fine."""
        return [tuple(layer.get_buffer("noise").shape) for layer in self.layers]

    def latent_weight(self) -> torch.Tensor:
        """Returns the weights that turn a style w into the scales of all layers, stacked: `(N, style_dim)`,
        convolutions before colours.

        Its right singular vectors are directions in which images change most (SeFa,
        https://huggingface.co/papers/2007.06600).
        """
        affines = [conv.affine for conv in (*(layer.conv for layer in self.layers), *self.to_rgb)]
        return torch.cat([affine.weight.detach() * affine.scale for affine in affines])

    def map(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        truncation: float = 1.0,
        update_w_avg: bool = True,
    ) -> torch.Tensor:
        """Turns latents into styles, in float32 whatever the precision around it.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_dim)`): Draws from N(0, 1); their length does not matter.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            truncation (`float`, *optional*, defaults to 1.0): How far to go from the mean style (of the class) to
                the style of the latent: 0 gives one image for all latents, 0.7 is less varied, and 1 changes nothing.
            update_w_avg (`bool`, *optional*, defaults to `True`): Whether, in training mode, `w_avg` moves towards the
                mean of the batch.

        Returns:
            `torch.Tensor` of shape `(B, style_dim)`: Styles, float32.

        Raises:
            ValueError: For latents of another shape, and for class labels that are missing or have no use.
        """
        latent_dim, num_class_embeds = self.config.latent_dim, self.config.num_class_embeds
        if latents.ndim != 2 or latents.shape[1] != latent_dim:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but must be (batch, {latent_dim}).")
        check_labels(class_labels, num_class_embeds, len(latents))
        with without_autocast(latents):
            w = normalize(at_least_float32(latents))
            if class_labels is not None:
                w = torch.cat([w, normalize(at_least_float32(self.class_embedding(class_labels)))], dim=1)
            for layer in self.mapping:
                w = activate(layer(w))
            if self.training and update_w_avg:
                self._update_w_avg(w, class_labels)
            center = self.w_avg if class_labels is None else self.w_avg[class_labels]
            return torch.lerp(center.to(w.dtype).expand_as(w), w, truncation)

    @torch.no_grad()
    def _update_w_avg(self, w: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        if class_labels is None:
            class_labels = torch.zeros(len(w), dtype=torch.long, device=w.device)
        classes = torch.arange(len(self.w_avg), device=w.device)
        members = (class_labels[None] == classes[:, None]).to(w.dtype)  # (classes, B)
        counts = members.sum(1, keepdim=True)
        mean = members @ w / counts.clamp(min=1)
        self.w_avg.lerp_(mean.to(self.w_avg.dtype), (1 - W_AVG_DECAY) * counts.clamp(max=1).to(self.w_avg.dtype))

    def mix(self, w: torch.Tensor, other: torch.Tensor, crossover: torch.Tensor) -> torch.Tensor:
        """Gives the coarse layers of an image one style and its fine layers another: style mixing (StyleGAN,
        https://huggingface.co/papers/1812.04948, section 3.1).

        Args:
            w, other (`torch.Tensor` of shape `(B, style_dim)`): Styles of the coarse and of the fine layers.
            crossover (`torch.Tensor` of shape `(B,)`): The first layer of each image that has the other style;
                `num_layers` for an image that keeps the first in all its layers.

        Returns:
            `torch.Tensor` of shape `(B, num_layers, style_dim)`: What `synthesize` takes.
        """
        fine = torch.arange(self.num_layers, device=w.device) >= crossover[:, None]  # (B, num_layers)
        return torch.where(fine[:, :, None], other[:, None], w[:, None])

    def synthesize(self, w: torch.Tensor, noise: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Turns styles into images.

        Args:
            w (`torch.Tensor` of shape `(B, style_dim)` or `(B, num_layers, style_dim)`): One style for all layers, or
                one for each; early layers decide on the coarse features. Colours at a size take the style of the
                convolution that follows, those at the last size the last style.
            noise (list of `torch.Tensor`, *optional*): Draws from N(0, 1) with the shapes of `noise_shapes`, for all
                images, or with a batch dimension before it for noise of each image's own. By default the fixed noise
                of the checkpoint, so that an image depends on its style alone.

        Returns:
            `torch.Tensor` of shape `(B, out_channels, sample_size, sample_size)`: Images, float32, in or about
            [-1, 1].

        Raises:
            ValueError: For styles or noise of another shape.
        """
        style_dim = self.w_avg.shape[1]
        if w.ndim == 2:
            w = w.unsqueeze(1).expand(-1, self.num_layers, -1)
        if w.shape[1:] != (self.num_layers, style_dim):
            raise ValueError(
                f"w has shape {tuple(w.shape)}, but must be (batch, {style_dim}) or "
                f"(batch, {self.num_layers}, {style_dim})."
            )
        if noise is not None and [tuple(tensor.shape[-3:]) for tensor in noise] != self.noise_shapes:
            raise ValueError(
                f"noise has shapes {[tuple(tensor.shape) for tensor in noise]}, but must have {self.noise_shapes}, "
                "each with or without a batch dimension before it."
            )
        x = self.constant.expand(len(w), -1, -1, -1)
        image: torch.Tensor | None = None
        for i, layer in enumerate(self.layers):
            x = self.checkpointed(layer, x, w[:, i], None if noise is None else noise[i])
            if i % 2 == 0:  # the last convolution of its size
                rgb = at_least_float32(self.checkpointed(self.to_rgb[i // 2], x, w[:, i + 1]))
                # Bilinear is [1, 3, 3, 1] between inserted zeros, with the border repeated beyond the border.
                image = rgb if image is None else F.interpolate(image, scale_factor=2, mode="bilinear") + rgb
        assert image is not None
        size = self.config.sample_size
        before = (image.shape[-1] - size) // 2
        image = image[:, :, before : before + size, before : before + size]
        return self.bound(image + at_least_float32(self.bias)[:, None, None])

    def forward(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        truncation: float = 1.0,
        noise: Sequence[torch.Tensor] | None = None,
        return_dict: bool = True,
        other_latents: torch.Tensor | None = None,
        crossover: torch.Tensor | None = None,
    ) -> GeneratorOutput | tuple[torch.Tensor]:
        """Turns latents into images: `map`, then `synthesize`; see there for arguments, ranges and errors.

        With `other_latents`, shaped as `latents`, and `crossover` the styles of both are mixed between the two: see
        `mix`. `w_avg` follows the first.

        Returns:
            [`GeneratorOutput`], or a tuple if `return_dict=False`.
        """
        w = self.map(latents, class_labels, truncation)
        if other_latents is not None and crossover is not None:
            w = self.mix(w, self.map(other_latents, class_labels, truncation, update_w_avg=False), crossover)
        sample = self.synthesize(w, noise)
        return GeneratorOutput(sample=sample) if return_dict else (sample,)


def minibatch_std(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Measures how much neighbours in the batch differ: the standard deviation over groups of `group_size` images, in
    float32, averaged over channels and pixels: `(B, C, H, W) -> (B, 1, H, W)`. `group_size` divides B."""
    variance = at_least_float32(x).unflatten(0, (-1, group_size)).var(1, correction=0)  # (groups, C, H, W)
    std = (variance + 1e-8).sqrt().mean((1, 2, 3))
    return std.repeat_interleave(group_size)[:, None, None, None].expand(-1, 1, *x.shape[2:])


class ConvLayer(nn.Module):
    """Convolution with equalised learning rate, bias, leaky ReLU; with `down` it halves height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.blur = Blur(padding=2) if down else None  # for a kernel of 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * self.scale
        if self.blur is not None:
            return activate(F.conv2d(self.blur(x), weight, self.bias, stride=2))
        return activate(F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2))


class Shortcut(nn.Module):
    """Halves height and width, and maps channels linearly: the way around a residual block."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.scale = 1 / math.sqrt(in_channels)
        self.blur = Blur(padding=1)  # centred between the pixels that are merged, as in a layer with a kernel of 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.blur(x), self.weight * self.scale, stride=2)


class StyleGAN2Discriminator(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    The discriminator of StyleGAN2 (https://huggingface.co/papers/1912.04958); by default without its residual blocks,
    as StyleGAN2-ADA (https://huggingface.co/papers/2006.06676) uses it for CIFAR-10. It has the conditioning of
    projection discriminators (https://huggingface.co/papers/1802.05637): the features of an image are compared with
    the embedding of its class.

    Parameters:
        sample_size (`int`, *optional*, defaults to 32): Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 3): Channels of the images.
        channel_base (`int`, *optional*, defaults to 8192): Feature maps of size `s` have `channel_base / s` channels,
        channel_max (`int`, *optional*, defaults to 256): but not more than this.
        minibatch_std_group (`int`, *optional*, defaults to 32): Images of which the standard deviation is taken as a
            further feature (https://huggingface.co/papers/1710.10196), so that a generator that makes all images alike
            is found out. Groups have the largest divisor of the batch that is not above this. 0 turns it off.
        num_class_embeds (`int`, *optional*): Number of classes; by default the network knows none.
        residual (`bool`, *optional*, defaults to `False`): Whether the two convolutions of each size have a shortcut
            around them, as in the paper (section 4.1) for large images.

    Attributes:
        mixes_samples (`bool`): Whether the logit of an image depends on the others in its batch.

    Raises:
        ValueError: If `sample_size` is not from 8 to 256, `channel_base` leaves no channels, or `minibatch_std_group`
            is 1 or negative.
    """

    mixes_samples = True
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        channel_base: int = 8192,
        channel_max: int = 256,
        minibatch_std_group: int = 32,
        num_class_embeds: int | None = None,
        residual: bool = False,
    ):
        super().__init__()
        if minibatch_std_group < 0 or minibatch_std_group == 1:
            raise ValueError(
                f"minibatch_std_group is {minibatch_std_group}, but a standard deviation needs two images: use 2 or "
                "more, or 0 to turn it off."
            )
        self.mixes_samples = minibatch_std_group > 0
        sizes, channels = stages(sample_size, channel_base, channel_max)
        self.canvas_size, last = sizes[-1], channels[0]
        self.layers = nn.ModuleList([ConvLayer(in_channels, channels[-1], kernel_size=1)])
        for i in range(len(sizes) - 1, 0, -1):  # from fine to coarse
            self.layers.append(ConvLayer(channels[i], channels[i]))
            self.layers.append(ConvLayer(channels[i], channels[i - 1], down=True))
        steps = range(len(sizes) - 1, 0, -1) if residual else ()
        self.shortcuts = nn.ModuleList(Shortcut(channels[i], channels[i - 1]) for i in steps)
        self.conv = ConvLayer(last + self.mixes_samples, last)
        self.hidden = EqualizedLinear(last * sizes[0] ** 2, last)
        self.out = EqualizedLinear(last, 1)
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, last)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple[torch.Tensor]:
        """Scores images. Its derivative can be differentiated again, as gradient penalties do.

        Args:
            sample (`torch.Tensor` of shape `(B, in_channels, sample_size, sample_size)`): Images, [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a
                [`DiscriminatorOutput`] instead of a tuple.

        Raises:
            ValueError: For images of another shape, class labels that are missing or have no use, and in training mode
                for a batch whose images cannot be grouped for the minibatch standard deviation, such as a single one.
        """
        shape = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if sample.shape[1:] != shape:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, but must be (batch, {', '.join(map(str, shape))})."
            )
        check_labels(class_labels, self.config.num_class_embeds, len(sample))

        before = (self.canvas_size - shape[-1]) // 2
        after = self.canvas_size - shape[-1] - before
        x = self.checkpointed(self.layers[0], F.pad(sample, (before, after, before, after)))
        for i in range(1, len(self.layers), 2):
            halved = self.checkpointed(self.layers[i + 1], self.checkpointed(self.layers[i], x))
            if self.shortcuts:
                halved = (halved + self.checkpointed(self.shortcuts[i // 2], x)) / math.sqrt(2)  # of equal variance
            x = halved
        if self.mixes_samples:
            x = torch.cat([x, minibatch_std(x, self._group_size(len(x))).to(x.dtype)], dim=1)
        features = activate(self.hidden(self.conv(x).flatten(1)))
        logits = self.out(features).squeeze(1)
        if class_labels is not None:
            embedding = at_least_float32(self.class_embedding(class_labels))
            logits = logits + (embedding * features).sum(1) / math.sqrt(features.shape[1])
        return DiscriminatorOutput(logits=logits) if return_dict else (logits,)

    def _group_size(self, batch_size: int) -> int:
        limit = self.config.minibatch_std_group
        size = max(divisor for divisor in range(1, limit + 1) if batch_size % divisor == 0)
        if size == 1 and self.training:
            raise ValueError(
                f"The batch has {batch_size} image(s), which cannot be put into equal groups of 2 to {limit} for the "
                "minibatch standard deviation: use another batch size, or minibatch_std_group=0."
            )
        return size
