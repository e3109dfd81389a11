"""Shows what a VAE does with real images: grids of reconstructions, walks, edits, and of damaged images restored.

Without --dataset_name it takes the handwritten digits that ship with the installation. Examples:

    python scripts/show_vae.py --model out/vae-digits
    python scripts/show_vae.py --model out/vae-mnist --dataset_name ylecun/mnist --num_images 16
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import one_line_errors, parse
from hfgen.data.config import ImagesConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option

FRAMES = 10  # of a walk, a traversal and an edit


@dataclass(frozen=True)
class ShowConfig:
    """Showing: what, and how it is made."""

    model: str | None = option(None, "folder or Hub id of the VAE")
    num_images: int = option(10, "images per grid, drawn with the seed; two at least")
    seed: int = option(0, "seed of the images, of the noise, and of what is drawn")
    noise_level: float = option(
        0.3, "standard deviation of the noise to remove, pixels being in [0, 1] (a model for a task knows its own)"
    )
    factor: int = option(2, "how many times smaller the images to enlarge are (a model for a task knows its own)")
    steps: int = option(200, "steps of the search, where the model was not trained for the task")
    output_dir: str | None = option(None, "folder for the grids (default: <model>/shown, or shown-<model>)")
    provenance: bool = option(True, "write into PNG files which model made them")


def read_options(argv: Sequence[str] | None = None) -> tuple[ShowConfig, ImagesConfig]:
    config, images = parse((ShowConfig, ImagesConfig), argv, description=str(__doc__).partition("\n")[0])
    if not config.model:
        raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
    for name, least in (("num_images", 2), ("factor", 2), ("steps", 1)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)} is out of range: use {least} or more.")
    if not config.noise_level > 0:
        raise UserError(f"--noise_level {config.noise_level} is out of range: use more than 0.")
    return config, images


def main(argv: Sequence[str] | None = None) -> None:
    config, source = read_options(argv)

    import torch
    from accelerate import PartialState

    from hfgen.evaluation.reference import pick_images
    from hfgen.evaluation.report import origin_of
    from hfgen.pipelines import load_pipeline
    from hfgen.pipelines.restoration import enlarge, shrink
    from hfgen.pipelines.vae import VAEPipeline
    from hfgen.runtime.png import make_grid, save_png, to_uint8

    pipe = load_pipeline(str(config.model)).to(PartialState().device)
    if not isinstance(pipe, VAEPipeline):
        raise UserError(f"--model {config.model} is a {type(pipe).__name__}: give a VAE.")
    pipe.set_progress_bar_config(disable=True)
    arrays, numbers, info = pick_images(source, pipe.image_shape, config.num_images, config.seed)
    if pipe.class_names and numbers is None:
        raise UserError(f"{info.name} has no classes, which {config.model} needs: name --label_column.")
    images = torch.from_numpy(arrays).float() / 255
    labels = None if numbers is None else torch.from_numpy(numbers)
    classes = labels if pipe.class_names else None
    task, level = pipe.config.task, pipe.config.task_level
    factor = int(level if task == "super_resolve" else config.factor)
    if task in (None, "super_resolve") and images.shape[-1] % factor:
        raise UserError(f"--factor {factor} does not divide the {images.shape[-1]} pixels of the images.")
    output = Path(config.output_dir or (Path(str(config.model)) / "shown"))
    if config.output_dir is None and not Path(str(config.model)).is_dir():
        output = Path(f"shown-{Path(str(config.model)).name}")
    generator = torch.Generator().manual_seed(config.seed)
    origin = origin_of(str(config.model), seed=config.seed) if config.provenance else None
    how: dict[str, Any] = {"class_labels": classes, "output_type": "pt"}
    search: dict[str, Any] = how | {"steps": config.steps, "generator": generator}

    def save(name: str, what: str, rows: Sequence[torch.Tensor]) -> None:
        """A grid of rows `(N, C, H, W)`."""
        path = output / f"{name}.png"
        grid = make_grid(list(to_uint8(torch.cat([row.cpu() for row in rows]))), columns=len(rows[0]))
        save_png(grid, path, origin, composite=True)
        print(f"{path}: {what}")

    if task is None:
        save("reconstructions", "images, and what is left of them", [images, pipe.reconstruct(images, **how)])
        walks = []
        for first in range(0, len(images) - 1, 2):
            ends = None if classes is None else classes[first : first + 2]
            walks.append(pipe.interpolate(images[first], images[first + 1], FRAMES, ends, output_type="pt"))
        save("interpolations", "walks from the first image to the last of each row", walks)

        latents = pipe.encode(images, classes).flatten(1)
        middle, spread = latents.mean(0), latents.std(0)
        widest = spread.argsort(descending=True)[:FRAMES].tolist()
        one = None if classes is None else classes[:1]
        rows = []
        for index in widest:
            values = (middle[index] + spread[index] * torch.linspace(-2, 2, FRAMES, device=middle.device)).tolist()
            rows.append(pipe.traverse(index, values, images[0], one, output_type="pt")[0])
        save("traversals", f"one latent of the first image changed per row, numbers {widest}", rows)
        if labels is not None and classes is None and len(labels.unique()) > 1:
            source_class, target_class = labels.unique()[:2].tolist()
            direction = pipe.attribute_direction(images[labels == target_class], images[labels == source_class])
            strengths = torch.linspace(0, 1, FRAMES).tolist()
            edited = pipe.edit(images[labels == source_class], direction, strengths, output_type="pt")
            names = info.class_names or ()
            save("edits", f"from {names[source_class]} towards {names[target_class]}", list(edited))

        hole = torch.zeros(images.shape[-2:], dtype=torch.bool)
        hole[images.shape[-2] // 2 :] = True
        rows = [images, torch.where(hole, 0.5, images), pipe.inpaint(images, hole, **search)]
        rows += [pipe.inpaint(images, hole, method="langevin", **search) for _ in range(3)]
        save("inpainting", "images, the hole, the likeliest filling, three drawn ones", rows)
    if task in (None, "denoise"):
        noise_level = level if task else config.noise_level
        noisy = images + noise_level * torch.randn(images.shape, generator=generator)
        clean = pipe.denoise(noisy, noise_level, **search)
        save("denoising", f"images, with noise of {noise_level:g}, cleaned", [images, noisy, clean])
    if task in (None, "super_resolve"):
        small = shrink(images, factor)
        large = pipe.super_resolve(small, **search)
        save("super_resolution", f"images, {factor} times smaller, enlarged", [images, enlarge(small, factor), large])


if __name__ == "__main__":
    with one_line_errors():
        main()
