"""One update of a recipe's networks: the whole of a training step, and the state that it changes.

A step is a function of the weights and of its position, counted in images seen: learning rate, moving average and
random numbers follow from that count and the seed. So a resumed run repeats what the interrupted one would have done,
bit for bit, and neither accumulation nor the number of processes changes what is defined per image.

```py
engine = Engine(recipe, config, schedule, data)
for images_seen in range(0, schedule.total, schedule.batch):
    engine.step(images_seen, [stream.read(images_seen + start, schedule.micro_batch) for start in schedule.starts])
```
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.utils.checkpoint import checkpoint

from hfgen.data.augment import prepare
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.launch import make_accelerator
from hfgen.runtime.seeds import seed_from
from hfgen.training.config import TrainingConfig
from hfgen.training.ema import EMA
from hfgen.training.metrics import Metrics
from hfgen.training.optimizers import load_optimizer, matches, parameter_groups, select
from hfgen.training.random import StepRandom, seed_global
from hfgen.training.recipe import FROZEN, TRAINED, Batch, Network, ParameterGroup, Phase, Progress, Recipe
from hfgen.training.schedules import Schedule

Tensors = dict[str, torch.Tensor]
RECOMPUTE = partial(
    checkpoint, use_reentrant=False
)  # diffusers' own function does the same, but breaks compiled graphs


class Engine:
    """Trains the networks of a recipe, step by step.

    Args:
        recipe ([`Recipe`]): What to train.
        config ([`TrainingConfig`]), data ([`DataConfig`]): The options; of the latter, the augmentation.
        schedule ([`Schedule`]): Length, batch and learning rate.
        accelerator (`Accelerator`, *optional*): Device, precision and processes; by default this process alone, with
            what Accelerate finds.
        live (`bool`, *optional*, defaults to `False`): Whether derived columns are encoded in each step.
        say (`Callable`, *optional*): Told what is unusual.

    Attributes:
        modules (`dict[str, nn.Module]`): All networks by name.
        published (`dict[str, nn.Module]`): What is sampled: moving averages, and frozen networks.
        metrics ([`Metrics`]): What the steps reported.

    Raises:
        UserError: If an option does not fit a network.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: TrainingConfig,
        schedule: Schedule,
        data: DataConfig | None = None,
        accelerator: Accelerator | None = None,
        live: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.recipe, self.config, self.schedule = recipe, config, schedule
        self.data = data or DataConfig()
        self.accelerator = accelerator or make_accelerator(config.mixed_precision, config.cpu_threads)
        self.device, self.live = self.accelerator.device, live
        self.metrics = Metrics(self.accelerator)
        self.networks = recipe.networks
        self.modules = {name: network.module for name, network in self.networks.items()}
        for name, network in self.networks.items():
            self._set_up(name, network)
        self.digests = {name: digest(n.module) for name, n in self.networks.items() if n.role == FROZEN}
        frozen_names = self._freeze()
        averaged = {name: n.module for name, n in self.networks.items() if n.averaged}
        trained = [n.module for n in self.networks.values() if n.role == TRAINED]
        fixed = [p for module in trained for p in module.parameters() if not p.requires_grad]
        self.ema = EMA(averaged, config.ema_half_life, config.ema_ramp, fixed) if config.use_ema else None
        frozen = {name: n.module for name, n in self.networks.items() if n.role == FROZEN}
        self.published = dict(self.ema.modules if self.ema else averaged) | frozen
        if config.compile:  # after the copies above, which stay eager: grids come in other batch sizes
            for name, network in self.networks.items():
                if network.eager_reason:
                    say(f"`compile` leaves the network {name!r} alone: {network.eager_reason}")
                else:
                    network.module.compile()  # in place: the names of the weights stay
        candidates = {
            f"{name}.{parameter_name}": parameter
            for name, network in self.networks.items()
            if network.role == TRAINED
            for parameter_name, parameter in network.module.named_parameters()
            if parameter.requires_grad
        }
        self._candidates = list(candidates.values())
        for phase in recipe.phases:
            if frozen_names and not any(matches(name, phase.updates) for name in candidates):
                raise UserError(f"`freeze` {' '.join(config.freeze)} leaves phase {phase.name!r} nothing to train.")
        self.parameters = {phase.name: select(candidates, phase) for phase in recipe.phases}
        self.optimizers = {phase.name: self._optimizer(phase) for phase in recipe.phases}
        self._updated: str | None = None  # the phase whose parameters require gradients now

    def _set_up(self, name: str, network: Network) -> None:
        module = network.module.to(self.device)
        if self.accelerator.num_processes > 1:  # all processes start from the weights of the first
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data.copy_(broadcast(tensor.data))
        if self.config.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if network.role != TRAINED:
            module.requires_grad_(False)
        elif self.config.gradient_checkpointing:
            if not getattr(module, "_supports_gradient_checkpointing", False):
                raise UserError(f"`gradient_checkpointing`: the network {name!r} does not support it. Leave it out.")
            module.enable_gradient_checkpointing(RECOMPUTE)  # type: ignore[operator]
        module.train(network.role != FROZEN)

    def _freeze(self) -> set[str]:
        """Takes the weights that `freeze` names from the training; returns their names.

        Raises:
            UserError: If `freeze` or `lower_rates` name none.
        """
        trained = {
            f"{name}.{key}": parameter
            for name, network in self.networks.items()
            if network.role == TRAINED
            for key, parameter in network.module.named_parameters()
        }
        options = [("freeze", pattern) for pattern in self.config.freeze]
        for option, pattern in [*options, *(("lower_rates", pattern) for pattern in self.config.rate_factors)]:
            if not any(matches(name, (pattern,)) for name in trained):
                parts = sorted({".".join(name.split(".")[:2]) for name in trained})
                raise UserError(
                    f"`{option}` {pattern} is the name of no weights. Those there are begin with: {', '.join(parts)}."
                )
        chosen = {name for name in trained if matches(name, self.config.freeze)}
        for name in chosen:
            trained[name].requires_grad_(False)
        return chosen

    def _optimizer(self, phase: Phase) -> Any:
        value = phase.optimizer
        own = tuple(
            ParameterGroup((pattern, f"{pattern}.*"), value.learning_rate * factor)
            for pattern, factor in self.config.rate_factors.items()
        )
        if own:
            value = replace(value, groups=(*own, *value.groups))
        groups = [
            {"params": list(part.values()), "lr": rate, "peak": rate, "weight_decay": decay}
            for part, rate, decay in parameter_groups(self.parameters[phase.name], value)
        ]
        optimizer = value.make(groups, fused=self.device.type in ("cpu", "cuda"))
        return self.accelerator.prepare_optimizer(optimizer)

    # A step

    def step(self, images_seen: int, raws: Sequence[Any]) -> None:
        """Makes one update of every phase that is due, over one batch of new images.

        Args:
            images_seen (`int`): The position: images before this step.
            raws (`Sequence` of [`~data.streams.RawBatch`]): The micro-batches of this process, on its device: those at
                `schedule.starts` from the position on.
        """
        schedule, accelerator = self.schedule, self.accelerator
        progress = Progress(images_seen, images_seen / schedule.total, images_seen // schedule.batch)
        columns = [self._prepare(images_seen, start, raw) for start, raw in zip(schedule.starts, raws, strict=True)]
        carries: list[dict[str, Any]] = [{} for _ in columns]
        own = schedule.micro_batch * len(columns)  # images of this process
        for number, phase in enumerate(self.recipe.phases):
            if progress.step % phase.every:
                continue
            self._require_gradients(phase)
            prepared = self.optimizers[phase.name]
            optimizer = prepared.optimizer
            optimizer.zero_grad(set_to_none=True)
            finite = torch.ones((), dtype=torch.bool, device=self.device)
            for start, micro_batch, carry in zip(schedule.starts, columns, carries, strict=True):
                # Dropout draws from torch's global stream, which is therefore a function of the position, too.
                seed_global(seed_from(self.config.seed, images_seen, "global", number, start), self.device)
                batch = Batch(micro_batch, self._random(images_seen, start, f"phase {number}"), carry)
                with accelerator.autocast():
                    loss, metrics = self.recipe.loss(phase, batch, progress)
                accelerator.backward(loss / len(columns))
                finite = finite & torch.isfinite(loss.detach())
                self.metrics.add(metrics, schedule.micro_batch)
            norm = self._gradients(phase)
            suffix = f"_{phase.name}" if len(self.recipe.phases) > 1 else ""
            if accelerator.scaler:  # fp16: the scaler skips steps that overflow, and lowers its scale
                self.metrics.add({f"overflow{suffix}": ~norm.isfinite()}, own)
                norm = norm.nan_to_num(0.0, 0.0)
            self.metrics.add({f"grad_norm{suffix}": norm}, own)
            self.metrics.note_finite(phase.name, finite & norm.isfinite(), images_seen)
            factor = schedule.learning_rate(images_seen)  # see `learning_rates`
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            # Accelerate's step looks on the disk for a package each time; only fp16 needs it.
            (prepared if accelerator.scaler else optimizer).step()
        self._agree_on_buffers()
        self.recipe.after_step(schedule.batch)
        if self.ema is not None:
            self.ema.update(schedule.batch, images_seen + schedule.batch)

    def learning_rates(self, images_seen: int) -> dict[str, float]:
        """Returns the learning rate of each phase in its last update before a position, of its first group of
        parameters."""
        batch, rates = self.schedule.batch, {}
        for phase in self.recipe.phases:
            ago = 1 + (images_seen // batch - 1) % phase.every  # steps
            peak = self.optimizers[phase.name].param_groups[0]["peak"]
            rates[phase.name] = peak * self.schedule.learning_rate(images_seen - ago * batch)
        return rates

    def _random(self, images_seen: int, start: int, purpose: str) -> StepRandom:
        stop = start + self.schedule.micro_batch
        return StepRandom(self.config.seed, images_seen, self.schedule.batch, start, stop, purpose, self.device)

    def _prepare(self, images_seen: int, start: int, raw: Any) -> Mapping[str, Any]:
        """Prepares the columns of a micro-batch as all its phases see them."""
        columns = prepare(raw, self.data, self._random(images_seen, start, "augmentation"))
        if self.config.channels_last:
            columns = {
                name: value.contiguous(memory_format=torch.channels_last)
                if isinstance(value, torch.Tensor) and value.ndim == 4
                else value
                for name, value in columns.items()
            }
        if self.live:
            with torch.no_grad(), self.accelerator.autocast():
                columns |= self.recipe.encode(columns)
        return columns

    def _require_gradients(self, phase: Phase) -> None:
        if self._updated != phase.name:
            chosen = {id(parameter) for parameter in self.parameters[phase.name].values()}
            for parameter in self._candidates:
                parameter.requires_grad_(id(parameter) in chosen)
            self._updated = phase.name

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
            average([parameter.grad for parameter in parameters if parameter.grad is not None], self.accelerator)
        self.accelerator.unscale_gradients(self.optimizers[phase.name])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return norm

    def _agree_on_buffers(self) -> None:
        """Lets the processes agree on what no gradient carries, as each network declares."""
        if self.accelerator.num_processes == 1:
            return
        changing = [network for network in self.networks.values() if network.role != FROZEN]
        averaged = [
            b for n in changing if n.buffers == "averaged" for b in n.module.buffers() if b.is_floating_point()
        ]
        if averaged:
            average(averaged, self.accelerator)
        for buffer in (b for n in changing if n.buffers == "broadcast" for b in n.module.buffers()):
            buffer.copy_(broadcast(buffer.clone()))

    # State

    @property
    def state_files(self) -> set[str]:
        """Returns the names of the files that [`state_dict`] has tensors for, whatever the steps so far."""
        live = {name for name, network in self.networks.items() if network.role != FROZEN}
        averaged = {f"ema_{name}" for name in (self.ema.modules if self.ema else ())}
        return live | averaged | {f"optimizer_{phase}" for phase in self.optimizers}

    def state_dict(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Returns all that the steps so far have changed: tensors by the name of a file, and JSON-ready values. What
        the first process returns is complete. Every process must call this."""
        tensors: dict[str, Tensors] = {}
        for name, network in self.networks.items():
            if network.role != FROZEN:
                tensors[name] = dict(network.module.state_dict())
        for name, module in (self.ema.modules if self.ema else {}).items():
            tensors[f"ema_{name}"] = dict(module.state_dict())
        for phase, optimizer in self.optimizers.items():
            state = optimizer.optimizer.state
            tensors[f"optimizer_{phase}"] = {
                f"{name}.{key}": value
                for name, parameter in self.parameters[phase].items()
                for key, value in state[parameter].items()
            }
        for name, network in self.networks.items():
            if network.buffers == "own" and self.accelerator.num_processes > 1:
                buffers = {key: buffer.cpu() for key, buffer in network.module.named_buffers()}
                for process, values in enumerate(gather_object([buffers])):
                    tensors[f"buffers_{name}_{process}"] = values
        tensors["metrics"] = self.metrics.state_dict()
        scaler = self.accelerator.scaler
        values = {
            "scaler": scaler.state_dict() if scaler else None,
            "frozen": self.digests,
            "micro_batch": self.schedule.micro_batch,
            "num_processes": self.accelerator.num_processes,
            "metric_images": self.metrics.images,
        }
        return tensors, values

    def load_state_dict(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Goes on from what [`state_dict`] returned, there or in another process.

        Raises:
            UserError: If it is of other networks; nothing is changed then.
        """
        for name, value in values.get("frozen", {}).items():
            if self.digests.get(name) != value:
                raise UserError(
                    f"the frozen network {name!r} has other weights than the checkpoint was trained with: give these."
                )
        live = {name: network.module for name, network in self.networks.items() if network.role != FROZEN}
        live |= {f"ema_{name}": module for name, module in (self.ema.modules if self.ema else {}).items()}
        for name, module in live.items():
            check_architecture(name, module, tensors.get(name, {}))
        own = [name for name, network in self.networks.items() if network.buffers == "own"]
        before = values.get("num_processes", self.accelerator.num_processes)
        if own and before != self.accelerator.num_processes:
            raise UserError(
                f"the buffers of the network {own[0]!r} are each process's own, and the checkpoint has those of "
                f"{before} processes: resume with as many, not with {self.accelerator.num_processes}."
            )
        for name, module in live.items():
            module.load_state_dict(tensors[name])
        for name in own if before > 1 else ():
            saved = tensors[f"buffers_{name}_{self.accelerator.process_index}"]
            for key, buffer in self.modules[name].named_buffers():
                buffer.copy_(saved[key])
        for phase, optimizer in self.optimizers.items():
            load_optimizer(optimizer.optimizer, self.parameters[phase], tensors[f"optimizer_{phase}"])
        if self.accelerator.scaler and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.metrics.load_state_dict(tensors.get("metrics", {}), values.get("metric_images", {}))


def average(tensors: Sequence[torch.Tensor], accelerator: Accelerator) -> None:
    """Replaces tensors by their means over the processes, in one all-reduce."""
    flat = accelerator.reduce(torch.cat([tensor.float().flatten() for tensor in tensors]), reduction="mean")
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def check_architecture(name: str, module: nn.Module, saved: Tensors) -> None:
    """Raises [`UserError`] if a checkpoint's tensors are not those of a module."""
    own = module.state_dict()
    wrong = sorted(saved.keys() ^ own.keys())
    wrong += [key for key in own if key in saved and saved[key].shape != own[key].shape]
    if wrong:
        raise UserError(
            f"it has another architecture: {len(wrong)} tensors of {name!r} are missing or differ in shape, for "
            f"example {wrong[0]!r}. Give the options of the run that wrote it."
        )


def digest(module: nn.Module) -> str:
    """Computes a digest of a module's weights and buffers."""
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:32]
