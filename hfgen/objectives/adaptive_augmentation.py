"""Augmentation of what a discriminator sees, and how much of it, so that a GAN can learn from few images.

The operations and their control follow ADA (https://huggingface.co/papers/2006.06676). As in DiffAugment
(https://huggingface.co/papers/2006.10738), everything is differentiable and meant for real and generated images alike,
in the steps of both networks: a generator whose images are augmented like the real ones need not learn to augment.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Each operation with the strength that it makes of uniform and of standard normal numbers. Strength 0 does nothing.
PIXEL_MOVES: dict[str, Draw] = {
    "flip": lambda uniform, normal: (2 * uniform).floor(),  # 1: mirrored
    "rotate90": lambda uniform, normal: (4 * uniform).floor(),  # quarter turns
    "translate_integer": lambda uniform, normal: (2 * uniform - 1) / 8,  # shares of the width and of the height
}
GEOMETRIC: dict[str, Draw] = {
    "scale": lambda uniform, normal: 0.2 * normal,  # binary logarithm of the factor
    "rotate": lambda uniform, normal: (2 * uniform - 1) * math.pi,  # angles before and after "anisotropic"
    "anisotropic": lambda uniform, normal: 0.2 * normal,  # binary logarithm of the factor: wider and less high
    "translate": lambda uniform, normal: normal / 8,  # shares of the width and of the height
}
COLOR: dict[str, Draw] = {
    "brightness": lambda uniform, normal: 0.2 * normal,  # added
    "contrast": lambda uniform, normal: 0.5 * normal,  # binary logarithm of the factor
    "luma_flip": lambda uniform, normal: (2 * uniform).floor(),  # 1: light and dark change places, hues stay
    "hue": lambda uniform, normal: (2 * uniform - 1) * math.pi,  # angle around the gray axis
    "saturation": lambda uniform, normal: normal,  # binary logarithm of the factor
}
CUTOUT: dict[str, Draw] = {
    "cutout": lambda uniform, normal: 1 + uniform,  # 1 + the centre, in shares of the width and of the height
}
STRENGTHS = {**PIXEL_MOVES, **GEOMETRIC, **COLOR, **CUTOUT}
OPERATIONS = tuple(STRENGTHS)


class Random(Protocol):
    """Draws numbers, one row per image."""

    def uniform(self, *shape: int) -> torch.Tensor: ...

    def normal(self, *shape: int) -> torch.Tensor: ...


def augment(
    images: torch.Tensor, random: Random, probability: torch.Tensor | float, operations: tuple[str, ...]
) -> torch.Tensor:
    """Augments each image by its own draw; differentiable any number of times with respect to the images.

    Where an operation has few outcomes, leaving the image alone is one of them, as likely as the others: half of the
    "flip"s and "luma_flip"s that are applied change nothing, and a quarter of the "rotate90"s. So at any probability
    below 1 the upright image stays the likeliest, and what is generated stays upright too (ADA, section 2.2; they
    find leaks unlikely below 0.8).

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Real or generated, in about [-1, 1]; any C, H and W. The
            colour operations act on the first three channels; hue and saturation do nothing where there are fewer.
        random: The random numbers of these images, on their device, as a [`~training.random.StepRandom`] gives them.
            An image uses the same ones whatever the other arguments are.
        probability (`torch.Tensor` of shape `()` or `float`): In [0, 1]. Each operation is applied to each image with
            this probability, independently. At 0 the result equals the input exactly.
        operations (`tuple[str, ...]`): Some of `OPERATIONS`; they always act in that order. ADA uses all but "cutout".

    Returns:
        `torch.Tensor` of the shape and type of `images`: not clamped. What comes in from outside is a reflection, what
        is cut out is 0, and an image that is not moved is not resampled: its pixels stay exact.

    Raises:
        ValueError: For an unknown operation.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise ValueError(f"operations contains {name!r}, but each must be one of {OPERATIONS}.")
    strengths = draw(random, probability, operations)
    if any(name in PIXEL_MOVES or name in GEOMETRIC for name in operations):
        images = move(images, strengths)
    if any(name in COLOR for name in operations):
        images = recolor(images, strengths)
    return cut_out(images, strengths) if "cutout" in operations else images


def draw(random: Random, probability: torch.Tensor | float, operations: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Draws the strengths `(B, 2)` of every operation for each image: 0 where it is not applied.

    "rotate" needs both numbers, and so does whatever has an x and a y; the others use the first one.
    """
    uniform, normal = random.uniform(len(OPERATIONS), 4), random.normal(len(OPERATIONS), 2)
    strengths = {}
    for i, (name, strength) in enumerate(STRENGTHS.items()):
        if name not in operations:
            applied = torch.zeros_like(uniform[:, i, :1], dtype=torch.bool)
        elif name == "rotate":  # each of the two on its own, so that with `probability` there is one at least
            applied = uniform[:, i, :2] < 1 - (1 - probability) ** 0.5
        else:
            applied = uniform[:, i, :1] < probability
        strengths[name] = torch.where(applied, strength(uniform[:, i, 2:], normal[:, i]), 0)
    return strengths


def move(images: torch.Tensor, strengths: dict[str, torch.Tensor]) -> torch.Tensor:
    """Applies `PIXEL_MOVES` and then `GEOMETRIC` as one affine map per image; see [`augment`].

    Flips, shifts by whole pixels and, of square images, quarter turns are exact.
    """

    def pixels(shares: torch.Tensor) -> torch.Tensor:
        return torch.stack([shares[:, 0] * images.shape[-1], shares[:, 1] * images.shape[-2]], 1).unsqueeze(-1)

    flip, quarters, scale, wider = (strengths[n][:, 0] for n in ("flip", "rotate90", "scale", "anisotropic"))
    before, after = strengths["rotate"].unbind(1)
    # From a position in the result to one in the source, so the inverse of the last operation comes first: rightmost.
    linear = diagonal(1 - 2 * flip, torch.ones_like(flip))
    linear = product(linear, rotation(quarters * (math.pi / 2)).round())
    shift = -product(linear, pixels(strengths["translate_integer"]).round())
    linear = product(linear, rotation(before))
    linear = product(linear, diagonal(torch.exp2(-scale - wider), torch.exp2(-scale + wider)))
    linear = product(linear, rotation(after))
    shift = shift - product(linear, pixels(strengths["translate"]))
    return resample(images, linear, shift.squeeze(-1))


def rotation(angle: torch.Tensor) -> torch.Tensor:
    """Returns look-up matrices `(B, 2, 2)` that turn images anticlockwise by `angle` in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def diagonal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns matrices `(B, 2, 2)` that multiply the first coordinate by `x` and the second by `y`."""
    return torch.diag_embed(torch.stack([x, y], 1))


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiplies matrices `(B, 2, 2)` and `(B, 2, N)`; autocast and TF32 do not make it less precise."""
    return (a.unsqueeze(-1) * b.unsqueeze(1)).sum(2)


def resample(images: torch.Tensor, linear: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Samples each pixel of the result from another position of the image, bilinearly.

    It is `grid_sample` with `align_corners=False` and `padding_mode="reflection"`: the image ends at the outer edges
    of its pixels, which no size in pixels moves, and goes on behind them as its mirror image. It is written out
    because a gradient penalty differentiates a gradient, which `grid_sample` learned only in recent PyTorch.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): The sources. A matrix of 1 and a shift of 0 keep them exactly.
        linear (`torch.Tensor` of shape `(B, 2, 2)`): From a position in the result to one in the source. Positions are
            pairs (x, y) in pixels, counted from the middle of the image.
        shift (`torch.Tensor` of shape `(B, 2)`): Added to that, in pixels.
    """
    batch, channels, height, width = images.shape
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).unsqueeze(-1)
    matrix, offset = linear.view(batch, 2, 2, 1, 1), shift.view(batch, 2, 1, 1)
    column = matrix[:, 0, 0] * x + matrix[:, 0, 1] * y + offset[:, 0] + (width - 1) / 2  # (B, H, W)
    row = matrix[:, 1, 0] * x + matrix[:, 1, 1] * y + offset[:, 1] + (height - 1) / 2
    left, top = column.floor(), row.floor()
    right_share, lower_share = column - left, row - top

    columns = reflect(torch.stack([left, left + 1], 1).long(), width)  # (B, 2, H, W)
    rows = reflect(torch.stack([top, top + 1], 1).long(), height)
    index = rows.unsqueeze(2) * width + columns.unsqueeze(1)  # the four neighbours: (B, 2, 2, H, W)
    column_weights = torch.stack([1 - right_share, right_share], 1)
    row_weights = torch.stack([1 - lower_share, lower_share], 1)
    weights = (row_weights.unsqueeze(2) * column_weights.unsqueeze(1)).to(images.dtype)

    neighbours = images.flatten(2).gather(2, index.view(batch, 1, -1).expand(-1, channels, -1))
    return (neighbours.view(batch, channels, 4, -1) * weights.view(batch, 1, 4, -1)).sum(2).view(images.shape)


def reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Reflects whole numbers into [0, size): -1 becomes 0, and `size` becomes `size - 1`."""
    index = index.remainder(2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def recolor(images: torch.Tensor, strengths: dict[str, torch.Tensor]) -> torch.Tensor:
    """Applies `COLOR` to the first three channels as one affine map per image; see [`augment`].

    Each operation keeps the gray axis and the plane of hues across it apart. So together they are a factor `along` the
    axis, and a factor and a turn, which make a complex number, `across` it.
    """
    brightness, contrast, luma_flip, hue, saturation = (
        strengths[name][:, 0].to(images.dtype).view(-1, 1, 1, 1) for name in COLOR
    )
    colors, rest = images[:, :3], images[:, 3:]
    if colors.shape[1] < 3:
        hue = saturation = torch.zeros_like(hue)
    along, across = contrast.exp2() * (1 - 2 * luma_flip), (contrast + saturation).exp2()
    real, imaginary = across * hue.cos(), across * hue.sin() / math.sqrt(3)
    changed = real * colors + (along - real) * colors.mean(1, keepdim=True) + along * brightness
    changed = changed + imaginary * (colors.roll(-2, 1) - colors.roll(-1, 1))
    return torch.cat([changed, rest], 1)


def cut_out(images: torch.Tensor, strengths: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sets a rectangle of half the width and half the height to 0, in all channels; see [`augment`]."""
    height, width = images.shape[-2:]
    centre_x, centre_y = (strengths["cutout"] - 1).view(-1, 2, 1, 1, 1).unbind(1)  # at -1 the rectangle is outside
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = ((torch.arange(height, device=images.device) + 0.5) / height).unsqueeze(-1)
    return images.masked_fill(((x - centre_x).abs() < 0.25) & ((y - centre_y).abs() < 0.25), 0)


class AdaptiveProbability(nn.Module):
    """The probability for [`augment`], controlled by how much the discriminator overfits (ADA, section 3).

    The measure is `r_t = E[sign(D(real))]` over training images, with positive logits for "real": 0 if it cannot tell
    them from generated ones, 1 if it knows them all. Above `target` the probability rises, below it falls.

    Relativistic, Wasserstein and least-squares logits have no zero for "undecided". Then observe *centred* ones,
    `real - (real.mean() + fake.mean()) / 2` of the same step: halfway between the two is where the other objectives
    put the zero, and `target` keeps its meaning. (Less `fake.mean()` alone the distance would count twice.)

    All state is in float32 buffers, so it is checkpointed, and no step waits for the device. With several processes,
    average the buffers over them after each step, before `update` in the next one: the mean sum over the mean count is
    `r_t` over all processes, and the probability moves alike in all.

    Args:
        target (`float`, *optional*, defaults to 0.6): The `r_t` to keep.
        initial (`float`, *optional*, defaults to 0.0): The first probability.
        images_per_unit (`int`, *optional*, defaults to 500_000): Images in which the probability moves by 1.
        interval (`int`, *optional*, defaults to 4): Steps from one adjustment to the next.

    Attributes:
        probability (`torch.Tensor` of shape `()`): In [0, 1], on the module's device.
    """

    probability: torch.Tensor
    sign_sum: torch.Tensor
    sign_count: torch.Tensor
    images_since: torch.Tensor

    def __init__(
        self, target: float = 0.6, initial: float = 0.0, images_per_unit: int = 500_000, interval: int = 4
    ) -> None:
        super().__init__()
        self.target, self.images_per_unit, self.interval = target, images_per_unit, interval
        self.register_buffer("probability", torch.tensor(initial, dtype=torch.float32))
        for name in ("sign_sum", "sign_count", "images_since"):  # since the last adjustment
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def observe(self, real_logits: torch.Tensor) -> None:
        """Notes the logits, of any shape, that the discriminator gave to augmented training images."""
        self.sign_sum.add_(real_logits.sign().float().sum())
        self.sign_count.add_(real_logits.numel())

    @torch.no_grad()
    def update(self, images_per_step: int) -> None:
        """Moves the probability, if due: call it once per step; it acts after `interval` steps with observations.

        The move makes up for all the images of these steps. Before the first observation nothing changes.

        Args:
            images_per_step (`int`): Over all processes and micro-batches.
        """
        self.images_since.add_((self.sign_count > 0) * images_per_step)
        due = self.images_since >= self.interval * images_per_step
        direction = (self.sign_sum / self.sign_count - self.target).sign()
        moved = (self.probability + direction * self.images_since / self.images_per_unit).clamp(0, 1)
        self.probability.copy_(torch.where(due, moved, self.probability))
        for since in (self.sign_sum, self.sign_count, self.images_since):
            since.masked_fill_(due, 0)
