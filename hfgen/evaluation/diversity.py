"""Diversity of generated images: effective numbers of images, shares of the regions of the data, repetitions."""

import math
import warnings
from dataclasses import dataclass
from statistics import NormalDist

import torch

from hfgen.evaluation.checks import check_features
from hfgen.evaluation.neighbours import BLOCK, check_pair, close_pairs, nearest_neighbours, rare_distance

FIRST_BATCH = 256  # images among which repetitions are looked for first
ENOUGH_PAIRS = 1000  # repetitions from which on more images are not needed
TRIALS = 1001  # orders of the images that are drawn


def vendi_score(features: torch.Tensor) -> float:
    """Computes the effective number of different images (https://huggingface.co/papers/2210.02410, section 3).

    It is the exponential of the entropy of the eigenvalues of `K / N`, with the cosines between images as kernel K: 1
    if all images are the same, N if all are orthogonal. It tends to grow with N: compare equal numbers of images.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Features; those of an image must not all be 0. They are not
            centred, so a large mean hides the differences.

    Returns:
        `float`: From 1 to min(N, D). Computed in float64.

    Raises:
        ValueError: For images whose features are all 0, and what [`~evaluation.checks.check_features`] refuses.
    """
    features = check_features(features, "features", 1)
    empty = int((features == 0).all(1).sum())
    if empty:
        raise ValueError(
            f"features has {empty} of {len(features)} rows that are all 0, which are similar to nothing: use another "
            "extractor."
        )
    number, dimension = features.shape
    if number <= dimension:
        rows = _unit_rows(features)
        gram = rows @ rows.T
    else:  # the same eigenvalues but for zeros, from one block of rows at a time
        gram = torch.zeros((dimension, dimension), dtype=torch.float64, device=features.device)
        for block in features.split(BLOCK):
            rows = _unit_rows(block)
            gram.addmm_(rows.T, rows)
    eigenvalues = torch.linalg.eigvalsh(gram / number).clamp(min=0)
    return torch.special.entr(eigenvalues).sum().exp().item()


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1, eps=0)


def ndb(
    generated: torch.Tensor, real: torch.Tensor, num_bins: int = 100, seed: int = 0, alpha: float = 0.05
) -> dict[str, float]:
    """Measures the share of the regions of the data that generated images visit too seldom or too often
    (https://huggingface.co/papers/1805.12462).

    k-means divides the real images into bins. Generated images join the bin of the nearest centre, and each bin's
    two shares are compared by a two-proportion z-test.

    Args:
        generated (`torch.Tensor` of shape `(N, D)`): Features of generated images.
        real (`torch.Tensor` of shape `(M, D)`): Features of real images. The authors take those of the training set;
            ten or more per bin, and as many generated ones.
        num_bins (`int`, *optional*, defaults to 100): Number of bins, K.
        seed (`int`, *optional*, defaults to 0): Of k-means.
        alpha (`float`, *optional*, defaults to 0.05): Significance level of each test.

    Returns:
        `dict[str, float]`: `ndb_share`, the share of bins that are statistically different (NDB/K), and `jsd`, the
        Jensen-Shannon divergence of the bins' shares, in nats from 0 to log 2. The bins fit the real images, so that
        chance makes more of both than alpha and `K (1/N + 1/M) / 8`: 0.1 and a fifth more with pixels of 3,000 digits.

    Raises:
        ValueError: For fewer than 2 bins, fewer different real images than bins, an alpha that is not between 0 and 1,
            and what [`~evaluation.neighbours.check_pair`] refuses.
    """
    from sklearn.cluster import KMeans

    if num_bins < 2:
        raise ValueError(f"num_bins is {num_bins}, but must be at least 2.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, but must be between 0 and 1.")
    generated, real = check_pair(generated, real, ("generated", "real"), (1, num_bins))
    centre = real.mean(0)  # as for other distances in float32
    real_rows, rows = ((features - centre).cpu().numpy() for features in (real, generated))
    with warnings.catch_warnings():  # of too few different images, of which the error below tells
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        clusters = KMeans(num_bins, n_init=1, random_state=seed).fit(real_rows)
    real_counts = torch.from_numpy(clusters.labels_).long().bincount(minlength=num_bins).double()
    counts = torch.from_numpy(clusters.predict(rows)).long().bincount(minlength=num_bins).double()
    if not real_counts.all():
        raise ValueError(
            f"num_bins is {num_bins}, but real has only {int((real_counts > 0).sum())} different images: use fewer "
            "bins."
        )
    shares, real_shares = counts / len(generated), real_counts / len(real)
    pooled = (counts + real_counts) / (len(generated) + len(real))
    deviation = (pooled * (1 - pooled) * (1 / len(generated) + 1 / len(real))).sqrt()
    different = (shares - real_shares).abs() > NormalDist().inv_cdf(1 - alpha / 2) * deviation
    entropies = [torch.special.entr(each).sum() for each in ((shares + real_shares) / 2, shares, real_shares)]
    jsd = entropies[0] - (entropies[1] + entropies[2]) / 2
    return {"ndb_share": different.double().mean().item(), "jsd": max(0.0, jsd.item())}


@dataclass(frozen=True)
class BirthdaySupport:
    """The result of [`birthday_support`].

    Args:
        support (`float`, *optional*): The number of images that a generator would have if it made all of them equally
            often. None if no two images are near-duplicates: it is then likely to be above `N^2 / 6`.
        batch_size (`int`, *optional*): The smallest number of images that has near-duplicates with probability 1/2.
        threshold (`float`): The distance up to which two images count as near-duplicates.
        pairs (`int`): How many pairs of near-duplicates there were; with a few only, support is a rough guess.
        images (`int`): Among how many images; it takes fewer than are given if those have `ENOUGH_PAIRS`.
    """

    support: float | None
    batch_size: int | None
    threshold: float
    pairs: int
    images: int


def birthday_support(
    generated: torch.Tensor, real: torch.Tensor, quantile: float = 0.001, seed: int = 0
) -> BirthdaySupport:
    """Estimates the number of images that a generator can make, by the birthday paradox
    (https://huggingface.co/papers/1706.08224).

    Of n equally likely images, about `sqrt(2 n log 2)` draws repeat one with probability 1/2. (The authors take the
    square of the number of draws, the order of n, and look for repetitions by eye.) Here two images are
    near-duplicates if they are as near as only one real image in a thousand is to its nearest other one. Batches are
    drawn from the generated images without replacement, 1,001 times.

    New real images have a support of hundreds of times their number, which depends on the threshold alone: compare
    with that of as many of them as there are generated images. Images that vary less in all respects, such as blurred
    ones, are also nearer to each other: precision and recall tell this from repetition.

    Args:
        generated (`torch.Tensor` of shape `(N, D)`): Features of generated images. To find a support of n takes more
            than `sqrt(2 n)` of them.
        real (`torch.Tensor` of shape `(M, D)`): Features of real images.
        quantile (`float`, *optional*, defaults to 0.001): Share of real images that have a near-duplicate.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Raises:
        ValueError: For a quantile that is not between 0 and 1; for fewer than `1 / quantile - 1` real images, which do
            not say what is rare; and for what [`~evaluation.neighbours.check_pair`] refuses.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile}, but must be between 0 and 1.")
    least = max(2, math.ceil(1 / quantile) - 1)
    generated, real = check_pair(generated, real, ("generated", "real"), (2, least))
    own = nearest_neighbours(real, real, k=2)[0][:, 1]  # the first is the image itself, or a copy of it
    threshold = rare_distance(own, quantile)

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(generated), generator=generator).to(generated.device)
    images = min(FIRST_BATCH, len(generated))
    i, j = close_pairs(generated[order[:images]], threshold)
    while len(i) < ENOUGH_PAIRS and images < len(generated):
        images = min(2 * images, len(generated))
        i, j = close_pairs(generated[order[:images]], threshold)
    if not len(i):
        return BirthdaySupport(None, None, threshold, 0, images)
    i, j = i.cpu(), j.cpu()
    sizes = []  # of the smallest batch with a pair, when the images come in random order
    for _ in range(TRIALS):
        ranks = torch.randperm(images, generator=generator)
        sizes.append(int(ranks[i].maximum(ranks[j]).min()) + 1)
    size = sorted(sizes)[TRIALS // 2]
    # The probability becomes 1/2 somewhere between one image less and this size: halfway, by the number of pairs.
    support = max(1.0, (size - 1) ** 2 / (2 * math.log(2)))
    return BirthdaySupport(support, size, threshold, len(i), images)
