"""Sampling from Python, without a command line or a launcher."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

from hfgen.pipelines.base import STRENGTHS
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import nearest
from hfgen.runtime.png import to_pil, to_uint8
from hfgen.runtime.seeds import SEEDS
from hfgen.sampling import latents as codes
from hfgen.sampling.capabilities import HasLatents, adapter_of, require
from hfgen.sampling.config import ImageSet, all_sampling_options, names_of
from hfgen.sampling.loading import in_use, load_pipeline
from hfgen.sampling.restoring import Restorer
from hfgen.sampling.sampler import Sampler, load_sampler

AT_ONCE = 64  # images


def check_options(options: Mapping[str, Any]) -> None:
    """Raises [`UserError`] for an option of sampling that no model has."""
    known = [name for kind in all_sampling_options() for name in names_of(kind)]
    for name in options:
        if name not in known:
            raise UserError(
                f"`{name}` is no option here.{nearest(name, [*known, 'num_images', 'seed', 'batch_size'])}"
            )


def ready_sampler(
    model: str,
    given: Mapping[str, Any],
    device: Any,
    revision: str | None = None,
    token: str | None = None,
    translates: bool = False,
) -> Sampler:
    """Loads a checkpoint, as [`load_sampler`] does, and tries it: makes an image in the fewest steps.

    Raises:
        UserError: If there is no such checkpoint, the options do not fit it, or it makes no images.
    """
    with in_use(model):
        sampler = load_sampler(model, given, device, revision, token, translates)
        sampler.try_out()
    return sampler


def edit(
    model: str,
    seeds: Sequence[int] = (0,),
    direction: int | torch.Tensor = 0,
    strengths: Sequence[float] = STRENGTHS,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> list[list[Image.Image]]:
    """Edits images by their seeds, of any model with latents: the same images as in `edits.png` of the command `show`
    with the same options.

    Args:
        model (`str`): Folder or Hub id.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): Of the images, as `samples.json` has them, or
            `pipe(generator=torch.Generator().manual_seed(seed))` took them.
        direction (`int` or `torch.Tensor`, *optional*, defaults to 0): Which of the directions that change images
            most, the strongest being 0; or a direction of the shape of one latent.
        strengths (`Sequence[float]`, *optional*, defaults to -3 to 3): How far to go; 0 is the image as it is.
        revision, token (`str`, *optional*): For the Hub.
        options: What the model lets one choose, as for [`sample`]; of `class_labels`, one for each seed in turn.

    Returns:
        `list[list[PIL.Image.Image]]`: For each seed the row of its variants.

    Raises:
        UserError: If there is no such checkpoint, it has no latents, or an option does not fit it.
    """
    check_options(options)
    sampler = load_sampler(model, options, PartialState().device, revision, token)
    require(sampler.adapter, HasLatents, model)
    if not seeds or any(not isinstance(seed, int) or not 0 <= seed < SEEDS for seed in seeds):
        raise UserError(f"`seeds` {list(seeds)} must be whole numbers from 0 to 2**64 - 1, at least one.")
    with in_use(model):
        if isinstance(direction, int):
            try:
                directions = sampler.adapter.directions(
                    direction + 1, lambda: codes.draw_examples(sampler.adapter, sampler.options)
                )
            except ValueError as error:
                raise UserError(
                    f"`direction` {direction} is unknown ({one_line(error)}): they begin with 0."
                ) from None
            along = directions[direction]
        else:
            along = direction
        latents, labels = codes.draw_seeds(sampler.adapter, seeds, sampler.labels_of(len(seeds)), sampler.options)
        rows = codes.edit(sampler.adapter, latents, along, strengths, labels)
        return [[to_pil(image) for image in to_uint8(row)] for row in rows]


def restore(
    model: str,
    task: str,
    image: Any,
    mask: Any = None,
    seed: int = 0,
    class_labels: str | int | Sequence[str | int] | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    token: str | None = None,
    **settings: Any,
) -> list[Image.Image]:
    """Restores or edits images with any model that can: a DDPM of ours or of diffusers, a VAE, an autoregressive
    model.

    Args:
        model (`str`): Folder or Hub id.
        task (`str`): `"inpaint"`, `"denoise"`, `"super_resolve"`, `"colorize"`, `"img2img"` or `"complete"`; which of
            them a model can, `adapter_of(load_pipeline(model)).tasks` tells.
        image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): Images of the model's size and mode;
            smaller by a whole factor to enlarge them, and gray (`L`, or `LA` of a model with transparency) to colour
            them. Arrays are `(B, H, W, C)` and tensors `(B, C, H, W)`, in [0, 1].
        mask (*optional*): Where to paint, white or 1: an image, array or tensor, for all images or for each one.
        seed (`int`, *optional*, defaults to 0): Of what is drawn; image i depends on it and on i alone.
        class_labels (*optional*): Classes by number or name, which the images have in turn.
        batch_size (`int`, *optional*, defaults to 16): Images at once.
        revision, token (`str`, *optional*): For the Hub.
        settings: What the model lets one choose, such as `strength`, `noise_level`, `method`, `steps`; see
            [`~capabilities.Restores.restore_settings`].

    Returns:
        `list[PIL.Image.Image]`: The images.

    Raises:
        UserError: If there is no such checkpoint, it cannot do that, or images or settings do not fit it.
    """
    if isinstance(class_labels, str | int):
        class_labels = [class_labels]
    with in_use(model):
        pipe: Any = load_pipeline(model, revision=revision, token=token)
        pipe.to(PartialState().device).set_progress_bar_config(disable=True)
        labels = None if class_labels is None else [str(label) for label in class_labels]
        restorer = Restorer(adapter_of(pipe), task, settings, labels, seed, model)
        images = restorer.pixels(image)
        masks = restorer.mask(mask, len(images))
        made = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            made += [*to_uint8(restorer(images[part], start, None if masks is None else masks[part]))]
        return [to_pil(image) for image in made]


def sample(
    model: str,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = AT_ONCE,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> list[Image.Image]:
    """Samples images from a checkpoint: the same ones as the command `sample` with the same options.

    Args:
        model (`str`): Folder or Hub id.
        num_images (`int`, *optional*, defaults to 16): How many.
        seed (`int`, *optional*, defaults to 0): The seed of the set; see [`~runtime.seeds.image_seed`].
        batch_size (`int`, *optional*, defaults to 64): Images at once.
        revision, token (`str`, *optional*): For the Hub.
        options: What the model lets one choose: `class_labels`, `truncation`, `num_inference_steps`, ...

    Returns:
        `list[PIL.Image.Image]`: The images.

    Raises:
        UserError: If there is no such checkpoint, or an option does not fit it.
    """
    check_options(options)
    ImageSet(num_images, seed, batch_size)  # checks them
    sampler = ready_sampler(model, options, PartialState().device, revision, token)
    sampler.check_memory(num_images, batch_size)
    batches = [range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]
    return [to_pil(image) for batch in batches for image in sampler(batch, seed).permute(0, 2, 3, 1).cpu().numpy()]
