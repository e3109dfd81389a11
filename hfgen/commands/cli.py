"""Command lines made from dataclasses: flags, `--help`, `--config FILE` and presets all have one source."""

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfgen.runtime.errors import OPTION, UserError

FLAGS: set[str] = set()  # of the command lines that were parsed in this process


def spell(text: str) -> str:
    """Writes `--resolution` where a message of the library names the option in backticks."""
    return OPTION.sub(lambda match: f"--{match[1]}" if match[1] in FLAGS else match[0], text)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with exit code 2 and one line when a [`UserError`] is raised inside."""
    try:
        yield
    except UserError as error:
        # Each process speaks: the first to end takes the others down, and it may be the only one that knows.
        rank, text = os.environ.get("RANK", "0"), spell(str(error))
        print(f"error: {text}" if rank == "0" else f"[rank {rank}] error: {text}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def parse(
    configs: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    presets: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
    default_preset: Callable[[Mapping[str, Any]], str | None] | None = None,
    moved: Mapping[str, str] | None = None,
    instead: Mapping[str, str] | None = None,
) -> list[Any]:
    """Reads the command line into one instance of each dataclass in `configs`.

    What wins, from weakest to strongest: the dataclass default, `--preset`, `--config FILE`, the flag.

    Args:
        configs (`Sequence[type]`): Dataclasses whose fields are [`option`]s; field names are unique over all of them.
        argv (`Sequence[str]`, *optional*): The arguments, `sys.argv[1:]` if left out.
        description (`str`): The text on top of `--help`.
        presets (*optional*): Functions that return the values of a preset, by name.
        default_preset (*optional*): Picks the preset's name from the flags that were given, when `--preset` was not.
        moved (*optional*): Flags of other scripts that users know, and what to use here.
        instead (*optional*): Flags that, when given, take the place of another that a preset sets.

    Raises:
        UserError: For an unknown flag or key (the nearest name is suggested) and for a value of the wrong type.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    names: dict[str, dataclasses.Field] = {}
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with values for any flag; flags win")
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a set of defaults that fit together")
    for config in configs:
        group = parser.add_argument_group(config.__doc__.splitlines()[0] if config.__doc__ else config.__name__)
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            names[field.name] = field
            _add_flag(group, field, hints[field.name])

    FLAGS.update(names)
    arguments = list(sys.argv[1:] if argv is None else argv)
    config_file = parser.find(arguments, "--config")
    if config_file is not None:
        arguments = _config_arguments(config_file, {*names, "preset"} if presets else set(names)) + arguments
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(_unknown_flag(unknown[0], names, moved or {}))
    values: dict[str, Any] = {}  # only what was given: the parser has no defaults of its own
    for key, value in vars(known).items():
        values[key] = (None if value == [None] else tuple(value)) if isinstance(value, list) else value
    values.pop("config", None)
    if presets:
        name = values.pop("preset", None) or (default_preset(values) if default_preset else None)
        if name:
            replaced = {other for flag, other in (instead or {}).items() if flag in values}
            values = {key: value for key, value in presets[name]().items() if key not in replaced} | values
    return [
        config(**{field.name: values[field.name] for field in dataclasses.fields(config) if field.name in values})
        for config in configs
    ]


def command_line(configs: Sequence[type], argv: Sequence[str] | None = None) -> str:
    """The command that runs this program, as it may be written down: values of secret flags are replaced by stars."""
    argv = sys.argv[1:] if argv is None else argv
    secrets = {f"--{f.name}" for config in configs for f in dataclasses.fields(config) if f.metadata.get("secret")}
    shown = []
    for previous, argument in zip(["", *argv], argv, strict=False):
        flag, equals, _ = argument.partition("=")
        if previous in secrets:
            argument = "***"
        elif equals and flag in secrets:
            argument = f"{flag}=***"
        shown.append(argument)
    launcher = ["python"]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        launcher = ["accelerate", "launch"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"]]
    script = Path(sys.argv[0])
    if script.is_absolute():  # where on this machine is nobody's business
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else Path(script.name)
    return shlex.join([*launcher, str(script), *shown])


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)  # argparse would print the whole usage in front of it

    def find(self, arguments: Sequence[str], flag: str) -> str | None:
        """The value of one flag, read before the others because it changes what they mean."""
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument(flag)
        finder.error = self.error  # type: ignore[method-assign]
        return getattr(finder.parse_known_args(arguments)[0], flag.strip("-"))


def _add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field, hint: Any) -> None:
    """Adds the flag of one field; a flag that is not given leaves no trace in the namespace."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    text = field.metadata["help"]
    if field.default is not None and field.default is not False:
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})"
    kwargs: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": OPTION.sub(r"--\1", text).replace("%", "%%"),
    }
    if hint is bool:
        group.add_argument(f"--{field.name}", action="store_true", **kwargs)
        kwargs["help"] = argparse.SUPPRESS if field.default is False else f"turns --{field.name} off"
        group.add_argument(f"--no_{field.name}", action="store_false", **kwargs)
        return
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
        kwargs["nargs"] = "*"
    choices = field.metadata["choices"]
    if choices:
        kwargs["choices"] = choices
    kwargs["metavar"] = "{" + ",".join(map(str, choices)) + "}" if choices else hint.__name__.upper()
    group.add_argument(f"--{field.name}", type=_or_none(hint) if optional else hint, **kwargs)


def _or_none(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        return None if text.lower() in ("none", "null") else kind(text)

    convert.__name__ = kind.__name__  # argparse prints it: "invalid int value"
    return convert


def _config_arguments(path: str, known: set[str]) -> list[str]:
    """Turns a config file into flags, so that it is checked exactly as they are."""
    import yaml

    try:
        text = Path(path).read_text()
        values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}. Give a YAML or JSON file.") from None
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path} is neither valid YAML nor JSON: {reason}. Fix the file.") from None
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]  # the run.json of an earlier run repeats it
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold a mapping from flag to value, but holds {type(values).__name__}.")
    arguments: list[str] = []
    for key, value in values.items():
        if key not in known:
            raise UserError(f"--config {path} has the unknown key {key!r}.{_nearest(str(key), known)}")
        if isinstance(value, bool):
            arguments.append(f"--{key}" if value else f"--no_{key}")
        elif isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)]
        else:
            arguments.append(f"--{key}={'none' if value is None else value}")
    return arguments


def _nearest(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {prefix}{match[0]}?" if match else " See --help for the names."


def _unknown_flag(argument: str, names: Mapping[str, Any], moved: Mapping[str, str]) -> str:
    flag = argument.partition("=")[0]
    name = flag.lstrip("-")
    if name in moved:
        return f"{flag} does not exist here: {moved[name]}"
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}: values belong behind a flag."
    return f"unknown flag {flag}.{_nearest(name, names, '--')}"
