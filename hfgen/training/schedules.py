"""Everything that follows the number of images seen."""

import math

from hfgen.training.config import TrainingConfig

LONGEST_WARMUP = 500  # updates, where no number is given; in a shorter run, a tenth of it


def lr_factor(name: str, images: float, warmup: float, total: float) -> float:
    """Returns the factor of the peak learning rate after `images` of `total` images.

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


class Schedule:
    """A run's length and intervals in images: steps and epochs are converted here, once.

    Args:
        config ([`TrainingConfig`]): The options.
        num_images (`int`, *optional*): Images in an epoch; `None` for a stream, which has no epochs.
        num_processes (`int`, *optional*, defaults to 1): How many processes train.
        process_index (`int`, *optional*, defaults to 0): Which one this is.

    Attributes:
        micro_batch (`int`): Images of one process and micro-batch.
        batch (`int`): Images per step, over all processes and micro-batches.
        starts (`list[int]`): Where the micro-batches of this process begin within a step: micro-batch m of process p
            holds the images from `(m * processes + p) * micro_batch` on.
        total (`int`): Images of the whole run, a multiple of `batch`.
    """

    def __init__(
        self, config: TrainingConfig, num_images: int | None = None, num_processes: int = 1, process_index: int = 0
    ):
        micro, accumulation = config.train_batch_size, config.gradient_accumulation_steps
        self.micro_batch, self.batch = micro, micro * accumulation * num_processes
        self.starts = [(number * num_processes + process_index) * micro for number in range(accumulation)]
        epoch = num_images or math.inf
        if config.max_train_steps is not None:
            self.total = config.max_train_steps * self.batch
        else:  # whole steps, at least one
            self.total = max(1, math.ceil(config.num_epochs * epoch / self.batch)) * self.batch
        steps = config.lr_warmup_steps
        if steps is None:
            steps = min(LONGEST_WARMUP, self.total // self.batch // 10)
        self.warmup = steps * self.batch
        self.logging = config.logging_steps * self.batch
        self.checkpointing = config.checkpointing_steps * self.batch
        self.images = self._epochs(config.save_images_epochs, epoch)
        if config.save_images_steps is not None:
            self.images = config.save_images_steps * self.batch
        self.evaluation = None if config.eval_every is None else config.eval_every * self.batch
        self.model = self._epochs(config.save_model_epochs, epoch)
        self._lr_scheduler = config.lr_scheduler

    def learning_rate(self, images_seen: int) -> float:
        """Returns the factor of the learning rates of the step that begins after `images_seen` images."""
        return lr_factor(self._lr_scheduler, images_seen + self.batch, self.warmup, self.total + self.batch)

    def due(self, interval: int | None, images_seen: int) -> bool:
        """Says whether the step that ended at `images_seen` ended an interval of so many images."""
        return interval is not None and images_seen // interval > (images_seen - self.batch) // interval

    def _epochs(self, epochs: float, epoch: float) -> int | None:
        if not epochs or math.isinf(epoch):
            return None
        return max(1, round(epochs * epoch / self.batch)) * self.batch
