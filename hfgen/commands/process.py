"""Another verb of hfgen, run to its end in a process of its own."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfgen.commands.cli import flags, write_line

KEPT = 4096  # bytes of what was written last
ERROR = "error: "  # what the last line of a command begins with that could not do its work


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        command (`str`): The command.
        code (`int`): Its exit code; negative if a signal killed it.
        signal (`int`): The number of the signal that asked to stop, and was handed on; 0 for none.
        reason (`str`): What it said was wrong, in one line, if its errors were read.
    """

    command: str
    code: int
    signal: int
    reason: str = ""


def run_verb(
    verb: Sequence[str],
    values: Mapping[str, Any],
    read_errors: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Runs a verb, and hands on the signals that ask to stop.

    Args:
        verb (`Sequence[str]`): Its words: `["train", "gan"]`.
        values (`Mapping`): Options by name.
        read_errors (`bool`, *optional*, defaults to `False`): Whether to read what it writes for people, which is
            shown all the same, for the reason of a failure. A progress bar then does not see a terminal.
        environment (*optional*): Further variables.
    """
    words = [*verb, *flags(values)]
    command, numbers = shlex.join(["hfgen", *words]), []
    print(f"\n{command}\n", flush=True)
    last = b""
    with subprocess.Popen(
        [sys.executable, "-m", "hfgen", *words],
        stderr=subprocess.PIPE if read_errors else None,
        env=os.environ | dict(environment or {}),
    ) as process:

        def hand_on(number: int, frame: Any) -> None:
            numbers.append(number)
            process.send_signal(number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while process.stderr and (part := os.read(process.stderr.fileno(), KEPT)):
                last = (last + part)[-KEPT:]
                sys.stderr.write(part.decode(errors="replace"))
                sys.stderr.flush()
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    lines = last.decode(errors="replace").strip().splitlines()
    reason = lines[-1].rpartition("\r")[2] if lines else ""
    if reason and not reason.startswith(ERROR):
        write_line("")
    return Ended(command, code, numbers[0] if numbers else 0, reason.removeprefix(ERROR))
