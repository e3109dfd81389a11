"""What of a folder may be published: what hfgen knows and has looked at. Code is always its own copy, never a file of
the folder."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hfgen.hub.push import ADAPTERS, CARD, INDEX, PICTURES, RECORD
from hfgen.hub.space import app_of
from hfgen.pipelines import export, portable
from hfgen.runtime.errors import UserError
from hfgen.sampling.loading import check_checkpoint

Contents = dict[str, bytes | Path]  # files by their names in the repository

PNG = b"\x89PNG"
COMPONENT = re.compile(
    r"config\.json|scheduler_config\.json|diffusion_pytorch_model[\w.-]*\.safetensors(\.index[\w.-]*\.json)?"
)
OF_TRANSFORMERS = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|"
    r"added_tokens|vocab)\.json|(merges|vocab)\.txt|[\w-]+\.model|model[\w.-]*\.safetensors(\.index[\w.-]*\.json)?"
)
REQUIREMENT = re.compile(r"[\w.-]+==[\w.]+")


def pipeline_contents(folder: Path, pipeline: type | None = None) -> Contents:
    """Returns the files of a pipeline that may be published: its index, configurations and weights, adapters alone,
    its card and pictures, the record of its training, and hfgen's own copy of the code that they need.

    Args:
        folder (`Path`): Where it was saved.
        pipeline (`type`, *optional*): Its class; by default the one that its index names.

    Raises:
        UserError: If there is no pipeline, if it could not be loaded, or if a network lacks its weights.
    """
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} holds no pipeline: give the folder of a finished run or `best` in it, or for a Space "
            "`repo_type` space."
        )
    index, pipeline, kinds = check_checkpoint(folder, pipeline)
    contents: Contents = {}
    for name, kind in kinds.items():
        known = OF_TRANSFORMERS if kind.__module__.startswith("transformers.") else COMPONENT
        for file in sorted((folder / name).iterdir()):
            if known.fullmatch(file.name):
                contents[f"{name}/{file.name}"] = _read(file)
    for name in (CARD, *PICTURES, RECORD, ADAPTERS):
        if (folder / name).is_file():
            contents[name] = _read(folder / name)
    return contents | _code(index, pipeline, kinds, contents)


def _read(file: Path) -> bytes | Path:
    """Looks at a file; returns it, or what it holds, if that is little.

    Raises:
        UserError: If it is not what its name says.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return file
        content = file.read_bytes()
        if file.suffix == ".png" and not content.startswith(PNG):
            raise ValueError("it is no PNG file")
        if file.suffix in (".json", ".md"):
            text = content.decode()
            if file.suffix == ".json" and not isinstance(json.loads(text), dict):
                raise ValueError("it holds no mapping")
        return content
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{file} cannot be published: {error}. Restore it, or take it away.") from None


def _code(index: dict[str, Any], pipeline: type, kinds: dict[str, type], contents: Contents) -> Contents:
    """Writes the code of a pipeline anew, as it is installed here, and what names it: the index and the
    configurations."""
    index.pop("auto_map", None)
    index["_class_name"] = pipeline.__name__
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in kinds:
            (folder / name).mkdir()
            content = contents.get(f"{name}/config.json")
            if isinstance(content, bytes):
                ours = {"AutoModel": f"{portable.AUTO}.{portable.MODEL}"}
                config = json.loads(content)
                if config.get("auto_map", ours) != ours:
                    del config["auto_map"]
                    content = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
                (folder / name / "config.json").write_bytes(content)
        networks = {name for name, kind in kinds.items() if issubclass(kind, torch.nn.Module)}
        portable.write_index(folder / INDEX, index, pipeline, networks, export.code_of)
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def space_contents(folder: Path) -> Contents:
    """Returns the files of a Space that `hfgen demo` wrote, as they may be published: the library is the one that is
    installed here.

    Raises:
        UserError: If the folder holds something else.
    """
    if not (folder / "app.py").is_file():
        raise UserError(f"{folder} holds no Space: give the folder that `hfgen demo` wrote with `space_dir`.")
    contents: Contents = {"app.py": app_of(folder / "app.py").encode()}
    for name in ("requirements.txt", CARD):
        content = _read(folder / name)
        assert isinstance(content, bytes)
        contents[name] = content
    lines = bytes(contents["requirements.txt"]).decode(errors="replace").split()
    foreign = next((line for line in lines if not REQUIREMENT.fullmatch(line)), None)
    if foreign is not None:
        raise UserError(
            f"{folder / 'requirements.txt'} has {foreign!r}, which `hfgen demo` did not write: take it out."
        )
    if (folder / "model").exists():
        model = pipeline_contents(folder / "model")
        contents |= {f"model/{name}": content for name, content in model.items()}
    return contents | library()


def library() -> Contents:
    """Returns the files of this library, as a Space has them."""
    home = Path(__file__).parents[1]
    files = [file.relative_to(home) for file in sorted(home.rglob("*")) if file.is_file()]
    return {
        f"hfgen/{file.as_posix()}": home / file
        for file in files
        if not any(part.startswith((".", "__pycache__")) for part in file.parts)
    }


def write_contents(contents: Contents, folder: Path) -> None:
    """Writes files into a folder."""
    for name, content in contents.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)
