"""The adapter of autoregressive models."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hfgen.sampling.capabilities import Density, Generates, HasDensity, Slider
from hfgen.sampling.config import AutoregressiveSamplingConfig


class AutoregressiveAdapter(Generates, HasDensity):
    """Speaks for an [`~pipelines.autoregressive.AutoregressivePipeline`]."""

    options = AutoregressiveSamplingConfig
    kind = "autoregressive model"

    # Generates

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: AutoregressiveSamplingConfig
    ) -> torch.Tensor:
        return self.pipe.draw(len(generators), labels, generator=generators, **self.settings(options))

    def passes(self, options: AutoregressiveSamplingConfig) -> int:
        return math.prod(self.pipe.grid_shape[1:])  # each of one position

    def sliders(self) -> dict[str, Slider]:
        return {"temperature": Slider("Temperature", 0, 2, 0.05, 1), "top_p": Slider("Nucleus", 0.05, 1, 0.05, 1)}

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
