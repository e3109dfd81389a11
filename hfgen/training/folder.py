"""The folder of a run: what it may be used for, and `run.json`, which says how it came about."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfgen.hub.push import BESIDE_COMPONENTS, pipeline_files
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import upgrade
from hfgen.runtime.provenance import read_run, record
from hfgen.runtime.writable import require_folder
from hfgen.training import checkpoint
from hfgen.training.options import RunOptions


class RunFolder:
    """A run's folder, which is also the folder of its pipeline.

    Args:
        options ([`RunOptions`]): The options of the run.

    Raises:
        UserError: If the folder cannot be that of this run; nothing is changed then.
    """

    def __init__(self, options: RunOptions):
        self.options, training = options, options.training
        self.path = Path(str(training.output_dir))
        self.file = self.path / "run.json"
        self.best = self.path / "best"
        self.logs = self.path / training.logging_dir
        self.checkpoint = self._find_checkpoint()

    @property
    def model_id(self) -> str:
        """Returns the repository of the run on the Hub."""
        return self.options.training.hub_model_id or self.path.resolve().name

    @property
    def parts(self) -> tuple[Path, ...]:
        """Returns the folders in it that hold neither a checkpoint nor a network."""
        return self.path / "samples", self.path / "overview", self.best, self.logs

    def grid(self, images_seen: int) -> Path:
        """Returns the path of a sample grid."""
        return self.path / "samples" / f"{images_seen:012d}.png"

    def last_good(self) -> str:
        """Says which checkpoint a failed run can go on from."""
        good = checkpoint.list_checkpoints(self.path)
        return f"The last good checkpoint is {good[-1]}." if good else "There is no checkpoint yet."

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an error of the system, while files are written into the folder, into one line."""
        try:
            yield
        except OSError as error:
            if error.errno is None:  # not the system's, but an error of a library that is called so
                raise
            raise UserError(f"`output_dir` {self.path} cannot be written: {error}. {self.last_good()}") from None

    def _find_checkpoint(self) -> Path | None:
        """Decides whether to start or to go on, and from which checkpoint; changes nothing."""
        training = self.options.training
        resumed = training.resume_from_checkpoint
        require_folder(self.path, "output_dir")
        if self.path.resolve() not in self.logs.resolve().parents:
            raise UserError(f"`logging_dir` {training.logging_dir} is outside of `output_dir`: give a folder name.")
        names = (*BESIDE_COMPONENTS, "samples", "overview", "best", training.logging_dir)
        taken = [path.name for name in names for path in self.path.glob(name)]
        if taken and not self.file.exists():
            raise UserError(
                f"`output_dir` {self.path} holds {', '.join(taken)} of something else than a run of hfgen: give "
                "another folder."
            )
        if training.overwrite_output_dir:
            if resumed:
                raise UserError(
                    f"`overwrite_output_dir` and `resume_from_checkpoint` {resumed} exclude each other: give only one."
                )
            return None
        existing = checkpoint.list_checkpoints(self.path)
        if resumed is None:
            if existing or self.file.exists():
                raise UserError(
                    f"`output_dir` {self.path} already holds a run{self._difference()}. Go on with it (add "
                    "`resume_from_checkpoint` latest), delete it (`overwrite_output_dir`) or give another folder."
                )
            return None
        if resumed != "latest":
            path = Path(resumed)
            if not path.is_dir() and (self.path / resumed).is_dir():  # diffusers takes the bare name
                path = self.path / resumed
            named = path in checkpoint.list_checkpoints(path.parent)  # whether it is whole is seen when it is read
            if not named and not (path / "state.json").is_file():
                raise UserError(f"`resume_from_checkpoint` {resumed} is no checkpoint: give `latest` or its folder.")
            if self.file.exists() and path.resolve().parent != self.path.resolve():
                raise UserError(
                    f"`resume_from_checkpoint` {resumed} belongs to another folder than `output_dir` {self.path}, "
                    "which holds a run of its own: give another `output_dir`."
                )
            return path
        if self.file.exists() and (difference := self._difference()):
            raise UserError(
                f"`output_dir` {self.path} holds a different run{difference}. Give these as they were, or another "
                "`output_dir`."
            )
        return existing[-1] if existing else None

    @property
    def recorded_classes(self) -> tuple[str, ...] | None:
        """Returns the classes of the run that goes on, by number; `None` if it has none, or starts anew."""
        if self.checkpoint is None:
            return None
        return tuple(_read(self.checkpoint.parent).get("data", {}).get("class_names") or ()) or None

    def _difference(self) -> str:
        before = _read(self.path).get("config")
        return self.difference(before) if before else ""

    def difference(self, before: dict[str, Any]) -> str:
        """Names the options that must not change and are not what they were; empty if all are."""
        before = upgrade(map(type, self.options.parts), before)
        changed = [
            f"`{name}` {before[name]} there, {value} here"
            for name, value in self.options.fixed.items()
            if name in before and before[name] != value and not self.options.left_open(name, value, before[name])
        ]
        return f", whose options differ ({'; '.join(changed)})" if changed else ""

    def clear(self) -> None:
        """Deletes an earlier run's files, and nothing that hfgen did not write, if that was asked for."""
        if not self.options.training.overwrite_output_dir or not self.file.exists():
            return
        try:
            files = pipeline_files(self.path)  # with the code that the pipeline carries
        except UserError:
            files = []
        components = {file.parts[0] for file in files if len(file.parts) > 1}
        for file in files:
            (self.path / file).unlink()
        folders = [*checkpoint.list_checkpoints(self.path), *(self.path / name for name in components)]
        for folder in [*folders, *self.parts]:
            shutil.rmtree(folder, ignore_errors=True)
        for name in (*BESIDE_COMPONENTS, "run.json"):
            for path in self.path.glob(name):
                path.unlink()

    def record(self, **progress: Any) -> dict[str, Any]:
        """Returns the content of `run.json`."""
        return record(self.options.command, family=self.options.family.name, config=self.options.values, **progress)


def _read(folder: Path) -> dict[str, Any]:
    """Reads the record of a run; a broken one as none, since each checkpoint says by itself what it belongs to."""
    try:
        return read_run(folder)
    except UserError:
        return {}
