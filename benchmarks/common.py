"""What the benchmark scripts share: reports as JSON, and the tables that BENCHMARKS.md shows."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfgen.runtime.files import write_json
from hfgen.runtime.provenance import record


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def save_report(
    path: Path,
    command: str,
    machine: str,
    config: dict[str, Any],
    tables: Mapping[str, Sequence[Sequence[str]]],
    notes: Sequence[str],
    measured: Any,
) -> None:
    """Writes what a benchmark found.

    Args:
        path (`Path`): The JSON file.
        command, machine (`str`): In words.
        config (`dict`): All options.
        tables (`dict`): Rows of cells for people, by title; the first row is the head.
        notes (`Sequence[str]`): What a reader of the tables has to know.
        measured: Every figure.
    """
    tables = {title: [list(row) for row in rows] for title, rows in tables.items()}
    report = record(command, machine=machine, config=config, tables=tables, notes=list(notes), measured=measured)
    write_json(path, report)


def peak_memory(reset: bool = False) -> float | None:
    """The most that this process has held, in MB, since it was last reset; None where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1.024e-3 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    return None
