"""Nearest neighbours: every metric equals its definition in float64, also where features are hard on float32."""

import subprocess
import sys

import pytest
import torch

from hfgen.evaluation import neighbours
from hfgen.evaluation.neighbours import (
    close_pairs,
    memorisation,
    nearest_neighbours,
    precision_recall_density_coverage,
    rare_distance,
)


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape, seed=0):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def all_distances(x, y):
    """Without products, in float64, so that equal distances have equal bits."""
    return torch.stack([(row - y.double()).square().sum(1).sqrt() for row in x.double()])


def naive(generated, real, k_precision=3, k_density=5):
    """The four definitions, image by image."""

    def radii(features, k):
        rows = all_distances(features, features).tolist()
        return [sorted(row[:i] + row[i + 1 :])[k - 1] for i, row in enumerate(rows)]

    rows = all_distances(generated, real).tolist()
    columns = list(zip(*rows, strict=True))
    closed, real_closed, real_open = radii(generated, k_precision), radii(real, k_precision), radii(real, k_density)
    return {
        "precision": sum(any(d <= r for d, r in zip(row, real_closed, strict=True)) for row in rows) / len(rows),
        "recall": sum(any(d <= r for d, r in zip(col, closed, strict=True)) for col in columns) / len(columns),
        "density": sum(d < r for row in rows for d, r in zip(row, real_open, strict=True)) / (k_density * len(rows)),
        "coverage": sum(min(col) < r for col, r in zip(columns, real_open, strict=True)) / len(columns),
    }


def repeated(dimensions):
    """Copies within each set, more than k of some, and of real images among the generated ones."""
    real = draws(60, dimensions)
    real = torch.cat([real, real[:20], real[:10], real[:2].repeat(5, 1)])
    return torch.cat([real[:20].repeat(2, 1), draws(30, dimensions, seed=1), draws(1, dimensions).repeat(9, 1)]), real


CASES = {
    "few": (draws(6, 3), draws(6, 3, seed=1)),
    "one feature": (draws(90, 1), draws(80, 1, seed=1)),
    "unequal numbers": (0.9 * draws(50, 8), draws(140, 8, seed=1)),
    "fewer images than features": (draws(40, 600), draws(30, 600, seed=1)),
    "rank-deficient": (draws(60, 4) @ draws(4, 400, seed=2), draws(70, 4, seed=1) @ draws(4, 400, seed=2)),
    "far from zero": (draws(80, 64) + 1000, draws(90, 64, seed=1) + 1000.2),
    "far from zero, many features": (draws(80, 300) + 1000, draws(90, 300, seed=1) + 1000.1),
    "collapsed": (draws(1, 32) + 0.05 * draws(70, 32, seed=2), draws(80, 32, seed=1)),
    "collapsed, many features": (draws(1, 320) + 0.05 * draws(70, 320, seed=2), draws(80, 320, seed=1)),
    "one image": (draws(1, 300).repeat(20, 1), draws(40, 300, seed=1)),
    "repeated": repeated(40),
    "repeated, many features": repeated(400),
    "identical": (draws(80, 20), draws(80, 20)),
    "identical, many features": (draws(80, 300), draws(80, 300)),
    "constant features": (torch.cat([draws(50, 5), torch.full((50, 300), 7.0)], 1),
                          torch.cat([draws(60, 5, seed=1), torch.full((60, 300), 7.0)], 1)),
    "integers": (integers(70, 6), integers(80, 6, seed=1)),
    "all the same": (torch.ones(20, 8), torch.ones(20, 8)),
}  # fmt: skip


TIES = {case for case in CASES if case.startswith(("repeated", "identical", "integers"))}


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize("case", CASES)
def test_precision_recall_density_coverage(case, block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    generated, real = CASES[case]
    expected = pytest.approx(naive(generated, real), rel=1e-12)
    assert precision_recall_density_coverage(generated, real) == expected
    assert precision_recall_density_coverage(generated.double(), real) == expected
    found = precision_recall_density_coverage(generated, real, k_precision=5, k_density=2)
    assert found == pytest.approx(naive(generated, real, 5, 2), rel=1e-12)
    if case not in TIES:  # about which float32 decides as it likes
        monkeypatch.setattr(neighbours, "DOUBLE", 0)
        assert precision_recall_density_coverage(generated, real) == expected


def test_what_the_four_tell_apart():
    """Two groups of images, of which a generator knows both, one, or one image."""
    groups = torch.cat([draws(300, 16), draws(300, 16, seed=1) + 100])
    good = torch.cat([draws(200, 16, seed=2), draws(200, 16, seed=3) + 100])
    both, half, one = (
        precision_recall_density_coverage(x, groups) for x in (good, good[:200], good[:1].repeat(20, 1))
    )
    assert both["recall"] > 0.6 and both["coverage"] > 0.8 and both["density"] == pytest.approx(1, abs=0.15)
    assert half["recall"] == pytest.approx(both["recall"] / 2, abs=0.05)
    assert half["coverage"] == pytest.approx(both["coverage"] / 2, abs=0.05)
    assert half["precision"] == pytest.approx(both["precision"], abs=0.05)
    assert one["recall"] == 0 and one["coverage"] < 0.05
    noise = precision_recall_density_coverage(100 * draws(300, 16, seed=4), groups)
    assert noise["precision"] < 0.02 and noise["density"] < 0.02 and noise["coverage"] < 0.02


def test_where_the_axes_are_does_not_matter():
    generated, real = 0.9 * draws(80, 20), draws(90, 20, seed=1)
    expected = precision_recall_density_coverage(generated, real)
    rotation, _ = torch.linalg.qr(draws(20, 20, seed=2).double())
    for change in (lambda x: x.double() @ rotation, lambda x: 3 * x.double() - 50, lambda x: x.flip(0)):
        assert precision_recall_density_coverage(change(generated), change(real)) == pytest.approx(expected)
    swapped = precision_recall_density_coverage(real, generated)
    assert (swapped["precision"], swapped["recall"]) == (expected["recall"], expected["precision"])


def test_other_kinds_of_numbers(monkeypatch):
    monkeypatch.setattr(neighbours, "DOUBLE", 0)
    generated, real = draws(40, 300).bfloat16(), draws(50, 300, seed=1).half()
    expected = precision_recall_density_coverage(generated.float(), real.float())
    assert precision_recall_density_coverage(generated, real) == expected
    assert precision_recall_density_coverage(generated.float().numpy(), real.numpy()) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precision_recall_density_coverage(generated, real) == expected
    assert precision_recall_density_coverage(generated.float().requires_grad_(), real) == expected


MEMORY = """
import resource, torch
from hfgen.evaluation.neighbours import nearest_neighbours, precision_recall_density_coverage
torch.set_num_threads(1)
small = torch.randn(1100, 16)
precision_recall_density_coverage(small, small + 1), nearest_neighbours(small, small + 1)
x, y = torch.randn(2, 7000, 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
precision_recall_density_coverage(x, y), nearest_neighbours(x, y)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in Linux's units")
def test_no_matrix_of_all_distances():
    """It would take 374 MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


SEARCHES = {
    **CASES,
    # More references lie within float32's rounding of the nearest one than are looked at a second time.
    "near-duplicates": (draws(9, 300), draws(9, 300).repeat(40, 1) + 1e-4 * draws(360, 300, seed=1)),
    "close together": (draws(1, 300) + 1e-6 * draws(30, 300, seed=1), 1e-6 * draws(70, 300) + draws(1, 300)),
}


@pytest.mark.parametrize(("block", "double"), [(16, 0), (1024, 0), (16, 2**23)])
@pytest.mark.parametrize("case", SEARCHES)
def test_nearest_neighbours(case, block, double, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(neighbours, "DOUBLE", double)
    queries, references = SEARCHES[case]
    expected = all_distances(queries, references)
    for k in (1, 3, len(references)):
        distances, indices = nearest_neighbours(queries, references, k)
        assert distances.shape == indices.shape == (len(queries), k)
        assert distances.dtype == torch.float64 and indices.dtype == torch.int64
        torch.testing.assert_close(distances, expected.sort(1).values[:, :k], rtol=1e-12, atol=0)
        torch.testing.assert_close(distances, expected.gather(1, indices), rtol=1e-12, atol=0)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_an_image_is_its_own_neighbour(monkeypatch):
    monkeypatch.setattr(neighbours, "DOUBLE", 0)
    features = torch.cat([draws(50, 400), draws(7, 400)]) + 1000
    distances, indices = nearest_neighbours(features, features, 2)
    assert (distances[:, 0] == 0).all() and (distances[:7, 1] == 0).all() and (distances[7:50, 1] > 1).all()
    assert torch.equal(indices[7:50, 0], torch.arange(7, 50))


@pytest.mark.parametrize("dimensions", [5, 300])
def test_close_pairs(dimensions, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    monkeypatch.setattr(neighbours, "DOUBLE", 0)
    features = torch.cat([draws(40, dimensions), draws(20, dimensions), draws(30, dimensions) + 1e-3]) + 100
    distances = all_distances(features, features)
    for threshold in (0.0, 0.02, distances.median().item(), distances[3, 4].item()):
        i, j = close_pairs(features, threshold)
        expected = (distances <= threshold).triu(1).nonzero().tolist()
        assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [tuple(pair) for pair in expected]


def test_new_images_are_no_copies():
    train, held_out, generated = (draws(1500, 12, seed=seed) for seed in range(3))
    found = memorisation(generated, train, held_out)
    assert found.near_duplicates == pytest.approx(0.01, abs=0.006)
    assert found.near_duplicates_new == pytest.approx(0.01, abs=0.006)
    held = all_distances(held_out, train).min(1).values
    near = [held[a::2] <= rare_distance(held[1 - a :: 2], 0.01) for a in (0, 1)]
    assert found.near_duplicates_new == torch.cat(near).double().mean()  # measured, not by definition
    assert found.authpct == pytest.approx(found.authpct_new, abs=3)
    assert 40 < found.authpct < 70
    distances = all_distances(generated, train)
    torch.testing.assert_close(found.distances, distances.min(1).values)
    assert torch.equal(found.indices, distances.argmin(1))
    pairs = found.nearest_pairs(5)
    assert [found.distances[row].item() for row, _ in pairs] == sorted(found.distances.tolist())[:5]
    assert all(found.indices[row] == column for row, column in pairs)
    own = all_distances(train, train).fill_diagonal_(torch.inf).min(1).values
    authentic = [d > own[i] for d, i in zip(found.distances, found.indices, strict=True)]
    assert found.authpct == pytest.approx(100 * sum(authentic).item() / 1500)


def test_copies_are_found(monkeypatch):
    monkeypatch.setattr(neighbours, "DOUBLE", 0)
    train, held_out = draws(600, 300), draws(200, 300, seed=1)
    copies = torch.cat([train[:50], train[50:100] + 0.1 * draws(50, 300, seed=2)])
    found = memorisation(copies, train, held_out)
    assert found.near_duplicates == 1 and found.authpct == 0
    assert found.indices.tolist() == list(range(100))
    assert found.nearest_pairs(50) == [(i, i) for i in range(50)]
    mixed = memorisation(torch.cat([copies, draws(300, 300, seed=3)]), train, held_out)
    assert mixed.near_duplicates == pytest.approx(0.25, abs=0.02)
    assert mixed.authpct == pytest.approx(0.75 * mixed.authpct_new, abs=5)


def test_copies_are_found_where_the_data_repeats_itself():
    train, held_out = draws(600, 10), draws(200, 10, seed=1)
    held_out = torch.cat([held_out, train[:10]])
    assert memorisation(train[100:200], train, held_out).near_duplicates == 1
    new = memorisation(draws(400, 10, seed=2), train, held_out)
    assert new.threshold == 0 and new.near_duplicates == 0
    assert new.near_duplicates_new == pytest.approx(10 / 210)


def test_few_images_of_which_none_was_held_out():
    """Each training image stands for a new one: the result is that of images that were held out."""
    train, generated = draws(80, 12), draws(2000, 12, seed=1)
    alone = memorisation(generated, train)
    assert alone.quantile == pytest.approx(1 / 41)
    others = all_distances(train, train).fill_diagonal_(torch.inf)
    nearest, whose = others.min(1)
    assert alone.threshold == pytest.approx(rare_distance(nearest, 1 / 41), rel=1e-6)
    authentic = []
    for row in range(80):
        left = others.clone()
        left[:, row] = torch.inf  # without the image itself
        authentic.append(nearest[row] > left[whose[row]].min())
    assert alone.authpct_new == pytest.approx(100 * sum(authentic).item() / 80)
    held = memorisation(generated, train, draws(4000, 12, seed=2), quantile=1 / 41)
    assert alone.authpct_new == pytest.approx(held.authpct_new, abs=15)
    assert alone.near_duplicates < 0.1 and alone.near_duplicates_new == pytest.approx(1 / 41, abs=0.03)
    assert memorisation(train[:40] + 0.01 * draws(40, 12, seed=3), train).near_duplicates == 1


def test_images_that_the_data_has_many_times():
    """That an image is there twice, or five times, makes none of them its own neighbour."""
    train = draws(30, 4).repeat(5, 1)
    found = memorisation(draws(100, 4, seed=1), train)
    assert found.threshold == 0 and found.near_duplicates == 0 and found.authpct_new == 0
    distances, indices, own = neighbours._left_out_alone(train)
    assert (distances == 0).all() and (own == 0).all() and (indices != torch.arange(150)).all()


def test_many_images_are_compared_with_the_others_in_part(monkeypatch):
    train = draws(500, 4)
    whole = neighbours._left_out_alone(train)
    monkeypatch.setattr(neighbours, "ALONE", 50)
    rows = torch.linspace(0, 499, 50).round().long()
    for some, each in zip(neighbours._left_out_alone(train), whole, strict=True):
        assert torch.equal(some, each[rows])


def test_authenticity_by_hand():
    train = torch.tensor([[0.0], [1.0], [5.0], [5.0]])  # their nearest others are at 1, 1, 0 and 0
    generated = torch.tensor([[-0.9], [-1.1], [5.1], [5.0], [2.0]])
    found = memorisation(generated, train, draws(20, 1), quantile=0.25)
    assert found.authpct == pytest.approx(100 * 2 / 5)  # -1.1 and 5.1; 2.0 is as far from 1 as 1 is from 0
    assert found.distances.tolist() == pytest.approx([0.9, 1.1, 0.1, 0, 1], abs=1e-6)


@pytest.mark.parametrize(("number", "quantile"), [(99, 0.01), (150, 0.01), (30, 0.2)])
def test_a_rare_distance_is_as_rare_as_it_says(number, quantile):
    """Of a uniform distribution, whose quantiles are probabilities: right on average, for few images too."""
    samples = torch.rand(4000, number, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = sum(rare_distance(sample, quantile) for sample in samples) / len(samples)
    assert mean == pytest.approx(quantile, rel=0.06)


def test_mistakes():
    good = draws(120, 4)
    for function in (precision_recall_density_coverage, nearest_neighbours, lambda x, y: memorisation(x, y, good)):
        with pytest.raises(ValueError, match=r"has \d features per image and \w+ has \d: take both from the same"):
            function(good, draws(120, 5))
        for wrong in (good[0], good.long(), torch.where(good > 2, torch.nan, good), good * torch.inf):
            with pytest.raises(ValueError):
                function(wrong, good)
            with pytest.raises(ValueError):
                function(good, wrong)
    with pytest.raises(ValueError, match="real has 5 rows, but this metric needs at least 6"):
        precision_recall_density_coverage(good, good[:5])
    with pytest.raises(ValueError, match="generated has 3 rows, but this metric needs at least 4"):
        precision_recall_density_coverage(good[:3], good)
    precision_recall_density_coverage(good[:4], good[:6])
    with pytest.raises(ValueError, match="k_precision is 0 and k_density is 5, but both must be at least 1"):
        precision_recall_density_coverage(good, good, k_precision=0)
    for k in (0, 121):
        with pytest.raises(ValueError, match=f"k is {k}, but must be from 1 to 120"):
            nearest_neighbours(good, good, k)
    with pytest.raises(ValueError, match="held_out has 19 rows, but this metric needs at least 20"):
        memorisation(good, good, good[:19])
    with pytest.raises(ValueError, match="train has 19 rows, but this metric needs at least 20"):
        memorisation(good, good[:19])
    with pytest.raises(ValueError, match="quantile is 1.5, but must be between 0 and 1"):
        memorisation(good, good, good, quantile=1.5)
