"""The families of generators: ours, and those that other packages add through the entry point `hfgen.families`.

A family is declared once, as strings that say where its parts are, so that asking which families there are imports
none of them and no torch. Whoever needs a part asks for it by name: [`load`] imports it then.
"""

import dataclasses
import functools
import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, nearest

GROUP = "hfgen.families"
OURS = (
    "hfgen.families.ddpm:FAMILY",
    "hfgen.families.gan:FAMILY",
    "hfgen.families.vae:FAMILY",
    "hfgen.families.autoregressive:FAMILY",
    "hfgen.families.flow:FAMILY",
    "hfgen.families.translation:FAMILY",
)


@dataclass(frozen=True)
class PipelineEntry:
    """A pipeline class that checkpoints of a family hold, and what can be done with it.

    Attributes:
        pipeline (`str`): `"package.module:Class"` of the `DiffusionPipeline`, ours or one of diffusers.
        adapter (`str`): The same of its [`~sampling.capabilities.Adapter`].
        options (`str`, *optional*): The same of the dataclass of its own sampling options, if it has any; its module
            imports no torch.
    """

    pipeline: str
    adapter: str
    options: str | None = None

    @property
    def class_name(self) -> str:
        """Returns what `model_index.json` calls the pipeline."""
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
        card (`str`, *optional*): Its template for model cards, `"package:file.md"`, which extends `base.md`.
        presets (`str`, *optional*): A dict from names to functions that return values of options.
        default_preset (`str`, *optional*): The preset that is used unless one is given.
        spec (`str`, *optional*): A function from options to the columns of the data, [`~data.columns`]; by default
            `{"image": Image(), "label": Label()}`.
        compare (`Mapping`, *optional*): The options, and perhaps the `preset`, with which `compare` trains it beside
            other families, on other data than the digits; a family without is only compared when asked for.
        resolve (`str`, *optional*): A function `(options, data, machine)` that returns the options with numbers in
            place of what was left out; no torch.
        follow (`str`, *optional*): A function `(options, data, machine)` of the
            [`~training.options.RunOptions`] that returns, by name, what options of data, training and family are
            where nobody decided them: neither the user nor the preset; no torch. See [`~training.defaults`].
        adopt (`str`, *optional*): A dict from the names of classes of networks and schedulers to functions of one's
            configuration and folder, which return the options that make it: with these a run begins from a checkpoint
            (`init_from`); no torch.
        synonyms (`Mapping[str, str]`, *optional*): Options of the family that are other names for options of the data.
        task (`str`, *optional*): What the Hub calls what its pipelines do.
    """

    name: str
    title: str
    options: str
    recipe: str
    pipelines: tuple[PipelineEntry, ...]
    card: str | None = None
    presets: str | None = None
    default_preset: str | None = None
    spec: str | None = None
    resolve: str | None = None
    follow: str | None = None
    adopt: str | None = None
    compare: Mapping[str, Any] | None = field(default=None, compare=False)
    synonyms: Mapping[str, str] = field(default_factory=dict, compare=False)
    task: str = "unconditional-image-generation"
    origin: str = field(default="hfgen", compare=False)
    """The distribution that declares it, for messages."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"name is {self.name!r}, but must be lower-case letters, digits and underscores.")
        if not isinstance(self.pipelines, tuple) or not all(isinstance(e, PipelineEntry) for e in self.pipelines):
            raise ValueError(f"pipelines is {self.pipelines!r}, but must be a tuple of PipelineEntry objects.")

    def load(self, part: str) -> Any:
        """Imports a part by the name of its attribute; `None` for one that the family does without.

        Raises:
            UserError: If it is not where the declaration says, or not what it has to be.
        """
        where = getattr(self, part)
        if where is None:
            return None
        what = f"the {part} of the family {self.name!r} ({self.origin})"
        value = load(where, what)
        if part == "options" and not (dataclasses.is_dataclass(value) and issubclass(value, Options)):  # type: ignore[arg-type]
            raise UserError(f"{what} at {where} must be a dataclass that derives from hfgen.runtime.options.Options.")
        if part == "presets" and not isinstance(value, Mapping):
            raise UserError(f"{what} at {where} must be a dict from names to functions.")
        return value

    def fault(self) -> str | None:
        """Returns what is missing of the parts that the declaration names; imports only those without torch."""
        try:
            for part in ("options", "presets", "spec", "resolve", "follow", "adopt"):
                self.load(part)
            for entry in self.pipelines:
                if entry.options is not None:
                    load(entry.options, f"the sampling options of the family {self.name!r} ({self.origin})")
        except UserError as error:
            return str(error)
        for where in (self.recipe, *(part for entry in self.pipelines for part in (entry.pipeline, entry.adapter))):
            module = where.partition(":")[0]
            try:
                missing = importlib.util.find_spec(module) is None
            except ImportError:  # of a parent
                missing = True
            if missing:
                return f"there is no module {module}, where {self.origin} declares a part of {self.name!r}."
        return None

    def preset_values(self, name: str) -> dict[str, Any]:
        """Returns the values of a preset.

        Raises:
            UserError: For an unknown name; the nearest one is suggested.
        """
        presets: Mapping[str, Any] = self.load("presets") or {}
        if not isinstance(name, str) or name not in presets:
            known = ", ".join(presets) or "none"
            raise UserError(
                f"`preset` {name} does not exist for {self.name}, which has: {known}.{nearest(str(name), presets)}"
            )
        return dict(presets[name]())


def load(where: str, what: str) -> Any:
    """Imports `"package.module:name"`.

    Raises:
        UserError: If it cannot be imported; says what it is for, and where it should be.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} is not at {where}: {error}. Fix its declaration, or install what it needs.") from None


def _declared() -> tuple[dict[str, Family], dict[str, UserError]]:
    points: list[Any] = [EntryPoint(where, where, GROUP) for where in OURS]
    points += sorted(entry_points(group=GROUP), key=lambda point: point.name)
    working: dict[str, Family] = {}
    broken: dict[str, UserError] = {}
    for point in points:
        origin = point.dist.name if point.dist is not None else "hfgen"
        try:
            family = load(point.value, f"the family {point.name!r} that {origin} declares")
            if not isinstance(family, Family):
                raise UserError(
                    f"{point.value} of {origin} is of type {type(family).__name__}, not hfgen.registry.Family."
                )
            if family.name in working:
                raise UserError(
                    f"{origin} declares a family {family.name!r}, which {working[family.name].origin} has already: "
                    "uninstall one of them."
                )
        except Exception as error:  # whatever a package does wrong must not take the other families with it
            reason = f"the family {point.name!r} is declared at {point.value} of {origin}, which cannot be imported: "
            reason += f"{type(error).__name__}: {error}. Fix {origin}, or uninstall it."
            broken[point.name] = error if isinstance(error, UserError) else UserError(reason)
            continue
        object.__setattr__(family, "origin", origin)
        working[family.name] = family
    return working, broken


@functools.cache
def families() -> Mapping[str, Family]:
    """Returns all families by name, ours first, without those of [`broken`]."""
    return _declared()[0]


def broken() -> Mapping[str, UserError]:
    """Returns what is wrong with each declaration that cannot be used, by the name of its entry point."""
    return _declared()[1]


def find_family(name: str) -> Family:
    """Returns the family of that name.

    Raises:
        UserError: For an unknown one; the nearest is suggested. For one whose declaration is broken, what is wrong.
    """
    known = families()
    if not isinstance(name, str):
        raise UserError(f"the family is {name!r}, but must be one of the names {', '.join(known)}.")
    if name not in known:
        if problem := broken().get(name):  # asked only now: it looks at all packages again
            raise problem
        raise UserError(f"there is no family {name!r}: the families are {', '.join(known)}.{nearest(name, known)}")
    return known[name]


def pipeline_entries() -> dict[str, PipelineEntry]:
    """Returns the declared entry of each pipeline class, by the name that `model_index.json` has for it."""
    return {entry.class_name: entry for family in families().values() for entry in family.pipelines}


def family_of(class_name: str) -> Family | None:
    """Returns the family whose checkpoints hold that pipeline class."""
    return next(
        (f for f in families().values() for entry in f.pipelines if entry.class_name == class_name),
        None,
    )
