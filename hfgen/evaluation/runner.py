"""Evaluates a checkpoint: images on all processes, their features in the first one, and the metrics there.

No images are kept, only features. They are gathered in the order of the image numbers, so that the number of processes
changes nothing; features of real images are kept in the cache.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from hfgen.errors import UserError
from hfgen.evaluation.config import METRICS, ReferenceConfig
from hfgen.evaluation.features import Extractor, Preparation
from hfgen.evaluation.likelihood import log_evidence
from hfgen.evaluation.metrics import LEAST, Images, Result, compare, copies, slug
from hfgen.evaluation.path_length import EPSILON, path_distances, perceptual_path_length
from hfgen.evaluation.reference import DATA_SEED, Part, Reference, open_reference, transform
from hfgen.evaluation.sampling import Sampler
from hfgen.objectives.elbo import bits_per_dim

CACHE_FORMAT = 1  # part of the key: raise it when the same images would get other features
REAL_BATCH = 256  # real images looked at together
MOST_KINDS = 10**6  # of Stacked MNIST and its like
LIKELIHOOD_IMAGES, LIKELIHOOD_SAMPLES, LIKELIHOOD_BATCH = 1000, 100, 50
PATHS, PATH_BATCH = 1000, 64
NEEDS_LOGITS = ("is", "confidence", "label_divergence", "conditional_accuracy", "stacked_modes")
NEEDS_CLASSES = ("label_divergence", "conditional_accuracy", "stacked_modes")

Rows = dict[str, torch.Tensor]


# Images to features


def features_of(images: torch.Tensor, extractor: Extractor, kinds: bool) -> Rows:
    """Features and logits of images `(B, C, H, W)`, uint8, and the classes of their channels if asked for."""
    found = dict(extractor(images))
    if kinds:
        logits = extractor(images.flatten(0, 1).unsqueeze(1))["logits"]
        found["kinds"] = logits.argmax(1).view(images.shape[:2])
    return found


def in_turns(accelerator: Accelerator, count: int, size: int, make: Callable[[list[int]], Rows], text: str) -> Rows:
    """Lets the processes take batches in turn, and brings what they make of them to the first one, in order.

    Every process must call this. The batches are the same for any number of processes.

    Args:
        accelerator (`Accelerator`): The processes.
        count (`int`): Number of images.
        size (`int`): Images per batch.
        make (`Callable`): From image numbers to tensors with one row for each.
        text (`str`): What the progress bar says.

    Returns:
        `dict[str, torch.Tensor]`: On the CPU, with `count` rows; empty in all processes but the first.
    """
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    collected: dict[str, list[torch.Tensor]] = {}
    main = accelerator.is_main_process
    with tqdm(total=count, desc=text, unit="img", disable=not main, dynamic_ncols=True) as bar:
        for first in range(0, len(batches), accelerator.num_processes):
            # A process without a batch of its own repeats the last one, whose rows come after all others.
            batch = batches[min(first + accelerator.process_index, len(batches) - 1)]
            for name, rows in make(batch).items():
                if len(batch) < size:  # the processes must agree on what they gather
                    rows = torch.cat([rows, rows.new_zeros(size - len(batch), *rows.shape[1:])])
                rows = accelerator.gather(rows.to(accelerator.device).contiguous())
                if main:
                    collected.setdefault(name, []).append(rows.cpu())
            bar.update(min(accelerator.num_processes * size, count - int(bar.n)))
    return {name: torch.cat(parts)[:count] for name, parts in collected.items()}


# Real images


def real_images(
    part: Part, extractor: Extractor, accelerator: Accelerator, cache: Path, kinds: bool, text: str
) -> Images | None:
    """Features of real images, from the cache or into it; in the first process only.

    The key covers the decoded images, which of them, how they were brought to size, and the extractor with its weights
    and preprocessing.

    Raises:
        UserError: If the cache cannot be read or written.
    """
    info = part.data.info
    source = {
        "format": CACHE_FORMAT,
        "data": info.fingerprint,
        "split": info.split,
        "rows": hashlib.sha256(part.rows.astype(np.int64).tobytes()).hexdigest(),
        "transform": transform(part),
        "extractor": extractor.fingerprint,
        "kinds": kinds,
    }
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / f"{key}.safetensors"
    present = [path.exists()]  # what the first process sees counts for all
    broadcast_object_list(present)
    if not present[0]:

        def look(indices: list[int]) -> Rows:
            return features_of(part.images(indices), extractor, kinds)

        found = in_turns(accelerator, len(part.rows), REAL_BATCH, look, text)
        if accelerator.is_main_process:
            write_cache(path, found, source | {"name": info.name})
    if not accelerator.is_main_process:
        return None
    if present[0]:
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} holds no features: {error}. Delete it to have it made anew.") from None
    labels, numbers = None, class_numbers(info.class_names, extractor)
    if part.data.labels is not None and numbers is not None:
        labels = torch.tensor([*numbers, -1])[torch.from_numpy(part.data.labels[part.rows])]  # -1 stays -1
    return Images(**found, labels=labels)


def write_cache(path: Path, tensors: Rows, source: dict[str, Any]) -> None:
    """Writes features at once or not at all, with what they are of."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"source": json.dumps(source)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"the features of real images cannot be written to {path.parent}: {error}. Free some space or give "
            "another --cache_dir."
        ) from None


def cache_folder(config: ReferenceConfig) -> Path:
    """Where features of real images are kept."""
    from huggingface_hub import constants

    root = Path(config.cache_dir).expanduser() if config.cache_dir else Path(constants.HF_HOME) / "hfgen"
    return root / "features"


def class_numbers(names: Sequence[str] | None, extractor: Extractor) -> list[int] | None:
    """The classifier's number of each class; `None` if it does not know them all."""
    labels = extractor.labels or ()
    return [labels.index(name) for name in names] if names and set(names) <= set(labels) else None


# Metrics that need more than features


def likelihood(sampler: Sampler, part: Part, accelerator: Accelerator) -> list[Result]:
    """Bits per dimension of real images under a VAE."""
    chosen = np.random.default_rng(DATA_SEED).permutation(len(part.rows))[:LIKELIHOOD_IMAGES]
    part = Part(part.data, np.sort(part.rows[chosen]))
    model, device = sampler.pipe.model, accelerator.device
    labels = None
    if sampler.class_names:
        assert part.data.labels is not None and part.data.info.class_names is not None
        numbers = [sampler.class_names.index(name) for name in part.data.info.class_names]
        labels = torch.tensor(numbers)[torch.from_numpy(part.data.labels[part.rows])]

    def bounds(indices: list[int]) -> Rows:
        generator = torch.Generator().manual_seed(indices[0])  # the same ones whatever the number of processes
        pixels = part.images(indices).to(device).float() / 127.5 - 1
        given = None if labels is None else labels[indices].to(device)
        try:
            lower, weighted = log_evidence(model, pixels, given, LIKELIHOOD_SAMPLES, generator)
        except ValueError as error:
            raise UserError(f"--metrics bits_per_dim: {sampler.name} does not fit the data: {error}") from None
        return {"lower": lower.float(), "weighted": weighted.float()}

    model.eval()
    found = in_turns(accelerator, len(part.rows), LIKELIHOOD_BATCH, bounds, "Likelihood")
    if not found:
        return []
    dimensions = math.prod(sampler.image_shape)
    lower, weighted = (bits_per_dim(-found[name].double(), dimensions) for name in ("lower", "weighted"))
    error = (weighted.std() / len(weighted) ** 0.5).item() if len(weighted) > 1 else None
    details = {
        "bound": f"iwae-{LIKELIHOOD_SAMPLES}",
        "likelihood": model.config.likelihood,
        "num_images": len(weighted),
        "split": part.data.info.split,
        "elbo": lower.mean().item(),
    }
    title = "Bits per dimension of held-out images"
    return [
        Result("bits_per_dim", "bits_per_dim", title, weighted.mean().item(), "lower", error, "standard error",
               details=details)
    ]  # fmt: skip


def path_length(
    sampler: Sampler, extractor: Extractor, accelerator: Accelerator, count: int, seed: int
) -> list[Result]:
    """Perceptual path length of a StyleGAN2."""
    count = min(count, PATHS)

    def distances(indices: list[int]) -> Rows:
        found = path_distances(sampler.pipe, extractor, indices, seed)
        return {"distances": found.float()}

    rows = in_turns(accelerator, count, PATH_BATCH, distances, "Paths")
    if not rows:
        return []
    found = perceptual_path_length(rows["distances"])
    details = {"paths": count, "space": "w", "sampling": "end", "epsilon": EPSILON}
    title = "Path length in these features"
    key = f"ppl_{slug(extractor)}"
    return [
        Result("ppl", key, title, found.value, "lower", found.standard_error, "standard error", details=details)
    ]  # fmt: skip


# The whole


def obstacle(
    metric: str, sampler: Sampler, extractor: Extractor, has_logits: bool, reference: Reference, num_images: int
) -> str | None:
    """Why a metric cannot be computed here, and what to do; `None` if it can."""
    generated, real = LEAST.get(metric, (1, 1))
    part, name = (reference.held_out, "held-out") if metric == "memorisation" else (reference.real, "real")
    if num_images < generated:
        return f"it needs at least {generated} generated images, and --num_images is {num_images}"
    if len(part.rows) < real:
        return f"it needs at least {real} {name} images, and there are {len(part.rows)}: use more, or other data"
    if (metric in NEEDS_LOGITS and not has_logits) or (metric in NEEDS_CLASSES and not extractor.labels):
        return f"it needs a classifier, and {extractor.id} is none: choose another --extractor"
    if metric == "conditional_accuracy":
        if not sampler.classes or sampler.grouped:
            return f"{sampler.name} cannot be asked for a class: leave it out"
        if class_numbers(sampler.class_names, extractor) is None:
            return f"the classifier {extractor.id} does not know the classes of {sampler.name}: use one that does"
    if metric == "stacked_modes":
        channels, kinds = sampler.image_shape[0], len(extractor.labels or ()) ** sampler.image_shape[0]
        if channels == 1:
            return "it looks at the channels of colour images, and these are gray"
        if kinds > MOST_KINDS:
            return f"{kinds:,} kinds are too many to count"
    if metric == "bits_per_dim":
        if sampler.family != "VAE":
            return f"{sampler.name} is a {sampler.family}, whose likelihood is not known: leave it out"
        if sampler.pipe.config.task:
            return f"{sampler.name} is trained to {sampler.pipe.config.task}, not to model images"
        if sampler.grouped:
            return f"the classes of {sampler.name} are groups of images, and those of real images are not known"
        info = reference.held_out.data.info
        if sampler.class_names and not set(info.class_names or ("",)) <= set(sampler.class_names):
            return f"{info.name} does not have the classes that {sampler.name} needs: name --label_column"
        if sampler.class_names and info.unlabelled:
            return f"{info.unlabelled} images of {info.name} have no class, which {sampler.name} needs"
    if metric == "ppl":
        if sampler.family != "GAN" or not sampler.pipe.style_based:
            return f"{sampler.name} is no StyleGAN2: leave it out"
        if not isinstance(extractor.prepare, Preparation):
            return f"{extractor.id} takes 8-bit images only: choose another --extractor"
    return None


def choose_metrics(
    wanted: Sequence[str], why_not: Callable[[str], str | None], is_stacked: bool
) -> tuple[list[str], dict[str, str]]:
    """The metrics to compute, and those that `all` leaves out, with the reason.

    Raises:
        UserError: For one that was asked for by name and cannot be computed.
    """
    chosen, left_out = [], {}
    for metric in METRICS if "all" in wanted else wanted:
        reason = why_not(metric)
        if reason and metric in wanted:
            raise UserError(f"--metrics {metric}: {reason}.")
        if not reason and metric == "stacked_modes" and metric not in wanted and not is_stacked:
            reason = "the data has not the classes of stacked images"
        if reason:
            left_out[metric] = reason
        else:
            chosen.append(metric)
    return chosen, left_out


def evaluate(
    sampler: Sampler,
    config: ReferenceConfig,
    extractor: Extractor,
    accelerator: Accelerator,
    metrics: Sequence[str],
    num_images: int = 10_000,
    seed: int = 0,
    seeds: int = 1,
    batch_size: int = 64,
    baseline: bool = True,
) -> dict[str, Any]:
    """Evaluates a generator against data. Every process must call this.

    Args:
        sampler ([`~sampling.Sampler`]): The generator.
        config ([`ReferenceConfig`]): The data.
        extractor ([`~features.Extractor`]): The features.
        accelerator (`Accelerator`): The processes.
        metrics (`Sequence[str]`): Names of [`~config.METRICS`], or `"all"`.
        num_images (`int`, *optional*, defaults to 10,000): Images to generate per seed.
        seed (`int`, *optional*, defaults to 0): Of the first image.
        seeds (`int`, *optional*, defaults to 1): How often to repeat it with new images, for a mean and a deviation.
        batch_size (`int`, *optional*, defaults to 64): Images at once per process.
        baseline (`bool`, *optional*, defaults to `True`): Whether to compute the metrics of held-out images too.

    Returns:
        `dict`: The report, JSON, the same in every process.

    Raises:
        UserError: For metrics that do not fit, data that cannot be read, or if no metric has a value.
    """
    main = accelerator.is_main_process
    probe = extractor(sampler([0], seed))  # mistakes are to be seen before the work begins
    reference = open_reference(config, sampler.image_shape, config.num_real_images or num_images, num_images)

    def why_not(metric: str) -> str | None:
        return obstacle(metric, sampler, extractor, "logits" in probe, reference, num_images)

    info = reference.real.data.info
    is_stacked = bool(extractor.labels) and len(info.class_names or ()) == len(extractor.labels or ()) ** info.channels
    chosen, left_out = choose_metrics(metrics, why_not, is_stacked)
    notes = list(reference.notes)
    if len(reference.held_out.rows) < num_images and baseline:
        notes.append(
            f"the held-out images are {len(reference.held_out.rows):,}, fewer than the generated ones; metrics that "
            "depend on the number of images cannot be compared with theirs"
        )

    start = time.perf_counter()
    cache, kinds = cache_folder(config), "stacked_modes" in chosen
    memorised = "memorisation" in chosen
    parts = {"real": reference.real}
    if baseline or memorised:
        parts["held_out"] = reference.held_out
    if memorised:
        parts["train"] = reference.train
        notes += training_notes(sampler.name, reference.train)
    looked_at = {
        name: real_images(part, extractor, accelerator, cache, kinds, f"Real images ({name.replace('_', ' ')})")
        for name, part in parts.items()
    }
    seconds = {"real_images": time.perf_counter() - start, "generated_images": 0.0, "metrics": 0.0}

    repeats: list[list[Result]] = []
    starts = [seed + number * num_images for number in range(seeds)]
    for first in starts:
        start = time.perf_counter()
        generated = generate(sampler, extractor, accelerator, num_images, first, batch_size, kinds)
        seconds["generated_images"] += time.perf_counter() - start
        start = time.perf_counter()
        results = []
        if generated is not None:
            real, held_out, train = (looked_at.get(name) for name in ("real", "held_out", "train"))
            assert real is not None
            results = compare(chosen, generated, real, extractor, "Metrics")
            if memorised:
                assert train is not None and held_out is not None
                results += copies(generated, train, held_out, first)
        if "ppl" in chosen:
            results += path_length(sampler, extractor, accelerator, num_images, first)
        repeats.append(results)
        seconds["metrics"] += time.perf_counter() - start

    start = time.perf_counter()
    once = likelihood(sampler, reference.held_out, accelerator) if "bits_per_dim" in chosen else []
    report: list[Any] = [None]
    if main:
        results = over_seeds(repeats) + once
        held_out, real = looked_at.get("held_out"), looked_at["real"]
        if baseline and held_out is not None and real is not None:
            values = {
                result.key: result.value
                for result in compare(chosen, held_out, real, extractor, "Metrics of held-out images")
            }
            for result in results:
                result.real = values.get(result.key, result.real)
        seconds["metrics"] += time.perf_counter() - start
        if all(result.value is None for result in results):
            raise UserError(f"no metric can be computed: {results[0].notes[0]}")
        report[0] = {
            "model": {"name": sampler.name, "family": sampler.family, "image_shape": list(sampler.image_shape)},
            "data": {
                "name": info.name,
                **reference.real.describe(),
                "held_out": reference.held_out.describe() if "held_out" in parts or once else None,
                "transform": transform(reference.real),
                "seed": DATA_SEED,
            },
            "generation": {
                "num_images": num_images,
                "seeds": starts,
                "batch_size": batch_size,
                **sampler.how,
                "classes": [sampler.class_names[number] for number in sampler.classes] if sampler.classes else None,
                "precision": sampler.precision,
            },
            "results": {result.key: as_json(result) for result in results},
            "left_out": left_out,
            "notes": notes,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        }
    broadcast_object_list(report)
    return report[0]


def generate(
    sampler: Sampler,
    extractor: Extractor,
    accelerator: Accelerator,
    num_images: int,
    seed: int,
    batch_size: int,
    kinds: bool = False,
) -> Images | None:
    """Features of generated images; in the first process only."""

    def make(indices: list[int]) -> Rows:
        return features_of(sampler(indices, seed), extractor, kinds)

    found = in_turns(accelerator, num_images, batch_size, make, "Generated images")
    if not found:
        return None
    labels, numbers = None, class_numbers(sampler.class_names, extractor)
    if sampler.classes and numbers is not None and not sampler.grouped:
        shown = [numbers[number] for number in sampler.classes]
        labels = torch.tensor([shown[index % len(shown)] for index in range(num_images)])
    return Images(**found, labels=labels)


def over_seeds(repeats: list[list[Result]]) -> list[Result]:
    """The mean of several repetitions, with their deviation as the error."""
    if len(repeats) == 1:
        return repeats[0]
    results = []
    for first in repeats[0]:
        values = [result.value for results in repeats for result in results if result.key == first.key]
        known = [value for value in values if value is not None and math.isfinite(value)]
        whole = len(known) == len(repeats)
        results.append(
            dataclasses.replace(
                first,
                value=float(np.mean(known)) if whole else None,
                error=float(np.std(known, ddof=1)) if whole else None,
                error_kind=f"standard deviation over {len(repeats)} seeds" if whole else None,
                notes=first.notes if whole else [*first.notes, f"only {len(known)} of {len(repeats)} seeds have it"],
                details={"values": [value if value in known else None for value in values], **first.details},
            )
        )
    return results


def as_json(result: Result) -> dict[str, Any]:
    """A result for the report, in which infinity, which JSON does not have, becomes a note."""
    values = dataclasses.asdict(result)
    del values["key"]
    for name in ("value", "real", "error"):
        if values[name] is not None and not math.isfinite(values[name]):
            values["notes"].append(f"{name} is {values[name]}")
            values[name] = None
    return values


def training_notes(name: str, train: Part) -> list[str]:
    """Whether memorisation looks at all images that the model was trained on, as far as that is known."""
    notes = []
    if len(train.rows) < len(train.data.images):
        notes.append(
            f"memorisation sees copies of the {len(train.rows):,} images that are not held out, and no others"
        )
    data, info = training_data(name), train.data.info
    # Not the fingerprint, which is another one after random crops, and where groups of images were found.
    if data and (data["name"], data["split"], data["num_images"]) != (info.name, info.split, info.num_images):
        notes.append(
            f"{name} was trained on {data['num_images']} images of {data['name']} [{data['split']}]: memorisation "
            "sees copies of the reference, and no others"
        )
    return notes


def training_data(name: str) -> dict[str, Any] | None:
    """What a folder was trained on, if hfgen did it."""
    try:
        data = json.loads((Path(name) / "run.json").read_text(encoding="utf-8"))["data"]
        return {key: data[key] for key in ("name", "split", "num_images", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def nearest_pairs(sampler: Sampler, config: ReferenceConfig, report: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The generated images that are nearest to training images, made once more, and these; the nearest first.

    Returns:
        Pairs of uint8 arrays `(H, W, C)`; none if memorisation was not measured.
    """
    found = report["results"].get("near_duplicates")
    if found is None:
        return []
    train = open_reference(config, sampler.image_shape, 0, 0).train
    pairs = []
    for pair in found["details"]["pairs"]:
        both = (sampler([pair["image"]], pair["seed"]), train.images([pair["train"]]))
        first, second = (image[0].permute(1, 2, 0).cpu().numpy() for image in both)
        pairs.append((first, second))
    return pairs
