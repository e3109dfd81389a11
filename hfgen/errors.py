"""What a user can get wrong, said in one line."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Something that the user can mend: the message names the flag or argument, its value, the reason and the remedy.

    Scripts turn it into that one line on standard error and exit code 2; library code sees an ordinary `ValueError`.
    """


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with exit code 2 and one line when a [`UserError`] is raised inside."""
    try:
        yield
    except UserError as error:
        # Each process speaks: the first to end takes the others down, and it may be the only one that knows.
        rank = os.environ.get("RANK", "0")
        print(f"error: {error}" if rank == "0" else f"[rank {rank}] error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
