"""The options of the family; no torch here, so that `--help` answers at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hfgen.data.columns import DEFAULT, VARIANTS, Derived, Spec
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace


@dataclass(frozen=True)
class AutoregressiveConfig(Options):
    """Autoregressive model: network, what it draws, likelihood and optimiser."""

    architecture: str = option("pixelcnn", "the network", choices=("pixelcnn", "transformer"))
    draws: str = option(
        "pixels", "what is drawn one after another; codes are those of a VQ-VAE", choices=("pixels", "codes")
    )
    codes_from: str | None = option(None, "folder or Hub id of the VQ-VAE whose codes are drawn")
    base_channels: int = option(64, "channels of each stack (pixelcnn)", least=1, most=2**16, weighs=True)
    dilations: tuple[int, ...] = option(
        (1, 2, 4, 1),
        "of each layer, how far apart the pixels are that it looks at (pixelcnn)",
        least=1,
        most=256,
        weighs=True,
    )
    kernel_size: int = option(
        5, "width of the convolutions, odd; they reach back half as far, rounded up (pixelcnn)", least=3, most=63,
        weighs=True,
    )  # fmt: skip
    hidden_size: int = option(128, "features of each position (transformer)", least=1, most=2**16, weighs=True)
    num_layers: int = option(4, "blocks of attention and a perceptron (transformer)", least=1, most=1024, weighs=True)
    num_attention_heads: int = option(4, "heads of the attention (transformer)", least=1, most=1024)
    dropout: float = option(0.0, "share of features dropped in training, against learning by heart", least=0, below=1)
    class_conditional: bool = option(False, "train on the labels, for sampling by class")
    likelihood: str | None = option(
        None,
        "distribution of a pixel: categorical gives each level any share, for one channel; logistic_mixture knows "
        "their order (default: categorical of gray images and of codes, else logistic_mixture)",
        choices=("categorical", "logistic_mixture"),
        resolved=True,
    )
    num_mixtures: int = option(10, "components of logistic_mixture", least=1, most=1024, weighs=True)
    learning_rate: float = option(2e-3, "peak learning rate of AdamW", above=0, most=100)
    adam_beta1: float = option(0.9, "AdamW beta 1", least=0, below=1)
    adam_beta2: float = option(0.99, "AdamW beta 2", least=0, below=1)
    adam_weight_decay: float = option(1e-4, "AdamW weight decay", least=0, most=100)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", least=1e-30, most=1)

    def validate(self) -> None:
        if self.draws != "codes" and self.codes_from is not None:
            raise UserError(f"`codes_from` is for `draws` codes, not for {self.draws}: leave one out.")
        if self.architecture == "pixelcnn":
            if self.kernel_size % 2 == 0:
                raise UserError(f"`kernel_size` {self.kernel_size} is even: use an odd one.")
            if not self.dilations:
                raise UserError("`dilations` needs a number for each layer, for example 1 2 4 1.")
        elif self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"`num_attention_heads` {self.num_attention_heads} does not divide `hidden_size` {self.hidden_size}."
            )
        if self.draws == "codes" and self.likelihood == "logistic_mixture":
            raise UserError(
                "`likelihood` logistic_mixture is for levels in an order, which codes are not: leave it out."
            )


def spec(options: AutoregressiveConfig, data: Any) -> Spec:
    """Asks for images and classes and, where codes are drawn, for those of each image.

    Raises:
        UserError: If it is not known whose codes.
    """
    if options.draws != "codes":
        return DEFAULT
    if options.codes_from is None:
        raise UserError(
            "`codes_from` is missing: train a VQ-VAE with `hfgen train vae --preset vq`, and give its folder, or a "
            "Hub id."
        )
    moving = data.random_rotation or data.random_scale or data.random_crop or data.color_jitter
    return {**DEFAULT, "codes": Derived(("image",), VARIANTS, live=bool(moving))}


def resolve(options: AutoregressiveConfig, data: Any, machine: Machine) -> AutoregressiveConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`AutoregressiveConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    if options.likelihood is not None:
        return options
    categorical = data.channels == 1 or options.draws == "codes"
    return replace(options, likelihood="categorical" if categorical else "logistic_mixture")


PACES = {
    "pixels": Pace(images=60_000, passes=200, batch=16),  # many small steps: each image has hundreds of positions
    "codes": Pace(images=480_000, passes=500),
}


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals: see [`~training.defaults.follow`]."""
    return defaults.follow(PACES[options.own.draws], options, data, machine)


def adopted(architecture: str, *names: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Returns a function from the configuration of a network to options; of codes, whose grid is no image, size and
    channels are those of their VQ-VAE."""

    def options(config: dict[str, Any], folder: str) -> dict[str, Any]:
        own = {name: config[name] for name in (*names, "likelihood", "num_mixtures")}
        codes = {"draws": "codes", "resolution": None, "image_mode": None} if config["embed_levels"] else {}
        return {"architecture": architecture, **own, **codes}

    return options


ADOPT = {
    "PixelCNN": adopted("pixelcnn", "base_channels", "dilations", "kernel_size"),
    "CausalTransformer": adopted("transformer", "hidden_size", "num_layers", "num_attention_heads"),
}

COMMON: dict[str, Any] = {
    "lr_warmup_steps": 100,
    "max_grad_norm": 1.0,
    "ema_half_life": 5_000,
}


def pixelcnn() -> dict[str, Any]:
    """A gated PixelCNN over pixels, for the fewest bits per dimension in little time."""
    return COMMON | {"architecture": "pixelcnn"}


def digits() -> dict[str, Any]:
    """`pixelcnn` on scikit-learn's digits, enlarged from 8x8 to 16x16: two minutes with bf16, ten without."""
    return pixelcnn() | {"dataset_name": "digits", "resolution": 16, "num_epochs": 20, "save_images_epochs": 10}


def transformer() -> dict[str, Any]:
    """A causal transformer over pixels, which sees all of them from its first layer on: for small images."""
    return COMMON | {"architecture": "transformer", "learning_rate": 1e-3}


def codes() -> dict[str, Any]:
    """A causal transformer over the codes of a VQ-VAE (`codes_from`): its second stage, fast and for larger images."""
    return COMMON | {
        "architecture": "transformer",
        "draws": "codes",
        "dilations": (1, 1, 1, 1, 1),  # of pixelcnn: an image has few positions
        "dropout": 0.1,  # few positions: it would learn them by heart
        "num_clusters": None,  # the group of an image says how its parts fit together before the first is drawn
    }


PRESETS = {"digits": digits, "pixelcnn": pixelcnn, "transformer": transformer, "codes": codes}
