"""Grids that show what a model with latents does with real images."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from hfgen.runtime.errors import UserError
from hfgen.sampling import latents
from hfgen.sampling.capabilities import HasLatents, Restores

GRIDS = ("reconstructions", "interpolations", "traversals", "edits", "inpainting", "denoising", "super_resolution")
FRAMES = 10  # of a walk, a traversal and an edit
DRAWN = 3  # fillings of a hole

Grid = tuple[str, str, Sequence[torch.Tensor]]


def show_grids(
    adapter: Any,
    name: str,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    class_names: Sequence[str],
    noise_level: float,
    factor: int,
    steps: int,
    seed: int = 0,
) -> Iterator[Grid]:
    """Makes the grids one after the other. A model that was trained for a task shows this task alone.

    Args:
        adapter ([`~sampling.capabilities.Adapter`]): The model.
        name (`str`): What to call it in a message.
        images (`torch.Tensor` of shape `(N, C, H, W)`): Real images in [0, 1], two at least.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): Their classes; a model without classes edits by them.
        class_names (`Sequence[str]`): The names of these classes.
        noise_level (`float`): Standard deviation of the noise to remove.
        factor (`int`): How many times smaller the images to enlarge are.
        steps (`int`): Steps of the search, where the model was not trained for the task.
        seed (`int`, *optional*, defaults to 0): Of noise, and of what is drawn.

    Yields:
        `tuple[str, str, list[torch.Tensor]]`: The name of a grid, what it shows, and its rows `(N, C, H, W)`.

    Raises:
        UserError: If the model has neither latents nor restores images, or `factor` does not divide them.
    """
    encodes = adapter.obstacle(HasLatents) is None
    tasks = adapter.tasks if adapter.obstacle(Restores) is None else ()
    if not encodes and not tasks:
        raise UserError(f"`model` {name} {adapter.obstacle(HasLatents)}: give a VAE, or another model with latents.")
    config = adapter.pipe.config
    if len(tasks) == 1:  # the task that it was trained for has its own level
        noise_level, factor = float(config.task_level), int(config.task_level)
    if "super_resolve" in tasks and images.shape[-1] % factor:
        raise UserError(f"`factor` {factor} does not divide the {images.shape[-1]} pixels of the images.")
    classes = None
    if adapter.classes and adapter.classes.groups:
        classes = adapter.classes_of(images.to(adapter.pipe.device)) if encodes else None
        if classes is None:
            raise UserError(
                f"the classes of {name} are groups of images, and those of real images are not known: give another "
                "model."
            )
    elif adapter.classes:
        assert labels is not None
        # The data may number its classes in another way, or have some of them alone.
        classes = torch.tensor([*adapter.classes.numbers(class_names), -1])[labels]
        if (classes < 0).any():
            shown = {class_names[number] if number >= 0 else "none" for number in labels[classes < 0].tolist()}
            raise UserError(
                f"the images have the classes {', '.join(sorted(shown))}, and {name} knows "
                f"{', '.join(adapter.classes.names)}: give its own data with `dataset_name`."
            )
    generator = torch.Generator().manual_seed(seed)
    if encodes:
        yield from latent_grids(adapter, images, labels, classes, class_names)

    def restore(task: str, damaged: torch.Tensor, **settings: Any) -> torch.Tensor:
        return adapter.restore(task, damaged, classes, generator, steps=steps, **settings)

    if "inpaint" in tasks:
        hole = torch.zeros(images.shape[-2:], dtype=torch.bool)
        hole[images.shape[-2] // 2 :] = True
        rows = [images, torch.where(hole, 0.5, images), restore("inpaint", images, mask=hole)]
        rows += [restore("inpaint", images, mask=hole, method="langevin") for _ in range(DRAWN)]
        yield "inpainting", "images, the hole, the likeliest filling, three drawn ones", rows
    if "denoise" in tasks:
        noisy = images + noise_level * torch.randn(images.shape, generator=generator)
        rows = [images, noisy, restore("denoise", noisy, noise_level=noise_level)]
        yield "denoising", f"images, with noise of {noise_level:g}, cleaned", rows
    if "super_resolve" in tasks:
        small = F.avg_pool2d(images, factor)
        rows = [images, F.interpolate(small, scale_factor=factor), restore("super_resolve", small)]
        yield "super_resolution", f"images, {factor} times smaller, enlarged", rows


def latent_grids(
    adapter: HasLatents,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    classes: torch.Tensor | None,
    class_names: Sequence[str],
) -> Iterator[Grid]:
    """Makes the grids of reconstructions, walks, traversals and edits."""
    codes = adapter.encode(images, classes)
    yield "reconstructions", "images, and what is left of them", [images, adapter.decode(codes, classes)]
    pairs = [slice(first, first + 2) for first in range(0, len(images) - 1, 2)]
    rows = [latents.walk(adapter, codes[pair], FRAMES, None if classes is None else classes[pair]) for pair in pairs]
    yield "interpolations", "walks from the first image to the last of each row", rows

    middle, deviation = codes.flatten(1).mean(0), codes.flatten(1).std(0)
    widest = deviation.argsort(descending=True)[:FRAMES].tolist()
    first = None if classes is None else classes[:1]
    rows = []
    for index in widest:
        values = (middle[index] + deviation[index] * torch.linspace(-2, 2, FRAMES, device=codes.device)).tolist()
        rows.append(latents.traverse(adapter, codes[:1], index, values, first)[0])
    yield "traversals", f"one latent of the first image changed per row, numbers {widest}", rows

    if labels is not None and classes is None and len(labels.unique()) > 1:
        source, target = labels.unique()[:2].tolist()
        direction = codes[labels == target].mean(0) - codes[labels == source].mean(0)
        strengths = torch.linspace(0, 1, FRAMES).tolist()
        edited = latents.edit(adapter, codes[labels == source], direction, strengths)
        yield "edits", f"from {class_names[source]} towards {class_names[target]}", list(edited)
