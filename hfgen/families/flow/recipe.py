"""The flow recipe: one network that maximises the density of dequantised images."""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from hfgen.data.info import DataInfo
from hfgen.families.flow.options import FlowConfig
from hfgen.models.glow import Glow
from hfgen.models.tarflow import TarFlow
from hfgen.objectives import dequantisation as dequantising
from hfgen.objectives.elbo import bits_per_dim, log_normal
from hfgen.pipelines.flow import FlowPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.training.recipe import (
    AdamW,
    Batch,
    Network,
    Phase,
    Progress,
    Recipe,
    class_arguments,
    class_names,
)


class FlowRecipe(Recipe):
    """Trains a flow; by class if asked to.

    Args:
        config ([`FlowConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size, channels and classes of the images.

    Raises:
        UserError: If network and data do not fit.
    """

    def __init__(self, config: FlowConfig, info: DataInfo):
        self.config = config
        self.guided = config.architecture == "tarflow" and config.label_dropout > 0
        self.class_names = class_names(info, config.class_conditional, needs_all=not self.guided)
        self.needs_labels = config.class_conditional and not self.guided
        try:
            self.flow: Any = self._network(info)
        except ValueError as error:
            raise UserError(
                f"`architecture` {config.architecture} does not fit the images or options: {error}"
            ) from None
        self.networks = {"flow": Network(self.flow, averaged=True)}
        if config.architecture == "glow":
            self.batch_statistics = "the statistics that actnorm starts with"
        self.dimensions = info.channels * info.resolution**2
        self._class_arguments = class_arguments(info, self.class_names)
        betas = (config.adam_beta1, config.adam_beta2)
        optimizer = AdamW(config.learning_rate, betas, config.adam_epsilon, config.adam_weight_decay)
        self.phases = (Phase("flow", ("flow",), optimizer),)

    @property
    def null_class(self) -> int | None:
        """Returns the class that stands for "no class"; `None` without classes or without label dropout."""
        return len(self.class_names) if self.class_names and self.guided else None

    def _network(self, info: DataInfo) -> Any:
        config = self.config
        classes = len(self.class_names) + (self.null_class is not None) if self.class_names else None
        shared = {"num_class_embeds": classes, "pixel_map": config.pixel_map}
        if config.architecture == "glow":
            hidden = {"num_levels": config.num_levels, "hidden_channels": config.hidden_size}
            given = {name: value for name, value in hidden.items() if value is not None}
            return Glow(info.resolution, info.channels, num_steps=config.num_steps, **given, **shared)
        own = {"patch_size": config.patch_size, "hidden_size": config.hidden_size}
        return TarFlow(
            info.resolution,
            info.channels,
            num_blocks=config.num_blocks,
            layers_per_block=config.layers_per_block,
            attention_head_dim=config.attention_head_dim,
            pixel_channels=config.pixel_channels,
            **{name: value for name, value in own.items() if value is not None},
            **shared,
        )

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, images = self.config, batch["image"]
        if progress.step == 0 and not dequantising.on_levels(images):
            note("augmentation takes images off the 256 levels of 8 bit: they are rounded to these before the noise.")
        images = dequantising.round_to_levels(images)
        labels = batch["label"] if self.class_names else None
        if labels is not None and self.null_class is not None:
            dropped = batch.random.uniform() < config.label_dropout
            labels = torch.where(dropped | (labels < 0), torch.full_like(labels, self.null_class), labels)
        shape, noise_std = images.shape[1:], config.noise_std
        noise = batch.random.uniform(*shape) if noise_std is None else batch.random.normal(*shape)
        noisy = dequantising.dequantise(images, noise, noise_std)
        first = {"observe": progress.step == 0} if config.architecture == "glow" else {}
        encoded = self.flow.encode(noisy, labels, **first)
        nats = log_normal(encoded.latents) + encoded.log_det
        nats = nats + dequantising.correction(images, noisy, noise_std)
        loss = -nats.mean() / self.dimensions
        return loss, {
            "loss": loss.detach(),
            "bits_per_dim": bits_per_dim(-nats.detach().mean(), self.dimensions),
            "latent_rms": encoded.latents.detach().square().mean().sqrt(),
        }

    def after_step(self, images: int) -> None:
        if self.config.architecture == "glow":
            self.flow.initialise_()

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        return FlowPipeline(modules["flow"], **self._class_arguments, noise_std=self.config.noise_std)
