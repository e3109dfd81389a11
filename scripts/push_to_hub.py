"""Pushes a pipeline to the Hub: the folder of a finished run, or the best one in it. Nothing else of it goes up.

Examples:

    python scripts/push_to_hub.py --folder out/ddpm-digits --hub_model_id user/ddpm-digits
    python scripts/push_to_hub.py --folder out/gan-mnist/best --hub_model_id gan-mnist --private
    python scripts/push_to_hub.py --folder out/vae-mnist --hub_model_id user/vae-mnist --create_pr
    python scripts/push_to_hub.py --folder out/space --hub_model_id user/demo --repo_type space
"""

from hfgen.commands.main import main

if __name__ == "__main__":
    main(verb="push")
