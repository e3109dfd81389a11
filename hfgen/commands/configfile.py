"""Config files: YAML or JSON, read with limits, as a file may be anything."""

import functools
import json
import os
import re
import select
import stat
from collections.abc import Iterable
from typing import Any

from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import upgrade

MOST_BYTES = {"JSON": 10_000_000, "YAML": 100_000}  # which take about as long: seconds
PATIENCE = 5.0  # seconds that a pipe is waited for
QUOTED = re.compile(r"'[^'<]{4,}'")  # in what YAML's parser says: a piece of the file, which may be a token


def read_file(path: str, kinds: Iterable[type] = ()) -> tuple[dict[str, Any], bool]:
    """Returns the values that a config file holds, and whether it is the record of an earlier run, such as `run.json`
    or `evaluation.json`.

    Args:
        path (`str`): The file.
        kinds (*optional*): Dataclasses of options, which say what a record of an older version means.

    Raises:
        UserError: If it cannot be read, is too large, has a key twice or an alias, or holds no mapping.
    """
    kind = "JSON" if path.endswith(".json") else "YAML"
    try:
        text = _read(path, MOST_BYTES[kind]).decode("utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError among them
        raise UserError(f"--config {path} cannot be read: {error}. Give a YAML or JSON file.") from None
    try:
        values = json.loads(text, object_pairs_hook=_once) if kind == "JSON" else _yaml(text)
    except ValueError as error:
        raise UserError(f"--config {path} is no valid {kind}: {one_line(error)}. Fix the file.") from None
    except RecursionError:
        raise UserError(f"--config {path} is nested too deeply: flags have values or lists of them.") from None
    is_record = isinstance(values, dict) and isinstance(values.get("config"), dict)
    if is_record:
        values = upgrade(kinds, values["config"])  # where a record has the options
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold a mapping from flag to value, but holds {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}, is_record


def _read(path: str, most: int) -> bytes:
    """Reads a file, or what comes out of a pipe.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it has more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe may have no other end
    with open(descriptor, "rb", buffering=0) as file:
        endless = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        content = b""
        while len(content) <= most:
            if endless and not select.select([file], [], [], PATIENCE)[0]:
                raise OSError(f"nothing has come out of it for {PATIENCE:g} seconds")
            block = file.read(most + 1 - len(content))
            if not block:
                return content
            content += block
    raise ValueError(f"it has more than {most} bytes")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a mapping of JSON, in which each key may be there once."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _yaml(text: str) -> Any:
    """Reads YAML.

    Raises:
        ValueError: If it is none: says where and why, without what the file holds there.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + QUOTED.sub("'...'", reason)) from None
    except (AttributeError, TypeError, OverflowError) as error:  # of odd numbers and dates
        raise ValueError(f"a value cannot be parsed: {type(error).__name__}") from None


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads what flags need: each key once, and no aliases, by which a few bytes stand for gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.constructor.ConstructorError(None, None, "aliases are not read: write the value out", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        mark = key.start_mark
                        raise yaml.constructor.ConstructorError(None, None, "this key is there twice", mark)
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return Loader
