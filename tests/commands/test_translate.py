"""`hfgen translate`: files of any size, both ways, and mistakes."""

import json

import numpy as np
import pytest
import torch
from helpers import Command
from PIL import Image

from hfgen import DCGANGenerator, GANPipeline, ImageTranslationPipeline, ResNetTranslator, UNetTranslator, UserError
from hfgen.sampling.capabilities import Generates, Translates, adapter_of

SMALL = {"sample_size": 8, "base_channels": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    there = ResNetTranslator(**SMALL, in_channels=1, out_channels=4, num_blocks=1)
    back = ResNetTranslator(**SMALL, in_channels=4, out_channels=1, num_blocks=1)
    ImageTranslationPipeline(there, back).save_pretrained(folder / "both")
    ImageTranslationPipeline(UNetTranslator(**SMALL)).save_pretrained(folder / "one way")
    GANPipeline(DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4)).save_pretrained(folder / "gan")
    return folder


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, size in (("one.png", (8, 8)), ("two.jpg", (13, 30)), ("more/one.png", (5, 3))):
        Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def command():
    return Command("translate")


@pytest.mark.parametrize(("direction", "mode"), [("a2b", "RGBA"), ("b2a", "L")])
def test_a_folder(command, models, photos, tmp_path, capsys, direction, mode):
    out = tmp_path / "out"
    given = f"--model {models / 'both'} --input {photos} --output_dir {out} --direction {direction}".split()
    command.main(given)
    made = {path.name: Image.open(path) for path in out.glob("*.png")}
    sizes = {name: image.size for name, image in made.items() if name != "grid.png"}
    assert sizes == {"one.png": (8, 8), "two.png": (13, 30), "more-one.png": (5, 3)}
    assert all(made[name].mode == mode for name in sizes)
    origin = json.loads(made["one.png"].text["Comment"])
    assert origin["model"] == "both" and origin["direction"] == direction
    assert json.loads((out / "translated.json").read_text())["direction"] == direction
    assert f"3 images in {out}, the first 3 beside what was given" in capsys.readouterr().out
    pipe = ImageTranslationPipeline.from_pretrained(models / "both")
    (alone,) = pipe(Image.open(photos / "one.png"), direction=direction).images
    assert (np.asarray(alone) == np.asarray(made["one.png"])).all()
    with pytest.raises(UserError, match="holds more-one.png: add --overwrite_output_dir"):
        command.main(given)
    command.main([*given, "--overwrite_output_dir"])


def test_what_it_can(models):
    adapter = adapter_of(ImageTranslationPipeline.from_pretrained(models / "both"))
    assert adapter.obstacle(Translates) is None and adapter.image_shape == (1, 8, 8)
    assert adapter.obstacle(Generates) == "is a translator, which makes no images from seeds"
    images = torch.rand(2, 1, 8, 8)
    assert adapter.translate(images).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model {one} --input {photos} --direction b2a", "--direction b2a: this model knows a2b alone"),
        ("--model {gan} --input {photos}", "is a GAN, which translates no images"),
        ("--model {one}", "--input is missing"),
        ("--model {one} --input nowhere", "--input nowhere is neither an image nor a folder"),
        ("--model {one} --input {photos} --class_labels 3", "--class_labels: translators know no classes"),
    ],
)
def test_mistakes(command, models, photos, tmp_path, arguments, message):
    places = {"one": "ONE", "gan": models / "gan", "photos": photos}
    given = [str(models / "one way") if word == "ONE" else word for word in arguments.format(**places).split()]
    with pytest.raises(UserError, match=message):
        command.main([*given, "--output_dir", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("*"))
