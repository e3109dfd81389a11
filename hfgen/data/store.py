"""The cache: folders that one process makes once, and that are verified whenever they are opened.

What lies on a disk for years is cut short by a crash, changed by a fault or by a hand. So each folder lists the sizes
and digests of its files, and one that is not as it was written is made again.
"""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.files import TEMPORARY, remove, write_at_once
from hfgen.runtime.notes import note

CACHE_FORMAT = 2  # part of the keys: raise it when the same data would be decoded to other values
META = "meta.json"
SUMS = "sums.json"
BLOCK = 2**20  # bytes that have a digest of their own
CHECKED = 64  # blocks of a file that are read when it is opened; of larger ones, a sample


def cache_root(config: DataConfig) -> Path:
    """Returns the folder where columns are kept."""
    from datasets import config as datasets_config

    return Path(config.cache_dir or Path(datasets_config.HF_CACHE_HOME) / "hfgen").expanduser()


def cache_key(**parts: Any) -> str:
    """Makes a name from all these values, JSON-ready."""
    text = json.dumps({"format": CACHE_FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build_once(folder: Path, build: Callable[[Path], None], verify: bool = False) -> Path:
    """Lets one process make a folder, while all others wait. If it is there and whole, nothing is done.

    Args:
        folder (`Path`): The folder.
        build (`Callable`): Writes files into the empty folder that it is handed.
        verify (`bool`, *optional*, defaults to `False`): Whether to read all of its files, instead of a sample of
            those that are large.

    Raises:
        UserError: If it cannot be written.
    """
    import filelock

    if _fault(folder, verify) is not None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{folder}.lock"):
                fault = _fault(folder, verify)
                if fault is not None:
                    if fault:
                        note(f"The cache {folder} is made again, as it is broken: {fault}.")
                    for left in folder.parent.glob(f"{TEMPORARY}*-{folder.name}"):  # by a process that was killed
                        remove(left)
                    with write_at_once(folder) as temporary:
                        temporary.mkdir()
                        build(temporary)
                        _write_sums(temporary)
        except OSError as error:
            raise UserError(
                f"the cache in {folder.parent} cannot be written: {error}. Free some space or give another "
                "`cache_dir`."
            ) from None
    return folder


def _write_sums(folder: Path) -> None:
    """Writes the size of each file of a folder, and the digest of each of its blocks."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            blocks = [_digest(block) for block in iter(lambda: file.read(BLOCK), b"")]
        files[path.name] = [path.stat().st_size, blocks]
    (folder / SUMS).write_text(json.dumps({"files": files, "digest": _digest(json.dumps(files).encode())}))


def _fault(folder: Path, verify: bool) -> str | None:
    """Says what is wrong with a folder: `None` if it is whole, an empty text if it is not there."""
    if not folder.exists():
        return ""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        files = sums["files"]
        if sums["digest"] != _digest(json.dumps(files).encode()):
            return f"{SUMS} was changed"
        for name, (size, blocks) in files.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            numbers = list(range(len(blocks)))
            if not verify and len(numbers) > CHECKED:  # others each time
                numbers = sorted(random.SystemRandom().sample(numbers, CHECKED))
            with path.open("rb") as file:
                for number in numbers:
                    file.seek(number * BLOCK)
                    if _digest(file.read(BLOCK)) != blocks[number]:
                        return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return one_line(error)
    return None


def _digest(block: bytes) -> str:
    return hashlib.sha256(block).hexdigest()[:16]
