"""Path length: closed forms for linear and isometric generators, the literal definition, and what the network sees."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from evaluation.test_features import RESNET, images, save
from transformers import ResNetConfig, ResNetModel

from hfgen.evaluation.features import Extractor, Preparation, load_extractor, metric_prefix
from hfgen.evaluation.path_length import path_distances, perceptual_path_length, prepare_unrounded
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import image_seed

SCALE = 0.1  # of a linear generator: small enough for pixels in [-1, 1]
AS_IT_IS = Preparation(1, "bilinear", True, None, None, 1.0, (127.5,), (1.0,))  # but around 0


class Linear(ModelMixin, ConfigMixin):
    """A style-based generator whose pixels are linear in w; w is z, or z's direction, or a row per class."""

    @register_to_config
    def __init__(self, latent_dim=8, sample_size=4, out_channels=1, unit=False, num_class_embeds=None):
        super().__init__()
        pixels = out_channels * sample_size**2
        basis = torch.linalg.qr(torch.randn(pixels, latent_dim)).Q  # an isometry
        self.weight = torch.nn.Parameter(basis * SCALE)
        self.register_buffer("w_avg", torch.zeros(num_class_embeds or 1, latent_dim))

    def map(self, latents, class_labels=None, truncation=1.0):
        w = torch.nn.functional.normalize(latents, dim=1) if self.config.unit else latents
        return w if class_labels is None else w * (1.0 + class_labels[:, None])

    def synthesize(self, w):
        size = self.config.sample_size
        return (w @ self.weight.T).view(len(w), -1, size, size)


def as_extractor(network, prepare=AS_IT_IS, **options):
    """An extractor around a function."""
    defaults = {"id": "test", "dim": 1, "layer": "x", "fingerprint": "0" * 64, "batch_size": 6}
    preprocessing = {"channels": getattr(prepare, "channels", 1)}
    return Extractor(
        **defaults | options,
        preprocessing=preprocessing,
        device=torch.device("cpu"),
        prepare=prepare,
        network=lambda pixels: {"features": network(pixels)},
    )


def draws(number, dim, seed=0):
    """The latents of a path, as documented: two draws of one generator."""
    generator = torch.Generator().manual_seed(image_seed(seed, number, "path"))
    first, second = torch.randn(2, dim, generator=generator).double()
    return first, second, generator


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


PIXELS = as_extractor(lambda pixels: pixels.flatten(1))
GRAY_LEVELS = 127.5  # per unit of an image


@pytest.mark.parametrize("sampling", ["end", "full"])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2])
def test_a_linear_generator_has_the_length_of_the_whole_path(sampling, epsilon):
    pipe = GANPipeline(Linear())
    found = path_distances(pipe, PIXELS, range(20), seed=3, sampling=sampling, epsilon=epsilon)
    assert found.shape == (20,) and found.dtype == torch.float64
    for number, distance in enumerate(found):
        first, second, _ = draws(number, 8, seed=3)
        expected = ((second - first) @ pipe.model.weight.detach().double().T * GRAY_LEVELS).square().sum()
        torch.testing.assert_close(distance, expected, rtol=2e-7 / epsilon, atol=0)  # of the network in float32


def test_the_mean_of_a_linear_generator():
    """E |A (z1 - z0)|^2 = 2 |A|_F^2: here 2 D times the square of the scale."""
    pipe = GANPipeline(Linear())
    found = perceptual_path_length(path_distances(pipe, PIXELS, range(4000)))
    expected = 2 * 8 * (SCALE * GRAY_LEVELS) ** 2
    assert abs(found.value - expected) < 4 * found.standard_error + 0.02 * expected  # trimming costs about 1 %
    assert found.standard_error == pytest.approx(expected / 2 / math.sqrt(4000), rel=0.15)  # chi-square: sd = mean / 2


@pytest.mark.parametrize("sampling", ["end", "full"])
def test_arcs_in_z_have_constant_speed(sampling):
    """On the unit sphere, a step is a chord of `epsilon` times the angle between the ends."""
    pipe = GANPipeline(Linear(unit=True))
    epsilon = 0.05
    found = path_distances(pipe, PIXELS, range(20), space="z", sampling=sampling, epsilon=epsilon)
    for number, distance in enumerate(found):
        first, second, _ = draws(number, 8)
        angle = torch.arccos(torch.nn.functional.cosine_similarity(first, second, dim=0))
        chord = 2 * torch.sin(epsilon * angle / 2) * SCALE * GRAY_LEVELS
        torch.testing.assert_close(distance, (chord / epsilon) ** 2, rtol=1e-4, atol=0)


def test_full_paths_are_looked_at_in_random_places():
    """With features that are the square of a linear image, speed depends on the place."""
    pipe = GANPipeline(Linear())
    extractor = as_extractor(lambda pixels: pixels.flatten(1).square())
    found = path_distances(pipe, extractor, range(10), sampling="full", epsilon=1e-3)
    weight = pipe.model.weight.detach().double() * GRAY_LEVELS
    for number, distance in enumerate(found):
        first, second, generator = draws(number, 8)
        place = torch.rand((), generator=generator, dtype=torch.float64)
        ends = [((first + (second - first) * t) @ weight.T).square() for t in (place, place + 1e-3)]
        torch.testing.assert_close(distance, (ends[0] - ends[1]).square().sum() / 1e-6, rtol=1e-2, atol=0)


def tiny_stylegan(**options):
    torch.manual_seed(1)
    model = StyleGAN2Generator(
        **{"sample_size": 8, "latent_dim": 6, "channel_base": 64, "channel_max": 8, "out_channels": 1, **options}
    )
    for layer in model.layers:
        torch.nn.init.ones_(layer.noise_strength)
    return GANPipeline(model)


def resnet(folder):
    torch.manual_seed(2)
    model = ResNetModel(ResNetConfig(**RESNET))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
    return load_extractor(save(folder, model, processor)), model.eval().double()


@pytest.mark.parametrize(("space", "sampling"), [("w", "end"), ("w", "full"), ("z", "end"), ("z", "full")])
def test_stylegan2_follows_the_definition(tmp_path, space, sampling):
    """One path at a time, all in float64, with torch's own resizing."""
    pipe = tiny_stylegan()
    extractor, network = resnet(tmp_path)
    found = path_distances(pipe, extractor, range(6), seed=5, space=space, sampling=sampling, epsilon=1e-2)
    model = copy.deepcopy(pipe.model).double().eval()

    def features(point):
        image = model.synthesize(point if space == "w" else model.map(point))
        pixels = (image.clamp(-1, 1) + 1) / 2
        pixels = torch.nn.functional.interpolate(pixels.expand(-1, 3, -1, -1), (24, 24), mode="bilinear")
        return network((pixels - 0.5) / 0.5).pooler_output.flatten()

    def step(first, second, t):
        if space == "w":
            return first + t * (second - first)
        first, second = first / first.norm(), second / second.norm()
        angle = torch.arccos((first * second).sum())
        direction = torch.nn.functional.normalize(second - (first * second).sum() * first, dim=1)
        return first * torch.cos(t * angle) + direction * torch.sin(t * angle)

    expected = []
    with torch.no_grad():
        for number in range(6):
            first, second, generator = draws(number, 6, seed=5)
            t = torch.rand((), generator=generator, dtype=torch.float64) if sampling == "full" else 0.0
            first, second = first[None], second[None]
            if space == "w":
                first, second = model.map(first), model.map(second)
            ends = [features(step(first, second, place)) for place in (t, t + 1e-2)]
            expected.append((ends[0] - ends[1]).square().sum() / 1e-4)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=0)


def test_batches_and_processes_change_nothing_but_rounding(tmp_path):
    pipe = tiny_stylegan()
    extractor, _ = resnet(tmp_path)
    whole = path_distances(pipe, extractor, range(7))
    parts = [path_distances(pipe, replace(extractor, batch_size=1), pairs) for pairs in ([4, 0], [], [6])]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 0, 6]], rtol=0.02, atol=0)
    torch.testing.assert_close(path_distances(pipe, extractor, range(7)), whole, rtol=0, atol=0)


def test_the_pipeline_is_left_as_it_was(tmp_path):
    pipe = tiny_stylegan()
    pipe.model.train()
    before = copy.deepcopy(pipe.model.state_dict())
    path_distances(pipe, PIXELS, range(3))
    assert pipe.model.training and pipe.model.dtype == torch.float32
    for name, value in pipe.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_classes():
    """Both ends have the class that the pipeline draws after the latents, by its shares."""
    pipe = GANPipeline(Linear(num_class_embeds=3), class_shares=[0.5, 0.0, 0.5])
    found = path_distances(pipe, PIXELS, range(30))
    classes = []
    for number, distance in enumerate(found):
        first, second, generator = draws(number, 8)
        classes += pipe.class_numbers(None, 1, [generator]).tolist()
        plain = ((second - first).norm() * SCALE * GRAY_LEVELS).square()
        assert round((distance / plain).sqrt().item()) == 1 + classes[-1]
    assert set(classes) == {0, 2}


def test_clamped_pixels_do_not_move():
    pipe = GANPipeline(Linear())
    pipe.model.weight.data *= 1e4  # nearly all pixels are far beyond black or white
    assert path_distances(pipe, PIXELS, range(50)).median() < 1e-6 * 2 * 8 * (1e4 * SCALE * GRAY_LEVELS) ** 2


def test_trimmed_mean():
    values = torch.cat([torch.arange(100.0), torch.tensor([1e6])])[torch.randperm(101)]
    # of 101 values the percentiles 1 and 99 are the second and the last but one
    found = perceptual_path_length(values)
    assert found.value == pytest.approx(np.arange(1, 100).mean())
    winsorised = [1, *range(1, 100), 99]
    assert found.standard_error == pytest.approx(np.std(winsorised, ddof=1) / (0.98 * 101**0.5))
    assert perceptual_path_length(torch.ones(5)).value == 1.0
    assert perceptual_path_length(torch.ones(5)).standard_error == 0.0
    assert perceptual_path_length(torch.tensor([1.0, 3.0])).value == 2.0
    for draw in ([], [1.0]):
        with pytest.raises(ValueError, match="at least 2"):
            perceptual_path_length(torch.tensor(draw))
    with pytest.raises(ValueError, match="1 of 3 rows"):
        perceptual_path_length(torch.tensor([1.0, float("nan"), 2.0]))


def test_the_standard_error_is_that_of_repetitions():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 500, generator=generator).exp()
    found = [perceptual_path_length(sample) for sample in samples]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("resample", ["tf1", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("size", "crop"), [((17, 23), None), (9, (7, 8)), (40, (33, 21)), (None, (6, 5))])
def test_the_network_sees_what_the_preparation_gives(resample, rounded, size, crop):
    """For 8-bit images the only difference is the rounding."""
    if resample == "tf1" and rounded:
        pytest.skip("TensorFlow's resizing is never rounded")
    preparation = Preparation(3, resample, rounded, size, crop, 1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for probe in (images(3, 3, 14, 12), images(2, 1, 10, 15), images(1, 3, 8, 8) // 255 * 255):
        expected, found = preparation(probe), prepare_unrounded(preparation, probe.double())
        # half a level, after either pass; overshoot can be clamped on one side only
        levels = (1.6 if resample == "lanczos" else 1.2) if rounded and size else 2e-4
        torch.testing.assert_close(found, expected, rtol=0, atol=levels / 255 / 0.2)
        assert found.dtype == torch.float32


def test_names():
    extractor = as_extractor(None, fingerprint="ab" * 32, id="inception", verified=True)
    assert metric_prefix(extractor, "ppl") == "ppl_inception-abababab"


def test_mistakes(tmp_path):
    pipe = tiny_stylegan()
    for options in ({"space": "x"}, {"sampling": "middle"}, {"epsilon": 0.0}, {"epsilon": math.nan}):
        with pytest.raises(ValueError, match="must be"):
            path_distances(pipe, PIXELS, [0], **options)
    other = GANPipeline(DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4, out_channels=1))
    for kind in (other, SimpleNamespace()):
        with pytest.raises(UserError, match="has no styles"):
            path_distances(kind, PIXELS, [0])
    with pytest.raises(UserError, match="not rounded to 8 bit"):
        path_distances(pipe, as_extractor(None, prepare=lambda pixels: pixels), [0])
    with pytest.raises(UserError, match="images have 3 channels"):
        path_distances(tiny_stylegan(out_channels=3), PIXELS, [0])
