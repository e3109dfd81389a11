"""What autoregressive networks share: their output, what it says of levels, and checks of what they are given."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import nn

from hfgen.models.labels import check_classes
from hfgen.objectives import autoregressive


@dataclass
class AutoregressiveOutput(BaseOutput):
    """
    The output of an autoregressive network.

    Args:
        parameters (`torch.Tensor` of shape `(B, P, H, W)`):
            Of each position the parameters of its distribution, float32; they depend on the positions before it in
            raster order alone.
    """

    parameters: torch.Tensor


class Autoregressive:
    """The base of networks that give the distribution of each position of a grid from those before it.

    A network has `forward(sample, class_labels)`, which looks at a whole grid at once, for training, and the
    same position by position for sampling, at the cost of one position each:

    ```py
    cache = network.start(batch_size, class_labels)
    levels = None  # before the first position there is none
    for _ in range(height * width):
        parameters = network.step(cache, levels)  # (B, P)
        levels = ...  # (B, C), drawn by them
    ```
    """

    config: Any
    forward: Any
    embed: Any

    @property
    def _distribution(self) -> tuple[str, int, int]:
        return self.config.likelihood, self.config.num_levels, self.config.num_mixtures

    def log_prob(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, known: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""
        Computes the log-probability of grids of levels: exact, in nats.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Levels, int64.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
            known (`torch.Tensor` of shape `(B, H, W)`, bool, *optional*): Of grids whose beginning in raster order is
                known, where that is; by default everywhere.

        Returns:
            `torch.Tensor` of shape `(B,)`, float32.

        Raises:
            ValueError: As `forward`.
        """
        (parameters,) = self.forward(sample, class_labels, return_dict=False)
        nats = autoregressive.log_prob(sample, parameters, *self._distribution)
        return (nats if known is None else nats * known).sum((1, 2))

    def level_log_probs(self, parameters: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        r"""
        Computes the log-probability of each level of a channel of one position.

        Args:
            parameters (`torch.Tensor` of shape `(B, P)`): Those that `step` gave.
            before (`torch.Tensor` of shape `(B, c)`): The levels of the channels before, for channel c.

        Returns:
            `torch.Tensor` of shape `(B, num_levels)`.
        """
        return autoregressive.level_log_probs(parameters, before, self.config.in_channels, *self._distribution)

    @torch.no_grad()
    def start_embedding_(self, vectors: torch.Tensor) -> None:
        r"""
        Starts the embedding of levels as a random projection of vectors, so that levels are alike whose vectors are:
        of the codes of a VQ-VAE, what is learnt of one holds for those near it from the beginning.

        Args:
            vectors (`torch.Tensor` of shape `(num_levels, D)`): Of about length 1.
        """
        weight = self.embed.weight
        projection = torch.randn(vectors.shape[1], weight.shape[1])
        weight.copy_(vectors.to(weight) @ projection.to(weight) * weight.std())

    def _check(self, sample: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        config = self.config
        channels, size = config.in_channels, config.sample_size
        if tuple(sample.shape[1:]) != (channels, size, size) or sample.is_floating_point():
            raise ValueError(
                f"sample is of shape {tuple(sample.shape)} and {sample.dtype}, but must be levels of shape "
                f"(B, {channels}, {size}, {size}), int64, below {config.num_levels}."
            )
        check_classes(class_labels, config.num_class_embeds, len(sample))


@torch.no_grad()
def start_distribution_(layer: nn.Module, likelihood: str, channels: int, num_mixtures: int) -> None:
    """Sets a last layer so that the distributions start broad: logits of 0, or components spread over [-1, 1]."""
    weight: Any = layer.weight
    bias: Any = layer.bias
    weight.mul_(0.1)
    nn.init.zeros_(bias)
    if likelihood == "logistic_mixture":
        means = (2 * torch.arange(num_mixtures) + 1) / num_mixtures - 1
        bias[num_mixtures : (1 + channels) * num_mixtures] = means.repeat(channels)
        bias[(1 + channels) * num_mixtures : (1 + 2 * channels) * num_mixtures] = -1.5
