"""The moving average."""

import torch
from torch import nn

from hfgen.training.ema import EMA


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


def test_what_never_changes_is_shared():
    module = torch.nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    ema = EMA({"m": module}, half_life=1, ramp=0, fixed=[module.weight])
    before = module.weight.clone()
    with torch.no_grad():
        module.bias += 2
    ema.update(1, 1)
    assert ema.modules["m"].weight is module.weight and torch.equal(module.weight, before)
    torch.testing.assert_close(ema.modules["m"].bias, module.bias - 1)
    assert module.bias.requires_grad and not ema.modules["m"].bias.requires_grad
