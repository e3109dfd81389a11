"""What each number of a report says, in words for readers of a card who know no metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

LOWER, HIGHER = "lower is better", "higher is better"
DISTANCE = "how far the generated images as a whole are from real ones, in the features of the network named above"

# By the name of the number, or by its beginning up to "_", where the rest says whose features it is of.
EXPLANATIONS = {
    "fid": f"{DISTANCE} (Fréchet distance); 0 is equal, {LOWER}.",
    "clean_fid": f"{DISTANCE} (Fréchet distance); 0 is equal, {LOWER}.",
    "fd": f"{DISTANCE}, comparing means and covariances; 0 is equal, {LOWER}.",
    "kid": f"{DISTANCE}, by a kernel; about 0 is equal, {LOWER}.",
    "clean_kid": f"{DISTANCE}, by a kernel; about 0 is equal, {LOWER}.",
    "kd": f"{DISTANCE}, by a kernel; about 0, also a little below, is equal, {LOWER}.",
    "cmmd": f"{DISTANCE}, by a Gaussian kernel; about 0 is equal, {LOWER}.",
    "is": f"how clearly each image belongs to one class, and how evenly all classes occur; {HIGHER}.",
    "cs": "how clearly each image belongs to one class of the classifier, and how evenly all classes occur; at most "
    f"the number of classes, {HIGHER}.",
    "precision": f"the share of generated images that look like real ones; {HIGHER}.",
    "recall": f"the share of real images that the model could have made, by their kind; {HIGHER}.",
    "density": "how many real images are around a generated one, about 1 for real images; less affected by outliers "
    f"than precision, {HIGHER}.",
    "coverage": f"the share of real images that have a generated one near them; {HIGHER}.",
    "vendi": "the effective number of images that are all different from each other: 1 if all are the same; depends "
    f"on the number of images, {HIGHER}.",
    "ndb": "real images are sorted into clusters; the share of clusters that generated images fall into too often or "
    f"too rarely; {LOWER}.",
    "ndb_jsd": f"how much the shares of these clusters differ as a whole; 0 is equal, {LOWER}.",
    "birthday_support": "an estimate of how many different images the model can make, from how soon they repeat "
    f"(birthday paradox); a rough guess, to be read beside that of real images; {HIGHER}.",
    "confident_share": "the share of images whose class the classifier is sure of, rightly or not; to be read beside "
    f"that of real images, {HIGHER}.",
    "label_kl": "how much the frequencies of the classes differ from those of real images (Kullback-Leibler "
    f"divergence); 0 is equal, {LOWER}.",
    "label_js": f"the same as a Jensen-Shannon divergence, at most 0.69; {LOWER}.",
    "class_coverage": f"the share of the classes that occur among the generated images at all; 1 is all, {HIGHER}.",
    "smallest_share": "the share of the class that is made least often; near that of real images is right, "
    f"{HIGHER} up to there.",
    "conditional_accuracy": f"the share of images that show the class asked for, to the classifier; {HIGHER}.",
    "modes": f"how many of the kinds of stacked images occur; {HIGHER}.",
    "reverse_kl": f"how much the frequencies of these kinds differ from the real ones; 0 is equal, {LOWER}.",
    "near_duplicates": "the share of generated images that come very near to a training image; about 0.01 is what new "
    "real images have (more, if fewer than 198 of them are known), more than theirs means that training images are "
    f"repeated; {LOWER}.",
    "authpct": "the percentage of generated images that are farther from the nearest training image than that one is "
    f"from its own nearest; copies have 0, {HIGHER}.",
    "ppl": f"how much an image changes when its latent changes a little, in the features of the network; {LOWER}.",
    "pair_l1": f"how far a translation is from what the image should become, per pixel; {LOWER}.",
    "pair_psnr": f"the same by the squared error, in decibels; {HIGHER}.",
    "pair_ssim": f"how alike the structures of a translation are to those of what the image should become; 1 is "
    f"equal, {HIGHER}.",
    "label_kept": "the share of translations that the classifier takes for the same class as the image that was "
    f"translated; {HIGHER}.",
    "bits_per_dim": "how many bits per pixel and channel the model would need to store real images that it has not "
    f"seen: how well it knows them; {LOWER}.",
}


# What bits per dimension are, by the `kind` that a model gives them: see `HasDensity.details`.
KINDS = {
    "exact": "bits per dimension (exact): the model's own probability of each image, without any approximation",
    "bound": "bits per dimension (bound): an upper bound, so that the model's true value is at or below it",
    "estimate": "bits per dimension (estimate): computed with random numbers, which are right on average; their noise "
    "is part of the stated error",
}
LIKELIHOODS = (
    "bits per dimension do not tell how good samples look (https://huggingface.co/papers/1511.01844), and do not "
    "detect foreign images: a model may find those of another data set more probable, as models of CIFAR-10 do with "
    "SVHN (https://huggingface.co/papers/1810.09136)"
)
MIXED = (
    "bits per dimension of different kinds: where a bound is below the number of another model, its model is better, "
    "rather more than it seems; where it is above, that shows nothing. An estimate is to be read with its error"
)


def explain(key: str) -> str | None:
    """Returns what the number of that name says, and which way is better; `None` for one that is not known."""
    return EXPLANATIONS.get(key) or EXPLANATIONS.get(key.partition("_")[0])


def explain_density(details: Mapping[str, Any]) -> list[str]:
    """Returns what bits per dimension are, by the details of their result, and what they do not show. Without a kind,
    as in reports of earlier versions, the latter alone."""
    kind, how = details.get("kind"), details.get("bound")
    if kind not in KINDS:
        return [LIKELIHOODS]
    error = f"; ± is the standard error over {details['num_images']:,} images"
    return [KINDS[kind] + (f"; found by: {how}" if how not in (None, kind) else "") + error, LIKELIHOODS]


def explain_mixture(kinds: Iterable[str | None]) -> list[str]:
    """Returns how to compare bits per dimension of these kinds; nothing, if they are all of one."""
    return [MIXED] if len({kind for kind in kinds if kind}) > 1 else []
