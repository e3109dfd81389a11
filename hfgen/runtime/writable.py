"""Files and folders to write, which are tried before the work begins: what cannot be written is told in one line."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from hfgen.runtime.errors import UserError
from hfgen.runtime.files import TEMPORARY

OURS = "<!-- Written by hfgen"  # the beginning of a page


def require_folder(path: Path, option: str, beside: bool = False) -> None:
    """Makes sure that files can be written into a folder, by writing one; leaves nothing behind.

    Args:
        path (`Path`): The folder, which need not be there yet.
        option (`str`): The option that names it.
        beside (`bool`, *optional*, defaults to `False`): Whether the folder is written under another name and renamed,
            and must be new or empty.

    Raises:
        UserError: If it cannot be written, with the reason.
    """
    with _told(path, option, "another folder"):
        if path.is_symlink() and not path.exists():
            raise OSError("it is a link that leads nowhere")
        if path.exists() and not path.is_dir():
            raise OSError("it is a file")
        if beside and path.exists() and any(path.iterdir()):
            raise UserError(f"`{option}` {path} is not empty: give a new folder.")
        _try(path.parent if beside else path, path.name if beside else "file")


def require_file(path: Path, option: str) -> None:
    """Makes sure that a file can be written; leaves nothing behind, and what it holds is as it was.

    Raises:
        UserError: If it cannot be written, with the reason.
    """
    with _told(path, option, "another file"):
        if path.is_dir():
            raise OSError("it is a folder")
        if path.exists() and not path.is_file():
            raise OSError("it is no ordinary file")
        _try(path.parent, path.name)


@contextlib.contextmanager
def _told(path: Path, option: str, other: str) -> Iterator[None]:
    try:
        str(path).encode()
        yield
    except UnicodeEncodeError:
        raise UserError(f"`{option}` {ascii(str(path))} has bytes that are no text: give {other}.") from None
    except (OSError, RuntimeError) as error:  # a RuntimeError for links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"`{option}` {path} cannot be written: {reason}. Give {other}.") from None


def _try(folder: Path, name: str) -> None:
    """Writes a file as [`~files.write_at_once`] does, and deletes it and the folders that were made for it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process of each machine tries
        return
    made = []
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{name}"
    try:
        for parent in reversed([folder, *folder.absolute().parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        temporary.write_bytes(b"")
        os.replace(temporary, temporary.with_name(f"{temporary.name}-"))  # some disks cannot
    finally:
        for file in (temporary, temporary.with_name(f"{temporary.name}-")):
            with contextlib.suppress(OSError):
                file.unlink()
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # another process may have written into it
                parent.rmdir()


def require_ours(paths: Iterable[Path], option: str, remedy: str) -> None:
    """Makes sure that pictures, and pages beside them, take the place of none but ours, which say in their files that
    hfgen made them.

    Args:
        paths (`Iterable[Path]`): PNG and GIF files, and Markdown whose first line begins with `OURS`.
        option (`str`): The option that names their folder or the file beside them.
        remedy (`str`): What the user can do.

    Raises:
        UserError: If a file is something else.
    """
    for path in paths:
        if path.exists() and not _is_ours(path):
            raise UserError(f"`{option}`: {path} would be replaced, and hfgen did not make it: {remedy}.")


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".md":
            with path.open(encoding="utf-8") as file:
                return file.readline().startswith(OURS)
        with Image.open(path) as image:
            comment = image.info.get("comment", b"")
            program = image.info.get("Software", comment.decode("ascii", "replace"))
            return str(program).startswith("hfgen")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
