"""benchmarks/reports.md is written from the reports of the benchmarks."""

import json

import pytest
import write as WRITE
from common import publish
from helpers import ROOT, spelled

from hfgen.runtime.errors import UserError

BEFORE = "# Benchmarks"
BEFORE += "\n\nWords\u00a0of people.  \r\n\n<!-- benchmark: train -->\nold\n<!-- end -->\n\n## More\n\nThe end.\n"


def report(path, speed="12"):
    tables = {"Images per second": [["", "hfgen"], ["ddpm", speed]]}
    publish(str(path), "python benchmarks/x.py --y 1", "A machine", {"y": 1}, tables, ["What to know."], {})
    return path


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "reports.md"
    path.write_bytes(BEFORE.encode())
    return path


def test_a_report_is_put_in_its_place(tmp_path, document):
    arguments = ["--reports", str(report(tmp_path / "train.json")), "--document", str(document)]
    WRITE.main(arguments)
    written = document.read_bytes().decode()
    begin, end = "<!-- benchmark: train -->\n", "\n<!-- end -->"
    assert written.partition(begin)[0] == BEFORE.partition(begin)[0]
    assert written.partition(end)[2] == BEFORE.partition(end)[2]
    section = written.partition(begin)[2].partition(end)[0]
    assert section.startswith("```bash\npython benchmarks/x.py --y 1\n```\n\nA machine; hfgen ")
    assert "\n**Images per second**\n\n|  | hfgen |\n|---|---|\n| ddpm | 12 |\n\n- What to know." in section
    versions = json.loads((tmp_path / "train.json").read_text())["versions"]
    assert f"torch {versions['torch']}" in section and f"python {versions['python']}" in section
    WRITE.main(arguments)
    assert document.read_bytes().decode() == written  # again, nothing changes


def test_a_report_without_a_place_comes_last(tmp_path, document):
    reports = [str(report(tmp_path / f"{name}.json")) for name in ("sampling_speed", "train")]
    WRITE.main(["--reports", *reports, "--document", str(document)])
    written = document.read_text()
    last = written.partition("The end.\n\n")[2]
    assert last.startswith("## Sampling speed\n\n<!-- benchmark: sampling_speed -->\n```bash")
    assert last.endswith("\n<!-- end -->\n") and written.count("old") == 0


def test_check(tmp_path, document, capsys):
    arguments = ["--reports", str(report(tmp_path / "train.json")), "--document", str(document), "--check"]
    for expected in (1, 0):
        with pytest.raises(SystemExit) as error:
            WRITE.main(arguments)
        assert error.value.code == expected
        if expected:
            assert document.read_bytes() == BEFORE.encode() and "not up to date" in capsys.readouterr().out
            WRITE.main(arguments[:-1])
    report(tmp_path / "train.json", speed="13")
    with pytest.raises(SystemExit) as error:
        WRITE.main(arguments)
    assert error.value.code == 1


def test_mistakes(tmp_path, document):
    path = report(tmp_path / "train.json")
    (tmp_path / "other.json").write_text('{"rounds": 8}')
    (tmp_path / "open.md").write_text("<!-- benchmark: train -->\n<!-- benchmark: other -->\n<!-- end -->\n")
    (tmp_path / "twice.md").write_text(2 * BEFORE)
    for reports, target, message in (
        (tmp_path / "other.json", document, "is no report of a benchmark"),
        (tmp_path / "absent.json", document, "is no report of a benchmark"),
        (path, tmp_path / "absent.md", "cannot be read"),
        (path, tmp_path / "open.md", "is not followed by one <!-- end -->"),
        (path, tmp_path / "twice.md", "comes twice"),
    ):
        with pytest.raises(UserError, match=message), spelled():
            WRITE.main(["--reports", str(reports), "--document", str(target)])
    assert document.read_bytes() == BEFORE.encode()


def test_the_document_agrees_with_the_reports():
    reports = sorted((ROOT / "benchmarks").glob("*.json"))
    text = after = (ROOT / "benchmarks" / "reports.md").read_text()
    for path in reports:
        after = WRITE.insert(after, path.stem, WRITE.section(path))
    assert text == after, "run benchmarks/write.py"
