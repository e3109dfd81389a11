"""The options of a run; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Any

from hfgen.cli import option
from hfgen.errors import UserError
from hfgen.evaluation.config import METRICS, ONE_NUMBER

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
HUB_STRATEGIES = ("end", "every_save")
LOGGERS = ("none", "tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")

# Flags of diffusers' training scripts that have another name, or no use, here.
MOVED = {
    "ema_max_decay": "the moving average is set by its half-life in images, --ema_half_life and --ema_ramp.",
    "ema_power": "the moving average is set by its half-life in images, --ema_half_life and --ema_ramp.",
    "ema_inv_gamma": "the moving average is set by its half-life in images, --ema_half_life and --ema_ramp.",
    "enable_xformers_memory_efficient_attention": "torch's own attention is used, which is as fast; leave it out.",
    "preserve_input_precision": "images are kept with 8 bits per channel; leave it out.",
    "allow_tf32": "TF32 is always on where --mixed_precision is not `no`; leave it out.",
    "local_rank": "the launcher sets it in the environment; leave it out.",
}


@dataclass(frozen=True)
class TrainingConfig:
    """Training: length, precision, what is kept, and where."""

    output_dir: str | None = option(
        None, "folder of the run, which is also the pipeline folder (default: out/<family>-<data>)", resumable=True
    )
    overwrite_output_dir: bool = option(
        False, "delete the run that --output_dir holds, and start anew", resumable=True
    )
    resume_from_checkpoint: str | None = option(
        None, "`latest`, or a checkpoint folder; `latest` starts from zero where there is none", resumable=True
    )
    seed: int = option(0, "seed of everything: weights, order of the data, noise, augmentation, sample grids")
    train_batch_size: int = option(64, "images per process and micro-batch", resumable=True)
    gradient_accumulation_steps: int = option(1, "micro-batches per update", resumable=True)
    num_epochs: float = option(100.0, "length in passes over the data", resumable=True)
    max_train_steps: int | None = option(None, "length in updates; wins over --num_epochs", resumable=True)
    lr_scheduler: str = option("cosine", "how the learning rate falls to 0", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = option(500, "updates over which the learning rate rises to its peak")
    max_grad_norm: float = option(1.0, "clip the gradient of a phase at this norm; 0 turns it off")
    use_ema: bool = option(True, "sample and publish the moving average of the weights")
    ema_half_life: float = option(500_000.0, "half-life of the moving average in images")
    ema_ramp: float = option(0.05, "cap of the half-life as a share of the images seen so far; 0 turns the cap off")
    mixed_precision: str = option(
        "auto", "auto is bf16 where the hardware has it, else no", choices=("auto", "no", "bf16", "fp16")
    )
    compile: bool = option(False, "compile the networks (worth it on a GPU)")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    channels_last: bool = option(False, "keep images channels-last in memory (worth it on a GPU)")
    cpu_threads: int | None = option(None, "threads per process on a CPU (default: cores / processes)", resumable=True)
    logging_steps: int = option(50, "updates between two lines of metrics")
    logger: str = option("none", "tracker, besides logs/metrics.jsonl", choices=LOGGERS, resumable=True)
    logging_dir: str = option("logs", "folder of the metrics within --output_dir", resumable=True)
    checkpointing_steps: int = option(500, "updates between two checkpoints", resumable=True)
    checkpoints_total_limit: int | None = option(2, "checkpoints to keep, `none` for all", resumable=True)
    save_images_epochs: float = option(
        10.0, "epochs between two sample grids; 0 for none but the last", resumable=True
    )
    save_images_steps: int | None = option(None, "updates between two sample grids; wins over epochs", resumable=True)
    eval_batch_size: int = option(64, "images in a sample grid", resumable=True)
    provenance: bool = option(True, "write into PNG files which model made them, and how", resumable=True)
    eval_every: int | None = option(
        None, "updates between two evaluations of what is published; there is one after the last, too", resumable=True
    )
    eval_metrics: tuple[str, ...] = option(("fd",), "what to measure then", choices=METRICS, resumable=True)
    eval_extractor: str = option(
        "inception", "features: inception, inception-clean, or folder or Hub id of an image model", resumable=True
    )
    eval_extractor_weights: str | None = option(
        None, "of inception: a file, a Hub id, or `download` (default: what was downloaded before)", resumable=True
    )
    eval_num_images: int = option(1000, "images to generate, and real ones, for each evaluation", resumable=True)
    metric_for_best_model: str | None = option(
        None, "one of --eval_metrics: the pipeline with the best value so far is kept in <output_dir>/best",
        choices=ONE_NUMBER, resumable=True,
    )  # fmt: skip
    save_model_epochs: float = option(
        0.0, "epochs between two savings of the pipeline; 0 for only the last", resumable=True
    )
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub", resumable=True)
    hub_strategy: str = option(
        "end", "when to push: at the end, or also, in the background, whenever the pipeline or the best one is saved",
        choices=HUB_STRATEGIES, resumable=True,
    )  # fmt: skip
    hub_model_id: str | None = option(None, "name of the repository (default: that of --output_dir)", resumable=True)
    hub_private_repo: bool = option(False, "make the repository private", resumable=True)
    hub_license: str | None = option(
        None, "licence of the model for its card, as the Hub calls it: apache-2.0, cc-by-4.0, ...", resumable=True
    )
    hub_token: str | None = option(
        None, "token for the Hub (default: HF_TOKEN, or what `hf auth login` stored)", resumable=True, secret=True
    )

    def validate(self) -> None:
        """Checks the values that can be checked on their own.

        Raises:
            UserError: For a value out of range.
        """
        require_positive(self, "train_batch_size", "gradient_accumulation_steps", "num_epochs", "eval_batch_size")
        require_positive(self, "logging_steps", "checkpointing_steps", "ema_half_life")
        for name in ("max_train_steps", "cpu_threads", "checkpoints_total_limit", "save_images_steps", "eval_every"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        best = self.metric_for_best_model
        if best is not None and (self.eval_every is None or best not in self.eval_metrics):
            lacking = "--eval_every" if self.eval_every is None else f"{best} among --eval_metrics"
            raise UserError(f"--metric_for_best_model {best} is measured by evaluations: give {lacking}, too.")
        if self.hub_strategy == "every_save" and not self.save_model_epochs and best is None:
            raise UserError(
                "--hub_strategy every_save pushes what is saved during training, which is nothing: give "
                "--save_model_epochs or --metric_for_best_model, too."
            )
        if self.eval_every is not None and (self.eval_num_images < 2 or not self.eval_metrics):
            raise UserError("--eval_num_images is below 2, or --eval_metrics is empty: there is nothing to measure.")
        for name in ("lr_warmup_steps", "max_grad_norm", "ema_ramp", "save_images_epochs", "save_model_epochs"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} is negative: use 0 or more.")


@dataclass(frozen=True)
class DDPMConfig:
    """DDPM: network, noise schedule, objective and optimiser."""

    block_out_channels: tuple[int, ...] = option((32, 64, 64), "channels of each level of the UNet")
    layers_per_block: int = option(1, "residual blocks per level")
    attention_resolutions: tuple[int, ...] | None = option(
        None, "heights of the feature maps that get attention (default: the lowest level)"
    )
    attention_head_dim: int = option(32, "channels per attention head")
    norm_num_groups: int = option(8, "groups of the group normalisation")
    dropout: float = option(0.0, "dropout in the residual blocks")
    model_config_name_or_path: str | None = option(
        None,
        "Hub id or folder with the config.json of a UNet2DModel to train from scratch, instead of the flags above",
    )
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    num_clusters: int = option(
        0, "without --class_conditional: find this many groups of similar images and train on these; 0 for none"
    )
    label_dropout: float = option(0.1, "share of labels replaced by 'no class', for guidance; 0 turns guidance off")
    prediction_type: str = option(
        "v_prediction", "what the network predicts", choices=("epsilon", "v_prediction", "sample")
    )
    ddpm_num_steps: int = option(1000, "timesteps of the noise schedule")
    ddpm_beta_schedule: str = option(
        "squaredcos_cap_v2",
        "noise schedule; squaredcos_cap_v2 is the cosine schedule",
        choices=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    )
    rescale_betas_zero_snr: bool = option(False, "let the schedule end in pure noise (zero terminal SNR)")
    snr_gamma: float | None = option(None, "min-SNR weighting of the loss with this gamma (5 in its paper)")
    ddpm_num_inference_steps: int = option(20, "sampling steps of the sample grids", resumable=True)
    guidance_scale: float = option(
        1.5, "guidance of the sample grids and, unless told otherwise, of the pipeline, with classes or groups",
        resumable=True,
    )  # fmt: skip
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    adam_beta1: float = option(0.9, "AdamW beta 1")
    adam_beta2: float = option(0.999, "AdamW beta 2")
    adam_weight_decay: float = option(0.0, "AdamW weight decay")
    adam_epsilon: float = option(1e-8, "AdamW epsilon")

    def validate(self) -> None:
        """Checks the values that can be checked on their own.

        Raises:
            UserError: For values out of range, or that do not go together.
        """
        require_positive(self, "layers_per_block", "attention_head_dim", "norm_num_groups", "ddpm_num_steps")
        require_positive(self, "learning_rate", "adam_epsilon", "ddpm_num_inference_steps")
        if not self.block_out_channels:
            raise UserError("--block_out_channels is empty: give the channels of each level, for example 32 64 64.")
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise UserError(
                    f"--block_out_channels {channels} is no multiple of --norm_num_groups {self.norm_num_groups}: "
                    "change one of them."
                )
            if channels % self.attention_head_dim and channels > self.attention_head_dim:
                raise UserError(
                    f"--block_out_channels {channels} is no multiple of --attention_head_dim "
                    f"{self.attention_head_dim}: change one of them."
                )
        if self.num_clusters < 0:
            raise UserError(f"--num_clusters {self.num_clusters} is negative: use 0 or more.")
        for name in ("dropout", "label_dropout", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is not in [0, 1): use a share.")
        if self.adam_weight_decay < 0:
            raise UserError(f"--adam_weight_decay {self.adam_weight_decay} is negative: use 0 or more.")
        if self.snr_gamma is not None:
            require_positive(self, "snr_gamma")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UserError(
                "--rescale_betas_zero_snr does not go with --prediction_type epsilon: from pure noise nothing can be "
                "learnt about it. Use v_prediction or sample."
            )


AUGMENTATIONS = (  # those of objectives.adaptive_augmentation, which imports torch
    *("flip", "rotate90", "translate_integer", "scale", "rotate", "anisotropic", "translate"),
    *("brightness", "contrast", "luma_flip", "hue", "saturation", "cutout"),
)


@dataclass(frozen=True)
class GANConfig:
    """GAN: networks, objective, regularisation and optimisers."""

    architecture: str = option("dcgan", "the pair of networks", choices=("mlp", "dcgan", "residual", "stylegan2"))
    latent_dim: int = option(64, "length of the latents")
    base_channels: int = option(
        32, "width: of the first layer (mlp), at the full size (dcgan), of all stages (residual), 1/32 of the "
        "channels times the pixels per side (stylegan2)",
    )  # fmt: skip
    group_width: int | None = option(
        None, "channels per group of the convolutions of residual; 0 for plain ones (default: 16 on a GPU, 0 on a CPU)"
    )
    discriminator_norm: str = option(
        "group", "normalisation in the discriminator of dcgan", choices=("group", "batch", "none")
    )
    spectral_norm: bool = option(False, "spectral normalisation in the discriminator of mlp and dcgan")
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    num_clusters: int = option(
        0, "without --class_conditional: find this many groups of similar images and train on these; 0 for none"
    )
    objective: str = option(
        "relativistic",
        "what the two networks play for",
        choices=("relativistic", "nonsaturating", "saturating", "least_squares", "hinge", "wasserstein"),
    )
    label_smoothing: float = option(0.0, "lowers the target of real images from 1 by this much")
    r1_gamma: float = option(0.05, "weight of R1, the squared gradient at real images; 0 turns it off")
    r2_gamma: float = option(0.05, "weight of R2, the squared gradient at generated images; 0 turns it off")
    penalty_interval: int = option(4, "steps between two uses of R1 and R2, which then weigh as many times more")
    lipschitz_weight: float = option(0.0, "weight of WGAN-GP's penalty, 10 in its paper; 0 turns it off")
    discriminator_steps: int = option(1, "steps of the discriminator per step of the generator")
    ada_target: float | None = option(
        None, "adaptive augmentation: keeps the mean sign of the real logits at this, 0.6 in its paper"
    )
    augment_probability: float = option(0.0, "probability of each differentiable augmentation (initial, if adaptive)")
    augmentations: tuple[str, ...] = option(
        ("translate_integer", "scale", "rotate", "anisotropic", "translate", "brightness", "contrast", "cutout"),
        "the differentiable augmentations; also: flip rotate90 luma_flip hue saturation",
    )
    truncation: float = option(1.0, "truncation of the sample grids (stylegan2)", resumable=True)
    learning_rate: float = option(1e-3, "peak learning rate of Adam")
    discriminator_learning_rate: float | None = option(None, "that of the discriminator, if it differs")
    adam_beta1: float = option(0.0, "Adam beta 1")
    adam_beta2: float = option(0.99, "Adam beta 2")
    adam_epsilon: float = option(1e-8, "Adam epsilon")

    @property
    def penalised(self) -> bool:
        """Whether the discriminator's loss contains a derivative of the discriminator."""
        return bool(self.r1_gamma or self.r2_gamma or self.lipschitz_weight)

    def validate(self) -> None:
        """Checks the values that can be checked on their own.

        Raises:
            UserError: For values out of range, or that do not go together.
        """
        require_positive(self, "latent_dim", "base_channels", "penalty_interval", "discriminator_steps")
        require_positive(self, "learning_rate", "adam_epsilon")
        if self.discriminator_learning_rate is not None:
            require_positive(self, "discriminator_learning_rate")
        for name in ("num_clusters", "r1_gamma", "r2_gamma", "lipschitz_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} is negative: use 0 or more.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is not in [0, 1): use a share.")
        for name, most in (("label_smoothing", 0.5), ("augment_probability", 1), ("ada_target", 1)):
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise UserError(f"--{name} {getattr(self, name)} is not in [0, {most}]: use a share.")
        if self.label_smoothing and self.objective not in ("nonsaturating", "saturating", "least_squares"):
            raise UserError(
                f"--label_smoothing {self.label_smoothing}: --objective {self.objective} has no target to lower. "
                "Leave it out, or use nonsaturating, saturating or least_squares."
            )
        if self.objective == "wasserstein" and not (self.lipschitz_weight or self.spectral_norm):
            raise UserError(
                "--objective wasserstein needs a critic of bounded slope: add --lipschitz_weight 10, or "
                "--spectral_norm."
            )
        if self.penalised and self.architecture == "dcgan" and self.discriminator_norm == "batch":
            raise UserError(
                "--discriminator_norm batch mixes images, so that the gradient at one image is not its own, which "
                "--r1_gamma, --r2_gamma and --lipschitz_weight need: set these to 0, or use group or none."
            )
        if self.num_clusters == 1:
            raise UserError("--num_clusters 1: one group is none. Use 0, or 2 and more.")
        if self.group_width and 2 * self.base_channels % self.group_width:
            raise UserError(
                f"--group_width {self.group_width} does not divide 2 * --base_channels {self.base_channels}."
            )
        unknown = [name for name in self.augmentations if name not in AUGMENTATIONS]
        if unknown:
            raise UserError(f"--augmentations {unknown[0]} is unknown: choose from {' '.join(AUGMENTATIONS)}.")
        if self.discriminator_norm != "group" and self.architecture != "dcgan":
            raise UserError(
                f"--discriminator_norm {self.discriminator_norm}: {self.architecture} has none. Leave it out."
            )
        if self.truncation != 1 and self.architecture != "stylegan2":
            raise UserError(
                f"--truncation {self.truncation}: {self.architecture} has no mean latent to draw near to. Leave it "
                "out, or use stylegan2."
            )
        if self.spectral_norm and self.architecture not in ("mlp", "dcgan"):
            raise UserError(
                f"--spectral_norm does not exist in {self.architecture}: leave it out, or use mlp or dcgan."
            )

    def check(self, resolution: int | None, size: int) -> None:
        """Checks the size of the images, if known, and the number of them in a micro-batch.

        Raises:
            UserError: If the networks cannot make that size, or statistics over the batch need more images.
        """
        if resolution is not None and not 8 <= resolution <= 256:
            raise UserError(f"--resolution {resolution} is out of range: GANs make images of 8 to 256 pixels.")
        if size == 1 and self.architecture in ("mlp", "dcgan"):
            raise UserError("--train_batch_size 1: batch normalisation of one image is nothing. Use 2 or more.")
        if self.architecture == "stylegan2" and all(size % group for group in range(2, 33)):
            raise UserError(
                f"--train_batch_size {size}: minibatch statistics need groups of 2 to 32 images of equal size. Use a "
                "number with such a divisor."
            )


@dataclass(frozen=True)
class VAEConfig:
    """VAE: network, likelihood, objective, prior and optimiser."""

    architecture: str = option("residual", "the network", choices=("conv", "residual", "hierarchical", "vq"))
    latent_channels: int | None = option(
        None, "latents: all of conv and residual, per place of the others (default: 32; hierarchical 8, vq 16)"
    )
    block_out_channels: tuple[int, ...] | None = option(
        None, "channels of each level, from the full size down (default: those of the architecture)"
    )
    spatial_latent: bool = option(False, "latents for each place of the smallest feature map (residual)")
    num_vq_embeddings: int = option(256, "size of the codebook (vq)")
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    likelihood: str = option(
        "gaussian",
        "how the decoder's output stands for pixels; bernoulli is for black and white only",
        choices=("gaussian", "bernoulli", "logistic", "logistic_mixture"),
    )
    num_mixtures: int = option(5, "components of logistic_mixture")
    variance: float | None = option(
        None, "variance of the gaussian, pixels being in [-1, 1] (default: the optimal one, followed while training)"
    )
    beta: float = option(
        1.0, "weight of the KL divergence, summed over latents, beside the likelihood summed over pixels"
    )
    kl_warmup: float = option(0.0, "share of the run over which that weight rises from 0")
    free_bits: float = option(0.0, "nats per latent (or group of latents) that cost nothing")
    commitment_weight: float = option(0.25, "weight of the distance of latents from their codes (vq)")
    task: str | None = option(
        None,
        "train on degraded images to give the clean ones: `denoise` or `super_resolve`",
        choices=("denoise", "super_resolve"),
    )
    task_level: float | None = option(
        None, "standard deviation of the noise, pixels being in [0, 1] (default 0.3), or the factor (default 2)"
    )
    prior_components: int = option(
        100,
        "Gaussians that the prior for sampling is fitted from after training, of all classes together; 0 for none, "
        "which leaves N(0, I)",
    )
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    adam_beta1: float = option(0.9, "AdamW beta 1")
    adam_beta2: float = option(0.99, "AdamW beta 2")
    adam_weight_decay: float = option(1e-4, "AdamW weight decay")
    adam_epsilon: float = option(1e-8, "AdamW epsilon")

    @property
    def level(self) -> float | None:
        """How strongly the images of the task are degraded."""
        return self.task_level or {None: None, "denoise": 0.3, "super_resolve": 2.0}[self.task]

    def validate(self) -> None:
        """Checks the values that can be checked on their own.

        Raises:
            UserError: For values out of range, or that do not go together.
        """
        require_positive(self, "num_mixtures", "learning_rate", "adam_epsilon")
        for name in ("latent_channels", "variance", "task_level"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        if self.block_out_channels is not None and (not self.block_out_channels or min(self.block_out_channels) < 1):
            raise UserError("--block_out_channels needs the channels of each level, for example 32 64 128.")
        for name in ("beta", "free_bits", "commitment_weight", "prior_components", "adam_weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} is negative: use 0 or more.")
        for name in ("kl_warmup", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is not in [0, 1): use a share.")
        if self.num_vq_embeddings < 2:
            raise UserError(f"--num_vq_embeddings {self.num_vq_embeddings} is out of range: use 2 or more.")
        if self.variance is not None and self.likelihood != "gaussian":
            raise UserError(f"--variance {self.variance}: {self.likelihood} has none. Leave it out, or use gaussian.")
        if self.spatial_latent and self.architecture != "residual":
            raise UserError(f"--spatial_latent is for residual, not for {self.architecture}: leave it out.")
        if self.architecture == "vq" and (self.beta != 1 or self.kl_warmup or self.free_bits):
            raise UserError(
                "--beta, --kl_warmup and --free_bits weigh a KL divergence, which vq has none of: leave them out, and "
                "see --commitment_weight."
            )
        if self.task_level is not None and self.task is None:
            raise UserError(f"--task_level {self.task_level} is the level of no task: give --task.")
        if self.task == "super_resolve" and (self.level in (None, 1) or self.level != int(self.level or 0)):
            raise UserError(f"--task_level {self.task_level}: the factor must be a whole number from 2 on.")


def require_positive(config: Any, *names: str) -> None:
    """Raises [`UserError`] for the first of the named options that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"--{name} {value} is out of range: use more than 0.")
