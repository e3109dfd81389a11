"""What labels say, against their definitions, closed forms and torch-fidelity."""

import math

import numpy as np
import pytest
import torch

from hfgen.evaluation import labels
from hfgen.evaluation.labels import (
    class_coverage,
    conditional_accuracy,
    confident_share,
    divergence_floor,
    inception_score,
    label_counts,
    label_divergence,
    rarest_class,
    stacked_modes,
)


def draws(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def naive_inception_score(logits, num_splits):
    """Row by row, class by class, as the paper defines it."""
    scores, number = [], len(logits)
    for split in range(num_splits):
        rows = logits[split * number // num_splits : (split + 1) * number // num_splits].tolist()
        predictions = [softmax(row) for row in rows]
        mean = [sum(column) / len(rows) for column in zip(*predictions, strict=True)]
        total = 0.0
        for prediction in predictions:
            total += sum(p * math.log(p / q) for p, q in zip(prediction, mean, strict=True) if p > 0)
        scores.append(math.exp(total / len(rows)))
    centre = sum(scores) / num_splits
    return centre, (sum((score - centre) ** 2 for score in scores) / num_splits) ** 0.5


@pytest.mark.parametrize(
    ("shape", "scale", "splits"),
    [((97, 5), 1, 10), ((1003, 7), 4, 10), ((10, 3), 2, 10), ((700, 2), 0.01, 2), ((600, 40), 20, 1)],
)
def test_the_inception_score_is_its_definition(shape, scale, splits):
    logits = draws(*shape, scale=scale)
    assert inception_score(logits, splits, None) == pytest.approx(naive_inception_score(logits, splits), rel=1e-9)
    shuffled = logits[np.random.RandomState(2020).permutation(len(logits))]
    assert inception_score(logits, splits) == pytest.approx(naive_inception_score(shuffled, splits), rel=1e-9)


def test_the_inception_score_is_that_of_torch_fidelity():
    """Version 0.4.0 gave these; the splits are uneven."""
    logits = 5 * torch.arange(103 * 7, dtype=torch.float64).view(103, 7).square().sin()
    assert inception_score(logits) == pytest.approx((2.6182919889440486, 0.17870716554606764), rel=1e-12)
    assert inception_score(logits, 4, None) == pytest.approx((2.862197152711327, 0.163342159993684), rel=1e-12)


def test_the_inception_score_has_closed_forms():
    sure = 200 * torch.eye(8).repeat(30, 1)  # each class equally often
    assert inception_score(sure, 1) == pytest.approx((8, 0))
    assert inception_score(sure, 10)[0] < 8  # no tenth has all classes equally often
    assert inception_score(torch.ones(20, 4)) == pytest.approx((1, 0))
    for seed in range(20):
        same = inception_score(draws(1, 6, seed=seed).expand(50, -1), 5)[0]
        assert 1 <= same < 1 + 1e-14
    unsure = torch.tensor([[0.0, 0.0, -900.0], [-900.0, 0.0, 0.0]]).repeat(50, 1)  # halves: ln 2 - H(1/4, 1/2, 1/4)
    expected = math.exp(0.5 * math.log(2) + 0.5 * math.log(4) - math.log(2))
    assert inception_score(unsure, 1)[0] == pytest.approx(expected)


def test_the_inception_score_knows_no_offset_no_order_and_no_block(monkeypatch):
    logits = draws(500, 6, scale=3)
    expected = inception_score(logits, 1)
    for changed in (logits + draws(500, 1, scale=1000), logits.flip(0), logits[:, [3, 0, 1, 5, 4, 2]], logits.numpy()):
        assert inception_score(changed, 1) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(labels, "BLOCK", 7)
    assert inception_score(logits, 1) == pytest.approx(expected, rel=1e-12)


def test_the_inception_score_survives_extreme_logits():
    logits = draws(200, 5, scale=1e4).float()
    logits[:, 3] = -3e38  # a class that never comes
    mean, deviation = inception_score(logits)
    assert 1 < mean <= 4 and math.isfinite(deviation)
    half = draws(64, 5, scale=3).half()
    assert inception_score(half) == pytest.approx(inception_score(half.double()))


@pytest.mark.parametrize(
    ("logits", "splits", "message"),
    [
        (torch.zeros(9, 3), 10, "logits has 9 rows, but this metric needs at least 10"),
        (torch.zeros(9, 3), 0, "num_splits is 0"),
        (torch.full((20, 3), math.nan), 10, "NaN or infinite values in 20 of 20 rows"),
        (torch.tensor([[0.0, math.inf]] * 20), 10, "NaN or infinite"),
        (torch.zeros(20), 10, "has shape"),
        (torch.zeros(20, 3).long(), 10, "floating point"),
    ],
)
def test_mistakes_in_logits(logits, splits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(logits, splits)


def test_confidence_is_its_definition(monkeypatch):
    logits = draws(500, 4, scale=2)
    top = [max(softmax(row)) for row in logits.tolist()]
    for threshold in (0.25, 0.5, 0.9, 0.99):
        expected = sum(value >= threshold for value in top) / 500
        assert confident_share(logits, threshold) == expected
        assert confident_share(logits + draws(500, 1, scale=1000), threshold) == expected
    assert confident_share(logits) == confident_share(logits, 0.9)
    monkeypatch.setattr(labels, "BLOCK", 7)
    assert confident_share(logits, 0.5) == sum(value >= 0.5 for value in top) / 500


def test_confidence_counts_from_the_threshold_on():
    sure = torch.tensor([[math.log(9) + shift, 0.0] for shift in (-1e-3, 1e-3)])  # odds of 9 to 1, nearly
    assert confident_share(sure) == 0.5
    assert confident_share(torch.zeros(3, 2), 0.5) == 1  # both classes have exactly a half
    assert confident_share(torch.tensor([[3e38, -3e38], [0.0, 0.0]])) == 0.5


@pytest.mark.parametrize(
    ("logits", "threshold", "message"),
    [
        (torch.zeros(2, 3), 90, "threshold is 90, but must be from 0 to 1"),
        (torch.zeros(2, 3), math.nan, "threshold is nan"),
        (torch.zeros(0, 3), 0.9, "logits has 0 rows"),
        (torch.tensor([[0.0, math.nan]]), 0.9, "NaN or infinite"),
    ],
)
def test_mistakes_in_confidence(logits, threshold, message):
    with pytest.raises(ValueError, match=message):
        confident_share(logits, threshold)


def test_counts():
    assert label_counts(torch.tensor([2, 0, 2, 1], dtype=torch.uint8), 5).tolist() == [1, 1, 2, 0, 0]
    assert label_counts(np.array([3, 3]), 4).tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([0, 3]), "labels go from 0 to 3, but of 3 classes they go from 0 to 2"),
        (torch.tensor([-1, 2]), "labels go from -1 to 2"),
        (torch.tensor([0.0, 1.0]), "labels is of torch.float32"),
        (torch.tensor([True, False]), "labels is of torch.bool"),
        (torch.tensor([], dtype=torch.long), "one label per image"),
        (torch.zeros(2, 2).long(), "one label per image"),
    ],
)
def test_mistakes_in_labels(wrong, message):
    with pytest.raises(ValueError, match=message):
        label_counts(wrong, 3)


def naive_kl(p, q):
    return sum(a * math.log(a / b) if b else math.inf for a, b in zip(p, q, strict=True) if a)


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_its_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    found, real = (torch.randint(0, 30, (12,), generator=generator) for _ in range(2))
    real += 1
    p, q = ([value / sum(counts.tolist()) for value in counts.tolist()] for counts in (found, real))
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = label_divergence(found, real)
    assert divergence.kl == pytest.approx(naive_kl(p, q), rel=1e-12)
    assert divergence.js == pytest.approx((naive_kl(p, middle) + naive_kl(q, middle)) / 2, rel=1e-12)
    shares = label_divergence(found, real.double() / real.sum())
    assert (shares.kl, shares.js) == pytest.approx((divergence.kl, divergence.js))


def test_the_divergence_has_closed_forms():
    uniform = torch.ones(10)
    same = label_divergence(3 * uniform, uniform)
    assert (same.kl, same.js) == (0, 0)
    one = torch.tensor([7.0] + [0] * 9)
    assert label_divergence(one, uniform).kl == pytest.approx(math.log(10))
    assert label_divergence(uniform, one).kl == math.inf  # classes that the reference lacks
    apart = label_divergence(torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert (apart.kl, apart.js) == (math.inf, pytest.approx(math.log(2)))
    halves = torch.tensor([1.0, 1.0, 0.0])
    both_lack = label_divergence(halves, halves + 0.0)  # a class that neither has is no class
    assert (both_lack.kl, both_lack.js) == (0, 0)
    assert label_divergence(halves, torch.tensor([1, 2, 3])).js == label_divergence(torch.tensor([1, 2, 3]), halves).js


def test_the_floor_is_what_perfect_images_have():
    reference = torch.arange(1.0, 11)
    drawn = torch.multinomial(reference, 3000 * 500, True, generator=torch.Generator().manual_seed(0)).view(3000, 500)
    found = [label_divergence(label_counts(sample, 10), reference).kl for sample in drawn]
    # The divergence has a chi-square distribution with 9 degrees of freedom, times 1 / 2N: 4 standard errors.
    bound = 4 * math.sqrt(2 / (9 * len(found)))
    assert sum(found) / len(found) == pytest.approx(divergence_floor(10, 500), rel=bound)


@pytest.mark.parametrize("function", [label_divergence, class_coverage, rarest_class])
@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        ([1, 2], [1, 2, 3], "generated counts 2 classes and reference 3"),
        ([0, 0], [1, 2], "generated must hold counts"),
        ([1, 2], [3, -1], "reference must hold counts"),
        ([1.0, math.nan], [1.0, 2.0], "generated must hold counts"),
        ([[1, 2]], [[1, 2]], "has shape"),
    ],
)
def test_mistakes_in_counts(function, generated, reference, message):
    with pytest.raises(ValueError, match=message):
        function(torch.tensor(generated), torch.tensor(reference))


def test_coverage():
    reference = torch.tensor([5, 5, 5, 5, 0])
    assert class_coverage(torch.tensor([9, 0, 1, 0, 0]), reference) == 0.5
    assert class_coverage(torch.tensor([1, 1, 1, 1, 0]), reference) == 1
    assert class_coverage(torch.tensor([1, 0, 0, 0, 8]), reference) == 0.25  # the last is none of the reference's


def test_the_rarest_class():
    assert rarest_class(torch.tensor([5, 2, 0, 3]), torch.tensor([1, 1, 0, 1])) == (1, 0.2)  # none should be the third
    assert rarest_class(torch.tensor([5, 0, 5]), torch.tensor([0.2, 0.4, 0.4])) == (1, 0)
    assert rarest_class(torch.tensor([4, 0]), torch.tensor([0, 7])) == (1, 0)


def test_conditional_accuracy():
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 0], [0, 0, 9]])
    found = conditional_accuracy(logits, torch.tensor([0, 1, 1, 2, -1]))
    assert found.accuracy == 0.5
    assert found.by_class == {0: 1.0, 1: 0.5, 2: 0.0}
    for wrong, message in (
        ([-1] * 5, "no image has a label"),
        ([0] * 4, "there are 5 images"),
        ([0, 1, 2, 3, 0], "labels go from 0 to 3"),
        ([0.0] * 5, "whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            conditional_accuracy(logits, torch.tensor(wrong))
    with pytest.raises(ValueError, match="NaN"):
        conditional_accuracy(logits * math.nan, torch.zeros(5).long())


def test_stacked_modes():
    every = torch.cartesian_prod(*[torch.arange(10)] * 3).repeat(3, 1)
    assert stacked_modes(every) == (1000, pytest.approx(0, abs=1e-12))
    assert stacked_modes(every[:500]) == (500, pytest.approx(math.log(2)))
    assert stacked_modes(torch.tensor([[1, 2, 3]] * 7)) == (1, pytest.approx(math.log(1000)))
    assert stacked_modes(torch.tensor([[0, 1], [1, 0]]), num_classes=2) == (2, pytest.approx(math.log(2)))


def test_the_kinds_of_stacked_modes_are_numbered_as_in_the_data():
    reference = torch.zeros(1000)
    reference[123] = 3
    reference[321] = 1
    same = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 2, 3], [1, 2, 3]])
    assert stacked_modes(same, reference) == (2, 0)
    assert stacked_modes(torch.tensor([[1, 2, 3], [2, 1, 3]]), reference) == (2, math.inf)


def test_the_kinds_of_independent_channels_are_a_product():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(10, generator=generator, dtype=torch.float64)
    shares /= shares.sum()
    found = torch.multinomial(shares, 3 * 26_000, True, generator=generator).view(-1, 3)
    modes, divergence = stacked_modes(found, torch.kron(torch.kron(shares, shares), shares))
    assert divergence == pytest.approx(divergence_floor(modes, 26_000), rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "reference", "message"),
    [
        (torch.tensor([1, 2, 3]), None, r"must be \(images, channels\)"),
        (torch.zeros(0, 3).long(), None, r"must be \(images, channels\)"),
        (torch.tensor([[1, 2, 10]]), None, "labels go from 1 to 10"),
        (torch.rand(4, 3), None, "whole numbers"),
        (torch.tensor([[1, 2, 3]]), torch.ones(10), "generated counts 1000 classes and reference 10"),
    ],
)
def test_mistakes_in_stacks(wrong, reference, message):
    with pytest.raises(ValueError, match=message):
        stacked_modes(wrong, reference)
