"""Writes the reports of the benchmarks, which are JSON, into benchmarks/reports.md.

A report `train.json` has its place between the lines `<!-- benchmark: train -->` and `<!-- end -->`; one without a
place gets a section at the end. What is outside stays as it is. Examples:

    python benchmarks/write.py
    python benchmarks/write.py --check
    python benchmarks/write.py --reports out/train.json --document out/reports.md
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import markdown

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_text
from hfgen.runtime.options import Options, option

HERE = Path(__file__).parent
END = "<!-- end -->"


@dataclass(frozen=True)
class WriteOptions(Options):
    """Writing: which reports, and where."""

    reports: tuple[str, ...] | None = option(None, "JSON files (default: benchmarks/*.json of the repository)")
    document: str | None = option(None, "the file to write into (default: benchmarks/reports.md of the repository)")
    check: bool = option(False, "write nothing; exit code 1 says that the file is not up to date")


def read_options(argv: Sequence[str] | None = None) -> WriteOptions:
    (config,) = parse((WriteOptions,), argv, description=str(__doc__).partition("\n")[0])
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    document = Path(config.document or HERE / "reports.md")
    reports = list(map(Path, config.reports)) if config.reports else sorted(HERE.glob("*.json"))
    try:
        before = after = document.read_bytes().decode()
    except OSError as error:
        raise UserError(f"`document` {document} cannot be read: {error}. Give a Markdown file.") from None
    for report in reports:
        after = insert(after, report.stem, section(report))
    if config.check:
        print(f"{document} is {'up to date' if before == after else 'not up to date: run benchmarks/write.py'}.")
        raise SystemExit(int(before != after))
    write_text(document, after)
    print(f"{len(reports)} report(s) are in {document}.")


def insert(text: str, name: str, content: str) -> str:
    """Puts a report in its place, or behind all others.

    Raises:
        UserError: If the place has no end, or there are several.
    """
    begin = f"<!-- benchmark: {name} -->"
    place = f"{begin}\n{content}\n{END}"
    if begin not in text:
        return f"{text.rstrip()}\n\n## {name.replace('_', ' ').capitalize()}\n\n{place}\n"
    rest = text.partition(begin)[2]
    if text.count(begin) > 1 or END not in rest or "<!-- benchmark:" in rest.partition(END)[0]:
        raise UserError(f"{begin} is not followed by one {END}, or comes twice: fix the file.")
    return text.replace(begin + rest.partition(END)[0] + END, place)


def section(path: Path) -> str:
    """A report in Markdown.

    Raises:
        UserError: If it is none.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        parts = [
            f"```bash\n{report['command']}\n```",
            f"{report['machine']}; hfgen {report['hfgen']}, {versions}; {report['written'][:10]}.",
            *(f"**{title}**\n\n{markdown(rows)}" for title, rows in report["tables"].items()),
            "\n".join(f"- {note}" for note in report["notes"]),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"`reports` {path} is no report of a benchmark: {error!r}. Run the benchmark again.") from None
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    with one_line_errors():
        main()
