"""Shows what a VAE does with real images: reconstructions, walks, edits, damaged images restored.

hfgen show --model out/vae-digits
hfgen show --model out/vae-mnist --dataset_name ylecun/mnist --num_images 16
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import parse
from hfgen.commands.options import ModelOptions
from hfgen.data.config import ImagesConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option
from hfgen.runtime.seeds import SEEDS


@dataclass(frozen=True)
class ShowConfig(ModelOptions):
    """Grids: their images, and the damage that is restored."""

    num_images: int = option(10, "images per grid, drawn with the seed; two at least", least=2, most=10_000)
    seed: int = option(0, "seed of the images, of the noise, and of what is drawn", least=0, most=SEEDS - 1)
    noise_level: float = option(
        0.3,
        "standard deviation of the noise to remove, pixels being in [0, 1] (a model for a task knows its own)",
        above=0,
        most=100,
    )
    factor: int = option(
        2, "how many times smaller the images to enlarge are (a model for a task knows its own)", least=2, most=4096
    )
    steps: int = option(200, "steps of the search, where the model was not trained for the task", least=1, most=10**6)
    output_dir: str | None = option(None, "folder for the grids (default: <model>/shown, or shown-<model>)")
    provenance: bool = option(True, "write into PNG files which model made them")


def read_options(argv: Sequence[str]) -> list[Any]:
    return parse((ShowConfig, ImagesConfig), argv, description=str(__doc__).partition("\n")[0], prog="hfgen show")


def main(argv: Sequence[str]) -> None:
    config, source = read_options(argv)

    import torch
    from accelerate import PartialState

    from hfgen.evaluation.reference import pick_images
    from hfgen.evaluation.report import origin_of
    from hfgen.evaluation.runner import following
    from hfgen.evaluation.show import GRIDS, show_grids
    from hfgen.runtime.png import make_grid, save_png, to_uint8
    from hfgen.runtime.writable import require_folder, require_ours
    from hfgen.sampling.capabilities import adapter_of
    from hfgen.sampling.loading import in_use, load_pipeline

    folder = Path(config.model)
    output = Path(config.output_dir or (folder / "shown" if folder.is_dir() else f"shown-{folder.name}"))
    require_folder(output, "output_dir")
    if config.output_dir:
        require_ours([output / f"{name}.png" for name in GRIDS], "output_dir", "give another folder, or delete it")
    pipe: Any = load_pipeline(config.model, revision=config.revision, token=config.hub_token)
    pipe.to(PartialState().device).set_progress_bar_config(disable=True)
    adapter = adapter_of(pipe)
    arrays, numbers, info = pick_images(
        following(source, config.model), adapter.image_shape, config.num_images, config.seed
    )
    if adapter.classes and not adapter.classes.groups and numbers is None:
        raise UserError(f"{info.name} has no classes, which {config.model} needs: name `label_column`.")
    images = torch.from_numpy(arrays).float() / 255
    labels = None if numbers is None else torch.from_numpy(numbers)
    origin = None
    if config.provenance:
        origin = origin_of(config.model, config.revision, config.hub_token, seed=config.seed)
    grids = show_grids(
        adapter,
        config.model,
        images,
        labels,
        info.class_names or (),
        config.noise_level,
        config.factor,
        config.steps,
        config.seed,
    )
    with in_use(config.model):
        first = next(grids)
    for name, description, rows in itertools.chain([first], grids):
        path = output / f"{name}.png"
        grid = make_grid(list(to_uint8(torch.cat([row.cpu() for row in rows]))), columns=len(rows[0]))
        save_png(grid, path, origin, composite=True)
        print(f"{path}: {description}")
