"""Trains a generator of one family: `hfgen train gan --dataset_name ylecun/mnist`.

Without data it trains on the handwritten digits that ship with the installation.

hfgen train ddpm
hfgen train gan --dataset_name ylecun/mnist --num_epochs 10
accelerate launch -m hfgen train ddpm --preset mnist
torchrun --nproc_per_node 2 -m hfgen train ddpm --preset cifar10
"""

from collections.abc import Sequence
from typing import Any

from hfgen.commands.cli import Given, command_line, read, spell
from hfgen.registry import Family, families, find_family
from hfgen.runtime.errors import UserError
from hfgen.training.config import MOVED
from hfgen.training.options import collect, option_kinds


def read_given(argv: Sequence[str]) -> tuple[Family, Given]:
    """Reads the family and what was given for it.

    Raises:
        UserError: For an unknown family or flag, and for a value of the wrong type.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError(f"hfgen train needs the name of a family first: {', '.join(families())}.")
    family = find_family(argv[0])
    presets = list(family.load("presets") or ())
    prog, title = f"hfgen train {family.name}", family.title
    return family, read(option_kinds(family), argv[1:], prog=prog, description=title, presets=presets, moved=MOVED)


def read_options(argv: Sequence[str]) -> tuple[Any, ...]:
    """Reads and checks the options of a run: of the data, of training, and the family's own."""
    family, given = read_given(argv)
    return collect(family, given.preset, **given.values).parts


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print("usage: hfgen train FAMILY ...\n\nThe families:\n")
        width = max(map(len, families()))
        print(*(f"  {family.name:<{width}}  {family.title}" for family in families().values()), sep="\n")
        print("\n`hfgen train FAMILY --help` shows the flags of each, `hfgen list` the presets.")
        return
    family, given = read_given(argv)
    command = command_line(f"train {family.name}", option_kinds(family), argv[1:])

    options = collect(family, given.preset, command, **given.values)  # mistakes are reported before torch is imported

    from hfgen.runtime.notes import say
    from hfgen.sampling.capabilities import Generates, Translates, adapter_class
    from hfgen.sampling.loading import entry_of
    from hfgen.training.api import run_training

    run = run_training(options, lambda text: say(spell(text)))
    if run.stopped_by:
        raise SystemExit(128 + run.stopped_by)
    if run.main:
        path = run.folder.path
        kind, use = adapter_class(entry_of(str(path))), f"see {path / 'README.md'}"
        if issubclass(kind, Generates):
            use = f"hfgen sample --model {path} --num_images 16"
        elif issubclass(kind, Translates):
            use = f"hfgen translate --model {path} --input FOLDER"
        say(f"Use it:   {use}")
