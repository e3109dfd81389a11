"""The families of generators: ours, and those that other packages add through the entry point `hfgen.families`.

A family is declared once, as strings that say where its parts are, so that asking which families there are imports
none of them and no torch. Whoever needs a part asks for it by name: [`load`] imports it then.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import nearest

GROUP = "hfgen.families"
OURS = ("hfgen.families.ddpm:FAMILY", "hfgen.families.gan:FAMILY", "hfgen.families.vae:FAMILY")


@dataclass(frozen=True)
class PipelineEntry:
    """A pipeline class that checkpoints of a family hold, and what can be done with it.

    Attributes:
        pipeline (`str`): `"package.module:Class"` of the `DiffusionPipeline`, ours or one of diffusers.
        adapter (`str`): The same of its [`~sampling.capabilities.Adapter`].
        options (`str`): The same of the dataclass of its own sampling options; its module imports no torch.
    """

    pipeline: str
    adapter: str
    options: str

    @property
    def class_name(self) -> str:
        """What `model_index.json` calls the pipeline."""
        return self.pipeline.rpartition(":")[2]


@dataclass(frozen=True)
class Family:
    """All that hfgen has to know of a family. Every part is a string `"package.module:name"`.

    Attributes:
        name (`str`): What commands call it: `"gan"`.
        title (`str`): One line that says what it is.
        options (`str`): The dataclass of its training options, an [`~runtime.options.Options`]; no torch.
        recipe (`str`): The class of its [`~training.recipe.Recipe`], made from `(options, data)`.
        pipelines (`tuple` of [`PipelineEntry`]): What its checkpoints hold.
        card (`str`): Its template for model cards, `"package:file.md"`, which extends `base.md`.
        presets (`str`, *optional*): A dict from names to functions that return values of options.
        default_preset (`str`, *optional*): The preset that is used unless one is given.
        spec (`str`, *optional*): A function from options to the columns of the data, [`~data.columns`]; by default
            `{"image": Image(), "label": Label()}`.
        resolve (`str`, *optional*): A function `(options, data, machine)` that returns the options with numbers in
            place of what was left out; no torch.
        task (`str`, *optional*): What the Hub calls what its pipelines do.
    """

    name: str
    title: str
    options: str
    recipe: str
    pipelines: tuple[PipelineEntry, ...]
    card: str
    presets: str | None = None
    default_preset: str | None = None
    spec: str | None = None
    resolve: str | None = None
    task: str = "unconditional-image-generation"
    origin: str = field(default="hfgen", compare=False)
    """The distribution that declares it, for messages."""

    def load(self, part: str) -> Any:
        """Imports a part by the name of its attribute; `None` for one that the family does without.

        Raises:
            UserError: If it is not where the declaration says.
        """
        where = getattr(self, part)
        return None if where is None else load(where, f"the {part} of the family {self.name!r} ({self.origin})")

    def preset_values(self, name: str) -> dict[str, Any]:
        """The values of a preset.

        Raises:
            UserError: For an unknown name; the nearest one is suggested.
        """
        presets: Mapping[str, Any] = self.load("presets") or {}
        if name not in presets:
            known = ", ".join(presets) or "none"
            raise UserError(
                f"`preset` {name} does not exist for {self.name}, which has: {known}.{nearest(name, presets)}"
            )
        return dict(presets[name]())


def load(where: str, what: str) -> Any:
    """Imports `"package.module:name"`.

    Raises:
        UserError: If it cannot be imported; says what lacks it, and where it was looked for.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} is not at {where}: {error}. Fix its declaration, or install what it needs.") from None


@functools.cache
def families() -> Mapping[str, Family]:
    """All families by name, ours first. A package whose declaration cannot be used is an error, not a gap.

    Raises:
        UserError: For a declaration that is none, or a name that is taken.
    """
    points: list[Any] = [EntryPoint(where, where, GROUP) for where in OURS]
    points += sorted(entry_points(group=GROUP), key=lambda point: point.name)
    found: dict[str, Family] = {}
    for point in points:
        origin = point.dist.name if point.dist is not None else "hfgen"
        family = load(point.value, f"the family {point.name!r} that {origin} declares")
        if not isinstance(family, Family):
            raise UserError(f"{point.value} of {origin} is a {type(family).__name__}, and no hfgen.registry.Family.")
        if family.name in found:
            raise UserError(
                f"{origin} declares a family {family.name!r}, which {found[family.name].origin} has already: "
                "uninstall one of them."
            )
        object.__setattr__(family, "origin", origin)
        found[family.name] = family
    return found


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: For an unknown one; the nearest is suggested.
    """
    known = families()
    if name not in known:
        raise UserError(f"there is no family {name!r}: {', '.join(known)} are there.{nearest(name, known)}")
    return known[name]


def pipeline_entries() -> dict[str, PipelineEntry]:
    """What is known of each pipeline class, by the name that `model_index.json` has for it."""
    return {entry.class_name: entry for family in families().values() for entry in family.pipelines}


def family_of(class_name: str) -> Family | None:
    """The family whose checkpoints hold that pipeline class."""
    return next(
        (f for f in families().values() for entry in f.pipelines if entry.class_name == class_name),
        None,
    )
