"""Sampling from Python, without a command line or a launcher."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from PIL import Image

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import nearest
from hfgen.runtime.png import to_pil
from hfgen.sampling.config import ImageSet, all_sampling_options, names_of
from hfgen.sampling.loading import in_use
from hfgen.sampling.sampler import Sampler, load_sampler

AT_ONCE = 64  # images


def ready_sampler(
    model: str,
    given: Mapping[str, Any],
    device: Any,
    revision: str | None = None,
    token: str | None = None,
) -> Sampler:
    """Loads a checkpoint, as [`load_sampler`] does, and tries it: makes an image in the fewest steps.

    Raises:
        UserError: If there is no such checkpoint, the options do not fit it, or it makes no images.
    """
    with in_use(model):
        sampler = load_sampler(model, given, device, revision, token)
        sampler.try_out()
    return sampler


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
    known = [name for kind in all_sampling_options() for name in names_of(kind)]
    for name in options:
        if name not in known:
            raise UserError(
                f"`{name}` is no option here.{nearest(name, [*known, 'num_images', 'seed', 'batch_size'])}"
            )
    ImageSet(num_images, seed, batch_size)  # checks them
    sampler = ready_sampler(model, options, PartialState().device, revision, token)
    sampler.check_memory(num_images, batch_size)
    batches = [range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]
    return [to_pil(image) for batch in batches for image in sampler(batch, seed).permute(0, 2, 3, 1).cpu().numpy()]
