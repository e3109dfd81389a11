"""Schedules, moving average, random numbers and metrics, one by one."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hfgen.runtime.distributed import chunks
from hfgen.runtime.png import make_grid
from hfgen.sampling.sampler import image_generators
from hfgen.training.config import LR_SCHEDULERS, TrainingConfig
from hfgen.training.ema import EMA
from hfgen.training.monitor import Monitor
from hfgen.training.random import StepRandom
from hfgen.training.schedules import Length, lr_factor


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_learning_rate_agrees_with_diffusers(name):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        assert lr_factor(name, step * 64, 10 * 64, 100 * 64) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_lengths_in_images():
    length = Length(TrainingConfig(train_batch_size=4, gradient_accumulation_steps=2, num_epochs=2.5), 2, 100)
    assert length.batch == 16
    assert length.total == 16 * 16  # 250 images, in whole steps
    assert length.images == 62 * 16  # ten epochs
    length = Length(TrainingConfig(train_batch_size=4, max_train_steps=7, save_images_steps=3), 1, None)
    assert (length.total, length.images, length.model) == (28, 12, None)


def test_the_units_do_not_depend_on_how_a_batch_is_split():
    splits = [(16, 4, 1), (64, 1, 1), (16, 2, 2), (32, 1, 2)]
    lengths = [
        Length(TrainingConfig(train_batch_size=batch, gradient_accumulation_steps=steps), processes, 1000)
        for batch, steps, processes in splits
    ]
    keys = ("batch", "total", "warmup", "logging", "checkpointing", "images")
    assert len({tuple(getattr(length, key) for key in keys) for length in lengths}) == 1


def test_half_life():
    module = nn.Linear(3, 3)
    ema = EMA({"m": module}, half_life=1000, ramp=0)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    for step in range(10):
        ema.update(100, (step + 1) * 100)
    torch.testing.assert_close(ema.modules["m"].weight, start + 0.5)  # half-way after one half-life
    assert ema.decay(100, 100) == 0.5 ** (100 / 1000)
    ramped = EMA({"m": module}, half_life=1000, ramp=0.05)
    assert ramped.decay(100, 10_000) == 0.5 ** (100 / 500)
    assert ramped.decay(100, 10**6) == 0.5 ** (100 / 1000)


def test_averages_are_float32_and_follow_buffers():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16).train()
    ema = EMA({"m": module}, half_life=1, ramp=0)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in ema.modules["m"].parameters())
    assert not ema.modules["m"].training
    module[1].running_mean.fill_(3.0)
    module[1].num_batches_tracked.fill_(7)
    ema.update(100, 100)
    torch.testing.assert_close(ema.modules["m"][1].running_mean, torch.full((2,), 3.0))
    assert ema.modules["m"][1].num_batches_tracked == 7


def test_random_numbers_are_slices_of_the_whole_step():
    def draw(start=0, stop=None, images_seen=640, purpose="phase"):
        random = StepRandom(1, images_seen, 8, start, stop, purpose)
        return torch.cat([random.stratified(), random.normal(2, 2).flatten(), random.uniform()])

    def parts(start, stop):
        random = StepRandom(1, 640, 8, start, stop, "phase")
        return random.stratified(), random.normal(2, 2), random.uniform()

    whole = parts(0, 8)
    for name, pieces in enumerate(zip(parts(0, 3), parts(3, 8), strict=True)):
        assert torch.equal(torch.cat(pieces), whole[name])
    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(images_seen=648))
    assert not torch.equal(draw(), draw(purpose="augmentation"))


def test_stratified_numbers_fill_every_interval_in_random_order():
    numbers = StepRandom(0, 0, 64).stratified()
    assert sorted((numbers * 64).long().tolist()) == list(range(64))
    assert numbers.tolist() != sorted(numbers.tolist())
    assert ((numbers[:16] * 4).long().bincount(minlength=4) > 0).all()  # a slice is spread, too


def test_chunks_are_dealt_out_completely():
    for count, size, world in [(10, 3, 1), (10, 3, 2), (5, 8, 3), (64, 16, 2)]:
        dealt = [index for rank in range(world) for batch in chunks(count, size, rank, world) for index in batch]
        assert sorted(dealt) == list(range(count))
    assert chunks(10, 3, 0, 2) == [[0, 1, 2], [6, 7, 8]]


def test_an_images_seed_can_be_repeated_by_hand():
    (generator,) = image_generators(5, [3])
    assert torch.equal(torch.randn(4, generator=generator), torch.randn(4, generator=torch.Generator().manual_seed(8)))


def test_grid():
    images = list(torch.arange(3 * 2 * 2, dtype=torch.uint8).reshape(3, 2, 2, 1).numpy())
    grid = make_grid(images, columns=2, cell=4, gap=1)
    assert grid.size == (2 * 5 + 1, 2 * 5 + 1)
    assert grid.getpixel((1, 1)) == 0
    assert grid.getpixel((9, 4)) == 7  # last pixel of the second image
    assert grid.getpixel((2, 7)) == 8
    assert grid.getpixel((0, 0)) == 96


def test_metrics_are_means_over_the_interval(tmp_path):
    monitor = Monitor(Accelerator(cpu=True), tmp_path / "metrics.jsonl")
    for value, (total, count) in [(1.0, (3.0, 1.0)), (3.0, (5.0, 3.0))]:
        monitor.add(
            {"loss": torch.tensor(value), "part": torch.tensor([total, count]), "none": torch.tensor([0.0, 0.0])}
        )
    assert monitor.means() == {"loss": 2.0, "part": 2.0}
    assert monitor.means() == {}


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    monitor = Monitor(Accelerator(cpu=True), file)
    for images in (10, 20, 30):
        monitor.write(images, {"loss": 1.0})
    with file.open("a") as stream:
        stream.write('{"images_se')  # killed while writing
    Monitor(Accelerator(cpu=True), file, resumed_at=20)
    assert [json.loads(line)["images_seen"] for line in file.read_text().splitlines()] == [10, 20]


def test_an_evaluation_that_is_repeated_is_written_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    first = Monitor(Accelerator(cpu=True), file)
    for images in (10, 20, 30):
        first.record({"images_seen": images, "eval_fd": 1.0})
    resumed = Monitor(Accelerator(cpu=True), file, resumed_at=20, has_sums=True)
    for images in (20, 30):
        resumed.record({"images_seen": images, "eval_fd": 2.0})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["images_seen"], line["eval_fd"]) for line in lines] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_the_first_bad_step_is_remembered(tmp_path):
    monitor = Monitor(Accelerator(cpu=True), tmp_path / "metrics.jsonl")
    for images, loss in [(0, 1.0), (64, math.nan), (128, 1.0), (192, math.inf)]:
        monitor.watch("unet", torch.isfinite(torch.tensor(loss)), images)
        monitor.watch("other", torch.tensor(True), images)
    assert monitor.first_bad_step() == ("unet", 64)
