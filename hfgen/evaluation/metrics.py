"""Metrics by name, from the features of images to numbers with unmistakable names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from hfgen.evaluation.checks import check_features
from hfgen.evaluation.config import FEWEST
from hfgen.evaluation.diversity import birthday_support, ndb, vendi_score
from hfgen.evaluation.features import Extractor, metric_prefix
from hfgen.evaluation.frechet import frechet_from_features, frechet_is_biased
from hfgen.evaluation.kernels import cmmd, kernel_distance
from hfgen.evaluation.labels import (
    class_coverage,
    conditional_accuracy,
    confident_share,
    divergence_floor,
    inception_score,
    label_counts,
    label_divergence,
    rarest_class,
    stacked_modes,
)
from hfgen.evaluation.neighbours import memorisation, precision_recall_density_coverage

K_PRECISION, K_DENSITY = 3, 5
NUM_SPLITS = 10  # of the Inception Score
NUM_BINS = 100  # of NDB
PER_BIN = 10  # images, as NDB's authors advise: with 4 or fewer, no test sees that a bin is never visited
NOTHING_HELD_OUT = (
    "memorisation: too few images, or none, were held out, so that each training image, compared with the others, "
    "stands for a new one"
)
PAIRS = 10  # nearest pairs that are remembered for a picture
CMMD_EXTRACTOR = "openai/clip-vit-large-patch14-336"
CONFIDENT = 0.9  # top probability from which a classifier is confident

# How many images each metric needs to say what it claims: generated, and real ones (for memorisation such as are new).
LEAST = {
    "fd": (2, 2),
    "kd": (3, 3),
    "is": (NUM_SPLITS, 0),
    "precision_recall": (K_PRECISION + 1, K_DENSITY + 1),
    "density_coverage": (K_PRECISION + 1, K_DENSITY + 1),
    "cmmd": (2, 2),
    "ndb": (PER_BIN * NUM_BINS, PER_BIN * NUM_BINS),
    "birthday": (2, 999),
    "memorisation": (1, FEWEST),
}


@dataclass(frozen=True)
class Images:
    """Features of N images, for metrics.

    Attributes:
        features (`torch.Tensor` of shape `(N, D)`): From the extractor.
        logits (`torch.Tensor` of shape `(N, L)`, *optional*): If it is a classifier.
        kinds (`torch.Tensor` of shape `(N, C)`, *optional*): The class of each channel on its own.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): The classifier's numbers of the classes that the images
            should show; -1 if there is none.
        beside (`dict`, *optional*): Of translations, what each is beside its own image: see [`~translations.beside`].
    """

    features: torch.Tensor
    logits: torch.Tensor | None = None
    kinds: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    beside: Any = None


@dataclass
class Result:
    """One number of the report.

    Attributes:
        metric (`str`): What was asked for.
        key (`str`): What the number may be called, unmistakably.
        title (`str`): The same for people.
        value (`float`, *optional*): `None` if there is none; the notes say why.
        better (`str`, *optional*): `"lower"` or `"higher"`.
        error (`float`, *optional*), error_kind (`str`, *optional*): Its uncertainty, and what that is.
        real (`float`, *optional*): The value of held-out real images, as near to perfect as can be told.
        notes (`list` of `str`): What a reader has to know.
        details (`dict`): JSON.
    """

    metric: str
    key: str
    title: str
    value: float | None
    better: str | None = None
    error: float | None = None
    error_kind: str | None = None
    real: float | None = None
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


# Metrics that compare images with real ones


def frechet(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    key = metric_prefix(extractor)
    biased = frechet_is_biased(len(images.features), len(real.features), extractor.dim)
    value = frechet_from_features(images.features, real.features)
    title = {"fid": "FID", "clean_fid": "clean-FID"}.get(key, "Fréchet distance")
    return [Result("fd", key, title, value, "lower", notes=[biased] if biased else [])]


def kernel(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    key = metric_prefix(extractor, "kd")
    distance = kernel_distance(images.features, real.features)
    title = {"kid": "KID", "clean_kid": "clean-KID"}.get(key, "Kernel distance")
    return [Result("kd", key, title, distance.value, "lower", distance.standard_error, "standard error")]


def classifier_score(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    assert images.logits is not None
    key = metric_prefix(extractor, "cs")
    value, deviation = inception_score(images.logits, NUM_SPLITS)
    title = "Inception Score" if key == "is" else "Classifier score"
    kind = f"standard deviation over {NUM_SPLITS} splits"
    return [Result("is", key, title, value, "higher", deviation, kind)]


def prdc(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    values = precision_recall_density_coverage(images.features, real.features, K_PRECISION, K_DENSITY)
    results = []
    _, row, count = real.features.unique(dim=0, return_inverse=True, return_counts=True)
    empty = (count[row] > K_DENSITY).double().mean().item()  # balls of no size
    limit = f"{empty:.1%} of the real images have {K_DENSITY} copies or more among them, which nothing can cover"
    for name, value in values.items():
        precise = name in ("precision", "recall")
        metric, k = ("precision_recall", K_PRECISION) if precise else ("density_coverage", K_DENSITY)
        notes = [limit] if empty and not precise else []
        results.append(Result(metric, name, name.capitalize(), value, "higher", notes=notes, details={"k": k}))
    return results


def maximum_mean_discrepancy(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    published = extractor.id == CMMD_EXTRACTOR
    key = "cmmd" if published else f"cmmd_{slug(extractor)}"
    title = "CMMD" if published else "Gaussian kernel distance"
    return [Result("cmmd", key, title, cmmd(images.features, real.features), "lower")]


def vendi(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    return [Result("vendi", "vendi", "Vendi score", vendi_score(images.features), "higher")]


def ndb_and_jsd(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    result = ndb(images.features, real.features, NUM_BINS)
    details = {"num_bins": NUM_BINS, "alpha": 0.05}
    return [
        Result(
            "ndb",
            "ndb",
            "Clusters that occur too often or too rarely (NDB/K)",
            result["ndb_share"],
            "lower",
            details=details,
        ),
        Result("ndb", "ndb_jsd", "Difference of the cluster shares (JSD)", result["jsd"], "lower", details=details),
    ]


def birthday(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    result = birthday_support(images.features, real.features)
    notes = []
    if result.support is None:
        notes.append(f"no two of {result.images:,} images are near-duplicates: the support is too large to be seen")
    details = {"batch_size": result.batch_size, "threshold": result.threshold, "pairs": result.pairs}
    return [
        Result(
            "birthday",
            "birthday_support",
            "Different images (estimate)",
            result.support,
            "higher",
            notes=notes,
            details=details,
        ),
    ]


def confidence(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    """Computes the share of images that the classifier is confident about; it may be confident about noise, too."""
    assert images.logits is not None
    title = f"Images whose class is clear (probability {CONFIDENT} or more)"
    value = confident_share(images.logits, CONFIDENT)
    return [Result("confidence", "confident_share", title, value, "higher", details={"threshold": CONFIDENT})]


def classes(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    counts = []
    for each in (images, real):
        logits = check_features(each.logits, "logits", 1)  # type: ignore[arg-type]
        counts.append(label_counts(logits.argmax(1), logits.shape[1]))
    result = label_divergence(*counts)
    details = {"counts": counts[0].tolist(), "real_counts": counts[1].tolist()}
    floor = divergence_floor(len(counts[0]), len(images.features))
    rarest, smallest = rarest_class(*counts)
    assert extractor.labels is not None
    metric = "label_divergence"
    return [
        Result(metric, "label_kl", "Difference of the class shares (KL, nats)", result.kl, "lower",
               details={"floor": floor, **details}),
        Result(metric, "label_js", "Difference of the class shares (JS, nats)", result.js, "lower"),
        Result(metric, "class_coverage", "Share of the classes that occur", class_coverage(*counts), "higher"),
        Result(metric, "smallest_share", "Share of the rarest class", smallest, "higher",
               details={"class": extractor.labels[rarest]}),
    ]  # fmt: skip


def conditional(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    if images.labels is None:
        raise ValueError("these images have no classes.")
    assert images.logits is not None and extractor.labels is not None
    result = conditional_accuracy(images.logits, images.labels)
    details = {"by_class": {extractor.labels[number]: share for number, share in result.by_class.items()}}
    title = "Images that show the class asked for"
    return [Result("conditional_accuracy", "conditional_accuracy", title, result.accuracy, "higher", details=details)]


def stacked(images: Images, real: Images, extractor: Extractor) -> list[Result]:
    assert images.kinds is not None and real.kinds is not None and extractor.labels is not None
    number = len(extractor.labels)
    shares = torch.ones(1, dtype=torch.float64)
    for channel in real.kinds.unbind(1):  # the channels of the data are independent
        shares = torch.outer(shares, label_counts(channel, number) / len(channel)).flatten()
    modes, divergence = stacked_modes(images.kinds, shares, number)
    details = {"of": len(shares), "floor": divergence_floor(len(shares), len(images.kinds))}
    return [
        Result("stacked_modes", "modes", f"Kinds of {len(shares):,} that occur", modes, "higher"),
        Result(
            "stacked_modes",
            "reverse_kl",
            "Difference of the kinds' shares (reverse KL, nats)",
            divergence,
            "lower",
            details=details,
        ),
    ]


PAIRWISE: list[tuple[tuple[str, ...], Callable[[Images, Images, Extractor], list[Result]]]] = [
    (("fd",), frechet),
    (("kd",), kernel),
    (("is",), classifier_score),
    (("precision_recall", "density_coverage"), prdc),
    (("cmmd",), maximum_mean_discrepancy),
    (("vendi",), vendi),
    (("ndb",), ndb_and_jsd),
    (("birthday",), birthday),
    (("confidence",), confidence),
    (("label_divergence",), classes),
    (("conditional_accuracy",), conditional),
    (("stacked_modes",), stacked),
]


def slug(extractor: Extractor) -> str:
    """Returns the part of a number's name that says from whose features it comes."""
    return metric_prefix(extractor, "kd").removeprefix("kd_")


def compare(
    metrics: Sequence[str], images: Images, real: Images, extractor: Extractor, text: str, leave: bool = True
) -> list[Result]:
    """Computes all metrics that compare images with real ones. One that fails has a result without a value."""
    chosen = [(names, function) for names, function in PAIRWISE if set(names) & set(metrics)]
    results: list[Result] = []
    with tqdm(
        chosen, desc=text, unit="metric", disable=False if leave else None, leave=leave, dynamic_ncols=True
    ) as bar:
        for names, function in bar:
            asked = [name for name in names if name in metrics]
            bar.set_postfix_str(" ".join(asked))
            try:
                computed = function(images, real, extractor)
            except ValueError as error:
                computed = [Result(name, name, name, None, notes=[str(error)]) for name in asked]
            results += [result for result in computed if result.metric in asked]
    return results


def memorised(generated: Images, train: Images, held_out: Images | None, seed: int) -> list[Result]:
    """Measures memorisation. The details have the numbers of the nearest pairs: of the generated image, and its seed;
    and of the row in `train`."""
    try:
        result = memorisation(generated.features, train.features, held_out.features if held_out else None)
    except ValueError as error:
        return [Result("memorisation", "memorisation", "memorisation", None, notes=[str(error)])]
    pairs = [{"image": i, "seed": seed, "train": j} for i, j in result.nearest_pairs(PAIRS)]
    details = {
        "quantile": result.quantile,
        "threshold": result.threshold,
        "train_images": len(train.features),
        "new_images": result.new_images,
        "generated_images": len(generated.features),
        "pairs": pairs,
    }
    near, new = result.near_duplicates, result.near_duplicates_new
    notes = [NOTHING_HELD_OUT] if held_out is None else []
    return [
        Result("memorisation", "near_duplicates", "Share of near-copies of training images", near, "lower", real=new,
               notes=notes, details=details),
        Result("memorisation", "authpct", "Authentic images (AuthPct, %)", result.authpct, "higher",
               real=result.authpct_new),
    ]  # fmt: skip
