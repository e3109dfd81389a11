"""Measuring what a run publishes, while it trains."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfgen.evaluation.config import ReferenceConfig, SplitsConfig
from hfgen.evaluation.features import extractor_for
from hfgen.evaluation.metrics import Result
from hfgen.evaluation.runner import Evaluator
from hfgen.evaluation.trained import as_images, image_sources
from hfgen.evaluation.translations import with_held_out
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler, Translations
from hfgen.training.options import RunOptions


@dataclass
class Outcome:
    """What one evaluation found.

    Attributes:
        values (`dict`): To log, by name.
        notes (`list` of `str`): What a reader of them has to know, each once in a run.
        best (`dict`, *optional*): What is to be recorded with the model, if it is the best one so far. One that
            repeats its training images never is: distances to these images would reward it.
        enough (`str`, *optional*): Why the run is to end here.
    """

    values: dict[str, float]
    notes: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None
    enough: str | None = None


def repeats_training_images(result: Result) -> str | None:
    """Says so, if more of the generated images are near-copies of training images than chance makes of new ones: by
    three standard errors of both shares."""
    share, generated, new = result.real or 0.0, result.details["generated_images"], result.details["new_images"]
    share = max(share, result.details["quantile"])
    if (result.value or 0.0) - share <= 3 * math.sqrt(share * (1 - share) * (1 / generated + 1 / new)):
        return None
    return (
        f"{result.value:.1%} of the images are as near to a training image as {share:.1%} of new ones are: the model "
        "repeats training images, and does not count as the best. A shorter run helps, or more images, or more "
        "augmentation of them"
    )


class Evaluation:
    """The evaluations of a run. Every process must make one, and call it.

    Args:
        options ([`RunOptions`]): The options.
        sampler ([`~sampling.sampler.Sampler`]): Makes images with the networks as they are now, so that mistakes
            are seen before training begins.
        accelerator (`Accelerator`): The processes.
        best (`Path`): The `run.json` of the best pipeline so far.

    Raises:
        UserError: For metrics that do not fit, features that cannot be loaded, or data that cannot be read.
    """

    def __init__(self, options: RunOptions, sampler: Sampler, accelerator: Accelerator, best: Path):
        self.accelerator, self.best = accelerator, best
        self.config = config = options.training
        self._told: set[str] = set()
        self._copies = False  # whether the last evaluation found that training images are repeated
        data, images = options.data, ReferenceConfig()
        if data.streaming:
            raise UserError("`eval_every` needs images to compare with, and `streaming` keeps none: leave one out.")
        if isinstance(sampler, Translations):
            sources = image_sources(options.family, options.own, data)
            given, made = (sources[name] for name in sampler.adapter.sets(sampler.options))
            images, inputs = as_images(made, images), as_images(given, SplitsConfig())
            sampler, _ = with_held_out(sampler, images, inputs, config.eval_num_images)
        else:
            images = as_images(data, images)
        try:
            self.evaluator = Evaluator(
                sampler,
                images,
                extractor_for(
                    config.eval_metrics, config.eval_extractor, config.eval_extractor_weights, accelerator.device
                ),
                accelerator,
                config.eval_metrics,
                config.eval_num_images,
                baseline=False,
                leave_bars=False,
            )
        except UserError as error:  # whose options have the names of the verb `evaluate`
            names = {name: f"eval_{name}" for name in ("extractor", "extractor_weights", "metrics", "num_images")}
            raise error.renamed(names) from None

    def __call__(self, sampler: Sampler, images_seen: int, interval: int) -> Outcome:
        """Measures what would be published now.

        Args:
            sampler ([`~sampling.sampler.Sampler`]): Makes images with the networks as they are.
            images_seen (`int`): The position of the run.
            interval (`int`): Images from one evaluation to the next.

        Returns:
            [`Outcome`]: `values` and `notes` in the first process, the others in all.
        """
        results = self.evaluator.measure(sampler, self.config.seed) + self.evaluator.likelihood(sampler)
        found = {result.key: result for result in results if result.value is not None and math.isfinite(result.value)}
        notes = [note for result in results for note in result.notes]
        copies = repeats_training_images(found["near_duplicates"]) if "near_duplicates" in found else None
        if copies and not self._copies:  # later the values say it
            notes.append(copies)
        self._copies = bool(copies)
        outcome = Outcome({f"eval_{key}": float(result.value or 0) for key, result in found.items()})
        outcome.notes = [note for note in dict.fromkeys(notes) if note not in self._told]
        self._told.update(outcome.notes)
        best = next((each for each in found.values() if each.metric == self.config.metric_for_best_model), None)
        if best is not None:
            measure = {
                "metric": best.key,
                "extractor": self.evaluator.extractor.fingerprint,
                "num_images": self.config.eval_num_images,
            }
            before = self._before(measure)
            sign = 1 if best.better == "higher" else -1
            if not copies and (before is None or sign * (best.value or 0) > sign * before["value"]):
                outcome.best = before = measure | {"value": best.value, "images_seen": images_seen}
            since = images_seen - (before["images_seen"] if before else 0)
            patience = self.config.early_stopping_patience
            if patience is not None and since >= patience * interval:
                better = f"than {before['value']:.4g}, at {before['images_seen']} images" if before else ""
                outcome.enough = f"{best.key} has not got better {better} in {since // interval} evaluations"
        for_all: list[Any] = [outcome.best, outcome.enough]
        broadcast_object_list(for_all)
        outcome.best, outcome.enough = for_all
        return outcome

    def _before(self, measure: dict[str, Any]) -> dict[str, Any] | None:
        """Reads what was measured of the best pipeline so far, if there is one that was measured in the same way."""
        try:
            evaluation = json.loads(self.best.read_text())["evaluation"]
            numbers = {"value": float(evaluation["value"]), "images_seen": int(evaluation["images_seen"])}
            return evaluation | numbers if measure.items() <= evaluation.items() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
