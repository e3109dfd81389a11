"""Command lines made from dataclasses: flags, `--help`, `--config FILE` and presets all have one source."""

import argparse
import contextlib
import dataclasses
import errno
import os
import re
import shlex
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.configfile import read_file
from hfgen.runtime.errors import OPTION, UserError, one_line
from hfgen.runtime.options import checked, hints, make, nearest

# What a system refuses anywhere, and nobody can foresee. That a file is not there is no such thing.
REFUSALS = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOMEM EMFILE ENFILE ENAMETOOLONG EXDEV ESTALE ETIMEDOUT ENOLCK"
PATIENCE = 5.0  # seconds that processes wait for the one that speaks for them
FLAGS = {"config", "preset"}  # of the command lines that were parsed in this process
SECRETS: set[str] = set()  # of the command line that was parsed last
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")  # as the Hub makes them


def spell(text: str) -> str:
    """Writes `--resolution` where a message of the library names the option in backticks, and stars for tokens."""
    for secret in SECRETS:
        text = text.replace(secret, "***")
    text = TOKEN.sub("***", text)
    return OPTION.sub(lambda match: f"--{match[1]}" if match[1] in FLAGS else match[0], text)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line when a [`UserError`] is raised inside, or the system refuses something, with exit
    code 2, and for a Ctrl-C that nothing inside takes as a request to stop, with 130."""
    rank = os.environ.get("RANK", "0")
    first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        yield
    except KeyboardInterrupt:
        if first_of_node:
            write_line("Stopped.")
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) not in REFUSALS.split():
            raise
        # Before torch is imported nothing but the options was looked at, which are the same in all processes: one of
        # each node speaks. Later the first speaks, and another one only if it is still there some seconds later, as
        # it may be the only one that knows: whoever ends first takes the rest down.
        early = "torch" not in sys.modules
        if rank != "0" and not (early and first_of_node):
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(PATIENCE)
        if first_of_node or not early:
            text = spell("\\n".join(str(error).splitlines()))
            if isinstance(error, OSError):
                text += ". Free some space, or write to another disk." if error.errno == errno.ENOSPC else "."
            write_line(f"error: {text}" if rank == "0" else f"[rank {rank}] error: {text}")
        raise SystemExit(2) from None


def write_line(text: str) -> None:
    """Writes a line for people at once, so that those of several processes stay apart."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Given:
    """The options that a user gave, by flag or by file.

    Attributes:
        values (`dict`): Options by name; those that were left out are not there.
        preset (`str`, *optional*): The preset.
    """

    values: dict[str, Any]
    preset: str | None = None


def read(
    kinds: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    prog: str | None = None,
    presets: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> Given:
    """Reads the command line and the file that `--config` names. A flag wins over the file.

    Args:
        kinds (`Sequence[type]`): Dataclasses whose fields are [`option`]s. A field that several have is one flag.
        argv (`Sequence[str]`, *optional*): The arguments, `sys.argv[1:]` if left out.
        description (`str`): The text on top of `--help`.
        prog (`str`, *optional*): What `--help` calls the program.
        presets (`Sequence[str]`, *optional*): Names that `--preset` takes; without any there is no such flag.
        moved (*optional*): Flags of other scripts that users know, and what to use here.

    Raises:
        UserError: For an unknown flag or key (the nearest name is suggested) and for a value of the wrong type.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with values for any flag; flags win")
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a set of defaults that fit together")
    fields: dict[str, tuple[type, dataclasses.Field]] = {}
    for kind in kinds:
        group = parser.add_argument_group(kind.__doc__.splitlines()[0] if kind.__doc__ else kind.__name__)
        for field in dataclasses.fields(kind):
            if field.name not in fields:
                fields[field.name] = kind, field
                _add_flag(group, kind, field)
    FLAGS.update(fields)
    argv = sys.argv[1:] if argv is None else list(argv)
    SECRETS.clear()
    SECRETS.update(secrets(kinds, argv))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown_flag(unknown[0], fields, moved or {}))
    values: dict[str, Any] = {}  # only what was given: the parser has no defaults of its own
    for key, value in vars(known).items():
        values[key] = (None if value == [None] else tuple(value)) if isinstance(value, list) else value
    file, preset = values.pop("config"), values.pop("preset", None)
    if file is not None:
        more, is_record = read_file(file, kinds)
        if is_record:
            once = {name for name, (_, field) in fields.items() if field.metadata.get("once")}
            more = {key: value for key, value in more.items() if key not in once}
        preset = preset or more.pop("preset", None) if presets else preset
        if preset is not None and preset not in presets:
            raise UserError(f"--config {file} has the unknown preset {preset!r}.{nearest(str(preset), presets)}")
        values = _of_file(file, more, fields) | values
    return Given(values, preset)


def parse(kinds: Sequence[type], argv: Sequence[str] | None = None, **kwargs: Any) -> list[Any]:
    """Reads the command line into one object of each dataclass: see [`read`] for the arguments."""
    return make(kinds, read(kinds, argv, **kwargs).values)


def _of_file(path: str, values: Mapping[str, Any], fields: Mapping[str, tuple[type, dataclasses.Field]]) -> dict:
    """Checks the values of a config file."""
    checked_values = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"--config {path} has the unknown key {key!r}.{nearest(key, fields, SEE_HELP)}")
        kind, field = fields[key]
        one_kind, optional, many = hints(kind)[key]
        if optional and isinstance(value, str) and value.lower() in NONE:
            value = None
        if one_kind is float:  # which a file may write as 1, and YAML does not see in 1e-3
            value = [_number(one) for one in value] if many and isinstance(value, list) else _number(value)
        if field.metadata.get("secret") and not isinstance(value, str | None):
            raise UserError(f"--config {path}: `{key}` must be text.")  # without the value
        try:
            checked_values[key] = checked(kind, field, value)
        except UserError as error:
            raise UserError(f"--config {path}: {one_line(error)}.") from None
        for one in checked_values[key] if many and checked_values[key] is not None else ():
            if isinstance(one, str) and one.startswith("--"):  # a command line would take it for one
                raise UserError(
                    f"--config {path}: `{key}` has the entry {one!r}, which looks like a flag: leave it out."
                )
    return checked_values


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def flags(values: Mapping[str, Any]) -> list[str]:
    """Writes options as flags, which [`read`] reads as the same values."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, tuple | list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={'none' if value is None else value}")
    return words


def secrets(kinds: Sequence[type], argv: Sequence[str]) -> set[str]:
    """Returns what stands behind secret flags, with words that do not belong there: a token may be there twice."""
    names = {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind) if f.metadata.get("secret")}
    found, behind = set(), False
    for argument in argv:
        flag, _, value = argument.partition("=")
        behind = flag in names or (behind and not argument.startswith("--"))
        found.add(value if flag in names else argument if behind else "")
    return {word for word in found if len(word) > 3}  # no part of other words


def without_secrets(kinds: Sequence[type], argv: Sequence[str]) -> list[str]:
    """Returns arguments with stars for the values of secret flags."""
    secrets = {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind) if f.metadata.get("secret")}
    shown = []
    for previous, argument in zip(["", *argv], argv, strict=False):
        flag, equals, _ = argument.partition("=")
        if previous in secrets:
            argument = "***"
        elif equals and flag in secrets:
            argument = f"{flag}=***"
        shown.append(argument)
    return shown


def command_line(verb: str, kinds: Sequence[type], argv: Sequence[str]) -> str:
    """Returns the command that runs this program, as it may be written down: values of secret flags are stars.

    Args:
        verb (`str`): `"train gan"`, `"evaluate"`, ...
        kinds (`Sequence[type]`): The dataclasses of its options.
        argv (`Sequence[str]`): The arguments behind the verb.
    """
    shown = without_secrets(kinds, argv)
    launcher: list[str] = []
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        launcher = ["accelerate", "launch"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"]]
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.name != "__main__.py" and sys.argv[1:] == list(argv):  # a door of scripts/
        if script.is_absolute():  # cards are read by all: they do not tell the folders of this machine
            script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else Path(script.name)
        return shlex.join([*(launcher or ["python"]), str(script), *shown])
    return shlex.join([*launcher, *["-m"] * bool(launcher), "hfgen", *verb.split(), *shown])


SEE_HELP = " See --help for the names."
NONE = ("none", "null")


class _OrNone(tuple):
    """The choices of an option that may be left open: `none` is one more, which the list of them does not show."""

    def __contains__(self, value: object) -> bool:
        return value is None or super().__contains__(value)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=110)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # With an exponent as well, which is taken for a flag otherwise.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)  # argparse would print the whole usage in front of it


def _add_flag(group: argparse._ArgumentGroup, kind: type, field: dataclasses.Field) -> None:
    """Adds the flag of one field; a flag that is not given leaves no trace in the namespace."""
    one_kind, optional, many = hints(kind)[field.name]
    text = field.metadata["help"]
    if field.metadata.get("follows"):
        text += " (default: follows the data and the machine)"
    elif field.default is not None and field.default is not False:
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})"
    kwargs: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": spell(text).replace("%", "%%"),
    }
    if one_kind is bool:
        group.add_argument(f"--{field.name}", action="store_true", **kwargs)
        kwargs["help"] = argparse.SUPPRESS if field.default is False else f"turns --{field.name} off"
        group.add_argument(f"--no_{field.name}", action="store_false", **kwargs)
        return
    if many:
        kwargs["nargs"] = "*"
    choices = field.metadata["choices"]
    if choices:
        kwargs["choices"] = _OrNone(choices) if optional else choices
    kwargs["metavar"] = "{" + ",".join(map(str, choices)) + "}" if choices else one_kind.__name__.upper()
    group.add_argument(f"--{field.name}", type=_or_none(one_kind) if optional else one_kind, **kwargs)


def _or_none(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        return None if text.lower() in NONE else kind(text)

    convert.__name__ = kind.__name__  # argparse prints it: "invalid int value"
    return convert


def _unknown_flag(argument: str, names: Mapping[str, Any], moved: Mapping[str, str]) -> str:
    flag = argument.partition("=")[0]
    name = flag.lstrip("-")
    if name in moved:
        return f"{flag} does not exist here: {moved[name]}"
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}: values belong behind a flag."
    return f"unknown flag {flag}.{nearest(flag, [f'--{known}' for known in names], SEE_HELP)}"
