"""Learning rates and lengths."""

import pytest
import torch
from torch import nn

from hfgen.training.config import LR_SCHEDULERS, TrainingConfig
from hfgen.training.schedules import Schedule, lr_factor


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
    length = Schedule(TrainingConfig(train_batch_size=4, gradient_accumulation_steps=2, num_epochs=2.5), 100, 2)
    assert length.batch == 16
    assert length.total == 16 * 16  # 250 images, in whole steps
    assert length.images == 62 * 16  # ten epochs
    length = Schedule(TrainingConfig(train_batch_size=4, max_train_steps=7, save_images_steps=3))
    assert (length.total, length.images, length.model) == (28, 12, None)


def test_the_warm_up_of_a_short_run_ends_within_it():
    for steps, given, wanted in ((313, None, 31), (100_000, None, 500), (5, None, 0), (313, 500, 500), (313, 0, 0)):
        length = Schedule(TrainingConfig(train_batch_size=4, max_train_steps=steps, lr_warmup_steps=given))
        assert length.warmup == wanted * 4
    assert length.learning_rate(0) == pytest.approx(1, abs=1e-4)  # none at all
    assert Schedule(TrainingConfig(train_batch_size=4, num_epochs=10), 80).warmup == 20 * 4  # of 200 updates


def test_the_units_do_not_depend_on_how_a_batch_is_split():
    splits = [(16, 4, 1), (64, 1, 1), (16, 2, 2), (32, 1, 2)]
    lengths = [
        Schedule(TrainingConfig(train_batch_size=batch, gradient_accumulation_steps=steps), 1000, processes)
        for batch, steps, processes in splits
    ]
    keys = ("batch", "total", "warmup", "logging", "checkpointing", "images")
    assert len({tuple(getattr(length, key) for key in keys) for length in lengths}) == 1
