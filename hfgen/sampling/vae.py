"""The adapter of VAEs."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hfgen.objectives import elbo
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Adapter, Density, Encodes, Generates, HasDensity, HasLatents, Slider
from hfgen.sampling.config import VAESamplingConfig
from hfgen.sampling.latents import draw_alike
from hfgen.sampling.restoring import RestoresByMethods


class VAEAdapter(Generates, HasDensity, HasLatents, RestoresByMethods):
    """Speaks for a [`~pipelines.vae.VAEPipeline`]."""

    options = VAESamplingConfig
    likeliest = True
    drawing = {"method": "langevin"}

    def obstacle(self, capability: type[Adapter]) -> str | None:
        if capability in (HasDensity, Encodes, HasLatents) and self.pipe.config.task:
            return f"is trained to {self.pipe.config.task}, not to model images"
        if capability is Generates and self.pipe.quantises and self.pipe.prior is None:
            return "quantises latents and has no prior to draw them from"
        return super().obstacle(capability)

    # Generates

    def check(self, options: VAESamplingConfig) -> None:
        if options.prior == "mixture" and self.pipe.prior is None:
            raise UserError("`prior` mixture: none was fitted to this model. Leave it out.")
        if options.prior == "normal" and self.pipe.quantises:
            raise UserError("`prior` normal: this model quantises latents, which are not normal. Leave it out.")

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: VAESamplingConfig
    ) -> torch.Tensor:
        settings = self.settings(options)
        return self.pipe(
            len(generators), class_labels=labels, generator=generators, output_type="pt", **settings
        ).images

    def sliders(self) -> dict[str, Slider]:
        return {"temperature": Slider("Temperature", 0, 2, 0.05, 1)}

    # HasDensity

    def samples(self, asked: int | None) -> int:
        return 100 if asked is None else asked

    def log_prob(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 100,
    ) -> Density:
        return log_evidence(self.pipe.model.eval(), images, labels, num_samples, generator)

    def details(self, num_samples: int) -> dict[str, Any]:
        # Nothing is drawn for codes: each image has one.
        bound = "elbo, codes equally likely" if self.pipe.quantises else f"iwae-{num_samples}"
        return {"kind": "bound", "bound": bound, "likelihood": self.pipe.model.config.likelihood}

    # HasLatents

    @property
    def straight(self) -> bool:
        return self.pipe.quantises

    def encode(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.pipe.encode(images, labels)

    def decode(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.pipe(class_labels=labels, latents=latents, output_type="pt").images

    def draw(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: VAESamplingConfig
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draws the latents that the images are made from. Without `labels`, all have the class of the first."""
        self.check(options)
        return draw_alike(self.pipe.draw_latents, generators, labels, **self.settings(options))

    # Restores

    @property
    def tasks(self) -> tuple[str, ...]:
        task = self.pipe.config.task
        return (task,) if task else ("inpaint", "denoise", "super_resolve")


@torch.no_grad()
def log_evidence(
    model: Any,
    images: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    num_samples: int = 100,
    generator: torch.Generator | None = None,
) -> Density:
    """Computes two lower bounds on the log-probability of 8-bit images under a VAE with its own prior.

    A Gaussian likelihood is integrated over each pixel's 8-bit bin, so that all likelihoods are comparable.

    Args:
        model ([`ModelMixin`]): A `ConvVAE`, `ResidualVAE`, `HierarchicalVAE` or `VQVAE`, in evaluation mode.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] with 256 levels.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, of a conditional model.
        num_samples (`int`, *optional*, defaults to 100): Latents per image.
        generator (`torch.Generator`, *optional*): For the latents.

    Returns:
        [`Density`]: The evidence lower bound and the importance-weighted bound
        (https://huggingface.co/papers/1509.00519), which becomes exact with the number of samples. For a VQ-VAE, whose
        codes are taken to be equally likely, both are the bound of its one code.

    Raises:
        ValueError: For images that the model or its likelihood does not fit.
    """
    elbo.check_images(images, "logistic" if model.config.likelihood == "gaussian" else model.config.likelihood)
    encoded = model.encode(images, class_labels)
    if not hasattr(encoded, "latent_dist"):
        codes = model.quantize(encoded.latents).indices[0].numel()
        decoded = model.decode(encoded.latents, class_labels)
        bound = _log_likelihood(model, images, decoded.parameters) - codes * math.log(model.config.num_vq_embeddings)
        return Density(bound, bound)
    posterior = encoded.latent_dist
    likelihoods, priors, posteriors = [], [], []
    for _ in range(num_samples):
        noise = torch.randn((len(images), *model.latent_shape), generator=generator).to(images.device)
        if hasattr(posterior, "log_ratio"):  # a hierarchical one knows the logarithm of q(z|x) / p(z) along its path
            posterior.sample(noise=noise)
            ratio, decoded = posterior.log_ratio(), posterior.decode()
            priors.append(torch.zeros_like(ratio))
            posteriors.append(ratio)
        else:
            latents = posterior.mean + posterior.std * noise
            decoded = model.decode(latents, class_labels)
            priors.append(elbo.log_normal(latents))
            posteriors.append(elbo.log_normal(latents, posterior.mean, posterior.logvar))
        likelihoods.append(_log_likelihood(model, images, decoded.parameters))
    terms = [torch.stack(parts) for parts in (likelihoods, priors, posteriors)]
    return Density((terms[0] + terms[1] - terms[2]).mean(0), elbo.importance_bound(*terms))


def _log_likelihood(model: Any, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    config = model.config
    return elbo.level_log_likelihood(images, parameters, config.likelihood, model.variance, config.num_mixtures)
