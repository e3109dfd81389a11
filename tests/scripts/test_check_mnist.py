"""Counting kinds, and making the data set to count them in."""

import json

import numpy as np
import pytest
import torch
from conftest import load_script
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import save_file

from hfgen.data.config import DataConfig
from hfgen.data.images import open_images
from hfgen.errors import UserError


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


def test_kinds_are_counted():
    script = load_script("check_mnist")
    shares = torch.full((10,), 0.1, dtype=torch.float64)
    every = script.count_kinds(torch.arange(1000).repeat(3), shares)
    assert (every["kinds"], every["kinds_divergence"]) == (1000, pytest.approx(0, abs=1e-9))
    assert every["kinds_divergence_floor"] == pytest.approx(999 / 6000)
    half = script.count_kinds(torch.arange(500).repeat(3), shares)
    assert (half["kinds"], half["kinds_divergence"]) == (500, pytest.approx(np.log(2)))


def test_the_frechet_distance_of_known_gaussians():
    frechet_distance = load_script("check_mnist").frechet_distance
    first = torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double()
    second = torch.tensor([3.0, 5.0]).double(), torch.diag(torch.tensor([1.0, 25.0])).double()
    assert frechet_distance(first, second) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (5 - 3) ** 2)
    flat = first[0], torch.zeros(2, 2).double()  # fewer images than dimensions
    assert frechet_distance(flat, first) == pytest.approx(4 + 9)


def test_gray_and_stacked_images_are_judged(tmp_path, monkeypatch):
    """With a judge that reads the gray value of plain squares."""
    script = load_script("check_mnist")

    class Digit(torch.nn.Module):
        def forward(self, pixels):
            return -((pixels[:, :1] - torch.arange(10) * 20) ** 2)

    def judge():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity(), Digit())

    classifier = tmp_path / "classifier"
    classifier.mkdir()
    save_file({}, classifier / "model.safetensors")
    real = torch.tensor([3.0, 3.0, 7.0])[:, None, None].expand(3, 28, 28) * 20
    record = {"train_digit_shares": [0.1] * 10, "dataset_name": "squares", "test_share_sure": 1, "test_accuracy": 1}
    (classifier / "config.json").write_text(json.dumps(record))
    monkeypatch.setattr(script, "build_model", judge)
    monkeypatch.setattr(script, "to_input", lambda images: images.float().unsqueeze(1))
    with pytest.raises(UserError, match="is of an earlier version"):
        script.judge(real[:, None].byte(), torch.full((3,), -1), classifier)
    mean, covariance = script.feature_statistics(judge(), real)
    save_file({"mean": mean, "covariance": covariance}, classifier / "test_features.safetensors")

    def check(shape, numbers):
        folder = tmp_path / f"images{len(shape)}"
        folder.mkdir()
        for index, number in enumerate(numbers):
            pixels = np.zeros(shape, np.uint8) + np.array(number, np.uint8) * 20
            Image.fromarray(pixels).save(folder / f"{index:06d}.png")
        script.main(["--images", str(folder), "--classifier_dir", str(classifier)])
        return json.loads((folder / "check_mnist.json").read_text())

    gray = check((28, 28), [3, 3, 7])
    assert gray["digit_shares"]["3"] == pytest.approx(2 / 3)
    assert "kinds" not in gray
    assert gray["frechet_distance"] == pytest.approx(0, abs=1e-4)  # the same images
    stacked = check((28, 28, 3), [[1, 2, 3], [1, 2, 3], [3, 2, 1]])
    assert stacked["kinds"] == 2
    assert stacked["digit_shares"]["2"] == pytest.approx(1 / 3)
    assert stacked["share_sure"] == 1
