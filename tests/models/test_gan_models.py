"""The networks of GANs but StyleGAN2: sizes, classes, derivatives, saving and loading, mistakes; bounds of all."""

import json

import pytest
import torch

from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.fastgan import FastGANDiscriminator, FastGANGenerator, quarter_of, reconstruction_targets
from hfgen.models.mlp_gan import MLPDiscriminator, MLPGenerator
from hfgen.models.residual_gan import ResidualBlock, ResidualDiscriminator, ResidualGenerator
from hfgen.models.stylegan2 import StyleGAN2Generator

PAIRS = {
    "mlp": (MLPGenerator, MLPDiscriminator, {"base_channels": 8}),
    "dcgan": (DCGANGenerator, DCGANDiscriminator, {"base_channels": 8}),
    "fastgan": (FastGANGenerator, FastGANDiscriminator, {"base_channels": 8}),
    "residual": (ResidualGenerator, ResidualDiscriminator, {"block_out_channels": (16, 8), "group_width": 4}),
}


def pair(name, size=16, channels=1, classes=None, **judge):
    torch.manual_seed(0)
    maker, judger, shape = PAIRS[name]
    generator = maker(sample_size=size, out_channels=channels, latent_dim=6, num_class_embeds=classes, **shape)
    norms = {"dcgan": {"norm_num_groups": 4}, "fastgan": {"norm": "group", "norm_num_groups": 4}}
    shape = shape | norms.get(name, {}) | judge
    return generator, judger(sample_size=size, in_channels=channels, num_class_embeds=classes, **shape)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (45, 4), (64, 3)])
@pytest.mark.parametrize("name", PAIRS)
def test_sizes_channels_and_classes(name, size, channels, classes):
    generator, discriminator = pair(name, size, channels, classes)
    labels = torch.tensor([0, 2, 1]) if classes else None
    sample = generator(torch.randn(3, 6), labels).sample
    assert sample.shape == (3, channels, size, size)
    assert sample.dtype == torch.float32
    logits = discriminator(sample, labels).logits
    assert logits.shape == (3,)
    (logits.sum()).backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_images_do_not_depend_on_the_batch(name):
    generator, discriminator = pair(name, 12, classes=3)
    generator.eval()
    latents, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    together = generator(latents, labels).sample
    for row in range(5):
        alone = generator(latents[row : row + 1], labels[row : row + 1]).sample
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    assert discriminator.mixes_samples is False
    first = discriminator(together[:2], labels[:2]).logits
    torch.testing.assert_close(discriminator(together, labels).logits[:2], first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_logits_are_no_bfloat16_under_autocast(name):
    """Losses are about small differences of logits, of which 8 bits lose most."""
    _, discriminator = pair(name, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(torch.randn(8, 1, 8, 8)).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_batch_norm_mixes_images_and_says_so():
    _, discriminator = pair("dcgan", norm="batch")
    images = torch.randn(4, 1, 16, 16)
    assert discriminator.mixes_samples
    assert not torch.allclose(discriminator(images).logits[:2], discriminator(images[:2]).logits, atol=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_classes_matter_to_both(name):
    generator, discriminator = pair(name, classes=2)
    generator.eval()
    latents = torch.randn(1, 6).repeat(2, 1)
    first, second = generator(latents, torch.tensor([0, 1])).sample
    assert not torch.allclose(first, second, atol=1e-4)
    for parameter in discriminator.class_embedding.parameters():  # it starts at zero: nothing known about classes
        torch.nn.init.normal_(parameter)
    first, second = discriminator(torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1), torch.tensor([0, 1])).logits
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("name", PAIRS)
def test_the_second_derivative_is_right(name):
    """R1's gradient against finite differences, with a step too small to cross a kink of the activation."""
    _, discriminator = pair(name, 8)
    for parameter in discriminator.parameters():  # leave zero-initialised branches
        torch.nn.init.normal_(parameter, std=0.3)
    discriminator.double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def penalty():
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(leaf).logits.sum(), leaf, create_graph=True)
        return gradient.square().sum()

    parameters = list(discriminator.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    directions = [torch.randn_like(p) for p in parameters]
    wanted = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    step, values = 1e-7, []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
        values.append(penalty().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (45, 4), (64, 3), (256, 3)])
def test_fastgan_restores_what_it_sees(size, channels):
    discriminator = FastGANDiscriminator(size, channels, base_channels=4, norm="none", reconstructs=True)
    images, quarters = torch.rand(4, channels, size, size) * 2 - 1, torch.tensor([0, 1, 2, 3])
    _, *maps = discriminator(images, return_dict=False)
    restored = discriminator.reconstruct(*maps, quarters)
    targets = reconstruction_targets(images, quarters, restored)
    for made, target in zip(restored, targets, strict=True):
        assert made.shape == target.shape and made.abs().max() <= 1
        torch.nn.functional.l1_loss(made, target).backward(retain_graph=True)
    decoders = [parameter.grad for parameter in discriminator.decoders.parameters()]
    assert all(gradient is not None for gradient in decoders) and discriminator.conv_in[0].weight.grad is not None
    with pytest.raises(ValueError, match="this network has no decoders"):
        FastGANDiscriminator(8, 1, base_channels=4).reconstruct(images, images, quarters)


def test_quarters():
    images = torch.arange(25.0).view(1, 1, 5, 5).repeat(4, 1, 1, 1)
    corners = [part.flatten().tolist() for part in quarter_of(images, torch.tensor([0, 1, 2, 3]))]
    assert corners == [[0, 1, 5, 6], [3, 4, 8, 9], [15, 16, 20, 21], [18, 19, 23, 24]]


def test_an_excitation_reaches_from_a_small_map_to_a_large_one():
    """The channels of the full size are weighed by what the 4x4 map holds (equation 2)."""
    generator = FastGANGenerator(64, 3, latent_dim=6, base_channels=4).eval()
    assert len(generator.excitations) == 1 and len(FastGANGenerator(256, 3, base_channels=2).excitations) == 3
    latents = torch.randn(2, 6)
    before = generator(latents).sample
    torch.nn.init.constant_(generator.excitations[0].layers[-1].bias, -100.0)  # no channel counts
    after = generator(latents).sample
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[0], after[1])  # only the bias of the last layer is left


def test_spectral_norm_bounds_every_layer():
    for name in ("mlp", "dcgan"):
        _, discriminator = pair(name, classes=3, spectral_norm=True)
        for _ in range(50):  # power iteration
            discriminator(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
        for module in discriminator.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)):
                largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
                assert largest.item() == pytest.approx(1, abs=0.02)


def test_residual_branches_start_at_zero_and_keep_the_scale():
    torch.manual_seed(0)
    block = ResidualBlock(16, 4, total_blocks=8)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(x), x)
    generator = ResidualGenerator(sample_size=32, latent_dim=64, block_out_channels=(64,), group_width=0)
    assert 0.3 < generator(torch.randn(64, 64)).sample.std().item() < 3


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_save_and_load(name, classes, tmp_path):
    for network in pair(name, classes=classes):
        network.eval().save_pretrained(tmp_path)
        loaded = type(network).from_pretrained(tmp_path)
        assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in network.config.items() if k[0] != "_"
        }
        assert all(map(torch.equal, network.state_dict().values(), loaded.state_dict().values()))
        assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (ResidualGenerator, {"block_out_channels": (8,), "group_width": 4}),
        (StyleGAN2Generator, {"channel_base": 64, "channel_max": 8}),
    ],
)
def test_images_have_the_bound_that_a_checkpoint_has(network, shape, tmp_path):
    shape = shape | {"sample_size": 8, "out_channels": 1, "latent_dim": 6}
    torch.manual_seed(0)
    free = network(**shape).eval()
    bounded = network(**shape, output_activation="tanh").eval()
    bounded.load_state_dict(free.state_dict())
    for generator in (free, bounded):
        for parameter in generator.parameters():
            parameter.data *= 2 if parameter.ndim == 4 else 1
    latents = torch.randn(16, 6)
    with torch.no_grad():
        images = free(latents).sample
        assert images.abs().max() > 1.5
        assert torch.equal(bounded(latents).sample, images.tanh())
    free.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["output_activation"]  # as older versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(network.from_pretrained(tmp_path)(latents).sample, images)
    bounded.save_pretrained(tmp_path)
    assert torch.equal(network.from_pretrained(tmp_path)(latents).sample, images.tanh())
    with pytest.raises(ValueError, match="output_activation is 'relu', but must be 'tanh' or None"):
        network(**shape, output_activation="relu")


def test_mistakes():
    for name in PAIRS:
        generator, discriminator = pair(name)
        with pytest.raises(ValueError, match=r"latents has shape \(2, 5\), but must be \(B, 6\)"):
            generator(torch.randn(2, 5))
        with pytest.raises(ValueError, match="knows no classes: leave class_labels out"):
            generator(torch.randn(2, 6), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=r"sample has shape \(2, 1, 8, 8\), but must be \(B, 1, 16, 16\)"):
            discriminator(torch.randn(2, 1, 8, 8))
        generator, discriminator = pair(name, classes=2)
        with pytest.raises(ValueError, match="expects class_labels"):
            generator(torch.randn(2, 6))
        with pytest.raises(ValueError, match="expects class_labels"):
            discriminator(torch.randn(2, 1, 16, 16))
        for size in (7, 257):
            with pytest.raises(ValueError, match=f"sample_size is {size}, but this network makes images of 8 to 256"):
                pair(name, size)
    for name in ("mlp", "dcgan"):
        generator, _ = pair(name)
        with pytest.raises(ValueError, match="batch normalisation learns from several"):
            generator.train()(torch.randn(1, 6))
        assert generator.eval()(torch.randn(1, 6)).sample.shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="norm is 'layer', but must be one of group, batch, none"):
        pair("dcgan", norm="layer")
