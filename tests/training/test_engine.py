"""The engine: a step is public, its state is all there is, and what a recipe declares is what happens."""

import copy
import dataclasses

import pytest
import torch
from helpers import data_info, modules_of
from torch import nn

from hfgen.data.columns import DEFAULT
from hfgen.data.config import DataConfig
from hfgen.data.streams import open_stream
from hfgen.families.gan.options import GANConfig
from hfgen.families.gan.recipe import GANRecipe
from hfgen.runtime.errors import UserError
from hfgen.training.config import TrainingConfig
from hfgen.training.engine import Engine
from hfgen.training.optimizers import parameter_groups, select
from hfgen.training.recipe import FROZEN, STATE, AdamW, Network, ParameterGroup, Phase, Recipe
from hfgen.training.schedules import Schedule

pytestmark = pytest.mark.usefixtures("on_the_cpu")

CONFIG = TrainingConfig(
    mixed_precision="no", cpu_threads=1, train_batch_size=8, gradient_accumulation_steps=2, max_train_steps=6,
    lr_warmup_steps=2,
)  # fmt: skip
DATA = DataConfig(resolution=8, random_flip=True)


DCGAN = GANConfig(latent_dim=4, base_channels=8, ada_target=0.6)
STYLEGAN2 = GANConfig(
    architecture="stylegan2", latent_dim=4, base_channels=4, residual_discriminator=True, path_length_weight=2.0,
    path_length_interval=2, style_mixing=0.9,
)  # fmt: skip


def made(config=DCGAN):
    """An engine of a tiny GAN, its stream and its schedule."""
    stream = open_stream(DEFAULT, DATA, 0)
    torch.manual_seed(0)
    recipe = GANRecipe(config, stream.info)
    schedule = Schedule(CONFIG, stream.info.num_images)
    return Engine(recipe, CONFIG, schedule, DATA), stream, schedule


def steps(engine, stream, schedule, first, last):
    for images_seen in range(first * schedule.batch, last * schedule.batch, schedule.batch):
        engine.step(images_seen, [stream.read(images_seen + start, schedule.micro_batch) for start in schedule.starts])


def weights(engine):
    return {f"{name}.{key}": value for name, m in engine.modules.items() for key, value in m.state_dict().items()}


@pytest.mark.parametrize("config", [DCGAN, STYLEGAN2], ids=["dcgan", "stylegan2"])
def test_a_step_repeats_itself_from_its_state(config):
    engine, stream, schedule = made(config)
    steps(engine, stream, schedule, 0, 3)
    tensors, values = copy.deepcopy(engine.state_dict())
    steps(engine, stream, schedule, 3, 6)
    other, stream, schedule = made(config)
    other.load_state_dict(tensors, values)
    steps(other, stream, schedule, 3, 6)
    one, two = weights(engine), weights(other)
    assert ("path_length.mean" in one) == (config is STYLEGAN2) and one.get("path_length.mean", 1) > 0
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            engine.published["generator"].parameters(), other.published["generator"].parameters(), strict=True
        )
    )
    assert engine.metrics.means() == other.metrics.means()


@pytest.mark.parametrize("config", [DCGAN, STYLEGAN2], ids=["dcgan", "stylegan2"])
def test_gradient_checkpointing_trains_the_same_weights(config, monkeypatch):
    """With batch normalisation, penalties on gradients, path lengths, augmentation and accumulation."""
    engine, stream, schedule = made(config)
    steps(engine, stream, schedule, 0, 5)
    checkpointing = dataclasses.replace(CONFIG, gradient_checkpointing=True)
    monkeypatch.setattr(f"{__name__}.CONFIG", checkpointing)
    other, stream, schedule = made(config)
    steps(other, stream, schedule, 0, 5)
    assert all(other.modules[name].is_gradient_checkpointing for name in ("generator", "discriminator"))
    one, two = weights(engine), weights(other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert engine.metrics.means() == other.metrics.means()


def test_gradient_checkpointing_of_a_network_that_cannot():
    config = dataclasses.replace(CONFIG, gradient_checkpointing=True)
    with pytest.raises(UserError, match="`gradient_checkpointing`: the network 'generator' does not support it"):
        Engine(GANRecipe(dataclasses.replace(DCGAN, architecture="mlp"), data_info()), config, Schedule(config, 100))


def test_metrics_and_the_first_bad_step():
    engine, stream, schedule = made()
    steps(engine, stream, schedule, 0, 2)
    means = engine.metrics.means()
    assert {"d_loss", "g_loss", "grad_norm_discriminator", "grad_norm_generator"} <= means.keys()
    assert engine.metrics.first_bad_step() is None
    with torch.no_grad():
        next(engine.modules["generator"].parameters()).fill_(float("nan"))
    steps(engine, stream, schedule, 2, 3)
    assert engine.metrics.first_bad_step() == ("discriminator", 32)


def test_the_rates_that_are_logged_are_those_of_the_last_updates_also_after_resuming():
    engine, stream, schedule = made(dataclasses.replace(DCGAN, discriminator_steps=3))
    for step in range(5):
        steps(engine, stream, schedule, step, step + 1)
        rates = engine.learning_rates((step + 1) * schedule.batch)
        assert rates == {name: own.param_groups[0]["lr"] for name, own in engine.optimizers.items()}
    assert rates["generator"] != rates["discriminator"]  # whose last update was a step later
    other, _, _ = made(dataclasses.replace(DCGAN, discriminator_steps=3))
    other.load_state_dict(*engine.state_dict())
    assert other.learning_rates(5 * schedule.batch) == rates


class Parts(Recipe):
    """Two layers and a frozen one; the second phase uses what the first left."""

    def __init__(self):
        self.net = nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64), "never": nn.Linear(64, 64)})
        self.frozen = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64))
        self.count = nn.Module()
        self.count.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.networks = {
            "net": Network(self.net, averaged=True),
            "frozen": Network(self.frozen, FROZEN, origin="user/frozen"),
            "count": Network(self.count, STATE),
        }
        self.phases = (
            Phase("first", ("net.first.*",), AdamW(1e-2)),
            Phase("second", ("net.second",), AdamW(1e-2), every=2),
        )
        self.requiring, self.carried = [], []

    def loss(self, phase, batch, progress):
        self.requiring.append({n for n, p in self.net.named_parameters() if p.requires_grad})
        flat = batch["image"].flatten(1)
        if phase.name == "first":
            out = self.frozen(self.net["first"](flat))
            batch.carry["out"] = out.detach()
        else:
            out = self.net["second"](batch.carry["out"])
            self.carried.append(len(out))
        return (out - flat).square().mean(), {"loss": out.detach().mean()}

    def after_step(self, images):
        self.count.steps += 1


def test_phases_update_what_they_select_and_share_a_step():
    stream = open_stream(DEFAULT, DATA, 0)
    recipe = Parts()
    before = {name: value.clone() for name, value in recipe.net.state_dict().items()}
    running = recipe.frozen[1].running_mean.clone()
    schedule = Schedule(CONFIG, stream.info.num_images)
    engine = Engine(recipe, CONFIG, schedule, DATA)
    steps(engine, stream, schedule, 0, 1)
    assert recipe.requiring[:1] == [{"first.weight", "first.bias"}]
    assert recipe.requiring[2:3] == [{"second.weight", "second.bias"}]
    assert recipe.carried == [8, 8]
    steps(engine, stream, schedule, 1, 2)
    assert recipe.carried == [8, 8]  # the second phase is due every other step
    changed = {name for name, value in recipe.net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert torch.equal(recipe.frozen[1].running_mean, running)
    assert not recipe.frozen.training and recipe.net.training
    tensors, values = engine.state_dict()
    assert set(tensors) == {"net", "count", "ema_net", "optimizer_first", "optimizer_second", "metrics"}
    assert tensors["count"]["steps"] == 2
    assert set(values["frozen"]) == {"frozen"} and set(engine.published) == {"net", "frozen"}


@pytest.mark.parametrize("parts", [1, 4])
def test_each_image_counts_alike_however_batches_are_split(parts):
    stream = open_stream(DEFAULT, DATA, 0)
    split = dataclasses.replace(CONFIG, train_batch_size=16 // parts, gradient_accumulation_steps=parts)
    schedule, other_schedule = Schedule(CONFIG, 1797), Schedule(split, 1797)

    def engine(config, schedule):
        torch.manual_seed(0)
        return Engine(Parts(), config, schedule, DATA)

    whole, first, second = engine(CONFIG, schedule), engine(CONFIG, schedule), engine(split, other_schedule)
    steps(whole, stream, schedule, 0, 4)
    steps(first, stream, schedule, 0, 3)
    second.load_state_dict(*copy.deepcopy(first.state_dict()))
    steps(second, stream, other_schedule, 3, 4)
    assert second.metrics.means() == pytest.approx(whole.metrics.means(), rel=1e-5)


def test_other_frozen_weights_are_refused():
    from hfgen.runtime.errors import UserError

    schedule = Schedule(CONFIG, 100)
    torch.manual_seed(0)
    engine = Engine(Parts(), CONFIG, schedule, DATA)
    tensors, values = engine.state_dict()
    other = Parts()
    other.frozen[1].weight.data.add_(1)
    with pytest.raises(UserError, match="frozen network 'frozen' has other weights"):
        Engine(other, CONFIG, schedule, DATA).load_state_dict(tensors, values)


def test_another_architecture_is_refused_and_nothing_changes():
    from hfgen.runtime.errors import UserError

    info, schedule = data_info(), Schedule(CONFIG, 100)
    small = Engine(GANRecipe(GANConfig(latent_dim=4, base_channels=8), info), CONFIG, schedule)
    large = Engine(GANRecipe(GANConfig(latent_dim=4, base_channels=16), info), CONFIG, schedule)
    before = {name: value.clone() for name, value in weights(small).items()}
    with pytest.raises(UserError, match="another architecture"):
        small.load_state_dict(*large.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in weights(small).items())


def test_patterns_and_groups():
    modules = modules_of(Parts())
    candidates = {f"net.{name}": parameter for name, parameter in modules["net"].named_parameters()}
    assert list(select(candidates, Phase("p", ("net.second", "net.first.bias"), AdamW(1)))) == [
        "net.second.weight", "net.second.bias", "net.first.bias",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'net.third', which no trained network has"):
        select(candidates, Phase("p", ("net.third",), AdamW(1)))
    slow = ParameterGroup(("*.bias",), learning_rate=0.1)
    undecayed = ParameterGroup(("net.first.*",), weight_decay=0.0)
    groups = parameter_groups(candidates, AdamW(1.0, weight_decay=0.5, groups=(slow, undecayed)))
    assert [(list(part), rate, decay) for part, rate, decay in groups] == [
        (["net.second.weight", "net.never.weight"], 1.0, 0.5),
        (["net.first.bias", "net.second.bias", "net.never.bias"], 0.1, 0.5),
        (["net.first.weight"], 1.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "cold"}, "role is 'cold'"),
        ({"buffers": "shared"}, "buffers is 'shared'"),
        ({"role": FROZEN, "averaged": True}, "its average is itself"),
    ],
)
def test_networks_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        Network(nn.Linear(1, 1), **values)
