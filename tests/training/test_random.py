"""The random numbers of a step."""

import torch

from hfgen.training.random import StepRandom


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
