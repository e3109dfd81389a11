"""Measures whether generated images help a classifier: trained on real ones, on generated ones and on both.

All classifiers are tested on the same real images, on which neither they nor the generator were trained, and all see
as many images in training, so that only what they see differs. A seed decides the weights, the order, the augmentation
and which images are generated; a difference is one of two classifiers of the same seed.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfgen.data.config import DataConfig
from hfgen.evaluation.augment_report import METRICS, ONLY_REAL, compare, draw_report, remarks, verdict, write_report
from hfgen.evaluation.augment_splits import Split, open_splits, write_split_only
from hfgen.evaluation.classifier import (
    COLOURS,
    Part,
    build_model,
    build_processor,
    check_memory,
    predict,
    train,
)
from hfgen.evaluation.config import FEWEST, AugmentConfig, ClassifierConfig, preset_options
from hfgen.evaluation.features import classifier as with_features
from hfgen.evaluation.generated import Generator, Images, Mixture, choose
from hfgen.evaluation.labels import conditional_accuracy
from hfgen.evaluation.neighbours import memorisation
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import new_folder_at_once
from hfgen.runtime.launch import cores, on_cpu
from hfgen.runtime.options import as_dict, make
from hfgen.runtime.provenance import record
from hfgen.runtime.seeds import seed_from
from hfgen.runtime.writable import require_folder
from hfgen.sampling.config import all_sampling_options, names_of

SPARE = 1.25  # times as many images are made where copies will be dropped
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A classifier in memory, and what it does with the held-out images."""

    model: Any
    processor: Any
    scores: dict[str, float]


def train_one(part: Part, test: Part, data: DataConfig, config: ClassifierConfig, steps: int) -> Trained:
    """Trains a classifier and measures it on the held-out images."""
    info = test.data.info
    torch.manual_seed(seed_from(config.seed, "weights"))
    model = build_model(info, config)
    train(model, part, data, config, total=steps, quiet=True)
    model, processor = model.eval(), build_processor(info)
    return Trained(model, processor, score(predict(model, processor, test), test.classes))


def score(logits: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Computes the balanced accuracy, and the area under the ROC curve: of the second of two classes; of several, the
    mean over the classes of each against the rest.

    Args:
        logits (`torch.Tensor` of shape `(N, K)`): Of the classifier.
        labels (`np.ndarray` of shape `(N,)`): The classes; each occurs.
    """
    from sklearn.metrics import roc_auc_score

    by_class = conditional_accuracy(logits, torch.from_numpy(labels)).by_class
    shares = logits.double().softmax(1).numpy()
    present = np.unique(labels)
    areas = [roc_auc_score(labels == number, shares[:, number]) for number in present[len(present) == 2 :]]
    return {"balanced_accuracy": float(np.mean(list(by_class.values()))), "auc": float(np.mean(areas))}


def unlikely(real: Trained, images: Images, share: float) -> np.ndarray:
    """Finds this share of the images of each class to which a classifier gives least probability of their class."""
    logits = predict(real.model, real.processor, images.part()).double().log_softmax(1).numpy()
    likelihood = logits[np.arange(len(images.labels)), images.labels]
    drop = np.zeros(len(images.labels), dtype=bool)
    for number in np.unique(images.labels):
        own = np.flatnonzero(images.labels == number)
        drop[own[np.argsort(likelihood[own], kind="stable")[: math.floor(share * len(own))]]] = True
    return drop


def memorised(real: Trained, images: Images, train_part: Part, test_part: Part) -> np.ndarray:
    """Finds the images that are near-duplicates of a training image, as [`~neighbours.memorisation`] defines them."""
    network, _ = with_features(real.model)

    def features(part: Part) -> torch.Tensor:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(part.rows), 500):
                pixels = torch.from_numpy(np.array(part.data.squares(part.rows[start : start + 500])))
                rows.append(network(pixels.expand(-1, COLOURS, -1, -1) / 127.5 - 1)["features"].flatten(1))
        return torch.cat(rows)

    found = memorisation(features(images.part()), features(train_part), features(test_part))
    return (found.distances <= found.threshold).numpy()


@dataclass(frozen=True)
class Augmentation:
    """The result of [`measure`].

    Attributes:
        report (`dict`): All that was found, JSON.
        picture (`PIL.Image.Image`): The figure.
    """

    report: dict[str, Any]
    picture: Image.Image = field(repr=False)


class Comparison:
    """The classifiers of all seeds, as they are trained.

    Args:
        augment ([`AugmentConfig`]): The options.
        say (`Callable`): Prints a line.

    Attributes:
        conditions (`dict`): By what was trained on: how many images were real and generated, and the scores.
        dropped (`list` of `dict`): How many images were generated and left out, of each seed.
        example: The generated images of the first seed.
    """

    def __init__(self, augment: AugmentConfig, say: Say):
        self.augment, self.say = augment, say
        self.conditions: dict[str, dict[str, Any]] = {}
        self.dropped: list[dict[str, Any]] = []
        self.example: Images | None = None

    def add(self, split: Split, config: ClassifierConfig) -> None:
        """Trains and measures the classifiers of one seed, that of the options."""
        count, start = len(split.train.rows), time.perf_counter()
        assert config.num_epochs and config.train_batch_size
        steps = config.num_epochs * -(-count // config.train_batch_size)  # all see as many
        trainings, first = 2 + len(self.augment.ratios), not self.conditions
        if first:
            check_memory(split.train.data.info, config)
            self.say(f"Training: {trainings} classifiers of {steps} steps for each of {self.augment.num_seeds} seeds")
        real = train_one(split.train, split.test, split.data, config, steps)
        self._keep(ONLY_REAL, count, 0, real, config.seed)
        if first:
            minutes = (time.perf_counter() - start) * trainings * self.augment.num_seeds / 60
            self.say(f"          in about {max(1, round(minutes))} min")
        pool = self._pool(split, config.seed, real)
        self.example = self.example or pool
        for ratio in (None, *self.augment.ratios):
            added = choose(pool, max(1, round((ratio or 1) * count)))
            name = "generated only" if ratio is None else mixture(ratio)
            part = added.part() if ratio is None else Mixture(split.train, added).part()
            trained = train_one(part, split.test, split.data, config, steps)
            self._keep(name, 0 if ratio is None else count, len(added.labels), trained, config.seed)

    def _pool(self, split: Split, seed: int, real: Trained) -> Images:
        """Makes the generated images of a seed, without those that are left out."""
        augment, info = self.augment, split.train.data.info
        names = info.class_names or ()
        each = -(-round(max(1.0, *augment.ratios) * len(split.train.rows)) // len(names))
        each = math.ceil(each / (1 - augment.drop_unlikely) * (SPARE if augment.drop_memorised else 1))
        parts = [source.images(each, seed, info, split.data.background) for source in split.sources]
        pool = Images(info, np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
        if len(parts) > 1:
            pool = pool.take(np.random.default_rng(seed).permutation(len(pool.labels)))
        drop = {}
        if augment.drop_unlikely:
            drop["unlikely"] = unlikely(real, pool, augment.drop_unlikely)
        if augment.drop_memorised:
            drop["memorised"] = memorised(real, pool, split.train, split.test)
        counts = {reason: int(each.sum()) for reason, each in drop.items()}
        self.dropped.append({"seed": seed, "generated": len(pool.labels), **counts})
        pool = pool.take(np.flatnonzero(~np.any([np.zeros(len(pool.labels), bool), *drop.values()], axis=0)))
        lost = [name for number, name in enumerate(names) if not (pool.labels == number).any()]
        if lost:
            raise UserError(f"of class {', '.join(lost)} no generated image is left: drop fewer, or give more.")
        return pool

    def _keep(self, name: str, real: int, generated: int, trained: Trained, seed: int) -> None:
        empty: dict[str, Any] = {"real": [], "generated": [], "values": {metric: [] for metric in METRICS}}
        condition = self.conditions.setdefault(name, empty)
        condition["real"].append(real)
        condition["generated"].append(generated)
        for metric, value in trained.scores.items():
            condition["values"][metric].append(value)
        shown = ", ".join(f"{METRICS[metric]} {100 * value:.2f} %" for metric, value in trained.scores.items())
        self.say(f"Seed {seed}, {name}: {shown}")

    def notes(self, count: int) -> list[str]:
        """Says what was left out, and where there were too few generated images; of so many real ones."""
        notes = []
        wanted = {mixture(ratio): round(ratio * count) for ratio in self.augment.ratios}
        short = [name for name, number in wanted.items() if min(self.conditions[name]["generated"]) < number]
        if short:
            notes.append(f"There were too few generated images for {', '.join(short)}: the table says how many.")
        for reason, what in (
            ("unlikely", "as unlikely of their class"),
            ("memorised", "as copies of training images"),
        ):
            if reason in self.dropped[0]:
                gone, of = (sum(line[key] for line in self.dropped) for key in (reason, "generated"))
                notes.append(f"{gone:,} of {of:,} generated images were left out {what}.")
        return notes


def measure(
    data: DataConfig,
    config: ClassifierConfig,
    augment: AugmentConfig,
    given: Mapping[str, Any] | None = None,
    command: str = "",
    say: Say = print,
) -> Augmentation:
    """Trains classifiers on real images, on generated ones and on both, and compares them.

    Args:
        data ([`DataConfig`]), config ([`ClassifierConfig`]), augment ([`AugmentConfig`]): The options.
        given (`Mapping`, *optional*): The sampling options that were given.
        command (`str`, *optional*): The command line, for the record.
        say (`Callable`, *optional*): Prints a line.

    Raises:
        UserError: In several processes, and for what [`~augment_splits.open_splits`] refuses.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("small classifiers train in one process: start this without a launcher.")
    given = given or {}
    config = dataclasses.replace(config, output_dir=augment.output_dir)
    configs = [dataclasses.replace(config, seed=config.seed + turn) for turn in range(augment.num_seeds)]
    splits, warnings, notes = open_splits(data, config, augment, given)
    least = min(len(split.test.rows) for split in splits)
    if augment.drop_memorised and least < FEWEST:
        raise UserError(f"`drop_memorised` needs {FEWEST} held-out images to compare with: there are {least}.")
    if on_cpu():
        torch.set_num_threads(cores())
    for text in dict.fromkeys(f"{split.train.data.info}; {sizes(split)}" for split in splits):
        say(f"Data:     {text}")
    for text in warnings:
        say(f"Warning:  {text}")
    start, comparison = time.perf_counter(), Comparison(augment, say)
    names = splits[0].train.data.info.class_names or ()
    weighted = False
    for turn, own in enumerate(configs):
        split = splits[turn % len(splits)]
        own = own.suited(np.bincount(split.train.classes, minlength=len(names)).tolist())
        weighted = bool(own.class_weights)
        comparison.add(split, own)
    conditions = comparison.conditions
    compare(conditions)
    notes += remarks(splits[0].test, augment, splits[0].data.group_column, weighted)
    notes += comparison.notes(max(len(split.train.rows) for split in splits))
    report = record(
        command,
        verdict=verdict(conditions, list(map(mixture, augment.ratios)), bool(warnings)),
        warnings=warnings,
        notes=notes,
        conditions=conditions,
        seeds=[each.seed for each in configs],
        splits=[
            {
                "train_data": split.train.record(),
                "test_data": split.test.record(),
                "generated": [source.name for source in split.sources],
                "settings": [s.sampler.settings for s in split.sources if isinstance(s, Generator)],
            }
            for split in splits
        ],
        dropped=comparison.dropped,
        machine="CPU" if on_cpu() else torch.cuda.get_device_name(),
        seconds=round(time.perf_counter() - start, 1),
        config=as_dict([data if augment.splits else splits[0].data, config, augment])
        | {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()},
    )
    assert comparison.example is not None
    pool = comparison.example
    return Augmentation(report, draw_report(report, splits[0].train, pool.images, pool.labels))


def mixture(ratio: float) -> str:
    """Names real images with so many generated ones."""
    return f"real + {ratio:g} x generated"


def sizes(split: Split) -> str:
    return f"{len(split.train.rows)} to train on, {len(split.test.rows)} held out"


def augment(
    model: str | Sequence[str] | None = None,
    generated: str | Sequence[str] | None = None,
    preset: str | None = None,
    say: Say = print,
    **options: Any,
) -> dict[str, Any]:
    """Measures whether generated images help a classifier: the same as the command `hfgen augment`.

    Args:
        model (`str` or `Sequence[str]`, *optional*): Folder or Hub id of a generator that knows the classes.
        generated (`str` or `Sequence[str]`, *optional*): Folder of generated images with classes.
        preset (`str`, *optional*): That of the classifier.
        say (`Callable`, *optional*): Prints a line.
        options: The data, `ratios`, `num_seeds`, `group_column`, ..., and the model's sampling options. With
            `output_dir`, the report is written there; with `split_only`, nothing is measured and a split is written.

    Returns:
        `dict`: The report, JSON; with `split_only`, the records of both parts.

    Raises:
        UserError: If the data or the generated images cannot be used.
    """
    given = {"model": model, "generated": generated}
    more = {name: (value,) if isinstance(value, str) else value for name, value in given.items() if value is not None}
    sampling = all_sampling_options()
    kinds = (AugmentConfig, DataConfig, ClassifierConfig)
    settings, data, config, *_ = make((*kinds, *sampling), preset_options({**options, **more}, preset))
    if settings.split_only:
        folder = Path(settings.split_only)
        require_folder(folder, "split_only", beside=True)
        first, second = write_split_only(data, config, folder)
        return {"train": first, "test": second}
    if settings.output_dir:
        require_folder(Path(settings.output_dir), "output_dir", beside=True)
    own = {name for kind in kinds for name in names_of(kind)}
    result = measure(
        data, config, settings, {name: value for name, value in options.items() if name not in own}, say=say
    )
    if settings.output_dir:
        with new_folder_at_once(Path(settings.output_dir)) as temporary:
            write_report(temporary, result.report, result.picture, options.get("provenance", True))
    return result.report
