"""What cannot be written is told in one line, and trying leaves nothing behind."""

import os

import pytest
from helpers import Command
from PIL import Image

from hfgen.runtime import writable
from hfgen.runtime.errors import UserError
from hfgen.runtime.png import save_gif, save_png
from hfgen.runtime.writable import OURS, require_file, require_folder, require_ours

BAD = {
    "file": "it is a file|File exists",
    "file/below": "Not a directory",
    "link": "leads nowhere|exists",
    "loop": "leads nowhere|exists|symbolic links",
    "loop/below": "symbolic links|Not a directory|exists|loop",
    "x" * 300: "name too long",
    "/".join(["y" * 200] * 30): "name too long",
    os.fsdecode(b"\xff\xfe"): "has bytes that are no text",
    "/proc/x/y": "No such file or directory",
    "/dev/null": "it is a file|is no ordinary file",
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_written(place, name):
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match=f"(?s)^`it` .*({BAD[name]}).* [Gg]ive another folder") as error:
        require_folder(place / name, "it")
    assert "\n" not in str(error.value) and sorted(place.rglob("*")) == before
    if name not in ("file", "link", "loop"):  # a file takes the place of a file or a link
        with pytest.raises(UserError, match=f"(?s)^`it` .*({BAD[name]}).* [Gg]ive another file"):
            require_file(place / name, "it")
    with pytest.raises(UserError, match="(?s)^`it` .*[Gg]ive another folder"):
        require_folder(place / name, "it", beside=True)
    assert sorted(place.rglob("*")) == before and (place / "file").read_text() == "mine"


def test_disks_that_cannot_rename(place, monkeypatch):
    def refuse(*names):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", refuse)
    for require, path in ((require_folder, place / "new"), (require_file, place / "new.json")):
        with pytest.raises(UserError, match="Invalid cross-device link"):
            require(path, "it")
    assert not list(place.glob("*new*"))


def test_what_can_be_written_is_as_before(place):
    (place / "full").mkdir()
    (place / "full" / "it").write_text("mine")
    before = sorted(place.rglob("*"))
    require_folder(place / "a" / "b c", "it")
    require_folder(place / "full", "it")
    require_folder(place / "a" / "b", "it", beside=True)
    require_file(place / "a" / "b.json", "it")
    require_file(place / "file", "it")
    assert sorted(place.rglob("*")) == before and (place / "file").read_text() == "mine"
    with pytest.raises(UserError, match="full is not empty: give a new folder"):
        require_folder(place / "full", "it", beside=True)


def test_one_process_of_a_machine_tries(place, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    require_folder(place / "x" / ("y" * 100), "it")
    monkeypatch.setattr(writable, "_try", None)
    with pytest.raises(UserError, match="leads nowhere"):
        require_folder(place / "link", "it")


def test_pictures_of_others(place):
    image = Image.new("L", (4, 4))
    save_png(image, place / "ours.png", {"model": "it"})
    image.save(place / "theirs.png")
    (place / "text.png").write_text("mine")
    save_gif([image], place / "ours.gif", {"model": "it"})
    image.save(place / "theirs.gif")
    (place / "ours.md").write_text(f"{OURS} show -->\n# It\n")
    (place / "theirs.md").write_text("# It\n")
    require_ours([place / f"ours.{kind}" for kind in ("png", "gif", "md")], "it", "give another")
    require_ours([place / "absent.png", place / "absent.md"], "it", "give another")
    for name in ("theirs.png", "text.png", "theirs.gif", "theirs.md"):
        with pytest.raises(UserError, match=f"`it`: .*{name} would be replaced, .*: give another."):
            require_ours([place / name], "it", "give another")


@pytest.mark.parametrize(
    ("verb", "option", "name"),
    [
        ("train gan", "output_dir", "loop"),
        ("sample", "output_dir", "file/x"),
        ("show", "output_dir", "link"),
        ("evaluate", "output", "file/x"),
        ("compare", "output_dir", "x" * 300),
        ("classify", "output_dir", "loop"),
        ("demo", "space_dir", "file"),
    ],
)
def test_every_verb_says_so_first(place, verb, option, name):
    model = {"train gan": [], "classify": []}.get(verb, ["--model", "ada/absent"])  # which nobody asks for
    with pytest.raises(UserError, match=f"^--{option} .* cannot be written: "):
        Command(verb).main([*model, f"--{option}", str(place / name)])
