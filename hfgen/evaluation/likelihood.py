"""Bits per dimension of held-out images, for every model that knows how probable images are."""

import math
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hfgen.evaluation.metrics import Result
from hfgen.evaluation.reference import DATA_SEED, Part
from hfgen.objectives.elbo import bits_per_dim
from hfgen.runtime.distributed import Table, map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.sampling.sampler import Sampler

LIKELIHOOD_BATCH = 50  # images at once
LONG, TRIED = 90, 5  # seconds that are said beforehand, and the images that are timed for that


def measure_likelihood(
    sampler: Sampler,
    part: Part,
    accelerator: Accelerator,
    num_images: int | None = None,
    num_samples: int | None = None,
    leave: bool = True,
) -> list[Result]:
    """Measures the bits per dimension of real images. Every process must call this; the first one gets the result.

    Args:
        sampler ([`~sampling.sampler.Sampler`]): The model, which [`~sampling.capabilities.HasDensity`].
        part ([`Part`]): The images.
        accelerator (`Accelerator`): The processes.
        num_images (`int`, *optional*): How many of them, drawn at random; all, if there are fewer. By default what
            suits the model. Fewer are some of more.
        num_samples (`int`, *optional*): How much the model may draw for each, where that makes the number better; by
            default what suits the model.
        leave (`bool`, *optional*, defaults to `True`): Whether the finished progress bar stays.

    Raises:
        UserError: For images that do not fit the model.
    """
    adapter, device, labels = sampler.adapter, accelerator.device, None
    chosen = np.random.default_rng(DATA_SEED).permutation(len(part.rows))[: num_images or adapter.usual_images]
    part = Part(part.data, np.sort(part.rows[chosen]))
    samples = adapter.samples(num_samples)
    if sampler.class_names and without_labels(sampler, part) is None:
        assert part.data.labels is not None and part.data.info.class_names is not None
        numbers = sampler.adapter.classes.numbers(part.data.info.class_names)
        labels = torch.tensor(numbers)[torch.from_numpy(part.data.labels[part.rows])]

    def log_probabilities(indices: list[int]) -> Table:
        generator = torch.Generator().manual_seed(indices[0])  # the same ones whatever the number of processes
        pixels = part.images(indices).to(device).float() / 127.5 - 1
        classes = None if labels is None else labels[indices].to(device)
        try:
            with torch.no_grad():
                density = adapter.log_prob(pixels, classes, generator, samples)
        except ValueError as error:
            raise UserError(f"`metrics` bits_per_dim: {sampler.name} does not fit the data: {error}") from None
        return {"lower": density.lower.float(), "estimate": density.estimate.float()}

    if leave:
        some = list(range(len(part.rows)))[:TRIED]
        start = time.perf_counter()
        log_probabilities(some)
        seconds = (time.perf_counter() - start) * len(part.rows) / len(some) / accelerator.num_processes
        if seconds > LONG:
            note(
                f"bits per dimension of {sampler.name}, of {len(part.rows):,} images, take up to {seconds / 60:.0f} "
                "minutes: `likelihood_images` takes fewer"
            )
    nats = map_over_processes(accelerator, len(part.rows), LIKELIHOOD_BATCH, log_probabilities, "Likelihood", leave)
    if not nats:
        return []
    dimensions = math.prod(sampler.image_shape)
    lower, estimate = (bits_per_dim(-nats[name].double(), dimensions) for name in ("lower", "estimate"))
    error = (estimate.std() / len(estimate) ** 0.5).item() if len(estimate) > 1 else None
    details: dict[str, Any] = {
        **adapter.details(samples),
        "num_images": len(estimate),
        **({"class_given": labels is not None} if sampler.class_names else {}),
        "split": part.data.info.split,
        "elbo": lower.mean().item(),
    }
    notes, name = [], sampler.name.rstrip("/").rpartition("/")[2]  # without the folders of this machine
    if labels is not None:
        worth = math.log2(len(sampler.class_names)) / dimensions
        notes.append(f"{name} is told the class of each image, worth {worth:.2g} bits per dimension at most")
    if num_samples is not None and samples < num_samples:
        notes.append(f"of `likelihood_samples` {num_samples}, {name} takes {samples}: each takes long")
    title = "Bits per dimension of held-out images"
    value = estimate.mean().item()
    return [
        Result("bits_per_dim", "bits_per_dim", title, value, "lower", error, "standard error", None, notes, details)
    ]


def without_labels(sampler: Sampler, part: Part) -> str | None:
    """Says why images do not have the classes of a model; `None` if they do, or it has none."""
    info = part.data.info
    if not sampler.class_names:
        return None
    if sampler.grouped:
        return f"the classes of {sampler.name} are groups of images, and those of real images are not known"
    if not set(info.class_names or ("",)) <= set(sampler.class_names):
        return f"{info.name} does not have the classes that {sampler.name} needs: name `label_column`"
    if info.classes and info.classes.unlabelled:
        return f"{info.classes.unlabelled} images of {info.name} have no class, which {sampler.name} needs"
    return None
