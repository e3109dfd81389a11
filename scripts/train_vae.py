"""Trains a VAE: images into few numbers and back, with a density over them to sample from.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_vae.py
    accelerate launch scripts/train_vae.py --dataset_name ylecun/mnist
    accelerate launch scripts/train_vae.py --preset hierarchical --dataset_name ylecun/mnist --num_epochs 2.5
    accelerate launch scripts/train_vae.py --preset super_resolve --train_data_dir photos --resolution 64
"""

from collections.abc import Sequence

from hfgen.commands.cli import command_line, one_line_errors
from hfgen.data.config import DataConfig
from hfgen.families.vae.options import PRESETS, VAEConfig
from hfgen.training.config import TrainingConfig
from hfgen.training.options import read_training_options


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, TrainingConfig, VAEConfig]:
    return read_training_options("vae", VAEConfig, argv, str(__doc__), PRESETS, "residual")


def main(argv: Sequence[str] | None = None) -> None:
    data, training, vae = read_options(argv)

    # Imported late, so that --help and mistakes in the options answer at once.
    from hfgen.families.vae.recipe import VAERecipe
    from hfgen.training.main import train

    train(
        "vae",
        data,
        training,
        vae,
        lambda info: VAERecipe(vae, info),
        command_line((type(data), type(training), type(vae)), argv),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
