"""Features of colour images that are learnt from the images themselves, in a minute and without a network.

What the images of a data set have in common is learnt as a dictionary of small patches, by k-means; an image is then
described by how much it has of each, in each of its quarters ("An Analysis of Single-Layer Networks in Unsupervised
Feature Learning", Coates, Ng and Lee, AISTATS 2011). Patches are compared without their brightness and contrast, so
that a very small copy of the image is part of the description, too.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, unfold

PATCH = 8  # pixels per side
STRIDE = 2  # pixels between the patches that an image is described by
ATOMS = 64  # patches in the dictionary
LEARNT_FROM, EACH = 5_000, 8  # images, and patches of each
CONTRAST = 10 / 255**2  # added to a patch's variance: flat patches stay flat
NOISE = 0.1  # added to the variance of directions in which patches hardly differ
SMALL, SHARE = 4, 0.5  # pixels per side of the small copy, and its part in the description, to 1 of the patches
PART = 200  # images that are described at once


@dataclass(frozen=True)
class PatchFeatures:
    """A dictionary of patches. Make it with [`PatchFeatures.learn`].

    Attributes:
        mean (`torch.Tensor` of shape `(D,)`), whitening (`torch.Tensor` of shape `(D, D)`): Make the values of a patch
            uncorrelated.
        atoms (`torch.Tensor` of shape `(K, D)`): The patches of the dictionary.
        scales (`torch.Tensor` of shape `(4 * K + C * 16,)`): What features are multiplied by.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    atoms: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def learn(cls, images: torch.Tensor) -> "PatchFeatures":
        """Learns a dictionary: the same for the same images.

        Args:
            images (`torch.Tensor` of shape `(N, C, H, W)`): In [0, 1].
        """
        from sklearn.cluster import MiniBatchKMeans

        draw = np.random.default_rng(0)
        images = images[torch.from_numpy(draw.permutation(len(images))[:LEARNT_FROM])]
        taken = []
        for part in images.split(PART):
            patches = _patches(part, 1)
            chosen = torch.from_numpy(draw.integers(0, patches.shape[1], (len(part), EACH, 1)))
            taken.append(patches.gather(1, chosen.expand(-1, -1, patches.shape[2])).flatten(0, 1))
        values = torch.cat(taken)
        mean = values.mean(0)
        variances, directions = torch.linalg.eigh((values - mean).T.double().cov())
        whitening = (directions * (variances + NOISE).rsqrt() @ directions.T).float()
        found = MiniBatchKMeans(min(ATOMS, len(values)), batch_size=2048, n_init=1, random_state=0)
        found.fit(((values - mean) @ whitening).numpy())
        one = cls(mean, whitening, torch.from_numpy(found.cluster_centers_).float(), torch.ones(()))
        deviation = torch.from_numpy(one(images)).std(0, correction=0).clamp_min(1e-6)
        parts = torch.tensor([4 * len(one.atoms), len(deviation) - 4 * len(one.atoms)])
        weights = (torch.tensor([1, SHARE]) / parts.sqrt()).repeat_interleave(parts)
        return cls(one.mean, one.whitening, one.atoms, weights / deviation)

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """Describes images, `(N, C, H, W)` in [0, 1]: float32 of shape `(N, 4 * K + C * 16)`."""
        described = []
        for part in images.split(PART):
            patches = (_patches(part, STRIDE) - self.mean) @ self.whitening
            distances = torch.cdist(patches, self.atoms)
            nearness = (distances.mean(2, keepdim=True) - distances).clamp_min_(0)  # 0 for all that are far
            size = [(side - min(PATCH, side)) // STRIDE + 1 for side in part.shape[2:]]
            quarters = adaptive_avg_pool2d(nearness.mT.unflatten(2, size), 2)
            described.append(torch.cat([quarters.flatten(1), adaptive_avg_pool2d(part, SMALL).flatten(1)], 1))
        return (torch.cat(described) * self.scales).numpy()


def _patches(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Cuts images into patches of equal brightness and contrast: `(N, number, C * PATCH**2)`."""
    patches = unfold(images, tuple(min(PATCH, side) for side in images.shape[2:]), stride=stride).mT
    patches = patches - patches.mean(2, keepdim=True)
    return patches / (patches.var(2, keepdim=True) + CONTRAST).sqrt()
