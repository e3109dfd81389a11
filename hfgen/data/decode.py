"""From the bytes of an image file to uint8 pixels of one size and mode."""

import contextlib
import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hfgen.data.config import IMAGE_MODES

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L")


LONGEST_SIDE = 2  # times the resolution: what is kept of an oblong image for random crops


@contextlib.contextmanager
def open_image(value: dict[str, Any] | None) -> Iterator[Image.Image]:
    """Opens the `{"bytes", "path"}` of one row; whatever PIL raises for a broken file becomes an `OSError`."""
    if value is None or (value.get("bytes") is None and value.get("path") is None):
        raise OSError("there is no image in this row")
    try:
        with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]) as image:
            yield image
    except UnidentifiedImageError:
        raise OSError("it is no image, or of an unknown format") from None
    except (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None


def decode(value: dict[str, Any] | None) -> Image.Image:
    """Decodes one row, upright.

    Raises:
        OSError: If there is no image, or a broken one.
    """
    with open_image(value) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def image_mode(image: Image.Image) -> str:
    """Returns the mode that keeps all that the image has: `L`, `RGB` or `RGBA`."""
    if image.mode in GRAY_MODES:
        return "L"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        return "RGBA"
    return "RGB"  # RGB, palette, CMYK, YCbCr, ...


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to 8 bits per channel in the given mode; 16-bit gray images keep their range."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        # PIL holds 16-bit PNG files as I;16 or I; an I image within 0..255 is an 8-bit one in a wide format.
        peak = 65535 if image.mode != "I" or values.max(initial=0) > 255 else 255
        image = Image.fromarray(np.clip(np.round(values * (255 / peak)), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise OSError("it has 32-bit floating-point pixels, whose range is not defined; convert it to 8 or 16 bits")
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, resolution: int, center_crop: bool) -> tuple[np.ndarray, int, bool]:
    """Resizes the shorter side to `resolution` and crops.

    Returns:
        Pixels of shape `(C, R, L)` in uint8, the length `L` of the longer side (`R` after a centre crop), and whether
        height and width were exchanged so that the longer side is the last.
    """
    width, height = image.size
    scale = resolution / min(width, height)
    longest = resolution if center_crop else LONGEST_SIDE * resolution
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)  # PIL filters properly when it shrinks
    width, height = image.size
    keep_width, keep_height = min(width, longest), min(height, longest)
    if (keep_width, keep_height) != (width, height):
        left, top = (width - keep_width) // 2, (height - keep_height) // 2
        image = image.crop((left, top, left + keep_width, top + keep_height))
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    transposed = keep_height > keep_width
    if transposed:
        pixels = pixels.transpose(0, 2, 1)
    return pixels, pixels.shape[2], transposed


def read_header(value: dict[str, Any] | None) -> tuple[str, tuple[int, int]] | OSError:
    """Reads mode and upright size from the head of a file, without decoding the pixels."""
    try:
        with open_image(value) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image_mode(image), image.size[::-1] if sideways else image.size
    except OSError as error:
        return error


def richest_mode(modes: Iterable[str]) -> str:
    """Returns the mode that loses nothing of any image."""
    return max(modes, key=list(IMAGE_MODES).index)


def common_resolution(sizes: np.ndarray) -> int:
    """Returns the size that all images share if they are square and at most 64 pixels wide, else 64."""
    side = int(sizes[0, 0])
    return side if side <= 64 and (sizes == side).all() else 64
