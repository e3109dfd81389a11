"""Defaults that follow the data and the machine: the rule that all families share; no torch here.

A family says with a [`Pace`] how long it learns. The rest is the same for all: images of more pixels cost more, so
that fewer of them are seen; of few images none is seen more often than helps; a step has fewer images where they are
large or few; and what is due now and then, such as sample grids, is due so many times in a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hfgen.evaluation.config import FEWEST
from hfgen.runtime.machine import Machine
from hfgen.training.schedules import Schedule

PIXELS = 28  # of a side of the images that a pace is stated for
FULL_BATCH = 64  # pixels of a side up to which a step has all of its images
ACCELERATED = 50  # times as many images as on a CPU, in about the same time
FEW = 10_000  # images, of which a model may learn single ones, so that evaluations look for copies
GRIDS, CHECKPOINTS, LINES = 12, 10, 50  # of a run


@dataclass(frozen=True)
class Pace:
    """How long a family learns.

    Attributes:
        images (`int`): Images of 28x28 pixels that a run on a CPU sees: about ten minutes on two cores.
        passes (`int`): Times that it sees an image, at most: of few images it has learnt by then what it can.
        batch (`int`): Images of a step.
    """

    images: int
    passes: int
    batch: int = 64


def follow(pace: Pace, options: Any, data: Any, machine: Machine) -> dict[str, Any]:
    """Chooses the length of a run, the images of its steps, and how often something is due.

    Args:
        pace ([`Pace`]): That of the family.
        options ([`~training.options.RunOptions`]): The options; those that are decided are taken into account.
        data ([`~data.info.DataInfo`]): What the images are.
        machine ([`~runtime.machine.Machine`]): What computes.

    Returns:
        Values by the name of the option, decided or not.
    """
    values: dict[str, Any] = {"train_batch_size": batch_size(pace.batch, data)}
    if data.num_images and options.training.max_train_steps is None:
        values["num_epochs"] = three_digits(images_to_see(pace, data, machine) / data.num_images)
    values["eval_batch_size"] = 64 if data.resolution <= 64 else 16
    schedule = planned(values, options, data, machine)
    steps = schedule.total // schedule.batch
    values["logging_steps"] = between(1, steps // LINES, 50)
    values["checkpointing_steps"] = between(25, steps // CHECKPOINTS, 5000)
    if "save_images_epochs" not in options.decided:
        values["save_images_steps"] = max(1, -(-steps // GRIDS))
    if options.training.eval_every is not None and data.num_images and FEWEST <= data.num_images < FEW:
        values["eval_metrics"] = (*options.training.eval_metrics, "memorisation")
    return values


def planned(values: Mapping[str, Any], options: Any, data: Any, machine: Machine) -> Schedule:
    """Returns the schedule of a run with these values where nobody decided others."""
    names = {field.name for field in fields(options.training)} & values.keys() - options.decided
    training = replace(options.training, **{name: values[name] for name in names})
    return Schedule(training, data.num_images, machine.processes)


def images_to_see(pace: Pace, data: Any, machine: Machine) -> float:
    """Returns the images that a run sees: fewer of larger ones, by the square root of their pixels, as these cost more
    and need more; and each no more often than helps."""
    images = pace.images / max(1.0, data.resolution / PIXELS)
    if machine.kind != "cpu":
        images *= ACCELERATED
    return min(images, pace.passes * data.num_images)


def batch_size(most: int, data: Any) -> int:
    """Returns the images of a step: `most`, halved for large images until they have the pixels of `most` of 64x64,
    and for few images until there are four steps in a pass; never fewer than 4 for the first, 8 for the second."""
    size = most
    while size > 4 and size * data.resolution**2 > most * FULL_BATCH**2:
        size //= 2
    while size > 8 and data.num_images and 4 * size > data.num_images:
        size //= 2
    return size


def between(least: int, value: int, most: int) -> int:
    return min(most, max(least, value))


def three_digits(value: float) -> float:
    """Rounds to three digits, so that a length can be read; exactly what it was, if it had no more."""
    return float(f"{value:.3g}") if value < 1000 else float(round(value))


def any_decided(options: Any, *names: str) -> bool:
    """Says whether any of some options is decided, so that those which belong with it are the user's to choose."""
    return not options.decided.isdisjoint(names)


def level_count(resolution: int, lowest: int = 8) -> int:
    """Returns how many sizes a network has that halves images until their side is no more than `lowest`, or odd."""
    count = 1
    while resolution > lowest and resolution % 2 == 0:
        resolution, count = resolution // 2, count + 1
    return count


def widths(resolution: int, first: int, most: int, lowest: int = 8) -> tuple[int, ...]:
    """Returns the channels of each of these sizes: twice as many with each halving, up to `most`."""
    return tuple(min(most, first * 2**level) for level in range(level_count(resolution, lowest)))
