"""The options of evaluation; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass

from hfgen.data.config import ImagesConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option

GOOD_ACCURACY = 0.9  # a weaker classifier says little about images
METRICS = (
    "fd",
    "kd",
    "is",
    "precision_recall",
    "density_coverage",
    "cmmd",
    "vendi",
    "ndb",
    "birthday",
    "memorisation",
    "confidence",
    "label_divergence",
    "conditional_accuracy",
    "stacked_modes",
    "bits_per_dim",
    "ppl",
)


ONE_NUMBER = ("fd", "kd", "is", "cmmd", "vendi", "confidence", "conditional_accuracy", "bits_per_dim", "ppl")


@dataclass(frozen=True)
class ReferenceConfig(ImagesConfig):
    """Reference: the real images to compare with."""

    dataset_split: str = option("train", "split to compare with; for memorisation, the one that was trained on")
    held_out_split: str | None = option(
        None,
        "split that no model has seen, to measure the metrics by (default: test; without one, half of the images)",
    )
    num_real_images: int | None = option(None, "real images, drawn at random (default: as many as are generated)")

    def validate(self) -> None:
        """Checks what can be checked without the data.

        Raises:
            UserError: For values that are out of range.
        """
        if self.num_real_images is not None and self.num_real_images < 2:
            raise UserError(f"`num_real_images` {self.num_real_images} is out of range: use 2 or more.")
