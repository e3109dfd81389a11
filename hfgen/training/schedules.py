"""Everything that follows the number of images seen."""

import math

from hfgen.training.config import TrainingConfig


def lr_factor(name: str, images: float, warmup: float, total: float) -> float:
    """What the peak learning rate is multiplied with after `images` of `total` images.

    The names mean what they mean in diffusers and transformers; `constant` has no warm-up, all others rise linearly
    over `warmup` images.
    """
    if name == "constant":
        return 1.0
    if images < warmup:
        return images / warmup
    if name == "constant_with_warmup":
        return 1.0
    progress = min(1.0, (images - warmup) / max(1.0, total - warmup))
    if name in ("cosine", "cosine_with_restarts"):  # one cycle: the restarts of diffusers' default are one, too
        return 0.5 * (1 + math.cos(math.pi * progress))
    if name in ("linear", "polynomial"):  # the polynomial's default power is 1
        return 1 - progress
    raise ValueError(f"lr_scheduler is {name!r}, which is unknown.")


class Length:
    """A run's length and intervals in images: steps and epochs are converted here, once.

    Args:
        config ([`TrainingConfig`]): The options.
        num_processes (`int`): How many processes train.
        num_images (`int`, *optional*): Images in an epoch; `None` for a stream, which has no epochs.
    """

    def __init__(self, config: TrainingConfig, num_processes: int, num_images: int | None):
        self.micro_batch = config.train_batch_size
        self.batch = config.train_batch_size * config.gradient_accumulation_steps * num_processes
        epoch = num_images or math.inf
        if config.max_train_steps is not None:
            self.total = config.max_train_steps * self.batch
        else:  # whole steps, at least one
            self.total = max(1, math.ceil(config.num_epochs * epoch / self.batch)) * self.batch
        self.warmup = config.lr_warmup_steps * self.batch
        self.logging = config.logging_steps * self.batch
        self.checkpointing = config.checkpointing_steps * self.batch
        self.images = self._epochs(config.save_images_epochs, epoch)
        if config.save_images_steps is not None:
            self.images = config.save_images_steps * self.batch
        self.evaluation = None if config.eval_every is None else config.eval_every * self.batch
        self.model = self._epochs(config.save_model_epochs, epoch)

    def _epochs(self, epochs: float, epoch: float) -> int | None:
        if not epochs or math.isinf(epoch):
            return None
        return max(1, round(epochs * epoch / self.batch)) * self.batch
