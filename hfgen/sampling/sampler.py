"""Images from any pipeline that can make some, each from a seed of its own."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hfgen.pipelines.classes import draw_classes
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import GENERATOR, Machine
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.capabilities import Adapter, Generates, Translates, adapter_class, adapter_of, require
from hfgen.sampling.config import SamplingConfig, choose_options, names_of
from hfgen.sampling.loading import entry_of, load_pipeline

OVERHEAD = 1000  # bytes that Python needs for an image, its name and its seed
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """Makes the generator of each image `i` of a seeded set, on the CPU: from [`~runtime.seeds.image_seed`].

    It depends on nothing else, so batch size, order and number of processes change no image; and
    `torch.Generator().manual_seed(image_seed(seed, i))`, with the same class, repeats image `i` alone, with plain
    diffusers too.
    """
    return [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]


class Sampler:
    """Makes the images of a seeded set by their numbers: image i from the seed and i alone, whatever it is made with.

    Class-conditional models make their classes in turn, as grids show them, or as often as [`~Sampler.with_shares`]
    is told, as sets are measured. Where classes are groups of images, the model draws an image's group with its seed.

    Args:
        model (`DiffusionPipeline` or [`~capabilities.Adapter`]): What makes them.
        options (*optional*): The model's own sampling options; by default its defaults.
        name (`str`, *optional*): What to call the model in a message.
        autocast (`Callable`, *optional*): Makes a context for the networks to run in.
        class_labels (`Sequence[str]`, *optional*): The classes to make in turn, by number or name.
        precision (`str`, *optional*, defaults to `"no"`): That of the weights, for reports.

    Attributes:
        settings (`dict`): What the images are made with, for records and reports.

    Raises:
        UserError: If the model makes no images, or for options that do not fit it.
    """

    capability: ClassVar[type[Adapter]] = Generates
    most: int | None = None  # images that the set has at most, if it has an end

    def __init__(
        self,
        model: Any,
        options: Any = None,
        name: str = "the model",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        class_labels: Sequence[str] | None = None,
        precision: str = "no",
    ):
        self.adapter: Any = model if isinstance(model, Adapter) else adapter_of(model)
        require(self.adapter, self.capability, name)
        self.pipe: Any = self.adapter.pipe
        self.options = self.adapter.options() if options is None else options
        self.name, self.precision, self.autocast = name, precision, autocast
        self.at_once: int | None = None  # images that fit into memory, once it has run out
        try:
            self.adapter.check(self.options)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        self.settings: dict[str, Any] = self.adapter.settings(self.options)
        self.classes = self._choose_classes(class_labels)
        self.asked = bool(class_labels)
        self.class_shares: tuple[float, ...] | None = None  # see `with_shares`

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by number; empty for an unconditional model."""
        classes = self.adapter.classes
        return classes.names if classes else ()

    @property
    def grouped(self) -> bool:
        """Whether the classes are groups of similar images, without a meaning."""
        classes = self.adapter.classes
        return classes is not None and classes.groups

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.adapter.image_shape

    def class_of(self, index: int, seed: int) -> int | None:
        """Returns the class that image `index` of a set is to show; `None` where that is left to the model."""
        if not self.classes:
            return None
        if self.class_shares is None:
            return self.classes[index % len(self.classes)]
        generator = torch.Generator().manual_seed(image_seed(seed, index, "class"))
        return int(draw_classes(self.class_shares, 1, generator))

    def labels_of(self, count: int) -> torch.Tensor | None:
        """Returns the classes that so many single images are to show, in turn: `(B,)`; `None` where that is left to
        the model."""
        if not self.classes:
            return None
        labels = [self.classes[index % len(self.classes)] for index in range(count)]
        return torch.tensor(labels, device=self.pipe.device)

    def with_shares(self, class_shares: Sequence[float] | None) -> "Sampler":
        """Returns a sampler like this one that makes each class as often as the shares say; this one, where classes
        were asked for by name or there are none."""
        if not class_shares or not self.classes or self.asked:
            return self
        sampler = copy.copy(self)
        sampler.class_shares = tuple(class_shares)
        return sampler

    def try_out(self) -> None:
        """Makes an image in the fewest steps, to see whether the model can."""
        self.fastest()([0], 0)

    def fastest(self) -> "Sampler":
        """Returns a sampler like this one that makes its images as fast as it can, however bad they are."""
        sampler = copy.copy(self)
        sampler.options = self.adapter.fastest(self.options)
        return sampler

    def check_batch(self, size: int) -> None:
        """Makes sure that so many images that are made at once would fit into an empty memory.

        Raises:
            UserError: If they do not.
        """
        Machine.here().require_images(size, self.image_shape, f"`batch_size` {size}", GENERATOR)

    def check_memory(self, num_images: int, batch_size: int) -> None:
        """Makes sure that a set that is kept, and the images that are made at once, would fit into an empty memory.

        Raises:
            UserError: If they do not, with the option that decides it.
        """
        self.check_batch(min(num_images, batch_size))
        kept = num_images * (math.prod(self.image_shape) + OVERHEAD)
        Machine.host().require(kept, f"`num_images` {num_images}: so many images, kept until all of them are made,")

    def __call__(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        """Makes images of the set of `seed`, all at once if they fit into memory, else cut in halves.

        Args:
            indices (`Sequence[int]`): Their numbers, at least one.
            seed (`int`): The seed of the set.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`, uint8: On the pipeline's device.

        Raises:
            UserError: If the model cannot make them, or an image has NaN or infinite values.
        """
        while True:
            size = min(self.at_once or len(indices), len(indices))
            try:
                with self.autocast():
                    parts = [self._sample(indices[i : i + size], seed) for i in range(0, len(indices), size)]
                return torch.cat(parts)
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
            self.at_once = size // 2
            clear_device_cache(garbage_collection=True)  # out of the handler, which keeps the tensors of its frames

    def _sample(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        try:
            images = self._make(indices, seed)
        except ValueError as error:  # a prior that there is not, ...
            raise UserError(f"{self.name}: {error}") from error
        bad = len(indices) - int(images.flatten(1).isfinite().all(1).sum())
        if bad:
            raise UserError(
                f"{self.name} makes images with NaN or infinite values, {bad} of {len(indices)}: give another "
                "checkpoint, or use `mixed_precision` no."
            )
        return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)

    def _make(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        labels = None
        if self.classes:
            labels = torch.tensor([self.class_of(index, seed) for index in indices], device=self.pipe.device)
        return self.adapter.generate(image_generators(seed, indices), labels, self.options)

    def _choose_classes(self, labels: Sequence[str] | None) -> list[int] | None:
        """Returns the classes that are made in turn."""
        names = list(self.class_names)
        if not names and labels:
            raise UserError(f"`class_labels` {' '.join(labels)}: {self.name} knows no classes. Leave them out.")
        if not names or (not labels and self.grouped):
            return None
        return find_classes(names, labels or [str(number) for number in range(len(names))], self.name)


class Images(Protocol):
    """Images by their numbers."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns images, uint8 `(B, C, H, W)`."""


class Translations(Sampler):
    """Makes the translations of a set of images: image i is made of image i of `given`, which begins again after its
    last one.

    Attributes:
        given ([`Images`], *optional*): Images of the set that the model takes; without them it can only be tried out.
        others ([`Images`], *optional*): What image i should become, where that is known.
    """

    capability = Translates
    given: Images | None = None
    others: Images | None = None

    def of(self, given: Images, others: Images | None = None) -> "Translations":
        """Returns a sampler like this one of other images."""
        sampler = copy.copy(self)
        sampler.given, sampler.others, sampler.most = given, others, len(given)
        return sampler

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.adapter.shapes(self.options)[1]

    def try_out(self) -> None:
        self._translate(torch.zeros(1, *self.adapter.shapes(self.options)[0]), image_generators(0, [0]))

    def fastest(self) -> "Translations":
        return self

    def _make(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        assert self.given is not None
        numbers = [index % len(self.given) for index in indices]
        return self._translate(self.given.images(numbers) / 255, image_generators(seed, numbers))

    def _translate(self, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return self.adapter.translate(images.to(self.pipe.device), generators, self.options)


def find_classes(names: Sequence[str], labels: Sequence[str], model: str) -> list[int]:
    """Returns the numbers of classes that are given by number or name.

    Raises:
        UserError: For one that the model does not know.
    """
    names, numbers = list(names), []
    for label in labels:
        number = names.index(label) if label in names else int(label) if label.isdecimal() else len(names)
        if number >= len(names):
            known = f" or one of {', '.join(names)}" if len(names) <= 20 else ""
            raise UserError(
                f"`class_labels` {label}: {model} has no such class. Use a number below {len(names)}{known}."
            )
        numbers.append(number)
    return numbers


def load_sampler(
    model: str,
    given: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    token: str | None = None,
    translates: bool = False,
) -> Sampler:
    """Loads a checkpoint to sample from.

    Args:
        model (`str`): Folder or Hub id.
        given (`Mapping[str, Any]`, *optional*): The sampling options that the user gave, by name: those of
            [`SamplingConfig`] and the model's own.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where to sample.
        revision, token (`str`, *optional*): For the Hub.
        translates (`bool`, *optional*, defaults to `False`): Whether a translator will do: [`Translations`].

    Raises:
        UserError: If there is no such checkpoint, or the options do not fit it.
    """
    given = given or {}
    precision = SamplingConfig(**{name: given[name] for name in names_of(SamplingConfig) if name in given})
    dtype = DTYPES[precision.mixed_precision]
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise UserError("`mixed_precision` fp16 does not exist on a CPU: use bf16 or no.")
    # Which options there are is known before the weights are read.
    kind = adapter_class(entry_of(model, revision=revision, token=token))
    common, options = choose_options(kind(None), given, model)
    adapter = adapter_of(load_pipeline(model, revision=revision, token=token, dtype=dtype).to(device))
    kind = sampler_class(adapter) if translates else Sampler
    return kind(adapter, options, model, class_labels=common.class_labels, precision=common.mixed_precision)


def sampler_class(adapter: Adapter) -> type[Sampler]:
    """Returns the class of what makes images with a model: from seeds if it can, else translations."""
    translates = isinstance(adapter, Translates) and not isinstance(adapter, Generates)
    return Translations if translates else Sampler
