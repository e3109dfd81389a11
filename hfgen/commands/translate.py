"""Translates images with a checkpoint: photos into paintings, sketches into sprites, and back.

A translation is as large as its image.

    hfgen translate --model out/translation-photos --input photos
    hfgen translate --model user/photo-to-painting --input painting.jpg --direction b2a --output_dir back
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import spell
from hfgen.commands.image_files import GRID, IN_GRID, find_images, places_for, read_image
from hfgen.commands.options import ModelOptions, read_sampling
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.sampling.config import choose_options

RECORD = "translated.json"
SHOWN_SIDE = 256  # pixels of an image in the picture of both


@dataclass(frozen=True)
class TranslateConfig(ModelOptions):
    """Images: which, and where they go."""

    input: str | None = option(None, "an image, or a folder of images")
    output_dir: str | None = option(None, "folder for the images (default: translated-<name of the input>)")
    overwrite_output_dir: bool = option(False, "replace the images that `output_dir` holds")

    def validate(self) -> None:
        super().validate()
        if not self.input:
            raise UserError("`input` is missing: name an image, or a folder of images.")


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    description = str(__doc__).partition("\n")[0]
    return read_sampling((TranslateConfig,), argv, description=description, prog="hfgen translate")


def main(argv: Sequence[str]) -> None:
    (config, common, *_), given = read_options(argv)
    if common.class_labels:
        raise UserError("`class_labels`: translators know no classes. Leave them out.")
    images = find_images(config.input)
    output = Path(config.output_dir or f"translated-{Path(config.input).resolve().stem}")
    files = places_for(images, output, config.overwrite_output_dir)

    import torch
    from tqdm.auto import tqdm

    from hfgen.data.config import IMAGE_MODES
    from hfgen.data.decode import to_mode
    from hfgen.evaluation.report import origin_of
    from hfgen.runtime.files import write_json
    from hfgen.runtime.launch import make_accelerator
    from hfgen.runtime.png import make_table, save_png, to_pil, to_uint8
    from hfgen.sampling.capabilities import Translates, adapter_of, require
    from hfgen.sampling.loading import in_use, load_pipeline
    from hfgen.sampling.sampler import DTYPES

    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(f"`hfgen translate` takes one process, not {accelerator.num_processes}: use no launcher.")
    with in_use(config.model):
        pipe: Any = load_pipeline(
            config.model, revision=config.revision, token=config.hub_token, dtype=DTYPES[common.mixed_precision]
        )
        adapter = adapter_of(pipe.to(accelerator.device))
        require(adapter, Translates, config.model)
        _, options = choose_options(adapter, given, config.model)
        adapter.check(options)
    channels = adapter.shapes(options)[0][0]
    mode = next((mode for mode, count in IMAGE_MODES.items() if count == channels), None)
    if mode is None:
        raise UserError(f"{config.model} translates images of {channels} channels, which no file has.")
    origin = None
    if common.provenance:
        origin = origin_of(config.model, config.revision, config.hub_token, **as_dict([options]))
    shown: list[tuple[Any, Any]] = []
    with in_use(config.model):
        for name, path in tqdm(images.items(), unit="img"):
            image = to_mode(read_image(path), mode)
            pixels = torch.from_numpy(pixels_of(image)).permute(2, 0, 1)[None].to(accelerator.device)
            (made,) = to_uint8(adapter.translate(pixels, options=options))
            save_png(to_pil(made), files[name], origin, composite=True)
            if len(shown) < IN_GRID:
                shown.append((small(image), small(to_pil(made))))
    save_png(make_table([*zip(*shown, strict=True)], ["given", "made"]), output / GRID, origin, composite=True)
    write_json(
        output / RECORD,
        {
            "model": config.model,
            "revision": config.revision,
            **as_dict([options]),
            "images": [{"file": files[name].name, "input": path.name} for name, path in images.items()],
        },
    )
    print(spell(f"{len(images)} images in {output}, the first {len(shown)} beside what was given in {output / GRID}"))


def pixels_of(image: Any) -> Any:
    """Returns the pixels of an image, `(H, W, C)` in [0, 1]."""
    import numpy as np

    pixels = np.asarray(image, np.float32) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels


def small(image: Any) -> Any:
    """Returns an image for the picture of both: a square `(S, S, C)` in uint8, at the size that all of them have."""
    import numpy as np

    from hfgen.data.decode import fit

    pixels, _, _ = fit(image, SHOWN_SIDE, center_crop=True)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
