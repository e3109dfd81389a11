"""Options that several verbs have."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import flags, read
from hfgen.evaluation.config import METRICS, Amounts
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, as_dict, make, option
from hfgen.sampling.config import all_sampling_options

# Options of a measurement that change no number, or that are of this machine.
UNSHOWN = ("extractor_weights", "cpu_threads", "batch_size", "cache_dir", "metrics")


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
class MeasureOptions(Amounts):
    """Measuring: the metrics, and how often."""

    extractor_weights: str | None = option(
        None, "weights of inception: a file, a Hub id, or `download` (default: those downloaded before)"
    )
    metrics: tuple[str, ...] = option(
        ("fd", "kd", "precision_recall", "density_coverage"),
        "what to measure; all is what fits the checkpoint and the extractor",
        choices=(*METRICS, "all"),
    )
    overwrite_report: bool = option(False, "replace the report that is there", once=True)
    update_card: bool = option(False, "write the results into the card in the checkpoint's folder", once=True)

    def validate(self) -> None:
        super().validate()
        if not self.metrics:
            raise UserError("`metrics` has no names: give some, or leave it out.")


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


def recorded(configs: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a verb that samples, JSON-ready, as its report holds them and `--config` repeats them.

    Of the models' own sampling options there are those that were given, as each model has others.
    """
    return as_dict(configs) | {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items()
    }


def card_commands(
    config: MeasureOptions, reference: Any, given: Mapping[str, Any], report: Mapping[str, Any], extractor: str | None
) -> str:
    """Returns the commands, one a line, that repeat a measurement from the folder of the model's card.

    Args:
        config, reference, given: The options of the verb, and the sampling options that were given.
        report (`dict`): What was found of the model.
        extractor (`str`, *optional*): What the features are of; none where there are no features.
    """
    from hfgen.hub.card import HERE, extractor_options, path_from, read_places

    values: dict[str, Any] = {}
    for part, kind in ((config, MeasureOptions), (reference, type(reference))):
        for field in dataclasses.fields(kind):
            value = getattr(part, field.name)
            if value != field.default and field.name not in UNSHOWN and not field.metadata.get("once"):
                values[field.name] = value
    home = Path(report["model"]["name"])
    values |= {name: path_from(home, path) for name, path in read_places(values).items()}
    values |= {"metrics": config.metrics, "num_images": report["generation"]["num_images"]}
    own = (*report["generation"], "class_labels", "mixed_precision")
    values |= {name: value for name, value in given.items() if value is not None and name in own}
    made, features = extractor_options(extractor, "extractor") if extractor else ([], {})
    return "\n".join([*made, shlex.join(["hfgen", "evaluate", *flags({"model": (HERE,), **features, **values})])])


def check_models(models: tuple[str, ...]) -> None:
    """Raises [`UserError`] for a checkpoint that is named twice."""
    if len(set(models)) < len(models):
        raise UserError(f"`model` {' '.join(models)} has a checkpoint twice: give each once.")
