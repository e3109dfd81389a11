"""Command lines, config files and presets."""

import json
import re
import shlex
from dataclasses import dataclass

import pytest
from helpers import ROOT, load_script

from hfgen.commands.cli import command_line, parse
from hfgen.data.config import DataConfig
from hfgen.families.ddpm.options import DDPMConfig
from hfgen.families.gan.options import GANConfig
from hfgen.families.vae.options import VAEConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict, option
from hfgen.training.config import MOVED, TrainingConfig


@dataclass(frozen=True)
class Options:
    """Options: for tests."""

    size: int = option(4, "a size", choices=(4, 8))
    rate: float = option(0.1, "a rate")
    name: str | None = option(None, "a name")
    widths: tuple[int, ...] = option((1, 2), "widths")
    flip: bool = option(False, "flip")
    ema: bool = option(True, "average")
    token: str | None = option(None, "a secret", secret=True)


PRESETS = {"small": lambda: {"size": 8, "rate": 0.5, "widths": (3,)}}


def parsed(*argv, **kwargs):
    return parse((Options,), list(map(str, argv)), description="Test.", presets=PRESETS, **kwargs)[0]


def test_defaults_preset_file_and_flags_win_in_this_order(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("rate: 0.25\nwidths: [7, 8]\nflip: true\n")
    assert parsed() == Options()
    assert parsed("--preset", "small") == Options(size=8, rate=0.5, widths=(3,))
    assert parsed("--preset", "small", "--config", file) == Options(size=8, rate=0.25, widths=(7, 8), flip=True)
    both = parsed("--config", file, "--preset", "small", "--rate", "2", "--no_flip")
    assert both == Options(size=8, rate=2.0, widths=(7, 8), flip=False)


def test_a_preset_may_stand_in_the_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"preset": "small", "name": None, "size": 4}))
    assert parsed("--config", file) == Options(size=4, rate=0.5, widths=(3,))


def test_the_record_of_a_run_is_a_config_file(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"hfgen": "1", "config": as_dict([Options(size=8, widths=(5, 6), ema=False)])}))
    assert parsed("--config", file) == Options(size=8, widths=(5, 6), ema=False)


def test_switches():
    assert not parsed("--no_ema").ema
    assert parsed("--flip").flip
    assert parsed("--name", "none").name is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sise", "4"], "unknown flag --sise. Did you mean --size?"),
        (["--siz", "4"], "Did you mean --size?"),  # and is no abbreviation
        (["--size", "x"], "invalid int value: 'x'"),
        (["--size", "5"], "invalid choice"),
        (["--old", "1"], "--old does not exist here: use --rate."),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "absent.yaml"], "--config absent.yaml cannot be read"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError) as error:
        parsed(*argv, moved={"old": "use --rate."})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widhts: [1]", "unknown key 'widhts'. Did you mean widths?"),
        ("- 1", "must hold a mapping"),
        ("size: [", "neither valid YAML nor JSON"),
        ("size: big", "invalid int value"),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parsed("--config", file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_secrets_are_never_recorded():
    assert "token" not in as_dict([Options(token="hf_secret")])
    assert command_line([Options], ["--token", "hf_secret", "--size", "4"]).endswith("--token '***' --size 4")
    assert command_line([Options], ["--token=hf_secret"]).endswith(" '--token=***'")


@pytest.mark.parametrize(
    ("script", "config"), [("train_ddpm", DDPMConfig), ("train_gan", GANConfig), ("train_vae", VAEConfig)]
)
def test_the_flags_of_the_scripts_are_frozen(script, config):
    """Adding a flag is a decision: add it here, too. Removing one breaks somebody's command line."""
    import dataclasses

    names = [field.name for part in (DataConfig, TrainingConfig, config) for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))
    assert sorted(names) == (ROOT / "tests" / f"flags_{script}.txt").read_text().split()


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


@pytest.mark.parametrize("name", ["train_ddpm", "train_gan", "train_vae"])
def test_presets_are_valid(name):
    script = load_script(name)
    for preset in script.PRESETS:
        script.read_options(["--preset", preset])  # which validates them


def commands_in(text):
    text = text.replace("\\\n", " ")
    return [
        line.strip()
        for line in text.splitlines()
        if re.search(r"scripts/\w+\.py\b", line) and not line.startswith("#")
    ]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "scripts").glob("*.py"))], ids=lambda path: path.name
)
def test_commands_in_the_documentation_parse(path):
    """Every command line shown is read by the parser of the script that it calls."""
    text = path.read_text()
    blocks = (
        re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text.split('"""')[1]]
    )
    found = [command for block in blocks for command in commands_in(block)]
    assert found
    for command in found:
        words = shlex.split(command.split("&&")[-1].split("#")[0])
        position = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
        script = load_script(words[position].removeprefix("scripts/").removesuffix(".py"))
        script.read_options(words[position + 1 :])
