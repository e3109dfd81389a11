"""The folder of a run: which folders it may use, what it says of another run, and what it deletes."""

import json

import pytest

from hfgen.runtime.errors import UserError
from hfgen.training.folder import RunFolder
from hfgen.training.options import collect


def options(tmp_path, **changes):
    return collect("vae", **{"dataset_name": "digits", "output_dir": str(tmp_path / "run")} | changes)


def write_run(tmp_path, *checkpoints, **changes):
    """Writes the record and empty checkpoints of a run."""
    made = options(tmp_path, **changes)
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"family": "vae", "config": made.values}))
    for images_seen in checkpoints:
        folder = path / f"checkpoint-{images_seen:012d}"
        folder.mkdir()
        (folder / "state.json").write_text("{}")
    return path


def test_a_new_folder(tmp_path):
    folder = RunFolder(options(tmp_path))
    assert folder.checkpoint is None and not folder.path.exists()
    assert folder.model_id == "run" and folder.grid(64) == tmp_path / "run" / "samples" / "000000000064.png"
    assert folder.last_good() == "There is no checkpoint yet."
    assert RunFolder(options(tmp_path, hub_model_id="user/model")).model_id == "user/model"
    assert RunFolder(options(tmp_path, resume_from_checkpoint="latest")).checkpoint is None  # starts from zero


def test_a_run_goes_on_from_its_latest_checkpoint_or_from_a_named_one(tmp_path):
    path = write_run(tmp_path, 64, 128)
    folder = RunFolder(options(tmp_path, resume_from_checkpoint="latest"))
    assert folder.checkpoint == path / "checkpoint-000000000128"
    assert folder.last_good() == f"The last good checkpoint is {path / 'checkpoint-000000000128'}."
    for name in ("checkpoint-000000000064", str(path / "checkpoint-000000000064")):
        assert RunFolder(options(tmp_path, resume_from_checkpoint=name)).checkpoint.name == "checkpoint-000000000064"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "already holds a run. Go on with it .*`resume_from_checkpoint` latest.*`overwrite_output_dir`"),
        ({"beta": 3.0}, "already holds a run, whose options differ .`beta` 1.0 there, 3.0 here"),
        ({"beta": 3.0, "resume_from_checkpoint": "latest"}, "holds a different run, whose options differ"),
        ({"resume_from_checkpoint": "checkpoint-7"}, "`resume_from_checkpoint` checkpoint-7 is no checkpoint"),
        ({"resume_from_checkpoint": "latest", "overwrite_output_dir": True}, "exclude each other: give only one"),
        ({"logging_dir": ".."}, "`logging_dir` .. is outside of `output_dir`"),
    ],
)
def test_folders_that_are_refused(tmp_path, changes, message):
    write_run(tmp_path, 64)
    with pytest.raises(UserError, match=message):
        RunFolder(options(tmp_path, **changes))


def test_a_checkpoint_of_another_folder_is_refused_where_there_is_a_run(tmp_path):
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other", 64)
    write_run(tmp_path)
    with pytest.raises(UserError, match="belongs to another folder than `output_dir`"):
        RunFolder(options(tmp_path, resume_from_checkpoint=str(other / "checkpoint-000000000064")))


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="`output_dir` .*run cannot be written: it is a file"):
        RunFolder(options(tmp_path))
    (tmp_path / "run").unlink()
    (tmp_path / "run" / "logs").mkdir(parents=True)
    with pytest.raises(UserError, match="holds logs of something else than a run of hfgen"):
        RunFolder(options(tmp_path))


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    path = write_run(tmp_path, 64)
    (path / "model_index.json").write_text('{"_class_name": ["pipeline_a", "A"], "model": ["modeling_b", "B"]}')
    (path / "model").mkdir()
    for name in ("model/config.json", "pipeline_a.py", "README.md", "samples.png", "notes.txt"):
        (path / name).write_text("")
    for name in ("samples", "logs", "best"):
        (path / name).mkdir()
    folder = RunFolder(options(tmp_path, overwrite_output_dir=True))
    folder.clear()
    assert [left.name for left in path.iterdir()] == ["notes.txt"]
    folder.clear()  # no run any more
    assert (path / "notes.txt").exists()


def test_without_being_asked_nothing_is_deleted(tmp_path):
    path = write_run(tmp_path, 64)
    RunFolder(options(tmp_path, resume_from_checkpoint="latest")).clear()
    assert (path / "run.json").exists() and (path / "checkpoint-000000000064").exists()


def test_the_record(tmp_path):
    record = RunFolder(options(tmp_path, hub_token="hf_secret")).record(images_seen=3)
    assert record["family"] == "vae" and record["images_seen"] == 3 and record["config"]["beta"] == 1.0
    assert {"hfgen", "command", "versions", "written"} <= record.keys()
    assert "hf_secret" not in json.dumps(record)


def test_errors_of_the_system_name_the_folder(tmp_path):
    folder = RunFolder(options(tmp_path))
    with pytest.raises(UserError, match="`output_dir` .*run cannot be written: .*There is no checkpoint yet"):  # noqa: SIM117
        with folder.writing():
            (tmp_path / "run" / "absent" / "file").write_text("")
    with pytest.raises(OSError, match="a library"):  # noqa: SIM117
        with folder.writing():
            raise OSError("a library")
