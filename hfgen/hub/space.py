"""Folders that can be pushed as a Gradio Space."""

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.files import new_folder_at_once
from hfgen.runtime.writable import require_folder

NEEDED = "torch diffusers accelerate huggingface_hub safetensors numpy pillow tqdm".split()  # by the demo

APP = '''"""Shows what a checkpoint can do. The folder hfgen/ holds the library that wrote this file."""

from pathlib import Path

from hfgen.demo import serve

serve({model}, name={name!r}, revision={revision!r}, max_images={max_images}, provenance={provenance})
'''


# A number, a text, True, False or None, as Python writes it.
LITERAL = r"""(?:\d+|True|False|None|'(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*")"""
MODEL_HERE = 'str(Path(__file__).parent / "model")'


def app_of(file: Path) -> str:
    """Reads the app of a Space.

    Raises:
        UserError: If it is not, to the letter, what [`write_space`] writes.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    literals = {"model": MODEL_HERE, "name!r": None, "revision!r": None, "max_images": None, "provenance": None}
    pattern = re.escape(APP)
    for field, other in literals.items():
        one = rf"(?:{re.escape(other)}|{LITERAL})" if other else LITERAL
        pattern = pattern.replace(re.escape(f"{{{field}}}"), one)
    if not re.fullmatch(pattern, text):
        raise UserError(
            f"{file} is not what this version of hfgen writes, and other code is not published: write the Space "
            "again, with `hfgen demo` and `space_dir`."
        )
    return text


def license_of(card: Path) -> str | None:
    """Returns the license that a card names, if there is a card and it names one.

    Raises:
        UserError: If the head of the card cannot be read.
    """
    try:
        found = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (AttributeError, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"the head of {card} cannot be read: {one_line(error)}. Fix it, or take it out.") from None
    return found if isinstance(found, str) else None


def write_space(
    folder: Path,
    model: str,
    revision: str | None = None,
    max_images: int = 16,
    provenance: bool = True,
) -> None:
    """Writes a Space: an app, the library, which no package index has, and a checkpoint if it is here.

    A checkpoint on the Hub is loaded when the Space starts; if it is private, by the Space's secret `HF_TOKEN`. The
    versions of Python and of what the demo needs are those that are installed here; the license is that of the
    checkpoint's card, if it is here and names one.

    Args:
        folder (`Path`): Where to write; new or empty.
        model (`str`): Folder or Hub id of the checkpoint.
        revision (`str`, *optional*): For the Hub.
        max_images (`int`, *optional*, defaults to 16): Images per click.
        provenance (`bool`, *optional*, defaults to `True`): Whether images say what made them.

    Raises:
        UserError: If the folder is not empty, or `model` is neither a pipeline's folder nor a Hub id.
    """
    from hfgen.hub.contents import library, pipeline_contents, write_contents

    require_folder(folder, "space_dir", beside=True)
    source = Path(model)
    more: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    if source.is_dir():
        if revision:
            raise UserError(f"`revision` {revision} is for the Hub, but `model` {model} is a folder: leave it out.")
        name, model_code = source.resolve().name, MODEL_HERE
        contents = {f"model/{file}": content for file, content in pipeline_contents(source).items()}
        license = license_of(source / "README.md")
        more = {"license": license} if license else {}
    else:
        try:
            validate_repo_id(model)
        except HFValidationError as error:
            raise UserError(f"`model` {model} is neither a folder nor a Hub id: {error}") from None
        name, model_code, more = model, repr(model), {"models": [model]}
    app = APP.format(model=model_code, name=name, revision=revision, max_images=max_images, provenance=provenance)
    # A build for one kind of device, such as 2.13.0+cpu, is not what a package index calls it.
    lines = [f"{package}=={version(package).partition('+')[0]}" for package in NEEDED]
    head: dict[str, Any] = {
        "title": f"{name} demo",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": "{}.{}".format(*sys.version_info),  # the versions in requirements.txt may need it
        "app_file": "app.py",
    }
    front = yaml.safe_dump(head | more, sort_keys=False)
    text = f"Images from {name}: choose a seed and see. Made with hfgen."
    with new_folder_at_once(folder) as temporary:
        write_contents(contents | library(), temporary)
        (temporary / "app.py").write_text(app)
        (temporary / "requirements.txt").write_text("\n".join(lines) + "\n")
        (temporary / "README.md").write_text(f"---\n{front}---\n\n# {name}\n\n{text}\n")
