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
    Gaussian with the variance that is left. The components do not know the classes: each class has its own weights,
    the means of the responsibilities for its latents.

    Args:
        latents (`torch.Tensor` of shape `(B, D, h, w)` or `(B, N)`):
            *Samples* of the posterior, one or more per image: their means alone would make a prior that is too narrow.
        labels (`torch.Tensor` of shape `(B,)`, *optional*):
            Classes, for a prior per class.
        num_components (`int`, *optional*, defaults to 10):
            Number of Gaussians.
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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

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
    mixture = GaussianMixture(num_components, reg_covar=1e-3 * flat.var(), random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough
        mixture.fit(inside)
    weights: Any = mixture.weights_[None]
    if labels is not None:
        numbers = labels.cpu().numpy()
        shares, classes = mixture.predict_proba(inside), range(num_classes or int(numbers.max()) + 1)
        # A class that is not among the labels is drawn as all together are.
        of_class = [shares[numbers == number] for number in classes]
        weights = np.stack([some.mean(0) if len(some) else mixture.weights_ for some in of_class])
    prior = GaussianMixturePrior(
        latent_shape=shape,
        num_components=num_components,
        num_class_embeds=None if labels is None else len(weights),
        rank=rank,
    )
    fitted = {
        "weights": weights,
        "means": mixture.means_,
        "factors": np.linalg.cholesky(mixture.covariances_),
        "basis": basis,
        "offset": offset,
        "residual": residual,
    }
    prior.load_state_dict({name: torch.as_tensor(value).float() for name, value in fitted.items()})
    return prior.eval()
