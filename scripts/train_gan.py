"""Trains a GAN: a generator of images against a discriminator that tells them from real ones.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_gan.py
    accelerate launch scripts/train_gan.py --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --preset dcgan --dataset_name ylecun/mnist --num_epochs 10
    accelerate launch scripts/train_gan.py --train_data_dir photos --preset stylegan2-64
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train gan")
