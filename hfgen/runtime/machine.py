"""The machine that a run is on, as far as options may depend on it; torch is imported when it is asked for."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        kind (`str`): `"cpu"`, `"cuda"`, `"mps"` or `"xpu"`.
        memory (`int`, *optional*): Its total memory in bytes, if it says so. How much of it is free plays no role: a
            run must not depend on what else goes on.
    """

    kind: str = "cpu"
    memory: int | None = None

    @classmethod
    def here(cls) -> "Machine":
        """Returns the machine of this process: its accelerator, unless `ACCELERATE_USE_CPU` says to do without."""
        import torch

        from hfgen.runtime.launch import on_cpu

        if on_cpu():
            return cls("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        if torch.cuda.is_available():
            return cls("cuda", torch.cuda.get_device_properties(0).total_memory)
        return cls("xpu" if torch.xpu.is_available() else "mps")
