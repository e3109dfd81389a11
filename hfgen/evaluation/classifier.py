"""A small classifier of images, in whose features generated images of the same kind are measured.

The result is an ordinary folder of transformers, for `AutoModelForImageClassification` and `AutoImageProcessor`: a
RegNet, whose first convolution halves the image only once and so leaves something of small ones.
"""

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hfgen.data.augment import prepare
from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig, share_of
from hfgen.data.info import DataInfo
from hfgen.data.splits import check_sides, draw_held_out
from hfgen.data.streams import RawBatch
from hfgen.evaluation.config import ClassifierConfig
from hfgen.evaluation.labels import conditional_accuracy
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_json
from hfgen.runtime.launch import cores, on_cpu
from hfgen.runtime.machine import Machine, weight_bytes
from hfgen.runtime.options import as_dict
from hfgen.runtime.provenance import record
from hfgen.runtime.seeds import seed_from

COLOURS = 3  # gray images are shown three times, because the pipeline of transformers makes all images RGB
HELD_OUT = 5  # one image in so many, where there is no split to measure on
SMALLEST_MAP = 4  # pixels per side, at which the network stops halving
WIDEST = 8  # times the base channels
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Part:
    """Some rows of a data set, all of them with a class.

    Attributes:
        data ([`~hfgen.data.cache.SourceData`]): The data set.
        rows (`np.ndarray` of shape `(N,)`): Which of its images.
    """

    data: Any
    rows: Any

    @property
    def classes(self) -> np.ndarray:
        return self.data.labels[self.rows]

    def record(self) -> dict[str, Any]:
        info = self.data.info
        counts = [0] * len(info.class_names or ())
        for number in self.classes.tolist():
            counts[number] += 1
        return {
            "name": info.name,
            "split": info.split,
            "fingerprint": info.fingerprint,
            "num_images": len(self.rows),
            "class_counts": dict(zip(info.class_names or (), counts, strict=True)),
        }


def open_parts(data: DataConfig, config: ClassifierConfig) -> tuple[Part, Part]:
    """Opens the images to train on, and those to measure on.

    Those to measure on are a split of their own; what `validation_split` leaves out of training; or drawn from the
    images by class, and, with `group_column`, by whole groups.

    Raises:
        UserError: If there are no classes to learn, nothing to measure on, or groups on both sides.
    """
    for name in ("streaming", "balance_classes"):
        if getattr(data, name):
            raise UserError(f"`{name}` is not for classifiers, which see all images equally often: leave it out.")
    test_split = str(config.resolved(data).test_split)
    share = share_of(test_split)
    by_training = share is not None and test_split == data.validation_split  # which drew them from all images alike
    drawn = test_split == data.dataset_split or (share is not None and not by_training)
    train = open_images(data)
    if train.info.mode == "RGBA":  # as it measures them
        data = dataclasses.replace(data, image_mode="RGB")
        train = open_images(data)
    names = train.info.class_names
    if train.labels is None or names is None:
        raise UserError(f"{train.info.name} has no classes to learn: name the column with `label_column`.")
    if len(names) < 2:
        raise UserError(f"{train.info.name} has only the class {names[0]!r}: give data with 2 classes or more.")
    same: dict[str, Any] = {"resolution": train.info.resolution, "image_mode": train.info.mode, "center_crop": True}
    same["value_range"] = train.info.value_range or data.value_range
    try:
        if drawn or by_training:
            test = open_images(dataclasses.replace(data, **same), held_out=by_training)
        else:
            test = open_images(dataclasses.replace(data, dataset_split=test_split, validation_split=None, **same))
    except UserError as error:
        raise UserError(
            f"`test_split` {test_split}: {error} To hold out a fifth of the images instead, add `test_split` "
            f"{data.dataset_split}."
        ) from None
    if train.labels is None or test.labels is None or test.info.class_names != names:
        raise UserError(
            f"`test_split` {test_split} has other classes than `dataset_split` {data.dataset_split}: give a column of "
            f"type ClassLabel, or add `test_split` {data.dataset_split} to hold out a fifth of the images."
        )
    train_rows, test_rows = np.flatnonzero(train.labels >= 0), np.flatnonzero(test.labels >= 0)
    column, groups = data.group_column, None
    if column is not None:
        found = [(part.groups, rows) for part, rows in ((train, train_rows), (test, test_rows))]
        groups = [own[rows] for own, rows in found if own is not None]
    if drawn and len(train_rows):
        own = None if groups is None else groups[0]
        held_out = draw_held_out(train.labels[train_rows], share or 1 / HELD_OUT, config.seed, own)
        train_rows, test_rows = train_rows[~held_out], train_rows[held_out]
        groups = None if own is None else [own[~held_out], own[held_out]]
    for rows, split in ((train_rows, data.dataset_split), (test_rows, test_split)):
        if not len(rows):
            raise UserError(f"{train.info.name} [{split}] has too few images with a class: use other data.")
    if column is not None and groups is not None:
        labels = train.labels[train_rows], test.labels[test_rows]
        check_sides(labels, (groups[0], groups[1]), names, column)
    return Part(train, train_rows), Part(test, test_rows)


def build_model(info: DataInfo, config: ClassifierConfig) -> Any:
    """Builds a RegNet for colour images, with as many stages as it takes to come down to maps of about four pixels."""
    from transformers import RegNetConfig, RegNetForImageClassification

    side, widths = -(-info.resolution // 2), [config.base_channels]
    while side > SMALLEST_MAP:
        side = -(-side // 2)
        widths.append(min(2 * widths[-1], WIDEST * config.base_channels))
    names = info.class_names or ()
    return RegNetForImageClassification(
        RegNetConfig(
            embedding_size=config.base_channels,
            hidden_sizes=widths,
            depths=[config.depth] * len(widths),
            groups_width=widths[-1],  # ordinary convolutions: on a CPU grouped ones save no time
            layer_type="x",
            downsample_in_first_stage=False,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            problem_type="single_label_classification",
        )
    )


def check_memory(info: DataInfo, config: ClassifierConfig) -> None:
    """Makes sure that a batch, and the network with what training adds to it, would fit into an empty memory.

    Raises:
        UserError: If they do not, with the options that decide it.
    """
    machine, shape = Machine.here(), (COLOURS, info.resolution, info.resolution)
    machine.require_images(config.train_batch_size or 1, shape, f"`train_batch_size` {config.train_batch_size}")
    with torch.device("meta"):  # which has shapes, and no memory
        network = build_model(info, config)
    count = sum(parameter.numel() for parameter in network.parameters())
    machine.require(
        weight_bytes(network),
        f"`base_channels` {config.base_channels} `depth` {config.depth}: {count / 1e6:,.0f} M weights, "
        "with all that training adds,",
    )


def build_processor(info: DataInfo) -> Any:
    """Builds the image processor of the network: the right size, three colours, values in [-1, 1]."""
    try:
        from transformers import ViTImageProcessorPil as ImageProcessor  # saved under the name without "Pil"
    except ImportError:  # transformers 4
        from transformers import ViTImageProcessor as ImageProcessor
    size = {"height": info.resolution, "width": info.resolution}
    bicubic = 3  # PIL's number, and the filter of hfgen's own data layer
    half = [0.5] * COLOURS
    return ImageProcessor(size=size, resample=bicubic, image_mean=half, image_std=half, do_convert_rgb=True)


class Augmentation:
    """The random numbers of a step's augmentation: they depend on the seed and the step alone."""

    def __init__(self, seed: int, step: int, size: int):
        self.size, self.generator = size, torch.Generator().manual_seed(seed_from(seed, step, "augmentation"))

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(self.size, *shape, generator=self.generator)


def train(
    model: Any, part: Part, data: DataConfig, config: ClassifierConfig, total: int | None = None, quiet: bool = False
) -> None:
    """Trains with transformers' Trainer.

    Args:
        model: The network of [`build_model`].
        part ([`Part`]): What to train on.
        data ([`DataConfig`]), config ([`ClassifierConfig`]): The options; those of the length have their values.
        total (`int`, *optional*): Steps; by default those of `num_epochs`.
        quiet (`bool`, *optional*, defaults to `False`): Whether to show nothing.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    steps, labels, layout = itertools.count(), part.data.labels, part.data.layout
    assert labels is not None

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        layouts = {} if layout is None else {"image": torch.from_numpy(layout[rows])}
        raw = RawBatch({"image": torch.from_numpy(part.data.strips(rows))}, layouts)
        images = prepare(raw, data, Augmentation(config.seed, next(steps), len(rows)))["image"]
        images = images.expand(-1, COLOURS, -1, -1).contiguous(memory_format=torch.channels_last)
        return {"pixel_values": images, "labels": torch.from_numpy(labels[rows])}

    weights = class_weights(part) if config.class_weights else None
    assert config.num_epochs and config.train_batch_size
    total = total or config.num_epochs * -(-len(part.rows) // config.train_batch_size)
    with tempfile.TemporaryDirectory() as scratch:  # of which its only use is to make sure that it exists
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=total,
            per_device_train_batch_size=config.train_batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(WARMUP * total),
            weight_decay=WEIGHT_DECAY,
            seed=config.seed,
            use_cpu=on_cpu(),
            dataloader_pin_memory=not on_cpu(),
            remove_unused_columns=False,
            logging_strategy="no" if quiet else "epoch",
            disable_tqdm=quiet or None,
            save_strategy="no",  # its checkpoints hold pickles
            report_to="none",
        )
        model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        trainer = Trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=part.rows.tolist(),
            compute_loss_func=None if weights is None else partial(weighted_loss, weights),
        )
        if quiet:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.to("cpu", memory_format=torch.contiguous_format)


def class_weights(part: Part) -> torch.Tensor:
    """Returns a weight for each class that makes all classes count alike, and the mean of all images 1."""
    counts = np.bincount(part.classes, minlength=len(part.data.info.class_names or ()))
    return torch.from_numpy(len(part.classes) / (np.maximum(counts, 1) * (counts > 0).sum())).float()


def weighted_loss(weights: torch.Tensor, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> Any:
    """Computes the cross entropy with weights of the classes, its mean over images and not over weights."""
    losses = F.cross_entropy(outputs["logits"], labels, weights.to(labels.device), reduction="none")
    return losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def predict(model: Any, processor: Any, part: Part) -> torch.Tensor:
    """Computes the logits `(N, K)` of a network, with its image processor."""
    logits = []
    with torch.inference_mode():
        for start in range(0, len(part.rows), 500):
            images = torch.from_numpy(part.data.squares(part.rows[start : start + 500])).expand(-1, COLOURS, -1, -1)
            pixels = processor(images, input_data_format="channels_first", return_tensors="pt")
            logits.append(model(**pixels).logits)
    values = torch.cat(logits)
    if not values.isfinite().all():
        raise UserError("the training diverged: use a smaller `learning_rate`.")
    return values


def measure(folder: Path, train_part: Part, test_part: Part) -> dict[str, Any]:
    """Measures the accuracy of the network that was saved on the test images, and describes both parts."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    logits = predict(model, AutoImageProcessor.from_pretrained(folder), test_part)
    accuracy = conditional_accuracy(logits, torch.from_numpy(test_part.classes))
    info = train_part.data.info
    names = info.class_names or ()
    return {
        "test_accuracy": accuracy.accuracy,
        "test_balanced_accuracy": float(np.mean(list(accuracy.by_class.values()))),
        "test_accuracy_by_class": {names[number]: share for number, share in accuracy.by_class.items()},
        "held_out": info.split == test_part.data.info.split,
        "train_data": train_part.record(),
        "test_data": test_part.record(),
        "resolution": info.resolution,
        "image_mode": info.mode,
    }


def train_classifier(
    data: DataConfig, config: ClassifierConfig, folder: Path, command: str = "", say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains a classifier and writes it into a folder, with `eval.json`: the accuracy on images that it has not seen.

    Args:
        data ([`DataConfig`]), config ([`ClassifierConfig`]): The options.
        folder (`Path`): Where to write.
        command (`str`, *optional*): The command line, for the record.
        say (`Callable`, *optional*): Prints a line.

    Returns:
        `dict`: What `eval.json` holds.

    Raises:
        UserError: If the data has no classes to learn, or the training diverges.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("a small classifier trains in one process: start it without a launcher.")
    train_part, test_part = open_parts(data, config)
    counts = np.bincount(train_part.classes, minlength=len(train_part.data.info.class_names or ())).tolist()
    config = config.suited(counts)
    info = train_part.data.info
    if on_cpu():
        torch.set_num_threads(cores())  # accelerate launch leaves torch one
    threads = torch.get_num_threads()
    machine = f"CPU, {threads} thread{'s' * (threads > 1)}" if on_cpu() else torch.cuda.get_device_name()
    check_memory(info, config)
    torch.manual_seed(seed_from(config.seed, "weights"))
    model = build_model(info, config)
    say(f"Data:     {info}; {len(train_part.rows)} to train on, {len(test_part.rows)} to measure on")
    weighted = "; all classes count alike" if config.class_weights else ""
    say(
        f"Training: {model.num_parameters() / 1e6:.2f} M parameters; {machine}; {config.num_epochs} epochs in steps "
        f"of {config.train_batch_size} images{weighted}"
    )
    start = time.perf_counter()
    train(model, train_part, data, config)
    seconds = time.perf_counter() - start
    model.save_pretrained(folder)
    build_processor(info).save_pretrained(folder)
    report = record(
        command,
        **measure(folder, train_part, test_part),
        parameters=model.num_parameters(),
        train_seconds=round(seconds, 1),
        machine=machine,
        config=as_dict([data, config.resolved(data)]),
    )
    write_json(folder / "eval.json", report)
    return report
