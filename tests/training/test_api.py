"""What training asks of the memory: estimated before anything is allocated, by the options that decide it."""

import pytest
import torch
from helpers import data_info

from hfgen.data.columns import DEFAULT
from hfgen.data.streams import open_stream
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine, weight_bytes
from hfgen.training.api import check_memory, recipe_of
from hfgen.training.engine import Engine
from hfgen.training.options import collect
from hfgen.training.recipe import TRAINED
from hfgen.training.schedules import Schedule

TINY = {
    "ddpm": {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 8},
    "gan": {"base_channels": 8, "latent_dim": 4, "num_clusters": 0},
    "vae": {"block_out_channels": (8, 8), "latent_channels": 4},
}
SHARED = {"dataset_name": "digits", "resolution": 8, "train_batch_size": 4, "mixed_precision": "no"}


def resolved(family, **options):
    info = data_info(resolution=options.get("resolution", 8), class_names=None)
    return collect(family, **SHARED | TINY[family] | options).resolve(info, Machine(), "no"), info


@pytest.mark.parametrize("family", TINY)
@pytest.mark.usefixtures("on_the_cpu")
def test_the_estimate_is_what_a_step_leaves(family):
    options, _ = resolved(family)
    stream = open_stream(DEFAULT, options.data, 0)
    recipe = recipe_of(options.family)(options.own, stream.info)
    engine = Engine(recipe, options.training, Schedule(options.training, 100), options.data)
    engine.step(0, [stream.read(0, 4)])
    tensors = [tensor for module in engine.modules.values() for tensor in (*module.parameters(), *module.buffers())]
    tensors += [
        tensor for module in engine.ema.modules.values() for tensor in (*module.parameters(), *module.buffers())
    ]
    for optimizer in engine.optimizers.values():
        for parameter, state in optimizer.optimizer.state.items():
            tensors += [parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
    used = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with torch.device("meta"):
        networks = recipe_of(options.family)(options.own, stream.info).networks.values()
    for parameter in (p for module in engine.modules.values() for p in module.parameters()):
        parameter.requires_grad_(True)  # phases switch them
    assert sum(weight_bytes(n.module, n.role == TRAINED, n.averaged) for n in networks) == used


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "ddpm",
            {"block_out_channels": (65536, 65536)},
            "`resolution` 8 `block_out_channels` 65536 65536: .* M weights, with",
        ),
        ("gan", {"architecture": "mlp", "base_channels": 65536}, "`base_channels` 65536: .* M weights, .* need .* TB"),
        ("vae", {"latent_channels": 65536, "block_out_channels": (4096,)}, "`latent_channels` 65536 .*: .* M weights"),
        (
            "gan",
            {"train_batch_size": 2**20, "resolution": 256},
            "^`train_batch_size` 1048576: 1048576 images of 1x256",
        ),
        (
            "vae",
            {"gradient_accumulation_steps": 65536, "resolution": 256},
            "^`train_batch_size` 4 `gradient_accumulation_steps` 65536: 262144 images of 1x256x256",
        ),
        ("ddpm", {"eval_batch_size": 2**20, "resolution": 256}, "^`eval_batch_size` 1048576: "),
        (
            "gan",
            {"streaming": True, "dataset_name": "a/b", "max_train_steps": 1, "shuffle_buffer_size": 2**30},
            "^`shuffle_buffer_size` 1073741824: so many images in memory need 68.72 GB",
        ),
    ],
)
def test_what_no_memory_could_hold_is_told_beforehand(family, options, message, monkeypatch):
    options, info = resolved(family, **options)
    state = torch.random.get_rng_state()
    monkeypatch.setattr(Machine, "host", classmethod(lambda cls: cls("cpu", 16 * 2**30)))
    with pytest.raises(UserError, match=message):
        check_memory(options, info, Machine("cpu", 16 * 2**30))
    monkeypatch.setattr(Machine, "host", classmethod(lambda cls: cls("cpu", 2**62)))
    check_memory(options, info, Machine("cpu", 2**62))
    assert torch.equal(torch.random.get_rng_state(), state)  # the weights are drawn as if nothing had been estimated


def test_a_network_that_cannot_be_made_without_memory_is_not_estimated(monkeypatch):
    options, info = resolved("gan")

    class Stubborn(recipe_of(options.family)):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            float(next(self.generator.parameters()).detach().sum())  # a value, which the meta device has none of

    monkeypatch.setattr("hfgen.training.api.recipe_of", lambda family: Stubborn)
    check_memory(options, info, Machine("cpu", 10**6))
    Stubborn(options.own, info)
