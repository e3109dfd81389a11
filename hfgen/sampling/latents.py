"""Walks, edits and traversals in the latents of any model that has some: functions of [`Encodes`].

Latents are what `encode` and `draw` of the adapter give, `(B, ...)`; images are tensors `(B, C, H, W)` in [0, 1].
Class-conditional models need the classes, `(B,)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hfgen.pipelines.base import AT_ONCE, at_least, slerp
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.capabilities import Encodes

EXAMPLES = 256  # images that directions are learnt from


def reconstruct(adapter: Encodes, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Encodes images and decodes their latents."""
    return decode(adapter, adapter.encode(images, labels), labels)


def draw_alike(
    draw: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    generators: Sequence[torch.Generator],
    labels: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draws latents by a pipeline's `draw_latents`. Without `labels`, all have the class that the first is drawn
    with."""
    if labels is None and len(generators) > 1:
        copy = torch.Generator().set_state(generators[0].get_state())
        _, labels = draw(1, None, generator=[copy], **settings)
        labels = None if labels is None else labels.expand(len(generators))
    return draw(len(generators), labels, generator=list(generators), **settings)


def draw_seeds(
    adapter: Any, seeds: Sequence[int], labels: torch.Tensor | None, options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draws the latents of the images that seeds give, each with its own class: of an image that `hfgen sample` has
    made, `samples.json` holds the seed.

    Args:
        adapter ([`Encodes`] and [`~capabilities.Generates`]): The model.
        seeds (`Sequence[int]`): Those of the images.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes; without them, each image of a conditional
            model has the class that its seed gives.
        options: The model's own sampling options.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Latents `(B, ...)` and classes `(B,)`.
    """
    drawn = []
    for index, seed in enumerate(seeds):
        own = None if labels is None else labels[index : index + 1]
        drawn.append(adapter.draw([torch.Generator().manual_seed(seed)], own, options))
    classes = [own for _, own in drawn if own is not None]
    return torch.cat([latents for latents, _ in drawn]), torch.cat(classes) if classes else None


def walk(adapter: Encodes, ends: torch.Tensor, frames: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Walks from one latent to another: along an arc, or on a straight line where that suits the latents.

    Args:
        adapter ([`Encodes`]): The model.
        ends (`torch.Tensor` of shape `(2, ...)`): The latents of the two ends.
        frames (`int`): Images to make, those of the ends among them.
        labels (`torch.Tensor` of shape `(2,)`, *optional*): The classes of the ends; a frame has that of the nearer
            one.

    Returns:
        `torch.Tensor` of shape `(frames, C, H, W)`: The images, in order.

    Raises:
        ValueError: For fewer than 2 frames.
    """
    at_least("frames", frames, 2)
    fraction = torch.linspace(0, 1, frames, device=ends.device)
    first, last = ends.flatten(1)[:, None].expand(-1, frames, -1)
    points = torch.lerp(first, last, fraction[:, None]) if adapter.straight else slerp(first, last, fraction)
    nearer = None if labels is None else labels[(fraction >= 0.5).long()]
    return decode(adapter, points.to(ends).unflatten(1, ends.shape[1:]), nearer)


def edit(
    adapter: Encodes,
    latents: torch.Tensor,
    direction: torch.Tensor,
    strengths: Sequence[float],
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Moves latents along a direction.

    Args:
        adapter ([`Encodes`]): The model.
        latents (`torch.Tensor` of shape `(B, ...)`): Where to begin.
        direction (`torch.Tensor` of the shape of one latent): One that [`attribute_direction`] finds, or any other.
        strengths (`Sequence[float]`): How far to go, S values; 0 is the plain reconstruction.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): The classes.

    Returns:
        `torch.Tensor` of shape `(B, S, C, H, W)`: For each latent the row of its variants.

    Raises:
        ValueError: For a direction of another shape, or no strengths.
    """
    at_least("len(strengths)", len(strengths), 1)
    if direction.shape != latents.shape[1:]:
        shape = tuple(latents.shape[1:])
        raise ValueError(f"direction has shape {tuple(direction.shape)}, but must have {shape}.")
    steps = torch.as_tensor(strengths).to(latents)[:, None] * direction.flatten().to(latents)
    return _decode_rows(adapter, latents, latents.flatten(1)[:, None] + steps, labels)


def draw_examples(
    adapter: Any, options: Any, seed: int = 0, count: int = EXAMPLES
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draws latents, and makes their images, for [`~capabilities.HasLatents.directions`].

    Args:
        adapter ([`Encodes`] and [`~capabilities.Generates`]): The model.
        options: Its own sampling options.
        seed (`int`), count (`int`): Which images: the first ones of the set of this seed, with all classes in turn.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]`: Latents `(N, ...)`, images `(N, C, H, W)` in [0, 1],
        and classes `(N,)` of a conditional model.
    """
    classes, labels = adapter.classes, None
    if classes is not None and not classes.groups:
        labels = torch.arange(count, device=adapter.pipe.device) % len(classes.names)
    latents, labels = draw_seeds(adapter, [image_seed(seed, index) for index in range(count)], labels, options)
    return latents, decode(adapter, latents, labels), labels


def principal_directions(
    latents: torch.Tensor, images: torch.Tensor, labels: torch.Tensor | None, count: int
) -> torch.Tensor:
    """Finds how latents change with the principal components of their images: the least-squares fit by which GANSpace
    (https://huggingface.co/papers/2004.02546, section 2.2) brings components of what a network makes back to latents.

    Args:
        latents (`torch.Tensor` of shape `(N, ...)`): Latents.
        images (`torch.Tensor` of shape `(N, C, H, W)`): Their images, in [0, 1].
        labels (`torch.Tensor` of shape `(N,)`, or `None`): Classes, whose differences do not count.
        count (`int`): How many directions.

    Returns:
        `torch.Tensor` of shape `(count, ...)`: The strongest first; each as long as one standard deviation of its
        component. The entry of the largest magnitude is positive.

    Raises:
        ValueError: If the images do not differ in so many ways.
    """
    pixels = images.double()
    if images.shape[1] == 4:  # what is transparent has no colour
        pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)
    pixels, codes = pixels.flatten(1), latents.flatten(1).double()
    groups = torch.zeros(len(images), dtype=torch.long, device=images.device) if labels is None else labels
    for group in groups.unique():
        own = groups == group
        pixels[own], codes[own] = pixels[own] - pixels[own].mean(0), codes[own] - codes[own].mean(0)
    values, vectors = torch.linalg.eigh(pixels @ pixels.T)  # ascending
    rank = min(int((values > values[-1] * 1e-9).sum()), codes.shape[1])
    if not 1 <= count <= rank:
        raise ValueError(f"count is {count}, but {len(images)} images of this model have 1 to {rank} directions.")
    found = vectors[:, -count:].flip(1).T @ codes / len(images) ** 0.5
    largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
    return (found * torch.where(largest < 0, -1, 1)).to(latents).unflatten(1, latents.shape[1:])


def traverse(
    adapter: Encodes,
    latents: torch.Tensor,
    index: int,
    values: Sequence[float],
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sets one entry of the latents to some values, and leaves the others as they are.

    Args:
        adapter ([`Encodes`]): The model.
        latents (`torch.Tensor` of shape `(B, ...)`): Where to begin.
        index (`int`): Number of the entry in the flattened latent.
        values (`Sequence[float]`): S values.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): The classes.

    Returns:
        `torch.Tensor` of shape `(B, S, C, H, W)`: For each latent the row of its variants.

    Raises:
        ValueError: For an entry that does not exist, or no values.
    """
    at_least("len(values)", len(values), 1)
    size = latents[0].numel()
    if not 0 <= index < size:
        raise ValueError(f"index is {index}, but the latents have entries 0 to {size - 1}.")
    rows = latents.flatten(1)[:, None].repeat(1, len(values), 1)
    rows[:, :, index] = torch.as_tensor(values).to(rows)
    return _decode_rows(adapter, latents, rows, labels)


def attribute_direction(
    adapter: Encodes,
    images_with: torch.Tensor,
    images_without: torch.Tensor,
    labels_with: torch.Tensor | None = None,
    labels_without: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the difference between the mean latents of images with an attribute and of images without it, for
    [`edit`]."""
    with_it, without = adapter.encode(images_with, labels_with), adapter.encode(images_without, labels_without)
    return with_it.mean(0) - without.mean(0)


def decode(adapter: Encodes, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Decodes any number of latents, some at a time."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(latents), AT_ONCE)]
    return torch.cat([adapter.decode(latents[part], None if labels is None else labels[part]) for part in parts])


def _decode_rows(
    adapter: Encodes, latents: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor:
    """Decodes flattened latents `(B, S, N)` into images `(B, S, C, H, W)`."""
    labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
    points = rows.flatten(0, 1).unflatten(1, latents.shape[1:])
    return decode(adapter, points, labels).unflatten(0, rows.shape[:2])
