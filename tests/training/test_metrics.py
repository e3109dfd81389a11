"""Metrics and their log."""

import json
import math

import torch
from accelerate import Accelerator

from hfgen.training.metrics import Metrics, MetricsLog


def test_metrics_are_means_over_the_interval():
    metrics = Metrics(Accelerator(cpu=True))
    for value, (total, count) in [(1.0, (3.0, 1.0)), (3.0, (5.0, 3.0))]:
        metrics.add(
            {"loss": torch.tensor(value), "part": torch.tensor([total, count]), "none": torch.tensor([0.0, 0.0])}
        )
    assert metrics.means() == {"loss": 2.0, "part": 2.0}
    assert metrics.means() == {}


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsLog(Accelerator(cpu=True), file)
    for images in (10, 20, 30):
        metrics.write(images, {"loss": 1.0})
    with file.open("a") as stream:
        stream.write('{"images_se')  # killed while writing
    MetricsLog(Accelerator(cpu=True), file, resumed_at=20)
    assert [json.loads(line)["images_seen"] for line in file.read_text().splitlines()] == [10, 20]


def test_lines_that_are_none_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = b'{"images_seen": 10, "loss": 1.0}\n'
    for other in (
        b"\xff\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"images_seen": "x"}\n',
        b'{"images_seen": [1]}\n',
        b"[1]\n",
    ):
        file.write_bytes(good + other)
        MetricsLog(Accelerator(cpu=True), file, resumed_at=20)
        assert file.read_bytes() == good


def test_an_evaluation_that_is_repeated_is_written_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    first = MetricsLog(Accelerator(cpu=True), file)
    for images in (10, 20, 30):
        first.record({"images_seen": images, "eval_fd": 1.0})
    resumed = MetricsLog(Accelerator(cpu=True), file, resumed_at=20, has_sums=True)
    for images in (20, 30):
        resumed.record({"images_seen": images, "eval_fd": 2.0})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["images_seen"], line["eval_fd"]) for line in lines] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_the_first_bad_step_is_remembered():
    metrics = Metrics(Accelerator(cpu=True))
    for images, loss in [(0, 1.0), (64, math.nan), (128, 1.0), (192, math.inf)]:
        metrics.note_finite("unet", torch.isfinite(torch.tensor(loss)), images)
        metrics.note_finite("other", torch.tensor(True), images)
    assert metrics.first_bad_step() == ("unet", 64)
