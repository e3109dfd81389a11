"""Files and folders that are whole or absent."""

import os
import stat

import pytest

from hfgen.runtime.files import folder_at_once, new_folder_at_once, write_at_once, write_json


def test_the_record_of_a_folder_comes_last(tmp_path, monkeypatch):
    """A run that is killed before must not take the new pipeline for kept."""
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: moved.append(new.name) or replace(old, new))
    with folder_at_once(tmp_path) as folder:
        for name in ("run.json", "model_index.json", "README.md", "samples.png"):
            (folder / name).write_text("{}")
    assert moved[2:] == ["model_index.json", "run.json"]


def test_a_folder_is_filled_at_once(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "old.txt").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ZeroDivisionError), folder_at_once(tmp_path) as folder:
        (folder / "unet").mkdir()
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "unet"]
    with folder_at_once(tmp_path) as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "new.txt").write_text("new")
        (folder / "unet" / "new.txt").chmod(0o600)
        (folder / "model_index.json").write_text("{}")
    assert [path.name for path in (tmp_path / "unet").iterdir()] == ["new.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "model_index.json", "unet"]
    assert stat.S_IMODE((tmp_path / "unet" / "new.txt").stat().st_mode) & 0o044  # others may read it


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), write_at_once(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("write", [write_at_once, new_folder_at_once])
def test_an_error_without_a_file_gets_the_name(tmp_path, write):
    with pytest.raises(OSError, match=r"No space left on device: '.*/it'"), write(tmp_path / "it"):
        raise OSError(28, "No space left on device")  # as a full disk says it
    with pytest.raises(OSError, match="^of a library$"), write(tmp_path / "it"):
        raise OSError("of a library")
    assert list(tmp_path.iterdir()) == []
