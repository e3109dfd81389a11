"""Trains a GAN: a generator of images against a discriminator that tells them from real ones.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_gan.py
    accelerate launch scripts/train_gan.py --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --preset dcgan --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --train_data_dir photos --resolution 64 --preset stylegan2
"""

from collections.abc import Sequence

from hfgen.commands.cli import command_line, one_line_errors
from hfgen.data.config import DataConfig
from hfgen.families.gan.options import PRESETS, GANConfig
from hfgen.training.config import TrainingConfig
from hfgen.training.options import read_training_options


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, GANConfig]:
    data, training, gan = read_training_options("gan", GANConfig, argv, str(__doc__), PRESETS, "stable")
    gan.check(data.resolution, training.train_batch_size)
    return data, training, gan


def main(argv: Sequence[str] | None = None) -> None:
    data, training, gan = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.families.gan.recipe import GANRecipe
    from hfgen.training.main import train

    train(
        "gan",
        data,
        training,
        gan,
        lambda info: GANRecipe(gan, info),
        command_line((type(data), type(training), type(gan)), argv),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
