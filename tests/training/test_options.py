"""The options of a run: what wins over what, and what a run that goes on takes from its record."""

import json
import subprocess
import sys

import pytest
from helpers import Command, data_info

from hfgen.registry import find_family
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.training.folder import RunFolder
from hfgen.training.options import collect


@pytest.fixture
def record(tmp_path):
    """Writes the record of a run, in a folder."""

    def write(family="gan", **config):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        values = collect(family, dataset_name="digits", output_dir=str(folder)).values | config
        (folder / "run.json").write_text(json.dumps({"family": family, "config": values}))
        return folder

    return write


def test_without_data_the_preset_is_digits():
    options = collect("gan")
    assert (options.data.dataset_name, options.data.resolution) == ("digits", 16)
    assert options.training.num_epochs == 250 and options.training.output_dir == "out/gan-digits"
    assert collect("gan", dataset_name="digits").training.num_epochs == 250
    assert collect("gan", "conditional").data.resolution == 16  # 8 pixels are too few in any case
    assert collect("gan", "conditional").training.num_epochs == 100


def test_with_data_the_preset_is_the_family_s_own():
    options = collect("gan", dataset_name="user/data")
    assert options.training.num_epochs == 100 and options.data.num_clusters is None  # of `stable`: the data decide
    assert options.data.resolution is None and options.training.output_dir == "out/gan-data"
    assert collect("ddpm", dataset_name="user/data").training.num_epochs == 100  # has none
    folder = collect("ddpm", "mnist", train_data_dir="some/photos")
    assert folder.data.dataset_name is None and folder.training.output_dir == "out/ddpm-photos"
    assert folder.training.num_epochs == 2.1


def test_default_preset_record_given(record):
    assert collect("gan", "conditional", dataset_name="x").own.r1_gamma == 0.05  # default
    assert collect("gan", "wgan-gp", dataset_name="x").own.r1_gamma == 0.0  # preset
    resumed = {"resume_from_checkpoint": "latest", "output_dir": str(record(r1_gamma=0.3, adam_beta2=0.5))}
    options = collect("gan", **resumed)
    assert options.own.r1_gamma == 0.3 and options.own.objective == "relativistic"  # record
    options = collect("gan", r1_gamma=0.7, **resumed)
    assert options.own.r1_gamma == 0.7 and options.own.adam_beta2 == 0.5  # given
    assert options.given == {"r1_gamma", "resume_from_checkpoint", "output_dir"}
    with pytest.raises(UserError, match="a different run, .*`objective` relativistic there, wasserstein here"):
        RunFolder(collect("gan", "wgan-gp", **resumed))  # a preset that is asked for is not ignored
    with pytest.raises(UserError, match="a different run, .*`train_data_dir` None there, photos here"):
        RunFolder(collect("gan", train_data_dir="photos", **resumed))


def test_a_record_is_read_only_to_go_on(record):
    folder = str(record(r1_gamma=0.3))
    assert collect("gan", output_dir=folder).own.r1_gamma == 0.05
    options = collect("gan", output_dir=folder, resume_from_checkpoint="latest", overwrite_output_dir=True)
    assert options.own.r1_gamma == 0.05


def test_a_checkpoint_s_own_folder_has_the_record(record, tmp_path):
    checkpoint = record(r1_gamma=0.3) / "checkpoint-000000000064"
    checkpoint.mkdir()
    options = collect("gan", resume_from_checkpoint=str(checkpoint), output_dir=str(tmp_path / "other"))
    assert options.own.r1_gamma == 0.3 and options.training.output_dir == str(tmp_path / "other")
    assert options.training.resume_from_checkpoint == str(checkpoint)


def test_the_record_of_another_family(record):
    with pytest.raises(UserError, match="`output_dir` .*run holds a run of gan, not of vae: give another folder"):
        collect("vae", resume_from_checkpoint="latest", output_dir=str(record()))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3, "family": "gan"}'])
def test_a_record_that_is_none(record, text):
    folder = record(r1_gamma=0.3)
    (folder / "run.json").write_text(text)
    assert collect("gan", resume_from_checkpoint="latest", output_dir=str(folder)).own.r1_gamma == 0.05


def test_an_old_record_without_what_is_resolved_today(record):
    """Version 0.1 recorded `None` and "auto" where today's has numbers, and knew fewer options."""
    folder = record(mixed_precision="auto", image_mode=None, group_width=None, discriminator_learning_rate=None)
    values = json.loads((folder / "run.json").read_text())
    del values["config"]["num_clusters"]
    values["config"]["an_option_that_is_gone"] = 3
    (folder / "run.json").write_text(json.dumps(values))
    options = collect("gan", resume_from_checkpoint="latest", output_dir=str(folder))
    assert options.data.num_clusters == 0  # the default, and not the preset's
    resolved = options.resolve(data_info(resolution=16), Machine(), "no")
    assert resolved.own.discriminator_learning_rate == resolved.own.learning_rate
    assert resolved.data.image_mode == "L" and resolved.training.mixed_precision == "no"
    assert RunFolder(resolved).difference(values["config"]) == ""


def test_an_old_record_goes_on_as_images_were_read_then(record):
    """Before there were options for it, 16 bits had their whole range, and hidden colours were shown."""
    folder = record(image_column=None, resolution=16)
    values = json.loads((folder / "run.json").read_text())
    for name in ("value_range", "background"):
        del values["config"][name]
    (folder / "run.json").write_text(json.dumps(values))
    options = collect("gan", resume_from_checkpoint="latest", output_dir=str(folder))
    assert (options.data.value_range, options.data.background) == ((0, 65535), "none")
    assert collect("gan", output_dir=str(folder)).data.background == "white"
    info = data_info(resolution=16, image={"value_range": (0.0, 4095.0), "column": "picture"})
    resolved = collect("gan", dataset_name="x").resolve(info, Machine(), "no")
    assert (resolved.data.value_range, resolved.data.image_column) == ((0, 4095), "picture")
    assert "`background` none there, white here" in RunFolder(resolved).difference(values["config"])


@pytest.mark.parametrize(("architecture", "meant"), [("residual", "none"), ("stylegan2", "none"), ("dcgan", "tanh")])
def test_an_old_record_without_what_was_otherwise_then(record, architecture, meant):
    """Before there was the option, images of some generators had no bound; their runs go on so."""
    folder = record(architecture=architecture)
    values = json.loads((folder / "run.json").read_text())
    del values["config"]["output_activation"]
    (folder / "run.json").write_text(json.dumps(values))
    resumed = {"resume_from_checkpoint": "latest", "output_dir": str(folder)}
    options = collect("gan", **resumed)
    assert options.own.output_activation == meant and RunFolder(options).difference(values["config"]) == ""
    if meant == "none":
        with pytest.raises(UserError, match="a different run, .*`output_activation` none there, tanh here"):
            RunFolder(collect("gan", output_activation="tanh", **resumed))
    *_, repeated = Command("train gan").read_options(["--config", str(folder / "run.json")])
    assert repeated.output_activation == meant


def test_a_stream_needs_a_length():
    streamed = {"dataset_name": "user/data", "streaming": True}
    with pytest.raises(UserError, match="`streaming` has no epochs: give the length with `max_train_steps`"):
        collect("gan", **streamed)
    assert collect("gan", **streamed, max_train_steps=3).training.max_train_steps == 3


def test_groups_are_for_what_is_held_out():
    with pytest.raises(UserError, match="`group_column` patient has nothing to do, as nothing is held out: add"):
        collect("gan", train_data_dir="scans", group_column="patient")
    with pytest.raises(UserError, match="`group_column` patient needs all images at hand: leave out `streaming`"):
        collect("gan", dataset_name="user/data", streaming=True, max_train_steps=3, group_column="patient")
    given = collect("gan", train_data_dir="scans", group_column="patient", validation_split="0.2")
    assert given.data.group_column == "patient"


def test_an_empty_folder_name_is_no_default():
    with pytest.raises(UserError, match="`output_dir` is empty"):
        collect("gan", output_dir="")


@pytest.mark.parametrize(("family", "preset"), [(None, None), (3, None), ("vae", 3), ("vae", ["a"])])
def test_families_and_presets_of_other_types(family, preset):
    with pytest.raises(UserError, match="must be one of the names|does not exist for vae"):
        collect(family, preset)


def test_names_and_values_are_checked():
    with pytest.raises(UserError, match="`learning_rat` is no option here. Did you mean learning_rate"):
        collect("ddpm", learning_rat=1.0)
    with pytest.raises(UserError, match="`preset` minst does not exist for ddpm.*Did you mean mnist"):
        collect("ddpm", "minst")


def test_what_a_resumed_run_may_change():
    options = collect("vae")
    assert {"seed", "beta", "learning_rate", "dataset_name", "resolution"} <= options.fixed.keys()
    assert not {"output_dir", "max_train_steps", "train_batch_size", "hub_token"} & options.fixed.keys()
    assert "hub_token" not in options.values and set(options.fixed) < set(options.values)
    assert options.left_open("latent_channels", None, 32) and options.left_open("latent_channels", 16, 32)
    assert not collect("vae", latent_channels=16).left_open("latent_channels", 16, 32)  # decided, and not left to data
    assert not options.left_open("variance", None, 0.1)


def test_it_imports_no_torch():
    code = "import sys; from hfgen.training.options import collect; collect('vae'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_family_itself_will_do():
    assert collect(find_family("vae")).family.name == "vae"
