"""The options of the family; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass, replace
from typing import Any

from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace

TOKENS, NUMBERS = 49, 192  # patches of an image, at least, and numbers of a patch, at most, without `patch_size`
NOISE_STD = 0.3  # levels: with it the bound is tightest, see objectives/dequantisation.py


@dataclass(frozen=True)
class FlowConfig(Options):
    """Flow: network, dequantisation and optimiser."""

    architecture: str = option("tarflow", "the network", choices=("tarflow", "glow"))
    patch_size: int | None = option(
        None,
        "height and width of the patches of tarflow (default: the largest that leaves 49 of them, of 192 "
        "numbers at most)",
        resolved=True,
        least=1,
        most=256,
        weighs=True,
    )
    num_blocks: int = option(4, "transformations of tarflow", least=1, most=256, weighs=True)
    layers_per_block: int = option(1, "transformer layers of each of them", least=1, most=256, weighs=True)
    hidden_size: int | None = option(
        None,
        "channels of tarflow's transformers (default 128) or in glow's couplings (default 64)",
        resolved=True,
        least=1,
        most=2**16,
        weighs=True,
    )
    attention_head_dim: int = option(64, "channels per attention head of tarflow", least=1, most=2**16)
    pixel_channels: int = option(
        16,
        "channels of the networks through which pixels see those before them in a patch of tarflow; 0 for none, as in "
        "its paper",
        least=0,
        most=1024,
        weighs=True,
    )
    num_levels: int | None = option(
        None, "levels of glow (default: 3 or fewer, down to 4 pixels)", resolved=True, least=1, most=8
    )
    num_steps: int = option(8, "steps per level of glow", least=1, most=1024, weighs=True)
    pixel_map: str = option(
        "logit",
        "how the network sees pixels; logit spreads the ends of the range, where many are black or white",
        choices=("linear", "logit"),
    )
    dequantisation: str = option(
        "gaussian",
        "noise on 8-bit images, which come off their levels by augmentation are rounded to them first",
        choices=("uniform", "gaussian"),
    )
    noise_std: float | None = option(
        None,
        "standard deviation of gaussian noise in levels (default 0.3; 6.4 in TarFlow's paper, for samples and not "
        "for bits)",
        resolved=True,
        least=0.01,
        most=255,
    )
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    label_dropout: float = option(
        0.1, "share of labels replaced by 'no class', for guidance of tarflow; 0 turns guidance off", least=0, below=1
    )
    learning_rate: float = option(4e-3, "peak learning rate of AdamW", above=0, most=100)
    adam_beta1: float = option(0.9, "AdamW beta 1", least=0, below=1)
    adam_beta2: float = option(0.95, "AdamW beta 2", least=0, below=1)
    adam_weight_decay: float = option(1e-4, "AdamW weight decay", least=0, most=100)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", least=1e-30, most=1)

    def validate(self) -> None:
        if self.noise_std is not None and self.dequantisation != "gaussian":
            raise UserError(f"`noise_std` {self.noise_std}: uniform noise has none. Leave it out, or use gaussian.")
        for name, owner in (("patch_size", "tarflow"), ("num_levels", "glow")):
            if getattr(self, name) is not None and self.architecture != owner:
                raise UserError(f"`{name}` is for {owner}, not for {self.architecture}: leave it out.")


def resolve(options: FlowConfig, data: Any, machine: Machine) -> FlowConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`FlowConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    values: dict[str, Any] = {}
    tarflow, size = options.architecture == "tarflow", data.resolution
    if options.hidden_size is None:
        values["hidden_size"] = 128 if tarflow else 64
    if options.noise_std is None and options.dequantisation == "gaussian":
        values["noise_std"] = NOISE_STD
    if tarflow and options.patch_size is None:
        fitting = [
            patch
            for patch in range(1, size + 1)
            if size % patch == 0 and (size // patch) ** 2 >= TOKENS and data.channels * patch**2 <= NUMBERS
        ]
        values["patch_size"] = max(fitting, default=1)
    if not tarflow and options.num_levels is None:
        values["num_levels"] = max(
            (level for level in (1, 2, 3) if size % 2**level == 0 and size >> level >= 4), default=1
        )
    return replace(options, **values)


PACES = {
    "tarflow": Pace(images=225_000, passes=300, batch=16),  # many small steps: each image has many patches
    "glow": Pace(images=180_000, passes=300),
}


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals: see [`~training.defaults.follow`]."""
    return defaults.follow(PACES[options.own.architecture], options, data, machine)


TARFLOW = ("patch_size", "num_blocks", "layers_per_block", "hidden_size", "attention_head_dim", "pixel_channels")
ADOPT = {
    "TarFlow": lambda config, folder: {
        "architecture": "tarflow",
        **{name: config[name] for name in (*TARFLOW, "pixel_map")},
    },
    "Glow": lambda config, folder: {
        "architecture": "glow",
        **{name: config[name] for name in ("num_levels", "num_steps", "pixel_map")},
        "hidden_size": config["hidden_channels"],
    },
}

COMMON: dict[str, Any] = {
    "lr_warmup_steps": 100,
    "max_grad_norm": 1.0,
    "ema_half_life": 20_000,
}


def tarflow() -> dict[str, Any]:
    """A flow of causal transformers over patches, for the fewest bits per dimension."""
    return COMMON | {"architecture": "tarflow"}


def glow() -> dict[str, Any]:
    """A flow of coupling layers: encodes and decodes in one pass."""
    return COMMON | {"architecture": "glow", "learning_rate": 1e-3}


def digits() -> dict[str, Any]:
    """`tarflow` on scikit-learn's digits, enlarged from 8x8 to 16x16: ten minutes on two cores without bf16."""
    return tarflow() | {"dataset_name": "digits", "resolution": 16, "num_epochs": 40, "save_images_epochs": 10}


def conditional() -> dict[str, Any]:
    """`tarflow` by class, with guidance."""
    return tarflow() | {"class_conditional": True}


PRESETS = {"tarflow": tarflow, "glow": glow, "digits": digits, "conditional": conditional}
