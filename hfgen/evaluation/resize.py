"""Resizing batches of 8-bit images, on their device, with exactly the pixels that the reference tools see.

How an image is brought to the size of a feature network changes distances by tens of per cent. Both ways that
published numbers rest on are here: that of TensorFlow 1 (Inception's FID) and that of Pillow (clean-fid and
`transformers`), which https://huggingface.co/papers/2104.11222 compares.
"""

from collections.abc import Callable

import torch

from hfgen.runtime.errors import UserError

FIXED_POINT = 2**22  # Pillow filters 8-bit images with weights that are multiples of 1 / FIXED_POINT
ELEMENTS_AT_ONCE = 2**22  # of float64: 32 MiB


def check_images(images: torch.Tensor, name: str = "images") -> None:
    """Raises `ValueError` unless these are 8-bit images: `torch.uint8`, `(N, C, H, W)`, at least one."""
    if images.dtype != torch.uint8:
        raise ValueError(
            f"{name} has dtype {images.dtype}, but must be torch.uint8: round generated images to 8 bit as "
            "`(x * 127.5 + 128).clamp(0, 255).to(torch.uint8)` for x in [-1, 1]."
        )
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"{name} has shape {tuple(images.shape)}, but must be (N, C, H, W) without zeros.")


def as_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Gives images the channels that a network takes; gray ones (one channel) are repeated, and transparent ones laid
    over white.

    Args:
        images (`torch.Tensor` of shape `(N, C, H, W)`): Any type.
        channels (`int`): Those of the network.

    Returns:
        `torch.Tensor` of shape `(N, channels, H, W)`: A view, where nothing is laid over anything.

    Raises:
        UserError: If the images have other channels. Nothing is guessed: how colours become gray depends on a
            formula.
    """
    given = images.shape[1]
    if given == channels:
        return images
    if given == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    if given == 4 and channels == 3 and images.dtype == torch.uint8:
        return over_white(images)
    kinds = {1: "gray", 3: "RGB", 4: "RGBA"}
    remedy = "composite them onto a background first" if given == 4 else "convert them first"
    raise UserError(
        f"images have {given} channels ({kinds.get(given, 'of unknown meaning')}), but the network takes {channels} "
        f"({kinds.get(channels, 'of unknown meaning')}): {remedy}, or choose another network."
    )


def over_white(images: torch.Tensor) -> torch.Tensor:
    """Lays transparent images `(N, 4, H, W)` over white: `(N, 3, H, W)`, uint8 as they are, rounded."""
    colours, alpha = images[:, :3].int(), images[:, 3:].int()
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def resize_tf1(images: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Resizes bilinearly, as `tf.image.resize_bilinear` of TensorFlow 1 does by default: the resizing of FID.

    Pixel `i` of the output is read at `i * input / output`: corners are not aligned, pixel centres are not half a
    pixel in, and nothing is smoothed, so that reducing images keeps their noise. In float32 and in TensorFlow's
    order: within rows, then between them.

    Args:
        images (`torch.Tensor` of shape `(N, C, H, W)`, uint8): Images.
        size (`int` or `(height, width)`): Of the output, in pixels.

    Returns:
        `torch.Tensor` of shape `(N, C, height, width)`, float32: Values in [0, 255], not rounded.

    Raises:
        ValueError: If these are no 8-bit images.
    """
    check_images(images)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = images.float()
    for axis, outputs in ((3, width), (2, height)):
        inputs = pixels.shape[axis]
        source = torch.arange(outputs, dtype=torch.float32, device=pixels.device) * (inputs / outputs)
        first = source.long().clamp(max=inputs - 1)
        share = (source - first).view(-1, *[1] * (3 - axis))
        low = pixels.index_select(axis, first)
        high = pixels.index_select(axis, (first + 1).clamp(max=inputs - 1))
        pixels = low + (high - low) * share
    return pixels


def resize_pil(
    images: torch.Tensor, size: int | tuple[int, int], resample: str = "bicubic", rounded: bool = True
) -> torch.Tensor:
    """Resizes as Pillow's `Image.resize` does: filters widen with the reduction ("antialias"), first within rows.

    8-bit images equal Pillow's bit for bit, others to the last digit of float32. (Pillow 13 filters some oblong
    images first within columns, which moves 8-bit levels; all versions do square ones as here.)

    Args:
        images (`torch.Tensor` of shape `(N, C, H, W)`, uint8): Images.
        size (`int` or `(height, width)`): Of the output, in pixels.
        resample (`str`, *optional*, defaults to `"bicubic"`): `"bilinear"`, `"bicubic"` or `"lanczos"`.
        rounded (`bool`, *optional*, defaults to `True`): As for 8-bit images, whose levels are rounded between rows
            and columns too; without, as for one image of mode `F` per channel, which is what clean-fid does.

    Returns:
        `torch.Tensor` of shape `(N, C, height, width)`: uint8 if `rounded`, otherwise float32, whose values may be
        outside [0, 255] (clean-fid clamps them).

    Raises:
        ValueError: If these are no 8-bit images, or the filter has no such name.
    """
    check_images(images)
    if resample not in FILTERS:
        raise ValueError(f"resample is {resample!r}, but must be one of {', '.join(FILTERS)}.")
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = images.shape[2:]
    along_rows = filter_weights(resample, columns, width).to(images.device)
    along_columns = filter_weights(resample, rows, height).to(images.device)
    if rounded:
        along_rows, along_columns = (_fixed_point(weights) for weights in (along_rows, along_columns))
    largest = images.shape[1] * max(rows, height) * max(columns, width)
    resized = []
    for part in images.split(max(1, ELEMENTS_AT_ONCE // largest)):
        # Integers below 2^53: in float64 the sums are exact, in whatever order the device adds them.
        pixels = part.double()
        if width != columns:
            pixels = _stored(pixels @ along_rows.T, rounded)
        if height != rows:
            pixels = _stored(along_columns @ pixels, rounded)
        resized.append(pixels.to(torch.uint8 if rounded else torch.float32))
    return torch.cat(resized)


def _stored(sums: torch.Tensor, rounded: bool) -> torch.Tensor:
    """Returns filtered pixels as Pillow keeps them from one pass to the next: 8-bit levels, or float32."""
    if rounded:
        return ((sums + FIXED_POINT / 2) / FIXED_POINT).floor().clamp(0, 255)
    return sums.float().double()


def _fixed_point(weights: torch.Tensor) -> torch.Tensor:
    """Rounds to multiples of 1 / FIXED_POINT, as integers; halves are rounded away from zero."""
    return (weights * FIXED_POINT + 0.5 * weights.sign()).trunc()


def filter_weights(resample: str, inputs: int, outputs: int) -> torch.Tensor:
    """Returns the matrix that resizes a line of pixels as Pillow does.

    Returns:
        `torch.Tensor` of shape `(outputs, inputs)`, float64: Rows sum to 1.
    """
    radius, kernel = FILTERS[resample]
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centres = (torch.arange(outputs, dtype=torch.float64).unsqueeze(1) + 0.5) * scale
    first = (centres - radius * stretch + 0.5).trunc()  # of the pixels that count
    end = (centres + radius * stretch + 0.5).trunc()
    pixels = torch.arange(inputs, dtype=torch.float64)
    weights = kernel((pixels - centres + 0.5) * (1 / stretch)) * ((pixels >= first) & (pixels < end))
    return weights / weights.sum(1, keepdim=True)


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Computes Keys' cubic with a = -1/2 (IEEE Trans. ASSP 29(6), 1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return torch.where((x >= -3) & (x < 3), torch.sinc(x) * torch.sinc(x / 3), 0)


FILTERS: dict[str, tuple[float, Callable[[torch.Tensor], torch.Tensor]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}
