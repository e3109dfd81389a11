"""The flow recipe, without the loop."""

import dataclasses
import math

import pytest
import torch
from helpers import data_info, modules_of

from hfgen.families.flow.options import FlowConfig, resolve
from hfgen.families.flow.recipe import FlowRecipe
from hfgen.objectives.dequantisation import round_to_levels
from hfgen.pipelines.flow import FlowPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.notes import notes_to
from hfgen.sampling.capabilities import adapter_of
from hfgen.sampling.flow import probability_bound
from hfgen.sampling.latents import walk
from hfgen.sampling.sampler import Sampler
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch, Progress

INFO = data_info()
CPU = Machine("cpu", 8 << 30)
TINY = {
    "tarflow": FlowConfig(patch_size=4, num_blocks=2, layers_per_block=1, hidden_size=16, attention_head_dim=8),
    "glow": FlowConfig(architecture="glow", num_steps=2, hidden_size=8),
}
every = pytest.mark.parametrize("architecture", TINY)


def tiny(architecture, **changes):
    return resolve(dataclasses.replace(TINY[architecture], **changes), INFO, CPU)


def squares(count, seed=0):
    """Bright squares at one of nine places."""
    places = torch.randint(0, 3, (count, 2), generator=torch.Generator().manual_seed(seed)) * 2
    images = torch.full((count, 1, 8, 8), -1.0)
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        image[:, row : row + 4, column : column + 4] = 1
    return images


def batch_of(images, seen, labels=None, parts=1, part=0):
    """A micro-batch, as the engine makes them."""
    size = len(images) // parts
    chosen = slice(part * size, (part + 1) * size)
    random = StepRandom(0, seen, len(images), chosen.start, chosen.stop)
    return Batch({"image": images[chosen]} | ({} if labels is None else {"label": labels[chosen]}), random)


def trained(config, steps=100, conditional=False):
    """Plain torch trains it."""
    torch.manual_seed(0)
    recipe = FlowRecipe(config, INFO)
    optimizer = torch.optim.AdamW(recipe.flow.parameters(), lr=3e-3)
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
    recipe.flow.eval()
    return recipe, logs


@every
@pytest.mark.parametrize("dequantisation", ["uniform", "gaussian"])
def test_plain_torch_trains_it(architecture, dequantisation):
    conditional = dequantisation == "gaussian"
    config = tiny(architecture, dequantisation=dequantisation, class_conditional=conditional)
    recipe, logs = trained(config, conditional=conditional)
    assert logs[-1]["bits_per_dim"] < 0.8 * logs[0]["bits_per_dim"]
    assert logs[-1]["bits_per_dim"] == pytest.approx(logs[-1]["loss"] / math.log(2))
    pipe = recipe.pipeline(modules_of(recipe))
    assert isinstance(pipe, FlowPipeline) and pipe.config.noise_std == config.noise_std
    assert Sampler(pipe, recipe.sampling, "it")(range(4), 0).shape == (4, 1, 8, 8)
    # What training reports is what evaluation reports, of the same images.
    images = squares(200, 1000)
    labels = (images[:, 0, 3, 3] > 0).long() if conditional else None
    density = probability_bound(pipe, images, labels, 4, torch.Generator().manual_seed(0))
    assert density.lower.dtype == torch.float32 and (density.estimate >= density.lower).all()
    bits = -density.lower.mean().item() / 64 / math.log(2)
    assert bits == pytest.approx(sum(log["bits_per_dim"] for log in logs[-5:]) / 5, rel=0.2)


@every
def test_a_loss_is_a_pure_function(architecture):
    recipe = FlowRecipe(tiny(architecture), INFO)
    first, second = (
        recipe.loss(recipe.phases[0], batch_of(squares(16), 640), Progress(640, 0.1, 40))[0] for _ in range(2)
    )
    assert torch.equal(first, second)


@every
def test_however_a_batch_is_split_the_loss_is_the_same(architecture):
    recipe = FlowRecipe(tiny(architecture), INFO)
    phase, progress = recipe.phases[0], Progress(640, 0.1, 40)
    whole = recipe.loss(phase, batch_of(squares(16), 640), progress)[0]
    parts = [recipe.loss(phase, batch_of(squares(16), 640, None, 4, part), progress)[0] for part in range(4)]
    torch.testing.assert_close(sum(parts) / 4, whole)


def test_the_first_step_gives_actnorm_its_statistics():
    recipe = FlowRecipe(tiny("glow"), INFO)
    norm = recipe.flow.levels[0].norms[0]
    for part in range(2):
        recipe.loss(recipe.phases[0], batch_of(squares(16), 0, None, 2, part), Progress(0, 0.0, 0))
    assert norm.initialised == 0 and norm.noted_count == 16 * 16
    recipe.after_step(16)
    assert norm.initialised == 1 and norm.noted_count == 0
    before = norm.mean.clone()
    recipe.loss(recipe.phases[0], batch_of(squares(16, 5), 16), Progress(16, 0.1, 1))
    recipe.after_step(16)
    assert torch.equal(norm.mean, before)
    assert "actnorm" in recipe.batch_statistics and FlowRecipe(tiny("tarflow"), INFO).batch_statistics is None


def test_bfloat16_leaves_likelihoods_in_float32():
    for architecture in TINY:
        recipe = FlowRecipe(tiny(architecture), INFO)
        with torch.autocast("cpu", torch.bfloat16):
            loss, metrics = recipe.loss(recipe.phases[0], batch_of(squares(16), 0), Progress(0, 0.0, 1))
        assert loss.dtype == metrics["bits_per_dim"].dtype == torch.float32


def test_images_between_two_levels_are_rounded_and_it_is_said():
    """As augmentation makes them; evaluation refuses them."""
    recipe, said = FlowRecipe(tiny("tarflow"), INFO), []
    images = squares(16) * 0.777
    with notes_to(said.append):
        loss, _ = recipe.loss(recipe.phases[0], batch_of(images, 0), Progress(0, 0.0, 0))
    assert len(said) == 1 and "rounded" in said[0]
    with notes_to(said.append):
        same, _ = recipe.loss(recipe.phases[0], batch_of(round_to_levels(images), 0), Progress(0, 0.0, 0))
    assert torch.equal(loss, same) and len(said) == 1
    with pytest.raises(ValueError, match="between two of them"):
        adapter_of(recipe.pipeline(modules_of(recipe))).log_prob(images)


def test_classes_and_guidance():
    options = {"class_conditional": True, "label_dropout": 0.3}
    recipe = FlowRecipe(tiny("tarflow", **options), data_info(unlabelled=10))
    assert recipe.null_class == 3 and recipe.flow.config.num_class_embeds == 4 and not recipe.needs_labels
    labels = torch.full((16,), -1)
    assert recipe.loss(recipe.phases[0], batch_of(squares(16), 0, labels), Progress(0, 0.0, 0))[0].isfinite()
    pipe = recipe.pipeline(modules_of(recipe))
    assert pipe.class_names == ["a", "b", "c"] and pipe.null_class == 3
    for architecture, dropout in (("tarflow", 0.0), ("glow", 0.3)):
        other = FlowRecipe(tiny(architecture, class_conditional=True, label_dropout=dropout), INFO)
        assert other.null_class is None and other.needs_labels and other.flow.config.num_class_embeds == 3
        adapter = adapter_of(other.pipeline(modules_of(other)))
        with pytest.raises(UserError, match="`guidance_scale` 2.0 needs a model trained with `label_dropout`"):
            adapter.check(adapter.options(guidance_scale=2.0))
        with pytest.raises(UserError, match="10 of the images have no class"):
            FlowRecipe(tiny(architecture, class_conditional=True, label_dropout=dropout), data_info(unlabelled=10))


@every
def test_walks_and_drawn_latents(architecture):
    recipe = FlowRecipe(tiny(architecture), INFO)
    adapter = adapter_of(recipe.pipeline(modules_of(recipe).copy()))
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    latents, labels = adapter.draw(generators, None, adapter.options(temperature=0.7))
    assert labels is None and latents.shape == (2, 1, 8, 8)
    frames = walk(adapter, latents, 5)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    ends = adapter.generate(generators, None, adapter.options(temperature=0.7))
    torch.testing.assert_close(frames[[0, -1]], ends, rtol=0, atol=1e-4)
    assert adapter.details(5) == {"kind": "bound", "bound": "dequantised-5"}


def test_what_depends_on_the_size_is_resolved():
    def resolved(size, **options):
        return resolve(
            FlowConfig(**options), dataclasses.replace(INFO) if size == 8 else data_info(resolution=size), CPU
        )

    for size, patch in ((8, 1), (16, 2), (28, 4), (32, 4), (64, 8), (29, 1)):
        assert resolved(size).patch_size == patch, size
    for channels, size, patch in ((4, 64, 4), (3, 128, 8), (1, 256, 8)):  # of 192 numbers at most
        info = data_info(resolution=size, mode={1: "L", 3: "RGB", 4: "RGBA"}[channels])
        assert resolve(FlowConfig(), info, CPU).patch_size == patch, size
    for size, levels in ((8, 1), (28, 2), (32, 3), (256, 3)):
        assert resolved(size, architecture="glow").num_levels == levels, size
    assert resolved(28).num_levels is None and resolved(28, architecture="glow").patch_size is None
    assert resolved(28, dequantisation="uniform").noise_std is None and resolved(28).noise_std == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantisation": "uniform", "noise_std": 0.2}, "`noise_std` 0.2: uniform noise has none"),
        ({"architecture": "glow", "patch_size": 2}, "`patch_size` is for tarflow, not for glow"),
        ({"num_levels": 2}, "`num_levels` is for glow, not for tarflow"),
    ],
)
def test_options_that_do_not_fit_each_other(options, message):
    with pytest.raises(UserError, match=message):
        FlowConfig(**options)


@pytest.mark.parametrize(
    ("architecture", "changes", "size", "message"),
    [
        ("tarflow", {"patch_size": 5}, 8, "`architecture` tarflow does not fit .*patch_size is 5"),
        ("tarflow", {"hidden_size": 20}, 8, "`architecture` tarflow does not fit .*hidden_size is 20"),
        ("glow", {"num_levels": 4}, 8, "`architecture` glow does not fit .*num_levels is 4"),
        ("glow", {}, 29, "`architecture` glow does not fit .*num_levels is 1"),
    ],
)
def test_networks_that_do_not_fit_the_images(architecture, changes, size, message):
    info = data_info(resolution=size)
    with pytest.raises(UserError, match=message):
        FlowRecipe(resolve(dataclasses.replace(TINY[architecture], **changes), info, CPU), info)
