"""Sampling from Python: wrong arguments are told before a model is loaded."""

import pytest

import hfgen
from hfgen.runtime.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": "4"}, "`num_images` is '4', but must be int."),
        ({"num_images": 2.5}, "`num_images` is 2.5, but must be int"),
        ({"batch_size": 0}, "`batch_size` 0 is out of range"),
        ({"seed": "a"}, "`seed` is 'a', but must be int"),
        ({"seed": -1}, "`seed` -1 is out of range"),
        ({"num_image": 2}, "`num_image` is no option here. Did you mean num_images"),
        ({}, "/no/such/folder holds no pipeline: there is no such folder"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        hfgen.sample("/no/such/folder", **arguments)


def test_a_public_name_means_one_thing():
    import hfgen.families.vae.options

    assert "families" not in hfgen.__all__ and hfgen.find_family("vae").name == "vae"
