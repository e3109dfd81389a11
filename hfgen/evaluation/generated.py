"""Generated images with classes, for a classifier: out of a model or a folder, brought to the form of real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfgen.data.cache import SourceData, open_images
from hfgen.data.columns import Classes
from hfgen.data.config import DataConfig
from hfgen.data.decode import fit, to_mode
from hfgen.data.info import DataInfo
from hfgen.evaluation.classifier import Part
from hfgen.runtime.errors import UserError
from hfgen.runtime.png import to_pil
from hfgen.sampling.sampler import Sampler

AT_ONCE = 64  # images


@dataclass(frozen=True)
class Images:
    """Generated images with classes, `(N, C, R, R)` in uint8 and `(N,)`, as a [`~classifier.Part`] takes its data."""

    info: DataInfo
    images: np.ndarray
    labels: np.ndarray
    layout: None = None

    def strips(self, rows: Any) -> np.ndarray:
        return self.images[rows]

    def squares(self, rows: Any) -> np.ndarray:
        return self.images[rows]

    def part(self) -> Part:
        return Part(self, np.arange(len(self.labels)))

    def take(self, rows: np.ndarray) -> "Images":
        return Images(self.info, self.images[rows], self.labels[rows])


class Mixture:
    """Real images, and behind them generated ones: real ones that are oblong are still cropped at random."""

    def __init__(self, real: Part, generated: Images):
        self.real, self.generated, self.info = real, generated, real.data.info
        self.labels = np.concatenate([real.classes, generated.labels])
        self.layout: np.ndarray | None = None
        if real.data.layout is not None:
            square = np.tile(np.array([self.info.resolution, 0], np.int32), (len(generated.labels), 1))
            self.layout = np.concatenate([real.data.layout[real.rows], square])

    def strips(self, rows: Any) -> np.ndarray:
        rows, count = np.asarray(rows), len(self.real.rows)
        is_real = rows < count
        first = self.real.data.strips(self.real.rows[rows[is_real]])
        strips = np.zeros((len(rows), *self.real.data.images.shape[1:]), dtype=np.uint8)
        strips[is_real] = first
        size = self.info.resolution
        strips[~is_real, :, :, :size] = self.generated.images[rows[~is_real] - count]
        return strips

    def part(self) -> Part:
        return Part(self, np.arange(len(self.labels)))


def as_data(images: torch.Tensor, info: DataInfo, background: str) -> np.ndarray:
    """Brings generated images `(B, C, H, W)`, uint8, to the mode and the size of real ones."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if arrays.shape[1:] == (info.resolution, info.resolution, info.channels):
        return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))
    fitted = [fit(to_mode(to_pil(one), info.mode, None, background), info.resolution, True)[0] for one in arrays]
    return np.stack(fitted)


class Generator:
    """A model that knows the classes of the data."""

    def __init__(self, sampler: Sampler, names: tuple[str, ...]):
        classes = sampler.adapter.classes
        if classes is None or classes.groups or not sampler.classes:
            kinds = "groups of similar images, which mean nothing" if classes else "no classes"
            raise UserError(
                f"`model` {sampler.name} knows {kinds}, and images without a class teach none: train it by class "
                "(`class_conditional`, or the preset conditional), or give images with classes by `generated`."
            )
        check_names(f"`model` {sampler.name}", classes.names, names)
        self.sampler, self.name = sampler, sampler.name
        numbers = {name: number for number, name in enumerate(classes.names)}
        self.sampler.classes = [numbers[name] for name in names]  # in turn: image i has class i % K of the data
        self.names = names

    def images(self, each: int, seed: int, info: DataInfo, background: str) -> Images:
        """Makes so many images of each class, of the set of `seed`."""
        count, parts = each * len(self.names), []
        for start in range(0, count, AT_ONCE):
            batch = self.sampler(range(start, min(start + AT_ONCE, count)), seed)
            parts.append(as_data(batch, info, background))
        return Images(info, np.concatenate(parts), np.arange(count) % len(self.names))


class Folder:
    """A folder of generated images with classes."""

    def __init__(self, folder: str, info: DataInfo, data: DataConfig):
        names = info.class_names or ()
        config = DataConfig(
            dataset_name=folder,
            resolution=info.resolution,
            image_mode=info.mode,
            center_crop=True,
            background=data.background,
            skip_corrupt_images=data.skip_corrupt_images,
            cache_dir=data.cache_dir,
        )
        try:
            self.data: SourceData = open_images(config)
        except UserError as error:
            raise UserError(f"`generated` {folder}: {error}") from None
        self.name, labels = folder, self.data.labels
        if labels is None or self.data.info.class_names is None:
            raise UserError(f"`generated` {folder} has no classes: give a folder with a sub-folder for each class.")
        check_names(f"`generated` {folder}", self.data.info.class_names, names)
        self.labels = np.array([*Classes(names).numbers(self.data.info.class_names), -1])[labels]
        empty = [name for number, name in enumerate(names) if not (self.labels == number).any()]
        if empty:
            raise UserError(f"`generated` {folder} has no image of {', '.join(empty)}: add some of each class.")

    def images(self, each: int, seed: int, info: DataInfo, background: str) -> Images:
        """Draws so many images of each class; fewer, if there are not so many."""
        generator = np.random.default_rng(seed)
        numbers = range(len(info.class_names or ()))
        rows = [generator.permutation(np.flatnonzero(self.labels == number))[:each] for number in numbers]
        drawn = np.concatenate(rows)
        return Images(info, np.array(self.data.squares(drawn)), self.labels[drawn])


def check_names(what: str, known: Sequence[str], names: Sequence[str]) -> None:
    """Raises [`UserError`] if generated images lack a class of the data, by its name."""
    missing = [name for name in names if name not in known]
    if missing:
        others = [name for name in known if name not in names]
        beside = f" It has {', '.join(others[:10])} instead." if others else ""
        raise UserError(
            f"{what} does not know {len(missing)} of the {len(names)} classes of the data: {', '.join(missing[:10])}."
            f"{beside} Classes go by their names: rename them, or give another generator."
        )


def choose(images: Images, count: int) -> Images:
    """Returns so many images, the first ones, of all classes alike; fewer where a class has not so many."""
    names = len(images.info.class_names or ())
    wanted = [count // names + (number < count % names) for number in range(names)]
    rows = [np.flatnonzero(images.labels == number)[: wanted[number]] for number in range(names)]
    return images.take(np.sort(np.concatenate(rows)))
