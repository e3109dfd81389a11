"""A VQ-VAE (https://huggingface.co/papers/1711.00937) for images of 8 to 256 pixels, by class if asked to.

The codebook learns by moving averages (appendix A.1 of the paper). Codes and latents have length 1, so that the
nearest code is that of the smallest angle (https://huggingface.co/papers/2110.04627). A code that is not used takes
over half of the latents of one that is far from many, as in the algorithm of Linde, Buzo and Gray (1980). The codebook
starts in the same way: the few codes that the first latents happen to choose are divided until all are in use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
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

VQVAEDecoderOutput = VAEDecoderOutput  # its earlier name

SMOOTHING = 1e-6  # weight of the old position of a code, as a share of all latents


@dataclass
class VQVAEEncoderOutput(BaseOutput):
    """
    The output of [`VQVAE.encode`].

    Args:
        latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Vectors of length 1, float32, not quantised.
    """

    latents: torch.Tensor


@dataclass
class VQVAEQuantizerOutput(BaseOutput):
    """
    The output of [`VQVAE.quantize`].

    Args:
        latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`):
            The nearest codes, float32. Their gradient goes straight through to the latents that they replace.
        indices (`torch.Tensor` of shape `(B, h, w)`): The numbers of these codes.
        commitment (`torch.Tensor` of shape `(B,)`):
            Squared distances of the latents from their codes, summed: 0 to 4 at each position. Its gradient pulls the
            latents to the codes.
    """

    latents: torch.Tensor
    indices: torch.Tensor
    commitment: torch.Tensor


def quotient(total: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Computes `total / number`, or 0 where there is nothing; numbers averaged over processes may be below 1."""
    return total / torch.where(number > 0, number, 1.0)


def activate(width: int, norm_num_groups: int) -> list[nn.Module]:
    return [nn.GroupNorm(norm_num_groups, width), nn.SiLU()]


class ResidualBlock(nn.Module):
    """`x + conv1x1(act(conv3x3(act(x))))`, which starts as `x`; a group normalisation comes before each activation."""

    def __init__(self, width: int, norm_num_groups: int):
        super().__init__()
        conv1, conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(conv2.weight)
        self.layers = nn.Sequential(*activate(width, norm_num_groups), conv1, *activate(width, norm_num_groups), conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


STARTS = (ResidualBlock, nn.GroupNorm)  # the layers at which a block begins that gradient checkpointing knows


class VQVAE(Checkpointing, ModelMixin, ConfigMixin):
    r"""
    A VAE whose latents are taken from a codebook.

    In training, the codebook learns apart from the networks:

    ```py
    latents = vae.encode(images).latents
    quantized = vae.quantize(latents)
    parameters = vae.decode(quantized.latents, force_not_quantize=True).parameters
    loss = ...  # of the parameters and quantized.commitment
    vae.observe(latents, quantized.indices)  # for each micro-batch
    vae.update_codebook()  # after the step
    ```

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_channels (`int`, *optional*, defaults to 16):
            Length of the codes.
        num_vq_embeddings (`int`, *optional*, defaults to 256):
            Number of codes.
        block_out_channels (`Sequence[int]`, *optional*, defaults to `(64, 128)`):
            Channels after each halving: with two of them, 28 pixels become 7x7 latents.
        layers_per_block (`int`, *optional*, defaults to 2):
            Residual blocks at the size of the latents, in the encoder and in the decoder.
        norm_num_groups (`int`, *optional*, defaults to 8):
            Groups of the group normalisation.
        decay (`float`, *optional*, defaults to 0.99):
            How much of the codebook's averages an update keeps.
        restart_threshold (`float`, *optional*, defaults to 0.02):
            A code that is used less than this, as a multiple of the mean use, starts anew. 0 leaves them all alone.
        num_class_embeds (`int`, *optional*):
            Number of classes; by default the network knows none.
        likelihood (`str`, *optional*, defaults to `"gaussian"`):
            `"gaussian"`, `"bernoulli"`, `"logistic"` or `"logistic_mixture"`.
        num_mixtures (`int`, *optional*, defaults to 5):
            Components of the mixture.

    Training sets the buffer `variance`, that of the Gaussian likelihood. The buffer `dead_codes` is the number of
    codes that the last update found unused, and put to use.

    Raises:
        ValueError: If the size is out of range, or for an unknown likelihood.
    """

    variance: torch.Tensor
    _supports_gradient_checkpointing = True
    codebook: torch.Tensor
    split_axes: torch.Tensor
    ema_weight: torch.Tensor
    ema_counts: torch.Tensor
    ema_sums: torch.Tensor
    dead_codes: torch.Tensor
    step_counts: torch.Tensor
    step_sums: torch.Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        latent_channels: int = 16,
        num_vq_embeddings: int = 256,
        block_out_channels: Sequence[int] = (64, 128),
        layers_per_block: int = 2,
        norm_num_groups: int = 8,
        decay: float = 0.99,
        restart_threshold: float = 0.02,
        num_class_embeds: int | None = None,
        likelihood: str = "gaussian",
        num_mixtures: int = 5,
    ):
        super().__init__()
        if not 8 <= sample_size <= 256:
            raise ValueError(f"sample_size is {sample_size}, but this network takes images of 8 to 256 pixels.")
        widths = list(block_out_channels)
        first, last = widths[0], widths[-1]
        self.latent_size = -(-sample_size // 2 ** len(widths))
        self.padded_size = self.latent_size * 2 ** len(widths)

        def blocks() -> list[nn.Module]:
            return [ResidualBlock(last, norm_num_groups) for _ in range(layers_per_block)]

        down: list[nn.Module] = [nn.Conv2d(in_channels, first, 4, stride=2, padding=1)]
        for width, wider in zip(widths, widths[1:], strict=False):
            down += [*activate(width, norm_num_groups), nn.Conv2d(width, wider, 4, stride=2, padding=1)]
        up: list[nn.Module] = []
        for width, narrower in zip(widths[::-1], [*widths[-2::-1], max(1, first // 2)], strict=True):
            # A kernel of 4 is a multiple of the stride of 2: all pixels get the same number of contributions.
            up += [*activate(width, norm_num_groups), nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)]
        self.down = nn.Sequential(*down)
        self.encoder_classes = nn.Embedding(num_class_embeds, last) if num_class_embeds else None
        self.encoder = nn.Sequential(*blocks(), *activate(last, norm_num_groups), nn.Conv2d(last, latent_channels, 1))
        self.conv_in = nn.Conv2d(latent_channels, last, 3, padding=1)
        self.decoder_classes = nn.Embedding(num_class_embeds, last) if num_class_embeds else None
        self.decoder = nn.Sequential(*blocks(), *up, nn.SiLU())
        outputs = num_parameters(likelihood, in_channels, num_mixtures)
        self.conv_out = nn.Conv2d(max(1, first // 2), outputs, 3, padding=1)
        start_likelihood_(self.conv_out, likelihood, in_channels, num_mixtures)
        self.register_buffer("variance", torch.ones(()))

        shape = (num_vq_embeddings, latent_channels)
        self.register_buffer("codebook", F.normalize(torch.randn(shape)))
        # Where the latents of a code spread most: across a plane through the code they are divided, if need be.
        self.register_buffer("split_axes", F.normalize(torch.randn(shape)))
        # Moving averages of the share of each code in all latents, of these latents' sum, and, for correcting their
        # start at zero, of 1.
        self.register_buffer("ema_weight", torch.zeros(()))
        self.register_buffer("ema_counts", torch.zeros(num_vq_embeddings))
        self.register_buffer("ema_sums", torch.zeros(shape))
        self.register_buffer("dead_codes", torch.zeros(()))
        # The latents of a step on either side of the plane: their number and sum. All that is kept of a step are sums,
        # so that neither micro-batches nor processes, over which buffers are averaged, change what is learnt.
        self.register_buffer("step_counts", torch.zeros(2, num_vq_embeddings), persistent=False)
        self.register_buffer("step_sums", torch.zeros(2, *shape), persistent=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of an image's latents."""
        return (self.config.latent_channels, self.latent_size, self.latent_size)

    @property
    def codes(self) -> torch.Tensor:
        """The codes, `(num_vq_embeddings, latent_channels)`: vectors of length 1, float32."""
        return F.normalize(self.codebook.float())

    @property
    def perplexity(self) -> torch.Tensor:
        """How many equally frequent codes would be as varied as those of the last updates, about `1 / (1 - decay)`."""
        shares = quotient(self.ema_counts, self.ema_counts.sum())
        return torch.special.entr(shares).sum().exp()

    def encode(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VQVAEEncoderOutput | tuple[torch.Tensor]:
        r"""
        Encodes images into latents.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VQVAEEncoderOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_images(sample, class_labels, self.config)
        pad = self.padded_size - self.config.sample_size
        before, after = pad // 2, (pad + 1) // 2
        hidden = F.pad(sample.to(self.conv_in.weight.dtype), (before, after, before, after))
        hidden = self.in_blocks(self.down, STARTS, hidden)
        if self.encoder_classes is not None:
            hidden = hidden + self.encoder_classes(class_labels)[:, :, None, None]
        latents = F.normalize(self.in_blocks(self.encoder, STARTS, hidden).float())
        return VQVAEEncoderOutput(latents=latents) if return_dict else (latents,)

    def quantize(self, latents: torch.Tensor) -> VQVAEQuantizerOutput:
        r"""
        Replaces latents by the nearest codes, those of the smallest angle.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Their length does not matter.

        Raises:
            ValueError: For latents of the wrong shape.
        """
        check_latents(latents, self.latent_shape)
        with torch.autocast(latents.device.type, enabled=False):  # near codes differ by less than bfloat16 can tell
            unit, codes = F.normalize(latents.float()), self.codes
            indices = torch.einsum("bdhw,kd->bkhw", unit.detach(), codes).argmax(1)
        nearest = F.embedding(indices, codes).permute(0, 3, 1, 2)
        commitment = (unit - nearest).square().sum((1, 2, 3))
        straight_through = latents.float() + (nearest - latents.float()).detach()
        return VQVAEQuantizerOutput(latents=straight_through, indices=indices, commitment=commitment)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Looks up the codes `(B, latent_channels, h, w)` of `indices (B, h, w)`: latents for [`VQVAE.decode`]."""
        return F.embedding(indices, self.codes).permute(0, 3, 1, 2)

    def decode(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        force_not_quantize: bool = False,
        return_dict: bool = True,
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Decodes latents into images.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Those of `encode`, `quantize` or `lookup`.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            force_not_quantize (`bool`, *optional*, defaults to `False`):
                Whether to take the latents as they are instead of the nearest codes.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_latents(latents, self.latent_shape)
        check_classes(class_labels, self.config.num_class_embeds, len(latents))
        if not force_not_quantize:
            latents = self.quantize(latents).latents
        scale = math.sqrt(self.config.latent_channels)  # numbers of about 1 for vectors of length 1
        hidden = self.conv_in((scale * latents).to(self.conv_in.weight.dtype))
        if self.decoder_classes is not None:
            hidden = hidden + self.decoder_classes(class_labels)[:, :, None, None]
        hidden = self.in_blocks(self.decoder, STARTS, hidden)
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            parameters = self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()
        before = (self.padded_size - self.config.sample_size) // 2
        middle = slice(before, before + self.config.sample_size)
        parameters = parameters[..., middle, middle]
        return decoder_output(parameters, self.config, return_dict)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Reconstructs images.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        (latents,) = self.encode(sample, class_labels, return_dict=False)
        return self.decode(latents, class_labels, return_dict=return_dict)

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, indices: torch.Tensor) -> None:
        """Notes which latents chose which codes, for [`VQVAE.update_codebook`]. Nothing else changes.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Those of `encode`, in float32.
            indices (`torch.Tensor` of shape `(B, h, w)`): Their codes.
        """
        with torch.autocast(latents.device.type, enabled=False):
            vectors, numbers = F.normalize(latents.float()).permute(0, 2, 3, 1).flatten(0, 2), indices.flatten()
            axes = self.split_axes - (self.split_axes * self.codes).sum(1, keepdim=True) * self.codes
            side = ((vectors * axes[numbers]).sum(1) > 0).long()
            # A product with zeros and ones instead of a scattered addition, which has no fixed order on a GPU.
            order = torch.arange(2 * len(self.codebook), device=latents.device)
            chosen = (side * len(self.codebook) + numbers == order[:, None]).to(vectors.dtype)
            self.step_counts += chosen.sum(1).view_as(self.step_counts)
            self.step_sums += (chosen @ vectors).view_as(self.step_sums)

    @torch.no_grad()
    def update_codebook(self, decay: float | None = None) -> None:
        """Moves the codes to the mean of their latents; to be called once after each step.

        The means are moving averages (appendix A.1 of the paper). Their start at zero is corrected, and a code without
        latents stays where it is. Then each code that is hardly used takes half of the latents of another one. All
        that happens is a function of the buffers alone.

        Args:
            decay (`float`, *optional*): How much of the averages to keep; by default that of the configuration.
        """
        keep = self.config.decay if decay is None else decay
        total = self.step_counts.sum()
        self.ema_weight.lerp_(torch.ones_like(self.ema_weight), 1 - keep)
        self.ema_counts.lerp_(quotient(self.step_counts.sum(0), total), 1 - keep)
        self.ema_sums.lerp_(quotient(self.step_sums.sum(0), total), 1 - keep)
        revived = self._revive()
        old = torch.where(revived[:, None], 0.0, self.codes)
        self.codebook.copy_(F.normalize(self.ema_sums / self.ema_weight + SMOOTHING * old))
        self.step_counts.zero_()
        self.step_sums.zero_()

    def _revive(self) -> torch.Tensor:
        """Divides the latents of codes that are far from many between them and dead codes; `(K,)`, which were revived.

        The most distant code goes to the first dead one, and so on. Averages are divided like the latents of the step.
        """
        number, counts, sums = len(self.codebook), self.step_counts.sum(0), self.step_sums.sum(0)
        dead = self.ema_counts / self.ema_weight < self.config.restart_threshold / number
        self.dead_codes.copy_(dead.sum())
        distances = 2 * (counts - (sums * self.codes).sum(1))  # |x - c|^2 = 2 - 2 <x, c> for vectors of length 1
        # The best codebooks have equal distances everywhere, so that only what exceeds its part is divided; if
        # distances are rounding errors, nothing is.
        least = (distances.sum() / number).clamp(min=1e-6 * counts.sum())
        two_sided = (self.step_counts > 0).all(0)
        divisible = ~dead & two_sided & (distances > least)
        donors = torch.where(divisible, distances, -1.0).argsort(descending=True, stable=True)
        rank = dead.cumsum(0) - 1  # of a dead code among the dead
        revived = dead & (rank < divisible.sum())
        donor = donors[rank.clamp(min=0)]
        order = torch.arange(number, device=dead.device)
        divided = torch.zeros_like(dead).scatter(0, donors, order < revived.sum())

        side_counts = self.ema_counts * quotient(self.step_counts, counts)  # (2, K)
        side_means = quotient(self.step_sums, self.step_counts.unsqueeze(2))  # (2, K, D)
        side_sums = side_counts.unsqueeze(2) * side_means
        for average, (near, far) in ((self.ema_counts, side_counts), (self.ema_sums, side_sums)):
            shape = (number,) + (1,) * (average.ndim - 1)
            divided_or_not = torch.where(divided.view(shape), near, average)
            average.copy_(torch.where(revived.view(shape), far[donor], divided_or_not))
        # A step of power iteration towards the first principal axis: from the mean of one side to that of the other.
        axes = F.normalize(side_means[1] - side_means[0])
        self.split_axes.copy_(torch.where(two_sided[:, None], axes, self.split_axes))
        return revived
