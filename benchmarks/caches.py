"""Measures what the caches of autoregressive models are worth: sampling with them against whole images for each pixel.

Without --model the networks are those of the presets `pixelcnn` and `transformer` for gray images of 28 pixels, with
random weights: speed does not depend on them. Examples:

    python benchmarks/caches.py --output benchmarks/caches.json
    python benchmarks/caches.py --model out/autoregressive-mnist --num_images 100 --cpu_threads 2
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import BenchmarkOptions, command_of, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option

if TYPE_CHECKING:
    import torch

SIZE = 28
PRESETS = ("pixelcnn", "transformer")


@dataclass(frozen=True)
class CachesBenchmark(BenchmarkOptions):
    """Benchmark: of which models, on how many images."""

    model: tuple[str, ...] | None = option(None, "folders or Hub ids of autoregressive models (default: two presets)")
    num_images: int = option(100, "images that are compared with those of whole passes", least=1)
    batch_size: int = option(4, "images at once, of the speeds", least=1)
    repeats: int = option(3, "turns with caches; whole images for each pixel have one", least=1)
    seed: int = option(0, "seed of the images", least=0)
    cpu_threads: int | None = option(None, "threads on a CPU (default: all cores)", least=1)


def read_options(argv: Sequence[str] | None = None) -> CachesBenchmark:
    (config,) = parse((CachesBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    return config


class Whole:
    """An autoregressive network that looks at the whole grid for each position, as one without caches must."""

    def __init__(self, network: Any):
        self.network, self.level_log_probs = network, network.level_log_probs

    def start(self, batch_size: int, class_labels: "torch.Tensor | None" = None) -> "torch.Tensor":
        import torch

        config = self.network.config
        self.labels, self.position = class_labels, 0
        self.levels = torch.zeros(
            batch_size, config.in_channels, config.sample_size, config.sample_size, dtype=torch.int64
        )
        return self.levels

    def step(self, cache: "torch.Tensor", levels: "torch.Tensor | None" = None) -> "torch.Tensor":
        if levels is not None:
            cache.flatten(2)[:, :, self.position - 1] = levels
        self.position += 1
        return self.network(cache, self.labels).parameters.flatten(2)[:, :, self.position - 1]


def drawn_alike(network: Any, levels: "torch.Tensor", latents: "torch.Tensor", labels: Any) -> tuple[int, float]:
    """Counts the images that whole passes would draw alike, and the largest difference of a parameter.

    A whole pass over a finished image gives each position what one would have seen that drew the same until there. So
    an image is drawn alike if each of its levels is.
    """
    import torch

    from hfgen.objectives.autoregressive import draw_levels

    parameters = network(levels, labels).parameters
    cache, before, largest = network.start(len(levels), labels), None, 0.0
    quantiles = torch.special.ndtr(latents.double()).flatten(2)
    same = torch.ones(len(levels), dtype=torch.bool)
    for position in range(quantiles.shape[2]):
        whole, own = parameters.flatten(2)[:, :, position], levels.flatten(2)[:, :, position]
        largest = max(largest, (network.step(cache, before) - whole).abs().max().item())
        for channel in range(own.shape[1]):
            log_probs = network.level_log_probs(whole, own[:, :channel])
            same &= draw_levels(log_probs, quantiles[:, channel, position]) == own[:, channel]
        before = own
    return int(same.sum()), largest


def measure(name: str, network: Any, config: CachesBenchmark) -> dict[str, Any]:
    """Measures one network."""
    import torch

    from hfgen.pipelines.autoregressive import draw_grid

    generator = torch.Generator().manual_seed(config.seed)
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    classes = network.config.num_class_embeds

    def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        latents = torch.randn(count, *shape, generator=generator)
        return latents, torch.arange(count) % classes if classes else None

    def seconds(drawing: Any, given: tuple[torch.Tensor, torch.Tensor | None]) -> float:
        start = time.perf_counter()
        draw_grid(drawing, *given)
        return (time.perf_counter() - start) / len(given[0])

    latents, labels = inputs(config.num_images)
    levels = draw_grid(network, latents, labels)  # which warms up
    alike, largest = drawn_alike(network, levels, latents, labels)
    few = inputs(config.batch_size)
    cached = [seconds(network, few) for _ in range(config.repeats)]
    whole = seconds(Whole(network), few)
    return {
        "model": name,
        "positions": shape[1] * shape[2],
        "seconds_per_image": cached,
        "seconds_per_image_without": whole,
        "times_as_fast": whole / statistics.median(cached),
        "images": config.num_images,
        "drawn_alike": alike,
        "largest_difference": largest,
    }


def networks_of(config: CachesBenchmark) -> dict[str, Any]:
    """Loads or makes the networks, by name."""
    import torch

    from hfgen.data.columns import TRAIN
    from hfgen.data.info import DataInfo, ImageInfo, SourceInfo
    from hfgen.registry import find_family
    from hfgen.runtime.machine import Machine
    from hfgen.sampling.loading import load_pipeline

    if config.model:
        pipes = {model: load_pipeline(model) for model in config.model}
        for model, pipe in pipes.items():
            if not hasattr(getattr(pipe, "model", None), "level_log_probs"):
                raise UserError(f"`model` {model} is no autoregressive model.")
        return {model: pipe.model for model, pipe in pipes.items()}
    family = find_family("autoregressive")
    data = DataInfo({TRAIN: SourceInfo("gray", "train", 1, 0, "")}, {"image": ImageInfo("L", SIZE)})
    networks = {}
    for preset in PRESETS:
        values = family.preset_values(preset)
        kind = family.load("options")
        own = {name: value for name, value in values.items() if name in kind.__dataclass_fields__}
        torch.manual_seed(config.seed)
        options = family.load("resolve")(kind(**own), data, Machine.here())
        networks[preset] = family.load("recipe")(options, data).model.eval()
    return networks


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)

    import torch

    from hfgen.runtime.launch import describe, make_accelerator

    accelerator = make_accelerator("no", cpu_threads=config.cpu_threads)
    with torch.no_grad():
        measured = [measure(name, network, config) for name, network in networks_of(config).items()]
    table = [["", "positions", "images/s", "without caches", "times as fast", "drawn alike", "largest difference"]]
    for row in measured:
        table.append(
            [
                row["model"],
                str(row["positions"]),
                f"{1 / statistics.median(row['seconds_per_image']):.3g}",
                f"{1 / row['seconds_per_image_without']:.3g}",
                f"{row['times_as_fast']:.0f}",
                f"{row['drawn_alike']} of {row['images']}",
                f"{row['largest_difference']:.1e}",
            ]
        )
    notes = [
        f"Images/s: batches of {config.batch_size}, the median of {config.repeats} turns; without caches, one turn.",
        "Drawn alike: images of the same seeds that whole passes over the image would draw, too, level by level. "
        "Largest difference: of a parameter of a pixel's distribution, such as a logit.",
    ]
    machine = describe(accelerator, "no")
    command = command_of(__file__, [CachesBenchmark], argv)
    publish(config.output, command, machine, as_dict([config]), {"Sampling with caches": table}, notes, measured)


if __name__ == "__main__":
    with one_line_errors():
        main()
