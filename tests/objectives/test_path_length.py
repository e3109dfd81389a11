"""Path length regularisation against Jacobians, and its running mean against a plain one."""

import math

import pytest
import torch

from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.objectives.path_length import PathLengthMean, path_lengths


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_lengths_are_those_of_the_jacobian():
    generator = StyleGAN2Generator(8, 2, 4, channel_base=64, channel_max=4, output_activation="tanh").double()
    layers = generator.num_layers
    styles = torch.randn(3, layers, 4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    lengths = path_lengths(generator.synthesize(styles), styles, noise)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda w: generator.synthesize(w[None])[0], styles[i].detach())
        product = torch.einsum("chw,chwld->ld", noise[i] / 8, jacobian)  # 8 = sqrt(H W)
        torch.testing.assert_close(lengths[i], (product.square().sum() / layers).sqrt())
    (gradient,) = torch.autograd.grad(lengths.sum(), generator.constant)
    assert gradient.abs().max() > 0


def test_the_mean_square_over_noise_is_that_of_the_jacobian():
    matrix = torch.randn(2 * 4 * 4, 5)
    styles = torch.zeros(20_000, 1, 5, requires_grad=True)
    images = (styles[:, 0] @ matrix.T).view(-1, 2, 4, 4)
    lengths = path_lengths(images, styles, torch.randn(images.shape))
    assert lengths.square().mean().item() == pytest.approx(matrix.square().sum().item() / 16, rel=0.02)


def test_an_image_that_does_not_change_is_no_nan():
    scale, styles = torch.tensor(0.0, requires_grad=True), torch.ones(2, 1, 3, requires_grad=True)
    images = (scale * styles.sum((1, 2))).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    lengths = path_lengths(images, styles, torch.ones(2, 1, 4, 4))
    lengths.sum().backward()
    assert lengths.max() < 1e-7 and scale.grad.isfinite()


def test_the_mean_follows_the_lengths_of_each_step():
    mean, plain = PathLengthMean(), 0.0
    for step in range(50):
        if step % 3 == 0:  # regularisation is lazy
            parts = torch.rand(2, 4) + step
            for part in parts:  # micro-batches
                mean.observe(part)
            plain += 0.01 * (parts.mean().item() - plain)
        mean.update()
        assert math.isclose(mean.mean.item(), plain, rel_tol=1e-5)
    assert mean.length_sum == mean.length_count == 0


def test_processes_agree_once_their_buffers_are_averaged():
    lengths = torch.rand(2, 4)
    whole, processes = PathLengthMean(), [PathLengthMean(), PathLengthMean()]
    whole.observe(lengths)
    for part, process in zip(lengths, processes, strict=True):
        process.observe(part)
    for buffers in zip(*(process.buffers() for process in processes), strict=True):
        average = sum(buffers) / 2
        for buffer in buffers:
            buffer.copy_(average)
    for module in (whole, *processes):
        module.update()
    torch.testing.assert_close(processes[0].mean, whole.mean)
    assert torch.equal(processes[0].mean, processes[1].mean)
