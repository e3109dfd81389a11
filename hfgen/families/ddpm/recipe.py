"""The DDPM recipe: a `UNet2DModel` that learns to denoise (https://huggingface.co/papers/2006.11239)."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from torch import nn

from hfgen.data.info import DataInfo
from hfgen.families.ddpm.options import DDPMConfig
from hfgen.models.unet2d import build_unet, level_sizes, use_plain_attention_, zero_init_
from hfgen.objectives import denoising
from hfgen.pipelines.ddpm_restoration import DDPMRestorationPipeline, beside, channels_beside
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, sampling_scheduler
from hfgen.pipelines.diffusion_restoration import to_gray
from hfgen.pipelines.restoration import shrink
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

SHOWN = 8  # images of a row on the card


def draw_holes(draws: torch.Tensor, size: int) -> torch.Tensor:
    """Makes rectangular holes: one side is a quarter to three quarters of the image, the other up to all of it.

    Args:
        draws (`torch.Tensor` of shape `(B, 5)`): Uniform, in [0, 1): height, width, place in both, which is longer.
        size (`int`): Height and width of the images.

    Returns:
        `torch.Tensor` of shape `(B, 1, size, size)`, bool.
    """
    longer = draws[:, 4] < 0.5
    high = 0.25 + draws[:, 0] * torch.where(longer, 0.75, 0.5)
    wide = 0.25 + draws[:, 1] * torch.where(longer, 0.5, 0.75)
    pixels = torch.arange(size, device=draws.device)
    inside = []
    for share, place in ((high, draws[:, 2]), (wide, draws[:, 3])):
        length = (share * size).round().clamp(1, size)
        start = (place * (size - length + 1)).floor()
        inside.append((pixels >= start[:, None]) & (pixels < (start + length)[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


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
        self._check_task(info)
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

    def _check_task(self, info: DataInfo) -> None:
        """Notes how many channels the network sees beside the noise.

        Raises:
            UserError: If the task does not fit the images.
        """
        config, task = self.config, self.config.task
        self.channels_beside = channels_beside(task, info.channels) if task else 0
        if task and self.class_names:
            raise UserError(
                f"`num_clusters`: a model with a `task` ({task}) knows no groups of images: use 0, or no task."
            )
        if task == "colorize" and info.channels < 3:
            raise UserError(
                f"`task` colorize needs images in colour, and these are {info.mode}: use `image_mode` RGB."
            )
        if task == "super_resolve" and info.resolution % int(config.task_level or 1):
            raise UserError(
                f"`task_level` {config.task_level:g} does not divide the {info.resolution} pixels of the images."
            )

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
                    self.channels_beside,
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
        images = {"sample_size": info.resolution, "out_channels": info.channels}
        images["in_channels"] = info.channels + self.channels_beside
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
        if config.task:
            noisy = torch.cat([noisy, self._damaged(batch)[0]], 1)
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

    def _damaged(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Damages images as the task has it.

        Returns:
            `tuple`: What the network sees of them beside the noise, the damaged images, and holes `(B, 1, H, W)`.
        """
        images, task, level = batch["image"], self.config.task, self.config.task_level or 1.0
        damaged, hole = images, None
        if task == "super_resolve":
            damaged = shrink(images, int(level))
        elif task == "colorize":
            damaged = to_gray(images)
        elif task == "denoise":
            damaged = (images + 2 * level * batch.random.normal(*images.shape[1:])).clamp(
                -1, 1
            )  # as a file can hold it
        else:
            hole = draw_holes(batch.random.uniform(5), images.shape[-1])
        return beside(task or "", damaged, int(level), hole), damaged, hole

    @torch.no_grad()
    def card_images(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> list[torch.Tensor]:
        """Shows damaged images, what they become, and what they were; of a model without a task, nothing."""
        if not self.config.task:
            return []
        batch = next(batches)
        seen, damaged, hole = (None if part is None else part[:SHOWN] for part in self._damaged(batch))
        assert seen is not None and damaged is not None
        pipe: Any = self.pipeline(modules)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(index) for index in range(len(seen))]
        steps = self.sampling.num_inference_steps
        made = pipe(damaged / 2 + 0.5, hole, generators, steps, output_type="pt").images
        clean = batch["image"][: len(made)] / 2 + 0.5
        shown = seen / 2 + 0.5
        if hole is not None:
            shown = clean.masked_fill(hole, 0.5)
        elif self.config.task == "colorize":
            shown = torch.cat([shown[:, :1].expand(-1, 3, -1, -1), shown[:, 1:]], 1)
        return [shown, made.to(clean), clean]

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        if self.config.task:
            return DDPMRestorationPipeline(
                unet=modules["unet"],
                scheduler=sampling_scheduler(self.scheduler),
                task=self.config.task,
                task_level=self.config.task_level,
            )
        if self.class_names is None:
            return DDPMPipeline(unet=modules["unet"], scheduler=self.scheduler)
        return ClassConditionalDDPMPipeline(
            unet=modules["unet"],
            scheduler=sampling_scheduler(self.scheduler),
            **self._class_arguments,
            guidance_scale=self.guidance_scale,
        )
