"""Fitting a better prior to the latents of a trained VAE."""

import warnings
from typing import Any

import numpy as np
import torch

from hfgen.models.gaussian_mixture import GaussianMixturePrior

MAX_RANK = 128  # beyond it, full covariances have more entries than there usually are latents to fit them to


def fit_mixture(
    latents: torch.Tensor,
    labels: torch.Tensor | None = None,
    num_components: int = 10,
    num_classes: int | None = None,
    seed: int = 0,
) -> GaussianMixturePrior:
    r"""
    Fits a mixture of Gaussians with full covariances, by expectation maximisation from k-means.

    Latents of more than 128 dimensions are fitted in their 128 principal components; the rest is one isotropic
    Gaussian with the variance that is left. Each class has Gaussians of its own: shared ones give images of the class
    next to the one that was asked for.

    Args:
        latents (`torch.Tensor` of shape `(B, D, h, w)` or `(B, N)`):
            *Samples* of the posterior, one or more per image: their means alone would make a prior that is too narrow.
        labels (`torch.Tensor` of shape `(B,)`, *optional*):
            Classes, for a prior per class.
        num_components (`int`, *optional*, defaults to 10):
            Number of Gaussians: of all classes together, but at least one each, and no more than latents.
        num_classes (`int`, *optional*):
            Number of classes; by default as many as the labels show.
        seed (`int`, *optional*, defaults to 0):
            Of the k-means.

    Returns:
        [`GaussianMixturePrior`], on the CPU.

    Raises:
        ValueError: If there are fewer latents than components, or labels do not fit the latents.
    """
    from sklearn.decomposition import PCA

    if len(latents) < max(2, num_components):
        raise ValueError(f"latents are {len(latents)}, too few for {num_components} components: give more latents.")
    if labels is None and num_classes:
        raise ValueError(f"num_classes is {num_classes}, but there are no labels: give them, or leave it out.")
    if labels is not None and len(labels) != len(latents):
        raise ValueError(f"labels are {len(labels)} for {len(latents)} latents: give one per latent.")
    shape = tuple(latents.shape[1:]) if latents.ndim == 4 else (latents.shape[1], 1, 1)
    flat = latents.detach().cpu().float().flatten(1).numpy()
    size = flat.shape[1]
    offset, basis, residual, rank = np.zeros(size), np.eye(size), 1.0, None
    if size > MAX_RANK:
        rank = min(MAX_RANK, len(flat))
        principal = PCA(rank, svd_solver="randomized", random_state=seed).fit(flat)
        offset, basis = principal.mean_, principal.components_.T
        left = float(flat.var(axis=0, ddof=1).sum() - principal.explained_variance_.sum())
        residual = max(left / (size - rank), 1e-12) ** 0.5
    inside = (flat - offset) @ basis
    classes = None if labels is None else labels.cpu().numpy()
    number = 1 if classes is None else num_classes or int(classes.max()) + 1
    groups = [inside] if classes is None else [inside[classes == label] for label in range(number)]
    found = [
        _fit(group, max(1, num_components // number), 1e-3 * flat.var(), seed) if len(group) else None
        for group in groups
    ]
    mixtures = [mixture for mixture in found if mixture is not None]
    weights = np.zeros((number, sum(len(mixture.weights_) for mixture in mixtures)))
    overall = np.concatenate([len(g) / len(flat) * m.weights_ for g, m in zip(groups, found, strict=True) if m])
    start = 0
    for row, mixture in zip(weights, found, strict=True):
        if mixture is None:  # a class that is not among the labels is drawn as all together are
            row[:] = overall
        else:
            row[start : start + len(mixture.weights_)] = mixture.weights_
            start += len(mixture.weights_)
    prior = GaussianMixturePrior(
        latent_shape=shape,
        num_components=weights.shape[1],
        num_class_embeds=None if classes is None else number,
        rank=rank,
    )
    fitted = {
        "weights": weights,
        "means": np.concatenate([mixture.means_ for mixture in mixtures]),
        "factors": np.linalg.cholesky(np.concatenate([mixture.covariances_ for mixture in mixtures])),
        "basis": basis,
        "offset": offset,
        "residual": residual,
    }
    prior.load_state_dict({name: torch.as_tensor(value).float() for name, value in fitted.items()})
    return prior.eval()


def _fit(points: np.ndarray, num_components: int, regularisation: float, seed: int) -> Any:
    """Fits a `sklearn.mixture.GaussianMixture` to points `(B, N)`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if len(points) == 1:  # scikit-learn wants two
        points = np.repeat(points, 2, axis=0)
    mixture = GaussianMixture(min(num_components, len(points)), reg_covar=regularisation, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged, or of equal points, is good enough
        return mixture.fit(points)
