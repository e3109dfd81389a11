"""The options of the family; no torch here, so that `--help` answers at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace

AUGMENTATIONS = (  # those of objectives.adaptive_augmentation, which imports torch
    *("flip", "rotate90", "translate_integer", "scale", "rotate", "anisotropic", "translate"),
    *("brightness", "contrast", "luma_flip", "hue", "saturation", "cutout"),
)


STYLEGAN2_ONLY = (  # options that no other architecture has
    *("max_channels", "mapping_layers", "minibatch_std_group", "residual_discriminator"),
    *("path_length_weight", "path_length_interval", "style_mixing"),
)
CONVOLUTIONAL = ("dcgan", "fastgan")  # whose discriminator takes a normalisation
BATCH_NORM = ("mlp", "dcgan", "fastgan")  # architectures whose generator normalises over the batch


@dataclass(frozen=True)
class GANConfig(Options):
    """GAN: networks, objective, regularisation and optimisers."""

    architecture: str = option(
        "dcgan", "the pair of networks", choices=("mlp", "dcgan", "fastgan", "residual", "stylegan2")
    )
    latent_dim: int = option(64, "length of the latents", least=1, most=2**16, weighs=True)
    base_channels: int = option(
        32, "width: of the first layer (mlp), at the full size (dcgan, fastgan), of all stages (residual), 1/32 of "
        "the channels times the pixels per side (stylegan2)", follows=True, least=1, most=2**16, weighs=True,
    )  # fmt: skip
    group_width: int | None = option(
        None,
        "channels per group of the convolutions of residual; 0 for plain ones (default: 16 on a GPU, 0 on a CPU)",
        resolved=True,
        least=0,
        most=2**16,
    )
    discriminator_norm: str = option(
        "group", "normalisation in the discriminator of dcgan and fastgan", choices=("group", "batch", "none")
    )
    spectral_norm: bool = option(False, "spectral normalisation in the discriminator of mlp, dcgan and fastgan")
    output_activation: str = option(
        "tanh",
        "tanh keeps generated images within the bounds of the data; none leaves them unbounded (residual, stylegan2)",
        choices=("tanh", "none"),
        before=lambda record: "none" if record.get("architecture") in ("residual", "stylegan2") else "tanh",
    )
    max_channels: int = option(256, "most channels of a layer (stylegan2)", least=1, most=2**16, weighs=True)
    mapping_layers: int = option(2, "layers from latents to styles (stylegan2)", least=1, most=64, weighs=True)
    minibatch_std_group: int = option(
        32, "images whose deviation the discriminator sees, at most; 0 turns it off (stylegan2)", least=0, most=2**20
    )
    residual_discriminator: bool = option(False, "residual blocks in the discriminator (stylegan2)")
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    objective: str = option(
        "relativistic",
        "what the two networks minimise",
        choices=("relativistic", "nonsaturating", "saturating", "least_squares", "hinge", "wasserstein"),
    )
    label_smoothing: float = option(0.0, "lowers the target of real images from 1 by this much", least=0, most=0.5)
    r1_gamma: float = option(
        0.05, "weight of R1, the squared gradient at real images; 0 turns it off", least=0, most=1e6
    )
    r2_gamma: float = option(
        0.05, "weight of R2, the squared gradient at generated images; 0 turns it off", least=0, most=1e6
    )
    penalty_interval: int = option(
        4, "steps between two uses of R1 and R2, which then weigh as many times more", least=1, most=2**20
    )
    lipschitz_weight: float = option(
        0.0, "weight of WGAN-GP's penalty, 10 in its paper; 0 turns it off", least=0, most=1e6
    )
    path_length_weight: float = option(
        0.0, "weight of path length regularisation, 2 in its paper; 0 turns it off (stylegan2)", least=0, most=1e6
    )
    path_length_interval: int = option(
        4, "steps of the generator between two uses of it, which then weigh as many times more", least=1, most=2**20
    )
    style_mixing: float = option(
        0.0, "probability that an image has two styles, one for its coarse and one for its fine layers, 0.9 in its "
        "paper (stylegan2)", least=0, most=1,
    )  # fmt: skip
    reconstruction_weight: float = option(
        0.0, "weight of the error with which the discriminator restores real images from its features, 1 in its paper "
        "(fastgan)", least=0, most=1e6,
    )  # fmt: skip
    discriminator_steps: int = option(1, "steps of the discriminator per step of the generator", least=1, most=10_000)
    ada_target: float | None = option(
        None,
        "adaptive augmentation: keeps the mean sign of the real logits at this, 0.6 in its paper; none turns it off",
        follows=True,
        least=0,
        most=1,
    )
    ada_images: int = option(
        500_000,
        "images in which adaptive augmentation changes its probability by 1, as long as it goes one way",
        follows=True,
        least=1,
        most=2**40,
    )
    augment_probability: float = option(
        0.0, "probability of each differentiable augmentation (initial, if adaptive)", least=0, most=1
    )
    augmentations: tuple[str, ...] = option(
        ("translate_integer", "scale", "rotate", "anisotropic", "translate", "brightness", "contrast", "cutout"),
        "the differentiable augmentations; also: flip rotate90 luma_flip hue saturation",
        choices=AUGMENTATIONS,
    )
    truncation: float = option(1.0, "truncation of the sample grids (stylegan2)", resumable=True, least=0, most=10)
    learning_rate: float = option(1e-3, "peak learning rate of Adam", above=0, most=100)
    discriminator_learning_rate: float | None = option(
        None, "that of the discriminator, if it differs", resolved=True, above=0, most=100
    )
    adam_beta1: float = option(0.0, "Adam beta 1", least=0, below=1)
    adam_beta2: float = option(0.99, "Adam beta 2", least=0, below=1)
    adam_epsilon: float = option(1e-8, "Adam epsilon", least=1e-30, most=1)

    @property
    def penalised(self) -> bool:
        """Says whether the discriminator's loss contains a derivative of the discriminator."""
        return bool(self.r1_gamma or self.r2_gamma or self.lipschitz_weight)

    def validate(self) -> None:
        if self.label_smoothing and self.objective not in ("nonsaturating", "saturating", "least_squares"):
            raise UserError(
                f"`label_smoothing` {self.label_smoothing}: `objective` {self.objective} has no target to lower. "
                "Leave it out, or use nonsaturating, saturating or least_squares."
            )
        if self.objective == "wasserstein" and not (self.lipschitz_weight or self.spectral_norm):
            raise UserError(
                "`objective` wasserstein needs a critic of bounded slope: add `lipschitz_weight` 10, or "
                "`spectral_norm`."
            )
        if self.penalised and self.architecture in CONVOLUTIONAL and self.discriminator_norm == "batch":
            raise UserError(
                "`discriminator_norm` batch mixes images, so that the gradient at one image is not its own, which "
                "`r1_gamma`, `r2_gamma` and `lipschitz_weight` need: set these to 0, or use group or none."
            )
        if self.group_width and 2 * self.base_channels % self.group_width:
            raise UserError(
                f"`group_width` {self.group_width} does not divide 2 * `base_channels` {self.base_channels}."
            )
        if not self.augmentations and (self.ada_target is not None or self.augment_probability):
            name = "augment_probability" if self.ada_target is None else "ada_target"
            raise UserError(
                f"`{name}` {getattr(self, name)}: `augmentations` is empty, so that there is nothing to augment with. "
                "Give some, or leave both out."
            )
        if self.discriminator_norm != "group" and self.architecture not in CONVOLUTIONAL:
            raise UserError(
                f"`discriminator_norm` {self.discriminator_norm}: {self.architecture} has none. Leave it out."
            )
        if self.reconstruction_weight and self.architecture != "fastgan":
            raise UserError(
                f"`reconstruction_weight` {self.reconstruction_weight}: the discriminator of {self.architecture} has "
                "no decoders. Leave it out, or use fastgan."
            )
        if self.truncation != 1 and self.architecture != "stylegan2":
            raise UserError(
                f"`truncation` {self.truncation}: {self.architecture} has no mean latent to move towards. Leave "
                "it out, or use stylegan2."
            )
        if self.output_activation == "none" and self.architecture in BATCH_NORM:
            raise UserError(
                f"`output_activation` none: {self.architecture} always ends in tanh. Leave it out, or use residual or "
                "stylegan2."
            )
        if self.minibatch_std_group == 1:
            raise UserError(
                f"`minibatch_std_group` {self.minibatch_std_group}: a deviation needs two images. Use 2 or more, or 0 "
                "to turn it off."
            )
        defaults = {field.name: field.default for field in fields(self)}
        for name in STYLEGAN2_ONLY if self.architecture != "stylegan2" else ():
            if getattr(self, name) != defaults[name]:
                raise UserError(
                    f"`{name}` {getattr(self, name)} does not exist in {self.architecture}: leave it out, or use "
                    "stylegan2."
                )
        if self.spectral_norm and self.architecture not in BATCH_NORM:
            raise UserError(
                f"`spectral_norm` does not exist in {self.architecture}: leave it out, or use mlp, dcgan or fastgan."
            )

    def check(self, resolution: int | None, size: int) -> None:
        """Checks the size of the images, if known, and the number of them in a micro-batch.

        Raises:
            UserError: If the networks cannot make that size, or statistics over the batch need more images.
        """
        if resolution is not None and not 8 <= resolution <= 256:
            raise UserError(f"`resolution` {resolution} is out of range: GANs make images of 8 to 256 pixels.")
        if size == 1 and self.architecture in BATCH_NORM:
            raise UserError("`train_batch_size` 1: batch normalisation needs several images. Use 2 or more.")
        most = self.minibatch_std_group
        if self.architecture == "stylegan2" and most and all(size % group for group in range(2, min(most, size) + 1)):
            raise UserError(
                f"`train_batch_size` {size}: minibatch statistics need groups of 2 to {most} images of equal size. "
                "Use a number with such a divisor, or `minibatch_std_group` 0."
            )


def resolve(options: GANConfig, data: Any, machine: Machine) -> GANConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`GANConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    values: dict[str, Any] = {}
    if options.group_width is None and options.architecture == "residual":
        # The paper uses groups; CPUs are slow at their second derivative.
        values["group_width"] = 0 if machine.kind == "cpu" else math.gcd(16, options.base_channels)
    if options.discriminator_learning_rate is None:
        values["discriminator_learning_rate"] = options.learning_rate
    return replace(options, **values)


PACE = Pace(images=600_000, passes=2000)
ADA_SHARE = 0.1  # of the run, in which adaptive augmentation may go from nothing to always


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals, see [`~training.defaults.follow`]; narrower networks for 128 pixels and more on a
    CPU; and, of few images, adaptive augmentation, which acts within a tenth of the run."""
    values = defaults.follow(PACE, options, data, machine)
    if options.own.architecture == "dcgan" and data.resolution >= 128 and machine.kind == "cpu":
        values["base_channels"] = 16 if data.resolution < 256 else 8
    target = options.own.ada_target
    if data.num_images and data.num_images < defaults.FEW and "ada_target" not in options.decided:
        target = values["ada_target"] = 0.6
    if target is not None:
        total = defaults.planned(values, options, data, machine).total
        values["ada_images"] = defaults.between(1, round(ADA_SHARE * total), 500_000)
    return values


def adopted(architecture: str, **keys: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Returns a function from the configuration of a generator to options, whose names there are given."""
    return lambda config, folder: {
        "architecture": architecture,
        "latent_dim": config["latent_dim"],
        **{name: config[key] for name, key in keys.items()},
        **({"output_activation": config["output_activation"] or "none"} if "output_activation" in config else {}),
    }


ADOPT = {
    "MLPGenerator": adopted("mlp", base_channels="base_channels"),
    "DCGANGenerator": adopted("dcgan", base_channels="base_channels"),
    "FastGANGenerator": adopted("fastgan", base_channels="base_channels"),
    "ResidualGenerator": lambda config, folder: {
        **adopted("residual", group_width="group_width")(config, folder),
        "base_channels": config["block_out_channels"][0],
    },
    "StyleGAN2Generator": lambda config, folder: {
        **adopted("stylegan2", mapping_layers="mapping_layers", max_channels="channel_max")(config, folder),
        "base_channels": config["channel_base"] // 32,
    },
}

COMMON: dict[str, Any] = {
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.0,  # Adam forgets the scale of a gradient, and clipping would couple the two games
    "ema_half_life": 20_000,
}


def stable() -> dict[str, Any]:
    """R3GAN's objective (relativistic, R1, R2) on small convolutional networks, with groups of similar images."""
    return COMMON | {"num_clusters": None}


def digits() -> dict[str, Any]:
    """`stable` on scikit-learn's digits, enlarged from 8x8 to 16x16: about three minutes on two cores with bf16."""
    return stable() | {
        "dataset_name": "digits",
        "resolution": 16,
        "num_epochs": 250,
        "save_images_epochs": 25,
        "ada_target": None,  # they are few, but nearly all that there are
    }


def conditional() -> dict[str, Any]:
    """`stable`, by class instead of by group."""
    return COMMON | {"class_conditional": True}


CLASSICAL = COMMON | {
    "latent_dim": 100,
    "r1_gamma": 0.0,
    "r2_gamma": 0.0,
    "adam_beta1": 0.5,
    "adam_beta2": 0.999,
    "ada_target": None,
}


def dcgan() -> dict[str, Any]:
    """DCGAN of 2015: the non-saturating loss, batch normalisation in both networks."""
    return CLASSICAL | {"objective": "nonsaturating", "discriminator_norm": "batch", "learning_rate": 2e-3}


def fastgan() -> dict[str, Any]:
    """FastGAN, for few images: light networks, a discriminator that can restore what it sees, and DiffAugment."""
    return CLASSICAL | {
        "architecture": "fastgan",
        "latent_dim": 256,
        "objective": "hinge",
        "discriminator_norm": "batch",
        "spectral_norm": True,
        "reconstruction_weight": 1.0,
        "augment_probability": 1.0,
        "augmentations": ("translate_integer", "brightness", "contrast", "saturation", "cutout"),
        "train_batch_size": 8,
        "learning_rate": 2e-4,
        "ema_half_life": 5_500,
    }


def mlp() -> dict[str, Any]:
    """The fully connected GAN of 2014."""
    return CLASSICAL | {
        "architecture": "mlp",
        "base_channels": 256,
        "objective": "nonsaturating",
        "learning_rate": 5e-4,
    }


def wgan_gp() -> dict[str, Any]:
    """Wasserstein with gradient penalty: five steps of the critic for one of the generator."""
    return CLASSICAL | {
        "objective": "wasserstein",
        "lipschitz_weight": 10.0,
        "discriminator_steps": 5,
        "adam_beta1": 0.0,
        "adam_beta2": 0.9,
        "learning_rate": 2e-3,
    }


def stylegan2() -> dict[str, Any]:
    """StyleGAN2 for up to 32 pixels: ADA's settings for CIFAR-10 with narrower networks."""
    return COMMON | {
        "architecture": "stylegan2",
        "latent_dim": 128,
        "base_channels": 64,
        "objective": "nonsaturating",
        "r1_gamma": 0.01,
        "r2_gamma": 0.0,
        "penalty_interval": 16,
        "learning_rate": 2.5e-3,
        "ema_half_life": 500_000,
    }


def stylegan2_of(pixels: int) -> dict[str, Any]:
    """Returns what ADA's configuration `auto` has for a size and 64 images per step, with its regularisers."""
    return stylegan2() | {
        "resolution": pixels,
        "train_batch_size": 64,  # which the weight of R1 and the half-life below belong to
        "latent_dim": 512,
        "base_channels": 512,
        "max_channels": 512,
        "minibatch_std_group": 4,
        "residual_discriminator": True,
        "r1_gamma": 0.0002 * pixels**2 / 64,
        "path_length_weight": 2.0,
        "style_mixing": 0.9,
        "ema_half_life": 20_000,
    }


def stylegan2_64() -> dict[str, Any]:
    """StyleGAN2 for 64 pixels, on a GPU: ADA's `auto` for 64 images per step, all regularisers on."""
    return stylegan2_of(64)


def stylegan2_128() -> dict[str, Any]:
    """StyleGAN2 for 128 pixels, on a GPU: as for 64."""
    return stylegan2_of(128)


def stylegan2_256() -> dict[str, Any]:
    """StyleGAN2 for 256 pixels, on a GPU: ADA's `paper256`, whose mapping network has eight layers."""
    return stylegan2_of(256) | {"mapping_layers": 8, "minibatch_std_group": 8, "r1_gamma": 1.0, "ema_ramp": 0.0}


PRESETS = {
    "digits": digits,
    "stable": stable,
    "conditional": conditional,
    "dcgan": dcgan,
    "fastgan": fastgan,
    "mlp": mlp,
    "wgan-gp": wgan_gp,
    "stylegan2": stylegan2,
    "stylegan2-64": stylegan2_64,
    "stylegan2-128": stylegan2_128,
    "stylegan2-256": stylegan2_256,
}
