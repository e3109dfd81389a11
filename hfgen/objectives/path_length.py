"""Path length regularisation of style-based generators (StyleGAN2, section 3.2).

Paper: https://huggingface.co/papers/1912.04958

A step in the space of styles w should change the image by the same amount, wherever it starts and wherever it goes.
"""

import math

import torch
from torch import nn

DECAY = 0.01


def path_lengths(images: torch.Tensor, styles: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Computes `||J^T y||` of each image: `J = d image / d w`, `y` noise of variance `1 / (H W)` (equation 4).

    Its mean square over `y` is `sum(J^2) / (H W)`. With a style for each layer, as the paper's own code has it, the
    squares are summed within a layer and averaged over the layers.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images, float32, computed from the styles.
        styles (`torch.Tensor` of shape `(B, num_layers, style_dim)`): What they were computed from.
        noise (`torch.Tensor` of shape `(B, C, H, W)`): Draws from N(0, 1).

    Returns:
        `torch.Tensor` of shape `(B,)`: float32, differentiable once more.
    """
    noise = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    # The derivative of the root at 0 is infinite; a gradient that small counts as 1e-8.
    return (gradient.square().sum(2).mean(1) + 1e-16).sqrt()


class PathLengthMean(nn.Module):
    """Keeps the length `a` that [`path_lengths`] shall have: their running mean, a constant to the penalty
    `(length - a)^2`.

    All state is in float32 buffers, as in [`~adaptive_augmentation.AdaptiveProbability`]: with several processes,
    average them after each step, before `update`.

    Attributes:
        mean (`torch.Tensor` of shape `()`): The running mean, 0 at first.
    """

    mean: torch.Tensor
    length_sum: torch.Tensor
    length_count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "length_sum", "length_count"):  # the last two of this step
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def observe(self, lengths: torch.Tensor) -> None:
        """Notes the lengths of a micro-batch."""
        self.length_sum.add_(lengths.sum())
        self.length_count.add_(lengths.numel())

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean by 1 % towards that of the lengths since the last call, if there were any: call it once per
        step."""
        moved = torch.lerp(self.mean, self.length_sum / self.length_count, DECAY)
        self.mean.copy_(torch.where(self.length_count > 0, moved, self.mean))
        self.length_sum.zero_()
        self.length_count.zero_()
