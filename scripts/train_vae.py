"""Trains a VAE: images into few numbers and back, with a density over them to sample from.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_vae.py
    accelerate launch scripts/train_vae.py --dataset_name ylecun/mnist
    accelerate launch scripts/train_vae.py --preset hierarchical --dataset_name ylecun/mnist --num_epochs 2.5
    accelerate launch scripts/train_vae.py --preset super_resolve --train_data_dir photos --resolution 64
"""

from collections.abc import Sequence
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.errors import one_line_errors
from hfgen.training.config import TrainingConfig, VAEConfig
from hfgen.training.options import read_training_options

COMMON: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_warmup_steps": 100,
    "max_grad_norm": 10.0,  # an accident's norm: usual ones are 1 to 8, and clipping these costs likelihood
    "train_batch_size": 64,
    "ema_half_life": 20_000,
    "save_images_epochs": 1,
    "num_epochs": 10,
}


def residual() -> dict[str, Any]:
    """A residual VAE with a vector of latents, pixels as mixtures of logistics, and a mixture fitted as prior."""
    return COMMON | {"architecture": "residual", "likelihood": "logistic_mixture"}


def digits() -> dict[str, Any]:
    """`residual` on scikit-learn's digits, enlarged from 8x8 to 16x16: about two minutes on two cores."""
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
        "train_batch_size": 32,
        "prior_components": 0,  # its own prior is learnt
    }


def vq() -> dict[str, Any]:
    """VQ-VAE: latents from a codebook."""
    return COMMON | {"architecture": "vq"}


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


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, VAEConfig]:
    return read_training_options("vae", VAEConfig, argv, str(__doc__), PRESETS, "residual")


def main(argv: Sequence[str] | None = None) -> None:
    data, training, vae = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.training.main import train
    from hfgen.training.vae import VAERecipe

    train("vae", data, training, vae, lambda info: VAERecipe(vae, info), argv)


if __name__ == "__main__":
    with one_line_errors():
        main()
