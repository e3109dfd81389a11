"""Adaptive augmentation: each operation against its definition, derivatives, and the control of the probability."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfgen.objectives import adaptive_augmentation as ada
from hfgen.objectives.adaptive_augmentation import OPERATIONS, AdaptiveProbability, augment
from hfgen.training.random import StepRandom

# What an applied operation leaves alone: the identity is among the outcomes of these (of shifts in a 16 pixel image,
# -2 ... 2 per axis, a quarter is 0).
IDENTITY = {"flip": 1 / 2, "luma_flip": 1 / 2, "rotate90": 1 / 4, "translate_integer": 1 / 16}
MOVES = (*ada.PIXEL_MOVES, *ada.GEOMETRIC)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def strengths(batch, **given):
    """All strengths 0, but those that are given: one number or two."""
    values = {name: torch.zeros(batch, 2) for name in OPERATIONS}
    for name, value in given.items():
        values[name] = torch.tensor(value, dtype=torch.float32).expand(batch, 2)
    return values


def changed(before, after):
    return (before != after).flatten(1).any(1)


# Which images


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(28, 28), (17, 24)])
def test_probability_0_is_exactly_the_identity(channels, size):
    images = noise(8, channels, *size)
    for probability in (0.0, torch.tensor(0.0)):
        assert torch.equal(augment(images, StepRandom(0, 0, 8), probability, OPERATIONS), images)
    everything = augment(images, StepRandom(0, 0, 8), 1.0, OPERATIONS)
    assert everything.shape == images.shape and everything.isfinite().all()
    assert changed(images, everything).all()
    if channels == 4:  # colours leave the transparency alone
        assert torch.equal(augment(images, StepRandom(0, 0, 8), 1.0, tuple(ada.COLOR))[:, 3], images[:, 3])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_share_of_images_changed(name, probability):
    images = noise(1, 3, 16, 16).expand(2000, -1, -1, -1)
    result = augment(images, StepRandom(0, 0, 2000), torch.tensor(probability), (name,))
    wanted = probability * (1 - IDENTITY.get(name, 0))
    found = changed(images, result).float().mean().item()
    assert abs(found - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / 2000)


def test_operations_are_applied_independently():
    drawn = ada.draw(StepRandom(0, 0, 4000), 0.5, OPERATIONS)
    applied = torch.stack([drawn[name].any(1) for name in OPERATIONS if name not in IDENTITY], 1).double()
    correlation = torch.corrcoef(applied.T) - torch.eye(applied.shape[1])
    assert correlation.abs().max() < 0.07
    alone = ada.draw(StepRandom(0, 0, 4000), 0.5, ("hue",))  # an image's numbers do not depend on the other operations
    assert torch.equal(alone["hue"], drawn["hue"])


def test_strengths_have_the_distributions_of_the_paper():
    drawn = ada.draw(StepRandom(0, 0, 20_000), 1.0, OPERATIONS)
    deviation = {"scale": 0.2, "anisotropic": 0.2, "translate": 0.125, "brightness": 0.2, "contrast": 0.5}
    for name, wanted in {**deviation, "saturation": 1.0}.items():
        assert drawn[name].std().item() == pytest.approx(wanted, rel=0.03)
        assert abs(drawn[name].mean().item()) < 0.03 * wanted
    for name, low, high in (("rotate", -math.pi, math.pi), ("hue", -math.pi, math.pi), ("cutout", 1, 2)):
        quantiles = drawn[name].flatten().quantile(torch.tensor([0.0, 0.25, 1.0]))
        wanted = torch.tensor([low, (3 * low + high) / 4, high])
        torch.testing.assert_close(quantiles, wanted, rtol=0, atol=0.02 * (high - low))
    assert drawn["rotate90"].unique().tolist() == [0, 1, 2, 3]
    assert drawn["flip"].unique().tolist() == drawn["luma_flip"].unique().tolist() == [0, 1]
    assert drawn["translate_integer"].abs().max() <= 1 / 8


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_an_image_is_augmented_alike_in_any_split_of_the_batch(probability):
    images = noise(8, 3, 12, 12)
    whole = augment(images, StepRandom(3, 80, 8), probability, OPERATIONS)
    halves = [
        augment(images[part], StepRandom(3, 80, 8, part.start, part.stop), probability, OPERATIONS)
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-6)
    assert not torch.equal(augment(images, StepRandom(3, 88, 8), probability, OPERATIONS), whole)


def test_unknown_operation():
    with pytest.raises(
        ValueError, match=r"operations contains 'blur', but each must be one of \('flip', .*'cutout'\)"
    ):
        augment(noise(1, 3, 8, 8), StepRandom(0, 0, 1), 0.5, ("flip", "blur"))


# Where the pixels go


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 8)])
def test_flip_and_quarter_turns_are_exact(size):
    images = noise(2, 3, *size)
    assert torch.equal(ada.move(images, strengths(2, flip=1)), images.flip(-1))
    if size[0] == size[1]:
        for turns in (1, 2, 3):
            assert torch.equal(ada.move(images, strengths(2, rotate90=turns)), images.rot90(turns, (-2, -1)))
    else:
        assert torch.equal(ada.move(images, strengths(2, rotate90=2)), images.flip(-1, -2))


@pytest.mark.parametrize("dx, dy", [(1, 0), (-2, 1), (3, -2)])
def test_shift_by_whole_pixels_is_exact(dx, dy):
    images = noise(2, 1, 16, 24)
    rows, columns = (F.pad(torch.arange(n).float()[None, None], (3, 3), "replicate")[0, 0].long() for n in (16, 24))
    for index, size in ((rows, 16), (columns, 24)):  # the mirror image behind each edge
        index[:3], index[-3:] = torch.tensor([2, 1, 0]), torch.tensor([size - 1, size - 2, size - 3])
    padded = images[:, :, rows][..., columns]
    wanted = padded[..., 3 - dy : 19 - dy, 3 - dx : 27 - dx]
    # A little more than the whole number of pixels: it is rounded.
    moved = ada.move(images, strengths(2, translate_integer=((dx + 0.3) / 24, (dy - 0.3) / 16)))
    assert torch.equal(moved, wanted)


def reference(images, inverse):
    """`grid_sample` with the matrix (3, 3) from places in the result to places in the source, in pixels."""
    height, width = images.shape[-2:]
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))
    theta = (to_pixels.inverse() @ inverse @ to_pixels)[:2].expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def linear(a, b, c, d, dx=0.0, dy=0.0):
    return torch.tensor([[a, b, dx], [c, d, dy], [0, 0, 1.0]])


def turn(angle):  # anticlockwise as seen on a screen, where y points down
    return linear(math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))


@pytest.mark.parametrize("size", [(28, 28), (17, 24)])
def test_geometric_operations_agree_with_grid_sample(size):
    height, width = size
    images = noise(2, 3, *size)
    forward = {  # from places in the source to places in the result: pixels from the middle
        "flip": (1, linear(-1, 0, 0, 1)),
        "rotate90": (1, turn(math.pi / 2)),
        "translate_integer": ((2 / width, -1 / height), linear(1, 0, 0, 1, 2, -1)),
        "scale": (0.5, linear(2**0.5, 0, 0, 2**0.5)),
        "rotate": ((0.4, 0.0), turn(0.4)),
        "anisotropic": (-0.3, linear(2**-0.3, 0, 0, 2**0.3)),
        "translate": ((0.11, -0.23), linear(1, 0, 0, 1, 0.11 * width, -0.23 * height)),
    }
    for name, (strength, matrix) in forward.items():
        moved = ada.move(images, strengths(2, **{name: strength}))
        torch.testing.assert_close(moved, reference(images, matrix.inverse()), rtol=0, atol=2e-5, msg=name)
    given = {name: strength for name, (strength, _) in forward.items()} | {"rotate": (0.4, -1.1)}
    every = torch.eye(3)
    for name, (_, matrix) in forward.items():  # in the order of the paper
        every = matrix @ every
        if name == "anisotropic":
            every = turn(-1.1) @ every
    moved = ada.move(images, strengths(2, **given))
    torch.testing.assert_close(moved, reference(images, every.inverse()), rtol=0, atol=1e-4)


def test_far_outside_there_are_mirror_images_of_mirror_images():
    images = noise(1, 1, 5, 5)
    far = ada.resample(images, torch.eye(2).unsqueeze(0), torch.tensor([[10.0, -20.0]]))
    assert torch.equal(far, images)
    assert torch.equal(ada.resample(images, torch.eye(2).unsqueeze(0), torch.tensor([[-5.0, 0.0]])), images.flip(-1))


# Colours and cutting


def test_color_operations_agree_with_their_definitions():
    images = noise(2, 3, 6, 6)
    gray = images.mean(1, keepdim=True)
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # the vector product with the axis
    angle = 0.7
    hue = math.cos(angle) * torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * axis.outer(axis)
    mirror = torch.eye(3) - 2 * axis.outer(axis)
    wanted = {
        "brightness": (0.3, images + 0.3),
        "contrast": (-0.8, images * 2**-0.8),
        "luma_flip": (1, torch.einsum("ij,bjhw->bihw", mirror, images)),
        "hue": (angle, torch.einsum("ij,bjhw->bihw", hue, images)),
        "saturation": (1.5, gray + (images - gray) * 2**1.5),
    }
    for name, (strength, result) in wanted.items():
        found = ada.recolor(images, strengths(2, **{name: strength}))
        torch.testing.assert_close(found, result, rtol=0, atol=1e-5, msg=name)
    one_by_one = images
    for name, (strength, _) in wanted.items():
        one_by_one = ada.recolor(one_by_one, strengths(2, **{name: strength}))
    at_once = ada.recolor(images, strengths(2, **{name: strength for name, (strength, _) in wanted.items()}))
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-5)


def test_colors_of_gray_images():
    images = noise(4, 1, 6, 6)
    assert torch.equal(augment(images, StepRandom(0, 0, 4), 1.0, ("hue", "saturation")), images)
    torch.testing.assert_close(ada.recolor(images, strengths(4, luma_flip=1)), -images)
    torch.testing.assert_close(ada.recolor(images, strengths(4, brightness=0.5, contrast=1)), 2 * (images + 0.5))


def test_cutout():
    images = noise(2, 4, 8, 16)
    middle = images.clone()
    middle[:, :, 2:6, 4:12] = 0
    assert torch.equal(ada.cut_out(images, strengths(2, cutout=(1.5, 1.5))), middle)
    corner = images.clone()
    corner[:, :, 6:, :4] = 0
    assert torch.equal(ada.cut_out(images, strengths(2, cutout=(1.0, 1.999))), corner)


# Derivatives and precision


@pytest.mark.parametrize("channels", [1, 3])
def test_derivatives_of_first_and_second_order(channels):
    images = noise(2, channels, 3, 4, dtype=torch.float64).requires_grad_()

    def augmented(images):  # something that bends, so that there is a second derivative
        return augment(images, StepRandom(1, 0, 2), 0.9, OPERATIONS).pow(3)

    assert torch.autograd.gradcheck(augmented, (images,))
    assert torch.autograd.gradgradcheck(augmented, (images,))


def test_gradient_penalty_reaches_the_weights_as_through_the_matrix_of_the_map():
    """The augmentation is linear here: with its matrix A, the gradient of tanh(w A x) is A'w times the slope."""
    images = noise(1, 1, 4, 4, dtype=torch.float64).requires_grad_()
    weight = noise(16, seed=1, dtype=torch.float64).requires_grad_()

    def augmented(images):
        return augment(images, StepRandom(5, 0, 1), 1.0, MOVES)

    def penalty_gradient(gradient):
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    logit = (augmented(images).flatten() * weight).sum().tanh()
    found = penalty_gradient(torch.autograd.grad(logit, images, create_graph=True)[0])
    matrix = torch.autograd.functional.jacobian(augmented, images).view(16, 16)
    assert not torch.equal(matrix, torch.eye(16))
    slope = 1 - (matrix @ images.detach().flatten() * weight).sum().tanh().square()
    torch.testing.assert_close(found, penalty_gradient(slope * (matrix.T @ weight)))


def test_autocast_leaves_float32_images_in_full_precision():
    images = noise(4, 3, 8, 8)
    plain = augment(images, StepRandom(0, 0, 4), torch.tensor(0.8), OPERATIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(images, StepRandom(0, 0, 4), torch.tensor(0.8), OPERATIONS)
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    half = augment(images.bfloat16(), StepRandom(0, 0, 4), torch.tensor(0.8), OPERATIONS)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.1)


# The probability


def logits(positive, negative):
    return torch.cat([torch.full((positive,), 3.0), torch.full((negative,), -0.1)])


def test_probability_moves_by_the_images_and_towards_the_target():
    control = AdaptiveProbability(initial=0.5)
    assert not list(control.parameters())
    for step in range(1, 9):
        control.observe(logits(9, 1))  # r = 0.8
        control.update(100)
        assert control.probability.item() == pytest.approx(0.5 + (step // 4) * 400 / 500_000, abs=1e-6)
    for _ in range(16):
        control.observe(logits(7, 3))  # r = 0.4
        control.update(100)
    assert control.probability.item() == pytest.approx(0.5 - 800 / 500_000, abs=1e-6)
    slow = AdaptiveProbability(images_per_unit=1000, interval=1)
    slow.observe(logits(9, 1))
    slow.update(10)
    assert slow.probability.item() == pytest.approx(0.01)


def test_an_adjustment_goes_by_all_that_was_observed_since_the_last():
    control = AdaptiveProbability(initial=0.5)
    for batch in (logits(10, 0), logits(10, 0), logits(10, 0), logits(0, 50)):
        control.observe(batch[: len(batch) // 2])  # micro-batches
        control.observe(batch[len(batch) // 2 :])
        control.update(64)
    assert control.probability.item() == pytest.approx(0.5 - 256 / 500_000, abs=1e-7)
    assert control.sign_sum == control.sign_count == control.images_since == 0


@pytest.mark.parametrize("initial, batch", [(0.999, logits(4, 0)), (0.001, logits(0, 4))])
def test_probability_stays_within_0_and_1(initial, batch):
    control = AdaptiveProbability(initial=initial, images_per_unit=1000, interval=1)
    for _ in range(3):
        control.observe(batch)
        control.update(64)
    assert control.probability.item() == round(initial)


def test_nothing_observed_changes_nothing():
    control = AdaptiveProbability(initial=0.25, interval=2)
    for _ in range(11):
        control.update(64)
    assert [value.item() for value in control.buffers()] == [0.25, 0, 0, 0]
    control.observe(logits(4, 0))
    control.update(64)  # one step so far
    assert control.probability == 0.25
    control.update(64)
    assert control.probability.item() == pytest.approx(0.25 + 128 / 500_000, abs=1e-7)


def test_a_checkpoint_in_the_middle_of_an_interval_resumes_exactly():
    batches = [noise(16, seed=seed) + seed / 20 for seed in range(30)]
    whole, first, second = (AdaptiveProbability(0.3, 0.1, 20_000) for _ in range(3))
    trail = []
    for batch in batches:
        whole.observe(batch)
        whole.update(64)
        trail.append(whole.probability.item())
    assert len(set(trail)) > 3
    for i, batch in enumerate(batches):
        if i == 14:
            second.load_state_dict(first.state_dict())
        running = first if i < 14 else second
        running.observe(batch)
        running.update(64)
        assert running.probability.item() == trail[i]


def test_averaging_the_buffers_over_processes_is_one_process_with_all_images():
    one, *two = (AdaptiveProbability(0.3, 0.1, 20_000) for _ in range(3))
    for seed in range(20):
        halves = noise(8, seed=seed) + 0.3, noise(24, seed=seed + 100) + 0.3 * (seed % 2)
        one.update(64)
        one.observe(torch.cat(halves))
        for process, half in zip(two, halves, strict=True):
            process.update(64)
            process.observe(half)
        for a, b in zip(two[0].buffers(), two[1].buffers(), strict=True):
            mean = (a + b) / 2
            a.copy_(mean), b.copy_(mean)
        assert one.probability == two[0].probability == two[1].probability
    assert one.probability != 0.1


def test_state_stays_float32_and_without_a_graph():
    control = AdaptiveProbability(interval=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        control.observe((torch.ones(1001, requires_grad=True) * 2).bfloat16())
        control.update(64)
        control.observe(torch.ones(1001).bfloat16())
    assert control.sign_sum == control.sign_count == 1001  # bfloat16 has no such number
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in control.buffers())


def test_the_options_know_all_operations():
    from hfgen.families.gan.options import AUGMENTATIONS

    assert set(AUGMENTATIONS) == set(OPERATIONS)
