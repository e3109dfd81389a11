"""Trains a DDPM: a UNet2DModel that learns to remove noise, with the schedule of a DDPMScheduler.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_ddpm.py
    accelerate launch scripts/train_ddpm.py --preset mnist --class_conditional
    accelerate launch scripts/train_ddpm.py --train_data_dir photos --resolution 64 --random_flip
    torchrun --nproc_per_node 2 scripts/train_ddpm.py --preset cifar10
"""

from collections.abc import Sequence
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.errors import one_line_errors
from hfgen.training.config import DDPMConfig, TrainingConfig
from hfgen.training.options import read_training_options


def digits() -> dict[str, Any]:
    """scikit-learn's digits, enlarged from 8x8 to 16x16: about three minutes on two cores."""
    return {
        "dataset_name": "digits",
        "resolution": 16,
        "block_out_channels": (32, 64, 64),
        "train_batch_size": 64,
        "num_epochs": 85,
        "lr_warmup_steps": 100,
        "save_images_epochs": 10,
    }


def mnist() -> dict[str, Any]:
    """MNIST: about nine minutes on two cores, samples included; guided by groups, which need no labels."""
    return {
        "dataset_name": "ylecun/mnist",
        "resolution": 28,
        "block_out_channels": (32, 64, 64),
        "train_batch_size": 64,
        "num_epochs": 2.1,
        "num_clusters": 100,
        "guidance_scale": 1.5,
        "lr_warmup_steps": 100,
        "save_images_epochs": 0.5,
    }


def cifar10() -> dict[str, Any]:
    """CIFAR-10 with the network of the DDPM paper, for a GPU."""
    return {
        "dataset_name": "uoft-cs/cifar10",
        "resolution": 32,
        "random_flip": True,
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "attention_resolutions": (16,),
        "attention_head_dim": 64,
        "norm_num_groups": 32,
        "dropout": 0.1,
        "train_batch_size": 256,
        "learning_rate": 4e-4,
        "num_epochs": 100,
        "lr_warmup_steps": 1000,
        "compile": True,
        "channels_last": True,
        "checkpointing_steps": 5000,
    }


PRESETS = {"digits": digits, "mnist": mnist, "cifar10": cifar10}


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, DDPMConfig]:
    return read_training_options("ddpm", DDPMConfig, argv, str(__doc__), PRESETS)


def main(argv: Sequence[str] | None = None) -> None:
    data, training, ddpm = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.training.ddpm import DDPMRecipe
    from hfgen.training.main import train

    groups = 0 if ddpm.class_conditional else ddpm.num_clusters
    train("ddpm", data, training, ddpm, lambda info: DDPMRecipe(ddpm, info), argv, groups)


if __name__ == "__main__":
    with one_line_errors():
        main()
