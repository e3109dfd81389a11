"""Evaluates a generator: images on all processes, their features in the first one, and the metrics there.

No images are kept, only features. They are gathered in the order of the image numbers, so that the number of processes
changes nothing.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfgen.data.config import share_of
from hfgen.evaluation.config import FEWEST, GOOD_ACCURACY, METRICS, WITHOUT_FEATURES, ReferenceConfig
from hfgen.evaluation.features import Extractor, Preparation
from hfgen.evaluation.likelihood import measure_likelihood, without_labels
from hfgen.evaluation.metrics import LEAST, Images, Result, compare, memorised
from hfgen.evaluation.path_length import measure_path_length
from hfgen.evaluation.reference import (
    DATA_SEED,
    Part,
    Reference,
    cache_folder,
    class_numbers,
    features_of,
    open_reference,
    real_images,
    shares_of,
    transform,
)
from hfgen.evaluation.trained import is_source, read_record, training_data
from hfgen.evaluation.translations import beside, compared_one_by_one, ready, without_pairs
from hfgen.runtime.distributed import Table, map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.sampling.capabilities import Adapter, HasDensity, HasStyles, Translates
from hfgen.sampling.sampler import Sampler, Translations

BESIDE = "beside/"  # what the names of measures begin with that are no features
MOST_KINDS = 10**6  # of Stacked MNIST and its like
NEEDS_CLASSES = ("label_divergence", "conditional_accuracy", "stacked_modes")
NEEDS_ACCURACY = ("confidence", *NEEDS_CLASSES)
NEEDS_LOGITS = ("is", "label_kept", *NEEDS_ACCURACY)
ONE_BY_ONE = ("pairs", "label_kept")
NEEDS_CAPABILITY: dict[str, type[Adapter]] = {
    **{"bits_per_dim": HasDensity, "ppl": HasStyles},
    **dict.fromkeys(ONE_BY_ONE, Translates),
}


def lacking(metric: str, sampler: Sampler) -> str | None:
    """Says why a metric cannot be computed for a model, whatever the data; `None` if it can."""
    obstacle = sampler.adapter.obstacle(NEEDS_CAPABILITY.get(metric, sampler.capability))
    if obstacle is not None:
        return f"{sampler.name} {obstacle}: leave it out"
    if metric == "bits_per_dim" and sampler.grouped and not sampler.adapter.without_classes:
        return f"the classes of {sampler.name} are groups of images, and those of real images are not known"
    return None


def obstacle(
    metric: str,
    sampler: Sampler,
    extractor: Extractor,
    has_logits: bool,
    reference: Reference,
    num_images: int,
    is_stacked: bool,
) -> str | None:
    """Says why a metric cannot be computed here, and what to do; `None` if it can."""
    generated, real = LEAST.get(metric, (1, 1))
    part, name = (reference.train, "training") if metric == "memorisation" else (reference.real, "real")
    if num_images < generated:
        return f"it needs at least {generated} generated images, and `num_images` is {num_images}"
    if len(part.rows) < real:
        few = f"it needs at least {real} {name} images, and there are {len(part.rows)}"
        return f"{few}: " + ("raise `num_images`, or use more data" if num_images < real else "use more data")
    if (metric in NEEDS_LOGITS and not has_logits) or (metric in NEEDS_CLASSES and not extractor.labels):
        return f"it needs a classifier, and {extractor.id} is not one: choose another `extractor`"
    if metric in NEEDS_ACCURACY and extractor.accuracy is not None and extractor.accuracy < GOOD_ACCURACY:
        return (
            f"the test accuracy of `extractor` {extractor.id} is only {extractor.accuracy:.1%}, and it needs "
            f"{GOOD_ACCURACY:.0%}: train it longer"
        )
    if is_stacked and metric in ("is", "confidence", "label_divergence"):
        return f"{extractor.id} knows what is in a channel, not in these images as a whole: use stacked_modes"
    if metric == "conditional_accuracy":
        if not sampler.classes or sampler.grouped:
            return f"{sampler.name} cannot be asked for a class: leave it out"
        if class_numbers(sampler.class_names, extractor) is None:
            return f"the classifier {extractor.id} does not know the classes of {sampler.name}: use one that does"
    if metric == "stacked_modes":
        channels, kinds = sampler.image_shape[0], len(extractor.labels or ()) ** sampler.image_shape[0]
        if channels == 1:
            return "it looks at the channels of colour images, and these are gray"
        if kinds > MOST_KINDS:
            return f"{kinds:,} kinds are too many to count"
    if metric in NEEDS_CAPABILITY and (lack := lacking(metric, sampler)):
        return lack
    if metric == "pairs" and isinstance(sampler, Translations):
        return without_pairs(sampler, reference.real.data.info.resolution)
    if metric == "bits_per_dim" and not sampler.adapter.without_classes:
        return without_labels(sampler, reference.held_out)
    if metric == "ppl" and not isinstance(extractor.prepare, Preparation):
        return f"{extractor.id} takes 8-bit images only: choose another `extractor`"
    return None


def choose_metrics(
    names: Sequence[str], why_not: Callable[[str], str | None], is_stacked: bool
) -> tuple[list[str], dict[str, str]]:
    """Returns the metrics to compute, and those that `all` leaves out, with the reason.

    Raises:
        UserError: For one that was asked for by name and cannot be computed.
    """
    chosen, left_out = [], {}
    for metric in METRICS if "all" in names else names:
        reason = why_not(metric)
        if reason and metric in names:
            raise UserError(f"`metrics` {metric}: {reason}.")
        if not reason and metric == "stacked_modes" and metric not in names and not is_stacked:
            reason = "the data does not have the classes of stacked images"
        if reason:
            left_out[metric] = reason
        else:
            chosen.append(metric)
    return chosen, left_out


class Evaluator:
    """Compares generators with the same real images, by the features of one network. Every process must make one.

    What cannot be measured is refused before the work begins, and the features of real images are computed once.

    Args:
        sampler ([`~sampling.sampler.Sampler`]): The generator, or one like all those that are to be measured.
        config ([`ReferenceConfig`]): The data.
        extractor ([`~features.Extractor`]): The features.
        accelerator (`Accelerator`): The processes.
        metrics (`Sequence[str]`): Names of [`~config.METRICS`], or `"all"`.
        num_images (`int`, *optional*, defaults to 10,000): Images to generate, per seed.
        batch_size (`int`, *optional*, defaults to 64): Images at once per process.
        baseline (`bool`, *optional*, defaults to `True`): Whether to compute the metrics of held-out images too.
        leave_bars (`bool`, *optional*, defaults to `True`): Whether finished progress bars stay.
        likelihood_samples (`int`, *optional*): How much a model may draw for each image in `bits_per_dim`, where that
            makes the number better; by default what suits the model.
        likelihood_images (`int`, *optional*): Held-out images that `bits_per_dim` takes; by default 1000, or fewer for
            a model that takes long.

    Raises:
        UserError: For metrics that do not fit, or data that cannot be read.
    """

    def __init__(
        self,
        sampler: Sampler,
        config: ReferenceConfig,
        extractor: Extractor,
        accelerator: Accelerator,
        metrics: Sequence[str],
        num_images: int = 10_000,
        batch_size: int = 64,
        baseline: bool = True,
        leave_bars: bool = True,
        likelihood_samples: int | None = None,
        likelihood_images: int | None = None,
    ):
        self.extractor, self.accelerator, self._first = extractor, accelerator, sampler
        notes = []
        if sampler.most is not None and sampler.most < num_images:
            notes.append(f"{sampler.most:,} images were translated: there are no more")
            num_images = sampler.most
        self.num_images, self.batch_size, self.leave_bars = num_images, batch_size, leave_bars
        self.likelihood_samples, self.likelihood_images = likelihood_samples, likelihood_images
        start = time.perf_counter()
        probe = extractor(sampler([0], 0))
        num_real = config.num_real_images or num_images
        reference = self.reference = open_reference(config, sampler.image_shape, num_real, num_images)

        info = reference.real.data.info
        kinds = len(extractor.labels or ()) ** info.channels
        is_stacked = info.channels > 1 and bool(extractor.labels) and len(info.class_names or ()) == kinds

        def why_not(metric: str) -> str | None:
            return obstacle(metric, sampler, extractor, "logits" in probe, reference, num_images, is_stacked)

        self.metrics, self.left_out = choose_metrics(metrics, why_not, is_stacked)
        self.notes = [*notes, *reference.notes]
        self.class_shares: tuple[float, ...] | None = None
        if sampler.classes and not sampler.asked:
            self.class_shares, notes = shares_of(reference.real, sampler.adapter.classes)
            self.notes += notes
        self.features = any(metric not in WITHOUT_FEATURES for metric in self.metrics)
        if self.features:
            sampler.check_batch(min(num_images, batch_size))
            kept = num_images * sum(value.nbytes for value in probe.values())
            Machine.host().require(kept, f"`num_images` {num_images}: the features of so many images, which are kept,")
        if self.features and info.channels < extractor.preprocessing["channels"]:
            wanted = extractor.preprocessing["channels"]
            self.notes.append(f"gray images were repeated to the {wanted} channels that {extractor.id} takes")
        if self.features and extractor.accuracy is not None and extractor.accuracy < GOOD_ACCURACY:
            self.notes.append(
                f"{extractor.id} gets only {extractor.accuracy:.1%} of its test images right (mean over the classes): "
                "distances in its features rank models that are far apart, and say nothing about copies"
            )
        if self.features and info.mode == "RGBA" and extractor.preprocessing["channels"] == 3:
            self.notes.append("transparent images, real and generated ones, were laid over white")
        if self.features and len(reference.held_out.rows) < num_images and baseline:
            self.notes.append(
                f"the held-out images are {len(reference.held_out.rows):,}, fewer than the generated ones; metrics "
                "that depend on the number of images cannot be compared with theirs"
            )
        self._kinds = "stacked_modes" in self.metrics
        cache = cache_folder(config)

        def features_of_part(part: Part, text: str) -> Images | None:
            if not self.features:
                return None
            return real_images(part, extractor, accelerator, cache, self._kinds, f"Real images ({text})", leave_bars)

        self.memorisation = "memorisation" in self.metrics
        self._real = features_of_part(reference.real, "real")
        self._apart = reference.apart and len(reference.held_out.rows) >= FEWEST
        held_out = baseline or (self.memorisation and self._apart)
        self._held_out = features_of_part(reference.held_out, "held out") if held_out else None
        self._train = features_of_part(reference.train, "train") if self.memorisation else None
        self.baseline: dict[str, float | None] = {}  # the metrics of held-out images; in the first process only
        if baseline and self._held_out is not None:
            results = self._compare(self._held_out, "Metrics of held-out images")
            self.baseline = {result.key: result.value for result in results}
        self.seconds = time.perf_counter() - start

    def _compare(self, images: Images, text: str) -> list[Result]:
        assert self._real is not None
        return compare(self.metrics, images, self._real, self.extractor, text, self.leave_bars)

    def ready(self, sampler: Sampler) -> Sampler:
        """Returns a sampler that makes its classes as often as they are among the real images; where these have none
        of them, as often as they were in its training. A translator gets the images that the first one had."""
        if isinstance(sampler, Translations) and isinstance(self._first, Translations):
            assert self._first.given is not None
            sampler = sampler.of(self._first.given, self._first.others)
        return sampler.with_shares(self.class_shares or (sampler.adapter.classes and sampler.adapter.classes.shares))

    def measure(self, sampler: Sampler, seed: int = 0) -> list[Result]:
        """Measures images of the set of `seed`. Every process must call this; the first one gets the results.

        Raises:
            UserError: If an image has NaN or infinite values.
        """
        if not self.features:
            return []
        sampler = self.ready(sampler)
        generated, results = self._generate(sampler, seed), []
        if generated is not None:
            results = self._compare(generated, "Metrics")
            results += compared_one_by_one(generated, self.metrics)
            if self.memorisation:
                assert self._train is not None
                results += memorised(generated, self._train, self._held_out if self._apart else None, seed)
        if "ppl" in self.metrics:
            results += measure_path_length(
                sampler, self.extractor, self.accelerator, self.num_images, seed, self.leave_bars
            )
        for result in results:
            result.real = self.baseline.get(result.key, result.real)
        return results

    def likelihood(self, sampler: Sampler) -> list[Result]:
        """Measures the bits per dimension, if they are asked for. As [`~Evaluator.measure`], but no images are
        generated."""
        if "bits_per_dim" not in self.metrics:
            return []
        images, samples = self.likelihood_images, self.likelihood_samples
        part = self.reference.held_out
        return measure_likelihood(sampler, part, self.accelerator, images, samples, self.leave_bars)

    def _generate(self, sampler: Sampler, seed: int) -> Images | None:
        """Generates images and returns their features; in the first process only."""

        def make(indices: list[int]) -> Table:
            images = sampler(indices, seed)
            table = features_of(images, self.extractor, self._kinds)
            if isinstance(sampler, Translations):
                own = beside(sampler, self.metrics, indices, images, self.extractor)
                table |= {f"{BESIDE}{name}": value for name, value in own.items()}
            return table

        text = "Generated images"
        table = map_over_processes(self.accelerator, self.num_images, self.batch_size, make, text, self.leave_bars)
        if not table:
            return None
        labels, numbers = None, class_numbers(sampler.class_names, self.extractor)
        if sampler.classes and numbers is not None and not sampler.grouped:
            shown = [sampler.class_of(index, seed) for index in range(self.num_images)]
            labels = torch.tensor([*numbers])[torch.tensor(shown)]
        own = {name.removeprefix(BESIDE): table.pop(name) for name in [*table] if name.startswith(BESIDE)}
        return Images(**table, labels=labels, beside=own)


def evaluate(
    sampler: Sampler,
    config: ReferenceConfig,
    extractor: Extractor,
    accelerator: Accelerator,
    metrics: Sequence[str],
    num_images: int = 10_000,
    seed: int = 0,
    seeds: int = 1,
    batch_size: int = 64,
    likelihood_samples: int | None = None,
    likelihood_images: int | None = None,
) -> dict[str, Any]:
    """Evaluates a generator against data, which [`following`] adapts to its training. Every process must call this.

    Args:
        sampler, config, extractor, accelerator, metrics, num_images, batch_size, likelihood_samples,
            likelihood_images: As for [`Evaluator`].
        seed (`int`, *optional*, defaults to 0): The seed of the set of images.
        seeds (`int`, *optional*, defaults to 1): How many sets to measure, of `seed`, `seed + 1`, ..., for a mean and
            a deviation.

    Returns:
        `dict`: The report, JSON, the same in every process.

    Raises:
        UserError: For metrics that do not fit, data that cannot be read, or if no metric has a value.
    """
    sampler, config, more = ready(sampler, config, num_images)
    evaluator = Evaluator(
        sampler,
        config,
        extractor,
        accelerator,
        metrics,
        num_images,
        batch_size,
        likelihood_samples=likelihood_samples,
        likelihood_images=likelihood_images,
    )
    start = time.perf_counter()
    sampler = evaluator.ready(sampler)
    sets = list(range(seed, seed + seeds))
    repeats = [evaluator.measure(sampler, each) for each in sets]
    once = evaluator.likelihood(sampler)
    report: list[Any] = [None]
    if accelerator.is_main_process:
        results = over_seeds(repeats) + once
        if results and all(result.value is None for result in results):
            report[0] = f"no metric can be computed: {results[0].notes[0]}"
        reference = evaluator.reference
        notes = [*more, *evaluator.notes]
        if not isinstance(sampler, Translations):
            notes += training_notes(sampler.name, config, reference.train, evaluator.memorisation)
        report[0] = report[0] or {
            "model": {
                "name": sampler.name,
                "family": sampler.adapter.kind,
                "image_shape": list(sampler.image_shape),
            },
            "data": {
                "name": reference.real.data.info.name,
                **reference.real.describe(),
                "held_out": reference.held_out.describe(),
                "transform": transform(reference.real),
                "seed": DATA_SEED,
            },
            "generation": {
                "num_images": evaluator.num_images,
                "seeds": sets,
                "batch_size": batch_size,
                **sampler.settings,
                "classes": [sampler.class_names[number] for number in sampler.classes] if sampler.classes else None,
                "class_shares": sampler.class_shares and list(sampler.class_shares),
                "precision": sampler.precision,
            },
            "results": {result.key: as_json(result) for result in results},
            "left_out": evaluator.left_out,
            "notes": notes,
            "seconds": {
                "real_images": round(evaluator.seconds, 1),
                "generated_images": round(time.perf_counter() - start, 1),
            },
        }
    broadcast_object_list(report)
    if isinstance(report[0], str):
        raise UserError(report[0])
    return report[0]


def over_seeds(repeats: list[list[Result]]) -> list[Result]:
    """Returns the mean of several repetitions, with their deviation as the error."""
    if len(repeats) == 1:
        return repeats[0]
    results = []
    for first in repeats[0]:
        values = [result.value for results in repeats for result in results if result.key == first.key]
        known = [value for value in values if value is not None and math.isfinite(value)]
        whole = len(known) == len(repeats)
        results.append(
            dataclasses.replace(
                first,
                value=float(np.mean(known)) if whole else None,
                error=float(np.std(known, ddof=1)) if whole else None,
                error_kind=f"standard deviation over {len(repeats)} seeds" if whole else None,
                notes=first.notes if whole else [*first.notes, f"only {len(known)} of {len(repeats)} seeds have it"],
                details={"values": [value if value in known else None for value in values], **first.details},
            )
        )
    return results


def as_json(result: Result) -> dict[str, Any]:
    """Returns a result for the report, in which infinity, which JSON does not have, becomes a note."""
    values = dataclasses.asdict(result)
    del values["key"]
    for name, whose in (("value", ""), ("real", " of real images"), ("error", " (its error)")):
        if values[name] is not None and not math.isfinite(values[name]):
            values["notes"].append(f"{result.title}{whose} is {values[name]}")
            values[name] = None
    return values


def training_notes(name: str, config: ReferenceConfig, train: Part, memorisation: bool) -> list[str]:
    """Says whether the model was trained on other images than those that it is compared with, or on those that are
    held out, as far as that is known."""
    notes = []
    trained = read_record(name).get("config", {})
    same = is_source(config, trained)
    data, info = training_data(name), train.data.info
    # Not the fingerprint, which is another one after random crops, and where groups of images were found.
    if data and not (
        same and (data["name"], data["split"], data["num_images"]) == (info.name, info.split, info.num_images)
    ):
        others = "other images of " if not same and data["name"] == info.name else ""
        notes.append(
            f"{name} was trained on {data['num_images']} images of {data['name']} [{data['split']}], and is compared "
            f"with {others}{info.name} [{info.split}]"
            + ": memorisation sees copies of those, and no others"
            * memorisation
        )
    held_out, left_out = config.held_out_split, trained.get("validation_split")
    drawn, theirs = (share_of(held_out), config.group_column), (share_of(left_out), trained.get("group_column"))
    if data and same and drawn[0] is not None and drawn != theirs:
        notes.append(
            f"the held-out images are {held_out} of {info.name} [{config.dataset_split}], on which {name} was "
            "trained: what is measured of them says less"
        )
    return notes


def nearest_pairs(sampler: Sampler, config: ReferenceConfig, report: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Returns the generated images that are nearest to training images, made once more, and these; the nearest first.

    Returns:
        Pairs of uint8 arrays `(H, W, C)`; none if memorisation was not measured.
    """
    result = report["results"].get("near_duplicates")
    if result is None:
        return []
    sampler, config, _ = ready(sampler, config, report["generation"]["num_images"])
    train = open_reference(config, sampler.image_shape, 0, 0).train
    sampler = sampler.with_shares(report["generation"]["class_shares"])
    pairs = []
    for pair in result["details"]["pairs"]:
        both = (sampler([pair["image"]], pair["seed"]), train.images([pair["train"]]))
        first, second = (image[0].permute(1, 2, 0).cpu().numpy() for image in both)
        pairs.append((first, second))
    return pairs
