"""The command `hfgen`: one verb for each job."""

import importlib
import os
import sys
from collections.abc import Sequence

from hfgen.commands.cli import one_line_errors, spell
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.machine import is_out_of_memory
from hfgen.runtime.notes import notes_to, say
from hfgen.runtime.options import nearest

VERBS = (
    "train",
    "sample",
    "evaluate",
    "compare",
    "sweep",
    "classify",
    "augment",
    "show",
    "restore",
    "translate",
    "demo",
    "push",
    "list",
)


def load(verb: str):
    """Imports the module of a verb.

    Raises:
        UserError: For an unknown one; the nearest is suggested.
    """
    if verb not in VERBS:
        raise UserError(f"hfgen has no verb {verb!r}: it has {', '.join(VERBS)}.{nearest(verb, VERBS)}")
    return importlib.import_module(f"hfgen.commands.{verb}")


def check_environment() -> None:
    """Checks what a launcher says of the processes.

    Raises:
        UserError: For numbers that are none, and for a process outside of their number.
    """
    numbers = {}
    for name, least in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise UserError(
                f"{name} is {value!r} in the environment, but must be a whole number from {least} on: unset it, or "
                "start this with torchrun."
            )
        numbers[name] = int(value or least)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise UserError(
            f"RANK is {numbers['RANK']} in the environment, of {numbers['WORLD_SIZE']} processes (WORLD_SIZE), which "
            "are counted from 0: unset both, or start this with torchrun."
        )


def dispatch(argv: Sequence[str]) -> None:
    """Runs a verb with its arguments; without a verb, lists the verbs.

    Raises:
        UserError: For whatever the user can fix, and when memory runs out.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = {verb: str(load(verb).__doc__).partition("\n")[0] for verb in VERBS}
        print("usage: hfgen VERB ...\n\nTrain, use and share image generators. The verbs:\n")
        print(*(f"  {verb:<9} {line}" for verb, line in lines.items()), sep="\n")
        print("\n`hfgen VERB --help` shows the flags of each, `hfgen list` what `hfgen train` can train.")
        return
    check_environment()
    with notes_to(lambda text: say(spell(text))):
        try:
            load(argv[0]).main(list(argv[1:]))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"memory ran out: {one_line(error)}. Use smaller batches, images or networks, or a larger machine."
            ) from error


def main(argv: Sequence[str] | None = None, verb: str = "") -> None:
    """Runs the command line. What a user can fix ends it with one line and exit code 2.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; by default those of this program.
        verb (`str`, *optional*): Words that stand before them, such as `"train gan"`.
    """
    with one_line_errors():
        dispatch([*verb.split(), *(sys.argv[1:] if argv is None else argv)])
