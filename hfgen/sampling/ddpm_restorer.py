"""The adapter of denoising networks that were trained to restore."""

from collections.abc import Sequence
from typing import Any

import torch

from hfgen.pipelines.ddpm_sampling import FEW_STEPS
from hfgen.sampling.capabilities import Restores


class DDPMRestorerAdapter(Restores):
    """Speaks for a [`~pipelines.ddpm_restoration.DDPMRestorationPipeline`]."""

    kind = "DDPM that restores images"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.pipe.config.task,)

    def restore_settings(self, task: str) -> dict[str, Any]:
        self.require_task(task)
        own = {"inpaint": {"mask": None}, "denoise": {"noise_level": self.pipe.config.task_level}}.get(task, {})
        return {**own, "steps": min(FEW_STEPS, self.pipe.scheduler.config.num_train_timesteps)}

    def restore(
        self,
        task: str,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        given = self.restore_settings(task) | settings
        level = self.pipe.config.task_level
        if given.get("noise_level", level) != level:
            raise ValueError(
                f"noise_level is {given['noise_level']}, but this model was trained for {level:g}: use that."
            )
        # What has noise may leave [0, 1]; training saw it as a file can hold it.
        images = images.clamp(0, 1) if task == "denoise" else images
        return self.pipe(images, given.get("mask"), generator, given["steps"], output_type="pt").images
