"""Command lines, config files and presets."""

import json
import re
import shlex
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
from helpers import ROOT, Command, load_script, spelled

from hfgen.commands import classify, cli, compare, demo, evaluate, push, restore, sample, show, translate
from hfgen.commands.cli import Given, command_line, flags, one_line_errors, parse, read
from hfgen.data.config import DataConfig
from hfgen.families.autoregressive.options import AutoregressiveConfig
from hfgen.families.ddpm.options import DDPMConfig
from hfgen.families.gan.options import GANConfig
from hfgen.families.vae.options import VAEConfig
from hfgen.registry import families, find_family
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, as_dict, hints, option
from hfgen.sampling.config import all_sampling_options
from hfgen.training.config import MOVED, TrainingConfig
from hfgen.training.options import option_kinds


@dataclass(frozen=True)
class Tiny(Options):
    """Options: for tests."""

    size: int = option(4, "a size", choices=(4, 8))
    rate: float = option(0.1, "a rate")
    name: str | None = option(None, "a name")
    limit: int | None = option(2, "a limit")
    widths: tuple[int, ...] = option((1, 2), "widths")
    flip: bool = option(False, "flip")
    ema: bool = option(True, "average")
    token: str | None = option(None, "a secret", secret=True)
    publish: bool = option(False, "publish", once=True)
    kind: str | None = option(None, "a kind", choices=("a", "b"))
    labels: tuple[str, ...] = option((), "labels")


def given(*argv, **kwargs):
    with spelled():
        return read((Tiny,), list(map(str, argv)), description="Test.", presets=("small",), **kwargs)


def parsed(*argv):
    with spelled():
        return parse((Tiny,), list(map(str, argv)), description="Test.")[0]


def end_of(error, monkeypatch, torch=True, **environment):
    """How the program ends when that is raised: its exit code, what it writes in each go, and how long it waits."""
    written, waited = [], []
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stderr = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(cli, "sys", SimpleNamespace(stderr=stderr, modules=["torch"] * torch))
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    assert end.value.__suppress_context__
    return end.value.code, written, waited


def test_ctrl_c_ends_with_one_line(monkeypatch):
    assert end_of(KeyboardInterrupt(), monkeypatch) == (130, ["Stopped.\n"], [])
    assert end_of(KeyboardInterrupt(), monkeypatch, RANK="1", LOCAL_RANK="1") == (130, [], [])


def test_of_mistakes_in_flags_one_process_of_a_node_speaks(monkeypatch):
    mistake = UserError("it is wrong.")
    assert end_of(mistake, monkeypatch, torch=False) == (2, ["error: it is wrong.\n"], [])
    ranks = {rank: {"RANK": str(rank), "LOCAL_RANK": str(rank % 2)} for rank in range(4)}
    ends = [end_of(mistake, monkeypatch, torch=False, **ranks[rank]) for rank in range(4)]
    waits = [cli.PATIENCE]
    first, third = ["error: it is wrong.\n"], ["[rank 2] error: it is wrong.\n"]
    assert ends == [(2, first, []), (2, [], waits), (2, third, []), (2, [], waits)]
    later = end_of(mistake, monkeypatch, **ranks[1])  # as the first one need not know, but has the word if it does
    assert later == (2, ["[rank 1] error: it is wrong.\n"], waits)


def test_a_flag_wins_over_the_file_and_only_what_was_given_is_returned(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("rate: 0.25\nwidths: [7, 8]\nflip: true\n")
    assert given() == Given({})
    assert given("--preset", "small", "--config", file).preset == "small"
    both = given("--config", file, "--rate", "2", "--no_flip", "--size", "4")  # 4 is the default, too
    assert both == Given({"rate": 2.0, "widths": (7, 8), "flip": False, "size": 4})
    assert parsed("--config", file) == Tiny(rate=0.25, widths=(7, 8), flip=True)


@pytest.mark.parametrize("number", ["-1", "-.5", "-1e-3", "-2.5E+3", "-1e30"])
def test_negative_numbers_are_no_flags(number):
    assert parsed("--rate", number).rate == float(number)


def test_a_preset_may_stand_in_the_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"preset": "small", "name": None, "size": 4}))
    assert given("--config", file) == Given({"name": None, "size": 4}, "small")
    file.write_text(json.dumps({"preset": "smal"}))
    with pytest.raises(UserError, match="has the unknown preset 'smal'. Did you mean small"):
        given("--config", file)


def test_the_file_holds_values(tmp_path):
    """Numbers as YAML writes them, and what the help calls `none`; no text is parsed again."""
    file = tmp_path / "config.yaml"
    file.write_text("rate: 1e-3\nlimit: none\nname: '4'\n")
    assert parsed("--config", file) == Tiny(rate=0.001, limit=None, name="4")
    file.write_text("rate: 2\nname: null\n")
    assert isinstance(parsed("--config", file).rate, float)


def test_the_record_of_a_run_is_a_config_file(tmp_path):
    file = tmp_path / "run.json"
    before = Tiny(size=8, widths=(5, 6), ema=False)
    file.write_text(json.dumps({"hfgen": "1", "name": "of the run", "config": as_dict([before])}))
    assert parsed("--config", file) == before


def test_a_record_repeats_what_was_made_and_not_what_was_done_with_it(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"config": {"size": 8, "publish": True}}))
    assert parsed("--config", file) == Tiny(size=8)
    file.write_text(json.dumps({"size": 8, "publish": True}))  # written by hand
    assert parsed("--config", file).publish


KINDS = {
    "train gan": option_kinds(find_family("gan")),
    "train vae": option_kinds(find_family("vae")),
    "train ddpm": option_kinds(find_family("ddpm")),
    "sample": (sample.SampleConfig, *all_sampling_options()),
    "evaluate": (*evaluate.KINDS, *all_sampling_options()),
    "compare": (*compare.KINDS, *all_sampling_options()),
    "classify": classify.KINDS,
    "show": (*show.KINDS, *all_sampling_options()),
    "restore": restore.KINDS,
    "translate": (translate.TranslateConfig, *all_sampling_options()),
    "demo": (demo.DemoConfig,),
    "push": (push.PushConfig,),
}
NEEDED = {"sample": "--model m", "evaluate": "--model m", "show": "--model m", "demo": "--model m"}
NEEDED |= {"restore": "--model m --task img2img --input x", "translate": "--model m --input x"}
NEEDED |= {"push": "--folder f --hub_model_id a/b"}


@pytest.mark.parametrize("verb", KINDS)
def test_every_option_that_may_be_left_open_takes_null(verb, tmp_path):
    """By flag and by file, with choices or without."""
    kinds = {field.name: hints(kind)[field.name] for kind in KINDS[verb] for field in fields(kind)}
    names = {name for name, (_, optional, _) in kinds.items() if optional}
    needed = NEEDED.get(verb, "").split()
    names -= {word.removeprefix("--") for word in needed}
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(names)))
    switches = {name for name in names if kinds[name][0] is bool}  # on, off, or left out
    Command(verb).read_options([*needed, *(f"--{name}=none" for name in names - switches)])
    Command(verb).read_options([*needed, "--config", str(tmp_path / "config.json")])
    if verb.startswith("train"):
        assert {"image_mode", "metric_for_best_model"} <= names


def test_flags_repeat_values():
    values = {"size": 8, "rate": 1e-05, "name": None, "widths": (), "flip": True, "ema": False}
    assert given(*flags(values)) == Given(values)


def test_switches():
    assert not parsed("--no_ema").ema
    assert parsed("--flip").flip
    assert parsed("--name", "none").name is None
    assert parsed("--kind", "none").kind is None and parsed("--kind", "b").kind == "b"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sise", "4"], "unknown flag --sise. Did you mean --size?"),
        (["--siz", "4"], "Did you mean --size?"),  # and is no abbreviation
        (["--size", "x"], "invalid int value: 'x'"),
        (["--size", "5"], "invalid choice"),
        (["--kind", "c"], "invalid choice: 'c' (choose from 'a', 'b')"),
        (["--old", "1"], "--old does not exist here: use --rate."),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "absent.yaml"], "--config absent.yaml cannot be read"),
        (["--config"], "expected one argument"),
        (["--preset", "big"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError) as error:
        given(*argv, moved={"old": "use `rate`."})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widhts: [1]", "unknown key 'widhts'. Did you mean widths?"),
        ("- 1", "must hold a mapping"),
        ("size: [", "is no valid YAML: line 1, column 8"),
        ("size: big", ": --size is 'big', but must be int."),
        ("size: 5", ": --size 5 is no choice: use 4, 8."),
        ("flip: 1", ": --flip is 1, but must be bool."),
        ("widths: 3", ": --widths is 3, but must be a list of int."),
        ("name: 4", ": --name is 4, but must be str or None."),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parsed("--config", file)
    assert message in str(error.value) and f"--config {file}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--token", "hf_Secret7", "hf_Secret7"],
        ["--token", "hf_Secret7", "hf_Secret8"],
        ["--token=hf_Secret7", "hf_Secret7"],
        ["hf_Secret7", "--token", "hf_Secret7"],
        ["--size", "hf_Secret7", "--token", "hf_Secret7"],
        ["--size", "hf_" + "Secret7" * 5],
        ["--tokn=hf_Secret7"],
    ],
)
def test_secrets_are_in_no_error(argv):
    with pytest.raises(UserError) as error:
        given(*argv)
    assert "Secret" not in str(error.value)


def test_secrets_are_never_recorded():
    assert "token" not in as_dict([Tiny(token="hf_secret")])
    assert command_line("it", [Tiny], ["--token", "hf_secret", "--size", "4"]).endswith("--token '***' --size 4")
    assert command_line("it", [Tiny], ["--token=hf_secret"]).endswith(" '--token=***'")


@pytest.mark.parametrize(
    ("program", "environment", "expected"),
    [
        (["/bin/hfgen", "train", "gan", "--size", "4"], {}, "hfgen train gan --size 4"),
        (["/lib/hfgen/__main__.py", "train", "gan", "--size", "4"], {}, "hfgen train gan --size 4"),
        (
            ["/lib/hfgen/__main__.py", "train", "gan", "--size", "4"],
            {"ACCELERATE_MIXED_PRECISION": "no"},
            "accelerate launch -m hfgen train gan --size 4",
        ),
        (
            ["/lib/hfgen/__main__.py", "train", "gan", "--size", "4"],
            {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node 2 -m hfgen train gan --size 4",
        ),
        (
            ["scripts/train_gan.py", "--size", "4"],
            {"ACCELERATE_MIXED_PRECISION": "no"},
            "accelerate launch scripts/train_gan.py --size 4",
        ),
        (["/home/me/scripts/train_gan.py", "--size", "4"], {}, "python train_gan.py --size 4"),
        (["notebook.py", "--other"], {}, "hfgen train gan --size 4"),
    ],
)
def test_the_command_is_recorded_as_it_was_given(monkeypatch, program, environment, expected):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", program)
    assert command_line("train gan", [Tiny], ["--size", "4"]) == expected


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ("train_autoregressive", AutoregressiveConfig),
        ("train_ddpm", DDPMConfig),
        ("train_gan", GANConfig),
        ("train_vae", VAEConfig),
    ],
)
def test_the_flags_of_the_scripts_are_frozen(script, config):
    """Adding a flag is a decision: add it here, too. Removing one breaks somebody's command line."""
    import dataclasses

    names = [field.name for part in (DataConfig, TrainingConfig, config) for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))
    assert sorted(names) == (ROOT / "tests" / f"flags_{script}.txt").read_text().split()


def test_a_range_may_begin_below_zero():
    data, *_ = Command("train gan").read_options(["--dataset_name", "x", "--value_range", "-200", "300.5"])
    assert data.value_range == (-200, 300.5)
    with pytest.raises(UserError, match="--value_range 3.0 is no range: give two numbers"):
        Command("train gan").read_options(["--dataset_name", "x", "--value_range", "3"])


def test_flags_of_diffusers_script_exist():
    """`train_unconditional.py` of diffusers 0.36: every flag is here, or says what to use instead."""
    theirs = """
    dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir overwrite_output_dir cache_dir
    resolution center_crop random_flip train_batch_size eval_batch_size dataloader_num_workers num_epochs
    save_images_epochs save_model_epochs gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps
    adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma ema_power ema_max_decay push_to_hub
    hub_token hub_model_id hub_private_repo logger logging_dir local_rank mixed_precision prediction_type
    ddpm_num_steps ddpm_num_inference_steps ddpm_beta_schedule checkpointing_steps checkpoints_total_limit
    resume_from_checkpoint enable_xformers_memory_efficient_attention preserve_input_precision
    """.split()
    ours = (ROOT / "tests" / "flags_train_ddpm.txt").read_text().split()
    assert [name for name in theirs if name not in ours and name not in MOVED] == []


@pytest.mark.parametrize("name", families())
def test_presets_are_valid(name):
    for preset in find_family(name).load("presets"):
        Command(f"train {name}").read_options(["--preset", preset])  # which validates them


def commands_in(text):
    """The commands of a text that run hfgen: their verb and the words behind it."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.split("&&")[-1].partition("#")[0]
        if match := re.search(r"\bscripts/(\w+)\.py\b(.*)", command):
            door = f"scripts/{match[1]}.py"
            code = (ROOT / door).read_text()
            verb = re.search(r'main\(verb="(.*)"\)', code)
            yield (Command(verb[1]) if verb else load_script(match[1])), shlex.split(match[2])
        elif match := re.match(r"\s*(?:(?:accelerate launch|torchrun) .*-m )?hfgen (.*)", command):
            verb, *words = shlex.split(match[1])
            if verb != "list":
                yield Command(verb), words


DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "model_cards").glob("*/README.md"),
    *(ROOT / "scripts").glob("*.py"),
    *(ROOT / "hfgen" / "commands").glob("*.py"),
]
WITHOUT = (
    "__init__.py",
    "cli.py",
    "configfile.py",
    "image_files.py",
    "list.py",
    "main.py",
    "options.py",
    "process.py",
)  # examples


@pytest.mark.parametrize(
    "path",
    sorted(path for path in DOCUMENTS if path.name not in WITHOUT),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_commands_in_the_documentation_parse(path):
    """Every command line shown is read by the parser of what it calls."""
    text = path.read_text()
    blocks = (
        re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text.split('"""')[1]]
    )
    commands = [command for block in blocks for command in commands_in(block)]
    assert commands
    for verb, words in commands:
        verb.read_options(words)
