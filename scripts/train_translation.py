"""Trains a translation: images of one set into images of another, paired or not.

Examples:

    accelerate launch scripts/train_translation.py --dataset_a photos --dataset_b paintings
    accelerate launch scripts/train_translation.py --preset cut --dataset_a user/summer --dataset_b user/winter
    accelerate launch scripts/train_translation.py --preset pix2pix --dataset_a user/maps --image_column_b aerial
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="train translation")
