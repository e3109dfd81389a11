"""The memory of a training step, estimated without taking it, and the nearest options with which a step fits.

The losses of a recipe run on tensors that have shapes and no memory, and the bytes of those that would live at the
same time are added up: weights, gradients, the optimizer's state, the moving average, the images, and all that a loss
and its backward pass make. What kernels use inside, what the allocator leaves unused, and what Python and its
libraries take, is not counted.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hfgen.data.columns import Derived, sources_of
from hfgen.data.info import ImageInfo, LabelInfo, TextInfo
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import VALUE, Machine, size_text
from hfgen.training.engine import RECOMPUTE
from hfgen.training.optimizers import matches, select
from hfgen.training.options import RunOptions, check_together
from hfgen.training.random import StepRandom
from hfgen.training.recipe import TRAINED, Batch, Network, Progress, Recipe

ALL_IS_DUE = math.lcm(*range(1, 257))  # a step that is a multiple of all intervals: penalties are part of its loss
NOTHING_IS_DUE = 1
OPERATIONS = 10_000  # at most: an estimate that needs more would take longer than it is worth
QUICK = 400  # operations of a loss whose backward pass is estimated in any case
MAPS = 4  # of what a layer puts out, that may be kept: before and after its normalisation and activation
SMALLEST = 8  # pixels of a side that are proposed


class TooLong(Exception):
    """An estimate takes more operations than it is worth."""


class Counter(FakeTensorMode):
    """Lets tensors have no memory, and counts what they would have.

    Args:
        device (`str`): The kind of device that is looked at.

    Attributes:
        now, most (`int`): Bytes of the tensors that live, and the most so far.
        operations (`int`): How many there were.
    """

    def __init__(self, device: str):
        super().__init__(allow_fallback_kernels=False)
        self.device, self.now, self.most = device, 0, 0
        self.operations, self._depth = 0, 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        self._depth += 1
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if not self._depth:  # what an operation is made of here is one kernel when it is computed
            self.operations += 1
            if self.operations > OPERATIONS:
                raise TooLong
            for value in result if isinstance(result, list | tuple) else (result,):
                if isinstance(value, FakeTensor) and value.fake_device.type == self.device:
                    self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def free(_: Any) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, free)
        self.now += size
        self.most = max(self.most, self.now)


def check_step(
    kind: Callable[..., Recipe], options: RunOptions, info: Any, machine: Machine, asked: RunOptions | None = None
) -> None:
    """Makes sure that a step would fit into the memory of the machine, were it empty; what cannot be estimated passes.

    Args:
        kind (`type`): The class of the recipe.
        options ([`RunOptions`]): Resolved options.
        info ([`~data.info.DataInfo`]): What is known of the data.
        machine ([`~runtime.machine.Machine`]): What computes.
        asked ([`RunOptions`], *optional*): The options before they were resolved, for images of another size.

    Raises:
        UserError: If it would not, with what it takes and the nearest options that fit.
    """
    needed = step_memory(kind, options, info, machine.kind, machine.processes)
    if machine.share is None or needed is None or needed <= machine.share:
        return
    changes = [
        f"{' '.join(f'`{name}`' if value is True else f'`{name}` {value}' for name, value in change.items())} "
        f"({size_text(size)})"
        for change, size in nearest(kind, options, info, machine, asked)
    ]
    training = options.training
    remedy = f"What fits: {', or '.join(changes)}." if changes else "Use a smaller network."
    checkpointed = " with `gradient_checkpointing`" if training.gradient_checkpointing else ""
    raise UserError(
        f"`train_batch_size` {training.train_batch_size} at `resolution` {info.resolution}{checkpointed}: a step "
        f"takes about {size_text(needed)}, and this machine has {size_text(machine.share)} for it. {remedy}"
    )


def nearest(
    kind: Callable[..., Recipe], options: RunOptions, info: Any, machine: Machine, asked: RunOptions | None = None
) -> list[tuple[dict[str, Any], int]]:
    """Finds the nearest options with which a step fits: as many images in smaller micro-batches, or gradient
    checkpointing, or else both, or else smaller images. Arguments are those of [`check_step`].

    Returns:
        The options that change, with their values, and the bytes that a step then takes.
    """

    def fits(training: Any, own: RunOptions = options, info: Any = info) -> int | None:
        taken = step_memory(kind, replace(own, training=training), info, machine.kind, machine.processes)
        return taken if taken is not None and taken <= (machine.share or 0) else None

    def smaller(training: Any) -> tuple[dict[str, Any], int] | None:
        images = training.train_batch_size
        sizes = [size for size in range(1, images) if images % size == 0 and _goes(options, training, size)]
        best = None
        while sizes:  # the more images, the more memory: the middle says which half to look at
            size = sizes[len(sizes) // 2]
            change = {
                "train_batch_size": size,
                "gradient_accumulation_steps": training.gradient_accumulation_steps * images // size,
            }
            taken = fits(replace(training, **change))
            if taken is not None:
                best = change, taken
            middle = sizes.index(size)
            sizes = sizes[:middle] if taken is None else sizes[middle + 1 :]
        return best

    found = [smaller(options.training)]
    if not options.training.gradient_checkpointing:
        again, change = replace(options.training, gradient_checkpointing=True), {"gradient_checkpointing": True}
        taken = fits(again)  # none, too, where a network cannot do it
        found.append((change, taken) if taken is not None else None)
        if not any(found) and (both := smaller(again)):
            found.append((change | both[0], both[1]))
    resolution = info.resolution // 2
    while asked is not None and not any(found) and resolution >= SMALLEST:
        columns = {
            name: replace(column, resolution=resolution) if isinstance(column, ImageInfo) else column
            for name, column in info.columns.items()
        }
        at_this = replace(info, columns=columns)
        try:
            own = replace(asked, data=replace(asked.data, resolution=resolution))
            own = own.resolve(at_this, machine, options.training.mixed_precision)
        except UserError:  # other options do not go with it
            break
        taken = fits(own.training, own, at_this)
        found.append(({"resolution": resolution}, taken) if taken is not None else None)
        resolution //= 2
    return [one for one in found if one is not None]


def _goes(options: RunOptions, training: Any, images: int) -> bool:
    """Says whether a family takes so many images in a micro-batch."""
    try:
        check_together(options.own, options.data, replace(training, train_batch_size=images))
    except UserError:
        return False
    return True


def most_a_step_takes(networks: Iterable[Network], options: RunOptions, info: Any) -> int:
    """Returns more bytes than the activations of a step take, at no cost: as if each layer kept all that it puts out
    for each pixel, and compared all pixels with each other, as attention does.

    Args:
        networks: Those of the recipe, on whatever device.
        options ([`RunOptions`]), info ([`~data.info.DataInfo`]): As [`check_step`] has them.
    """
    weights = [tensor for network in networks for tensor in network.module.parameters() if tensor.ndim]
    pixels = info.resolution**2
    values = MAPS * sum(len(tensor) for tensor in weights) + pixels * sum(tensor.ndim == 2 for tensor in weights)
    return VALUE * options.training.train_batch_size * pixels * values


def step_memory(
    kind: Callable[..., Recipe], options: RunOptions, info: Any, device: str = "cpu", processes: int = 1
) -> int | None:
    """Estimates the most memory that a step takes in one process.

    Args:
        kind (`type`): The class of the recipe.
        options ([`RunOptions`]): Resolved options.
        info ([`~data.info.DataInfo`]): What is known of the data.
        device (`str`, *optional*, defaults to `"cpu"`): The kind of device.
        processes (`int`, *optional*, defaults to 1): How many train together.

    Returns:
        Bytes; `None` if that cannot be told, as something in the step needs the values of tensors.
    """
    numbers = torch.random.get_rng_state()
    try:
        for step in (ALL_IS_DUE, NOTHING_IS_DUE):
            with warnings.catch_warnings(), Counter(device) as counter:
                warnings.simplefilter("ignore")
                try:
                    with torch.device(device):
                        recipe = kind(options.own, info)
                    _step(counter, recipe, options, info, processes, step)
                except TooLong:
                    continue
                return counter.most
    except Exception:  # of many kinds, as families may do anything; those that matter come again in the real step
        return None
    finally:
        torch.random.set_rng_state(numbers)
    return None


def _step(counter: Counter, recipe: Recipe, options: RunOptions, info: Any, processes: int, step: int) -> None:
    """Does what [`Engine.step`] does with memory.

    Most of it is in use at the end of a loss, when all is kept that its backward pass needs. So that pass, which takes
    longer, is only done where it is quick, and where activations are computed again in it.
    """
    config, device = options.training, counter.device
    modules = {name: network.module for name, network in recipe.networks.items()}
    candidates: dict[str, nn.Parameter] = {}
    for name, network in recipe.networks.items():
        modules[name].train(network.role == TRAINED)
        modules[name].requires_grad_(False)
        if network.role == TRAINED:
            own = {f"{name}.{key}": value for key, value in modules[name].named_parameters()}
            candidates |= {key: value for key, value in own.items() if not matches(key, config.freeze)}
            if config.gradient_checkpointing:
                modules[name].enable_gradient_checkpointing(RECOMPUTE)  # type: ignore[operator]
    averaged = [modules[name] for name, network in recipe.networks.items() if network.averaged and config.use_ema]
    kept = [torch.empty_like(tensor) for module in averaged for tensor in (*module.parameters(), *module.buffers())]
    for parameter in candidates.values():
        parameter.grad = torch.empty_like(parameter)
        kept += [torch.empty_like(parameter), torch.empty_like(parameter)]  # moments

    count, accumulated = config.train_batch_size, config.gradient_accumulation_steps
    images = [torch.empty(accumulated - 1, count, info.channels, info.resolution, info.resolution, device=device)]
    columns = _columns(recipe, options, info, device)
    carry: dict[str, Any] = {}
    precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
    for phase in recipe.phases:
        updated = select(candidates, phase)
        for name, parameter in candidates.items():
            parameter.requires_grad_(name in updated)
            if name in updated and accumulated == 1:  # a later micro-batch finds gradients
                parameter.grad = None
        before = counter.operations
        random = StepRandom(0, 0, count * accumulated * processes, 0, count, phase.name, device)
        with torch.autocast(device, precision, enabled=precision is not None):
            loss, metrics = recipe.loss(phase, Batch(columns, random, carry), Progress(0, 0.5, step))
        if config.gradient_checkpointing or counter.operations - before < QUICK:
            loss.backward()
        del loss, metrics
        for parameter in updated.values():
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
    del images, kept


def _columns(recipe: Recipe, options: RunOptions, info: Any, device: str) -> dict[str, Any]:
    """Makes the columns of a micro-batch."""
    count = options.training.train_batch_size
    columns: dict[str, Any] = {}
    for name, column in info.columns.items():
        if isinstance(column, ImageInfo):
            columns[name] = torch.empty(count, column.channels, column.resolution, column.resolution, device=device)
        elif isinstance(column, LabelInfo):
            columns[name] = torch.zeros(count, dtype=torch.int64, device=device)
        elif isinstance(column, TextInfo):
            columns[name] = ("",) * count
    sources = sources_of(options.family.load("spec"), options.own, options.data)
    if any(isinstance(column, Derived) for column in sources.columns.values()):
        with torch.no_grad():
            columns |= recipe.encode(columns)
    return columns
