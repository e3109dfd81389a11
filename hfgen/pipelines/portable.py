"""Pipelines that are saved together with the code that they are made of, so that diffusers alone can load them.

    model_index.json                         names the two entry files below and the classes in them
    pipeline_hfgen_gan.py                    entry: imports all other files here, which makes diffusers copy them
    pipeline_hfgen_gan__<digest>.py          what hfgen/pipelines/gan.py is, and so on for what it imports
    modeling_hfgen_dcgan__<digest>.py        what hfgen/models/dcgan.py is
    model/modeling_hfgen_dcgan.py            entry: takes the network from its file at the top
    model/modeling_hfgen_auto.py             entry for `AutoModel`, which sees this folder alone
    model/modeling_hfgen_dcgan__<digest>.py  the network once more, for that entry

diffusers runs the code of all local folders in one flat namespace, files of one name in one module. Code is therefore
in files that carry a digest of their content in their name, so that checkpoints of different versions do not disturb
each other; entry files, whose names stay, only pass a class on.

This file travels with each checkpoint: it takes the place of hfgen's own loader, and saves what was loaded with the
files that it was made of.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

DIGEST = re.compile(r"__[0-9a-f]{12}$")
IMPORT = re.compile(r"^\s*from \.(\w*) import (\w+)", re.MULTILINE)  # of a file of the same folder
AUTO, MODEL = "modeling_hfgen_auto", "Model"  # the file that `AutoModel` runs, and what it calls the class
# How the files begin that are written here and have no digest in their name.
PIPELINE_ENTRY = '"""The files that diffusers copies and runs: '
COMPONENT_ENTRY = '"""The code of '
AUTO_ENTRY = '"""What `AutoModel` of diffusers copies and runs: '


class SelfContained(DiffusionPipeline):
    """A pipeline whose checkpoints carry their code."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `model_index.json`, which [`DiffusionPipeline.save_pretrained`] does last, and the code it names."""
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)  # where this pipeline came from is of no use elsewhere
        networks = {name for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        write_index(Path(json_file_path), index, type(self), networks, self.code_of)

    @staticmethod
    def code_of(module: str) -> dict[str, str]:
        """Reads the files of a module that came with a checkpoint.

        Returns:
            `dict`: Their texts by name, the module's own last; empty for a module that was installed.
        """
        if not module.startswith("diffusers_modules."):
            return {}
        return read_files(Path(str(sys.modules[module].__file__)))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Sorts what `model_index.json` holds, which [`DiffusionPipeline.from_pretrained`] does before it loads any
        component or takes one that it was given."""
        components = {name: value for name, value in config_dict.items() if name != "auto_map"}
        name_modules(cls.__module__.rpartition(".")[0], components)
        return super().extract_init_dict(components, **kwargs)


def write_index(
    file: Path, index: dict[str, Any], pipeline: type, networks: Collection[str], code_of: Callable[[str], dict]
) -> None:
    """Writes `model_index.json`, and the code that it names.

    Args:
        file (`Path`): In the folder of the checkpoint, which has those of its components.
        index (`dict`): What the file is to hold, with the modules where the classes of the components are.
        pipeline (`type`): The class of the pipeline.
        networks (`Collection[str]`): The components that are networks.
        code_of (`Callable`): Reads the files of a module: texts by name, its own last.
    """
    folder = file.parent
    entries = {name: value for name, value in index.items() if isinstance(value, list) and value[0]}
    codes = {name: code_of(module) for name, (module, _) in entries.items()}
    files = {name: text for code in codes.values() for name, text in code.items()}
    auto_map = {"AutoModel": f"{AUTO}.{MODEL}"} if files else None  # one line for all components
    for name, (module, kind) in entries.items():
        code, place = codes[name], folder / name
        finish_config(place / "config.json", auto_map if code else None)
        if code:
            index[name] = [write_component_entry(place, list(code)[-1], kind), kind]
        if auto_map and name in networks:
            write_auto_entry(place, code, module, kind)
        remove_unused_code(place, {*code, *([index[name][0]] if code else []), *([AUTO] if auto_map else [])})
    code = code_of(pipeline.__module__)
    if code:
        files |= code
        entry = write_pipeline_entry(folder, sorted(files), list(code)[-1], pipeline.__name__)
        index["_class_name"] = [entry, pipeline.__name__]
    if auto_map:
        index["auto_map"] = auto_map
    write_files(folder, files)
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    remove_unused_code(folder, {*files, *([index["_class_name"][0]] if code else [])})


def name_modules(package: str, index: dict[str, Any]) -> None:
    """Makes the modules known by which an index calls the classes of its components.

    diffusers looks there for the class of a component that is passed to `from_pretrained`; those that it loads itself
    it finds in their folders.

    Args:
        package (`str`): Where the code of the checkpoint is imported, which it is by now.
        index (`dict`): What `model_index.json` holds.
    """
    for key, value in index.items():
        if key.startswith("_") or not isinstance(value, list | tuple) or not isinstance(value[0], str):
            continue
        name, kind = value
        for module in list(sys.modules):
            if DIGEST.sub("", module) == f"{package}.{name}" != module and hasattr(sys.modules[module], kind):
                named = sys.modules.setdefault(name, ModuleType(name))
                named.ModelMixin = diffusers.ModelMixin  # type: ignore[attr-defined]
                setattr(named, kind, getattr(sys.modules[module], kind))


def read_files(file: Path) -> dict[str, str]:
    """Reads a file and those of its folder that it imports: texts by name, its own last."""
    text = file.read_text(encoding="utf-8")
    files: dict[str, str] = {}
    for module, name in IMPORT.findall(text):
        files |= read_files(file.with_name(f"{module or name}.py"))
    return files | {file.stem: text}


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Writes files of code: texts by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def entry_name(prefix: str, main: str) -> str:
    """Names an entry file: `modeling_hfgen_dcgan` for the network in `modeling_hfgen_dcgan__<digest>`."""
    return prefix + DIGEST.sub("", main).partition("_")[2]


def imports(files: Collection[str], main: str, kind: str, name: str) -> str:
    """Writes an import of each file, as diffusers copies only what an entry file imports itself, and of the class."""
    lines = [f"from .{file} import __name__ as _" for file in sorted(files) if file != main]
    return "\n".join([*lines, f"from .{main} import {kind} as {name}"]) + "\n"


def write_component_entry(folder: Path, main: str, kind: str) -> str:
    """Writes the entry file of a component, which diffusers downloads alone; returns its name.

    It imports in a way that diffusers does not follow: the file is at the top, where the pipeline's entry names it.
    """
    name = entry_name("modeling_", main)
    text = f'{COMPONENT_ENTRY}{kind} is in ../{main}.py."""\n\nfrom . import {main}\n\n{kind} = {main}.{kind}\n'
    write_files(folder, {name: text})
    return name


def write_auto_entry(folder: Path, code: dict[str, str], module: str, kind: str) -> None:
    """Writes the file by which `AutoModel` finds the class of a component, and its code beside it: nothing else of the
    checkpoint is copied then.

    Args:
        folder (`Path`): The component's.
        code (`dict`): Its code, the main file last; empty for a class of an installed package.
        module (`str`), kind (`str`): Where that is, and the class.
    """
    text = imports(code, list(code)[-1], kind, MODEL) if code else f"from {module} import {kind} as {MODEL}\n"
    write_files(folder, code | {AUTO: f'{AUTO_ENTRY}the code of {kind}."""\n\n{text}'})


def write_pipeline_entry(folder: Path, files: list[str], main: str, kind: str) -> str:
    """Writes the entry file of a pipeline; returns its name."""
    name = entry_name("pipeline_", main)
    text = f'{PIPELINE_ENTRY}the code of {kind} and of its networks."""\n\n{imports(files, main, kind, kind)}'
    write_files(folder, {name: text})
    return name


def finish_config(file: Path, auto_map: dict[str, str] | None) -> None:
    """Takes out of a component's configuration from which folder it was loaded, and writes in where `AutoModel` finds
    its class."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    config = {name: value for name, value in before.items() if name != "_name_or_path"}
    if config.get("auto_map") == {"AutoModel": f"{AUTO}.{MODEL}"}:  # of this kind; others may know of their own
        del config["auto_map"]
    config |= {"auto_map": auto_map} if auto_map else {}
    if config != before:
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def remove_unused_code(folder: Path, used: Collection[str]) -> None:
    """Deletes files of code that an earlier version wrote into a folder, and nothing that others did.

    Args:
        folder (`Path`): Of a pipeline or a component.
        used (`Collection[str]`): The names of the files that are still needed.
    """
    for file in folder.glob("*.py"):
        if file.stem in used:
            continue
        entry = (PIPELINE_ENTRY, COMPONENT_ENTRY, AUTO_ENTRY)
        generated = DIGEST.search(file.stem) and file.stem.startswith(("modeling_", "pipeline_", "hfgen_"))
        if generated or file.read_text(encoding="utf-8", errors="replace").startswith(entry):
            file.unlink()
