"""Stacked MNIST: three digits per image, with the class that they make."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from helpers import load_script
from PIL import Image

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.runtime.errors import UserError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Plain gray squares as digits: digit d has the gray value 20 d."""
    folder = tmp_path_factory.mktemp("digits")
    labels = [number % 10 for number in range(200)]
    images = [Image.fromarray(np.full((28, 28), 20 * label, np.uint8)) for label in labels]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
    rows.to_parquet(folder / "data" / "train.parquet")
    return folder


def test_stacked_mnist(digits, tmp_path, capsys):
    make = load_script("make_stacked_mnist").main
    options = ["--dataset_name", str(digits), "--num_images", "300"]
    make([*options, "--output_dir", str(tmp_path / "a")])
    assert "300 images of " in capsys.readouterr().out
    data = open_images(DataConfig(dataset_name=str(tmp_path / "a"), cache_dir=str(tmp_path / "cache")))
    assert data.images.shape == (300, 3, 28, 28)
    assert data.info.class_names[42] == "042"
    shown = data.images[:, :, 0, 0] // 20
    assert np.array_equal(shown @ np.array([100, 10, 1]), data.labels)
    assert len(np.unique(data.labels)) > 200
    make([*options, "--output_dir", str(tmp_path / "b")])
    again = open_images(DataConfig(dataset_name=str(tmp_path / "b"), cache_dir=str(tmp_path / "cache")))
    assert np.array_equal(data.images, again.images)
    with pytest.raises(UserError, match="holds something already"):
        make([*options, "--output_dir", str(tmp_path / "a")])
