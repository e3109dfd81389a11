"""Bits per dimension of VAEs on 8-bit images, by importance sampling."""

import math
from typing import Any

import torch

from hfgen.objectives import elbo


@torch.no_grad()
def log_evidence(
    model: Any,
    images: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    num_samples: int = 100,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lower bounds on the log probability of 8-bit images under a VAE with its own prior.

    A Gaussian likelihood is integrated over each pixel's 8-bit bin, so that all likelihoods are comparable.

    Args:
        model ([`ModelMixin`]): A `ConvVAE`, `ResidualVAE`, `HierarchicalVAE` or `VQVAE`, in evaluation mode.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] with 256 levels.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, of a conditional model.
        num_samples (`int`, *optional*, defaults to 100): Latents per image.
        generator (`torch.Generator`, *optional*): For the latents.

    Returns:
        The evidence lower bound and the importance-weighted bound (https://huggingface.co/papers/1509.00519), which
        becomes exact with the number of samples: nats, each of shape `(B,)`. For a VQ-VAE, whose codes are taken to be
        equally likely, both are the bound of its one code.

    Raises:
        ValueError: For images that the model or its likelihood does not fit.
    """
    elbo.check_images(images, "logistic" if model.config.likelihood == "gaussian" else model.config.likelihood)
    encoded = model.encode(images, class_labels)
    if not hasattr(encoded, "latent_dist"):
        codes = model.quantize(encoded.latents).indices[0].numel()
        decoded = model.decode(encoded.latents, class_labels)
        bound = _log_likelihood(model, images, decoded.parameters) - codes * math.log(model.config.num_vq_embeddings)
        return bound, bound
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
    terms = [torch.stack(found) for found in (likelihoods, priors, posteriors)]
    return (terms[0] + terms[1] - terms[2]).mean(0), elbo.importance_bound(*terms)


def _log_likelihood(model: Any, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    config = model.config
    if config.likelihood == "gaussian":
        return elbo.discretised_gaussian(images, parameters, model.variance)
    return elbo.log_likelihood(images, parameters, config.likelihood, None, config.num_mixtures)
