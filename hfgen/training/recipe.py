"""What a family says about its training: which networks, in which phases, with which loss. Nothing else.

A recipe is pure: it knows no Accelerator, calls no `backward`, logs nothing and reads no clock. Plain torch trains it,
too:

```py
recipe = DDPMRecipe(DDPMConfig(), info)
optimizer = torch.optim.AdamW(recipe.modules["unet"].parameters(), lr=1e-3)
for step in range(steps):
    batch = Batch(images, None, StepRandom(seed, step * len(images), len(images)))
    loss, _ = recipe.loss(recipe.phases[0], batch, Progress(step * len(images), step / steps))
    loss.backward(), optimizer.step(), optimizer.zero_grad()
```
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import nn

from hfgen.data.info import DataInfo
from hfgen.runtime.errors import UserError
from hfgen.sampling.config import SamplingConfig
from hfgen.training.random import StepRandom


@dataclass(frozen=True)
class Phase:
    """One update of some of the networks, with an AdamW of its own.

    Attributes:
        name (`str`): Shown in metrics and messages.
        updates (`tuple[str, ...]`): Names of the modules that this phase trains; the others are frozen during it.
        learning_rate (`float`): Peak; the schedule of the run multiplies it.
        every (`int`): Runs in every n-th step only (lazy regularisation, several critic steps).
    """

    name: str
    updates: tuple[str, ...]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    every: int = 1


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process.

    Attributes:
        images (`torch.Tensor` of shape `(B, C, H, W)`): float32 in [-1, 1].
        labels (`torch.Tensor` of shape `(B,)`, or `None`): Classes.
        random ([`StepRandom`]): The random numbers of these images.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    random: StepRandom


@dataclass(frozen=True)
class Progress:
    """How far the run is: images seen, their share of the whole run in [0, 1), and the number of steps taken."""

    images_seen: int
    fraction: float
    step: int = 0


def classes_of(info: DataInfo, class_conditional: bool) -> tuple[str, ...] | None:
    """The names of the classes to train on: those of the labels, or those of the groups in their place.

    Raises:
        UserError: If classes are asked for and the images have none.
    """
    if not class_conditional:
        return info.class_names if info.classes and info.classes.groups else None
    if not info.class_names:
        raise UserError(
            f"`class_conditional` needs labels, and {info.name} has no column of type ClassLabel: name the column "
            "with `label_column`, or leave `class_conditional` out."
        )
    return info.class_names


class Recipe:
    """The whole interface between a family and the loop.

    Attributes:
        modules (`dict[str, nn.Module]`): What is trained, checkpointed, moved and compiled, under these names.
        phases (`tuple[Phase, ...]`): What is updated in each step, in this order.
        averaged (`tuple[str, ...]`): Names of the modules whose moving average is sampled and published.
        uncompiled (`dict[str, str]`): Modules that `compile` must leave alone, each with the reason.
        grid_columns (`int`, *optional*): Columns of the sample grid; by default it is square.
        sampling ([`~evaluation.config.SamplingConfig`]): How the pipeline makes the images of the sample grids.
    """

    modules: dict[str, nn.Module]
    phases: tuple[Phase, ...]
    averaged: tuple[str, ...]
    uncompiled: dict[str, str] = {}
    grid_columns: int | None = None
    sampling: SamplingConfig = SamplingConfig()

    def look(self, images: torch.Tensor) -> None:
        """Called with the first images of a data set, uint8, before anything is written.

        Raises:
            UserError: If they are none to train on.
        """

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a micro-batch and what is worth logging.

        Called under autocast; what must be exact is computed in float32 here.

        Returns:
            A scalar, and detached tensors by name: scalars, or pairs of a sum and a count.
        """
        raise NotImplementedError

    def after_step(self, images: int) -> None:
        """Called after each step of `images` images, in all processes alike: for state that no optimiser trains.

        Such state lives in floating-point buffers of `modules`, which the loop has averaged over the processes.
        """

    def warnings(self, means: dict[str, float], images_seen: int) -> list[str]:
        """What a person should know about the means of the metrics since the last call: what is wrong, and what to
        try."""
        return []

    def pipeline(self, modules: dict[str, nn.Module], batches: Iterator[Batch] | None = None) -> DiffusionPipeline:
        """The pipeline that samples and is published, made of `modules` (the averaged ones, in evaluation mode).

        Args:
            modules: By name.
            batches (*optional*): Training images from the beginning of the run, without end, the same ones in all
                processes: for what is fitted to the networks afterwards. Without them, that is left out.
        """
        raise NotImplementedError

    def pictures(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> list[torch.Tensor]:
        """What becomes of some given images, for the card: rows `(N, C, H, W)` in [0, 1]; by default none."""
        return []
