"""Options that several verbs have."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hfgen.commands.cli import read
from hfgen.evaluation.config import METRICS
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, make, option
from hfgen.sampling.config import all_sampling_options


def require_least(config: Options, least: int, *names: str) -> None:
    """Raises [`UserError`] for the first of the named options that is below `least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"`{name}` {value} is out of range: use {least} or more.")


@dataclass(frozen=True)
class ModelOptions(Options):
    """Model: the checkpoint, in a folder or on the Hub."""

    model: str | None = option(None, "folder or Hub id of the checkpoint")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    hub_token: str | None = option(None, "token for a private model", secret=True)

    def validate(self) -> None:
        super().validate()
        if not self.model:
            raise UserError("`model` is missing: give the `output_dir` of a training run, or a Hub id.")


@dataclass(frozen=True)
class MeasureOptions(Options):
    """Measuring: the metrics, and how often."""

    extractor_weights: str | None = option(
        None, "weights of inception: a file, a Hub id, or `download` (default: those downloaded before)"
    )
    metrics: tuple[str, ...] = option(
        ("fd", "kd", "precision_recall", "density_coverage"),
        "what to measure; all is what fits the checkpoint and the extractor",
        choices=(*METRICS, "all"),
    )
    likelihood_samples: int = option(100, "latents per image for bits_per_dim; the more, the tighter its bound")
    likelihood_images: int = option(1000, "real images for bits_per_dim")
    seed: int = option(0, "seed of the first image; each following one has the next")
    seeds: int = option(1, "how often to repeat it with other images, for a mean and a deviation")
    batch_size: int = option(64, "images at once per process")
    cpu_threads: int | None = option(None, "threads per process on a CPU (default: cores / processes)")
    overwrite_report: bool = option(False, "replace the report that is there")
    update_card: bool = option(False, "write the results into the card in the checkpoint's folder")

    def validate(self) -> None:
        super().validate()
        if not self.metrics:
            raise UserError("`metrics` has no names: give some, or leave it out.")
        require_least(self, 1, "seeds", "batch_size", "cpu_threads", "likelihood_samples", "likelihood_images")


def read_sampling(kinds: Sequence[type], argv: Sequence[str], **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options of a verb that samples, and those of sampling, of which each model has its own.

    Args:
        kinds (`Sequence[type]`): The dataclasses of the verb's options.
        argv (`Sequence[str]`): The arguments.
        kwargs: As for [`~cli.read`].

    Returns:
        An object of each of `kinds` and of each kind of sampling options, and the sampling options that were given.

    Raises:
        UserError: As [`~cli.read`], and for values that are out of range.
    """
    sampling = all_sampling_options()
    given = read((*kinds, *sampling), argv, **kwargs).values
    own = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return make((*kinds, *sampling), given), {name: value for name, value in given.items() if name not in own}


def check_models(models: tuple[str, ...]) -> None:
    """Raises [`UserError`] for a checkpoint that is named twice."""
    if len(set(models)) < len(models):
        raise UserError(f"`model` {' '.join(models)} has a checkpoint twice: give each once.")
