"""A denoising network without errors: that of images whose distribution is known."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

Mixture = Sequence[tuple[float, float, float]]  # weight, mean and deviation of each component


class Oracle(nn.Module):
    """The network that training would end with if it were perfect, of images whose pixels are independent, each from a
    mixture of normal distributions. What is wrong with samples from it is the sampler's fault.

    Args:
        scheduler (`SchedulerMixin`): Its noise schedule and prediction type are the network's.
        mixture (`Sequence[tuple]`): Weight, mean and deviation of each component, for pixels in [-1, 1].
        sample_size (`int`): Height and width of the images.
        num_class_embeds (`int`, *optional*): Number of classes, which are all alike.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(
        self, scheduler: SchedulerMixin, mixture: Mixture, sample_size: int = 16, num_class_embeds: int | None = None
    ):
        super().__init__()
        size = {"sample_size": sample_size, "in_channels": 1, "out_channels": 1}
        self.config = FrozenDict(size | {"num_class_embeds": num_class_embeds})
        self.kind = scheduler.config.prediction_type
        self.log_snr = scheduler.alphas_cumprod.double().logit().clamp(min=-40)  # of each timestep
        self.weights, self.means, self.deviations = torch.tensor(mixture, dtype=torch.float64).T

    def forward(self, sample: torch.Tensor, timestep: Any, class_labels: Any = None) -> UNet2DOutput:
        """Predicts what `prediction_type` says, `(B, 1, H, W)`, for noisy images. Timesteps may lie between the
        trained ones."""
        time = float(timestep)
        below = max(0, min(int(time), len(self.log_snr) - 2))
        alpha = self.log_snr[below].lerp(self.log_snr[below + 1], time - below).sigmoid()
        noisy = sample.double()
        surprise = noisy[..., None] - alpha.sqrt() * self.means
        variance = alpha * self.deviations**2 + 1 - alpha
        clean = self.means + alpha.sqrt() * self.deviations**2 / variance * surprise
        if len(self.weights) > 1:
            clean = clean * (self.weights.log() - 0.5 * (surprise**2 / variance + variance.log())).softmax(-1)
        clean = clean.sum(-1)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return UNet2DOutput(sample={"epsilon": noise, "sample": clean, "v_prediction": v}[self.kind].float())

    def quantiles(self, count: int) -> torch.Tensor:
        """Returns pixels of the data in ascending order, `(count,)`, float64, evenly spread over its distribution."""
        levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        low, high = torch.full_like(levels, -3), torch.full_like(levels, 3)
        for _ in range(50):  # bisection
            middle = (low + high) / 2
            standard = (middle[:, None] - self.means) / self.deviations
            above = (self.weights * torch.special.ndtr(standard)).sum(-1) > levels
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2
