"""What a run shows a person who watches it."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int, initial: int, shown: bool) -> Any:
    """Makes a bar that counts images."""
    return tqdm(
        total=total,
        initial=initial,
        unit="img",
        unit_scale=True,
        disable=not shown,
        smoothing=0.05,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a log file needs no animation
    )
