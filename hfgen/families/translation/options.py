"""The options of the family; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass, replace
from typing import Any

from hfgen.data.columns import Image, Sources, Spec
from hfgen.data.config import IMAGE_MODES, DataConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.options import Options, option
from hfgen.training import defaults
from hfgen.training.defaults import Pace

B = "b"  # the source of the second set, where it is another


@dataclass(frozen=True)
class TranslationConfig(Options):
    """Translation: the second set, networks, objectives and optimisers."""

    dataset_a: str | None = option(None, "the first set, A: the same as `dataset_name`; or give `train_data_dir`")
    dataset_b: str | None = option(
        None, "the second set, B: Hub id or folder (default: another column, or another split, of the first)"
    )
    dataset_b_config_name: str | None = option(None, "configuration of the second set, where it has several")
    dataset_b_split: str | None = option(None, "split of the second set (default: that of the first)")
    image_column_b: str | None = option(None, "column with the images of the second set")
    image_mode_b: str | None = option(
        None,
        "L (gray), RGB or RGBA for the second set, where it is another than of the first (default: `image_mode`)",
        choices=tuple(IMAGE_MODES),
    )
    paired: bool = option(False, "rows belong together: `image_column` and `image_column_b` of one data set")
    architecture: str = option("resnet", "the translators", choices=("resnet", "unet"))
    base_channels: int = option(
        32, "channels of the first layer of the translators", follows=True, least=1, most=2**12, weighs=True
    )
    num_blocks: int = option(6, "residual blocks of resnet", follows=True, least=1, most=256, weighs=True)
    num_downsamples: int | None = option(
        None, "how often images are halved (default: resnet 2, unet until 2 to 3 pixels are left)", least=1, most=8
    )
    learn_residual: bool = option(
        True, "let resnet compute what is added to an image, where both sets have the same channels"
    )
    dropout: float = option(0.5, "dropout of unet, in training alone", least=0, below=1)
    discriminator_channels: int = option(
        64, "channels of the first layer of the discriminators", follows=True, least=1, most=2**12, weighs=True
    )
    discriminator_layers: int | None = option(
        None,
        "how often discriminators halve images: their logits see 16, 34 or 70 pixels of a side for 1, 2 or 3 "
        "(default: 1 at 32 pixels, 2 at 64, 3 from 128 on)",
        resolved=True,
        least=1,
        most=6,
    )
    objective: str = option(
        "least_squares",
        "the game of translators and discriminators",
        choices=("least_squares", "nonsaturating", "hinge", "relativistic"),
    )
    cycle_weight: float = option(
        10.0, "weight of the way there and back, 10 in CycleGAN's paper; 0 translates one way only", least=0, most=1e6
    )
    identity_weight: float = option(
        5.0,
        "weight of leaving images of the target set as they are, which keeps colours from being inverted",
        least=0,
        most=1e6,
    )
    contrastive_weight: float = option(
        0.0, "weight of finding places of an image again in its translation, 1 in CUT's paper; one way only",
        least=0, most=1e6,
    )  # fmt: skip
    contrastive_identity: bool = option(True, "the same of images of the target set (CUT; FastCUT does without)")
    contrastive_places: int = option(256, "places of each map that are compared", least=2, most=2**14)
    pixel_weight: float = option(
        0.0, "weight of the mean distance to the other image of a pair, 100 in pix2pix' paper", least=0, most=1e6
    )
    conditional_discriminator: bool = option(False, "show the discriminator both images of a pair (pix2pix)")
    pool_size: int = option(
        50, "earlier translations of which the discriminator sees some; 0 for none", least=0, most=2**16
    )
    learning_rate: float = option(2e-4, "peak learning rate of Adam", above=0, most=100)
    adam_beta1: float = option(0.5, "Adam beta 1", least=0, below=1)
    adam_beta2: float = option(0.999, "Adam beta 2", least=0, below=1)
    adam_epsilon: float = option(1e-8, "Adam epsilon", least=1e-30, most=1)

    @property
    def both_ways(self) -> bool:
        """Says whether images are translated in both directions."""
        return self.cycle_weight > 0

    def validate(self) -> None:
        if self.contrastive_weight and self.both_ways:
            raise UserError(
                f"`contrastive_weight` {self.contrastive_weight} is for one way, and `cycle_weight` "
                f"{self.cycle_weight} translates both ways: set one of them to 0."
            )
        if self.contrastive_weight and self.architecture != "resnet":
            raise UserError(
                f"`contrastive_weight` {self.contrastive_weight} compares maps of resnet, and `architecture` is "
                f"{self.architecture}: use resnet, or 0."
            )
        for name in ("pixel_weight", "conditional_discriminator"):
            if getattr(self, name) and not self.paired:
                raise UserError(f"`{name}` {getattr(self, name)} needs pairs: add `paired`, or leave it out.")
        if self.paired and self.dataset_b is not None:
            raise UserError(
                f"`paired` takes two columns of one data set, and `dataset_b` {self.dataset_b} is another, whose rows "
                "belong to none of the first: leave out one of them. A folder has pairs by a metadata.csv with a "
                "column of file names for each of both, such as `file_name` and `b_file_name`."
            )
        if self.paired and self.image_column_b is None:
            raise UserError("`paired` needs the column of the other image: name it with `image_column_b`.")
        terms = (self.cycle_weight, self.contrastive_weight, self.pixel_weight)
        if not any(terms):
            raise UserError(
                "`cycle_weight`, `contrastive_weight` and `pixel_weight` are 0, so that nothing ties a translation to "
                "its image: set one of them."
            )
        if self.architecture == "resnet" and self.num_downsamples is not None and self.num_downsamples > 4:
            raise UserError(f"`num_downsamples` {self.num_downsamples} is for unet: resnet takes 4 at most.")


def spec(options: TranslationConfig, data: DataConfig) -> Spec | Sources:
    """Says where both sets come from.

    Raises:
        UserError: If there is no second set.
    """
    if options.paired:
        return {"a": Image(), "b": Image(column=options.image_column_b)}
    mode = options.image_mode_b or data.image_mode
    values: dict[str, Any] = {"image_column": options.image_column_b, "image_mode": mode}
    if options.dataset_b is not None:
        values |= {"dataset_name": options.dataset_b, "train_data_dir": None}
        values |= {"dataset_config_name": options.dataset_b_config_name}
    elif options.dataset_b_split is None and options.image_column_b is None:
        raise UserError(
            "`dataset_b` is missing: name the second set; or another column of the first with `image_column_b`, or "
            "another split of it with `dataset_b_split`."
        )
    if options.dataset_b_split is not None:
        values["dataset_split"] = options.dataset_b_split
    other = replace(data, **values, label_column=None, balance_classes=False, num_clusters=0)
    return Sources({"a": Image(), "b": Image(source=B)}, {B: other})


def resolve(options: TranslationConfig, data: Any, machine: Machine) -> TranslationConfig:
    """Puts numbers in place of what was left out.

    Args:
        options ([`TranslationConfig`]): The options.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.
    """
    if options.discriminator_layers is not None:
        return options
    layers = min(3, max(1, data.resolution.bit_length() - 5))
    return replace(options, discriminator_layers=layers)


PACE = Pace(images=8_000, passes=200, batch=4)


def follow(options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses length and intervals, see [`~training.defaults.follow`], and how large the networks are: on a GPU those
    of the papers, from 128 pixels on."""
    values = defaults.follow(PACE, options, data, machine)
    values["base_channels"], values["num_blocks"], values["discriminator_channels"] = 32, 6, 64
    if machine.kind == "cpu":
        values["base_channels"], values["num_blocks"], values["discriminator_channels"] = 16, 4, 32
    elif data.resolution >= 128:
        values["base_channels"], values["num_blocks"] = 64, 6 if data.resolution < 256 else 9
    if options.own.architecture == "unet":
        values["base_channels"] = min(64, 2 * values["base_channels"])
    return values


COMMON: dict[str, Any] = {"lr_scheduler": "linear", "lr_warmup_steps": 0, "max_grad_norm": 0.0, "ema_half_life": 5_000}


def cyclegan() -> dict[str, Any]:
    """CycleGAN: two sets without pairs, both ways, with the way back and images of the target set left as they are."""
    return COMMON | {}


def cut() -> dict[str, Any]:
    """CUT: two sets without pairs, one way, with places of an image found again in its translation."""
    return COMMON | {"cycle_weight": 0.0, "identity_weight": 0.0, "contrastive_weight": 1.0, "pool_size": 0}


def fastcut() -> dict[str, Any]:
    """FastCUT: the same without images of the target set: half the work, for translations that change less."""
    return cut() | {"contrastive_weight": 10.0, "contrastive_identity": False}


def pix2pix() -> dict[str, Any]:
    """pix2pix: pairs, a U-Net, the distance to the other image, and a discriminator that sees both."""
    return COMMON | {
        "paired": True,
        "image_column_b": "b",
        "architecture": "unet",
        "cycle_weight": 0.0,
        "identity_weight": 0.0,
        "pixel_weight": 100.0,
        "conditional_discriminator": True,
        "objective": "nonsaturating",
        "pool_size": 0,
    }


PRESETS = {"cyclegan": cyclegan, "cut": cut, "fastcut": fastcut, "pix2pix": pix2pix}
SHAPE = ("base_channels", "num_downsamples")
ADOPT = {
    "ResNetTranslator": lambda config, folder: {
        "architecture": "resnet",
        **{name: config[name] for name in (*SHAPE, "num_blocks", "learn_residual")},
    },
    "UNetTranslator": lambda config, folder: {
        "architecture": "unet",
        **{name: config[name] for name in (*SHAPE, "dropout")},
    },
}
