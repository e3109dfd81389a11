"""`hfgen restore` and `hfgen.restore` with every kind of model that can, and mistakes."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from helpers import Command
from PIL import Image

import hfgen
from hfgen import AutoregressivePipeline, ClassConditionalDDPMPipeline, PixelCNN, ResidualVAE, UserError, VAEPipeline
from hfgen.runtime.png import to_uint8
from hfgen.sampling.capabilities import Restores, adapter_of

STEPS = {"steps": 2}


def unet(channels=1, classes=None):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "num_class_embeds": classes}
    return UNet2DModel(8, channels, channels, **blocks, **sizes)


def ddpm(channels=1):
    return DDPMPipeline(unet(channels), DDPMScheduler(num_train_timesteps=20))


def conditional(classes=3, names=("a", "b"), **options):
    names = dict(enumerate(names))
    return ClassConditionalDDPMPipeline(unet(1, classes), DDPMScheduler(num_train_timesteps=20), names, **options)


MODELS = {
    "gray": ddpm,
    "colour": lambda: ddpm(3),
    "transparent": lambda: ddpm(4),
    "classes": lambda: conditional(guidance_scale=2.0),
    "no null class": lambda: conditional(classes=2),
    "groups": lambda: conditional(classes=2, class_shares=[0.5, 0.5]),
    "vae": lambda: VAEPipeline(
        ResidualVAE(sample_size=8, in_channels=1, latent_channels=4, block_out_channels=(8, 8))
    ),
    "ar": lambda: AutoregressivePipeline(PixelCNN(sample_size=8, base_channels=8, dilations=(1,))),
    "flow matching": lambda: DDPMPipeline(unet(), FlowMatchEulerDiscreteScheduler()),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        pipe = make()
        pipe.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def command():
    return Command("restore")


def picture(folder, name, size=(8, 8), mode="L", seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def mask_of(folder, name="mask.png", size=(8, 8)):
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[size[1] // 2 :] = 255
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("gray", ("inpaint", "super_resolve", "denoise", "img2img")),
        ("colour", ("inpaint", "super_resolve", "denoise", "colorize", "img2img")),
        ("vae", ("inpaint", "denoise", "super_resolve")),
        ("ar", ("complete",)),
    ],
)
def test_every_task(models, model, tasks):
    """What is known comes back, each image from its own seed, in batches of any size."""
    adapter = adapter_of(hfgen.load_pipeline(str(models / model)))
    assert adapter.obstacle(Restores) is None and adapter.tasks == tasks
    channels = adapter.image_shape[0]
    images = (torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[4:] = True
    for task in tasks:
        given, more = images, dict(STEPS) if model != "ar" else {}
        if task in ("inpaint", "complete"):
            more["mask"] = hole
        elif task == "super_resolve":
            given = torch.nn.functional.avg_pool2d(images, 2)
        elif task == "colorize":
            given = images[:, :1]
        elif task == "denoise":
            more["noise_level"] = 0.1
        made = hfgen.restore(str(models / model), task, given, seed=3, **more)
        parts = hfgen.restore(str(models / model), task, given, seed=3, batch_size=2, **more)
        pixels = [np.asarray(image, dtype=int) for image in made]
        assert [image.size for image in made] == [(8, 8)] * 3
        # Batches of another size may round a last bit otherwise.
        assert all(abs(one - np.asarray(two)).max() <= 1 for one, two in zip(pixels, parts, strict=True))
        if task in ("inpaint", "complete"):
            known = to_uint8(images)[:, :4].reshape(3, 4, 8, channels).squeeze()
            assert all((one[:4] == whole).all() for one, whole in zip(pixels, known, strict=True))
        if model != "vae" and task != "denoise":
            other = hfgen.restore(str(models / model), task, given, seed=4, **more)
            assert any((one != np.asarray(two)).any() for one, two in zip(pixels, other, strict=True))


@pytest.mark.parametrize("method", ["ddnm", "posterior"])
def test_what_is_seen_is_kept_in_colour(models, method):
    torch.manual_seed(0)
    gray = 0.3 + 0.4 * torch.rand(1, 1, 8, 8)
    (made,) = hfgen.restore(str(models / "colour"), "colorize", gray, method=method, **STEPS)
    assert made.mode == "RGB"
    small = 0.3 + 0.4 * torch.rand(1, 4, 4, 4)
    (made,) = hfgen.restore(str(models / "transparent"), "super_resolve", small, method=method, **STEPS)
    assert made.mode == "RGBA" and made.size == (8, 8)


def test_classes(models):
    images = torch.rand(2, 1, 8, 8)

    def vary(model="classes", **options):
        made = hfgen.restore(str(models / model), "img2img", images, strength=1.0, **STEPS, **options)
        return np.stack([np.asarray(image) for image in made])

    both = vary(class_labels=["a", "b"])
    assert (vary(class_labels="a")[0] == both[0]).all() and (vary(class_labels=[0, 1]) == both).all()
    assert (vary(class_labels="a", guidance_scale=1.0) != vary(class_labels="a")).any()  # its own is 2
    assert (vary() != vary(class_labels="a", guidance_scale=1.0)).any()  # no class
    assert vary("groups").shape == (2, 8, 8)  # drawn
    with pytest.raises(UserError, match="class_labels is missing"):
        vary("no null class")
    with pytest.raises(UserError, match="was trained without label dropout"):
        vary("no null class", class_labels="a", guidance_scale=2.0)
    with pytest.raises(UserError, match="`class_labels` c: .* has no such class. Use a number below 2 or one of a, b"):
        vary(class_labels="c")
    with pytest.raises(UserError, match="`class_labels` a: .* knows no classes. Leave them out"):
        vary("gray", class_labels="a")
    with pytest.raises(UserError, match="guidance_scale is 2.0, but this model knows no classes"):
        vary("gray", guidance_scale=2.0)


@pytest.mark.parametrize(
    ("model", "task", "options", "message"),
    [
        (
            "gray",
            "colorize",
            {},
            "`task` colorize: .* cannot do that. It can inpaint, super_resolve, denoise, img2img",
        ),
        (
            "gray",
            "img2img",
            {"strenght": 1.0},
            "no such setting to img2img; it takes strength, .* Did you mean `?strength",
        ),
        ("gray", "img2img", {"strength": 1.5}, "strength is 1.5, but must be in"),
        ("gray", "denoise", {}, "noise_level is missing: give the standard deviation"),
        ("gray", "denoise", {"noise_level": -1.0}, "noise_level is -1.0, but must be at least 0"),
        ("gray", "denoise", {"noise_level": 0.0}, "noise_level is 0.0, but must be above 0 and at most 0.2"),
        ("gray", "denoise", {"noise_level": 9.0}, "noise_level is 9.0, but must be above 0 and at most 0.2"),
        ("gray", "inpaint", {}, "`mask` is missing: say what to inpaint with white pixels"),
        ("gray", "inpaint", {"mask": torch.ones(8, 8)}, "mask covers a whole image, of which nothing is left"),
        ("gray", "inpaint", {"mask": torch.ones(4, 4)}, r"mask has shape \(1, 4, 4\), but must have \(8, 8\)"),
        ("gray", "img2img", {"mask": torch.ones(8, 8)}, "`mask` has nothing to do: `task` img2img takes none"),
        ("gray", "super_resolve", {}, "image is 8x8, but must be the model's 8x8 divided by a whole number"),
        ("flow matching", "img2img", {}, "noise levels of its own, so that it restores no images"),
        ("ar", "complete", {"mask": torch.eye(8)}, "mask must be all pixels from some one on in raster order"),
    ],
)
def test_mistakes(models, model, task, options, message):
    with pytest.raises(UserError, match=message) as error:
        hfgen.restore(str(models / model), task, torch.rand(1, 1, 8, 8), **options)
    assert "\n" not in str(error.value)


def test_a_folder(models, command, tmp_path, capsys):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for name, size in (("one.png", (8, 8)), ("two.jpg", (20, 16)), ("more/one.png", (8, 8))):
        picture((photos / name).parent, (photos / name).name, size)
        mask_of((masks / name).parent, (masks / name).name.replace("jpg", "png"), size)
    out = tmp_path / "out"
    given = f"--model {models / 'gray'} --task inpaint --input {photos} --mask {masks} --output_dir {out} --steps 2"
    command.main(given.split())
    assert sorted(path.name for path in out.iterdir()) == [
        "grid.png",
        "more-one.png",
        "one.png",
        "restored.json",
        "two.png",
    ]
    text = capsys.readouterr().out
    assert "1 of 3 images are cropped or scaled to 8x8 pixels." in text
    assert f"3 images in {out}, the first 3 beside what was given" in text
    made = Image.open(out / "one.png")
    assert (np.asarray(made)[:4] == np.asarray(Image.open(photos / "one.png"))[:4]).all()
    origin = json.loads(made.text["Comment"])
    assert origin["model"] == "gray" and origin["task"] == "inpaint" and origin["seed"] == 0
    record = json.loads((out / "restored.json").read_text())
    assert record["task"] == "inpaint" and record["steps"] == 2 and len(record["images"]) == 3
    with pytest.raises(UserError, match="holds more-one.png: add --overwrite_output_dir or give"):
        command.main(given.split())
    command.main([*given.split(), "--overwrite_output_dir", "--no_provenance"])
    assert not Image.open(out / "one.png").text


@pytest.mark.parametrize(
    ("arguments", "width"),
    [
        ("--model {colour} --task super_resolve --factor 2", 3),
        ("--model {colour} --task colorize", 3),
        ("--model {transparent} --task colorize --method posterior", 4),
        ("--model {vae} --task denoise --noise_level 0.2 --restarts 2", 1),
        ("--model {classes} --task img2img --strength 0.5 --class_labels a b --batch_size 1", 1),
    ],
)
def test_tasks_by_command(models, command, tmp_path, arguments, width):
    for number in range(2):
        picture(tmp_path / "in", f"{number}.png", (9, 9), "RGBA", number)
    names = {name: str(models / name) for name in MODELS if " " not in name}
    given = [
        *arguments.format(**names).split(),
        "--input",
        str(tmp_path / "in"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    command.main([*given, "--steps", "2"])
    made = Image.open(tmp_path / "out" / "0.png")
    assert made.size == (8, 8) and len(made.getbands()) == width
    assert Image.open(tmp_path / "out" / "grid.png").width > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task inpaint --input {one}", "--mask is missing: say what to inpaint"),
        ("--task inpaint --input {one} --mask {wide}", "is 9x8, and .* 8x8: give one of its size"),
        ("--task inpaint --input {one} --mask {folder}", "holds none for one.png"),
        ("--task inpaint --input {one} --mask nowhere", "--mask nowhere does not exist"),
        ("--task img2img --input nowhere", "--input nowhere is neither an image nor a folder"),
        ("--task img2img --input {empty}", "holds no images that can be read"),
        ("--task img2img --input {broken}", "cannot be read: .* Take it away, or give another"),
        ("--task img2img", "--input is missing"),
        ("--input {one}", "--task is missing: say what to do, inpaint, "),
        ("--task img2img --input {one} --factor 2", "--factor is for --task super_resolve"),
        ("--task super_resolve --input {one} --factor 3", "--factor 3 does not divide the model's 8 pixels"),
        ("--task super_resolve --input {one}", "image is 8x8, but must be the model's 8x8 divided"),
        ("--task img2img --input {one} --prior normal", "--prior: .* has no such setting to img2img"),
    ],
)
def test_mistakes_by_command(models, command, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {
        "one": picture(tmp_path, "one.png"),
        "wide": mask_of(tmp_path, "wide.png", (9, 8)),
        "folder": mask_of(tmp_path / "masks", "two.png").parent,
        "empty": tmp_path / "empty",
        "broken": tmp_path / "broken.png",
    }
    places["broken"].write_bytes(b"no image")
    given = ["--model", str(models / "gray"), *arguments.format(**places).split()]
    with pytest.raises(UserError, match=message) as error:
        command.main([*given, "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*"))
