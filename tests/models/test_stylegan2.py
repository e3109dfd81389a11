"""StyleGAN2: the parts against the equations of the paper, then the two networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hfgen.models.stylegan2 import (
    Blur,
    ModulatedConv2d,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    activate,
    minibatch_std,
    stages,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_generator(**options):
    return StyleGAN2Generator(
        **{"sample_size": 8, "latent_dim": 6, "channel_base": 64, "channel_max": 8, **options}
    ).eval()


def make_discriminator(**options):
    return StyleGAN2Discriminator(
        **{"sample_size": 8, "in_channels": 1, "channel_base": 64, "channel_max": 8, **options}
    )


# ---- parts


def literal_modulated_conv(x, style, weight, up, demodulate):
    """Equations 1 to 3, image by image; up-sampling as zeros in between and a 4x4 filter."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
    images = []
    for image, scales in zip(x, style, strict=True):
        kernel = weight * scales[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not up:
            images.append(F.conv2d(image[None], kernel, padding=kernel.shape[-1] // 2)[0])
            continue
        channels, height, width = image.shape
        spread = torch.zeros(channels, 2 * height, 2 * width, dtype=x.dtype)
        spread[:, ::2, ::2] = image
        # every product of the 3x3 kernel with a pixel counts, as in a transposed convolution: (2H + 1) rows
        spread = F.pad(spread, (2, 1, 2, 1))
        result = F.conv2d(spread[None], kernel.flip((2, 3)))[0]
        result = F.pad(result, (1, 1, 1, 1))
        rows = sum(tap * result[:, i : i + 2 * height] for i, tap in enumerate(taps))
        images.append(sum(tap * rows[:, :, i : i + 2 * width] for i, tap in enumerate(taps)))
    return torch.stack(images)


@pytest.mark.parametrize(
    ("kernel_size", "up", "demodulate"), [(3, False, True), (3, True, True), (1, False, False), (3, True, False)]
)
def test_modulated_convolution_follows_the_paper(kernel_size, up, demodulate):
    conv = ModulatedConv2d(3, 5, 4, kernel_size=kernel_size, up=up, demodulate=demodulate).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    style = w @ conv.affine.weight.T / math.sqrt(4) + conv.affine.bias
    expected = literal_modulated_conv(x, style, conv.weight / math.sqrt(3 * kernel_size**2), up, demodulate)
    actual = conv(x, w)
    assert actual.shape == (2, 5, 12 if up else 6, 12 if up else 6)
    torch.testing.assert_close(actual, expected)
    inputs = [x, w, conv.weight, conv.affine.weight, conv.affine.bias]
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * cotangent).sum(), inputs)
    for gradient, other in zip(torch.autograd.grad((actual * cotangent).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, other)


def test_blur_keeps_constants_and_removes_the_finest_stripes():
    blur = Blur(padding=2)
    constant = blur(torch.full((1, 2, 8, 8), 3.0))
    assert constant.shape == (1, 2, 9, 9)
    torch.testing.assert_close(constant[:, :, 2:-2, 2:-2], torch.full((1, 2, 5, 5), 3.0))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 2, 8, 8)
    assert blur(stripes)[:, :, 2:-2, 2:-2].abs().max() == 0
    impulse = torch.zeros(1, 1, 7, 7)
    impulse[..., 3, 3] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    torch.testing.assert_close(blur(impulse)[0, 0, 2:6, 2:6], torch.outer(taps, taps))


def test_sampling_keeps_a_constant_image_constant():
    # up: zeros in between and a blur of gain 4, here of the layer with the identity as its kernel
    conv = ModulatedConv2d(1, 1, 4, up=True, demodulate=False)
    conv.scale = 1.0
    with torch.no_grad():
        conv.affine.weight.zero_()
        conv.weight.zero_()[:, :, 1, 1] = 1
    up = conv(torch.full((1, 1, 6, 6), 2.0), torch.zeros(1, 4))
    torch.testing.assert_close(up[:, :, 1:-1, 1:-1], torch.full((1, 1, 10, 10), 2.0))
    # of the image: also at its border
    generator = make_generator(sample_size=32)
    for to_rgb in generator.to_rgb[1:]:
        nn.init.zeros_(to_rgb.weight)
    nn.init.zeros_(generator.to_rgb[0].affine.weight)
    generator.layers[0].register_forward_hook(lambda module, args, output: torch.ones_like(output))
    images = generator(torch.randn(2, 6)).sample
    assert images.std() > 0.1  # the channels differ
    torch.testing.assert_close(images, images[:1, :, :1, :1].expand_as(images))
    # down: blur and a step of 2, here of the layer with the identity as its kernel
    layer = make_discriminator(sample_size=16).layers[2]
    layer.scale = 1 / math.sqrt(2)  # undoes the gain of the activation
    with torch.no_grad():
        nn.init.dirac_(layer.weight)
    constant = torch.full((1, layer.weight.shape[1], 16, 16), 2.0)
    down = layer(constant)[:, :4, 2:-2, 2:-2]
    assert layer(constant).shape[2:] == (8, 8)
    torch.testing.assert_close(down, torch.full_like(down, 2.0))


def test_minibatch_std_against_a_literal_computation():
    x = torch.randn(6, 2, 3, 3)
    expected = torch.empty(6, 1, 3, 3)
    for group in ([0, 1, 2], [3, 4, 5]):
        deviations = [
            x[group, c, i, j].var(correction=0).add(1e-8).sqrt() for c in range(2) for i in range(3) for j in range(3)
        ]
        expected[group] = torch.stack(deviations).mean()
    torch.testing.assert_close(minibatch_std(x, 3), expected)
    assert minibatch_std(x.bfloat16(), 3).dtype == torch.float32


# ---- generator


@pytest.mark.parametrize(("size", "sizes"), [(8, [4, 8]), (28, [7, 14, 28]), (30, [4, 8, 16, 32]), (256, [4, 8, 16])])
def test_stages(size, sizes):
    assert stages(size, 512, 100)[0][: len(sizes)] == sizes
    assert stages(size, 512, 100)[1][: len(sizes)] == [min(512 // s, 100) for s in sizes]


def test_every_size_has_stages_that_fit():
    for size in range(8, 257):
        sizes = stages(size, 8192, 256)[0]
        assert 4 <= sizes[0] <= 7 and sizes[-2] < size <= sizes[-1]


@pytest.mark.parametrize(
    ("size", "channels", "classes", "layers"),
    [(8, 3, None, 4), (28, 1, 10, 6), (30, 3, None, 8), (32, 3, 5, 8), (40, 1, None, 8), (64, 3, 2, 10)],
)
def test_shapes(size, channels, classes, layers):
    small = {"sample_size": size, "num_class_embeds": classes, "channel_max": 8}
    generator = StyleGAN2Generator(out_channels=channels, latent_dim=12, style_dim=10, channel_base=256, **small)
    discriminator = StyleGAN2Discriminator(in_channels=channels, channel_base=256, **small)
    labels = None if classes is None else torch.tensor([0, classes - 1])
    latents = torch.randn(2, 12)
    w = generator.map(latents, labels)
    assert w.shape == (2, 10) and generator.num_layers == layers == len(generator.noise_shapes) + 1
    images = generator(latents, labels).sample
    assert images.shape == (2, channels, size, size) and images.dtype == torch.float32
    assert images[0].std() > 0.1 and (images[0] - images[1]).std() > 0.1
    logits = discriminator(images, labels).logits
    assert logits.shape == (2,) and logits.dtype == torch.float32 and logits[0] != logits[1]
    assert generator(latents, labels, return_dict=False)[0].shape == images.shape
    assert discriminator(images, labels, return_dict=False)[0].shape == (2,)
    logits.sum().backward()
    for network in (generator, discriminator):
        unused = [name for name, p in network.named_parameters() if p.grad is None]
        assert unused == []


def test_the_centre_of_a_larger_image_is_used():
    generator = make_generator(sample_size=30)
    seen = []
    generator.to_rgb[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    for to_rgb in generator.to_rgb[:-1]:
        nn.init.zeros_(to_rgb.weight)
    images = generator(torch.randn(1, 6)).sample
    torch.testing.assert_close(images, seen[0][:, :, 1:31, 1:31])


def test_activations_start_at_unit_variance():
    generator = StyleGAN2Generator(32, channel_base=2048, channel_max=64).eval()
    discriminator = StyleGAN2Discriminator(32, channel_base=2048, channel_max=64)
    powers = {}

    def record(name):
        return lambda module, args, output: powers.update({name: output.square().mean().item()})

    for network in (generator, discriminator):
        for i, layer in enumerate(network.layers):
            layer.register_forward_hook(record((type(network).__name__, i)))
    latents = torch.randn(64, 512)
    with torch.no_grad():
        w = generator.map(latents)
        generator.synthesize(w)
        discriminator(F.interpolate(torch.randn(64, 3, 2, 2), size=32))
    assert 0.7 < w.square().mean() < 1.4
    assert len(powers) == len(generator.layers) + len(discriminator.layers)
    for (name, i), power in powers.items():
        # The generator starts from white noise, of which the first blurs and the zeros at the border take a part.
        assert (0.15 if name == "StyleGAN2Generator" else 0.7) < power < 1.8, (name, i, power)


def test_coarse_colours_are_interpolated():
    generator = make_generator(out_channels=1)
    impulse = torch.zeros(1, 1, 4, 4)
    impulse[..., 1, 2] = 1
    generator.to_rgb[0].register_forward_hook(lambda module, args, output: impulse)
    nn.init.zeros_(generator.to_rgb[1].weight)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 1:5, 3:7] = torch.outer(taps, taps)
    torch.testing.assert_close(generator(torch.randn(1, 6)).sample, expected)


def test_learning_rates():
    """A step of Adam changes the mapping network a hundred times less than an affine layer, for its size."""
    generator = make_generator()
    before = generator.latent_weight()
    mapping = generator.mapping[0]
    weight = mapping.weight.detach() * mapping.scale
    assert 0.5 < weight.std() * math.sqrt(6) < 1.5
    nn.init.constant_(mapping.bias, 5)
    torch.testing.assert_close(mapping(torch.zeros(1, 6)), torch.full((1, 6), 0.05))
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.1)
    generator(torch.randn(4, 6)).sample.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((generator.latent_weight() - before).abs().max().item(), 0.1 / math.sqrt(6))
    change = (mapping.weight.detach() * mapping.scale - weight).abs().max()
    torch.testing.assert_close(change.item(), 0.001 / math.sqrt(6), rtol=1e-3, atol=0.0)


def test_truncation():
    generator = make_generator(num_class_embeds=2)
    generator.w_avg.normal_()
    latents, labels = torch.randn(4, 6), torch.tensor([0, 1, 0, 1])
    full = generator.map(latents, labels)
    assert torch.equal(generator.map(latents, labels, truncation=1.0), full)
    assert torch.equal(generator.map(latents, labels, truncation=0.0), generator.w_avg[labels])
    half = generator.map(latents, labels, truncation=0.5)
    torch.testing.assert_close(half, (full + generator.w_avg[labels]) / 2)
    images = generator(latents, labels, truncation=0.0).sample
    torch.testing.assert_close(images[0], images[2])
    torch.testing.assert_close(images[1], images[3])
    assert (images[0] - images[1]).std() > 0.1


def test_w_avg_becomes_the_mean_style_of_each_class():
    generator = make_generator(num_class_embeds=3)
    latents, labels = torch.randn(32, 6), torch.tensor([0, 2]).repeat(16)
    w = generator.map(latents, labels)
    assert generator.w_avg.abs().max() == 0  # evaluation changes nothing
    generator.w_avg[1] = 7
    generator.train()
    assert generator.map(latents, labels).requires_grad and not generator.w_avg.requires_grad
    torch.testing.assert_close(generator.w_avg[2], 0.005 * w[labels == 2].mean(0))
    for _ in range(2000):
        generator.map(latents, labels)
    torch.testing.assert_close(generator.w_avg[0], w[labels == 0].mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(generator.w_avg[2], w[labels == 2].mean(0), rtol=1e-3, atol=1e-4)
    assert torch.equal(generator.w_avg[1], torch.full((6,), 7.0))  # did not occur

    plain = make_generator().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = plain.map(latents).mean(0)
    torch.testing.assert_close(plain.w_avg[0] / 0.005, mean)


def test_classes_and_the_direction_of_latents_decide_the_style():
    generator = make_generator(num_class_embeds=2)
    latents = torch.randn(1, 6)
    first, second = (generator.map(latents, torch.tensor([label])) for label in (0, 1))
    assert (first - second).std() > 0.01
    torch.testing.assert_close(generator.map(3 * latents, torch.tensor([0])), first)


def test_noise_given_and_fixed():
    generator = make_generator()
    for layer in generator.layers:
        nn.init.constant_(layer.noise_strength, 0.5)
    latents = torch.randn(2, 6)
    images = generator(latents).sample
    assert generator.noise_shapes == [(1, 4, 4), (1, 8, 8), (1, 8, 8)]
    torch.testing.assert_close(generator(latents).sample, images)
    fixed = [layer.noise for layer in generator.layers]
    torch.testing.assert_close(generator(latents, noise=fixed).sample, images)
    for i in range(3):  # each layer uses its own
        noise = list(fixed)
        noise[i] = torch.randn(generator.noise_shapes[i])
        assert (generator(latents, noise=noise).sample - images).std() > 0.01
    own = [torch.randn(2, *shape) for shape in generator.noise_shapes]
    both = generator(latents, noise=own).sample
    for i in range(2):
        alone = generator(latents[i : i + 1], noise=[tensor[i] for tensor in own]).sample
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_style_for_each_layer():
    generator = make_generator(sample_size=16)
    w = generator.map(torch.randn(2, 6))
    images = generator.synthesize(w)
    repeated = w[:, None].repeat(1, generator.num_layers, 1)
    torch.testing.assert_close(generator.synthesize(repeated), images)
    for layer in range(generator.num_layers):
        mixed = repeated.clone()
        mixed[0, layer] = w[1]
        change = generator.synthesize(mixed) - images
        assert change[0].std() > 1e-3 and change[1].abs().max() < 1e-5


def test_styles_are_mixed_from_a_layer_on():
    generator = make_generator(sample_size=16).train()
    latents, other = torch.randn(3, 6), torch.randn(3, 6)
    crossover = torch.tensor([1, 4, generator.num_layers])
    images = generator(latents, other_latents=other, crossover=crossover).sample
    w, w_other = (generator.map(z, update_w_avg=False) for z in (latents, other))
    torch.testing.assert_close(generator.w_avg[0], 0.005 * w.mean(0))  # it has followed the first styles alone
    styles = w[:, None].repeat(1, generator.num_layers, 1)
    styles[0, 1:], styles[1, 4:] = w_other[0], w_other[1]
    assert torch.equal(generator.mix(w, w_other, crossover), styles)
    assert torch.equal(images, generator.synthesize(styles))
    torch.testing.assert_close(images[2:], generator(latents[2:]).sample)


def test_an_image_depends_on_its_latent_alone():
    generator = make_generator(sample_size=16, num_class_embeds=3)
    latents, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    images = generator(latents, labels).sample
    torch.testing.assert_close(generator(latents[3:4], labels[3:4]).sample, images[3:4], rtol=1e-4, atol=1e-5)


def test_latent_weight_holds_what_styles_do_to_the_scales():
    generator = make_generator()
    w, direction = torch.randn(1, 6), torch.randn(6)
    affines = [layer.conv.affine for layer in generator.layers] + [conv.affine for conv in generator.to_rgb]
    change = torch.cat([affine(w + direction) - affine(w) for affine in affines], dim=1)[0]
    torch.testing.assert_close(generator.latent_weight() @ direction, change, rtol=1e-4, atol=1e-5)


# ---- discriminator


def penalty(discriminator, images, labels=None):
    images = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(images, labels).logits.sum(), images, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("residual", [False, True])
def test_double_backward_against_finite_differences(residual):
    discriminator = make_discriminator(num_class_embeds=2, minibatch_std_group=4, residual=residual).double()
    images, labels = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    parameters = list(discriminator.parameters())
    gradients = torch.autograd.grad(penalty(discriminator, images, labels), parameters, allow_unused=True)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    products = [(g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None]
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
        values.append(penalty(discriminator, images, labels).item())
    assert sum(products).item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    assert abs(sum(products).item()) > 1e-3


def test_a_shortcut_halves_the_image_and_keeps_the_scale():
    discriminator = make_discriminator(sample_size=16, residual=True)
    assert len(discriminator.shortcuts) == 2
    first, second = discriminator.layers[1:3]
    seen = {}
    first.register_forward_hook(lambda module, args, output: seen.update(before=args[0]))
    second.register_forward_hook(lambda module, args, output: seen.update(inner=output))
    discriminator.layers[3].register_forward_hook(lambda module, args, output: seen.update(after=args[0]))
    discriminator(torch.randn(2, 1, 16, 16))
    weight = discriminator.shortcuts[0].weight[:, :, 0, 0] / math.sqrt(seen["before"].shape[1])
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    padded = F.pad(torch.einsum("oc,bchw->bohw", weight, seen["before"]), (1, 1, 1, 1))
    rows = sum(tap * padded[:, :, i : i + 15 : 2] for i, tap in enumerate(taps))
    literal = sum(tap * rows[:, :, :, i : i + 15 : 2] for i, tap in enumerate(taps))
    assert seen["after"].shape[2:] == (8, 8)
    torch.testing.assert_close(seen["after"], (seen["inner"] + literal) / math.sqrt(2))


def test_bfloat16_autocast():
    generator = make_generator(sample_size=16, out_channels=1)
    discriminator = make_discriminator(sample_size=16)
    latents = torch.randn(4, 6)
    exact = generator(latents).sample
    styles = generator.map(latents)
    sharp = torch.autograd.grad(penalty(discriminator, exact.detach()), list(discriminator.parameters())[0])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator.map(latents), styles)
        images = generator(latents).sample
        logits = discriminator(exact).logits
        loss = penalty(discriminator, exact.detach())
    assert images.dtype == logits.dtype == loss.dtype == torch.float32
    assert (images - exact).std() < 0.02 * exact.std()
    gradient = torch.autograd.grad(loss, list(discriminator.parameters())[0])[0]
    assert F.cosine_similarity(gradient.flatten(), sharp.flatten(), dim=0) > 0.99


def test_minibatch_statistics_mix_samples_unless_turned_off():
    images, other = torch.randn(3, 1, 8, 8), torch.randn(1, 1, 8, 8)
    changed = torch.cat([images[:2], other])
    mixing, separate = make_discriminator(), make_discriminator(minibatch_std_group=0)
    assert StyleGAN2Discriminator.mixes_samples and mixing.mixes_samples and not separate.mixes_samples
    assert (mixing(images).logits - mixing(changed).logits)[:2].abs().min() > 1e-5
    torch.testing.assert_close(separate(images).logits[:2], separate(changed).logits[:2])
    assert separate(images[:1]).logits.shape == (1,)
    assert mixing.eval()(images[:1]).logits.shape == (1,)  # evaluation takes what comes


def test_groups_are_the_largest_divisor_of_the_batch():
    discriminator = make_discriminator(minibatch_std_group=4)
    images = torch.randn(6, 1, 8, 8)
    logits = discriminator(images).logits  # two groups of three
    torch.testing.assert_close(discriminator(images[:3]).logits, logits[:3])
    torch.testing.assert_close(discriminator(images[3:]).logits, logits[3:])


def test_logits_are_projected_on_the_class():
    discriminator = make_discriminator(num_class_embeds=3)
    images = torch.randn(4, 1, 8, 8)
    seen = []
    discriminator.hidden.register_forward_hook(lambda module, args, output: seen.append(activate(output)))
    logits = [discriminator(images, torch.full((4,), label)).logits for label in range(3)]
    for label, actual in enumerate(logits):
        expected = discriminator.out(seen[0])[:, 0] + seen[0] @ discriminator.class_embedding.weight[label] / 8**0.5
        torch.testing.assert_close(actual, expected)
    assert (logits[0] - logits[1]).abs().min() > 1e-4


def test_images_are_put_in_the_centre_of_a_larger_one():
    small, large = make_discriminator(sample_size=29), make_discriminator(sample_size=32)
    large.load_state_dict(small.state_dict())
    images = torch.randn(4, 1, 29, 29)
    torch.testing.assert_close(large(F.pad(images, (1, 2, 1, 2))).logits, small(images).logits)


# ---- both


def test_they_learn():
    """In a short game with R1 on images of one colour, the generator finds the colour."""
    generator, discriminator = make_generator(out_channels=1).train(), make_discriminator()
    g_opt = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    d_opt = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    real = 0.5 + 0.05 * torch.randn(16, 1, 8, 8)
    start = (generator(torch.randn(16, 6)).sample - 0.5).abs().mean()
    for _ in range(80):
        fake = generator(torch.randn(16, 6)).sample
        loss = F.softplus(discriminator(fake.detach()).logits) + F.softplus(-discriminator(real).logits)
        d_opt.zero_grad()
        (loss.mean() + 0.05 * penalty(discriminator, real) / 16).backward()
        d_opt.step()
        g_opt.zero_grad()
        F.softplus(-discriminator(generator(torch.randn(16, 6)).sample).logits).mean().backward()
        g_opt.step()
    end = (generator(torch.randn(16, 6)).sample - 0.5).abs().mean()
    assert end < 0.75 * start


def test_save_and_load(tmp_path):
    generator, discriminator = make_generator(num_class_embeds=2), make_discriminator(num_class_embeds=2)
    generator.w_avg.normal_()
    for layer in generator.layers:
        nn.init.constant_(layer.noise_strength, 0.5)
    latents, labels = torch.randn(2, 6), torch.tensor([0, 1])
    images = generator(latents, labels, truncation=0.7).sample
    generator.save_pretrained(tmp_path / "g")
    assert (tmp_path / "g" / "diffusion_pytorch_model.safetensors").exists()
    loaded = StyleGAN2Generator.from_pretrained(tmp_path / "g")
    assert not loaded.training and dict(loaded.config)["style_dim"] is None
    torch.testing.assert_close(loaded(latents, labels, truncation=0.7).sample, images)

    gray = images.mean(1, keepdim=True)
    discriminator.save_pretrained(tmp_path / "d")
    again = StyleGAN2Discriminator.from_pretrained(tmp_path / "d")
    torch.testing.assert_close(again(gray, labels).logits, discriminator(gray, labels).logits)

    half = StyleGAN2Generator.from_pretrained(tmp_path / "g", torch_dtype=torch.bfloat16)
    coarse = half(latents, labels, truncation=0.7).sample
    assert coarse.dtype == torch.float32 and (coarse - images).std() < 0.05 * images.std()


@pytest.mark.parametrize("network", [StyleGAN2Generator, StyleGAN2Discriminator])
def test_errors_of_the_configuration(network):
    for size in (7, 257):
        with pytest.raises(ValueError, match=f"sample_size is {size}, but .* 8 to 256 pixels: resize the images"):
            network(sample_size=size)
    with pytest.raises(ValueError, match="channel_base is 31 and .* use at least 32 and 1"):
        network(sample_size=32, channel_base=31)


@pytest.mark.parametrize("group", [-1, 1])
def test_errors_of_the_minibatch_std_group(group):
    with pytest.raises(ValueError, match=f"minibatch_std_group is {group}, but .* or 0 to turn it off"):
        make_discriminator(minibatch_std_group=group)


def test_errors_of_the_generator():
    generator, conditional = make_generator(), make_generator(num_class_embeds=2)
    for shape in ((2, 5), (6,), (2, 6, 1)):
        with pytest.raises(ValueError, match=r"latents has shape .*, but must be \(batch, 6\)"):
            generator(torch.randn(shape))
    with pytest.raises(ValueError, match="class_labels is given, but this network has num_class_embeds=None"):
        generator(torch.randn(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels is missing: this network has 2 classes"):
        conditional(torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"class_labels has shape \(1,\), but must be \(2,\)"):
        conditional(torch.randn(2, 6), torch.tensor([0]))
    for shape in ((2, 5), (2, 3, 6), (2, 4, 5), (2, 4, 6, 1)):
        with pytest.raises(ValueError, match=r"w has shape .*, but must be \(batch, 6\) or \(batch, 4, 6\)"):
            generator.synthesize(torch.randn(shape))
    noise = [torch.randn(shape) for shape in generator.noise_shapes]
    for wrong in (noise[:2], [noise[1], *noise[1:]]):
        with pytest.raises(ValueError, match="noise has shapes .*, but must have"):
            generator(torch.randn(2, 6), noise=wrong)


def test_errors_of_the_discriminator():
    discriminator = make_discriminator()
    for shape in ((2, 3, 8, 8), (2, 1, 8, 9), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"sample has shape .*, but must be \(batch, 1, 8, 8\)"):
            discriminator(torch.randn(shape))
    with pytest.raises(ValueError, match="class_labels is given"):
        discriminator(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels is missing"):
        make_discriminator(num_class_embeds=2)(torch.randn(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"batch has 1 image\(s\), .* use another batch size, or minibatch_std_group"):
        discriminator(torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"batch has 5 image\(s\), .* groups of 2 to 4"):
        make_discriminator(minibatch_std_group=4)(torch.randn(5, 1, 8, 8))
