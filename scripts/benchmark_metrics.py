"""Measures what the metrics cost and how exact they are: ours beside those of other libraries, on the same arrays.

The peers that are installed take part (scipy, torch-fidelity, torchmetrics, prdc, clean-fid, pytorch-fid), and naive
float64 implementations. Each measurement has a process of its own, on one thread; the implementations of a metric take
turns. Seconds are the CPU's, and memory is the peak above the arrays that are given. Examples:

    python scripts/benchmark_metrics.py
    python scripts/benchmark_metrics.py --metrics frechet neighbours --repeats 5
    python scripts/benchmark_metrics.py --full --output metrics.json
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from safetensors.torch import save_file

from hfgen.cli import option, parse
from hfgen.errors import UserError, one_line_errors
from hfgen.evaluation.features import load_extractor
from hfgen.evaluation.frechet import frechet_distance
from hfgen.evaluation.inception import SIDE, InceptionV3
from hfgen.evaluation.kernels import kernel_distance
from hfgen.evaluation.labels import inception_score
from hfgen.evaluation.neighbours import precision_recall_density_coverage
from hfgen.evaluation.resize import resize_tf1
from hfgen.evaluation.statistics import FeatureStatistics

Values = dict[str, Any]  # numbers and arrays, by name
Prepare = Callable[["Inputs"], Callable[[], Values]]  # what is not measured, such as imports; and then what is

NEIGHBOURS = 5
BATCH = 64  # in which features arrive
PACKAGES = {  # which module shows that a peer is installed
    "clean-fid": "cleanfid",
    "prdc": "prdc",
    "pytorch-fid": "pytorch_fid",
    "scipy": "scipy",
    "torch-fidelity": "torch_fidelity",
    "torchmetrics": "torchmetrics",
}


@dataclass(frozen=True)
class Size:
    """How large the arrays are."""

    images: int
    dim: int
    subsets: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """What all implementations of a metric are given, and the exact values if they are known."""

    size: Size
    generated: Any
    real: Any = None
    exact: Values | None = None


@dataclass(frozen=True)
class Metric:
    """What is measured: on how many images (by default, and with `--full`), made how, by whom."""

    title: str
    images: tuple[int, int]
    inputs: Callable[[Size], Inputs]
    implementations: dict[str, Prepare]


# Arrays


def tensors(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(inputs.generated), torch.from_numpy(inputs.real)


def gaussians(size: Size, images_per_dim: float = 4) -> Inputs:
    """Means and covariances of two sets of features whose distance is known; few images make them rank-deficient.

    For `S2 = T S1 T` with a positive definite T, `tr (S1 S2)^1/2 = tr(T S1)`. Deviations go from 1 to 1e-3.
    """
    rng, dim = np.random.default_rng(size.seed), size.dim
    images = int(images_per_dim * dim)
    axes = np.linalg.qr(rng.standard_normal((dim, dim))).Q * np.geomspace(1, 1e-3, dim)
    factor = axes @ rng.standard_normal((dim, images)) / images**0.5
    first = factor @ factor.T
    spread = rng.standard_normal((dim, dim)) / dim**0.5
    transport = (spread @ spread.T + np.eye(dim)) / 2
    second = transport @ first @ transport
    second = (second + second.T) / 2
    means = 0.1 * rng.standard_normal((2, dim))
    distance = np.square(means[0] - means[1]).sum() + first.trace() + second.trace() - 2 * (transport * first).sum()
    return Inputs(size, (means[0], first), (means[1], second), {"distance": float(distance)})


def low_rank_gaussians(size: Size) -> Inputs:
    return gaussians(size, 1 / 4)


def two_sets(size: Size) -> Inputs:
    """Features as networks make them: float32, not negative, correlated, with a mean far from 0."""
    rng = np.random.default_rng(size.seed)
    mixing = rng.standard_normal((64, size.dim)) / 8
    sets = []
    for scale in (0.9, 1.0):
        features = scale * rng.standard_normal((size.images, 64)) @ mixing
        features += 0.3 * rng.standard_normal((size.images, size.dim)) + 0.5
        sets.append(np.maximum(features, 0).astype(np.float32))
    return Inputs(size, sets[0], sets[1])


def one_set(size: Size) -> Inputs:
    return dataclasses.replace(two_sets(size), real=None)


def logits(size: Size) -> Inputs:
    """Of a classifier that is sure of some images."""
    rng = np.random.default_rng(size.seed)
    values = rng.standard_normal((size.images, 1008), dtype=np.float32)
    values[np.arange(size.images), rng.integers(0, 100, size.images)] += rng.uniform(0, 12, size.images)
    return Inputs(size, values)


def pictures(size: Size) -> Inputs:
    rng = np.random.default_rng(size.seed)
    return Inputs(size, rng.integers(0, 256, (size.images, 3, 32, 32), dtype=np.uint8))


# Fréchet distance of given means and covariances


def frechet_hfgen(inputs: Inputs) -> Callable[[], Values]:
    count = 10_000
    both = []
    for mean, covariance in (inputs.generated, inputs.real):
        state = {"count": torch.tensor(count), "mean": mean, "scatter": covariance * (count - 1)}
        both.append(FeatureStatistics.from_state({name: torch.as_tensor(value) for name, value in state.items()}))
    return lambda: {"distance": frechet_distance(*both)}


def frechet_scipy(inputs: Inputs) -> Callable[[], Values]:
    from scipy.linalg import sqrtm

    (mean, first), (other, second) = inputs.generated, inputs.real

    def measured() -> Values:
        root = sqrtm(first @ second).trace().real
        return {"distance": float(np.square(mean - other).sum() + first.trace() + second.trace() - 2 * root)}

    return measured


def frechet_clean_fid(inputs: Inputs) -> Callable[[], Values]:
    from cleanfid.fid import frechet_distance as measured

    return lambda: {"distance": float(measured(*inputs.generated, *inputs.real))}


def frechet_pytorch_fid(inputs: Inputs) -> Callable[[], Values]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return lambda: {"distance": float(calculate_frechet_distance(*inputs.generated, *inputs.real))}


def frechet_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    both = [{"mu": mean, "sigma": covariance} for mean, covariance in (inputs.generated, inputs.real)]
    return lambda: {"distance": fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]}


def frechet_torchmetrics(inputs: Inputs) -> Callable[[], Values]:
    from torchmetrics.image.fid import _compute_fid

    arrays = [torch.from_numpy(array) for array in (*inputs.generated, *inputs.real)]
    return lambda: {"distance": float(_compute_fid(*arrays))}


FRECHET: dict[str, Prepare] = {
    "hfgen": frechet_hfgen,
    "scipy sqrtm": frechet_scipy,
    "clean-fid": frechet_clean_fid,
    "pytorch-fid": frechet_pytorch_fid,
    "torch-fidelity": frechet_torch_fidelity,
    "torchmetrics": frechet_torchmetrics,
}


# Mean and covariance of features that arrive in batches


def moments(mean: Any, covariance: Any) -> Values:
    return {
        "mean": float(np.linalg.norm(mean)),
        "trace": float(covariance.trace()),
        "norm": float(np.linalg.norm(covariance)),
    }


def covariance_hfgen(inputs: Inputs) -> Callable[[], Values]:
    batches = torch.from_numpy(inputs.generated).split(BATCH)

    def measured() -> Values:
        found = FeatureStatistics(inputs.size.dim)
        for batch in batches:
            found.update(batch)
        return moments(found.mean.numpy(), found.covariance.numpy())

    return measured


def covariance_numpy(inputs: Inputs) -> Callable[[], Values]:
    batches = np.array_split(inputs.generated, max(1, inputs.size.images // BATCH))

    def measured() -> Values:
        features = np.concatenate(batches).astype(np.float64)
        return moments(features.mean(0), np.cov(features, rowvar=False))

    return measured


def covariance_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.metric_fid import fid_features_to_statistics

    batches = torch.from_numpy(inputs.generated).split(BATCH)

    def measured() -> Values:
        found = fid_features_to_statistics(torch.cat(batches))
        return moments(found["mu"], found["sigma"])

    return measured


def covariance_torchmetrics(inputs: Inputs) -> Callable[[], Values]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    batches = torch.from_numpy(inputs.generated).split(BATCH)
    network: Any = torch.nn.Identity()  # of features that are given
    network.num_features = inputs.size.dim

    def measured() -> Values:
        found: Any = FrechetInceptionDistance(feature=network)
        for batch in batches:
            found.update(batch, real=False)
        number = int(found.fake_features_num_samples)
        mean = found.fake_features_sum / number
        scatter = found.fake_features_cov_sum - number * torch.outer(mean, mean)
        return moments(mean.numpy(), scatter.numpy() / (number - 1))

    return measured


# Precision, recall, density and coverage


def neighbours_hfgen(inputs: Inputs) -> Callable[[], Values]:
    generated, real = tensors(inputs)
    return lambda: precision_recall_density_coverage(generated, real, NEIGHBOURS, NEIGHBOURS)


def neighbours_numpy(inputs: Inputs) -> Callable[[], Values]:
    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T

    def radii(x: np.ndarray) -> np.ndarray:
        squared = distances(x, x)
        np.fill_diagonal(squared, np.inf)
        return np.partition(squared, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]

    def measured() -> Values:
        real = inputs.real.astype(np.float64)
        generated = inputs.generated - real.mean(0)
        real -= real.mean(0)
        own, others = radii(generated), radii(real)
        squared = distances(generated, real)
        return {
            "precision": float((squared <= others).any(1).mean()),
            "recall": float((squared <= own[:, None]).any(0).mean()),
            "density": float((squared < others).sum(1).mean() / NEIGHBOURS),
            "coverage": float((squared.min(0) < others).mean()),
        }

    return measured


def neighbours_prdc(inputs: Inputs) -> Callable[[], Values]:
    from prdc import compute_prdc

    def measured() -> Values:
        with contextlib.redirect_stdout(None):  # it prints
            found = compute_prdc(inputs.real, inputs.generated, NEIGHBOURS)
        return {name: float(value) for name, value in found.items()}

    return measured


def neighbours_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    both = tensors(inputs)
    options = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}

    def measured() -> Values:
        found = prc_features_to_metric(*both, **options)
        return {name: found[name] for name in ("precision", "recall")}

    return measured


# Kernel distance, of subsets as in the literature and of all images


def subset_size(inputs: Inputs) -> int:
    return min(1000, inputs.size.images // 2)


def subsets_hfgen(inputs: Inputs) -> Callable[[], Values]:
    generated, real = tensors(inputs)

    def measured() -> Values:
        found = kernel_distance(generated, real, inputs.size.subsets, subset_size(inputs), inputs.size.seed)
        return {"mean": found.value, "std": found.subset_std or 0.0}

    return measured


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    within, others = ((a @ a.T / a.shape[1] + 1) ** 3 for a in (x, y))
    between = (x @ y.T / x.shape[1] + 1) ** 3
    pairs = [(matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1)) for matrix in (within, others)]
    return float(sum(pairs) - 2 * between.mean())


def subsets_numpy(inputs: Inputs) -> Callable[[], Values]:
    def measured() -> Values:
        draws, size = np.random.RandomState(inputs.size.seed), subset_size(inputs)
        found = []
        for _ in range(inputs.size.subsets):
            x, y = (a[draws.choice(len(a), size, replace=False)] for a in (inputs.generated, inputs.real))
            found.append(unbiased(x, y))
        return {"mean": float(np.mean(found)), "std": float(np.std(found))}

    return measured


def subsets_clean_fid(inputs: Inputs) -> Callable[[], Values]:
    from cleanfid.fid import kernel_distance as of_subsets

    def measured() -> Values:
        np.random.seed(inputs.size.seed)  # it uses the global one, and gives no deviation
        return {"mean": of_subsets(inputs.real, inputs.generated, inputs.size.subsets, subset_size(inputs))}

    return measured


def subsets_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.metric_kid import kid_features_to_metric

    both = tensors(inputs)
    options = {"kid_subsets": inputs.size.subsets, "kid_subset_size": subset_size(inputs), "verbose": False}

    def measured() -> Values:
        found = kid_features_to_metric(*both, **options, rng_seed=inputs.size.seed)
        return {name: found[f"kernel_inception_distance_{name}"] for name in ("mean", "std")}

    return measured


def subsets_torchmetrics(inputs: Inputs) -> Callable[[], Values]:
    from torchmetrics.image.kid import KernelInceptionDistance

    both = tensors(inputs)

    def measured() -> Values:
        torch.manual_seed(inputs.size.seed)
        found: Any = KernelInceptionDistance(torch.nn.Identity(), inputs.size.subsets, subset_size(inputs))
        for features, real in zip(both, (False, True), strict=True):
            found.update(features, real=real)
        mean, std = found.compute()
        return {"mean": mean.item(), "std": std.item()}

    return measured


def kernel_hfgen(inputs: Inputs) -> Callable[[], Values]:
    generated, real = tensors(inputs)
    return lambda: {"distance": kernel_distance(generated, real).value}


def kernel_numpy(inputs: Inputs) -> Callable[[], Values]:
    return lambda: {"distance": unbiased(inputs.generated, inputs.real)}


# Inception Score


def score_hfgen(inputs: Inputs) -> Callable[[], Values]:
    values = torch.from_numpy(inputs.generated)
    return lambda: dict(zip(("mean", "std"), inception_score(values), strict=True))


def score_numpy(inputs: Inputs) -> Callable[[], Values]:
    def measured() -> Values:
        values = inputs.generated[np.random.RandomState(2020).permutation(inputs.size.images)].astype(np.float64)
        logs = values - values.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        shares = np.exp(logs)
        scores = []
        for split in range(10):
            part = slice(split * len(logs) // 10, (split + 1) * len(logs) // 10)
            terms = shares[part] * (logs[part] - np.log(shares[part].mean(0)))
            scores.append(np.exp(terms.sum(1).mean()))
        return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}

    return measured


def score_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.metric_isc import isc_features_to_metric

    values = torch.from_numpy(inputs.generated)

    def measured() -> Values:
        found = isc_features_to_metric(values)
        return {name: found[f"inception_score_{name}"] for name in ("mean", "std")}

    return measured


def score_torchmetrics(inputs: Inputs) -> Callable[[], Values]:
    from torchmetrics.image.inception import InceptionScore

    values = torch.from_numpy(inputs.generated)

    def measured() -> Values:
        torch.manual_seed(inputs.size.seed)
        found: Any = InceptionScore(torch.nn.Identity())
        found.update(values)
        mean, std = found.compute()
        return {"mean": mean.item(), "std": std.item()}

    return measured


# Inception features of 8-bit images of 32 x 32 pixels


def inception_weights(seed: int) -> dict[str, Any]:
    """Random ones that keep the variance, as the published ones need not be here."""
    torch.manual_seed(seed)
    model = InceptionV3()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model.state_dict()


def inception_hfgen(inputs: Inputs) -> Callable[[], Values]:
    with tempfile.TemporaryDirectory() as folder:
        save_file(inception_weights(inputs.size.seed), f"{folder}/model.safetensors")
        extractor = load_extractor("inception", weights=f"{folder}/model.safetensors", batch_size=16)
    images = torch.from_numpy(inputs.generated)
    return lambda: {"features": extractor(images)["features"]}


def inception_torch(inputs: Inputs) -> Callable[[], Values]:
    model = InceptionV3()
    model.load_state_dict(inception_weights(inputs.size.seed))
    model.eval()
    images = torch.from_numpy(inputs.generated)

    @torch.inference_mode()
    def measured() -> Values:
        parts = [model((resize_tf1(batch, SIDE) - 128) / 128).features for batch in images.split(16)]
        return {"features": torch.cat(parts)}

    return measured


def inception_torch_fidelity(inputs: Inputs) -> Callable[[], Values]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # It reads weights from the network or from a pickle.
    loader = f"{FeatureExtractorInceptionV3.__module__}.load_state_dict_from_url"
    with patch(loader, return_value=dict(inception_weights(inputs.size.seed))):
        model: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    images = torch.from_numpy(inputs.generated)

    @torch.inference_mode()
    def measured() -> Values:
        return {"features": torch.cat([model(batch)[0] for batch in images.split(16)])}

    return measured


METRICS = {
    "frechet": Metric("Fréchet distance", (0, 0), gaussians, FRECHET),
    "frechet_low_rank": Metric("Fréchet distance, rank D / 4", (0, 0), low_rank_gaussians, FRECHET),
    "covariance": Metric(
        "Mean and covariance",
        (20_000, 50_000),
        one_set,
        {
            "hfgen": covariance_hfgen,
            "numpy (naive)": covariance_numpy,
            "torch-fidelity": covariance_torch_fidelity,
            "torchmetrics": covariance_torchmetrics,
        },
    ),
    "neighbours": Metric(
        f"Precision, recall, density and coverage (k = {NEIGHBOURS})",
        (4_000, 10_000),
        two_sets,
        {
            "hfgen": neighbours_hfgen,
            "numpy (naive)": neighbours_numpy,
            "prdc": neighbours_prdc,
            "torch-fidelity": neighbours_torch_fidelity,
        },
    ),
    "kernel_subsets": Metric(
        "Kernel distance of subsets",
        (4_000, 10_000),
        two_sets,
        {
            "hfgen": subsets_hfgen,
            "numpy (naive)": subsets_numpy,
            "clean-fid": subsets_clean_fid,
            "torch-fidelity": subsets_torch_fidelity,
            "torchmetrics (own draws)": subsets_torchmetrics,
        },
    ),
    "kernel": Metric(
        "Kernel distance of all images",
        (4_000, 10_000),
        two_sets,
        {"hfgen": kernel_hfgen, "numpy (naive)": kernel_numpy},
    ),
    "score": Metric(
        "Inception Score of 1,008 logits",
        (20_000, 50_000),
        logits,
        {
            "hfgen": score_hfgen,
            "numpy (naive)": score_numpy,
            "torch-fidelity": score_torch_fidelity,
            "torchmetrics (own draws)": score_torchmetrics,
        },
    ),
    "inception": Metric(
        "Inception features",
        (32, 128),
        pictures,
        {
            "hfgen": inception_hfgen,
            "torch (naive)": inception_torch,
            "torch-fidelity": inception_torch_fidelity,
        },
    ),
}
SUBSETS = (20, 100)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark: which metrics, on how much, how often."""

    metrics: tuple[str, ...] = option(tuple(METRICS), "what to measure", choices=tuple(METRICS))
    full: bool = option(False, "the sizes of published evaluations: 10,000 to 50,000 images; takes half an hour")
    num_images: int | None = option(None, "images for all metrics (default: what suits each)")
    dim: int = option(2048, "features of an image")
    repeats: int = option(3, "how often each implementation gets its turn")
    threads: int = option(1, "threads of each process")
    seed: int = option(2020, "seed of the arrays, and of subsets")
    output: str | None = option(None, "JSON file for the figures")
    job: str | None = option(None, "METRIC/IMPLEMENTATION: measure this one once, in this process, and print JSON")

    def validate(self) -> None:
        for name, least in (("num_images", 10), ("dim", 4), ("repeats", 1), ("threads", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value} is out of range: use {least} or more.")
        if not self.metrics:
            raise UserError(f"--metrics has no value: give some of {', '.join(METRICS)}, or leave it out.")
        if self.output and not Path(self.output).parent.is_dir():
            raise UserError(f"--output {self.output} is in a folder that does not exist: make it first.")
        if self.job is not None:
            metric, _, name = self.job.partition("/")
            if name not in getattr(METRICS.get(metric), "implementations", ()):
                raise UserError(f"--job {self.job} is unknown: give METRIC/IMPLEMENTATION, such as kernel/hfgen.")

    def size(self, metric: str) -> Size:
        images = METRICS[metric].images[self.full]
        return Size((self.num_images or images) if images else 0, self.dim, SUBSETS[self.full], self.seed)


def read_options(argv: Sequence[str] | None = None) -> BenchmarkConfig:
    (config,) = parse((BenchmarkConfig,), argv, description=str(__doc__).partition("\n")[0])
    config.validate()
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    if config.job:
        print(json.dumps(measure(config, *config.job.split("/"))))
        return
    print(f"{describe(config)}\n")
    results, absent = [], {}
    for metric in config.metrics:
        names = []
        for name in METRICS[metric].implementations:
            package = PACKAGES.get(name.split()[0])
            if package is None or importlib.util.find_spec(package):
                names.append(name)
            else:
                absent[name.split()[0]] = "not installed"
        runs = {name: [run(config, metric, name)] for name in names}
        for name, first in list(runs.items()):
            if "error" in first[0]:
                absent[f"{metric}/{name}"] = runs.pop(name)[0]["error"]
        for _ in range(config.repeats - 1):
            for name, found in runs.items():
                found.append(run(config, metric, name))
        rows = [summarise(config, metric, name, found, runs) for name, found in runs.items()]
        print(table(config, metric, rows), flush=True)
        results += rows
    for name, reason in absent.items():
        print(f"{name} is left out: {reason}.")
    if config.output:
        report = {
            "machine": describe(config),
            "versions": versions(),
            "options": dataclasses.asdict(config),
            "results": results,
            "left_out": absent,
        }
        Path(config.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run(config: BenchmarkConfig, metric: str, name: str) -> dict[str, Any]:
    """One measurement in a process of its own; or `{"error": the reason}`."""
    values = {"dim": config.dim, "threads": config.threads, "seed": config.seed, "num_images": config.num_images}
    command = [sys.executable, __file__, "--job", f"{metric}/{name}", *["--full"] * config.full]
    command += [f"--{flag}={value}" for flag, value in values.items()]
    limits = {f"{library}_NUM_THREADS": str(config.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | limits)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return {"error": lines[-1].strip()[:200].rstrip(".")}
    return json.loads(result.stdout.splitlines()[-1])


def measure(config: BenchmarkConfig, metric: str, name: str) -> dict[str, Any]:
    """What one implementation finds, its CPU seconds, and its peak of memory (Linux only)."""
    torch.set_num_threads(config.threads)
    if name.split()[0] in PACKAGES:
        stand_in_for_torchvision()
    chosen, size = METRICS[metric], config.size(metric)
    prepare = chosen.implementations[name]
    prepare(chosen.inputs(Size(min(16, size.images), 16, 2, size.seed)))()  # what happens once, such as imports
    inputs = chosen.inputs(size)
    measured = prepare(inputs)
    gc.collect()
    before = reset_peak()
    start = time.process_time()
    values = measured()
    seconds = time.process_time() - start
    extra = None if before is None else (status("VmHWM") - before) / 1e6
    found = {name: np.asarray(value).tolist() for name, value in values.items()}
    return {"values": found, "exact": inputs.exact, "seconds": seconds, "megabytes": extra}


def stand_in_for_torchvision() -> None:
    """Some peers import torchvision for what is not measured here, and there may be none for this torch."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # one that does not fit ends in errors of several kinds
        for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
            module = MagicMock(__spec__=ModuleSpec(f"torchvision{name}", None))
            sys.modules[f"torchvision{name}"] = module


def reset_peak() -> float | None:
    """Lets the system forget the peak of this process's memory; its memory now, in bytes, or None."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return min(status("VmRSS"), status("VmHWM"))
    except OSError:
        return None


def status(name: str) -> float:
    """A figure of memory from Linux, in bytes. Raises `OSError` where there is none."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return 1024 * float(found[1])


def summarise(
    config: BenchmarkConfig, metric: str, name: str, found: list[dict[str, Any]], runs: dict[str, Any]
) -> dict[str, Any]:
    """What all measurements of an implementation say, beside the exact value or ours."""
    seconds = [each["seconds"] for each in found]
    ours = runs.get("hfgen", found)
    reference = found[0]["exact"] or ours[0]["values"]
    values = found[0]["values"]
    differences = [relative_difference(values[key], reference[key]) for key in values]
    size = config.size(metric)
    return {
        "metric": metric,
        "implementation": name,
        "images": size.images,
        "dim": size.dim,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "times_ours": statistics.median(seconds) / statistics.median([each["seconds"] for each in ours]),
        "megabytes": max((each["megabytes"] for each in found if each["megabytes"] is not None), default=None),
        "values": {key: value for key, value in values.items() if isinstance(value, float)},
        "exact": found[0]["exact"],
        "difference": max(differences),
    }


def relative_difference(value: Any, reference: Any) -> float:
    """The largest difference over the largest magnitude."""
    scale = np.abs(reference).max()
    return float(np.abs(np.subtract(value, reference)).max() / (scale or 1))


def table(config: BenchmarkConfig, metric: str, rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    size, chosen = config.size(metric), METRICS[metric]
    about = [f"{size.images:,} images"] if size.images else []
    about += [f"{size.dim:,} dimensions"] if metric not in ("score", "inception") else []
    about += [f"{size.subsets} subsets of {min(1000, size.images // 2):,}"] if metric == "kernel_subsets" else []
    exact = bool(rows and rows[0]["exact"])
    lines = [f"**{chosen.title}**, {', '.join(about)}", ""]
    lines += [
        f"| | CPU s | range | times hfgen | extra MB | {'relative error' if exact else 'differs from hfgen by'} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, memory = row["seconds"], row["megabytes"]
        shown = "" if memory is None else f"{memory:,.0f}"
        speed = f" ({size.images / row['median_seconds']:.1f} images/s)" if metric == "inception" else ""
        lines.append(
            f"| {row['implementation']} | {row['median_seconds']:.2f}{speed} | {min(seconds):.2f}-{max(seconds):.2f} "
            f"| {row['times_ours']:.1f} | {shown} | {row['difference']:.1e} |"
        )
    return "\n".join([*lines, ""])


def describe(config: BenchmarkConfig) -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        processor = names[0]
    return f"{processor}, {config.threads} thread{'s' * (config.threads > 1)} per process of {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("hfgen", "numpy", "torch", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
