"""Groups of similar images: classes for data without classes.

A network that is told the group of each image learns faster and can be guided like a class-conditional one, without
any label (Self-Guided Diffusion Models, https://huggingface.co/papers/2210.06462).
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from hfgen.data.cache import Column, SourceData, cut_squares
from hfgen.data.columns import Classes
from hfgen.data.config import CLUSTER_FEATURES
from hfgen.data.info import DataInfo, ImageInfo, LabelInfo
from hfgen.data.patches import PatchFeatures
from hfgen.data.store import build_once
from hfgen.runtime.errors import UserError

SIDE = 32  # images are compared at no more than this many pixels per side
COMPONENTS = 50  # principal components that are compared
SAMPLE = 20_000  # images that the groups are found from; all the others join the groups of the nearest ones
NEIGHBOURS = 10  # that an image is linked to
DIMENSIONS = 20  # of the space that the links are laid out in
PART = 10_000  # images that join their groups at once


@dataclass(frozen=True)
class ImageModel:
    """A network whose features say how similar images are.

    Attributes:
        fingerprint (`str`): Of its weights and of what it does to images.
        features (`Callable`): From images, `(N, C, H, W)` uint8, to rows, `(N, D)`.
    """

    fingerprint: str
    features: Callable[[torch.Tensor], torch.Tensor]


def with_groups(
    data: SourceData, label: str, count: int, load: Callable[[str], ImageModel] | None = None
) -> SourceData:
    """Replaces the class of each image by the number of its group.

    The groups are found once (see [`cluster`]) and kept beside the cached images, so that every
    process and every resumed run sees the same ones.

    Args:
        data ([`~data.cache.SourceData`]): Columns in their cache; the first one of images counts. Its options say
            what is compared.
        label (`str`): The column that the groups replace.
        count (`int`): Number of groups, at least 2.
        load (`Callable`, *optional*): Loads the [`ImageModel`] of a name, if the options name one.

    Raises:
        UserError: If there are fewer images than groups, or the groups cannot be kept.
    """
    images = next(column for column in data.columns.values() if isinstance(column.info, ImageInfo))
    pixels, (source, info) = images.arrays[0], next(iter(data.info.sources.items()))
    most = min(len(pixels), SAMPLE)
    if not 2 <= count <= most:
        raise UserError(f"`num_clusters` {count} does not fit {len(pixels)} images: use 2 to {most}, or 0 for none.")
    features = data.config.features_for(data.info.mode)
    model = None
    if features not in CLUSTER_FEATURES:
        if load is None:
            raise UserError(f"`cluster_features` {features} is not known here: use {' or '.join(CLUSTER_FEATURES)}.")
        model = load(features)

    def build(folder: Path) -> None:
        shown = pixels if images.layout is None else Centres(pixels, images.layout)
        np.save(folder / "groups.npy", cluster(shown, count, model or features), allow_pickle=False)

    assert images.folder is not None
    kind = model.fingerprint[:16] if model else features
    name = f"groups-{count}" + f"-{kind}" * (kind != "pixels") + "-centre" * (images.layout is not None)
    labels = np.load(build_once(images.folder / name, build) / "groups.npy", allow_pickle=False)
    labels = labels if images.index is None else labels[images.index]
    # A run that goes on has to find the same groups, also where they were found anew.
    digest = hashlib.sha256(info.fingerprint.encode() + labels.tobytes()).hexdigest()[: len(info.fingerprint)]
    shares = tuple((np.bincount(labels, minlength=count) / len(labels)).tolist())
    groups = LabelInfo(Classes(tuple(map(str, range(count))), "groups", shares), source)
    columns = {**data.columns, label: Column(groups, digest, (labels,))}
    infos = {key: column.info for key, column in columns.items()}
    sources = {source: dataclasses.replace(info, fingerprint=digest)}
    return dataclasses.replace(data, info=DataInfo(sources, infos), columns=columns)


class Centres:
    """Oblong images as they look upright, cut to their centre: `(N, C, R, R)`, cut when they are read.

    Args:
        strips (`np.ndarray` of shape `(N, C, R, L)`, uint8), layout (`np.ndarray` of shape `(N, 2)`): Images that wait
            for their crop: see [`~data.cache.Column`].
    """

    def __init__(self, strips: np.ndarray, layout: np.ndarray):
        self.strips, self.layout = strips, layout

    def __len__(self) -> int:
        return len(self.strips)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return cut_squares(self.strips[rows], self.layout[rows])


def cluster(images: "np.ndarray | Centres", count: int, features: "str | ImageModel" = "pixels") -> np.ndarray:
    """Computes the group of each image, by spectral clustering (Ng, Jordan and Weiss, NIPS 2001).

    Images are linked to those that look most alike, and groups are regions with many links inside. On MNIST, 94 % of
    the images have the digit that is most frequent in their group of 100; by plain k-means it is 87 %. On CIFAR-10,
    28 % are of the class that is most frequent in their group of 100 by pixels, and 38 % by patches.

    Args:
        images (`np.ndarray` of shape `(N, C, H, W)`, uint8): Images; it may be memory-mapped, or [`Centres`].
        count (`int`): Number of groups, at most `SAMPLE`.
        features (`str` or [`ImageModel`], *optional*, defaults to `"pixels"`): What is compared: the pixels, the
            [`~data.patches.PatchFeatures`] learnt from these images (`"patches"`), or what a network sees.

    Returns:
        `np.ndarray` of shape `(N,)`, int64. The same for the same images.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:SAMPLE])
    describe: Callable[[np.ndarray | Centres, np.ndarray], np.ndarray]
    if isinstance(features, ImageModel):
        describe = partial(_by_model, features)
    elif features == "patches":
        describe = partial(_by_patches, PatchFeatures.learn(_small(images, rows)))
    else:
        describe = _by_pixels
    sample = describe(images, rows)
    pca = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=0)
    # What counts of features is the direction; of pixels, how much they differ.
    place = pca if describe is _by_pixels else make_pipeline(pca, Normalizer())
    with np.errstate(invalid="ignore"):  # the shares of the variance of equal images, which nobody asks for
        sample = place.fit_transform(sample)
    spectral = SpectralClustering(
        count,
        n_components=min(DIMENSIONS, count),
        n_neighbors=min(NEIGHBOURS, len(sample)),
        affinity="nearest_neighbors",
        eigen_solver="lobpcg",
        n_init=1,
        random_state=0,
    )
    with warnings.catch_warnings():  # images that no chain of links joins are in different groups, which is fine
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        warnings.filterwarnings("ignore", "The spectral clustering API has changed")  # said of as many rows as columns
        groups = spectral.fit_predict(sample)
    nearest = KNeighborsClassifier(min(5, len(sample)), weights="distance").fit(sample, groups)
    parts = np.split(np.arange(len(images)), range(PART, len(images), PART))
    return np.concatenate([nearest.predict(place.transform(describe(images, part))) for part in parts]).astype(
        np.int64
    )


def _small(images: "np.ndarray | Centres", rows: np.ndarray) -> torch.Tensor:
    """Shrinks some images to at most `SIDE` pixels by averaging: float32 of shape `(N, C, H, W)`, in [0, 1]."""
    shrunk = []
    for start in range(0, len(rows), 1000):  # large ones do not fit into memory together
        pixels = torch.from_numpy(np.array(images[rows[start : start + 1000]])).float() / 255
        height, width = (min(SIDE, side) for side in pixels.shape[2:])
        shrunk.append(interpolate(pixels, size=(height, width), mode="area"))
    return torch.cat(shrunk)


def _by_pixels(images: "np.ndarray | Centres", rows: np.ndarray) -> np.ndarray:
    return _small(images, rows).flatten(1).numpy()


def _by_patches(patches: PatchFeatures, images: "np.ndarray | Centres", rows: np.ndarray) -> np.ndarray:
    return patches(_small(images, rows))


def _by_model(model: ImageModel, images: "np.ndarray | Centres", rows: np.ndarray) -> np.ndarray:
    parts = (torch.from_numpy(np.array(images[rows[start : start + 256]])) for start in range(0, len(rows), 256))
    return torch.cat([model.features(part).float().cpu() for part in parts]).numpy()
