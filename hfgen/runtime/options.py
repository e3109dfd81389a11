"""Options: dataclass fields that are at once flags, keys of config files and arguments of Python functions."""

import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import SEEDS

GONE = ("skip_corrupt_checkpoints",)  # options of earlier versions that records still hold, and that decide nothing


def option(default: Any, help: str, *, choices: Sequence[Any] | None = None, **metadata: Any) -> Any:
    """Declares a dataclass field that is also a flag.

    Args:
        default: The default value.
        help (`str`): What it means, with its unit.
        choices (*optional*): The values allowed.
        metadata: `resumable=True` marks what may differ when a run is resumed (it changes no number that is
            trained); `resolved=True` what data or machine decide where it is left out; `before` the value by which
            runs go on that were made before there was the option (by default, that of today), or a function that
            makes it of their other options; `secret=True` what is never written to a file; `once=True` what the
            record of a run does not repeat, because it deletes, resumes or publishes something.
    """
    metadata |= {"help": help, "choices": choices}
    if isinstance(default, list):
        raise TypeError("use a tuple for the default of a list-valued option")
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """The base of all dataclasses of options: values are checked when an object is made, wherever they come from.

    Raises:
        UserError: For a value of the wrong type, one that is no choice, and what `validate` refuses.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, checked(type(self), field, getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:
        """Checks what can be checked without data and machine.

        Raises:
            UserError: For values that are out of range, or that do not go together.
        """


def checked(kind: type, field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of a field of the dataclass `kind`; a list, as JSON and YAML have it, as a tuple.

    Raises:
        UserError: If it has the wrong type, or is no choice.
    """
    if isinstance(value, list):
        value = tuple(value)
    one_kind, optional, many = hints(kind)[field.name]
    if value is None and optional:
        return None
    values = tuple(map(_plain, value)) if many and isinstance(value, tuple) else (_plain(value),)
    value = values if many and isinstance(value, tuple) else values[0]
    if (many and not isinstance(value, tuple)) or not all(_fits(one, one_kind) for one in values):
        name = "a finite number" if one_kind is float else one_kind.__name__
        expected = f"{'a list of ' * many}{name}{' or None' * optional}"
        raise UserError(f"`{field.name}` is {value!r}, but must be {expected}.")
    choices = field.metadata.get("choices") or ()
    for one in values if choices else ():
        if one not in choices:
            raise UserError(f"`{field.name}` {one!r} is no choice: use {', '.join(map(str, choices))}.")
    return value


@functools.cache
def hints(kind: type) -> dict[str, tuple[type, bool, bool]]:
    """Returns, for each field: the type of its value or values, whether it may be None, and whether it has many."""
    kinds = {}
    for name, hint in typing.get_type_hints(kind).items():
        optional = isinstance(hint, types.UnionType)
        if optional:
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        many = typing.get_origin(hint) is tuple
        kinds[name] = (typing.get_args(hint)[0] if many else hint, optional, many)
    return kinds


def _plain(value: Any) -> Any:
    """Turns paths and the numbers of other libraries into those of Python."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int | float) else value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:  # whole numbers are numbers
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def as_dict(configs: Iterable[Any]) -> dict[str, Any]:
    """Returns all values of some dataclasses in one flat, JSON-ready dict; secrets are left out."""
    return {
        field.name: list(value) if isinstance(value := getattr(config, field.name), tuple) else value
        for config in configs
        for field in dataclasses.fields(config)
        if not field.metadata.get("secret")
    }


def make(kinds: Sequence[type], values: Mapping[str, Any]) -> list[Any]:
    """Makes one object of each dataclass from values by name; what is left out has its default.

    Raises:
        UserError: For a name that none of them has, the nearest of which is suggested, and for a wrong value.
    """
    fields = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UserError(f"`{name}` is no option here.{nearest(name, fields)}")
    return [
        kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})
        for kind in kinds
    ]


def upgrade(kinds: Iterable[type], record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a recorded run, with those that are newer than the record and whose default is not what
    it did before (see [`option`]), and without those that are gone."""
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]
    known = {field.name: field.metadata["before"] for field in fields if "before" in field.metadata}
    older = {name: value(record) if callable(value) else value for name, value in known.items()}
    return older | {name: value for name, value in record.items() if name not in GONE}


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns a sentence that suggests the known name that is most like an unknown one."""
    import difflib

    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]}?" if match else otherwise


def require_whole(**values: Any) -> None:
    """Raises [`UserError`] for the first value that is no whole number from 1 on, by the name of its argument."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise UserError(f"`{name}` {value!r} is out of range: use a whole number from 1 on.")


def require_seed(seed: Any, count: int = 1) -> None:
    """Raises [`UserError`] unless `count` seeds from `seed` on are whole numbers of 64 bits."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= int(seed) <= SEEDS - count:
        raise UserError(f"`seed` {seed!r} is out of range: use a whole number from 0 to 2**64 - {count}.")


def require_positive(config: Any, *names: str) -> None:
    """Raises [`UserError`] for the first of the named options that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"`{name}` {value} is out of range: use more than 0.")


def require_not_negative(config: Any, *names: str) -> None:
    """Raises [`UserError`] for the first of the named options that is below 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise UserError(f"`{name}` {value} is negative: use 0 or more.")
