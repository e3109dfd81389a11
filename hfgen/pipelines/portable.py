"""Pipelines that are saved together with the code that they are made of, so that diffusers alone can load them.

    model_index.json                   names the two entry files below and the classes in them
    pipeline_hfgen_gan.py              entry: imports all other files, which makes diffusers copy them
    pipeline_hfgen_gan__<digest>.py    what hfgen/pipelines/gan.py is, and so on for what it imports
    model/modeling_hfgen_dcgan.py      entry: takes the network from its file at the top
    modeling_hfgen_dcgan__<digest>.py  what hfgen/models/dcgan.py is

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
from pathlib import Path

from diffusers import DiffusionPipeline

DIGEST = re.compile(r"__[0-9a-f]{12}$")
IMPORT = re.compile(r"^\s*from \.(\w*) import (\w+)", re.MULTILINE)  # of a file of the same folder


class SelfContained(DiffusionPipeline):
    """A pipeline whose checkpoints carry their code."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `model_index.json`, which [`DiffusionPipeline.save_pretrained`] does last, and the code it names."""
        folder = Path(json_file_path).parent
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)  # where this pipeline came from is of no use elsewhere
        files: dict[str, str] = {}
        for name, value in index.items():
            if isinstance(value, list) and value[0]:
                forget_origin(folder / name / "config.json")
                code = self.code_of(value[0])
                if code:
                    files |= code
                    index[name] = [write_component_entry(folder / name, list(code)[-1], value[1]), value[1]]
        code = self.code_of(type(self).__module__)
        if code:
            files |= code
            kind = type(self).__name__
            index["_class_name"] = [write_pipeline_entry(folder, sorted(files), list(code)[-1], kind), kind]
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        Path(json_file_path).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def code_of(module: str) -> dict[str, str]:
        """Reads the files of a module that came with a checkpoint.

        Returns:
            `dict`: Their texts by name, the module's own last; empty for a module that was installed.
        """
        if not module.startswith("diffusers_modules."):
            return {}
        return read_files(Path(str(sys.modules[module].__file__)))


def read_files(file: Path) -> dict[str, str]:
    """Reads a file and those of its folder that it imports: texts by name, its own last."""
    text = file.read_text(encoding="utf-8")
    files: dict[str, str] = {}
    for module, name in IMPORT.findall(text):
        files |= read_files(file.with_name(f"{module or name}.py"))
    return files | {file.stem: text}


def entry_name(prefix: str, main: str) -> str:
    """Names an entry file: `modeling_hfgen_dcgan` for the network in `modeling_hfgen_dcgan__<digest>`."""
    return prefix + DIGEST.sub("", main).partition("_")[2]


def write_component_entry(folder: Path, main: str, kind: str) -> str:
    """Writes the entry file of a component, which diffusers downloads alone; returns its name.

    It imports in a way that diffusers does not follow: the file is at the top, where the pipeline's entry names it.
    """
    name = entry_name("modeling_", main)
    text = f'"""The code of {kind} is in ../{main}.py."""\n\nfrom . import {main}\n\n{kind} = {main}.{kind}\n'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def write_pipeline_entry(folder: Path, files: list[str], main: str, kind: str) -> str:
    """Writes the entry file of a pipeline; returns its name."""
    name = entry_name("pipeline_", main)
    lines = [f"from .{file} import __name__ as _" for file in files if file != main]
    lines.append(f"from .{main} import {kind} as {kind}")
    text = f'"""The files that diffusers copies and runs: the code of {kind} and of its networks."""\n\n'
    (folder / f"{name}.py").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    return name


def forget_origin(file: Path) -> None:
    """Takes out of a component's configuration from which folder it was loaded."""
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if config.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
