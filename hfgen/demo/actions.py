"""The actions behind the clicks of the demo; nothing here knows the page."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfgen.data.config import IMAGE_MODES
from hfgen.data.decode import decode, fit, open_image, to_mode
from hfgen.demo.limits import MOST_FRAMES, MOST_OBLONG, MOST_PIXELS, MOST_SEARCH, MOST_SEED
from hfgen.runtime.errors import UserError
from hfgen.runtime.png import notes, to_pil, to_uint8
from hfgen.runtime.seeds import image_seed
from hfgen.sampling import latents as codes
from hfgen.sampling.capabilities import Adapter, Encodes, Generates
from hfgen.sampling.sampler import Sampler, image_generators

ANY = -1  # the class that stands for none in particular
FRAME = 100  # milliseconds of each image of a walk
CANVAS = 448  # pixels; what is painted on is enlarged to about this size

Captioned = list[tuple[Image.Image, str]]


def sliders(adapter: Generates) -> dict[str, dict[str, Any]]:
    """Returns the settings of an image beside its seed and class: the arguments of a slider, by the option's name."""
    return {
        name: vars(slider) | ({"precision": 0} if slider.step == 1 else {})
        for name, slider in (adapter.sliders().items() if isinstance(adapter, Generates) else ())
    }


def class_names(adapter: Adapter) -> tuple[str, ...]:
    return adapter.classes.names if adapter.classes else ()


def walks_any_class(adapter: Encodes) -> bool:
    """Returns whether walks need no class: latents that are drawn come with one, those of encoded images do not."""
    return type(adapter).draw is not Encodes.draw


def within(name: str, value: Any, least: float, most: float) -> None:
    """Refuses a value that the widgets cannot send, but a program may."""
    if not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{name} is {value}: use {least:g} to {most:g}.")


def check(adapter: Any, label: int, settings: dict[str, float], any_class: bool = True) -> int | None:
    """Checks the class and the settings of an image; returns the class, `None` for any."""
    for name, value in settings.items():
        slider = sliders(adapter)[name]
        within(slider["label"], value, slider["minimum"], slider["maximum"])
    names = class_names(adapter)
    within("Class", label, ANY if any_class or not names else 0, len(names) - 1)
    return None if label == ANY else label


def note(image: Image.Image, origin: dict[str, Any] | None, composite: bool = False, **settings: Any) -> Image.Image:
    """Has a downloaded PNG say what made it, as those of `hfgen sample` do."""
    texts = {} if origin is None else notes(origin | settings, composite)
    for key, text in texts.items():
        image.info[key] = text
    return image


def sample(
    adapter: Any,
    name: str,
    max_images: int,
    seed: int,
    count: int,
    label: int = ANY,
    origin: dict[str, Any] | None = None,
    **settings: float,
) -> Captioned:
    """Makes the images of `hfgen sample`. `ANY` means all classes in turn, or if they are groups, drawn ones."""
    within("Seed", seed, 0, MOST_SEED)
    within("Images", count, 1, max_images)
    chosen, names = check(adapter, label, settings), class_names(adapter)
    labels = None if chosen is None else (names[chosen],)
    sampler = Sampler(adapter, adapter.options(**settings), name, class_labels=labels)
    arrays = sampler(range(count), seed).permute(0, 2, 3, 1).cpu().numpy()
    seeds = [image_seed(seed, index) for index in range(count)]
    classes = [sampler.class_of(index, seed) for index in range(count)]
    captions = [f"image {i}" + ("" if c is None else f" · {names[c]}") for i, c in enumerate(classes)]
    images = [
        note(to_pil(array), origin, **sampler.settings, precision="no", seed=own, class_label=label)
        for array, own, label in zip(arrays, seeds, classes, strict=True)
    ]
    return list(zip(images, captions, strict=True))


def interpolate(
    adapter: Any, start: int, end: int, frames: int, label: int = ANY, **settings: float
) -> list[Image.Image]:
    """Walks from the first image of one seed to that of another, through the latents of both.

    Where these are found by encoding the images, the ends are reconstructions of them.
    """
    within("From seed", start, 0, MOST_SEED)
    within("To seed", end, 0, MOST_SEED)
    within("Frames", frames, 2, MOST_FRAMES)
    chosen = check(adapter, label, settings, any_class=walks_any_class(adapter))
    labels = None if chosen is None else torch.full((2,), chosen, device=adapter.pipe.device)
    options = adapter.options(**settings)
    generators = [generator for seed in (start, end) for generator in image_generators(seed, [0])]
    latents, labels = adapter.draw(generators, labels, options)
    return [to_pil(image) for image in to_uint8(codes.walk(adapter, latents, frames, labels))]


def read_image(adapter: Adapter, path: str | None, shape: tuple[int, int, int] | None = None) -> Image.Image:
    """Reads an uploaded image with a size and channels, by default those of the model's images, cropped in the
    centre."""
    if path is None:
        raise UserError("There is no image: upload one first.")
    channels, resolution, _ = shape or adapter.image_shape
    try:
        with open_image({"path": path}) as header:
            width, height = header.size
        if width * height > MOST_PIXELS:
            raise UserError(
                f"The image has {width}x{height} pixels, more than the {MOST_PIXELS // 10**6} million that are read "
                "here: make it smaller first."
            )
        image = decode({"path": path})
        if max(image.size) > MOST_OBLONG * min(image.size):
            raise UserError(f"The image has {image.width}x{image.height} pixels, which is too oblong: crop it first.")
        mode = next(mode for mode, number in IMAGE_MODES.items() if number == channels)
        pixels, _, _ = fit(to_mode(image, mode), resolution, center_crop=True)
    except OSError as error:
        raise UserError(f"The image cannot be read: {error}. Upload another.") from None
    return to_pil(pixels.transpose(1, 2, 0))


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Converts an image to a tensor `(1, C, H, W)` in [0, 1]."""
    pixels = torch.from_numpy(np.array(image, np.float32) / 255)
    return (pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)[None]


def labels_of(adapter: Adapter, label: int) -> torch.Tensor | None:
    """Checks the class of an image that is encoded, and returns it as `(1,)`; `None` for a model without classes."""
    chosen = check(adapter, label, {}, any_class=False)
    return None if chosen is None else torch.tensor([chosen], device=adapter.pipe.device)


def reconstruct(adapter: Any, path: str | None, label: int = ANY) -> Captioned:
    labels, image = labels_of(adapter, label), read_image(adapter, path)
    (remade,) = to_uint8(codes.reconstruct(adapter, as_tensor(image), labels))
    return [(image, "image"), (to_pil(remade), "reconstruction")]


def inpaint(
    adapter: Any, image: Image.Image | None, drawn: dict | None, seed: int, steps: int, label: int = ANY
) -> Captioned:
    """Fills the hole: what was painted, in the layers `(H, W, 4)` of `drawn`, over the image at any size."""
    within("Seed", seed, 0, MOST_SEED)
    within("Steps", steps, 1, MOST_SEARCH)
    labels = labels_of(adapter, label)
    if image is None:
        raise UserError("There is no image: upload one first.")
    mask = np.zeros((image.height, image.width), dtype=bool)
    for layer in (drawn or {}).get("layers", ()):
        mask |= np.asarray(Image.fromarray(layer[..., 3]).resize(image.size, Image.Resampling.BOX)) >= 128
    if not mask.any():
        raise UserError("There is no hole: paint over a part of the image first.")
    generator = torch.Generator().manual_seed(seed)
    (filled,) = to_uint8(
        adapter.restore("inpaint", as_tensor(image), labels, generator, mask=torch.from_numpy(mask), steps=steps)
    )
    known = Image.composite(Image.new(image.mode, image.size, "gray"), image, Image.fromarray(mask))
    return [(known, "what is known"), (to_pil(filled), "filled")]


def translate(adapter: Any, path: str | None) -> list[Captioned]:
    """Translates an image in each way that the model knows, and the translations back: for each way the image as the
    model sees it, and what is made of it."""
    rows = []
    for options in adapter.ways:
        (given, made), (shape, made_shape) = adapter.sets(options), adapter.shapes(options)
        image = read_image(adapter, path, shape)
        translated = adapter.translate(as_tensor(image).to(adapter.pipe.device), image_generators(0, [0]), options)
        row = [(image, f"as {given}"), (to_pil(*to_uint8(translated)), f"{given} to {made}")]
        for way in adapter.ways:
            if adapter.sets(way) == (made, given) and adapter.shapes(way)[0][0] == made_shape[0]:
                back = adapter.translate(translated, image_generators(0, [0]), way)
                row.append((to_pil(*to_uint8(back)), "and back"))
        rows.append(row)
    return rows


def animate(frames: Sequence[Image.Image]) -> str:
    """Writes HTML that shows frames forth and back, without a file that someone would have to remove."""
    content, (first, *others) = io.BytesIO(), [*frames, *frames[-2:0:-1]]
    first.save(content, format="GIF", save_all=True, append_images=others, duration=FRAME, loop=0)
    source = f"data:image/gif;base64,{base64.b64encode(content.getvalue()).decode()}"
    return f'<img alt="walk" src="{source}" style="height: {CANVAS // 2}px">'


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarges an image by a whole factor and without smoothing, to at most `CANVAS` pixels."""
    factor = max(1, CANVAS // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
