"""TarFlow and Glow: each the inverse of itself, with the determinant that autograd finds."""

import time
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hfgen.models.flow_base import from_line, to_line
from hfgen.models.glow import ActNorm, Glow, InvertibleConv
from hfgen.models.tarflow import TarFlow

TARFLOW = {"patch_size": 2, "num_blocks": 3, "layers_per_block": 2, "hidden_size": 16, "attention_head_dim": 8}
GLOW = {"num_levels": 2, "num_steps": 2, "hidden_channels": 8}
KINDS = {
    "tarflow": (TarFlow, TARFLOW),
    "paper": (TarFlow, TARFLOW | {"pixel_channels": 0}),
    "glow": (Glow, GLOW),
}
every = pytest.mark.parametrize("name", KINDS)
maps = pytest.mark.parametrize("pixel_map", ["linear", "logit"])


def make(name, size=8, channels=1, classes=None, dtype=torch.float32, noise=0.1, **options):
    """A network all of whose weights matter."""
    torch.manual_seed(0)
    kind, config = KINDS[name]
    model = kind(sample_size=size, in_channels=channels, num_class_embeds=classes, **config | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model.to(dtype)


def images(count=3, size=8, channels=1, dtype=torch.float32):
    """Images with noise, some pixels of which leave [-1, 1]."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64) * 2 - 1
    pixels[:, :, : size // 2] = -1  # black
    return (pixels + 0.002 * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)).to(dtype)


@every
@maps
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, None), (12, 3, 3)])
def test_decoding_inverts_encoding(name, pixel_map, dtype, error, size, channels, classes):
    model = make(name, size, channels, classes, dtype, noise=0.05, pixel_map=pixel_map)
    given, labels = images(3, size, channels, dtype), None if classes is None else torch.tensor([0, 2, 1])
    with torch.no_grad():
        encoded = model.encode(given, labels)
        assert encoded.latents.dtype == encoded.log_det.dtype == dtype
        assert encoded.latents.shape == given.shape and encoded.latents[0].shape == model.latent_shape
        assert (encoded.latents - given).abs().max() > 0.1
        assert (model.decode(encoded.latents, labels).sample - given).abs().max() < error
        latents = torch.randn(given.shape, dtype=dtype)
        decoded = model.decode(latents, labels).sample
        assert decoded.dtype == dtype
        if dtype == torch.float64:
            assert (model.encode(decoded, labels).latents - latents).abs().max() < 1e-6
        if labels is not None:
            assert not torch.equal(model.encode(given, labels.flip(0)).latents, encoded.latents)


@every
@maps
def test_log_determinants_are_those_of_autograd(name, pixel_map):
    model = make(name, 4, 2, None, torch.float64, noise=0.3, pixel_map=pixel_map)
    given = images(2, 4, 2, torch.float64)
    log_det = model.encode(given).log_det
    for image, expected in zip(given, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda pixels: model.encode(pixels.view(1, 2, 4, 4)).latents.flatten(), image.flatten()
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pixel_map", ["linear", "logit"])
def test_the_map_of_pixels(pixel_map):
    levels = torch.linspace(-3, 258, 2000, dtype=torch.float64)
    pixels = (levels * 2 / 255 - 1).requires_grad_()
    values, log_det = to_line(pixels[:, None, None, None], pixel_map)
    (slope,) = torch.autograd.grad(values.sum(), pixels)
    torch.testing.assert_close(log_det, slope.log())
    torch.testing.assert_close(from_line(values, pixel_map).flatten(), pixels, rtol=0, atol=1e-12)
    single, _ = to_line(pixels.float()[:, None, None, None], pixel_map)
    torch.testing.assert_close(from_line(single, pixel_map).flatten(), pixels.float(), rtol=0, atol=2e-6)
    far = torch.tensor([-1e6, 1e6])  # of a sample that failed
    assert from_line(far[:, None, None, None], pixel_map).isfinite().all()
    if pixel_map == "logit":
        middle = (levels > 20) & (levels < 235)
        odds = torch.logit(levels / 255)[middle] / 4
        torch.testing.assert_close(values.flatten()[middle], odds, rtol=0, atol=2e-3)


# TarFlow


def naive(block, values, labels):
    """Inverts a block by running all of it once for each number."""
    patches = torch.zeros_like(values)
    for index in range(values.shape[1]):
        for number in range(values.shape[2]):
            zero, one = (patches.clone() for _ in range(2))
            one[:, index, number] = 1
            low, high = (block(given, labels)[0][:, index, number] for given in (zero, one))
            patches[:, index, number] = (values[:, index, number] - low) / (high - low)  # it is affine
    return patches


@pytest.mark.parametrize("name", ["tarflow", "paper"])
def test_the_cached_inverse_is_the_naive_one(name):
    block, labels = make(name, classes=3, dtype=torch.float64).blocks[0], torch.tensor([0, 1])
    values = torch.randn(2, 16, 4, dtype=torch.float64)
    with torch.no_grad():
        assert (block.inverse(values, labels) - naive(block, values, labels)).abs().max() < 1e-5


@pytest.mark.slow
def test_the_cached_inverse_is_faster():
    block, values = make("tarflow", size=32, hidden_size=64).blocks[0], torch.randn(4, 256, 4)
    seconds = []
    with torch.no_grad():
        for invert in (block.inverse, partial(naive, block)):
            start = time.perf_counter()
            invert(values, None)
            seconds.append(time.perf_counter() - start)
    assert 5 * seconds[0] < seconds[1], seconds


def test_the_inverse_takes_as_many_operations_per_number_in_larger_patches():
    """One that copied all numbers of a patch for each next one took minutes for images of 64 pixels in colour."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for patch_size in (2, 16):  # as many patches
        model = make("tarflow", 2 * patch_size, patch_size=patch_size, num_blocks=1)
        with torch.no_grad(), Counter() as counter:
            model.decode(torch.randn(2, *model.latent_shape))
        counts.append(counter.count / patch_size**2)
    assert counts[1] < counts[0]


def test_a_patch_depends_on_those_before_it():
    for name, own in (("tarflow", [False, False, True, True]), ("paper", [False, False, True, False])):
        block = make(name, dtype=torch.float64).blocks[0]
        patches = torch.randn(1, 16, 4, dtype=torch.float64)
        other = patches.clone()
        other[:, 7, 2] += 1
        changed = (block(patches, None)[0] - block(other, None)[0]).abs()[0] > 1e-12
        assert not changed[:7].any() and changed[8:].all()
        assert changed[7].tolist() == own


def test_every_second_block_sees_patches_from_the_end():
    """So that every latent depends on every pixel."""
    model = make("tarflow", size=4, num_blocks=2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda pixels: model.encode(pixels.view(1, 1, 4, 4)).latents.flatten(),
        torch.zeros(16, dtype=torch.float64),
    )
    assert (jacobian != 0).float().mean() > 0.9


def test_guidance():
    model, latents, labels = make("tarflow", classes=4), torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        plain, strong = (model.decode(latents, labels, guidance_scale=scale).sample for scale in (1, 3))
        none = model.decode(latents, torch.full_like(labels, 3)).sample
        same = model.decode(latents, torch.full_like(labels, 3), guidance_scale=3).sample
    assert (strong - plain).abs().max() > 1e-3
    torch.testing.assert_close(same, none, rtol=1e-4, atol=1e-3)  # "no class" has nothing to move away from
    with pytest.raises(ValueError, match="guidance_scale is 2, but this network knows no classes"):
        make("tarflow").decode(latents, guidance_scale=2)


def test_bfloat16_touches_no_determinant():
    """Autocast is for the transformer and the convolutions: what follows is exact for the shifts it gives."""
    for name in KINDS:
        model, given = make(name), images()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents, log_det = model.encode(given, return_dict=False)
        exact, exact_det = model.encode(given, return_dict=False)
        assert latents.dtype == log_det.dtype == torch.float32
        assert 0 < (latents - exact).abs().mean() < 0.1
        torch.testing.assert_close(log_det, exact_det, rtol=0.02, atol=1.0)


# Glow


def test_actnorm_starts_with_the_statistics_of_the_first_step():
    norm, given = ActNorm(3), torch.randn(50, 3, 4, 4) * torch.tensor([0.1, 2.0, 5.0])[:, None, None] + 1
    first, log_det = norm(given, observe=True)
    assert first.mean((0, 2, 3)).abs().max() < 1e-4 and (first.std((0, 2, 3)) - 1).abs().max() < 1e-2
    norm.initialise_()
    after, same = norm(given, observe=False)
    torch.testing.assert_close(after, first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(same, log_det, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.inverse(after), given, rtol=1e-4, atol=1e-4)
    again, _ = norm(2 * given, observe=True)  # of a training that goes on: it has its statistics
    norm.initialise_()
    torch.testing.assert_close(again, norm(2 * given, observe=False)[0])
    torch.testing.assert_close(norm.mean, given.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_actnorm_of_a_split_batch_is_that_of_the_whole():
    given = torch.randn(8, 3, 4, 4) + torch.arange(8.0)[:, None, None, None]
    whole, split, averaged = ActNorm(3), ActNorm(3), [ActNorm(3), ActNorm(3)]
    whole(given, observe=True)
    for part, one in zip(given.split(4), averaged, strict=True):
        split(part, observe=True)
        one(part, observe=True)
    for name in ("noted_count", "noted_sum", "noted_squares"):  # as processes agree on buffers
        mean = torch.stack([getattr(one, name) for one in averaged]).mean(0)
        getattr(averaged[0], name).copy_(mean)
    for norm in (split, averaged[0]):
        norm.initialise_()
    whole.initialise_()
    for norm in (split, averaged[0]):
        torch.testing.assert_close(norm.mean, whole.mean)
        torch.testing.assert_close(norm.std, whole.std)
    constant = ActNorm(1)
    constant(torch.ones(2, 1, 2, 2), observe=True)
    constant.initialise_()
    assert constant.std.item() == pytest.approx(1e-3)


def test_the_invertible_convolution_starts_as_a_rotation():
    torch.manual_seed(0)
    conv = InvertibleConv(6)
    matrix = conv.matrix(torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-5)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    given = torch.randn(2, 6, 3, 5)
    mixed, log_det = conv(given)
    expected = 15 * torch.linalg.slogdet(conv.matrix(torch.float64)).logabsdet
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(conv.inverse(mixed), given, rtol=1e-4, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: TarFlow(sample_size=28, patch_size=5), "patch_size is 5, which does not divide the 28 pixels"),
        (lambda: TarFlow(hidden_size=24, attention_head_dim=16), "hidden_size is 24, but must be a multiple"),
        (lambda: TarFlow(pixel_map="x"), "pixel_map is 'x', but must be one of linear, logit"),
        (lambda: Glow(sample_size=512), "sample_size is 512, but this network takes images of 4 to 256"),
        (lambda: Glow(sample_size=28, num_levels=3), "num_levels is 3, but the 28 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@every
def test_other_shapes_and_classes_are_refused(name):
    model, labelled = make(name), make(name, classes=3)
    for wrong in (images(2, 12), images(2, 8, 3), torch.zeros(2, 64)):
        with pytest.raises(ValueError, match=r"sample has shape .* must be \(B, 1, 8, 8\)"):
            model.encode(wrong)
        with pytest.raises(ValueError, match=r"latents has shape .* must be \(B, 1, 8, 8\)"):
            model.decode(wrong)
    for call in (labelled.encode, labelled.decode):
        with pytest.raises(ValueError, match="expects class_labels"):
            call(images(2))
        with pytest.raises(ValueError, match=r"class_labels is \[0, 3\]"):
            call(images(2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="knows no classes"):
        model.encode(images(2), torch.tensor([0, 1]))
