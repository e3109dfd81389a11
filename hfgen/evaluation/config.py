"""The options of evaluation; no torch here, so that `--help` answers at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.data.config import GROUP_COLUMN, DataConfig, ImagesConfig, check_share
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, option
from hfgen.runtime.seeds import SEEDS

SEEN = 40_000  # images that a classifier sees at least
GOOD_ACCURACY = 0.9  # a weaker classifier says little about images
MOST_IMAGES = 10**7  # of a measurement: their features are kept
MOST_THREADS = 512
METRICS = (
    "fd",
    "kd",
    "is",
    "precision_recall",
    "density_coverage",
    "cmmd",
    "vendi",
    "ndb",
    "birthday",
    "memorisation",
    "confidence",
    "label_divergence",
    "conditional_accuracy",
    "stacked_modes",
    "bits_per_dim",
    "ppl",
    "pairs",
    "label_kept",
)
FEWEST = 20  # new images that say what is rare among them, for memorisation
WITHOUT_FEATURES = ("bits_per_dim",)  # of images; no extractor is needed for them
# Metrics that are one number: how its name in a log begins, and which is better.
NUMBERS = {
    "fd": (("fd_", "fid", "clean_fid"), "lower"),
    "kd": (("kd_", "kid", "clean_kid"), "lower"),
    "is": (("is", "cs_"), "higher"),
    "cmmd": (("cmmd",), "lower"),
    "vendi": (("vendi",), "higher"),
    "confidence": (("confident_share",), "higher"),
    "conditional_accuracy": (("conditional_accuracy",), "higher"),
    "bits_per_dim": (("bits_per_dim",), "lower"),
    "ppl": (("ppl",), "lower"),
    "label_kept": (("label_kept",), "higher"),
}
ONE_NUMBER = tuple(NUMBERS)
TOWARDS = "towards:"  # what a direction begins with that is no number
PICTURES = (  # of `hfgen show`, in this order
    "samples",
    "neighbours",
    "steps",
    "walk",
    "edits",
    "traversals",
    "reconstructions",
    "interpolations",
    "inpainting",
    "denoising",
    "super_resolution",
    "colorization",
    "variations",
    "completion",
    "translations",
)


@dataclass(frozen=True)
class Amounts(Options):
    """Measuring: how much of what."""

    num_images: int = option(10_000, "images to generate, per seed", least=2, most=MOST_IMAGES)
    seed: int = option(0, "seed of the first image; each following one has the next", least=0, most=SEEDS - 1)
    seeds: int = option(
        1, "how often to repeat it with other images, for a mean and a deviation", least=1, most=10_000
    )
    batch_size: int = option(64, "images at once per process", least=1, most=2**20)
    likelihood_samples: int | None = option(
        None,
        "draws per image for bits_per_dim, of models that draw any; the more, the tighter a bound and the smaller the "
        "error of an estimate (default: what suits the model)",
        least=1,
        most=10**6,
    )
    likelihood_images: int | None = option(
        None,
        "real images for bits_per_dim (default: 1000, or fewer for a model that takes long)",
        least=1,
        most=MOST_IMAGES,
    )
    cpu_threads: int | None = option(
        None, "threads per process on a CPU (default: cores / processes)", least=1, most=MOST_THREADS
    )

    def validate(self) -> None:
        super().validate()
        if self.seed + self.seeds > SEEDS:
            raise UserError(
                f"`seed` {self.seed} is out of range: use 2**64 - {self.seeds} or less, for all of `seeds`."
            )


@dataclass(frozen=True)
class SplitsConfig(ImagesConfig):
    """Images: real ones that a model was trained on, and others (default: those of its training, if known)."""

    dataset_split: str | None = option("train", "split to compare with; for memorisation, the one that was trained on")
    held_out_split: str | None = option(
        None,
        "what no model has seen, to measure the metrics by: a split, or the share that `validation_split` left out of "
        "training (default: what the model's training left out, else test; without one, half of the images)",
    )
    group_column: str | None = option(None, f"{GROUP_COLUMN} (default: as in the model's training, if known)")
    center_crop: bool | None = option(
        None, "crop oblong images in the centre (default: as in the model's training, if known, else in the centre)"
    )

    def validate(self) -> None:
        check_share("held_out_split", self.held_out_split)


@dataclass(frozen=True)
class ReferenceConfig(SplitsConfig):
    """Reference: the real images to compare with."""

    num_real_images: int | None = option(
        None, "real images, drawn at random (default: as many as are generated)", least=2, most=MOST_IMAGES
    )
    inputs: str | None = option(
        None,
        "of translators: the images to translate, by folder or Hub id (default: what the training left out of the set "
        "that they translate, else its split test); the images named above are then of the set that they make",
    )
    inputs_split: str | None = option(None, "split of `inputs` (default: test; of a folder of images train)")
    inputs_column: str | None = option(None, "column of `inputs` with the images; left out: as for `image_column`")

    def validate(self) -> None:
        super().validate()
        for name in ("inputs_split", "inputs_column"):
            if getattr(self, name) is not None and self.inputs is None:
                raise UserError(f"`{name}` {getattr(self, name)} belongs to `inputs`: name these, or leave it out.")


@dataclass(frozen=True)
class ShowConfig(Options):
    """Pictures: which, of what, and how large."""

    pictures: tuple[str, ...] | None = option(None, "what to show (default: all that the model can)", choices=PICTURES)
    num_images: int = option(10, "real images in a picture, and samples in a row; two at least", least=2, most=10_000)
    seed: int = option(
        0,
        "seed of the samples, of which real images are taken, of noise, and of what is drawn",
        least=0,
        most=SEEDS - 1,
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "seeds of single images, to walk between, to edit and to show step by step: those that samples.json and PNG "
        "files of `sample` have (default: those of the first images of `seed`)",
        least=0,
        most=SEEDS - 1,
    )
    directions: tuple[str, ...] | None = option(
        None,
        "what to change in edits: numbers, the strongest being 0, or towards:CLASS, a class of the data, of a model "
        "that is not told classes (default: some of each)",
    )
    strengths: tuple[float, ...] = option(
        (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0), "how far edits go along a direction", least=-1000, most=1000
    )
    scale: int | None = option(
        None,
        "enlarge images so many times, without smoothing (default: small ones, to about 96 pixels)",
        least=1,
        most=64,
    )
    noise_level: float = option(
        0.3,
        "standard deviation of the noise to remove, pixels being in [0, 1] (a model for a task knows its own)",
        above=0,
        most=100,
    )
    factor: int | None = option(
        None,
        "how many times smaller the images to enlarge are (default: the least that divides them; a model for a task "
        "knows its own)",
        least=2,
        most=4096,
    )
    steps: int | None = option(
        None,
        "steps in which images are restored: of a search, or of sampling (default: what suits the model)",
        least=1,
        most=10**6,
    )

    def validate(self) -> None:
        super().validate()
        if not self.strengths:
            raise UserError("`strengths` has no numbers: give some, or leave it out.")
        for word in self.directions or ():
            is_number = word.isascii() and word.isdecimal() and len(word) <= 6
            if not is_number and not (word.startswith(TOWARDS) and len(word) > len(TOWARDS)):
                raise UserError(f"`directions` {word} is none: use a number from 0 on, or {TOWARDS}CLASS.")


@dataclass(frozen=True)
class ClassifierConfig(Options):
    """Classifier: its size, its training, and where it goes."""

    base_channels: int = option(
        32,
        "channels at the highest resolution, doubled whenever the image is halved",
        least=1,
        most=2**16,
        weighs=True,
    )
    depth: int = option(1, "residual blocks per resolution", least=1, most=64, weighs=True)
    num_epochs: int | None = option(
        None, "passes over the images (default: 6; more of few images, until 40,000 are seen)", least=1, most=10**6
    )
    train_batch_size: int | None = option(
        None, "images per step (default: 128; fewer of few images, 16 at least)", least=1, most=2**20
    )
    class_weights: bool | None = option(
        None,
        "let each class count alike, whatever its share of the images (default: where one has more than twice as many "
        "images as another)",
    )
    learning_rate: float = option(
        3e-3, "of AdamW at its peak; it warms up and then falls as a cosine", above=0, most=100
    )
    seed: int = option(
        0, "seed of the weights, the order, the augmentation and of what is held out", least=0, most=2**32 - 1
    )
    test_split: str | None = option(
        None,
        "split to measure on (default: `validation_split`, if there is one, else test of a `dataset_name`; of the "
        "digits, a folder of images, and where it is that of `dataset_split`, a fifth is held out); or the share that "
        "is held out, as 0.3",
    )
    output_dir: str | None = option(None, "folder of the classifier (default: out/classifier-<name of the data>)")

    def validate(self) -> None:
        check_share("test_split", self.test_split)

    def suited(self, counts: Sequence[int]) -> "ClassifierConfig":
        """Returns the options with numbers in place of what was left out, for so many images of each class."""
        images, present = sum(counts), [count for count in counts if count]
        epochs, size = max(6, min(150, -(-SEEN // images))), 128
        while size > 16 and 16 * size > images:
            size //= 2
        unequal = max(present) > 2 * min(present)
        return dataclasses.replace(
            self,
            num_epochs=self.num_epochs or epochs,
            train_batch_size=self.train_batch_size or size,
            class_weights=unequal if self.class_weights is None else self.class_weights,
        )

    def resolved(self, data: DataConfig) -> "ClassifierConfig":
        """Returns the options with a split and a folder in place of what was left out."""
        source = data.train_data_dir or data.dataset_name or "digits"
        has_splits = source == data.dataset_name != "digits"
        return dataclasses.replace(
            self,
            test_split=self.test_split or data.validation_split or ("test" if has_splits else data.dataset_split),
            output_dir=self.output_dir or f"out/classifier-{Path(source).resolve().name}",
        )


def gray() -> dict[str, Any]:
    """MNIST and other gray images that stay what they are when shifted, not when mirrored: minutes on two cores."""
    return {"random_crop": 2}


def digits() -> dict[str, Any]:
    """scikit-learn's digits, enlarged from 8x8 to 16x16 as for training: 15 s on two cores."""
    return {"dataset_name": "digits", "resolution": 16, "random_crop": 1, "num_epochs": 20, "train_batch_size": 32}


def photos() -> dict[str, Any]:
    """CIFAR-10 and other photographs: a wider and deeper network that trains for longer, best on a GPU."""
    return {"random_flip": True, "random_crop": 4, "base_channels": 64, "depth": 2, "num_epochs": 40}


CLASSIFIER_PRESETS = {"digits": digits, "gray": gray, "photos": photos}


def preset_options(values: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
    """Returns options of a classifier and its data with those of a preset in place of what was left out: by default
    `digits` if there is no data, else `gray`."""
    no_data = values.get("dataset_name") in (None, "digits") and values.get("train_data_dir") is None
    options = CLASSIFIER_PRESETS[preset or ("digits" if no_data else "gray")]()
    if values.get("train_data_dir") is not None:
        options.pop("dataset_name", None)
    return options | dict(values)


MOST_RATIO = 1000.0


@dataclass(frozen=True)
class AugmentConfig(Options):
    """Augmentation: the generated images, and how much of them is tried."""

    model: tuple[str, ...] | None = option(
        None, "folder or Hub id of a generator that knows the classes; several take turns, or are those of `splits`"
    )
    generated: tuple[str, ...] | None = option(
        None,
        "folder of generated images with classes, as `hfgen sample` writes with `as_dataset`; several take turns, or "
        "are those of `splits`",
    )
    ratios: tuple[float, ...] = option(
        (0.5, 1.0, 2.0),
        "how many generated images to add to the real ones, as multiples of their number",
        above=0,
        most=MOST_RATIO,
    )
    num_seeds: int = option(5, "how often all is repeated, each time with another seed", least=1, most=1000)
    drop_unlikely: float = option(
        0.0,
        "leave out this share of the generated images of each class: those which the classifier of real images gives "
        "least probability of their class",
        least=0,
        below=1,
    )
    drop_memorised: bool = option(
        False,
        "leave out generated images that are as near to a training image as only a hundredth of the held-out ones, in "
        "the features of the classifier of real images",
    )
    splits: tuple[str, ...] | None = option(
        None, "folders that `split_only` wrote, in place of the data: the seeds take turns, each with its own split"
    )
    split_only: str | None = option(
        None,
        "only write a split of the data into this folder: `train` for the training of the generator, `test` held out",
        once=True,
    )
    output_dir: str | None = option(None, "folder of the report (default: out/augment-<name of the data>)")

    def validate(self) -> None:
        for name in ("model", "generated", "splits", "ratios"):
            values = getattr(self, name)
            if values is not None and not values:
                raise UserError(f"`{name}` has no values: give some, or leave it out.")
            if values is not None and len(set(values)) < len(values):
                raise UserError(f"`{name}` {' '.join(map(str, values))} has a value twice: give each once.")
        if self.split_only:
            return
        if not self.model and not self.generated:
            raise UserError("`model` is missing: give a generator that knows the classes, or images by `generated`.")
        count = len(self.splits or ())
        if count > self.num_seeds:
            raise UserError(f"`num_seeds` {self.num_seeds} is too few for {count} `splits`: use {count} or more.")
        for name in ("model", "generated"):
            own = getattr(self, name) or ()
            if count and len(own) not in (0, 1, count):
                raise UserError(f"`{name}` has {len(own)} values for {count} `splits`: give one, or one for each.")
            if len(own) > self.num_seeds:
                raise UserError(f"`num_seeds` {self.num_seeds} is too few for {len(own)} of `{name}`: use more.")
