"""Trains a flow: images into as many normal numbers and back, with an exact density.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_flow.py
    accelerate launch scripts/train_flow.py --dataset_name ylecun/mnist
    accelerate launch scripts/train_flow.py --preset glow --dataset_name ylecun/mnist --num_epochs 2.5
    accelerate launch scripts/train_flow.py --preset conditional --dataset_name ylecun/mnist
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train flow")
