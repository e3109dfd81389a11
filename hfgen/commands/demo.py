"""Shows a checkpoint in the browser, or writes the same demo as a Space.

Needs gradio: `pip install -c constraints.txt -e ".[demo]"`.

    hfgen demo --model out/gan-mnist
    hfgen demo --model user/ddpm-mnist --host 0.0.0.0 --port 8000
    hfgen demo --model user/ddpm-mnist --space_dir out/space
    hfgen push --folder out/space --repo_type space --hub_model_id user/demo
"""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hfgen.commands.cli import parse
from hfgen.commands.options import ModelOptions
from hfgen.demo.limits import MOST_IMAGES
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option


@dataclass(frozen=True)
class DemoConfig(ModelOptions):
    """Demo: its checkpoint, and where it runs."""

    max_images: int = option(16, f"images per click, {MOST_IMAGES} at most", least=1, most=MOST_IMAGES)
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in")
    port: int | None = option(
        None, "port to listen on (default: the first that is free, from 7860 on)", least=1, most=65535
    )
    provenance: bool = option(True, "write into the images which model made them, and how")
    share: bool = option(False, "open a public address, through Gradio's servers")
    space_dir: str | None = option(
        None, "write a Gradio Space into this folder, which must be new or empty, and show nothing"
    )


def read_options(argv: Sequence[str]) -> DemoConfig:
    (config,) = parse((DemoConfig,), argv, description=str(__doc__).partition("\n")[0], prog="hfgen demo")
    return config


def main(argv: Sequence[str]) -> None:
    config = read_options(argv)
    assert config.model is not None
    if find_spec("gradio") is None:
        raise UserError('gradio is not installed, which the demo needs: pip install "gradio>=6.31".')
    if config.space_dir is None:
        from hfgen.demo import serve

        serve(
            config.model,
            revision=config.revision,
            token=config.hub_token,
            max_images=config.max_images,
            host=config.host,
            port=config.port,
            share=config.share,
            provenance=config.provenance,
            say=functools.partial(print, flush=True),
        )
        return

    from hfgen.hub.space import write_space

    write_space(Path(config.space_dir), config.model, config.revision, config.max_images, config.provenance)
    push = ["hfgen", "push", "--folder", config.space_dir, "--repo_type", "space"]
    print(f"Space:    {config.space_dir}")
    print(f"Push it:  {shlex.join(push)} --hub_model_id USER/NAME")
