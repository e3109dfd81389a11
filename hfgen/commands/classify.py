"""Trains a small classifier of images, in whose features generated ones can be measured.

Without data it trains on the handwritten digits that ship with the installation. The result is an ordinary folder of
transformers; beside it stand a card and `eval.json`, with the accuracy on images that it was not trained on.

    hfgen classify
    hfgen classify --dataset_name ylecun/mnist
    hfgen classify --dataset_name uoft-cs/cifar10 --preset photos
    hfgen classify --train_data_dir photos --resolution 64 --preset photos
    hfgen classify --train_data_dir scans --group_column patient
"""

from collections.abc import Sequence
from pathlib import Path

from hfgen.commands.cli import command_line, read, spell
from hfgen.data.config import DataConfig
from hfgen.evaluation.config import CLASSIFIER_PRESETS, GOOD_ACCURACY, ClassifierConfig, preset_options
from hfgen.runtime.options import make

KINDS = (DataConfig, ClassifierConfig)


def read_options(argv: Sequence[str]) -> tuple[DataConfig, ClassifierConfig]:
    description = str(__doc__).partition("\n")[0]
    given = read(KINDS, argv, description=description, prog="hfgen classify", presets=list(CLASSIFIER_PRESETS))
    data, config = make(KINDS, preset_options(given.values, given.preset))
    return data, config.resolved(data)


def say(text: str) -> None:
    print(spell(text), flush=True)


def main(argv: Sequence[str]) -> None:
    data, config = read_options(argv)
    folder = Path(str(config.output_dir))

    from hfgen.runtime.writable import require_folder

    require_folder(folder, "output_dir", beside=True)

    from hfgen.evaluation.classifier import train_classifier
    from hfgen.hub.card import write_classifier_card
    from hfgen.runtime.files import new_folder_at_once

    with new_folder_at_once(folder) as temporary:  # a run cut short leaves nothing that looks like a classifier
        report = train_classifier(data, config, temporary, command_line("classify", KINDS, argv), say)
        weak = report["test_balanced_accuracy"] < GOOD_ACCURACY
        write_classifier_card(temporary, folder.resolve().name, report, weak)
    say(f"Accuracy: {report['test_accuracy']:.2%} of {report['test_data']['num_images']} test images")
    say(f"Balanced: {report['test_balanced_accuracy']:.2%}, the mean over the classes")
    if weak:
        say(f"          which is too low to measure other images by ({GOOD_ACCURACY:.0%} is needed): train longer")
    say(f"Saved:    {folder}")
