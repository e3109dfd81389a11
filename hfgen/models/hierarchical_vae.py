"""A hierarchical VAE for images of 8 to 256 pixels, after VDVAE (https://huggingface.co/papers/2011.10650).

Written from the paper, with changes that make short runs of small networks stable:

- deviations are a softplus, which grows linearly, instead of an exponential (https://huggingface.co/papers/2203.13751);
- the mean of q is learnt relative to that of p, and what a network says of a Gaussian is softly clamped, both as in
  NVAE (https://huggingface.co/papers/2007.03898);
- features end at half the size of the image or less, and a light head goes the rest of the way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.labels import check_classes
from hfgen.models.vae_base import (
    VAEDecoderOutput,
    check_images,
    check_latents,
    decoder_output,
    num_parameters,
    start_likelihood_,
)

HierarchicalVAEDecoderOutput = VAEDecoderOutput  # its earlier name

BOUND = 8.0  # of what networks say of Gaussians; deviations are then between 0.006 and 8


@dataclass
class HierarchicalVAEEncoderOutput(BaseOutput):
    """
    The output of [`HierarchicalVAE.encode`].

    Args:
        latent_dist ([`HierarchicalPosterior`]): The distribution of the latents given the images.
    """

    latent_dist: "HierarchicalPosterior"


def for_each(values: Sequence[int], count: int) -> list[int]:
    """Returns one value for each of `count` sizes; the last given one serves all the rest."""
    return (list(values) + [values[-1]] * count)[:count]


def soft_clamp(x: torch.Tensor) -> torch.Tensor:
    return BOUND * (x / BOUND).tanh()


def deviation(x: torch.Tensor) -> torch.Tensor:
    """Computes a standard deviation, `log2(1 + 2^x)` of the clamped `x`: 1 where `x` is 0."""
    return F.softplus(soft_clamp(x), beta=math.log(2))


def bottleneck(in_channels: int, out_channels: int, inner: int, size: int, scale: float = 1.0) -> nn.Sequential:
    """Convolutions 1x1, 3x3, 3x3 and 1x1, each after a GELU (VDVAE, figure 3); on maps of 1 or 2 pixels all are 1x1.

    The last one starts `scale` times as large as usual.
    """
    kernel = 3 if size > 2 else 1
    layers = [
        nn.Conv2d(in_channels, inner, 1),
        nn.Conv2d(inner, inner, kernel, padding=kernel // 2),
        nn.Conv2d(inner, inner, kernel, padding=kernel // 2),
        scaled(nn.Conv2d(inner, out_channels, 1), scale),
    ]
    return nn.Sequential(*(module for layer in layers for module in (nn.GELU(), layer)))


@torch.no_grad()
def scaled(layer: nn.Conv2d, scale: float) -> nn.Conv2d:
    for parameter in layer.parameters():
        parameter.mul_(scale)
    return layer


@dataclass
class Draw:
    """Latents of one group drawn from q, by the numbers they are made of: `(B, D, h, h)`, float32.

    Attributes:
        noise: Standard normal; `z = mu_q + q_std * noise`.
        eps: The same as the prior sees it; `z = mu_p + p_std * eps`.
        delta: `mu_q - mu_p`.
        q_std, p_std: The standard deviations.
    """

    noise: torch.Tensor
    eps: torch.Tensor
    delta: torch.Tensor
    q_std: torch.Tensor
    p_std: torch.Tensor

    def kl(self) -> torch.Tensor:
        """Computes `KL(q || p)` of the group given the groups above, `(B,)`, in nats."""
        ratio, shift = self.q_std / self.p_std, self.delta / self.p_std
        return ((ratio.square() + shift.square() - 1) / 2 - ratio.log()).flatten(1).sum(1)

    def log_ratio(self) -> torch.Tensor:
        """Computes `log q(z) - log p(z)` of the group given the groups above, `(B,)`, in nats."""
        ratio = self.q_std / self.p_std
        return ((self.eps.square() - self.noise.square()) / 2 - ratio.log()).flatten(1).sum(1)


class LatentGroup(nn.Module):
    """A group of latents: its prior, its posterior, and what it adds to the features (VDVAE, figure 3).

    Args:
        width (`int`): Channels of the features.
        size (`int`): Their height and width, and that of the latents.
        latent_channels (`int`): Channels of the latents.
        scale (`float`): How small that what is added starts.
    """

    def __init__(self, width: int, size: int, latent_channels: int, scale: float):
        super().__init__()
        self.splits = [latent_channels, latent_channels, width]
        inner = max(1, width // 2)
        # A prior that starts as N(0, 1): what the first steps learn of q is not disturbed by a moving p.
        self.prior = bottleneck(width, sum(self.splits), inner, size, scale=0)
        self.posterior = bottleneck(2 * width, 2 * latent_channels, inner, size)
        self.project = scaled(nn.Conv2d(latent_channels, width, 1), scale)
        self.refine = bottleneck(width, width, inner, size, scale)

    def forward(
        self, hidden: torch.Tensor, noise: torch.Tensor, features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Draw | None]:
        """
        Args:
            hidden (`torch.Tensor` of shape `(B, width, size, size)`): The features made of the groups above.
            noise (`torch.Tensor` of shape `(B, latent_channels, size, size)`): The randomness of q if there are
                features of images, and otherwise that of p.
            features (`torch.Tensor` of the shape of `hidden`, *optional*): Features of the images.

        Returns:
            The features with this group, and how it was drawn from q if it was.
        """
        mean, raw, known = self.prior(hidden).split(self.splits, dim=1)
        mean, p_std = soft_clamp(mean.float()), deviation(raw.float())
        draw, eps = None, noise
        if features is not None:
            shift, raw = self.posterior(torch.cat([hidden, features], dim=1)).float().chunk(2, dim=1)
            delta, q_std = soft_clamp(shift), deviation(raw)
            eps = (delta + q_std * noise) / p_std
            draw = Draw(noise, eps, delta, q_std, p_std)
        z = mean + p_std * eps
        hidden = hidden + known + self.project(z.to(hidden.dtype))
        return hidden + self.refine(hidden), draw


class EncoderLevel(Checkpointing, nn.Module):
    """Residual blocks at one size.

    Args:
        finer, width (`int`): Channels of what comes in and of what goes out.
        size (`int`): Height and width.
        layers (`int`): Number of blocks.
        scale (`float`): How small the blocks start.
    """

    def __init__(self, finer: int, width: int, size: int, layers: int, scale: float):
        super().__init__()
        self.project = nn.Conv2d(finer, width, 1) if finer != width else nn.Identity()
        self.blocks = nn.ModuleList(bottleneck(width, width, max(1, width // 2), size, scale) for _ in range(layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.project(hidden)
        for block in self.blocks:
            hidden = hidden + self.checkpointed(block, hidden)
        return hidden


class DecoderLevel(Checkpointing, nn.Module):
    """Groups of latents at one size. They start with what is upsampled, a bias for each pixel, and the class.

    Args:
        coarser, width (`int`): Channels of what comes in and of what goes out.
        size (`int`): Height and width of what goes out.
        groups (`int`): Number of groups.
        latent_channels (`int`): Channels of the latents of each.
        num_class_embeds (`int`, *optional*): Number of classes.
        scale (`float`): How small that what groups add starts.
    """

    def __init__(self, coarser, width, size, groups, latent_channels, num_class_embeds, scale):
        super().__init__()
        self.shape = (groups, latent_channels, size, size)  # of its latents
        self.project = nn.Conv2d(coarser, width, 1) if coarser != width else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(width, size, size))
        self.class_embedding = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.1)
        self.groups = nn.ModuleList(LatentGroup(width, size, latent_channels, scale) for _ in range(groups))

    def forward(
        self,
        coarse: torch.Tensor | None,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Draw]]:
        """Does the same as [`LatentGroup.forward`], with `noise (B, N)` for all groups, and `coarse (B, coarser, h,
        h)` unless this is the coarsest size."""
        hidden = self.bias.expand(len(noise), -1, -1, -1)
        if coarse is not None:
            size = self.shape[-1]  # 4 pixels are doubled to 8, of which 7 are used
            hidden = hidden + F.interpolate(self.project(coarse), scale_factor=2)[..., :size, :size]
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(class_labels)[:, :, None, None]
        draws = []
        for group, part in zip(self.groups, noise.unflatten(1, self.shape).unbind(1), strict=True):
            hidden, draw = self.checkpointed(group, hidden, part, features)
            draws += [draw] if draw else []
        return hidden, draws


class HierarchicalPosterior:
    """The distribution q of the latents of a [`HierarchicalVAE`] given images.

    A group of latents depends on those above it, so that there is no mean or variance of all: `sample` and `mode` go
    from the top down, and `kl`, `kl_per_group`, `log_ratio` and `decode` are about the latents that they went through
    last. They return `eps`, the latents as the prior sees them (see [`HierarchicalVAE`]).

    Args:
        vae ([`HierarchicalVAE`]): The network.
        features (list of `torch.Tensor`): Those of the images at each size, fine to coarse.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
    """

    def __init__(self, vae: "HierarchicalVAE", features: list[torch.Tensor], class_labels: torch.Tensor | None = None):
        self._vae, self._features, self._class_labels = vae, features, class_labels
        self._hidden: Any = None
        self._draws: list[Draw] = []

    def sample(
        self,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draws latents.

        Args:
            generator (`torch.Generator`, or one per image, *optional*): The source of the noise.
            noise (`torch.Tensor` of shape `(B, N, 1, 1)`, *optional*): Standard normal, used instead of drawing it.

        Returns:
            `torch.Tensor` of shape `(B, N, 1, 1)`: `eps`, float32.

        Raises:
            ValueError: For noise of another shape.
        """
        shape = (len(self._features[0]), *self._vae.latent_shape)
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=self._features[0].device, dtype=torch.float32)
        elif noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, but must be {shape}.")
        self._hidden, self._draws = self._vae.top_down(noise, self._class_labels, self._features)
        return torch.cat([draw.eps.flatten(1) for draw in self._draws], dim=1)[:, :, None, None]

    def mode(self) -> torch.Tensor:
        """Returns the latents `(B, N, 1, 1)` that are the mean of their group, given the groups above."""
        return self.sample(noise=self._features[0].new_zeros(len(self._features[0]), *self._vae.latent_shape))

    def kl_per_group(self) -> list[torch.Tensor]:
        """Computes `KL(q || p)` of each group in nats, `(B,)` each, from the top down."""
        return [draw.kl() for draw in self._last()]

    def kl(self) -> torch.Tensor:
        """Computes `KL(q || p)` in nats, `(B,)`: in closed form for each group, from one sample of the groups above
        it."""
        return torch.stack(self.kl_per_group()).sum(0)

    def log_ratio(self) -> torch.Tensor:
        """Computes `log q(z | x) - log p(z)` in nats, `(B,)`, which an importance-weighted bound subtracts."""
        return torch.stack([draw.log_ratio() for draw in self._last()]).sum(0)

    def decode(self, return_dict: bool = True) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Does the same as [`HierarchicalVAE.decode`] of the latents, almost for free: `sample` has been through its
        networks."""
        self._last()
        return self._vae.make_image(self._hidden, return_dict)

    def _last(self) -> list[Draw]:
        if not self._draws:
            raise ValueError("No latents have been drawn yet, and this is about the last ones: call sample or mode.")
        return self._draws


class HierarchicalVAE(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    A VAE with a ladder of latents, from 1x1 for the whole image to `patch_size` pixels each.

    The image is made from the top down. Each group of latents `z` has a prior `N(mu_p, sigma_p^2)` that depends on the
    groups above it. The latents that `encode` gives and `decode` takes are `eps = (z - mu_p) / sigma_p` of all groups
    in one vector, from the top down. Under the prior they are standard normal and independent, so that they are used
    like those of any other VAE.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_channels (`int`, *optional*, defaults to 8):
            Channels of the latents of each group.
        block_out_channels (`Sequence[int]`, *optional*, defaults to `(48, 64)`):
            Channels of the features at each size, fine to coarse; the last number serves all coarser sizes.
        layers_per_block (`Sequence[int]`, *optional*, defaults to `(3, 3, 2, 1)`):
            Groups of latents at each size, fine to coarse; the last number serves all coarser sizes. The encoder has
            as many residual blocks.
        patch_size (`int`, *optional*, defaults to 2):
            How many pixels wide the finest latents and features are: 2, 4 or 8. With 2, images of 28 pixels have
            latents of sizes 14, 7, 4, 2, 1.
        num_class_embeds (`int`, *optional*):
            Number of classes; by default the network knows none.
        likelihood (`str`, *optional*, defaults to `"logistic_mixture"`):
            `"gaussian"`, `"bernoulli"`, `"logistic"` or `"logistic_mixture"`.
        num_mixtures (`int`, *optional*, defaults to 5):
            Components of the mixture.

    Raises:
        ValueError: If the size is out of range, or for an unknown patch size or likelihood.
    """

    variance: torch.Tensor
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        latent_channels: int = 8,
        block_out_channels: Sequence[int] = (48, 64),
        layers_per_block: Sequence[int] = (3, 3, 2, 1),
        patch_size: int = 2,
        num_class_embeds: int | None = None,
        likelihood: str = "logistic_mixture",
        num_mixtures: int = 5,
    ):
        super().__init__()
        if not 8 <= sample_size <= 256:
            raise ValueError(f"sample_size is {sample_size}, but this network is for images of 8 to 256 pixels.")
        if patch_size not in (2, 4, 8):
            raise ValueError(f"patch_size is {patch_size}, but must be 2, 4 or 8.")
        sizes = [-(-sample_size // patch_size)]  # fine to coarse; odd ones are halved upwards
        while sizes[-1] > 1:
            sizes.append((sizes[-1] + 1) // 2)
        widths, layers = for_each(block_out_channels, len(sizes)), for_each(layers_per_block, len(sizes))
        scale = 1 / math.sqrt(sum(layers))  # so that the variance does not grow with the depth (VDVAE)

        kernel, padding = 2 * patch_size, patch_size // 2
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel, stride=patch_size, padding=padding)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for number, (size, width, count) in enumerate(zip(sizes, widths, layers, strict=True)):
            finer, coarser = widths[max(number - 1, 0)], widths[min(number + 1, len(sizes) - 1)]
            self.encoder.append(EncoderLevel(finer, width, size, count, scale))
            self.decoder.append(DecoderLevel(coarser, width, size, count, latent_channels, num_class_embeds, scale))
        narrow = max(1, widths[0] // 2)
        self.up = nn.ConvTranspose2d(widths[0], narrow, kernel, stride=patch_size, padding=padding)
        self.conv_out = nn.Conv2d(narrow, num_parameters(likelihood, in_channels, num_mixtures), 3, padding=1)
        start_likelihood_(self.conv_out, likelihood, in_channels, num_mixtures)
        # From the top down: latents of each group, and of all groups of a size.
        pairs = [(latent_channels * size**2, count) for size, count in zip(sizes, layers, strict=True)][::-1]
        self.group_sizes = [latents for latents, count in pairs for _ in range(count)]
        self.level_sizes = [latents * count for latents, count in pairs]
        self.padded_size = sizes[0] * patch_size
        self.register_buffer("variance", torch.ones(()))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of the latents of an image: `(N, 1, 1)`."""
        return sum(self.group_sizes), 1, 1

    def top_down(
        self,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        features: list[torch.Tensor] | None = None,
    ) -> tuple[Any, list[Draw]]:
        """Goes through all groups, from the top down.

        Args:
            noise (`torch.Tensor` of shape `(B, N, 1, 1)`): The randomness of q if there are features of images, and
                otherwise that of p.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            features (list of `torch.Tensor`, *optional*): Those of the images at each size, fine to coarse.

        Returns:
            The finest features, and how each group was drawn from q if it was.
        """
        hidden, draws = None, []
        parts = noise.float().flatten(1).split(self.level_sizes, dim=1)
        for number, part in enumerate(parts, start=1):
            level, seen = self.decoder[-number], features[-number] if features else None
            hidden, drawn = level(hidden, part, class_labels, seen)
            draws += drawn
        return hidden, draws

    def make_image(
        self, hidden: torch.Tensor, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Makes images from the finest features, `(B, width, h, h)`."""
        config = self.config
        parameters = self.checkpointed(self._finish, hidden)
        before = (parameters.shape[-1] - config.sample_size) // 2
        middle = slice(before, before + config.sample_size)
        parameters = parameters[..., middle, middle]
        return decoder_output(parameters, config, return_dict)

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.up(hidden))
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            return self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()

    def encode(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> HierarchicalVAEEncoderOutput | tuple[HierarchicalPosterior]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`HierarchicalVAEEncoderOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing or unexpected classes.
        """
        check_images(sample, class_labels, self.config)
        pad = self.padded_size - self.config.sample_size
        before, after = pad // 2, pad - pad // 2
        hidden = self.conv_in(F.pad(sample.to(self.conv_in.weight.dtype), (before, after, before, after)))
        features: list[torch.Tensor] = []
        for level in self.encoder:
            hidden = level(F.avg_pool2d(hidden, 2, ceil_mode=True) if features else hidden)
            features.append(hidden)
        posterior = HierarchicalPosterior(self, features, class_labels)
        return HierarchicalVAEEncoderOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            latents (`torch.Tensor` of shape `(B, N, 1, 1)`):
                `eps` of [`HierarchicalPosterior.sample`], or standard normal for new images.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing or unexpected classes.
        """
        check_latents(latents, self.latent_shape)
        check_classes(class_labels, self.config.num_class_embeds, len(latents))
        hidden, _ = self.top_down(latents, class_labels)
        return self.make_image(hidden, return_dict)

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Reconstructs images.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            sample_posterior (`bool`, *optional*, defaults to `False`):
                Whether to draw the latents instead of taking the mode.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.
            generator (`torch.Generator`, *optional*): The source of the noise.

        Raises:
            ValueError: For images of the wrong shape, or missing or unexpected classes.
        """
        (posterior,) = self.encode(sample, class_labels, return_dict=False)
        posterior.sample(generator) if sample_posterior else posterior.mode()
        return posterior.decode(return_dict)
