"""The denoising objective against its definitions."""

import pytest
import torch
from diffusers import DDPMScheduler

from hfgen.objectives import denoising

SCHEDULER = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 8, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([0, 1, 100, 300, 500, 700, 900, 990])
    return clean, noise, timesteps, SCHEDULER.alphas_cumprod[timesteps]


def test_agrees_with_diffusers(case):
    clean, noise, timesteps, alpha = case
    torch.testing.assert_close(denoising.add_noise(clean, noise, alpha), SCHEDULER.add_noise(clean, noise, timesteps))
    torch.testing.assert_close(
        denoising.target("v_prediction", clean, noise, alpha), SCHEDULER.get_velocity(clean, noise, timesteps)
    )
    assert denoising.target("epsilon", clean, noise, alpha) is noise
    assert denoising.target("sample", clean, noise, alpha) is clean
    with pytest.raises(ValueError, match="prediction_type is 'x'"):
        denoising.target("x", clean, noise, alpha)


def predictions(case):
    """One guess of the clean image, in the terms of each prediction type."""
    clean, noise, _, alpha = case
    a = alpha.view(-1, 1, 1, 1)
    noisy = denoising.add_noise(clean, noise, alpha)
    guess = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    epsilon = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    return {"sample": guess, "epsilon": epsilon, "v_prediction": a.sqrt() * epsilon - (1 - a).sqrt() * guess}


def test_min_snr_is_the_same_for_all_prediction_types(case):
    clean, noise, _, alpha = case
    losses = {}
    for kind, prediction in predictions(case).items():
        error = denoising.squared_error(prediction, denoising.target(kind, clean, noise, alpha))
        losses[kind] = error * denoising.loss_weight(kind, alpha, 5.0)
    snr = alpha / (1 - alpha)
    wanted = snr.clamp(max=5) * denoising.squared_error(predictions(case)["sample"], clean)
    for loss in losses.values():
        torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=1e-6)


def test_noise_error_is_the_same_for_all_prediction_types(case):
    clean, noise, _, alpha = case
    found = [
        denoising.noise_error(
            kind, denoising.squared_error(prediction, denoising.target(kind, clean, noise, alpha)), alpha
        )
        for kind, prediction in predictions(case).items()
    ]
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", denoising.PREDICTION_TYPES)
def test_weights_are_finite_at_the_ends(kind):
    ends = torch.tensor([0.0, 1e-12, 0.5, 1 - 1e-7, 1.0])
    for gamma in (None, 5.0):
        weight = denoising.loss_weight(kind, ends, gamma)
        assert weight.isfinite().all()
        assert (weight >= 0).all()


def test_published_mean_weights_of_min_snr():
    """The mean over t with gamma 5: 0.91 for epsilon with linear betas, 0.33 for v with the cosine schedule."""
    linear = DDPMScheduler().alphas_cumprod
    assert denoising.loss_weight("epsilon", linear, 5.0).mean().item() == pytest.approx(0.91, abs=0.01)
    assert denoising.loss_weight("v_prediction", SCHEDULER.alphas_cumprod, 5.0).mean().item() == pytest.approx(
        0.33, abs=0.01
    )


def test_a_prediction_tells_the_clean_image(case):
    clean, noise, _, alpha = case
    noisy = denoising.add_noise(clean, noise, alpha)
    for kind, prediction in predictions(case).items():
        guess = predictions(case)["sample"]
        torch.testing.assert_close(denoising.clean(kind, prediction, noisy, alpha), guess, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="prediction_type is 'x'"):
        denoising.clean("x", clean, noisy, alpha)
