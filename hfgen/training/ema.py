"""The moving average of the weights, which is what is sampled, evaluated and published."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn


class EMA:
    """Exponential moving average with a half-life in images, as in EDM (https://huggingface.co/papers/2206.00364).

    The half-life is capped at a share `ramp` of the images seen so far, so that early averages forget the initial
    weights. Parameters and floating-point buffers are averaged in float32; other buffers are copied.

    Args:
        modules (`dict[str, nn.Module]`): The modules to follow. Copies of them, in eval mode, are in `self.modules`.
        half_life (`float`): In images.
        ramp (`float`): The cap; 0 for none.
        fixed (`Sequence[nn.Parameter]`, *optional*): Parameters that never change, which the copies share.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], half_life: float, ramp: float, fixed: Sequence[nn.Parameter] = ()
    ):
        self.half_life, self.ramp = half_life, ramp
        shared = {id(parameter): parameter for parameter in fixed}
        self.modules = {
            name: copy.deepcopy(module, dict(shared)).float().eval().requires_grad_(False)
            for name, module in modules.items()
        }
        self._pairs = [
            (mean, live)
            for name, module in modules.items()
            for mean, live in zip(_tensors(self.modules[name]), _tensors(module), strict=True)
            if mean is not live
        ]

    def decay(self, images: int, images_seen: int) -> float:
        """Returns how much of the average a step of `images` images keeps, `images_seen` being counted after it."""
        half_life = min(self.half_life, self.ramp * images_seen) if self.ramp else self.half_life
        return 0.5 ** (images / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, images: int, images_seen: int) -> None:
        """Moves the averages towards the modules."""
        means, lives = [], []
        for mean, live in self._pairs:
            if mean.is_floating_point():
                means.append(mean)
                lives.append(live.float())
            else:
                mean.copy_(live)
        torch._foreach_lerp_(means, lives, 1 - self.decay(images, images_seen))


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
