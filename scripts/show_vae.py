"""Shows what a VAE does with real images: grids of reconstructions, walks, edits, and of damaged images restored.

Without --dataset_name it takes the handwritten digits that ship with the installation. Examples:

    python scripts/show_vae.py --model out/vae-digits
    python scripts/show_vae.py --model out/vae-mnist --dataset_name ylecun/mnist --num_images 16
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="show")
