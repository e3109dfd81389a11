"""Restores or edits images with a checkpoint: fills holes, enlarges, cleans, colours, varies, completes.

Any DDPM can, of ours or of diffusers, without having been trained for it; and VAEs and autoregressive models. Image
number i depends on the seed and on i alone.

    hfgen restore --model google/ddpm-cat-256 --task inpaint --input photos --mask mask.png
    hfgen restore --model out/ddpm-mnist --task super_resolve --input small --factor 4
    hfgen restore --model out/ddpm-sprites --task img2img --input sketch.png --strength 0.6 --class_labels dragon
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import read, spell
from hfgen.commands.image_files import GRID, IN_GRID, find_images, places_for, read_image
from hfgen.commands.options import ModelOptions
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import make, option
from hfgen.runtime.seeds import SEEDS
from hfgen.sampling.config import SamplingConfig

TASKS = ("inpaint", "super_resolve", "denoise", "colorize", "img2img", "complete")
METHODS = ("ddnm", "posterior", "repaint", "gradient", "langevin", "amortised")
SETTINGS = ("noise_level", "strength", "method", "resamples", "steps", "restarts", "prior", "guidance_scale")
RECORD = "restored.json"


@dataclass(frozen=True)
class RestoreConfig(ModelOptions):
    """Images: which, what to do with them, and where they go."""

    task: str | None = option(
        None,
        "what to do: inpaint paints where the mask is white, and complete goes on where it begins; super_resolve "
        "enlarges; denoise takes noise away; colorize takes images in gray; img2img draws images anew that are like "
        "them",
        choices=TASKS,
    )
    input: str | None = option(None, "an image, or a folder of images; what is no square is cropped to one")
    mask: str | None = option(
        None, "where to paint, white: an image for all, or a folder with one for each, of its name and size"
    )
    factor: int | None = option(
        None,
        "shrink the images so many times less than the model's size first, and enlarge them as often (default: they "
        "are as small as they are)",
        least=2,
        most=4096,
    )
    noise_level: float | None = option(
        None, "standard deviation of the noise to remove, pixels being in [0, 1]", above=0, most=100
    )
    strength: float | None = option(
        None, "how much img2img changes: 0 nothing, 1 everything (default: 0.5)", least=0, most=1
    )
    method: str | None = option(
        None,
        "how: of a DDPM ddnm (the default, fast), posterior (the mean of what fits, ten passes backwards a step) or "
        "repaint (holes); of a VAE gradient, langevin or amortised",
        choices=METHODS,
    )
    resamples: int | None = option(
        None, "how often ddnm and repaint take each step (default: 1): more fits better", least=1, most=1000
    )
    steps: int | None = option(
        None,
        "steps of a DDPM (default: 50; denoise 1, which gives the mean), or of a VAE's search",
        least=1,
        most=10**6,
    )
    restarts: int | None = option(None, "beginnings of a VAE's search (default: 16)", least=1, most=10_000)
    prior: str | None = option(
        None, "prior of a VAE's latents (default: the mixture, if one was fitted)", choices=("normal", "mixture")
    )
    guidance_scale: float | None = option(
        None, "classifier-free guidance of a DDPM with `class_labels` (default: the model's own)", least=0, most=1000
    )
    seed: int = option(0, "seed of what is drawn", least=0, most=SEEDS - 1)
    batch_size: int = option(16, "images at once", least=1, most=2**20)
    output_dir: str | None = option(None, "folder for the images (default: restored-<name of the input>)")
    overwrite_output_dir: bool = option(False, "replace the images that `output_dir` holds")

    def validate(self) -> None:
        super().validate()
        if self.task is None:
            raise UserError(f"`task` is missing: say what to do, {', '.join(TASKS)}.")
        if not self.input:
            raise UserError("`input` is missing: name an image, or a folder of images.")
        if self.factor and self.task != "super_resolve":
            raise UserError(f"`factor` is for `task` super_resolve, not for {self.task}: leave it out.")


KINDS = (RestoreConfig, SamplingConfig)


def read_options(argv: Sequence[str]) -> tuple[RestoreConfig, SamplingConfig]:
    given = read(KINDS, argv, description=str(__doc__).partition("\n")[0], prog="hfgen restore")
    config, common = make(KINDS, given.values)
    return config, common


def read_square(path: Path, mode: str, size: int | None, background: str = "white") -> tuple[Any, tuple[int, int]]:
    """Reads an image as a square `(C, size, size)` in [0, 1], by default as large as it is, and returns its own width
    and height.

    Raises:
        UserError: If it cannot be read.
    """
    import torch

    from hfgen.data.decode import fit, to_mode

    image = read_image(path)
    pixels, _, _ = fit(to_mode(image, mode, background=background), size or min(image.size), center_crop=True)
    return torch.from_numpy(pixels.copy()).float() / 255, image.size


def read_images(
    images: dict[str, Path], task: str, mode: str, side: int, factor: int | None
) -> tuple[Any, list[tuple[int, int]]]:
    """Reads what is to be restored, `(B, C, H, W)`, and says what became smaller, larger or square; also returns the
    images' own sizes.

    Raises:
        UserError: If one cannot be read, or those to enlarge have several sizes.
    """
    import torch

    from hfgen.pipelines.diffusion_restoration import to_gray

    size = side // factor if factor else None if task == "super_resolve" else side
    read_in = [read_square(path, mode, size) for path in images.values()]
    sizes = [own for _, own in read_in]
    if size is None and len({min(own) for own in sizes}) > 1:
        raise UserError("`input` has images of several sizes to enlarge: add `factor`, or give those of one size.")
    pixels = torch.stack([each for each, _ in read_in])
    other = sum(own != (pixels.shape[-1],) * 2 for own in sizes)
    if other:
        print(f"{other} of {len(sizes)} images are cropped or scaled to {pixels.shape[-1]}x{pixels.shape[-1]} pixels.")
    return to_gray(pixels) if task == "colorize" else pixels, sizes


def read_masks(source: str | None, images: dict[str, Path], sizes: Sequence[tuple[int, int]], size: int) -> Any:
    """Reads the masks of images, whose own sizes they have: `(B, 1, H, W)`; `None` if there are none.

    Raises:
        UserError: If one is missing, or has another size.
    """
    import torch

    if source is None:
        return None
    folder, masks = Path(source), []
    if not folder.exists():
        raise UserError(f"`mask` {source} does not exist: give an image, or a folder of images.")
    own = find_images(source) if folder.is_dir() else {}
    for (name, path), expected in zip(images.items(), sizes, strict=True):
        file = own.get(name) if folder.is_dir() else folder
        if file is None:
            raise UserError(f"`mask` {source} holds none for {path.name}: give one of the same name for each image.")
        mask, found = read_square(file, "L", size, background="black")
        if found != expected:
            raise UserError(
                f"the mask {file} is {found[0]}x{found[1]}, and {path} {expected[0]}x{expected[1]}: give one of its "
                "size."
            )
        masks.append(mask)
    return torch.stack(masks)


def main(argv: Sequence[str]) -> None:
    config, common = read_options(argv)
    task = str(config.task)
    images = find_images(str(config.input))
    output = Path(config.output_dir or f"restored-{Path(str(config.input)).resolve().stem}")

    import torch
    from tqdm.auto import tqdm

    from hfgen.data.config import IMAGE_MODES
    from hfgen.evaluation.report import origin_of
    from hfgen.pipelines.restoration import enlarge
    from hfgen.runtime.files import write_json
    from hfgen.runtime.launch import make_accelerator
    from hfgen.runtime.png import gray_like, make_table, save_png, to_pil, to_uint8
    from hfgen.sampling.capabilities import adapter_of
    from hfgen.sampling.loading import in_use, load_pipeline
    from hfgen.sampling.restoring import Restorer
    from hfgen.sampling.sampler import DTYPES

    files = places_for(images, output, config.overwrite_output_dir)
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(f"`hfgen restore` takes one process, not {accelerator.num_processes}: use no launcher.")
    with in_use(config.model or ""):
        pipe: Any = load_pipeline(
            str(config.model), revision=config.revision, token=config.hub_token, dtype=DTYPES[common.mixed_precision]
        )
        pipe.to(accelerator.device).set_progress_bar_config(leave=False, disable=None)
        settings = {name: getattr(config, name) for name in SETTINGS}
        adapter = adapter_of(pipe)
        restorer = Restorer(adapter, task, settings, common.class_labels, config.seed, str(config.model))
    channels, height, width = adapter.image_shape
    if channels not in IMAGE_MODES.values() or height != width:
        raise UserError(f"{config.model} makes images of {channels} channels and {height}x{width} pixels: no squares.")
    if config.factor and height % config.factor:
        raise UserError(f"`factor` {config.factor} does not divide the model's {height} pixels: use another.")
    mode = next(mode for mode, count in IMAGE_MODES.items() if count == channels)

    read_in, sizes = read_images(images, task, mode, height, config.factor)
    given = restorer.pixels(read_in)
    masks = restorer.mask(read_masks(config.mask, images, sizes, height), len(given))
    origin = None
    if common.provenance:
        origin = origin_of(str(config.model), config.revision, config.hub_token, task=task, **restorer.settings)
    names, made = list(images), []
    with in_use(str(config.model)), tqdm(total=len(given), unit="img") as bar:
        for start in range(0, len(given), config.batch_size):
            part = slice(start, start + config.batch_size)
            arrays = to_uint8(restorer(given[part], start, None if masks is None else masks[part]))
            for name, array in zip(names[part], arrays, strict=True):
                save_png(to_pil(array), files[name], origin and origin | {"seed": config.seed}, composite=True)
            made += [*arrays]
            bar.update(len(arrays))
    before = given[:IN_GRID]
    if masks is not None:
        before = torch.where(masks[:IN_GRID], gray_like(before), before)
    if task == "colorize":
        before = torch.cat([before[:, :1].expand(-1, 3, -1, -1), before[:, 1:]], 1)
    rows = [[*to_uint8(enlarge(before, height // before.shape[-1]))], made[:IN_GRID]]
    save_png(make_table(rows, ["given", "made"]), output / GRID, origin, composite=True)
    write_json(
        output / RECORD,
        {
            "model": config.model,
            "revision": config.revision,
            "task": task,
            "seed": config.seed,
            **restorer.settings,
            "images": [{"file": files[name].name, "input": path.name} for name, path in images.items()],
        },
    )
    print(spell(f"{len(made)} images in {output}, the first {len(rows[0])} beside what was given in {output / GRID}"))
