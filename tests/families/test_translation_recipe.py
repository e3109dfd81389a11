"""The translation recipe, without the loop."""

import dataclasses
import math

import pytest
import torch
from helpers import modules_of

from hfgen.data.columns import TRAIN, Image, Sources
from hfgen.data.config import DataConfig
from hfgen.data.info import DataInfo, ImageInfo, SourceInfo
from hfgen.families.translation.options import PRESETS, TranslationConfig, resolve, spec
from hfgen.families.translation.recipe import Alarms, TranslationRecipe, correlation, gray
from hfgen.pipelines.translation import ImageTranslationPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch, Progress

CPU = Machine("cpu", 8 << 30)
SMALL = {"base_channels": 4, "num_blocks": 1, "discriminator_channels": 4, "contrastive_places": 8}
TRAINING = ("lr_scheduler", "lr_warmup_steps", "max_grad_norm", "ema_half_life")
every = pytest.mark.parametrize("preset", PRESETS)


def info(mode_a="L", mode_b="L", size_a=8, size_b=8):
    columns = {"a": ImageInfo(mode_a, size_a), "b": ImageInfo(mode_b, size_b, "b")}
    return DataInfo({TRAIN: SourceInfo("a", "train", 100, 0, "0"), "b": SourceInfo("b", "train", 80, 0, "1")}, columns)


def tiny(preset, about=None, **changes):
    values = {name: value for name, value in PRESETS[preset]().items() if name not in TRAINING}
    return resolve(TranslationConfig(**values | SMALL | changes), about or info(), CPU)


def squares(count, seed=0, channels=1):
    """Bright squares at one of nine places."""
    places = torch.randint(0, 3, (count, 2), generator=torch.Generator().manual_seed(seed)) * 2
    images = torch.full((count, channels, 8, 8), -0.9)
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        image[:, row : row + 4, column : column + 4] = 0.9
    return images


def batch_of(a, b, seen, parts=1, part=0, purpose="", carry=None):
    """A micro-batch, as the engine makes them."""
    size = len(a) // parts
    chosen = slice(part * size, (part + 1) * size)
    random = StepRandom(0, seen, len(a), chosen.start, chosen.stop, purpose)
    return Batch({"a": a[chosen], "b": b[chosen]}, random, carry)


def trained(config, steps=150, size=16):
    """Plain torch trains it: squares into dark squares."""
    torch.manual_seed(0)
    recipe = TranslationRecipe(config, info())
    modules, logs = modules_of(recipe), []
    optimizers = [
        torch.optim.Adam([p for name in phase.updates for p in modules[name].parameters()], 2e-3, (0.5, 0.99))
        for phase in recipe.phases
    ]
    for step in range(steps):
        a = squares(size, step)
        b = -a if config.paired else -squares(size, 10_000 + step)
        carry, log = {}, {}
        for phase, optimizer in zip(recipe.phases, optimizers, strict=True):
            progress = Progress(step * size, step / steps, step)
            loss, metrics = recipe.loss(phase, batch_of(a, b, step * size, purpose=phase.name, carry=carry), progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log |= metrics
        logs.append(log)
    return recipe, logs


@every
def test_plain_torch_trains_it(preset):
    config = tiny(preset, identity_weight=0.0, learn_residual=False)
    recipe, logs = trained(config)
    for name in ("cycle_error", "pixel_error", "contrast"):
        if name in logs[0]:
            assert logs[-1][name] < 0.8 * logs[0][name], name
    modules = {name: module.eval() for name, module in modules_of(recipe).items()}
    pipe = recipe.pipeline(modules)
    assert isinstance(pipe, ImageTranslationPipeline)
    assert pipe.directions == (("a2b", "b2a") if preset == "cyclegan" else ("a2b",))
    images = squares(50, 99_999) / 2 + 0.5
    made = pipe(images, output_type="pt").images
    assert made.shape == images.shape and made.mean() > images.mean()  # the background became light


@every
def test_a_loss_is_a_pure_function(preset):
    """But for the pool, which remembers."""
    recipe = TranslationRecipe(tiny(preset, pool_size=0, dropout=0.0), info())
    found = []
    for _ in range(2):
        carry = {}
        found.append(
            [
                recipe.loss(phase, batch_of(squares(8), -squares(8, 1), 640, carry=carry), Progress(640, 0.1, 80))[0]
                for phase in recipe.phases
            ]
        )
    assert all(map(torch.equal, *found))


@every
def test_however_a_batch_is_split_the_loss_is_the_same(preset):
    recipe = TranslationRecipe(tiny(preset, pool_size=0, dropout=0.0), info())
    a, b, progress = squares(8), -squares(8, 1), Progress(640, 0.1, 80)
    for phase in recipe.phases:
        losses = []
        for parts in (1, 4):
            total = 0
            for part in range(parts):
                carry = {}
                for each in recipe.phases:  # the first one leaves translations for the second
                    loss, _ = recipe.loss(each, batch_of(a, b, 640, parts, part, each.name, carry), progress)
                    if each is phase:
                        total = total + loss / parts
            losses.append(total)
        torch.testing.assert_close(losses[0], losses[1])


def test_what_each_phase_trains():
    """No gradient of the discriminators' phase reaches the translators."""
    recipe = TranslationRecipe(tiny("cyclegan"), info())
    carry, modules = {}, modules_of(recipe)
    for phase in recipe.phases:
        for module in modules.values():
            module.zero_grad()
        loss, _ = recipe.loss(phase, batch_of(squares(4), -squares(4, 1), 0, carry=carry), Progress(0, 0.0, 0))
        loss.backward()
        touched = {name for name in modules if any(p.grad is not None for p in modules[name].parameters())}
        assert set(phase.updates) <= touched
        if phase.name == "discriminator":
            assert touched == set(phase.updates)
    assert not carry["fakes"]["b"].requires_grad


def test_identity_falls_to_nothing_at_half():
    recipe = TranslationRecipe(tiny("cyclegan"), info())
    a, b = squares(4), -squares(4, 1)

    def loss(fraction):
        found, metrics = recipe.loss(recipe.phases[0], batch_of(a, b, 0), Progress(0, fraction, 0))
        return found.item(), 2 * metrics["identity_error"].item()  # of both ways

    (start, error), (quarter, _), (half, _), (late, _) = map(loss, (0.0, 0.25, 0.5, 0.9))
    assert start - half == pytest.approx(5 * error, rel=1e-3) and half == late
    assert quarter - half == pytest.approx(2.5 * error, rel=1e-3)


def test_of_other_channels():
    """There is no identity, and everything else is as it is."""
    recipe = TranslationRecipe(tiny("cyclegan", info("L", "RGBA"), image_mode_b="RGBA"), info("L", "RGBA"))
    carry = {}
    for phase in recipe.phases:
        batch = batch_of(squares(4), squares(4, 1, 4), 0, carry=carry)
        loss, metrics = recipe.loss(phase, batch, Progress(0, 0.0, 0))
        assert loss.isfinite() and "identity_error" not in metrics and "change" not in metrics
    rows = recipe.card_images(modules_of(recipe), iter([batch_of(squares(8), squares(8, 1, 4), 0)]))
    assert [tuple(row.shape) for row in rows] == [(8, 4, 8, 8)] * 6


@every
def test_the_card(preset):
    recipe = TranslationRecipe(tiny(preset), info())
    batches = iter([batch_of(squares(5), squares(5, 1), 0), batch_of(squares(5, 2), squares(5, 3), 5)])
    rows = recipe.card_images({n: m.eval() for n, m in modules_of(recipe).items()}, batches)
    assert len(rows) == {"cyclegan": 6, "pix2pix": 3}.get(preset, 2)
    assert torch.equal(rows[0], torch.cat([squares(5), squares(5, 2)])[:8] / 2 + 0.5)


def test_sources():
    data = DataConfig(dataset_name="user/photos", resolution=32)
    found = spec(TranslationConfig(dataset_b="user/paintings", image_mode_b="L"), data)
    assert isinstance(found, Sources) and found.columns == {"a": Image(), "b": Image(source="b")}
    assert found.sources["b"].dataset_name == "user/paintings" and found.sources["b"].image_mode == "L"
    assert found.sources["b"].resolution == 32
    found = spec(TranslationConfig(dataset_b_split="winter"), data)
    assert found.sources["b"].dataset_name == "user/photos" and found.sources["b"].dataset_split == "winter"
    found = spec(TranslationConfig(image_column_b="drawing"), data)
    assert found.sources["b"].image_column == "drawing"
    paired = TranslationConfig(paired=True, image_column_b="drawing")
    assert spec(paired, data) == {"a": Image(), "b": Image(column="drawing")}
    with pytest.raises(UserError, match="`dataset_b` is missing: name the second set"):
        spec(TranslationConfig(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive_weight": 1.0}, "`contrastive_weight` 1.0 is for one way, and `cycle_weight` 10.0 translates"),
        ({"contrastive_weight": 1.0, "cycle_weight": 0.0, "architecture": "unet"}, "compares maps of resnet"),
        ({"pixel_weight": 1.0}, "`pixel_weight` 1.0 needs pairs: add `paired`"),
        ({"conditional_discriminator": True}, "`conditional_discriminator` True needs pairs"),
        ({"paired": True, "dataset_b": "x"}, "`dataset_b` x is another, whose rows belong to none of the first"),
        ({"paired": True}, "`paired` needs the column of the other image"),
        ({"cycle_weight": 0.0}, "so that nothing ties a translation to its image"),
        ({"num_downsamples": 5}, "`num_downsamples` 5 is for unet"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        TranslationConfig(**options)


def test_sets_of_different_sizes():
    with pytest.raises(UserError, match="of different sizes, 8 and 16 pixels: give one with `resolution`, such as 8"):
        TranslationRecipe(tiny("cyclegan"), info(size_b=16))
    with pytest.raises(UserError, match="`resolution` 4 does not fit resnet: sample_size is 4"):
        TranslationRecipe(tiny("cyclegan", info(size_a=4, size_b=4)), info(size_a=4, size_b=4))


def test_signs():
    image = squares(4)
    assert correlation(gray(image), gray(-image)).item() == pytest.approx(-1)
    assert correlation(gray(image), gray(0.1 * image + 0.5)).item() == pytest.approx(1)
    assert correlation(gray(image), torch.zeros(4, 8, 8)) == 0
    hidden = torch.cat([squares(2, 0, 3), torch.full((2, 1, 8, 8), -1.0)], 1)
    assert (gray(hidden) == 1).all()  # transparent is white


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ({"correlation": -0.8, "tone_a": 0.1, "tone_b": 0.0}, "colours are inverted"),
        ({"correlation": -0.8, "tone_a": -0.8, "tone_b": 0.8}, None),  # as the sets are
        ({"diversity": 0.02}, "all images get the same translation"),
        ({"change": 0.01, "ranked_right": 0.99}, "nothing is changed"),
        ({"change": 0.01, "ranked_right": 0.6}, None),  # nothing has to be
        ({"black": 0.4}, "black spots"),
        ({"correlation": math.nan, "diversity": math.nan}, None),
    ],
)
def test_alarms(means, words):
    alarms = Alarms(dataclasses.replace(tiny("cyclegan")), patience=100)
    said = [text for seen in range(0, 5000, 500) for text in alarms(means, Progress(seen, seen / 5000, seen))]
    assert len(said) == (words is not None)
    if words:
        assert words in said[0] and "Try" in said[0] and said[0].startswith("for ")
