"""The figures and commands of BENCHMARKS.md: those of the reports, and such as can be run."""

import importlib
import json
import re
import shlex

import pytest
from helpers import ROOT, Command, load_script, verb_of

FRONT, DETAILS = ROOT / "BENCHMARKS.md", ROOT / "benchmarks" / "mnist.md"
OTHERS = [ROOT / "benchmarks" / name for name in ("augment.md", "translation.md")]
ROWS = [line for line in FRONT.read_text().splitlines() if line.startswith("| ")]


def commands(text):
    """Lines of bash, and what a table has in its last column."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from re.sub(r"\\\n", " ", block).strip().splitlines()
    yield from re.findall(r"\| `([^`]*)` \|$", text, re.MULTILINE)


COMMANDS = [line for path in (FRONT, DETAILS, *OTHERS) for line in commands(path.read_text()) if " " in line]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_can_be_read(line):
    words = shlex.split(line, comments=True)
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *words[2:]]
    program, first, *rest = words
    if program == "hfgen":
        Command(first).read_options(rest)
    elif first.startswith("benchmarks/"):
        importlib.import_module(first.removeprefix("benchmarks/").removesuffix(".py")).read_options(rest)
    elif first == "scripts/make_stacked_mnist.py":
        load_script("make_stacked_mnist").read_options(rest)
    else:
        Command(verb_of(first.removeprefix("scripts/").removesuffix(".py"))).read_options(rest)


def test_the_front_page_is_a_dozen_lines():
    assert len(ROWS) - 1 == 12 and len(COMMANDS) > 20


@pytest.mark.parametrize("row", [row for row in ROWS if ".json)" in row])
def test_figures_are_those_of_the_reports(row):
    figures, text = row.split(" | ")[1], ""
    for path in re.findall(r"\((benchmarks/\w+\.json)\)", row):
        report = json.loads((ROOT / path).read_text())
        text += json.dumps([report["tables"], report["notes"]], ensure_ascii=False)
    numbers = re.findall(r"[-+]?\d[\d.]*%?(?: ± [\d.]+%?)?", figures)
    assert numbers and all(number in text for number in numbers), numbers
