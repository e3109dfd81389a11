"""Capabilities: what a pipeline can do, said by one adapter per pipeline class; importable without torch.

A family writes an adapter beside its pipeline and declares it in its [`~registry.PipelineEntry`]. All that hfgen does
with a checkpoint, it does through capabilities, the classes below: an adapter inherits from those that it offers.

```py
class ARAdapter(Generates, HasDensity):
    def generate(self, generators, labels, options):
        return self.pipe(len(generators), generators, output_type="pt").images

    def log_prob(self, images, labels=None, generator=None, num_samples=1):
        nats = self.pipe.model.log_prob(images)
        return Density(lower=nats, estimate=nats)
```

This one is complete for a pipeline that derives from [`~pipelines.base.Pipeline`], which says the shape of its images.
Adapters stay outside of what is published: a checkpoint needs none.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hfgen.data.columns import Classes
from hfgen.registry import PipelineEntry, load, pipeline_entries
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict
from hfgen.sampling.config import NoOptions

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Adapter(abc.ABC):  # noqa: B024 (capabilities have abstract methods)
    """Speaks for a pipeline. The base of all capabilities.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.

    Attributes:
        options (`type`): The dataclass of its own sampling options; a torch-free [`~runtime.options.Options`].
    """

    options: ClassVar[type] = NoOptions
    lack: ClassVar[str] = "is {a_kind}"
    """Words for a model without the capability; they follow its name in messages."""

    def __init__(self, pipe: Any):
        self.pipe: Any = pipe

    @property
    def kind(self) -> str:
        """One word for people; by default from the name of the adapter's class."""
        return type(self).__name__.removesuffix("Adapter")

    @property
    def a_kind(self) -> str:
        """The kind with its article: "a GAN", "an autoregressive model"."""
        return ("an " if self.kind[0] in "aeiou" else "a ") + self.kind

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width; by default what the pipeline says."""
        return self.pipe.image_shape

    @property
    def classes(self) -> Classes | None:
        """The classes that can be asked for; by default those of a pipeline that has `class_names`."""
        names = getattr(self.pipe, "class_names", None)
        if not names:
            return None
        shares = self.pipe.config.get("class_shares")
        kind: Any = self.pipe.config.get("class_kind") or ("groups" if shares else "labels")
        return Classes(
            tuple(names), kind, tuple(shares[str(number)] for number in range(len(names))) if shares else None
        )

    def obstacle(self, capability: type[Adapter]) -> str | None:
        """Says why the pipeline lacks a capability, in words that follow its name; `None` if it has it.

        Override it where not every pipeline of the class has what its adapter inherits.
        """
        return None if isinstance(self, capability) else capability.lack.format(a_kind=self.a_kind)

    def check(self, options: Any) -> None:  # noqa: B027 (most have nothing to check)
        """Checks the options against the pipeline.

        Raises:
            UserError: For values that it cannot use. The name of the model is put in front.
        """

    def settings(self, options: Any) -> dict[str, Any]:
        """Returns the settings that the images are made with, for records and reports: JSON; by default the
        options."""
        return as_dict([options])

    def passes(self, options: Any) -> int:
        """Returns the evaluations of the network for an image."""
        return 1


class Generates(Adapter):
    """Makes images from random numbers."""

    lack = "is {a_kind}, which makes no images from seeds"

    @abc.abstractmethod
    def generate(self, generators: Sequence[Generator], labels: Tensor | None, options: Any) -> Tensor:
        """Makes images, each from its own generator alone.

        Args:
            generators (`Sequence[torch.Generator]`): One for each image, on the CPU.
            labels (`torch.Tensor` of shape `(B,)`, or `None`): Their classes, on the pipeline's device. Without them a
                conditional model draws each image's class with its generator.
            options: An object of the class `options`.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: Images in [0, 1].

        Raises:
            ValueError: If the model cannot make them.
        """

    def fastest(self, options: Any) -> Any:
        """Returns the options that make images fastest, however bad they are: for rehearsals."""
        return options

    def sliders(self) -> dict[str, Slider]:
        """Returns the options that a page lets visitors change."""
        return {}


@dataclass(frozen=True)
class Slider:
    """The range of an option on a page."""

    label: str
    minimum: float
    maximum: float
    step: float
    value: float


@dataclass(frozen=True)
class Step:
    """What images look like on the way.

    Attributes:
        title (`str`): How far they are, in a word or two, such as `"3 of 20"`.
        images (`dict[str, torch.Tensor]`): Images `(B, C, H, W)` in [0, 1], by what they are, such as `"noisy"`; the
            same ones at each step.
    """

    title: str
    images: dict[str, Tensor]


class HasSteps(Generates):
    """Makes an image step by step, and can show it on the way."""

    lack = "is {a_kind}, which makes an image in one pass"

    @abc.abstractmethod
    def steps(
        self, generators: Sequence[Generator], labels: Tensor | None, options: Any, most: int
    ) -> tuple[str, list[Step]]:
        """Makes images as [`Generates.generate`] does with the same arguments, and notes what they are on the way.

        Args:
            most (`int`): How many steps to note at most, 2 or more: evenly chosen, and the last one is the image.

        Returns:
            `tuple[str, list[Step]]`: What happens, in a sentence for people, and the steps.
        """


def evenly(count: int, most: int) -> list[int]:
    """Chooses at most so many of the numbers from 0 to `count - 1`, evenly, the first and the last among them; of one,
    the first."""
    if count <= most or most == 1:
        return list(range(min(count, most)))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


@dataclass(frozen=True)
class Density:
    """Log-probabilities of 8-bit images in nats, each of shape `(B,)`.

    Attributes:
        lower (`torch.Tensor`): A lower bound, such as the evidence lower bound.
        estimate (`torch.Tensor`): The best estimate; the same, where nothing better is known, or the bound is exact.
    """

    lower: Tensor
    estimate: Tensor


class HasDensity(Adapter):
    """Knows how probable images are: exactly, or by a bound or an estimate, as `details` says.

    Attributes:
        usual_images (`int`): How many images are measured unless told otherwise; fewer, where one takes long.
    """

    lack = "is {a_kind}, whose likelihood is not known"
    usual_images: ClassVar[int] = 1000

    @property
    def without_classes(self) -> bool:
        """Whether it knows how probable images are whose classes are not given; by default, if it has no classes."""
        return self.classes is None

    def samples(self, asked: int | None) -> int:
        """Returns how much is drawn for each image, if `asked` is what was asked for: by default that, else 1."""
        return 1 if asked is None else asked

    @abc.abstractmethod
    def log_prob(
        self, images: Tensor, labels: Tensor | None = None, generator: Generator | None = None, num_samples: int = 1
    ) -> Density:
        """Computes the log-probability of 8-bit images: a density is to be integrated over each pixel's bin.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] with 256 levels, on the pipeline's
                device.
            labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes, for a class-conditional model.
            generator (`torch.Generator`, *optional*): For what is drawn, on the CPU.
            num_samples (`int`): How much may be drawn for each image, where that makes the number better.

        Raises:
            ValueError: For images that do not fit the model.
        """

    def details(self, num_samples: int) -> dict[str, Any]:
        """Describes the number for reports.

        Returns:
            `dict`: JSON. `kind` is `"exact"`, `"bound"` (the log-probability is at least this) or `"estimate"` (right
            on average over what is drawn), `bound` says in words how it was found, and where there are several,
            `likelihood` which.
        """
        return {"kind": "exact", "bound": "exact"}


class Encodes(Adapter):
    """Has a code for each image, from which it makes the image again: walks follow, see [`~sampling.latents`]."""

    lack = "is {a_kind}, which has no latents to walk through"

    @property
    def straight(self) -> bool:
        """Whether walks are straight lines; else they are arcs, which suit latents with a normal prior."""
        return False

    @property
    def searches(self) -> bool:
        """Whether `encode` is a search, which takes long for many images."""
        return False

    def classes_of(self, images: Tensor) -> Tensor | None:
        """Finds the classes of images for a model whose classes are groups, which nobody knows of other images; `None`
        if that cannot be done. By default those under which the images are most probable.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [0, 1] with 256 levels.

        Returns:
            `torch.Tensor` of shape `(B,)`, int64.
        """
        if not isinstance(self, HasDensity) or self.classes is None:
            return None
        import torch

        each = []
        for number, share in enumerate(self.classes.shares or (1.0,) * len(self.classes.names)):
            labels = torch.full((len(images),), number, device=images.device)
            generator = torch.Generator().manual_seed(0)  # the same draws for all of them
            each.append(self.log_prob(2 * images - 1, labels, generator).lower + math.log(max(share, 1e-30)))
        return torch.stack(each).argmax(0)

    @abc.abstractmethod
    def encode(self, images: Tensor, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Encodes images `(B, C, H, W)` in [0, 1] into latents `(B, ...)`; `generator` is for searches with random
        starts."""

    @abc.abstractmethod
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes latents into images `(B, C, H, W)` in [0, 1]."""

    def draw(
        self, generators: Sequence[Generator], labels: Tensor | None, options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Draws latents of images as [`Generates.generate`] makes them, and their classes; by default those that
        `encode` finds. Without `labels`, the images of a conditional model share a class that is drawn."""
        assert isinstance(self, Generates)
        if labels is None and self.classes is not None:
            import torch

            shares = torch.tensor(self.classes.shares or (1.0,) * len(self.classes.names))
            labels = torch.multinomial(shares, 1, generator=generators[0]).expand(len(generators)).to(self.pipe.device)
        images = self.generate(generators, labels, options)
        return self.encode(images, labels), labels


class HasLatents(Encodes):
    """Has latents in which there are directions that change images: edits and traversals follow."""

    lack = "is {a_kind}, which has no latents to edit"

    def directions(self, count: int, examples: Callable[[], tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
        """Finds directions that change images much, the strongest first; by default
        [`~sampling.latents.principal_directions`] of examples.

        Args:
            count (`int`): How many.
            examples (`Callable`): Makes latents `(N, ...)`, their images `(N, C, H, W)` and, of a conditional model,
                their classes `(N,)`, if they are needed.

        Returns:
            `torch.Tensor` of shape `(count, ...)`: For [`~sampling.latents.edit`], in which most images lie within 3
            times each of them.

        Raises:
            ValueError: If there are not so many.
        """
        from hfgen.sampling.latents import principal_directions

        return principal_directions(*examples(), count)


class HasStyles(Adapter):
    """Maps its latents z to styles w, of which the image is made: `pipe.model` has `map(z, class_labels)`,
    `synthesize(w)` and `config.latent_dim`, as [`~models.stylegan2.StyleGAN2Generator`]."""

    lack = "is no StyleGAN2"


class Restores(Adapter):
    """Makes whole images of damaged ones."""

    lack = "is {a_kind}, which restores no images"
    likeliest: ClassVar[bool] = False
    """Whether it looks for the likeliest image, unless `drawing` tells it otherwise; else it draws one."""
    drawing: ClassVar[Mapping[str, Any]] = {}
    """Settings of holes to fill with which an image is drawn."""

    @property
    @abc.abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """What it can do, of `"inpaint"`, `"complete"` (`mask` says what is missing), `"denoise"` (`noise_level`),
        `"super_resolve"`, `"colorize"` (of gray images) and `"img2img"` (`strength`)."""

    def require_task(self, task: str) -> None:
        """Raises [`UserError`] for a task that is none of its own."""
        if task not in self.tasks:
            raise UserError(f"task {task} is not one of this model's: {', '.join(self.tasks)}.")

    @abc.abstractmethod
    def restore_settings(self, task: str) -> dict[str, Any]:
        """Returns the settings that [`restore`] takes for a task, with their defaults: what the damage is, and how to
        search."""

    @abc.abstractmethod
    def restore(
        self,
        task: str,
        images: Tensor,
        labels: Tensor | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        **settings: Any,
    ) -> Tensor:
        """Restores damaged images.

        Args:
            task (`str`): One of `tasks`.
            images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [0, 1]: for `"super_resolve"` smaller than the
                model's, for `"colorize"` of one channel, or two with transparency.
            labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.
            generator (*optional*): One generator, or one for each image, which then depends on its own alone.
            settings: Those of [`restore_settings`].

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: Images of the model's shape, in [0, 1].

        Raises:
            UserError: For a task that is none of its own.
            ValueError: For images or settings that do not fit.
        """


class Translates(Adapter):
    """Turns images of one set into images of another."""

    lack = "is {a_kind}, which translates no images"

    @property
    def ways(self) -> tuple[Any, ...]:
        """The options of each direction that it knows; by default there is one."""
        return (self.options(),)

    def sets(self, options: Any) -> tuple[str, str]:
        """Returns the names that the data of its training has for the images that it takes, and for those that it
        makes."""
        return "a", "b"

    def shapes(self, options: Any) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Returns channels, height and width of the images that it takes, and of those that it makes, as they were in
        training; by default both are the model's."""
        return self.image_shape, self.image_shape

    @abc.abstractmethod
    def translate(self, images: Tensor, generators: Sequence[Generator] | None = None, options: Any = None) -> Tensor:
        """Translates images of one set into images `(B, C, H, W)` in [0, 1] of the other."""


def adapter_of(pipe: Any) -> Any:
    """Returns the adapter of a pipeline: that of its class, or of the nearest class that it derives from.

    Args:
        pipe (`DiffusionPipeline`): A pipeline of an installed family.

    Raises:
        UserError: If no family has such pipelines, or its adapter lacks a part.
    """
    entries = pipeline_entries()
    name = next((kind.__name__ for kind in type(pipe).__mro__ if kind.__name__ in entries), None)
    if name is None:
        raise UserError(
            f"{type(pipe).__name__} is no pipeline of a family that is installed. These are: "
            f"{', '.join(sorted(entries))}."
        )
    return adapter_class(entries[name])(pipe)


def adapter_class(entry: PipelineEntry) -> Any:
    """Returns the class of the adapter that a family declares.

    Raises:
        UserError: If it is not there, or lacks a part.
    """
    kind = load(entry.adapter, f"the adapter of {entry.class_name}")
    lacking = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
    if lacking:
        raise UserError(f"{entry.adapter}, the adapter of {entry.class_name}, lacks {lacking}: write it.")
    return kind


def require(adapter: Adapter, capability: type[Adapter], name: str) -> None:
    """Raises [`UserError`] if a model lacks a capability.

    Args:
        adapter ([`Adapter`]), capability (`type`): The model's, and one of the classes above.
        name (`str`): What to call the model.
    """
    obstacle = adapter.obstacle(capability)
    if obstacle is not None:
        raise UserError(f"{name} {obstacle}.")
