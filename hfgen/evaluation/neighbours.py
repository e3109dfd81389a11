"""Metrics of nearest neighbours: fidelity and coverage of generated images, and whether they are copies.

All go over the pairs of images in blocks, in time proportional to the number of pairs. Distances are Euclidean ones
between features. `|x - y|^2 = |x|^2 + |y|^2 - 2 x y` is what processors are fast at, but it cancels where x and y are
close together and far from zero; so a mean is subtracted from both first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hfgen.evaluation.checks import check_features
from hfgen.evaluation.config import FEWEST

BLOCK = 1024  # rows whose distances to as many others are in memory at once
DOUBLE = 2**23  # values in two sets of features, up to which float64 costs a second or two
ALONE = 10_000  # training images, at most, that are compared with the others where none were held out
SPARE = 4  # neighbours kept beyond those asked for, as rounding may have changed their order


def check_pair(
    first: torch.Tensor, second: torch.Tensor, names: tuple[str, str], least: tuple[int, int] = (2, 2)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two sets of features that can be compared, in one dtype and on the first one's device.

    Args:
        first, second (`torch.Tensor` of shapes `(N, D)` and `(M, D)`): One row per image.
        names (`tuple[str, str]`): What to call them in a message.
        least (`tuple[int, int]`, *optional*, defaults to `(2, 2)`): Rows that each needs.

    Returns:
        In float64 if one of them is or if they hold at most `DOUBLE` values, else in float32.

    Raises:
        ValueError: For what [`~evaluation.checks.check_features`] refuses, and for different numbers of features.
    """
    first, second = (check_features(*each) for each in zip((first, second), names, least, strict=True))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} has {first.shape[1]} features per image and {names[1]} has {second.shape[1]}: take both from "
            "the same extractor."
        )
    double = torch.float64 in (first.dtype, second.dtype) or first.numel() + second.numel() <= DOUBLE
    dtype = torch.float64 if double else torch.float32
    return first.to(dtype), second.to(first.device, dtype)


def precision_recall_density_coverage(
    generated: torch.Tensor, real: torch.Tensor, k_precision: int = 3, k_density: int = 5
) -> dict[str, float]:
    """Measures how many of the generated images look real, and how much of the real ones they cover.

    Each image has a ball around it that reaches to the k-th nearest of the other images of its set.

    - `precision` is the share of generated images that lie in a real image's ball, and `recall` the share of real
      images that lie in a generated image's ball (https://huggingface.co/papers/1904.06991, equations 1 and 2). A ball
      includes its surface.
    - `density` is the mean number of real balls that a generated image lies in, divided by k, and `coverage` the share
      of real balls with a generated image inside (https://huggingface.co/papers/2002.09797, section 3). A ball is
      without its surface, as in the authors' program: that of an image with k copies in the data holds nothing.

    Good images do not have 1 everywhere (and density may be larger): all depend on k and on both numbers of images.
    Compare them with those of real images that were held out, as many as there are generated ones. Their errors are
    not estimated here, as each image takes part in the balls of many: generate with several seeds.

    Computed in float64 if one of the arguments is or if they are small, else in float32.

    Args:
        generated (`torch.Tensor` of shape `(N, D)`): Features of generated images.
        real (`torch.Tensor` of shape `(M, D)`): Features of real images.
        k_precision (`int`, *optional*, defaults to 3): The k of precision and recall.
        k_density (`int`, *optional*, defaults to 5): The k of density and coverage.

    Returns:
        `dict[str, float]`: `precision`, `recall` and `coverage` in [0, 1], and `density`, 0 or more.

    Raises:
        ValueError: For a k below 1, fewer than k + 1 images, and what [`check_pair`] refuses.
    """
    if min(k_precision, k_density) < 1:
        raise ValueError(f"k_precision is {k_precision} and k_density is {k_density}, but both must be at least 1.")
    k_real = max(k_precision, k_density)
    generated, real = check_pair(generated, real, ("generated", "real"), (k_precision + 1, k_real + 1))
    centre = real.mean(0)
    generated, real = generated - centre, real - centre

    closed = _nearest_others(generated, k_precision)[:, -1]
    near = _nearest_others(real, k_real)
    real_closed, real_open = near[:, k_precision - 1], near[:, k_density - 1]
    closed, real_closed = closed + _tie(generated, closed), real_closed + _tie(real, real_closed)
    real_open = real_open - _tie(real, real_open)

    # Minima over a row or column are several times faster than `any`, and the sign of a difference is exact.
    to_real = generated.new_full((len(generated),), math.inf)  # to the surface of the best ball, negative inside
    to_generated, nearest = real.new_full((2, len(real)), math.inf)
    inside = 0
    for rows in _blocks(len(generated)):
        for columns in _blocks(len(real)):
            squared = _squared_distances(generated[rows], real[columns])
            inside += int((squared < real_open[columns]).count_nonzero())
            nearest[columns] = nearest[columns].minimum(squared.amin(0))
            to_real[rows] = to_real[rows].minimum((squared - real_closed[columns]).amin(1))
            to_generated[columns] = to_generated[columns].minimum(squared.sub_(closed[rows, None]).amin(0))
    return {
        "precision": (to_real <= 0).double().mean().item(),
        "recall": (to_generated <= 0).double().mean().item(),
        "density": inside / (k_density * len(generated)),
        "coverage": (nearest < real_open).double().mean().item(),
    }


def nearest_neighbours(
    queries: torch.Tensor, references: torch.Tensor, k: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the k nearest references of each query, exactly.

    Fast distances find a few more, whose distances are then measured in float64. Where the rounding of the fast ones
    may have hidden a nearer one, all are measured in float64, which is slow but rare.

    Args:
        queries (`torch.Tensor` of shape `(N, D)`): Features.
        references (`torch.Tensor` of shape `(M, D)`): Features among which to search. A query that is one of them
            finds itself, at a distance of 0.
        k (`int`, *optional*, defaults to 1): How many to find, at most M.

    Returns:
        Distances (float64) and indices of references (int64), each of shape `(N, k)`, the nearest first. Of references
        that are equally near, any may be found.

    Raises:
        ValueError: For a k that is not from 1 to M, and what [`check_pair`] refuses.
    """
    queries, references = check_pair(queries, references, ("queries", "references"), (1, 1))
    if not 1 <= k <= len(references):
        raise ValueError(f"k is {k}, but must be from 1 to {len(references)}, the number of references.")
    kept = min(k + SPARE, len(references))
    centre = references.mean(0)
    centred = queries - centre
    fast, indices = _search(centred, references, kept, centre, _squared_distances)
    rows = torch.arange(len(queries), device=queries.device).repeat_interleave(kept)
    distances, order = pair_distances(queries, references, rows, indices.flatten()).view(-1, kept).sort(dim=1)
    distances, indices = distances[:, :k], indices.gather(1, order[:, :k])
    if kept < len(references):
        last = distances[:, -1]
        # What was not kept is, but for rounding, no nearer than the farthest that was; nothing is nearer than 0.
        nearer = fast[:, -1] - _rounding(centred, last)
        doubtful = ((last > 0) & (last.square() > nearer)).nonzero().squeeze(1)
        if len(doubtful):
            again = _search(queries[doubtful].double(), references, k, 0.0, _measured_distances)
            distances[doubtful], indices[doubtful] = again
    return distances, indices


def pair_distances(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Computes distances of single pairs, without the rounding of the fast ones.

    Args:
        x, y (`torch.Tensor` of shapes `(N, D)` and `(M, D)`): Features.
        rows, columns (`torch.Tensor` of shape `(P,)`, int64): Which row of x to compare with which one of y.

    Returns:
        `torch.Tensor` of shape `(P,)`, float64.
    """
    distances = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    for part in _blocks(len(rows)):  # written in place: small results kept between large ones would scatter memory
        difference = x[rows[part]].double().sub_(y[columns[part]])
        distances[part] = torch.linalg.vector_norm(difference, dim=1)
    return distances


def close_pairs(features: torch.Tensor, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the indices of all pairs of images that are no farther apart than a distance, exactly.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Features.
        distance (`float`): The distance up to which a pair is close.

    Returns:
        Two `torch.Tensor` of shape `(P,)`, int64: the pairs i and j, with i < j.
    """
    (features, _) = check_pair(features, features, ("features", "features"))
    centred = features - features.mean(0)
    rows, columns = [], []
    for first in _blocks(len(centred)):
        reach = distance**2 + _rounding(centred[first], distance)
        for second in _blocks(len(centred), first.start):
            near = _squared_distances(centred[first], centred[second]) <= reach[:, None]
            i, j = (near.triu(1) if first == second else near).nonzero().T
            rows.append(i + first.start)
            columns.append(j + second.start)
    i, j = torch.cat(rows), torch.cat(columns)
    close = pair_distances(features, features, i, j) <= distance
    return i[close], j[close]


@dataclass(frozen=True, eq=False)
class Memorisation:
    """The result of [`memorisation`]. New images are those held out or, without any, each training image beside the
    others.

    Args:
        near_duplicates (`float`): Share of generated images that are as near to a training image as only `quantile` of
            the new ones are, in [0, 1]. New images have about `quantile`, copies have 1.
        near_duplicates_new (`float`): The same share of the new images, of which each half decides what is near for
            the other one.
        new_images (`int`): How many they are.
        quantile (`float`): The share of them that counts as near-duplicates.
        threshold (`float`): The distance up to which an image counts as a near-duplicate.
        authpct (`float`): Percentage of generated images that are *authentic*: farther from the nearest training
            image than that image is from its own nearest one in the training set. Copies have 0.
        authpct_new (`float`): The same of the new images.
        distances, indices (`torch.Tensor` of shape `(N,)`): Of the nearest training image of each generated one.
    """

    near_duplicates: float
    near_duplicates_new: float
    new_images: int
    quantile: float
    threshold: float
    authpct: float
    authpct_new: float
    distances: torch.Tensor
    indices: torch.Tensor

    def nearest_pairs(self, number: int) -> list[tuple[int, int]]:
        """Returns the pairs most likely to be copies, nearest first: indices of a generated and of a training
        image."""
        rows = self.distances.argsort(stable=True)[:number]
        return list(zip(rows.tolist(), self.indices[rows].tolist(), strict=True))


def memorisation(
    generated: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor | None = None, quantile: float = 0.01
) -> Memorisation:
    """Measures whether generated images are copies of training images, against real images that are new.

    [`Memorisation`] says what is counted. Authenticity is that of https://huggingface.co/papers/2102.08921, in percent
    as in https://huggingface.co/papers/2306.04675. The training set must be the whole one: a part of it hides copies
    of the rest.

    New images are such that were held out. Where none were, because there are too few to spare, each training image
    (of more than `ALONE`, so many of them, evenly spaced) is compared with all the others, as if it had been left out:
    images drawn alike are as near to the others as it is, but for one image in so many.

    Args:
        generated (`torch.Tensor` of shape `(N, D)`): Features of generated images.
        train (`torch.Tensor` of shape `(M, D)`): Features of the training images.
        held_out (`torch.Tensor` of shape `(H, D)`, *optional*): Features of real images that were not trained on.
        quantile (`float`, *optional*, defaults to 0.01): Share of the new images that count as near-duplicates; of
            fewer than `2 (1 / quantile - 1)` of them, the share that one in half of them makes.

    Raises:
        ValueError: For a quantile that is not between 0 and 1; for fewer than `FEWEST` new images; and for what
            [`check_pair`] refuses.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile}, but must be between 0 and 1.")
    train, generated = check_pair(train, generated, ("train", "generated"), (2 if held_out is not None else FEWEST, 1))
    distances, indices = (result.squeeze(1) for result in nearest_neighbours(generated, train))
    if held_out is not None:
        train, held_out = check_pair(train, held_out, ("train", "held_out"), (2, FEWEST))
        real_distances, real_indices = (result.squeeze(1) for result in nearest_neighbours(held_out, train))
        real_own = _own_distances(train, real_indices)
    else:
        real_distances, real_indices, real_own = _left_out_alone(train)
    quantile = max(quantile, 1 / (len(real_distances) // 2 + 1))
    threshold = rare_distance(real_distances, quantile)
    halves = real_distances[::2], real_distances[1::2]
    near = [half <= rare_distance(other, quantile) for half, other in zip(halves, halves[::-1], strict=True)]
    return Memorisation(
        near_duplicates=(distances <= threshold).double().mean().item(),
        near_duplicates_new=torch.cat(near).double().mean().item(),
        new_images=len(real_distances),
        quantile=quantile,
        threshold=threshold,
        authpct=100 * (distances > _own_distances(train, indices)).double().mean().item(),
        authpct_new=100 * (real_distances > real_own).double().mean().item(),
        distances=distances,
        indices=indices,
    )


def _own_distances(train: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Returns the distance of each of some training images to the nearest other one."""
    needed, positions = indices.unique(return_inverse=True)
    return nearest_neighbours(train[needed], train, k=2)[0][:, 1][positions]  # first is itself, or a copy of it


def _left_out_alone(train: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compares training images with the others: returns the distance to the nearest and its index, and how far that
    one is from its own nearest, the image apart."""
    rows = torch.linspace(0, len(train) - 1, min(len(train), ALONE), device=train.device).round().long()
    distances, indices = _without(rows[:, None], *nearest_neighbours(train[rows], train, k=2))
    needed, positions = indices.unique(return_inverse=True)
    both = torch.stack([rows, indices], 1)
    own, _ = _without(both, *(found[positions] for found in nearest_neighbours(train[needed], train, k=3)))
    return distances, indices, own


def _without(
    excluded: torch.Tensor, distances: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the nearest of some neighbours `(N, k)`, and its index, that is none of those excluded, `(N, k - 1)`."""
    allowed = (indices[:, :, None] != excluded[:, None, :]).all(2)
    first = allowed.int().argmax(1, keepdim=True)  # the first of them
    return distances.gather(1, first).squeeze(1), indices.gather(1, first).squeeze(1)


def rare_distance(distances: torch.Tensor, quantile: float) -> float:
    """Returns the distance that a new value, drawn like the given ones, stays below with that probability.

    Of n distances the j-th smallest has the probability `j / (n + 1)`; it is interpolated between them.
    """
    return float(np.quantile(distances.double().cpu().numpy(), quantile, method="weibull"))


def _blocks(number: int, first: int = 0) -> Iterator[slice]:
    """Cuts rows into equal parts (but for rounding) of at most `BLOCK`; those from `first` on, where a part begins."""
    size = math.ceil(number / math.ceil(number / BLOCK)) if number else 1
    return (slice(start, min(start + size, number)) for start in range(first, number, size))


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes squared distances of all pairs of rows, quickly; rounding may make them negative. The same bits for (x,
    y) and (y, x)."""
    with torch.autocast(x.device.type, enabled=False):
        products = x @ y.T
    norms, others = (torch.linalg.vector_norm(each, dim=1).square() for each in (x, y))
    return (norms[:, None] + others).sub_(products, alpha=2)


def _measured_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _rounding(x: torch.Tensor, reach: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Bounds the error of the fast squared distances from x to what is within reach of it: of shape `(N,)`.

    About five times what was measured from 1 to 2,048 features; a plain loop over them would reach it.
    """
    lengths = torch.linalg.vector_norm(x, dim=1) + reach
    return (16 + math.sqrt(x.shape[1])) * torch.finfo(x.dtype).eps * lengths.square()


def _nearest_others(features: torch.Tensor, k: int) -> torch.Tensor:
    """Finds the squared distances of each row to the k nearest other ones, nearest first: `(N, k)`.

    Each pair is computed once, and serves its row and its column.
    """
    near = features.new_full((len(features), k), math.inf)
    for rows in _blocks(len(features)):
        for columns in _blocks(len(features), rows.start):
            squared = _squared_distances(features[rows], features[columns])
            if columns == rows:
                squared.fill_diagonal_(math.inf)
            else:
                near[columns] = _smallest(near[columns], squared.T.contiguous())
            near[rows] = _smallest(near[rows], squared)
    return near


def _tie(centres: torch.Tensor, squared_radii: torch.Tensor) -> torch.Tensor | float:
    """Returns how far from a ball's surface a fast squared distance still counts as on it.

    Images with copies have equal distances, about which rounding must not decide. In float32 a tolerance would change
    results; but there a pair of images has the same bits in any block that is not tiny (torch 2.13 on a CPU).
    """
    return _rounding(centres, squared_radii.clamp(min=0).sqrt()) if centres.dtype == torch.float64 else 0.0


def _smallest(known: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Returns the smallest values of each row of both: as many as are known."""
    k = known.shape[1]
    new = new.topk(min(k, new.shape[1]), largest=False).values
    return torch.cat([known, new], dim=1).topk(k, largest=False).values


def _search(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    centre: torch.Tensor | float,
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the k smallest measures of each query, and of which references: `(N, k)` each. Queries come without the
    centre.

    References are centred a block at a time, as there may be many.
    """
    near = queries.new_full((len(queries), k), math.inf)
    nearest = torch.zeros((len(queries), k), dtype=torch.int64, device=queries.device)
    for columns in _blocks(len(references)):
        block = references[columns] - centre
        for rows in _blocks(len(queries)):
            values, indices = measure(queries[rows], block).topk(min(k, len(block)), largest=False)
            values, order = torch.cat([near[rows], values], dim=1).topk(k, largest=False)
            near[rows] = values
            nearest[rows] = torch.cat([nearest[rows], indices + columns.start], dim=1).gather(1, order)
    return near, nearest
