"""What a file says of the software and the command that made it."""

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "datasets"),
    *("safetensors", "numpy", "pillow", "scikit-learn"),
)


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
