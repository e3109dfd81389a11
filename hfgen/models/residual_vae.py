"""A residual VAE (https://huggingface.co/papers/1312.6114) for 8 to 256 pixels, by class if asked to.

Residual blocks as in the networks of DDPM (https://huggingface.co/papers/2006.11239), but no attention, and no
blocks at the full size, where a CPU would spend most of its time. The last convolution of each branch starts at zero.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn
from torch.nn import functional as F

from hfgen.models.base import ModelMixin
from hfgen.models.checkpointing import Checkpointing
from hfgen.models.labels import check_classes
from hfgen.models.vae_base import (
    GaussianVAE,
    VAEDecoderOutput,
    check_images,
    check_latents,
    decoder_output,
    feature_sizes,
    num_parameters,
    start_likelihood_,
)

ResidualVAEDecoderOutput = VAEDecoderOutput  # its earlier name


class ResidualBlock(nn.Module):
    """`x + conv3x3(act(norm(conv3x3(act(norm(x))))))`; a class scales and shifts the second norm (FiLM).

    Args:
        width (`int`): Channels.
        norm_num_groups (`int`): Groups of the group normalisation.
        class_embed_dim (`int`): Length of the class embedding; 0 for none.
    """

    def __init__(self, width: int, norm_num_groups: int, class_embed_dim: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_num_groups, width)
        self.film = nn.Linear(class_embed_dim, 2 * width) if class_embed_dim else None
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor, class_embedding: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None:
            scale, shift = self.film(class_embedding)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return x + self.conv2(F.silu(hidden))


class ResidualBlocks(Checkpointing, nn.ModuleList):
    """Residual blocks one after another."""

    def forward(self, x: torch.Tensor, class_embedding: torch.Tensor | None = None) -> torch.Tensor:
        for block in self:
            x = self.checkpointed(block, x, class_embedding)
        return x


class ResidualVAE(GaussianVAE, Checkpointing, ModelMixin, ConfigMixin):
    r"""
    Halves images with strided convolutions, doubles them with transposed ones, residual blocks at each size between.

    Parameters:
        sample_size (`int`, *optional*, defaults to 28):
            Height and width of the images, 8 to 256.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the images.
        latent_channels (`int`, *optional*, defaults to 32):
            Channels of the latents, which are a priori standard normal.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(32, 64, 64)`):
            Channels after each halving; half of the first are left at the full size. Give more for large images: 6
            leave a feature map of 4 for 256 pixels.
        layers_per_block (`int`, *optional*, defaults to 1):
            Residual blocks per size, in the encoder and in the decoder.
        norm_num_groups (`int`, *optional*, defaults to 8):
            Groups of the group normalisation, a divisor of all `block_out_channels`.
        spatial (`bool`, *optional*, defaults to `False`):
            Whether latents keep the positions of the smallest feature map, `(B, latent_channels, h, w)`; otherwise
            they are vectors, `(B, latent_channels, 1, 1)`.
        num_class_embeds (`int`, *optional*):
            Number of classes. They scale and shift the features of all residual blocks.
        class_embed_dim (`int`, *optional*, defaults to 64):
            Length of the class embedding.
        likelihood (`str`, *optional*, defaults to `"gaussian"`):
            What the decoder's numbers mean: `"gaussian"`, `"bernoulli"`, `"logistic"` or `"logistic_mixture"`.
        num_mixtures (`int`, *optional*, defaults to 5):
            Components of the mixture.

    The buffer `variance` is the Gaussian likelihood's; training sets it.

    Raises:
        ValueError: If the size is out of range, for an unknown likelihood, or groups that do not divide the channels.
    """

    variance: torch.Tensor
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        latent_channels: int = 32,
        block_out_channels: Sequence[int] = (32, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        spatial: bool = False,
        num_class_embeds: int | None = None,
        class_embed_dim: int = 64,
        likelihood: str = "gaussian",
        num_mixtures: int = 5,
    ):
        super().__init__()
        widths = list(block_out_channels)
        self.sizes = feature_sizes(sample_size, len(widths))
        for width, size in zip(widths, self.sizes[1:], strict=True):
            if width % norm_num_groups or width * size**2 == norm_num_groups:
                raise ValueError(
                    f"norm_num_groups is {norm_num_groups}, but must divide all of block_out_channels {tuple(widths)} "
                    f"into groups of several values: here {width} channels of {size}x{size} pixels."
                )
        self.register_buffer("variance", torch.ones(()))
        self.class_embedding = nn.Embedding(num_class_embeds, class_embed_dim) if num_class_embeds else None

        def blocks(width: int) -> ResidualBlocks:
            embed_dim = class_embed_dim if num_class_embeds else 0
            return ResidualBlocks(ResidualBlock(width, norm_num_groups, embed_dim) for _ in range(layers_per_block))

        self.down, self.down_blocks = nn.ModuleList(), nn.ModuleList()
        for width, wider in zip([in_channels, *widths], widths, strict=False):
            self.down.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
            self.down_blocks.append(blocks(wider))
        # A kernel as large as the feature map makes a vector of it; one of 1 keeps all its positions.
        kernel = 1 if spatial else self.sizes[-1]
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[-1])
        self.mean = nn.Conv2d(widths[-1], latent_channels, kernel)
        self.logvar = nn.Conv2d(widths[-1], latent_channels, kernel)
        self.latent_in = nn.ConvTranspose2d(latent_channels, widths[-1], kernel)
        # Latents keep their scale up to the image: PyTorch's own initialisation nearly silences them.
        nn.init.kaiming_normal_(self.mean.weight, nonlinearity="linear")
        nn.init.zeros_(self.logvar.weight)
        nn.init.normal_(self.latent_in.weight, std=latent_channels**-0.5)

        self.up_blocks, self.up = nn.ModuleList(), nn.ModuleList()
        for width, narrower in zip(widths[::-1], [*widths[-2::-1], max(1, widths[0] // 2)], strict=True):
            self.up_blocks.append(blocks(width))
            # A kernel of 4 is a multiple of the stride of 2: all pixels get the same number of contributions.
            up = nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)
            nn.init.normal_(up.weight, std=(4 * width) ** -0.5)  # 4 weights of 16 per channel meet in a pixel
            self.up.append(up)
        parameters = num_parameters(likelihood, in_channels, num_mixtures)
        self.conv_out = nn.Conv2d(max(1, widths[0] // 2), parameters, 3, padding=1)
        start_likelihood_(self.conv_out, likelihood, in_channels, num_mixtures)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of an image's latents."""
        size = self.sizes[-1] if self.config.spatial else 1
        return (self.config.latent_channels, size, size)

    def encode(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        r"""
        Encodes images into the posterior of their latents.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an `AutoencoderKLOutput` with `latent_dist` instead of a tuple.

        Raises:
            ValueError: For images of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_images(sample, class_labels, self.config)
        embedding = None if self.class_embedding is None else self.class_embedding(class_labels)
        hidden = sample.to(self.mean.weight.dtype)
        for down, blocks in zip(self.down, self.down_blocks, strict=True):
            hidden = blocks(down(hidden), embedding)
        hidden = F.silu(self.norm_out(hidden)).to(self.mean.weight.dtype)
        with torch.autocast(sample.device.type, enabled=False):  # the KL divergence is about small differences
            moments = torch.cat([self.mean(hidden), self.logvar(hidden)], dim=1).float()
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""
        Decodes latents into images.

        Args:
            latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): A priori standard normal.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VAEDecoderOutput`] instead of a tuple.

        Raises:
            ValueError: For latents of the wrong shape, or missing, unexpected or unknown classes.
        """
        check_latents(latents, self.latent_shape)
        check_classes(class_labels, self.config.num_class_embeds, len(latents))
        embedding = None if self.class_embedding is None else self.class_embedding(class_labels)
        hidden = self.latent_in(latents.to(self.latent_in.weight.dtype))
        for blocks, up, size in zip(self.up_blocks, self.up, reversed(self.sizes[:-1]), strict=True):
            hidden = up(blocks(hidden, embedding))[..., :size, :size]
        return decoder_output(self.checkpointed(self._finish, hidden), self.config, return_dict)

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has fewer than the 256 levels of a pixel
            return self.conv_out(hidden.to(self.conv_out.weight.dtype)).float()
