"""Measures samplers of DDPMs with a network that makes no errors, so that every error is the sampler's.

The pixels of the data are independent. "deviation 0.1" and "0.02" are normal around 0.3: fine and very fine detail, of
which the share that comes back is given, 1 where nothing is lost. "strokes" are dark and light pixels: the figure is
how far the pixels are from those of the data in 8-bit levels, both sorted (Wasserstein's distance). Examples:

    python benchmarks/steps.py --output benchmarks/steps.json
    python benchmarks/steps.py --samplers ddim --steps 20 100 --schedules scaled_linear --prediction_type epsilon
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import BenchmarkOptions, command_of, publish

from hfgen.commands.cli import one_line_errors, parse
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option

if TYPE_CHECKING:
    from diffusers import SchedulerMixin
    from oracle import Mixture

SAMPLERS = ("sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
SIZE = 16  # of an image
LEVELS = 127.5  # of 8 bits, in a unit of pixels in [-1, 1]
DATA: "dict[str, Mixture]" = {
    "deviation 0.1": ((1.0, 0.3, 0.1),),
    "deviation 0.02": ((1.0, 0.3, 0.02),),
    "strokes": ((0.8, -0.8, 0.05), (0.2, 0.6, 0.1)),
}


@dataclass(frozen=True)
class StepsBenchmark(BenchmarkOptions):
    """Benchmark: which samplers, with how many steps, for which noise schedules."""

    samplers: tuple[str, ...] = option(SAMPLERS, "samplers", choices=SAMPLERS)
    steps: tuple[int, ...] = option((3, 5, 8, 10, 15, 20, 50, 100, 250, 1000), "sampling steps", least=1)
    schedules: tuple[str, ...] = option(
        ("squaredcos_cap_v2", "linear"), "noise schedules of 1,000 timesteps", choices=SCHEDULES
    )
    prediction_type: str = option(
        "v_prediction", "what the network predicts", choices=("epsilon", "v_prediction", "sample")
    )
    rescale_betas_zero_snr: bool = option(False, "let the schedules end in pure noise")
    num_images: int = option(64, f"images of {SIZE}x{SIZE} pixels", least=1)
    seed: int = option(0, "seed of the noise", least=0)

    def validate(self) -> None:
        super().validate()
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UserError("`rescale_betas_zero_snr` does not go with `prediction_type` epsilon: use another.")


def read_options(argv: Sequence[str] | None = None) -> StepsBenchmark:
    (config,) = parse((StepsBenchmark,), argv, description=str(__doc__).partition("\n")[0])
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    from diffusers import DDPMScheduler

    from hfgen.pipelines.ddpm_sampling import sampling_scheduler
    from hfgen.runtime.launch import cpu_name

    trained = {
        schedule: DDPMScheduler(
            beta_schedule=schedule,
            prediction_type=config.prediction_type,
            rescale_betas_zero_snr=config.rescale_betas_zero_snr,
            timestep_spacing="trailing",
        )
        for schedule in config.schedules
    }
    columns = [(data, schedule) for data in DATA for schedule in config.schedules]
    table, results = [["sampler", "steps", *(f"{data}, {schedule}" for data, schedule in columns)]], []
    for sampler in config.samplers:
        for steps in config.steps:
            cells = []
            for data, schedule in columns:
                scheduler = sampling_scheduler(trained[schedule], sampler)
                found = measure(trained[schedule], scheduler, DATA[data], steps, config)
                results.append({"sampler": sampler, "steps": steps, "data": data, "schedule": schedule, **found})
                cells.append(f"{found['levels']:.2f}" if data == "strokes" else f"{found['kept']:.3f}")
            table.append([sampler, str(steps), *cells])
            print(*table[-1], flush=True)
    end = "zero" if config.rescale_betas_zero_snr else "the usual"
    notes = [
        f"Pixels: {config.num_images * SIZE**2:,}, all independent. Prediction: {config.prediction_type}, exact; "
        f"{end} signal at the last timestep.",
        "deviation: the share that comes back; strokes: distance of the sorted pixels in 8-bit levels.",
        "Of steps that fall on one timestep, the two DPM-Solvers take one.",
    ]
    command, machine = command_of(__file__, [StepsBenchmark], argv), cpu_name()
    publish(config.output, command, machine, as_dict([config]), {"Exact denoisers": table}, notes, results)


def measure(
    trained: "SchedulerMixin", scheduler: "SchedulerMixin", mixture: "Mixture", steps: int, config: StepsBenchmark
) -> dict[str, float]:
    """Samples with the exact network of a schedule, and compares the pixels with the data."""
    import torch
    from oracle import Oracle

    from hfgen.pipelines.ddpm_sampling import denoise

    network, generator = Oracle(trained, mixture, SIZE), torch.Generator().manual_seed(config.seed)
    images = denoise(network, scheduler, config.num_images, generator, steps)
    pixels, wanted = images.double().flatten() * 2 - 1, network.quantiles(images.numel())
    return {
        "evaluations": len(scheduler.timesteps),
        "mean": pixels.mean().item(),
        "deviation": pixels.std().item(),
        "kept": (pixels.std() / wanted.std()).item(),
        "levels": LEVELS * (pixels.sort().values - wanted).abs().mean().item(),
    }


if __name__ == "__main__":
    with one_line_errors():
        main()
