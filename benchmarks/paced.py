"""Runs a training script that waits, after each so many steps of its optimisers, for its turn: see pairs.py.

    python benchmarks/paced.py EVERY TURNS TIMES SCRIPT ...

TURNS and TIMES are file descriptors of pipes: a byte comes in for each turn, and the seconds that it took go out.
"""

import os
import runpy
import sys
import time
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    every, turns, times = map(int, sys.argv[1:4])
    sys.argv = sys.argv[4:]
    steps, began = 0, 0.0

    def count(*_: Any) -> None:
        nonlocal steps, began
        steps += 1
        if steps % every == 0:
            os.write(times, f"{time.perf_counter() - began}\n".encode())
            if not os.read(turns, 1):  # nobody is there any more
                os._exit(0)
            began = time.perf_counter()

    register_optimizer_step_post_hook(count)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
