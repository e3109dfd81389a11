"""The benchmark of metrics: all implementations find the same, and a run says what it measured."""

import importlib.util
import json
import os
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import load_script, run

from hfgen.errors import UserError

BENCHMARK = load_script("benchmark_metrics")
IMPLEMENTATIONS = [
    f"{metric}/{name}"
    for metric, chosen in BENCHMARK.METRICS.items()
    for name in chosen.implementations
    if name != "hfgen"
]
TOLERANCES = {"frechet": 1e-6, "frechet_low_rank": 1e-5, "inception": 1e-5}


def installed(name):
    package = BENCHMARK.PACKAGES.get(name.split()[0])
    return package is None or importlib.util.find_spec(package) is not None


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in [name for name, module in sys.modules.items() if isinstance(module, MagicMock)]:
        del sys.modules[name]


def measured(metric, name):
    images = 4 if metric == "inception" else 60
    config = BENCHMARK.BenchmarkConfig(num_images=images, dim=24, seed=7)
    return BENCHMARK.measure(config, metric, name)


@pytest.fixture(scope="module")
def ours():
    return {metric: measured(metric, "hfgen") for metric in BENCHMARK.METRICS}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_all_find_the_same(ours, implementation):
    metric, name = implementation.split("/")
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    found, reference = measured(metric, name), ours[metric]
    assert set(found["values"]) <= set(reference["values"]) and found["values"]
    tolerance = 0.5 if "own draws" in name else TOLERANCES.get(metric, 1e-4)
    for key, value in found["values"].items():
        assert BENCHMARK.relative_difference(value, reference["values"][key]) < tolerance, key
    assert found["seconds"] >= 0


@pytest.mark.parametrize("metric", ["frechet", "frechet_low_rank"])
def test_ours_is_exact(ours, metric):
    found = ours[metric]
    assert found["values"]["distance"] == pytest.approx(found["exact"]["distance"], rel=1e-10)


def test_the_arrays_are_what_is_said():
    size = BENCHMARK.Size(images=50, dim=24, subsets=2, seed=0)
    gaussians = BENCHMARK.low_rank_gaussians(size)
    first, second = gaussians.generated[1], gaussians.real[1]
    assert np.linalg.matrix_rank(first) == np.linalg.matrix_rank(second) == 6
    assert not np.allclose(first @ second, second @ first, rtol=1e-3)  # the root is not a product of roots
    inputs, again = BENCHMARK.two_sets(size), BENCHMARK.two_sets(size)
    assert inputs.real.dtype == np.float32 and inputs.real.shape == (50, 24) and inputs.real.min() == 0
    np.testing.assert_array_equal(inputs.generated, again.generated)


def test_memory_is_the_peak():
    before = BENCHMARK.reset_peak()
    if before is None:
        pytest.skip("not Linux")
    np.ones(8_000_000).sum()  # 64 MB, freed at once
    assert 60e6 < BENCHMARK.status("VmHWM") - before < 80e6
    before = BENCHMARK.reset_peak()
    assert BENCHMARK.status("VmHWM") - before < 10e6


def test_a_run(tmp_path):
    output = tmp_path / "metrics.json"
    options = "--metrics kernel inception frechet --num_images 10 --dim 8 --repeats 1".split()
    result = run("benchmark_metrics", *options, "--output", output, launcher=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert {"python", "numpy", "torch"} <= set(report["versions"]) and report["options"]["dim"] == 8
    rows = {(row["metric"], row["implementation"]): row for row in report["results"]}
    expected = [
        (metric, name)
        for metric in ("kernel", "inception", "frechet")
        for name in BENCHMARK.METRICS[metric].implementations
        if installed(name)
    ]
    assert list(rows) == expected
    for row in rows.values():
        assert len(row["seconds"]) == 1 and row["difference"] < 1e-4
        assert row["implementation"] != "hfgen" or row["times_ours"] == 1
    assert rows["frechet", "scipy sqrtm"]["values"].keys() == {"distance"}
    assert "**Kernel distance of all images**, 10 images, 8 dimensions" in result.stdout
    assert "**Fréchet distance**, 8 dimensions" in result.stdout and "relative error" in result.stdout
    assert "images/s)" in result.stdout
    for name in ("clean-fid", "torch-fidelity"):
        assert installed(name) or f"{name} is left out: not installed." in result.stdout


def test_what_fails_is_left_out(tmp_path):
    (tmp_path / "prdc.py").write_text("raise RuntimeError('broken on purpose')")
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    options = "--metrics neighbours --num_images 10 --dim 8 --repeats 2".split()
    result = run("benchmark_metrics", *options, "--output", tmp_path / "m.json", launcher=False, env=paths)
    assert result.returncode == 0, result.stderr
    assert "neighbours/prdc is left out: RuntimeError: broken on purpose." in result.stdout
    report = json.loads((tmp_path / "m.json").read_text())
    names = [row["implementation"] for row in report["results"]]
    assert names[:2] == ["hfgen", "numpy (naive)"] and "prdc" not in names
    assert all(len(row["seconds"]) == 2 for row in report["results"])


def test_errors_of_a_process_are_one_line():
    config = BENCHMARK.BenchmarkConfig(num_images=10, dim=8)
    found = BENCHMARK.run(config, "kernel", "unknown")
    assert found["error"].startswith("error: --job kernel/unknown is unknown")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--repeats 0", "--repeats 0 is out of range"),
        ("--num_images 9", "--num_images 9 is out of range"),
        ("--dim 3", "--dim 3 is out of range"),
        ("--threads 0", "--threads 0 is out of range"),
        ("--metrics", "--metrics has no value"),
        ("--metrics fid", "invalid choice: 'fid'"),
        ("--job kernel/scipy", "--job kernel/scipy is unknown"),
        ("--job fid", "--job fid is unknown"),
        ("--output /absent/a.json", "in a folder that does not exist"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error:
        BENCHMARK.main(arguments.split())
    assert message in str(error.value)
