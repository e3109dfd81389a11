"""Trains a small classifier of images, in whose terms generated images of the same kind can be judged.

Without arguments it trains on the handwritten digits that ship with the installation. Examples:

    python scripts/train_classifier.py
    python scripts/train_classifier.py --dataset_name ylecun/mnist
    python scripts/train_classifier.py --dataset_name uoft-cs/cifar10 --preset photos
    python scripts/train_classifier.py --train_data_dir photos --resolution 64 --preset photos

The result is an ordinary folder of transformers, for `AutoModelForImageClassification` and `AutoImageProcessor`: a
RegNet, whose first convolution halves the image only once and so leaves something of small ones. Beside it stand a
card and `eval.json`, with the accuracy on images that it was not trained on.
"""

import dataclasses
import functools
import itertools
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgen.commands.cli import command_line, one_line_errors, parse
from hfgen.data.config import DataConfig
from hfgen.evaluation.config import GOOD_ACCURACY
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.training.options import choose_preset

if TYPE_CHECKING:  # they take seconds to import, and `--help` does not need them
    import numpy as np
    import torch

    from hfgen.data.info import DataInfo

COLOURS = 3  # gray images are shown three times, because the pipeline of transformers makes all images RGB
HELD_OUT = 5  # one image in so many, where there is no split to measure on
SMALLEST_MAP = 4  # pixels per side, at which the network stops halving
WIDEST = 8  # times the base channels
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 0.05
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")

CARD = """---
{{ card_data }}
---

# {{ name }}

A small classifier (RegNet) of {{ resolution }}x{{ resolution }} images, trained with hfgen {{ hfgen }} to judge
generated images of the same kind. Distances in its features can be compared only with other distances in the features
of this very classifier: they are no FID.

**Test accuracy: {{ percent(test_accuracy) }}** of {{ test.num_images }} images of {{ test.name }}, split \
`{{ test.split }}`{% if held_out %}, held out from training{% endif %}.
{%- if weak %} **That is too little to judge others by.**{% endif %}

| class | training images | test accuracy |
|---|---|---|
{% for label, count in train.class_counts.items() -%}
| {{ label }} | {{ count }} | {{ percent(test_accuracy_by_class[label]) if label in test_accuracy_by_class }} |
{% endfor %}
## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", "{{ name }}")  # a folder or a Hub id
```

## Training

| | |
|---|---|
| Data | {{ train.num_images }} images of {{ train.name }}, split `{{ train.split }}`, data `{{ train.fingerprint }}` |
| Length | {{ config.num_epochs }} epochs in steps of {{ config.train_batch_size }} images |
| Network | {{ parameters }} parameters |
| Seed | {{ config.seed }} |
| Machine | {{ machine }} |
| Time | {{ train_seconds }} s |
| Versions |{% for name, number in versions.items() %} {{ name }} {{ number }}{{ "," if not loop.last }}{% endfor %} |

```bash
{{ command }}
```

`eval.json` holds all options and figures.
"""


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier: its size, its training, and where it goes."""

    base_channels: int = option(32, "channels at the highest resolution, doubled whenever the image is halved")
    depth: int = option(1, "residual blocks per resolution")
    num_epochs: int = option(6, "passes over the images")
    train_batch_size: int = option(128, "images per step")
    learning_rate: float = option(3e-3, "of AdamW at its peak; it warms up and then falls as a cosine")
    seed: int = option(0, "seed of the weights, the order, the augmentation and of what is held out")
    test_split: str | None = option(
        None,
        "split to measure on (default: `test` of a --dataset_name; of the digits, a folder of images, and where it is "
        "that of --dataset_split, a fifth is held out)",
    )
    output_dir: str | None = option(None, "folder of the classifier (default: out/classifier-<name of the data>)")

    def validate(self) -> None:
        for name in ("base_channels", "depth", "num_epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is out of range: use 1 or more.")
        if self.learning_rate <= 0:
            raise UserError(f"--learning_rate {self.learning_rate} is out of range: use more than 0.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} is out of range: use 0 to 2**32 - 1.")


def gray() -> dict[str, Any]:
    """MNIST and its like, which bear a shift and no mirror: two to three minutes on two cores."""
    return {"random_crop": 2}


def digits() -> dict[str, Any]:
    """scikit-learn's digits, enlarged from 8x8 to 16x16 as the other scripts do: 15 s on two cores."""
    return {"dataset_name": "digits", "resolution": 16, "random_crop": 1, "num_epochs": 20, "train_batch_size": 32}


def photos() -> dict[str, Any]:
    """CIFAR-10 and its like: a wider and deeper network that trains for longer, and wants a GPU."""
    return {"random_flip": True, "random_crop": 4, "base_channels": 64, "depth": 2, "num_epochs": 40}


PRESETS = {"digits": digits, "gray": gray, "photos": photos}


def read_options(argv: Sequence[str] | None = None) -> tuple[DataConfig, ClassifierConfig]:
    data, config = parse(
        (DataConfig, ClassifierConfig),
        argv,
        description=str(__doc__).partition("\n")[0],
        presets=PRESETS,
        default_preset=functools.partial(choose_preset, otherwise="gray"),
        instead={"train_data_dir": "dataset_name"},
    )
    data.validate()
    config.validate()
    for flag in ("streaming", "balance_classes"):
        if getattr(data, flag):
            raise UserError(f"--{flag} is not for classifiers, which look at all images equally often: leave it out.")
    source = data.train_data_dir or data.dataset_name or "digits"
    has_splits = source == data.dataset_name != "digits"
    return data, dataclasses.replace(
        config,
        test_split=config.test_split or ("test" if has_splits else data.dataset_split),
        output_dir=config.output_dir or f"out/classifier-{Path(source).resolve().name}",
    )


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
    def classes(self) -> "np.ndarray":
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
    """The images to train on, and those to measure on."""
    import numpy as np

    from hfgen.data.cache import open_images

    train = open_images(data)
    names = train.info.class_names
    if train.labels is None or names is None:
        raise UserError(f"{train.info.name} has no classes to learn: name the column with --label_column.")
    if len(names) < 2:
        raise UserError(f"{train.info.name} has only the class {names[0]!r}: give data with 2 classes or more.")
    if train.info.mode == "RGBA":
        raise UserError(f"{train.info.name} has transparent images: add --image_mode RGB to drop that.")
    same: dict[str, Any] = {"resolution": train.info.resolution, "image_mode": train.info.mode, "center_crop": True}
    try:
        test = open_images(dataclasses.replace(data, dataset_split=str(config.test_split), **same))
    except UserError as error:
        raise UserError(
            f"--test_split {config.test_split}: {error} To hold out a fifth of the images instead, add "
            f"--test_split {data.dataset_split}."
        ) from None
    if test.labels is None or test.info.class_names != names:
        raise UserError(
            f"--test_split {config.test_split} has other classes than --dataset_split {data.dataset_split}: give a "
            f"column of type ClassLabel, or add --test_split {data.dataset_split} to hold out a fifth of the images."
        )
    train_rows, test_rows = np.flatnonzero(train.labels >= 0), np.flatnonzero(test.labels >= 0)
    if config.test_split == data.dataset_split:
        mixed = np.random.default_rng(config.seed).permutation(train_rows)
        held_out = len(mixed) // HELD_OUT
        test_rows, train_rows = np.sort(mixed[:held_out]), np.sort(mixed[held_out:])
    for rows, split in ((train_rows, data.dataset_split), (test_rows, config.test_split)):
        if not len(rows):
            raise UserError(f"{train.info.name} [{split}] has too few images with a class: use other data.")
    return Part(train, train_rows), Part(test, test_rows)


def build_model(info: "DataInfo", config: ClassifierConfig) -> Any:
    """A RegNet for colours, with as many stages as it takes to come down to maps of about four pixels."""
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


def build_processor(info: "DataInfo") -> Any:
    """What turns images into what the network was trained on: the right size, three colours, values in [-1, 1]."""
    try:
        from transformers import ViTImageProcessorPil as ImageProcessor  # saved under the name without "Pil"
    except ImportError:  # transformers 4
        from transformers import ViTImageProcessor as ImageProcessor
    size = {"height": info.resolution, "width": info.resolution}
    bicubic = 3  # PIL's number, and the filter of hfgen's own data layer
    half = [0.5] * COLOURS
    return ImageProcessor(size=size, resample=bicubic, image_mean=half, image_std=half, do_convert_rgb=True)


def train(model: Any, part: Part, data: DataConfig, config: ClassifierConfig, folder: Path) -> None:
    """Trains with transformers' Trainer, whose only use of the folder is to make sure that it exists."""
    import torch
    from transformers import Trainer, TrainingArguments

    from hfgen.data.augment import prepare
    from hfgen.data.streams import RawBatch
    from hfgen.runtime.launch import on_cpu
    from hfgen.training.random import StepRandom

    steps = itertools.count()

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        assert part.data.labels is not None
        layout = {} if part.data.layout is None else {"image": torch.from_numpy(part.data.layout[rows])}
        raw = RawBatch({"image": torch.from_numpy(part.data.images[rows])}, layout)
        random = StepRandom(config.seed, next(steps), len(rows), purpose="augmentation")
        images = prepare(raw, data, random)["image"].expand(-1, COLOURS, -1, -1)
        labels = torch.from_numpy(part.data.labels[rows])
        return {"pixel_values": images.contiguous(memory_format=torch.channels_last), "labels": labels}

    total = config.num_epochs * -(-len(part.rows) // config.train_batch_size)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=config.train_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * total),
        weight_decay=WEIGHT_DECAY,
        seed=config.seed,
        use_cpu=on_cpu(),
        dataloader_pin_memory=not on_cpu(),
        remove_unused_columns=False,
        logging_strategy="epoch",
        save_strategy="no",  # its checkpoints hold pickles
        report_to="none",
    )
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    Trainer(model, arguments, data_collator=collate, train_dataset=part.rows.tolist()).train()
    model.to("cpu", memory_format=torch.contiguous_format)


def predict(folder: Path, part: Part) -> "torch.Tensor":
    """Logits `(N, K)` of what was saved, by the image processor that was saved."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(part.rows), 500):
            images = torch.from_numpy(part.data.images[part.rows[start : start + 500]]).expand(-1, COLOURS, -1, -1)
            pixels = processor(images, input_data_format="channels_first", return_tensors="pt")
            logits.append(model(**pixels).logits)
    return torch.cat(logits)


def measure(folder: Path, train_part: Part, test_part: Part) -> dict[str, Any]:
    """Accuracy on the test images, and what both parts are."""
    import torch

    from hfgen.evaluation.labels import conditional_accuracy

    logits = predict(folder, test_part)
    if not logits.isfinite().all():
        raise UserError("the training diverged: use a smaller --learning_rate.")
    found = conditional_accuracy(logits, torch.from_numpy(test_part.classes))
    info = train_part.data.info
    names = info.class_names or ()
    return {
        "test_accuracy": found.accuracy,
        "test_accuracy_by_class": {names[number]: share for number, share in found.by_class.items()},
        "held_out": info.split == test_part.data.info.split,
        "train_data": train_part.record(),
        "test_data": test_part.record(),
        "resolution": info.resolution,
        "image_mode": info.mode,
    }


def write_card(folder: Path, name: str, report: dict[str, Any]) -> None:
    """A card with the figures of `eval.json`, and none besides."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    from hfgen.hub.card import plain, shown_command

    source, test = report["config"]["dataset_name"], report["test_data"]
    on_hub = bool(source) and "/" in source and not Path(source).expanduser().exists()
    accuracy = EvalResult(
        task_type="image-classification",
        dataset_type=source if on_hub else test["name"],
        dataset_name=test["name"],
        dataset_split=test["split"],
        metric_type="accuracy",
        metric_value=report["test_accuracy"],
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["hfgen"],
        datasets=[source] if on_hub else None,
        model_name=name,
        eval_results=[accuracy],
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        name=name,
        train=plain(report["train_data"]),
        test=plain(test),
        weak=is_weak(report),
        percent="{:.2%}".format,
        **plain(report) | {"command": shown_command(report["command"])},
    )
    card.save(folder / "README.md")


def is_weak(report: dict[str, Any]) -> bool:
    return report["test_accuracy"] < GOOD_ACCURACY


def main(argv: Sequence[str] | None = None) -> None:
    data, config = read_options(argv)
    folder = Path(str(config.output_dir))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output_dir {folder} holds something already: give a new folder.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("a small classifier trains in one process: start this script with python.")

    import torch

    from hfgen.runtime.launch import cores, on_cpu

    train_part, test_part = open_parts(data, config)
    info = train_part.data.info
    if on_cpu():
        torch.set_num_threads(cores())  # accelerate launch leaves torch one
    threads = torch.get_num_threads()
    machine = f"CPU, {threads} thread{'s' * (threads > 1)}" if on_cpu() else torch.cuda.get_device_name()
    torch.manual_seed(config.seed)
    model = build_model(info, config)
    print(f"Data:     {info}; {len(train_part.rows)} to train on, {len(test_part.rows)} to measure on")
    print(f"Training: {model.num_parameters() / 1e6:.2f} M parameters; {machine}", flush=True)
    # Renamed as the last step, so that a run cut short leaves nothing that looks like a classifier.
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be made: {error}. Give another folder.") from None
    try:
        start = time.perf_counter()
        train(model, train_part, data, config, temporary)
        seconds = time.perf_counter() - start
        model.save_pretrained(temporary)
        build_processor(info).save_pretrained(temporary)
        report = measure(temporary, train_part, test_part) | {
            "parameters": model.num_parameters(),
            "train_seconds": round(seconds, 1),
            "machine": machine,
            "command": command_line([DataConfig, ClassifierConfig], argv),
            "config": as_dict([data, config]),
            "hfgen": version("hfgen"),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (temporary / "eval.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_card(temporary, folder.resolve().name, report)
        if folder.exists():
            folder.rmdir()  # it is empty
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"Accuracy: {report['test_accuracy']:.2%} of {report['test_data']['num_images']} test images")
    if is_weak(report):
        print(f"          which is too weak a judge ({GOOD_ACCURACY:.0%} are needed): train longer, or on more images")
    print(f"Saved:    {folder}")


if __name__ == "__main__":
    with one_line_errors():
        main()
