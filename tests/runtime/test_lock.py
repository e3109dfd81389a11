"""One writer for each folder."""

import errno
import os
import re
import time

import pytest
from helpers.forked import Forked

from hfgen.runtime.errors import UserError
from hfgen.runtime.lock import FolderLock
from hfgen.runtime.notes import notes_to

HOLD = """
import sys, time
from pathlib import Path
from hfgen.runtime.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
time.sleep(100)
"""


def test_the_holder_is_named_and_a_kill_frees_the_folder(tmp_path):
    process = Forked(["-c", HOLD, tmp_path])
    file = tmp_path / ".lock"
    while not file.exists() or not file.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    named = (
        rf"`output_dir` {re.escape(str(tmp_path))} is in use by process \d+ on \S+, since 20.*: wait until that ends"
    )
    for act in (FolderLock(tmp_path).acquire, FolderLock(tmp_path).acquire):
        with pytest.raises(UserError, match=named):
            act(0.05)
    process.kill()
    process.communicate()
    lock = FolderLock(tmp_path)
    lock.acquire(5)
    assert f'"process": {os.getpid()}' in file.read_text()
    with pytest.raises(UserError, match="is in use by another run in this process"):
        FolderLock(tmp_path).acquire(0)
    lock.release()
    lock.release()  # once is enough
    FolderLock(tmp_path).check()


def test_a_check_changes_nothing(tmp_path):
    FolderLock(tmp_path / "new").check()
    assert not list(tmp_path.iterdir())
    file = tmp_path / ".lock"
    file.write_text("who knows")
    FolderLock(tmp_path).check()
    assert file.read_text() == "who knows"
    lock = FolderLock(tmp_path)
    lock.acquire()
    file.write_text("[]")
    with pytest.raises(UserError, match="in use by another process"):
        FolderLock(tmp_path).acquire(0)


def test_a_disk_that_cannot_lock_is_told_of_and_used(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with notes_to(said.append):
        FolderLock(tmp_path).acquire()
    assert len(said) == 1 and "cannot lock files: nothing prevents a second run" in said[0]
