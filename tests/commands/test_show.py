"""The verb that shows what a checkpoint can do: of every family, whatever it lacks."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from evaluation.tiny import save_classifier
from helpers import Command, toys_installed
from PIL import Image

import hfgen
from hfgen import ResidualVAE, VAEPipeline
from hfgen.evaluation import show as showing
from hfgen.evaluation.config import ShowConfig, SplitsConfig
from hfgen.evaluation.show import FILES, Gallery, Real, open_real, write_page
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.pixelcnn import PixelCNN
from hfgen.models.tarflow import TarFlow
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.flow import FlowPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import adapter_of
from hfgen.sampling.loading import load_pipeline

WALKS = {"walk.png", "walk.gif"}
LATENTS = WALKS | {"edits.png", "traversals.png"}
REAL = {"reconstructions.png", "interpolations.png"}
RESTORED = {"inpainting.png", "denoising.png", "super_resolution.png"}
MADE = {"samples.png", "neighbours.png"}
STEPS = {"steps.png", "steps.gif"}
RUN = {"config": {"dataset_name": "digits"}}
CELL = 96 + 4


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


def ddpm(channels=1):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    unet = UNet2DModel(8, channels, channels, block_out_channels=(8, 8), layers_per_block=1, **blocks)
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2"))


FAMILIES = {
    "gan": (lambda: gan(), MADE | LATENTS | {"reconstructions.png", "inpainting.png", "super_resolution.png"}),
    "ddpm": (ddpm, MADE | STEPS | WALKS | REAL | RESTORED | {"variations.png"}),
    "ddpm-colour": (lambda: ddpm(3), MADE | STEPS | WALKS | REAL | RESTORED | {"variations.png", "colorization.png"}),
    "autoregressive": (
        lambda: AutoregressivePipeline(PixelCNN(sample_size=8, base_channels=8, dilations=(1,))),
        MADE | STEPS | {"completion.png"},
    ),
    "flow": (
        lambda: FlowPipeline(TarFlow(8, 1, 4, 2, 1, 8, 8, 4)),
        MADE | STEPS | LATENTS | REAL,
    ),
    "vq": (lambda: VAEPipeline(VQVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8))),
           LATENTS | REAL | RESTORED),
}  # fmt: skip


def gan(channels=1, classes=None, **options):
    torch.manual_seed(0)
    model = DCGANGenerator(
        sample_size=8, latent_dim=6, base_channels=4, out_channels=channels, num_class_embeds=classes
    )
    return GANPipeline(model, **options)


def remembered(pipe, folder):
    """A checkpoint with a record of its training on the digits."""
    pipe.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def fewer(monkeypatch):
    """Directions are learnt from fewer images."""
    monkeypatch.setattr(showing, "ENCODED", 40)
    monkeypatch.setattr("hfgen.sampling.latents.draw_examples.__defaults__", (0, 24))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(show, family, tmp_path, capsys, monkeypatch):
    fewer(monkeypatch)
    torch.manual_seed(0)
    make, files = FAMILIES[family]
    folder = remembered(make(), tmp_path / family)
    show(f"--model {folder} --num_images 3 --steps 1".split())
    shown, out = folder / "shown", capsys.readouterr().out
    assert {path.name for path in shown.iterdir()} == files | {"README.md"}
    page = (shown / "README.md").read_text()
    for name in files:
        assert f"\n## {name}\n" in page and f"![{name}]({name})" in page and f"/{name}: " in out
    skipped = [line for line in out.splitlines() if line.startswith("no ")]
    assert all(line.endswith(".") and len(line) < 200 for line in skipped)
    kinds = {line.split(":")[0].removeprefix("no ") for line in skipped}
    assert kinds | {name.split(".")[0] for name in files} == set(showing.PICTURES) and "translations" in kinds


def test_sizes(show, tmp_path, monkeypatch):
    """Pictures are as large as `scale` says, and have room for words."""
    fewer(monkeypatch)
    folder = remembered(VAEPipeline.from_pretrained(save(tmp_path / "vae")), tmp_path / "vae")
    show(f"--model {folder} --num_images 6 --steps 2".split())
    shown = folder / "shown"
    assert {path.name for path in shown.iterdir()} == MADE | LATENTS | REAL | RESTORED | {"README.md"}
    with Image.open(shown / "interpolations.png") as image:
        assert image.size == (10 * CELL + 4, 3 * CELL + 4)
    with Image.open(shown / "inpainting.png") as image:
        assert image.height == 20 + 6 * CELL + 4 and 6 * CELL + 4 < image.width < 6 * CELL + 150
    show(f"--model {folder} --scale 2 --pictures interpolations walk --num_images 2".split())
    with Image.open(shown / "interpolations.png") as image:
        assert image.size == (10 * 20 + 4, 24)
    with Image.open(shown / "walk.gif") as image:
        assert image.size == (24, 24) and image.n_frames > 10
    page = (shown / "README.md").read_text()
    assert page.count("\n## walk.gif\n") == 1 and "\n## inpainting.png\n" in page  # what is still there


def test_a_picture_says_how_it_was_made(show, tmp_path):
    folder = remembered(gan(), tmp_path / "gan")
    show(f"--model {folder} --pictures samples neighbours walk --num_images 2".split())
    with Image.open(folder / "shown" / "neighbours.png") as image:
        assert image.info["Source"] == "gan" and "compositeWithTrained" in image.info["XML:com.adobe.xmp"]
    with Image.open(folder / "shown" / "samples.png") as image:
        assert "composite" not in image.info["XML:com.adobe.xmp"]
    with Image.open(folder / "shown" / "walk.gif") as image:
        assert image.info["comment"].startswith(b"hfgen ")


def gallery(pipe, real="no data is named", **config):
    return Gallery(adapter_of(pipe), "it", ShowConfig(**config), real=real)


def digits(pipe, tmp_path, **config):
    real = open_real(SplitsConfig(dataset_name="digits"), str(tmp_path), adapter_of(pipe).image_shape)
    return gallery(pipe, real, **config)


def test_the_nearest_training_images(tmp_path, monkeypatch):
    """Exactly, also where they come in parts; a copy is at no distance, and the brackets say how far others are."""
    pipe = gan()
    monkeypatch.setattr(showing, "REAL_AT_ONCE", 100)
    shown = digits(pipe, tmp_path, num_images=3)
    part = shown.real.train
    assert len(part.rows) == 1797 and not shown.real.trained and shown.real.named
    images = torch.cat([part.images([1500, 3]), 255 - part.images([7])])
    distances, indices = shown.nearest(images, part, 2)
    pixels = part.images(range(1797)).flatten(1).double() / 255
    wanted = torch.cdist(images.flatten(1).double() / 255, pixels).sort(dim=1)
    torch.testing.assert_close(distances, wanted.values[:, :2] / 8, rtol=0, atol=1e-6)
    assert torch.equal(indices, wanted.indices[:, :2]) and indices[:2, 0].tolist() == [1500, 3]
    shown.made = [0, 1, 2], images
    (picture,) = shown.neighbours()
    assert picture.real and "1,797 images of digits" in picture.text
    texts = []
    monkeypatch.setattr(showing, "make_table", lambda *given: texts.append(given) or Image.new("L", (1, 1)))
    list(shown.neighbours())
    _, titles, _, captions, _ = texts[0]
    assert titles == ["made", "nearest in the digits"]  # no record says that it was trained on them
    assert captions[1][0].startswith("0 (0.") and captions[1][2].startswith("0.")


def test_neighbours_by_features(show, tmp_path, capsys):
    folder, extractor = remembered(gan(), tmp_path / "gan"), save_classifier(tmp_path / "classifier")
    arguments = f"--model {folder} --pictures neighbours --num_images 2 --extractor {extractor}"
    show([*arguments.split(), "--cache_dir", str(tmp_path / "cache")])
    assert "distance in the features of classifier" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1


def test_data_of_other_size_and_channels(show, tmp_path):
    """Real images are brought to the model's."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGBA", (12, 20), (90 * number, 0, 0, 128)).save(tmp_path / "images" / f"{number}.png")
    for channels in (1, 4):
        gan(channels).save_pretrained(tmp_path / f"gan{channels}")
        pictures = "--pictures neighbours samples --num_images 2"
        show(f"--model {tmp_path / f'gan{channels}'} --train_data_dir {tmp_path / 'images'} {pictures}".split())
        assert (tmp_path / f"gan{channels}" / "shown" / "neighbours.png").exists()


def test_what_is_not_known_of_the_training_is_a_line(show, tmp_path, capsys):
    gan().save_pretrained(tmp_path / "gan")
    show(f"--model {tmp_path / 'gan'} --num_images 2 --seeds 1 2".split())
    out = capsys.readouterr().out
    for kind in ("neighbours", "reconstructions"):
        assert f"no {kind}: what {tmp_path / 'gan'} was trained on is not known, as it has no record" in out
    assert "name the data with --dataset_name or --train_data_dir." in out
    (tmp_path / "gan" / "run.json").write_text(json.dumps({"config": {"train_data_dir": "gone"}}))
    show(f"--model {tmp_path / 'gan'} --num_images 2 --seeds 1 2".split())
    assert "no neighbours: " in (out := capsys.readouterr().out) and "gone" in out


def test_seeds_are_those_of_images(tmp_path):
    """An edit of no strength, and the ends of a walk, are what the pipeline makes of the seed: with its own group."""
    shares = {"class_shares": [0.5, 0.3, 0.2], "class_kind": "groups"}
    pipe = gan(classes=3, **shares)
    seeds = (3, 17, 4, 2**63)
    alone = [pipe(generator=torch.Generator().manual_seed(seed), output_type="pt").images[0] for seed in seeds]
    shown = gallery(pipe, seeds=seeds)
    codes, labels, names = shown.starts
    torch.testing.assert_close(shown.adapter.decode(codes, labels), torch.stack(alone), rtol=0, atol=1e-6)
    assert len(labels.unique()) > 1 and names[1] == f"seed 17, group {labels[1]}"
    pipe.save_pretrained(tmp_path / "gan")
    rows = hfgen.edit(str(tmp_path / "gan"), seeds, strengths=[0, 90])
    assert len(rows) == 4 and [len(row) for row in rows] == [2] * 4
    for row, image in zip(rows, alone, strict=True):
        assert np.abs(np.asarray(row[0]) / 255 - image[0].numpy()).max() < 0.003
        assert not np.array_equal(*map(np.asarray, row))
    direct = pipe.edit(generator=[torch.Generator().manual_seed(seed) for seed in seeds], strengths=[0, 90])
    for row, same in zip(rows, direct, strict=True):
        assert np.abs(np.asarray(row[1], np.int16) - np.asarray(same[1], np.int16)).max() <= 1


def test_walks_stay_in_one_class(monkeypatch):
    pipe = gan(classes=3)
    shown, labels = gallery(pipe, seeds=(1, 2, 3)), []
    decode = shown.adapter.decode
    monkeypatch.setattr(shown.adapter, "decode", lambda codes, own: labels.append(own.tolist()) or decode(codes, own))
    list(shown.walk())
    assert labels == [[0] * 10, [1] * 10, [2] * 10, *[[0] * 13] * 3]
    with pytest.raises(UserError, match="needs two ends: give more `seeds`"):
        list(gallery(pipe, seeds=(1,)).walk())


def test_directions(tmp_path, monkeypatch):
    fewer(monkeypatch)
    pipe = VAEPipeline.from_pretrained(save(tmp_path / "vae"))
    shown = digits(pipe, tmp_path, directions=("1", "towards:3"))
    (first, direction), (second, towards) = shown.directions()
    assert (first, second) == ("direction 1", "towards 3")
    codes, _, _, numbers = shown.encoded
    wanted = (codes[torch.from_numpy(numbers == 3)].mean(0) - codes.mean(0)) / 2
    torch.testing.assert_close(towards, wanted)
    assert direction.shape == towards.shape == (4, 1, 1)
    for given, message in (
        (("4",), "`directions` 4 is unknown"),
        (("towards:cow",), "`directions` towards:cow is unknown: it has towards:0, towards:1"),
    ):
        with pytest.raises(UserError, match=message):
            list(digits(pipe, tmp_path, directions=given).directions())
    with pytest.raises(UserError, match="towards:3 is unknown: it has none towards a class"):
        list(digits(gan(), tmp_path, directions=("towards:3",)).directions())


def test_samples_stand_by_class(monkeypatch):
    calls = []
    monkeypatch.setattr(showing, "make_table", lambda *given: calls.append(given) or Image.new("L", (1, 1)))
    names = {0: "a", 1: "b", 2: "c"}
    shown = gallery(gan(classes=3, id2label=names), num_images=4)
    list(shown.samples())
    rows, titles, *_ = calls[0]
    assert titles == ["a", "b", "c"] and [len(row) for row in rows] == [4] * 3
    for row, image in enumerate(rows):
        index = 3 * 2 + row  # the third of its class
        assert np.array_equal(image[2], shown.sampler([index], 0)[0].permute(1, 2, 0).numpy())


def test_a_page_keeps_what_is_still_there(tmp_path):
    one = showing.Picture("walk.png", "a walk", [])
    write_page(tmp_path, "it", "a GAN", [one, showing.Picture("samples.png", "samples", [])])
    (tmp_path / "samples.png").touch()
    page = write_page(tmp_path, "it", "a GAN", [showing.Picture("edits.png", "edits", [])]).read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## samples.png", "## edits.png"]


def test_nothing_of_others_is_replaced(show, tmp_path):
    folder = remembered(gan(), tmp_path / "gan")
    for name in ("README.md", "walk.gif", "edits.png"):
        target = tmp_path / name.split(".")[0]
        target.mkdir()
        (target / name).write_text("# mine\n")
        with pytest.raises(UserError, match=f"{name} would be replaced, and hfgen did not make it"):
            show(f"--model {folder} --output_dir {target}".split())
    assert set(FILES) >= LATENTS | STEPS | MADE
    for _ in range(2):  # its own it replaces
        show(f"--model {folder} --output_dir {tmp_path / 'new'} --pictures walk samples --num_images 2".split())


def test_images_are_seen_as_training_saw_them(show, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("LA", (8, 8), (90, 0)).save(tmp_path / "images" / f"{number}.png")  # transparent all over
    model = save(tmp_path / "vae")
    options = f"--train_data_dir {tmp_path / 'images'} --num_images 2 --pictures reconstructions"
    for background, level in (("black", 0), ("white", 255)):
        config = {"train_data_dir": str(tmp_path / "images"), "background": background}
        (model / "run.json").write_text(json.dumps({"config": config}))
        show(f"--model {model} {options} --output_dir {tmp_path / background}".split())
        shown = np.asarray(Image.open(tmp_path / background / "reconstructions.png").convert("L"))
        left = shown.shape[1] - (2 * CELL + 4)
        assert (shown[4:100, left + 4 : left + 100] == level).all()


def test_by_class(show, tmp_path, monkeypatch):
    fewer(monkeypatch)
    folder = save(tmp_path / "vae", 10)
    arguments = f"--model {folder} --dataset_name digits --num_images 2 --steps 2 --output_dir {tmp_path / 'out'}"
    show(arguments.split())
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == MADE | LATENTS | REAL | RESTORED | {"README.md"}


def real_images(images, numbers, names):
    """Data in memory."""

    class Data:
        labels = numbers
        info = type("Info", (), {"name": "it", "split": "train", "class_names": names})

        def __len__(self):
            return len(images)

        def squares(self, rows, offsets=0.5):
            return images[rows]

    part = showing.Part(Data(), np.arange(len(images)))
    return Real(part, part, False, True)


def test_classes_are_matched_by_name(show, tmp_path):
    """In data that has some of the model's classes alone, they have other numbers."""
    for name in "78":
        (tmp_path / "data" / name).mkdir(parents=True)
        for shade in (40, 200):
            Image.new("L", (8, 8), shade).save(tmp_path / "data" / name / f"{shade}.png")
    folder = save(tmp_path / "vae", 10)
    images = np.full((4, 1, 8, 8), 40, np.uint8)
    numbers = [np.array([0, 0, 1, 1]), np.array([7, 7, 8, 8])]
    pipe, found = load_pipeline(str(folder)), []
    for own, names in zip(numbers, (("7", "8"), tuple(map(str, range(10)))), strict=True):
        found.append(gallery(pipe, real_images(images, own, names)).real_classes.tolist())
    assert found == [[7, 7, 8, 8]] * 2
    arguments = f"--model {folder} --train_data_dir {tmp_path / 'data'} --pictures reconstructions"
    show(f"{arguments} --num_images 2".split())
    (tmp_path / "data" / "8").rename(tmp_path / "data" / "cow")
    with pytest.raises(UserError, match="the images have the classes cow, and .* knows 0, 1, 2"):
        show(f"{arguments} --num_images 4".split())


def test_groups_are_no_labels(tmp_path):
    """Labels of the data may have the names of groups, and have nothing to do with them."""
    shares = {"class_shares": [0.5, 0.3, 0.2], "class_kind": "groups"}
    pipe = load_pipeline(str(save(tmp_path / "vae", 3, **shares)))
    adapter = adapter_of(pipe)
    with torch.no_grad():
        for parameter in pipe.model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    arrays = (torch.rand(12, 1, 1, 1) * torch.rand(12, 1, 8, 8) * 255).round()
    images = arrays / 255
    groups = adapter.classes_of(images)
    each = [adapter.log_prob(2 * images - 1, torch.full((12,), number), torch.Generator().manual_seed(0)).lower
            for number in range(3)]  # fmt: skip
    assert torch.equal(groups, (torch.stack(each, 1) + torch.tensor([0.5, 0.3, 0.2]).log()).argmax(1))
    assert len(groups.unique()) > 1
    for labels, names in ((np.zeros(12, np.int64), ("0", "1")), (None, None)):
        shown = gallery(pipe, real_images(arrays.numpy().astype(np.uint8), labels, names), num_images=12)
        assert torch.equal(shown.real_classes, groups)


def test_a_model_for_a_task_shows_its_task(show, tmp_path):
    folder = save(tmp_path / "vae", task="super_resolve", task_level=4)
    show(f"--model {folder} --dataset_name digits --num_images 2".split())
    assert {path.name for path in (folder / "shown").iterdir()} >= {"super_resolution.png", "README.md"}
    assert not {path.name for path in (folder / "shown").iterdir()} & (REAL | LATENTS | {"inpainting.png"})


def test_a_translator_shows_translations(show, tmp_path):
    with toys_installed():
        from toy_pair.model import Translator
        from toy_pair.pipeline import ToyPairPipeline

        ToyPairPipeline(Translator(8, 1)).save_pretrained(tmp_path / "pair")
        show(f"--model {tmp_path / 'pair'} --dataset_name digits --num_images 2".split())
    assert {path.name for path in (tmp_path / "pair" / "shown").iterdir()} == {"translations.png", "README.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--model is missing"),
        ("--model x --num_images 1", "--num_images 1 is out of range: use 2 to 10000"),
        ("--model x --noise_level 0", "--noise_level 0.0 is out of range"),
        ("--model x --seeds 1 -3", "--seeds -3 is out of range: use 0 to"),
        ("--model x --scale 0", "--scale 0 is out of range"),
        ("--model x --directions left", "--directions left is none: use a number from 0 on, or towards:CLASS"),
        ("--model x --directions towards:", "--directions towards: is none"),
        ("--model x --strengths nan", "--strengths is .nan,., but must be"),
        ("--model x --pictures walks", "walks"),
        ("--model {} --factor 3 --steps 1", "--factor 3 does not divide the 8 pixels"),
        ("--model {} --pictures steps", "--pictures steps: .* is a VAE, which makes an image in one pass."),
        ("--model {} --pictures neighbours", "--pictures neighbours: what .* was trained on is not known"),
        ("--model {} --directions 99 --pictures edits", "--directions 99 is unknown"),
        ("--model {} --directions 99 --pictures edits samples --num_images 2", "--directions 99 is unknown"),
        ("--model {} --truncation 0.5", "--truncation 0.5: .* is a VAE"),
    ],
)
def test_mistakes(show, tmp_path, arguments, message, monkeypatch):
    fewer(monkeypatch)
    with pytest.raises(UserError, match=message):
        show(arguments.format(save(tmp_path / "vae")).split())
    if "samples" not in arguments:
        assert not (tmp_path / "vae" / "shown").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "`seeds` .* at least one"),
        ({"seeds": (-1,)}, "`seeds` .-1. must be whole numbers from 0"),
        ({"direction": 99}, "`direction` 99 is unknown"),
        ({"direction": torch.ones(3)}, r"direction has shape \(3,\)"),
        ({"strengths": ()}, "strengths"),
        ({"truncated": 1}, "`truncated` is no option here"),
    ],
)
def test_mistakes_in_python(tmp_path, arguments, message):
    gan().save_pretrained(tmp_path / "gan")
    with pytest.raises(UserError, match=message):
        hfgen.edit(str(tmp_path / "gan"), **arguments)
    ddpm().save_pretrained(tmp_path / "ddpm")
    with pytest.raises(UserError, match="is a DDPM, which has no latents"):
        hfgen.edit(str(tmp_path / "ddpm"))
