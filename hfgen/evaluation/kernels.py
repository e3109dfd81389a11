"""Distances between sets of features by kernels: KID and CMMD, two maximum mean discrepancies (squared).

Every pair of images counts, so that the cost grows with the square of their number. Pairs are taken in blocks: beside
the features, and a copy of them, there are never more than a few matrices of `BLOCK x BLOCK`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hfgen.evaluation.checks import check_features

BLOCK = 1024  # images on one side of a block
SIGMA = 10.0  # bandwidth of CMMD's kernel
SCALE = 1000.0  # that CMMD is multiplied by

Kernel = Callable[[Any, Any], torch.Tensor]  # of two blocks of images: its value for each pair, in float64


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """The result of [`kernel_distance`].

    Args:
        value (`float`): The distance. It has no bias, so that it may be negative where the sets are alike.
        standard_error (`float`, *optional*): Of the value, by the jackknife; None with subsets.
        subset_std (`float`, *optional*): Standard deviation (over N) of the values of the subsets, which is what
            the literature prints after its ± sign. It is not the error of their mean.
    """

    value: float
    standard_error: float | None = None
    subset_std: float | None = None


def kernel_distance(
    generated: torch.Tensor,
    real: torch.Tensor,
    num_subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """Computes the KID, for the features of Inception-v3 (https://huggingface.co/papers/1801.01401, section 4).

    The squared maximum mean discrepancy for the kernel `(x . y / D + 1)^3`, without bias: pairs of an image with
    itself are left out. All pairs of 10,000 images cost no more than the 100 subsets of the literature, and have a
    tenth of their noise.

    Products of features are in their own precision, at least float32, but around the mean of the real ones; all else
    is in float64. So an offset that the features share costs no digits.

    Args:
        generated, real (`torch.Tensor` of shapes `(N, D)` and `(M, D)`): Features, at least 3 rows each.
        num_subsets (`int`, *optional*): Take the mean over so many random subsets of `subset_size` images, as in the
            literature: 100 of 1000, drawn as torch-fidelity draws them. All images by default.
        subset_size (`int`, *optional*, defaults to 1000): Of both, at least 2.
        seed (`int`, *optional*, defaults to 2020): For the subsets.

    Raises:
        ValueError: For features that do not fit, and fewer images than `subset_size`.
    """
    generated, real = _check_both(generated, real, 3)
    centre = real.mean(0)
    first, second = _centred(generated, centre), _centred(real, centre)
    kernel = functools.partial(_polynomial_kernel, base=centre.double().square().mean() + 1)
    if num_subsets is None:
        sums = _sums(_blocks(*first), _blocks(*second), kernel)
        return KernelDistance(_unbiased(*sums), standard_error=_jackknife(*sums))
    if num_subsets < 1:
        raise ValueError(f"num_subsets is {num_subsets}, but must be at least 1, or None for all images.")
    if not 2 <= subset_size <= min(len(generated), len(real)):
        raise ValueError(
            f"subset_size is {subset_size}, but must be from 2 to the number of images, which is {len(generated)} "
            f"generated and {len(real)} real: use more images or smaller subsets."
        )
    draws = np.random.RandomState(seed)  # legacy, but the stream of the literature
    values = []
    for _ in range(num_subsets):
        one = _blocks(*_pick(draws, *first, subset_size))
        other = _blocks(*_pick(draws, *second, subset_size))
        values.append(_unbiased(*_sums(one, other, kernel)))
    return KernelDistance(float(np.mean(values)), subset_std=float(np.std(values)))


def cmmd(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Computes the CMMD, for the embeddings of CLIP ViT-L/14 at 336 pixels (https://huggingface.co/papers/2401.09603).

    The squared maximum mean discrepancy for the kernel `exp(-|x - y|^2 / (2 SIGMA^2))` of embeddings of length 1,
    times 1000, as its authors compute it: pairs of an image with itself count, which adds at most `10 (1 / N + 1 / M)`
    on average. At that bandwidth it is close to 10 times the squared distance of the mean embeddings.

    Args:
        generated, real (`torch.Tensor` of shapes `(N, D)` and `(M, D)`): Embeddings of any length, at least 2 each.

    Raises:
        ValueError: For features that do not fit, and rows of zeros, which have no direction.
    """
    generated, real = _check_both(generated, real, 2)
    first, second = _directions(generated, "generated"), _directions(real, "real")
    within, others, between, _ = _sums(first, second, _gaussian_kernel)
    m, n = len(within), len(others)
    return SCALE * (within.sum() / m**2 + others.sum() / n**2 - 2 * between.sum() / (m * n)).item()


def _check_both(generated: torch.Tensor, real: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    generated, real = check_features(generated, "generated", least), check_features(real, "real", least)
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"generated has {generated.shape[1]} features and real has {real.shape[1]}: use one extractor for both."
        )
    precision = torch.promote_types(torch.promote_types(generated.dtype, real.dtype), torch.float32)
    return generated.to(precision), real.to(precision)


def _centred(features: torch.Tensor, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres rows; also returns their products with the centre, in float64: of shapes `(N, D)` and `(N,)`."""
    exact = centre.double()
    return features - centre, torch.cat([(rows.double() - exact) @ exact for rows in features.split(BLOCK)])


def _pick(
    draws: np.random.RandomState, rows: torch.Tensor, terms: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.from_numpy(draws.choice(len(rows), size, replace=False)).to(rows.device)
    return rows.index_select(0, indices), terms.index_select(0, indices)


def _blocks(rows: torch.Tensor, terms: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(rows.split(BLOCK), terms.split(BLOCK), strict=True))


def _polynomial_kernel(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor], base: torch.Tensor
) -> torch.Tensor:
    """Computes `(x . y / D + 1)^3 - base^3` of [`_blocks`], with `base = c . c / D + 1` for the centre c.

    `x . y = c . c + q D` with `q = (u . v + u . c + v . c) / D` for the centred rows u and v. What all values have in
    common cancels in the distance; left in, it would take digits of the rest with it.
    """
    q = _products(first[0], second[0]).double()
    q += first[1].unsqueeze(1)
    q += second[1]
    q *= 1 / first[0].shape[1]
    return (q + 3 * base).mul_(q).add_(3 * base.square()).mul_(q)


def _directions(features: torch.Tensor, name: str) -> list[torch.Tensor]:
    """Scales rows to length 1, in blocks and in float64."""
    lengths = torch.cat([rows.double().norm(dim=1) for rows in features.split(BLOCK)])
    zeros = int((lengths == 0).sum())
    if zeros:
        raise ValueError(
            f"{name} has {zeros} rows of zeros, but CMMD compares directions: look at the extractor and the images."
        )
    parts = zip(features.split(BLOCK), lengths.split(BLOCK), strict=True)
    return [rows.double() / length.unsqueeze(1) for rows, length in parts]


def _gaussian_kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Computes `exp(-|x - y|^2 / (2 SIGMA^2)) - 1` of [`_directions`], where `|x - y|^2 = 2 - 2 x . y`. The ones
    cancel too."""
    return _products(first, second).sub_(1).div_(SIGMA**2).expm1_()


def _products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Computes inner products of rows. On a CPU by numpy, which halves the work where both are the same."""
    if first.device.type == "cpu":
        return torch.from_numpy(first.numpy() @ second.numpy().T)
    return first @ second.T


def _sums(first: list[Any], second: list[Any], kernel: Kernel) -> tuple[torch.Tensor, ...]:
    """Sums kernel values for each image, over the other images of its set and over those of the other set.

    Returns:
        Of N images within the first set, of M within the second, of N over the second, of M over the first.
    """
    return _within(first, kernel), _within(second, kernel), *_between(first, second, kernel)


def _within(blocks: list[Any], kernel: Kernel) -> torch.Tensor:
    sums: list[Any] = [0] * len(blocks)
    for i, block in enumerate(blocks):
        sums[i] += kernel(block, block).fill_diagonal_(0).sum(1)
        for j in range(i + 1, len(blocks)):
            values = kernel(block, blocks[j])
            sums[i] += values.sum(1)
            sums[j] += values.sum(0)
    return torch.cat(sums)


def _between(first: list[Any], second: list[Any], kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    rows: list[Any] = [0] * len(first)
    columns: list[Any] = [0] * len(second)
    for i, block in enumerate(first):
        for j, other in enumerate(second):
            values = kernel(block, other)
            rows[i] += values.sum(1)
            columns[j] += values.sum(0)
    return torch.cat(rows), torch.cat(columns)


def _unbiased(within: torch.Tensor, others: torch.Tensor, between: torch.Tensor, _: torch.Tensor) -> float:
    m, n = len(within), len(others)
    return (within.sum() / (m * (m - 1)) + others.sum() / (n * (n - 1)) - 2 * between.sum() / (m * n)).item()


def _jackknife(within: torch.Tensor, others: torch.Tensor, between: torch.Tensor, across: torch.Tensor) -> float:
    """Computes the standard error of [`_unbiased`] from leaving out one image in turn, in closed form.

    Without one of the N generated images the value changes by `-2 / (N - 1)` times what the entry of that image below
    is more than the mean of all entries; so it is for the real ones.
    """
    m, n = len(within), len(others)
    generated, real = within / (m - 2) - between / n, others / (n - 2) - across / m
    return 2 * (generated.var() / m + real.var() / n).sqrt().item()
