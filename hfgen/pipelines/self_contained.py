"""Checkpoints that carry their code: plain diffusers runs it if it is told to, and hfgen never does.

A folder holds copies of the files that define its pipeline and networks, under names that no other project uses, since
diffusers runs all such code in one shared namespace:

    model_index.json            names the two files below and the classes in them
    pipeline_hfgen_gan.py       what hfgen/pipelines/gan.py is
    pipeline_hfgen_base.py      what it imports
    model/modeling_hfgen_dcgan.py, config.json, diffusion_pytorch_model.safetensors

Without hfgen, `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs these files, and refuses to
without the flag. With hfgen, `from_pretrained` of our pipelines takes the classes that are installed.

diffusers runs a file that others import only once: without hfgen, checkpoints that different versions of it wrote are
best loaded in different processes. What a pipeline loaded without hfgen saves lacks the code, and loads with hfgen.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from hfgen.runtime.errors import UserError

FILE_NAMES = {"hfgen.models.": "modeling_hfgen_", "hfgen.pipelines.": "pipeline_hfgen_"}

# A network's module: as it is called here, in a folder, or by a diffusers that ran the folder's code.
MODEL_MODULE = re.compile(r"(?:hfgen\.models\.|(?:diffusers_modules\.(?:\S+\.)?)?modeling_hfgen_)([a-z0-9_]+)")

# How the imports of our files read in a folder, where this file does not go.
BASE = "from .pipeline_hfgen_base import"
IMPORTS = {
    "from hfgen.models.base import": "from diffusers import",
    "from hfgen.pipelines.base import": BASE,
    "from hfgen.pipelines.self_contained import": "from diffusers import DiffusionPipeline as",
}

DOWNLOADED = ["*.json", "*.safetensors"]  # no code, no pickles
# More is no checkpoint, but an attempt to fill the memory.
MOST_STEPS = 100_000  # of a scheduler, which makes tables of that length
MOST_PIXELS = 4096  # height or width; networks of convolutions alone have weights of the same size for any
MOST_LEVELS = 100  # entries of a list, one for each size of feature maps
MOST_MODULES = 20_000  # of a network, with or without weights
MOST_JSON = 10_000_000  # bytes of a file


class SelfContained(DiffusionPipeline):
    """A pipeline whose checkpoints carry their code, and that runs none of it."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `model_index.json`, which [`DiffusionPipeline.save_pretrained`] does last, and the code it names."""
        folder = Path(json_file_path).parent
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)  # where this pipeline came from is nobody's business
        for name, value in index.items():
            if isinstance(value, list) and value[0]:
                index[name] = [ship(value[0], folder / name), value[1]]
                forget_origin(folder / name / "config.json")
        if is_ours(type(self).__module__):
            index["_class_name"] = [ship(type(self).__module__, folder), type(self).__name__]
        Path(json_file_path).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """See [`DiffusionPipeline.save_pretrained`]. Writes no pickles.

        Raises:
            UserError: If it is asked for pickles, or if the push fails.
        """
        if not safe_serialization:
            raise UserError("safe_serialization is False, but weights are written as safetensors alone: leave it out.")
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
            self.push_to_hub(repo_id, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Uploads the pipeline to the Hub, with the card of the folder that it was loaded from.

        Args:
            repo_id (`str`): `name` or `user/name`. The repository is made if need be.
            commit_message (`str`, *optional*, defaults to `"Upload <class>"`): Title of the commit.
            private (`bool`, *optional*): Whether the repository must be private.
            token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.
            create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request.
            safe_serialization (`bool`, *optional*, defaults to `True`): Nothing else is written.
            variant (`str`, *optional*): Part of the name of the weights' files.
            revision (`str`, *optional*): Branch, made if need be. By default `main`.

        Returns:
            `str`: The address.

        Raises:
            UserError: If the Hub cannot take it.
        """
        from hfgen.hub.push import push_pipeline

        if not safe_serialization:
            raise UserError("safe_serialization is False, but weights are written as safetensors alone: leave it out.")
        title = commit_message or f"Upload {type(self).__name__}"
        return push_pipeline(self, repo_id, revision, create_pr, title, private=private, token=token, variant=variant)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See [`DiffusionPipeline.from_pretrained`]. Runs no code of the checkpoint and reads no pickles.

        Raises:
            UserError: For a checkpoint whose parts are none that we load, or whose sizes its weights do not fill.
        """
        if kwargs.get("use_safetensors") is False:
            raise UserError("use_safetensors is False, but weights are read from safetensors alone: leave it out.")
        kwargs |= {"use_safetensors": True, "trust_remote_code": False}
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Reads `model_index.json`, with the classes that are installed in place of those that the folder holds.

        Raises:
            UserError: For a component that is no network or scheduler, or that does not fit the files in its folder.
        """
        check_json(Path(pretrained_model_name_or_path))
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        index["_class_name"] = cls.__name__
        for name, value in index.items():
            if isinstance(value, list) and value != [None, None]:
                index[name], kind = installed(name, value)
                check_files(kind, Path(pretrained_model_name_or_path) / name)
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: Any, **kwargs: Any) -> Any:
        """Downloads a checkpoint without its code.

        diffusers' own method would run the code, or refuse to.
        """
        from huggingface_hub import snapshot_download

        known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in known if name in kwargs}
        return snapshot_download(pretrained_model_name, allow_patterns=DOWNLOADED, **options)


# Saving


def is_ours(module: str) -> bool:
    """Whether a module may travel with a checkpoint."""
    return module.startswith(tuple(FILE_NAMES))


def ship(module: str, folder: Path) -> str:
    """Copies a module of ours into a folder.

    Returns:
        `str`: What it is called there. Modules of others stay where they are and keep their names.
    """
    if not is_ours(module):
        return module
    text = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    for here, there in IMPORTS.items():
        text = text.replace(here, there)
    if BASE in text:
        ship("hfgen.pipelines.base", folder)
    prefix = next(prefix for prefix in FILE_NAMES if module.startswith(prefix))
    name = FILE_NAMES[prefix] + module.removeprefix(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def forget_origin(file: Path) -> None:
    """Takes out of a network's configuration from which folder it was loaded."""
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if config.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# Loading


def installed(name: str, value: list) -> tuple[list[str], type]:
    """The class that an entry of `model_index.json` stands for, without running code of the checkpoint.

    Args:
        name (`str`): The component.
        value (`list`): Its entry: a module and a class.

    Returns:
        The entry with the module where that class is, and the class: a network of ours, a network or scheduler of
        diffusers, or one from a module that was imported already.

    Raises:
        UserError: If it is none of these.
    """
    if not name.isidentifier() or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise UserError(f"model_index.json says that {name} is {value}, which is no module and class.")
    module, kind = value
    match = MODEL_MODULE.fullmatch(module)
    if match:
        module = f"hfgen.models.{match[1]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            raise UserError(
                f"model_index.json says that {name} is a {kind} from {value[0]}.py, which this version of hfgen does "
                "not have: update hfgen."
            ) from None
    found = getattr(sys.modules.get(module), kind, None)
    if not (isinstance(found, type) and issubclass(found, (ModelMixin, SchedulerMixin))):
        raise UserError(
            f"model_index.json says that {name} is {kind} of {module}, which is no network or scheduler of "
            f"hfgen, diffusers or a module that was imported before: if it is yours, import {module} first."
        )
    return [module, kind], found


def index_folder(name: str, **options: Any) -> Path:
    """The folder with the `model_index.json` of a checkpoint, a folder or on the Hub; nothing else is downloaded.

    Raises:
        UserError: If it is too large to be read.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(name)
    if not folder.is_dir():
        folder = Path(hf_hub_download(name, SelfContained.config_name, **options)).parent
    check_json(folder)
    return folder


def check_json(folder: Path) -> None:
    """Raises [`UserError`] for JSON that would take seconds and gigabytes to read."""
    for file in folder.glob("*.json"):
        if file.stat().st_size > MOST_JSON:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, more than {MOST_JSON}: the checkpoint is broken."
            )


def check_files(kind: Any, folder: Path) -> None:
    """Looks at a component's files before anything of their size is made.

    Args:
        kind (`type`): The class of the component.
        folder (`Path`): Its folder.

    Raises:
        UserError: If a file is too large, an index names files elsewhere, a network has more numbers than its files
            have bytes, or something else of it is beyond the limits above.
    """
    check_json(folder)
    for index in folder.glob("*.index*.json"):
        for shard in set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()):
            if Path(shard).name != shard:
                raise UserError(f"{index} names {shard}, which is no file of its folder: the checkpoint is broken.")
    file = folder / kind.config_name
    if not file.exists():
        return  # diffusers says so
    config = kind.load_config(folder)
    levels = max((len(value) for value in config.values() if isinstance(value, list)), default=0)
    scheduler = issubclass(kind, SchedulerMixin)
    if levels > MOST_LEVELS and not scheduler:
        raise UserError(f"{file} has a list of {levels} entries, more than {MOST_LEVELS}: the checkpoint is broken.")
    most = MOST_STEPS if scheduler else MOST_PIXELS
    for name in config if scheduler else ["sample_size"]:  # schedulers make tables of various lengths
        values = config.get(name)
        for value in values if isinstance(values, list) else [values]:
            no_number = value is not None and name in ("num_train_timesteps", "sample_size")
            if value > most if isinstance(value, int) else no_number:
                raise UserError(
                    f"{file} has {name} {value!r}, but at most {most} is possible: the checkpoint is broken."
                )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if scheduler or not size or not kind.__module__.startswith(("hfgen.", "diffusers.")):
        return  # diffusers says that there are no weights; others may make networks that cannot be tried like this
    try:
        with limited(str(file), size), torch.device("meta"):  # no memory is touched
            kind.from_config(config)
    except UserError:
        raise
    except Exception as error:  # of many kinds, as the values may be anything
        raise UserError(f"{file} describes no network: {error}") from None


@contextlib.contextmanager
def limited(source: str, size: int) -> Iterator[None]:
    """Stops networks from being made that are larger than the files that are to fill them.

    Args:
        source (`str`): What describes them, for the message.
        size (`int`): Bytes of the files: the most numbers that may be made. There may be `MOST_MODULES` layers.

    Raises:
        UserError: If there are more.
    """
    numbers, modules, thread = 0, 0, threading.get_ident()

    def count(module: torch.nn.Module, name: str, made: torch.Tensor | torch.nn.Module | None) -> None:
        nonlocal numbers, modules
        if made is None or threading.get_ident() != thread:
            return
        if isinstance(made, torch.Tensor):
            numbers += made.numel()
        else:
            modules += 1
        if numbers > size:
            raise UserError(f"{source} describes a network larger than its weights: the checkpoint is broken.")
        if modules > MOST_MODULES:
            raise UserError(
                f"{source} describes a network of more than {MOST_MODULES} layers: the checkpoint is broken."
            )

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
