"""The script that shows what a VAE does with real images."""

import json

import numpy as np
import pytest
import torch
from helpers import Command
from PIL import Image

from hfgen import ResidualVAE, VAEPipeline
from hfgen.evaluation.show import show_grids
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import adapter_of
from hfgen.sampling.loading import load_pipeline

ALL = {"reconstructions", "interpolations", "traversals", "inpainting", "denoising", "super_resolution"}


@pytest.fixture(scope="module")
def show():
    return Command("show").main


def save(folder, classes=None, **options):
    torch.manual_seed(0)
    model = ResidualVAE(
        sample_size=8, in_channels=1, latent_channels=4, block_out_channels=(8, 8), num_class_embeds=classes
    )
    names = {number: str(number) for number in range(classes)} if classes else None
    VAEPipeline(model, id2label=names, **options).save_pretrained(folder)
    return folder


def test_every_grid(show, tmp_path, capsys):
    show(f"--model {save(tmp_path / 'vae')} --num_images 6 --steps 2".split())
    shown = tmp_path / "vae" / "shown"
    assert {path.stem for path in shown.iterdir()} == ALL | {"edits"}
    assert capsys.readouterr().out.count(".png: ") == len(ALL) + 1
    cell = 64 + 4
    sizes = {"reconstructions": (6, 2), "interpolations": (10, 3), "inpainting": (6, 6), "super_resolution": (6, 3)}
    for name, (columns, rows) in sizes.items():
        assert Image.open(shown / f"{name}.png").size == (columns * cell + 4, rows * cell + 4)


def test_images_are_seen_as_training_saw_them(show, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("LA", (8, 8), (90, 0)).save(tmp_path / "images" / f"{number}.png")  # transparent all over
    model, options = save(tmp_path / "vae"), f"--train_data_dir {tmp_path / 'images'} --num_images 2 --steps 2"
    for background, level in (("black", 0), ("white", 255)):
        config = {"train_data_dir": str(tmp_path / "images"), "background": background}
        (model / "run.json").write_text(json.dumps({"config": config}))
        show(f"--model {model} {options} --output_dir {tmp_path / background}".split())
        shown = np.asarray(Image.open(tmp_path / background / "reconstructions.png"))
        assert (shown[4:68, 4:68] == level).all()


def test_by_class(show, tmp_path):
    show(f"--model {save(tmp_path / 'vae', 10)} --num_images 2 --steps 2 --output_dir {tmp_path / 'out'}".split())
    assert {path.stem for path in (tmp_path / "out").iterdir()} == ALL


def test_classes_are_matched_by_name(show, tmp_path):
    """In data that has some of the model's classes alone, they have other numbers."""
    for name in "78":
        (tmp_path / "data" / name).mkdir(parents=True)
        for shade in (40, 200):
            Image.new("L", (8, 8), shade).save(tmp_path / "data" / name / f"{shade}.png")
    folder = save(tmp_path / "vae", 10)
    images = np.full((4, 1, 8, 8), 40, np.uint8)
    numbers = [np.array([0, 0, 1, 1]), np.array([7, 7, 8, 8])]
    adapter = adapter_of(load_pipeline(str(folder)))
    grids = []
    for own, names in zip(numbers, (["7", "8"], [str(number) for number in range(10)]), strict=True):
        shown = show_grids(adapter, "it", torch.from_numpy(images) / 255, torch.from_numpy(own), names, 0.3, 2, 1)
        grids.append(next(shown)[2][1])
    assert torch.equal(*grids)
    show(f"--model {folder} --train_data_dir {tmp_path / 'data'} --num_images 2 --steps 1".split())
    (tmp_path / "data" / "8").rename(tmp_path / "data" / "cow")
    with pytest.raises(UserError, match="the images have the classes cow, and .* knows 0, 1, 2"):
        show(f"--model {folder} --train_data_dir {tmp_path / 'data'} --num_images 4".split())


def test_groups_are_no_labels(tmp_path):
    """Labels of the data may have the names of groups, and have nothing to do with them."""
    shares = {"class_shares": [0.5, 0.3, 0.2], "class_kind": "groups"}
    adapter = adapter_of(load_pipeline(str(save(tmp_path / "vae", 3, **shares))))
    with torch.no_grad():
        for parameter in adapter.pipe.model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    images = (torch.rand(12, 1, 1, 1) * torch.rand(12, 1, 8, 8) * 255).round() / 255
    groups = adapter.classes_of(images)
    each = [adapter.log_prob(2 * images - 1, torch.full((12,), number), torch.Generator().manual_seed(0)).lower
            for number in range(3)]  # fmt: skip
    assert torch.equal(groups, (torch.stack(each, 1) + torch.tensor([0.5, 0.3, 0.2]).log()).argmax(1))
    assert len(groups.unique()) > 1
    for labels, names in ((torch.zeros(12, dtype=torch.long), ["0", "1"]), (None, [])):
        shown = next(show_grids(adapter, "it", images, labels, names, 0.3, 2, 1))[2][1]
        assert torch.equal(shown, adapter.decode(adapter.encode(images, groups), groups))


def test_a_model_for_a_task_shows_its_task(show, tmp_path):
    folder = save(tmp_path / "vae", task="super_resolve", task_level=4)
    show(f"--model {folder} --num_images 2".split())
    assert [path.name for path in (folder / "shown").iterdir()] == ["super_resolution.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--model is missing"),
        ("--model x --num_images 1", "--num_images 1 is out of range: use 2 to 10000"),
        ("--model x --noise_level 0", "--noise_level 0.0 is out of range"),
        ("--model {} --factor 3 --steps 1", "--factor 3 does not divide the 8 pixels"),
    ],
)
def test_mistakes(show, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        show(arguments.format(save(tmp_path / "vae")).split())
    assert not (tmp_path / "vae" / "shown").exists()
