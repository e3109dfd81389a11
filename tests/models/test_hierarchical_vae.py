"""The hierarchical VAE: whitened latents, exact KL and ratios, sizes, saving and loading, mistakes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hfgen.models.hierarchical_vae import HierarchicalVAE, LatentGroup, bottleneck, deviation
from hfgen.models.vae_base import mean_image

SHAPE = {"latent_channels": 2, "block_out_channels": (8, 6), "layers_per_block": (2, 1), "num_mixtures": 2}


def make(size=8, channels=1, classes=None, **options):
    torch.manual_seed(0)
    vae = HierarchicalVAE(sample_size=size, in_channels=channels, num_class_embeds=classes, **SHAPE | options)
    return vae.eval()


def lively(vae):
    """Leaves initial values that hide mistakes: priors of N(0, 1), small branches."""
    torch.manual_seed(1)
    for parameter in vae.parameters():
        fan_in = parameter[0].numel() if parameter.ndim == 4 else 4
        nn.init.normal_(parameter, std=fan_in**-0.5)
    return vae


def images(count=3, size=8, channels=1):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
    ("size", "channels", "patch"), [(8, 1, 2), (9, 2, 4), (28, 1, 2), (32, 3, 2), (45, 4, 4), (8, 1, 8)]
)
def test_sizes_channels_and_classes(size, channels, patch, classes):
    vae = make(size, channels, classes, patch_size=patch)
    labels = torch.tensor([0, 2, 1]) if classes else None
    posterior = vae.encode(images(3, size, channels), labels).latent_dist
    latents = posterior.sample()
    assert vae.latent_shape == (sum(vae.group_sizes), 1, 1)
    assert latents.shape == (3, *vae.latent_shape)
    decoded = vae.decode(latents, labels)
    assert decoded.sample.shape == (3, channels, size, size)
    assert decoded.parameters.shape == (3, 2 * (1 + 2 * channels + channels * (channels - 1) // 2), size, size)
    assert latents.dtype == decoded.sample.dtype == decoded.parameters.dtype == torch.float32
    (posterior.decode().parameters.square().sum() + posterior.kl().sum()).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_the_ladder_and_the_default():
    vae = HierarchicalVAE()
    assert vae.group_sizes == [8 * size**2 for size in (1, 2, 4, 4, 7, 7, 7, 14, 14, 14)]
    assert 5e5 < sum(parameter.numel() for parameter in vae.parameters()) < 8e5
    assert vae.config.likelihood == "logistic_mixture"
    assert make(32, layers_per_block=(1,)).group_sizes == [2, 8, 32, 128, 512]
    assert make(8, patch_size=8).group_sizes == [2, 2]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "logistic", "logistic_mixture"])
def test_likelihoods(likelihood):
    vae = make(channels=3, likelihood=likelihood)
    decoded = vae(images(channels=3))
    count = {"gaussian": 3, "bernoulli": 3, "logistic": 6, "logistic_mixture": 20}[likelihood]
    assert decoded.parameters.shape == (3, count, 8, 8)
    assert torch.equal(decoded.sample, mean_image(decoded.parameters, likelihood, 3, 2))
    assert vae.variance.dtype == torch.float32 and vae.variance == 1


@pytest.mark.parametrize("classes", [None, 3])
def test_decoding_repeats_the_pass_of_the_posterior(classes):
    vae = lively(make(13, 2, classes))
    labels = torch.tensor([0, 2, 1]) if classes else None
    posterior = vae.encode(images(3, 13, 2), labels).latent_dist
    for draw in (posterior.sample, posterior.mode):
        latents = draw()
        seen, again = posterior.decode(), vae.decode(latents, labels)
        assert torch.equal(seen.parameters, again.parameters)
        assert torch.equal(seen.sample, again.sample)
    assert seen.parameters.std() > 0.1
    tuples = vae.decode(latents, labels, return_dict=False)
    assert torch.equal(tuples[0], again.sample) and torch.equal(tuples[1], again.parameters)


def test_latents_are_whitened():
    """z = mu_p + sigma_p * eps in each group, whatever the prior."""
    vae = lively(make())
    said, went_in = [], []
    for group in (group for level in reversed(vae.decoder) for group in level.groups):
        group.prior.register_forward_hook(lambda module, args, output: said.append(output))
        group.project.register_forward_hook(lambda module, args, output: went_in.append(args[0]))
    eps = torch.randn(3, *vae.latent_shape)
    vae.decode(eps)
    parts = eps.flatten(1).split(vae.group_sizes, dim=1)
    assert len(parts) == len(said) == len(went_in) == 4
    for part, raw, z in zip(parts, said, went_in, strict=True):
        mean, std = 8 * (raw[:, :2] / 8).tanh(), (1 + 2 ** (8 * (raw[:, 2:4] / 8).tanh())).log2()
        assert std.std() > 0.01 and mean.std() > 0.01
        torch.testing.assert_close(z, mean + std * part.view_as(z))


def test_posterior_latents_come_from_q():
    """z = mu_p + delta + sigma_q * noise, in a single group."""
    torch.manual_seed(0)
    group = lively(LatentGroup(6, 4, 2, scale=1.0))
    hidden, features, noise = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4), torch.randn(2, 2, 4, 4)
    went_in = []
    group.project.register_forward_hook(lambda module, args, output: went_in.append(args[0]))
    _, draw = group(hidden, noise, features)
    mean = 8 * (group.prior(hidden)[:, :2] / 8).tanh()
    raw = group.posterior(torch.cat([hidden, features], dim=1))
    torch.testing.assert_close(went_in[0], mean + 8 * (raw[:, :2] / 8).tanh() + deviation(raw[:, 2:]) * noise)
    torch.testing.assert_close(went_in[0], mean + draw.p_std * draw.eps)
    q = torch.distributions.Normal(mean + draw.delta, draw.q_std)
    p = torch.distributions.Normal(mean, draw.p_std)
    torch.testing.assert_close(draw.kl(), torch.distributions.kl_divergence(q, p).sum((1, 2, 3)))
    ratio = (q.log_prob(went_in[0]) - p.log_prob(went_in[0])).sum((1, 2, 3))
    torch.testing.assert_close(draw.log_ratio(), ratio, rtol=1e-4, atol=1e-4)


def test_kl_is_the_mean_of_the_log_ratio():
    vae = lively(make(classes=2))
    count = 4000
    with torch.no_grad():
        posterior = vae.encode(images(1).expand(count, -1, -1, -1), torch.ones(count, dtype=torch.long)).latent_dist
        posterior.sample(torch.Generator().manual_seed(3))
        kl, ratio = posterior.kl(), posterior.log_ratio()
    # Below the first group the KL depends on the draw, so that both have errors.
    error = (ratio - kl).std().item() / math.sqrt(count)
    assert kl.mean() > 10 * error
    assert ratio.mean().item() == pytest.approx(kl.mean().item(), abs=4 * error)
    groups = posterior.kl_per_group()
    assert len(groups) == len(vae.group_sizes) and all((group >= -1e-4).all() for group in groups)
    torch.testing.assert_close(torch.stack(groups).sum(0), kl)
    torch.testing.assert_close(groups[0], groups[0][:1].expand(count))  # nothing above it was drawn


def test_weights_of_importance_have_mean_one():
    """E_q[p(z) / q(z)] = 1 as p integrates to 1; for the weights to be tame, q is nearly p."""
    vae = make()
    with torch.no_grad():
        posterior = vae.encode(images(1).expand(4000, -1, -1, -1)).latent_dist
        posterior.sample(torch.Generator().manual_seed(3))
        weights = (-posterior.log_ratio()).exp()
    assert posterior.kl().mean() > 0.1
    assert weights.mean().item() == pytest.approx(1, abs=5 * weights.std().item() / math.sqrt(4000))


def test_no_kl_where_q_is_p():
    """With posteriors that say what priors say, delta is 0, noise is eps, and nothing is left to measure."""
    vae = lively(make())
    for level in vae.decoder:
        for group in level.groups:
            for layer in (group.prior[-1], group.posterior[-1]):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.constant_(group.prior[-1].bias[2:4], 1.5)  # but not N(0, 1)
            nn.init.constant_(group.posterior[-1].bias[2:4], 1.5)
    posterior = vae.encode(images()).latent_dist
    noise = torch.randn(3, *vae.latent_shape)
    torch.testing.assert_close(posterior.sample(noise=noise), noise)
    for value in (posterior.kl(), posterior.log_ratio(), *posterior.kl_per_group()):
        torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-4)


def test_deviations_are_smooth_and_bounded():
    torch.testing.assert_close(deviation(torch.zeros(1)), torch.ones(1))
    assert 0.005 < deviation(torch.tensor(-1e6)) < deviation(torch.tensor(1e6)) < 8.1
    assert LatentGroup(4, 4, 2, 1.0).prior[-1].weight.abs().max() == 0


def test_noise_and_generators():
    vae = lively(make())
    posterior = vae.encode(images()).latent_dist
    noise = torch.randn((3, *vae.latent_shape), generator=torch.Generator().manual_seed(5))
    given = posterior.sample(noise=noise)
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(5)), given)
    assert not torch.equal(posterior.sample(), given)
    assert torch.equal(posterior.mode(), posterior.sample(noise=torch.zeros_like(noise)))
    each = posterior.sample([torch.Generator().manual_seed(seed) for seed in (7, 8, 9)])
    alone = vae.encode(images()[1:2]).latent_dist.sample(torch.Generator().manual_seed(8))
    torch.testing.assert_close(each[1:2], alone, rtol=1e-3, atol=1e-4)
    sampled = vae(images(), sample_posterior=True, generator=torch.Generator().manual_seed(5))
    assert torch.equal(sampled.parameters, vae.decode(given).parameters)


def test_images_do_not_depend_on_the_batch():
    vae = lively(make(12, classes=3))
    labels, noise = torch.tensor([0, 1, 2]), torch.randn(3, *vae.latent_shape)
    together = vae.encode(images(size=12), labels).latent_dist
    latents, kl, ratio = together.sample(noise=noise), together.kl(), together.log_ratio()
    decoded = vae.decode(latents, labels).parameters
    for row in range(3):
        one = slice(row, row + 1)
        alone = vae.encode(images(size=12)[one], labels[one]).latent_dist
        torch.testing.assert_close(alone.sample(noise=noise[one]), latents[one], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone.kl(), kl[one], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone.log_ratio(), ratio[one], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            vae.decode(latents[one], labels[one]).parameters, decoded[one], rtol=1e-3, atol=1e-4
        )


def test_classes_matter_to_encoder_and_decoder():
    vae = lively(make(classes=2))
    latents = torch.randn(1, *vae.latent_shape).repeat(2, 1, 1, 1)
    first, second = vae.decode(latents, torch.tensor([0, 1])).parameters
    assert (first - second).abs().max() > 1e-3
    first, second = vae.encode(images(1).repeat(2, 1, 1, 1), torch.tensor([0, 1])).latent_dist.mode()
    assert (first - second).abs().max() > 1e-3


def test_every_group_reaches_the_image_and_sees_it():
    vae = lively(make(16))
    posterior = vae.encode(images(1, 16)).latent_dist
    latents = posterior.mode().detach().requires_grad_()
    vae.decode(latents).parameters.square().sum().backward()
    for part in latents.grad.flatten(1).split(vae.group_sizes, dim=1):
        assert part.abs().max() > 1e-6
    other = vae.encode(-images(1, 16)).latent_dist
    other.mode()
    for first, second in zip(posterior.kl_per_group(), other.kl_per_group(), strict=True):
        assert not torch.allclose(first, second)


def test_branches_start_small():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 5, 5)
    for scale in (0.0, 0.25):
        torch.manual_seed(0)
        full = bottleneck(8, 8, 4, 5)
        torch.manual_seed(0)
        torch.testing.assert_close(bottleneck(8, 8, 4, 5, scale)(x), scale * full(x))


def test_bfloat16_autocast():
    vae = lively(make(16))
    noise = torch.randn(3, *vae.latent_shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(images(3, 16)).latent_dist
        latents = posterior.sample(noise=noise)
        decoded = posterior.decode()
        assert torch.equal(vae.decode(latents).parameters, decoded.parameters)
    values = (latents, decoded.parameters, decoded.sample, posterior.kl(), posterior.log_ratio())
    assert all(value.dtype == torch.float32 for value in values)
    exact = vae.encode(images(3, 16)).latent_dist
    exact.sample(noise=noise)
    torch.testing.assert_close(posterior.kl(), exact.kl(), rtol=0.1, atol=0.1)


def test_it_learns():
    """A few steps on bright and dark squares lower the negative ELBO far below the entropy of single pixels."""
    vae = make(likelihood="gaussian").train()
    dark = torch.rand(64, 1, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    data = torch.where(dark, -0.8, 0.8).expand(-1, -1, 8, 8) + 0.1 * torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        posterior = vae.encode(data).latent_dist
        posterior.sample()
        error = F.mse_loss(posterior.decode().parameters, data)
        loss = 32 * error.log() + posterior.kl().mean()  # the Gaussian's variance at its best: nats up to a constant
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 64.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 50
    assert posterior.kl().mean() > math.log(2)  # it speaks of the brightness
    with torch.no_grad():
        generated = vae.decode(torch.randn(32, *vae.latent_shape)).sample.mean((1, 2, 3))
    assert generated.abs().mean() > 0.2


@pytest.mark.parametrize("classes", [None, 3])
def test_save_and_load(classes, tmp_path):
    vae = lively(make(classes=classes))
    vae.variance.fill_(0.25)
    vae.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    loaded = HierarchicalVAE.from_pretrained(tmp_path)
    assert loaded.variance == 0.25 and not loaded.training
    labels = torch.tensor([0, 2, 1]) if classes else None
    assert torch.equal(loaded(images(), labels).sample, vae(images(), labels).sample)
    assert loaded.state_dict().keys() == vae.state_dict().keys()
    half = HierarchicalVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half(images(), labels).sample.dtype == torch.float32


def test_mistakes():
    vae, conditional = make(), make(classes=2)
    size = vae.latent_shape[0]
    for shape in ((2, 3, 8, 8), (2, 1, 8, 9), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"sample has shape .*, but must be \(B, 1, 8, 8\)"):
            vae.encode(torch.zeros(shape))
    for shape in ((2, size), (2, size + 1, 1, 1), (2, size, 2, 1)):
        with pytest.raises(ValueError, match=rf"latents has shape .*, but must be \(B, {size}, 1, 1\)"):
            vae.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"noise has shape .*, but must be \(3, {size}, 1, 1\)"):
        vae.encode(images()).latent_dist.sample(noise=torch.zeros(2, size, 1, 1))
    with pytest.raises(ValueError, match="knows no classes: leave class_labels out"):
        vae.encode(images(2), torch.tensor([0, 1]))
    for call, argument in (
        (conditional.encode, images(2)),
        (conditional.decode, torch.zeros(2, *conditional.latent_shape)),
    ):
        with pytest.raises(ValueError, match="expects class_labels"):
            call(argument)
        with pytest.raises(ValueError, match=r"class_labels has shape \(1,\), but must be \(2,\)"):
            call(argument, torch.tensor([0]))
        with pytest.raises(ValueError, match=r"class_labels is \[0, 2\], but must be from 0 to 1"):
            call(argument, torch.tensor([0, 2]))
    for about in ("kl", "kl_per_group", "log_ratio", "decode"):
        with pytest.raises(ValueError, match="No latents have been drawn yet, .*: call sample or mode"):
            getattr(vae.encode(images()).latent_dist, about)()
    for size in (7, 257):
        with pytest.raises(ValueError, match=f"sample_size is {size}, but .* 8 to 256 pixels"):
            make(size)
    with pytest.raises(ValueError, match="patch_size is 3, but must be 2, 4 or 8"):
        make(patch_size=3)
    with pytest.raises(ValueError, match="likelihood is 'normal', but must be one of gaussian, bernoulli, logistic"):
        make(likelihood="normal")
