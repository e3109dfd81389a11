"""The options of sampling: those that all models have, and those of each family; no torch here."""

from __future__ import annotations

import dataclasses
import numbers
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfgen.registry import families, load
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, make, nearest, option
from hfgen.runtime.seeds import SEEDS

if TYPE_CHECKING:
    from hfgen.sampling.capabilities import Adapter

TEMPERATURE = "how much is left to chance: below 1 for more typical images, 0 for the most typical"


@dataclass(frozen=True)
class SamplingConfig(Options):
    """Sampling: what holds for all models."""

    class_labels: tuple[str, ...] | None = option(
        None, "classes by number or name, in turn (default for a class-conditional model: all classes)"
    )
    mixed_precision: str = option("no", "no, or bf16 or fp16 weights", choices=("no", "bf16", "fp16"))
    provenance: bool = option(True, "write into PNG files which model made them, and how")

    def __post_init__(self) -> None:
        labels = self.class_labels
        labels = labels if isinstance(labels, list | tuple) or labels is None else (labels,)
        if labels is not None:  # Python gives numbers, too, or a single class
            texts = (str(label) if _is_number(label) else label for label in labels)
            object.__setattr__(self, "class_labels", tuple(texts))
        super().__post_init__()


def _is_number(label: Any) -> bool:
    return isinstance(label, numbers.Integral) and not isinstance(label, bool) and 0 <= int(label) < 2**63


@dataclass(frozen=True)
class ImageSet(Options):
    """Images: how many, of which seed."""

    num_images: int = option(16, "number of images", least=1, most=10**7)
    seed: int = option(0, "seed of the set: another one makes other images", least=0, most=SEEDS - 1)
    batch_size: int | None = option(
        None, "images at once per process (default: as many as fit, at most 64)", least=1, most=2**20
    )


@dataclass(frozen=True)
class NoOptions(Options):
    """Sampling of models without options."""


@dataclass(frozen=True)
class GANSamplingConfig(Options):
    """Sampling of GANs."""

    truncation: float = option(
        1.0, "truncation of a StyleGAN2: 1 changes nothing, 0 gives the mean image", least=0, most=10
    )


@dataclass(frozen=True)
class VAESamplingConfig(Options):
    """Sampling of VAEs."""

    temperature: float = option(1.0, TEMPERATURE, least=0, most=100)
    prior: str | None = option(
        None,
        "what a VAE's latents are drawn from (default: the mixture, if one was fitted)",
        choices=("normal", "mixture"),
    )


@dataclass(frozen=True)
class AutoregressiveSamplingConfig(Options):
    """Sampling of autoregressive models."""

    temperature: float = option(1.0, TEMPERATURE, least=0, most=100)
    top_p: float = option(
        1.0,
        "nucleus: draws from the fewest likeliest levels whose shares reach this together (autoregressive models)",
        above=0,
        most=1,
    )


@dataclass(frozen=True)
class DDPMSamplingConfig(Options):
    """Sampling of DDPMs."""

    guidance_scale: float | None = option(
        None, "classifier-free guidance; 1 turns it off (default: the model's own)", least=0, most=1000
    )
    sampler: str | None = option(
        None,
        "how to sample a DDPM (default: sde-dpmsolver++, of fewer than 10 steps dpmsolver++)",
        choices=("sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm"),
    )
    num_inference_steps: int | None = option(
        None, "sampling steps (default: 20; with `sampler` ddim 50, ddpm all)", least=1, most=100_000
    )


@dataclass(frozen=True)
class TranslationSamplingConfig(Options):
    """Translation."""

    direction: str = option(
        "a2b", "of a translator: from the first set to the second, or back", choices=("a2b", "b2a")
    )


@dataclass(frozen=True)
class FlowSamplingConfig(Options):
    """Sampling of flows."""

    temperature: float = option(1.0, TEMPERATURE, least=0, most=100)
    guidance_scale: float | None = option(
        None, "classifier-free guidance; 1 turns it off (default: the model's own)", least=0, most=1000
    )


def names_of(kind: type) -> list[str]:
    """Returns the names of the options of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]


def choose_options(adapter: Adapter, given: Mapping[str, Any], name: str = "the model") -> tuple[SamplingConfig, Any]:
    """Makes the options of one model from those that the user gave.

    Args:
        adapter ([`~capabilities.Adapter`]): Says which options the model has.
        given (`Mapping[str, Any]`): Values by name; `None` is as good as left out.
        name (`str`): What to call the model in a message.

    Returns:
        The options that all models have, and the model's own.

    Raises:
        UserError: For an option that the model does not have, which names those that it has, and for a wrong value.
    """
    own = names_of(adapter.options)
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if key not in own and key not in names_of(SamplingConfig):
            has = f"which has {', '.join(own)} instead" if own else "which has no options of its own"
            raise UserError(f"`{key}` {value}: {name} is {adapter.a_kind}, {has}.{nearest(key, own)} Leave it out.")
    common, chosen = make((SamplingConfig, adapter.options), given)
    return common, chosen


def share_options(adapters: Mapping[str, Adapter], given: Mapping[str, Any]) -> dict[str, tuple[SamplingConfig, Any]]:
    """Makes the options of several models, each from those that it has: see [`choose_options`].

    Args:
        adapters (`Mapping` of [`~capabilities.Adapter`]): By the names of the models.
        given (`Mapping[str, Any]`): Values by name.

    Raises:
        UserError: For an option that none of them has, and for a wrong value.
    """
    having = {name: {*names_of(adapter.options), *names_of(SamplingConfig)} for name, adapter in adapters.items()}
    for key, value in given.items():
        if value is not None and not any(key in options for options in having.values()):
            kinds = ", ".join(sorted({adapter.kind for adapter in adapters.values()}))
            raise UserError(f"`{key}` {value}: no model here has it ({kinds}). Leave it out.")
    return {
        name: choose_options(adapter, {key: value for key, value in given.items() if key in having[name]}, name)
        for name, adapter in adapters.items()
    }


def all_sampling_options() -> list[type]:
    """Returns the dataclasses of all sampling options, for flags: [`SamplingConfig`], and for each family those of its
    own.

    An option that several families have comes once, with the first one's default and help; what a model has is
    decided later, by [`choose_options`], from the values that were given.

    Raises:
        UserError: If two families mean values of different types by one name.
    """
    kinds: list[type] = [SamplingConfig]
    owners: dict[str, tuple[str, Any]] = {}
    for family in families().values():
        for entry in family.pipelines:
            if entry.options is None:
                continue
            kind = load(entry.options, f"the sampling options of {entry.class_name} ({family.origin})")
            hints = typing.get_type_hints(kind)
            new = []
            for field in dataclasses.fields(kind):
                owner, hint = owners.setdefault(field.name, (family.name, hints[field.name]))
                if hint != hints[field.name]:
                    raise UserError(
                        f"the sampling option {field.name!r} is {hint} for {owner}, but {hints[field.name]} for "
                        f"{family.name} ({family.origin}): rename one of them."
                    )
                if not any(field.name in names_of(other) for other in kinds):
                    new.append((field.name, hint, field))
            if len(new) == len(hints) and new:
                kinds.append(kind)
            elif new:
                namespace = {"__doc__": kind.__doc__}
                kinds.append(
                    dataclasses.make_dataclass(kind.__name__, new, bases=(Options,), namespace=namespace, frozen=True)
                )
    return kinds


def given_values(configs: Iterable[Any]) -> dict[str, Any]:
    """Returns the options that differ from their defaults, by name."""
    return {
        field.name: value
        for config in configs
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }
