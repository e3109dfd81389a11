"""Measuring translators: of which images, and each translation beside its image and beside what it should be."""

from collections.abc import Sequence

import numpy as np
import torch

from hfgen.data.cache import open_images
from hfgen.evaluation.config import ReferenceConfig, SplitsConfig
from hfgen.evaluation.features import Extractor
from hfgen.evaluation.metrics import Images, Result
from hfgen.evaluation.reference import DATA_SEED, Part, features_of, open_reference
from hfgen.evaluation.resize import over_white
from hfgen.evaluation.trained import as_images, following, recorded_sources
from hfgen.runtime.distributed import Table
from hfgen.runtime.errors import UserError, one_line
from hfgen.sampling.sampler import Sampler, Translations

WINDOW = 11  # pixels of a side that the structural similarity looks at
IDENTICAL = 1e-10  # mean squared error below which images are equal, so that the PSNR is 100 dB at most


def ready(sampler: Sampler, config: ReferenceConfig, num_images: int) -> tuple[Sampler, ReferenceConfig, list[str]]:
    """Adapts what is measured to a model's training: the data, see [`following`], and what a translator translates.

    Args:
        sampler ([`~sampling.sampler.Sampler`]): The model.
        config ([`ReferenceConfig`]): The data that was asked for.
        num_images (`int`): How many images a translator gets at most.

    Returns:
        The sampler, the data to compare with, and what a reader has to know.

    Raises:
        UserError: For data that cannot be read, or that is neither named nor recorded.
    """
    if not isinstance(sampler, Translations):
        return sampler, following(config, sampler.name), []
    given, made = sampler.adapter.sets(sampler.options)
    sources, named = recorded_sources(sampler.name), config.dataset_name or config.train_data_dir
    if not named and made not in sources:
        raise UserError(
            f"`dataset_name` is missing: {sampler.name} has no record of its training, so name images of the set that "
            "it makes, and with `inputs` images to translate."
        )
    target = following(config, sampler.name) if named else as_images(sources[made], config)
    common = {name: getattr(config, name) for name in ("cache_dir", "skip_corrupt_images", "held_out_split")}
    if config.inputs is None and given not in sources:
        raise UserError(
            f"`inputs` is missing: {sampler.name} has no record of its training. Name images to translate."
        )
    if config.inputs is None:
        inputs = as_images(sources[given], SplitsConfig(**common))
        sampler, notes = with_held_out(sampler, target, inputs, num_images)
        return sampler, target, notes
    inputs = SplitsConfig(dataset_name=config.inputs, image_column=config.inputs_column, **common)
    return sampler.of(chosen(inputs, config.inputs_split, sampler, num_images)), target, []


def with_held_out(
    sampler: Translations, target: SplitsConfig, inputs: SplitsConfig, num_images: int
) -> tuple[Translations, list[str]]:
    """Gives a translator the images that training left out of a set, and, where they are known, what they should
    become.

    Args:
        sampler ([`~sampling.sampler.Translations`]): The translator.
        target, inputs ([`SplitsConfig`]): The set that it makes, and the one that it takes.
        num_images (`int`): How many; fewer, if there are not so many.

    Returns:
        The sampler, and what a reader has to know.
    """
    one, other = sampler.adapter.shapes(sampler.options)
    found = open_reference(inputs, one, 0, num_images)
    both = paired(found.held_out, open_reference(target, other, 0, num_images).held_out)
    notes = [f"of the images to translate, {note}" for note in found.notes]
    return sampler.of(*(both or (found.held_out,))), notes


def chosen(inputs: SplitsConfig, split: str | None, sampler: Translations, num_images: int) -> Part:
    """Draws images of a split: by default test, or train, if there is no other."""
    shape = sampler.adapter.shapes(sampler.options)[0]
    try:
        data = open_images(inputs.data(shape, split or "test"))
    except UserError as error:
        try:
            if split is not None:
                raise
            data = open_images(inputs.data(shape, "train"))
        except UserError:
            raise error.renamed({"dataset_name": "inputs", "dataset_split": "inputs_split"}) from None
    order = np.random.default_rng(DATA_SEED).permutation(len(data))
    return Part(data, np.sort(order[:num_images]))


def paired(given: Part, made: Part) -> tuple[Part, Part] | None:
    """Returns the images of both parts that are in one row, if both are columns of the same data; else `None`."""
    one, other = given.data.config, made.data.config
    same = ("dataset_name", "dataset_config_name", "train_data_dir", "dataset_split")
    if one.image_column == other.image_column or any(getattr(one, name) != getattr(other, name) for name in same):
        return None
    rows = (given.data.rows[given.rows], made.data.rows[made.rows])
    _, *found = np.intersect1d(*rows, assume_unique=True, return_indices=True)
    return (Part(given.data, given.rows[found[0]]), Part(made.data, made.rows[found[1]])) if len(found[0]) else None


def without_pairs(sampler: Translations, resolution: int) -> str | None:
    """Says why translations cannot be compared with what they should be; `None` if they can."""
    if sampler.others is None:
        return "it needs pairs: what is translated and what it should become as two columns of the same rows"
    if resolution < WINDOW:
        return f"the structural similarity needs images of {WINDOW} pixels or more"
    try:  # it may be there, and not what it imports itself
        import torchmetrics.functional.image  # noqa: F401
    except ImportError as error:
        missing = f"torchmetrics, which computes the structural similarity, cannot be imported ({one_line(error)})"
        return f'{missing}: pip install "torchmetrics>=1.4"'
    return None


def beside(
    sampler: Translations, metrics: Sequence[str], indices: Sequence[int], made: torch.Tensor, extractor: Extractor
) -> Table:
    """Measures translations with these numbers, each on its own.

    Args:
        sampler ([`~sampling.sampler.Translations`]): What made them.
        metrics (`Sequence[str]`): `"pairs"` and `"label_kept"`, or others, which are left alone.
        indices (`Sequence[int]`), made (`torch.Tensor` of shape `(B, C, H, W)`, uint8): The translations.
        extractor ([`~features.Extractor`]): For `"label_kept"` a classifier.

    Returns:
        Tensors of shape `(B,)` by name.
    """
    assert sampler.given is not None
    given = sampler.given.images(indices)
    other = None if sampler.others is None else sampler.others.images(indices)
    table: Table = {}
    if "pairs" in metrics:
        assert other is not None
        table |= {f"pair_{name}": value for name, value in distances(made.cpu(), other).items()}
        if given.shape == other.shape:
            table |= {f"given_{name}": value for name, value in distances(given, other).items()}
    if "label_kept" in metrics:

        def answer(images: torch.Tensor) -> torch.Tensor:
            return features_of(images.to(made.device), extractor, False)["logits"].argmax(1)

        before = answer(given)
        table["kept"] = answer(made) == before
        if other is not None:
            table["kept_by_others"] = answer(other) == before
    return table


def distances(images: torch.Tensor, others: torch.Tensor) -> Table:
    """Compares images with others, one by one.

    Args:
        images, others (`torch.Tensor` of shape `(B, C, H, W)`, uint8): The images; those with transparency over white.

    Returns:
        Tensors of shape `(B,)`: `"l1"`, the mean absolute difference for pixels in [0, 1]; `"psnr"` in decibels; and
        `"ssim"`, the structural similarity (https://doi.org/10.1109/TIP.2003.819861), with a Gaussian window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = ((over_white(part) if part.shape[1] == 4 else part) / 255 for part in (images, others))
    error = (one - other).square().flatten(1).mean(1)
    similar = structural_similarity_index_measure(one, other, data_range=1.0, kernel_size=WINDOW, reduction="none")
    return {
        "l1": (one - other).abs().flatten(1).mean(1),
        "psnr": -10 * error.clamp_min(IDENTICAL).log10(),
        "ssim": torch.as_tensor(similar).reshape(len(one)),
    }


TITLES = {
    "l1": ("Mean absolute difference from the counterpart", "lower"),
    "psnr": ("PSNR with the counterpart (dB)", "higher"),
    "ssim": ("Structural similarity with the counterpart (SSIM)", "higher"),
}


def compared_one_by_one(images: Images, metrics: Sequence[str]) -> list[Result]:
    """Returns the means of what [`beside`] measured. Their errors are standard errors of the mean."""
    table, results = images.beside, []
    for name, (title, better) in TITLES.items() if "pairs" in metrics else ():
        value, error = mean_of(table[f"pair_{name}"])
        details, notes = {}, []
        if f"given_{name}" in table:
            details["untranslated"], _ = mean_of(table[f"given_{name}"])
            gained, doubt = mean_of(table[f"pair_{name}"] - table[f"given_{name}"])
            notes.append(
                f"{title}: {details['untranslated']:.4g} for the images as they are, before translation, which "
                f"changes it by {gained:+.2g} ± {doubt:.2g}"
            )
        results.append(
            Result(
                "pairs", f"pair_{name}", title, value, better, error, "standard error", notes=notes, details=details
            )
        )
    if "label_kept" in metrics:
        value, error = mean_of(table["kept"])
        real = mean_of(table["kept_by_others"])[0] if "kept_by_others" in table else None
        title = "Translations of the class that their image has, to the classifier"
        results.append(Result("label_kept", "label_kept", title, value, "higher", error, "standard error", real))
    return results


def mean_of(values: torch.Tensor) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    numbers = values.double()
    return numbers.mean().item(), (numbers.std() / len(numbers) ** 0.5).item()
