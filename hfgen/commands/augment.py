"""Measures whether generated images help a classifier: trained on real images, generated ones, and both.

All classifiers are tested on the same real images, which neither they nor the generator may have seen in training.
`--split_only` writes such a split: the generator is trained on its `train`, and `test` is held out.

    hfgen augment --train_data_dir scans --group_column patient --split_only out/split
    hfgen train gan --preset conditional --dataset_name out/split
    hfgen augment --dataset_name out/split --group_column patient --model out/gan-split
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfgen.commands.cli import command_line, flags, read, spell
from hfgen.data.config import DataConfig
from hfgen.evaluation.config import CLASSIFIER_PRESETS, AugmentConfig, ClassifierConfig, preset_options
from hfgen.runtime.options import make
from hfgen.sampling.config import all_sampling_options

KINDS = (AugmentConfig, DataConfig, ClassifierConfig)


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    description, sampling = str(__doc__).partition("\n")[0], all_sampling_options()
    kinds = (*KINDS, *sampling)
    given = read(kinds, argv, description=description, prog="hfgen augment", presets=list(CLASSIFIER_PRESETS))
    augment, data, config, *others = make(kinds, preset_options(given.values, given.preset))
    source = (augment.splits or (None,))[0] or data.train_data_dir or data.dataset_name or "digits"
    folder = augment.output_dir or f"out/augment-{Path(source).resolve().name}"
    own = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
    return [
        dataclasses.replace(augment, output_dir=folder),
        data,
        dataclasses.replace(config, output_dir=folder),
        *others,
    ], {name: value for name, value in given.values.items() if name not in own}


def say(text: str) -> None:
    print(spell(text), flush=True)


def split(augment: AugmentConfig, data: DataConfig, config: ClassifierConfig, command: str) -> None:
    """Writes a split, and says what to do with it."""
    folder = Path(str(augment.split_only))

    from hfgen.runtime.writable import require_folder

    require_folder(folder, "split_only", beside=True)

    from hfgen.evaluation.augment import write_split_only

    for part in write_split_only(data, config, folder, command):
        print(f"{part['num_images']} images: {', '.join(f'{n} {name}' for name, n in part['class_counts'].items())}")
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    columns = {name: column for name, column in columns.items() if column is not None}
    group = {"group_column": data.group_column} if data.group_column else {}
    name = f"gan-{folder.resolve().name}"
    train = {"preset": "conditional", "dataset_name": str(folder), **columns}
    then = {"dataset_name": str(folder), **columns, **group, "model": (f"out/{name}",)}
    print(f"Saved:    {folder}, the second part held out")
    print(f"Train:    {shlex.join(['hfgen', 'train', 'gan', *flags(train)])}")
    print(f"Then:     {shlex.join(['hfgen', 'augment', *flags(then)])}")


def main(argv: Sequence[str]) -> None:
    (augment, data, config, *_), given = read_options(argv)
    command = command_line("augment", KINDS, argv)
    if augment.split_only:
        split(augment, data, config, command)
        return
    folder = Path(augment.output_dir)

    from hfgen.runtime.writable import require_folder

    require_folder(folder, "output_dir", beside=True)

    from hfgen.evaluation.augment import measure
    from hfgen.evaluation.augment_report import table, write_report
    from hfgen.runtime.files import new_folder_at_once

    with new_folder_at_once(folder) as temporary:
        result = measure(data, config, augment, given, command, say)
        write_report(temporary, result.report, result.picture, given.get("provenance", True))
    report = result.report
    print(f"\n{table(report)}\n")
    print(*(f"- {spell(text)}" for text in report["notes"]), sep="\n")
    for text in report["warnings"]:
        say(f"Warning:  {text}")
    say(f"\n{report['verdict']}\n\nSaved:    {folder}")
