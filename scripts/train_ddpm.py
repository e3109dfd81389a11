"""Trains a DDPM: a UNet2DModel that learns to remove noise, with the schedule of a DDPMScheduler.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_ddpm.py
    accelerate launch scripts/train_ddpm.py --preset mnist --class_conditional
    accelerate launch scripts/train_ddpm.py --train_data_dir photos --resolution 64 --random_flip
    torchrun --nproc_per_node 2 scripts/train_ddpm.py --preset cifar10
"""

from collections.abc import Sequence

from hfgen.commands.cli import command_line, one_line_errors
from hfgen.data.config import DataConfig
from hfgen.families.ddpm.options import PRESETS, DDPMConfig
from hfgen.training.config import TrainingConfig
from hfgen.training.options import read_training_options


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, DDPMConfig]:
    return read_training_options("ddpm", DDPMConfig, argv, str(__doc__), PRESETS)


def main(argv: Sequence[str] | None = None) -> None:
    data, training, ddpm = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.families.ddpm.recipe import DDPMRecipe
    from hfgen.training.main import train

    train(
        "ddpm",
        data,
        training,
        ddpm,
        lambda info: DDPMRecipe(ddpm, info),
        command_line((type(data), type(training), type(ddpm)), argv),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
