"""The DDPM recipe: a `UNet2DModel` that learns to denoise (https://huggingface.co/papers/2006.11239)."""

from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from torch import nn

from hfgen.data.info import DataInfo
from hfgen.families.ddpm.options import DDPMConfig
from hfgen.models.unet2d import build_unet, level_sizes, use_plain_attention_, zero_init_
from hfgen.objectives import denoising
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, sampling_scheduler
from hfgen.runtime.errors import UserError, one_line
from hfgen.sampling.config import DDPMSamplingConfig
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


class DDPMRecipe(Recipe):
    """Trains a UNet with a `DDPMScheduler`'s noise schedule; by class, or by group of similar images, if asked to.

    Args:
        config ([`DDPMConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size, channels and classes of the images.

    Raises:
        UserError: If network and data do not fit.
    """

    def __init__(self, config: DDPMConfig, info: DataInfo):
        self.config = config
        self.class_names = class_names(info, config.class_conditional, needs_all=False)
        self._class_arguments = class_arguments(info, self.class_names)
        self.needs_labels = config.class_conditional and not config.label_dropout
        unlabelled = info.classes.unlabelled if config.class_conditional and info.classes else 0
        if unlabelled and not config.label_dropout:
            raise UserError(
                f"`label_dropout` 0: {unlabelled} of the images have no class, and only label dropout gives the "
                'network "no class". Use more than 0, or label the images.'
            )
        unet = self._unet(info)
        self.scheduler = DDPMScheduler(
            num_train_timesteps=config.ddpm_num_steps,
            beta_schedule=config.ddpm_beta_schedule,
            prediction_type=config.prediction_type,
            rescale_betas_zero_snr=config.rescale_betas_zero_snr,
            timestep_spacing="trailing",  # steps from pure noise on, which few steps and zero terminal SNR need
        )
        self.alphas_cumprod = self.scheduler.alphas_cumprod.clone()
        if not torch.cuda.is_available() and info.resolution <= 64:
            use_plain_attention_(unet)
        self.unet = unet
        self.networks = {"unet": Network(unet, averaged=True, adaptable=True)}
        steps = min(config.ddpm_num_inference_steps, config.ddpm_num_steps)  # whose default suits the usual schedules
        self.sampling = DDPMSamplingConfig(num_inference_steps=steps)
        betas = (config.adam_beta1, config.adam_beta2)
        optimizer = AdamW(config.learning_rate, betas, config.adam_epsilon, config.adam_weight_decay)
        self.phases = (Phase("unet", ("unet",), optimizer),)

    @property
    def null_class(self) -> int | None:
        """Returns the class that stands for "no class"; `None` without classes or without label dropout."""
        return len(self.class_names) if self.class_names and self.config.label_dropout else None

    @property
    def guidance_scale(self) -> float:
        """Returns the default guidance of the pipeline; 1, which is none, without a class for "no class"."""
        return self.config.guidance_scale if self.null_class is not None else 1.0

    def _unet(self, info: DataInfo) -> UNet2DModel:
        config = self.config
        classes = None
        if self.class_names:
            classes = len(self.class_names) + (1 if config.label_dropout else 0)
        if config.model_config_name_or_path is None:
            try:
                return build_unet(
                    info.resolution,
                    info.channels,
                    config.block_out_channels,
                    config.layers_per_block,
                    config.attention_resolutions,
                    config.attention_head_dim,
                    config.norm_num_groups,
                    config.dropout,
                    classes,
                )
            except ValueError as error:
                channels = " ".join(map(str, config.block_out_channels))
                options = ("attention_head_dim", "attention_resolutions")
                name = next((name for name in options if name in str(error)), "resolution")
                raise UserError(
                    f"`{name}` does not fit `resolution` {info.resolution} and `block_out_channels` {channels}: "
                    f"{error}"
                ) from None
        path = config.model_config_name_or_path
        try:
            loaded = UNet2DModel.load_config(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"`model_config_name_or_path` {path} cannot be loaded: {one_line(error)}. Give a folder with a "
                "config.json."
            ) from None
        try:
            level_sizes(info.resolution, len(loaded["block_out_channels"]))
        except ValueError as error:
            raise UserError(f"`resolution` {info.resolution} does not fit {path}: {error}") from None
        images = {"sample_size": info.resolution, "in_channels": info.channels, "out_channels": info.channels}
        unet = UNet2DModel.from_config(dict(loaded) | images | {"num_class_embeds": classes})
        zero_init_(unet)
        return unet

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, clean = self.config, batch["image"]
        if self.alphas_cumprod.device != clean.device:
            self.alphas_cumprod = self.alphas_cumprod.to(clean.device)
        quantile = batch.random.stratified()  # of the timestep, in [0, 1)
        noise = batch.random.normal(*clean.shape[1:])
        labels = None
        if self.class_names:
            labels = batch["label"]
            if self.null_class is not None:
                dropped = batch.random.uniform() < config.label_dropout
                labels = torch.where(dropped | (labels < 0), torch.full_like(labels, self.null_class), labels)
        timesteps = (quantile * config.ddpm_num_steps).long()
        alpha = self.alphas_cumprod[timesteps]
        noisy = denoising.add_noise(clean, noise, alpha)
        prediction = self.unet(noisy, timesteps, class_labels=labels).sample
        error = denoising.squared_error(prediction, denoising.target(config.prediction_type, clean, noise, alpha))
        loss = (error * denoising.loss_weight(config.prediction_type, alpha, config.snr_gamma)).mean()
        metrics = {"loss": loss.detach()}
        # The error of the noise over the quarters of the schedule: comparable between targets and weightings.
        noise_error = denoising.noise_error(config.prediction_type, error.detach(), alpha)
        quarters = (quantile * 4).long()
        for quarter in range(4):
            inside = (quarters == quarter).float()
            metrics[f"noise_mse_{quarter + 1}"] = torch.stack([(noise_error * inside).sum(), inside.sum()])
        return loss, metrics

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        if self.class_names is None:
            return DDPMPipeline(unet=modules["unet"], scheduler=self.scheduler)
        return ClassConditionalDDPMPipeline(
            unet=modules["unet"],
            scheduler=sampling_scheduler(self.scheduler),
            **self._class_arguments,
            guidance_scale=self.guidance_scale,
        )
