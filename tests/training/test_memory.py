"""The memory of a step, estimated: it is what a real step asks torch for, and decides before anything is trained."""

import dataclasses
import weakref

import pytest
import torch
from helpers import data_info
from torch.utils._python_dispatch import TorchDispatchMode

from hfgen.runtime.errors import UserError
from hfgen.runtime.launch import make_accelerator
from hfgen.runtime.machine import Machine
from hfgen.training import memory
from hfgen.training.api import check_memory, open_recipe, recipe_of
from hfgen.training.engine import Engine
from hfgen.training.memory import Counter, TooLong, most_a_step_takes, nearest, step_memory
from hfgen.training.options import collect
from hfgen.training.schedules import Schedule

GAN = {"num_clusters": 0, "penalty_interval": 4}
TRANSLATION = {"dataset_b_split": "train", "base_channels": 8, "num_blocks": 2, "discriminator_channels": 8}
RUNS = {
    "ddpm": ("ddpm", {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8, "dropout": 0.1}),
    "gan": ("gan", GAN | {"base_channels": 8, "latent_dim": 8, "ada_target": 0.6}),
    "stylegan2": ("gan", GAN | {"preset": "stylegan2", "base_channels": 32, "max_channels": 32}),
    "vae": ("vae", {"block_out_channels": (16, 16)}),
    "hierarchical": ("vae", {"preset": "hierarchical", "block_out_channels": (8, 8)}),
    "vq": ("vae", {"preset": "vq", "block_out_channels": (16, 16)}),
    "tarflow": ("flow", {"num_blocks": 2, "hidden_size": 32, "attention_head_dim": 16}),
    "glow": ("flow", {"preset": "glow", "num_steps": 2, "hidden_size": 16, "num_levels": 1}),
    "pixelcnn": ("autoregressive", {"base_channels": 8, "dilations": (1, 2), "dropout": 0.1}),
    "restorer": (
        "ddpm",
        {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8, "task": "inpaint"},
    ),
    "cyclegan": ("translation", TRANSLATION),
    "cut": ("translation", TRANSLATION | {"preset": "cut", "contrastive_places": 16}),
    "transformer": ("autoregressive", {"preset": "transformer", "hidden_size": 32, "num_layers": 2}),
}
SHARED = {
    "dataset_name": "digits",
    "resolution": 16,
    "train_batch_size": 16,
    "mixed_precision": "no",
    "cpu_threads": 1,
}


class RealCounter(TorchDispatchMode):
    """Counts what is really allocated from now on."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return result

    def count(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:

            def free(_):
                del self.known[key]
                self.now -= size

            self.known[key] = weakref.ref(storage, free)
            self.now += size
            self.most = max(self.most, self.now)


def really_taken(recipe, stream, options, live):
    """The most that a step takes, once there have been others: counted while it is made."""
    schedule = Schedule(options.training, stream.info.num_images)
    engine = Engine(recipe, options.training, schedule, options.data, live=live)

    def step(number):
        seen = number * schedule.batch
        engine.step(seen, [stream.read(seen + start, schedule.micro_batch) for start in schedule.starts])

    step(0)
    with RealCounter() as counter:
        for module in (*engine.modules.values(), *engine.ema.modules.values()):
            for tensor in (*module.parameters(), *module.buffers()):
                counter.count(tensor.detach())
        for parameters in engine.parameters.values():
            for parameter in parameters.values():
                counter.count(parameter.grad)
        for optimizer in engine.optimizers.values():
            for state in optimizer.optimizer.state.values():
                counter.count(state["exp_avg"])
                counter.count(state["exp_avg_sq"])
        step(4)  # intervals of up to 4 are due
    return counter.most


CASES = [(name, False) for name in RUNS] + [(name, True) for name in ("ddpm", "gan", "vae", "transformer")]


@pytest.mark.parametrize(("name", "checkpointing"), CASES)
@pytest.mark.usefixtures("on_the_cpu")
def test_the_estimate_is_what_a_step_takes(name, checkpointing, tmp_path):
    family, own = RUNS[name]
    steps = {"gradient_accumulation_steps": 2} if name == "vae" else {}
    asked = collect(
        family, **SHARED | own | steps, gradient_checkpointing=checkpointing, output_dir=str(tmp_path / "run")
    )
    recipe, stream, options, live = open_recipe(asked, make_accelerator("no", 1))
    state = torch.random.get_rng_state()
    estimate = step_memory(recipe_of(options.family), options, stream.info)
    assert torch.equal(torch.random.get_rng_state(), state)
    taken = really_taken(recipe, stream, options, live)
    assert estimate == pytest.approx(taken, rel=0.05)  # of networks as small as these, a batch of images is a percent
    assert most_a_step_takes(recipe.networks.values(), options, stream.info) > estimate


def resolved(family="vae", resolution=64, machine=None, **given):
    asked = collect(family, dataset_name="user/pictures", resolution=resolution, **given)
    info = data_info(resolution=resolution, mode="RGB", class_names=None)
    return asked, asked.resolve(info, machine or Machine(), "no"), info


SMALL = {"architecture": "conv", "block_out_channels": (8, 8), "latent_channels": 4, "train_batch_size": 4}


def test_what_does_not_fit_is_told_with_the_nearest_that_does():
    asked, options, info = resolved(**SMALL)
    kind = recipe_of(options.family)

    def taken(**changes):
        training = dataclasses.replace(options.training, **changes)
        return step_memory(kind, dataclasses.replace(options, training=training), info)

    halves = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    ones = {"train_batch_size": 1, "gradient_accumulation_steps": 4}
    again = {"gradient_checkpointing": True}
    whole = taken()
    check_memory(options, info, Machine("cpu", whole), asked)
    with pytest.raises(UserError) as error:
        check_memory(options, info, Machine("cpu", whole - 1), asked)
    assert str(error.value).startswith("`train_batch_size` 4 at `resolution` 64: a step takes about ")
    assert "What fits: `train_batch_size` 2 `gradient_accumulation_steps` 2 (" in str(error.value)
    assert ", or `gradient_checkpointing` (" in str(error.value)
    # What is proposed does fit, and the next larger batch does not.
    assert nearest(kind, options, info, Machine("cpu", taken(**halves) - 1), asked)[0] == (ones, taken(**ones))
    both = taken(**ones, **again)
    assert nearest(kind, options, info, Machine("cpu", taken(**ones) - 1), asked) == [(again | ones, both)]
    ((change, size),) = nearest(kind, options, info, Machine("cpu", both - 1), asked)
    assert change.keys() == {"resolution"} and change["resolution"] < 64 and size < both
    assert nearest(kind, options, info, Machine("cpu", 1), asked) == []


def test_processes_of_one_cpu_share_its_memory(monkeypatch):
    _, options, info = resolved(**SMALL)
    whole = step_memory(recipe_of(options.family), options, info, processes=2)
    check_memory(options, info, Machine("cpu", 2 * whole, 2))
    with pytest.raises(UserError, match="a step takes about"):
        check_memory(options, info, Machine("cpu", 2 * whole - 2, 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other one is on another machine
    check_memory(options, info, Machine("cpu", whole, 2))
    assert Machine("cuda", 100, 4).share == 100


def test_batches_that_a_family_does_not_take_are_not_tried(monkeypatch):
    made = []
    monkeypatch.setattr(memory, "Counter", lambda device: made.append(device) or Counter(device))
    _, options, info = resolved("gan", 8, architecture="mlp", base_channels=8, num_clusters=0, train_batch_size=2)
    assert nearest(recipe_of(options.family), options, info, Machine("cpu", 1)) == []
    assert len(made) == 1  # gradient checkpointing: batch normalisation needs two images


def test_what_cannot_be_estimated_is_not_refused(monkeypatch):
    _, options, info = resolved(**SMALL)

    class Reads(recipe_of(options.family)):
        def loss(self, *arguments):
            loss, metrics = super().loss(*arguments)
            return loss * float(loss), metrics  # a value, which a tensor without memory does not have

    assert step_memory(Reads, options, info) is None
    monkeypatch.setattr("hfgen.training.api.recipe_of", lambda family: Reads)
    needed = step_memory(recipe_of(options.family), options, info)
    check_memory(options, info, Machine("cpu", needed // 2))


def test_a_step_of_very_many_operations_is_estimated_without_what_is_due_now_and_then(monkeypatch):
    _, options, info = resolved("gan", 8, base_channels=8, num_clusters=0, train_batch_size=4, ada_target=None)
    made = []
    monkeypatch.setattr(memory, "Counter", lambda device: made.append(Counter(device)) or made[-1])
    whole = step_memory(recipe_of(options.family), options, info)
    monkeypatch.setattr(memory, "OPERATIONS", made[0].operations - 1)
    assert 0 < step_memory(recipe_of(options.family), options, info) < whole
    assert len(made) == 3
    monkeypatch.setattr(memory, "OPERATIONS", 10)
    assert step_memory(recipe_of(options.family), options, info) is None
    with pytest.raises(TooLong), Counter("cpu"):
        for _ in range(11):
            torch.zeros(1)


def test_half_precision_takes_less():
    _, options, info = resolved("vae", 32, train_batch_size=4)
    whole = step_memory(recipe_of(options.family), options, info)
    training = dataclasses.replace(options.training, mixed_precision="bf16")
    half = step_memory(recipe_of(options.family), dataclasses.replace(options, training=training), info)
    assert half < whole
