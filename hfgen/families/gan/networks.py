"""The pairs of networks of the family."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from hfgen.families.gan.options import GANConfig
from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.fastgan import FastGANDiscriminator, FastGANGenerator
from hfgen.models.mlp_gan import MLPDiscriminator, MLPGenerator
from hfgen.models.residual_gan import ResidualDiscriminator, ResidualGenerator
from hfgen.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator

Options = dict[str, Any]


def mlp(config: GANConfig) -> tuple[Options, Options]:
    width = {"base_channels": config.base_channels}
    return width, width | {"spectral_norm": config.spectral_norm}


def dcgan(config: GANConfig) -> tuple[Options, Options]:
    width = {"base_channels": config.base_channels}
    norm = {"norm": config.discriminator_norm, "norm_num_groups": math.gcd(8, config.base_channels)}
    return width, width | norm | {"spectral_norm": config.spectral_norm}


def fastgan(config: GANConfig) -> tuple[Options, Options]:
    generator, discriminator = dcgan(config)
    return generator, discriminator | {"reconstructs": bool(config.reconstruction_weight)}


def residual(config: GANConfig) -> tuple[Options, Options]:
    shape = {"block_out_channels": (config.base_channels,), "group_width": config.group_width}
    return shape | bound(config), shape


def stylegan2(config: GANConfig) -> tuple[Options, Options]:
    width = {"channel_base": 32 * config.base_channels, "channel_max": config.max_channels}
    judge = {"minibatch_std_group": config.minibatch_std_group, "residual": config.residual_discriminator}
    return width | bound(config) | {"mapping_layers": config.mapping_layers}, width | judge


def bound(config: GANConfig) -> Options:
    return {"output_activation": None if config.output_activation == "none" else config.output_activation}


# By architecture: the generator, the discriminator, and the options of both beside those that all networks take.
PAIRS: dict[str, tuple[type, type, Callable[[GANConfig], tuple[Options, Options]]]] = {
    "mlp": (MLPGenerator, MLPDiscriminator, mlp),
    "dcgan": (DCGANGenerator, DCGANDiscriminator, dcgan),
    "fastgan": (FastGANGenerator, FastGANDiscriminator, fastgan),
    "residual": (ResidualGenerator, ResidualDiscriminator, residual),
    "stylegan2": (StyleGAN2Generator, StyleGAN2Discriminator, stylegan2),
}


def make_networks(
    config: GANConfig, resolution: int, channels: int, num_classes: int | None
) -> tuple[nn.Module, nn.Module]:
    """Makes a generator and a discriminator.

    Raises:
        ValueError: If they cannot have that size.
    """
    generator, discriminator, options = PAIRS[config.architecture]
    generator_options, discriminator_options = options(config)
    shared: Options = {"sample_size": resolution, "num_class_embeds": num_classes}
    generator_options = {"out_channels": channels, "latent_dim": config.latent_dim} | generator_options
    return (
        generator(**shared, **generator_options),
        discriminator(**shared, in_channels=channels, **discriminator_options),
    )
