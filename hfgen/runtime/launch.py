"""Getting started: precision, processes, threads, signals."""

import contextlib
import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from hfgen.runtime.errors import UserError

LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}  # what launchers put into the environment
PARENT = os.getppid()  # the launcher, if there is one


def _remember_parent() -> None:
    global PARENT
    PARENT = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_parent)


def on_cpu() -> bool:
    """Returns whether this run will train on the CPU."""
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    return not accelerated or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def resolve_precision(precision: str) -> str:
    """Resolves `mixed_precision` to `no`, `bf16` or `fp16`.

    Raises:
        UserError: For fp16 on a CPU, which accelerate would silently ignore.
    """
    cpu = on_cpu()
    if precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched in ("bf16", "fp16"):  # asked for with `accelerate launch` or `accelerate config`
            precision = launched
        elif cpu:
            # Without these instructions bf16 is emulated and slower than float32.
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            precision = "bf16" if fast else "no"
        elif torch.cuda.is_available():
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
        else:
            precision = "no"
    if precision == "fp16" and cpu:
        raise UserError("`mixed_precision` fp16 does not exist on a CPU: use bf16 or no.")
    return precision


def make_accelerator(
    mixed_precision: str = "no",
    cpu_threads: int | None = None,
    tracker: str | None = None,
    output_dir: str | None = None,
) -> Accelerator:
    """Makes the `Accelerator`: the one place that configures Accelerate.

    Args:
        mixed_precision (`str`, *optional*, defaults to `"no"`): `"no"`, `"bf16"`, `"fp16"` or `"auto"`.
        cpu_threads (`int`, *optional*): Threads per process on a CPU; by default its share of the cores.
        tracker (`str`, *optional*): Where metrics are logged to: the name of an installed tracker.
        output_dir (`str`, *optional*): The folder of the tracker's files.

    Raises:
        UserError: If the launcher and Accelerate disagree on the processes, or a tracker is not installed.
    """
    cpu = on_cpu()
    precision = resolve_precision(mixed_precision)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if tracker is not None:
        from accelerate.tracking import get_available_trackers

        if tracker not in [kind.value for kind in get_available_trackers()]:  # accelerate would drop it silently
            raise UserError(f"`logger` {tracker} is not installed: pip install {tracker}, or use another.")
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    # Without this hint torchrun on a machine without a GPU starts runs that do not know of each other.
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            log_with=tracker,
            project_dir=output_dir,
            # The others wait while the first process computes metrics or writes files.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
        )
    except ValueError as error:  # for example WORLD_SIZE without MASTER_ADDR
        reason = " ".join(str(error).split())
        raise UserError(f"the processes of this run cannot be started: {reason}. Use torchrun.") from None
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher started {world_size} processes, but Accelerate sees {accelerator.num_processes}. Without a "
            "GPU use `torchrun --nproc_per_node N`; `accelerate launch --cpu --num_processes N` starts only one."
        )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)
    if accelerator.distributed_type not in supported:
        raise UserError(
            f"`accelerate config` asks for {accelerator.distributed_type.value}, which hfgen's checkpoints do not "
            "support: choose data parallelism (multi-GPU or multi-CPU)."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"`accelerate` was told to accumulate {accelerator.gradient_accumulation_steps} steps: give that to the "
            "script instead, as `gradient_accumulation_steps`."
        )
    if cpu:
        # accelerate launch and torchrun leave torch one thread per process.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        torch.set_num_threads(cpu_threads or max(1, cores() // local))
    elif precision != "no":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    return accelerator


def cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the name of the processor."""
    with contextlib.suppress(OSError, IndexError):  # on Linux alone
        return re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[0]
    return platform.processor() or platform.machine()


def describe(accelerator: Accelerator, precision: str) -> str:
    """Describes the machine, in words, for the first line of a run."""
    many = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    if accelerator.device.type == "cpu":
        count = torch.get_num_threads()
        threads = f"{count} thread{'s' * (count > 1)}{' each' * bool(many)}"
        return f"CPU ({cpu_name()}){many}, {threads} of {cores()} cores, precision {precision}"
    name = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type
    return f"{name}{many}, precision {precision}"


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        if sys.platform == "linux" and LAUNCHED & os.environ.keys():
            # `accelerate launch` does not hand on a SIGTERM, and no launcher can hand on a SIGKILL: ask the kernel for
            # a SIGTERM when it dies, or nobody would end this process.
            PR_SET_PDEATHSIG = 1
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != PARENT:  # it is dead already
                self._handle(signal.SIGTERM, None)

    def _handle(self, number: int, frame: Any) -> None:
        # Launchers repeat a Ctrl-C to their children; only one that comes later is a second one.
        if number == signal.SIGINT and self.number is not None and time.monotonic() - self._at > 2:
            raise KeyboardInterrupt
        if self.number is None:
            self.number, self._at = number, time.monotonic()

    def close(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
