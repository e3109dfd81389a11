"""Diversity: closed forms, definitions written out, and data whose diversity is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from hfgen.evaluation import diversity, neighbours
from hfgen.evaluation.diversity import BirthdaySupport, birthday_support, ndb, vendi_score


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotated(features, seed=5):
    rotation, _ = torch.linalg.qr(draws(features.shape[1], features.shape[1], seed=seed).double())
    return features.double() @ rotation


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize("shape", [(1, 7), (2, 1), (30, 100), (100, 30), (64, 64), (300, 5)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_vendi_score(shape, offset, block, monkeypatch):
    """The exponential of the entropy of the eigenvalues of the matrix of cosines."""
    monkeypatch.setattr(diversity, "BLOCK", block)
    features = draws(*shape) + offset
    rows = features.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    eigenvalues = eigenvalues[eigenvalues > 0]
    expected = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
    assert vendi_score(features) == pytest.approx(expected, rel=1e-9)
    assert vendi_score(features.numpy()) == vendi_score(features)
    assert vendi_score(3 * features) == pytest.approx(expected, rel=1e-6)
    assert vendi_score(rotated(features)) == pytest.approx(expected, rel=1e-9)


def test_vendi_score_of_known_diversity():
    assert vendi_score(torch.eye(20)) == pytest.approx(20)
    assert vendi_score(torch.eye(20).repeat(5, 1)) == pytest.approx(20)
    assert vendi_score(draws(1, 20).repeat(50, 1)) == pytest.approx(1)
    shares = torch.tensor([0.5, 0.3, 0.2])
    images = torch.eye(8)[:3].repeat_interleave(torch.tensor([50, 30, 20]), 0)
    assert vendi_score(rotated(images)) == pytest.approx((-(shares * shares.log()).sum()).exp().item())
    lengths = 10 ** draws(100, 1, seed=1)  # cosines do not know them
    assert vendi_score(rotated(images) * lengths) == pytest.approx(vendi_score(images))
    # Two images at an angle: the eigenvalues are (1 + cos) / 2 and (1 - cos) / 2.
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert vendi_score(pair) == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), rel=1e-6)


def groups(*counts, dimensions=6, seed=0):
    """Images in well separated groups."""
    centres = 100 * torch.eye(dimensions)[: len(counts)]
    return centres.repeat_interleave(torch.tensor(counts), 0) + draws(sum(counts), dimensions, seed=seed)


@pytest.mark.parametrize("offset", [0, 3e5])
@pytest.mark.parametrize("double", [0, 2**23])
def test_ndb_of_known_shares(double, offset, monkeypatch):
    """Bins are the groups, so that the test and the divergence can be written out."""
    monkeypatch.setattr(neighbours, "DOUBLE", double)
    real_counts, counts = np.array([400, 300, 200, 100]), np.array([210, 145, 130, 15])
    found = ndb(groups(*counts, seed=1) + offset, groups(*real_counts) + offset, num_bins=4)
    p, q = counts / 500, real_counts / 1000
    pooled = (counts + real_counts) / 1500
    z = (p - q) / np.sqrt(pooled * (1 - pooled) * (1 / 500 + 1 / 1000))
    different = 2 * norm.sf(np.abs(z)) < 0.05
    assert different.tolist() == [False, False, True, True]
    assert found["ndb_share"] == 0.5
    middle = (p + q) / 2
    assert found["jsd"] == pytest.approx(((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2)
    levels = sorted(2 * norm.sf(np.abs(z)))  # each bin becomes different just above its own level
    for number, level in enumerate(levels):
        arguments = (groups(*counts, seed=1) + offset, groups(*real_counts) + offset, 4, 0)
        assert ndb(*arguments, alpha=min(level * 1.001, 0.99999))["ndb_share"] == (number + 1) / 4
        assert ndb(*arguments, alpha=level * 0.999)["ndb_share"] == number / 4


def test_ndb_finds_what_is_missing():
    real, alike = groups(100, 100, 100, 100), groups(100, 100, 100, 100, seed=1)
    assert ndb(alike, real, num_bins=4) == {"ndb_share": 0.0, "jsd": 0.0}
    collapsed = ndb(groups(400), real, num_bins=4)
    assert collapsed["ndb_share"] == 1
    # A share of 1 against four of 1/4.
    expected = (math.log(1 / 0.625) + 0.25 * math.log(0.25 / 0.625) + 0.75 * math.log(2)) / 2
    assert collapsed["jsd"] == pytest.approx(expected)
    elsewhere = ndb(draws(100, 6) + 1000 * torch.eye(6)[0], real, num_bins=4)
    assert elsewhere["ndb_share"] == 1
    single = ndb(real[:1], real, num_bins=4)
    assert 0 <= single["ndb_share"] <= 1 and 0 < single["jsd"] < math.log(2)


def test_ndb_of_new_images():
    real, new = draws(2000, 10), draws(2000, 10, seed=1)
    found = ndb(new, real, num_bins=50)
    assert found["ndb_share"] < 0.2
    assert found["jsd"] == pytest.approx(50 * (2 / 2000) / 8, rel=0.5)
    assert ndb(new, real, num_bins=50) == found
    assert ndb(new, real, num_bins=50, seed=1) != found
    narrow = ndb(0.5 * new, real, num_bins=50)
    assert narrow["ndb_share"] > 0.35 and narrow["jsd"] > 5 * found["jsd"]


def test_ndb_leaves_global_random_numbers_alone():
    before = str(np.random.get_state()), torch.random.get_rng_state()
    ndb(groups(50, 50), groups(50, 50), num_bins=2)
    birthday_support(draws(50, 4), draws(100, 4, seed=1), quantile=0.05)
    assert before[0] == str(np.random.get_state())
    assert torch.equal(before[1], torch.random.get_rng_state())


@pytest.mark.parametrize("support", [1, 10, 100, 1500])
@pytest.mark.parametrize("dimensions", [6, 400])
def test_birthday_support_of_known_size(support, dimensions, monkeypatch):
    """A generator that draws with the same probability from so many images, each time a little changed."""
    monkeypatch.setattr(neighbours, "DOUBLE", 0)
    real, images = draws(1000, dimensions), draws(support, dimensions, seed=1)
    chosen = torch.randint(0, support, (3000,), generator=torch.Generator().manual_seed(2))
    generated = images[chosen] + 1e-3 * draws(3000, dimensions, seed=3)
    found = birthday_support(generated, real)
    assert found.batch_size == pytest.approx(math.sqrt(2 * math.log(2) * support) + 0.5, abs=1, rel=0.15)
    assert found.support == pytest.approx(support, rel=0.3, abs=1)
    assert birthday_support(generated, real) == found
    assert birthday_support(generated, real, seed=1).support == pytest.approx(found.support, rel=0.4)
    own = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf).min(1).values.sort().values
    assert found.threshold == pytest.approx(own[0].item(), rel=1e-6)  # of 999 or 1,000 images, 0.1 % is the first


def test_birthday_support_counts_batches():
    """Few enough images to enumerate the orders in which they may come."""
    real = torch.arange(99.0)[:, None].repeat(1, 2)  # neighbours are sqrt(2) apart
    far, near = torch.tensor([0.0, 100.0, 200.0]), torch.tensor([0.0, 1.0, 200.0])
    nothing = birthday_support(far[:, None].repeat(1, 2), real, quantile=0.01)
    assert nothing == BirthdaySupport(None, None, nothing.threshold, 0, 3)
    assert nothing.threshold == pytest.approx(math.sqrt(2))
    # One pair among three: both come first in a third of the orders, so that the median takes all three.
    found = birthday_support(near[:, None].repeat(1, 2), real, quantile=0.01)
    assert (found.batch_size, found.pairs, found.images) == (3, 1, 3)
    assert found.support == pytest.approx(2 / math.log(2))
    # Two pairs among four: one of them is complete after two in a third of the orders, after three always.
    two = torch.tensor([0.0, 1.0, 200.0, 201.0])[:, None].repeat(1, 2)
    assert birthday_support(two, real, quantile=0.01).batch_size == 3
    # Two images that are the same: every batch of two is a repetition.
    assert birthday_support(torch.zeros(2, 2), real, quantile=0.01).batch_size == 2


def test_birthday_support_of_new_images():
    real, new = draws(1500, 8), draws(1500, 8, seed=1)
    found = birthday_support(new, real, quantile=0.01)
    assert found.images == 1500 and (found.support or 0) > 30 * len(real)
    repeated = birthday_support(new[:100].repeat(15, 1), real, quantile=0.01)
    assert repeated.support == pytest.approx(100, rel=0.25)
    assert repeated.images < 1500


def test_mistakes():
    good = draws(120, 4)
    with pytest.raises(ValueError, match="features has 2 of 120 rows that are all 0"):
        vendi_score(torch.cat([good[2:], torch.zeros(2, 4)]))
    with pytest.raises(ValueError, match="generated has 4 features per image and real has 5"):
        ndb(good, draws(120, 5))
    with pytest.raises(ValueError, match="num_bins is 1, but must be at least 2"):
        ndb(good, good, num_bins=1)
    with pytest.raises(ValueError, match="real has 99 rows, but this metric needs at least 100"):
        ndb(good, good[:99])
    with pytest.raises(ValueError, match="num_bins is 20, but real has only 12 different images: use fewer bins"):
        ndb(good, good[:12].repeat(10, 1), num_bins=20)
    for alpha in (0, 1, 5):
        with pytest.raises(ValueError, match=f"alpha is {alpha}, but must be between 0 and 1"):
            ndb(good, good, alpha=alpha)
    with pytest.raises(ValueError, match="real has 998 rows, but this metric needs at least 999"):
        birthday_support(good, draws(998, 4))
    with pytest.raises(ValueError, match="generated has 1 rows, but this metric needs at least 2"):
        birthday_support(good[:1], good, quantile=0.05)
    with pytest.raises(ValueError, match="quantile is 0, but must be between 0 and 1"):
        birthday_support(good, good, quantile=0)
    bad = torch.where(good > 2, torch.nan, good)
    for wrong in (bad, good[0], good.int()):
        with pytest.raises(ValueError):
            vendi_score(wrong)
        for function in (ndb, birthday_support):
            with pytest.raises(ValueError):
                function(wrong, good)
            with pytest.raises(ValueError):
                function(good, wrong)
