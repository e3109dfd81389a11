"""Bits per dimension of held-out images, for every model that knows how probable images are."""

import math

import numpy as np
import torch
from accelerate import Accelerator

from hfgen.evaluation.metrics import Result
from hfgen.evaluation.reference import DATA_SEED, Part
from hfgen.objectives.elbo import bits_per_dim
from hfgen.runtime.distributed import Table, map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler

LIKELIHOOD_BATCH = 50  # images at once


def measure_likelihood(
    sampler: Sampler,
    part: Part,
    accelerator: Accelerator,
    num_images: int = 1000,
    num_samples: int = 100,
    leave: bool = True,
) -> list[Result]:
    """Measures the bits per dimension of real images. Every process must call this; the first one gets the result.

    Args:
        sampler ([`~sampling.sampler.Sampler`]): The model, which [`~sampling.capabilities.HasDensity`].
        part ([`Part`]): The images.
        accelerator (`Accelerator`): The processes.
        num_images (`int`, *optional*, defaults to 1000): How many of them, drawn at random; all, if there are fewer.
        num_samples (`int`, *optional*, defaults to 100): What the model may draw for each, where its bound rises to
            the truth with that.
        leave (`bool`, *optional*, defaults to `True`): Whether the finished progress bar stays.

    Raises:
        UserError: For images that do not fit the model.
    """
    chosen = np.random.default_rng(DATA_SEED).permutation(len(part.rows))[:num_images]
    part = Part(part.data, np.sort(part.rows[chosen]))
    adapter, device, labels = sampler.adapter, accelerator.device, None
    if sampler.class_names:
        assert part.data.labels is not None and part.data.info.class_names is not None
        numbers = sampler.adapter.classes.numbers(part.data.info.class_names)
        labels = torch.tensor(numbers)[torch.from_numpy(part.data.labels[part.rows])]

    def log_probabilities(indices: list[int]) -> Table:
        generator = torch.Generator().manual_seed(indices[0])  # the same ones whatever the number of processes
        pixels = part.images(indices).to(device).float() / 127.5 - 1
        classes = None if labels is None else labels[indices].to(device)
        try:
            with torch.no_grad():
                density = adapter.log_prob(pixels, classes, generator, num_samples)
        except ValueError as error:
            raise UserError(f"`metrics` bits_per_dim: {sampler.name} does not fit the data: {error}") from None
        return {"lower": density.lower.float(), "estimate": density.estimate.float()}

    nats = map_over_processes(accelerator, len(part.rows), LIKELIHOOD_BATCH, log_probabilities, "Likelihood", leave)
    if not nats:
        return []
    dimensions = math.prod(sampler.image_shape)
    lower, estimate = (bits_per_dim(-nats[name].double(), dimensions) for name in ("lower", "estimate"))
    error = (estimate.std() / len(estimate) ** 0.5).item() if len(estimate) > 1 else None
    details = {
        **adapter.details(num_samples),
        "num_images": len(estimate),
        "split": part.data.info.split,
        "elbo": lower.mean().item(),
    }
    title = "Bits per dimension of held-out images"
    value = estimate.mean().item()
    return [Result("bits_per_dim", "bits_per_dim", title, value, "lower", error, "standard error", details=details)]
