"""Samples images from any checkpoint that hfgen writes, to PNG files and a grid.

Image number i is made from the seed `--seed` + i alone: batch size and number of processes change nothing. Examples:

    python scripts/sample.py --model out/ddpm-digits --num_images 16
    python scripts/sample.py --model user/ddpm-mnist --class_labels 3 8 --guidance_scale 2
    torchrun --nproc_per_node 2 scripts/sample.py --model out/ddpm-mnist --num_images 1000
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="sample")
