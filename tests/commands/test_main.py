"""The command as a whole: its verbs, its list, its mistakes, and how fast it answers."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, python, run

from hfgen import registry
from hfgen.commands.main import VERBS, main

PLUGIN = """
from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="toy",
    title="Toy: nothing at all",
    options="toy_family:Nothing",
    recipe="toy_family:Recipe",
    pipelines=(PipelineEntry("toy_family:Pipe", "toy_family:Adapter", "hfgen.sampling.config:SamplingConfig"),),
    card="toy_family:card.md",
    presets="toy_family:PRESETS",
)


def small():
    \"\"\"As small as can be.\"\"\"
    return {}


PRESETS = {"small": small}
"""


def ended(capsys, *argv):
    """The one line that a mistake ends with."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    shown = capsys.readouterr()
    assert end.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_alone_it_shows_its_verbs(capsys, argv):
    main(argv)
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        (line,) = [line for line in lines if line.startswith(f"  {verb} ")]
        assert len(line) <= 119 and line.endswith(".")


def test_list_shows_families_and_presets(capsys):
    main(["list"])
    shown = capsys.readouterr().out
    for name, family in registry.families().items():
        assert f"{name} " in shown and family.title in shown
        for preset in family.load("presets").values():
            assert preset.__doc__.strip().splitlines()[0] in shown
    assert "stable" in shown and "(the default)" in shown


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a package with a family: writes what its module holds, and what the entry point says."""

    def install(module, value="toy_family:FAMILY"):
        (tmp_path / "toy_family.py").write_text(module)
        folder = tmp_path / "toy-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[hfgen.families]\ntoy = {value}\n")

    monkeypatch.syspath_prepend(tmp_path)
    registry.families.cache_clear()
    yield install
    registry.families.cache_clear()
    sys.modules.pop("toy_family", None)


def test_list_shows_plugins_with_their_package(plugin, capsys):
    plugin(PLUGIN + "from hfgen.sampling.config import NoOptions as Nothing\n")
    main(["list"])
    shown = capsys.readouterr().out
    assert "Toy: nothing at all (toy)" in shown and "As small as can be." in shown


@pytest.mark.parametrize(
    ("module", "value", "message"),
    [
        (PLUGIN, "toy_family:FAMILI", "the family 'toy' that toy declares is not at toy_family:FAMILI"),
        (PLUGIN, "absent_package:FAMILY", "is not at absent_package:FAMILY"),
        ("FAMILY = 3", "toy_family:FAMILY", "toy_family:FAMILY of toy is of type int"),
        (PLUGIN.replace('"toy"', '"gan"', 1), "toy_family:FAMILY", "toy declares a family 'gan', which hfgen has"),
        (PLUGIN, "toy_family:FAMILY", "the options of the family 'toy' (toy) is not at toy_family:Nothing"),
        (
            PLUGIN.replace("toy_family:Recipe", "toy_recipe:Recipe")
            + "from hfgen.sampling.config import NoOptions as Nothing\n",
            "toy_family:FAMILY",
            "there is no module toy_recipe",
        ),
    ],
)
def test_list_says_what_is_broken(plugin, capsys, module, value, message):
    """And goes on to work with the others."""
    plugin(module, value)
    main(["list"])
    shown = capsys.readouterr().out
    assert re.search("^toy +is broken: ", shown, re.MULTILINE) and message in shown
    assert registry.find_family("gan").origin == "hfgen"


def test_a_broken_plugin_that_is_asked_for_says_so(plugin, capsys):
    plugin(PLUGIN, "toy_family:FAMILI")
    assert "the family 'toy' that toy declares is not at toy_family:FAMILI" in ended(capsys, "train", "toy")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["trian"],
            "hfgen has no verb 'trian': it has train, sample, evaluate, compare, sweep, classify, augment, show",
        ),
        (["trian"], "Did you mean train?"),
        (["train"], f"hfgen train needs the name of a family first: {', '.join(registry.families())}."),
        (["train", "--seed", "1"], "needs the name of a family first"),
        (["train", "gna"], f"no family 'gna': the families are {', '.join(registry.families())}. Did you mean gan?"),
        (["train", "gan", "--resolutin", "8"], "unknown flag --resolutin. Did you mean --resolution?"),
        (["train", "gan", "--resolution", "2"], "--resolution 2 is out of range: use 4 to 4096"),
        (["list", "gan"], "hfgen list takes no arguments"),
        (["sample"], "--model is missing"),
    ],
)
def test_mistakes(capsys, argv, message):
    assert message in ended(capsys, *argv)


def test_train_shows_the_families(capsys):
    main(["train", "--help"])
    assert re.search("^  gan +GAN: ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "argv", [[], ["list"], ["train", "gan", "--help"], ["sweep", "gan", "--help"], ["demo", "--help"]]
)
def test_it_answers_without_torch(argv):
    command = [sys.executable, "-X", "importtime", "-m", "hfgen", *argv]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "hfgen.commands.cli" in modules
    assert not modules & {"torch", "numpy", "PIL", "yaml", "huggingface_hub", "gradio"}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_launchers_start_it(tmp_path, processes):
    """`accelerate launch -m hfgen train gan`, and torchrun: as the scripts are."""
    from helpers import TINY_GAN

    launcher = ["accelerate", "launch", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    launcher += ["--mixed_precision", "no"]
    if processes > 1:
        launcher = ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
    folder = tmp_path / "out"
    program = [os.path.join(os.path.dirname(sys.executable), launcher[0]), *launcher[1:], "-m", "hfgen"]
    command = [*program, "train", "gan", *TINY_GAN, "--output_dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert f"Use it:   hfgen sample --model {folder}" in result.stdout
    record = (folder / "run.json").read_text()
    start = "accelerate launch" if processes == 1 else "torchrun --nproc_per_node 2"
    assert f'"command": "{start} -m hfgen train gan --dataset_name digits' in record


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, "python", "accelerate", "torchrun"])
@pytest.mark.parametrize("late", [False, True], ids=["flags", "data"])
def test_a_mistake_under_each_launcher(tmp_path, launcher, late):
    """Our line comes first and once; launchers add a traceback of their own, and make 1 of the exit code."""
    words = ["--output_dir", tmp_path / "out", "--num_epochs", "1" if late else "nan"]
    words += ["--train_data_dir", tmp_path / "absent"]
    if launcher == "python":
        result = run("train_gan", *words, launcher=launcher)
    else:
        result = run("-m", "hfgen", "train", "gan", *words, launcher=launcher, processes=1 + (launcher == "torchrun"))
    start = "error: --train_data_dir" if late else "error: --num_epochs is nan"
    lines = [line for line in result.stderr.splitlines() if "error: " in line and "--" in line]
    assert len(lines) == 1 and lines[0].startswith(start), result.stderr
    assert "Traceback" not in result.stderr.partition(lines[0])[0]
    if launcher in (None, "python"):
        assert result.returncode == 2 and result.stderr.splitlines() == lines
    else:
        assert result.returncode == 1
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_the_data_names_flags(tmp_path, monkeypatch, capsys):
    from hfgen.runtime.notes import note

    monkeypatch.setattr("hfgen.commands.train.main", lambda argv: note(f"See `resolution` {argv}."))
    monkeypatch.setattr("hfgen.commands.cli.FLAGS", {"resolution"})
    for _ in range(2):  # each job tells it anew
        main(["train", "x"])
    assert capsys.readouterr().out == "See --resolution ['x'].\n" * 2


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "0"}, {"RANK": "one"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "2"}],
)
def test_numbers_of_processes_that_are_none(monkeypatch, capsys, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        main(["list"])
    assert f"error: {next(iter(environment))} is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/a\nb"), "[Errno 13] Permission denied: '/a\\nb'."),
        (
            OSError(28, "No space left", "a.png"),
            "[Errno 28] No space left: 'a.png'. Free some space, or write to another disk.",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, line):
    def refuse(argv):
        raise error

    monkeypatch.setattr("hfgen.commands.train.main", refuse)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "x"])
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_file_that_is_not_there_is_a_fault_of_the_code(monkeypatch):
    def fail(argv):
        raise FileNotFoundError(2, "No such file", "template.md")

    monkeypatch.setattr("hfgen.commands.train.main", fail)
    with pytest.raises(FileNotFoundError):
        main(["train", "x"])


def test_doors_are_three_lines():
    """An import, and a call of the verb that has the work."""
    doors = [path for path in (ROOT / "scripts").glob("*.py") if path.stem != "make_stacked_mnist"]
    assert len(doors) == 13
    for path in doors:
        code = path.read_text().split('"""')[2].split("\n")
        assert [line for line in code if line][:2] == [
            "from hfgen.commands.main import main",
            'if __name__ == "__main__":',
        ]
        assert len([line for line in code if line]) == 3


def test_memory_that_runs_out_is_one_line(tmp_path):
    code = """
import contextlib, io, resource, sys, torch
from pathlib import Path
from hfgen.commands.main import main
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as written:
    with contextlib.suppress(SystemExit):
        main(["train", "gan", "--num_clusters", "0", "--train_batch_size", "8192", "--base_channels", "256",
              "--max_train_steps", "1", "--cpu_threads", "1", "--output_dir", sys.argv[1]])
print(written.getvalue().splitlines()[-1])
"""
    line = python(code, tmp_path / "run", env={"HF_HOME": str(tmp_path)})
    assert line.startswith("error: memory ran out: ") and line.endswith(
        "Use smaller batches, images or networks, or a larger machine."
    )
