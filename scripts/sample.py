"""Samples images from any checkpoint that hfgen writes, to PNG files and a grid.

Image number i is made from the seed `--seed` + i alone: batch size and number of processes change nothing. Examples:

    python scripts/sample.py --model out/ddpm-digits --num_images 16
    python scripts/sample.py --model user/ddpm-mnist --class_labels 3 8 --guidance_scale 2
    torchrun --nproc_per_node 2 scripts/sample.py --model out/ddpm-mnist --num_images 1000
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option
from hfgen.sampling.config import SamplingConfig, all_sampling_options, given_values


@dataclass(frozen=True)
class SampleConfig:
    """Images: from what, how many, and where to."""

    model: str | None = option(None, "folder or Hub id of the checkpoint")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    num_images: int = option(16, "number of images")
    seed: int = option(0, "seed of the first image; each following one has the next")
    batch_size: int | None = option(None, "images at once per process (default: as many as fit, at most 64)")
    output_dir: str | None = option(
        None, "folder for the images (default: <model>/images, or images-<model> for a Hub id)"
    )
    overwrite_output_dir: bool = option(False, "replace the images that --output_dir holds")
    hub_token: str | None = option(None, "token for a private model", secret=True)

    def validate(self) -> None:
        if not self.model:
            raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
        for name in ("num_images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} is out of range: use 1 or more.")
        if not 0 <= self.seed <= 2**32 - 1 - self.num_images:
            raise UserError(f"--seed {self.seed} is out of range: use 0 to 2**32 - 1 - num_images.")


def read_options(argv: Sequence[str] | None = None) -> tuple[SampleConfig, dict[str, Any]]:
    kinds = (SampleConfig, *all_sampling_options())
    config, *sampling = parse(kinds, argv, description=str(__doc__).partition("\n")[0])
    config.validate()
    return config, given_values(sampling)


def main(argv: Sequence[str] | None = None) -> None:
    config, sampling = read_options(argv)
    assert config.model is not None
    folder = Path(config.model)
    default = folder / "images" if folder.is_dir() else Path(f"images-{folder.name}")
    output = Path(config.output_dir or default)
    old = [path for path in output.glob("*.png") if path.stem.isdigit() or path.name == "grid.png"]
    if old and not config.overwrite_output_dir:
        raise UserError(f"--output_dir {output} holds {len(old)} images: add --overwrite_output_dir or give another.")

    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    from hfgen.evaluation.report import origin_of
    from hfgen.runtime.distributed import batches_of_process
    from hfgen.runtime.launch import make_accelerator
    from hfgen.runtime.png import make_grid, save_png, to_pil
    from hfgen.sampling.sampler import load_sampler

    accelerator = make_accelerator()
    sampler = load_sampler(config.model, sampling, accelerator.device, config.revision, config.hub_token)
    origin = None
    if sampling.get("provenance", SamplingConfig.provenance):
        settings = {**sampler.settings, "precision": sampler.precision}
        origin = origin_of(config.model, config.revision, config.hub_token, **settings)

    # The processes take batches in turn, the same ones whatever their number.
    size = config.batch_size or min(64, config.num_images)
    images: dict[int, Any] = {}
    with tqdm(total=config.num_images, unit="img", disable=not accelerator.is_main_process) as bar:
        for batch in batches_of_process(config.num_images, size, accelerator.process_index, accelerator.num_processes):
            made = sampler(batch, config.seed).permute(0, 2, 3, 1).cpu().numpy()
            images.update(zip(batch, made, strict=True))
            bar.update(min(len(batch) * accelerator.num_processes, config.num_images - int(bar.n)))
    names = {index: f"{config.seed + index:06d}.png" for index in range(config.num_images)}
    if accelerator.is_main_process:
        for path in old:
            path.unlink()
    accelerator.wait_for_everyone()
    for index, image in images.items():
        own = {"seed": config.seed + index, "class_label": sampler.class_of(index)}
        save_png(to_pil(image), output / names[index], origin and origin | own)
    shown = dict(gather_object([(index, image) for index, image in images.items() if index < 100]))
    if accelerator.is_main_process:
        grid = make_grid([shown[index] for index in sorted(shown)])
        save_png(grid, output / "grid.png", origin and origin | {"seed": config.seed, "num_images": len(shown)})
        record = {
            "model": config.model,
            "revision": config.revision,
            **sampler.settings,
            "precision": sampler.precision,
            "images": [
                {"file": names[index], "seed": config.seed + index, "class_label": sampler.class_of(index)}
                for index in range(config.num_images)
            ],
        }
        (output / "samples.json").write_text(json.dumps(record, indent=1) + "\n")
        tqdm.write(f"{config.num_images} images in {output}, the first {len(shown)} of them in {output / 'grid.png'}")
    accelerator.wait_for_everyone()  # a process that ends early would tear down what the others still use
    accelerator.end_training()


if __name__ == "__main__":
    with one_line_errors():
        main()
