"""Guards against requests of programs that the page itself cannot send."""

import functools
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from hfgen.demo.limits import FORMATS, MOST_PIXELS


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


def limit_decoders() -> None:
    """Leaves PIL the common formats: others start programs (Ghostscript), or are rarely tested."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    Image.init()  # else it would add the others later
    Image.ID[:] = FORMATS
