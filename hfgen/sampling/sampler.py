"""Images from any pipeline of ours, each from a seed of its own."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hfgen.pipelines import load_pipeline
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, denoise, sampling_scheduler, set_timesteps
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.config import SamplingConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """The generator of image `i` of a seeded set: seeded with `seed + i`, on the CPU.

    It depends on nothing else, so batch size, order and number of processes change no image; and
    `torch.Generator().manual_seed(seed + i)` repeats image `i` alone, with plain diffusers too.
    """
    return [torch.Generator().manual_seed(seed + index) for index in indices]


class Sampler:
    """Makes the images of a seeded set by their numbers: image i from `seed + i` alone, whatever it is made with.

    Class-conditional models make their classes in turn; where classes are groups of images, an image's group is drawn
    with its seed.

    Args:
        pipe (`DiffusionPipeline`): A [`GANPipeline`], [`VAEPipeline`], [`ClassConditionalDDPMPipeline`] or stock
            `DDPMPipeline`.
        config ([`SamplingConfig`]): The options.
        name (`str`): What to call the model in a message.
        autocast (`Callable`, *optional*): Makes a context for the networks to run in.

    Raises:
        UserError: For options that do not fit the pipeline.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        config: SamplingConfig,
        name: str,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.pipe: Any = pipe
        self.name, self.precision, self.autocast = name, config.mixed_precision, autocast
        gan, vae = isinstance(pipe, GANPipeline), isinstance(pipe, VAEPipeline)
        self.family = "GAN" if gan else "VAE" if vae else "DDPM"
        self.one_pass = gan or vae
        self.grouped = bool(pipe.config.get("class_shares"))  # its classes are groups of images, without a meaning
        self.at_once: int | None = None  # images that fit into memory, once it has run out
        self._check(config)
        self._guidance, self._null_class = config.guidance_scale, None
        if isinstance(pipe, ClassConditionalDDPMPipeline):
            self._null_class = pipe.null_class
            if self._guidance is None:
                self._guidance = pipe.config.guidance_scale
            if self._guidance != 1 and self._null_class is None:
                raise UserError(
                    f"`guidance_scale` {self._guidance} needs a model trained with `label_dropout`: leave it out."
                )
        self.classes = self._choose_classes(config.class_labels)
        self._steps = config.num_inference_steps
        if gan:
            self.how: dict[str, Any] = {"truncation": config.truncation}
        elif vae:
            self.how = {"temperature": config.temperature, "prior": config.prior}
        else:
            sampler = config.sampler or "sde-dpmsolver++"
            self._scheduler = sampling_scheduler(self.pipe.scheduler, sampler)
            set_timesteps(self._scheduler, self._steps)
            steps = len(self._scheduler.timesteps)
            self.how = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": self._guidance}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by number; empty for an unconditional model."""
        return getattr(self.pipe, "class_names", [])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        if isinstance(self.pipe, Pipeline):
            return self.pipe.image_shape
        config = self.pipe.unet.config
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return config.out_channels, height, width

    def class_of(self, index: int) -> int | None:
        """The class that image `index` is to show; `None` where that is left to the model."""
        return self.classes[index % len(self.classes)] if self.classes else None

    def __call__(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        """Makes images of the set that begins with `seed`, all at once if they fit into memory, else cut in halves.

        Args:
            indices (`Sequence[int]`): Their numbers, at least one.
            seed (`int`): Of image 0.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`, uint8: On the pipeline's device.

        Raises:
            UserError: If an image has NaN or infinite values.
        """
        while True:
            size = min(self.at_once or len(indices), len(indices))
            try:
                with self.autocast():
                    parts = [self._sample(indices[i : i + size], seed) for i in range(0, len(indices), size)]
                return torch.cat(parts)
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
            self.at_once = size // 2
            clear_device_cache(garbage_collection=True)  # out of the handler, which keeps the tensors of its frames

    def _sample(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        generators = image_generators(seed, indices)
        count, device, labels = len(indices), self.pipe.device, None
        if self.classes:
            labels = torch.tensor([self.class_of(index) for index in indices], device=device)
        elif self.class_names and not self.one_pass:  # the others draw them themselves, after the latents
            labels = self.pipe.class_numbers(None, count, generators)
        if self.one_pass:
            try:
                output = self.pipe(count, class_labels=labels, generator=generators, output_type="pt", **self.how)
            except ValueError as error:  # a prior that there is not, ...
                raise UserError(f"{self.name}: {error}") from None
            images = output.images
        else:
            guidance = 1.0 if self._guidance is None else self._guidance
            images = denoise(
                self.pipe.unet, self._scheduler, count, generators, self._steps, labels, self._null_class, guidance
            )
        bad = count - int(images.flatten(1).isfinite().all(1).sum())
        if bad:
            raise UserError(
                f"{self.name} makes images with NaN or infinite values, {bad} of {count}: give another checkpoint, or "
                "use `mixed_precision` no."
            )
        return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)

    def _check(self, config: SamplingConfig) -> None:
        for flag in ("guidance_scale", "sampler", "num_inference_steps"):
            if self.one_pass and getattr(config, flag) is not None:
                raise UserError(
                    f"`{flag}` {getattr(config, flag)}: {self.name} is a {self.family}, which has none. Leave it out."
                )
        if self.family != "VAE" and (config.temperature != 1 or config.prior is not None):
            raise UserError(
                f"`temperature` and `prior` are for VAEs, and {self.name} is a {self.family}. Leave them out."
            )
        guided = not isinstance(self.pipe, ClassConditionalDDPMPipeline) and config.guidance_scale not in (None, 1)
        if guided or (config.class_labels and not self.class_names):
            raise UserError(f"`class_labels` and `guidance_scale`: {self.name} knows no classes. Leave them out.")
        if config.truncation != 1 and not (self.family == "GAN" and self.pipe.style_based):
            raise UserError(f"`truncation` {config.truncation}: {self.name} has no mean latent. Leave it out.")

    def _choose_classes(self, wanted: Sequence[str] | None) -> list[int] | None:
        """The classes that are made in turn."""
        names = self.class_names
        if not names or (not wanted and self.grouped):
            return None
        given = wanted or [str(number) for number in range(len(names))]
        chosen = [label if label in names or not label.isdigit() else int(label) for label in given]
        try:
            return self.pipe.class_numbers(chosen, len(chosen)).tolist()
        except ValueError as error:
            raise UserError(f"`class_labels`: {error}") from None


def load_sampler(
    model: str,
    config: SamplingConfig,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    token: str | None = None,
) -> Sampler:
    """Loads a checkpoint to sample from.

    Args:
        model (`str`): Folder or Hub id.
        config ([`SamplingConfig`]): The options.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where to sample.
        revision, token (`str`, *optional*): For the Hub.

    Raises:
        UserError: If there is no such checkpoint, or the options do not fit it.
    """
    dtype = DTYPES[config.mixed_precision]
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise UserError("`mixed_precision` fp16 does not exist on a CPU: use bf16 or no.")
    pipe = load_pipeline(model, revision=revision, token=token, dtype=dtype)
    return Sampler(pipe.to(device), config, model)
