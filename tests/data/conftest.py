"""Data sets that the tests of the data layer share."""

import numpy as np
import pytest
from PIL import Image

from hfgen.data.config import DataConfig
from hfgen.runtime.notes import notes_to


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, rng):
    """An image folder with two classes of gray 10x10 images."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (10, 10), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def told():
    """The lines that a person reads about the data."""
    lines = []
    with notes_to(lines.append):
        yield lines
