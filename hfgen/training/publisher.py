"""What a run shows and shares: sample grids, the pipeline with its card, and a rehearsal of both before it begins."""

import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hfgen.data.augment import prepare
from hfgen.hub.background import BackgroundPush
from hfgen.hub.card import write_card
from hfgen.pipelines.portable import remove_unused_code
from hfgen.runtime.distributed import map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import folder_at_once, write_json
from hfgen.runtime.png import make_grid, save_png, to_uint8
from hfgen.sampling.capabilities import Generates, adapter_of
from hfgen.sampling.grid import sample_grid
from hfgen.sampling.sampler import Sampler, sampler_class
from hfgen.training.engine import Engine
from hfgen.training.folder import RunFolder
from hfgen.training.lora import merged, save_adapters
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch

AT_ONCE = 64  # images of a sample grid that a process makes at once


class Publisher:
    """Makes pipelines of what an engine has learnt. Every process must make one, and call its methods.

    Args:
        engine ([`Engine`]): The networks.
        stream ([`~data.streams.Stream`]): The data.
        folder ([`RunFolder`]): Where everything goes.
        pushes ([`BackgroundPush`], *optional*): Told of every pipeline that is saved.
    """

    def __init__(self, engine: Engine, stream: Any, folder: RunFolder, pushes: BackgroundPush | None = None):
        self.engine, self.stream, self.folder, self.pushes = engine, stream, folder, pushes
        self.recipe, self.config, self.accelerator = engine.recipe, engine.config, engine.accelerator
        self.main = self.accelerator.is_main_process
        self._grid_at: int | None = None  # images seen at the last sample grid

    @contextlib.contextmanager
    def pipeline(self, batches: Iterator[Batch] | None = None) -> Iterator[Any]:
        """Makes the pipeline of what has been learnt by now; with `batches`, with what is fitted after training."""
        training = [module for module in self.engine.published.values() if module.training]
        for module in training:
            module.eval()
        try:
            published = {name: merged(module) for name, module in self.engine.published.items()}
            fitted = None if batches is None else self.recipe.fit(published, batches)
            yield self.recipe.pipeline(published, fitted)
        finally:
            for module in training:
                module.train()

    def batches(self) -> Iterator[Batch]:
        """Yields the training images from the beginning of the run, without end, the same ones in every process."""
        engine, size = self.engine, self.engine.schedule.micro_batch

        def read(start: int) -> Batch:
            random = StepRandom(self.config.seed, start, size, purpose="after training", device=engine.device)
            return Batch(prepare(self.stream.read(start, size), engine.data, random), random)

        return map(read, itertools.count(step=size))

    def sampler(self, pipeline: Any) -> Sampler:
        """Makes the sampler of sample grids and evaluations, from seeds."""
        adapter, name = adapter_of(pipeline), str(self.folder.path)
        return sampler_class(adapter)(adapter, self.recipe.sampling, name, self.accelerator.autocast)

    def sample_grid(self, pipeline: Any, images_seen: int) -> None:
        """Writes a grid of images: sampled on all processes, each with its own seed; of a pipeline that makes none
        from seeds, what the recipe shows on the card."""
        composite = not isinstance(adapter_of(pipeline), Generates)
        if not composite:
            sampler, count, seed = self.sampler(pipeline), self.config.eval_batch_size, self.config.seed
            size = min(AT_ONCE, -(-count // self.accelerator.num_processes))
            made = map_over_processes(
                self.accelerator, count, size, lambda i: {"images": sampler(i, seed)}, "Samples", leave=False
            )
            images = list(made["images"].permute(0, 2, 3, 1).numpy()) if self.main else []
            grid = sample_grid(sampler, images, seed) if self.main else None
        else:
            rows = self.recipe.card_images(self.engine.published, self.batches())
            grid = make_grid([image for row in rows for image in to_uint8(row)], len(rows[0]))
        if self.main and grid:
            with self.folder.writing():
                save_png(grid, self.folder.grid(images_seen), self.origin(images_seen), composite)
        self._grid_at = images_seen

    def origin(self, images_seen: int) -> dict[str, Any] | None:
        """Returns what PNG files say of the model that made them."""
        if not self.config.provenance:
            return None
        return {"model": self.folder.model_id, "images_seen": images_seen, "seed": self.config.seed}

    def publish(self, pipeline: Any, target: Path, record: dict[str, Any], last: bool) -> None:
        """Writes a pipeline, its card and its `run.json` into a folder, all or nothing.

        Args:
            pipeline: From [`pipeline`].
            target (`Path`): The run's folder, or that of its best pipeline.
            record (`dict`): What `run.json` holds.
            last (`bool`): Whether the run is at its end, which has a push of its own.
        """
        images_seen = record["images_seen"]
        # During a stream its images cannot be read again.
        rows = self.recipe.card_images(self.engine.published, self.batches()) if last or not self.streaming else []
        if self._grid_at != images_seen:
            self.sample_grid(pipeline, images_seen)
        if self.main:
            with self.folder.writing():
                with folder_at_once(target) as folder:
                    pipeline.save_pretrained(folder)
                    for module in self.engine.published.values():
                        save_adapters(module, folder)
                    shutil.copyfile(self.folder.grid(images_seen), folder / "samples.png")
                    if rows:
                        grid = make_grid([image for row in rows for image in to_uint8(row)], len(rows[0]))
                        save_png(grid, folder / "reconstructions.png", self.origin(images_seen), composite=True)
                    self._write_card(folder, record, target)
                    code = {path.stem for path in folder.glob("*.py")}
                remove_unused_code(target, code)
            if self.pushes and not last:
                self.pushes.push(target, f"Training in progress: {images_seen} images")
        self.accelerator.wait_for_everyone()

    @property
    def streaming(self) -> bool:
        return self.engine.data.streaming

    def _write_card(self, folder: Path, record: dict[str, Any], target: Path) -> None:
        write_card(folder, record, target, self.config.hub_token)
        write_json(folder / "run.json", record)

    # The rehearsal

    def rehearse(self, record: dict[str, Any]) -> None:
        """Tries out, before hours of training, what the run will do at its end: samples an image in the fewest steps,
        writes all of the pipeline but its weights into a temporary folder, and compares its files with what the run's
        folder holds and its bytes with the room on the disk. The state of random numbers is restored afterwards.

        For the first process.

        Raises:
            UserError: If the end of the run would fail.
        """
        with random_state_restored(self.engine.device), self.pipeline() as pipeline:
            if isinstance(adapter_of(pipeline), Generates):
                images = self.sampler(pipeline).fastest()([0], self.config.seed).permute(0, 2, 3, 1).cpu().numpy()
            elif self.streaming:
                raise UserError(
                    "`streaming` keeps no images to show, and this pipeline makes none from seeds: leave it out."
                )
            else:
                images = to_uint8(self.recipe.card_images(self.engine.published, self.batches())[0])
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                save_png(make_grid(list(images)), folder / "samples.png", self.origin(0))
                weights = save_all_but_weights(pipeline, folder)
                for module in self.engine.published.values():
                    save_adapters(module, folder)
                self._write_card(folder, record, self.folder.path)
                self._check_folder({path.name for path in folder.iterdir()})
        self._check_disk(weights)

    def _check_folder(self, names: set[str]) -> None:
        """Refuses to replace what no run of ours wrote."""
        if self.folder.file.exists():
            return
        taken = sorted(name for name in names if (self.folder.path / name).exists())
        if taken:
            raise UserError(
                f"`output_dir` {self.folder.path} holds {', '.join(taken)}, which the pipeline would replace: give "
                "another folder."
            )

    def _check_disk(self, weights: int) -> None:
        """Compares what the run will write with the room on the disk."""
        live = [self.engine.modules[name] for name, n in self.engine.networks.items() if n.role != "frozen"]
        averaged = list(self.engine.ema.modules.values()) if self.engine.ema else []
        moments = 2 * sum(size(p) for part in self.engine.parameters.values() for p in part.values())
        checkpoint = sum(map(module_size, [*live, *averaged])) + moments
        schedule = self.engine.schedule
        kept = min(self.config.checkpoints_total_limit or 1, -(-schedule.total // schedule.checkpointing))
        needed = weights + (kept + 1) * checkpoint  # a new checkpoint is whole before an old one goes
        existing = next(path for path in [self.folder.path, *self.folder.path.absolute().parents] if path.exists())
        free = shutil.disk_usage(existing).free
        if needed > free and not self.folder.checkpoint:
            raise UserError(
                f"`output_dir` {self.folder.path}: checkpoints and pipeline will take {needed / 1e6:,.0f} MB, and the "
                f"disk has {free / 1e6:,.0f} MB left. Free some space, give another folder, or lower "
                "`checkpoints_total_limit`."
            )


@contextlib.contextmanager
def random_state_restored(device: torch.device) -> Iterator[None]:
    """Puts back the state of all random number generators that the block may have drawn from."""
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


def save_all_but_weights(pipeline: Any, folder: Path) -> int:
    """Writes a pipeline's index, code and configurations; returns the bytes of the weights that were left out."""
    weights = 0
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            weights += module_size(component)
            config = getattr(component, "config", None)
            save = getattr(component, "save_config", None) or getattr(config, "save_pretrained", None)
        else:
            save = getattr(component, "save_pretrained", None)
        if save is not None:
            save(folder / name)
    pipeline.save_config(folder)
    return weights


def module_size(module: nn.Module) -> int:
    """Counts the bytes of a module's weights and buffers."""
    return sum(map(size, module.state_dict().values()))


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
