"""Fitting a mixture of Gaussians to latents."""

import pytest
import torch

from hfgen.families.vae.prior import MAX_RANK, fit_mixture


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(count=3000):
    """Two Gaussians in 4 dimensions, one of them correlated, and which is which."""
    generator = seeded()
    mixing = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 0.5, 0], [0, 0, 0.3, 0.4]])
    labels = (torch.rand(count, generator=generator) < 0.3).long()
    noise = torch.randn(count, 4, generator=generator)
    return torch.where(labels[:, None] == 1, 0.3 * noise + 4, noise @ mixing.T), labels, mixing


def test_recovers_what_the_latents_are_drawn_from():
    latents, labels, mixing = clusters()
    prior = fit_mixture(latents.view(-1, 4, 1, 1), num_components=2)
    assert tuple(prior.config.latent_shape) == (4, 1, 1) and prior.config.num_class_embeds is None
    wide = int(prior.means.norm(dim=1).argmin())
    assert prior.weights[0, wide].item() == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(prior.means[wide], torch.zeros(4), rtol=0, atol=0.06)
    torch.testing.assert_close(prior.means[1 - wide], torch.full((4,), 4.0), rtol=0, atol=0.06)
    covariance = prior.factors[wide] @ prior.factors[wide].T
    torch.testing.assert_close(covariance, mixing @ mixing.T, rtol=0, atol=0.08)
    assert not prior.training and prior.weights.dtype == torch.float32


def test_is_a_function_of_the_seed():
    latents, labels, _ = clusters(500)
    first, second = (fit_mixture(latents, labels, 4, seed=3).state_dict() for _ in "ab")
    assert all(map(torch.equal, first.values(), second.values()))


def test_classes():
    latents, labels, _ = clusters()
    prior = fit_mixture(latents, labels, num_components=6, num_classes=3)
    narrow = prior.means.norm(dim=1) > 4
    assert prior.config.num_class_embeds == 3 and narrow.tolist() == [False, False, True, True]
    shares = prior.weights[:, narrow].sum(1)
    torch.testing.assert_close(shares[:2], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)
    assert shares[2].item() == pytest.approx(0.3, abs=0.03)  # not seen: as all together
    assert fit_mixture(latents, labels, 2).config.num_class_embeds == 2
    drawn = prior.sample(200, torch.ones(200, dtype=torch.long), generator=seeded())
    assert (drawn.flatten(1).mean(1) > 2).all()
    assert prior.log_prob(latents[:5], torch.ones(5, dtype=torch.long)).isfinite().all()


def test_classes_that_overlap_keep_their_own_gaussians():
    """Shared ones would straddle both, and draw one class for the other."""
    noise = torch.randn(2000, 2, generator=seeded())
    labels = torch.arange(2000) % 2
    latents = noise + labels[:, None] * torch.tensor([1.0, 0.0])
    prior = fit_mixture(latents, labels, num_components=2)
    torch.testing.assert_close(prior.means, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), rtol=0, atol=0.1)


@pytest.mark.filterwarnings("error")
def test_classes_with_few_latents():
    prior = fit_mixture(torch.randn(5, 2, generator=seeded()), torch.tensor([0, 1, 1, 1, 3]), 5, num_classes=5)
    assert tuple(prior.weights.shape) == (5, 3)
    for label in range(5):
        assert prior.sample(3, torch.full((3,), label), generator=seeded()).isfinite().all()


def test_many_dimensions_are_fitted_in_their_principal_components():
    generator = seeded()
    size = 4 * 10 * 10
    latents = 0.5 * torch.randn(1500, size, generator=generator)
    latents[:, :3] = 3 * torch.randn(1500, 3, generator=generator).abs() * torch.tensor([1.0, -1.0, 1.0])
    prior = fit_mixture(latents.view(-1, 4, 10, 10), num_components=3)
    assert prior.config.rank == MAX_RANK
    torch.testing.assert_close(prior.basis.T @ prior.basis, torch.eye(MAX_RANK), rtol=0, atol=1e-5)
    drawn = prior.sample(4000, generator=seeded()).flatten(1)
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), rtol=0, atol=0.15)
    deviations = drawn.std(0) / latents.std(0)
    assert deviations.min() > 0.85 and deviations.max() < 1.15


@pytest.mark.filterwarnings("error")
def test_few_latents():
    prior = fit_mixture(torch.randn(40, 300, generator=seeded()), num_components=2)
    assert prior.config.rank == 40 and prior.log_prob(torch.zeros(1, 300)).isfinite().all()
    assert fit_mixture(torch.randn(5, 2, generator=seeded()), num_components=5).sample(2).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(3, 2)}, "latents are 3, too few for 10 components"),
        ({"latents": torch.zeros(20, 2), "num_classes": 2}, "num_classes is 2, but there are no labels"),
        ({"latents": torch.zeros(20, 2), "labels": torch.zeros(3)}, "labels are 3 for 20 latents"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_mixture(**arguments)
