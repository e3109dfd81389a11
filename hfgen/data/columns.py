"""What a family asks of its data: named columns, each of a kind and from a source; no torch here.

```py
{"image": Image(), "label": Label()}                                 # the default
{"image": Image(), "caption": Text()}                                # text to image
{"image": Image(), "target": Image()}                                # pairs: one order and one augmentation for both
{"a": Image(), "b": Image(source="b")}                               # two sets, each in an order of its own
{"image": Image(), "latent": Derived(inputs=("image",))}             # what a frozen network makes of the image
```
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError

TRAIN = "train"  # the source that the options of the run name
VARIANTS = ("plain", "flip")


@dataclass(frozen=True)
class Image:
    """Asks for images.

    Attributes:
        source (`str`): The data set.
        column (`str`, *optional*): Its column; by default one of type `Image`.
    """

    source: str = TRAIN
    column: str | None = None


@dataclass(frozen=True)
class Label:
    """Asks for classes, if there are any.

    Attributes:
        source (`str`): The data set.
        column (`str`, *optional*): Its column; by default one of type `ClassLabel`, or none.
    """

    source: str = TRAIN
    column: str | None = None


@dataclass(frozen=True)
class Text:
    """Asks for texts.

    Attributes:
        source (`str`): The data set.
        column (`str`, *optional*): Its column; by default one of strings.
    """

    source: str = TRAIN
    column: str | None = None


@dataclass(frozen=True)
class Derived:
    """Asks for what the recipe's `encode` makes of other columns of one source, without randomness.

    Attributes:
        inputs (`tuple[str, ...]`): The columns that it is made from.
        variants (`tuple[str, ...]`): What is kept for each row: `"plain"`, of the image cropped in the centre without
            augmentation, and `"flip"`, of its mirror image, which `random_flip` needs.
        live (`bool`): Whether it is made anew in each step, from augmented images, instead of once.
    """

    inputs: tuple[str, ...]
    variants: tuple[str, ...] = ("plain",)
    live: bool = False


SourceColumn = Image | Label | Text  # what a data set holds
Spec = Mapping[str, Image | Label | Text | Derived]
DEFAULT: Spec = {"image": Image(), "label": Label()}


@dataclass(frozen=True)
class Sources:
    """Columns, and the data sets that they come from beside that of the run.

    Attributes:
        columns (`Spec`): The columns.
        sources (`Mapping[str, DataConfig]`): Data sets by the name that the columns use.
    """

    columns: Spec
    sources: Mapping[str, DataConfig] = field(default_factory=dict)


def sources_of(spec: Callable[[Any, Any], Spec | Sources] | None, options: Any, data: DataConfig) -> Sources:
    """Returns what a family takes of the data: what its `spec` says of the options, or `DEFAULT`."""
    asked = spec(options, data) if spec else DEFAULT
    return asked if isinstance(asked, Sources) else Sources(asked)


@dataclass(frozen=True)
class Classes:
    """The classes of images.

    Attributes:
        names (`tuple[str, ...]`): Their names, in the order of their numbers.
        kind (`str`): `"labels"`, or `"groups"` of similar images that were found by clustering.
        shares (`tuple[float, ...]`, *optional*): The share of each among the images that have a class; `None` if it is
            not known.
        unlabelled (`int`): Number of images without a class.
    """

    names: tuple[str, ...]
    kind: Literal["labels", "groups"] = "labels"
    shares: tuple[float, ...] | None = None
    unlabelled: int = 0

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Returns the number of each of these names; -1 for one that no class has. Data may number its classes in
        another way than a model that was trained on other data, and their names are what they share."""
        known = {name: number for number, name in enumerate(self.names)}
        return [known.get(name, -1) for name in names]

    @property
    def groups(self) -> bool:
        """Says whether they are groups of similar images, whose numbers mean nothing."""
        return self.kind == "groups"


def by_source(spec: Spec) -> dict[str, dict[str, SourceColumn]]:
    """Returns the columns that data sets hold, for each source in the order in which they name it."""
    sources: dict[str, dict[str, SourceColumn]] = {}
    for name, column in spec.items():
        if not isinstance(column, Derived):
            sources.setdefault(column.source, {})[name] = column
    return sources


def kept_columns(spec: Spec | Sources) -> dict[str, Derived]:
    """Returns the derived columns that are made once for each row."""
    columns = spec.columns if isinstance(spec, Sources) else spec
    return {name: column for name, column in columns.items() if isinstance(column, Derived) and not column.live}


AUGMENTATION = ("random_flip", "random_rotation", "random_scale", "random_crop", "color_jitter")


def resolve(spec: Spec | Sources, config: DataConfig) -> dict[str, tuple[DataConfig, dict[str, SourceColumn]]]:
    """Checks what a family asks for, as far as that can be done without the data.

    Args:
        spec (`Spec` or [`Sources`]): The columns.
        config ([`DataConfig`]): The options of the run.

    Returns:
        For each source its options and its columns.

    Raises:
        UserError: For columns that do not exist or cannot be had as the options are.
    """
    columns, configs = (spec.columns, spec.sources) if isinstance(spec, Sources) else (spec, {})
    configs = {**configs, TRAIN: config}
    sources = by_source(columns)
    for source, own in sources.items():
        if source not in configs:
            raise UserError(f"the column {next(iter(own))!r} is of a source {source!r}, which is not declared.")
        for option in AUGMENTATION:  # a batch has one augmentation for all
            ours, theirs = getattr(config, option), getattr(configs[source], option)
            if ours != theirs:
                raise UserError(f"`{option}` is {ours} for the run and {theirs} for the source {source!r}: use one.")
    for name, column in columns.items():
        if isinstance(column, Derived):
            _check_derived(name, column, columns, config)
    if len(sources) > 1 and any(configs[source].streaming for source in sources):
        raise UserError(
            f"`streaming` reads one source, and {len(sources)} are asked for ({', '.join(sources)}): leave it out."
        )
    return {source: (configs[source], own) for source, own in sources.items()}


def _check_derived(name: str, derived: Derived, columns: Spec, config: DataConfig) -> None:
    inputs = [columns.get(column) for column in derived.inputs]
    sources = {column.source for column in inputs if isinstance(column, SourceColumn)}
    if len(sources) != 1 or not all(isinstance(column, SourceColumn) for column in inputs):
        known = ", ".join(column for own in by_source(columns).values() for column in own)
        raise UserError(
            f"the column {name!r} is made from {', '.join(derived.inputs) or 'nothing'}: name columns of one source, "
            f"out of {known}."
        )
    if "plain" not in derived.variants or not set(derived.variants) <= set(VARIANTS):
        raise UserError(
            f"the column {name!r} has the variants {', '.join(derived.variants)}: use plain, or plain and flip."
        )
    if derived.live:
        return
    remedy = "turn it off, or let the family encode live"
    if config.streaming:
        raise UserError(
            f"`streaming` keeps nothing, and the column {name!r} is encoded once for each image: {remedy}."
        )
    for option in AUGMENTATION if any(isinstance(column, Image) for column in inputs) else ():
        if getattr(config, option) and not (option == "random_flip" and "flip" in derived.variants):
            raise UserError(
                f"`{option}` {getattr(config, option)} changes images, and the column {name!r} is encoded once for "
                f"each: {remedy}."
            )
