"""Metrics from the labels of a classifier: how confident it is about generated images, and which classes are missing.

Logits come from a classifier, one row per image; labels are class numbers from 0 on; counts say how many images are of
each class. Everything is computed in float64.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from hfgen.evaluation.checks import check_features

BLOCK = 256  # rows in float64 at a time, few enough for the processor's cache


@dataclass(frozen=True)
class LabelDivergence:
    """Divergences of the classes of generated images from those that they should have, in nats."""

    kl: float
    """Kullback-Leibler divergence of the generated images from the reference, 0 to infinity."""
    js: float
    """Jensen-Shannon divergence, 0 to ln 2."""


@dataclass(frozen=True)
class ConditionalAccuracy:
    """The share of the images that show the class that was asked for."""

    accuracy: float
    """Share of all images with a label."""
    by_class: dict[int, float]
    """Share of the images of each class that was asked for."""


def inception_score(
    logits: torch.Tensor, num_splits: int = 10, shuffle_seed: int | None = 2020
) -> tuple[float, float]:
    """Computes the Inception Score, `exp(E_x KL(p(y|x) || p(y)))` (https://huggingface.co/papers/1606.03498, section
    4).

    It is called so only for the logits without bias of the Inception network of 2015, as published values have it.
    With another classifier it is that classifier's score: 1 for images that all get the same answer, up to the number
    of classes for confident answers that are spread evenly. Splits bias it downwards (with 50 classes and 5,000 images
    it gives 47.8 in ten splits and 49.9 in one), and the deviation over them is no error of the mean.

    Args:
        logits (`torch.Tensor` of shape `(N, L)`): One row per generated image.
        num_splits (`int`, *optional*, defaults to 10): Parts, as equal as can be, that are scored on their own.
        shuffle_seed (`int`, *optional*, defaults to 2020): Order of the images before they are split, by numpy's
            `RandomState`, as in torch-fidelity; `None` takes them as they come.

    Returns:
        `tuple[float, float]`: Mean over the splits, and their standard deviation (of the splits: divided by their
        number).

    Raises:
        ValueError: For no split, for fewer images than splits, and for NaN or infinite logits.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits is {num_splits}, but there is at least 1.")
    logits = check_features(logits, "logits", least=num_splits)
    number = len(logits)
    order = torch.arange(number)
    if shuffle_seed is not None:
        order = torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(number))
    bounds = [split * number // num_splits for split in range(num_splits + 1)]
    information = [_mutual_information(logits, order[i:j]) for i, j in zip(bounds, bounds[1:], strict=False)]
    scores = np.exp(information)
    return float(scores.mean()), float(scores.std())


def _mutual_information(logits: torch.Tensor, rows: torch.Tensor) -> float:
    """Computes the entropy of the mean prediction less the mean entropy of the predictions, in nats."""
    total = logits.new_zeros(logits.shape[1], dtype=torch.float64)
    entropies = logits.new_zeros((), dtype=torch.float64)
    for part in rows.split(BLOCK):
        shifted = logits[part].double()
        shifted -= shifted.amax(1, keepdim=True)
        # One exponential gives both sums: log p is `shifted` less the logarithm of the row's norm.
        unscaled = shifted.exp()
        norms = unscaled.sum(1)
        total += norms.reciprocal() @ unscaled
        entropies += (norms.log() - torch.linalg.vecdot(unscaled, shifted) / norms).sum()
    mean = total / len(rows)
    return max(0.0, (-torch.xlogy(mean, mean).sum() - entropies / len(rows)).item())


def confident_share(logits: torch.Tensor, threshold: float = 0.9) -> float:
    """Computes the share of images about which a classifier is confident: textbooks call them recognisable.

    It cannot see whether it is right to be: a classifier may be confident about noise, about images that are all
    the same and about digits that nobody would write. Nor are all real images clear ones: read it beside theirs, not
    beside 1.

    Args:
        logits (`torch.Tensor` of shape `(N, L)`): One row per image.
        threshold (`float`, *optional*, defaults to 0.9): Least probability, from 0 to 1, of the most probable class.

    Raises:
        ValueError: For no images, for NaN or infinite logits, and for a threshold that is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but must be from 0 to 1.")
    logits = check_features(logits, "logits", least=1)
    confident = [part.double().softmax(1).amax(1) >= threshold for part in logits.split(BLOCK)]
    return torch.cat(confident).double().mean().item()


def label_counts(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts how often each class occurs.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): Class numbers, 0 to `num_classes - 1`.
        num_classes (`int`): Number of classes.

    Returns:
        `torch.Tensor` of shape `(num_classes,)`: int64.

    Raises:
        ValueError: For no labels, and for labels that are out of range or no whole numbers.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but must be (images,): one label per image.")
    return _check_labels(labels, num_classes).bincount(minlength=num_classes)


def label_divergence(generated: torch.Tensor, reference: torch.Tensor) -> LabelDivergence:
    """Measures how far the shares of the classes among generated images are from those of a reference.

    Classes that no generated image has add nothing to the Kullback-Leibler divergence. It is infinite if a class
    occurs that the reference lacks; nothing is added to the counts to hide that. The Jensen-Shannon divergence is
    always finite, and `ln 2` where no class is shared.

    Args:
        generated, reference (`torch.Tensor` of shape `(K,)`): Counts or shares of the same classes.

    Raises:
        ValueError: For counts of different shapes, negative or not finite ones, or none at all.
    """
    p, q = _both_shares(generated, reference)
    middle = (p + q) / 2
    return LabelDivergence(_kl(p, q), (_kl(p, middle) + _kl(q, middle)) / 2)


def divergence_floor(num_classes: int, num_images: int) -> float:
    """Computes the Kullback-Leibler divergence, in nats, that perfect images would have on average: `(K - 1) / 2N`.

    It is the first term in 1/N for classes that all occur, and so good where there are more images than classes.
    """
    return (num_classes - 1) / (2 * num_images)


def class_coverage(generated: torch.Tensor, reference: torch.Tensor) -> float:
    """Computes the share of the classes of a reference that occur at all among generated images.

    One image is enough, and so is one mistake of the classifier: read it beside [`label_divergence`].

    Args:
        generated, reference (`torch.Tensor` of shape `(K,)`): Counts or shares of the same classes.

    Raises:
        ValueError: As [`label_divergence`].
    """
    p, q = _both_shares(generated, reference)
    return (p[q > 0] > 0).double().mean().item()


def rarest_class(generated: torch.Tensor, reference: torch.Tensor) -> tuple[int, float]:
    """Finds the class of a reference that is rarest among generated images, and its share of them.

    Args:
        generated, reference (`torch.Tensor` of shape `(K,)`): Counts or shares of the same classes.

    Raises:
        ValueError: As [`label_divergence`].
    """
    p, q = _both_shares(generated, reference)
    number = int(p.masked_fill(q == 0, math.inf).argmin())
    return number, p[number].item()


def conditional_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> ConditionalAccuracy:
    """Measures how often the most likely class of an image is the one that it was asked to show.

    Args:
        logits (`torch.Tensor` of shape `(N, K)`): One row per image.
        labels (`torch.Tensor` of shape `(N,)`): The classes asked for; images with a negative one are left out.

    Raises:
        ValueError: For NaN or infinite logits, for another number of labels than of images, for labels that are no
            whole numbers or too large, and if no image has a label.
    """
    logits, labels = check_features(logits, "logits", least=1), torch.as_tensor(labels)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but there are {len(logits)} images.")
    labelled = labels >= 0
    if not labelled.any():
        raise ValueError("no image has a label: give the classes that were asked for.")
    asked = _check_labels(labels[labelled], logits.shape[1])
    right = (logits[labelled].argmax(1) == asked).double()
    by_class = {number: right[asked == number].mean().item() for number in asked.unique().tolist()}
    return ConditionalAccuracy(right.mean().item(), by_class)


def stacked_modes(
    labels: torch.Tensor, reference: torch.Tensor | None = None, num_classes: int = 10
) -> tuple[int, float]:
    """Counts the kinds among images that have one object in each channel: 1,000 of them for Stacked MNIST.

    The protocol is that of Unrolled GAN (https://huggingface.co/papers/1611.02163) and PacGAN
    (https://huggingface.co/papers/1712.04086): a classifier tells the class of each channel on its own, mostly of
    26,000 images.

    Args:
        labels (`torch.Tensor` of shape `(N, C)`): The class of each channel. The first channel counts most: digits 1,
            2, 3 are kind 123.
        reference (`torch.Tensor` of shape `(num_classes ** C,)`, *optional*): Counts or shares of the kinds in the
            data; by default all are equally frequent.
        num_classes (`int`, *optional*, defaults to 10): Classes per channel.

    Returns:
        `tuple[int, float]`: The number of kinds that occur, and the Kullback-Leibler divergence, in nats, of their
        shares from those in the data ("reverse KL"). Perfect images have about [`divergence_floor`].

    Raises:
        ValueError: For labels that are not of this shape, out of range or no whole numbers, and for a reference of
            another shape.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 2 or not labels.numel():
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but must be (images, channels).")
    channels = labels.shape[1]
    factors = torch.tensor([num_classes**exponent for exponent in reversed(range(channels))], device=labels.device)
    counts = label_counts((_check_labels(labels, num_classes) * factors).sum(1), num_classes**channels)
    if reference is None:
        reference = torch.ones_like(counts)
    return int((counts > 0).sum()), label_divergence(counts, reference).kl


def _check_labels(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels is of {labels.dtype}, but labels are whole numbers.")
    lowest, highest = labels.min().item(), labels.max().item()
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"labels go from {lowest} to {highest}, but of {num_classes} classes they go from 0 to {num_classes - 1}."
        )
    return labels.long()


def _both_shares(generated: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = _shares(generated, "generated"), _shares(reference, "reference")
    if p.shape != q.shape:
        raise ValueError(f"generated counts {len(p)} classes and reference {len(q)}: they must be the same ones.")
    return p, q


def _shares(counts: torch.Tensor, name: str) -> torch.Tensor:
    counts = torch.as_tensor(counts).double()
    if counts.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(counts.shape)}, but must be (classes,): one count per class.")
    total = counts.sum().item()
    if not math.isfinite(total) or total <= 0 or (counts < 0).any():
        raise ValueError(f"{name} must hold counts of 0 or more, not all of them 0, but they add up to {total}.")
    return counts / total


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    present = p > 0
    return max(0.0, (p[present] * (p[present] / q[present]).log()).sum().item())
