"""hfgen sweep: which runs there are, what their table says, and runs that fail, stop and go on."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from evaluation.tiny import save_classifier
from helpers import TINY, Command, run, start

from hfgen.commands import sweep
from hfgen.evaluation.config import NUMBERS
from hfgen.runtime.errors import UserError
from hfgen.training.sweep import FAILED, FINISHED, Setting, SweepRun, best, deciding, folder_name, remarks, table

EVALUATION = Path(sweep.__file__).parents[1] / "evaluation"
SHORT = [*TINY, "--cpu_threads", "1", "--eval_num_images", "8", "--max_train_steps", "4"]


def setting(name, *values, key="fd_x", **more):
    runs = [
        SweepRun(seed, Path(f"{name}-{seed}"), FINISHED, "", {key: value}, 10.0) for seed, value in enumerate(values)
    ]
    return Setting({"learning_rate": name}, [*runs, *more.get("failed", [])])


def test_the_plan():
    argv = [*"ddpm --seeds 3 5 --grid learning_rate=1e-3,0.01".split(), "block_out_channels=32 64,64", "use_ema=false"]
    family, config, given = sweep.read_given([*argv, "--output_dir", "out/x", "--resolution", "16"])
    settings, planned = sweep.plan(family, config, given)
    assert [s.name.replace("learning_rate", "lr") for s in settings] == [
        "lr 1e-3, block_out_channels 32 64, use_ema false",
        "lr 1e-3, block_out_channels 64, use_ema false",
        "lr 0.01, block_out_channels 32 64, use_ema false",
        "lr 0.01, block_out_channels 64, use_ema false",
    ]
    assert len(planned) == 8 and len({one.run.folder for one in planned}) == 8
    last = planned[-1].options
    assert (last.training.seed, last.own.learning_rate, last.own.block_out_channels) == (5, 0.01, (64,))
    assert not last.training.use_ema and last.data.resolution == 16 and last.training.eval_every is not None
    folder = "out/x/learning_rate-0.01-block_out_channels-64-use_ema-false-seed-5"
    assert last.training.output_dir == folder == str(planned[-1].run.folder)
    family, config, given = sweep.read_given(["vae", "--grid", "preset=conv,beta", "--dataset_name", "a/b"])
    _, planned = sweep.plan(family, config, given)
    assert {one.options.own.architecture for one in planned} == {"conv", "residual"} and len(planned) == 6
    assert planned[0].run.folder == Path("out/sweep-vae-b/preset-conv-seed-0")
    assert folder_name({"train_data_dir": "/a b/c"}, 0) == "train_data_dir-a-b-c-seed-0".replace("dir-a", "dir--a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--grid learning_rate", "--grid learning_rate: give an option, = and values with commas"),
        ("--grid learning_rate=", "--grid learning_rate=: give an option"),
        ("--grid learnin_rate=1", "learnin_rate is no option of gan. Did you mean learning_rate?"),
        ("--grid learning_rate=x,1", "--grid learning_rate=x,1: argument --learning_rate: invalid float value"),
        ("--grid seed=1,2", "seed cannot be varied: give --seeds"),
        ("--grid learning_rate=1 learning_rate=2", "give each option, and each of its values, once"),
        ("--grid learning_rate=1,1", "give each option, and each of its values, once"),
        ("--grid use_ema=yes", "use_ema is true or false, not yes"),
        ("--grid preset=stabel", "there is no preset stabel: use"),
        ("--grid learning_rate=1e9,1e8", "--learning_rate 1000000000.0 is out of range"),
        ("--seeds 1 1", "--seeds 1 1 has a number twice"),
        ("--seed 1", "--seed 1 does not go with a sweep: give --seeds"),
        ("--overwrite_output_dir", "--overwrite_output_dir True does not go with a sweep"),
        ("--num_epochs -1", "--num_epochs -1.0 is out of range"),
    ],
)
def test_mistakes_are_found_before_the_first_run(words, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        Command("sweep gan").main([*words.split(), "--output_dir", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "sweep.md").write_text("mine")
    with pytest.raises(UserError, match="holds a sweep.md of something else"):
        Command("sweep gan").main(["--output_dir", str(tmp_path)])
    (tmp_path / "sweep.md").unlink()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run: give a folder for all runs"):
        Command("sweep gan").main(["--output_dir", str(tmp_path)])


def test_the_table():
    broken = SweepRun(2, Path("b-2"), FAILED, "it broke")
    settings = [setting("a", 4.0, 2.0, 3.0), setting("b", 1.0, 1.2, failed=[broken]), setting("c", 2.0, 2.2, 2.4)]
    lines = table(settings, ("fd",)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["setting", "runs", "fd_x", "seconds of training"]
    assert rows[2] == ["learning_rate a", "3 of 3", "3 ± 1", "10"]
    assert rows[3] == ["learning_rate b", "2 of 3", "1.1 ± 0.14", "10"]
    assert rows[4] == ["learning_rate c", "3 of 3", "**2.2 ± 0.2**", "10"], "a setting that fails is not the best"
    said = remarks(settings, ("fd",))
    assert said[0] == "Best by fd_x (lower is better): learning_rate c."
    assert said[1] == "learning_rate a is 0.8 behind: which may be chance."
    assert said[2] == "b-2 failed: it broke"
    far = [setting("a", 4.0, 4.1, key="vendi"), setting("b", 1.0, 1.1, key="vendi")]
    assert "more than two of its standard errors" in remarks(far, ("precision_recall", "vendi"))[1]
    assert best(far, "vendi", "higher")[0] is far[0] and deciding(("precision_recall",), far) is None
    assert "is not known: give more `seeds`" in " ".join(remarks([setting("a", 1.0)], ("fd",)))


def test_which_numbers_are_better():
    """The table of metrics says what the metrics themselves say."""
    code = "\n".join(path.read_text() for path in sorted(EVALUATION.glob("*.py")))
    for name, (beginnings, better) in NUMBERS.items():
        said = re.search(rf'Result\(\s*"{name}",.*?"(lower|higher)"', code, re.DOTALL)
        assert said and said[1] == better and beginnings, name


def test_runs_that_fail_do_not_lose_the_others(tmp_path):
    folder = tmp_path / "sweep"
    save_classifier(folder / "classifier")  # in whose features they are measured
    words = ["--grid", "attention_resolutions=4,5", "norm_num_groups=4,3", "--output_dir", folder]
    result = run("-m", "hfgen", "sweep", "ddpm", *SHORT, "--seeds", "0", *words)
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "sweep.json").read_text())
    states = {tuple(s["values"].values()): s["runs"][0] for s in report["settings"]}
    assert {name: state["status"] for name, state in states.items()} == {
        ("4", "4"): FINISHED,
        ("4", "3"): FAILED,
        ("5", "4"): FAILED,
        ("5", "3"): FAILED,
    }
    assert "--norm_num_groups 3: change one" in states["4", "3"]["reason"], "found by its options alone"
    assert states["5", "4"]["reason"].startswith("--attention_resolutions does not fit --resolution 8")
    assert report["metric"].startswith("fd_classifier") and report["best"]["attention_resolutions"] == "4"
    shown = (folder / "sweep.md").read_text()
    assert shown.partition("\n\n")[0] in result.stdout and "| 0 of 1 |" in shown
    assert "failed: --attention_resolutions does not fit" in shown
    good = folder / "attention_resolutions-4-norm_num_groups-4-seed-0"
    before = (good / "run.json").read_bytes()

    words = ["--grid", "attention_resolutions=4", "norm_num_groups=4", "--output_dir", folder]
    result = run("-m", "hfgen", "sweep", "ddpm", *SHORT, "--seeds", "0", "1", *words)
    assert result.returncode == 0, result.stderr
    assert f"{good} is already trained" in result.stdout and result.stdout.count("\nhfgen train ddpm ") == 1
    assert (good / "run.json").read_bytes() == before
    (one,) = json.loads((folder / "sweep.json").read_text())["settings"]
    assert any(key.startswith("fd_") for key in one["mean"]) and "near_duplicates" in one["mean"]  # of few images
    for key in one["mean"]:
        assert one["mean"][key] == pytest.approx(sum(r["results"][key] for r in one["runs"]) / 2)
    key = next(key for key in one["mean"] if key.startswith("fd_"))
    assert one["standard_deviation"][key] > 0 and "spread" not in result.stdout


@pytest.mark.slow
def test_it_is_stopped_and_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    words = ["sweep", "ddpm", *SHORT, "--max_train_steps", "3000", "--eval_metrics", "bits_per_dim"]
    words += ["--seeds", "0", "1", "--checkpointing_steps", "5", "--output_dir", folder]
    process = start("-m", "hfgen", *words)
    deadline = time.monotonic() + 200
    while not list(folder.glob("seed-0/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped by signal 15. The same command goes on." in out
    runs = json.loads((folder / "sweep.json").read_text())["settings"][0]["runs"]
    assert [one["status"] for one in runs] == ["stopped", "waiting"] and not (folder / "seed-1").exists()
    last = max(folder.glob("seed-0/checkpoint-*"))
    steps = int(last.name.rpartition("-")[2]) // 16 + 2

    words[words.index("3000")] = str(steps)
    result = run("-m", "hfgen", *words)
    assert result.returncode == 0, result.stderr
    assert f"Resuming from {last}" in result.stdout
    runs = json.loads((folder / "sweep.json").read_text())["settings"][0]["runs"]
    assert [one["status"] for one in runs] == [FINISHED, FINISHED]
