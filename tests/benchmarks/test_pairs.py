"""benchmarks/pairs.py: its interval, what it says of a folder that is no checkout, and one pair as users run it."""

import json
import random

import pairs
import pytest
from helpers import ROOT, spelled

from hfgen.runtime.errors import UserError


def test_the_interval_holds_the_ratio_whoever_begins(monkeypatch):
    monkeypatch.setattr(pairs, "RESAMPLES", 200)
    rng, held = random.Random(0), 0
    for _ in range(100):
        low, high = pairs.interval([[rng.gauss(mean, 0.02) for _ in range(10)] for mean in (0.97, 1.03)])
        held += low <= 1 <= high and high - low < 0.06
    assert 80 <= held <= 100
    assert pairs.interval([[1.5]]) == pytest.approx((1.5, 1.5))
    assert pairs.typical([[0.5], [2.0, 2.0, 9.0]]) == pytest.approx(1)


def test_a_folder_without_the_library_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "has no hfgen"), (ROOT, "--after is missing")):
        with pytest.raises(UserError, match=message), spelled():
            after = [] if folder == ROOT else ["--after", str(ROOT)]
            pairs.main(["--before", str(folder), *after, "--pairs", "1"])


@pytest.mark.slow
def test_a_pair(tmp_path, capsys):
    output = tmp_path / "pairs.json"
    short = "--family vae --pairs 1 --turns 3".split()
    more = ["--options", "--train_batch_size 8", "--output", str(output)]
    pairs.main(["--before", str(ROOT), "--after", str(ROOT), *short, *more])
    report = json.loads(output.read_text())
    measured = report["measured"]
    (row,) = measured["pairs"]
    assert measured["interval"] == pytest.approx([row["ratio"]] * 2) and 0.5 < row["ratio"] < 2  # it is the same code
    assert len(row["turns"]) == 3 and all(seconds > 0 for turn in row["turns"] for seconds in turn.values())
    assert "8" in measured["options"] and "95 % interval" in capsys.readouterr().out
