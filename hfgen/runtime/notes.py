"""Lines that a person should read about what was found, chosen or left out: each once, from one process."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def say(text: str) -> None:
    """Prints a line beside the progress bars."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stdout)


_listeners: list[tuple[Callable[[str], None], set[str]]] = [(say, set())]


def note(text: str) -> None:
    """Tells a line, in the first process of a launch, unless it was told already.

    Whoever finds something calls this each time, also where a cache holds the result: a line that only the first use
    of some data shows is lost to all others.
    """
    tell, told = _listeners[-1]
    if os.environ.get("RANK", "0") == "0" and text not in told:
        told.add(text)
        tell(text)


@contextlib.contextmanager
def notes_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hands the lines of a block to `tell`, also those that were told before it."""
    _listeners.append((tell, set()))
    try:
        yield
    finally:
        _listeners.pop()


def listed(names: list[str], most: int = 5) -> str:
    """Writes the first names of a list, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
