"""benchmarks/pairs.py: its interval, what it says of a folder that is no checkout, and one pair as users run it."""

import importlib.util
import json
import random

import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def pairs():
    spec = importlib.util.spec_from_file_location("pairs", ROOT / "benchmarks" / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interval_holds_the_median_of_most_samples(pairs, monkeypatch):
    monkeypatch.setattr(pairs, "RESAMPLES", 200)
    rng, held = random.Random(0), 0
    for _ in range(100):
        low, high = pairs.median_interval([rng.gauss(1, 0.05) for _ in range(20)])
        held += low <= 1 <= high
    assert 85 <= held <= 100
    assert pairs.median_interval([1.5]) == (1.5, 1.5)


def test_a_folder_without_the_library_is_refused(pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="error: .*hfgen"):
        pairs.main(["--before", str(tmp_path / "empty"), "--after", str(ROOT), "--pairs", "1"])


@pytest.mark.slow
def test_a_pair(pairs, tmp_path, capsys):
    output = tmp_path / "pairs.json"
    short = "--family vae --pairs 1 --steps 6 --logging_steps 2".split()
    more = ["--options", "--train_batch_size 8", "--output", str(output)]
    pairs.main(["--before", str(ROOT), "--after", str(ROOT), *short, *more])
    report = json.loads(output.read_text())
    (row,) = report["pairs"]
    assert report["interval"] == [row["ratio"]] * 2 and row["ratio"] == row["after"] / row["before"] > 0
    assert "8" in report["options"] and "95 % interval" in capsys.readouterr().out
