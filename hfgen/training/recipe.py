"""What a family says about its training: which networks, in which phases, with which loss. Nothing else.

A recipe is pure: it knows no processes, no devices and no files, calls no `backward`, logs nothing and reads no clock.
What it must remember lives in networks of role `"state"`. Plain torch trains it, too:

```py
recipe = DDPMRecipe(DDPMConfig(), info)
phase = recipe.phases[0]
optimizer = torch.optim.AdamW(recipe.networks["unet"].module.parameters(), lr=1e-3)
for step in range(steps):
    batch = Batch({"image": images}, StepRandom(seed, step * len(images), len(images)))
    loss, _ = recipe.loss(phase, batch, Progress(step * len(images), step / steps, step))
    loss.backward(), optimizer.step(), optimizer.zero_grad()
```

This file imports no torch, so that a family can be declared in one file without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfgen.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

    from hfgen.data.info import DataInfo
    from hfgen.training.random import StepRandom

TRAINED, FROZEN, STATE = "trained", "frozen", "state"


@dataclass(frozen=True)
class Network:
    """A module, and what it is to the training loop.

    Attributes:
        module (`nn.Module`): The module. It is moved and changed in place.
        role (`str`): `"trained"`: phases update its parameters. `"frozen"`: only used; it is in evaluation mode, gets
            no gradients, and is neither saved nor averaged nor counted, but recorded by `origin` and a digest of its
            weights. `"state"`: changed by `after_step` or by the loss itself, without gradients; saved.
        averaged (`bool`): Whether its moving average is sampled and published.
        buffers (`str`): What processes do with its buffers after each step: `"averaged"` makes floating-point ones
            their mean (running statistics) and expects others to be equal, `"broadcast"` gives all of them the first
            process's, `"own"` leaves each process its own, which checkpoints keep one by one.
        eager_reason (`str`, *optional*): Why `compile` must leave it alone.
        origin (`str`, *optional*): Where a frozen network comes from: an id on the Hub with its revision, or a folder.
        adaptable (`bool`): Whether LoRA may adapt it, in place of training all of it: its layers are called, and not
            their weights used by others, and its buffers do not change. One network of a recipe at most.
    """

    module: nn.Module
    role: str = TRAINED
    averaged: bool = False
    buffers: str = "averaged"
    eager_reason: str | None = None
    origin: str | None = None
    adaptable: bool = False

    def __post_init__(self) -> None:
        if self.role not in (TRAINED, FROZEN, STATE):
            raise ValueError(f"role is {self.role!r}, but must be one of {TRAINED}, {FROZEN}, {STATE}.")
        if self.buffers not in ("averaged", "broadcast", "own"):
            raise ValueError(f"buffers is {self.buffers!r}, but must be one of averaged, broadcast, own.")
        if self.averaged and self.role == FROZEN:
            raise ValueError("a frozen network does not change, so that its average is itself: leave averaged out.")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate or weight decay of their own.

    Attributes:
        select (`tuple[str, ...]`): Patterns of names such as `"unet.*.bias"`; `*` stands for any characters.
        learning_rate, weight_decay (`float`, *optional*): Where they differ from those of the optimizer.
    """

    select: tuple[str, ...]
    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class AdamW:
    """AdamW (https://huggingface.co/papers/1711.05101), as a value.

    Attributes:
        learning_rate (`float`): Peak; the schedule of the run multiplies it.
        groups (`tuple` of [`ParameterGroup`]): The first group that selects a parameter has it; the others share the
            values above.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    groups: tuple[ParameterGroup, ...] = ()

    def make(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        """Makes the optimizer of parameter groups `{"params": ..., "lr": ..., "weight_decay": ...}`."""
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused)


@dataclass(frozen=True)
class Phase:
    """One update of some parameters, with an optimizer of its own.

    Attributes:
        name (`str`): Shown in metrics and messages.
        updates (`tuple[str, ...]`): What is trained: the name of a network for all its parameters, or a pattern of
            names such as `"unet.mid_block.*"`, in which `*` stands for any characters. All other parameters get no
            gradients during the phase.
        optimizer ([`AdamW`]): The optimizer of these parameters.
        every (`int`): Runs in every n-th step only (lazy regularisation, several critic steps).
    """

    name: str
    updates: tuple[str, ...]
    optimizer: AdamW
    every: int = 1


class Batch(dict):
    """The columns of one micro-batch of one process, by name: `batch["image"]`, `batch["label"]`.

    Images are float32 `(B, C, H, W)` in [-1, 1], labels int64 `(B,)` (the column is left out if the data has no
    classes), texts a tuple of `str`.

    Attributes:
        random ([`StepRandom`]): The random numbers of these images in this phase.
        carry (`dict`): One for each micro-batch: what a phase leaves here, detached, a later phase of the same step
            finds.
    """

    def __init__(self, columns: Mapping[str, Any], random: StepRandom, carry: dict[str, Any] | None = None):
        super().__init__(columns)
        self.random = random
        self.carry: dict[str, Any] = {} if carry is None else carry


@dataclass(frozen=True)
class Progress:
    """How far the run is: images seen, their share of the whole run in [0, 1), and the number of steps taken."""

    images_seen: int
    fraction: float
    step: int = 0


class Recipe:
    """The whole interface between a family and the loop: made from `(options, data)`.

    Attributes:
        networks (`dict[str, Network]`): All modules, under the names that checkpoints and metrics have for them.
        phases (`tuple[Phase, ...]`): What is updated in each step, in this order.
        sampling (*optional*): The sampling options of the sample grids, of the class that the family declares.
        batch_statistics (`str`, *optional*): What in the loss is defined over a micro-batch, and not per image, so
            that another split of the batch gives another run. Batch normalisation is noticed without it.
        needs_labels (`bool`, *optional*, defaults to `False`): Whether each image must have a class, which of a stream
            is known only when the image comes.
    """

    networks: dict[str, Network]
    phases: tuple[Phase, ...]
    sampling: Any = None
    batch_statistics: str | None = None
    needs_labels: bool = False

    def check_images(self, columns: Mapping[str, Any]) -> None:
        """Checks the first rows of the data as they are stored (images uint8), before anything is written.

        Raises:
            UserError: If they cannot be trained on.
        """

    def encode(self, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Computes derived columns from the others of a batch, without random numbers: see
        [`~data.columns.Derived`]."""
        raise NotImplementedError

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Computes the loss of a micro-batch and what is worth logging.

        Called under autocast; what must be exact is computed in float32 here.

        Returns:
            A scalar, and detached tensors by name: scalars, or pairs of a sum and a count.
        """
        raise NotImplementedError

    def after_step(self, images: int) -> None:
        """Changes state that no optimizer trains, after each step of `images` images, in all processes alike."""

    def warnings(self, means: dict[str, float], progress: Progress) -> list[str]:
        """Returns warnings about the means of the metrics since the last call: what is wrong, and what to try. Options
        are named in backticks. See [`~training.alarms.Patience`] for how long something must last."""
        return []

    def fit(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> Any:
        """Fits what is learnt after training, such as the prior of a VAE.

        Args:
            modules: The published ones, by name.
            batches: Training images from the beginning of the run, without end, the same ones in all processes.

        Returns:
            What [`pipeline`] is given as `fitted`.
        """
        return None

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        """Makes the pipeline that samples and is published.

        Args:
            modules: Averaged and frozen networks by name, in evaluation mode.
            fitted (*optional*): What [`fit`] returned; `None` where nothing was fitted yet.
        """
        raise NotImplementedError

    def card_images(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> list[torch.Tensor]:
        """Shows what the networks make of training images, for the card: rows `(N, C, H, W)` in [0, 1]; by default
        none."""
        return []


def class_names(data: DataInfo, class_conditional: bool, needs_all: bool = True) -> tuple[str, ...] | None:
    """Returns the names of the classes to train on: those of the labels, or of the groups in their place; `None` for
    neither.

    Raises:
        UserError: If labels are asked for and the data has none, or not for all images where each needs one.
    """
    classes = data.classes
    if not class_conditional:
        return classes.names if classes and classes.groups else None
    if classes is None:
        raise UserError(
            f"`class_conditional` needs labels, and {data.name} has no column of type ClassLabel: name the column "
            "with `label_column`, or leave `class_conditional` out."
        )
    if data.num_images and classes.unlabelled >= data.num_images:
        raise UserError(
            f"`class_conditional` needs labels, and none of the {data.num_images} images of {data.name} has one: "
            "label them, name another column with `label_column`, or leave `class_conditional` out."
        )
    if needs_all and classes.unlabelled:
        raise UserError(
            f"`class_conditional`: {classes.unlabelled} of the images have no class, and each needs one: label these "
            "images, or leave them out."
        )
    return classes.names


def class_arguments(data: DataInfo, names: tuple[str, ...] | None) -> dict[str, Any]:
    """Returns what a pipeline is to know of the classes that a model was trained on, as arguments of its class: their
    names, how often each is in the data, and whether they are labels or groups; nothing without classes."""
    if names is None or data.classes is None:
        return {}
    shares = data.classes.shares
    return {"id2label": dict(enumerate(names)), "class_shares": shares, "class_kind": data.classes.kind}
