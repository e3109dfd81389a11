"""What a file says of the software and the command that made it."""

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hfgen.runtime.errors import UserError, one_line

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "datasets"),
    *("safetensors", "numpy", "pillow", "scikit-learn"),
)


# What the record of a training holds, as far as others read it.
RUN: dict[str, Any] = {
    **{"config": dict, "family": str, "data": dict, "machine": str, "parameters": dict, "evaluation": dict},
    **{"training_seconds": int | float, "images_seen": int},
}
DATA: dict[str, Any] = {"name": str, "split": str, "num_images": int | None, "class_names": list | None}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that numbers may depend on."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:  # a Space does without some
            continue
    return numbers


def record(command: str, **more: Any) -> dict[str, Any]:
    """Returns what every record holds, JSON: version of hfgen, command, versions of packages, time; and `more`."""
    return {
        "hfgen": version("hfgen"),
        "command": command,
        "versions": versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }


def read_run(folder: Path) -> dict[str, Any]:
    """Reads the `run.json` of a folder, the record of a training.

    Returns:
        `dict`: The record; empty if there is none, or one that hfgen did not write.

    Raises:
        UserError: If it is broken.
    """
    file = folder / "run.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "config" not in found:
            return {}
        _check(found, RUN, "")
        _check(found.get("data", {}), DATA, "data.")
        _check(found.get("parameters", {}), dict.fromkeys(found.get("parameters", {}), int), "parameters.")
        names = found.get("data", {}).get("class_names") or []
        _check(dict(enumerate(names)), dict.fromkeys(range(len(names)), str), "data.class_names.")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is broken: {one_line(error)}. Restore it, or take it away.") from None


def _check(values: Any, kinds: dict[Any, Any], prefix: str) -> None:
    """Raises `ValueError` for a value of another kind."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} in place of a mapping")
    for name, kind in kinds.items():
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ValueError(f"{prefix}{name} is of type {type(values[name]).__name__}")
