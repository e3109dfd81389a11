"""The adapter of flows."""

from collections.abc import Sequence
from typing import Any

import torch

from hfgen.objectives import dequantisation as dequantising
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Density, Generates, HasDensity, HasLatents, Slider
from hfgen.sampling.config import FlowSamplingConfig


class FlowAdapter(Generates, HasDensity, HasLatents):
    """Speaks for a [`~pipelines.flow.FlowPipeline`]."""

    options = FlowSamplingConfig

    # Generates

    def check(self, options: FlowSamplingConfig) -> None:
        if options.guidance_scale not in (None, 1) and self.pipe.null_class is None:
            raise UserError(
                f"`guidance_scale` {options.guidance_scale} needs a model trained with `label_dropout`: leave it out."
            )

    def settings(self, options: FlowSamplingConfig) -> dict[str, Any]:
        return {
            "temperature": options.temperature,
            "guidance_scale": 1.0 if options.guidance_scale is None else options.guidance_scale,
            "denoise": self.pipe.denoises,
        }

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: FlowSamplingConfig
    ) -> torch.Tensor:
        settings = self.settings(options)
        return self.pipe(
            len(generators), class_labels=labels, generator=generators, output_type="pt", **settings
        ).images

    def sliders(self) -> dict[str, Slider]:
        sliders = {"temperature": Slider("Temperature", 0, 2, 0.05, 1)}
        if self.pipe.null_class is not None:
            sliders["guidance_scale"] = Slider("Guidance", 0, 10, 0.1, 1)
        return sliders

    # HasDensity

    def log_prob(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Density:
        terms = self.pipe.bound(images, labels, num_samples, generator)
        return Density(lower=terms.mean(0), estimate=dequantising.bound(terms))

    def details(self, num_samples: int) -> dict[str, Any]:
        return {"kind": "bound", "bound": f"dequantised-{num_samples}"}

    # HasLatents

    def encode(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.pipe.encode(images, labels)

    def decode(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.pipe.decode(latents, labels, output_type="pt")

    @torch.no_grad()
    def draw(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: FlowSamplingConfig
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draws the latents that the images are made from. Without `labels`, all have the class of the first."""
        self.check(options)
        if labels is None and self.classes is not None:
            labels = self.pipe.class_numbers(None, 1, generators[:1]).expand(len(generators))
        latents = self.pipe(
            len(generators),
            class_labels=labels,
            temperature=options.temperature,
            generator=list(generators),
            output_type="latent",
        ).images
        return latents, labels
