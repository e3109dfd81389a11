"""Measuring what a run publishes, while it trains."""

import json
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfgen.data.config import DataConfig
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.features import extractor_for
from hfgen.evaluation.runner import Evaluator
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler
from hfgen.training.config import TrainingConfig


class Evaluation:
    """The evaluations of a run. Every process must make one, and call it.

    Args:
        config ([`TrainingConfig`]), data ([`DataConfig`]): The options.
        sampler ([`~evaluation.sampling.Sampler`]): Makes images with the networks as they are now, so that mistakes
            are seen before training begins.
        accelerator (`Accelerator`): The processes.
        best (`Path`): The `run.json` of the best pipeline so far.

    Raises:
        UserError: For metrics that do not fit, features that cannot be loaded, or data that cannot be read.
    """

    def __init__(
        self, config: TrainingConfig, data: DataConfig, sampler: Sampler, accelerator: Accelerator, best: Path
    ):
        self.config, self.accelerator, self.best = config, accelerator, best
        self._told: set[str] = set()
        if data.streaming:
            raise UserError("`eval_every` needs images to compare with, and `streaming` keeps none: leave one out.")
        images = ReferenceConfig(
            dataset_name=data.dataset_name,
            dataset_config_name=data.dataset_config_name,
            train_data_dir=data.train_data_dir,
            dataset_split=data.dataset_split,
            held_out_split=data.validation_split,
            center_crop=data.center_crop,
            image_column=data.image_column,
            label_column=data.label_column,
            value_range=data.value_range,
            background=data.background,
            skip_corrupt_images=data.skip_corrupt_images,
            allow_outside_files=data.allow_outside_files,
            cache_dir=data.cache_dir,
        )
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

    def __call__(
        self, sampler: Sampler, images_seen: int
    ) -> tuple[dict[str, float], list[str], dict[str, Any] | None]:
        """Measures what would be published now.

        Returns:
            The values to log and what a reader of them has to know, once, in the first process; and, in all of them,
            if the model is the best one so far, what is to be recorded with it.
        """
        results = self.evaluator.measure(sampler, self.config.seed) + self.evaluator.likelihood(sampler)
        values = {
            f"eval_{result.key}": result.value
            for result in results
            if result.value is not None and math.isfinite(result.value)
        }
        notes = [note for result in results for note in result.notes if note not in self._told]
        self._told.update(notes)
        best: list[dict[str, Any] | None] = [None]
        for result in results:
            if result.metric == self.config.metric_for_best_model and f"eval_{result.key}" in values:
                measure = {
                    "metric": result.key,
                    "extractor": self.evaluator.extractor.fingerprint,
                    "num_images": self.config.eval_num_images,
                }
                measured = measure | {"value": result.value, "images_seen": images_seen}
                before = self._before(measure)
                sign = 1 if result.better == "higher" else -1
                if before is None or sign * (result.value or 0) > sign * before:
                    best = [measured]
                break
        broadcast_object_list(best)
        return values, notes, best[0]

    def _before(self, measure: dict[str, Any]) -> float | None:
        """Reads the value of the best pipeline so far, if there is one that was measured in the same way."""
        try:
            evaluation = json.loads(self.best.read_text())["evaluation"]
            return float(evaluation["value"]) if measure.items() <= evaluation.items() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
