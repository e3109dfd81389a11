"""The benchmark of memory over time: it tells growth from none, and trains as a user would."""

import json
import sys

import memory as MEMORY
import numpy as np
import pytest
from helpers import TINY_GAN, run_benchmark, spelled

from hfgen.runtime.errors import UserError

LEAK = """
import sys, time
held, size = [], int(sys.argv[2])
open(sys.argv[1], "w").close()
while True:
    if size:
        held.append(bytearray(size))
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def linux():
    if not sys.platform.startswith("linux"):
        pytest.skip("not Linux")


@pytest.mark.parametrize(("size", "flat"), [(100_000, False), (0, True)])
def test_growth_is_seen(tmp_path, size, flat):
    begun = tmp_path / "begun"
    samples = MEMORY.watch([sys.executable, "-c", LEAK, begun, str(size)], begun, tmp_path / "log", 2.0)
    found = MEMORY.growth(samples)
    assert 10 < len(samples) <= 301 and samples[-1, 0] <= 2 / 60
    assert found["flat"] is flat and (found["slope"] > 1000) is not flat  # MB per hour: 36,000 on an idle machine


def test_the_slope_is_that_of_a_line():
    minutes = np.linspace(0, 10, 200)
    size = 500 + 3 * minutes + np.where(minutes < 1.9, 400, 0)  # what settles at first is left out
    found = MEMORY.growth(np.stack([minutes, size], 1))
    assert found["slope"] == pytest.approx(180) and found["error"] < 1e-6 and not found["flat"]


@pytest.mark.slow
def test_a_run(tmp_path):
    output = tmp_path / "memory.json"
    options = ["--family", "gan", "--minutes", 0.05, "--output", output, *TINY_GAN, "--cpu_threads", 1]
    result = run_benchmark("memory", *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    curve = np.array(report["measured"]["minutes_and_mb"])
    assert 10 < len(curve) <= 60 and (curve[:, 1] > 100).all() and (np.diff(curve[:, 0]) > 0).all()
    (row,) = report["tables"]["Resident size"][1:]
    assert row[0] == "gan" and f"| {row[2]} |" in result.stdout
    assert "lines of metrics" in report["notes"][0] and report["notes"][0] in result.stdout
    # Which has trained, and stopped when it was told to:
    assert int(report["notes"][0].rpartition(" ")[2].strip(".").replace(",", "")) >= 32


def test_mistakes(tmp_path):
    for arguments, message in (
        ("--minutes 0", "--minutes 0.0 is out of range"),
        ("--family dit", "invalid choice: 'dit'"),
        ("--train_batch 3", "unknown flag --train_batch"),
    ):
        with pytest.raises(UserError, match=message), spelled():
            MEMORY.main(arguments.split())
    with pytest.raises(UserError, match="the training ended by itself: oh"):
        MEMORY.watch([sys.executable, "-c", "print('oh')"], tmp_path / "begun", tmp_path / "log", 5.0)
