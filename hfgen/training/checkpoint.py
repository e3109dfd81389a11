"""Checkpoints that are whole or absent: tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is written under a temporary name, synced to the disk and renamed. Whatever kills the run, a folder called
`checkpoint-<images>` is complete.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hfgen.runtime.distributed import in_first_process
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import TEMPORARY, remove, sha256_of, sync, write_json

if TYPE_CHECKING:
    from hfgen.training.engine import Engine
    from hfgen.training.folder import RunFolder

FORMAT = 1
PREFIX = "checkpoint-"
# What `state.json` holds of a run, and what its engine adds, which earlier versions did not.
STATE = {"config": dict, "data": str, "images_per_step": int, "total": int, "seconds": int | float, "streams": list}
MORE = {"frozen": dict, "micro_batch": int, "num_processes": int, "scaler": dict | None, "metric_images": dict}


def path_of(folder: Path, images_seen: int) -> Path:
    """Returns the folder of a checkpoint."""
    return folder / f"{PREFIX}{images_seen:012d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of a run, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def latest_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the tensors of the newest checkpoint of a folder that can be read; none without one."""
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(UnreadableError):
            return load(path)[0]
    return {}


def save(folder: Path, images_seen: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> Path:
    """Writes a checkpoint.

    Args:
        folder (`Path`): The run's folder.
        images_seen (`int`): Names the checkpoint.
        tensors (`dict[str, dict[str, torch.Tensor]]`): One safetensors file each.
        state (`dict`): JSON-ready values.

    Raises:
        UserError: If it cannot be written; older checkpoints are untouched.
    """
    name = path_of(folder, images_seen).name
    temporary = folder / f"{TEMPORARY}{name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file, content in tensors.items():
            save_file({key: value.contiguous() for key, value in content.items()}, temporary / f"{file}.safetensors")
        digests = {file: sha256_of(temporary / f"{file}.safetensors") for file in tensors}
        values = {"format": FORMAT, "images_seen": images_seen, "files": digests, **state}
        write_json(temporary / "state.json", values | {"digest": _digest(values)})
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        target, old = folder / name, folder / f"{TEMPORARY}old-{name}"
        if target.exists():  # the same state, written by an earlier life of this run
            target.rename(old)
        temporary.rename(target)
        sync(folder)
        remove(old)
        return target
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = list_checkpoints(folder)
        good = f"The last good checkpoint is {last[-1]}." if last else "There is no earlier checkpoint."
        raise UserError(
            f"`output_dir` {folder}: the checkpoint at {images_seen} images cannot be written: {error}. {good} "
            "Make room and resume with `resume_from_checkpoint` latest."
        ) from None


class UnreadableError(UserError):
    """A checkpoint that is broken: cut short, incomplete or changed. The message says which, and how."""


def load(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Reads what [`save`] wrote, and checks that it is all of that.

    Raises:
        UnreadableError: If it is broken.
        UserError: If another version of hfgen wrote it.
    """
    state: Any = None
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "format" not in state:
            raise ValueError("state.json is not what hfgen writes")
        if state["format"] == FORMAT:
            check_files(path, state)
            return {file.stem: load_file(file) for file in path.glob("*.safetensors")}, state
    except (OSError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise UnreadableError(f"{path} cannot be read: {str(error).rstrip('.')}.") from None
    raise UserError(
        f"`resume_from_checkpoint` {path} has format {state['format']}, this version of hfgen reads {FORMAT}: resume "
        "with the version that wrote it."
    )


def _digest(state: dict[str, Any]) -> str:
    """Computes the digest of JSON-ready values."""
    as_read = json.loads(json.dumps(state))  # whose keys are texts
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def check_files(path: Path, state: dict[str, Any]) -> None:
    """Raises `ValueError` if a checkpoint is not whole, as far as its `state.json` tells: those of earlier versions of
    hfgen name neither its own digest nor the files."""
    if "digest" in state and state["digest"] != _digest({k: v for k, v in state.items() if k != "digest"}):
        raise ValueError("state.json was changed: it is not what was written")
    images_seen, digits = state.get("images_seen"), path.name.removeprefix(PREFIX)
    if not isinstance(images_seen, int) or (digits.isdecimal() and int(digits) != images_seen):
        raise ValueError(f"state.json says that it is of {images_seen} images")
    for name, digest in dict(state.get("files", {})).items():
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{file.name} is missing")
        if sha256_of(file) != digest:
            raise ValueError(f"{file.name} is cut short or was changed: it is not what was written")


def prune(folder: Path, limit: int) -> None:
    """Deletes the oldest checkpoints beyond `limit`."""
    for path in list_checkpoints(folder)[:-limit]:
        # Renamed first: a deletion that is killed half-way must not leave something that looks like a checkpoint.
        doomed = path.with_name(TEMPORARY + path.name)
        path.rename(doomed)
        remove(doomed)


def set_aside(folder: Path, images_seen: int) -> list[Path]:
    """Renames checkpoints later than the one that is resumed from: the run will make others in their place."""
    moved = []
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix(PREFIX)) > images_seen:
            target = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            moved.append(path.rename(target))
    return moved


class Checkpoints:
    """Saves and resumes a run: all that its engine, its stream and its position are made of.

    Args:
        engine ([`Engine`]), stream ([`~data.streams.Stream`]), folder ([`RunFolder`]): The parts of the run.
    """

    def __init__(self, engine: "Engine", stream: Any, folder: "RunFolder"):
        self.engine, self.stream, self.folder = engine, stream, folder
        self.schedule, self.accelerator = engine.schedule, engine.accelerator

    def save(self, images_seen: int, seconds: float, write_record: Callable[[], None]) -> Path:
        """Writes a checkpoint, deletes the oldest beyond the limit, and calls `write_record`. Every process must call
        this.

        Args:
            images_seen (`int`), seconds (`float`): The position, and the time that it took.
            write_record (`Callable`): Writes `run.json`.

        Raises:
            UserError: If it cannot be written, in every process: none waits for one that is gone.
        """
        streams = gather_object([self.stream.state()])
        tensors, values = self.engine.state_dict()
        state = {
            "config": self.folder.options.fixed,
            "data": self.stream.info.fingerprint,
            "images_per_step": self.schedule.batch,
            "total": self.schedule.total,
            "seconds": seconds,
            "streams": streams,
            **values,
        }

        def write() -> None:
            save(self.folder.path, images_seen, tensors, state)
            if self.engine.config.checkpoints_total_limit is not None:
                prune(self.folder.path, self.engine.config.checkpoints_total_limit)
            write_record()

        in_first_process(self.accelerator, write)
        return path_of(self.folder.path, images_seen)

    def resume(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Gives engine and stream the state of the folder's checkpoint, or where that is broken and `latest` was asked
        for, of the newest one that is not.

        Returns:
            Its JSON values, and `has_metrics`: whether it holds sums of metrics since the last line.

        Raises:
            UserError: If it is broken, or the checkpoint of another run.
        """
        tensors, state = self._load(say)
        try:
            self._check(state, say)
            self.engine.load_state_dict(tensors, state)
        except UserError as error:
            raise UserError(f"`resume_from_checkpoint` {self.folder.checkpoint}: {error}") from None
        if state["streams"][0] is not None:
            self.stream.restore(state["streams"][self.accelerator.process_index])
        if state["total"] != self.schedule.total:
            say(
                f"The run was to be {state['total']} images long and is now {self.schedule.total}: the learning rate "
                "follows the new length from here on."
            )
        return state | {"has_metrics": bool(tensors.get("metrics"))}

    def _load(self, say: Callable[[str], None]) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """Reads the folder's checkpoint. If it is broken, looks for the newest one that is not: takes it for `latest`,
        and names it where the broken one was asked for."""
        first, asked = self.folder.checkpoint, self.folder.options.training.resume_from_checkpoint
        assert first is not None
        checkpoints = list_checkpoints(first.parent)
        older = checkpoints[: checkpoints.index(first)] if first in checkpoints else []
        broken: list[str] = []
        for path in [first, *reversed(older)]:
            try:
                tensors, state = load(path)
                self._check_whole(path, tensors, state)
            except UnreadableError as error:
                broken.append(str(error))
                continue
            if not broken:
                return tensors, state
            if asked == "latest":
                for text in broken:
                    say(f"Warning: {text}")
                say(f"Warning: {path} is the newest checkpoint that is whole: the run goes on from there.")
                self.folder.checkpoint = path
                return tensors, state
            remedy = f"The newest that can be read is {path}: give that"
            break
        else:
            remedy = "There is no older one that can be read: start anew with `overwrite_output_dir`"
        raise UserError(f"`resume_from_checkpoint` {asked}: {broken[0]} {remedy}.")

    def _check_whole(self, path: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        """Raises [`UnreadableError`] for a checkpoint that lacks a part of what a run saves."""
        wrong = [name for name, kind in STATE.items() if not isinstance(state.get(name), kind)]
        wrong += [name for name, kind in MORE.items() if name in state and not isinstance(state[name], kind)]
        if wrong or not state["streams"]:
            raise UnreadableError(f"{path} cannot be read: state.json lacks {', '.join(wrong or ['streams'])}.")
        missing = sorted(self.engine.state_files - tensors.keys())
        if missing and not self.folder.difference(state["config"]):
            raise UnreadableError(f"{path} cannot be read: {missing[0]}.safetensors is missing.")

    def _check(self, state: dict[str, Any], say: Callable[[str], None]) -> None:
        """Raises [`UserError`] for the checkpoint of another run, and says what another split of a batch changes."""
        difference = self.folder.difference(state["config"])
        if difference:
            raise UserError(f"it belongs to a different run{difference}. Give these as they were.")
        if state["data"] != self.stream.info.fingerprint:
            raise UserError(
                f"it was trained on other data than {self.stream.info.name} now holds, on other columns of it, or on "
                "groups that an earlier version found in oblong images: give the same."
            )
        if state["images_per_step"] != self.schedule.batch:
            raise UserError(
                f"it took {state['images_per_step']} images per step, this run takes {self.schedule.batch}: choose "
                "`train_batch_size` and `gradient_accumulation_steps` so that processes x batch x accumulation agree."
            )
        streams, processes = state["streams"], self.accelerator.num_processes
        if streams[0] is not None and len(streams) != processes:
            raise UserError(
                f"it was written by {len(streams)} processes; a stream can only be resumed with as many, not with "
                f"{processes}."
            )
        before, now = state.get("micro_batch", self.schedule.micro_batch), self.schedule.micro_batch
        statistics = self.engine.recipe.batch_statistics or batch_layers(self.engine.modules)
        if before != now and statistics:
            say(
                f"Warning: the batch was split into parts of {before} images and is now split into parts of {now}. "
                f"Over each, {statistics} is computed, so the run goes on otherwise than it would have."
            )


def batch_layers(modules: dict[str, torch.nn.Module]) -> str | None:
    """Names the kind of layer whose result for an image depends on the micro-batch that it is in, if there is one."""
    layers = [layer for module in modules.values() for layer in module.modules()]
    if any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in layers):
        return "batch normalisation"
    dropout = torch.nn.modules.dropout._DropoutNd
    return "the mask of dropout" if any(isinstance(layer, dropout) and layer.p > 0 for layer in layers) else None
