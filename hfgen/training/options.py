"""From what a user gave to the options of a run; no torch here, so that `--help` answers at once."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.registry import Family
from hfgen.runtime.options import make
from hfgen.training.config import TrainingConfig


def choose_preset(given: Mapping[str, Any], presets: Mapping[str, Any], otherwise: str | None = None) -> str | None:
    """Returns the preset, if none is given: without any data named, `digits`."""
    no_data = given.get("dataset_name") in (None, "digits") and given.get("train_data_dir") is None
    return "digits" if no_data and "digits" in presets else otherwise


def with_preset(values: Mapping[str, Any], preset: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """Returns the values of a preset, and over them those that were given.

    A folder of images that was given takes the place of the data set of the preset.
    """
    defaults = dict(preset()) if preset else {}
    if "train_data_dir" in values:
        defaults.pop("dataset_name", None)
    return defaults | dict(values)


def merge_options(family: Family, preset: str | None, values: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Makes the options of a training run. What wins, from weakest: the default, the preset, what was given.

    Args:
        family ([`~registry.Family`]): What to train.
        preset (`str`, *optional*): The preset that was given; by default one that fits the data.
        values (`Mapping`): The options that were given.

    Returns:
        A [`DataConfig`], a [`TrainingConfig`] and the family's own options.

    Raises:
        UserError: For an unknown option, and for values that are out of range or do not go together.
    """
    presets = family.load("presets") or {}
    name = preset or choose_preset(values, presets, family.default_preset)
    given = with_preset(values, (lambda: family.preset_values(name)) if name else None)
    data, training, options = make((DataConfig, TrainingConfig, family.load("options")), given)
    if data.dataset_name in (None, "digits") and data.train_data_dir is None and data.resolution is None:
        data = dataclasses.replace(data, resolution=16)  # 8x8 as they come are too few pixels to please the eye
    if hasattr(options, "check"):
        options.check(data.resolution, training.train_batch_size)
    source = data.train_data_dir or data.dataset_name or "digits"
    folder = training.output_dir or f"out/{family.name}-{Path(source).resolve().name}"
    return data, dataclasses.replace(training, output_dir=folder), options
