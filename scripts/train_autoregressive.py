"""Trains an autoregressive model: one pixel after another, each from those before it, with exact likelihoods.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_autoregressive.py
    accelerate launch scripts/train_autoregressive.py --dataset_name ylecun/mnist
    accelerate launch scripts/train_autoregressive.py --dataset_name uoft-cs/cifar10 --class_conditional
    accelerate launch scripts/train_autoregressive.py --preset codes --codes_from out/vq --dataset_name ylecun/mnist
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train autoregressive")
