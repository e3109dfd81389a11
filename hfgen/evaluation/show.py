"""What a VAE does with real images, as rows of grids."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hfgen.pipelines.vae import VAEPipeline, enlarge, shrink
from hfgen.runtime.errors import UserError

FRAMES = 10  # of a walk, a traversal and an edit
DRAWN = 3  # fillings of a hole

Grid = tuple[str, str, Sequence[torch.Tensor]]


def show_grids(
    pipe: VAEPipeline,
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
        pipe ([`VAEPipeline`]): The model.
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
        UserError: If `factor` does not divide the images. Nothing was yielded then.
    """
    classes = labels if pipe.class_names else None
    task, level = pipe.config.task, pipe.config.task_level
    factor = int(level if task == "super_resolve" else factor)
    if task in (None, "super_resolve") and images.shape[-1] % factor:
        raise UserError(f"`factor` {factor} does not divide the {images.shape[-1]} pixels of the images.")
    generator = torch.Generator().manual_seed(seed)
    plain: dict[str, Any] = {"class_labels": classes, "output_type": "pt"}
    search: dict[str, Any] = plain | {"steps": steps, "generator": generator}
    if task is None:
        yield "reconstructions", "images, and what is left of them", [images, pipe.reconstruct(images, **plain)]
        yield "interpolations", "walks from the first image to the last of each row", walks(pipe, images, classes)
        numbers, rows = traversals(pipe, images, classes)
        yield "traversals", f"one latent of the first image changed per row, numbers {numbers}", rows
        if labels is not None and classes is None and len(labels.unique()) > 1:
            source, target = labels.unique()[:2].tolist()
            direction = pipe.attribute_direction(images[labels == target], images[labels == source])
            strengths = torch.linspace(0, 1, FRAMES).tolist()
            edited = pipe.edit(images[labels == source], direction, strengths, output_type="pt")
            yield "edits", f"from {class_names[source]} towards {class_names[target]}", list(edited)
        hole = torch.zeros(images.shape[-2:], dtype=torch.bool)
        hole[images.shape[-2] // 2 :] = True
        rows = [images, torch.where(hole, 0.5, images), pipe.inpaint(images, hole, **search)]
        rows += [pipe.inpaint(images, hole, method="langevin", **search) for _ in range(DRAWN)]
        yield "inpainting", "images, the hole, the likeliest filling, three drawn ones", rows
    if task in (None, "denoise"):
        noise_level = level if task else noise_level
        noisy = images + noise_level * torch.randn(images.shape, generator=generator)
        clean = pipe.denoise(noisy, noise_level, **search)
        yield "denoising", f"images, with noise of {noise_level:g}, cleaned", [images, noisy, clean]
    if task in (None, "super_resolve"):
        small = shrink(images, factor)
        large = pipe.super_resolve(small, **search)
        rows = [images, enlarge(small, factor), large]
        yield "super_resolution", f"images, {factor} times smaller, enlarged", rows


def walks(pipe: VAEPipeline, images: torch.Tensor, classes: torch.Tensor | None) -> list[torch.Tensor]:
    """Walks between the images of each pair, `(FRAMES, C, H, W)` each."""
    return [
        pipe.interpolate(
            images[first],
            images[first + 1],
            FRAMES,
            None if classes is None else classes[first : first + 2],
            output_type="pt",
        )
        for first in range(0, len(images) - 1, 2)
    ]


def traversals(
    pipe: VAEPipeline, images: torch.Tensor, classes: torch.Tensor | None
) -> tuple[list[int], list[torch.Tensor]]:
    """Changes the latents of the first image that vary most, one per row; returns their numbers, too."""
    latents = pipe.encode(images, classes).flatten(1)
    middle, deviation = latents.mean(0), latents.std(0)
    widest = deviation.argsort(descending=True)[:FRAMES].tolist()
    first = None if classes is None else classes[:1]
    rows = []
    for index in widest:
        values = (middle[index] + deviation[index] * torch.linspace(-2, 2, FRAMES, device=middle.device)).tolist()
        rows.append(pipe.traverse(index, values, images[0], first, output_type="pt")[0])
    return widest, rows
