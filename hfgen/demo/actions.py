"""What the clicks of the demo do; nothing here knows the page."""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfgen.data.config import IMAGE_MODES
from hfgen.data.decode import decode, fit, to_mode
from hfgen.demo.limits import MOST_FRAMES, MOST_OBLONG, MOST_SEARCH, MOST_SEED, MOST_STEPS
from hfgen.runtime.errors import UserError
from hfgen.runtime.png import notes, to_pil
from hfgen.sampling.config import SamplingConfig
from hfgen.sampling.sampler import Sampler, image_generators

ANY = -1  # the class that stands for none in particular
CANVAS = 448  # pixels; what is painted on is enlarged to about this size

Captioned = list[tuple[Image.Image, str]]


def sliders(pipe: Any) -> dict[str, dict[str, Any]]:
    """What decides an image beside its seed and class: the arguments of a slider, by name in [`SamplingConfig`]."""

    def slider(label: str, least: float, most: float, step: float, value: float) -> dict[str, Any]:
        return {"label": label, "minimum": least, "maximum": most, "step": step, "value": value}

    if type(pipe).__name__ == "GANPipeline":
        return {"truncation": slider("Truncation", 0, 1, 0.05, 1)} if pipe.style_based else {}
    if type(pipe).__name__ == "VAEPipeline":
        return {"temperature": slider("Temperature", 0, 2, 0.05, 1)}
    most = min(MOST_STEPS, pipe.scheduler.config.num_train_timesteps)
    found = {"num_inference_steps": slider("Steps", 1, most, 1, min(20, most)) | {"precision": 0}}
    if getattr(pipe, "null_class", None) is not None:
        usual = pipe.config.guidance_scale
        found["guidance_scale"] = slider("Guidance", 0, max(10, usual), 0.1, usual)
    return found


def class_names(pipe: Any) -> list[str]:
    return getattr(pipe, "class_names", [])


def within(name: str, value: Any, least: float, most: float) -> None:
    """Stops what no widget sends, but a program may."""
    if not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{name} is {value}: use {least:g} to {most:g}.")


def check(pipe: Any, label: int, settings: dict[str, float], any_class: bool = True) -> int | None:
    """Checks what decides an image beside its seed; returns the class, `None` for any."""
    for name, value in settings.items():
        slider = sliders(pipe)[name]
        within(slider["label"], value, slider["minimum"], slider["maximum"])
    names = class_names(pipe)
    within("Class", label, ANY if any_class or not names else 0, len(names) - 1)
    return None if label == ANY else label


def note(image: Image.Image, origin: dict[str, Any] | None, composite: bool = False, **how: Any) -> Image.Image:
    """Has a downloaded PNG say what made it, as those of `hfgen sample` do."""
    texts = {} if origin is None else notes(origin | how, composite)
    for key, text in texts.items():
        image.info[key] = text
    return image


def sample(
    pipe: Any,
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
    chosen, names = check(pipe, label, settings), class_names(pipe)
    config = SamplingConfig(class_labels=None if chosen is None else (names[chosen],), **settings)  # type: ignore[arg-type]
    sampler = Sampler(pipe, config, name)
    arrays = sampler(range(count), seed).permute(0, 2, 3, 1).cpu().numpy()
    classes = [sampler.class_of(index) for index in range(count)]
    captions = [f"seed {seed + i}" + ("" if c is None else f" · {names[c]}") for i, c in enumerate(classes)]
    images = [
        note(to_pil(array), origin, **sampler.how, precision="no", seed=seed + index, class_label=classes[index])
        for index, array in enumerate(arrays)
    ]
    return list(zip(images, captions, strict=True))


def interpolate(
    pipe: Any, start: int, end: int, frames: int, label: int = ANY, **settings: float
) -> list[Image.Image]:
    """A walk from the image of one seed to that of another. A VAE walks between the codes of these two images, so that
    its ends are reconstructions of them."""
    within("From seed", start, 0, MOST_SEED)
    within("To seed", end, 0, MOST_SEED)
    within("Frames", frames, 2, MOST_FRAMES)
    gan = type(pipe).__name__ == "GANPipeline"
    chosen = check(pipe, label, settings, any_class=gan)
    options: dict[str, Any] = {"class_labels": chosen, "generator": image_generators(0, (start, end)), **settings}
    if gan:
        return pipe.interpolate(frames=frames - 1, **options)
    ends = pipe(2, output_type="pt", **options).images
    return pipe.interpolate(ends[0], ends[1], frames, chosen)


def read_image(pipe: Any, path: str | None) -> Image.Image:
    """An uploaded image with the size and channels of the model's, cropped in the centre."""
    if path is None:
        raise UserError("There is no image: upload one first.")
    channels, resolution, _ = pipe.image_shape
    try:
        image = decode({"path": path})
        if max(image.size) > MOST_OBLONG * min(image.size):
            raise UserError(f"The image has {image.width}x{image.height} pixels, which is too oblong: crop it first.")
        mode = next(mode for mode, number in IMAGE_MODES.items() if number == channels)
        pixels, _, _ = fit(to_mode(image, mode), resolution, center_crop=True)
    except OSError as error:
        raise UserError(f"The image cannot be read: {error}. Upload another.") from None
    return to_pil(pixels.transpose(1, 2, 0))


def reconstruct(pipe: Any, path: str | None, label: int = ANY) -> Captioned:
    chosen, image = check(pipe, label, {}, any_class=False), read_image(pipe, path)
    return [(image, "image"), (pipe.reconstruct(image, chosen)[0], "reconstruction")]


def inpaint(
    pipe: Any, image: Image.Image | None, drawn: dict | None, seed: int, steps: int, label: int = ANY
) -> Captioned:
    """Fills the hole: what was painted, in the layers `(H, W, 4)` of `drawn`, over the image at any size."""
    within("Seed", seed, 0, MOST_SEED)
    within("Steps", steps, 1, MOST_SEARCH)
    chosen = check(pipe, label, {}, any_class=False)
    if image is None:
        raise UserError("There is no image: upload one first.")
    mask = np.zeros((image.height, image.width), dtype=bool)
    for layer in (drawn or {}).get("layers", ()):
        mask |= np.asarray(Image.fromarray(layer[..., 3]).resize(image.size, Image.Resampling.BOX)) >= 128
    if not mask.any():
        raise UserError("There is no hole: paint over a part of the image first.")
    generator = torch.Generator().manual_seed(seed)
    filled = pipe.inpaint(image, mask, chosen, steps=steps, generator=generator)[0]
    known = Image.composite(Image.new(image.mode, image.size, "gray"), image, Image.fromarray(mask))
    return [(known, "what is known"), (filled, "filled")]


def animate(pipe: Any, frames: Sequence[Image.Image]) -> str:
    """HTML that shows frames forth and back, without a file that someone would have to clear away."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.gif"
        pipe.save_gif([*frames, *frames[-2:0:-1]], path)
        content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="walk" src="data:image/gif;base64,{content}" style="height: {CANVAS // 2}px">'


def enlarge(image: Image.Image) -> Image.Image:
    """By a whole factor and without smoothing, to at most `CANVAS` pixels."""
    factor = max(1, CANVAS // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
