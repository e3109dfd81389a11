"""Grids of images, and PNG files that say what made them."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo, iTXt

from hfgen.runtime.files import write_at_once
from hfgen.runtime.version import __version__  # not the installed one: a Space only holds a copy

# IPTC's mark for media that a trained model made entirely or in part.
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/{}"/></rdf:RDF></x:xmpmeta>'
)

GRID_CELL, GRID_GAP = 64, 4  # pixels: to what small images are enlarged, and what parts them
TITLE = 20  # pixels above a grid
TABLE_CELL, BESIDE = 96, 150  # pixels: to what small images of a table are enlarged, and the most of its row titles
FRAME = 100  # milliseconds of an image of a GIF
SQUARE, SQUARES = 8, (255, 204)  # pixels of a side, and levels of gray, of what lies behind transparent images


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Converts `(B, C, H, W)` in [0, 1] to `(B, H, W, C)` in uint8."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def gray_like(images: torch.Tensor) -> torch.Tensor:
    """Returns gray images `(B, C, H, W)` in [0, 1] like these, opaque ones: what stands for what is not there."""
    gray = torch.full_like(images, 0.5)
    if images.shape[1] == 4:
        gray[:, 3] = 1
    return gray


def to_pil(image: np.ndarray) -> Image.Image:
    """Converts `(H, W, C)` in uint8 to an image with 1, 3 or 4 channels."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges `(H, W, C)` by a whole factor, without smoothing."""
    return image.repeat(factor, 0).repeat(factor, 1)


def over_squares(image: np.ndarray, side: int = SQUARE) -> np.ndarray:
    """Lays a transparent image `(H, W, 4)` over light and dark squares, as editors do; `(H, W, 3)`, uint8."""
    rows, columns = (np.arange(size) // side % 2 for size in image.shape[:2])
    squares = np.where(rows[:, None] == columns, *SQUARES)[..., None]
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + squares * (1 - alpha)).round().astype(np.uint8)


def make_grid(
    images: Sequence[np.ndarray | None],
    columns: int | None = None,
    cell: int = GRID_CELL,
    gap: int = GRID_GAP,
    titles: Sequence[str] = (),
) -> Image.Image:
    """Makes a near-square grid of images of shape `(H, W, C)`, row by row; a place is left empty for `None`. Titles
    stand above equal parts of the columns.

    Small images are enlarged by a whole factor, without smoothing, to at most `cell` pixels; `gap` gray pixels part
    them. Transparent ones are laid over squares.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = int(np.ceil(len(images) / columns))
    shape = next(image.shape for image in images if image is not None)
    factor = max(1, cell // max(shape[:2]))
    height, width = shape[0] * factor + gap, shape[1] * factor + gap
    channels = 3 if shape[2] == 4 else shape[2]
    canvas = np.full((rows * height + gap, columns * width + gap, channels), 96, dtype=np.uint8)
    for number, image in enumerate(images):
        if image is None:
            continue
        top, left = number // columns * height + gap, number % columns * width + gap
        large = enlarge(image, factor)
        shown = over_squares(large) if large.shape[2] == 4 else large
        canvas[top : top + height - gap, left : left + width - gap] = shown
    grid = to_pil(canvas)
    return with_titles(grid, titles) if titles else grid


def ascii_only(text: str) -> str:
    """Returns what the one font that PIL brings along has of a line."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def with_titles(grid: Image.Image, titles: Sequence[str]) -> Image.Image:
    """Writes titles above equal parts of an image, cut where they are too long."""
    font = ImageFont.load_default(size=TITLE - 6)
    titled = Image.new(grid.mode, (grid.width, grid.height + TITLE), "white")
    titled.paste(grid, (0, TITLE))
    width = grid.width / len(titles)
    for number, title in enumerate(titles):
        text = cut(title, font, width - 4)
        ImageDraw.Draw(titled).text(((number + 0.5) * width, TITLE - 4), text, "black", font, anchor="ms")
    return titled


def make_table(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    scale: int | None = None,
) -> Image.Image:
    """Makes a picture of rows of images `(H, W, C)` in uint8, with words: titles beside the rows and above the
    columns, captions below single images. A place is left empty for `None`.

    Images are enlarged without smoothing, `scale` times or to about `TABLE_CELL` pixels; transparent ones lie over
    squares.
    """
    shape = next(image.shape for row in rows for image in row if image is not None)
    factor = scale or max(1, TABLE_CELL // max(shape[:2]))
    height, width = shape[0] * factor, shape[1] * factor
    font = ImageFont.load_default(size=TITLE - 6)
    beside = [wrapped(title, font, BESIDE) for title in row_titles]
    left = (
        max((round(font.getlength(line)) for lines in beside for line in lines), default=-3 * GRID_GAP) + 3 * GRID_GAP
    )
    above = TITLE if any(column_titles) else 0
    below = TITLE if any(map(any, captions)) else 0
    columns, band = max(map(len, rows)), height + GRID_GAP + below
    canvas = Image.new(
        "RGB", (left + columns * (width + GRID_GAP) + GRID_GAP, above + len(rows) * band + GRID_GAP), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(column_titles):
        middle = left + GRID_GAP + number * (width + GRID_GAP) + width / 2
        draw.text((middle, TITLE - 5), cut(title, font, width) if title else "", "black", font, anchor="ms")
    for row, images in enumerate(rows):
        top = above + row * band
        if row < len(beside):
            start = top + GRID_GAP + height / 2 - (TITLE - 4) * (len(beside[row]) - 1) / 2
            for line, text in enumerate(beside[row]):
                draw.text((GRID_GAP, start + line * (TITLE - 4)), text, "black", font, anchor="lm")
        end = left + len(images) * (width + GRID_GAP) + GRID_GAP - 1
        draw.rectangle((left, top, end, top + height + 2 * GRID_GAP - 1), fill=(96,) * 3)
        for column, image in enumerate(images):
            x = left + GRID_GAP + column * (width + GRID_GAP)
            if image is not None:
                large = enlarge(image, factor)
                shown = to_pil(over_squares(large) if large.shape[2] == 4 else large).convert("RGB")
                canvas.paste(shown, (x, top + GRID_GAP))
            if row < len(captions) and column < len(captions[row]) and captions[row][column]:
                text = cut(captions[row][column], font, width)
                draw.text((x + width / 2, top + band + GRID_GAP - 6), text, "black", font, anchor="ms")
    return canvas


def cut(text: str, font: Any, width: float) -> str:
    """Returns the beginning of a line that is no longer than so many pixels."""
    text = ascii_only(text) or "?"
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text


def wrapped(text: str, font: Any, width: float) -> list[str]:
    """Breaks a text into lines of at most so many pixels, between words."""
    lines: list[str] = []
    for word in (ascii_only(text) or "?").split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(cut(word, font, width))
    return lines


def notes(origin: dict[str, Any], composite: bool = False) -> dict[str, str]:
    """Returns the texts about its origin in a PNG file, by their keys: see [`save_png`]."""
    kind = "compositeWithTrainedAlgorithmicMedia" if composite else "trainedAlgorithmicMedia"
    return {
        "Source": str(origin["model"]),
        "Software": f"hfgen {__version__}",
        "Comment": json.dumps(origin),
        "XML:com.adobe.xmp": iTXt(XMP.format(kind)),
    }


def save_png(
    image: Image.Image, path: Path | BinaryIO, origin: dict[str, Any] | None = None, composite: bool = False
) -> None:
    """Writes a PNG file at once or not at all.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`Path` or binary file): Where to write.
        origin (`dict`, *optional*): What made the image: `model`, and whatever else can be written as JSON. The file
            then says so, as the texts `Source` (the model), `Software` and `Comment` (all of it) and with IPTC's mark
            for synthetic media.
        composite (`bool`, *optional*, defaults to `False`): Whether real images are in it, too.
    """
    texts = PngInfo()
    for key, text in (notes(origin, composite) if origin is not None else {}).items():
        texts.add_text(key, text)
    if not isinstance(path, Path):
        image.save(path, format="PNG", pnginfo=texts)
        return
    with write_at_once(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=texts)


def save_gif(frames: Sequence[Image.Image], path: Path, origin: dict[str, Any] | None = None, last: int = 0) -> None:
    """Writes a GIF that repeats forever: at once or not at all.

    Args:
        frames (`Sequence[PIL.Image.Image]`): Images of one size.
        path (`Path`): Where to write.
        origin (`dict`, *optional*): As [`save_png`]; the file's comment then names the program and the model.
        last (`int`, *optional*, defaults to 0): Milliseconds that the last one stays longer than the others.
    """
    duration = [FRAME] * (len(frames) - 1) + [FRAME + last]
    comment = {} if origin is None else {"comment": f"hfgen {__version__}: {origin['model']}".encode()}
    with write_at_once(path) as temporary:
        options = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
        frames[0].save(temporary, format="GIF", **options, **comment)
