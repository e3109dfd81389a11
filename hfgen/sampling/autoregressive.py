"""The adapter of autoregressive models."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hfgen.runtime.png import gray_like
from hfgen.sampling.capabilities import Adapter, Density, HasDensity, HasSteps, Restores, Slider, Step, evenly
from hfgen.sampling.config import AutoregressiveSamplingConfig


class AutoregressiveAdapter(HasSteps, HasDensity, Restores):
    """Speaks for an [`~pipelines.autoregressive.AutoregressivePipeline`]."""

    options = AutoregressiveSamplingConfig
    kind = "autoregressive model"

    def obstacle(self, capability: type[Adapter]) -> str | None:
        if capability is Restores and self.pipe.vae is not None:
            return "draws codes, each of which stands for many pixels, so that it cannot begin at a pixel"
        return super().obstacle(capability)

    # Generates

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: AutoregressiveSamplingConfig
    ) -> torch.Tensor:
        return self.pipe.draw(len(generators), labels, generator=generators, **self.settings(options))

    def passes(self, options: AutoregressiveSamplingConfig) -> int:
        return math.prod(self.pipe.grid_shape[1:])  # each of one position

    def sliders(self) -> dict[str, Slider]:
        return {"temperature": Slider("Temperature", 0, 2, 0.05, 1), "top_p": Slider("Nucleus", 0.05, 1, 0.05, 1)}

    # HasSteps

    def steps(
        self,
        generators: Sequence[torch.Generator],
        labels: torch.Tensor | None,
        options: AutoregressiveSamplingConfig,
        most: int,
    ) -> tuple[str, list[Step]]:
        _, rows, columns = self.pipe.grid_shape
        _, height, width = self.pipe.image_shape
        counts = [index + 1 for index in evenly(rows * columns, most)]
        made: list[torch.Tensor] = []

        def look(count: int, images: Callable[[], torch.Tensor]) -> None:
            if count in counts:
                made.append(images())

        self.pipe.draw(len(generators), labels, generator=generators, **self.settings(options), on_position=look)
        # What is drawn of an image, whose pixels may be fewer than its positions or more.
        order = torch.arange(rows * columns, device=made[-1].device).view(rows, columns)
        order = order.repeat_interleave(height // rows, 0).repeat_interleave(width // columns, 1)
        steps = [
            Step(f"{count} of {rows * columns}", {"image": torch.where(order < count, image, gray_like(image))})
            for count, image in zip(counts, made, strict=True)
        ]
        what = "pixel" if self.pipe.vae is None else "code"
        return f"{what} after {what}, row by row; gray is not drawn yet", steps

    # HasDensity

    @property
    def without_classes(self) -> bool:
        return self.classes is None or self.classes.groups  # it sums over groups

    def log_prob(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Density:
        nats = self.pipe.log_prob((images + 1) / 2, labels)
        return Density(nats, nats)

    def details(self, num_samples: int) -> dict[str, Any]:
        if self.pipe.vae is None:
            return {"kind": "exact", "bound": "exact", "likelihood": self.pipe.model.config.likelihood}
        return {"kind": "bound", "bound": "elbo of its codes", "likelihood": self.pipe.vae.config.likelihood}

    # Restores

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("complete",)

    def restore_settings(self, task: str) -> dict[str, Any]:
        self.require_task(task)
        return {"mask": None}

    def restore(
        self,
        task: str,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """Draws the rest of images; `mask` says what, see [`~pipelines.autoregressive.AutoregressivePipeline`]."""
        self.require_task(task)
        return self.pipe.complete(images, settings["mask"], labels, generator=generator, output_type="pt")
