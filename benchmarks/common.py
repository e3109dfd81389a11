"""What the benchmarks share: options, reports as JSON, and tables in Markdown."""

import contextlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import parse, without_secrets
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_json
from hfgen.runtime.options import Options, option
from hfgen.runtime.provenance import record

ROOT = Path(__file__).parent.parent
Tables = Mapping[str, Sequence[Sequence[str]]]  # rows of cells by title; the first row is the head


@dataclass(frozen=True)
class BenchmarkOptions(Options):
    """Benchmark: where its figures go."""

    output: str | None = option(None, "JSON file for the figures")

    def validate(self) -> None:
        if self.output and Path(self.output).is_dir():
            raise UserError(f"`output` {self.output} is a folder: give a file.")


def arguments_of(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


def separate(kind: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a dataclass (and `--help`), and all others, each with its values."""
    names = {"-h", "--help", *(f"--{name}" for name in kind.__dataclass_fields__)}  # type: ignore[attr-defined]
    mine: list[str] = []
    others: list[str] = []
    taken = False
    for argument in argv:
        if argument.startswith("-") and not argument[1:2].isdigit():
            taken = argument.partition("=")[0] in names
        (mine if taken else others).append(argument)
    return mine, others


def read_beside_training(kind: type, argv: Sequence[str] | None, doc: str | None) -> tuple[Any, list[str]]:
    """Reads a benchmark's own options, and leaves the flags of `hfgen train` as they are."""
    mine, others = separate(kind, arguments_of(argv))
    description = f"{str(doc).partition(chr(10))[0]} All other flags are those of `hfgen train`."
    (config,) = parse((kind,), mine, description=description)
    return config, others


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def publish(
    path: str | None,
    command: str,
    machine: str,
    config: dict[str, Any],
    tables: Tables,
    notes: Sequence[str],
    measured: Any,
) -> None:
    """Prints what a benchmark measured, and writes it to a JSON file.

    Args:
        path (`str`, *optional*): The file, if one was asked for.
        command (`str`): See [`command_of`].
        machine (`str`): In words.
        config (`dict`): All options.
        tables (`Tables`), notes (`Sequence[str]`): For people.
        measured: Every figure.
    """
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    print("", *(f"- {note}" for note in notes), sep="\n")
    if path:
        lists = {title: [list(row) for row in rows] for title, rows in tables.items()}
        report = record(command, machine=machine, config=config, tables=lists, notes=list(notes), measured=measured)
        write_json(Path(path), report)


def command_of(file: str, kinds: Sequence[type], argv: Sequence[str] | None) -> str:
    """The command that measures the same again, without secrets."""
    return shlex.join(["python", f"benchmarks/{Path(file).name}", *without_secrets(kinds, arguments_of(argv))])


def peak_memory(reset: bool = False) -> float | None:
    """The most that this process has held, in MB, since it was last reset; None where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1.024e-3 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    return None
