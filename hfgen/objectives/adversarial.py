"""Adversarial objectives and penalties: functions of logits, one value per image.

`real` and `fake` are a discriminator's logits, of shape `(B,)`, for real images and for generated ones. A probability
never occurs: each formula is written with `softplus(x) = log(1 + exp(x)) = -log(sigmoid(-x))`, which cannot overflow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Objective:
    """The two sides of a game.

    Attributes:
        discriminator (`Callable`): `(real, fake) -> (B,)`, what the discriminator minimises.
        generator (`Callable`): `(real, fake) -> (B,)`, what the generator minimises. `real` matters only if
            `relativistic`, and may be `None` otherwise.
        relativistic (`bool`): Whether only the difference of a real and a generated image's logits matters.
        centred (`bool`): Whether a logit of 0 means "undecided".
        smoothing (`bool`): Whether there is a target for real images that label smoothing could lower.
    """

    discriminator: Callable[..., torch.Tensor]
    generator: Callable[..., torch.Tensor]
    relativistic: bool = False
    smoothing: bool = False
    centred: bool = False


def logistic_discriminator(real: torch.Tensor, fake: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """`-log D(x) - log(1 - D(G(z)))` (GAN, https://huggingface.co/papers/1406.2661, equation 1).

    With `smoothing`, real images have the target `1 - smoothing` (one-sided, https://huggingface.co/papers/1606.03498,
    section 3.4).
    """
    return softplus(-real) + smoothing * real + softplus(fake)  # softplus(x) - softplus(-x) = x


def saturating_generator(real: torch.Tensor | None, fake: torch.Tensor) -> torch.Tensor:
    """`log(1 - D(G(z)))` (GAN, equation 1): its gradient vanishes where the discriminator is confident."""
    return -softplus(fake)


def nonsaturating_generator(real: torch.Tensor | None, fake: torch.Tensor) -> torch.Tensor:
    """`-log D(G(z))`: the same fixed point with a gradient that does not vanish (GAN, section 3)."""
    return softplus(-fake)


def least_squares_discriminator(real: torch.Tensor, fake: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """`(D(x) - 1)^2 / 2 + D(G(z))^2 / 2` (LSGAN, https://huggingface.co/papers/1611.04076, equation 9)."""
    return ((real - (1 - smoothing)).square() + fake.square()) / 2


def least_squares_generator(real: torch.Tensor | None, fake: torch.Tensor) -> torch.Tensor:
    """`(D(G(z)) - 1)^2 / 2` (LSGAN, equation 9)."""
    return (fake - 1).square() / 2


def hinge_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """`max(0, 1 - D(x)) + max(0, 1 + D(G(z)))` (https://huggingface.co/papers/1705.02894; SNGAN, 1802.05957)."""
    return relu(1 - real) + relu(1 + fake)


def wasserstein_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """`D(G(z)) - D(x)` (WGAN, https://huggingface.co/papers/1701.07875, equation 2)."""
    return fake - real


def linear_generator(real: torch.Tensor | None, fake: torch.Tensor) -> torch.Tensor:
    """`-D(G(z))`, for the hinge and the Wasserstein game."""
    return -fake


def relativistic_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """`softplus(-(D(x) - D(G(z))))` over pairs (R3GAN, https://huggingface.co/papers/2501.05441, equation 2)."""
    return softplus(fake - real)


def relativistic_generator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """`softplus(-(D(G(z)) - D(x)))`: the discriminator's with the roles exchanged."""
    return softplus(real - fake)


OBJECTIVES = {
    "relativistic": Objective(relativistic_discriminator, relativistic_generator, relativistic=True),
    "nonsaturating": Objective(logistic_discriminator, nonsaturating_generator, smoothing=True, centred=True),
    "saturating": Objective(logistic_discriminator, saturating_generator, smoothing=True, centred=True),
    "least_squares": Objective(least_squares_discriminator, least_squares_generator, smoothing=True),
    "hinge": Objective(hinge_discriminator, linear_generator, centred=True),
    "wasserstein": Objective(wasserstein_discriminator, linear_generator),
}


def squared_gradients(logits: torch.Tensor, *images: torch.Tensor) -> list[torch.Tensor]:
    """`||d logit / d image||^2` of each image: R1 on real images, R2 on generated ones.

    R1 is `gamma / 2` times its mean (https://huggingface.co/papers/1801.04406, equation 9), R2 the same on generated
    images (equation 10). Exact only if the logit of an image depends on no other image of the batch.

    The squares and their sum are float32; the derivative is as precise as the network, which under autocast computes
    in bfloat16. That puts the penalties of our discriminators off by 0.1 to 1.5 %, no more than the choice of a batch
    does; a pass in float32 instead takes up to 1.7 times as long.

    Args:
        logits (`torch.Tensor`): Those of all the images.
        images (`torch.Tensor` of shape `(B, C, H, W)`, one or several): float32, and requiring gradients.

    Returns:
        A `torch.Tensor` of shape `(B,)` for each of `images`: float32, differentiable once more.
    """
    gradients = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return [gradient.float().square().flatten(1).sum(1) for gradient in gradients]


def interpolate(real: torch.Tensor, fake: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Returns points between real and generated images, for [`lipschitz_penalty`] (WGAN-GP, algorithm 1).

    Args:
        real, fake (`torch.Tensor` of shape `(B, C, H, W)`): Images.
        fraction (`torch.Tensor` of shape `(B,)`): The weight of the real image, uniform in [0, 1).
    """
    return fake + fraction.view(-1, 1, 1, 1) * (real - fake)


def lipschitz_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """`(||d logit / d image|| - 1)^2` of each image (WGAN-GP, https://huggingface.co/papers/1704.00028, equation 3).

    Arguments as for [`squared_gradients`], `images` being those of [`interpolate`].
    """
    (squared,) = squared_gradients(logits, images)
    # The derivative of the root at 0 is infinite; a gradient that small counts as 1e-8.
    return ((squared + 1e-16).sqrt() - 1).square()
