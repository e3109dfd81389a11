"""The adapter of GANs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Adapter, Generates, HasLatents, HasStyles, Slider
from hfgen.sampling.config import GANSamplingConfig
from hfgen.sampling.latents import draw_alike
from hfgen.sampling.restoring import RestoresByMethods


class GANAdapter(Generates, HasLatents, HasStyles, RestoresByMethods):
    """Speaks for a [`~pipelines.gan.GANPipeline`]. Its latents are w for style-based models, and z for others."""

    options = GANSamplingConfig

    def obstacle(self, capability: type[Adapter]) -> str | None:
        if capability is HasStyles and not self.pipe.style_based:
            return HasStyles.lack
        return super().obstacle(capability)

    likeliest: ClassVar[bool] = True
    drawing: ClassVar[Mapping[str, Any]] = {"restarts": 1}

    # Generates

    def check(self, options: GANSamplingConfig) -> None:
        if options.truncation != 1 and not self.pipe.style_based:
            raise UserError(f"`truncation` {options.truncation}: this model has no mean latent. Leave it out.")

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: GANSamplingConfig
    ) -> torch.Tensor:
        settings = {"truncation": options.truncation, "output_type": "pt"}
        return self.pipe(len(generators), class_labels=labels, generator=generators, **settings).images

    def sliders(self) -> dict[str, Slider]:
        return {"truncation": Slider("Truncation", 0, 1, 0.05, 1)} if self.pipe.style_based else {}

    # HasLatents

    def classes_of(self, images: torch.Tensor) -> torch.Tensor:
        return self.pipe.project(images, steps=1, restarts=1, output_type="pt").class_labels

    @property
    def straight(self) -> bool:
        return self.pipe.style_based

    @property
    def searches(self) -> bool:
        return True

    def directions(self, count: int, examples: Callable[[], Any]) -> torch.Tensor:
        """Returns those of the weights: see [`~pipelines.gan.GANPipeline.directions`]."""
        return self.pipe.directions(count).to(self.pipe.device)

    def encode(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.pipe.project(images, labels, generator=generator, output_type="pt").latents

    def decode(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        space = "w" if self.pipe.style_based else "z"
        return self.pipe(class_labels=labels, latents=latents, latents_space=space, output_type="pt").images

    def draw(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: GANSamplingConfig
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draws the latents that the images are made from, without a search. Without `labels`, all have the class of
        the first."""
        self.check(options)
        return draw_alike(self.pipe.draw_latents, generators, labels, truncation=options.truncation)

    # Restores

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("inpaint", "super_resolve")
