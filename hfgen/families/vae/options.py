"""The options of the family; no torch here, so that `--help` answers at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace


@dataclass(frozen=True)
class VAEConfig(Options):
    """VAE: network, likelihood, objective, prior and optimiser."""

    architecture: str = option("residual", "the network", choices=("conv", "residual", "hierarchical", "vq"))
    latent_channels: int | None = option(
        None,
        "latents: all of conv and residual, per position of the others (default: 32 to 128 by the size of the images; "
        "hierarchical 8, vq 16)",
        resolved=True,
        follows=True,
        least=1,
        most=2**16,
        weighs=True,
    )
    block_out_channels: tuple[int, ...] | None = option(
        None,
        "channels of each level, from the full size down (default: those of the architecture)",
        resolved=True,
        least=1,
        most=2**16,
        weighs=True,
    )
    spatial_latent: bool = option(False, "latents for each position of the smallest feature map (residual)")
    num_vq_embeddings: int = option(256, "size of the codebook (vq)", least=2, most=2**18, weighs=True)
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    likelihood: str = option(
        "gaussian",
        "how the decoder's output stands for pixels; bernoulli is for black and white only",
        choices=("gaussian", "bernoulli", "logistic", "logistic_mixture"),
    )
    num_mixtures: int = option(5, "components of logistic_mixture", least=1, most=1024, weighs=True)
    variance: float | None = option(
        None,
        "variance of the gaussian, pixels being in [-1, 1] (default: the optimal one, followed while training)",
        least=1e-10,
        most=1e6,
    )
    beta: float = option(
        1.0,
        "weight of the KL divergence, summed over latents, beside the likelihood summed over pixels",
        least=0,
        most=1e6,
    )
    kl_warmup: float = option(0.0, "share of the run over which that weight rises from 0", least=0, below=1)
    free_bits: float = option(0.0, "nats per latent (or group of latents) that cost nothing", least=0, most=1e6)
    commitment_weight: float = option(
        0.25, "weight of the distance of latents from their codes (vq)", least=0, most=1e6
    )
    task: str | None = option(
        None,
        "train on degraded images to give the clean ones: `denoise` or `super_resolve`",
        choices=("denoise", "super_resolve"),
    )
    task_level: float | None = option(
        None,
        "standard deviation of the noise, pixels being in [0, 1] (default 0.3), or the factor (default 2)",
        resolved=True,
        above=0,
        most=4096,
    )
    prior_components: int = option(
        100,
        "Gaussians that the prior for sampling is fitted from after training, of all classes together; 0 for none, "
        "which leaves N(0, I); no more than four for each image",
        least=0,
        most=2000,
    )
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", above=0, most=100)
    adam_beta1: float = option(0.9, "AdamW beta 1", least=0, below=1)
    adam_beta2: float = option(0.99, "AdamW beta 2", least=0, below=1)
    adam_weight_decay: float = option(1e-4, "AdamW weight decay", least=0, most=100)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", least=1e-30, most=1)

    @property
    def level(self) -> float | None:
        """Returns how strongly the images of the task are degraded."""
        return self.task_level or {None: None, "denoise": 0.3, "super_resolve": 2.0}[self.task]

    def validate(self) -> None:
        if self.block_out_channels is not None and not self.block_out_channels:
            raise UserError("`block_out_channels` needs the channels of each level, for example 32 64 128.")
        if self.variance is not None and self.likelihood != "gaussian":
            raise UserError(f"`variance` {self.variance}: {self.likelihood} has none. Leave it out, or use gaussian.")
        if self.spatial_latent and self.architecture != "residual":
            raise UserError(f"`spatial_latent` is for residual, not for {self.architecture}: leave it out.")
        if self.architecture == "vq" and (self.beta != 1 or self.kl_warmup or self.free_bits):
            raise UserError(
                "`beta`, `kl_warmup` and `free_bits` weigh a KL divergence, and vq has none: leave them out, and "
                "see `commitment_weight`."
            )
        if self.task_level is not None and self.task is None:
            raise UserError(f"`task_level` {self.task_level} has no task to be the level of: give `task`.")
        if self.task == "super_resolve" and (self.level in (None, 1) or self.level != int(self.level or 0)):
            raise UserError(f"`task_level` {self.task_level}: the factor must be a whole number from 2 on.")


# What each network has by default; a test compares these with the networks, which cannot be asked without torch.
SIZES = 32  # pixels of a side up to which that is deep enough
LATENT_CHANNELS = {"conv": 32, "residual": 32, "hierarchical": 8, "vq": 16}
BLOCK_OUT_CHANNELS = {"conv": (32, 64, 128), "residual": (32, 64, 64), "hierarchical": (48, 64), "vq": (64, 128)}


def resolve(options: VAEConfig, data: Any, machine: Machine) -> VAEConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`VAEConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    values: dict[str, Any] = {"task_level": options.level}
    if options.latent_channels is None:
        values["latent_channels"] = LATENT_CHANNELS[options.architecture]
    if options.block_out_channels is None:
        channels = BLOCK_OUT_CHANNELS[options.architecture]
        more = max(0, math.ceil(math.log2(data.resolution / SIZES)))  # levels, each of which halves the images
        values["block_out_channels"] = channels + channels[-1:] * more
    return replace(options, **values)


PACES = {"hierarchical": Pace(images=600_000, passes=500, batch=32), "vq": Pace(images=240_000, passes=500)}
PACE = Pace(images=600_000, passes=500)  # of all others


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals, see [`~training.defaults.follow`]; and more latents for larger images."""
    values = defaults.follow(PACES.get(options.own.architecture, PACE), options, data, machine)
    if options.own.architecture in ("conv", "residual") and not options.own.spatial_latent:
        values["latent_channels"] = 32 if data.resolution <= 32 else 64 if data.resolution <= 64 else 128
    return values


def adopted(architecture: str, **keys: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Returns a function from the configuration of a network to options, whose names there are given."""
    names = ("latent_channels", "block_out_channels", "likelihood", "num_mixtures")
    return lambda config, folder: {
        "architecture": architecture,
        **{name: config[key] for name, key in ({name: name for name in names} | keys).items()},
    }


ADOPT = {
    "ConvVAE": adopted("conv"),
    "ResidualVAE": adopted("residual", spatial_latent="spatial"),
    "HierarchicalVAE": adopted("hierarchical"),
    "VQVAE": adopted("vq", num_vq_embeddings="num_vq_embeddings"),
}

COMMON: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_warmup_steps": 100,
    "max_grad_norm": 10.0,  # an accident's norm: usual ones are 1 to 8, and clipping these costs likelihood
    "ema_half_life": 20_000,
}


def residual() -> dict[str, Any]:
    """A residual VAE with a vector of latents, pixels as mixtures of logistics, and a mixture fitted as prior."""
    return COMMON | {"architecture": "residual", "likelihood": "logistic_mixture"}


def digits() -> dict[str, Any]:
    """`residual` on scikit-learn's digits, enlarged from 8x8 to 16x16: about two minutes on two cores with bf16."""
    return residual() | {"dataset_name": "digits", "resolution": 16, "num_epochs": 200, "save_images_epochs": 50}


def conv() -> dict[str, Any]:
    """The small convolutional VAE of tutorials."""
    return COMMON | {"architecture": "conv"}


def beta() -> dict[str, Any]:
    """beta-VAE: `residual` with a heavier KL divergence, for latents that can be told apart."""
    return residual() | {"beta": 4.0, "latent_channels": 16}


def conditional() -> dict[str, Any]:
    """`residual` by class."""
    return residual() | {"class_conditional": True}


def hierarchical() -> dict[str, Any]:
    """A top-down hierarchical VAE with a discrete likelihood, for the fewest bits per dimension."""
    return COMMON | {
        "architecture": "hierarchical",
        "likelihood": "logistic_mixture",
        "kl_warmup": 0.1,
        "free_bits": 4.0,  # per group: without, the coarse ones stay empty, and shapes do not hang together
        "learning_rate": 4e-3,
        "prior_components": 0,  # its own prior is learnt
    }


def vq() -> dict[str, Any]:
    """VQ-VAE: codes from a codebook, few enough for a second stage (autoregressive, `codes`) to learn them."""
    return COMMON | {
        "architecture": "vq",
        "block_out_channels": (64, 128, 128),
        "latent_channels": 8,
        "num_vq_embeddings": 512,
    }


def denoise() -> dict[str, Any]:
    """`residual`, from noisy images to clean ones."""
    return residual() | {"task": "denoise"}


def super_resolve() -> dict[str, Any]:
    """`residual`, from small images to large ones."""
    return residual() | {"task": "super_resolve"}


PRESETS = {
    "digits": digits,
    "residual": residual,
    "conv": conv,
    "beta": beta,
    "conditional": conditional,
    "hierarchical": hierarchical,
    "vq": vq,
    "denoise": denoise,
    "super_resolve": super_resolve,
}
