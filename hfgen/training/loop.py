"""The training loop: everything that is not peculiar to one family, once.

Time is counted in images seen. Learning rate, moving average, order of the data and random numbers are pure functions
of that count, so a resumed run repeats what the interrupted one would have done, bit for bit, and neither accumulation
nor the number of processes changes what is computed.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast, gather_object
from diffusers import DiffusionPipeline
from torch import nn
from tqdm.auto import tqdm

from hfgen.data.augment import prepare
from hfgen.data.config import DataConfig
from hfgen.data.streams import Batches, RawBatch
from hfgen.hub.background import BackgroundPush
from hfgen.hub.push import MESSAGE, push_folder
from hfgen.runtime.distributed import in_turns
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import folder_at_once, write_json
from hfgen.runtime.launch import StopSignal, describe, make_accelerator
from hfgen.runtime.png import make_grid, save_png, to_uint8
from hfgen.runtime.seeds import seed_from
from hfgen.sampling.sampler import Sampler
from hfgen.training import checkpoint
from hfgen.training.ema import EMA
from hfgen.training.folder import Run
from hfgen.training.monitor import Monitor
from hfgen.training.random import StepRandom, seed_global
from hfgen.training.recipe import Batch, Phase, Progress, Recipe
from hfgen.training.schedules import Length, lr_factor

if TYPE_CHECKING:
    from hfgen.training.evaluation import Evaluation


class Trainer:
    """Trains a recipe.

    Args:
        recipe ([`Recipe`]): What to train.
        batches ([`~data.batches.Batches`]): The data.
        run ([`Run`]): Options and folder.
        data ([`DataConfig`]): The augmentation.
        say (`Callable`, *optional*): Prints a line; by default beside the progress bar.

    Raises:
        UserError: If the run cannot start as asked, or cannot go on.
    """

    def __init__(
        self,
        recipe: Recipe,
        batches: Batches,
        run: Run,
        data: DataConfig,
        say: Callable[[str], None] | None = None,
    ):
        config = run.training
        self._say = say or functools.partial(tqdm.write, file=sys.stdout)
        self.recipe, self.batches, self.run, self.config, self.data = recipe, batches, run, config, data
        tracker = None if config.logger == "none" else config.logger
        self.accelerator = make_accelerator(config.mixed_precision, config.cpu_threads, tracker, config.output_dir)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.images_seen = 0
        self._saved_at: int | None = None  # images seen at the last checkpoint
        self._grid_at: int | None = None  # images seen at the last sample grid
        self._stopped_by = 0  # number of the signal
        self.seconds = 0.0  # of training, in this and earlier lives of the run
        self.length = Length(config, self.accelerator.num_processes, batches.info.num_images)
        batches.place(self.device)

        self.modules = recipe.modules
        for name, module in self.modules.items():
            self._place(name, module)
        self.ema = None
        if config.use_ema:
            averaged = {name: self.modules[name] for name in recipe.averaged}
            self.ema = EMA(averaged, config.ema_half_life, config.ema_ramp)
        if config.compile:  # after the copies above, which stay eager: grids come in other batch sizes
            self._compile()
        self.parameters = {
            phase.name: {
                f"{module}.{name}": parameter
                for module in phase.updates
                for name, parameter in self.modules[module].named_parameters()
                if parameter.requires_grad
            }
            for phase in recipe.phases
        }
        self.optimizers = {phase.name: self._optimizer(phase) for phase in recipe.phases}
        restored = self._resume() if run.resume_from else {}
        if len(set(gather_object([self.images_seen]))) > 1:
            raise UserError(
                f"`output_dir` {run.folder}: the processes do not see the same checkpoints. Put it on a disk that "
                "all of them share."
            )
        self.evaluation = self._make_evaluation() if config.eval_every is not None else None
        if self.main:
            run.clear()
            run.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.prune(run.folder, None)
            for path in checkpoint.set_aside(run.folder, self.images_seen):
                self.say(f"A later checkpoint is kept as {path}")
            write_json(self.run.file, self._record())
        self.pushes = None
        if self.main and config.push_to_hub and config.hub_strategy == "every_save":
            self.pushes = BackgroundPush(run.folder, self.model_id, config.hub_token, self.say)
        self.accelerator.wait_for_everyone()
        logs = run.folder / config.logging_dir
        self.monitor = Monitor(self.accelerator, logs / "metrics.jsonl", self.images_seen, bool(restored))
        self.monitor.restore(restored)
        if self.accelerator.log_with:
            self.accelerator.project_configuration.set_directories(str(run.folder))
            self.accelerator.project_configuration.logging_dir = str(logs)
            flat = {
                key: value if isinstance(value, (int, float, str)) else str(value)
                for key, value in run.settings.items()
            }
            self.accelerator.init_trackers("hfgen", config=flat)

    # Setting up

    def _place(self, name: str, module: nn.Module) -> None:
        module.to(self.device)
        if self.accelerator.num_processes > 1:  # all processes start from the weights of the first
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data.copy_(broadcast(tensor.data))
        if self.config.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.config.gradient_checkpointing:
            if not getattr(module, "_supports_gradient_checkpointing", False):
                raise UserError(f"`gradient_checkpointing`: the module {name!r} does not support it. Leave it out.")
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        module.train()

    def _compile(self) -> None:
        for name, module in self.modules.items():
            if name in self.recipe.uncompiled:
                self.say(f"`compile` leaves the module {name!r} alone: {self.recipe.uncompiled[name]}")
            else:
                module.compile()  # in place: the names of the weights stay

    def _optimizer(self, phase: Phase) -> Any:
        optimizer = torch.optim.AdamW(
            list(self.parameters[phase.name].values()),
            lr=phase.learning_rate,
            betas=phase.betas,
            eps=phase.eps,
            weight_decay=phase.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        return self.accelerator.prepare_optimizer(optimizer)

    # Training

    def train(self) -> None:
        """Trains to the end, or until a signal asks to stop; ends with a checkpoint either way."""
        self.say(f"{self.batches.info}")
        millions = sum(p.numel() for module in self.modules.values() for p in module.parameters()) / 1e6
        steps = self.length.total // self.length.batch
        machine = describe(self.accelerator, self.accelerator.mixed_precision)
        self.say(f"{machine}; {millions:.2f} M parameters; {steps} steps of {self.length.batch} images")
        if self.images_seen:
            self.say(f"Resuming from {self.run.resume_from}, at {self.images_seen} images")
        signals = StopSignal()
        try:
            if 0 < self.images_seen < self.length.total:  # the run may have been stopped before it came to this
                self._between_steps()
            with self._progress_bar() as bar:
                while self.images_seen < self.length.total:
                    start = time.perf_counter()
                    self._step()
                    bar.update(self.length.batch)
                    if self._due(self.length.logging):  # waits for the device
                        bar.set_postfix(self._log(), refresh=False)
                    self.seconds += time.perf_counter() - start
                    if self._stop_asked(signals):
                        break
                    if self.images_seen < self.length.total:
                        self._between_steps()
            if self.images_seen < self.length.total:
                self._check_finite()
                path = self._save_checkpoint()
                self.say(f"Stopped by signal {self._stopped_by} at {self.images_seen} images; saved {path}.")
                self.say("Go on with the same command and `resume_from_checkpoint` latest.")
                raise SystemExit(128 + self._stopped_by)
            self._finish()
        except OSError as error:
            raise UserError(
                f"`output_dir` {self.run.folder} cannot be written: {error}. {self._last_good()}"
            ) from None
        finally:
            signals.close()
            if self.pushes:
                self.pushes.close()
            self.accelerator.end_training()

    def _step(self) -> None:
        """One update of every phase that is due, over one batch of new images."""
        config, accelerator = self.config, self.accelerator
        batch, micro = self.length.batch, self.length.micro_batch
        progress = Progress(self.images_seen, self.images_seen / self.length.total, self.images_seen // batch)
        factor = lr_factor(
            config.lr_scheduler, self.images_seen + batch, self.length.warmup, self.length.total + batch
        )
        # Micro-batch m of process p holds the images from (m * processes + p) * micro on.
        starts = [
            (number * accelerator.num_processes + accelerator.process_index) * micro
            for number in range(config.gradient_accumulation_steps)
        ]
        raws = [self.batches.read(self.images_seen + start, micro) for start in starts]
        for number, phase in enumerate(self.recipe.phases):
            if progress.step % phase.every:
                continue
            for name, module in self.modules.items():
                module.requires_grad_(name in phase.updates)
            prepared = self.optimizers[phase.name]
            optimizer = prepared.optimizer
            optimizer.zero_grad(set_to_none=True)
            finite = torch.ones((), dtype=torch.bool, device=self.device)
            for start, raw in zip(starts, raws, strict=True):
                # Dropout draws from torch's global stream, which is therefore a function of the position, too.
                seed_global(seed_from(config.seed, self.images_seen, "global", number, start), self.device)
                with accelerator.autocast():
                    loss, metrics = self.recipe.loss(phase, self._batch(raw, start, number), progress)
                accelerator.backward(loss / len(starts))
                finite = finite & torch.isfinite(loss.detach())
                self.monitor.add(metrics)
            norm = self._gradients(phase)
            suffix = f"_{phase.name}" if len(self.recipe.phases) > 1 else ""
            if accelerator.scaler:  # fp16: the scaler skips steps that overflow, and lowers its scale
                self.monitor.add({f"overflow{suffix}": ~norm.isfinite()})
                norm = norm.nan_to_num(0.0, 0.0)
            self.monitor.add({f"grad_norm{suffix}": norm})
            self.monitor.watch(phase.name, finite & norm.isfinite(), self.images_seen)
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * factor
            # Accelerate's step looks on the disk for a package each time; only fp16 needs it.
            (prepared if accelerator.scaler else optimizer).step()
        self._average_buffers()
        self.recipe.after_step(batch)
        self.images_seen += batch
        if self.ema is not None:
            self.ema.update(batch, self.images_seen)

    def _batch(self, raw: RawBatch, start: int, phase: int) -> Batch:
        def stream(purpose: str) -> StepRandom:
            stop = start + self.length.micro_batch
            seed = self.config.seed
            return StepRandom(seed, self.images_seen, self.length.batch, start, stop, purpose, self.device)

        images = prepare(raw, self.data, stream("augmentation"))
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, raw.labels, stream(f"phase {phase}"))

    def _from_the_beginning(self) -> Iterator[Batch] | None:
        """The training images once more, the same ones in every process; not in the midst of a stream, whose images
        come once."""
        if self.data.streaming and self.images_seen < self.length.total:
            return None

        def read(start: int) -> Batch:
            raw = self.batches.read(start, size)
            random = StepRandom(self.config.seed, start, size, purpose="after training", device=self.device)
            return Batch(prepare(raw, self.data, random), raw.labels, random)

        size = self.length.micro_batch
        return map(read, itertools.count(step=size))

    def _gradients(self, phase: Phase) -> torch.Tensor:
        """Averages the gradients of a phase over the processes, clips them, and returns their norm before clipping.

        One flat all-reduce after the last micro-batch instead of DDP's hooks: right for any number of forward and
        backward passes, for gradient penalties and for modules that are used through other methods than `forward`;
        and always summed in the same order, which exact resuming needs.
        """
        parameters = list(self.parameters[phase.name].values())
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is None:  # the processes must agree on what they sum
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in gradients]), reduction="mean")
            for grad, part in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
                grad.copy_(part.view_as(grad))
        self.accelerator.unscale_gradients(self.optimizers[phase.name])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return norm

    def _average_buffers(self) -> None:
        """Lets the processes agree on running statistics, which no gradient carries."""
        if self.accelerator.num_processes == 1:
            return
        buffers = [b for module in self.modules.values() for b in module.buffers() if b.is_floating_point()]
        if buffers:
            flat = self.accelerator.reduce(torch.cat([b.float().flatten() for b in buffers]), reduction="mean")
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    # Between the steps

    def _due(self, interval: int | None) -> bool:
        """Whether the step just taken ended an interval of so many images."""
        return (
            interval is not None and self.images_seen // interval > (self.images_seen - self.length.batch) // interval
        )

    def _between_steps(self) -> None:
        """Does what is due. Repeated at the same position, it changes nothing."""
        if self.pushes:
            self.pushes.poll()
        length = self.length
        intervals = (length.checkpointing, length.images, length.evaluation, length.model)
        checkpointing, images, evaluation, model = map(self._due, intervals)
        if not any((checkpointing, images, evaluation, model)):
            return
        with self.monitor.paused():
            self._check_finite()
            if checkpointing and self._saved_at != self.images_seen:
                self._save_checkpoint()
            if images or evaluation or model:
                with self._pipeline(complete=evaluation or model) as pipeline:
                    if images:
                        self._sample_grid(pipeline)
                    if evaluation:
                        self._evaluate(pipeline)
                    if model:
                        self._publish(pipeline, self.run.folder)

    def _stop_asked(self, signals: StopSignal) -> bool:
        """Whether any process was told to stop. On GPUs the processes ask each other only when they log, for speed."""
        if self.accelerator.num_processes == 1:
            self._stopped_by = signals.number or 0
        elif self.device.type == "cpu" or self._due(self.length.logging):
            asked = torch.tensor([signals.number or 0], device=self.device)
            self._stopped_by = int(self.accelerator.gather(asked).max())
        return self._stopped_by != 0

    def _last_good(self) -> str:
        good = checkpoint.list_checkpoints(self.run.folder)
        return f"The last good checkpoint is {good[-1]}." if good else "There is no checkpoint yet."

    def _check_finite(self) -> None:
        bad = self.monitor.first_bad_step()
        if bad is not None:
            phase, images_seen = bad
            raise UserError(
                f"the loss or gradient of phase {phase!r} became infinite or NaN in step "
                f"{images_seen // self.length.batch + 1}, after {images_seen} images. {self._last_good()} "
                "Try a lower `learning_rate`, a longer `lr_warmup_steps`, or `mixed_precision` no."
            )

    def _log(self) -> dict[str, str]:
        """Writes a line of metrics; returns what the progress bar shows."""
        self._check_finite()
        means = self.monitor.means()
        position = {"step": self.images_seen // self.length.batch}
        if self.batches.info.num_images:
            position["epoch"] = round(self.images_seen / self.batches.info.num_images, 4)  # type: ignore[assignment]
        rates = {
            f"lr_{name}" if len(self.optimizers) > 1 else "lr": optimizer.param_groups[0]["lr"]
            for name, optimizer in self.optimizers.items()
        }
        self.monitor.write(self.images_seen, position | means | rates)
        for warning in self.recipe.warnings(means, self.images_seen):
            self.say(f"Warning: {warning}")
        return {name: f"{value:.3g}" for name, value in means.items() if name.endswith("loss")}

    @property
    def published(self) -> dict[str, nn.Module]:
        """The modules that are sampled and published."""
        return self.ema.modules if self.ema else {name: self.modules[name] for name in self.recipe.averaged}

    @property
    def _grid_file(self) -> Path:
        return self.run.folder / "samples" / f"{self.images_seen:012d}.png"

    @contextlib.contextmanager
    def _pipeline(self, complete: bool) -> Iterator[DiffusionPipeline]:
        """The pipeline of what has been learnt by now; `complete` with what is fitted to it afterwards."""
        for module in self.published.values():
            module.eval()
        yield self.recipe.pipeline(self.published, self._from_the_beginning() if complete else None)
        if not self.ema:
            for module in self.published.values():
                module.train()

    def _sampler(self, pipeline: DiffusionPipeline) -> Sampler:
        return Sampler(pipeline, self.recipe.sampling, str(self.run.folder), self.accelerator.autocast)

    def _sample_grid(self, pipeline: DiffusionPipeline) -> None:
        """Samples on all processes, each image with its own seed, and writes the grid."""
        sampler, count = self._sampler(pipeline), self.config.eval_batch_size
        size = min(64, -(-count // self.accelerator.num_processes))
        made = in_turns(
            self.accelerator, count, size, lambda i: {"images": sampler(i, self.config.seed)}, "Samples", leave=False
        )
        if self.main:
            images = made["images"].permute(0, 2, 3, 1).numpy()
            save_png(make_grid(list(images), self.recipe.grid_columns), self._grid_file, self._origin())
        self._grid_at = self.images_seen

    def _origin(self) -> dict[str, Any] | None:
        """What PNG files say of the model that made them."""
        if not self.config.provenance:
            return None
        return {"model": self.model_id, "images_seen": self.images_seen, "seed": self.config.seed}

    def _make_evaluation(self) -> "Evaluation":
        from hfgen.training.evaluation import Evaluation

        with self._pipeline(complete=False) as pipeline:
            sampler, best = self._sampler(pipeline), self._best / "run.json"
            return Evaluation(self.config, self.data, sampler, self.accelerator, best)

    def _evaluate(self, pipeline: DiffusionPipeline) -> None:
        """Measures what would be published, and keeps the best."""
        assert self.evaluation is not None
        values, notes, best = self.evaluation(self._sampler(pipeline), self.images_seen)
        self.monitor.record({"images_seen": self.images_seen, "training_seconds": round(self.seconds, 1), **values})
        shown = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in values.items())
        self.say(f"At {self.images_seen} images: {shown or 'no metric has a value'}{' (the best)' * bool(best)}")
        for note in notes:
            self.say(f"Note: {note}")
        if best:
            self._publish(pipeline, self._best, evaluation=best)

    @property
    def _best(self) -> Path:
        return self.run.folder / "best"

    # Keeping

    def _save_checkpoint(self) -> Path:
        streams = gather_object([self.batches.state()])
        sums = self.monitor.state()
        path = self.run.folder / f"{checkpoint.PREFIX}{self.images_seen:012d}"
        problem = None
        if self.main:
            tensors = {name: module.state_dict() for name, module in self.modules.items()}
            for name, module in (self.ema.modules if self.ema else {}).items():
                tensors[f"ema_{name}"] = module.state_dict()
            for name, optimizer in self.optimizers.items():
                state, parameters = optimizer.optimizer.state, self.parameters[name]
                tensors[f"optimizer_{name}"] = {
                    f"{parameter}.{key}": value
                    for parameter, tensor in parameters.items()
                    for key, value in state[tensor].items()
                }
            tensors["metrics"] = sums
            scaler = self.accelerator.scaler
            state = {
                "config": self.run.fixed,
                "data": self.batches.info.fingerprint,
                "images_per_step": self.length.batch,
                "total": self.length.total,
                "seconds": self.seconds,
                "scaler": scaler.state_dict() if scaler else None,
                "streams": streams,
            }
            try:
                checkpoint.save(self.run.folder, self.images_seen, tensors, state)
                checkpoint.prune(self.run.folder, self.config.checkpoints_total_limit)
                write_json(self.run.file, self._record())
            except (UserError, OSError) as error:
                problem = str(error)
        problem = next((text for text in gather_object([problem]) if text), None)
        if problem:  # every process ends, none waits for one that is gone
            raise UserError(problem)
        self._saved_at = self.images_seen
        return path

    def _resume(self) -> dict[str, torch.Tensor]:
        """Takes everything from a checkpoint; returns the sums of metrics since the last line."""
        path = self.run.resume_from
        assert path is not None
        flag = f"`resume_from_checkpoint` {path}"
        tensors, state = checkpoint.load(path)
        difference = self.run.difference(state["config"])
        if difference:
            raise UserError(f"{flag} belongs to a different run{difference}. Give these as they were.")
        if state["data"] != self.batches.info.fingerprint:
            raise UserError(
                f"{flag} was trained on other data than {self.batches.info.name} now holds: give the same."
            )
        if state["images_per_step"] != self.length.batch:
            raise UserError(
                f"{flag} took {state['images_per_step']} images per step, this run takes {self.length.batch}: choose "
                "`train_batch_size` and `gradient_accumulation_steps` so that processes x batch x accumulation agree."
            )
        for name, module in self.modules.items():
            self._load(flag, name, module, tensors)
        for name, module in (self.ema.modules if self.ema else {}).items():
            self._load(flag, f"ema_{name}", module, tensors)
        for name, optimizer in self.optimizers.items():
            saved = tensors[f"optimizer_{name}"]
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for number, parameter in enumerate(self.parameters[name]):
                prefix = f"{parameter}."
                moments[number] = {
                    k.removeprefix(prefix): v for k, v in saved.items() if k.rpartition(".")[0] + "." == prefix
                }
            groups = optimizer.optimizer.state_dict()["param_groups"]
            used = {number: moment for number, moment in moments.items() if moment}
            optimizer.optimizer.load_state_dict({"state": used, "param_groups": groups})
            for parameter, moments_of in optimizer.optimizer.state.items():
                for key, value in moments_of.items():
                    if value.shape == parameter.shape:  # laid out in memory like the weight, as fused AdamW assumes
                        moments_of[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        streams = state["streams"]
        if streams[0] is not None:
            if len(streams) != self.accelerator.num_processes:
                raise UserError(
                    f"{flag} was written by {len(streams)} processes; a stream can only be resumed with as many, "
                    f"not with {self.accelerator.num_processes}."
                )
            self.batches.restore(streams[self.accelerator.process_index])
        self.images_seen = self._saved_at = state["images_seen"]
        self.seconds = state["seconds"]
        if state["total"] != self.length.total:
            self.say(
                f"The run was to be {state['total']} images long and is now {self.length.total}: the learning rate "
                "follows the new length from here on."
            )
        return tensors.get("metrics", {})

    @staticmethod
    def _load(flag: str, name: str, module: nn.Module, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        saved = tensors.get(name, {})
        wanted = module.state_dict()
        wrong = sorted(key for key in {*saved, *wanted} if key not in saved or key not in wanted)
        wrong += [key for key in wanted if key in saved and saved[key].shape != wanted[key].shape]
        if wrong:
            raise UserError(
                f"{flag} has another architecture: {len(wrong)} tensors of {name!r} are missing or differ in shape, "
                f"for example {wrong[0]!r}. Give the options of the run that wrote it."
            )
        module.load_state_dict(saved)

    def _record(self) -> dict[str, Any]:
        info = self.batches.info
        return self.run.record(
            data=dataclasses.asdict(info),
            machine=describe(self.accelerator, self.accelerator.mixed_precision),
            precision=self.accelerator.mixed_precision,
            parameters={name: sum(p.numel() for p in module.parameters()) for name, module in self.modules.items()},
            images_per_step=self.length.batch,
            images_seen=self.images_seen,
            images_total=self.length.total,
            training_seconds=round(self.seconds, 1),
        )

    def _publish(self, pipeline: DiffusionPipeline, target: Path, **more: Any) -> None:
        """Writes a pipeline, its card and its `run.json` into a folder, all or nothing."""
        from hfgen.hub.card import write_card

        batches = self._from_the_beginning()
        rows = self.recipe.pictures(self.published, batches) if batches else []
        if self._grid_at != self.images_seen:
            self._sample_grid(pipeline)
        if self.main:
            record = self._record() | more
            with folder_at_once(target) as folder:
                pipeline.save_pretrained(folder)
                (folder / "samples.png").write_bytes(self._grid_file.read_bytes())
                if rows:
                    grid = make_grid([image for row in rows for image in to_uint8(row)], len(rows[0]))
                    save_png(grid, folder / "reconstructions.png", self._origin(), composite=True)
                write_card(folder, record, None if target == self.run.folder else target, self.config.hub_token)
                write_json(folder / "run.json", record)
            if self.pushes and self.images_seen < self.length.total:  # the end has a push of its own
                self.pushes.push(target, f"Training in progress: {self.images_seen} images")
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        if self.monitor.state():
            self._log()
        self._check_finite()
        if self._saved_at != self.images_seen:
            self._save_checkpoint()
        with self._pipeline(complete=True) as pipeline:
            self._sample_grid(pipeline)
            if self.evaluation:
                self._evaluate(pipeline)
            self._publish(pipeline, self.run.folder)
        folder = self.run.folder
        self.say(f"Done: {self.images_seen} images in {self.seconds:.0f} s of training.")
        self.say(f"Samples:  {self._grid_file}")
        self.say(f"Pipeline: {folder} (its card: {folder / 'README.md'})")
        if (self._best / "model_index.json").exists():
            self.say(f"Best:     {self._best}")
        self.say(f"Use it:   hfgen sample --model {folder} --num_images 16")
        if self.pushes:
            self.pushes.finish()

    # Sharing

    @property
    def model_id(self) -> str:
        """The repository of the run."""
        return self.config.hub_model_id or self.run.folder.resolve().name

    def push_to_hub(self, commit_message: str = MESSAGE, revision: str | None = None, create_pr: bool = False) -> str:
        """Pushes the pipeline that the run has saved: see [`~hub.push.push_folder`]. For one process to call.

        Returns:
            `str`: The address.

        Raises:
            UserError: If it cannot be pushed; says how to do so later.
        """
        return push_folder(
            self.run.folder,
            self.model_id,
            private=self.config.hub_private_repo,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=self.config.hub_token,
        )

    def say(self, text: str) -> None:
        """Prints a line, in one process, beside the progress bar."""
        if self.main:
            self._say(text)

    def _progress_bar(self) -> Any:
        return tqdm(
            total=self.length.total,
            initial=self.images_seen,
            unit="img",
            unit_scale=True,
            disable=not self.main,
            smoothing=0.05,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a log file needs no animation
        )
