"""The GAN recipe, without the loop, and its alarms."""

import dataclasses

import pytest
import torch
from helpers import data_info, modules_of

from hfgen.families.gan.options import PRESETS, GANConfig
from hfgen.families.gan.recipe import Alarms, GANRecipe, within_class_scatter
from hfgen.objectives.adversarial import OBJECTIVES
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler, image_generators
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch, Progress

INFO = data_info(class_names=("a", "b", "c"))
TINY = GANConfig(latent_dim=4, base_channels=8)
STYLE = dataclasses.replace(TINY, architecture="stylegan2", max_channels=8, r1_gamma=0.0, r2_gamma=0.0)
ARCHITECTURES = ("mlp", "dcgan", "residual", "stylegan2")


def batch_of(images, seen, labels=None):
    return Batch({"image": images, "label": labels}, StepRandom(0, seen, len(images)))


def set_trained(recipe, phase):
    """Freezes what the phase does not update, as the loop does."""
    for name, module in modules_of(recipe).items():
        module.requires_grad_(name in phase.updates)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_torch_trains_it(architecture, conditional):
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, architecture=architecture, class_conditional=conditional)
    recipe = GANRecipe(config, INFO)
    optimizers = {
        phase.name: torch.optim.Adam(
            [p for name in phase.updates for p in modules_of(recipe)[name].parameters()],
            lr=phase.optimizer.learning_rate,
            betas=phase.optimizer.betas,
        )
        for phase in recipe.phases
    }
    images = torch.full((16, 1, 8, 8), -0.5)  # which a tanh reaches in a few steps
    images[:, :, 2:6, 2:6] = 0.5
    labels = torch.arange(16) % 3 if conditional else None

    def distance():
        recipe.networks["generator"].module.eval()
        samples = Sampler(recipe.pipeline(modules_of(recipe)), recipe.sampling, "it")(range(8), 0) / 127.5 - 1
        recipe.networks["generator"].module.train()
        return (samples - images[:1]).square().mean()

    before = distance()
    for step in range(100 if architecture == "residual" else 80):  # which starts with branches of zero
        for phase in recipe.phases:
            set_trained(recipe, phase)
            loss, _ = recipe.loss(phase, batch_of(images, step * 16, labels), Progress(step * 16, step / 80, step))
            optimizers[phase.name].zero_grad()
            loss.backward()
            optimizers[phase.name].step()
    assert distance() < 0.6 * before


@pytest.mark.parametrize("phase", [0, 1])
def test_a_loss_is_a_pure_function(phase):
    recipe = GANRecipe(dataclasses.replace(TINY, augment_probability=0.5), INFO)
    phase = recipe.phases[phase]
    images = torch.rand(16, 1, 8, 8)
    first, second = (recipe.loss(phase, batch_of(images, 640), Progress(640, 0.1, 40))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, recipe.loss(phase, batch_of(images, 656), Progress(640, 0.1, 40))[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_discriminators_loss_does_not_reach_the_generator(architecture):
    recipe = GANRecipe(dataclasses.replace(TINY, architecture=architecture), INFO)
    recipe.loss(recipe.phases[0], batch_of(torch.rand(4, 1, 8, 8), 0), Progress(0, 0, 0))[0].backward()
    assert all(p.grad is None for p in recipe.networks["generator"].module.parameters())
    assert any(p.grad is not None for p in recipe.networks["discriminator"].module.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_generators_step_computes_no_gradients_of_the_discriminator(architecture):
    recipe = GANRecipe(dataclasses.replace(TINY, architecture=architecture), INFO)
    set_trained(recipe, recipe.phases[1])
    recipe.loss(recipe.phases[1], batch_of(torch.rand(4, 1, 8, 8), 0), Progress(0, 0, 0))[0].backward()
    assert all(p.grad is None for p in recipe.networks["discriminator"].module.parameters())
    assert any(p.grad.abs().sum() > 0 for p in recipe.networks["generator"].module.parameters() if p.grad is not None)


def test_the_discriminator_looks_once_where_that_is_exact():
    images = torch.rand(4, 1, 8, 8)
    seen = {}
    for norm in ("group", "batch"):
        config = dataclasses.replace(TINY, discriminator_norm=norm, r1_gamma=0.0, r2_gamma=0.0)
        recipe = GANRecipe(config, INFO)
        sizes = seen.setdefault(norm, [])
        recipe.networks["discriminator"].module.register_forward_pre_hook(
            lambda m, args, s=sizes: s.append(len(args[0]))
        )
        recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0, 0))
    assert seen == {"group": [8], "batch": [4, 4]}


def test_penalties_are_lazy_and_weigh_as_many_times_more():
    images = torch.rand(4, 1, 8, 8)

    def loss(step, **changes):
        torch.manual_seed(0)
        recipe = GANRecipe(dataclasses.replace(TINY, **changes), INFO)
        return recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0, step))

    plain, _ = loss(0, r1_gamma=0.0, r2_gamma=0.0)
    for step in (0, 4, 8):
        value, metrics = loss(step)
        wanted = plain + 4 * TINY.r1_gamma / 2 * (metrics["r1"] + metrics["r2"])
        torch.testing.assert_close(value, wanted)
    for step in (1, 2, 3):
        value, metrics = loss(step)
        torch.testing.assert_close(value, plain)
        assert "r1" not in metrics
    critic, metrics = loss(1, objective="wasserstein", r1_gamma=0.0, r2_gamma=0.0, lipschitz_weight=10.0)
    torch.testing.assert_close(critic, -metrics["logit_gap"] + 10 * metrics["lipschitz"])


def test_phases():
    discriminator, generator = GANRecipe(TINY, INFO).phases
    adam = discriminator.optimizer
    assert (adam.learning_rate, adam.betas, discriminator.every) == (1e-3, (0.0, 0.99), 1)
    adam = generator.optimizer
    assert (adam.learning_rate, adam.betas, generator.every) == (1e-3, (0.0, 0.99), 1)
    two_rates = GANRecipe(dataclasses.replace(TINY, discriminator_learning_rate=5e-4, discriminator_steps=5), INFO)
    assert [(phase.optimizer.learning_rate, phase.every) for phase in two_rates.phases] == [(5e-4, 1), (1e-3, 5)]


def test_penalties_are_taken_at_the_images_before_augmentation():
    """A translated image has the same squared gradient as the one before; the cut-out part of an image has none."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, augment_probability=1.0, augmentations=("cutout",), penalty_interval=1)
    recipe = GANRecipe(config, INFO)
    seen = []
    images = torch.rand(8, 1, 8, 8)
    recipe.networks["discriminator"].module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    _, metrics = recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0, 0))
    augmented = seen[0][:8].detach()
    cut = (augmented == 0).float()
    assert 0 < cut.mean() < 0.5
    leaf = augmented.clone().requires_grad_()
    both = torch.cat([leaf, seen[0][8:].detach()])
    (slope,) = torch.autograd.grad(recipe.networks["discriminator"].module(both).logits[:8].sum(), leaf)
    wanted = (slope * (1 - cut)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(metrics["r1"], wanted)


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_path_lengths_are_regularised_in_float32(mixing):
    """The penalty of every other image, against the Jacobian of each, under bf16."""
    torch.manual_seed(0)
    recipe = GANRecipe(dataclasses.replace(STYLE, path_length_weight=2.0, style_mixing=mixing), INFO)
    generator, phase = recipe.generator, recipe.phases[1]
    for layer in generator.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.5)
    recipe.path_length.mean.fill_(0.1)
    with torch.autocast("cpu", torch.bfloat16):
        _, metrics = recipe.loss(phase, batch_of(torch.rand(8, 1, 8, 8), 0), Progress(0, 0, 0))
    numbers = StepRandom(0, 0, 8)
    latents, noise = numbers.normal(4), [numbers.normal(*shape) for shape in generator.noise_shapes]
    styles = generator.map(latents)[:, None].repeat(1, generator.num_layers, 1).detach()
    if mixing:
        other, (mixed, where) = generator.map(numbers.normal(4)).detach(), numbers.uniform(2).unbind(1)
        for i in (i for i in range(8) if mixed[i] < 0.5):
            styles[i, 1 + int(where[i] * (generator.num_layers - 1)) :] = other[i]
    lengths, y = [], numbers.normal(1, 8, 8)
    for i in (0, 2, 4, 6):
        jacobian = torch.autograd.functional.jacobian(
            lambda w, i=i: generator.synthesize(w[None], [tensor[i] for tensor in noise])[0], styles[i]
        )
        product = (y[i, ..., None, None] / 8 * jacobian).sum((0, 1, 2))
        lengths.append((product.square().sum() / generator.num_layers).sqrt())
    lengths = torch.stack(lengths)
    torch.testing.assert_close(metrics["path_length"], lengths.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["path_length_penalty"], (lengths - 0.1).square().mean(), rtol=1e-4, atol=1e-6)
    recipe.after_step(8)
    torch.testing.assert_close(recipe.path_length.mean, 0.99 * torch.tensor(0.1) + 0.01 * lengths.mean())


def test_path_lengths_are_regularised_lazily():
    images, losses = torch.rand(4, 1, 8, 8), {}
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        config = dataclasses.replace(STYLE, path_length_weight=weight, discriminator_steps=2, path_length_interval=3)
        recipe = GANRecipe(config, INFO)
        assert ("path_length" in recipe.networks) == (weight > 0)
        for step in range(0, 14, 2):  # the steps of the generator
            losses[weight, step] = recipe.loss(recipe.phases[1], batch_of(images, 0), Progress(0, 0, step))
    for step in range(0, 14, 2):
        (plain, _), (loss, metrics) = losses[0.0, step], losses[2.0, step]
        assert ("path_length_penalty" in metrics) == (step in (0, 6, 12))
        torch.testing.assert_close(loss, plain + 3 * 2 * metrics.get("path_length_penalty", torch.zeros(())))


def test_styles_are_mixed_as_often_as_asked_and_anywhere():
    recipe = GANRecipe(dataclasses.replace(STYLE, style_mixing=0.75), INFO)
    more = recipe._second_styles(batch_of(torch.zeros(4000, 1, 1, 1), 0))
    counts = more["crossover"].bincount() / 4000
    assert len(counts) == recipe.generator.num_layers + 1 == 5 and counts[0] == 0
    torch.testing.assert_close(counts[1:], torch.tensor([0.25] * 4), rtol=0, atol=0.03)  # the last is not mixed
    assert recipe.loss(recipe.phases[0], batch_of(torch.rand(4, 1, 8, 8), 0), Progress(0, 0, 0))[0].isfinite()


@pytest.mark.parametrize(
    ("preset", "size", "mapping", "r1_gamma", "group", "half_life", "channels"),
    [
        ("stylegan2", 32, 2, 0.01, 32, 500_000, [256, 256, 128, 64]),
        ("stylegan2-64", 64, 2, 0.0128, 4, 20_000, [512, 512, 512, 512, 256]),
        ("stylegan2-128", 128, 2, 0.0512, 4, 20_000, [512, 512, 512, 512, 256, 128]),
        ("stylegan2-256", 256, 8, 1.0, 8, 20_000, [512, 512, 512, 512, 256, 128, 64]),
    ],
)
def test_stylegan2_has_the_public_settings_of_its_size(preset, size, mapping, r1_gamma, group, half_life, channels):
    values = PRESETS[preset]()
    assert values["ema_half_life"] == half_life and values.get("resolution") == (size if size > 32 else None)
    names = {field.name for field in dataclasses.fields(GANConfig)}
    config = GANConfig(**{name: value for name, value in values.items() if name in names})
    assert config.r1_gamma == pytest.approx(r1_gamma) and config.output_activation == "tanh"
    large = size > 32
    assert (config.path_length_weight, config.style_mixing) == ((2.0, 0.9) if large else (0.0, 0.0))
    with torch.device("meta"):  # without memory
        recipe = GANRecipe(config, data_info(resolution=size, channels=3))
    assert [layer.bias.numel() for layer in recipe.generator.layers[::2]] == channels
    assert len(recipe.generator.mapping) == mapping and recipe.generator.config.output_activation == "tanh"
    judge = recipe.discriminator
    assert judge.config.minibatch_std_group == group and len(judge.shortcuts) == (len(channels) - 1) * large


OBJECTIVES_AND_PENALTIES = {
    name: {"objective": name, "r1_gamma": 0.0, "r2_gamma": 0.0} | ({"lipschitz_weight": 1.0} if name[0] == "w" else {})
    for name in OBJECTIVES
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_adaptive_augmentation_follows_what_the_discriminator_knows(objective):
    """It rises where real images are told from generated ones, and not where they are not, wherever the zero is."""
    changes = OBJECTIVES_AND_PENALTIES[objective]
    for knows in (True, False):
        config = dataclasses.replace(TINY, ada_target=0.6, augment_probability=0.5, augmentations=("flip",), **changes)
        recipe = GANRecipe(config, INFO)
        assert set(recipe.networks) == {"generator", "discriminator", "augmentation"}
        level = {"least_squares": 0.5, "wasserstein": 7.0, "relativistic": -7.0}.get(objective, 0.0)

        def judge(images, labels, knows=knows, level=level):
            noise = torch.linspace(-0.01, 0.01, len(images)).flip(0)[torch.arange(len(images)) * 5 % len(images)]
            real = images.mean((1, 2, 3)) > 0.3
            return level + noise + (real.float() - 0.5) * (2.0 if knows else 0.0) + 0 * images.sum((1, 2, 3))

        recipe._judge = judge
        for step in range(8):
            batch = batch_of(0.5 + 0.5 * torch.rand(8, 1, 8, 8), step * 8)
            recipe.loss(recipe.phases[0], batch, Progress(step * 8, 0, step))
            recipe.after_step(8)
        moved = recipe.adaptive.probability.item() - 0.5
        assert moved == pytest.approx((64 if knows else -64) / 500_000, rel=1e-2)


def test_diversity_is_counted_within_classes():
    torch.manual_seed(0)
    templates, labels = torch.randn(3, 1, 8, 8), torch.arange(12) % 3
    one_per_class = templates[labels]
    assert within_class_scatter(one_per_class) > 100  # between the classes
    assert within_class_scatter(one_per_class, labels) < 1e-6
    images = torch.randn(12, 1, 8, 8)
    torch.testing.assert_close(within_class_scatter(images), images.var(0, correction=0).sum() * 12)
    wanted = sum(images[labels == c].var(0, correction=0).sum() * 4 for c in range(3))
    torch.testing.assert_close(within_class_scatter(images, labels), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(within_class_scatter(images, labels), wanted)
    assert within_class_scatter(images[:1]) == 0


def test_pipelines_and_samples():
    recipe = GANRecipe(dataclasses.replace(TINY, class_conditional=True), INFO)
    pipeline = recipe.pipeline(modules_of(recipe))
    assert isinstance(pipeline, GANPipeline)
    assert pipeline.class_names == ["a", "b", "c"]
    recipe.networks["generator"].module.eval()
    images = Sampler(pipeline, recipe.sampling, "it")([4, 5], 0)
    again = pipeline(class_labels=[1, 2], generator=image_generators(0, [4, 5]), output_type="pt").images
    assert torch.equal(images, (again * 255).round().byte())


@pytest.mark.parametrize(
    ("changes", "info", "message"),
    [
        ({"class_conditional": True}, {"class_names": None}, "`class_conditional` needs labels"),
        ({"class_conditional": True}, {"unlabelled": 2}, "2 of the images have no class"),
        ({}, {"resolution": 7}, "`resolution` does not fit dcgan at 7 pixels: sample_size is 7"),
        ({"architecture": "stylegan2"}, {"resolution": 257}, "`resolution` does not fit stylegan2 at 257 pixels"),
        (
            {"architecture": "stylegan2", "base_channels": 1},
            {"resolution": 256},
            "`base_channels` 1 does not fit stylegan2 at 256 pixels",
        ),
        ({"group_width": 3}, {}, "`group_width` 3 does not divide 2 . `base_channels` 8"),
        (
            {"discriminator_norm": "none", "architecture": "mlp"},
            {},
            "`discriminator_norm` none: mlp has none",
        ),
        ({"label_smoothing": 0.1}, {}, "`objective` relativistic has no target to lower"),
        ({"objective": "wasserstein", "r1_gamma": 0.0, "r2_gamma": 0.0}, {}, "needs a critic of bounded slope"),
        ({"discriminator_norm": "batch"}, {}, "`discriminator_norm` batch mixes images"),
        ({"spectral_norm": True, "architecture": "residual"}, {}, "`spectral_norm` does not exist in residual"),
        ({"augmentations": (), "ada_target": 0.6}, {}, "`ada_target` 0.6: `augmentations` is empty, so that there"),
        ({"augmentations": (), "augment_probability": 0.1}, {}, "`augment_probability` 0.1: `augmentations` is empty"),
        ({"augmentations": ("flip", "blur")}, {}, "`augmentations` .blur. is no choice: use flip"),
        ({"r1_gamma": -1.0}, {}, "`r1_gamma` -1.0 is out of range"),
        ({"adam_beta2": 1.0}, {}, "`adam_beta2` 1.0 is out of range"),
        ({"ada_target": 2.0}, {}, "`ada_target` 2.0 is out of range"),
        ({"latent_dim": 0}, {}, "`latent_dim` 0 is out of range"),
        ({"truncation": 0.5}, {}, "`truncation` 0.5: dcgan has no mean latent"),
        ({"output_activation": "none"}, {}, "`output_activation` none: dcgan always ends in tanh"),
        ({"architecture": "mlp", "style_mixing": 0.9}, {}, "`style_mixing` 0.9 does not exist in mlp: leave it out"),
        ({"path_length_weight": 2.0}, {}, "`path_length_weight` 2.0 does not exist in dcgan: .* or use stylegan2"),
        ({"architecture": "residual", "residual_discriminator": True}, {}, "`residual_discriminator` True does not"),
        ({"architecture": "stylegan2", "style_mixing": 1.5}, {}, "`style_mixing` 1.5 is out of range"),
        (
            {"architecture": "stylegan2", "minibatch_std_group": 1},
            {},
            "`minibatch_std_group` 1: a deviation needs two",
        ),
        ({"architecture": "stylegan2", "path_length_weight": -1.0}, {}, "`path_length_weight` -1.0 is out of range"),
    ],
)
def test_mistakes(changes, info, message):
    with pytest.raises(UserError, match=message):
        GANRecipe(dataclasses.replace(TINY, **changes), data_info(**info))


def test_batches_too_small_for_their_statistics():
    for architecture, size in (("mlp", 1), ("dcgan", 1), ("stylegan2", 1), ("stylegan2", 37)):
        config = dataclasses.replace(TINY, architecture=architecture)
        with pytest.raises(UserError, match=f"`train_batch_size` {size}: "):
            config.check(None, size)
        with pytest.raises(ValueError):  # the networks say so, too
            recipe = GANRecipe(config, INFO)
            recipe.loss(recipe.phases[0], batch_of(torch.rand(size, 1, 8, 8), 0), Progress(0, 0, 0))
    for architecture, size in (("residual", 1), ("dcgan", 2), ("stylegan2", 74)):
        dataclasses.replace(TINY, architecture=architecture).check(None, size)
    dataclasses.replace(STYLE, minibatch_std_group=0).check(None, 37)
    with pytest.raises(UserError, match="`train_batch_size` 35: minibatch statistics need groups of 2 to 4 images"):
        dataclasses.replace(STYLE, minibatch_std_group=4).check(None, 35)


def test_a_penalised_discriminator_is_not_compiled():
    assert "differentiates twice" in GANRecipe(TINY, INFO).networks["discriminator"].eager_reason
    unpenalised = GANRecipe(dataclasses.replace(TINY, r1_gamma=0.0, r2_gamma=0.0), INFO)
    assert unpenalised.networks["discriminator"].eager_reason is None


HEALTHY = {"ranked_right": 0.7, "diversity": 1.0, "d_loss": 0.6}


def at(images_seen, total=10**9):
    return Progress(images_seen, images_seen / total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranked_right": 0.995}, "the discriminator is saturated: it tells 99.5% of the pairs apart"),
        ({"ranked_right": 0.5, "diversity": 0.4}, "the loss is stuck"),
        ({"diversity": 0.1}, "the generator collapses"),
    ],
)
def test_alarms_are_raised_once_and_only_if_a_sign_lasts(changes, words):
    alarms = Alarms(TINY, patience=1000)
    sick = HEALTHY | changes
    assert alarms(HEALTHY, at(100)) == []
    assert alarms(sick, at(200)) == []
    assert alarms(HEALTHY, at(1200)) == []  # it has recovered in between
    assert alarms(sick, at(1300)) == []
    assert alarms(sick, at(2200)) == []
    (message,) = alarms(sick, at(2300))
    assert words in message and "ry " in message
    assert alarms(sick, at(9000)) == []
    assert alarms(HEALTHY, at(9100)) == []
    assert alarms(sick, at(9200)) == [] and len(alarms(sick, at(10200))) == 1


def test_what_is_no_alarm():
    won = HEALTHY | {"ranked_right": 0.51}  # a generator that cannot be told from the data, as measured on MNIST
    critic = HEALTHY | {"ranked_right": 1.0}  # a critic tells all pairs apart; how far apart is what counts
    wasserstein = dataclasses.replace(TINY, objective="wasserstein", r1_gamma=0.0, r2_gamma=0.0, lipschitz_weight=10.0)
    for config, metrics in ((TINY, won), (wasserstein, critic)):
        alarms = Alarms(config, patience=10)
        assert [alarms(metrics, at(seen)) for seen in (10, 30, 60)] == [[], [], []]


def test_the_advice_can_be_followed():
    dcgan = dataclasses.replace(TINY, discriminator_norm="batch", r1_gamma=0.0, r2_gamma=0.0)
    alarms = Alarms(dcgan, patience=0)
    (message,) = alarms(HEALTHY | {"ranked_right": 1.0}, at(10))
    assert "`r1_gamma` 0.05 `r2_gamma` 0.05 with `discriminator_norm` group" in message
    dataclasses.replace(dcgan, r1_gamma=0.05, r2_gamma=0.05, discriminator_norm="group").validate()
    for bound, advised in (("none", True), ("tanh", False)):
        alarms = Alarms(dataclasses.replace(STYLE, output_activation=bound), patience=0)
        (message,) = alarms(HEALTHY | {"diversity": 0.1}, at(10))
        assert ("try `output_activation` tanh, " in message) == advised
