"""The random numbers of a training step: a pure function of the seed and the images seen.

They are drawn for the whole batch of the step, and each process and micro-batch takes its slice. So resuming repeats
them, and neither the number of processes nor accumulation changes them.
"""

import torch

from hfgen.runtime.seeds import seed_from


def seed_global(seed: int, device: torch.device) -> None:
    """Seeds torch's global streams, as `torch.manual_seed` does, of the CPU and of the device in use.

    `torch.manual_seed` turns to all kinds of devices that torch knows, which takes 0.2 ms where they are absent.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class StepRandom:
    """The random numbers of some images of a step.

    Args:
        seed (`int`): The run's seed.
        images_seen (`int`): Before this step.
        total (`int`): Images in the whole step, over all processes and micro-batches.
        start, stop (`int`, *optional*): Which of them are meant; by default all.
        purpose (`str`, *optional*): Keeps the streams of augmentation and of each phase apart.
        device (*optional*): Where the numbers are drawn.
    """

    def __init__(
        self,
        seed: int,
        images_seen: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
        purpose: str = "",
        device: torch.device | str = "cpu",
    ):
        self.total, self.slice, self.device = total, slice(start, stop), device
        self._generator = torch.Generator(device).manual_seed(seed_from(seed, images_seen, purpose))

    def normal(self, *shape: int) -> torch.Tensor:
        """Draws standard normal numbers, `shape` per image."""
        return torch.randn(self.total, *shape, generator=self._generator, device=self.device)[self.slice]

    def uniform(self, *shape: int) -> torch.Tensor:
        """Draws numbers in [0, 1), `shape` per image."""
        return torch.rand(self.total, *shape, generator=self._generator, device=self.device)[self.slice]

    def stratified(self) -> torch.Tensor:
        """Draws one number in [0, 1) per image, exactly one in each of `total` equal intervals, in random order.

        Less noisy than independent ones when a loss is averaged over timesteps.
        """
        numbers = torch.rand(self.total, 2, generator=self._generator, device=self.device)
        interval = numbers[:, 1].argsort()
        return ((interval + numbers[:, 0]) / self.total).clamp_max(1 - 2**-24)[self.slice]
