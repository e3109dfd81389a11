"""The options of a run; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Any

from hfgen.cli import option
from hfgen.errors import UserError

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
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
    "hub_strategy": "--push_to_hub pushes the finished pipeline; leave it out.",
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
    save_model_epochs: float = option(
        0.0, "epochs between two savings of the pipeline; 0 for only the last", resumable=True
    )
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub", resumable=True)
    hub_model_id: str | None = option(None, "name of the repository (default: that of --output_dir)", resumable=True)
    hub_private_repo: bool = option(False, "make the repository private", resumable=True)
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
        for name in ("max_train_steps", "cpu_threads", "checkpoints_total_limit", "save_images_steps"):
            if getattr(self, name) is not None:
                require_positive(self, name)
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


def require_positive(config: Any, *names: str) -> None:
    """Raises [`UserError`] for the first of the named options that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"--{name} {value} is out of range: use more than 0.")
