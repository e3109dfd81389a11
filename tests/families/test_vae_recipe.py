"""The VAE recipe, without the loop, and its alarm."""

import dataclasses
import itertools

import pytest
import torch
from helpers import data_info, modules_of

from hfgen.families.vae.options import VAEConfig
from hfgen.families.vae.recipe import CollapseAlarm, RunningVariance, VAERecipe, degrade
from hfgen.objectives import elbo
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch, Progress

INFO = data_info(class_names=("a", "b", "c"))
TINY = VAEConfig(block_out_channels=(8, 16), latent_channels=4, prior_components=2)
ARCHITECTURES = ("conv", "residual", "hierarchical", "vq")


def batch_of(images, seen, labels=None):
    return Batch({"image": images, "label": labels}, StepRandom(0, seen, len(images)))


def squares(count, seed=0):
    """Bright squares at one of nine places."""
    places = torch.randint(0, 3, (count, 2), generator=torch.Generator().manual_seed(seed)) * 2
    images = torch.full((count, 1, 8, 8), -1.0)
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        image[:, row : row + 4, column : column + 4] = 1
    return images


def trained(config, steps=150, info=INFO, conditional=False):
    """Plain torch trains it."""
    torch.manual_seed(0)
    recipe = VAERecipe(config, info)
    optimizer = torch.optim.AdamW(recipe.networks["vae"].module.parameters(), lr=3e-3)
    logs = []
    for step in range(steps):
        images = squares(32, step)
        labels = (images[:, 0, 3, 3] > 0).long() if conditional else None
        progress = Progress(step * 32, step / steps, step)
        loss, metrics = recipe.loss(recipe.phases[0], batch_of(images, step * 32, labels), progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recipe.after_step(32)
        logs.append({name: value.item() for name, value in metrics.items()})
    return recipe, logs


def test_few_images_have_a_prior_of_few_gaussians():
    """More than there are latents would fail, and only after all of the training."""
    recipe = VAERecipe(dataclasses.replace(TINY, prior_components=100), data_info(num_images=5, class_names=None))
    batches = (batch_of(squares(8, seed), seed) for seed in itertools.count())
    with torch.no_grad():
        assert recipe.fit(modules_of(recipe), batches).config.num_components == 24


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "hierarchical")) for name in ARCHITECTURES],
)
def test_plain_torch_trains_it(architecture, conditional):
    config = dataclasses.replace(TINY, architecture=architecture, class_conditional=conditional)
    recipe, logs = trained(config, conditional=conditional)
    assert logs[-1]["mse"] < 0.5 * logs[0]["mse"]
    assert logs[-1]["bits_per_dim"] < logs[0]["bits_per_dim"]
    recipe.networks["vae"].module.eval()
    labels = torch.zeros(32, dtype=torch.int64) if conditional else None
    batches = (batch_of(squares(32, seen), seen, labels) for seen in itertools.count())
    for pipeline in (
        recipe.pipeline(modules_of(recipe)),
        recipe.pipeline(modules_of(recipe), recipe.fit(modules_of(recipe), batches)),
    ):
        assert isinstance(pipeline, VAEPipeline)
        samples = Sampler(pipeline, recipe.sampling, "it")(range(4), 0)
        assert samples.shape == (4, 1, 8, 8)
    assert pipeline.prior is not None
    given, again = recipe.card_images(modules_of(recipe), batches)
    assert given.shape == again.shape == (10, 1, 8, 8)
    assert again.min() >= 0 and again.max() <= 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loss_is_a_pure_function(architecture):
    recipe = VAERecipe(dataclasses.replace(TINY, architecture=architecture), INFO)
    images = squares(16)
    phase = recipe.phases[0]
    first, second = (recipe.loss(phase, batch_of(images, 640), Progress(640, 0.1, 40))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_loss_is_the_elbo_per_pixel():
    """Sums over pixels and over latents, both divided by the pixels: nothing is averaged that the other sums."""
    recipe = VAERecipe(dataclasses.replace(TINY, variance=0.25, beta=1.5), INFO)
    images = squares(16)
    loss, metrics = recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0, 0))
    posterior = recipe.vae.encode(images).latent_dist
    latents = posterior.mean + posterior.std * StepRandom(0, 0, 16).normal(*recipe.vae.latent_shape)
    mean = recipe.vae.decode(latents).sample
    distortion = -torch.distributions.Normal(mean, 0.5).log_prob(images).sum((1, 2, 3)).mean()
    normal = torch.distributions.Normal(0.0, 1.0)
    rate = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, posterior.std), normal)
    rate = rate.sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss, (distortion + 1.5 * rate) / 64)
    torch.testing.assert_close(metrics["rate"], rate)
    torch.testing.assert_close(metrics["distortion"], distortion)
    assert metrics.keys() >= {"kl_latent_00", "kl_latent_03", "active_units", "mutual_information", "bits_per_dim"}


def test_warm_up_and_free_bits():
    images = squares(16)

    def penalty(fraction, **changes):
        torch.manual_seed(0)
        recipe = VAERecipe(dataclasses.replace(TINY, **changes), INFO)
        loss, metrics = recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, fraction, 0))
        return loss * 64 - metrics["distortion"], metrics["rate"]

    assert penalty(0.0, kl_warmup=0.2)[0].abs() < 1e-4
    half, rate = penalty(0.1, kl_warmup=0.2)
    torch.testing.assert_close(half, rate / 2, rtol=1e-3, atol=1e-4)
    floor, _ = penalty(0.5, free_bits=100.0)
    torch.testing.assert_close(floor, torch.tensor(400.0), rtol=1e-4, atol=1e-2)


def test_the_variance_follows_the_error_and_not_how_a_batch_is_split():
    whole, halves = RunningVariance(), RunningVariance()
    first, second = torch.tensor(1.0), torch.tensor(1.0)
    for step in range(3):
        errors = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        whole.observe(errors)
        halves.observe(errors[:4])
        halves.observe(errors[4:])
        whole.update_(first)
        halves.update_(second)
        if step == 0:
            torch.testing.assert_close(
                first, elbo.optimal_variance(errors.sum(), errors.numel())
            )  # the first replaces the 1 of the beginning
    torch.testing.assert_close(first, second)
    fixed = VAERecipe(dataclasses.replace(TINY, variance=0.3), INFO)
    assert set(fixed.networks) == {"vae"} and fixed.vae.variance == pytest.approx(0.3)


def test_tasks_degrade_what_the_encoder_sees():
    images = squares(4)
    assert degrade(batch_of(images, 0), None, None) is images
    noisy = degrade(batch_of(images, 0), "denoise", 0.1)
    assert 0 < (noisy - images).abs().mean() < 0.2 and noisy.abs().max() <= 1
    small = degrade(batch_of(torch.arange(64.0).view(1, 1, 8, 8), 0), "super_resolve", 8)
    torch.testing.assert_close(small, torch.full((1, 1, 8, 8), 31.5))


def at(images_seen, total=10**9):
    return Progress(images_seen, images_seen / total)


def test_the_alarm_fires_on_the_classic_mistake_and_not_on_the_default():
    """Averaging the likelihood over pixels beside a summed KL divergence is the ELBO with a beta of all pixels."""
    for changes, wanted in (({}, False), ({"beta": 64.0, "variance": 0.5}, True)):
        config = dataclasses.replace(TINY, **changes)
        _, logs = trained(config, steps=120)
        alarm = CollapseAlarm(config, patience=640)
        messages = [text for step, means in enumerate(logs) for text in alarm(means, at(step * 32))]
        assert len(messages) == wanted, logs[-1]
        if wanted:
            assert "the posterior has collapsed" in messages[0]
            assert "a lower `beta` than 64" in messages[0] and "a lower `variance`" in messages[0]
            assert logs[-1]["active_units"] == 0


def test_the_alarm_of_a_codebook():
    alarm = CollapseAlarm(dataclasses.replace(TINY, architecture="vq"), patience=100)
    assert alarm({"perplexity": 1.2}, at(0)) == []
    (message,) = alarm({"perplexity": 1.2}, at(100))
    assert "the codebook collapses: only 1.2 codes" in message
    assert alarm({"perplexity": 1.2}, at(200)) == []  # said once
    assert alarm({"perplexity": 30.0}, at(300)) == []


@pytest.mark.parametrize(
    ("changes", "info", "message"),
    [
        ({"beta": -1.0}, {}, "`beta` -1.0 is out of range"),
        ({"kl_warmup": 1.0}, {}, "`kl_warmup` 1.0 is out of range"),
        ({"variance": 0.0}, {}, "`variance` 0.0 is out of range"),
        ({"variance": 1.0, "likelihood": "logistic"}, {}, "`variance` 1.0: logistic has none"),
        ({"spatial_latent": True, "architecture": "conv"}, {}, "`spatial_latent` is for residual"),
        ({"architecture": "vq", "beta": 2.0}, {}, "and vq has none"),
        ({"task_level": 2.0}, {}, "`task_level` 2.0 has no task to be the level of"),
        ({"task": "super_resolve", "task_level": 1.5}, {}, "must be a whole number"),
        ({"task": "super_resolve", "task_level": 1.0}, {}, "must be a whole number from 2 on"),
        ({"task": "super_resolve", "task_level": 3.0}, {}, "`task_level` 3 does not divide the 8 pixels"),
        ({"class_conditional": True}, {"class_names": None}, "`class_conditional` needs labels"),
        ({"class_conditional": True}, {"unlabelled": 3}, "3 of the images have no class"),
        ({}, {"resolution": 300}, "does not fit the images"),
    ],
)
def test_mistakes(changes, info, message):
    with pytest.raises(UserError) as error:
        VAERecipe(dataclasses.replace(TINY, **changes), data_info(**info))
    assert message in str(error.value)


def test_a_noise_level_is_no_factor():
    for level in (0.5, 1.0):
        dataclasses.replace(TINY, task="denoise", task_level=level).validate()


def test_bernoulli_needs_black_and_white():
    recipe = VAERecipe(dataclasses.replace(TINY, likelihood="bernoulli"), INFO)
    images = squares(8)
    recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0, 0))
    with pytest.raises(UserError, match="`likelihood` bernoulli is for black and white images"):
        recipe.loss(recipe.phases[0], batch_of(images * 0.9, 0), Progress(0, 0, 0))


def test_a_gaussian_states_its_bits_in_units_of_levels():
    """A density of pixels in [-1, 1] is 127.5 times that of levels, per dimension."""
    recipe = VAERecipe(dataclasses.replace(TINY, variance=0.25), INFO)
    _, metrics = recipe.loss(recipe.phases[0], batch_of(squares(16), 0), Progress(0, 0, 0))
    nats = (metrics["distortion"] + metrics["rate"]) / 64
    torch.testing.assert_close(metrics["bits_per_dim"], nats / torch.tensor(2.0).log() + elbo.LEVEL_BITS)
