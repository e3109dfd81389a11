"""The training runs of tests/golden.json compute what they did when it was written, to the last bit.

A change that is meant to change results says so, and records them anew: see tests/helpers/golden.py.
"""

import json

import pytest
from helpers import ROOT
from helpers.golden import RUNS, Driver, differences, why_not_comparable

GOLDEN = json.loads((ROOT / "tests" / "golden.json").read_text())
REASON = why_not_comparable(GOLDEN["machine"])
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"bits differ between machines: golden.json was {REASON}")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with Driver(ROOT, tmp_path_factory.mktemp("golden")) as driver:
        yield driver


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * run.slow) for name, run in RUNS.items()]
)
def test_a_run_is_what_it_was(name, driver):
    assert differences(GOLDEN["runs"][name], driver.measure(RUNS[name])) == []


def test_differences_are_told():
    before = {"config": {"seed": 0}, "metrics": {"loss": "a", "lr": "b"}, "sampled": {"1.png": "c"}}
    after = {"config": {"seed": 1, "new": 2}, "metrics": {"loss": "d", "norm": "e"}}
    assert differences(before, after) == [
        "config: seed differs: 0 before, 1 now",
        "metrics: loss differs",
        "metrics: lr is missing",
        "metrics: norm is new",
        "sampled: 1.png is missing",
    ]
    assert differences(before, before) == []
