"""The options of a run: from what was given, a preset, and the record of the run that is resumed. No torch."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.data.info import ImageInfo, LabelInfo
from hfgen.registry import Family, find_family
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import as_dict, make, upgrade
from hfgen.training.config import TrainingConfig

DIGITS = "digits"


@dataclass(frozen=True)
class RunOptions:
    """All options of a run.

    Attributes:
        family ([`~registry.Family`]): What is trained.
        data ([`DataConfig`]), training ([`TrainingConfig`]): The options that all families share.
        own: Those of the family.
        given (`frozenset[str]`): The names of those that the user gave.
        decided (`frozenset[str]`): Those that the user, the preset or the record of a resumed run decided; the others
            follow the data.
        followed (`dict`): After [`resolve`], the values of those that followed it.
        command (`str`): The command that repeats the run, for its record.
    """

    family: Family
    data: DataConfig
    training: TrainingConfig
    own: Any
    given: frozenset[str] = frozenset()
    decided: frozenset[str] = frozenset()
    followed: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.data, self.training, self.own

    @property
    def values(self) -> dict[str, Any]:
        """Returns every option by name, JSON-ready, but for secrets."""
        return as_dict(self.parts)

    @property
    def fixed(self) -> dict[str, Any]:
        """Returns the options that a resumed run cannot change."""
        fields = [field for part in self.parts for field in dataclasses.fields(part)]
        resumable = {field.name for field in fields if field.metadata.get("resumable")}
        return {name: value for name, value in self.values.items() if name not in resumable}

    @property
    def chosen(self) -> dict[str, Any]:
        """Returns the options that followed data and machine to another value than their default."""
        defaults = {name: field.default for name, field in self._fields.items()}
        return {name: value for name, value in self.followed.items() if value != defaults[name]}

    def left_open(self, name: str, *values: Any) -> bool:
        """Says whether an option is left to data or machine: because nobody decided it, or by one of some values."""
        metadata = self._fields[name].metadata
        if metadata.get("follows") and name not in self.decided:
            return True
        return bool(metadata.get("resolved")) and any(value in (None, "auto") for value in values)

    def adopt(self, values: Mapping[str, Any]) -> "RunOptions":
        """Returns the options with those of a checkpoint that the run begins from, where the user did not give
        others."""
        new = {name: value for name, value in values.items() if name not in self.given}
        return dataclasses.replace(self._changed(new), decided=self.decided | new.keys())

    def resolve(self, info: Any, machine: Machine, precision: str) -> "RunOptions":
        """Returns the options with numbers in place of what was left to the data and the machine: first what follows
        them because nobody decided it, then what is left open by the values that there are now.

        Args:
            info ([`~data.info.DataInfo`]): What is known of the data.
            machine ([`~runtime.machine.Machine`]): What it will run on.
            precision (`str`): What `mixed_precision` "auto" is there.
        """
        options, followed = self._follow(info, machine)
        found = {
            "resolution": info.resolution,
            "image_mode": info.mode,
            "value_range": info.value_range or self.data.value_range,
            "image_column": info.column_of(ImageInfo) or self.data.image_column,
            "label_column": info.column_of(LabelInfo) or self.data.label_column,
        }
        groups = info.classes if info.classes and info.classes.groups else None
        if groups:
            found["cluster_features"] = self.data.features_for(info.mode)
        if self.data.num_clusters is None:
            found["num_clusters"] = len(groups.names) if groups else 0
        data = dataclasses.replace(options.data, **found)
        training = dataclasses.replace(options.training, mixed_precision=precision)
        resolve = self.family.load("resolve")
        own = resolve(options.own, info, machine) if resolve else options.own
        check_together(own, data, training)
        return dataclasses.replace(options, data=data, training=training, own=own, followed=followed)

    def _follow(self, info: Any, machine: Machine) -> tuple["RunOptions", dict[str, Any]]:
        """Returns the options with those that nobody decided as the family's rule has them, and these."""
        follow = self.family.load("follow")
        values = follow(self, info, machine) if follow else {}
        fields = self._fields
        if wrong := [name for name in values if not (name in fields and fields[name].metadata.get("follows"))]:
            raise UserError(f"{self.family.follow} of {self.family.origin} chooses {wrong[0]}, which may not follow.")
        values = {name: value for name, value in values.items() if name not in self.decided}
        return self._changed(values), values

    @property
    def _fields(self) -> dict[str, dataclasses.Field]:
        return {field.name: field for part in self.parts for field in dataclasses.fields(part)}

    def _changed(self, values: Mapping[str, Any]) -> "RunOptions":
        """Returns the options with other values, checked."""

        def changed(part: Any) -> Any:
            names = {field.name for field in dataclasses.fields(part)} & values.keys()
            return dataclasses.replace(part, **{name: values[name] for name in names})

        data, training, own = map(changed, self.parts)
        return dataclasses.replace(self, data=data, training=training, own=own)


def check_together(own: Any, data: DataConfig, training: TrainingConfig) -> None:
    """Checks the options of a family beside those of data and training, if it has a method `check` that does.

    It gets the resolution, `None` before it is known, and the images of a process and micro-batch.

    Raises:
        UserError: For options that do not go together.
    """
    if hasattr(own, "check"):
        own.check(data.resolution, training.train_batch_size)


def option_kinds(family: Family) -> tuple[type, type, type]:
    """Returns the dataclasses that hold the options of a run."""
    return DataConfig, TrainingConfig, family.load("options")


def collect(family: str | Family, preset: str | None = None, command: str = "", **given: Any) -> RunOptions:
    """Makes the options of a run.

    What wins, from weakest to strongest: the default; the preset, or in its place the record of the run that is
    resumed; what is given. Without any data named, the preset is `digits`.

    Args:
        family (`str` or [`~registry.Family`]): What to train.
        preset (`str`, *optional*): Its set of defaults that fit together.
        command (`str`, *optional*): For the record.
        given: Options by name.

    Raises:
        UserError: For options that do not exist, have wrong values, do not go together, or are not those of the run
            that is to be resumed.
    """
    family = family if isinstance(family, Family) else find_family(family)
    if fault := family.fault():
        raise UserError(f"the family {family.name!r} of {family.origin} cannot be used: {fault}")
    given = without_synonyms(family, given)
    no_data = given.get("dataset_name") in (None, DIGITS) and given.get("train_data_dir") is None
    presets = family.load("presets") or {}
    asked, preset = preset, preset or (DIGITS if no_data and DIGITS in presets else family.default_preset)
    values = family.preset_values(preset) if preset else {}
    if given.get("train_data_dir") is not None:
        values.pop("dataset_name", None)
    # An option that is newer than the record has its default, not the value of a preset: it changes nothing then.
    record = read_record(family, values | given)
    if record and given.get("train_data_dir") is not None:  # which stands in place of the other
        record.pop("dataset_name", None)
    values = record | (values if asked else {}) if record else values
    kinds = option_kinds(family)
    decided = {field.name for kind in kinds for field in dataclasses.fields(kind)} if record else {*values, *given}
    data, training, own = make(kinds, values | given)
    if data.dataset_name in (None, DIGITS) and data.train_data_dir is None and data.resolution is None:
        data = dataclasses.replace(data, resolution=16)  # 8x8, their own size, are too few pixels to look at
    check_together(own, data, training)
    if data.streaming and training.max_train_steps is None:
        raise UserError("`streaming` has no epochs: give the length with `max_train_steps`.")
    if data.group_column and data.validation_split is None:
        raise UserError(
            f"`group_column` {data.group_column} has nothing to do, as nothing is held out: add `validation_split`, "
            "or leave it out."
        )
    training = dataclasses.replace(training, output_dir=training.output_dir or default_folder(family, values | given))
    return RunOptions(family, data, training, own, frozenset(given), frozenset(decided), command=command)


def without_synonyms(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the given options with those of the data in place of the family's names for them.

    Raises:
        UserError: If both are given.
    """
    values = dict(given)
    for name, meant in family.synonyms.items():
        value = values.pop(name, None)
        if value == "":
            raise UserError(f"`{name}` is empty: give a value, or leave it out.")
        if value is not None and values.get(meant, value) != value:
            raise UserError(f"`{name}` {value} and `{meant}` {values[meant]} are one option: give one of them.")
        values |= {} if value is None else {meant: value}
    return values


def default_folder(family: Family, values: Mapping[str, Any]) -> str:
    """Returns the folder of a run for which none was given."""
    source = values.get("train_data_dir") or values.get("dataset_name") or DIGITS
    return f"out/{family.name}-{Path(source).resolve().name}"


def read_record(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of the run that is to be resumed, so that it goes on by its own, and not by new defaults.

    Raises:
        UserError: If it is a run of another family.
    """
    resumed = values.get("resume_from_checkpoint")
    if not isinstance(resumed, str) or values.get("overwrite_output_dir"):
        return {}
    folder = Path(values.get("output_dir") or default_folder(family, values))
    beside = resumed != "latest" and Path(resumed).is_dir()  # a checkpoint's record lies beside it
    file = (Path(resumed).parent if beside else folder) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config, before = dict(record["config"]), record["family"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if before != family.name:
        raise UserError(f"`output_dir` {folder} holds a run of {before}, not of {family.name}: give another folder.")
    kinds = option_kinds(family)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    kept = {name: value for name, value in upgrade(kinds, config).items() if name in known}
    for name in ("output_dir", "resume_from_checkpoint", "overwrite_output_dir"):  # not what is trained
        kept.pop(name, None)
    return kept
