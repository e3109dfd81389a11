"""Walks, edits and traversals in the latents of any model that has some: functions of [`HasLatents`].

Latents are what `encode` and `draw` of the adapter give, `(B, ...)`; images are tensors `(B, C, H, W)` in [0, 1].
Class-conditional models need the classes, `(B,)`.
"""

from collections.abc import Sequence

import torch

from hfgen.pipelines.base import AT_ONCE, at_least, slerp
from hfgen.sampling.capabilities import HasLatents


def reconstruct(adapter: HasLatents, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Encodes images and decodes their latents."""
    return _decode(adapter, adapter.encode(images, labels), labels)


def walk(adapter: HasLatents, ends: torch.Tensor, frames: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Walks from one latent to another: along an arc, or on a straight line where that suits the latents.

    Args:
        adapter ([`HasLatents`]): The model.
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
    return _decode(adapter, points.to(ends).unflatten(1, ends.shape[1:]), nearer)


def edit(
    adapter: HasLatents,
    latents: torch.Tensor,
    direction: torch.Tensor,
    strengths: Sequence[float],
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Moves latents along a direction.

    Args:
        adapter ([`HasLatents`]): The model.
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


def traverse(
    adapter: HasLatents,
    latents: torch.Tensor,
    index: int,
    values: Sequence[float],
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sets one entry of the latents to some values, and leaves the others as they are.

    Args:
        adapter ([`HasLatents`]): The model.
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
    adapter: HasLatents,
    images_with: torch.Tensor,
    images_without: torch.Tensor,
    labels_with: torch.Tensor | None = None,
    labels_without: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the difference between the mean latents of images with an attribute and of images without it, for
    [`edit`]."""
    with_it, without = adapter.encode(images_with, labels_with), adapter.encode(images_without, labels_without)
    return with_it.mean(0) - without.mean(0)


def _decode(adapter: HasLatents, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(latents), AT_ONCE)]
    return torch.cat([adapter.decode(latents[part], None if labels is None else labels[part]) for part in parts])


def _decode_rows(
    adapter: HasLatents, latents: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor:
    """Decodes flattened latents `(B, S, N)` into images `(B, S, C, H, W)`."""
    labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
    points = rows.flatten(0, 1).unflatten(1, latents.shape[1:])
    return _decode(adapter, points, labels).unflatten(0, rows.shape[:2])
