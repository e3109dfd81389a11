"""Pushes to the Hub: a failure costs nothing but time."""

import contextlib
import filecmp
import inspect
import json
import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, validate_repo_id

from hfgen.runtime.errors import UserError

INDEX, CARD = "model_index.json", "README.md"
PICTURES = ("samples.png", "reconstructions.png")
ADAPTERS = "pytorch_lora_weights.safetensors"  # of LoRA, as diffusers calls them
BESIDE_COMPONENTS = (INDEX, CARD, *PICTURES, ADAPTERS)
IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
COMPONENT_FILES = (".json", ".safetensors", ".py")
RECORD = "run.json"  # which the card cites
MESSAGE = "Upload pipeline"
WAITS: tuple[float, ...] = (1, 5, 20)  # seconds before each further attempt
LONGEST_WAIT = 300.0  # seconds; a Hub that asks for more is not waited for
PATIENCE = 120.0  # seconds without a byte until a connection counts as broken; huggingface_hub itself waits forever

# Failures that may pass: no answer, an odd one, and what uploads raise in its place. Those of the HTTP library, which
# is not the same in all versions of huggingface_hub, are found among the bases of its own error.
MAY_PASS: tuple[Any, ...] = (
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__module__.split(".")[0] not in ("huggingface_hub", "builtins")),
    *(ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError),
)
NEVER = (501, 505, 506, 507, 508, 510, 511)  # errors of a server that no further attempt changes
REQUEST_ID = re.compile(r"\s*\((?:Request ID|Amzn Trace ID|Amz CF ID): ([^)]*)\)")  # as huggingface_hub writes it
EMPTY = re.compile(r"For more information check: \S+|: None(?=\.)")  # what a reader learns nothing from


def check_push(model_id: str, private: bool = False, token: str | None = None) -> str:
    """Makes sure, before training begins, that the push at its end can be made, by creating the repository.

    Args:
        model_id (`str`): `name` or `user/name`.
        private (`bool`): Whether the repository must be private.
        token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.

    Returns:
        `str`: The full name of the repository.

    Raises:
        UserError: Without a token that may write, for a name that the Hub does not accept, for a repository that is
            there and public but should be private, or if the Hub cannot be reached.
    """
    try:
        model_id = open_repository(model_id, private, token, check_token=True)
        _ask(lambda: _check_write(model_id, token), token)
        return model_id
    except UserError as error:
        raise UserError(f"`push_to_hub`: {error} Fix that, or leave `push_to_hub` out.") from None


def _check_write(model_id: str, token: str | None) -> None:
    """Asks the Hub whether a token may write to a repository. Making one that exists says no: it may be another's."""
    if "write" not in inspect.signature(huggingface_hub.auth_check).parameters:
        return  # an older huggingface_hub does not ask
    try:
        huggingface_hub.auth_check(model_id, token=token, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404 or "X-Error-Code" in error.response.headers:
            raise  # not every server that speaks the Hub's language has this page


def push_folder(
    folder: Path,
    model_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    commit_message: str = MESSAGE,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Uploads the pipeline or the Space that a folder holds, and nothing else of it, into a repository that is made
    if need be.

    Failures that may pass are tried again for some minutes.

    Args:
        folder (`Path`): A pipeline folder, such as that of a run, or `best/` in it; or what `write_space` or
            `write_dataset` wrote.
        model_id (`str`): `name` or `user/name`.
        repo_type (`str`): `"model"`, `"space"` or `"dataset"`.
        private (`bool`): Whether the repository must be private.
        revision (`str`, *optional*): Branch, made from `main` if need be, or `refs/pr/<number>`. By default `main`.
        commit_message (`str`): Title of the commit.
        create_pr (`bool`): Whether to open a pull request instead of writing to `main`.
        token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.

    Returns:
        `str`: The address of what was pushed.

    Raises:
        UserError: If the Hub cannot take it: says how to push later. The folder is untouched.
    """
    published(folder, repo_type)  # a mistake in the folder is told before the Hub is asked
    if create_pr and revision:
        raise UserError(f"`create_pr` and `revision` {revision} exclude each other: a pull request goes into main.")
    try:
        model_id = open_repository(model_id, private, token, repo_type=repo_type)
        revision = open_revision(model_id, revision, create_pr, commit_message, token, repo_type)
        return upload(folder, model_id, revision, commit_message, token, repo_type)
    except UserError as error:
        command = ["hfgen", "push"]
        options = {"folder": folder, "hub_model_id": model_id, "repo_type": repo_type != "model" and repo_type}
        options |= {"private": private, "revision": revision, "create_pr": create_pr and not revision}
        options |= {"commit_message": commit_message != MESSAGE and commit_message}
        for name, value in options.items():
            command += [f"--{name}", *[str(value)] * (value is not True)] if value else []
        what = "Space" if repo_type == "space" else "pipeline"
        raise UserError(
            f"the {what} in {folder} is complete, but could not be pushed: {error} Push it later with: "
            f"{shlex.join(command)}"
        ) from None


def published(folder: Path, repo_type: str = "model", kind: type | None = None) -> dict[str, Any]:
    """Returns what is uploaded of a folder, files or their bytes by their names in the repository: what hfgen knows
    and has looked at, and its own code.

    Raises:
        UserError: If the folder holds no such thing, or one that is not whole.
    """
    from hfgen.hub.contents import pipeline_contents, space_contents
    from hfgen.hub.dataset import dataset_contents

    if repo_type == "model":
        return pipeline_contents(folder, kind)
    return space_contents(folder) if repo_type == "space" else dataset_contents(folder)


def pipeline_files(folder: Path) -> list[Path]:
    """Lists the files of a pipeline, relative to its folder, with the code that it carries: neither checkpoints, logs,
    caches nor other pipelines in it.

    Raises:
        UserError: If there is no pipeline.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        components = [name for name, value in index.items() if isinstance(value, list) and name.isidentifier()]
        kind = index.get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{folder} holds no pipeline: give the folder of a finished run or `best` in it, or for a Space "
            "`repo_type` space."
        ) from None
    paths = [folder / name for name in BESIDE_COMPONENTS]
    if isinstance(kind, list):  # a file and the class in it
        paths += code_files(folder, str(kind[0]))
    for name in components:
        paths += [path for path in sorted((folder / name).rglob("*")) if path.suffix in COMPONENT_FILES]
    return _without_caches(folder, paths)


def code_files(folder: Path, name: str) -> list[Path]:
    """Lists the file of code of that name and those beside it that it imports."""
    files, names = [], [name]
    for name in names:  # which grows
        file = folder / f"{name}.py"
        if Path(name).name == name and file.is_file():
            files.append(file)
            names += [other for other in IMPORT.findall(file.read_text(encoding="utf-8")) if other not in names]
    return files


def _without_caches(folder: Path, paths: list[Path]) -> list[Path]:
    files = [path.relative_to(folder) for path in paths if path.is_file()]
    return [file for file in files if not any(part.startswith((".", "__pycache__")) for part in file.parts)]


def open_repository(
    model_id: str, private: bool, token: str | None, check_token: bool = False, repo_type: str = "model"
) -> str:
    """Makes the repository unless it is there; returns its full name.

    Raises:
        UserError: See [`check_push`].
    """
    try:
        validate_repo_id(model_id)
    except HFValidationError as error:
        raise UserError(f"`hub_model_id` {model_id} is no name for a repository: {error}") from None
    if check_token:
        who = _ask(lambda: huggingface_hub.whoami(token=token), token)
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError("the token of the Hub may only read: make one that may write.")
    where: dict[str, Any] = {"repo_type": repo_type, "token": token}
    options: dict[str, Any] = {"private": True} if private else {}
    options |= {"space_sdk": "gradio"} if repo_type == "space" else {}
    repository = _ask(lambda: huggingface_hub.create_repo(model_id, exist_ok=True, **where, **options), token)
    if private and not _ask(lambda: huggingface_hub.repo_info(repository.repo_id, **where), token).private:
        raise UserError(f"the repository {repository.repo_id} exists and is public, not private: give another name.")
    return repository.repo_id


def upload(
    folder: Path,
    model_id: str,
    revision: str | None,
    commit_message: str,
    token: str | None,
    repo_type: str = "model",
    variant: str | None = None,
    kind: type | None = None,
) -> str:
    """Uploads what a folder holds into a repository and revision that exist, in one commit; returns the address.

    A card then says to load the pipeline from there, and the record of the training names no folders of this machine.

    Raises:
        UserError: If that fails, with the reason.
    """
    from hfgen.hub.card import public_record, with_location

    contents = published(folder, repo_type, kind)
    if repo_type == "model" and "README.md" in contents:
        branch = None if revision is None or revision == "main" or revision.startswith("refs/") else revision
        card = contents["README.md"].decode()
        contents["README.md"] = with_location(card, model_id, revision=branch, variant=variant).encode()
    if repo_type == "model" and RECORD in contents:
        record = json.loads(contents[RECORD])
        contents[RECORD] = (json.dumps(public_record(record), indent=2) + "\n").encode()

    def call() -> Any:
        operations = [huggingface_hub.CommitOperationAdd(*item) for item in contents.items()]
        return huggingface_hub.create_commit(
            model_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            token=token,
            repo_type=repo_type,
        )

    _ask(call, token)
    section = {"space": "spaces/", "dataset": "datasets/"}.get(repo_type, "")
    address = f"{constants.ENDPOINT}/{section}{model_id}"
    if revision and revision.startswith("refs/pr/"):
        return f"{address}/discussions/{revision.removeprefix('refs/pr/')}"
    return f"{address}/tree/{quote(revision, safe='')}" if revision else address


def push_pipeline(pipeline: Any, model_id: str, revision: str | None, create_pr: bool, title: str, **more: Any) -> str:
    """Saves a pipeline and uploads it, with the card of the folder that it was loaded from, unless its weights have
    become others since.

    Without such a card, that of the repository stays; if that has none either, it gets a short one.

    Raises:
        UserError: If the Hub cannot take it.
    """
    from hfgen.hub.card import write_short_card

    private, token = bool(more["private"]), more["token"]
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(pipeline.config.get("_name_or_path") or name)
        pipeline.save_pretrained(folder, variant=more["variant"])
        model_id = open_repository(model_id, private, token)
        weights = list(folder.rglob("*.safetensors"))
        same = all(alike(file, source / file.relative_to(folder)) for file in weights)
        for name in (*BESIDE_COMPONENTS[1:], RECORD) if same else ():
            if (source / name).exists():
                shutil.copy(source / name, folder / name)
        there = (folder / "README.md").exists()
        if not there and not _ask(lambda: huggingface_hub.file_exists(model_id, "README.md", token=token), token):
            write_short_card(folder, pipeline, model_id)
        revision = open_revision(model_id, revision, create_pr, title, token)
        return upload(folder, model_id, revision, title, token, variant=more["variant"], kind=type(pipeline))


def alike(first: Path, second: Path) -> bool:
    return second.exists() and filecmp.cmp(first, second, shallow=False)


def open_revision(
    model_id: str, revision: str | None, create_pr: bool, title: str, token: str | None, repo_type: str = "model"
) -> str | None:
    """Makes the branch or the pull request that is pushed to, and returns its name."""
    where: dict[str, Any] = {"repo_type": repo_type, "token": token}
    if create_pr:  # in a call of its own: if the commit opened it, each further attempt would open another
        opened = _ask(lambda: huggingface_hub.create_pull_request(model_id, title, **where), token)
        return str(opened.git_reference)
    if revision and revision != "main" and not revision.startswith("refs/"):
        _ask(lambda: huggingface_hub.create_branch(model_id, branch=revision, exist_ok=True, **where), token)
    return revision


# Asking the Hub


def _ask(call: Callable[[], Any], token: str | None) -> Any:
    """Calls the Hub, again after failures that may pass.

    huggingface_hub itself repeats only some requests: neither `whoami` nor making a repository or a commit.

    Raises:
        UserError: With the reason in one line. No token is in it.
    """
    token = token or huggingface_hub.get_token()
    if not token:
        raise UserError("there is no token of the Hub: set HF_TOKEN, or run `hf auth login`.")
    with _stars_in_logs(token):
        for wait in (*WAITS, None):
            # Of older versions, whose sessions have no such attribute, this asks nothing.
            get_session().timeout = PATIENCE
            try:
                return call()
            except Exception as error:  # of many kinds; whatever it is, what is to be pushed stays
                asked = _asked_to_wait(error)
                if wait is None or asked > LONGEST_WAIT or not _may_pass(error):
                    raise UserError(hide(_reason(error), token)) from None
                time.sleep(max(wait, asked))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: Exception) -> Any:
    responses = (getattr(cause, "response", None) for cause in _causes(error))
    return next((response for response in responses if response is not None), None)


def _may_pass(error: Exception) -> bool:
    response = _response(error)
    if response is not None:
        code = response.status_code
        return code in (408, 429) or (code >= 500 and code not in NEVER)
    return isinstance(error, MAY_PASS) and not isinstance(error, OfflineModeIsEnabled)


def _asked_to_wait(error: Exception) -> float:
    """Returns the seconds that the Hub asks to wait for, in its answer."""
    response = _response(error)
    if response is None:
        return 0.0
    text = response.headers.get("Retry-After", "").strip()
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", response.headers.get("RateLimit", ""))  # none remain for t
    if response.status_code == 429 and limit:
        text = limit[1]
    return float(text) if text.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    """Says why, in one line: all that the server and the client said, each sentence once."""
    lines: list[str] = []
    for cause in _causes(error):
        lines += str(cause).splitlines() or [type(cause).__name__]
        if isinstance(cause, HfHubHTTPError):  # what lies below says the same in other words
            lines += [*(cause.server_message or "").splitlines(), *_said(cause.response)]
            break
    request = next((match[1] for line in lines if (match := REQUEST_ID.search(line))), None)
    said: list[str] = []
    for line in lines:
        text = " ".join(EMPTY.sub("", REQUEST_ID.sub("", line)).split()).replace("`", "'")  # no option of ours
        text = re.sub(r"(?<!\.)\.\.(?!\.)", ".", text)
        if text and text.rstrip(".").lower() not in " ".join(said).lower():
            said.append(text if text.endswith((".", "!", "?", ":")) else f"{text}.")
    return " ".join([*said, *([f"Request ID: {request}."] if request else [])])


def _said(response: Any) -> list[str]:
    """Returns what an answer of the Hub says for people, in its head and its body."""
    said = [response.headers.get("X-Error-Message", "")]
    with contextlib.suppress(Exception):  # a body that is no JSON, or was never read
        said.append(str(response.json().get("error") or ""))
    return [line for text in said for line in text.splitlines()]


def hide(text: str, token: str | None) -> str:
    """Puts stars in place of the token."""
    return text.replace(token, "***") if token else text


@contextlib.contextmanager
def _stars_in_logs(token: str | None) -> Iterator[None]:
    """Hides the token in what huggingface_hub logs: addresses that a server made up, and its errors, may hold it."""

    def mask(record: logging.LogRecord) -> bool:
        record.msg, record.args = hide(record.getMessage(), token), None
        return True

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(mask)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(mask)
