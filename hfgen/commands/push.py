"""Pushes a pipeline to the Hub: the folder of a finished run, or the best one in it.

hfgen push --folder out/ddpm-digits --hub_model_id user/ddpm-digits
hfgen push --folder out/gan-mnist/best --hub_model_id gan-mnist --private
hfgen push --folder out/gan-mnist/dataset --hub_model_id user/generated-digits --repo_type dataset
hfgen push --folder out/space --hub_model_id user/demo --repo_type space
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfgen.commands.cli import parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, option


@dataclass(frozen=True)
class PushConfig(Options):
    """Push: the folder, and the repository."""

    folder: str | None = option(None, "the pipeline folder: `output_dir` of a training run, or best/ in it")
    repo_type: str = option(
        "model",
        "what the folder holds: a pipeline, the Space that hfgen demo wrote, or the data set that hfgen sample wrote",
        choices=("model", "space", "dataset"),
    )
    hub_model_id: str | None = option(None, "name of the repository, which is made if need be")
    private: bool = option(False, "make the repository private")
    revision: str | None = option(None, "branch to push to, made if need be, or refs/pr/<number> (default: main)")
    commit_message: str = option("Upload pipeline", "title of the commit")
    create_pr: bool = option(False, "open a pull request instead of pushing to main")
    hub_token: str | None = option(
        None, "token for the Hub (default: HF_TOKEN, or what `hf auth login` stored)", secret=True
    )

    def validate(self) -> None:
        if not self.folder:
            raise UserError("`folder` is missing: give the `output_dir` of a training run, or best/ in it.")
        if not self.hub_model_id:
            raise UserError("`hub_model_id` is missing: give a name for the repository, such as user/ddpm-digits.")


def read_options(argv: Sequence[str]) -> PushConfig:
    (config,) = parse((PushConfig,), argv, description=str(__doc__).partition("\n")[0], prog="hfgen push")
    return config


def main(argv: Sequence[str]) -> None:
    config = read_options(argv)

    from hfgen.hub.push import push_folder

    assert config.folder is not None and config.hub_model_id is not None
    url = push_folder(
        Path(config.folder),
        config.hub_model_id,
        repo_type=config.repo_type,
        private=config.private,
        revision=config.revision,
        commit_message=config.commit_message,
        create_pr=config.create_pr,
        token=config.hub_token,
    )
    print(f"Pushed:   {url}")
