"""Trains a small classifier of images, in whose features generated images of the same kind can be measured.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    python scripts/train_classifier.py
    python scripts/train_classifier.py --dataset_name ylecun/mnist
    python scripts/train_classifier.py --dataset_name uoft-cs/cifar10 --preset photos
    python scripts/train_classifier.py --train_data_dir photos --resolution 64 --preset photos

The result is an ordinary folder of transformers, for `AutoModelForImageClassification` and `AutoImageProcessor`: a
RegNet, whose first convolution halves the image only once and so leaves something of small ones. Beside it stand a
card and `eval.json`, with the accuracy on images that it was not trained on.
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="classify")
