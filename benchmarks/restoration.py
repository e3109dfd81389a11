"""Measures restoring: what a classifier reads in filled and enlarged images, and how fast they are made.

Each model restores the same real images by each of its methods: the lower half filled, and enlarged from `--factor`
times smaller. A classifier, `hfgen classify` makes one, reads the original and the result. Examples:

    python benchmarks/restoration.py --model out/ddpm-mnist out/vae-mnist --dataset_name ylecun/mnist \
        --extractor out/classifier-mnist --output restoration.json
    python benchmarks/restoration.py --model out/ddpm-digits --extractor out/classifier-digits --factor 2
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import BenchmarkOptions, arguments_of, command_of, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.commands.options import check_models
from hfgen.data.config import ImagesConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.runtime.seeds import SEEDS

if TYPE_CHECKING:
    import torch

TASKS = ("inpaint", "super_resolve")
METHODS = ("gradient", "langevin", "ddnm", "posterior", "repaint")
LIKELIEST = ({"method": "gradient"}, {"method": "langevin"})  # of a VAE
DRAWN = ({"method": "ddnm"}, {"method": "ddnm", "resamples": 10}, {"method": "posterior"})  # of a DDPM
OF_HOLES = ({"method": "repaint", "resamples": 10},)


@dataclass(frozen=True)
class RestorationBenchmark(BenchmarkOptions):
    """Benchmark: of what, on how many images."""

    model: tuple[str, ...] | None = option(None, "folders or Hub ids of models that restore images")
    extractor: str | None = option(None, "the classifier: folder or Hub id of an image classifier of transformers")
    tasks: tuple[str, ...] = option(TASKS, "what to restore", choices=TASKS)
    factor: int = option(4, "how many times smaller the images to enlarge are", least=2, most=4096)
    num_images: int = option(200, "real images", least=1)
    batch_size: int = option(50, "images at once", least=1)
    methods: tuple[str, ...] = option(METHODS, "how, of models that have several methods", choices=METHODS)
    steps: int | None = option(None, "steps of each method (default: its own)", least=1)
    seed: int = option(0, "seed of what is drawn, and of which images", least=0, most=SEEDS - 1)
    cpu_threads: int | None = option(None, "threads on a CPU (default: all cores)", least=1)

    def validate(self) -> None:
        super().validate()
        if not self.model:
            raise UserError("`model` is missing: give the `output_dir` of a training run, or a Hub id.")
        if not self.extractor:
            raise UserError("`extractor` is missing: give the `output_dir` of `hfgen classify`.")
        check_models(self.model)


KINDS = (RestorationBenchmark, ImagesConfig)


def read_options(argv: Sequence[str] | None = None) -> tuple[RestorationBenchmark, ImagesConfig]:
    config, images = parse(KINDS, arguments_of(argv), description=str(__doc__).partition("\n")[0])
    return config, images


def real_images(config: RestorationBenchmark, source: ImagesConfig, shape: tuple[int, int, int]) -> "torch.Tensor":
    """Draws real images: `(N, C, H, W)`, uint8."""
    import numpy as np
    import torch

    from hfgen.data.cache import open_images

    data = open_images(source.data(shape))
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(data))[: config.num_images])
    return torch.from_numpy(data.squares(rows))


def measure(config: RestorationBenchmark, source: ImagesConfig) -> Iterator[dict[str, Any]]:
    """Yields what is found of each model, task and method."""
    import torch
    from torch.nn import functional as F

    from hfgen.evaluation.features import load_extractor
    from hfgen.sampling.capabilities import Restores, adapter_of, require
    from hfgen.sampling.loading import load_pipeline
    from hfgen.sampling.restoring import Restorer

    classifier = load_extractor(str(config.extractor))
    for model in config.model or ():
        pipe: Any = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        adapter = adapter_of(pipe)
        require(adapter, Restores, model)
        pixels = real_images(config, source, adapter.image_shape)
        images, (height, width) = pixels / 255, adapter.image_shape[1:]
        hole = torch.zeros(len(images), 1, height, width, dtype=torch.bool)
        hole[..., height // 2 :, :] = True
        labels = classifier(pixels)["logits"].argmax(1)
        for task in (task for task in config.tasks if task in adapter.tasks):
            ways: Sequence[dict[str, Any]] = [{}]  # of GANs, and models for a task
            if "method" in adapter.restore_settings(task):
                known = LIKELIEST if adapter.likeliest else DRAWN + (OF_HOLES if task == "inpaint" else ())
                ways = [way for way in known if way["method"] in config.methods]
            given = F.avg_pool2d(images, config.factor) if task == "super_resolve" else images
            for way in ways:
                restorer = Restorer(adapter, task, {**way, "steps": config.steps}, seed=config.seed, name=model)
                start, made = time.perf_counter(), []
                for first in range(0, len(given), config.batch_size):
                    part = slice(first, first + config.batch_size)
                    made.append(restorer(given[part], first, hole[part] if task == "inpaint" else None))
                seconds, found = time.perf_counter() - start, torch.cat(made)
                seen = (found - images).where(~hole, 0.0)
                if task == "super_resolve":
                    seen = F.avg_pool2d(found, config.factor) - given
                read = classifier((found * 255).round().to(torch.uint8))["logits"].argmax(1)
                yield {
                    "model": model,
                    "task": task,
                    "method": "its own",
                    **way,
                    "label_kept": (read == labels).float().mean().item(),
                    "rmse": (found - images).square().mean().sqrt().item(),
                    "seen_levels": 255 * seen.abs().max().item(),
                    "images_per_second": len(images) / seconds,
                    "images": len(images),
                }


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    head = ["model", "task", "method", "class kept", "RMSE", "largest error of what is seen, levels", "images/s"]
    cells = []
    for row in rows:
        error = (row["label_kept"] * (1 - row["label_kept"]) / row["images"]) ** 0.5
        method = row["method"] + (f", {row['resamples']} times" if row.get("resamples") else "")
        cells.append(
            [row["model"], row["task"], method, f"{row['label_kept']:.1%} ± {error:.1%}", f"{row['rmse']:.3f}"]
            + [f"{row['seen_levels']:.2g}", f"{row['images_per_second']:.3g}"]
        )
    return [head, *cells]


def main(argv: Sequence[str] | None = None) -> None:
    config, source = read_options(argv)

    import torch

    from hfgen.runtime.launch import cpu_name

    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    rows = []
    for row in measure(config, source):
        print(
            " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
        rows.append(row)
    notes = ["Class kept: how often the classifier reads in the result what it reads in the original; ± its error."]
    tables = {f"{config.num_images} images of {source.source}": table(rows)}
    publish(
        config.output,
        command_of(__file__, KINDS, argv),
        f"{cpu_name()}, {torch.get_num_threads()} threads",
        as_dict([config, source]),
        tables,
        notes,
        rows,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
