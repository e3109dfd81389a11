"""Translators and the discriminator of patches: sizes, channels, what a logit sees, and precision."""

import pytest
import torch

from hfgen.models.patch_discriminator import PatchDiscriminator
from hfgen.models.resnet_translator import ResNetTranslator
from hfgen.models.translator_base import InstanceNorm
from hfgen.models.unet_translator import UNetTranslator

KINDS = {
    "resnet": lambda **options: ResNetTranslator(**{"base_channels": 4, "num_blocks": 2, **options}),
    "unet": lambda **options: UNetTranslator(**{"base_channels": 4, **options}),
}
every = pytest.mark.parametrize("kind", KINDS)


@every
@pytest.mark.parametrize("size", [8, 16, 28, 33, 64])
def test_sizes(kind, size):
    model = KINDS[kind](sample_size=size, in_channels=1, out_channels=3)
    made = model(torch.rand(2, 1, size, size) * 2 - 1).sample
    assert made.shape == (2, 3, size, size) and made.abs().max() <= 1 and made.dtype == torch.float32


@every
def test_a_translation_is_as_large_as_its_image(kind):
    model = KINDS[kind](sample_size=16).eval()
    for height, width in ((16, 16), (17, 30), (3, 5), (64, 16)):
        assert model(torch.rand(1, 3, height, width)).sample.shape == (1, 3, height, width)
    # What is added to divide the sides is cut off again, and changes little of what is there.
    image = torch.rand(1, 3, 15, 16)
    padded = torch.cat([image, image[..., -1:, :]], -2)
    assert torch.equal(model(image).sample, model(padded).sample[..., :15, :])


@every
def test_each_image_is_translated_for_itself(kind):
    model, images = KINDS[kind](sample_size=16).eval(), torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(model(images).sample[1:2], model(images[1:2]).sample, rtol=0, atol=1e-5)


def test_dropout_ends_with_training():
    model, image = UNetTranslator(sample_size=16, base_channels=4), torch.rand(1, 3, 16, 16)
    assert not torch.equal(model(image).sample, model(image).sample)
    model.eval()
    assert torch.equal(model(image).sample, model(image).sample)


def test_maps_for_the_contrast():
    model = ResNetTranslator(sample_size=16, base_channels=4, num_blocks=4)
    maps = model.features(torch.rand(2, 3, 16, 16))
    assert [each.shape[1] for each in maps] == model.feature_channels == [3, 8, 16, 16, 16]
    assert [each.shape[2] for each in maps] == [16, 8, 4, 4, 4]


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_what_a_logit_sees(layers, side):
    """As the papers say; without normalisation, which lets each logit see all of a map."""
    model = PatchDiscriminator(1, 4, layers)
    model.layers = torch.nn.Sequential(*(part for part in model.layers if not isinstance(part, InstanceNorm)))
    image = torch.zeros(1, 1, 128, 128, requires_grad=True)
    logits = model(image).logits
    middle = logits.shape[1] // 2
    logits[0, middle, middle].backward()
    seen = (image.grad[0, 0] != 0).any(0).nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == side


@every
def test_under_autocast(kind):
    """Translations and logits are float32, and instances are normalised in it."""
    model, judge = KINDS[kind](sample_size=16).eval(), PatchDiscriminator(3, 4, 1)
    image = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        made, logits = model(image).sample, judge(image).logits
        normed = InstanceNorm()(image.bfloat16() + 100)
    assert made.dtype == logits.dtype == torch.float32 and normed.dtype == torch.bfloat16
    assert (made - model(image).sample).abs().max() < 0.1
    assert normed.float().mean().abs() < 0.01


def test_gradient_checkpointing_changes_nothing():
    model, image = ResNetTranslator(sample_size=16, base_channels=4, num_blocks=3), torch.rand(2, 3, 16, 16)
    gradients = []
    for on in (False, True):
        model.zero_grad()
        (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()
        model(image).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_learnt_residual_begins_with_the_image():
    model = ResNetTranslator(sample_size=16, base_channels=4, num_blocks=1, learn_residual=True)
    image = torch.rand(2, 3, 13, 16) * 2 - 1
    assert torch.equal(model(image).sample, image)
    model(image).sample.sum().backward()
    assert model.conv_out.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="learn_residual adds to images of 1 channels, and out_channels is 3"):
        ResNetTranslator(in_channels=1, learn_residual=True)


@every
def test_mistakes(kind):
    with pytest.raises(ValueError, match=r"sample has shape \(1, 1, 16, 16\), but must be \(B, 3, H, W\)"):
        KINDS[kind](sample_size=16)(torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="sample_size is 3, but"):
        KINDS[kind](sample_size=3)
