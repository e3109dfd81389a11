"""Evaluation from Python, without a command line or a launcher."""

from collections.abc import Sequence
from typing import Any

from hfgen.evaluation.config import METRICS, Amounts, ReferenceConfig
from hfgen.evaluation.features import extractor_for
from hfgen.evaluation.report import describe_model
from hfgen.evaluation.runner import evaluate as measure
from hfgen.runtime.errors import UserError
from hfgen.runtime.launch import make_accelerator
from hfgen.runtime.options import make, nearest
from hfgen.sampling.api import ready_sampler
from hfgen.sampling.config import all_sampling_options, names_of


def check_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of metrics, also of a single one.

    Raises:
        UserError: For an unknown one, the nearest is suggested; and if there are none.
    """
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if not names:
        raise UserError("`metrics` has no names: give some, or leave it out.")
    for name in names:
        if name not in (*METRICS, "all"):
            near = nearest(str(name), METRICS)
            raise UserError(f"`metrics` {name!r} is no choice: use {', '.join((*METRICS, 'all'))}.{near}")
    return names


def evaluate(
    model: str,
    metrics: str | Sequence[str] = ("fd", "kd", "precision_recall", "density_coverage"),
    extractor: str = "inception",
    extractor_weights: str | None = None,
    num_images: int = 10_000,
    seed: int = 0,
    seeds: int = 1,
    batch_size: int = 64,
    likelihood_samples: int | None = None,
    likelihood_images: int | None = None,
    cpu_threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates a checkpoint against data: the same numbers as the command `evaluate` with the same options.

    Args:
        model (`str`): Folder or Hub id.
        metrics (`str` or `Sequence[str]`, *optional*): Names of [`~config.METRICS`], or `"all"` for what fits the
            model.
        extractor, extractor_weights (`str`, *optional*): Whose features are compared: see
            [`~features.load_extractor`].
        num_images (`int`, *optional*, defaults to 10,000): Images to generate, per seed.
        seed (`int`, *optional*, defaults to 0): The seed of the set of images.
        seeds (`int`, *optional*, defaults to 1): How many sets to measure, of `seed`, `seed + 1`, ..., for a mean and
            a deviation.
        batch_size (`int`, *optional*, defaults to 64): Images at once per process.
        likelihood_samples, likelihood_images (`int`, *optional*): See [`~runner.Evaluator`].
        cpu_threads (`int`, *optional*): Threads on a CPU; by default all cores.
        revision, token (`str`, *optional*): For the Hub.
        options: The real images, as in [`~config.ReferenceConfig`] (`dataset_name`, ...), and what the model lets one
            choose for sampling (`class_labels`, `truncation`, ...).

    Returns:
        `dict`: The report, JSON: `results` has the numbers by name, each with its title, value, error and the value of
        held-out real images; the rest is what it takes to repeat it.

    Raises:
        UserError: For a model or data that cannot be read, or metrics and options that do not fit them.
    """
    metrics = check_metrics(metrics)
    Amounts(num_images, seed, seeds, batch_size, likelihood_samples, likelihood_images, cpu_threads)  # checks them
    reference = make((ReferenceConfig, *all_sampling_options()), options)[0]
    sampling = {name: value for name, value in options.items() if name not in names_of(ReferenceConfig)}
    accelerator = make_accelerator(cpu_threads=cpu_threads)
    # Before any weights are asked for.
    sampler = ready_sampler(model, sampling, accelerator.device, revision, token, translates=True)
    features = extractor_for(metrics, extractor, extractor_weights, accelerator.device)
    report = measure(
        sampler, reference, features, accelerator, metrics, num_images, seed, seeds, batch_size, likelihood_samples,
        likelihood_images,
    )  # fmt: skip
    report["model"] |= describe_model(model, revision, token)
    return report | {"extractor": features.describe()}
