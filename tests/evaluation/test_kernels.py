"""Kernel distances against their definitions, summed pair by pair."""

import itertools
import math

import numpy as np
import pytest
import torch

from hfgen.evaluation import kernels
from hfgen.evaluation.kernels import cmmd, kernel_distance


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polynomial(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def naive_distance(generated, real, kernel=polynomial):
    """The unbiased estimate in the precision of numpy arrays (equation 4 of the paper on KID)."""
    m, n = len(generated), len(real)
    within, others, between = kernel(generated, generated), kernel(real, real), kernel(generated, real)
    within, others = within.sum() - np.trace(within), others.sum() - np.trace(others)
    return within / (m * (m - 1)) + others / (n * (n - 1)) - 2 * between.sum() / (m * n)


def naive_standard_error(generated, real):
    """Jackknife of two samples: every image is left out once."""
    total = 0
    for kept, other, swap in ((generated, real, False), (real, generated, True)):
        values = []
        for left_out in range(len(kept)):
            rest = np.delete(kept, left_out, axis=0)
            values.append(naive_distance(other, rest) if swap else naive_distance(rest, other))
        total += (len(kept) - 1) * np.var(values)
    return math.sqrt(total)


def naive_cmmd(generated, real):
    rows = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (generated, real)]

    def mean(first, second):
        values = [math.exp(-((x - y) ** 2).sum() / 200) for x, y in itertools.product(first, second)]
        return math.fsum(values) / len(values)

    return 1000 * (mean(rows[0], rows[0]) + mean(rows[1], rows[1]) - 2 * mean(*rows))


def pairs():
    first, second = draws(40, 12), draws(31, 12, seed=1) * 1.2 + 0.1
    constant = [features.clone() for features in (first, second)]
    for features in constant:
        features[:, 2:5] = 0.3
    return {
        "ordinary": (first, second),
        "tiny": (first[:3], second[:4]),
        "more dimensions than rows": (draws(9, 50), draws(7, 50, seed=1)),
        "one dimension": (first[:, :1], second[:, :1]),
        "copies": (first[:2].repeat(10, 1), second[:3].repeat(8, 1)),
        "constant": tuple(constant),
        "positive": (first.relu(), second.relu()),
    }


@pytest.mark.parametrize("name", pairs())
def test_all_pairs_of_images(name, monkeypatch):
    generated, real = pairs()[name]
    expected = naive_distance(generated.numpy(), real.numpy())
    error = naive_standard_error(generated.numpy(), real.numpy())
    for block in (1024, 7, 1):
        monkeypatch.setattr(kernels, "BLOCK", block)
        found = kernel_distance(generated, real)
        assert found.value == pytest.approx(expected, rel=1e-11, abs=1e-12)
        assert found.standard_error == pytest.approx(error, rel=1e-9)
        assert found.subset_std is None
    found = kernel_distance(generated.float(), real.float())
    assert found.value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_float32_is_enough_for_the_features_of_networks():
    generated, real = draws(600, 256).relu().float(), (draws(500, 256, seed=1) * 1.03).relu().float()
    exact = naive_distance(generated.double().numpy(), real.double().numpy())
    assert abs(exact) < 0.05
    assert kernel_distance(generated, real).value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("offset", [10, 1000])
def test_offsets_cost_no_digits(offset):
    """At 1000, products are a million, cubes 10^18, and what is looked for is their last three of 16 digits."""
    generated, real = draws(60, 32) + offset, draws(50, 32, seed=1) * 1.3 + offset + 0.1
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        first, second = generated.to(dtype), real.to(dtype)
        if np.finfo(np.longdouble).eps < 1e-18:
            exact = naive_distance(*(features.numpy().astype(np.longdouble) for features in (first, second)))
            assert kernel_distance(first, second).value == pytest.approx(float(exact), rel=tolerance)
        found = kernel_distance(first, second).standard_error
        assert found == pytest.approx(naive_standard_error(first.double().numpy(), second.double().numpy()), rel=1e-4)


def test_equal_sets_are_at_a_negative_distance():
    """Pairs of an image with itself are left out within the sets, but not between them."""
    features = draws(30, 8)
    values = polynomial(features, features)
    outside = (values.sum() - values.trace()) / (30 * 29)
    found = kernel_distance(features, features)
    assert found.value == pytest.approx((2 * outside - 2 * values.mean()).item())
    assert found.value < 0
    assert cmmd(features, features) == pytest.approx(0, abs=1e-12)


def test_the_distance_has_no_bias_and_its_error_is_known():
    """Over fresh sets: the mean is the distance of the distributions, the scatter what each set says of itself."""
    shift, dim = 0.5, 4
    found = [
        kernel_distance(draws(60, dim, seed=seed) + shift, draws(80, dim, seed=seed + 500)) for seed in range(400)
    ]
    values = np.array([one.value for one in found])
    # Moments of x . y / D for standard normal noise around means of length a^(1/2) and 0. For two x, the product has
    # the mean a, the variance 2 a + D and the third central moment 6 a.
    a = shift**2 * dim
    first = {"xx": a / dim, "yy": 0, "xy": 0}
    second = {"xx": (a * a + 2 * a + dim) / dim**2, "yy": 1 / dim, "xy": (a + dim) / dim**2}
    third = {"xx": (a**3 + 3 * a * (2 * a + dim) + 6 * a) / dim**3, "yy": 0, "xy": 0}
    mean = {key: third[key] + 3 * second[key] + 3 * first[key] + 1 for key in first}
    truth = mean["xx"] + mean["yy"] - 2 * mean["xy"]
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 20)
    errors = np.array([one.standard_error for one in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)


def test_subsets_are_those_of_the_literature():
    generated, real = draws(50, 6), draws(40, 6, seed=1) + 0.2
    random, values = np.random.RandomState(2020), []
    for _ in range(20):
        first = generated.numpy()[random.choice(50, 25, replace=False)]
        second = real.numpy()[random.choice(40, 25, replace=False)]
        values.append(naive_distance(first, second))
    found = kernel_distance(generated, real, num_subsets=20, subset_size=25)
    assert found.value == pytest.approx(np.mean(values), rel=1e-12)
    assert found.subset_std == pytest.approx(np.std(values), rel=1e-12)
    assert found.standard_error is None
    assert found == kernel_distance(generated, real, num_subsets=20, subset_size=25)
    assert found != kernel_distance(generated, real, num_subsets=20, subset_size=25, seed=1)
    everything = kernel_distance(generated[:40], real, num_subsets=3, subset_size=40)
    assert everything.value == pytest.approx(kernel_distance(generated[:40], real).value, rel=1e-11)
    assert everything.subset_std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_knows_no_order():
    generated, real = draws(50, 6), draws(40, 6, seed=1) + 0.2
    found = kernel_distance(generated, real)
    turned = kernel_distance(real, generated)
    assert turned.value == pytest.approx(found.value, rel=1e-11)
    assert turned.standard_error == pytest.approx(found.standard_error, rel=1e-11)
    shuffled = generated[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert kernel_distance(shuffled, real).value == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in pairs() if name != "one dimension"])
def test_cmmd_follows_its_definition(name, monkeypatch):
    generated, real = pairs()[name]
    generated, real = generated + 0.05, real + 0.05  # no row of zeros
    expected = naive_cmmd(generated.numpy(), real.numpy())
    for block in (1024, 7, 1):
        monkeypatch.setattr(kernels, "BLOCK", block)
        assert cmmd(generated, real) == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert cmmd(real, generated) == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert cmmd(generated * 5, real / 3) == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert cmmd(generated.float(), real.float()) == pytest.approx(expected, rel=1e-5)


def test_cmmd_keeps_the_digits_of_small_distances():
    """For directions at a small angle t, all in one plane, the distance is 2 (1 - e^(-(1 - cos t) / 100)) 1000."""
    for angle in (1.0, 1e-3, 1e-5):
        generated = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2, 1)
        real = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64).repeat(3, 1)
        expected = -2000 * math.expm1(-2 * math.sin(angle / 2) ** 2 / 100)
        assert cmmd(generated, real) == pytest.approx(expected, rel=1e-4)


def test_cmmd_is_almost_a_distance_of_means():
    generated, real = draws(80, 20) + 0.5, draws(60, 20, seed=1)
    units = [features / features.norm(dim=1, keepdim=True) for features in (generated, real)]
    means = (units[0].mean(0) - units[1].mean(0)).square().sum().item()
    assert cmmd(generated, real) == pytest.approx(10 * means, rel=0.02)
    # The bias is at most 10 (1 / N + 1 / M) on average, and not much less for vectors in all directions.
    biased = [cmmd(draws(30, 50, seed=seed), draws(20, 50, seed=seed + 100)) for seed in range(20)]
    assert 0.9 < np.mean(biased) / (10 / 30 + 10 / 20) < 1


def test_half_precision_and_numpy():
    generated, real = draws(20, 6).half(), draws(20, 6, seed=1).bfloat16()
    found = kernel_distance(generated, real)
    assert found == kernel_distance(generated.float(), real.float())
    assert found == kernel_distance(generated.float().numpy(), real.float().numpy())
    assert cmmd(generated, real) == cmmd(generated.float(), real.float())
    assert kernel_distance(generated.float(), real.double()).value == pytest.approx(found.value, rel=1e-5)


def test_mistakes():
    good, broken = draws(10, 4), draws(10, 4)
    broken[3, 1] = math.nan
    for metric in (kernel_distance, cmmd):
        with pytest.raises(ValueError, match="real has NaN or infinite values in 1 of 10 rows"):
            metric(good, broken)
        with pytest.raises(ValueError, match="generated has 4 features and real has 3: use one extractor for both"):
            metric(good, good[:, :3])
        with pytest.raises(ValueError, match=r"generated has shape \(4,\), but must be \(N, D\)"):
            metric(good[0], good)
    with pytest.raises(ValueError, match="generated has 2 rows, but this metric needs at least 3: use more images"):
        kernel_distance(good[:2], good)
    with pytest.raises(ValueError, match="real has 1 rows, but this metric needs at least 2: use more images"):
        cmmd(good, good[:1])
    with pytest.raises(
        ValueError, match="subset_size is 1000, but must be from 2 to .* which is 10 generated and 5 real"
    ):
        kernel_distance(good, good[:5], num_subsets=100)
    with pytest.raises(ValueError, match="subset_size is 1, but must be from 2"):
        kernel_distance(good, good, num_subsets=100, subset_size=1)
    with pytest.raises(ValueError, match="num_subsets is 0, but must be at least 1, or None for all images"):
        kernel_distance(good, good, num_subsets=0, subset_size=5)
    zeros = good.clone()
    zeros[2:4] = 0
    with pytest.raises(ValueError, match="real has 2 rows of zeros, but CMMD compares directions"):
        cmmd(good, zeros)
