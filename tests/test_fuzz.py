"""Files that are read again, changed at random: each ends in one line, or is accepted."""

import copy
import json
import random
import shutil
import time
import traceback
from pathlib import Path

import pytest
from helpers import TINY, TINY_FLOW, TINY_GAN, TINY_VAE, Command

from hfgen.data.config import DataConfig
from hfgen.evaluation.augment_splits import model_of_folder, origin_of_split
from hfgen.evaluation.compare import costs, read_run, time_to_quality
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.trained import following, training_data
from hfgen.hub.contents import pipeline_contents
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import load_sampler

FEW, MANY = 8, 150  # changes of each kind of file
SECONDS = 20
ODD = [
    *(None, True, False, 0, 1, 3, -1, 0.5, -1.5, 10**6, 10**30, 1e300, float("nan"), float("inf")),
    *("", "x", "--seed", "none", "é\n", "\ud800", "x" * 5000),
    *([], {}, [[]], [None], ["x", 1], [1, 2, 3], {"a": {"b": 1}}),
]
many = pytest.mark.parametrize("seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)])


def nodes(value, path=()):
    """The places in JSON-like values."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def changed(content: bytes, chance: random.Random) -> bytes:
    """Changes a JSON file: a value, a key, or the bytes."""
    how = chance.choice(["value"] * 6 + ["delete", "wrap", "swap", "cut", "flip", "twice", "insert", "empty", "deep"])
    if how == "cut":
        return content[: chance.randrange(len(content))]
    if how in ("flip", "insert"):
        at = chance.randrange(len(content))
        return content[:at] + chance.randbytes(3) + content[at + 3 * (how == "flip") :]
    if how == "twice":  # a key
        return content.replace(b"{", b'{"seed": 1, "seed": 2, ', 1)
    if how in ("empty", "deep"):
        return b"" if how == "empty" else b"[" * 50_000 + b"]" * 50_000
    value = json.loads(content)
    path = chance.choice(list(nodes(value))[1:])
    place = value
    for key in path[:-1]:
        place = place[key]
    if how == "delete":
        del place[path[-1]]
    elif how == "swap":  # with another value of the file
        other = value
        for key in chance.choice(list(nodes(value))[1:]):
            other = other[key]
        place[path[-1]] = copy.deepcopy(other)
    else:
        place[path[-1]] = [place[path[-1]]] if how == "wrap" else copy.deepcopy(chance.choice(ODD))
    return json.dumps(value).encode()


def try_all(file: Path, seeds, use) -> int:
    """Uses a file that is changed in many ways; returns how many of them were accepted."""
    content, accepted, faults = file.read_bytes(), 0, []
    for seed in seeds:
        file.write_bytes(changed(content, random.Random(f"{file.name} {seed}")))
        start = time.monotonic()
        try:
            use()
            accepted += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 20_000, (seed, str(error)[:500])
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"change {seed}: {type(error).__name__}: {error!s:.100} ({at.filename}:{at.lineno})")
        assert time.monotonic() - start < SECONDS, seed
    file.write_bytes(content)
    assert not faults, "\n".join([file.name, *faults])
    return accepted


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of each family."""
    folder = tmp_path_factory.mktemp("made")
    for family, tiny in (("ddpm", TINY), ("gan", TINY_GAN), ("vae", TINY_VAE), ("flow", TINY_FLOW)):
        Command(f"train {family}").main([*tiny, "--output_dir", str(folder / family)])
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "runs"))


@many
@pytest.mark.parametrize("family", ["gan", "ddpm"])
def test_config_files(runs, seeds, family):
    record = runs / family / "run.json"
    options, train = json.loads(record.read_text())["config"], Command(f"train {family}")
    for name, values in (("options.json", options), ("options.yaml", {"seed": 1, "use_ema": True, "lr": [1]})):
        (runs / name).write_text(json.dumps(values))
        try_all(runs / name, seeds, lambda name=name: train.read_options(["--config", str(runs / name)]))
    assert try_all(record, seeds, lambda: train.read_options(["--config", str(record)])) < len(seeds)


@many
def test_records_and_metrics(runs, seeds):
    record, log = runs / "gan" / "run.json", runs / "gan" / "logs" / "metrics.jsonl"
    sampler = load_sampler(str(runs / "gan"))
    line = json.loads(log.read_text().splitlines()[-1]) | {"eval_fd": 3.0, "training_seconds": 1.5}

    def use():
        training_data(str(runs / "gan"))
        following(ReferenceConfig(), str(runs / "gan"))
        read_run(runs / "gan")
        time_to_quality([costs(sampler, [1.0, 2.0], "eval_fd")], None)

    assert 0 < try_all(record, seeds, use) < len(seeds)
    log.write_text(json.dumps(line) + "\n")
    assert 0 < try_all(log, seeds, use) < len(seeds)
    try_all(record, seeds, lambda: pipeline_contents(runs / "gan"))


@many
def test_records_of_splits_and_of_generated_images(tmp_path, seeds):
    """What cannot be read says nothing; neither ends a comparison."""
    split, samples = tmp_path / "split.json", tmp_path / "samples.json"
    split.write_text(json.dumps({"config": {"dataset_name": None, "train_data_dir": "scans", "seed": 3}}))
    samples.write_text(json.dumps({"model": "out/gan", "images": [{"file": "0.png", "seed": 3}]}))

    def use():
        origin_of_split(DataConfig(dataset_name=str(tmp_path)))
        training_data(model_of_folder(str(tmp_path)) or "")

    assert try_all(split, seeds, use) == try_all(samples, seeds, use) == len(seeds)
    assert origin_of_split(DataConfig(dataset_name=str(tmp_path))).train_data_dir == "scans"
    assert model_of_folder(str(tmp_path)) == "out/gan"


@many
@pytest.mark.parametrize(
    "name",
    [
        *("ddpm/unet/config.json", "ddpm/scheduler/scheduler_config.json", "ddpm/model_index.json"),
        *("gan/model/config.json", "gan/model_index.json", "vae/model/config.json", "vae/prior/config.json"),
    ],
)
def test_models(runs, seeds, name):
    model = str(runs / name.partition("/")[0])
    options = ["--num_images", "1", "--overwrite_output_dir", "--output_dir", str(runs / "images")]
    try_all(runs / name, seeds, lambda: Command("sample").main(["--model", model, *options]))
    try_all(runs / name, seeds, lambda: pipeline_contents(Path(model)))


@many
@pytest.mark.parametrize("name", ["run.json", "state.json"])
def test_runs_that_are_resumed(made, tmp_path, seeds, name):
    folder = tmp_path / "gan"

    def copied():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made / "gan", folder)
        return folder if name == "run.json" else max(folder.glob("checkpoint-*"))

    file = copied() / name
    content = file.read_bytes()
    options = [*TINY_GAN, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]

    def use():
        change = file.read_bytes()
        copied()
        file.write_bytes(change)
        Command("train gan").main(options)

    try_all(file, seeds[: len(seeds) // 4], use)  # each takes long
    assert file.read_bytes() == content
