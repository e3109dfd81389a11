"""Records of trainings that are read again."""

import json

import pytest

from hfgen.runtime.errors import UserError
from hfgen.runtime.provenance import read_run

GOOD = {
    "family": "gan",
    "config": {"seed": 1},
    "data": {"name": "digits", "num_images": None, "class_names": ["a", "b"]},
    "parameters": {"generator": 3},
    "training_seconds": 1,
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": [1]}, "config is of type list"),
        ({"data": "x"}, "data is of type str"),
        ({"data": {"num_images": "x"}}, "data.num_images is of type str"),
        ({"data": {"class_names": "ab"}}, "data.class_names is of type str"),
        ({"data": {"class_names": ["a", 2]}}, "data.class_names.1 is of type int"),
        ({"parameters": {"generator": "x"}}, "parameters.generator is of type str"),
        ({"training_seconds": True}, "training_seconds is of type bool"),
        (b"[1, 2]", "it holds a list in place of a mapping"),
        (b"", "Expecting value"),
        (b"\xff", "codec can't decode"),
        (b'{"config":' * 10**5, "recursion"),
    ],
)
def test_broken_records_are_told(tmp_path, values, message):
    (tmp_path / "run.json").write_text(json.dumps(GOOD))
    assert read_run(tmp_path) == GOOD
    text = values if isinstance(values, bytes) else json.dumps(GOOD | values).encode()
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(UserError, match=f"run.json is broken: .*{message}.*Restore it, or take it away") as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_record(tmp_path):
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"other": "program"}')
    assert read_run(tmp_path) == {}
