"""A training run: what is due between the steps of an engine, from the first to the last."""

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from PIL import Image

from hfgen.hub.background import BackgroundPush
from hfgen.runtime.distributed import in_first_process
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import remove_temporary, write_json
from hfgen.runtime.launch import StopSignal, describe, make_accelerator
from hfgen.runtime.lock import FolderLock
from hfgen.runtime.notes import say
from hfgen.runtime.options import as_text
from hfgen.training import checkpoint
from hfgen.training.checkpoint import Checkpoints
from hfgen.training.console import progress_bar
from hfgen.training.engine import Engine
from hfgen.training.folder import RunFolder
from hfgen.training.lora import adapter_weights, adapters
from hfgen.training.metrics import MetricsLog
from hfgen.training.options import RunOptions
from hfgen.training.overview import FOLDER, write_overview
from hfgen.training.publisher import Publisher
from hfgen.training.recipe import FROZEN, Progress, Recipe
from hfgen.training.schedules import Schedule
from hfgen.training.start import public_name

if TYPE_CHECKING:
    from hfgen.training.evaluation import Evaluation


class Run:
    """Trains a recipe to the end of its schedule, and keeps, measures, shows and shares what it learns.

    Making a run checks all that can be checked, resumes from a checkpoint if that was asked for, and rehearses the
    end; [`train`] does the work.

    Args:
        recipe ([`Recipe`]): What to train.
        stream ([`~data.streams.Stream`]): The data.
        options ([`RunOptions`]): Resolved options.
        accelerator (`Accelerator`, *optional*): By default made from the options.
        live (`bool`, *optional*, defaults to `False`): Whether derived columns are encoded in each step.
        say (`Callable`, *optional*): Told, in the first process, what a person should know; by default it is printed
            beside the progress bar.

    Attributes:
        images_seen (`int`): The position.
        folder ([`RunFolder`]): `folder.path` is what `from_pretrained` takes in the end.
        stopped_by (`int`): The number of the signal that ended the training early; 0 for none.

    Raises:
        UserError: If the run cannot start as asked, or could not end.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: Any,
        options: RunOptions,
        accelerator: Any = None,
        live: bool = False,
        say: Callable[[str], None] | None = None,
    ):
        config = options.training
        self.recipe, self.stream, self.options, self.config, self._say = recipe, stream, options, config, say
        self.accelerator = accelerator or make_accelerator(config.mixed_precision, config.cpu_threads)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.folder = RunFolder(options)
        self.lock = FolderLock(self.folder.path)
        self._before = checkpoint.list_checkpoints(self.folder.path)
        self.images_seen, self.stopped_by = 0, 0
        self._enough = False  # whether the evaluations have said that more training is of no use
        self.seconds = 0.0  # of training, in this and earlier lives of the run
        self._saved_at: int | None = None  # images seen at the last checkpoint
        processes = self.accelerator.num_processes, self.accelerator.process_index
        self.schedule = Schedule(config, stream.info.num_images, *processes)
        stream.to(self.device)
        self.engine = Engine(recipe, config, self.schedule, options.data, self.accelerator, live, self.say)
        self.checkpoints = Checkpoints(self.engine, stream, self.folder)
        resumed = self._resume() if self.folder.checkpoint else False
        if len(set(gather_object([self.images_seen]))) > 1:
            raise UserError(
                f"`output_dir` {self.folder.path}: the processes do not see the same checkpoints. Put it on a disk "
                "that all of them share."
            )
        self.publisher = Publisher(self.engine, stream, self.folder)
        in_first_process(self.accelerator, lambda: self.publisher.rehearse(self.record()))
        self.evaluation = self._make_evaluation() if config.eval_every is not None else None
        try:
            in_first_process(self.accelerator, self._open)
            self.accelerator.wait_for_everyone()
            with self.folder.writing():
                self.log = MetricsLog(self.accelerator, self.folder.logs / "metrics.jsonl", self.images_seen, resumed)
            self._init_trackers()
        except BaseException:  # a notebook that keeps the traceback keeps this run
            self.lock.release()
            raise

    def _init_trackers(self) -> None:
        if self.accelerator.log_with:
            self.accelerator.project_configuration.set_directories(str(self.folder.path))
            self.accelerator.project_configuration.logging_dir = str(self.folder.logs)
            values = self.options.values.items()
            flat = {key: value if isinstance(value, int | float | str) else str(value) for key, value in values}
            self.accelerator.init_trackers("hfgen", config=flat)

    def _open(self) -> None:
        """Makes the folder the run's own.

        Raises:
            UserError: If another run has it, or had it since this one looked for checkpoints.
        """
        folder = self.folder
        with folder.writing():
            folder.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            if checkpoint.list_checkpoints(folder.path) != self._before:
                raise UserError(
                    f"`output_dir` {folder.path}: another run has written checkpoints since this one began. Repeat "
                    "the command."
                )
            folder.clear()
            remove_temporary(folder.path, *folder.parts)
            for path in checkpoint.set_aside(folder.path, self.images_seen):
                self.say(f"A later checkpoint is kept as {path}")
            self.write_record()
        if self.config.push_to_hub and self.config.hub_strategy == "every_save":
            self.publisher.pushes = BackgroundPush(folder.path, folder.model_id, self.config.hub_token, self.say)

    # Training

    def train(self) -> "Run":
        """Trains to the end, or until a signal asks to stop; ends with a checkpoint either way.

        Raises:
            UserError: If the loss becomes infinite or NaN, or something cannot be written.
        """
        self._introduce()
        signals = StopSignal()
        try:
            if 0 < self.images_seen < self.schedule.total:  # the run may have been stopped before it came to this
                self._between_steps()
            with progress_bar(self.schedule.total, self.images_seen, self.main) as bar:
                while not self._ended:
                    start = time.perf_counter()
                    micro = self.schedule.micro_batch
                    raws = [self.stream.read(self.images_seen + offset, micro) for offset in self.schedule.starts]
                    self.engine.step(self.images_seen, raws)
                    self.images_seen += self.schedule.batch
                    bar.update(self.schedule.batch)
                    if self._due(self.schedule.logging):  # waits for the device
                        bar.set_postfix(self._log(), refresh=False)
                    self.seconds += time.perf_counter() - start
                    if self._stop_asked(signals):
                        break
                    if self.images_seen < self.schedule.total:
                        self._between_steps()
            if not self._ended:
                self._check_finite()
                path = self._save_checkpoint()
                self.say(f"Stopped by signal {self.stopped_by} at {self.images_seen} images; saved {path}.")
                self.say("Go on with the same command and `resume_from_checkpoint` latest.")
            else:
                self._finish()
        finally:
            signals.close()
            if self.publisher.pushes:
                self.publisher.pushes.close()
            self.accelerator.end_training()
            self.lock.release()
        return self

    def _introduce(self) -> None:
        self.say(f"{self.stream.info}")
        millions = sum(self._parameters().values()) / 1e6
        steps = self.schedule.total // self.schedule.batch
        machine = describe(self.accelerator, self.accelerator.mixed_precision)
        self.say(f"{machine}; {millions:.2f} M parameters; {steps} steps of {self.schedule.batch} images")
        rank = self.config.lora_rank
        if rank is not None:
            adapted = self._adapted()
            count, layers = adapted["parameters"], adapted["layers"]
            self.say(f"LoRA of rank {rank}: {count:,} parameters are trained, beside {layers} layers")
        chosen = self.options.chosen
        if chosen:
            values = (f"`{name}` {as_text(value)}" for name, value in chosen.items())
            self.say(f"Chosen for these images and this machine: {', '.join(values)}")
        if self.images_seen:
            self.say(f"Resuming from {self.folder.checkpoint}, at {self.images_seen} images")

    @property
    def _ended(self) -> bool:
        return self._enough or self.images_seen >= self.schedule.total

    def _due(self, interval: int | None) -> bool:
        return self.schedule.due(interval, self.images_seen)

    def _between_steps(self) -> None:
        """Does what is due. Repeated at the same position, it gives the same files."""
        if self.publisher.pushes:
            self.publisher.pushes.poll()
        schedule = self.schedule
        intervals = (schedule.checkpointing, schedule.images, schedule.evaluation, schedule.model)
        checkpointing, images, evaluation, model = map(self._due, intervals)
        if not any((checkpointing, images, evaluation, model)):
            return
        with self.log.paused():
            self._check_finite()
            if checkpointing and self._saved_at != self.images_seen:
                self._save_checkpoint()
            if images or evaluation or model:
                self._publish(images, evaluation, model)

    def _publish(self, grid: bool, evaluation: bool, model: bool) -> None:
        """Makes the pipeline of what has been learnt by now; shows, measures and saves it, as is due."""
        last = self._ended
        complete = (evaluation or model) and (last or not self.options.data.streaming)  # a stream's images come once
        with self.publisher.pipeline(self.publisher.batches() if complete else None) as pipeline:
            if grid:
                self.publisher.sample_grid(pipeline, self.images_seen)
                if self.main and self.accelerator.trackers:
                    self.log.show(Image.open(self.folder.grid(self.images_seen)), self.images_seen)
            if evaluation and self.evaluation:
                self._evaluate(pipeline, last)
            if model:
                self.publisher.publish(pipeline, self.folder.path, self.record(), last)
        if grid and self.main:
            with self.folder.writing():
                write_overview(self.folder.path, self.folder.logs, self.stream.info.resolution)

    def _finish(self) -> None:
        if self.engine.metrics.state_dict():
            self._log()
        self._check_finite()
        if self._saved_at != self.images_seen:
            self._save_checkpoint()
        self._publish(grid=True, evaluation=not self._enough, model=True)
        folder = self.folder
        self.say(f"Done: {self.images_seen} images in {self.seconds:.0f} s of training.")
        self.say(f"Samples:  {folder.grid(self.images_seen)}")
        self.say(f"Overview: {folder.path / FOLDER / 'README.md'}")
        self.say(f"Pipeline: {folder.path} (its card: {folder.path / 'README.md'})")
        if (folder.best / "model_index.json").exists():
            self.say(f"Best:     {folder.best}")
        if self.publisher.pushes:
            self.publisher.pushes.finish()

    def _stop_asked(self, signals: StopSignal) -> bool:
        """Says whether any process was told to stop. On GPUs they ask each other only when they log, for speed."""
        if self.accelerator.num_processes == 1:
            self.stopped_by = signals.number or 0
        elif self.device.type == "cpu" or self._due(self.schedule.logging):
            asked = torch.tensor([signals.number or 0], device=self.device)
            self.stopped_by = int(self.accelerator.gather(asked).max())
        return self.stopped_by != 0

    def _check_finite(self) -> None:
        bad = self.engine.metrics.first_bad_step()
        if bad is not None:
            phase, images_seen = bad
            raise UserError(
                f"the loss or gradient of phase {phase!r} became infinite or NaN in step "
                f"{images_seen // self.schedule.batch + 1}, after {images_seen} images. {self.folder.last_good()} "
                "Try a lower `learning_rate`, a longer `lr_warmup_steps`, or `mixed_precision` no."
            )

    def _log(self) -> dict[str, str]:
        """Writes a line of metrics; returns what the progress bar shows."""
        self._check_finite()
        means = self.engine.metrics.means()
        position: dict[str, Any] = {"step": self.images_seen // self.schedule.batch}
        if self.stream.info.num_images:
            position["epoch"] = round(self.images_seen / self.stream.info.num_images, 4)
        rates = self.engine.learning_rates(self.images_seen)
        rates = {f"lr_{name}" if len(rates) > 1 else "lr": rate for name, rate in rates.items()}
        with self.folder.writing():
            self.log.write(self.images_seen, position | means | rates)
        progress = Progress(self.images_seen, self.images_seen / self.schedule.total, position["step"])
        for warning in self.recipe.warnings(means, progress):
            self.say(f"Warning: {warning}")
        return {name: f"{value:.3g}" for name, value in means.items() if name.endswith("loss")}

    def _make_evaluation(self) -> "Evaluation":
        from hfgen.training.evaluation import Evaluation

        with self.publisher.pipeline() as pipeline:
            sampler, best = self.publisher.sampler(pipeline), self.folder.best / "run.json"
            return Evaluation(self.options, sampler, self.accelerator, best)

    def _evaluate(self, pipeline: Any, last: bool) -> None:
        """Measures what would be published, and keeps the best."""
        assert self.evaluation is not None and self.schedule.evaluation is not None
        found = self.evaluation(self.publisher.sampler(pipeline), self.images_seen, self.schedule.evaluation)
        with self.folder.writing():
            seconds = round(self.seconds, 1)
            self.log.record({"images_seen": self.images_seen, "training_seconds": seconds, **found.values})
        shown = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in found.values.items())
        self.say(f"At {self.images_seen} images: {shown or 'no metric has a value'}{' (the best)' * bool(found.best)}")
        for note in found.notes:
            self.say(f"Note: {note}")
        if found.best:
            self.publisher.publish(pipeline, self.folder.best, self.record(evaluation=found.best), last)
        if found.enough and not last:
            self.say(f"Ends early: {found.enough}.")
            self._enough = True

    # Keeping

    def _save_checkpoint(self) -> Path:
        path = self.checkpoints.save(self.images_seen, self.seconds, self.write_record)
        self._saved_at = self.images_seen
        return path

    def _resume(self) -> bool:
        """Goes on from a checkpoint; returns whether it holds sums of metrics since the last line."""
        state = self.checkpoints.resume(self.say)
        self.images_seen = self._saved_at = state["images_seen"]
        self.seconds = state["seconds"]
        return bool(state["has_metrics"])

    def _parameters(self) -> dict[str, int]:
        """Counts the parameters of each network that is not frozen, without those of adapters, which are merged."""
        return {
            name: sum(map(torch.numel, network.module.parameters()))
            - sum(map(torch.numel, adapter_weights(network.module).values()))
            for name, network in self.engine.networks.items()
            if network.role != FROZEN
        }

    def _adapted(self) -> dict[str, Any]:
        """Returns the network that has adapters, how many parameters they have, and beside how many layers."""
        name, module = next((name, module) for name, module in self.engine.modules.items() if adapters(module))
        count = sum(map(torch.numel, adapter_weights(module).values()))
        return {"network": name, "parameters": count, "layers": len(adapters(module)), "peft": version("peft")}

    def _progress(self) -> dict[str, Any]:
        return {
            "data": self.stream.info.as_record(),
            "machine": describe(self.accelerator, self.accelerator.mixed_precision),
            "precision": self.accelerator.mixed_precision,
            "parameters": self._parameters(),
            "frozen": {
                name: {"origin": self.engine.networks[name].origin, "digest": value}
                for name, value in self.engine.digests.items()
            },
            **({"init_from": public_name(self.config.init_from)} if self.config.init_from else {}),
            **({"lora": self._adapted()} if self.config.lora_rank is not None else {}),
            "images_per_step": self.schedule.batch,
            "images_seen": self.images_seen,
            "images_total": self.images_seen if self._enough else self.schedule.total,
            "training_seconds": round(self.seconds, 1),
        }

    def record(self, **more: Any) -> dict[str, Any]:
        """Returns the content of `run.json` now."""
        return self.folder.record(**self._progress(), **more)

    def write_record(self) -> None:
        """Writes `run.json`."""
        write_json(self.folder.file, self.record())

    def say(self, text: str) -> None:
        """Tells a person something, in one process."""
        if self.main:
            (self._say or say)(text)
