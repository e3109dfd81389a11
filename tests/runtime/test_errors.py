"""Errors name options, and nothing but the command line knows how these are spelt as flags."""

import re

import pytest
from helpers import ROOT

from hfgen.runtime.errors import UserError, one_line


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("`resolution` 3 is out of range: use 4 to 4096.", "resolution"),
        ("`r1_gamma` and `r2_gamma` exclude each other.", "r1_gamma"),
        ("give `latest` or a folder", "latest"),
        ("the data set has no rows", None),
        ("`a b` is no option, nor is `--flag`", None),
    ],
)
def test_the_option_of_an_error(message, field):
    assert UserError(message).field == field


def test_an_error_for_a_user_who_has_other_names():
    error = UserError("`metrics` fd needs more than `num_images` 3: see `seed`.")
    renamed = error.renamed({"metrics": "eval_metrics", "num_images": "eval_num_images"})
    assert str(renamed) == "`eval_metrics` fd needs more than `eval_num_images` 3: see `seed`."
    assert str(error).startswith("`metrics`")


def test_it_is_one_line_whatever_it_quotes():
    assert str(UserError("there is no a\nb.\n")) == "there is no a\\nb."
    assert len(one_line("word " * 10_000)) < 2100


def test_it_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_a_reason_is_whole_and_in_one_line():
    assert one_line(ValueError("No such thing.\n  Ask  for another.")) == "No such thing. Ask for another"
    assert one_line("word " * 400) == ("word " * 400).strip() and one_line(KeyError()) == "KeyError"
    assert one_line("a " + "x" * 1000) == "a " + "x" * 128 + "..." + "x" * 128  # a name of any length


def test_no_message_is_cut_by_position():
    for path in (ROOT / "hfgen").rglob("*.py"):
        cut = re.search(
            r"str\((error|cause|reason)\)[^\n]*(\[:|\.split\(['\"]|\.partition\()|\[:[2-9]00\]", path.read_text()
        )
        assert cut is None, f"{path}: {cut[0]}"
