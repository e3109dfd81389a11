"""Fréchet distance of features (https://huggingface.co/papers/1706.08500, equation 6).

`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)`: the Wasserstein-2 distance, squared, of two Gaussians that have the means
and covariances of the features. It is the FID for the features of one network only, the Inception-v3 of 2015.
"""

import torch

from hfgen.evaluation.checks import check_features
from hfgen.evaluation.statistics import FeatureStatistics


def frechet_distance(generated: FeatureStatistics, real: FeatureStatistics) -> float:
    """Computes the squared distance in the units of the features, never below 0; 0 for equal statistics, up to
    rounding.

    Exact with fewer images than dimensions too, but see [`frechet_is_biased`].

    Args:
        generated, real ([`FeatureStatistics`]): Of at least 2 images each.

    Raises:
        ValueError: For too few images, or statistics of different sizes.
    """
    if generated.dim != real.dim:
        raise ValueError(
            f"generated has {generated.dim} features and real has {real.dim}: use one extractor for both."
        )
    fewer, more = sorted((generated, real), key=lambda statistics: statistics.count)
    first, second = fewer.covariance, more.covariance
    means = (generated.mean - real.mean).square().sum()
    distance = means + first.trace() + second.trace() - 2 * trace_of_root(first, second)
    return max(distance.item(), 0.0)  # rounding may take it below


def frechet_from_features(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Computes the [`frechet_distance`] of features of shape `(N, D)` and `(M, D)`, of at least 2 images each."""
    both = []
    for name, features in (("generated", generated), ("real", real)):
        features = check_features(features, name)
        statistics = FeatureStatistics(features.shape[1])
        statistics.update(features)
        both.append(statistics)
    return frechet_distance(*both)


def frechet_is_biased(num_generated: int, num_real: int, dim: int) -> str | None:
    """Returns a sentence for the report where the distance has a large bias: for at most two images per dimension.

    The distance of two finite sets is too large by an amount that falls with one over the number of images and is much
    the same for all models. For two sets of one distribution, whose distance should be 0, it is about a tenth of the
    variance of the features at 2 images per dimension (measured at 512 dimensions).
    """
    fewest = min(num_generated, num_real)
    if fewest > 2 * dim:
        return None
    return (
        f"The Fréchet distance of {num_generated:,} generated and {num_real:,} real images in {dim:,} dimensions has "
        "a large bias: it is too large by much the same amount for all models, and comparable at these numbers only. "
        f"Use more than {2 * dim:,} images of each, or the kernel distance, which has no bias."
    )


def trace_of_root(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Computes `tr (S1 S2)^1/2` of two covariances; faster with the one of lower rank first.

    With `S = R R^T` it is the sum of the singular values of `R1^T R2`. They are also the roots of the eigenvalues of
    `R1^T S2 R1`, which is symmetric: that is faster, but not exact for eigenvalues that rounding alone keeps from 0.

    Args:
        first, second (`torch.Tensor` of shape `(D, D)`, float64): Symmetric, positive semi-definite.
    """
    factor = _factor(first)
    inner = factor.T @ second @ factor
    if _cholesky(inner) is not None:
        return torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
    return torch.linalg.svdvals(factor.T @ _factor(second)).sum()


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """Computes R of shape `(D, rank)` with `R R^T` the covariance."""
    factor = _cholesky(covariance)
    if factor is not None:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _rounding(covariance) * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def _cholesky(covariance: torch.Tensor) -> torch.Tensor | None:
    """Computes a lower triangular factor; `None` if the rank is not full up to rounding.

    The factorisation may succeed without full rank, by rounding. So the smallest eigenvalue of the correlations is
    found too, by inverse iteration, for which two steps are enough where it matters.
    """
    factor, failure = torch.linalg.cholesky_ex(covariance)
    if failure.item():
        return None
    correlations = factor / factor.norm(dim=1, keepdim=True)
    vector = torch.randn(len(factor), 1, generator=torch.Generator().manual_seed(0), dtype=factor.dtype)
    for _ in range(2):
        vector = torch.cholesky_solve(vector / vector.norm(), correlations)
    return factor if vector.norm() * _rounding(covariance) < 1 else None


def _rounding(matrix: torch.Tensor) -> float:
    return len(matrix) * torch.finfo(matrix.dtype).eps
