"""Adversarial objectives against their textbook form, penalties against closed forms; gradients included."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from hfgen.models.dcgan import DCGANDiscriminator
from hfgen.objectives.adversarial import OBJECTIVES, interpolate, lipschitz_penalty, squared_gradients

torch.manual_seed(0)
REAL, FAKE = torch.randn(16, dtype=torch.float64) * 3, torch.randn(16, dtype=torch.float64) * 3


def probability(logits):
    return torch.sigmoid(logits)


TEXTBOOK = {  # written with probabilities, as in the papers
    "saturating": (
        lambda real, fake: -probability(real).log() - (1 - probability(fake)).log(),
        lambda real, fake: (1 - probability(fake)).log(),
    ),
    "nonsaturating": (
        lambda real, fake: -probability(real).log() - (1 - probability(fake)).log(),
        lambda real, fake: -probability(fake).log(),
    ),
    "least_squares": (
        lambda real, fake: 0.5 * (real - 1) ** 2 + 0.5 * fake**2,
        lambda real, fake: 0.5 * (fake - 1) ** 2,
    ),
    "hinge": (
        lambda real, fake: -torch.minimum(real - 1, torch.zeros(())) - torch.minimum(-fake - 1, torch.zeros(())),
        lambda real, fake: -fake,
    ),
    "wasserstein": (lambda real, fake: -(real - fake), lambda real, fake: -fake),
    "relativistic": (
        lambda real, fake: -probability(real - fake).log(),
        lambda real, fake: -probability(fake - real).log(),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients(name):
    for side, textbook in zip(("discriminator", "generator"), TEXTBOOK[name], strict=True):
        results = []
        for function in (getattr(OBJECTIVES[name], side), textbook):
            real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
            value = function(real, fake)
            assert value.shape == (16,)
            results.append([value, *torch.autograd.grad(value.sum(), (real, fake), allow_unused=True)])
        for ours, theirs in zip(*results, strict=True):
            if theirs is None:
                assert ours is None
            else:
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_overflow_and_only_relativistic_ones_need_real_logits(name):
    objective = OBJECTIVES[name]
    extreme = torch.tensor([-200.0, 200.0], requires_grad=True)
    for value in (objective.discriminator(extreme, -extreme), objective.generator(extreme, extreme)):
        (gradient,) = torch.autograd.grad(value.sum(), extreme)
        assert value.isfinite().all() and gradient.isfinite().all()
    if not objective.relativistic:
        assert torch.equal(objective.generator(None, FAKE), objective.generator(REAL, FAKE))
    else:  # only differences matter
        torch.testing.assert_close(objective.generator(REAL + 5, FAKE + 5), objective.generator(REAL, FAKE))


def test_the_saturating_gradient_vanishes_where_the_discriminator_is_sure():
    fake = torch.tensor([-12.0], requires_grad=True)
    slopes = {}
    for name in ("saturating", "nonsaturating"):
        (slopes[name],) = torch.autograd.grad(OBJECTIVES[name].generator(None, fake).sum(), fake)
    assert slopes["saturating"].abs() < 1e-5
    assert slopes["nonsaturating"].item() == pytest.approx(-1, abs=1e-4)


def test_label_smoothing_is_one_sided():
    logistic = OBJECTIVES["nonsaturating"].discriminator(REAL, FAKE, smoothing=0.1)
    targets = torch.full_like(REAL, 0.9), torch.zeros_like(FAKE)
    wanted = sum(
        binary_cross_entropy(probability(logits), target, reduction="none")
        for logits, target in zip((REAL, FAKE), targets, strict=True)
    )
    torch.testing.assert_close(logistic, wanted)
    squares = OBJECTIVES["least_squares"].discriminator(REAL, FAKE, smoothing=0.1)
    torch.testing.assert_close(squares, ((REAL - 0.9) ** 2 + FAKE**2) / 2)
    assert [name for name, objective in OBJECTIVES.items() if objective.smoothing] == [
        "nonsaturating",
        "saturating",
        "least_squares",
    ]


class Quadratic(torch.nn.Module):
    """`x A x / 2 + b x` on flattened images: its gradient `A x + b` and the gradient's are known."""

    def __init__(self, size):
        super().__init__()
        root = torch.randn(size, size, dtype=torch.float64)
        self.a = torch.nn.Parameter(root @ root.T / size)
        self.b = torch.nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, images):
        flat = images.flatten(1)
        return 0.5 * ((flat @ self.a) * flat).sum(1) + flat @ self.b

    def slope(self, images):
        return images.flatten(1) @ self.a + self.b


def test_squared_gradients_and_their_gradient():
    model = Quadratic(12)
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    others = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty, other = squared_gradients(torch.cat([model(images), model(others)]), images, others)
    torch.testing.assert_close(other.double(), model.slope(others).square().sum(1), rtol=1e-6, atol=1e-6)
    slope = model.slope(images)  # differentiated by autograd once only
    # The penalty is computed in float32.
    torch.testing.assert_close(penalty.double(), slope.square().sum(1), rtol=1e-6, atol=1e-6)
    (ours,) = torch.autograd.grad(penalty.mean(), model.b, retain_graph=True)
    torch.testing.assert_close(ours, 2 * slope.mean(0), rtol=1e-6, atol=1e-6)


def test_lipschitz_penalty_and_its_gradient():
    model = Quadratic(12)
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty = lipschitz_penalty(model(images), images)
    slope = model.slope(images)
    norm = slope.norm(dim=1)
    torch.testing.assert_close(penalty.double(), (norm - 1) ** 2, rtol=1e-5, atol=1e-6)
    (ours,) = torch.autograd.grad(penalty.sum(), model.b, retain_graph=True)
    wanted = (2 * (norm - 1) / norm).unsqueeze(1) * slope
    torch.testing.assert_close(ours, wanted.sum(0), rtol=1e-5, atol=1e-5)
    flat = torch.zeros(2, 1, 2, 2, requires_grad=True)
    nothing = lipschitz_penalty((flat * 0).sum((1, 2, 3)), flat)  # a slope of zero has a penalty of one, and no NaN
    assert nothing.tolist() == [1, 1]


def test_interpolation_lies_between():
    real, fake = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    between = interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(between[0], fake[0])
    torch.testing.assert_close(between[1], 0.75 * fake[1] + 0.25 * real[1])
    torch.testing.assert_close(between[2], real[2])


def test_the_game_is_at_its_value_when_nothing_can_be_told_apart():
    zero = torch.zeros(1)
    assert OBJECTIVES["nonsaturating"].discriminator(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert OBJECTIVES["relativistic"].discriminator(zero, zero).item() == pytest.approx(math.log(2))


def test_penalties_under_autocast_are_as_precise_as_the_network():
    """What `squared_gradients` says: the derivative is that of bfloat16, a little off, and the rest is float32."""
    torch.manual_seed(0)
    network = DCGANDiscriminator(sample_size=8, base_channels=8)
    images = torch.rand(16, 1, 8, 8, requires_grad=True)
    (exact,) = squared_gradients(network(images).logits, images)
    with torch.autocast("cpu", torch.bfloat16):
        (fast,) = squared_gradients(network(images).logits, images)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    assert fast.mean().item() == pytest.approx(exact.mean().item(), rel=0.015)
