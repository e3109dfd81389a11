"""Loading of checkpoints: any that an installed family declares."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from hfgen.pipelines.self_contained import SelfContained, check_components, index_folder, weight_files
from hfgen.registry import PipelineEntry, load, pipeline_entries
from hfgen.runtime.errors import UserError, one_line

HUB = ("revision", "token", "cache_dir", "local_files_only")  # arguments of downloads


def entry_of(path: str, **hub: Any) -> PipelineEntry:
    """Finds what a family declares of a checkpoint's pipeline. Of the checkpoint, only `model_index.json` is read.

    Args:
        path (`str`): Folder or Hub id.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        UserError: If there is no such checkpoint, or no family declares its class.
    """
    # diffusers passes an argument that huggingface_hub calls deprecated.
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
    if not Path(path).exists() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):  # no id on the Hub
        raise UserError(f"{path} holds no pipeline: there is no such folder. Give a finished run's, or a Hub id.")
    try:
        name = diffusers.DiffusionPipeline.load_config(index_folder(path, **hub)).get("_class_name")
    except Exception as error:  # of many kinds, as the files may be anything
        raise UserError(
            f"{path} holds no pipeline: {one_line(error)}. Give the `output_dir` of a finished run, or a Hub id."
        ) from None
    name = str(name[-1] if isinstance(name, list) and name else name)  # a file and a class, or a class
    entries = pipeline_entries()
    if name not in entries:
        raise UserError(
            f"{path} holds a {name}, which hfgen does not sample from. It knows: {', '.join(sorted(entries))}. If it "
            "is of another package, install that."
        )
    return entries[name]


def load_pipeline(path: str, **kwargs: Any) -> diffusers.DiffusionPipeline:
    """Loads any checkpoint that hfgen writes, with the class that its `model_index.json` names.

    Runs no code from the checkpoint: the class is ours, one of diffusers, or one of an installed family.

    Args:
        path (`str`): Folder or Hub id.
        kwargs: Passed to `from_pretrained`: `revision`, `dtype`, `token`, ...

    Raises:
        UserError: If there is no such checkpoint, no family declares its class, or it cannot be loaded.
    """
    entry = entry_of(path, **{key: kwargs[key] for key in HUB if key in kwargs})
    kind = load(entry.pipeline, f"the pipeline {entry.class_name}")
    try:
        if not issubclass(kind, SelfContained):  # which looks at the files before it makes networks of them
            path = path if Path(path).is_dir() else SelfContained.download(path, **kwargs)
            check_components(kind, dict(kind.load_config(path)), Path(path))
        with _quietly():
            return kind.from_pretrained(path, **kwargs | {"use_safetensors": True, "trust_remote_code": False})
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {one_line(error)}.") from None


def check_checkpoint(folder: Path, kind: Any = None) -> tuple[dict[str, Any], type, dict[str, type]]:
    """Looks at a checkpoint as [`load_pipeline`] does, but reads no weights.

    Args:
        folder (`Path`): Where it is.
        kind (`type`, *optional*): The class of the pipeline; by default the one that `model_index.json` names.

    Returns:
        What `model_index.json` holds, with the modules of the classes that are installed; the class of the pipeline,
        and those of its components.

    Raises:
        UserError: If it could not be loaded, or a network has no weights.
    """
    if kind is None:
        entry = entry_of(str(folder))
        kind = load(entry.pipeline, f"the pipeline {entry.class_name}")
    try:
        index = dict(diffusers.DiffusionPipeline.load_config(folder))
        kinds = check_components(kind, index, folder)
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}.") from None
    for name, component in kinds.items():
        file = getattr(component, "config_name", None)  # tokenizers and the like have none
        if not (folder / name / (file or "")).exists():
            raise UserError(f"{folder} is not complete: there is no {name}/{file or ''}.")
        ours = not component.__module__.startswith("transformers.")
        weights = weight_files(folder / name) if ours else list((folder / name).glob("model*.safetensors"))
        if issubclass(component, torch.nn.Module) and not weights:
            raise UserError(f"{folder} is not complete: there are no weights of {name}, as safetensors.")
    return index, kind, kinds


@contextlib.contextmanager
def in_use(name: str) -> Iterator[None]:
    """Turns whatever goes wrong inside, where a checkpoint from elsewhere is used for the first time, into one line:
    its configurations may hold anything, and what that does shows when its networks run.

    Args:
        name (`str`): What to call the checkpoint.

    Raises:
        UserError: See above.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be used: {one_line(error)}. Give another checkpoint.") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hides diffusers' progress bar, which is over before it can be read."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
