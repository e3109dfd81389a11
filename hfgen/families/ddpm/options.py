"""The options of the family; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass, replace
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace

RESTORERS = ("inpaint", "super_resolve", "colorize", "denoise")
USUAL_LEVELS = {"super_resolve": 4.0, "denoise": 0.3}


@dataclass(frozen=True)
class DDPMConfig(Options):
    """DDPM: network, noise schedule, objective and optimiser."""

    block_out_channels: tuple[int, ...] = option(
        (32, 64, 64), "channels of each level of the UNet", follows=True, least=1, most=2**16, weighs=True
    )
    layers_per_block: int = option(1, "residual blocks per level", follows=True, least=1, most=64, weighs=True)
    attention_resolutions: tuple[int, ...] | None = option(
        None,
        "heights of the feature maps that get attention (default: the lowest level)",
        resolved=True,
        follows=True,
        least=1,
        most=4096,
    )
    attention_head_dim: int = option(32, "channels per attention head", follows=True, least=1, most=2**16)
    norm_num_groups: int = option(8, "groups of the group normalisation", follows=True, least=1, most=2**16)
    dropout: float = option(0.0, "dropout in the residual blocks", least=0, below=1)
    model_config_name_or_path: str | None = option(
        None,
        "Hub id or folder with the config.json of a UNet2DModel to train from scratch, instead of the flags above; "
        "size, channels and classes are those of the images",
        weighs=True,
    )
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    label_dropout: float = option(
        0.1, "share of labels replaced by 'no class', for guidance; 0 turns guidance off", least=0, below=1
    )
    prediction_type: str = option(
        "v_prediction", "what the network predicts", choices=("epsilon", "v_prediction", "sample")
    )
    ddpm_num_steps: int = option(1000, "timesteps of the noise schedule", least=1, most=100_000)
    ddpm_beta_schedule: str = option(
        "squaredcos_cap_v2",
        "noise schedule; squaredcos_cap_v2 is the cosine schedule",
        choices=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    )
    rescale_betas_zero_snr: bool = option(False, "let the schedule end in pure noise (zero terminal SNR)")
    snr_gamma: float | None = option(
        None, "min-SNR weighting of the loss with this gamma (5 in its paper)", above=0, most=1e6
    )
    ddpm_num_inference_steps: int = option(
        20, "sampling steps of the sample grids", resumable=True, least=1, most=100_000
    )
    task: str | None = option(
        None,
        "restore images, in place of making them: learn to fill holes, to enlarge, to colour or to denoise, with the "
        "damaged image beside the noise",
        choices=RESTORERS,
    )
    task_level: float | None = option(
        None,
        "of `task`: how many times larger images become (default 4, or 2, or what divides them), or the standard "
        "deviation of the noise for pixels in [0, 1] (default 0.3)",
        resolved=True,
        above=0,
        most=4096,
    )
    guidance_scale: float = option(
        1.5, "guidance of the sample grids and, unless told otherwise, of the pipeline, with classes or groups",
        resumable=True, least=0, most=1000,
    )  # fmt: skip
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", above=0, most=100)
    adam_beta1: float = option(0.9, "AdamW beta 1", least=0, below=1)
    adam_beta2: float = option(0.999, "AdamW beta 2", least=0, below=1)
    adam_weight_decay: float = option(0.0, "AdamW weight decay", least=0, most=100)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", least=1e-30, most=1)

    def validate(self) -> None:
        if not self.block_out_channels:
            raise UserError("`block_out_channels` is empty: give the channels of each level, for example 32 64 64.")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"`block_out_channels` {channels} is no multiple of `norm_num_groups` {self.norm_num_groups}: "
                    "change one of them."
                )
            if channels % self.attention_head_dim and channels > self.attention_head_dim:
                raise UserError(
                    f"`block_out_channels` {channels} is no multiple of `attention_head_dim` "
                    f"{self.attention_head_dim}: change one of them."
                )
        if self.task_level is not None and self.task not in ("super_resolve", "denoise"):
            raise UserError(
                f"`task_level` {self.task_level} has nothing to be the level of: it belongs to `task` super_resolve "
                "and denoise."
            )
        if self.task == "super_resolve" and self.task_level not in (None, *range(2, 4097)):
            raise UserError(f"`task_level` {self.task_level:g}: the factor must be a whole number from 2 on.")
        if self.task and self.class_conditional:
            raise UserError(
                f"`class_conditional`: a model with a `task` ({self.task}) knows no classes. Leave one out."
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UserError(
                "`rescale_betas_zero_snr` does not go with `prediction_type` epsilon: from pure noise nothing can be "
                "learnt about it. Use v_prediction or sample."
            )


def resolve(options: DDPMConfig, data: Any, machine: Machine) -> DDPMConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`DDPMConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    if options.task in USUAL_LEVELS and options.task_level is None:
        level = USUAL_LEVELS[options.task]
        if options.task == "super_resolve":
            level = next((each for each in (level, 2.0, 3.0, 5.0, 7.0) if data.resolution % each == 0), level)
        options = replace(options, task_level=level)
    if options.attention_resolutions is not None or options.model_config_name_or_path is not None:
        return options
    return replace(options, attention_resolutions=(data.resolution >> (len(options.block_out_channels) - 1),))


NETWORK = (
    *("block_out_channels", "layers_per_block", "attention_resolutions", "attention_head_dim", "norm_num_groups"),
    "model_config_name_or_path",
)
PACE = Pace(images=126_000, passes=500)


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals, see [`~training.defaults.follow`], and a network that halves images down to 8
    pixels or less, where it attends: a narrow one on a CPU, at 128 pixels and more with half of the channels."""
    values = defaults.follow(PACE, options, data, machine)
    if defaults.any_decided(options, *NETWORK):
        return values
    if machine.kind == "cpu":
        first, most = (32, 64) if data.resolution < 64 else (32 if data.resolution < 128 else 16, 128)
        return values | {"block_out_channels": defaults.widths(data.resolution, first, most)}
    return values | {
        "block_out_channels": defaults.widths(data.resolution, 64, 256),
        "layers_per_block": 2,
        "attention_head_dim": 64,
        "norm_num_groups": 32,
    }


ADOPT = {
    "UNet2DModel": lambda config, folder: {"model_config_name_or_path": folder},
    "DDPMScheduler": lambda config, folder: {
        "ddpm_num_steps": config["num_train_timesteps"],
        "ddpm_beta_schedule": config["beta_schedule"],
        "prediction_type": config.get("prediction_type", "epsilon"),
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
    },
}


def digits() -> dict[str, Any]:
    """scikit-learn's digits, enlarged from 8x8 to 16x16: about three minutes on two cores with bf16."""
    return {
        "dataset_name": "digits",
        "resolution": 16,
        "block_out_channels": (32, 64, 64),
        "train_batch_size": 64,
        "num_epochs": 85,
        "lr_warmup_steps": 100,
        "save_images_epochs": 10,
    }


def mnist() -> dict[str, Any]:
    """MNIST: about nine minutes on two cores with bf16, samples included; guided by groups, which need no labels."""
    return {
        "dataset_name": "ylecun/mnist",
        "resolution": 28,
        "block_out_channels": (32, 64, 64),
        "train_batch_size": 64,
        "num_epochs": 2.1,
        "num_clusters": None,
        "guidance_scale": 1.5,
        "lr_warmup_steps": 100,
        "save_images_epochs": 0.5,
    }


def cifar10() -> dict[str, Any]:
    """CIFAR-10 with the network of the DDPM paper, for a GPU."""
    return {
        "dataset_name": "uoft-cs/cifar10",
        "resolution": 32,
        "random_flip": True,
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "attention_resolutions": (16,),
        "attention_head_dim": 64,
        "norm_num_groups": 32,
        "dropout": 0.1,
        "train_batch_size": 256,
        "learning_rate": 4e-4,
        "num_epochs": 100,
        "lr_warmup_steps": 1000,
        "compile": True,
        "channels_last": True,
        "checkpointing_steps": 5000,
    }


PRESETS = {"digits": digits, "mnist": mnist, "cifar10": cifar10}
