"""Checkpoints that are whole or absent: tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is written under a temporary name, synced to the disk and renamed. Whatever kills the run, a folder called
`checkpoint-<images>` is complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hfgen.runtime.errors import UserError
from hfgen.runtime.files import TEMPORARY, sync, write_json

FORMAT = 1
PREFIX = "checkpoint-"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


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
    name = f"{PREFIX}{images_seen:012d}"
    temporary = folder / f"{TEMPORARY}{name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file, content in tensors.items():
            save_file({key: value.contiguous() for key, value in content.items()}, temporary / f"{file}.safetensors")
        write_json(temporary / "state.json", {"format": FORMAT, "images_seen": images_seen, **state})
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        target = folder / name
        if target.exists():  # the same state, written by an earlier life of this run
            target.rename(folder / f"{TEMPORARY}old-{name}")
        temporary.rename(target)
        sync(folder)
        return target
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = list_checkpoints(folder)
        good = f"The last good checkpoint is {last[-1]}." if last else "There is no earlier checkpoint."
        raise UserError(
            f"`output_dir` {folder}: the checkpoint at {images_seen} images cannot be written: {error}. {good} "
            "Make room and resume with `resume_from_checkpoint` latest."
        ) from None


def load(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Reads what [`save`] wrote.

    Raises:
        UserError: If it is no checkpoint of ours.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"`resume_from_checkpoint` {path} cannot be read: {error}. Give `latest` or a {PREFIX}<images> folder."
        ) from None
    if state.get("format") != FORMAT:
        raise UserError(
            f"`resume_from_checkpoint` {path} has format {state.get('format')}, this version of hfgen reads {FORMAT}: "
            "resume with the version that wrote it."
        )
    return tensors, state


def prune(folder: Path, limit: int | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`, and what a killed run left half-written."""
    for pattern in (f"{TEMPORARY}{PREFIX}*", f"{TEMPORARY}old-{PREFIX}*", f"{TEMPORARY}pipeline"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    if limit is not None:
        for path in list_checkpoints(folder)[:-limit]:
            # Renamed first: a deletion that is killed half-way must not leave something that looks like a checkpoint.
            doomed = path.with_name(TEMPORARY + path.name)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def set_aside(folder: Path, images_seen: int) -> list[Path]:
    """Renames checkpoints later than the one that is resumed from: they belong to a future that will not be."""
    moved = []
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix(PREFIX)) > images_seen:
            target = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            moved.append(path.rename(target))
    return moved
