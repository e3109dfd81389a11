"""Restoring with a denoising network: against closed forms, of normal images and a network without errors."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from hfgen.objectives.probability_flow import amplitudes
from hfgen.pipelines.ddpm_sampling import log_ratios, log_snr_timesteps
from hfgen.pipelines.diffusion_restoration import (
    METHODS,
    Denoiser,
    grays,
    holes,
    img2img,
    remove_noise,
    restore,
    shrunk,
    to_gray,
)
from hfgen.pipelines.restoration import shrink

SIDE = 4
DOUBLE = torch.float64


class Normal(nn.Module):
    """A denoising network without errors, of images that are normal: `mean` and `covariance` of all their numbers."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, scheduler, channels=1, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        count = channels * SIDE**2
        self.scheduler, self.ratios = scheduler, log_ratios(scheduler)
        self.config = FrozenDict(sample_size=SIDE, in_channels=channels, out_channels=channels)
        root = torch.randn(count, count, generator=draw, dtype=DOUBLE)
        self.covariance = 0.08 * root @ root.T / count + 0.01 * torch.eye(count, dtype=DOUBLE)
        self.mean = torch.rand(count, generator=draw, dtype=DOUBLE) - 0.5

    def gain(self, timestep):
        """The matrix K and the vector b of `E[x_0 | x_t] = K x_t + b`."""
        alpha, sigma = amplitudes(self.ratios[timestep].item())
        whole = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=DOUBLE)
        matrix = alpha * self.covariance @ torch.linalg.inv(whole)
        return matrix, self.mean - alpha * matrix @ self.mean

    def forward(self, sample, timestep, class_labels=None):
        matrix, vector = self.gain(int(timestep))
        noisy = sample.flatten(1).double()
        clean = noisy @ matrix.T + vector
        alpha, sigma = amplitudes(self.ratios[int(timestep)].item())
        noise = (noisy - alpha * clean) / sigma
        kind = self.scheduler.config.prediction_type
        output = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[kind]
        return UNet2DOutput(sample=output.view_as(sample).float())

    def draw(self, seed):
        noise = torch.randn(len(self.mean), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        image = self.mean + torch.linalg.cholesky(self.covariance) @ noise
        return image.view(1, -1, SIDE, SIDE).float()


def network(channels=1, kind="epsilon"):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    return Normal(scheduler, channels), scheduler


def lower_half():
    hole = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    hole[..., SIDE // 2 :, :] = True
    return hole


OBSERVED = {
    "a hole": lambda image: holes(image, lower_half().expand(len(image), -1, -1, -1)),
    "small": lambda image: shrunk(shrink(image, 2), 2),
    "gray": lambda image: grays(to_gray(image)),
}
CHANNELS = {"a hole": 1, "small": 1, "gray": 3}


def matrix_of(observation, channels):
    """The matrix of what is observed, without rows that are zero, and which rows these are."""
    count = channels * SIDE**2
    each = torch.eye(count).view(count, channels, SIDE, SIDE)
    matrix = observation.observe(each).flatten(1).T.double()
    rows = matrix.abs().sum(1) > 0
    return matrix[rows], rows


def posterior(unet, matrix, target, deviation=0.0):
    """Mean and covariance of images that are observed."""
    noise = deviation**2 * torch.eye(len(matrix), dtype=DOUBLE)
    gain = unet.covariance @ matrix.T @ torch.linalg.inv(matrix @ unet.covariance @ matrix.T + noise)
    return unet.mean + gain @ (target - matrix @ unet.mean), unet.covariance - gain @ matrix @ unet.covariance


def moments(images):
    rows = images.flatten(1).double()
    return rows.mean(0), torch.cov(rows.T)


def many(unet, scheduler, kind, count=3000, **options):
    """Restored copies of one image; the matrix of the observation, its rows, and what was observed."""
    image = unet.draw(1)
    observation = OBSERVED[kind](image.expand(count, -1, -1, -1))
    made = restore(Denoiser(unet, scheduler), observation, torch.Generator().manual_seed(2), clip=False, **options)
    matrix, rows = matrix_of(OBSERVED[kind](image), CHANNELS[kind])
    return made, matrix, observation.target[0].flatten().double()[rows]


@pytest.mark.parametrize("kind", OBSERVED)
def test_the_posterior_is_exact_of_normal_images(kind):
    unet, scheduler = network(CHANNELS[kind])
    made, matrix, target = many(unet, scheduler, kind, num_inference_steps=20, method="posterior")
    mean, covariance = posterior(unet, matrix, target)
    found_mean, found = moments(made)
    assert (found_mean - mean).abs().max() < 0.03  # standard error of the mean: 0.005
    assert (found - covariance).norm() < 0.15 * covariance.norm()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_whatever_the_network_predicts(prediction):
    made = [
        many(*network(kind=each), "a hole", 50, num_inference_steps=5, method="posterior")[0]
        for each in ("epsilon", prediction)
    ]
    assert torch.allclose(*made, atol=2e-3)


@pytest.mark.parametrize(("method", "kind"), [("ddnm", "a hole"), ("ddnm", "small"), ("repaint", "a hole")])
def test_a_solver_is_what_its_formula_says(method, kind):
    """All of it is linear, so that mean and covariance follow step by step from matrices."""
    unet, scheduler = network()
    steps, resamples = 6, 3
    made, matrix, target = many(
        unet, scheduler, kind, 20_000, num_inference_steps=steps, method=method, resamples=resamples
    )
    one = torch.eye(SIDE**2, dtype=DOUBLE)
    inverse = matrix.T @ torch.linalg.inv(matrix @ matrix.T)
    mean, covariance = torch.zeros(SIDE**2, dtype=DOUBLE), one
    timesteps = log_snr_timesteps(scheduler, steps)
    levels = [*(amplitudes(unet.ratios[timestep].item()) for timestep in timesteps), (1.0, 0.0)]
    for timestep, (alpha, sigma), (after, low) in zip(timesteps, levels, levels[1:], strict=False):
        gain, shift = unet.gain(timestep)
        if method == "ddnm":
            rest = one - inverse @ matrix
            gain, shift = rest @ gain, rest @ shift + inverse @ target
        eta = low / sigma * (1 - (alpha / after) ** 2) ** 0.5  # DDPM, equation 7, with x_0
        kept = (low**2 - eta**2) ** 0.5 / sigma
        step, constant, noise = (
            kept * one + (after - kept * alpha) * gain,
            (after - kept * alpha) * shift,
            eta**2 * one,
        )
        if method == "repaint":
            rest, known = one - inverse @ matrix, inverse @ matrix
            step, constant = rest @ step, rest @ constant + after * inverse @ target
            noise = rest * eta**2 + known * low**2
        for turn in range(resamples if low else 1):
            mean, covariance = step @ mean + constant, step @ covariance @ step.T + noise
            if low and turn + 1 < resamples:
                back = alpha / after
                mean, covariance = back * mean, back**2 * covariance + (sigma**2 - (back * low) ** 2) * one
    mean = mean + inverse @ (target - matrix @ mean)
    found_mean, found = moments(made)
    assert (found_mean - mean).abs().max() < 0.01
    assert (found - covariance).norm() < 0.05 * covariance.norm()


@pytest.mark.parametrize(("method", "kind"), [("ddnm", "a hole"), ("ddnm", "small"), ("repaint", "a hole")])
def test_parts_agree_after_resampling(method, kind):
    unet, scheduler = network()
    errors = []
    for resamples in (1, 20):
        made, matrix, target = many(unet, scheduler, kind, num_inference_steps=20, method=method, resamples=resamples)
        errors.append((moments(made)[0] - posterior(unet, matrix, target)[0]).norm().item())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.15


@pytest.mark.parametrize("kind", OBSERVED)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_observed_is_kept(kind, method):
    unet, scheduler = network(CHANNELS[kind])
    observation = OBSERVED[kind](torch.cat([unet.draw(1), unet.draw(2)]))
    if method == "repaint" and observation.hole is None:
        with pytest.raises(ValueError, match="method is 'repaint', which fills holes alone: use"):
            restore(Denoiser(unet, scheduler), observation, num_inference_steps=3, method=method)
        return
    made = restore(Denoiser(unet, scheduler), observation, torch.Generator(), num_inference_steps=3, method=method)
    assert torch.allclose(observation.observe(made), observation.target, atol=1e-5)


def test_each_image_has_its_own_generator():
    unet, scheduler = network()
    images = torch.cat([unet.draw(seed) for seed in range(3)])
    observation = OBSERVED["small"](images)

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    made = restore(Denoiser(unet, scheduler), observation, generators(5, 6, 7), num_inference_steps=4, resamples=2)
    lone = dataclasses.replace(observation, target=observation.target[1:2])
    alone = restore(Denoiser(unet, scheduler), lone, generators(6), num_inference_steps=4, resamples=2)
    assert torch.allclose(made[1:2], alone, atol=1e-6)
    assert not torch.allclose(
        made[:1], restore(Denoiser(unet, scheduler), observation, generators(8, 6, 7), 4, resamples=2)[:1]
    )


@pytest.mark.parametrize("deviation", [0.05, 0.4, 2.0])
def test_noise_is_removed(deviation):
    """In one step to the mean of what the image may have been; in many to one of those."""
    unet, scheduler = network()
    image, one = unet.draw(1), torch.eye(SIDE**2, dtype=DOUBLE)
    noisy = image + deviation * torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    mean, covariance = posterior(unet, one, noisy.flatten().double(), deviation)
    copies, generator = noisy.expand(3000, -1, -1, -1), torch.Generator().manual_seed(2)
    found, spread = moments(remove_noise(Denoiser(unet, scheduler), copies, deviation, generator, clip=False))
    assert (found - mean).abs().max() < 0.02 and spread.trace() < 0.1 * covariance.trace()
    found, spread = moments(remove_noise(Denoiser(unet, scheduler), copies, deviation, generator, 20, clip=False))
    assert (found - mean).abs().max() < 0.03 and (spread - covariance).norm() < 0.2 * covariance.norm()


def test_images_are_varied():
    unet, scheduler = network()
    image, other = unet.draw(1), unet.draw(2)

    def vary(image, strength, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        return img2img(Denoiser(unet, scheduler), image, strength, generator, 20, **options)

    assert (vary(image, 0) == image).all() and (vary(image, 1) == vary(other, 1)).all()
    distances = [(vary(image, strength) - image).abs().mean().item() for strength in (0.1, 0.4, 0.8)]
    assert distances == sorted(distances) and distances[0] < 0.2 * distances[2]
    many = image.expand(3000, -1, -1, -1)
    found, spread = moments(vary(many, 1, clip=False))
    assert (found - unet.mean).abs().max() < 0.03 and (spread - unet.covariance).norm() < 0.15 * unet.covariance.norm()


def test_steps_can_be_seen_and_changed():
    unet, scheduler = network()
    seen = []

    def on_step_end(step, timestep, images):
        seen.append((step, int(timestep)))
        return torch.zeros_like(images) if step == 3 else images

    made = restore(
        Denoiser(unet, scheduler),
        OBSERVED["a hole"](unet.draw(1)),
        torch.Generator(),
        4,
        on_step_end=on_step_end,
        clip=False,
    )
    assert seen == list(enumerate(log_snr_timesteps(scheduler, 4))) and not made[..., SIDE // 2 :, :].any()
    assert (made[..., : SIDE // 2, :] == unet.draw(1)[..., : SIDE // 2, :]).all()  # all the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic', but must be one of ddnm, posterior, repaint"),
        ({"resamples": 0}, "resamples is 0, but must be at least 1"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001, but this network was trained with 1000"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, but must be at least 1"),
    ],
)
def test_mistakes(options, message):
    unet, scheduler = network()
    with pytest.raises(ValueError, match=message):
        restore(Denoiser(unet, scheduler), OBSERVED["small"](unet.draw(1)), **options)


def test_mistakes_of_strength_and_noise():
    unet, scheduler = network()
    for strength, message in (
        (1.5, "strength is 1.5, but must be in"),
        (-0.1, "strength is -0.1, but must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            img2img(Denoiser(unet, scheduler), unet.draw(1), strength)
    for deviation in (0.0, 1e9):
        with pytest.raises(ValueError, match=r"deviation is .*, but must be above 0 and at most"):
            remove_noise(Denoiser(unet, scheduler), unet.draw(1), deviation)
    unet.config = FrozenDict(unet.config | {"out_channels": 2})
    with pytest.raises(ValueError, match="this network has 2 channels of 1, more than the noise"):
        img2img(Denoiser(unet, scheduler), unet.draw(1), 0.5)
