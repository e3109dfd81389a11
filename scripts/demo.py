"""Shows a checkpoint in the browser: samples, walks, and what a VAE makes of your images. Or writes that as a Space.

Needs gradio: `pip install -c constraints.txt -e ".[demo]"`. Examples:

    python scripts/demo.py --model out/gan-mnist
    python scripts/demo.py --model user/ddpm-mnist --host 0.0.0.0 --port 8000
    python scripts/demo.py --model user/ddpm-mnist --space_dir out/space
    python scripts/push_to_hub.py --folder out/space --repo_type space --hub_model_id user/demo
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="demo")
