"""Trains a VAE: images into few numbers and back, with a density over them to sample from.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_vae.py
    accelerate launch scripts/train_vae.py --dataset_name ylecun/mnist
    accelerate launch scripts/train_vae.py --preset hierarchical --dataset_name ylecun/mnist --num_epochs 2.5
    accelerate launch scripts/train_vae.py --preset super_resolve --train_data_dir photos --resolution 64
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train vae")
