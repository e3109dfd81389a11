"""Autoregressive networks: probabilities that sum to one, no look ahead, and the same step by step."""

import itertools

import pytest
import torch

from hfgen import CausalTransformer, PixelCNN

PIXELCNN = {"base_channels": 8, "dilations": (1, 2), "kernel_size": 3}
TRANSFORMER = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}
KINDS = {"pixelcnn": (PixelCNN, PIXELCNN), "transformer": (CausalTransformer, TRANSFORMER)}
LIKELIHOODS = [("categorical", 1), ("logistic_mixture", 1), ("logistic_mixture", 3), ("codes", 1)]
every = pytest.mark.parametrize("name", KINDS)
each_likelihood = pytest.mark.parametrize(("likelihood", "channels"), LIKELIHOODS)


def make(name, **options):
    """A network in evaluation mode, all of whose weights matter."""
    torch.manual_seed(0)
    kind, config = KINDS[name]
    network = kind(**config | options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@torch.no_grad()
def step_by_step(network, levels, labels=None):
    """The parameters `(B, P, H, W)` that the network gives position by position."""
    cache, before, steps = network.start(len(levels), labels), None, []
    for position in range(levels.shape[2] * levels.shape[3]):
        steps.append(network.step(cache, before))
        before = levels.flatten(2)[:, :, position]
    return torch.stack(steps, dim=2).unflatten(2, levels.shape[2:])


@every
@pytest.mark.parametrize("likelihood", ["categorical", "logistic_mixture"])
def test_the_probabilities_of_all_images_sum_to_one(name, likelihood):
    """All 2x2 images of four levels, one by one."""
    network = make(name, sample_size=2, num_levels=4, likelihood=likelihood, num_mixtures=3)
    images = torch.tensor(list(itertools.product(range(4), repeat=4))).view(-1, 1, 2, 2)
    with torch.no_grad():
        probabilities = network.log_prob(images).double().exp()
    assert len(images) == 256 and probabilities.max() > 3 * probabilities.min()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


@every
def test_the_probabilities_of_colours_sum_to_one(name):
    """All images of two pixels of three channels with two levels."""
    network = make(name, sample_size=2, in_channels=3, num_levels=2, num_mixtures=2)
    images = torch.tensor(list(itertools.product(range(2), repeat=12))).view(-1, 3, 2, 2)
    with torch.no_grad():
        assert network.log_prob(images).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@every
@each_likelihood
def test_step_by_step_is_the_same(name, likelihood, channels):
    kind = {"likelihood": "categorical", "embed_levels": True} if likelihood == "codes" else {"likelihood": likelihood}
    network = make(
        name, sample_size=9, in_channels=channels, num_levels=16, num_mixtures=3, num_class_embeds=3, **kind
    )
    levels, labels = torch.randint(16, (3, channels, 9, 9)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        whole = network(levels, labels).parameters
    torch.testing.assert_close(step_by_step(network, levels, labels), whole, atol=1e-5, rtol=1e-5)


@every
def test_a_position_sees_all_before_it_and_nothing_else(name):
    network = (
        make(name, sample_size=5, likelihood="categorical", num_levels=8, dilations=(1, 1, 2))
        if (name == "pixelcnn")
        else make(name, sample_size=5, likelihood="categorical", num_levels=8)
    )
    levels = torch.randint(8, (1, 1, 5, 5))
    with torch.no_grad():
        before = network(levels).parameters.flatten(2)
        for changed in range(25):
            other = levels.clone()
            other.view(-1)[changed] = (other.view(-1)[changed] + 3) % 8
            differs = (network(other).parameters.flatten(2) - before).abs().amax((0, 1)) > 1e-6
            assert not differs[: changed + 1].any()
            # Of the next row, too: no blind spot to the right of what is above.
            assert differs[changed + 1 :].all() if name == "transformer" else differs[changed + 1 : changed + 6].all()


@every
def test_classes_matter(name):
    network = make(name, sample_size=4, likelihood="categorical", num_levels=8, num_class_embeds=2)
    levels = torch.randint(8, (2, 1, 4, 4))
    with torch.no_grad():
        one, other = (network.log_prob(levels, torch.full((2,), label)) for label in (0, 1))
    assert (one - other).abs().min() > 1e-4


@every
def test_the_likelihood_is_float32_under_autocast(name):
    network = make(name, sample_size=8, likelihood="categorical", num_levels=16)
    levels = torch.randint(16, (2, 1, 8, 8))
    with torch.no_grad():
        exact = network.log_prob(levels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.log_prob(levels)
            assert network(levels).parameters.dtype == torch.float32
            steps = step_by_step(network, levels)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(steps, network(levels).parameters, atol=0.1, rtol=0.1)


def test_a_cache_serves_one_set_of_images():
    network = make("pixelcnn", sample_size=4, likelihood="categorical", num_levels=4)
    first, second = torch.randint(4, (2, 1, 4, 4)), torch.randint(4, (2, 1, 4, 4))
    with torch.no_grad():  # in turns: nothing is kept in the network
        caches, steps = [network.start(2), network.start(2)], ([], [])
        for position in range(16):
            for cache, levels, out in zip(caches, (first, second), steps, strict=True):
                out.append(network.step(cache, levels.flatten(2)[:, :, position - 1] if position else None))
        for levels, out in zip((first, second), steps, strict=True):
            torch.testing.assert_close(
                torch.stack(out, 2), network(levels).parameters.flatten(2), atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixelcnn", {"kernel_size": 4}, "kernel_size is 4, but must be odd"),
        ("pixelcnn", {"dilations": ()}, "dilations is"),
        ("pixelcnn", {"dilations": (1, 0)}, "dilations is"),
        ("transformer", {"num_attention_heads": 3}, "must divide hidden_size, which is 16"),
        ("transformer", {"likelihood": "categorical", "in_channels": 3}, "for one channel, but there are 3"),
        ("transformer", {"embed_levels": True, "in_channels": 3}, "embed_levels is for one channel, but there are 3"),
        ("pixelcnn", {"embed_levels": True, "in_channels": 3}, "embed_levels is for one channel, but there are 3"),
    ],
)
def test_wrong_configurations(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@every
def test_wrong_inputs(name):
    network = make(name, sample_size=4, likelihood="categorical", num_levels=4, num_class_embeds=2)
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=r"shape \(1, 1, 5, 5\) .* must be levels of shape \(B, 1, 4, 4\)"):
        network(torch.zeros(1, 1, 5, 5, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"torch.float32, but must be levels .* int64, below 4"):
        network(torch.zeros(1, 1, 4, 4), labels)
    with pytest.raises(ValueError, match="expects class_labels"):
        network.start(1)


def test_attention_on_cpus_stays_in_float32_under_autocast():
    """In bfloat16, to which autocast casts, its backward pass takes many times as long."""
    network = make("transformer", sample_size=4, num_levels=4, likelihood="categorical")
    seen = []
    for block in network.blocks:
        block.to_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    levels = torch.randint(4, (2, 1, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.log_prob(levels).sum().backward()
        with torch.no_grad():
            network.step(network.start(2))
    assert seen == [torch.float32] * 4
