"""Walks, edits and traversals: the same for every model with latents as what its pipeline does."""

import pytest
import torch

from hfgen.models.conv_vae import ConvVAE
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import adapter_of
from hfgen.sampling.latents import (
    attribute_direction,
    draw_seeds,
    edit,
    principal_directions,
    reconstruct,
    traverse,
    walk,
)
from hfgen.sampling.sampler import image_generators

VAES = {"vae": ConvVAE, "vqvae": VQVAE}
GANS = {
    "dcgan": lambda **more: DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4, **more),
    "stylegan2": lambda **more: StyleGAN2Generator(
        sample_size=8, latent_dim=4, style_dim=6, channel_base=64, channel_max=8, out_channels=1, **more
    ),
}
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(params=VAES)
def vae(request):
    torch.manual_seed(0)
    return VAEPipeline(VAES[request.param](sample_size=8, latent_channels=4, block_out_channels=(8, 8)))


@pytest.fixture(params=[(kind, classes) for kind in GANS for classes in (None, 3)], ids=str)
def gan(request):
    torch.manual_seed(0)
    kind, classes = request.param
    return GANPipeline(GANS[kind](num_class_embeds=classes))


def images(count):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_vae_does_what_its_pipeline_does(vae):
    adapter, (first, second) = adapter_of(vae), images(2)
    latents = adapter.encode(images(2))
    torch.testing.assert_close(reconstruct(adapter, images(2)), vae.reconstruct(images(2), output_type="pt"), **CLOSE)
    expected = vae.interpolate(first, second, 5, output_type="pt")
    torch.testing.assert_close(walk(adapter, latents, 5), expected, **CLOSE)
    expected = vae.traverse(3, [-1.0, 0.5], images(2), output_type="pt")
    torch.testing.assert_close(traverse(adapter, latents, 3, [-1.0, 0.5]), expected, **CLOSE)
    direction = attribute_direction(adapter, images(2)[:1], images(2)[1:])
    torch.testing.assert_close(direction, vae.attribute_direction(first, second), **CLOSE)
    expected = vae.edit(images(2), direction, [0.0, 1.0, 2.0], output_type="pt")
    torch.testing.assert_close(edit(adapter, latents, direction, [0.0, 1.0, 2.0]), expected, **CLOSE)


def test_a_gan_walks_as_its_pipeline_does(gan):
    adapter = adapter_of(gan)
    truncation = 0.7 if gan.style_based else 1.0
    options = adapter.options(truncation=truncation)
    ends, labels = adapter.draw(image_generators(5, (0, 1)), None, options)
    expected = gan.interpolate(
        generator=image_generators(5, (0, 1)), frames=4, truncation=truncation, output_type="pt"
    )
    torch.testing.assert_close(walk(adapter, ends, 5, labels), expected, **CLOSE)
    if labels is not None:
        assert labels.tolist() == [labels[0].item()] * 2
        labels = torch.tensor([1, 1])
        ends, _ = adapter.draw(image_generators(5, (0, 1)), labels, options)
    made = adapter.generate(image_generators(5, (0, 1)), labels, options)
    torch.testing.assert_close(adapter.decode(ends, labels), made, **CLOSE)


def test_a_gan_encodes_by_search(gan):
    adapter = adapter_of(gan)
    gan.set_progress_bar_config(disable=True)
    labels = torch.tensor([0, 2]) if gan.class_names else None
    latents = adapter.encode(images(2), labels, torch.Generator().manual_seed(0))
    assert latents.shape == (2, 6 if gan.style_based else 4)
    assert edit(adapter, latents, torch.ones(latents.shape[1]), [0.0, 1.0], labels).shape == (2, 2, 1, 8, 8)


def test_a_conditional_vae_draws_one_class_for_both_ends():
    torch.manual_seed(0)
    model = ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8), num_class_embeds=3)
    adapter = adapter_of(VAEPipeline(model, class_shares=[0.0, 0.0, 1.0]))
    ends, labels = adapter.draw(image_generators(0, (0, 1)), None, adapter.options())
    assert labels.tolist() == [2, 2] and walk(adapter, ends, 4, labels).shape == (4, 1, 8, 8)


def test_long_rows_are_decoded_in_parts(vae, monkeypatch):
    adapter, sizes = adapter_of(vae), []
    decode = adapter.decode
    monkeypatch.setattr(
        adapter, "decode", lambda latents, labels: sizes.append(len(latents)) or decode(latents, labels)
    )
    walk(adapter, adapter.encode(images(2)), 100)
    assert sizes == [64, 36]


def test_mistakes(vae):
    adapter, latents = adapter_of(vae), adapter_of(vae).encode(images(2))
    size = latents[0].numel()
    for function, message in (
        (lambda: walk(adapter, latents, 1), "frames is 1, but must be at least 2"),
        (lambda: edit(adapter, latents, torch.ones(3), [1.0]), r"direction has shape \(3,\)"),
        (lambda: edit(adapter, latents, latents[0], []), "strengths"),
        (lambda: traverse(adapter, latents, size, [1.0]), f"latents have entries 0 to {size - 1}"),
        (lambda: traverse(adapter, latents, 0, []), "values"),
    ):
        with pytest.raises(ValueError, match=message):
            function()


def test_restoration_is_that_of_the_pipeline(vae):
    adapter = adapter_of(vae)
    vae.set_progress_bar_config(disable=True)
    options = {"noise_level": 0.2, "steps": 2}
    expected = vae.denoise(images(2), 0.2, steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    found = adapter.restore("denoise", images(2), generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(found, expected) and "inpaint" in adapter.tasks
    with pytest.raises(UserError, match="task colour is not one of this model's: inpaint"):
        adapter.restore("colour", images(2))


def test_directions_are_those_that_images_vary_along():
    """Of a linear map from latents to images, the directions are its right singular vectors, by their effect."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    codes = torch.linalg.qr(torch.randn(400, 4, generator=generator)).Q * 20  # of one variance, and uncorrelated
    codes = codes - codes.mean(0)
    images = (codes @ rotation * torch.tensor([0.3, 0.2, 0.1, 0.05])).view(400, 1, 2, 2) / 10 + 0.5
    found = principal_directions(codes, images, None, 3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), rtol=0, atol=0.1)
    for index in range(3):
        assert torch.cosine_similarity(found[index], rotation[:, index], dim=0).abs() > 0.98
        assert found[index][found[index].abs().argmax()] > 0
    labels = torch.arange(400) % 2  # what is between classes does not count
    shifted = images + labels.view(-1, 1, 1, 1) * torch.tensor([0.9, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    again = principal_directions(codes, shifted, labels, 3)
    torch.testing.assert_close(again, found, rtol=0, atol=0.1)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count is {count}, but 400 images of this model have 1 to 4 directions"):
            principal_directions(codes, images, None, count)
    transparent = torch.cat([torch.rand(400, 3, 2, 2, generator=generator), torch.zeros(400, 1, 2, 2)], dim=1)
    with pytest.raises(ValueError, match="have 1 to 0 directions"):  # what nobody sees
        principal_directions(codes, transparent, None, 1)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", ["vae", *GANS])
def test_latents_of_seeds_make_the_images_of_seeds(kind, classes):
    torch.manual_seed(0)
    if kind == "vae":
        model = ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8), num_class_embeds=classes)
        pipe = VAEPipeline(model)
    else:
        pipe = GANPipeline(GANS[kind](num_class_embeds=classes))
    adapter, seeds = adapter_of(pipe), (5, 6, 7)
    options = adapter.options()
    codes, labels = draw_seeds(adapter, seeds, None, options)
    for index, seed in enumerate(seeds):
        own = None if labels is None else labels[index : index + 1]
        alone = pipe(generator=torch.Generator().manual_seed(seed), output_type="pt").images
        torch.testing.assert_close(adapter.decode(codes[index : index + 1], own), alone, **CLOSE)
    several = [torch.Generator().manual_seed(seed) for seed in seeds]
    same, own = pipe.draw_latents(generator=several)
    torch.testing.assert_close(same, codes, **CLOSE)
    assert own is labels is None if classes is None else torch.equal(own, labels)
    direction = torch.ones(codes.shape[1:])
    rows = pipe.edit(
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], direction=direction, output_type="pt"
    )
    torch.testing.assert_close(rows, edit(adapter, codes, direction, range(-3, 4), labels), **CLOSE)
