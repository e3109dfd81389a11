"""Shows what a checkpoint can do: samples, training images near them, steps, walks, edits, restored images.

Which pictures there are follows from the checkpoint. A page beside them says what each shows.

    hfgen show --model out/gan-digits
    hfgen show --model out/gan-digits --pictures walk edits --seeds 3 17 --directions 0 1 --scale 8
    hfgen show --model out/vae-mnist --dataset_name ylecun/mnist --num_images 16
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import spell
from hfgen.commands.options import ModelOptions, read_sampling
from hfgen.evaluation.config import ShowConfig, SplitsConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option


@dataclass(frozen=True)
class ShowOptions(ShowConfig, ModelOptions):
    """Pictures: which, of what, and where they go."""

    extractor: str | None = option(
        None,
        "compare samples with training images by features: folder or Hub id of an image model of transformers, or "
        "inception (default: by pixels)",
    )
    output_dir: str | None = option(None, "folder for the pictures (default: <model>/shown, or shown-<model>)")


KINDS = (ShowOptions, SplitsConfig)


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    return read_sampling(KINDS, argv, description=str(__doc__).partition("\n")[0], prog="hfgen show")


def main(argv: Sequence[str]) -> None:
    (config, source, common, *_), given = read_options(argv)

    from hfgen.evaluation.features import load_extractor
    from hfgen.evaluation.reference import Part, cache_folder, real_images
    from hfgen.evaluation.report import origin_of
    from hfgen.evaluation.show import FILES, Gallery, Picture, Real, open_real, write_page
    from hfgen.runtime.launch import make_accelerator
    from hfgen.runtime.png import save_gif, save_png
    from hfgen.runtime.writable import require_folder, require_ours
    from hfgen.sampling.capabilities import Translates, adapter_of
    from hfgen.sampling.config import choose_options
    from hfgen.sampling.loading import in_use, load_pipeline
    from hfgen.sampling.sampler import DTYPES

    folder = Path(config.model)
    output = Path(config.output_dir or (folder / "shown" if folder.is_dir() else f"shown-{folder.name}"))
    require_folder(output, "output_dir")
    if config.output_dir:
        require_ours([output / name for name in FILES], "output_dir", "give another folder, or delete it")
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"`hfgen show` takes one process, not {accelerator.num_processes}: start it without a launcher."
        )
    pipe: Any = load_pipeline(
        config.model, revision=config.revision, token=config.hub_token, dtype=DTYPES[common.mixed_precision]
    )
    pipe.to(accelerator.device).set_progress_bar_config(leave=False, disable=None)
    adapter = adapter_of(pipe)
    _, options = choose_options(adapter, given, config.model)
    real: Real | str
    shape, column = adapter.image_shape, None
    if isinstance(adapter, Translates):
        adapter.check(options)
        shape, column = adapter.shapes(options)[0], adapter.sets(options)[0]
    try:
        real = open_real(source, config.model, shape, column)
    except UserError as error:
        if source.dataset_name or source.train_data_dir:
            raise
        real = str(error).rstrip(".")
    extractor = load_extractor(config.extractor, device=accelerator.device) if config.extractor else None

    def features_of_training(part: Part) -> Any:
        assert extractor is not None
        found = real_images(part, extractor, accelerator, cache_folder(source), False, "training images", False)
        assert found is not None
        return found.features

    with in_use(config.model):
        gallery = Gallery(
            adapter,
            config.model,
            config,
            options,
            common.class_labels,
            real,
            extractor,
            features_of_training if extractor is not None else None,
        )
    origin = None
    if common.provenance:
        origin = origin_of(config.model, config.revision, config.hub_token, seed=config.seed)
    written: list[Picture] = []
    pictures = gallery.make()
    while True:
        with in_use(config.model):
            kind, made = next(pictures, (None, ""))
        if kind is None:
            break
        if isinstance(made, str):
            print(f"no {kind}: {spell(made)}.")
            continue
        for picture in made:
            path = output / picture.file
            if path.suffix == ".gif":
                save_gif(picture.frames, path, origin, picture.rest)
            else:
                save_png(picture.frames[0], path, origin, composite=picture.real)
            print(f"{path}: {spell(picture.text)}")
        written += made
    print(f"{write_page(output, folder.resolve().name if folder.is_dir() else config.model, adapter.a_kind, written)}")
