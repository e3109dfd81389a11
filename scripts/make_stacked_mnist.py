"""Make Stacked MNIST: three random MNIST digits as the colour channels of each image, 1,000 kinds of images in all.

A test of mode coverage (Unrolled GAN, https://huggingface.co/papers/1611.02163): a generator that leaves kinds out is
found out by counting them. The result is an ordinary folder with a parquet file:

    python scripts/make_stacked_mnist.py --dataset_name ylecun/mnist --output_dir data/stacked-mnist
    accelerate launch scripts/train_gan.py --dataset_name data/stacked-mnist --num_epochs 10
    python scripts/train_classifier.py --dataset_name ylecun/mnist
    python scripts/evaluate.py --model out/gan-stacked-mnist --dataset_name data/stacked-mnist \
        --extractor out/classifier-mnist --metrics stacked_modes --num_images 26000
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import one_line_errors, parse
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, option
from hfgen.runtime.seeds import SEEDS


@dataclass(frozen=True)
class StackConfig(Options):
    """Stacking: from which digits, how many, and where to."""

    dataset_name: str = option("ylecun/mnist", "Hub id or folder of the digits")
    dataset_split: str = option("train", "split to draw the digits from")
    num_images: int = option(60_000, "number of images", least=1, most=10**7)
    seed: int = option(0, "seed of the drawing", least=0, most=SEEDS - 1)
    output_dir: str = option("data/stacked-mnist", "folder of the new data set")


def read_options(argv: Sequence[str] | None = None) -> StackConfig:
    (config,) = parse((StackConfig,), argv, description=str(__doc__).partition("\n")[0])
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    folder = Path(config.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output_dir {folder} holds something already: give a new folder.")

    import numpy as np
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    from hfgen.data.cache import open_images

    digits = open_images(
        DataConfig(dataset_name=config.dataset_name, dataset_split=config.dataset_split, image_mode="L")
    )
    if digits.labels is None or len(digits.info.class_names or ()) != 10:
        raise UserError(f"--dataset_name {config.dataset_name} is no MNIST: give images of digits with 10 classes.")
    chosen = np.random.default_rng(config.seed).integers(0, len(digits.images), (config.num_images, 3))
    labels = digits.labels

    def rows() -> Iterator[dict[str, Any]]:
        for three in chosen:
            image = Image.fromarray(np.ascontiguousarray(digits.images[three, 0].transpose(1, 2, 0)))
            yield {"image": image, "label": int(labels[three] @ (100, 10, 1))}

    names = [f"{number:03d}" for number in range(1000)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    stacked = Dataset.from_generator(rows, features=features)
    path = folder / "data" / f"{config.dataset_split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    temporary = path.with_suffix(".tmp")
    stacked.to_parquet(temporary)
    temporary.rename(path)
    kinds = len(set(stacked["label"]))
    print(f"{len(stacked)} images of {kinds} kinds in {folder}: train with --dataset_name {folder}")


if __name__ == "__main__":
    with one_line_errors():
        main()
