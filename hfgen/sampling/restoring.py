"""Restoring images with any model that can: what it takes, in what shape, and each image by a seed of its own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hfgen.pipelines.base import read_mask, read_pixels
from hfgen.pipelines.restoration import factor_of
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import nearest
from hfgen.sampling.capabilities import Adapter, Restores, require
from hfgen.sampling.sampler import find_classes, image_generators

TAKEN_BY_ALL = ("image", "class_labels", "generator", "output_type")  # arguments that are no settings
NOISE_LIMIT = 6  # deviations by which pixels may leave [0, 1] where they have noise


class RestoresByMethods(Restores):
    """Restores images with a pipeline that has a method for each task, of its name."""

    def restore_settings(self, task: str) -> dict[str, Any]:
        self.require_task(task)
        taken = inspect.signature(getattr(self.pipe, task)).parameters.values()
        return {each.name: each.default for each in taken if each.name not in TAKEN_BY_ALL}

    def restore(
        self,
        task: str,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        self.require_task(task)
        given = {"class_labels": labels, "generator": generator, "output_type": "pt"}
        return getattr(self.pipe, task)(images, **given, **settings)


def shape_for(adapter: Any, task: str, image: Any) -> tuple[int, int, int]:
    """Returns channels, height and width of the images that a task takes.

    Raises:
        ValueError: For images to enlarge whose size does not divide the model's.
    """
    channels, height, width = adapter.image_shape
    if task == "super_resolve":
        factor = factor_of(image, (height, width))
        return channels, height // factor, width // factor
    return (channels - 2 if task == "colorize" else channels), height, width


def check_settings(adapter: Any, task: str, settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Returns the settings of a task that are not `None`.

    Raises:
        UserError: If the model restores no images, or not in this way, or does not take one of the settings.
    """
    require(adapter, Restores, model)
    if task not in adapter.tasks:
        raise UserError(f"`task` {task}: {model} cannot do that. It can {', '.join(adapter.tasks)}.")
    known = adapter.restore_settings(task)
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"`{name}`: {model} has no such setting to {task}; {takes}.{nearest(name, list(known))}")
    return given


class Restorer:
    """Restores images with a model, each by its number: image i depends on the seed and on i alone.

    Args:
        adapter ([`Adapter`]): Speaks for the model.
        task (`str`): What to do.
        settings (`Mapping`): See [`~capabilities.Restores.restore_settings`]; `None` is left out.
        class_labels (`Sequence[str]`, *optional*): Classes by number or name, which the images have in turn.
        seed (`int`, *optional*, defaults to 0): Of what is drawn.
        name (`str`, *optional*): What to call the model in a message.

    Raises:
        UserError: If the model cannot do that, or does not take one of the settings or classes.
    """

    def __init__(
        self,
        adapter: Adapter,
        task: str,
        settings: Mapping[str, Any],
        class_labels: Sequence[str] | None = None,
        seed: int = 0,
        name: str = "the model",
    ):
        self.adapter: Any = adapter
        self.task, self.seed, self.name = task, seed, name
        self.settings = check_settings(adapter, task, settings, name)
        classes = adapter.classes
        if class_labels and classes is None:
            raise UserError(f"`class_labels` {' '.join(class_labels)}: {name} knows no classes. Leave them out.")
        self.classes = find_classes(classes.names, class_labels, name) if classes and class_labels else None

    def pixels(self, image: Any) -> torch.Tensor:
        """Converts images of any accepted kind to those that the task takes: `(B, C, H, W)` in [0, 1].

        Raises:
            UserError: If they do not fit.
        """
        limits = (0.0, 1.0)
        if self.task == "denoise" and isinstance(level := self.settings.get("noise_level"), int | float):
            level = max(level, 0.0)
            limits = (-NOISE_LIMIT * level, 1 + NOISE_LIMIT * level)
        return self._told(lambda: read_pixels(image, shape_for(self.adapter, self.task, image), limits=limits))

    def __call__(self, images: torch.Tensor, first: int = 0, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Restores images, the first of which has the number `first`.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): See [`pixels`].
            first (`int`): Their place among all images.
            mask (`torch.Tensor` of shape `(B, 1, H, W)`, *optional*): Theirs.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: In [0, 1].

        Raises:
            UserError: If the model cannot do it.
        """
        numbers = range(first, first + len(images))
        labels = None
        if self.classes:
            own = [self.classes[number % len(self.classes)] for number in numbers]
            labels = torch.tensor(own, device=self.adapter.pipe.device)
        more = {} if mask is None else {"mask": mask}
        generators = image_generators(self.seed, numbers)
        made = self._told(lambda: self.adapter.restore(self.task, images, labels, generators, **self.settings, **more))
        bad = len(made) - int(made.flatten(1).isfinite().all(1).sum())
        if bad:
            raise UserError(f"{self.name} makes images with NaN or infinite values: give another checkpoint.")
        return made

    def mask(self, mask: Any, count: int) -> torch.Tensor | None:
        """Reads the masks of so many images, if the task takes some.

        Raises:
            UserError: If one is missing, does not fit, or has nothing to do.
        """
        if "mask" not in self.adapter.restore_settings(self.task):
            if mask is not None:
                raise UserError(f"`mask` has nothing to do: `task` {self.task} takes none. Leave it out.")
            return None
        if mask is None:
            raise UserError(f"`mask` is missing: say what to {self.task} with white pixels.")
        return self._told(lambda: read_mask(mask, self.adapter.image_shape[1:], count, self.task == "complete"))

    def _told(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            return make()
        except ValueError as error:
            raise UserError(f"{self.name}: {one_line(error)}") from error
