"""Samples images from any checkpoint that hfgen writes, to PNG files and a grid.

Image number i depends on the seed and on i alone: batch size and number of processes change nothing. Its own seed and
its class, which repeat it alone, are in `samples.json` and in its file.

    hfgen sample --model out/ddpm-digits --num_images 16
    hfgen sample --model user/ddpm-mnist --class_labels 3 8 --guidance_scale 2
    torchrun --nproc_per_node 2 -m hfgen sample --model out/ddpm-mnist --num_images 1000
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hfgen.commands.options import ModelOptions, read_sampling
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option
from hfgen.sampling.config import ImageSet


@dataclass(frozen=True)
class SampleConfig(ImageSet, ModelOptions):
    """Images: how many, and where they go."""

    output_dir: str | None = option(
        None, "folder for the images (default: <model>/images, or images-<model> for a Hub id; of a data set, dataset)"
    )
    scale: int = option(1, "enlarge the files so many times, without smoothing, as for pixel art", least=1, most=64)
    as_dataset: str | None = option(
        None,
        "write a data set for training, with classes, seeds and a card: PNG files in an imagefolder, or parquet",
        choices=("imagefolder", "parquet"),
    )
    overwrite_output_dir: bool = option(False, "replace the images that `output_dir` holds")


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    return read_sampling((SampleConfig,), argv, description=str(__doc__).partition("\n")[0], prog="hfgen sample")


def main(argv: Sequence[str]) -> None:
    (config, common, *_), given = read_options(argv)
    folder = Path(config.model)
    name = "dataset" if config.as_dataset else "images"
    default = folder / name if folder.is_dir() else Path(f"{name}-{folder.name}")
    output = Path(config.output_dir or default)

    from hfgen.hub.dataset import card
    from hfgen.runtime.writable import require_folder
    from hfgen.sampling.dataset import write_dataset
    from hfgen.sampling.folder import AT_ONCE, existing_files, write_images

    require_folder(output, "output_dir")
    old = existing_files(output)
    if old and not config.overwrite_output_dir:
        more = f" and {len(old) - 1} others" if len(old) > 1 else ""
        raise UserError(
            f"`output_dir` {output} holds {old[0].name}{more}: add `overwrite_output_dir` or give another."
        )

    from hfgen.evaluation.report import origin_of
    from hfgen.runtime.launch import make_accelerator
    from hfgen.sampling.api import ready_sampler

    accelerator = make_accelerator()
    sampler = ready_sampler(config.model, given, accelerator.device, config.revision, config.hub_token)
    sampler.check_memory(config.num_images, config.batch_size or AT_ONCE)
    origin = None
    if common.provenance:
        settings = {**sampler.settings, "precision": sampler.precision}
        origin = origin_of(config.model, config.revision, config.hub_token, **settings)
    record = {"model": config.model, "revision": config.revision}
    images = config.num_images, config.seed, config.batch_size, origin, record, config.scale
    if config.as_dataset:
        describe = partial(card, sampler, config.as_dataset, config.num_images)
        write_dataset(sampler, accelerator, output, config.as_dataset, *images, describe)
        if accelerator.is_main_process:
            print(f"{config.num_images} images in {output}, as a data set; its card: {output / 'README.md'}")
            print(f"Train:    hfgen train FAMILY --dataset_name {output}")
            print(f"Share:    hfgen push --folder {output} --repo_type dataset --hub_model_id NAME")
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return
    shown = write_images(sampler, accelerator, output, *images)
    if accelerator.is_main_process:
        print(f"{config.num_images} images in {output}, the first {shown} of them in {output / 'grid.png'}")
    accelerator.wait_for_everyone()  # a process that ends early would tear down what the others still use
    accelerator.end_training()
