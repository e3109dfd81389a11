"""Options: dataclass fields that are at once flags, keys of config files and arguments of Python functions."""

import contextlib
import dataclasses
import functools
import math
import numbers
import os
import sys
import types
import typing
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfgen.runtime.errors import UserError

MOST_TEXT = 4096  # characters, as of a path
LONGEST = 200  # characters of a value in a message
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # of Unicode: control characters, undecodable bytes, separators of lines

GONE = ("skip_corrupt_checkpoints",)  # options of earlier versions that records still hold, and that decide nothing


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    **metadata: Any,
) -> Any:
    """Declares a dataclass field that is also a flag.

    Args:
        default: The default value.
        help (`str`): What it means, with its unit.
        choices (*optional*): The values allowed.
        least, above (`float`, *optional*): The range of a number, or of each of a list, from below: from `least` on,
            or above `above`.
        most, below (`float`, *optional*): The same from above. It is there for what can never be meant, and whose
            cost nobody could pay: numbers that overflow, loops that do not end.
        metadata: `weighs=True` marks what decides how large networks are; `resumable=True` what may differ when a run
            is resumed (it changes no number that is trained); `resolved=True` what data or machine decide where it is
            left out; `follows=True` what a family's rule may choose from data and machine where nobody decided it, the
            default being for whoever makes the object; `before` the value by which runs go on that were made before
            there was the option (by default, that of today), or a function that makes it of their other options;
            `secret=True` what is never written to a file; `once=True` what the record of a run does not repeat,
            because it deletes, resumes or publishes something.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata |= {"help": help, "choices": choices} | {name: at for name, at in limits.items() if at is not None}
    if isinstance(default, list):
        raise TypeError("use a tuple for the default of a list-valued option")
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """The base of all dataclasses of options: values are checked when an object is made, wherever they come from.

    Raises:
        UserError: For a value of the wrong type, one that is no choice or out of range, and what `validate` refuses.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, checked(type(self), field, getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:
        """Checks how several options go together, without data and machine. The range of each is its own: see
        [`option`].

        Raises:
            UserError: For values that do not go together.
        """


def checked(kind: type, field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of a field of the dataclass `kind`; a list, as JSON and YAML have it, as a tuple.

    Raises:
        UserError: If it has the wrong type, is no choice or out of range, or is a text that no line can show.
    """
    if isinstance(value, list):
        value = tuple(value)
    one_kind, optional, many = hints(kind)[field.name]
    if value is None and optional:
        return None
    values = tuple(map(_plain, value)) if many and isinstance(value, tuple) else (_plain(value),)
    value = values if many and isinstance(value, tuple) else values[0]
    show = (lambda value: "***") if field.metadata.get("secret") else shown
    if (many and not isinstance(value, tuple)) or not all(_fits(one, one_kind) for one in values):
        name = "a finite number" if one_kind is float else one_kind.__name__
        expected = f"{'a list of ' * many}{name}{' or None' * optional}"
        raise UserError(f"`{field.name}` is {show(value)}, but must be {expected}.")
    choices = field.metadata.get("choices") or ()
    for one in values:
        if choices and one not in choices:
            raise UserError(f"`{field.name}` {show(one)} is no choice: use {', '.join(map(str, choices))}.")
        if isinstance(one, str):
            fault = None if one == field.default else _fault_of(one)
            if fault:
                raise UserError(f"`{field.name}` {f'{show(one)} ' if one else ''}{fault}")
        elif not inside(one, field.metadata):
            raise UserError(f"`{field.name}` {show(one)} is out of range: use {range_of(field.metadata)}.")
    return value


def inside(value: Any, limits: Mapping[str, Any]) -> bool:
    """Says whether a number is within the limits that the metadata of an option has. NaN and infinity are in none."""
    closed = limits.get("least", value) <= value <= limits.get("most", value)
    return closed and limits.get("above", -math.inf) < value < limits.get("below", math.inf)


def range_of(limits: Mapping[str, Any]) -> str:
    """Describes the limits that the metadata of an option has: "0 or more and less than 1"."""
    least, most = limits.get("least"), limits.get("most")
    if least is not None and most is not None:
        return f"{_in_words(least)} to {_in_words(most)}"
    words = {"least": "{} or more", "above": "more than {}", "most": "at most {}", "below": "less than {}"}
    return " and ".join(text.format(_in_words(limits[name])) for name, text in words.items() if name in limits)


def _in_words(number: float) -> str:
    """Writes a limit so that it can be read: 2**64 - 1, 1e+06."""
    for beside, text in ((0, ""), (1, " - 1")):
        power = int(number) + beside
        if number >= 2**20 - 1 and power == number + beside and power & (power - 1) == 0:
            return f"2**{power.bit_length() - 1}{text}"
    return f"{number:g}" if isinstance(number, float) else str(number)


def shown(value: Any) -> str:
    """Writes a value for a message, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


def as_text(value: Any) -> str:
    """Writes a value as it could be given as a flag: 32 64 64, 0.1, none."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fault_of(text: str) -> str | None:
    """Says, in words that follow a text, why it is no value for any option; `None` if it may be one."""
    if not text:
        return "is empty: give a value, or leave it out."
    if len(text) > MOST_TEXT:
        return f"has {len(text)} characters: use {MOST_TEXT} at most."
    if any(unicodedata.category(character) in UNSHOWN for character in text):
        return "has characters that no line of text can show: use others."
    return None


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
    if isinstance(value, int | float):
        return value
    with contextlib.suppress(OverflowError):  # what is too large for a float is no number for an option
        if isinstance(value, numbers.Real):
            return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:  # whole numbers are numbers
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
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
