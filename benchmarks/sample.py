"""Measures sampling: images per second of each checkpoint, time to the first image, and what steps buy a DDPM.

Checkpoints take turns, and so do the samplers of a DDPM, batch by batch, so that noise of the machine hits all alike.
Without --dataset_name the DDPMs are compared with the handwritten digits that ship with the installation. Examples:

    python benchmarks/sample.py --model out/gan-mnist out/vae-mnist out/ddpm-mnist --dataset_name ylecun/mnist \
        --extractor out/classifier-mnist --output sample.json
    python benchmarks/sample.py --model out/ddpm-digits --extractor out/classifier-digits --steps 10 20 50
    python benchmarks/sample.py --model out/gan-mnist out/vae-mnist --batch_sizes 1 16 --repeats 10
"""

import dataclasses
import inspect
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import BenchmarkOptions, arguments_of, command_of, publish

from hfgen.commands.cli import one_line_errors
from hfgen.commands.options import check_models, read_sampling
from hfgen.evaluation.config import ReferenceConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.runtime.seeds import SEEDS
from hfgen.sampling.config import SamplingConfig, choose_options, given_values

if TYPE_CHECKING:
    import torch

    from hfgen.evaluation.features import Extractor
    from hfgen.evaluation.statistics import FeatureStatistics
    from hfgen.sampling.sampler import Sampler

TURN_SECONDS = 0.5
MANY_STEPS = 100  # from which on fewer images are made
GROUPS = 10  # of images, each of which is left out once for the error of a distance
AIM_DISTANCE, AIM_SPEED = 1.05, 50  # of the default steps against all steps

Table = list[list[str]]


@dataclass(frozen=True)
class SampleBenchmark(BenchmarkOptions):
    """Benchmark: of what, how often, on how many images."""

    model: tuple[str, ...] | None = option(None, "folders or Hub ids of checkpoints")
    batch_sizes: tuple[int, ...] = option((1, 16, 64, 256), "images at once, of the speeds", least=1)
    repeats: int = option(5, "turns of each checkpoint", least=1)
    steps: tuple[int, ...] = option(
        (5, 8, 10, 15, 20, 50, 1000), "steps of a DDPM whose quality is measured; none to leave that out", least=1
    )
    num_images: int = option(5000, "images for the quality of each sampler", least=2 * GROUPS)
    num_images_full: int = option(1000, f"the same from {MANY_STEPS} steps on", least=2 * GROUPS)
    batch_size: int = option(64, "images at once, of the quality", least=1)
    extractor: str = option("inception", "features, as for `hfgen evaluate`; for DDPMs only")
    extractor_weights: str | None = option(
        None, "of inception: a file, a Hub id, or `download` (default: what was downloaded before)"
    )
    seed: int = option(0, "seed of the first image; each following one has the next", least=0, most=SEEDS - 1)
    cpu_threads: int | None = option(None, "threads on a CPU (default: all cores)", least=1)

    def validate(self) -> None:
        super().validate()
        if not self.model:
            raise UserError("`model` is missing: give the `output_dir` of a training run, or a Hub id.")
        check_models(self.model)
        if not self.batch_sizes:
            raise UserError("`batch_sizes` has no numbers: give some, or leave it out.")


KINDS = (SampleBenchmark, ReferenceConfig)


def read_options(argv: Sequence[str] | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    return read_sampling(KINDS, arguments_of(argv), description=str(__doc__).partition("\n")[0])


def options_of(sampler: "Sampler", given: Mapping[str, Any]) -> tuple[SamplingConfig, Any]:
    """Those of the given options that the model has."""
    names = {field.name for kind in (SamplingConfig, sampler.adapter.options) for field in dataclasses.fields(kind)}
    own = {name: value for name, value in given.items() if name in names}
    return choose_options(sampler.adapter, own, sampler.name)


# Speed


def speeds(samplers: Sequence["Sampler"], config: SampleBenchmark) -> list[dict[str, Any]]:
    """Images per second from seeds to 8-bit images, for each checkpoint and batch size, in turns."""
    pairs = [(sampler, size) for size in config.batch_sizes for sampler in samplers]

    def speed(sampler: "Sampler", size: int) -> float:
        batch, start, count = list(range(size)), time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < TURN_SECONDS or not count:
            sampler(batch, config.seed).cpu()  # waits for the device
            count += size
        return count / seconds

    turns = [[speed(*pair) for pair in pairs] for _ in range(1 + config.repeats)][1:]  # the first one warms up
    return [
        {"model": sampler.name, "family": sampler.adapter.kind, "batch_size": size, "images_per_second": list(found)}
        for (sampler, size), found in zip(pairs, zip(*turns, strict=True), strict=True)
    ]


def first_image(model: str, sampling: Mapping[str, Any], device: str, threads: int) -> dict[str, float]:
    """Seconds until the first image of a new process, part by part."""
    times = [time.perf_counter()]
    import torch

    from hfgen.sampling.sampler import load_sampler

    torch.set_num_threads(threads)
    times.append(time.perf_counter())
    sampler = load_sampler(model, sampling, device)
    times.append(time.perf_counter())
    sampler([0], 0).cpu()
    times.append(time.perf_counter())
    return {name: times[i + 1] - times[i] for i, name in enumerate(("import", "load", "sample"))}


def starts(samplers: Sequence["Sampler"], config: SampleBenchmark, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What [`first_image`] takes for each checkpoint, in turns."""
    import torch

    found: list[dict[str, Any]] = [{"model": sampler.name, "turns": []} for sampler in samplers]
    for _ in range(config.repeats):
        for sampler, row in zip(samplers, found, strict=True):
            own, device = given_values(options_of(sampler, given)), str(sampler.pipe.device)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(first_image, sampler.name, own, device, torch.get_num_threads())
                row["turns"].append(job.result())
    return found


# Steps against quality


@dataclass
class Method:
    """One way to sample a DDPM, and what is found of it.

    Attributes:
        name (`str`): The sampler.
        steps (`int`): Its steps.
        count (`int`): How many images are made.
        make (`Callable`): From their numbers and the first one's seed to uint8 images `(B, C, H, W)`.
        seconds (`list[float]`): Per image, of each batch.
        features (`list[torch.Tensor]`): Of each batch.
    """

    name: str
    steps: int
    count: int
    make: Callable[[Sequence[int], int], "torch.Tensor"]
    seconds: list[float] = field(default_factory=list)
    features: list["torch.Tensor"] = field(default_factory=list)


def methods_of(
    sampler: "Sampler", config: SampleBenchmark, given: Mapping[str, Any]
) -> tuple[list[Method], list[str]]:
    """Our sampler at each number of steps, then those of plain diffusers; and what is to be said of them."""
    from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler

    from hfgen.pipelines.ddpm_sampling import FEW_STEPS
    from hfgen.sampling.sampler import Sampler

    (common, own), scheduler = options_of(sampler, given), sampler.pipe.scheduler
    every = scheduler.config.num_train_timesteps
    found, notes = [], []

    def add(name: str, steps: int, make: Callable[[Sequence[int], int], "torch.Tensor"]) -> None:
        count = config.num_images if steps < MANY_STEPS else config.num_images_full
        found.append(Method(name, steps, count, make))

    def ours(**changes: Any) -> None:
        own_options = dataclasses.replace(own, **changes)
        maker = Sampler(sampler.adapter, own_options, sampler.name, class_labels=common.class_labels)
        add(maker.settings["sampler"], maker.settings["num_inference_steps"], maker)

    for steps in config.steps:
        ours(num_inference_steps=steps)
    if not isinstance(sampler.pipe, DDPMPipeline):
        ours(sampler="ddpm", num_inference_steps=None)
        notes.append(
            f"{sampler.name} takes classes, which the stock DDPMPipeline of diffusers cannot give it: the row ddpm is "
            "its DDPMScheduler in the loop of hfgen."
        )
        return found, notes
    for kind, steps in ((DDPMScheduler, every), (DDIMScheduler, FEW_STEPS), (DPMSolverMultistepScheduler, FEW_STEPS)):
        if scheduler.config.beta_schedule == "sigmoid" and kind is not DDPMScheduler:
            notes.append(f"{kind.__name__} of diffusers does not know the sigmoid noise schedule of {sampler.name}.")
            continue
        spacing = inspect.signature(kind).parameters["timestep_spacing"].default
        stock = DDPMPipeline(sampler.pipe.unet, kind.from_config(scheduler.config, timestep_spacing=spacing))
        add(f"stock {kind.__name__}, {spacing}", min(steps, every), stock_maker(stock, min(steps, every)))
    return found, notes


def stock_maker(pipe: Any, steps: int) -> Callable[[Sequence[int], int], "torch.Tensor"]:
    """Images of a `diffusers.DDPMPipeline`, from the same seeds as ours."""
    import torch

    from hfgen.sampling.sampler import image_generators

    pipe.set_progress_bar_config(disable=True)

    def make(indices: Sequence[int], seed: int) -> torch.Tensor:
        images = pipe(len(indices), image_generators(seed, indices), steps, output_type="pt").images
        return (images.float() * 255).round().to(torch.uint8)

    return make


def make_all(methods: Sequence[Method], config: SampleBenchmark, extractor: "Extractor", text: str) -> None:
    """Makes the images of all methods, batch by batch in turns."""
    from tqdm.auto import tqdm

    min(methods, key=lambda method: method.steps).make(list(range(config.batch_size)), config.seed)  # warms up
    with tqdm(total=sum(method.count for method in methods), desc=text, unit="img", dynamic_ncols=True) as bar:
        for first in range(0, max(method.count for method in methods), config.batch_size):
            for method in methods:
                indices = list(range(first, min(first + config.batch_size, method.count)))
                if indices:
                    start = time.perf_counter()
                    images = method.make(indices, config.seed).cpu()  # waits for the device
                    method.seconds.append((time.perf_counter() - start) / len(indices))
                    method.features.append(extractor(images)["features"].cpu())
                    bar.update(len(indices))


def distances(features: "torch.Tensor", real: "FeatureStatistics") -> list[float]:
    """The Fréchet distance of all images, then of those that are left without one of `GROUPS` groups of them."""
    import torch

    from hfgen.evaluation.frechet import frechet_distance
    from hfgen.evaluation.statistics import FeatureStatistics

    def distance(rows: torch.Tensor) -> float:
        statistics = FeatureStatistics(features.shape[1])
        statistics.update(rows)
        return frechet_distance(statistics, real)

    group = torch.arange(len(features)) % GROUPS
    return [distance(features), *(distance(features[group != number]) for number in range(GROUPS))]


def standard_error(left_out: Sequence[float]) -> float:
    """Of a figure that was computed without each group in turn: the jackknife."""
    return (len(left_out) - 1) ** 0.5 * statistics.pstdev(left_out)


def measure_quality(method: Method, counts: Sequence[int], real: "FeatureStatistics") -> dict[str, Any]:
    """What was found of a method, with the distances of its first images, for several numbers of them."""
    import torch

    features, found = torch.cat(method.features), []
    for count in sorted({count for count in counts if count <= method.count}):
        value, *left_out = distances(features[:count], real)
        found.append({"images": count, "value": value, "error": standard_error(left_out), "left_out": left_out})
    return {
        "sampler": method.name,
        "steps": method.steps,
        "images_per_second": 1 / statistics.median(method.seconds),
        "seconds_per_image": method.seconds,
        "distances": found,
    }


def against(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """What is lost and won by fewer steps, at the same number of images, of the same seeds, in the same batches."""
    first, second = next(
        (a, b) for a in reversed(few["distances"]) for b in many["distances"] if a["images"] == b["images"]
    )
    ratios = [a / b for a, b in zip(first["left_out"], second["left_out"], strict=True)]
    pairs = zip(few["seconds_per_image"], many["seconds_per_image"], strict=False)
    distance, speed = first["value"] / second["value"], statistics.median(b / a for a, b in pairs)
    return {
        "few": [few["sampler"], few["steps"]],
        "many": [many["sampler"], many["steps"]],
        "images": first["images"],
        "distance_ratio": distance,
        "error": standard_error(ratios),
        "speed_ratio": speed,
        "distance_holds": distance <= AIM_DISTANCE,
        "speed_holds": speed >= AIM_SPEED,
    }


def quality(sampler: "Sampler", config: SampleBenchmark, given: Mapping[str, Any], real: "Real") -> dict[str, Any]:
    """Makes and measures the images of one DDPM; the default steps against each sampler that takes many."""
    from hfgen.pipelines.ddpm_sampling import FEW_STEPS

    methods, notes = methods_of(sampler, config, given)
    make_all(methods, config, real.extractor, sampler.name)
    rows = [
        measure_quality(method, (config.num_images, config.num_images_full), real.statistics) for method in methods
    ]
    few = [rows[config.steps.index(FEW_STEPS)]] if FEW_STEPS in config.steps else []  # ours come first
    many = [row for row in rows if row["steps"] >= MANY_STEPS]
    compared = [against(default, row) for default in few for row in many]
    return {"model": sampler.name, "rows": rows, "against_many_steps": compared, "notes": notes}


class Real(NamedTuple):
    """What DDPMs are compared with."""

    extractor: "Extractor"
    statistics: "FeatureStatistics"
    text: str


def open_real(
    config: SampleBenchmark, reference: ReferenceConfig, sampler: "Sampler", extractor: "Extractor", accelerator: Any
) -> Real:
    """Features of training images, the same ones as in an evaluation."""
    from hfgen.evaluation.reference import cache_folder, open_reference, real_images
    from hfgen.evaluation.statistics import FeatureStatistics

    count = reference.num_real_images or config.num_images
    part = open_reference(reference, sampler.image_shape, count, 0).real
    found = real_images(part, extractor, accelerator, cache_folder(reference), False, "Real images")
    assert found is not None  # in the first process
    real = FeatureStatistics(extractor.dim)
    real.update(found.features)
    info = part.data.info
    return Real(extractor, real, f"{len(part.rows):,} images of {info.name} [{info.split}]")


# Tables


def speed_table(rows: Sequence[dict[str, Any]]) -> Table:
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    table = [["", *(f"images/s, {size} at once" for size in sizes)]]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row["images_per_second"] for row in rows if row["model"] == model]
        table.append(
            [short(model), *(f"{figure(statistics.median(turns))} ± {figure(spread(turns))}" for turns in own)]
        )
    return table


def start_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = [["", "import, s", "load, s", "first image, s", "together, s"]]
    for row in rows:
        parts = [[turn[name] for turn in row["turns"]] for name in ("import", "load", "sample")]
        parts.append([sum(turn.values()) for turn in row["turns"]])
        table.append([short(row["model"]), *(f"{statistics.median(part):.2f} ± {spread(part):.2f}" for part in parts)])
    return table


def quality_table(found: dict[str, Any]) -> Table:
    counts = sorted({point["images"] for row in found["rows"] for point in row["distances"]})
    table = [["sampler", "steps", *(f"FD of {count:,}" for count in counts), "images/s"]]
    for row in found["rows"]:
        points = {point["images"]: f"{point['value']:.4g} ± {point['error']:.2g}" for point in row["distances"]}
        shown = [points.get(count, "") for count in counts]
        table.append([row["sampler"], str(row["steps"]), *shown, figure(row["images_per_second"])])
    return table


def against_table(found: dict[str, Any]) -> Table:
    table = [["", "images", "FD, ratio", "speed, ratio", f"FD at most {AIM_DISTANCE}", f"speed at least {AIM_SPEED}"]]
    for row in found["against_many_steps"]:
        names = " against ".join(f"{name}, {steps} steps" for name, steps in (row["few"], row["many"]))
        ratio = f"{row['distance_ratio']:.3f} ± {row['error']:.2g}"
        answers = ["yes" if row[key] else "no" for key in ("distance_holds", "speed_holds")]
        answers[0] += ", within the error" * (abs(row["distance_ratio"] - AIM_DISTANCE) < row["error"])
        table.append([names, f"{row['images']:,}", ratio, f"{row['speed_ratio']:.1f}", *answers])
    return table


def short(model: str) -> str:
    return Path(model).resolve().name


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    options, given = read_options(argv)
    config, reference, common, *_ = options
    assert config.model is not None

    from hfgen.evaluation.compare import load_samplers
    from hfgen.evaluation.features import load_extractor
    from hfgen.runtime.launch import describe, make_accelerator

    accelerator = make_accelerator(cpu_threads=config.cpu_threads)
    samplers = load_samplers(config.model, given, accelerator.device)
    ddpms, real = [sampler for sampler in samplers if sampler.adapter.kind == "DDPM" and config.steps], None
    if ddpms:  # first, as it is here that options may be wrong
        extractor = load_extractor(config.extractor, config.extractor_weights, accelerator.device)
        real = open_real(config, reference, ddpms[0], extractor, accelerator)

    measured: dict[str, Any] = {"starts": starts(samplers, config, given), "speeds": speeds(samplers, config)}
    tables = {"Time to the first image": start_table(measured["starts"])}
    tables["Speed of sampling"] = speed_table(measured["speeds"])
    notes = [
        f"Images per second, from seeds to 8-bit images: the median of {config.repeats} turns, ± their deviation. The "
        "first image of a batch comes with the last one, so after the batch size over the images per second.",
        "Time to the first image: of one image, in a new process, the files in the system's cache.",
    ]
    if real:
        measured["quality"] = [quality(sampler, config, given, real) for sampler in ddpms]
        notes.append(
            f"FD: Fréchet distance in the {real.extractor.dim} features of {real.extractor.id} (fingerprint "
            f"{real.extractor.fingerprint[:8]}) to {real.text}; seeds from {config.seed} on. It is too large by an "
            "amount that falls with the number of images: compare it at equal numbers only. ± is its error by the "
            f"choice of generated images, from {GROUPS} groups of which one is left out in turn. Images per second: "
            f"the median of batches of {config.batch_size}, the samplers in turns. Of steps that fall on the same "
            "timestep our sampler takes one, so that it takes fewer than --steps where they are many."
        )
    for found in measured.get("quality", []):
        tables[f"Steps and quality, {short(found['model'])}"] = quality_table(found)
        tables[f"Few steps against many, {short(found['model'])}"] = against_table(found)
        notes += found["notes"]
    machine = describe(accelerator, common.mixed_precision)
    command = command_of(__file__, [type(part) for part in options], argv)
    publish(config.output, command, machine, as_dict(options), tables, notes, measured)


if __name__ == "__main__":
    with one_line_errors():
        main()
