"""The networks of the family, each with what training makes of it: the latents of a batch, their cost, and images."""

import math
from typing import Any

import torch

from hfgen.families.vae.options import VAEConfig
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.residual_vae import ResidualVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.objectives import elbo

SHOWN = 64  # the KL divergence of each latent is logged if there are no more than these


class Flat:
    """A VAE with one Gaussian posterior of all latents.

    Args:
        network (`type`): The class of the network.
        options (`str`): Options of the family that this class takes beside those that all take, by their names there.
    """

    part = "latent"  # what has a KL divergence of its own, in the names of metrics
    has_prior = True  # samples can be drawn without a prior that was fitted

    def __init__(self, network: type, **options: str):
        self.network, self.options = network, options

    def make(self, config: VAEConfig, **shared: Any) -> Any:
        """Makes the network."""
        return self.network(**shared, **{name: getattr(config, option) for name, option in self.options.items()})

    def latents(self, vae: Any, encoded: Any, random: Any) -> torch.Tensor:
        """Draws latents of a batch, with its random numbers."""
        posterior = encoded.latent_dist
        return posterior.mean + posterior.std * random.normal(*vae.latent_shape)

    def divergence(self, posterior: Any, latents: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Computes the KL divergence `(B, parts)` of each part of the latents in nats, and metrics."""
        divergence = elbo.gaussian_kl(posterior.mean, posterior.logvar).flatten(1)
        means, logvars = posterior.mean.detach().flatten(1), posterior.logvar.detach().flatten(1)
        return divergence, {
            "active_units": elbo.active_units(means).float(),
            "mutual_information": elbo.mutual_information(latents.detach().flatten(1), means, logvars),
        }

    def cost(
        self, vae: Any, encoded: Any, random: Any, config: VAEConfig, fraction: float
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Computes latents of a batch, their weighted cost in nats per image, and metrics.

        Args:
            vae, encoded: The network, and what its encoder made of the batch.
            random ([`~training.random.StepRandom`]): The random numbers of the batch.
            config ([`VAEConfig`]): The options.
            fraction (`float`): The share of the run that is done.
        """
        latents = self.latents(vae, encoded, random)
        divergence, metrics = self.divergence(encoded.latent_dist, latents)
        if divergence.shape[1] <= SHOWN:
            each = divergence.detach().mean(0)
            metrics |= {f"kl_{self.part}_{number:02d}": each[number] for number in range(len(each))}
        metrics["rate"] = divergence.detach().sum(1).mean()
        weight = config.beta * elbo.kl_weight(fraction, config.kl_warmup)
        return latents, weight * elbo.free_bits(divergence, config.free_bits), metrics

    def decode(self, vae: Any, encoded: Any, latents: torch.Tensor, labels: torch.Tensor | None) -> Any:
        """Decodes the latents that `cost` returned last."""
        return vae.decode(latents, labels)

    def after_step(self, vae: Any) -> None:
        """Changes what an optimiser does not."""


class Hierarchical(Flat):
    """A VAE whose groups of latents depend on those above them."""

    part = "group"

    def latents(self, vae: Any, encoded: Any, random: Any) -> torch.Tensor:
        return encoded.latent_dist.sample(noise=random.normal(*vae.latent_shape))

    def divergence(self, posterior: Any, latents: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.stack(posterior.kl_per_group(), dim=1), {}

    def decode(self, vae: Any, encoded: Any, latents: torch.Tensor, labels: torch.Tensor | None) -> Any:
        return encoded.latent_dist.decode()  # drawing went through the decoder's networks already


class Quantised(Flat):
    """A VAE with latents from a codebook."""

    has_prior = False

    def latents(self, vae: Any, encoded: Any, random: Any) -> torch.Tensor:
        return encoded.latents

    def cost(
        self, vae: Any, encoded: Any, random: Any, config: VAEConfig, fraction: float
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        latents = encoded.latents
        quantised = vae.quantize(latents)
        vae.observe(latents.detach(), quantised.indices)
        codes = quantised.indices[0].numel()  # each of them equally likely
        rate = torch.tensor(codes * math.log(config.num_vq_embeddings), device=latents.device)
        metrics = {"rate": rate, "perplexity": vae.perplexity, "dead_codes": vae.dead_codes.clone()}
        return quantised.latents, config.commitment_weight * quantised.commitment.mean(), metrics

    def decode(self, vae: Any, encoded: Any, latents: torch.Tensor, labels: torch.Tensor | None) -> Any:
        return vae.decode(latents, labels, force_not_quantize=True)

    def after_step(self, vae: Any) -> None:
        vae.update_codebook()


ARCHITECTURES = {
    "conv": Flat(ConvVAE),
    "residual": Flat(ResidualVAE, spatial="spatial_latent"),
    "hierarchical": Hierarchical(HierarchicalVAE),
    "vq": Quantised(VQVAE, num_vq_embeddings="num_vq_embeddings"),
}
