"""The run directory: what it may be used for, and `run.json`, which says how it came about."""

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfgen.hub.push import BESIDE_COMPONENTS, pipeline_files
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict
from hfgen.training import checkpoint
from hfgen.training.config import TrainingConfig

PACKAGES = ("torch", "diffusers", "accelerate", "datasets", "safetensors", "numpy")


class Run:
    """A run's options and its folder.

    Args:
        family (`str`): `"ddpm"`, ...: chooses the card.
        configs: The dataclasses of options; one of them is a [`TrainingConfig`].
        command (`str`, *optional*): The command line, for the record.

    Raises:
        UserError: If the folder holds another run; nothing is changed then.
    """

    def __init__(self, family: str, configs: Sequence[Any], command: str = ""):
        self.family = family
        self.training = next(config for config in configs if isinstance(config, TrainingConfig))
        assert self.training.output_dir is not None
        self.folder = Path(self.training.output_dir)
        self.settings = as_dict(configs)
        fields = {field.name: field for config in configs for field in dataclasses.fields(config)}
        self.fixed = {name: v for name, v in self.settings.items() if not fields[name].metadata.get("resumable")}
        if self.settings.get("streaming") and self.training.max_train_steps is None:
            raise UserError("`streaming` has no epochs: give the length with `max_train_steps`.")
        self.command = command
        self.file = self.folder / "run.json"
        self.resume_from = self._find_checkpoint()

    def _find_checkpoint(self) -> Path | None:
        """Decides whether to start or to go on, and from where, without touching anything."""
        wanted = self.training.resume_from_checkpoint
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"`output_dir` {self.folder} is a file: give a folder.")
        if self.folder.resolve() not in (self.folder / self.training.logging_dir).resolve().parents:
            raise UserError(
                f"`logging_dir` {self.training.logging_dir} is outside of `output_dir`: give a folder name."
            )
        names = (*BESIDE_COMPONENTS, "samples", "best", self.training.logging_dir)
        taken = [name for name in names if (self.folder / name).exists()]
        if taken and not self.file.exists():
            raise UserError(
                f"`output_dir` {self.folder} holds {', '.join(taken)} of something else than a run of hfgen: give "
                "another folder."
            )
        if self.training.overwrite_output_dir:
            if wanted:
                raise UserError(
                    f"`overwrite_output_dir` and `resume_from_checkpoint` {wanted} exclude each other: give only one."
                )
            return None
        existing = checkpoint.list_checkpoints(self.folder)
        if wanted is None:
            if existing or self.file.exists():
                raise UserError(
                    f"`output_dir` {self.folder} already holds a run{self._difference()}. Go on with it (add "
                    "`resume_from_checkpoint` latest), delete it (`overwrite_output_dir`) or give another folder."
                )
            return None
        if wanted != "latest":
            path = Path(wanted)
            if not path.is_dir() and (self.folder / wanted).is_dir():  # diffusers takes the bare name
                path = self.folder / wanted
            if not (path / "state.json").is_file():
                raise UserError(f"`resume_from_checkpoint` {wanted} is no checkpoint: give `latest` or its folder.")
            if self.file.exists() and path.resolve().parent != self.folder.resolve():
                raise UserError(
                    f"`resume_from_checkpoint` {wanted} belongs to another folder than `output_dir` {self.folder}, "
                    "which holds a run of its own: give another `output_dir`."
                )
            return path
        if self.file.exists() and (difference := self._difference()):
            raise UserError(
                f"`output_dir` {self.folder} holds a different run{difference}. Give these as they were, or another "
                "`output_dir`."
            )
        return existing[-1] if existing else None

    def _difference(self) -> str:
        try:
            before = json.loads(self.file.read_text())["config"]
        except (OSError, ValueError, KeyError):
            return ""
        return self.difference(before)

    def difference(self, before: dict[str, Any]) -> str:
        """Which of the options that must not change are not what they were: empty if all are."""
        changed = [
            f"`{name}` {before[name]} there, {value} here"
            for name, value in self.fixed.items()
            if name in before and before[name] != value
        ]
        return f", whose options differ ({'; '.join(changed)})" if changed else ""

    def clear(self) -> None:
        """Deletes an earlier run's files, and nothing that hfgen did not write, if that was asked for."""
        if not self.training.overwrite_output_dir or not self.file.exists():
            return
        try:
            files = pipeline_files(self.folder)  # with the code that the pipeline carries
        except UserError:
            files = []
        components = {file.parts[0] for file in files if len(file.parts) > 1}
        for file in files:
            (self.folder / file).unlink()
        for path in [*checkpoint.list_checkpoints(self.folder), *(self.folder / name for name in components)]:
            shutil.rmtree(path, ignore_errors=True)
        for name in ("samples", "best", self.training.logging_dir):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (*BESIDE_COMPONENTS, "run.json"):
            for path in self.folder.glob(name):
                path.unlink()

    def record(self, **progress: Any) -> dict[str, Any]:
        """What `run.json` holds."""
        return {
            "hfgen": version("hfgen"),
            "family": self.family,
            "command": self.command,
            "config": self.settings,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **progress,
        }
