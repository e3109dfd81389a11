"""Compares models of all families trained on the same data: one table and one figure of quality, diversity and cost.

Without arguments it trains one of each, and the classifier in whose features they are measured, on the handwritten
digits that ship with the installation. A model that the folder holds already is not trained again, and a training that
was interrupted goes on. Examples:

    python scripts/compare.py
    python scripts/compare.py --dataset_name ylecun/mnist
    python scripts/compare.py --model out/gan-mnist user/ddpm-mnist --dataset_name ylecun/mnist \
        --extractor out/classifier-mnist

The folder then holds `compare.json`, with what it takes to repeat it, and `compare.png`. With --update_card the
results go into the cards of the checkpoints, which are then ready to be pushed. Ours were made by

    python scripts/compare.py --dataset_name ylecun/mnist --metrics all --update_card --sampler dpmsolver++
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="compare")
