"""Every option of every verb through the same list of bad values, taken from the dataclasses: an option that is added
is covered at once.

A value is either accepted, and then it is inside the range that the option declares, or refused in one line that
names the option.
"""

import dataclasses
import json
import math
import sys

import pytest
from helpers import ROOT, TINY_GAN, Command, load_script, run

from hfgen.commands import augment, classify, compare, demo, evaluate, push, restore, sample, show, sweep, translate
from hfgen.commands.cli import flags, spell
from hfgen.evaluation.config import Amounts
from hfgen.registry import families, find_family
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import hints, inside, range_of
from hfgen.sampling.config import NoOptions, all_sampling_options
from hfgen.training.options import option_kinds

OURS = tuple(name for name, family in families().items() if family.origin == "hfgen")
KINDS = {f"train {name}": option_kinds(find_family(name)) for name in OURS} | {
    "sample": (sample.SampleConfig, *all_sampling_options()),
    "evaluate": (*evaluate.KINDS, *all_sampling_options()),
    "compare": (*compare.KINDS, *all_sampling_options()),
    "sweep gan": (sweep.SweepConfig,),
    "classify": classify.KINDS,
    "augment": (*augment.KINDS, *all_sampling_options()),
    "show": (*show.KINDS, *all_sampling_options()),
    "restore": restore.KINDS,
    "translate": (translate.TranslateConfig, *all_sampling_options()),
    "demo": (demo.DemoConfig,),
    "push": (push.PushConfig,),
}
ALL = [kind for kinds in KINDS.values() for kind in kinds]
ALL = list(dict.fromkeys([*ALL, Amounts, NoOptions, load_script("make_stacked_mnist").StackConfig]))
NEEDED = {
    sample.SampleConfig: {"model": "m"},
    augment.AugmentConfig: {"model": ("m",)},
    show.ShowOptions: {"model": "m"},
    restore.RestoreConfig: {"model": "m", "task": "super_resolve", "input": "x"},
    translate.TranslateConfig: {"model": "m", "input": "x"},
    demo.DemoConfig: {"model": "m"},
    evaluate.EvaluateConfig: {"model": ("m",)},
    push.PushConfig: {"folder": "f", "hub_model_id": "a/b"},
}

NAN, INFINITY = float("nan"), float("inf")
NUMBERS = (NAN, INFINITY, -INFINITY, -1, 0, 1, -0.0, 1e-320, 0.5, 1e30, sys.maxsize + 1)
NUMBERS += (10**20, -(10**20), 10**400, 10**5000)
TEXTS = ("", "x", "nan", "two", "a\nb", "a\0b", "a\u2028b", "\udce9", "\x1b[31m", "/no/such/path", "x" * 100_000)
OTHERS = (None, True, [], {}, (), [[]], {"a": 1}, b"x", object, [NAN], [1, "x"], ["x", 1], [10**20] * 3)


def fields_of(kinds):
    """The options of some dataclasses, each with the class that declares it."""
    return {field.name: (kind, field) for kind in reversed(kinds) for field in dataclasses.fields(kind)}


def is_number(kind, field):
    return hints(kind)[field.name][0] in (int, float)


def edges(field):
    """The values beside the limits that an option declares, on both sides."""
    for name in ("least", "above", "most", "below"):
        limit = field.metadata.get(name)
        if limit is not None:
            yield from (limit, limit - 1, limit + 1)
            yield from (math.nextafter(limit, -INFINITY), math.nextafter(limit, INFINITY))


def allowed(kind, field, value):
    """Whether an option's type, choices and range allow a value."""
    one_kind, optional, many = hints(kind)[field.name]
    if value is None:
        return optional
    if many != isinstance(value, list | tuple):
        return False
    choices = field.metadata["choices"]
    for one in value if many else (value,):
        if one_kind in (int, float):
            right = isinstance(one, int | one_kind) and not isinstance(one, bool) and inside(one, field.metadata)
        elif one_kind is str:
            right = isinstance(one, str) and (one == field.default or (one.isprintable() and 0 < len(one) <= 4096))
        else:
            right = isinstance(one, one_kind)
        if not right or (choices and one not in choices):
            return False
    return True


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind):
    """An option without one accepts what overflows or never ends."""
    for field in dataclasses.fields(kind):
        if is_number(kind, field):
            limits = field.metadata
            assert "least" in limits or "above" in limits, f"{field.name} has no least value"
            assert "most" in limits or "below" in limits, f"{field.name} has no largest value"
            defaults = field.default if isinstance(field.default, tuple) else (field.default,)
            assert all(inside(one, limits) for one in defaults if one is not None)
            assert not inside(NAN, limits) and not inside(INFINITY, limits) and range_of(limits)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_value_is_accepted_by_its_rule_or_refused_in_one_line(kind):
    needed = NEEDED.get(kind, {})
    for field in dataclasses.fields(kind):
        values = [*NUMBERS, *TEXTS, *OTHERS, *edges(field)]
        for value in [*values, *([one] for one in (*NUMBERS, *TEXTS, *edges(field)))]:
            right = allowed(kind, field, value)
            try:
                made = kind(**needed | {field.name: value})
            except UserError as error:
                text = str(error)
                assert "\n" not in text and text.isprintable() and len(text) < 1000, text
                assert right or f"`{field.name}`" in text, text
                # What is allowed by itself may be refused beside the others, for which it is not out of range.
                assert not right or f"`{field.name}` {value} is out of range" not in text or field.name == "seed", text
            else:
                assert right or field.name in LENIENT, f"{field.name}={value!r:.100} was accepted: {made!r:.300}"


LENIENT = ("class_labels", "validation_split")  # which take numbers from Python, and make texts of them
BAD = {int: ("nan", "1.5", "-1", str(10**20)), float: ("nan", "inf", "1e999", "two", "-1e31"), bool: ("=1",)}


@pytest.mark.parametrize("verb", KINDS)
def test_every_flag_and_every_key_of_a_file(verb, tmp_path):
    """One value of each option that is wrong for sure: the message names the flag."""
    file = tmp_path / "config.json"
    command = Command(verb)
    needed = flags({name: value for kind in KINDS[verb] for name, value in NEEDED.get(kind, {}).items()})
    for number, (name, (kind, field)) in enumerate(fields_of(KINDS[verb]).items()):
        one_kind, _, many = hints(kind)[name]
        wrong = BAD.get(one_kind, ("",) if not field.metadata["choices"] else ("?",))
        flag = wrong[number % len(wrong)]
        if one_kind is bool:
            argv, value = [f"--{name}=1"], 1
        elif many and name == "value_range":
            argv, value = [f"--{name}", flag], [flag]
        else:
            argv, value = [f"--{name}", flag] if many else [f"--{name}={flag}"], [None] if many else {}
        file.write_text(json.dumps({name: value}))
        for words in (argv, ["--config", str(file)]):
            others = [word for word in needed if not word.startswith(f"--{name}=")]
            with pytest.raises(UserError) as error:
                command.read_options([*others, *words])
            text = spell(str(error.value))
            assert f"--{name}" in text and "\n" not in text, text


def test_whole_commands_end_with_one_line(tmp_path):
    """In processes of their own: exit code 2, one line, and nothing is written."""
    for verb, flag in (
        ("train gan", "--seed=100000000000000000000"),
        ("train gan", "--base_channels=65536 --architecture mlp --resolution 64"),
        ("train gan", "--train_batch_size=1048576 --resolution 128"),
        ("sample", "--model m --num_images 100000000000000000000"),
        ("show", "--model m --noise_level nan"),
    ):
        words = TINY_GAN if verb.startswith("train") else []
        result = run("-m", "hfgen", *verb.split(), *words, *flag.split(), "--output_dir", tmp_path / "x", timeout=60)
        lines = result.stderr.splitlines()
        assert result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: --"), result.stderr
        assert not (tmp_path / "x").exists()


def test_no_flag_is_left_out():
    """Each verb with options is walked through."""
    verbs = {verb.split()[0] for verb in KINDS} | {"list"}
    from hfgen.commands.main import VERBS

    assert verbs == set(VERBS)
    frozen = {f"train {name}": (ROOT / "tests" / f"flags_train_{name}.txt").read_text().split() for name in OURS}
    for verb, names in frozen.items():
        assert sorted(fields_of(KINDS[verb])) == sorted(names)
