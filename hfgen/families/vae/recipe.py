"""The VAE recipe: an encoder and a decoder that maximise the evidence lower bound together."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn import functional as F

from hfgen.data.info import DataInfo
from hfgen.families.vae.networks import ARCHITECTURES
from hfgen.families.vae.options import VAEConfig
from hfgen.families.vae.prior import fit_mixture
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.objectives import elbo
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.training.alarms import Patience
from hfgen.training.recipe import (
    STATE,
    AdamW,
    Batch,
    Network,
    Phase,
    Progress,
    Recipe,
    class_arguments,
    class_names,
)

PRIOR_SAMPLE = 20_000  # latents that the prior is fitted to, but no more than four of each image
MOMENTUM = 0.1  # weight of a step in the running variance
RECONSTRUCTED = 10  # images on the card


class RunningVariance(nn.Module):
    """The variance under which the last steps' reconstructions are most likely: their mean squared error.

    The optimum of sigma-VAE (https://huggingface.co/papers/2006.13202), taken from the steps before instead of the
    batch itself, so that it does not depend on how a batch is split.
    """

    error_sum: torch.Tensor
    error_count: torch.Tensor
    observed: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("error_sum", "error_count", "observed"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def observe(self, squared_errors: torch.Tensor) -> None:
        """Notes squared errors per pixel and channel, of any shape."""
        self.error_sum.add_(squared_errors.float().sum())
        self.error_count.add_(squared_errors.numel())

    @torch.no_grad()
    def update_(self, variance: torch.Tensor) -> None:
        """Moves `variance`, once per step, towards what was observed; the first observation replaces it."""
        optimum = elbo.optimal_variance(self.error_sum, self.error_count)
        variance.lerp_(optimum, torch.where(self.observed > 0, MOMENTUM, 1.0))
        self.observed.fill_(1.0)
        self.error_sum.zero_()
        self.error_count.zero_()


class VAERecipe(Recipe):
    """Trains a VAE, flat or hierarchical, or a VQ-VAE; by class if asked to.

    Args:
        config ([`VAEConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size, channels and classes of the images.

    Raises:
        UserError: If network and data do not fit.
    """

    def __init__(self, config: VAEConfig, info: DataInfo):
        self.config = config
        self.architecture = ARCHITECTURES[config.architecture]
        self.class_names, self.needs_labels = class_names(info, config.class_conditional), config.class_conditional
        if config.task == "super_resolve" and info.resolution % int(config.level or 1):
            raise UserError(
                f"`task_level` {config.level:g} does not divide the {info.resolution} pixels of the images."
            )
        try:
            self.vae = self._network(info)
        except ValueError as error:
            raise UserError(
                f"`architecture` {config.architecture} does not fit the images or options: {error}"
            ) from None
        self.networks = {"vae": Network(self.vae, averaged=True)}
        self.statistics: RunningVariance | None = None
        if config.variance is None:  # followed for every likelihood: restoring images needs it, too
            self.statistics = RunningVariance()
            self.networks["statistics"] = Network(self.statistics, STATE)
        else:
            self.vae.variance.fill_(config.variance)
        if config.free_bits:
            self.batch_statistics = "the mean of the KL divergence, which `free_bits` compares with its floor,"
        self.num_images = info.num_images
        self.dimensions = info.channels * info.resolution**2
        self._class_arguments = class_arguments(info, self.class_names)
        betas = (config.adam_beta1, config.adam_beta2)
        optimizer = AdamW(config.learning_rate, betas, config.adam_epsilon, config.adam_weight_decay)
        self.phases = (Phase("vae", ("vae",), optimizer),)
        self._alarm = CollapseAlarm(config)

    def _network(self, info: DataInfo) -> Any:
        config = self.config
        options: dict[str, Any] = {
            "sample_size": info.resolution,
            "in_channels": info.channels,
            "num_class_embeds": len(self.class_names) if self.class_names else None,
            "likelihood": config.likelihood,
            "num_mixtures": config.num_mixtures,
        }
        if config.latent_channels is not None:
            options["latent_channels"] = config.latent_channels
        if config.block_out_channels is not None:
            options["block_out_channels"] = config.block_out_channels
        return self.architecture.make(config, **options)

    def check_images(self, columns: Mapping[str, Any]) -> None:
        if self.config.likelihood == "bernoulli":
            check_binary(columns["image"] / 127.5 - 1)

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, images = self.config, batch["image"]
        if config.likelihood == "bernoulli" and progress.step == 0:  # augmented by now, or streamed
            check_binary(images)
        labels = batch["label"] if self.class_names else None
        encoded = self.vae.encode(degrade(batch, config.task, config.level), labels)
        latents, penalty, metrics = self.architecture.cost(self.vae, encoded, batch.random, config, progress.fraction)
        decoded = self.architecture.decode(self.vae, encoded, latents, labels)
        if self.statistics is not None:
            self.statistics.observe((decoded.sample.detach().float() - images).square())
        distortion = -self._log_likelihood(images, decoded.parameters).mean()
        # Sums over pixels and over latents, both divided by the number of pixels: the balance stays that of the ELBO.
        loss = (distortion + penalty) / self.dimensions
        metrics |= {
            "loss": loss.detach(),
            "distortion": distortion.detach(),
            "bits_per_dim": elbo.bits_per_dim(distortion.detach() + metrics["rate"], self.dimensions),
            "mse": (decoded.sample.detach().float() - images).square().mean(),
        }
        if config.likelihood == "gaussian":
            metrics["variance"] = self.vae.variance.clone()
            metrics["bits_per_dim"] += elbo.LEVEL_BITS  # a density of pixels in [-1, 1], in units of 8-bit levels
        return loss, metrics

    def _log_likelihood(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        config = self.config
        return elbo.log_likelihood(images, parameters, config.likelihood, self.vae.variance, config.num_mixtures)

    def after_step(self, images: int) -> None:
        if self.statistics is not None:
            self.statistics.update_(self.vae.variance)
        self.architecture.after_step(self.vae)

    def warnings(self, means: dict[str, float], progress: Progress) -> list[str]:
        return self._alarm(means, progress)

    def fit(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> GaussianMixturePrior | None:
        """Fits a prior to the latents of training images."""
        return self._fit_prior(modules["vae"], batches) if self.config.prior_components else None

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        vae: Any = modules["vae"]
        prior = fitted
        if prior is None and not self.architecture.has_prior:  # N(0, I), which draws any code at any position
            prior = GaussianMixturePrior(vae.latent_shape, num_class_embeds=vae.config.num_class_embeds)
            prior.to(next(vae.parameters()).device)
        task, level = self.config.task, self.config.level
        return VAEPipeline(vae, prior, **self._class_arguments, task=task, task_level=level)

    @torch.no_grad()
    def card_images(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> list[torch.Tensor]:
        """Returns training images and their reconstructions; for a task, degraded, restored and real ones."""
        batch = next(batches)
        shown, labels = slice(0, RECONSTRUCTED), batch["label"] if self.class_names else None
        degraded = degrade(batch, self.config.task, self.config.level)
        restored = modules["vae"](degraded, labels).sample
        rows = [degraded, restored] if self.config.task is None else [degraded, restored, batch["image"]]
        return [(row[shown].float() / 2 + 0.5).clamp(0, 1) for row in rows]

    @torch.no_grad()
    def _fit_prior(self, vae: Any, batches: Iterator[Batch]) -> GaussianMixturePrior:
        latents: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        needed = min(PRIOR_SAMPLE, 4 * (self.num_images or PRIOR_SAMPLE))
        while sum(map(len, latents)) < needed:
            batch = next(batches)
            classes = batch["label"] if self.class_names else None
            encoded = vae.encode(degrade(batch, self.config.task, self.config.level), classes)
            latents.append(self.architecture.latents(vae, encoded, batch.random))
            labels += [] if classes is None else [classes]
        return fit_mixture(
            torch.cat(latents),
            torch.cat(labels) if labels else None,
            min(self.config.prior_components, sum(map(len, latents))),  # of few images
            len(self.class_names) if self.class_names else None,
        ).to(next(vae.parameters()).device)


def degrade(batch: Batch, task: str | None, level: float | None) -> torch.Tensor:
    """Returns what the encoder sees: the images, or, for a task, noisy or coarse ones of the same size."""
    images = batch["image"]
    if task == "denoise":
        noise = batch.random.normal(*images.shape[1:])
        return (images + 2 * float(level or 0) * noise).clamp(-1, 1)  # as a file can hold it
    if task == "super_resolve":
        small = F.avg_pool2d(images, int(level or 1))
        return F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    return images


def check_binary(images: torch.Tensor) -> None:
    """Raises [`UserError`] if a pixel is neither black nor white."""
    try:
        elbo.check_images(images, "bernoulli")
    except ValueError as error:
        raise UserError(f"`likelihood` bernoulli is for black and white images: {error}") from None


class CollapseAlarm:
    """Says in plain words, once, when the latents carry nothing.

    Args:
        config ([`VAEConfig`]): What is in use already is not advised.
        patience (`int`, *optional*, defaults to 20000): Images over which the sign must last, in a long run.
    """

    def __init__(self, config: VAEConfig, patience: int = 20_000):
        self.config, self.patience = config, Patience(patience)

    def __call__(self, means: dict[str, float], progress: Progress) -> list[str]:
        """Returns warnings about the means of an interval of steps, and of how far the run is at its end."""
        if self.config.architecture == "vq":
            collapsed = means.get("perplexity", math.inf) < 2
            text = (
                f"the codebook collapses: only {means.get('perplexity', math.nan):.1f} codes are in use. Try a lower "
                "`learning_rate` or a larger batch."
            )
        else:
            rate = means.get("rate", math.inf)
            collapsed = rate < 0.5
            remedies = [
                *([f"a lower `beta` than {self.config.beta:g}"] if self.config.beta > 1 else []),
                *(["a lower `variance`, or none"] if self.config.variance is not None else []),
                *(["`kl_warmup` 0.2"] if not self.config.kl_warmup else []),
                *(["`free_bits` 0.05"] if not self.config.free_bits else []),
            ]
            text = (
                f"the posterior has collapsed: the latents carry {rate:.2f} nats per image, so every sample is the "
                "mean image. The KL divergence weighs too much beside the likelihood: check that neither is averaged "
                f"over what the other sums. Try {', '.join(remedies) or 'another `seed`'}."
            )
        lasted = self.patience.lasts("collapse", collapsed, progress)
        return [] if lasted is None else [f"for {lasted} images {text}"]
