"""The benchmark of metrics: all libraries find the same, and a run says what it measured."""

import json
import os
import subprocess
import sys
from unittest.mock import MagicMock

import metrics as BENCHMARK
import numpy as np
import pytest
import torch
from common import peak_memory
from helpers import ROOT, run_benchmark, spelled

from hfgen.runtime.errors import UserError

SIZES = {"inception": 4}  # images
TOLERANCES = {"frechet": 1e-8, "frechet_low_rank": 1e-5, "covariance": 1e-6, "kernel": 1e-4, "inception": 1e-5}


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in [name for name, module in sys.modules.items() if isinstance(module, MagicMock)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def ours():
    return {name: BENCHMARK.measure(name, "hfgen", SIZES.get(name, 60), 24) for name in BENCHMARK.METRICS}


@pytest.mark.parametrize("library", BENCHMARK.PEERS)
def test_peers_find_the_same(ours, library):
    try:
        kinds = BENCHMARK.load(library)
    except ImportError:
        if "REQUIRE_PEERS" in os.environ:
            raise
        pytest.skip(f"{library} is not installed: see tests/peers.txt")
    for metric in [name for name, chosen in BENCHMARK.METRICS.items() if chosen.kind in kinds]:
        found = BENCHMARK.measure(metric, library, SIZES.get(metric, 60), 24)
        for key, value in found["values"].items():
            difference = BENCHMARK.relative_difference(value, ours[metric]["values"][key])
            assert difference < TOLERANCES.get(metric, 1e-7), (metric, key)


@pytest.mark.parametrize("metric", ["frechet", "frechet_low_rank"])
def test_ours_is_exact(ours, metric):
    found = ours[metric]
    assert found["values"]["distance"] == pytest.approx(found["exact"]["distance"], rel=1e-10)


def test_the_arrays_are_what_is_said():
    (_, first, _, second), _ = BENCHMARK.gaussians(0, 24, rank=1 / 4)
    assert np.linalg.matrix_rank(first) == np.linalg.matrix_rank(second) == 6
    assert not np.allclose(first @ second, second @ first, rtol=1e-3)  # the root is not a product of roots
    sets, _ = BENCHMARK.two_sets(50, 24)
    for features, again in zip(sets, BENCHMARK.two_sets(50, 24)[0], strict=True):
        assert features.dtype == np.float32 and features.shape == (50, 24) and features.min() == 0
        np.testing.assert_array_equal(features, again)
    assert not np.array_equal(*sets)


def test_memory_is_the_peak():
    if peak_memory() is None:
        pytest.skip("not Linux")
    code = """
import numpy as np
from common import peak_memory
before = peak_memory(reset=True)
np.ones(8_000_000).sum()  # 64 MB, freed at once
print(peak_memory() - before)
before = peak_memory(reset=True)
print(peak_memory() - before)
"""
    # In a process of its own: this one may have memory to spare.
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, check=True)
    first, second = map(float, found.stdout.split())
    assert 60 < first < 80 and second < 10


@pytest.mark.slow
def test_a_run(tmp_path):
    (tmp_path / "prdc.py").write_text("raise RuntimeError('broken on purpose')")
    (tmp_path / "cleanfid.py").write_text("")
    (tmp_path / "pytorch_fid").mkdir()
    (tmp_path / "pytorch_fid" / "__init__.py").touch()
    (tmp_path / "pytorch_fid" / "fid_score.py").write_text("def calculate_frechet_distance(*arrays): 1 / 0")
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    output = tmp_path / "metrics.json"
    options = "--metrics frechet --num_images 20 --dim 8 --repeats 2".split()
    result = run_benchmark("metrics", *options, "--output", output, env=paths)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    measured, table = report["measured"], report["tables"]["Metrics"]
    assert {"scipy", "hfgen"} <= set(measured["libraries"]) and report["config"]["dim"] == 8
    rows = {row["library"]: row for row in measured["results"]}
    assert {"hfgen", "scipy"} <= set(rows) and not {"prdc", "clean-fid", "pytorch-fid"} & set(rows)
    for row in rows.values():
        assert len(row["seconds"]) == 2 and row["values"]["distance"] > 0 and row["difference"] < 1e-8
    assert [row[:2] for row in table[1:3]] == [["Fréchet distance, 8 dimensions", "hfgen"], ["", "scipy"]]
    assert "| Fréchet distance, 8 dimensions | hfgen | 0.0" in result.stdout and "|  | scipy | 0.0" in result.stdout
    assert measured["left_out"]["prdc"] == "RuntimeError('broken on purpose')"
    assert "clean-fid is left out: ModuleNotFoundError" in result.stdout
    assert "pytorch-fid (frechet) is left out: ZeroDivisionError" in result.stdout


def test_help_imports_no_torch():
    command = [sys.executable, "-X", "importtime", ROOT / "benchmarks" / "metrics.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--repeats" in result.stdout
    assert " numpy\n" in result.stderr and " torch\n" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--repeats 0", "--repeats 0 is out of range"),
        ("--num_images 9", "--num_images 9 is out of range"),
        ("--dim 3", "--dim 3 is out of range"),
        ("--metrics fid", "invalid choice: 'fid'"),
        ("--output /", "is a folder"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value)
