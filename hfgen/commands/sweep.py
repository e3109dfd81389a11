"""Repeats a training over seeds and values of options: means and spreads over training runs, in one table.

Each run is an ordinary one of `hfgen train FAMILY`, in a folder of its own within `--output_dir`, and is measured at
its end by `--eval_metrics`, the first of which decides what is best. Without `--eval_extractor`, a classifier of the
same data is trained first, in whose features they are measured. A run that is finished is not repeated, one that was
interrupted goes on, and one that fails is told in the table.

    hfgen sweep gan --seeds 0 1 2
    hfgen sweep ddpm --grid learning_rate=1e-3,3e-4 "block_out_channels=32 64,32 64 64" --max_train_steps 500
    hfgen sweep vae --dataset_name ylecun/mnist --grid preset=residual,beta --eval_metrics fd bits_per_dim
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import SECRETS, Given, command_line, read, secrets, spell
from hfgen.commands.compare import DATA
from hfgen.commands.process import run_verb
from hfgen.data.config import DataConfig
from hfgen.evaluation.config import WITHOUT_FEATURES
from hfgen.registry import Family, families, find_family
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import Options, as_dict, hints, nearest, option
from hfgen.runtime.provenance import record
from hfgen.runtime.seeds import SEEDS
from hfgen.training.config import LONG, MOVED
from hfgen.training.options import RunOptions, collect, default_folder, option_kinds
from hfgen.training.sweep import FAILED, FINISHED, STOPPED, Setting, SweepRun, folder_name, remarks, table, write

# Options that a sweep gives to its runs itself, and what to use in their place.
OWN = {
    "seed": "give `seeds`",
    "resume_from_checkpoint": "the same command goes on by itself",
    "overwrite_output_dir": "delete the folder, or give another `output_dir`",
    "push_to_hub": "push the best run afterwards, with `hfgen push`",
    "streaming": "the runs are measured against images, which a stream does not keep",
}
NOT_IN_GRID = ("output_dir", "logging_dir", "config", "hub_model_id", "hub_token", *OWN)


@dataclass(frozen=True)
class SweepConfig(Options):
    """Sweep: what the training is repeated over."""

    seeds: tuple[int, ...] = option(
        (0, 1, 2), "seeds, each of which trains with each of the values", least=0, most=SEEDS - 1
    )
    grid: tuple[str, ...] = option(
        (),
        "values of options, each of which is combined with all others: learning_rate=1e-3,3e-4 preset=residual,beta; "
        'an option that is a list takes "block_out_channels=32 64,32 64 64"',
    )

    def validate(self) -> None:
        if not self.seeds:
            raise UserError("`seeds` has no numbers: give some, or leave it out.")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"`seeds` {' '.join(map(str, self.seeds))} has a number twice: give each once.")


@dataclass(frozen=True)
class Planned:
    """A run that can start: the setting and the run, its options by name, its preset, and all options that follow."""

    setting: Setting
    run: SweepRun
    values: dict[str, Any]
    preset: str | None
    options: RunOptions


def kinds(family: Family) -> tuple[type, ...]:
    """Returns the dataclasses that hold the options of a sweep."""
    return SweepConfig, *option_kinds(family)


def read_given(argv: Sequence[str]) -> tuple[Family, SweepConfig, Given]:
    """Reads the family, what is repeated over, and the options that all runs share.

    Raises:
        UserError: For an unknown family or flag, a value of the wrong type, and what a sweep does itself.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError(f"hfgen sweep needs the name of a family first: {', '.join(families())}.")
    family = find_family(argv[0])
    presets = list(family.load("presets") or ())
    title = f"{family.title}, trained over seeds and values"
    given = read(
        kinds(family), argv[1:], prog=f"hfgen sweep {family.name}", description=title, presets=presets, moved=MOVED
    )
    names = {field.name for field in dataclasses.fields(SweepConfig)}
    config = SweepConfig(**{name: value for name, value in given.values.items() if name in names})
    shared = {name: value for name, value in given.values.items() if name not in names}
    for name, remedy in OWN.items():
        if shared.get(name):
            raise UserError(f"`{name}` {shared[name]} does not go with a sweep: {remedy}.")
    return family, config, Given({name: value for name, value in shared.items() if name not in OWN}, given.preset)


def read_options(argv: Sequence[str]) -> tuple[Any, ...]:
    """Reads and checks the options of a sweep, and those of its first run."""
    family, config, given = read_given(argv)
    _, planned = plan(family, config, given)
    return config, *planned[0].options.parts


def read_grid(family: Family, grid: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of a grid: for each option, what was written and what it means.

    Raises:
        UserError: For what is no option, has no or equal values, or values of the wrong type.
    """
    own = {field.name: kind for kind in option_kinds(family) for field in dataclasses.fields(kind)}
    presets = list(family.load("presets") or ())
    read_values: dict[str, dict[str, Any]] = {}
    for text in grid:
        name, _, values = text.partition("=")
        words = [word.strip() for word in values.split(",")]
        if not all(words) or not name:
            raise UserError(f"`grid` {text}: give an option, = and values with commas, as learning_rate=1e-3,3e-4.")
        if name in NOT_IN_GRID:
            raise UserError(f"`grid` {text}: {name} cannot be varied{f': {OWN[name]}' if name in OWN else ''}.")
        if name not in (*own, *["preset"] * bool(presets)):
            raise UserError(f"`grid` {text}: {name} is no option of {family.name}.{nearest(name, own)}")
        if name in read_values or len(set(words)) < len(words):
            raise UserError(f"`grid` {text}: give each option, and each of its values, once.")
        read_values[name] = {}
        for word in words:
            try:
                read_values[name][word] = _value(family, own.get(name), name, word, presets)
            except UserError as error:
                raise UserError(f"`grid` {text}: {one_line(error)}.") from None
    return read_values


def _value(family: Family, kind: type | None, name: str, word: str, presets: Sequence[str]) -> Any:
    if kind is None:
        if word not in presets:
            raise UserError(f"there is no preset {word}: use {', '.join(presets)}")
        return word
    one_kind, _, many = hints(kind)[name]
    if one_kind is bool:
        if word not in ("true", "false"):
            raise UserError(f"{name} is true or false, not {word}")
        return word == "true"
    words = [f"--{name}", *word.split()] if many else [f"--{name}={word}"]
    return read((kind,), words, description="").values[name]


def plan(family: Family, config: SweepConfig, given: Given) -> tuple[list[Setting], list[Planned]]:
    """Makes the settings, and lists the runs that can start; the others, whose options are wrong, have failed.

    Raises:
        UserError: If no run can start.
    """
    grid = read_grid(family, config.grid)
    folder = Path(given.values.get("output_dir") or _default_folder(family, given))
    settings: list[Setting] = []
    planned: list[Planned] = []
    folders: set[Path] = set()
    mistake: UserError | None = None
    for words in itertools.product(*grid.values()):
        chosen = dict(zip(grid, words, strict=True))
        setting = Setting(chosen, [])
        for seed in config.seeds:
            run = SweepRun(seed, folder / folder_name(chosen, seed))
            if run.folder in folders:
                raise UserError(f"`grid`: two of its values would both be in {run.folder}: leave one of them out.")
            folders.add(run.folder)
            values = {"eval_every": LONG} | given.values | {name: grid[name][word] for name, word in chosen.items()}
            preset = values.pop("preset", given.preset)
            values |= {"seed": seed, "output_dir": str(run.folder), "resume_from_checkpoint": "latest"}
            try:
                planned.append(Planned(setting, run, values, preset, collect(family, preset, **values)))
            except UserError as error:
                run.status, run.reason = FAILED, spell(one_line(error))
                mistake = mistake or error
            setting.runs.append(run)
        settings.append(setting)
    if not planned and mistake:
        raise mistake
    return settings, planned


def _default_folder(family: Family, given: Given) -> str:
    return default_folder(family, given.values).replace("out/", "out/sweep-", 1)


def check_output(folder: Path) -> None:
    """Raises [`UserError`] if the table cannot be written, or the folder holds another of that name."""
    from hfgen.runtime.writable import require_folder

    require_folder(folder, "output_dir")
    if (folder / "model_index.json").exists() or (folder / "run.json").exists():
        raise UserError(f"`output_dir` {folder} holds a run: give a folder for all runs of the sweep.")
    if (folder / "sweep.md").exists() and not (folder / "sweep.json").exists():
        raise UserError(f"`output_dir` {folder} holds a sweep.md of something else: give another folder.")


def train_extractor(folder: Path, data: DataConfig, say: Any) -> int:
    """Trains the classifier in whose features the runs are measured, if it is not there; returns the number of the
    signal that stopped it, or 0.

    Raises:
        UserError: If it fails.
    """
    if (folder / "config.json").exists():
        return 0
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    values = {name: getattr(data, name) for name in (*DATA, "validation_split", "group_column")}
    given = {name: value for name, value in values.items() if value is not None and value != defaults[name]}
    ended = run_verb(["classify"], given | {"output_dir": str(folder)}, read_errors=True)
    if ended.code and not ended.signal:
        raise UserError(
            "the classifier, in whose features the runs are measured, could not be trained, for the reason above: "
            "name other features with `eval_extractor`, such as inception with `eval_extractor_weights` download."
        )
    return ended.signal


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: hfgen sweep FAMILY ...\n\n{__doc__}\nThe families are those of `hfgen train`: ", end="")
        print(f"{', '.join(families())}. `hfgen sweep FAMILY --help` shows the flags of each.")
        return
    family, config, given = read_given(argv)
    settings, planned = plan(family, config, given)
    SECRETS.update(secrets(kinds(family), argv))  # again, as the grid was read since
    first = planned[0].options
    folder = Path(str(first.training.output_dir)).parent
    check_output(folder)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("a sweep starts its runs itself, one after another: start this without a launcher.")

    token = given.values.get("hub_token")
    environment = {"HF_TOKEN": token} if token else {}
    metrics = first.training.eval_metrics
    about = record(command_line(f"sweep {family.name}", kinds(family), argv[1:]), family=family.name)
    about["config"] = as_dict([config]) | {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.values.items()
        if name != "hub_token"
    }
    extractor: dict[str, Any] = {}
    if "eval_extractor" not in given.values and set(metrics) - set(WITHOUT_FEATURES):
        extractor = {"eval_extractor": str(folder / "classifier")}
        stopped = train_extractor(folder / "classifier", first.data, print)
        if stopped:
            raise SystemExit(128 + stopped)
    for number, one in enumerate(planned, 1):
        run, setting = one.run, one.setting
        values = {name: value for name, value in one.values.items() if name != "hub_token"} | extractor
        wanted = (family.preset_values(one.preset) if one.preset else {}) | values
        if run.read(wanted):
            print(f"{run.folder} is already trained", flush=True)
            continue
        print(f"\nRun {number} of {len(planned)}: {setting.name}, seed {run.seed}", flush=True)
        values |= {"preset": one.preset} if one.preset else {}
        ended = run_verb(["train", family.name], values, read_errors=True, environment=environment)
        if ended.signal:
            run.status = STOPPED
        elif ended.code or not run.read(wanted):
            run.status, run.reason = FAILED, ended.reason if ended.code else "it was not measured at its end"
            run.reason = run.reason or f"exit code {ended.code}"
        write(folder, settings, metrics, about)
        if ended.signal:
            print(f"\n{table(settings, metrics)}\n\nStopped by signal {ended.signal}. The same command goes on.")
            raise SystemExit(128 + ended.signal)
    write(folder, settings, metrics, about)
    print(f"\n{table(settings, metrics)}\n\nMean ± standard deviation over training runs.")
    print(*(f"- {spell(text)}" for text in remarks(settings, metrics)), sep="\n")
    print(f"\nTable:  {folder / 'sweep.md'}\nReport: {folder / 'sweep.json'}")
    if not any(run.status == FINISHED for setting in settings for run in setting.runs):
        raise UserError(f"no run of the sweep has ended well: {settings[0].runs[0].reason}")
