"""Pushing a pipeline folder to the Hub."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from hfgen.errors import UserError

# What the client raises for a bad answer, and for none: the latter are errors of the HTTP library that it is built on.
FAILURES: tuple[Any, ...] = (
    HfHubHTTPError,
    OSError,
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"),
)
BESIDE_COMPONENTS = ("model_index.json", "pipeline_hfgen_*.py", "README.md", "samples.png", "reconstructions.png")


def check_push(model_id: str, private: bool = False, token: str | None = None) -> str:
    """Makes sure, before training begins, that the push at its end can be made, by creating the repository.

    Args:
        model_id (`str`): `name` or `user/name`.
        private (`bool`): Whether a new repository is private.
        token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.

    Returns:
        `str`: The full name of the repository.

    Raises:
        UserError: Without a token that the Hub accepts, or for a name that it does not.
    """
    remedy = "Set HF_TOKEN, run `hf auth login`, or leave --push_to_hub out."
    try:
        huggingface_hub.utils.validate_repo_id(model_id)
        huggingface_hub.whoami(token=token)
        return huggingface_hub.create_repo(model_id, private=private, exist_ok=True, token=token).repo_id
    except HFValidationError as error:
        raise UserError(f"--hub_model_id {model_id} is no name for a repository: {error}") from None
    except LocalTokenNotFoundError:
        raise UserError(f"--push_to_hub needs a token of the Hub, and there is none. {remedy}") from None
    except FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--push_to_hub: the Hub does not accept the token, or cannot be reached: {reason} {remedy}"
        ) from None


def push_folder(folder: Path, model_id: str, token: str | None = None) -> str:
    """Uploads the pipeline of a run, and nothing else of its folder.

    Returns:
        `str`: The address of the repository.

    Raises:
        UserError: If the Hub cannot take it; the folder is untouched.
    """
    index = json.loads((folder / "model_index.json").read_text())
    components = [f"{name}/*" for name, value in index.items() if isinstance(value, list) and name != "_class_name"]
    try:
        huggingface_hub.upload_folder(
            repo_id=model_id,
            folder_path=folder,
            allow_patterns=[*BESIDE_COMPONENTS, *components],
            commit_message="Upload pipeline",
            token=token,
        )
    except FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        include = " ".join(f"--include '{pattern}'" for pattern in (*BESIDE_COMPONENTS, *components))
        raise UserError(
            f"the pipeline in {folder} is complete, but could not be pushed: {reason} "
            f"Push it later with: hf upload {model_id} {folder} . {include}"
        ) from None
    return f"{huggingface_hub.constants.ENDPOINT}/{model_id}"
