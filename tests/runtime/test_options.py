"""Options check themselves when they are made, wherever their values come from."""

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, as_dict, make, nearest, option, range_of


@dataclass(frozen=True)
class Colours(Options):
    mode: str = option("rgb", "the mode", choices=("rgb", "gray"))
    width: int = option(8, "pixels", above=0)
    zoom: float | None = option(None, "factor", least=0, below=1)
    flip: bool = option(False, "mirror")
    sizes: tuple[int, ...] = option((8, 16), "of each level", least=1, most=2**16)
    names: tuple[str, ...] | None = option(None, "of each level", choices=("a", "b"))
    token: str | None = option(None, "a secret", secret=True)
    name: str | None = option(None, "a name")


@dataclass(frozen=True)
class Sound(Options):
    volume: float = option(1.0, "of 1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "8"}, "`width` is '8', but must be int."),
        ({"width": 8.0}, "`width` is 8.0, but must be int."),
        ({"width": True}, "`width` is True, but must be int."),
        ({"width": None}, "`width` is None, but must be int."),
        ({"zoom": True}, "`zoom` is True, but must be a finite number or None."),
        ({"zoom": "2"}, "`zoom` is '2', but must be a finite number or None."),
        ({"zoom": float("inf")}, "`zoom` is inf, but must be a finite number or None."),
        ({"flip": 1}, "`flip` is 1, but must be bool."),
        ({"sizes": 8}, "`sizes` is 8, but must be a list of int."),
        ({"sizes": (8, True)}, r"`sizes` is \(8, True\), but must be a list of int."),
        ({"names": "a"}, "`names` is 'a', but must be a list of str or None."),
        ({"mode": "hsv"}, "`mode` 'hsv' is no choice: use rgb, gray."),
        ({"names": ["a", "c"]}, "`names` 'c' is no choice: use a, b."),
        ({"width": 0}, "`width` 0 is out of range: use more than 0.$"),
        ({"zoom": -1}, "`zoom` -1 is out of range: use 0 or more and less than 1."),
        ({"zoom": 1.0}, "`zoom` 1.0 is out of range: use 0 or more and less than 1."),
        ({"zoom": float("nan")}, "`zoom` is nan, but must be a finite number or None."),
        ({"zoom": 10**400}, "`zoom` is 10+[.]{3}0+, but must be a finite number or None."),
        ({"name": "x" * 5000}, "`name` 'xx+[.]{3}xx+' has 5000 characters: use 4096 at most."),
        ({"token": "hf_secret\n"}, "^`token` [*]{3} has characters that no line of text can show: use others.$"),
        ({"token": 3}, "^`token` is [*]{3}, but must be str or None.$"),
        ({"zoom": Fraction(10**400)}, r"`zoom` is Fraction\(10+[.]{3}0+, 1\), but must be a finite number or None."),
        ({"sizes": [10**5000]}, "`sizes` a number of thousands of digits is out of range: use 1 to 65536."),
        ({"sizes": (8, 0)}, "`sizes` 0 is out of range: use 1 to 65536."),
        ({"sizes": (8, 65537)}, "`sizes` 65537 is out of range"),
        ({"name": ""}, "^`name` is empty: give a value, or leave it out."),
        ({"name": "a\nb"}, r"`name` 'a\\nb' has characters that no line of text can show: use others."),
        ({"name": "a\udce9"}, r"`name` 'a\\udce9' has characters that no line of text can show"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(UserError, match=message):
        Colours(**values)


def test_right_values():
    options = Colours(mode="gray", zoom=0.5, sizes=[4, 4], names=("b",))
    assert options.sizes == (4, 4) and options.zoom == 0.5 and options.names == ("b",)
    plain = Colours(width=np.int64(4), zoom=np.float32(0.5), token=Path("secret"))
    assert [type(value) for value in (plain.width, plain.zoom, plain.token)] == [int, float, str]
    assert Colours(zoom=0).zoom == 0 and Colours(names=[]).names == ()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"least": 0}, "0 or more"),
        ({"above": 0, "most": 1e6}, "more than 0 and at most 1e+06"),
        ({"least": 1, "most": 2**20}, "1 to 2**20"),
        ({"least": 0, "most": 2**64 - 1}, "0 to 2**64 - 1"),
        ({"least": -200.0, "below": 0.5}, "-200 or more and less than 0.5"),
        ({"most": 65535}, "at most 65535"),
    ],
)
def test_ranges_in_words(limits, words):
    assert range_of(limits) == words


def test_making_several_from_names():
    colours, sound = make((Colours, Sound), {"volume": 0.5, "width": 4})
    assert colours == Colours(width=4) and sound == Sound(volume=0.5)
    with pytest.raises(UserError, match="`volme` is no option here. Did you mean volume?") as caught:
        make((Colours, Sound), {"volme": 0.5})
    assert caught.value.field == "volme"
    with pytest.raises(UserError, match="`qqq` is no option here.$"):
        make((Colours, Sound), {"qqq": 0.5})


def test_values_as_json_has_them():
    values = as_dict((Colours(token="hf_x"), Sound()))
    assert values == {
        "mode": "rgb", "width": 8, "zoom": None, "flip": False, "sizes": [8, 16], "names": None, "name": None,
        "volume": 1.0,
    }  # fmt: skip
    assert make((Colours, Sound), values) == [Colours(), Sound()]


def test_declaring():
    metadata = {field.name: field.metadata for field in fields(Colours)}
    assert metadata["mode"]["help"] == "the mode" and metadata["mode"]["choices"] == ("rgb", "gray")
    assert metadata["token"]["secret"] and not metadata["mode"].get("secret")
    with pytest.raises(TypeError, match="use a tuple"):
        option([1], "a list")


def test_the_nearest():
    assert nearest("colour", ["color", "size"]) == " Did you mean color?"
    assert nearest("xyz", ["color"]) == "" and nearest("xyz", ["color"], " No.") == " No."
