"""Shows what a VAE, or a model of any other family, can do: samples, walks, edits, reconstructions, restored images.

Without --dataset_name it takes the images that the model was trained on, if its folder tells. Examples:

    python scripts/show_vae.py --model out/vae-digits
    python scripts/show_vae.py --model out/vae-mnist --dataset_name ylecun/mnist --num_images 16
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="show")
