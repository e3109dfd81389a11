"""Metrics: summed on the device, read once per interval, written as JSON lines and to a tracker."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from hfgen.runtime.files import write_text

LATENTS = (
    "kl_",
    "rate",
    "active_units",
    "mutual_information",
    "perplexity",
    "dead_codes",
)  # how metrics of these begin
NEVER = 2**62  # "no step was non-finite": later than any number of images


class Metrics:
    """Sums of metrics, and the first step that was not finite, kept on the device.

    Args:
        accelerator (`Accelerator`): For reductions over the processes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._sums: dict[str, torch.Tensor] = {}
        self._images: dict[str, int] = {}  # that a scalar was the mean of
        self._first_bad: dict[str, torch.Tensor] = {}

    def add(self, metrics: dict[str, torch.Tensor], images: int = 1) -> None:
        """Adds scalars, or pairs of a sum and a count, without waiting for the device.

        Args:
            metrics (`dict[str, torch.Tensor]`): By name, of shape `()` or `(2,)`.
            images (`int`, *optional*, defaults to 1): Images of this process that the scalars are of. Sums that come
                from a checkpoint may be of means over more images, or fewer: each image counts alike.
        """
        if not metrics:
            return
        pairs = {name: value.detach().float() for name, value in metrics.items()}
        scalars = {name: value for name, value in pairs.items() if value.ndim == 0}
        for name in scalars:
            before = self._images.setdefault(name, images)
            if before != images:
                self._images[name] = images
                if name in self._sums:
                    self._sums[name] = self._sums[name] * (before / images)
        if scalars:  # all at once: there may be dozens, and each operation on a GPU costs its launch
            values = torch.stack(list(scalars.values()))
            pairs |= zip(scalars, torch.stack([values, torch.ones_like(values)], 1).unbind(), strict=True)
        for name, pair in pairs.items():
            if name not in self._sums:
                self._sums[name] = torch.full_like(pair, -0.0)  # which leaves whatever is added to it as it is
        sums = torch._foreach_add([self._sums[name] for name in pairs], list(pairs.values()))
        self._sums |= zip(pairs, sums, strict=True)

    def note_finite(self, phase: str, finite: torch.Tensor, images_seen: int) -> None:
        """Remembers, on the device, the first step of a phase whose loss or gradient was not finite."""
        first = self._first_bad.get(phase)
        if first is None:
            first = torch.full((), NEVER, dtype=torch.int64, device=finite.device)
        self._first_bad[phase] = torch.where(finite, first, first.clamp_max(images_seen))

    def first_bad_step(self) -> tuple[str, int] | None:
        """Returns the first phase, and the images seen before it, that was not finite in any process; waits for the
        device."""
        if not self._first_bad:
            return None
        firsts = self.accelerator.gather(torch.stack(list(self._first_bad.values())).view(1, -1)).amin(0).tolist()
        phase, images_seen = min(zip(self._first_bad, firsts, strict=True), key=lambda pair: pair[1])
        return (phase, images_seen) if images_seen < NEVER else None

    def means(self) -> dict[str, float]:
        """Returns the means over all processes since the last call; waits for the device."""
        if not self._sums:
            return {}
        totals = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(self._sums, totals, strict=True) if count}
        self._sums.clear()
        return means

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the sums since the last call of `means`, over all processes.

        This run goes on from the same sums as a resumed one, so that both round alike.
        """
        sums = {name: self.accelerator.reduce(value, reduction="sum") for name, value in self._sums.items()}
        self.load_state_dict(sums, self._images)
        return sums

    @property
    def images(self) -> dict[str, int]:
        """Returns how many images of a process each scalar was of: JSON-ready, to be kept with the sums."""
        return dict(self._images)

    def load_state_dict(self, state: dict[str, torch.Tensor], images: dict[str, int]) -> None:
        """Goes on from the sums of a checkpoint, and their [`images`]; one process holds them, the others begin at
        zero."""
        share = 1.0 if self.accelerator.is_main_process else 0.0
        self._sums = {name: value.to(self.accelerator.device) * share for name, value in state.items()}
        self._images = dict(images)


class MetricsLog:
    """The lines of metrics of a run, in a file and in a tracker.

    Args:
        accelerator (`Accelerator`): For trackers.
        file (`Path`): The JSON-lines file.
        resumed_at (`int`): Lines of later images are dropped: the steps behind them will be taken again.
        has_sums (`bool`): Whether sums since the last line come from the checkpoint; then a line at its very position
            was written after it, and is dropped, too.
    """

    def __init__(self, accelerator: Accelerator, file: Path, resumed_at: int = 0, has_sums: bool = False):
        self.accelerator, self.file = accelerator, file
        self._since = (time.perf_counter(), resumed_at)
        if accelerator.is_main_process:
            text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
            lines = text.splitlines()
            kept = [line for line in lines if _images_seen(line) <= resumed_at - (has_sums and not _evaluates(line))]
            self._evaluated_at = max((_images_seen(line) for line in kept if _evaluates(line)), default=None)
            write_text(file, "".join(f"{line}\n" for line in kept))

    def write(self, images_seen: int, values: dict[str, Any]) -> None:
        """Writes one line, with the speed since the last one."""
        now = time.perf_counter()
        speed = (images_seen - self._since[1]) / max(now - self._since[0], 1e-9)
        self._since = (now, images_seen)
        line = {"images_seen": images_seen, **values, "images_per_second": round(speed, 2)}
        if self.accelerator.device.type == "cuda":
            line["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self.record(line)

    def record(self, line: dict[str, Any]) -> None:
        """Writes a line as it is, in one process; an evaluation that is repeated is not written twice."""
        if self.accelerator.is_main_process:
            text = json.dumps(line)
            if _evaluates(text) and line["images_seen"] == self._evaluated_at:
                return
            with self.file.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        if self.accelerator.trackers:
            values = {grouped(key): value for key, value in line.items() if key != "images_seen"}
            self.accelerator.log(values, step=line["images_seen"])

    def show(self, image: Image.Image, images_seen: int) -> None:
        """Gives a sample grid to the trackers that take pictures, in one process."""
        array = np.asarray(image.convert("RGB"))
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else ():
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": array[None]}, step=images_seen, dataformats="NHWC")
            elif tracker.name == "trackio":
                import trackio

                tracker.log({"samples": trackio.Image(array)}, step=images_seen)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": [image.convert("RGB")]}, step=images_seen)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside, which is not training, out of the images per second."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()  # what was queued is training
        start = time.perf_counter()
        yield
        self._since = (self._since[0] + time.perf_counter() - start, self._since[1])


def grouped(name: str) -> str:
    """Returns what trackers call a metric: in the group `eval/`, `latents/` or `train/`, so that they show each group
    together."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"{'latents' if name.startswith(LATENTS) else 'train'}/{name}"


def _evaluates(line: str) -> bool:
    return '"eval_' in line


def _images_seen(line: str) -> float:
    try:
        return float(json.loads(line)["images_seen"])
    except (ValueError, KeyError, TypeError, RecursionError):  # the last line of a killed run may be cut short
        return math.inf
