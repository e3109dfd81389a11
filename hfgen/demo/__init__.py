"""A page in the browser that shows what a checkpoint can do.

`actions.py` has what clicks do, `limits.py` what one may cost, `guards.py` what is refused, `page.py` the page.
Spaces ship this package: see `hfgen.hub.space`.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
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
    from hfgen.demo.guards import check_host

    check_host(host, port)
    from accelerate import PartialState  # what hfgen needs besides takes seconds to import

    from hfgen.sampling.capabilities import Generates, adapter_of
    from hfgen.sampling.loading import in_use, load_pipeline
    from hfgen.sampling.sampler import Sampler

    with in_use(model):  # a model that cannot make an image is told of before the page is there
        pipe: Any = load_pipeline(model, revision=revision, token=token).to(PartialState().device)
        pipe.set_progress_bar_config(disable=True)
        adapter = adapter_of(pipe)
        if isinstance(adapter, Generates):
            Sampler(adapter, name=model).try_out()
    origin = {"model": name or (Path(model).resolve().name if Path(model).is_dir() else model), "revision": revision}
    with _files_of_visitors():
        import gradio as gr  # which is no dependency of hfgen
        from starlette.middleware import Middleware

        from hfgen.demo.guards import Refusals, limit_decoders
        from hfgen.demo.limits import MOST_BYTES, MOST_SESSIONS
        from hfgen.demo.page import CSS, build

        app = build(adapter, name or Path(model).name, max_images, origin if provenance else None)
        limit_decoders()
        try:
            _, address, public = app.launch(
                server_name=host,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MOST_BYTES,
                state_session_capacity=MOST_SESSIONS,
                ssr_mode=False,
                run_history=False,
                footer_links=["api"],
                css=CSS,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                app_kwargs={"middleware": [Middleware(Refusals)]},
            )
        except OSError as error:
            raise UserError(f"`host` {host} `port` {port} cannot be listened on: {error} Give others.") from None
        say(f"Demo:     {public or address}")
        app.block_thread()


@contextlib.contextmanager
def _files_of_visitors() -> Iterator[None]:
    """Keeps uploads and images in a folder of their own, which is gone at the end, also when a service manager stops
    the program; those of an hour ago go earlier (see `page.py`)."""
    from hfgen.demo.guards import sweep

    variable = "GRADIO_TEMP_DIR"
    before = os.environ.get(variable)
    handles = threading.current_thread() is threading.main_thread()  # others may not
    handler: Any = signal.getsignal(signal.SIGTERM) if handles else None
    with tempfile.TemporaryDirectory(prefix="hfgen-demo-", dir=before, ignore_cleanup_errors=True) as folder:

        def clear(number: int, frame: Any) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            signal.signal(number, handler)
            os.kill(os.getpid(), number)  # ends as it would have

        ended = threading.Event()

        def keep_tidy() -> None:
            while not ended.wait(60):
                with contextlib.suppress(OSError):  # the folder is gone
                    sweep(Path(folder))

        threading.Thread(target=keep_tidy, daemon=True).start()
        os.environ[variable] = str(Path(folder).resolve())
        if handles:
            signal.signal(signal.SIGTERM, clear)
        try:
            yield
        finally:
            ended.set()
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before
            if handles:
                signal.signal(signal.SIGTERM, handler)
