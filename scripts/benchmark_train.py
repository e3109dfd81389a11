"""Measures what the training loop costs: images per second of our loop against a bare torch loop.

Both train the same network on the same data with the same batch, precision and optimiser, in turn and in one process,
so that noise of the machine hits both alike. The bare loop keeps the images as one float tensor and does nothing but
forward, backward, clipping, AdamW and the moving average. Examples:

    python scripts/benchmark_train.py
    python scripts/benchmark_train.py --preset mnist --rounds 10 --output benchmark.json
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from train_ddpm import PRESETS

from hfgen.cli import option, parse
from hfgen.data.config import DataConfig
from hfgen.errors import one_line_errors
from hfgen.training.config import MOVED, DDPMConfig, TrainingConfig
from hfgen.training.options import choose_preset


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark: how long to measure."""

    rounds: int = option(8, "how often each loop gets its turn")
    round_seconds: float = option(6.0, "length of a turn")
    output: str | None = option(None, "JSON file for the figures")


def read_options(argv: Sequence[str] | None = None) -> list[Any]:
    return parse(
        (BenchmarkConfig, DataConfig, TrainingConfig, DDPMConfig),
        argv,
        description=str(__doc__).partition("\n")[0],
        presets=PRESETS,
        default_preset=choose_preset,
        moved=MOVED,
        instead={"train_data_dir": "dataset_name"},
    )


def main(argv: Sequence[str] | None = None) -> None:
    benchmark, data, training, ddpm = read_options(argv)
    for config in (data, training, ddpm):
        config.validate()

    import torch

    from hfgen.data.batches import open_batches
    from hfgen.training.ddpm import DDPMRecipe
    from hfgen.training.ema import EMA
    from hfgen.training.launch import describe
    from hfgen.training.loop import Trainer
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import Batch, Progress
    from hfgen.training.run import Run

    with tempfile.TemporaryDirectory() as folder:
        training = dataclasses.replace(training, output_dir=folder)
        batches = open_batches(data, training.seed, training.hub_token)
        torch.manual_seed(training.seed)
        trainer = Trainer(DDPMRecipe(ddpm, batches.info), batches, Run("ddpm", (data, training, ddpm), []), data)
        accelerator, device, size = trainer.accelerator, trainer.device, training.train_batch_size

        torch.manual_seed(training.seed)
        recipe = DDPMRecipe(ddpm, batches.info)
        unet = recipe.modules["unet"].to(device).train()
        if training.channels_last:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = EMA({"unet": unet}, training.ema_half_life, training.ema_ramp)
        if training.compile:
            unet.compile()
        parameters = list(unet.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=ddpm.learning_rate, weight_decay=0.0, fused=device.type in ("cpu", "cuda")
        )
        stored = batches.read(0, min(8192, batches.info.num_images or 8192))
        images, labels = stored.images.float() / 127.5 - 1, stored.labels
        seen = 0

        def bare_step() -> None:
            nonlocal seen
            rows = torch.randint(len(images), (size,), device=device)
            batch = Batch(
                images[rows], labels[rows] if labels is not None else None, StepRandom(0, seen, size, device=device)
            )
            with accelerator.autocast():
                loss, _ = recipe.loss(recipe.phases[0], batch, Progress(seen, 0.0))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen += size
            ema.update(size, seen)

        def our_step() -> None:
            trainer._step()
            if trainer._due(trainer.length.logging):
                trainer._log()

        def speed(step: Any) -> float:
            """Images per second over one turn."""
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < benchmark.round_seconds or count < 2:
                step()
                count += 1
                if device.type == "cuda":
                    torch.cuda.synchronize()
            return count * size / (time.perf_counter() - start)

        for step in (bare_step, our_step):
            for _ in range(3):
                step()
        rows = []
        print(f"{batches.info}; {describe(accelerator, accelerator.mixed_precision)}; batch {size}")
        for number in range(benchmark.rounds):
            pair = {"bare": 0.0, "hfgen": 0.0}
            order = [("bare", bare_step), ("hfgen", our_step)]
            for name, step in order if number % 2 == 0 else order[::-1]:
                pair[name] = speed(step)
            rows.append(pair)
            print(f"round {number + 1}: bare {pair['bare']:.1f}, hfgen {pair['hfgen']:.1f} images/s", flush=True)
    ratios = [row["hfgen"] / row["bare"] for row in rows]
    spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    overhead = 1 - statistics.median(ratios)
    print(f"hfgen / bare: median {statistics.median(ratios):.4f}, deviation {spread:.4f}: overhead {overhead:.2%}")
    if benchmark.output:
        figures = {
            "machine": describe(accelerator, accelerator.mixed_precision),
            "data": str(batches.info),
            "batch": size,
            "rounds": rows,
            "median_ratio": statistics.median(ratios),
            "deviation": spread,
        }
        Path(benchmark.output).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
