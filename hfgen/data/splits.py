"""Splits that are drawn: by class, so that both sides have their share of each, and never through a group, so that the
images of one patient, say, are all on one side."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfgen.data.info import LabelInfo
from hfgen.data.sources import load_source
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_at_once
from hfgen.runtime.notes import listed

if TYPE_CHECKING:
    from hfgen.data.cache import SourceData

PASSES = 3  # over the groups


def draw_held_out(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Draws the images that are held out: of each class as near to its share as whole groups allow.

    In a random order, each group changes sides that thereby brings the shares of the classes nearer to what is asked
    for. Then a class that lacks on one side gets its smallest group there, as long as it has two.

    Args:
        labels (`np.ndarray` of shape `(N,)`): Classes.
        share (`float`): The share that is held out, between 0 and 1.
        seed (`int`): Another one draws another split.
        groups (`np.ndarray` of shape `(N,)`, *optional*): What must not be split; by default each image is alone.

    Returns:
        `np.ndarray` of shape `(N,)`, bool: Whether an image is held out.
    """
    classes, own = np.unique(labels, return_inverse=True)
    names, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)  # images of each group and class
    np.add.at(counts, (member, own), 1)
    totals = counts.sum(0)
    weights = 1 / totals.astype(np.float64) ** 2
    missing = share * totals  # of the held-out side; negative for too many
    held_out = np.zeros(len(names), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(names))
    for _ in range(PASSES):
        before = held_out.copy()
        for group in order:
            after = missing + counts[group] if held_out[group] else missing - counts[group]
            if weights @ (after**2 - missing**2) < 0:
                held_out[group], missing = not held_out[group], after
        if (before == held_out).all():
            break
    for _ in range(2 * len(classes)):
        sides = [(counts[held_out == side] > 0).any(0) for side in (False, True)]
        lacking = [(number, bool(side)) for side in (1, 0) for number in np.flatnonzero(~sides[side])]
        movable = [(number, side) for number, side in lacking if (counts[:, number] > 0).sum() > 1]
        if not movable:
            break
        number, side = movable[0]
        candidates = np.flatnonzero(counts[:, number] > 0)
        held_out[candidates[counts[candidates].sum(1).argmin()]] = side
    return held_out[member]


def check_groups(trained: np.ndarray, held_out: np.ndarray, column: str) -> None:
    """Checks that no group is on both sides.

    Raises:
        UserError: If one is.
    """
    both = sorted(set(trained) & set(held_out))
    if both:
        raise UserError(
            f"`group_column` {column}: groups with images both to train on and held out: {len(both)} "
            f"({listed(both)}). Give a share to hold out, as 0.2, which is drawn in whole groups, or other data."
        )


def check_sides(
    labels: tuple[np.ndarray, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray] | None,
    names: Sequence[str],
    column: str,
    least: int = 1,
) -> None:
    """Checks what is trained on and what is held out: both have enough images of each class, and share no group.

    Args:
        labels (two `np.ndarray`): Classes of the images to train on, and of those held out.
        groups (two `np.ndarray`, *optional*): Their groups.
        names (`Sequence[str]`): The classes by number; those without any image do not count.
        column (`str`): What the groups are a column of.
        least (`int`, *optional*, defaults to 1): Images of each class that each side needs.

    Raises:
        UserError: If they do not.
    """
    if groups is not None:
        check_groups(*groups, column)
    counts = [np.bincount(own, minlength=len(names)) for own in labels]
    for number, name in enumerate(names):
        have = [int(count[number]) for count in counts]
        if not sum(have) or min(have) >= least:
            continue
        side = ("to train on", "held out")[int(have[1] < least)]
        text = f"of class {name!r} there are only {min(have)} images {side}, and {max(have)} others"
        if groups is None:
            raise UserError(
                f"{text}: each side needs {least} at least. Give more images of it, or leave the class out."
            )
        own = np.concatenate([each[label == number] for each, label in zip(groups, labels, strict=True)])
        largest = [f"{group} ({count} images)" for group, count in Counter(own.tolist()).most_common()]
        raise UserError(
            f"`group_column` {column}: {text}, as its images are of {len(largest)} group{'s' * (len(largest) > 1)}, "
            f"which no split may cut: {listed(largest)}. Each side needs {least} images of each class: give more "
            "groups of this class, or leave the class out."
        )


def write_split(data: "SourceData", sides: dict[str, np.ndarray], folder: Path) -> None:
    """Writes rows of a data set as the splits of another, a parquet file each: all columns as they are, image files
    included, and the classes as `ClassLabel`.

    Args:
        data ([`~data.cache.SourceData`]): The data, with classes.
        sides (`dict[str, np.ndarray]`): For each split, which of its rows.
        folder (`Path`): Where to write.
    """
    from datasets import ClassLabel
    from datasets.table import embed_table_storage

    dataset, _ = load_source(data.config)
    names, labels, column = data.info.class_names, data.labels, data.info.column_of(LabelInfo)
    assert names is not None and labels is not None and column is not None
    dataset = dataset.select(data.rows)
    if not isinstance(dataset.features[column], ClassLabel):
        kind: Any = ClassLabel(names=list(names))
        dataset = dataset.remove_columns([column]).add_column(column, labels.tolist()).cast_column(column, kind)
    for split, rows in sides.items():
        part = dataset.select(np.sort(rows)).with_format("arrow")
        part = part.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True).with_format(None)
        with write_at_once(folder / "data" / f"{split}-00000-of-00001.parquet") as temporary:
            part.to_parquet(temporary)
