"""From the bytes of an image file to uint8 pixels of one size and mode."""

import contextlib
import functools
import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hfgen.data.config import IMAGE_MODES
from hfgen.runtime.errors import UserError, one_line

with contextlib.suppress(ImportError):  # HEIC, as iPhones write it
    from pillow_heif import register_heif_opener

    register_heif_opener()

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow recognises and does not read
FRAMES = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose frames are as good as the first

BROKEN = (
    *(SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),  # of PIL
    *(zipfile.BadZipFile, zlib.error),
)

FAINT = 8  # of 255: how opaque a pixel must be for its colour to be seen
LONGEST_SIDE = 2  # times the resolution: what is kept of an oblong image for random crops


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Returns the suffixes of the image files that can be read, in small letters."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in STUBS)


ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd")  # that `datasets` has paths into

_reads_archive = threading.Lock()  # images are decoded by several threads, and an archive has one position


@functools.lru_cache(maxsize=8)
def _open_archive(kind: str, archive: str, changed: float | None, token: str | None) -> Any:
    """Opens an archive once for all its images: each time, all names in it are read."""
    from datasets import config
    from fsspec.core import url_to_fs

    hub = {"hf": {"endpoint": config.HF_ENDPOINT, "token": token}} if archive.startswith("hf://") else {}
    return url_to_fs(f"{kind}://::{archive}", **hub)[0]


def _fetch(path: str, token: str | None) -> bytes:
    """Reads a file that `datasets` names by more than a path: within an archive, on the Hub, or both.

    Raises:
        OSError: If it is not there, or is broken.
        UserError: If it cannot be reached.
    """
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    try:
        inner, within, archive = path.partition("::")
        if not within:
            with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
                return file.read()
        kind, _, name = inner.partition("://")
        changed = os.path.getmtime(archive) if os.path.isfile(archive) else None
        with _reads_archive:
            return _open_archive(kind, archive, changed, token).cat_file(name)
    except (FileNotFoundError, *BROKEN):
        raise
    except KeyError:  # what archives raise for a name that they do not have
        raise FileNotFoundError("it is not in the archive") from None
    except Exception as error:  # of a dozen libraries, by the way that leads there
        if "://" not in path.rpartition("::")[2]:  # it is on this machine
            raise OSError(one_line(error)) from None
        raise UserError(f"the image {path} cannot be fetched: {one_line(error)}. Try again later.") from None


@contextlib.contextmanager
def open_image(value: dict[str, Any] | None, token: str | None = None) -> Iterator[Image.Image]:
    """Opens the `{"bytes", "path"}` of one row; whatever PIL raises for a broken file becomes an `OSError`. The token
    is for files on the Hub."""
    if value is None or (value.get("bytes") is None and value.get("path") is None):
        raise OSError("there is no image in this row")
    try:
        file: Any = value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])
        if isinstance(file, str) and "://" in file:
            file = io.BytesIO(_fetch(file, token))
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        raise OSError("it is no image, or of an unknown format") from None
    except UserError:
        raise
    except BROKEN as error:
        raise OSError(str(error)) from None


def decode(value: dict[str, Any] | None, token: str | None = None) -> Image.Image:
    """Decodes one row, upright.

    Raises:
        OSError: If there is no image, or a broken one, or a pixel is no finite number.
        UserError: If it is elsewhere, and cannot be fetched.
    """
    with open_image(value, token) as image:
        image.load()
        _check_finite(image)
        return ImageOps.exif_transpose(image)


def image_mode(image: Image.Image) -> str:
    """Returns the mode that keeps all that the image has: `L`, `RGB` or `RGBA`."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return "RGBA"
    return "L" if image.mode in GRAY_MODES else "RGB"  # RGB, palette, CMYK, YCbCr, ...


def is_deep(image: Image.Image) -> bool:
    """Says whether the pixels have more than 8 bits, so that a range of values has to become black to white."""
    return image.mode.startswith(("I", "F"))


def _check_finite(image: Image.Image) -> None:
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise OSError("it has pixels that are no finite numbers")


def extrema(image: Image.Image) -> tuple[float, float, bool]:
    """Returns the least and the greatest value of a gray image, and whether all of its type are whole numbers.

    Raises:
        OSError: If a pixel is no finite number.
    """
    _check_finite(image)
    values = np.asarray(image)
    return float(values.min()), float(values.max()), image.mode != "F"


def find_range(least: float, greatest: float, whole: bool) -> tuple[float, float]:
    """Chooses the values that become black and white, for all images of a data set alike.

    Whole numbers from 0 on have the range of the fewest bits (8 at least) that hold them all: 0 to 4095 for a 12-bit
    camera, whatever the brightest pixel. Fractions within 0 and 1 have that range. All others, such as Hounsfield
    units, run from the least to the greatest value.
    """
    if whole and least >= 0:
        return 0.0, 2.0 ** max(8, int(greatest).bit_length()) - 1
    if not whole and least >= 0 and greatest <= 1:
        return 0.0, 1.0
    return least, greatest if greatest > least else least + 1


def to_mode(
    image: Image.Image, mode: str, value_range: tuple[float, ...] | None = None, background: str = "white"
) -> Image.Image:
    """Converts to 8 bits per channel in the given mode.

    Args:
        image (`Image`): Of any mode.
        mode (`str`): `L`, `RGB` or `RGBA`.
        value_range (`tuple[float, float]`, *optional*): The values that become 0 and 255 where pixels have more than
            8 bits; what lies outside is clipped. By default what [`find_range`] makes of this image.
        background (`str`, *optional*, defaults to `"white"`): The colour that transparent pixels are laid over for a
            mode without transparency; `"none"` shows the colour that lies hidden in them.
    """
    if is_deep(image):
        hidden = image.info.get("transparency")
        low, high = value_range or find_range(*extrema(image))
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.round((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8))
        if hidden is not None:
            image.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    if mode != "RGBA" and background != "none" and image_mode(image) == "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == mode else image.convert(mode)


def fill_hidden(pixels: np.ndarray) -> np.ndarray:
    """Gives pixels that are transparent, at least to 97 %, the colours of those around them, the nearer the more.

    What lies hidden there is arbitrary: black, or what an editor left. A model would learn it, and where its own edges
    are a little off, show it as a fringe. What can be seen does not change.

    Args:
        pixels (`np.ndarray` of shape `(4, H, W)`, uint8): Colours, not multiplied by the last channel.

    Returns:
        `np.ndarray` of the same shape and type: The same array if no pixel, or every one, is transparent.
    """
    seen = pixels[3] >= FAINT
    if seen.all() or not seen.any():
        return pixels
    pyramid = [(np.where(seen, pixels[:3], 0).astype(np.float32), seen.astype(np.float32))]
    while pyramid[-1][1].size > 1:  # sums of colours and of weights over blocks twice as large
        colours, weight = pyramid[-1]
        pyramid.append((_halve(colours), _halve(weight)))
    filled = pyramid[-1][0] / pyramid[-1][1]
    for colours, weight in reversed(pyramid[:-1]):
        larger = _smooth(filled.repeat(2, -2).repeat(2, -1))[:, : weight.shape[0], : weight.shape[1]]
        filled = np.where(weight > 0, colours / np.maximum(weight, 1), larger)
    return np.concatenate([filled.round().astype(np.uint8), pixels[3:]])


def _smooth(part: np.ndarray) -> np.ndarray:
    """Averages each pixel with its neighbours, with weights of 1, 2, 1."""
    for axis in (-2, -1):
        before, after = (np.roll(part, shift, axis) for shift in (1, -1))
        first, last = ([slice(None)] * part.ndim for _ in range(2))
        first[axis], last[axis] = slice(0, 1), slice(-1, None)
        before[tuple(first)], after[tuple(last)] = part[tuple(first)], part[tuple(last)]
        part = (before + 2 * part + after) / 4
    return part


def _halve(part: np.ndarray) -> np.ndarray:
    """Sums blocks of 2x2 pixels; an odd side has one row or column of zeros more."""
    height, width = part.shape[-2:]
    part = np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, height % 2), (0, width % 2)])
    return part[..., ::2, ::2] + part[..., 1::2, ::2] + part[..., ::2, 1::2] + part[..., 1::2, 1::2]


def fit(
    image: Image.Image, resolution: int, center_crop: bool, keep_hidden: bool = False
) -> tuple[np.ndarray, int, bool]:
    """Resizes the shorter side to `resolution` and crops. Pixels that are transparent get the colours of those
    around them, see [`fill_hidden`], unless `keep_hidden`.

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
    if len(pixels) == 4 and not keep_hidden:
        pixels = fill_hidden(pixels)
    transposed = keep_height > keep_width
    if transposed:
        pixels = pixels.transpose(0, 2, 1)
    return pixels, pixels.shape[2], transposed


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are needed.

    Attributes:
        mode (`str`): The mode that keeps all that it has.
        size (`tuple[int, int]`): Width and height, upright.
        extrema (`tuple[float, float, bool]`, *optional*): See [`extrema`]; of pixels with more than 8 bits, which are
            decoded for it.
        reduced (`bool`): Whether it has colours of 16 bits, of which Pillow reads 8.
        frames (`bool`): Whether there are more frames than the first, which is the one that is read.
    """

    mode: str
    size: tuple[int, int]
    extrema: tuple[float, float, bool] | None = None
    reduced: bool = False
    frames: bool = False


def read_header(value: dict[str, Any] | None, token: str | None = None) -> Header | OSError:
    """Reads what the header of a file says, and the extrema of deep pixels."""
    try:
        with open_image(value, token) as image:
            reduced = not is_deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # reads PNG files to their end
            return Header(
                image_mode(image),
                image.size[::-1] if sideways else image.size,
                extrema(image) if is_deep(image) else None,
                reduced,
                image.format in FRAMES and getattr(image, "is_animated", False),
            )
    except OSError as error:
        return error


def richest_mode(modes: Iterable[str]) -> str:
    """Returns the mode that loses nothing of any image."""
    return max(modes, key=list(IMAGE_MODES).index)


def common_resolution(sizes: np.ndarray) -> int:
    """Returns the size that all images share if they are square and at most 64 pixels wide, else 64."""
    side = int(sizes[0, 0])
    return side if side <= 64 and (sizes == side).all() else 64
