"""The recipe of autoregressive models: a network that maximises the exact likelihood of the levels of images."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from hfgen.data.info import DataInfo
from hfgen.families.autoregressive.options import AutoregressiveConfig
from hfgen.models.causal_transformer import CausalTransformer
from hfgen.models.pixelcnn import PixelCNN
from hfgen.models.vq_vae import VQVAE
from hfgen.objectives import autoregressive
from hfgen.objectives.dequantisation import on_levels
from hfgen.objectives.elbo import bits_per_dim
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.sampling.loading import load_pipeline
from hfgen.training.recipe import (
    FROZEN,
    AdamW,
    Batch,
    Network,
    ParameterGroup,
    Phase,
    Progress,
    Recipe,
    class_arguments,
    class_names,
)

UNDECAYED = ("*.bias", "*norm*", "*embed*", "*rows*", "*columns*", "*classes*", "*first*")  # scales, not weights

NETWORKS: dict[str, tuple[type, tuple[str, ...]]] = {  # with the options that are theirs alone
    "pixelcnn": (PixelCNN, ("base_channels", "dilations", "kernel_size")),
    "transformer": (CausalTransformer, ("hidden_size", "num_layers", "num_attention_heads")),
}


class AutoregressiveRecipe(Recipe):
    """Trains a network that gives the distribution of each pixel, or code, from those before it.

    Images that are between the levels of 8 bit, as some augmentations leave them, are rounded to them.

    Args:
        config ([`AutoregressiveConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size, channels and classes of the images.

    Raises:
        UserError: If network, data and the VQ-VAE of `codes_from` do not fit.
    """

    def __init__(self, config: AutoregressiveConfig, info: DataInfo):
        self.config = config
        self.class_names, self.needs_labels = class_names(info, config.class_conditional), config.class_conditional
        self.vae = self._load_vae(info) if config.draws == "codes" else None
        size, channels, levels = info.resolution, info.channels, autoregressive.LEVELS
        if self.vae is not None:
            size, channels, levels = self.vae.latent_shape[1], 1, self.vae.config.num_vq_embeddings
        kind, own = NETWORKS[config.architecture]
        try:
            self.model = kind(
                sample_size=size,
                in_channels=channels,
                num_levels=levels,
                num_class_embeds=len(self.class_names) if self.class_names else None,
                likelihood=config.likelihood,
                num_mixtures=config.num_mixtures,
                dropout=config.dropout,
                embed_levels=self.vae is not None,
                **{name: getattr(config, name) for name in own},
            )
        except ValueError as error:
            raise UserError(f"`likelihood` {config.likelihood} does not fit the images: {error}") from None
        self.networks = {"model": Network(self.model, averaged=True)}
        if self.vae is not None:
            self.model.start_embedding_(self.vae.codes)
            self.networks["vae"] = Network(self.vae, FROZEN, origin=config.codes_from)
        self.dimensions = size**2 * channels  # that the network draws
        self._class_arguments = class_arguments(info, self.class_names)
        betas = (config.adam_beta1, config.adam_beta2)
        groups = (ParameterGroup(UNDECAYED, weight_decay=0.0),)
        optimizer = AdamW(config.learning_rate, betas, config.adam_epsilon, config.adam_weight_decay, groups)
        self.phases = (Phase("model", ("model",), optimizer),)

    def _load_vae(self, info: DataInfo) -> Any:
        source = self.config.codes_from
        try:
            vae = getattr(load_pipeline(str(source)), "model", None)
        except UserError as error:
            raise UserError(f"`codes_from` {error}") from None
        if not isinstance(vae, VQVAE):
            raise UserError(
                f"`codes_from` {source} holds no VQ-VAE: train one with `hfgen train vae --preset vq`, and give its "
                "folder."
            )
        shape = (vae.config.in_channels, vae.config.sample_size)
        if shape != (info.channels, info.resolution):
            raise UserError(
                f"`codes_from` {source} is a VQ-VAE of images of {shape[1]} pixels and {shape[0]} channels, but the "
                f"images have {info.resolution} and {info.channels}: choose `resolution` and `image_mode` as it was "
                "trained, or train another one."
            )
        classes = vae.config.num_class_embeds
        if classes and classes != len(self.class_names or ()):
            raise UserError(
                f"`codes_from` {source} is a VQ-VAE of {classes} classes, and this run has "
                f"{len(self.class_names or ())}: train both on the same ones (`class_conditional`, or the same "
                "`num_clusters`), or the VQ-VAE without."
            )
        return vae

    @torch.no_grad()
    def encode(self, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Finds the codes of images: `(B, 1, h, w)`."""
        assert self.vae is not None
        labels = columns["label"] if self.vae.config.num_class_embeds else None
        latents = self.vae.encode(columns["image"], labels).latents
        return {"codes": self.vae.quantize(latents).indices[:, None].float()}

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if progress.step == 0 and self.vae is None and not on_levels(batch["image"]):
            note("augmentation takes images off the 256 levels of 8 bit: they are rounded to these.")
        if self.vae is None:
            levels = autoregressive.to_levels(batch["image"], autoregressive.LEVELS)
        else:
            levels = batch["codes"].long()
        nats = -self.model.log_prob(levels, batch["label"] if self.class_names else None).mean()
        loss = nats / self.dimensions
        bits = bits_per_dim(nats.detach(), self.dimensions)
        return loss, {"loss": loss.detach(), "bits_per_dim" if self.vae is None else "bits_per_code": bits}

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        return AutoregressivePipeline(modules["model"], modules.get("vae"), **self._class_arguments)
