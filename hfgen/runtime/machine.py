"""The machine that a run is on, as far as options may depend on it; torch is imported when it is asked for."""

import os
from dataclasses import dataclass
from typing import Any

from hfgen.runtime.errors import UserError

VALUE = 4  # bytes of a float32
MOMENTS = 2  # of AdamW, for each weight
GENERATOR = 5056  # bytes of the state of a random number generator of torch


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        kind (`str`): `"cpu"`, `"cuda"`, `"mps"` or `"xpu"`.
        memory (`int`, *optional*): Its total memory in bytes, if it says so. How much of it is free plays no role: a
            run must not depend on what else goes on.
        processes (`int`): How many train together.
    """

    kind: str = "cpu"
    memory: int | None = None
    processes: int = 1

    @classmethod
    def here(cls) -> "Machine":
        """Returns the machine of this process: its accelerator, unless `ACCELERATE_USE_CPU` says to do without."""
        import torch

        from hfgen.runtime.launch import on_cpu

        if on_cpu():
            return cls.host()
        if torch.cuda.is_available():
            return cls("cuda", torch.cuda.get_device_properties(0).total_memory)
        return cls("xpu" if torch.xpu.is_available() else "mps")

    @classmethod
    def host(cls) -> "Machine":
        """Returns the CPU, whose memory keeps what is gathered from accelerators."""
        return cls("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    @property
    def share(self) -> int | None:
        """Returns the memory of each process: an accelerator is one's own, that of the CPU belongs to all that were
        started on it."""
        if self.memory is None or self.kind != "cpu":
            return self.memory
        return self.memory // int(os.environ.get("LOCAL_WORLD_SIZE", self.processes))

    def require(self, needed: int, what: str, remedy: str = "use less") -> None:
        """Makes sure that something fits into the memory, were it empty, before the memory is asked for.

        Args:
            needed (`int`): Bytes.
            what (`str`): What needs them, for the message: it names the options that decide it.
            remedy (`str`, *optional*): What to do.

        Raises:
            UserError: If the whole memory does not suffice.
        """
        if self.memory is not None and needed > self.memory:
            raise UserError(
                f"{what} need {size_text(needed)}, and this machine has {size_text(self.memory)}: {remedy}."
            )

    def require_images(self, count: int, shape: tuple[int, int, int], options: str, each: int = 0) -> None:
        """Makes sure that the pixels of images fit into the memory, in float32; what a network makes of them needs
        many times more.

        Args:
            count (`int`): How many at once.
            shape (`tuple[int, int, int]`): Channels, height and width.
            options (`str`): The options that decide how many, for the message.
            each (`int`, *optional*): Further bytes of each.

        Raises:
            UserError: If the whole memory does not suffice.
        """
        channels, height, width = shape
        pixels = channels * height * width * VALUE
        what = f"{options}: {count} images of {channels}x{height}x{width} at once"
        self.require(count * (pixels + each), what)


def weight_bytes(module: Any, trained: bool = True, averaged: bool = False) -> int:
    """Returns the bytes that a network needs whatever the batch: weights and buffers; if it is trained, gradients and
    the optimizer's state; if it is averaged, its average."""
    weights = list(module.parameters())
    whole = sum(tensor.numel() * tensor.element_size() for tensor in (*weights, *module.buffers()))
    learnt = sum(tensor.numel() * VALUE for tensor in weights if tensor.requires_grad) if trained else 0
    return whole * (1 + averaged) + learnt * (1 + MOMENTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that memory ran out, of this machine or of its accelerator."""
    signs = ("out of memory", "can't allocate memory", "could not create a primitive")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def size_text(count: int) -> str:
    """Writes a number of bytes for people: 23.5 GB."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.4g} {unit}"
