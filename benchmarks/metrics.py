"""Measures what the metrics cost and how exact they are: ours beside those of other libraries, on the same arrays.

The peers that are installed take part, where they compute the same. Each measurement has a process of its own, on one
thread, and the libraries take turns. Seconds are the CPU's, of the fastest turn; memory is the peak above the arrays
that are given. The sizes are those of published evaluations: all of it takes about ten minutes. Examples:

    python benchmarks/metrics.py --output benchmarks/metrics.json
    python benchmarks/metrics.py --metrics frechet neighbours --repeats 5
    python benchmarks/metrics.py --num_images 1000 --dim 512
"""

import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, patch

import numpy as np
from common import BenchmarkOptions, command_of, peak_memory, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.options import as_dict, option

if TYPE_CHECKING:
    import torch

SEED = 2020  # torch-fidelity's
NEIGHBOURS = 5
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
BATCH = 64  # in which features arrive

Values = dict[str, Any]  # numbers and arrays, by name
Library = dict[str, Callable[..., Values]]  # what computes each kind of metric, from torch's tensors
Inputs = tuple[Sequence[np.ndarray], Values | None]  # arrays, and the exact values where they are known

# What is measured


@dataclass(frozen=True)
class Metric:
    """`inputs` takes the numbers of images and of dimensions; `kind` is what libraries list."""

    title: str
    kind: str
    images: int
    inputs: Callable[[int, int], Inputs]


def gaussians(images: int, dim: int, rank: float = 1.0) -> Inputs:
    """Mean and covariance, twice, of a known distance: `tr (S1 S2)^1/2 = tr(T S1)` for `S2 = T S1 T`.

    Deviations go from 1 to 1e-3. The covariances are of four images per dimension, or of a lower rank, as with few.
    """
    rng = np.random.default_rng(SEED)
    columns = 4 * dim if rank == 1 else int(rank * dim)
    axes = np.linalg.qr(rng.standard_normal((dim, dim))).Q * np.geomspace(1, 1e-3, dim)
    factor = axes @ rng.standard_normal((dim, columns)) / columns**0.5
    spread = rng.standard_normal((dim, dim)) / dim**0.5
    transport = (spread @ spread.T + np.eye(dim)) / 2
    first = factor @ factor.T
    second = transport @ first @ transport
    second = (second + second.T) / 2
    mean, other = 0.1 * rng.standard_normal((2, dim))
    distance = np.square(mean - other).sum() + first.trace() + second.trace() - 2 * (transport * first).sum()
    return (mean, first, other, second), {"distance": float(distance)}


def two_sets(images: int, dim: int) -> Inputs:
    """Features as networks make them: float32, not negative, correlated, with a mean far from 0."""
    rng = np.random.default_rng(SEED)
    mixing = rng.standard_normal((64, dim)) / 8
    sets = []
    for scale in (0.9, 1.0):
        features = scale * rng.standard_normal((images, 64)) @ mixing
        features += 0.3 * rng.standard_normal((images, dim)) + 0.5
        sets.append(np.maximum(features, 0).astype(np.float32))
    return sets, None


def one_set(images: int, dim: int) -> Inputs:
    return two_sets(images, dim)[0][:1], None


def class_logits(images: int, dim: int) -> Inputs:
    """Logits of a classifier that is confident of some images."""
    rng = np.random.default_rng(SEED)
    logits = rng.standard_normal((images, 1008), dtype=np.float32)
    logits[np.arange(images), rng.integers(0, 100, images)] += rng.uniform(0, 12, images)
    return [logits], None


def random_images(images: int, dim: int) -> Inputs:
    return [np.random.default_rng(SEED).integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)], None


METRICS = {
    "frechet": Metric("Fréchet distance, {dim:,} dimensions", "frechet", 0, gaussians),
    "frechet_low_rank": Metric(
        "Fréchet distance, {dim:,} dimensions of rank D / 4", "frechet", 0, functools.partial(gaussians, rank=1 / 4)
    ),
    "covariance": Metric("Mean and covariance, {images:,} x {dim:,}", "covariance", 50_000, one_set),
    "neighbours": Metric(
        "Precision, recall, density, coverage, 2 x {images:,} x {dim:,}", "neighbours", 10_000, two_sets
    ),
    "kernel": Metric(
        f"Kernel distance, {SUBSETS} subsets of 2 x {{images:,}} x {{dim:,}}", "kernel", 10_000, two_sets
    ),
    "score": Metric("Inception Score, {images:,} x 1,008", "score", 50_000, class_logits),
    "inception": Metric("Inception features, {images:,} images of 32 x 32", "inception", 128, random_images),
}


def inception_weights() -> dict[str, "torch.Tensor"]:
    """Random ones that keep the variance, as the published ones need not be here."""
    import torch

    from hfgen.evaluation.inception import InceptionV3

    torch.manual_seed(SEED)
    model = InceptionV3()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return dict(model.state_dict())


# How each library is called


def hfgen() -> Library:
    from safetensors.torch import save_file

    from hfgen.evaluation.features import Extractor, load_extractor
    from hfgen.evaluation.frechet import frechet_distance
    from hfgen.evaluation.kernels import kernel_distance
    from hfgen.evaluation.labels import inception_score
    from hfgen.evaluation.neighbours import precision_recall_density_coverage
    from hfgen.evaluation.statistics import FeatureStatistics

    def frechet(*tensors: Any) -> Values:
        both = []
        for mean, covariance in (tensors[:2], tensors[2:]):
            state = {"count": mean.new_tensor(2), "mean": mean, "scatter": covariance}  # which is the scatter over 1
            both.append(FeatureStatistics.from_state(state))
        return {"distance": frechet_distance(*both)}

    def covariance(features: Any) -> Values:
        found = FeatureStatistics(features.shape[1])
        for batch in features.split(BATCH):
            found.update(batch)
        return {"mean": found.mean, "covariance": found.covariance}

    def neighbours(generated: Any, real: Any) -> Values:
        return dict(precision_recall_density_coverage(generated, real, NEIGHBOURS, NEIGHBOURS))

    def kernel(generated: Any, real: Any) -> Values:
        found = kernel_distance(generated, real, SUBSETS, min(SUBSET_SIZE, len(real) // 2), SEED)
        return {"mean": found.value, "std": found.subset_std}

    def score(logits: Any) -> Values:
        return dict(zip(("mean", "std"), inception_score(logits), strict=True))

    @functools.cache  # so that loading is not measured
    def extractor() -> Extractor:
        with tempfile.TemporaryDirectory() as folder:
            save_file(inception_weights(), f"{folder}/model.safetensors")
            return load_extractor("inception", weights=f"{folder}/model.safetensors", batch_size=16)

    def inception(images: Any) -> Values:
        return {"features": extractor()(images)["features"]}

    functions = (frechet, covariance, neighbours, kernel, score, inception)
    return {function.__name__: function for function in functions}


def scipy() -> Library:
    from scipy.linalg import sqrtm

    def frechet(*tensors: Any) -> Values:
        mean, first, other, second = map(np.asarray, tensors)
        root = sqrtm(first @ second).trace().real
        return {"distance": np.square(mean - other).sum() + first.trace() + second.trace() - 2 * root}

    return {"frechet": frechet}


def clean_fid() -> Library:
    from cleanfid.fid import frechet_distance, kernel_distance

    def frechet(*tensors: Any) -> Values:
        return {"distance": frechet_distance(*map(np.asarray, tensors))}

    def kernel(generated: Any, real: Any) -> Values:
        np.random.seed(SEED)  # it uses the global generator, for its second argument first
        return {"mean": kernel_distance(real.numpy(), generated.numpy(), SUBSETS, min(SUBSET_SIZE, len(real) // 2))}

    return {"frechet": frechet, "kernel": kernel}


def pytorch_fid() -> Library:
    from pytorch_fid.fid_score import calculate_frechet_distance

    def frechet(*tensors: Any) -> Values:
        return {"distance": calculate_frechet_distance(*map(np.asarray, tensors))}

    return {"frechet": frechet}


def prdc() -> Library:
    from prdc import compute_prdc

    def neighbours(generated: Any, real: Any) -> Values:
        return compute_prdc(real.numpy(), generated.numpy(), NEIGHBOURS)

    return {"neighbours": neighbours}


def torch_fidelity() -> Library:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    def frechet(*tensors: Any) -> Values:
        mean, first, other, second = map(np.asarray, tensors)
        both = {"mu": mean, "sigma": first}, {"mu": other, "sigma": second}
        return {"distance": fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]}

    def covariance(features: Any) -> Values:
        found = fid_features_to_statistics(features)
        return {"mean": found["mu"], "covariance": found["sigma"]}

    def neighbours(generated: Any, real: Any) -> Values:
        options = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": 10_000, "save_cpu_ram": False}
        found = prc_features_to_metric(generated, real, **options, verbose=False)
        return {name: found[name] for name in ("precision", "recall")}

    def kernel(generated: Any, real: Any) -> Values:
        options = {"kid_subsets": SUBSETS, "kid_subset_size": min(SUBSET_SIZE, len(real) // 2), "rng_seed": SEED}
        found = kid_features_to_metric(generated, real, **options, verbose=False)
        return {name: found[f"kernel_inception_distance_{name}"] for name in ("mean", "std")}

    def score(logits: Any) -> Values:
        found = isc_features_to_metric(logits)
        return {name: found[f"inception_score_{name}"] for name in ("mean", "std")}

    @functools.cache
    def extractor() -> Any:
        # By itself it takes weights from the network or from a pickle.
        loader = f"{FeatureExtractorInceptionV3.__module__}.load_state_dict_from_url"
        with patch(loader, return_value=inception_weights()):
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)

    @torch.inference_mode()
    def inception(images: Any) -> Values:
        return {"features": torch.cat([extractor()(batch)[0] for batch in images.split(16)])}

    functions = (frechet, covariance, neighbours, kernel, score, inception)
    return {function.__name__: function for function in functions}


def torchmetrics() -> Library:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

    def frechet(*tensors: Any) -> Values:
        return {"distance": _compute_fid(*tensors)}  # its class takes features only

    def covariance(features: Any) -> Values:
        count, network = len(features), torch.nn.Identity()  # of features that are given
        network.num_features = features.shape[1]
        found: Any = FrechetInceptionDistance(network)
        for batch in features.split(BATCH):
            found.update(batch, real=False)
        mean = found.fake_features_sum / count
        scatter = found.fake_features_cov_sum - count * torch.outer(mean, mean)
        return {"mean": mean, "covariance": scatter / (count - 1)}

    return {"frechet": frechet, "covariance": covariance}


PEERS = {  # by their names on PyPI
    "scipy": scipy,
    "clean-fid": clean_fid,
    "pytorch-fid": pytorch_fid,
    "prdc": prdc,
    "torch-fidelity": torch_fidelity,
    "torchmetrics": torchmetrics,
}


# The measuring


@dataclass(frozen=True)
class MetricsBenchmark(BenchmarkOptions):
    """Benchmark: which metrics, on how much, how often."""

    metrics: tuple[str, ...] = option(tuple(METRICS), "what to measure", choices=tuple(METRICS))
    num_images: int | None = option(
        None, "images for all metrics (default: 10,000 or 50,000; 128 for the network)", least=10
    )
    dim: int = option(2048, "features of an image", least=4)
    repeats: int = option(1, "how often each library gets its turn", least=1)


def read_options(argv: Sequence[str] | None = None) -> MetricsBenchmark:
    (config,) = parse((MetricsBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    installed, left_out, results = {"hfgen": hfgen()}, {}, []
    table = [["", "", "CPU s", "times hfgen", "extra MB", "difference"]]
    for name in PEERS:
        try:
            installed[name] = load(name)
        except Exception as error:  # of any kind, where a peer does not fit what else is installed
            left_out[name] = repr(error)
    for metric in config.metrics:
        turns: dict[str, list[dict[str, Any]]] = {
            name: [] for name, library in installed.items() if METRICS[metric].kind in library
        }
        for _ in range(config.repeats):
            for name in list(turns):
                try:
                    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                        turn = pool.submit(measure, metric, name, config.num_images, config.dim)
                        turns[name].append(turn.result())
                except Exception as error:
                    if name == "hfgen":
                        raise
                    left_out[f"{name} ({metric})"] = repr(error)
                    del turns[name]
        rows = [summary(config, metric, name, turns) for name in turns]
        results += rows
        table += [table_row(row, rows[0]) for row in rows]
        print(f"{rows[0]['title']}: {min(rows[0]['seconds']):.2f} s", flush=True)
    from hfgen.runtime.launch import cpu_name

    peers = {row["library"]: importlib.metadata.version(row["library"]) for row in results}
    turns_text = "of one turn" if config.repeats == 1 else f"the fastest of {config.repeats} turns"
    notes = [
        f"Random arrays, the same for all (seed {SEED}). Each measurement has one thread and its own process. CPU "
        f"seconds: {turns_text}; extra MB: the peak of memory above the arrays.",
        "Differences are relative: from the exact distance for Fréchet, from hfgen for others.",
        f"Libraries: {', '.join(f'{name} {number}' for name, number in peers.items())}.",
        *(f"{name} is left out: {reason}" for name, reason in left_out.items()),
    ]
    measured = {"results": results, "left_out": left_out, "libraries": peers}
    command, machine = command_of(__file__, [MetricsBenchmark], argv), f"{cpu_name()}, one thread"
    publish(config.output, command, machine, as_dict([config]), {"Metrics": table}, notes, measured)


def load(name: str) -> Library:
    """Some peers import torchvision, for what is not measured: if there is none that fits this torch, a dummy does."""
    if name == "hfgen":
        return hfgen()
    try:
        import torchvision  # noqa: F401
    except Exception:
        for module in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
            sys.modules[f"torchvision{module}"] = MagicMock(__spec__=ModuleSpec(f"torchvision{module}", None))
    return PEERS[name]()


def measure(metric: str, name: str, num_images: int | None, dim: int) -> dict[str, Any]:
    """One turn: what a library finds, its CPU seconds, and its peak of memory in MB above the arrays."""
    import torch

    torch.set_num_threads(1)
    chosen = METRICS[metric]
    with contextlib.redirect_stdout(None):  # some print
        function = load(name)[chosen.kind]
        function(*map(torch.from_numpy, chosen.inputs(16, 16)[0]))  # for what happens only once, such as imports
        arrays, exact = chosen.inputs(num_images or chosen.images, dim)
        tensors = [torch.from_numpy(array) for array in arrays]
        before, start = peak_memory(reset=True), time.process_time()
        values = function(*tensors)
        seconds, after = time.process_time() - start, peak_memory()
    megabytes = None if before is None or after is None else after - before
    values = {key: np.asarray(value) for key, value in values.items()}
    return {"values": values, "exact": exact, "seconds": seconds, "megabytes": megabytes}


def summary(
    config: MetricsBenchmark, metric: str, name: str, turns: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """What all turns of a library say."""
    chosen, found = METRICS[metric], turns[name]
    values, reference = found[0]["values"], found[0]["exact"] or turns["hfgen"][0]["values"]
    return {
        "metric": metric,
        "title": chosen.title.format(images=config.num_images or chosen.images, dim=config.dim),
        "library": name,
        "seconds": [turn["seconds"] for turn in found],
        "megabytes": max((turn["megabytes"] for turn in found if turn["megabytes"] is not None), default=None),
        "values": {key: value.item() for key, value in values.items() if value.ndim == 0},
        "difference": max(relative_difference(value, reference[key]) for key, value in values.items()),
    }


def relative_difference(value: Any, reference: Any) -> float:
    """The largest difference over the largest magnitude."""
    scale = np.abs(reference).max()
    return float(np.abs(np.subtract(value, reference)).max() / (scale or 1))


def table_row(row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    title = row["title"] if row is ours else ""
    seconds, times = min(row["seconds"]), min(row["seconds"]) / min(ours["seconds"])
    megabytes = "" if row["megabytes"] is None else f"{row['megabytes']:,.0f}"
    difference = f"{row['difference']:.0e}" if row["difference"] else "0"
    return [title, row["library"], f"{seconds:.2f}", f"{times:.1f}", megabytes, difference]


if __name__ == "__main__":
    with one_line_errors():
        main()
