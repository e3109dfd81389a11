"""Lines that a person should read once."""

from hfgen.runtime.notes import listed, note, notes_to


def test_a_line_is_told_once_by_the_first_process(monkeypatch, capsys):
    lines, others = [], []
    with notes_to(lines.append):
        note("a")
        note("a")
        note("b")
        with notes_to(others.append):  # another job of the same program
            note("a")
        monkeypatch.setenv("RANK", "1")
        note("c")
    assert lines == ["a", "b"] and others == ["a"]
    monkeypatch.setenv("RANK", "0")
    note("a line of this test")
    assert capsys.readouterr().out == "a line of this test\n"


def test_listed():
    assert listed(["a", "b"]) == "a, b"
    assert listed([*"abcdefg"], most=3) == "a, b, c and 4 more"
