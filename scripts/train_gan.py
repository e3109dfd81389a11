"""Trains a GAN: a generator of images against a discriminator that tells them from real ones.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_gan.py
    accelerate launch scripts/train_gan.py --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --preset dcgan --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --train_data_dir photos --resolution 64 --preset stylegan2
"""

from collections.abc import Sequence
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.errors import one_line_errors
from hfgen.training.config import GANConfig, TrainingConfig
from hfgen.training.options import read_training_options

COMMON: dict[str, Any] = {
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.0,  # Adam forgets the scale of a gradient, and clipping would couple the two games
    "ema_half_life": 20_000,
    "save_images_epochs": 1,
}


def stable() -> dict[str, Any]:
    """R3GAN's objective (relativistic, R1, R2) on small convolutional networks, with groups of similar images."""
    return COMMON | {"num_clusters": 100}


def digits() -> dict[str, Any]:
    """`stable` on scikit-learn's digits, enlarged from 8x8 to 16x16: about three minutes on two cores."""
    return stable() | {"dataset_name": "digits", "resolution": 16, "num_epochs": 250, "save_images_epochs": 25}


def conditional() -> dict[str, Any]:
    """`stable`, by class instead of by group."""
    return COMMON | {"class_conditional": True}


CLASSICAL = COMMON | {"latent_dim": 100, "r1_gamma": 0.0, "r2_gamma": 0.0, "adam_beta1": 0.5, "adam_beta2": 0.999}


def dcgan() -> dict[str, Any]:
    """DCGAN of 2015: the non-saturating loss, batch normalisation in both networks."""
    return CLASSICAL | {"objective": "nonsaturating", "discriminator_norm": "batch", "learning_rate": 2e-3}


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
    """StyleGAN2 for 32 pixels; for more use --base_channels 256 and --r1_gamma 0.0002 * pixels^2 / batch size."""
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


PRESETS = {
    "digits": digits,
    "stable": stable,
    "conditional": conditional,
    "dcgan": dcgan,
    "mlp": mlp,
    "wgan-gp": wgan_gp,
    "stylegan2": stylegan2,
}


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, GANConfig]:
    data, training, gan = read_training_options("gan", GANConfig, argv, str(__doc__), PRESETS, "stable")
    gan.check(data.resolution, training.train_batch_size)
    return data, training, gan


def main(argv: Sequence[str] | None = None) -> None:
    data, training, gan = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.training.gan import GANRecipe
    from hfgen.training.main import train

    groups = 0 if gan.class_conditional else gan.num_clusters
    train("gan", data, training, gan, lambda info: GANRecipe(gan, info), argv, groups)


if __name__ == "__main__":
    with one_line_errors():
        main()
