"""Drawing images position by position, completing them, and their probability."""

import numpy as np
import pytest
import torch
from caches import Whole
from PIL import Image

from hfgen import VQVAE, AutoregressivePipeline, CausalTransformer, ConvVAE, PixelCNN, adapter_of
from hfgen.objectives import elbo
from hfgen.pipelines.autoregressive import draw_grid

KINDS = {
    "pixelcnn": lambda **options: PixelCNN(
        **{"sample_size": 8, "base_channels": 8, "dilations": (1, 2), "likelihood": "categorical"} | options
    ),
    "transformer": lambda **options: CausalTransformer(
        **{"sample_size": 8, "hidden_size": 16, "num_layers": 2, "likelihood": "categorical"} | options
    ),
}
every = pytest.mark.parametrize("name", KINDS)


def shaken(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def make(name="pixelcnn", vae=None, **options):
    torch.manual_seed(0)
    pipe = AutoregressivePipeline(shaken(KINDS[name](**options)), vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_codes(classes=None, codes=16, **options):
    torch.manual_seed(1)
    sizes = {"latent_channels": 4, "num_vq_embeddings": codes, "block_out_channels": (8, 8), "norm_num_groups": 4}
    vae = shaken(VQVAE(sample_size=8, num_class_embeds=classes, **sizes | options))
    return make("transformer", vae, sample_size=2, num_levels=codes, num_class_embeds=classes)


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


@every
@torch.no_grad()
def test_caches_change_no_image(name):
    for options in ({}, {"in_channels": 3, "likelihood": "logistic_mixture", "num_mixtures": 3}):
        network = make(name, num_class_embeds=2, **options).model
        latents, labels = torch.randn(50, network.config.in_channels, 8, 8), torch.arange(50) % 2
        cached, whole = (draw_grid(each, latents, labels) for each in (network, Whole(network)))
        assert (cached == whole).flatten(1).all(1).sum() >= 49
        assert len(cached.unique()) > 100  # these are no constant images


@every
@torch.no_grad()
def test_images_are_drawn_as_often_as_they_are_probable(name):
    """Of all images of two by two pixels with two levels."""
    network = make(name, sample_size=2, num_levels=2).model
    images = torch.tensor([[(number >> bit) & 1 for bit in range(4)] for number in range(16)]).view(16, 1, 2, 2)
    drawn = draw_grid(network, torch.randn(20_000, 1, 2, 2))
    numbers = (drawn.flatten(1) * torch.tensor([1, 2, 4, 8])).sum(1)
    shares = numbers.bincount(minlength=16) / len(drawn)
    torch.testing.assert_close(shares, network.log_prob(images).exp(), atol=0.012, rtol=0)
    assert shares.max() > 2 * shares.min()


@every
def test_log_prob_of_images(name):
    pipe = make(name)
    images = pipe(3, generator=generators(3)).images
    levels = torch.stack([torch.from_numpy(np.asarray(image).copy()).long() for image in images])[:, None]
    with torch.no_grad():
        expected = pipe.model.log_prob(levels)
    torch.testing.assert_close(pipe.log_prob(images), expected)
    arrays = np.stack([np.asarray(image) for image in images])[..., None] / 255
    torch.testing.assert_close(pipe.log_prob(arrays), expected)
    torch.testing.assert_close(pipe.log_prob(images[1]), expected[1:2])
    with pytest.raises(ValueError, match="between two of the 256 levels"):
        pipe.log_prob(arrays * 0.99)


def test_images_whose_probability_is_not_known():
    images = torch.randint(256, (2, 1, 8, 8)) / 255
    with pytest.raises(ValueError, match="pixels have 16 levels, and not the 256 of 8-bit images"):
        make(num_levels=16).log_prob(images)
    with pytest.raises(ValueError, match="bernoulli"):  # of black and white, and these are gray
        with_codes(likelihood="bernoulli").log_prob(images)
    assert with_codes(likelihood="bernoulli").log_prob(images.round()).isfinite().all()


def test_images_and_their_log_prob_do_not_depend_on_their_batch():
    pipe = make(num_class_embeds=3)
    together = pipe(class_labels=[0, 1, 2], generator=generators(3), output_type="pt").images
    alone = [pipe(class_labels=[i], generator=generators(1, i), output_type="pt").images for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


@every
def test_complete(name):
    pipe = make(name)
    images = pipe(2, generator=generators(2), output_type="pt").images
    mask = torch.zeros(8, 8)
    mask[3, 5:], mask[4:] = 1, 1
    first, second = (pipe.complete(images, mask, generator=generators(2, seed), output_type="pt") for seed in (5, 9))
    known = (mask == 0).expand_as(images)
    assert torch.equal(first[known], images[known]) and torch.equal(second[known], images[known])
    assert (first != second)[~known].float().mean() > 0.5
    assert torch.equal(pipe.complete(images, mask, generator=generators(2, 5), output_type="pt"), first)
    # What is drawn follows from what is given: all of it, from the same numbers, is the image itself.
    again = pipe.complete(images, mask, generator=generators(2), output_type="pt")
    assert torch.equal(again, images)
    everything = pipe.complete(torch.zeros_like(images), torch.ones(8, 8), generator=generators(2), output_type="pt")
    assert torch.equal(everything, images)
    assert torch.equal(pipe.complete(images, torch.zeros(8, 8), output_type="pt"), images)
    (painted,) = pipe.complete(Image.new("L", (8, 8)), Image.new("L", (8, 8), 255), generator=generators(1))
    assert painted.size == (8, 8)


def test_a_mask_that_does_not_end_in_raster_order():
    pipe = make()
    image = torch.zeros(1, 1, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2, 3] = True
    with pytest.raises(ValueError, match="the pixel in row 2 and column 4 is given, and one before it is not"):
        pipe.complete(image, mask)
    both = torch.stack([torch.ones(8, 8), mask.float()])
    with pytest.raises(ValueError, match="row 2 and column 4"):
        pipe.complete(image.expand(2, -1, -1, -1), both)
    with pytest.raises(ValueError, match=r"mask has shape \(1, 4, 4\)"):
        pipe.complete(image, mask[:4, :4])
    with pytest.raises(ValueError, match="codes of a VAE"):
        with_codes().complete(image, torch.ones(8, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "temperature is -1, but must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan, but must be a finite number"),
        ({"top_p": 0}, "top_p is 0, but must be more than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be more than 0"),
        ({"top_p": "most"}, "top_p is 'most', but must be a finite number"),
    ],
)
def test_what_is_out_of_range(given, message):
    pipe = make()
    with pytest.raises(ValueError, match=message):
        pipe(1, **given)
    with pytest.raises(ValueError, match=message):
        pipe.complete(torch.zeros(1, 1, 8, 8), torch.ones(8, 8), **given)


def test_latents_are_of_no_temperature_that_is_out_of_range():
    with pytest.raises(ValueError, match="temperature is -1, but must be at least 0"):
        make()(1, temperature=-1, output_type="latent")


def test_temperature_0_leaves_nothing_to_chance():
    pipe = make()
    one, other = (pipe(1, temperature=0, generator=generators(1, seed), output_type="pt").images for seed in (0, 1))
    assert torch.equal(one, other)
    sharp = pipe(64, temperature=0.3, generator=generators(64), output_type="pt").images
    wide = pipe(64, generator=generators(64), output_type="pt").images
    assert pipe.log_prob(sharp).mean() > pipe.log_prob(wide).mean()


# Codes


def test_codes_become_images():
    pipe = with_codes()
    assert pipe.image_shape == (1, 8, 8) and pipe.grid_shape == (1, 2, 2)
    images = pipe(3, generator=generators(3), output_type="pt").images
    assert images.shape == (3, 1, 8, 8) and images.std() > 0.01
    latents = pipe(3, generator=generators(3), output_type="latent").images
    codes = draw_grid(pipe.model, latents)[:, 0]
    with torch.no_grad():
        expected = pipe.vae.decode(pipe.vae.lookup(codes)).sample / 2 + 0.5
    torch.testing.assert_close(images, expected.clamp(0, 1))


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic_mixture"])
def test_the_log_prob_of_codes_is_a_lower_bound(likelihood):
    """The probability of an image sums over all codes, of which the bound knows those that the encoder chooses."""
    pipe = with_codes(codes=4, likelihood=likelihood)
    images = torch.randint(256, (4, 1, 8, 8)) / 255
    every_code = torch.cartesian_prod(*[torch.arange(4)] * 4).view(-1, 1, 2, 2)
    with torch.no_grad():
        prior = pipe.model.log_prob(every_code)
        decoded = pipe.vae.decode(pipe.vae.lookup(every_code[:, 0])).parameters
        chosen = pipe.vae.quantize(pipe.vae.encode(2 * images - 1).latents).indices
    assert prior.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
    for image, codes, bound in zip(images, chosen, pipe.log_prob(images), strict=True):
        given = elbo.level_log_likelihood(
            2 * image.expand(len(prior), -1, -1, -1) - 1, decoded, likelihood, pipe.vae.variance, 5
        )
        terms = given.double() + prior.double()
        (own,) = (every_code.flatten(1) == codes.flatten()).all(1).nonzero()
        assert bound.item() == pytest.approx(terms[own].item(), rel=1e-4)
        assert bound < terms.logsumexp(0)


def test_classes_of_codes():
    pipe = with_codes(classes=2)
    images = [pipe(class_labels=label, generator=generators(1), output_type="pt").images for label in (0, 1)]
    assert not torch.equal(*images)
    nats = [pipe.log_prob(images[0].mul(255).round().div(255), label) for label in (0, 1)]
    assert not torch.equal(*nats)


@pytest.mark.parametrize("kind", ["pixels", "codes", "codes by group"])
def test_images_of_no_known_group(kind):
    """Their probability is the sum over the groups, each as frequent as in the data."""
    if kind == "pixels":
        made = make("transformer", num_class_embeds=3)
    else:
        made = with_codes(classes=3)
        if kind == "codes":
            made.register_modules(vae=with_codes().vae)
    names, shares = dict(enumerate("012")), [0.5, 0.5, 0.0]
    pipe = AutoregressivePipeline(made.model, made.vae, names, shares, "groups")
    images = torch.randint(256, (3, 1, 8, 8)) / 255
    each = torch.stack([pipe.log_prob(images, label) for label in range(3)]).double()
    expected = torch.logsumexp(each[:2] - np.log(2), 0)
    assert (each[0] - each[1]).abs().min() > 1e-3
    torch.testing.assert_close(pipe.log_prob(images), expected.float())
    assert torch.equal(
        pipe.log_prob(images), AutoregressivePipeline(made.model, made.vae, names, shares).log_prob(images)
    )
    assert adapter_of(pipe).without_classes and adapter_of(pipe).classes.groups
    labelled = AutoregressivePipeline(made.model, made.vae, names, shares, "labels")
    assert not adapter_of(labelled).without_classes
    with pytest.raises(ValueError, match="class_labels is missing"):
        labelled.log_prob(images)


def test_a_completion_draws_the_group_by_how_probable_the_beginning_is_in_it():
    network = make("transformer", num_class_embeds=2, sample_size=4, num_levels=256).model
    pipe = AutoregressivePipeline(network, None, {0: "0", 1: "1"}, [0.3, 0.7], "groups")
    pipe.set_progress_bar_config(disable=True)
    image = torch.randint(256, (1, 1, 4, 4)) / 255
    mask, known = torch.zeros(4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[2:], known[:, 2:] = 1, False
    levels = (image * 255).round().long()
    with torch.no_grad():
        joint = torch.cat([network.log_prob(levels, torch.tensor([label]), known) for label in (0, 1)])
        wholes = torch.cat([network.log_prob(levels, torch.tensor([label])) for label in (0, 1)])
        other = levels.clone()
        other[:, :, 2:] = 7  # what is not known does not count
        assert torch.equal(network.log_prob(other, torch.tensor([0]), known), joint[:1])
    assert (joint > wholes).all()
    share = (joint + torch.tensor([0.3, 0.7]).log()).softmax(0)[0].item()
    assert 0.05 < share < 0.95 and abs(share - 0.3) > 0.05
    images = image.expand(1000, -1, -1, -1)
    drawn, first = (
        pipe.complete(images, mask, label, generator=generators(1000), output_type="pt") for label in (None, 0)
    )
    assert (drawn == first).flatten(1).all(1).float().mean().item() == pytest.approx(share, abs=0.05)


def test_a_vae_that_does_not_fit():
    vae = with_codes().vae
    with pytest.raises(ValueError, match="vae has 2x2 positions and 16 codes, but the model was made for 4x4 and 16"):
        make("transformer", vae, sample_size=4, num_levels=16)
    with pytest.raises(ValueError, match="vae is a ConvVAE, which has no codes"):
        make("transformer", ConvVAE(8), sample_size=2, num_levels=16)
    with pytest.raises(ValueError, match="the model has 3 channels, but codes have one"):
        make("transformer", vae, sample_size=2, num_levels=16, in_channels=3, likelihood="logistic_mixture")
    with pytest.raises(ValueError, match="vae knows 2 classes, but the model None"):
        make("transformer", with_codes(classes=2).vae, sample_size=2, num_levels=16)


# The adapter


def test_the_adapter():
    adapter = adapter_of(make())
    assert adapter.passes(adapter.options()) == 64
    images = torch.randint(256, (2, 1, 8, 8)).float() / 127.5 - 1
    density = adapter.log_prob(images)
    assert torch.equal(density.lower, density.estimate)
    torch.testing.assert_close(density.lower, adapter.pipe.log_prob(images / 2 + 0.5))
    assert adapter.details(100)["bound"] == "exact"
    codes = adapter_of(with_codes())
    assert codes.passes(codes.options()) == 4
    assert codes.details(100)["bound"] == "elbo of its codes"
    assert codes.image_shape == (1, 8, 8)
