"""Inference: one self-contained file per family."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load_pipeline":  # where it was once
        import hfgen

        return hfgen.load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
