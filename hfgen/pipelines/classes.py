"""Pipelines that know classes: their names, how often each is in the data, and the labels of a call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hfgen.pipelines.self_contained import SelfContained

Generators = torch.Generator | Sequence[torch.Generator] | None


class ClassPipeline(SelfContained):
    """A pipeline that knows the names of its classes; none, if it is unconditional."""

    def _register_classes(
        self, id2label: dict | None, class_shares: Sequence[float] | dict | None, class_kind: str | None = None
    ) -> None:
        if class_kind not in (None, "labels", "groups"):
            raise ValueError(f"class_kind is {class_kind!r}, but must be labels or groups.")
        # JSON turns the keys into strings; register what will be read back. No lists: diffusers takes one for a
        # component.
        names = {str(key): name for key, name in (id2label or {}).items()}
        shares = class_shares if isinstance(class_shares, dict) else dict(enumerate(class_shares or ()))
        self.register_to_config(id2label=names or None)
        self.register_to_config(class_shares={str(key): share for key, share in shares.items()} or None)
        self.register_to_config(class_kind=class_kind)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by number; empty for an unconditional model."""
        return [self.config.id2label[str(number)] for number in range(len(self.config.id2label or ()))]

    def class_numbers(self, class_labels: Any, batch_size: int, generator: Generators = None) -> torch.Tensor | None:
        """Checks class numbers or names and makes an int64 tensor of shape `(batch_size,)` of them. `None` stands for
        classes drawn with `generator`, and stays `None` for an unconditional model.

        Raises:
            ValueError: If there are too many or too few of them, one is unknown, or the model knows no classes.
        """
        names = self.class_names
        if not names:
            if class_labels is not None:
                raise ValueError(f"class_labels is {class_labels!r}, but this model knows no classes: leave it out.")
            return None
        if class_labels is None:
            return self._classes_without_labels(batch_size, generator).to(self._execution_device)
        if isinstance(class_labels, (torch.Tensor, np.ndarray)):
            class_labels = class_labels.tolist()
        labels = list(class_labels) if np.ndim(class_labels) else [class_labels] * batch_size
        if len(labels) != batch_size:
            raise ValueError(
                f"class_labels has {len(labels)} entries for batch_size {batch_size}: give one per image."
            )
        for label in labels:  # True is 1 to Python, but no class
            if isinstance(label, (bool, np.bool_)) or label not in (
                names if isinstance(label, str) else range(len(names))
            ):
                raise ValueError(f"class_labels has {label!r}: use a number below {len(names)} or one of {names}.")
        numbers = [names.index(label) if isinstance(label, str) else int(label) for label in labels]
        return torch.tensor(numbers, device=self._execution_device)

    @property
    def _grouped(self) -> bool:
        """Whether the classes are groups of similar images, without a meaning."""
        kind = self.config.class_kind or ("groups" if self.config.class_shares else "labels")
        return bool(self.class_names) and kind == "groups"

    def _shares(self) -> list[float]:
        """Returns how often each class is in the data, or equal shares where that is not known."""
        count, shares = len(self.class_names), self.config.class_shares
        return [shares[str(number)] for number in range(count)] if shares else [1 / count] * count

    def _classes_without_labels(self, batch_size: int, generator: Generators) -> torch.Tensor:
        """Draws classes `(batch_size,)` for a call that names none: each by its share or, where that is not known, as
        likely as the others."""
        if self.config.class_shares:
            return draw_classes(self._shares(), batch_size, generator)
        generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
        count = len(self.class_names)
        draws = [torch.randint(count, (), generator=one, device=one.device if one else "cpu") for one in generators]
        return torch.tensor([int(draw) for draw in draws])


def draw_classes(shares: Sequence[float], count: int, generator: Generators = None) -> torch.Tensor:
    """Draws classes as often as they are in the data.

    Args:
        shares (`Sequence[float]`): The share of each class; they sum to 1.
        count (`int`): How many classes to draw.
        generator (*optional*): One `torch.Generator`, or one per image: then a class depends on its own alone.

    Returns:
        `torch.Tensor` of shape `(count,)`, int64, on the CPU.
    """
    upper = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(upper, draw_quantiles(count, generator) * upper[-1], right=True)


def draw_quantiles(count: int, generator: Generators = None) -> torch.Tensor:
    """Draws `(count,)` uniform numbers in [0, 1), float64, on the CPU; with one generator per image, each from its
    own."""
    generators = generator if isinstance(generator, Sequence) else [generator] * count
    quantiles = [torch.rand((), generator=one, device=one.device if one else "cpu").item() for one in generators]
    return torch.tensor(quantiles).double()
