"""The options of the data; no torch here, so that `--help` answers at once."""

import os
from dataclasses import dataclass

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, nearest, option

IMAGE_MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # PIL mode -> channels
FULL_RANGE = (0.0, 65535.0)  # of 16-bit images: how they were read before `value_range` was an option
MOST_PIXELS = 4096  # of an image's side
BACKGROUNDS = ("white", "black", "gray", "none")

MOST_GROUPS, IMAGES_PER_GROUP = 100, 16  # where `num_clusters` is left open
CLUSTER_FEATURES = ("pixels", "patches")

IMAGE_COLUMN = "column with the images; left out: the first of that type, `image` or `img` before others"
LABEL_COLUMN = (
    "column with the classes: ClassLabel, strings or whole numbers; left out: if there is a ClassLabel, `label` and "
    "the like before others"
)
GROUP_COLUMN = "column whose groups no split may cut, such as patients: all images of one are on one side"
VALUE_RANGE = (
    "two numbers: the pixel values that become black and white in gray images of more than 8 bits; left out: one "
    "range for all images, found in them"
)
BACKGROUND = (
    "what transparent pixels are laid over where `image_mode` is L or RGB; none: the colours that lie hidden in them, "
    "which RGBA has otherwise from what is around them"
)
CLUSTERED = (
    "what similar images of `num_clusters` have in common: pixels; patches, learnt from these images in a minute; or "
    "features of an image model of transformers, as facebook/dinov2-small, by Hub id or folder; left out: pixels for "
    "gray images, patches for others"
)


OUTSIDE = "read images from files that rows of a data set name elsewhere, which might be anyone's"


@dataclass(frozen=True)
class DataConfig(Options):
    """Data: where the images come from and how they are cut."""

    dataset_name: str | None = option(
        None, "Hub id, folder of a data set (parquet, arrow), or `digits`, which ships with the installation"
    )
    dataset_config_name: str | None = option(None, "configuration of the data set, where it has several")
    dataset_split: str = option("train", "split to read")
    validation_split: str | None = option(
        None, "what training leaves out and evaluations measure with: a share of the images, as 0.1, or another split"
    )
    group_column: str | None = option(None, GROUP_COLUMN)
    train_data_dir: str | None = option(
        None, "folder of images; its sub-folders are the classes, or splits if all are called so (train, test, ...)"
    )
    image_column: str | None = option(None, IMAGE_COLUMN, resolved=True)
    label_column: str | None = option(None, LABEL_COLUMN, resolved=True)
    resolution: int | None = option(
        None,
        "height and width in pixels; left out: that of the images if they share one of at most 64, else 64",
        resolved=True,
        least=4,
        most=MOST_PIXELS,
        weighs=True,
    )
    center_crop: bool = option(
        False, "crop oblong images in the centre; otherwise at a random place, anew each time an image is seen"
    )
    image_mode: str | None = option(
        None, "L (gray), RGB or RGBA; left out: what the images have", choices=tuple(IMAGE_MODES), resolved=True
    )
    value_range: tuple[float, ...] | None = option(
        None, VALUE_RANGE, resolved=True, before=FULL_RANGE, least=-1e30, most=1e30
    )
    background: str = option("white", BACKGROUND, choices=BACKGROUNDS, before="none")
    num_clusters: int | None = option(
        0,
        "without `class_conditional`: find this many groups of similar images and train on these; 0 for none; where a "
        f"preset leaves it open, one for each {IMAGES_PER_GROUP} images, {MOST_GROUPS} at most",
        resolved=True,
        least=0,
        most=2**20,
    )
    cluster_features: str | None = option(None, CLUSTERED, resolved=True, before="pixels")
    balance_classes: bool = option(False, "show every class equally often, whatever its share of the data")
    skip_corrupt_images: bool = option(False, "count and skip images that cannot be decoded instead of stopping")
    allow_outside_files: bool = option(False, OUTSIDE, resumable=True, once=True)
    cache_dir: str | None = option(
        None, "where decoded images are kept (default: hfgen/ in the HF cache)", resumable=True
    )
    verify_cache: bool = option(
        False, "check all that is kept there when it is opened, instead of a sample of large files", resumable=True
    )
    streaming: bool = option(
        False, "read the data while training, for data that fits no disk; needs `max_train_steps`"
    )
    shuffle_buffer_size: int = option(1000, "images shuffled together when streaming", least=1, most=2**30)
    dataloader_num_workers: int = option(
        0, "processes that read and decode per training process, when streaming", least=0, most=256
    )
    random_flip: bool = option(False, "augmentation: mirror half of the images, left to right")
    random_rotation: float = option(
        0.0, "augmentation: rotate by up to this many degrees either way", least=0, most=360
    )
    random_scale: float = option(0.0, "augmentation: zoom by a factor of up to 1 + this, in or out", least=0, most=10)
    random_crop: int = option(0, "augmentation: shift by up to this many pixels each way", least=0, most=MOST_PIXELS)
    color_jitter: float = option(
        0.0, "augmentation: change brightness, contrast and saturation by up to this share", least=0, below=1
    )

    def __post_init__(self) -> None:
        if isinstance(self.validation_split, float):  # as Python may give it
            object.__setattr__(self, "validation_split", str(self.validation_split))
        super().__post_init__()

    @property
    def validation_share(self) -> float | None:
        """Returns the share of the images that training leaves out; `None` where it leaves out none."""
        return share_of(self.validation_split)

    def groups_for(self, images: int | None) -> int:
        """Returns the number of groups of similar images: as given; else by the number of images, so that a group is
        no single image, and none where there is something else to go by, or too few images."""
        if self.num_clusters is not None:
            return self.num_clusters
        if self.streaming or self.balance_classes or images is None:
            return 0
        count = min(MOST_GROUPS, images // IMAGES_PER_GROUP)
        return count if count > 1 else 0

    def features_for(self, mode: str) -> str:
        """Returns what similar images of a mode have in common: as given; else the pixels if they are gray, and what
        they are made of otherwise, as photographs of one thing hardly ever agree pixel by pixel."""
        return self.cluster_features or ("pixels" if mode == "L" else "patches")

    def validate(self) -> None:
        if self.dataset_name and self.train_data_dir:
            raise UserError(
                f"`dataset_name` {self.dataset_name} and `train_data_dir` {self.train_data_dir} exclude each other: "
                "give one of them."
            )
        span = self.value_range
        if span is not None and not (len(span) == 2 and span[0] < span[1]):
            raise UserError(
                f"`value_range` {' '.join(map(str, span))} is no range: give two numbers, the value that becomes "
                "black and a greater one that becomes white."
            )
        if self.num_clusters == 1:
            raise UserError("`num_clusters` 1 would put all images into one group: use 0 for none, or 2 and more.")
        features = self.cluster_features
        known = features is None or features in CLUSTER_FEATURES or "/" in features or os.path.isdir(features)
        if not known:
            raise UserError(
                f"`cluster_features` {features} is unknown: use {', '.join(CLUSTER_FEATURES)}, or the Hub id or "
                f"folder of an image model.{nearest(str(features), CLUSTER_FEATURES)}"
            )
        if self.validation_split is not None and self.validation_split == self.dataset_split:
            raise UserError(f"`validation_split` {self.validation_split} is what is trained on: give a share, as 0.1.")
        share = check_share("validation_split", self.validation_split)
        if share is not None and self.streaming:
            raise UserError(f"`validation_split` {share:g} needs all images at hand: with `streaming`, name a split.")
        if self.group_column and self.streaming:
            raise UserError(f"`group_column` {self.group_column} needs all images at hand: leave out `streaming`.")
        if self.dataloader_num_workers and not self.streaming:
            raise UserError(
                f"`dataloader_num_workers` {self.dataloader_num_workers} has nothing to do: images are decoded once "
                "into a cache. Leave it out, or add `streaming`."
            )
        if self.balance_classes and self.streaming:
            raise UserError("`balance_classes` needs all labels at hand, and `streaming` keeps none: leave one out.")
        if self.streaming and self.dataset_name in (None, "digits") and not self.train_data_dir:
            raise UserError("`streaming` needs `dataset_name` or `train_data_dir`: the embedded digits are in memory.")


def share_of(split: str | None) -> float | None:
    """Returns the share that is given in place of a split; `None` for the name of one."""
    try:
        return None if split is None else float(split)
    except ValueError:
        return None


def check_share(name: str, split: str | None) -> float | None:
    """Returns the same as [`share_of`]. Raises [`UserError`] for a number that is no share."""
    share = share_of(split)
    if share is not None and not 0 < share < 1:
        raise UserError(f"`{name}` {split} is no share of the images: use a number between 0 and 1, as 0.1.")
    return share


@dataclass(frozen=True)
class ImagesConfig(Options):
    """Images: real ones, to measure or to show a checkpoint with."""

    dataset_name: str | None = option(None, "Hub id or folder of the images (default: the digits)")
    dataset_config_name: str | None = option(None, "configuration of the data set, where it has several")
    train_data_dir: str | None = option(None, "folder of images, as for training")
    dataset_split: str | None = option(
        None, "split (default: test; of the digits and of a folder of images, which have one only, train)"
    )
    image_column: str | None = option(None, IMAGE_COLUMN)
    label_column: str | None = option(None, LABEL_COLUMN)
    value_range: tuple[float, ...] | None = option(None, VALUE_RANGE, least=-1e30, most=1e30)
    background: str | None = option(
        None, BACKGROUND + " (default: as in the model's training, if known, else white)", choices=BACKGROUNDS
    )
    skip_corrupt_images: bool = option(False, "count and skip images that cannot be decoded instead of stopping")
    allow_outside_files: bool = option(False, OUTSIDE, once=True)
    cache_dir: str | None = option(None, "where decoded images are kept (default: hfgen/ in the HF cache)")

    @property
    def source(self) -> str:
        """Returns what was named: a data set, a folder, or `digits`."""
        return self.train_data_dir or self.dataset_name or "digits"

    @property
    def has_one_split(self) -> bool:
        """Says whether these are images without splits: the digits, or a folder of images."""
        return self.train_data_dir is not None or self.source == "digits"

    def data(
        self,
        image_shape: tuple[int, int, int],
        split: str | None = None,
        center_crop: bool = True,
        validation_split: str | None = None,
        group_column: str | None = None,
    ) -> DataConfig:
        """Returns options for a split of them, cropped to a model's (channels, height, width)."""
        return DataConfig(
            dataset_name=self.dataset_name,
            dataset_config_name=self.dataset_config_name,
            train_data_dir=self.train_data_dir,
            dataset_split=split or self.dataset_split or ("train" if self.has_one_split else "test"),
            validation_split=validation_split,
            group_column=group_column,
            image_column=self.image_column,
            label_column=self.label_column,
            value_range=self.value_range,
            background=self.background or "white",
            skip_corrupt_images=self.skip_corrupt_images,
            allow_outside_files=self.allow_outside_files,
            resolution=image_shape[1],
            center_crop=center_crop,
            image_mode=next(mode for mode, channels in IMAGE_MODES.items() if channels == image_shape[0]),
            cache_dir=self.cache_dir,
        )
