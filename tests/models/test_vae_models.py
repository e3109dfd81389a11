"""The flat VAEs: sizes, classes, likelihoods, gradients, saving and loading, mistakes."""

import ast
from pathlib import Path

import pytest
import torch

import hfgen.models
from hfgen.models import conv_vae, vq_vae
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.residual_vae import ResidualBlock, ResidualVAE
from hfgen.models.vae_base import VAEDecoderOutput, mean_image
from hfgen.objectives import elbo

KINDS = {
    "conv": (ConvVAE, {"block_out_channels": (8, 12)}),
    "residual": (ResidualVAE, {"block_out_channels": (8, 16), "norm_num_groups": 4, "class_embed_dim": 8}),
    "spatial": (
        ResidualVAE,
        {"block_out_channels": (8, 16), "norm_num_groups": 4, "class_embed_dim": 8, "spatial": True},
    ),
}


def network(kind, size=12, channels=1, classes=None, **options):
    torch.manual_seed(0)
    maker, small = KINDS[kind]
    options = small | {"latent_channels": 6} | options
    return maker(sample_size=size, in_channels=channels, num_class_embeds=classes, **options)


def images(number, channels, size):
    """Random 8-bit images."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (number, channels, size, size), generator=generator) / 127.5 - 1


def awake(vae):
    """Leaves the zeros that branches and heads start with, which hold gradients back."""
    for parameter in vae.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return vae


def elbo_of(vae, x, labels=None):
    """The negative bound of each image."""
    torch.manual_seed(2)
    posterior = vae.encode(x, labels).latent_dist
    parameters = vae.decode(posterior.sample(), labels).parameters
    likelihood, mixtures = vae.config.likelihood, vae.config.num_mixtures
    return posterior.kl() - elbo.log_likelihood(x, parameters, likelihood, vae.variance, mixtures)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (45, 4), (64, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_channels_and_classes(kind, size, channels, classes):
    vae = awake(network(kind, size, channels, classes))
    labels = torch.tensor([0, 2, 1]) if classes else None
    x = images(3, channels, size)
    posterior = vae.encode(x, labels).latent_dist
    place = -(-size // 4) if kind == "spatial" else 1
    assert vae.latent_shape == (6, place, place)
    assert posterior.mean.shape == posterior.sample().shape == posterior.mode().shape == (3, *vae.latent_shape)
    assert posterior.kl().shape == (3,)
    decoded = vae.decode(posterior.mode(), labels)
    assert decoded.sample.shape == decoded.parameters.shape == x.shape
    assert {posterior.mean.dtype, decoded.sample.dtype, decoded.parameters.dtype} == {torch.float32}
    elbo_of(vae, x, labels).mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("likelihood", elbo.LIKELIHOODS)
@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods(kind, likelihood, channels):
    vae = awake(network(kind, channels=channels, likelihood=likelihood, num_mixtures=3))
    x = images(4, channels, 12)
    x = x.sign() if likelihood == "bernoulli" else x
    decoded = vae.decode(torch.randn(4, *vae.latent_shape))
    assert decoded.parameters.shape[1] == conv_vae.num_parameters(likelihood, channels, 3)
    assert decoded.sample.shape == x.shape
    if likelihood != "gaussian":
        assert decoded.sample.abs().max() <= 1
    loss = elbo_of(vae, x).mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.any() and p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize(("likelihood", "bits"), [("bernoulli", 1.4), ("logistic", 13.5), ("logistic_mixture", 9.5)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_likelihood_is_sane(kind, likelihood, bits):
    """Untrained, on noise: little worse than to say that all levels are as likely."""
    vae = network(kind, 28, likelihood=likelihood, **{"block_out_channels": (16, 32), "latent_channels": 16})
    x = images(8, 1, 28)
    x = x.sign() if likelihood == "bernoulli" else x
    assert elbo.bits_per_dim(elbo_of(vae, x).mean().item(), 28 * 28) < bits
    decoded = vae.decode(torch.randn(64, *vae.latent_shape))
    assert decoded.sample.var(0).mean().sqrt() > 0.03  # latents matter from the first step
    posterior = vae.encode(x).latent_dist
    assert 0.1 < posterior.mean.std() < 2
    assert (posterior.logvar.abs() < 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_depend_on_the_batch(kind):
    vae = awake(network(kind, 13, classes=3))
    x, labels = images(5, 1, 13), torch.tensor([0, 1, 2, 0, 1])
    together, reconstructed = vae.encode(x, labels).latent_dist, vae(x, labels)
    for row in range(5):
        one = slice(row, row + 1)
        alone = vae.encode(x[one], labels[one]).latent_dist
        torch.testing.assert_close(alone.parameters[0], together.parameters[row], rtol=1e-4, atol=1e-5)
        image = vae(x[one], labels[one])
        torch.testing.assert_close(image.parameters[0], reconstructed.parameters[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_matter_to_encoder_and_decoder(kind):
    vae = awake(network(kind, classes=2))
    x, labels = images(1, 1, 12).repeat(2, 1, 1, 1), torch.tensor([0, 1])
    first, second = vae.encode(x, labels).latent_dist.mean
    assert not torch.allclose(first, second, atol=1e-4)
    first, second = vae.decode(torch.ones(2, *vae.latent_shape), labels).sample
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_interface_is_that_of_autoencoder_kl(kind):
    vae = network(kind, likelihood="logistic_mixture")
    x = images(2, 1, 12)
    posterior = vae.encode(x).latent_dist
    assert torch.equal(vae.encode(x, return_dict=False)[0].mean, posterior.mean)
    decoded = vae.decode(posterior.mode())
    assert torch.equal(vae(x).sample, decoded.sample)
    for output in (vae(x, return_dict=False), vae.decode(posterior.mode(), return_dict=False)):
        assert torch.equal(output[0], decoded.sample) and torch.equal(output[1], decoded.parameters)
    drawn = [vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(7)).sample for _ in range(2)]
    expected = vae.decode(posterior.sample(generator=torch.Generator().manual_seed(7))).sample
    assert torch.equal(drawn[0], expected) and torch.equal(drawn[1], expected)
    assert not torch.equal(drawn[0], decoded.sample)
    torch.testing.assert_close(posterior.kl(), elbo.gaussian_kl(posterior.mean, posterior.logvar).sum((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    """Under autocast, and as the type of all weights: likelihoods and latents are float32, and nearly the same."""
    vae = awake(network(kind, classes=2, likelihood="logistic_mixture"))
    x, labels = images(3, 1, 12), torch.tensor([0, 1, 1])
    exact = vae(x, labels).parameters
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior, parameters = vae.encode(x, labels).latent_dist, vae(x, labels).parameters
    assert posterior.mean.dtype == posterior.kl().dtype == parameters.dtype == torch.float32
    assert not torch.equal(parameters, parameters.bfloat16().float())
    assert (parameters - exact).abs().max() < 0.05 * exact.abs().max()
    assert vae.to(torch.bfloat16)(x, labels).sample.dtype == torch.float32


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, classes, tmp_path):
    vae = awake(network(kind, classes=classes, likelihood="logistic")).eval()
    vae.variance.fill_(0.3)
    vae.save_pretrained(tmp_path)
    loaded = type(vae).from_pretrained(tmp_path)
    assert loaded.variance.item() == pytest.approx(0.3)
    assert loaded.latent_shape == vae.latent_shape
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in vae.config.items() if k[0] != "_"
    }
    assert all(map(torch.equal, vae.state_dict().values(), loaded.state_dict().values()))
    labels = torch.tensor([0, 2]) if classes else None
    x = images(2, 1, 12)
    assert torch.equal(vae(x, labels).sample, loaded(x, labels).sample)
    assert not list(tmp_path.glob("*.bin"))


def test_residual_branches_start_at_zero_and_keep_the_scale():
    torch.manual_seed(0)
    for dim in (0, 8):
        block = ResidualBlock(16, 4, dim)
        x = torch.randn(2, 16, 5, 5)
        assert torch.equal(block(x, torch.randn(2, dim) if dim else None), x)
    vae = ResidualVAE()
    assert 500_000 < sum(p.numel() for p in vae.parameters()) < 1_000_000
    assert 0.1 < vae.decode(torch.randn(16, 32, 1, 1)).sample.std().item() < 1


def test_the_mean_image_of_a_mixture_is_its_expectation():
    """Against the sum over all colours of a pixel of two channels, and for components outside the range."""
    levels = torch.arange(256) / 127.5 - 1
    colours = torch.cartesian_prod(levels, levels).view(-1, 2, 1, 1)
    torch.manual_seed(0)
    parameters = torch.randn(1, 12, 1, 1) * 0.4
    parameters[:, 6:10] = -4  # narrow: nothing beyond the edges
    probabilities = elbo.log_likelihood(
        colours, parameters.expand(len(colours), -1, 1, 1), "logistic_mixture", num_mixtures=2
    ).exp()
    expected = (probabilities.view(-1, 1, 1, 1) * colours).sum(0, keepdim=True)
    found = mean_image(parameters, "logistic_mixture", 2, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    sure = torch.tensor([0.0, 0.0, -9.0, 1.0, -3.0, -3.0]).view(1, 6, 1, 1)  # black for certain, or white
    assert mean_image(sure, "logistic_mixture", 1, 2).item() == pytest.approx(0)


def test_mean_images_of_the_others():
    parameters = torch.randn(2, 6, 4, 4) * 3
    assert torch.equal(mean_image(parameters, "gaussian", 6, 5), parameters)
    bernoulli = mean_image(parameters, "bernoulli", 6, 5)
    torch.testing.assert_close(bernoulli, (parameters / 2).tanh())
    logistic = mean_image(parameters.bfloat16(), "logistic", 3, 5)
    assert logistic.dtype == torch.float32
    assert torch.equal(logistic, parameters[:, :3].bfloat16().float().clamp(-1, 1))


def test_what_networks_share_is_written_once():
    """A function or class is in one file of `hfgen/models`, from where others import it."""
    places = {}
    for path in Path(hfgen.models.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                node.name, name = "", node.name
                places.setdefault(ast.dump(node), []).append((name, path.name))
    assert not [found for found in places.values() if len(found) > 1]
    assert conv_vae.ConvVAEDecoderOutput is vq_vae.VQVAEDecoderOutput is VAEDecoderOutput  # names of earlier versions


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes(kind):
    vae = network(kind)
    x, latents = images(2, 1, 12), torch.randn(2, *vae.latent_shape)
    shape = r"sample has shape \(2, {}\), but must be \(B, 1, 12, 12\)"
    with pytest.raises(ValueError, match=shape.format("1, 8, 8")):
        vae.encode(images(2, 1, 8))
    with pytest.raises(ValueError, match=shape.format("3, 12, 12")):
        vae(images(2, 3, 12))
    expected = ", ".join(map(str, vae.latent_shape))
    for wrong in (latents[:, :5], latents.flatten(1), latents.repeat(1, 1, 2, 2)):
        with pytest.raises(ValueError, match=rf"latents has shape \(2, .*\), but must be \(B, {expected}\)"):
            vae.decode(wrong)
    labels = torch.tensor([0, 1])
    for call in (lambda: vae(x, labels), lambda: vae.encode(x, labels), lambda: vae.decode(latents, labels)):
        with pytest.raises(ValueError, match="knows no classes: leave class_labels out"):
            call()
    vae = network(kind, classes=2)
    for call in (lambda: vae(x), lambda: vae.encode(x), lambda: vae.decode(latents)):
        with pytest.raises(ValueError, match="num_class_embeds is 2, so this network expects class_labels"):
            call()
    for wrong in ([0, 2], [-1, 0]):
        for call in (lambda y: vae.encode(x, y), lambda y: vae.decode(latents, y)):
            with pytest.raises(ValueError, match=r"class_labels is \[.*\], but must be from 0 to 1"):
                call(torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"class_labels has shape \(1,\), but must be \(2,\)"):
        vae(x, labels[:1])
    for size in (7, 257):
        with pytest.raises(ValueError, match=f"sample_size is {size}, but this network takes images of 8 to 256"):
            network(kind, size)
    with pytest.raises(ValueError, match="likelihood is 'mse', but must be one of gaussian, bernoulli, logistic"):
        network(kind, likelihood="mse")


def test_groups_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match=r"norm_num_groups is 4, but must divide all of block_out_channels \(8, 10\)"):
        network("residual", block_out_channels=(8, 10))
    with pytest.raises(ValueError, match="into groups of several values: here 4 channels of 1x1 pixels"):
        network("residual", 8, block_out_channels=(8, 8, 4))  # normalised, a single value is always 0
