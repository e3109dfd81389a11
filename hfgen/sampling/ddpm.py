"""The adapters of denoising networks: the stock `DDPMPipeline`, and ours with classes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin

from hfgen.pipelines.ddpm_sampling import (
    FEW_STEPS,
    advice,
    default_sampler,
    denoise,
    sampling_scheduler,
    set_timesteps,
    shortage,
)
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.sampling.capabilities import Generates, Slider
from hfgen.sampling.config import DDPMSamplingConfig

MOST_STEPS = 100  # of a slider


class DDPMAdapter(Generates):
    """Speaks for a `diffusers.DDPMPipeline`."""

    options = DDPMSamplingConfig
    kind = "DDPM"

    @property
    def null_class(self) -> int | None:
        """The class that stands for "no class", which guidance needs."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return config.out_channels, height, width

    def guidance(self, options: DDPMSamplingConfig) -> float | None:
        """Returns the guidance that the options stand for; `None` for a model without classes."""
        return options.guidance_scale

    def sampler(self, options: DDPMSamplingConfig) -> str:
        """Returns the sampler that the options stand for."""
        return options.sampler or default_sampler(options.num_inference_steps)

    def scheduler(self, options: DDPMSamplingConfig) -> SchedulerMixin:
        """Makes a scheduler of the options' kind, with its timesteps.

        Raises:
            UserError: If the checkpoint's own is of a kind that none can be made from, or knows fewer timesteps.
        """
        steps, trained = options.num_inference_steps, self.pipe.scheduler.config.num_train_timesteps
        if steps is not None and steps > trained:
            raise UserError(
                f"`num_inference_steps` {steps} is out of range: this model was trained with {trained} timesteps. Use "
                f"{trained} or fewer."
            )
        try:
            scheduler = sampling_scheduler(self.pipe.scheduler, self.sampler(options))
            set_timesteps(scheduler, options.num_inference_steps)
        except ValueError as error:
            raise UserError(str(error)) from error
        return scheduler

    def check(self, options: DDPMSamplingConfig) -> None:
        if options.guidance_scale not in (None, 1):
            raise UserError(f"`guidance_scale` {options.guidance_scale}: this model knows no classes. Leave it out.")
        self.check_steps(options)

    def check_steps(self, options: DDPMSamplingConfig) -> None:
        """Tells once, by the names of the options, what [`denoise`] would warn of with each batch.

        Raises:
            UserError: See [`scheduler`].
        """
        scheduler = self.scheduler(options)
        short, better = shortage(scheduler), advice(scheduler)
        if short is not None:
            wrong, least = short
            better = f"`num_inference_steps` {len(scheduler.timesteps)} of `sampler` {self.sampler(options)} {wrong}: "
            better += f"use {least} or more, or leave `sampler` out."
        if better is not None:
            note(better)

    def settings(self, options: DDPMSamplingConfig) -> dict[str, Any]:
        return {
            "sampler": self.sampler(options),
            "num_inference_steps": len(self.scheduler(options).timesteps),
            "guidance_scale": self.guidance(options),
        }

    def passes(self, options: DDPMSamplingConfig) -> int:
        return len(self.scheduler(options).timesteps) * (1 + (self.guidance(options) not in (None, 1)))

    def fastest(self, options: DDPMSamplingConfig) -> DDPMSamplingConfig:
        return dataclasses.replace(options, num_inference_steps=1)

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: DDPMSamplingConfig
    ) -> torch.Tensor:
        guidance = self.guidance(options)
        return denoise(
            self.pipe.unet,
            self.scheduler(options),
            len(generators),
            generators,
            options.num_inference_steps,
            labels,
            self.null_class,
            1.0 if guidance is None else guidance,
            warn=False,
        )

    def sliders(self) -> dict[str, Slider]:
        most = min(MOST_STEPS, self.pipe.scheduler.config.num_train_timesteps)
        return {"num_inference_steps": Slider("Steps", 1, most, 1, min(FEW_STEPS, most))}


class ClassConditionalDDPMAdapter(DDPMAdapter):
    """Speaks for a [`ClassConditionalDDPMPipeline`]."""

    @property
    def null_class(self) -> int | None:
        return self.pipe.null_class

    def guidance(self, options: DDPMSamplingConfig) -> float | None:
        return self.pipe.config.guidance_scale if options.guidance_scale is None else options.guidance_scale

    def check(self, options: DDPMSamplingConfig) -> None:
        guidance = self.guidance(options)
        if guidance != 1 and self.null_class is None:
            raise UserError(f"`guidance_scale` {guidance} needs a model trained with `label_dropout`: leave it out.")
        self.check_steps(options)

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: DDPMSamplingConfig
    ) -> torch.Tensor:
        if labels is None:  # groups are drawn
            labels = self.pipe.class_numbers(None, len(generators), generators)
        return super().generate(generators, labels, options)

    def sliders(self) -> dict[str, Slider]:
        sliders = super().sliders()
        if self.null_class is not None:
            usual = self.pipe.config.guidance_scale
            sliders["guidance_scale"] = Slider("Guidance", 0, max(10, usual), 0.1, usual)
        return sliders
