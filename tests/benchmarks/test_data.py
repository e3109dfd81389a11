"""The benchmark of data: what it measures is in the report, and the report says what follows from it."""

import json
import subprocess
import sys

import data as BENCHMARK
import pytest
from helpers import ROOT, run_benchmark, spelled

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError

OPTIONS = "--sizes 90 --resolution 8 --processes 2 --batch_size 8 --num_read 64 --num_streamed 16 --repeats 1".split()


def test_the_data_is_what_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(BENCHMARK, "FILE_ROWS", 1000)
    BENCHMARK.make_data(tmp_path / "data", 2300, 10)
    assert len(list((tmp_path / "data").glob("train-*-of-00003.parquet"))) == 3
    data = open_images(DataConfig(dataset_name=str(tmp_path / "data"), cache_dir=str(tmp_path)))
    assert data.images.shape == (2300, 1, 10, 10) and len(data.info.class_names) == 10
    assert set(data.images.flat) == {0, 85, 170, 255}
    different = {image.tobytes() for image in data.images}
    assert 990 <= len(different) <= 1000
    assert {image.tobytes() for image in data.images[1000:2000]} == different
    assert (data.images[:300] != data.images[1000:1300]).any()


def test_memory_is_the_peak_without_files(tmp_path):
    if BENCHMARK.memory("RssAnon") is None:
        pytest.skip("not Linux")
    code = f"""
import time
import numpy as np
from data import watched_memory
file = np.memmap({str(tmp_path / "file")!r}, dtype=np.uint8, mode="w+", shape=50_000_000)
found = {{}}
with watched_memory(found):
    kept = np.ones(5_000_000)  # 40 MB
    time.sleep(0.2)
    del kept
    file[:] = 1
print(found["megabytes"], found["resident_megabytes"])
"""
    # In a process of its own: this one may have memory to spare.
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, check=True)
    anonymous, resident = map(float, result.stdout.split())
    assert 35 < anonymous < 50 and resident > 50


@pytest.mark.parametrize(("last", "constant"), [(10.4, True), (10.6, False), (5.0, True)])
def test_growth(last, constant):
    rows = [
        {"kind": "read", "size": size, "processes": 1, "cpu_per_image": cost, "megabytes": megabytes}
        for size, cost, megabytes in ((1000, 10.0, 50.0), (500, 10.0, 49.0), (2500, last, 51.0))
    ]
    (found,) = BENCHMARK.growth(rows)
    table = BENCHMARK.growth_table([found])
    assert found["sizes"] == [500, 2500] and found["cost_ratio"] == pytest.approx(last / 10)
    assert found["constant"] is constant and found["bytes_per_image"] == pytest.approx(1000)
    assert found["more_per_image"] == pytest.approx(last - 10) and f"{1e6 * (last - 10):+.2f}" in table[1]
    assert ("yes" if constant else "no") in table[1]


def test_a_run(tmp_path, capsys, monkeypatch):
    def here(world, function, *arguments):  # processes of their own take long to start
        return [function(*arguments, rank, world) for rank in range(world)]

    monkeypatch.setattr(BENCHMARK, "in_processes", here)
    monkeypatch.setattr(BENCHMARK.tempfile, "tempdir", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # to be as it was afterwards
    output = tmp_path / "reports" / "data.json"
    BENCHMARK.main([*OPTIONS, "--output", str(output)])
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    rows = {row["kind"]: row for row in report["measured"]["rows"]}
    for kind, count in (("cache", 90), ("read", 2 * 64), ("stream", 2 * 16)):
        (found,) = rows[kind]["turns"]
        assert rows[kind]["processes"] == len(found) == 2
        slowest = max(process["seconds"] for process in found)
        assert rows[kind]["images_per_second"] == pytest.approx(count / slowest)
        assert rows[kind]["cpu_per_image"] == pytest.approx(sum(process["cpu"] for process in found) / count)
        assert rows[kind]["start_seconds"] == max(process["start_seconds"] for process in found)
        assert 0 < rows[kind]["start_seconds"] < 100
    assert [row["cost_ratio"] for row in report["measured"]["growth"]] == [1, 1, 1]
    assert len(report["tables"]) == 4 and report["config"]["sizes"] == [90]
    assert "| Streaming | 2 | 90 | 90 | times 1.000 | +0.00 | yes |" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]  # the data is gone


@pytest.mark.slow
def test_processes_of_their_own(tmp_path):
    result = run_benchmark("data", *OPTIONS, env={"TMPDIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "stream, 90 images, 2 processes" in result.stdout and not [*tmp_path.iterdir()]


def test_help_imports_no_torch():
    command = [sys.executable, "-X", "importtime", ROOT / "benchmarks" / "data.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--num_streamed" in result.stdout
    assert " torch\n" not in result.stderr and " datasets\n" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sizes 0", "--sizes 0 is out of range: use 1 or more."),
        ("--sizes", "--sizes has no numbers"),
        ("--resolution 3", "--resolution 3 is out of range: use 4 or more."),
        ("--processes 0", "--processes 0 is out of range"),
        ("--output .", "--output . is a folder: give a file."),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)
