"""Guards against requests of programs that the page itself cannot send."""

import contextlib
import functools
import io
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image

from hfgen.demo.limits import FORMATS, KEPT, MOST_PIXELS, UNFINISHED
from hfgen.runtime.errors import UserError, one_line

REFUSAL = "This request cannot be answered: it is not what the page sends."


def guard(editor: Any, most: int) -> None:
    """Has an image editor take no more than its page sends, before anything is decoded: a layer, `most` pixels wide.

    A subclass would say so, but Gradio writes a file beside the source of each subclass.
    """
    import gradio as gr

    preprocess, accept_blobs = editor.preprocess, editor.accept_blobs

    def refuse() -> None:
        raise gr.Error(f"Send one layer of at most {most}x{most} pixels.", print_exception=False)

    @functools.wraps(preprocess)
    def one_layer(payload: Any) -> Any:
        sent = payload if payload is None or payload.id is None else editor.blob_storage.get(payload.id)
        if sent is not None:
            sent.background = sent.composite = None  # which are not needed
            if len(sent.layers) > 1:
                refuse()
            for layer in filter(None, sent.layers):
                with Image.open(io.BytesIO(layer) if isinstance(layer, bytes) else layer.path) as image:
                    if max(image.size) > most:
                        refuse()
        return preprocess(payload)

    @functools.wraps(accept_blobs)
    def accept_one(data: Any) -> Any:
        if data.data["index"] not in (None, "", "null", "0", 0):  # it makes a list that long
            refuse()
        return accept_blobs(data)

    editor.preprocess, editor.accept_blobs = one_layer, accept_one


async def move_local(move: Callable[[Any], Any], path: Any) -> Any:
    """Moves a file that a click names, as Gradio's `move` does, but refuses an address, which it would download."""
    import gradio as gr

    if str(path).lower().startswith(("http:", "https:")):
        raise gr.Error("This is an address, not a file: upload the file.", print_exception=False)
    return await move(path)


def log(error: BaseException) -> None:
    """Writes one line of an error to the server's log: programs can send what fails as often as they like."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {one_line(error)}"
    sys.stderr.write(f"Request refused: {text!r} ({frame.filename}:{frame.lineno})\n")  # quoted: it may hold anything
    sys.stderr.flush()


async def answer(process: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Processes a click as Gradio's `process` does, but tells the client and the log of any error in one line: what
    widgets cannot send, such as a word for a number, fails in Gradio's own code."""
    import gradio as gr

    try:
        return await process(*args, **kwargs)
    except gr.Error as error:
        error.print_exception = False
        raise
    except Exception as error:
        log(error)
        raise gr.Error(REFUSAL, print_exception=False) from None


class Refusals:
    """The same for requests that fail before they are a click, such as a click on what the page does not have.

    Args:
        app (`Callable`): The ASGI app within.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def sending(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log(error)
            if not started:
                content = f'{{"error": "{REFUSAL}"}}'.encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
                await send({"type": "http.response.start", "status": 400, "headers": headers})
                await send({"type": "http.response.body", "body": content})


def sweep(folder: Path) -> None:
    """Deletes what Gradio leaves in the folder of visitors' files: parts of uploads that were refused or broken off,
    and folders whose files it has deleted."""
    now = time.time()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # gone, or a folder that is not empty
            idle = now - path.stat().st_mtime
            if path.is_dir():
                if idle > KEPT:
                    path.rmdir()
            elif idle > UNFINISHED:
                path.unlink()


def check_host(host: str | None, port: int | None) -> None:
    """Raises [`UserError`] for an address that cannot be listened on, of which Gradio would try a hundred ports."""
    name = (host or "127.0.0.1").strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, ValueError) as error:  # of the system; of names that none can have
        where = f"`host` {host}" + (f" `port` {port}" if port else "")
        raise UserError(f"{where} cannot be listened on: {one_line(error)}. Give others.") from None


def limit_decoders() -> None:
    """Leaves PIL the common formats: others start programs (Ghostscript), or are rarely tested."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    Image.init()  # else it would add the others later
    Image.ID[:] = FORMATS
