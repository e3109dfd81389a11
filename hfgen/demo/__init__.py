"""A page in the browser that shows what a checkpoint can do.

`actions.py` has what clicks do, `limits.py` what one may cost, `guards.py` what is refused, `page.py` the page.
Spaces ship this package: see `hfgen.hub.space`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen.runtime.errors import UserError


def serve(
    model: str,
    name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    max_images: int = 16,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    provenance: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Shows a checkpoint until it is interrupted, and prints where. Without `host`, that is up to Gradio: this machine
    alone, or in a Space all."""
    import gradio as gr  # which is no dependency of hfgen; what hfgen needs besides takes seconds to import
    from accelerate import PartialState

    from hfgen.demo.guards import limit_decoders
    from hfgen.demo.limits import MOST_BYTES
    from hfgen.demo.page import CSS, build
    from hfgen.sampling.capabilities import adapter_of
    from hfgen.sampling.loading import load_pipeline

    pipe: Any = load_pipeline(model, revision=revision, token=token).to(PartialState().device)
    pipe.set_progress_bar_config(disable=True)
    origin = {"model": name or (Path(model).resolve().name if Path(model).is_dir() else model), "revision": revision}
    app = build(adapter_of(pipe), name or Path(model).name, max_images, origin if provenance else None)
    limit_decoders()
    try:
        _, address, public = app.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            css=CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        raise UserError(f"`host` {host} `port` {port} cannot be listened on: {error} Give others.") from None
    say(f"Demo:     {public or address}")
    app.block_thread()
