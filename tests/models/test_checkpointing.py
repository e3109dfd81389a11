"""Gradient checkpointing of blocks that change when they are computed."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hfgen import DCGANDiscriminator, DCGANGenerator, FastGANDiscriminator, Glow

SMALL = {"sample_size": 8, "base_channels": 8}
CHANGING = {
    "batch_norm": (partial(DCGANGenerator, latent_dim=6, **SMALL), (4, 6), {}, "running_mean"),
    "batch_norm_of_a_discriminator": (partial(DCGANDiscriminator, norm="batch", **SMALL), (4, 1, 8, 8), {}, "batches"),
    "spectral_norm": (partial(DCGANDiscriminator, spectral_norm=True, **SMALL), (4, 1, 8, 8), {}, "._u"),
    "batch_norm_and_spectral_norm": (
        partial(FastGANDiscriminator, sample_size=32, base_channels=8, spectral_norm=True),
        (4, 3, 32, 32),
        {},
        "._u",
    ),
    "actnorm": (
        partial(Glow, sample_size=8, num_steps=2, hidden_channels=8),
        (4, 1, 8, 8),
        {"observe": True},
        "noted",
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_a_block_changes_is_changed_once(name):
    """Two steps, each with two backward passes through the same graph."""
    make, shape, options, changing = CHANGING[name]
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make().train()
        before = {key: buffer.clone() for key, buffer in model.named_buffers()}
        if checkpointing:
            model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
        for seed in range(2):
            given = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            forward = model.encode if options else model
            (value, *_) = forward(given, return_dict=False, **options)
            value.square().sum().backward(retain_graph=True)
            value.sum().backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        found.append(gradients | dict(model.named_buffers()))
        changed = [key for key, buffer in model.named_buffers() if not torch.equal(buffer, before[key])]
        assert any(changing in key for key in changed), changed
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_nothing_is_computed_again_where_there_is_no_gradient():
    model = DCGANGenerator(latent_dim=6, **SMALL)
    calls = []
    model.enable_gradient_checkpointing(lambda block, *args: calls.append(block) or block(*args))
    with torch.no_grad():
        model(torch.randn(2, 6))
    assert not calls
    model(torch.randn(2, 6))
    assert len(calls) == 2  # blocks: to the first size, and to the second with its image
