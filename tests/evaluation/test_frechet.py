"""Streaming statistics, and the Fréchet distance against closed forms and its definition."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from hfgen.evaluation import statistics
from hfgen.evaluation.frechet import frechet_distance, frechet_from_features, frechet_is_biased, trace_of_root
from hfgen.evaluation.statistics import FeatureStatistics


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(features):
    found = FeatureStatistics(features.shape[1])
    found.update(features)
    return found


def rotation(dim, seed=0):
    return torch.linalg.qr(draws(dim, dim, seed=seed))[0]


def positive(dim, seed=0, low=0.5, high=2.0):
    """A symmetric positive definite matrix."""
    basis = rotation(dim, seed)
    return (basis * torch.linspace(low, high, dim, dtype=torch.float64)) @ basis.T


def with_spectrum(values, seed=0):
    basis = rotation(len(values), seed)
    return (basis * torch.as_tensor(values, dtype=torch.float64)) @ basis.T


def mapped(features, seed=5):
    """Features `x T + shift` and their exact distance: with `S2 = T S1 T`, `(S1 S2)^1/2 = S1 T`, of whatever rank."""
    dim = features.shape[1]
    matrix, shift = positive(dim, seed), draws(dim, seed=seed + 1)
    covariance = torch.from_numpy(np.cov(features.numpy(), rowvar=False)).reshape(dim, dim)
    others = features @ matrix + shift
    traces = covariance.trace() + (matrix @ covariance @ matrix).trace() - 2 * (covariance @ matrix).trace()
    distance = (features.mean(0) - others.mean(0)).square().sum() + traces
    return others, distance.item()


@pytest.mark.parametrize("rows, dim", [(500, 8), (2000, 60), (60, 50), (30, 60), (5, 100), (2, 7), (2, 1), (50, 1)])
def test_the_distance_is_exact_whatever_the_rank(rows, dim):
    features = draws(rows, dim) * torch.linspace(0.1, 3, dim, dtype=torch.float64)
    others, expected = mapped(features)
    assert frechet_from_features(features, others) == pytest.approx(expected, rel=1e-11)
    assert frechet_from_features(others, features) == pytest.approx(expected, rel=1e-11)


def awkward():
    base = draws(300, 20)
    constant, dependent, copies = base.clone(), base.clone(), base[:4].repeat(75, 1)
    constant[:, 3:9] = 0.1
    dependent[:, 12:] = base[:, :8] @ draws(8, 8, seed=1)
    return {
        "constant": constant,
        "dependent": dependent,
        "copies": copies,
        "offset": base + 1000,
        "scales": base * torch.logspace(-6, 6, 20, dtype=torch.float64),
        "ill-conditioned": base @ with_spectrum(np.logspace(0, -6, 20)),
        "sums": base.softmax(1),
    }


@pytest.mark.parametrize("name", awkward())
def test_the_distance_is_exact_for_awkward_features(name):
    features = awkward()[name]
    others, expected = mapped(features)
    assert frechet_from_features(features, others) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("number, others, dim", [(400, 300, 12), (150, 900, 64), (3000, 2000, 40)])
def test_the_distance_follows_its_definition(number, others, dim):
    first, second = draws(number, dim) @ positive(dim, 1), draws(others, dim, seed=2) @ positive(dim, 3) + 0.1
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = (first.mean(0) - second.mean(0)).square().sum().item() + np.trace(sum(covariances) - 2 * root)
    assert frechet_from_features(first, second) == pytest.approx(expected, rel=1e-10)


def test_closed_forms():
    means, scales = draws(2, 6), draws(2, 6, seed=1).abs() + 0.1
    corners = torch.cat([torch.eye(6), -torch.eye(6)]).double() * (11 / 2) ** 0.5  # mean 0, covariance I
    features = [corners * scale + mean for mean, scale in zip(means, scales, strict=True)]
    expected = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet_from_features(*features) == pytest.approx(expected.item(), rel=1e-12)
    points = torch.zeros(3, 4), torch.ones(5, 4)  # two points: the square of their distance
    assert frechet_from_features(*points) == 4
    assert frechet_from_features(draws(3, 4), points[1]) == pytest.approx(
        (draws(3, 4).mean(0) - 1).square().sum().item() + draws(3, 4).var(0).sum().item()
    )


def test_invariances():
    first, second = draws(90, 30), draws(70, 30, seed=1) * 1.5 + 0.3
    expected = frechet_from_features(first, second)
    turn = rotation(30)
    assert frechet_from_features(second, first) == expected
    assert frechet_from_features(first @ turn + 7, second @ turn + 7) == pytest.approx(expected, rel=1e-11)
    assert frechet_from_features(first * 3, second * 3) == pytest.approx(9 * expected, rel=1e-12)
    for seed in range(5):  # singular ones are symmetric to the last bit too
        few, more = draws(10, 30, seed=seed), draws(20, 30, seed=seed + 5)
        assert frechet_from_features(few, more) == frechet_from_features(more, few)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    assert frechet_from_features(first[order], second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows, dim", [(500, 20), (20, 50), (2, 3)])
def test_equal_sets_have_no_distance(rows, dim):
    features = draws(rows, dim)
    assert 0 <= frechet_from_features(features, features.flip(0)) < 1e-12 * dim
    assert 0 <= frechet_from_features(features.float(), features.float()) < 1e-12 * dim


@pytest.mark.parametrize("kind", ["apart", "overlapping", "one inside the other"])
def test_roots_of_singular_products(kind):
    """Eigenvalues that rounding alone keeps from 0 have a root of 1e-8: many of those would be seen here."""
    dim, turn = 120, rotation(120)
    values = torch.linspace(1, 2, dim, dtype=torch.float64)
    masks = {
        "apart": (torch.arange(dim) < 60, torch.arange(dim) >= 60),
        "overlapping": (torch.arange(dim) < 80, torch.arange(dim) >= 40),
        "one inside the other": (torch.arange(dim) < 120, torch.arange(dim) >= 90),
    }[kind]
    spectra = [values * mask for mask in masks]
    first, second = ((turn * spectrum) @ turn.T for spectrum in spectra)
    expected = (spectra[0] * spectra[1]).sqrt().sum().item()
    for one, other in ((first, second), (second, first)):
        assert trace_of_root(one, other).item() == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_roots_of_products_that_are_singular_by_one():
    """A single 0 may come out above 0, where a Cholesky factorisation does not fail."""
    for seed in range(40):
        turn = rotation(12, seed)
        spectra = torch.ones(2, 12, dtype=torch.float64)
        spectra[0, 3] = spectra[1, 8] = 0
        first, second = ((turn * spectrum) @ turn.T for spectrum in spectra)
        assert trace_of_root(first, second).item() == pytest.approx(10, rel=1e-12)
        assert trace_of_root(first, first).item() == pytest.approx(11, rel=1e-12)


def test_roots_of_ill_conditioned_products():
    first = with_spectrum(np.logspace(0, -12, 100))
    matrix = positive(100, 1)
    second = matrix @ first @ matrix
    found = trace_of_root(first, (second + second.T) / 2)
    assert found.item() == pytest.approx((first * matrix).sum().item(), rel=1e-10)


def test_float32_features_at_a_large_offset():
    first, second = (draws(2000, 16) + 1000).float(), (draws(2000, 16, seed=1) * 1.1 + 1000.2).float()
    exact = frechet_from_features(first.double(), second.double())
    assert frechet_from_features(first, second) == exact
    assert frechet_from_features(first - 1000, second - 1000) == pytest.approx(exact, rel=1e-9)
    assert frechet_from_features(first.numpy(), second.numpy()) == exact


@pytest.mark.parametrize("rows", [2, 1023, 1024, 1025, 3000])
def test_statistics_are_those_of_numpy_in_any_batches(rows):
    features = draws(rows, 9) @ draws(9, 9, seed=1) + draws(9, seed=2) * 100
    whole = of(features)
    assert whole.count == rows and whole.dim == 9
    np.testing.assert_allclose(whole.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-10, atol=1e-11)
    for size in (7, 1000):
        parts = FeatureStatistics(9)
        for part in features.split(size):
            parts.update(part)
        assert all(map(torch.equal, parts.state().values(), whole.state().values()))


def test_statistics_keep_their_digits():
    """At an offset of a million, sums of squares keep 4 digits of the variance in float64."""
    exact = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double().repeat(3000, 1) / 4
    found = of(exact + 2.0**20)
    torch.testing.assert_close(found.covariance, exact.T @ exact / 5999, rtol=1e-14, atol=0)
    constant = of(torch.full((3000, 3), 0.1)).covariance
    assert torch.equal(constant, torch.zeros(3, 3, dtype=torch.float64))


def test_merging_is_exact(monkeypatch):
    features = torch.cat([draws(100, 5) + 10, draws(30, 5, seed=1) - 10, draws(1, 5, seed=2)])
    whole = of(features)
    for sizes in ((131,), (100, 31), (1, 130), (50, 50, 30, 1)):
        merged = FeatureStatistics(5)
        for part in features.split(sizes):
            merged.merge(of(part))
        merged.merge(FeatureStatistics(5))  # a process without an image
        assert merged.count == 131
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
        assert torch.equal(merged.covariance, merged.covariance.T)
    other = of(features)
    whole.merge(other)
    assert other.count == 131 and whole.count == 262
    monkeypatch.setattr(statistics, "BUFFER_ROWS", 8)
    torch.testing.assert_close(of(features).covariance, other.covariance, rtol=1e-12, atol=1e-12)


def test_reading_changes_nothing():
    features = draws(40, 4)
    found = FeatureStatistics(4)
    found.update(features[:25])
    state, mean, covariance = found.state(), found.mean, found.covariance
    kept = [value.clone() for value in (*state.values(), mean, covariance)]
    found.update(features[25:])
    assert all(map(torch.equal, kept, (*state.values(), mean, covariance)))
    found.mean.zero_()
    found.covariance.zero_()
    torch.testing.assert_close(found.mean, features.mean(0))
    torch.testing.assert_close(found.covariance, features.T.cov())


def test_states():
    found = of(draws(50, 4) + 3)
    again = FeatureStatistics.from_state(found.state())
    again.update(draws(10, 4))
    assert (again.count, found.count) == (60, 50)
    good = of(draws(50, 4)).state()
    with pytest.raises(ValueError, match="state has count, mean, but must have count, mean, scatter"):
        FeatureStatistics.from_state({name: good[name] for name in ("count", "mean")})
    with pytest.raises(
        ValueError, match=r"have shapes \(\), \(4,\), \(4, 3\), but must have \(\), \(D,\) and \(D, D\)"
    ):
        FeatureStatistics.from_state(good | {"scatter": good["scatter"][:, :3]})


def test_mistakes():
    found = of(draws(10, 4))
    broken = draws(5, 4)
    broken[1, 2], broken[3, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="features has NaN or infinite values in 2 of 5 rows"):
        found.update(broken)
    with pytest.raises(ValueError, match="features has 3 columns, but these statistics are of 4: use one extractor"):
        found.update(draws(5, 3))
    with pytest.raises(ValueError, match="features has 3 columns, but these statistics are of 4"):
        found.merge(FeatureStatistics(3))
    with pytest.raises(ValueError, match=r"features has shape \(5, 4, 1\), but must be \(N, D\)"):
        found.update(draws(5, 4, 1))
    with pytest.raises(ValueError, match=r"features is of torch.uint8, but must be floating point"):
        found.update(torch.zeros(5, 4, dtype=torch.uint8))
    assert found.count == 10
    with pytest.raises(ValueError, match="these statistics are of 1 images, but this needs at least 2"):
        frechet_distance(of(draws(1, 4)), found)
    with pytest.raises(ValueError, match="generated has 1 rows, but this metric needs at least 2"):
        frechet_from_features(draws(1, 4), draws(5, 4))
    with pytest.raises(ValueError, match="real has NaN or infinite values in 2 of 5 rows"):
        frechet_from_features(draws(5, 4), broken)
    with pytest.raises(ValueError, match="generated has 4 features and real has 3: use one extractor for both"):
        frechet_from_features(draws(5, 4), draws(5, 3))
    empty = FeatureStatistics(4)
    empty.update(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="these statistics are of 0 images, but this needs at least 1"):
        empty.mean  # noqa: B018


def test_the_bias_is_said():
    said = frechet_is_biased(1000, 50_000, 2048)
    assert "1,000 generated and 50,000 real images in 2,048 dimensions" in said
    assert "more than 4,096 images" in said
    assert frechet_is_biased(4096, 50_000, 2048) and frechet_is_biased(50_000, 4096, 2048)
    assert frechet_is_biased(4097, 50_000, 2048) is None
    # What is said in the docstring, at a smaller size: one distribution, 2 images per dimension.
    scales = torch.linspace(1, 0.1, 128, dtype=torch.float64)
    found = frechet_from_features(draws(256, 128) * scales, draws(12_800, 128, seed=1) * scales)
    assert 0.05 < found / scales.square().sum().item() < 0.2
