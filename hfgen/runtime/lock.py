"""One writer: a lock on a folder, which its process holds until it ends, however it ends."""

import errno
import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note

NAME = ".lock"
NO_LOCKS = ("ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")  # what disks without locks answer
PATIENCE = 10.0  # seconds to wait for a run that is just ending, such as one that a scheduler has stopped


class FolderLock:
    """Makes sure that one process at a time writes into a folder.

    The system takes the lock from a process that was killed. Between machines it works as far as their shared disk
    locks files; a disk that cannot lock is told of, and used without.

    Args:
        folder (`Path`): The folder; it must be there when the lock is taken.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._lock = FileLock(self._path)

    def acquire(self, patience: float = PATIENCE) -> None:
        """Takes the lock, and writes down who holds it.

        Args:
            patience (`float`, *optional*): Seconds to wait for another process.

        Raises:
            UserError: If another process holds it: which, where and since when.
        """
        if self._take(patience):
            holder = {"process": os.getpid(), "machine": socket.gethostname()}
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            self._path.write_text(json.dumps({**holder, "since": since}), encoding="utf-8")

    def release(self) -> None:
        """Gives the lock back, if it is held; the file stays, as others may be waiting for it."""
        self._lock.release(force=True)

    def check(self) -> None:
        """Raises [`UserError`] if another process holds the lock; changes nothing."""
        if self._path.exists() and self._take(PATIENCE):
            self.release()

    def _take(self, patience: float) -> bool:
        """Takes the lock; returns whether the disk can lock at all."""
        try:
            self._lock.acquire(timeout=patience)
            return True
        except Timeout:
            raise UserError(
                f"`output_dir` {self._path.parent} is in use by {self._holder()}: wait until that ends, or give "
                "another folder."
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) not in NO_LOCKS:
                raise
            note(f"The disk of {self._path.parent} cannot lock files: nothing prevents a second run in this folder.")
            return False

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_text(encoding="utf-8"))
            text = f"process {holder['process']} on {holder['machine']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"
        ours = holder["process"] == os.getpid() and holder["machine"] == socket.gethostname()
        return f"another run in this {text}" if ours else text
