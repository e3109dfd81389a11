"""Evaluates checkpoints against a data set: quality, diversity, memorisation, likelihood, each by a metric's name.

Features come from the Inception network of FID, whose weights are fetched with `--extractor_weights download`, or from
any image model of transformers, such as what train_classifier.py writes. Without --dataset_name it compares with the
handwritten digits that ship with the installation. Examples:

    python scripts/evaluate.py --model out/gan-digits --extractor out/classifier-digits
    python scripts/evaluate.py --model out/gan-mnist --dataset_name ylecun/mnist --extractor out/classifier-mnist \
        --metrics all --update_card
    torchrun --nproc_per_node 2 scripts/evaluate.py --model out/gan-cifar10 out/ddpm-cifar10 \
        --dataset_name uoft-cs/cifar10 --metrics fd kd --num_images 50000 --extractor_weights download

The report holds what it takes to repeat it, and what held-out real images get. It is written after each checkpoint.
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="evaluate")
