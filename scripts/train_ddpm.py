"""Trains a DDPM: a UNet2DModel that learns to remove noise, with the schedule of a DDPMScheduler.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    accelerate launch scripts/train_ddpm.py
    accelerate launch scripts/train_ddpm.py --preset mnist --class_conditional
    accelerate launch scripts/train_ddpm.py --train_data_dir photos --resolution 64 --random_flip
    torchrun --nproc_per_node 2 scripts/train_ddpm.py --preset cifar10
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train ddpm")
