"""Files and folders that are whole or absent: written under a temporary name, synced to the disk, then renamed.

The new name is synced as well."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def write_at_once(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path` for a file or a folder, and renames it to `path` when all went well.

    The folder of `path` is made if need be. If the block raises, what `path` held before is still there and what was
    temporary is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, as several writers need it; no other process uses the same name.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with _named(path):
            yield temporary
        for written in (*temporary.rglob("*"), temporary) if temporary.is_dir() else (temporary,):
            sync(written)
        if path.is_dir():  # no folder takes the place of another that holds something
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says in an error of the system which file it is of, where it does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporary(*folders: Path) -> None:
    """Deletes what processes that were killed left half-written in some folders, which no other process writes to."""
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY}*"):
            remove(path)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, all of it or nothing."""
    with write_at_once(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # folders cannot be synced on some systems
        os.fsync(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def folder_at_once(target: Path) -> Iterator[Path]:
    """Gives a folder to write into, and moves its entries into `target` when all went well.

    What `target` holds beside them stays. `run.json` is moved last: a folder whose record is new has all that is new.
    `model_index.json` is moved before it: a new folder that has it has everything that it names.
    """
    temporary = target / f"{TEMPORARY}pipeline"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
                sync(path)
        last = ("model_index.json", "run.json")
        for path in sorted(temporary.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
            old = target / path.name
            if old.is_dir():
                shutil.rmtree(old)
            os.replace(path, old)
        sync(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_folder_at_once(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target` to write into, and renames it to `target` when all went well.

    `target` must be absent or an empty folder. If the block raises, it is as it was.
    """
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{target.name}")
    temporary.mkdir(parents=True)
    try:
        with _named(target):
            yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        if target.exists():
            target.rmdir()
        os.rename(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
