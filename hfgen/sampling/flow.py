"""The adapter of flows."""

from collections.abc import Sequence
from typing import Any

import torch

from hfgen.objectives import dequantisation as dequantising
from hfgen.objectives import elbo
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Adapter, Density, HasDensity, HasLatents, HasSteps, Slider, Step, evenly
from hfgen.sampling.config import FlowSamplingConfig
from hfgen.sampling.latents import draw_alike


class FlowAdapter(HasSteps, HasDensity, HasLatents):
    """Speaks for a [`~pipelines.flow.FlowPipeline`]."""

    options = FlowSamplingConfig
    kind = "flow"

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

    def passes(self, options: FlowSamplingConfig) -> int:
        return self.pipe.model.decoding_steps * (1 + (options.guidance_scale not in (None, 1)))

    def sliders(self) -> dict[str, Slider]:
        sliders = {"temperature": Slider("Temperature", 0, 2, 0.05, 1)}
        if self.pipe.null_class is not None:
            sliders["guidance_scale"] = Slider("Guidance", 0, 10, 0.1, 1)
        return sliders

    # HasDensity

    @property
    def without_classes(self) -> bool:
        return self.classes is None or self.pipe.null_class is not None

    def samples(self, asked: int | None) -> int:
        return 10 if asked is None else asked

    def log_prob(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Density:
        if labels is None and self.pipe.null_class is not None:
            labels = torch.full((len(images),), self.pipe.null_class, device=images.device)
        return probability_bound(self.pipe, images, labels, num_samples, generator)

    def details(self, num_samples: int) -> dict[str, Any]:
        return {"kind": "bound", "bound": f"dequantised-{num_samples}"}

    # HasLatents

    def encode(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.pipe.encode(images, labels)

    def decode(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.pipe(class_labels=labels, latents=latents, output_type="pt").images  # denoised, where samples are

    def draw(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: FlowSamplingConfig
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draws the latents that the images are made from. Without `labels`, all have the class of the first."""
        self.check(options)
        return draw_alike(self.pipe.draw_latents, generators, labels, temperature=options.temperature)

    # HasSteps

    def obstacle(self, capability: type[Adapter]) -> str | None:
        if capability is HasSteps and self.pipe.model.decoding_steps == 1:
            return "is a flow of this kind that makes an image in one pass"
        return super().obstacle(capability)

    def steps(
        self,
        generators: Sequence[torch.Generator],
        labels: torch.Tensor | None,
        options: FlowSamplingConfig,
        most: int,
    ) -> tuple[str, list[Step]]:
        seen: list[torch.Tensor] = []
        settings = {**self.settings(options), "on_block": lambda block, images: seen.append(images)}
        images = self.pipe(
            len(generators), class_labels=labels, generator=generators, output_type="pt", **settings
        ).images
        seen[-1] = images  # without the noise of training
        steps = [
            Step(f"block {block}" if block else "noise", {"image": seen[block]}) for block in evenly(len(seen), most)
        ]
        return "from noise to an image, block by block of the flow", steps


@torch.no_grad()
def probability_bound(
    pipe: Any,
    images: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Density:
    """Computes two lower bounds on the log-probability of 8-bit images under a flow.

    See [`~objectives.dequantisation`].

    Args:
        pipe ([`~pipelines.flow.FlowPipeline`]): The flow.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] with 256 levels.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, of a conditional model.
        num_samples (`int`, *optional*, defaults to 1): How often noise is drawn for each image.
        generator (`torch.Generator`, *optional*): For the noise.

    Returns:
        [`Density`]: The mean of the bound over the noise, and the importance-weighted one, which rises to the truth
        with the number of samples.

    Raises:
        ValueError: For images that the model does not fit, or that are not on the 256 levels.
    """
    elbo.check_images(images, "logistic")  # on the levels of 8 bit
    noise_std = pipe.config.noise_std
    pipe.model.eval()
    terms = []
    for _ in range(num_samples):
        if noise_std is None:
            noise = torch.rand(images.shape, generator=generator)
        else:
            noise = torch.randn(images.shape, generator=generator)
        noisy = dequantising.dequantise(images, noise.to(images.device), noise_std)
        terms.append(pipe.log_density(noisy, class_labels) + dequantising.correction(images, noisy, noise_std))
    draws = torch.stack(terms)
    return Density(lower=draws.mean(0), estimate=dequantising.bound(draws))
