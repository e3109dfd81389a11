"""The benchmark of sizes: it trains the default networks, and reports what each took."""

import json
import sys

import pytest
import sizes as BENCHMARK
from helpers import run_benchmark, spelled

from hfgen.runtime.errors import UserError


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run(tmp_path):
    output = tmp_path / "sizes.json"
    options = ["--families", "vae", "--resolutions", "16", "--num_images", "32", "--seconds", "0.1"]
    result = run_benchmark("sizes", *options, "--output", output)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    plain, again = report["measured"]
    assert (plain["gradient_checkpointing"], again["gradient_checkpointing"]) == (False, True)
    for found in (plain, again):
        assert found["resolution"] == 16 and found["parameters"] > 100_000 and found["steps"] >= 1
        assert found["process_megabytes"] > found["megabytes"] > 0.5 * found["estimate"] > 0
        assert found["images_per_second"] > 0
    (row,) = report["tables"]["Sizes"][1:]
    assert row[:2] == ["vae", "16"] and len(row) == len(report["tables"]["Sizes"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--families dit", "invalid choice: 'dit'"),
        ("--resolutions 4", "--resolutions 4 is out of range"),
        ("--seconds 0", "--seconds 0.0 is out of range"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value)
