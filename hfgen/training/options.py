"""The command line of every training script; no torch here, so that `--help` answers at once."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfgen.commands.cli import parse
from hfgen.data.config import DataConfig
from hfgen.training.config import MOVED, TrainingConfig


def choose_preset(given: Mapping[str, Any], otherwise: str | None = None) -> str | None:
    """The preset, if none is given: without any data named, `digits`."""
    no_data = given.get("dataset_name") in (None, "digits") and given.get("train_data_dir") is None
    return "digits" if no_data else otherwise


def read_training_options(
    family: str,
    kind: type,
    argv: Sequence[str] | None,
    description: str,
    presets: Mapping[str, Callable[[], dict[str, Any]]],
    default_preset: str | None = None,
) -> tuple[DataConfig, TrainingConfig, Any]:
    """Reads and checks the options of a training run. Without any data named, the preset is `digits`.

    Args:
        family (`str`): `"ddpm"`, `"gan"`, ...: names the folder of the run, if the user does not.
        kind (`type`): The dataclass of the family's own options.
        argv (`Sequence[str]`, *optional*): The arguments, `sys.argv[1:]` if left out.
        description (`str`): The docstring of the script, whose first line is shown by `--help`.
        presets: Functions that return the values of a preset, by name.
        default_preset (`str`, *optional*): The preset for all other data; by default there is none.

    Raises:
        UserError: For unknown flags, and values that are out of range or do not go together.
    """
    data, training, options = parse(
        (DataConfig, TrainingConfig, kind),
        argv,
        description=description.partition("\n")[0],
        presets=presets,
        default_preset=functools.partial(choose_preset, otherwise=default_preset),
        moved=MOVED,
        instead={"train_data_dir": "dataset_name"},
    )
    if data.dataset_name in (None, "digits") and data.train_data_dir is None and data.resolution is None:
        data = dataclasses.replace(data, resolution=16)  # 8x8 as they come are too few pixels to please the eye
    source = data.train_data_dir or data.dataset_name or "digits"
    folder = training.output_dir or f"out/{family}-{Path(source).resolve().name}"
    return data, dataclasses.replace(training, output_dir=folder), options
