"""The demo: what it makes, what it refuses, and its page in a real browser. Needs gradio; the page, Chromium too."""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import Command, run, start
from helpers.forked import Forked
from PIL import Image

from hfgen.models.conv_vae import ConvVAE
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.models.resnet_translator import ResNetTranslator
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.translation import ImageTranslationPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.capabilities import adapter_of
from hfgen.sampling.loading import load_pipeline

pytest.importorskip("gradio", minversion="6.31", reason='the demo needs gradio: pip install "gradio>=6.31"')

from hfgen.demo import actions
from hfgen.demo.guards import limit_decoders, sweep
from hfgen.demo.page import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
QUIET += "--disable-component-update --disable-sync".split()
NAMES = {0: "cat", 1: "dog & co", 2: "7"}
OPTIONS = {  # as flags of sample.py
    "gan": {"truncation": 0.5},
    "vae": {"temperature": 0.7},
    "ddpm": {"num_inference_steps": 4},
    "labelled": {"num_inference_steps": 4, "guidance_scale": 2.0},
}


def unet(classes=None):
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": classes}
    return UNet2DModel(8, 1, 1, **blocks, **sizes)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    style = {"latent_dim": 8, "style_dim": 8, "channel_base": 64, "channel_max": 8, "num_class_embeds": 3}
    vae = ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8))
    scheduler = DDPMScheduler(num_train_timesteps=20)
    pipes = {
        "gan": GANPipeline(StyleGAN2Generator(sample_size=8, out_channels=3, **style), id2label=NAMES),
        "vae": VAEPipeline(vae, GaussianMixturePrior(latent_shape=vae.latent_shape)),
        "ddpm": DDPMPipeline(unet(), scheduler),
        "labelled": ClassConditionalDDPMPipeline(unet(4), scheduler, id2label=NAMES),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def demo():
    return Command("demo")


def load(path):
    return adapter_of(load_pipeline(str(path)))


@pytest.fixture(scope="module")
def page(models):
    return build(load(models / "vae"), "vae", 16)


@pytest.fixture
def vae(models):
    return load(models / "vae")


@pytest.fixture
def gan(models):
    return load(models / "gan")


def sampled(model, output, *options):
    """What sample.py makes."""
    Command("sample").main(["--model", str(model), "--output_dir", str(output), *map(str, options)])
    return [np.asarray(Image.open(path)) for path in sorted(output.glob("[0-9]*.png"))]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_seed_makes_the_image_of_sample_py(demo, models, tmp_path, kind):
    pipe = load(models / kind)
    flags = [word for name, value in OPTIONS[kind].items() for word in (f"--{name}", value)]
    shown = actions.sample(pipe, kind, 16, 7, 5, **OPTIONS[kind])
    wanted = sampled(models / kind, tmp_path / "any", "--seed", 7, "--num_images", 5, *flags)
    assert all(np.array_equal(image, want) for (image, _), want in zip(shown, wanted, strict=True))
    names = ["", " · cat", " · dog & co", " · 7"]
    order = [1, 2, 3, 1, 2] if kind in ("gan", "labelled") else [0] * 5
    assert [caption for _, caption in shown] == [f"image {i}{names[c]}" for i, c in enumerate(order)]
    if kind in ("gan", "labelled"):
        shown = actions.sample(pipe, kind, 16, 0, 2, 1, **OPTIONS[kind])
        wanted = sampled(models / kind, tmp_path / "one", "--class_labels", 1, "--num_images", 2, *flags)
        assert all(np.array_equal(image, want) for (image, _), want in zip(shown, wanted, strict=True))


def test_walks_begin_and_end_at_the_seeds(demo, gan, vae):
    walk = actions.interpolate(gan, 3, 9, 5, 2, truncation=0.8)
    ends = [actions.sample(gan, "gan", 16, seed, 1, 2, truncation=0.8)[0][0] for seed in (3, 9)]
    # On the way to w, the GAN maps two latents at once.
    assert len(walk) == 5
    for found, wanted in zip((walk[0], walk[-1]), ends, strict=True):
        assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= 1
    assert len(actions.interpolate(vae, 0, 1, 4, temperature=1)) == 4
    gif = base64.b64decode(actions.animate(walk).partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(gif)).n_frames == 8  # forth and back


def save(image, path):
    Image.fromarray(image).save(path)
    return str(path)


def test_uploads_become_what_the_model_sees(demo, vae, gan, tmp_path):
    columns = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 12, axis=0)  # 24x12: the middle 12 columns stay
    seen = actions.read_image(vae, save(np.stack([columns] * 3, axis=2), tmp_path / "wide.png"))
    assert (seen.mode, seen.size) == ("L", (8, 8))
    assert np.asarray(seen).min() > 55 and np.asarray(seen).max() < 185
    assert actions.read_image(gan, save(columns, tmp_path / "gray.png")).mode == "RGB"
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    path = save(exact, tmp_path / "exact.png")
    (image, _), (remade, _) = actions.reconstruct(vae, path)
    assert np.array_equal(image, exact)
    assert np.array_equal(remade, vae.pipe.reconstruct(Image.fromarray(exact))[0])


@pytest.mark.parametrize("both", [True, False])
def test_both_ways_of_a_translator(demo, tmp_path, both):
    """Gray images into colour and back: each way of an upload, which becomes what that way takes."""
    sizes = {"sample_size": 8, "base_channels": 4, "num_blocks": 1}
    there, back = (ResNetTranslator(in_channels=a, out_channels=b, **sizes) for a, b in ((1, 3), (3, 1)))
    ImageTranslationPipeline(there, back if both else None).save_pretrained(tmp_path / "m")
    adapter = load(tmp_path / "m")
    path = save(np.arange(300, dtype=np.uint8).reshape(10, 10, 3), tmp_path / "image.png")
    rows = actions.translate(adapter, path)
    captions = [[caption for _, caption in row] for row in rows]
    assert captions == (
        [["as a", "a to b", "and back"], ["as b", "b to a", "and back"]] if both else [["as a", "a to b"]]
    )
    assert [image.mode for image, _ in rows[0]] == ["L", "RGB", "L"][: len(rows[0])]
    (made,) = adapter.pipe(rows[0][0][0]).images
    assert np.array_equal(np.asarray(made), np.asarray(rows[0][1][0]))
    page = build(adapter, "translator", 16)
    assert [block.label for block in page.blocks.values() if type(block).__name__ == "Tab"] == ["Translate"]
    with pytest.raises(UserError, match="There is no image"):
        actions.translate(adapter, None)


def test_only_the_hole_is_filled(demo, vae):
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    stroke = np.zeros((80, 80, 4), dtype=np.uint8)
    stroke[20:40, 33:60, 3] = 255  # rows 2 and 3; of column 3 the larger part
    (known, _), (filled, _) = actions.inpaint(vae, Image.fromarray(exact), {"layers": [stroke]}, 0, 3)
    hole = np.zeros((8, 8), dtype=bool)
    hole[2:4, 3:6] = True
    assert np.array_equal(np.asarray(filled)[~hole], exact[~hole])
    assert (np.asarray(known)[hole] == 128).all() and (np.asarray(filled)[hole] != exact[hole]).any()


def large(path):
    Image.new("1", (5000, 4001)).save(path)
    return str(path)


BAD_CLICKS = {
    "Images is 17": lambda g, v, p: actions.sample(g, "g", 16, 0, 17, truncation=1),
    "Images is 0": lambda g, v, p: actions.sample(g, "g", 16, 0, 0, truncation=1),
    "Seed is -1": lambda g, v, p: actions.sample(g, "g", 16, -1, 1, truncation=1),
    "Seed is None": lambda g, v, p: actions.sample(g, "g", 16, None, 1, truncation=1),
    "Class is 3": lambda g, v, p: actions.sample(g, "g", 16, 0, 1, 3, truncation=1),
    "Truncation is nan": lambda g, v, p: actions.sample(g, "g", 16, 0, 1, truncation=float("nan")),
    "Temperature is 1000": lambda g, v, p: actions.interpolate(v, 0, 1, 4, temperature=1000),
    "Frames is 1000": lambda g, v, p: actions.interpolate(g, 0, 1, 1000, truncation=1),
    "Steps is 10000": lambda g, v, p: actions.inpaint(v, Image.new("L", (8, 8)), None, 0, 10000),
    "no hole": lambda g, v, p: actions.inpaint(v, Image.new("L", (8, 8)), {"layers": []}, 0, 1),
    "no image": lambda g, v, p: actions.inpaint(v, None, None, 0, 1),
    "upload one first": lambda g, v, p: actions.reconstruct(v, None),
    "5000x4001 pixels, more than the 20 million": lambda g, v, p: actions.reconstruct(v, large(p / "large.png")),
    "too oblong": lambda g, v, p: actions.reconstruct(v, save(np.zeros((8, 200), np.uint8), p / "long.png")),
}


@pytest.mark.parametrize("message", BAD_CLICKS)
def test_the_code_has_limits_too(demo, gan, vae, tmp_path, message):
    with pytest.raises(UserError, match=message):
        BAD_CLICKS[message](gan, vae, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing"),
        (["--model", "x", "--max_images", 65], "--max_images 65 is out of range"),
        (["--model", "x", "--port", 0], "--port 0 is out of range"),
        (["--model", "x", "--host", "no such host"], "--host no such host cannot be listened on: "),
        (["--model", "x", "--host", "a" * 70], "a cannot be listened on: "),
        (["--model", "x", "--host", "8.8.8.8"], "--host 8.8.8.8 cannot be listened on: "),
        (["--model", "{models}"], "holds no pipeline"),
        (["--model", "{models}", "--space_dir", "{tmp}/new"], "holds no pipeline"),
        (["--model", "a/b/c", "--space_dir", "{tmp}/new"], "neither a folder nor a Hub id"),
        (["--model", "{models}/vae", "--space_dir", "{models}"], "is not empty"),
        (["--model", "{models}/vae", "--revision", "v1", "--space_dir", "{tmp}/new"], "--revision v1 is for the Hub"),
    ],
)
def test_errors_say_what_to_do(demo, models, tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        demo.main([str(part).format(models=models, tmp=tmp_path) for part in arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_makes_no_image_gets_no_page(demo, models, tmp_path):
    config = Path(shutil.copytree(models / "ddpm", tmp_path / "absurd")) / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": "x"}))
    with pytest.raises(UserError, match="absurd cannot be used: .*Give another checkpoint"):
        demo.main(["--model", str(tmp_path / "absurd")])


def test_a_port_that_is_taken(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("demo", "--model", models / "vae", "--port", port)
    assert result.returncode == 2 and f"--port {port} cannot be listened on" in result.stderr.splitlines()[-1]


def test_a_space_of_a_model_on_the_hub(demo, tmp_path, capsys):
    demo.main(["--model", "ada/digits", "--revision", "v1", "--space_dir", str(tmp_path / "it")])
    assert f"--folder {tmp_path / 'it'} --repo_type space" in capsys.readouterr().out
    head = yaml.safe_load((tmp_path / "it" / "README.md").read_text().split("---\n")[1])
    assert head["models"] == ["ada/digits"] and (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    assert "serve('ada/digits', name='ada/digits', revision='v1'" in (tmp_path / "it" / "app.py").read_text()
    assert not (tmp_path / "it" / "model").exists()
    assert head["python_version"] == ".".join(map(str, sys.version_info[:2])) and "license" not in head


def test_a_space_has_the_license_of_its_model(demo, models, tmp_path):
    model = shutil.copytree(models / "vae", tmp_path / "model")
    for card, license in (("---\nlicense: cc-by-4.0\n---\nA card\n", "cc-by-4.0"), ("No front matter\n", None)):
        (model / "README.md").write_text(card)
        demo.main(["--model", str(model), "--no_provenance", "--space_dir", str(tmp_path / str(license))])
        head = yaml.safe_load((tmp_path / str(license) / "README.md").read_text().split("---\n")[1])
        assert head.get("license", None) == license
    assert "provenance=False)" in (tmp_path / "None" / "app.py").read_text()


# What programs may send


def png(size):
    content = io.BytesIO()
    Image.new("RGBA", size).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def editor(demo, vae):
    blocks = build(vae, "vae", 16).blocks.values()
    return next(block for block in blocks if block.get_block_name() == "imageeditor")


@pytest.mark.parametrize("sizes", [[(8, 8)] * 2, [(449, 8)], [(8, 449)]])
@pytest.mark.parametrize("as_files", [False, True])
def test_the_editor_takes_what_its_page_sends(editor, tmp_path, sizes, as_files):
    from gradio import Error, FileData
    from gradio.components.image_editor import EditorData, EditorDataBlobs

    def send(sizes):
        layers = [png(size) for size in sizes]
        if not as_files:
            editor.blob_storage["it"] = EditorDataBlobs(background=b"never read", layers=layers, composite=None)
            return editor.preprocess(EditorData(id="it"))
        for number, layer in enumerate(layers):
            (tmp_path / f"{number}.png").write_bytes(layer)
        files = [FileData(path=str(tmp_path / f"{number}.png")) for number in range(len(layers))]
        return editor.preprocess(EditorData(layers=files))

    (layer,) = send([(448, 448)])["layers"]
    assert layer.shape == (448, 448, 4)
    with pytest.raises(Error, match="one layer of at most 448x448 pixels"):
        send(sizes)


def test_the_editor_makes_no_list_of_any_length(editor):
    from gradio import Error

    def send(index):  # as the route does, which checks no types
        data = {"type": "layer", "index": index, "id": "it"}
        editor.accept_blobs(SimpleNamespace(data=data, files=[("it", png((8, 8)))]))

    send("0")
    assert len(editor.blob_storage["it"].layers) == 1
    with pytest.raises(Error, match="one layer"):
        send("1000")


@pytest.mark.parametrize(
    "data", [["a", 1, 0.5], [{}, 1, 0.5], [0, [1], 0.5], [0, 1, "x\ny\x1b[2J"], [0, 1, None], [0, 1], [0, 17, 0.5]]
)
def test_what_widgets_cannot_send_is_one_line(page, capsys, data):
    from gradio import Error

    sample = next(function for function in page.fns.values() if function.api_name == "sample")
    with pytest.raises(Error) as error:
        asyncio.run(page.process_api(sample, data))
    assert error.value.message and not error.value.print_exception
    log = capsys.readouterr().err
    assert log.count("\n") <= 1 and "\x1b" not in log


def test_parts_of_uploads_do_not_stay(tmp_path):
    ages = {"tmp1": 400, "tmp2": 100, "a/it.png": 4000, "b": 4000, "c": 100}
    for name, age in ages.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"") if len(name) > 1 else path.mkdir()
        os.utime(path, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a",
        "a/it.png",
        "c",
        "tmp2",
    ]


def test_no_address_is_downloaded(demo, vae, tmp_path):
    from gradio import Error

    blocks = build(vae, "vae", 16).blocks.values()
    file = next(block for block in blocks if block.get_block_name() == "file")
    path = save(np.zeros((8, 8), np.uint8), tmp_path / "it.png")
    assert asyncio.run(file.async_move_resource_to_block_cache(path)).endswith("it.png")
    for address in ("https://localhost/it.png", "HTTP://localhost/it.png"):
        with pytest.raises(Error, match="This is an address, not a file"):
            asyncio.run(file.async_move_resource_to_block_cache(address))


def test_only_common_formats_are_decoded(demo, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    names = ["it.png", "it.jpg", "it.webp", "it.gif", "it.bmp", "it.tiff", "it.eps", "it.ppm", "it.tga"]
    for name in names:
        Image.new("L", (8, 8), 7).save(tmp_path / name)
    limit_decoders()
    for name in names[:6]:
        assert actions.read_image(vae, str(tmp_path / name)).size == (8, 8)
    for name in names[6:]:
        with pytest.raises(UserError, match="cannot be read"):
            actions.read_image(vae, str(tmp_path / name))


def test_programs_wait_in_the_queue_and_images_say_what_made_them(models, tmp_path):
    from gradio_client import Client, handle_file

    path = save(np.arange(64, dtype=np.uint8).reshape(8, 8), tmp_path / "exact.png")
    files = tmp_path / "files"
    files.mkdir()
    process = start("demo", "--model", models / "vae", env={"GRADIO_TEMP_DIR": str(files)})
    with serving(process) as address:
        body = json.dumps({"data": [0, 1, 1]}).encode()
        request = urllib.request.Request(f"{address}gradio_api/run/sample", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(request, timeout=60)
        client = Client(address, verbose=False, download_files=str(tmp_path))
        sampled = client.predict(7, 2, 0.5, api_name="/sample")
        _, walk = client.predict(0, 1, 2, 0.5, api_name="/interpolate")
        uploaded, remade = client.predict(handle_file(path), api_name="/reconstruct")
        assert list(files.rglob("exact.png"))
        body = json.dumps({"data": [], "fn_index": 999, "session_hash": "it"}).encode()
        request = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request, timeout=60)
    assert not list(files.iterdir())  # what visitors sent and saw
    log = process.communicate()[1]
    assert "Traceback" not in log and log.count("Request refused: 'KeyError: 999'") == 1
    texts = [Image.open(shown["image"]).text for shown in (*sampled, *walk, uploaded, remade)]
    assert not texts.pop(4)
    assert all(text["Source"] == "vae" and text["Software"].startswith("hfgen ") for text in texts)
    kinds = [text["XML:com.adobe.xmp"].count("compositeWithTrained") for text in texts]
    assert kinds == [0, 0, 0, 0, 1]
    comments = [json.loads(text["Comment"]) for text in texts]
    assert [comment["seed"] for comment in comments[:2]] == [image_seed(7, 0), image_seed(7, 1)] and comments[0][
        "temperature"
    ] == 0.5
    assert comments[0]["class_label"] is None and comments[0]["model"] == "vae"
    assert (comments[3]["seeds"], comments[3]["frame"], comments[3]["temperature"]) == ([0, 1], 1, 0.5)
    assert comments[4]["task"] == "reconstruct" and comments[3]["class_label"] is comments[4]["class_label"] is None


def test_images_need_not_say_what_made_them(demo, gan):
    ((image, _),) = actions.sample(gan, "gan", 16, 0, 1, truncation=1)
    assert not image.info
    ((image, _),) = actions.sample(gan, "gan", 16, 0, 1, 2, {"model": "gan"}, truncation=1)
    assert json.loads(image.info["Comment"])["class_label"] == 2


# The page


@contextlib.contextmanager
def serving(process):
    """The address that a demo prints, while it runs."""
    try:
        while not (found := re.search(r"^Demo: +(\S+)\n", process.printed, re.MULTILINE)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="tests of the page need playwright")
    if CHROMIUM is None:
        pytest.skip("tests of the page need Chromium: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, headless=True)
        yield chromium
        chromium.close()


SHOWN = """([count, before]) => {
    const shown = [...document.querySelectorAll(".pixels img")].filter(image => image.checkVisibility());
    return shown.length == count && shown.every((image, i) => image.getAttribute("src") != before[i]);
}"""


class Page:
    """A tab of the browser, and the hosts that it asked for something."""

    def __init__(self, browser, address):
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(60_000)
        self.hosts = set()
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("websocket", lambda socket: self.hosts.add(socket.url.split("/")[2]))
        self.address = address
        self.page.goto(address)
        self.page.get_by_role("tab").first.wait_for()

    @property
    def tabs(self):
        return self.page.get_by_role("tab").all_inner_texts()

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()
        self.tab = self.page.locator("[role=tabpanel]:visible")
        self.name = tab

    def click(self, expected):
        """The images that a click on the tab's button shows, once they are as many as expected and others than now."""
        shown = self.tab.locator(".pixels img")
        before = [image.get_attribute("src") for image in shown.all()]
        self.tab.get_by_role("button", name=self.name, exact=True).click()
        self.page.wait_for_function(SHOWN, arg=[expected, before])
        addresses = [image.get_attribute("src") for image in shown.all()]
        return [np.asarray(Image.open(io.BytesIO(self.page.request.get(a).body()))) for a in addresses]

    def listed(self, name):
        """An uploaded file by its label: as text its name stands only in the indicator of a slow upload."""
        return self.tab.get_by_label(name, exact=True)

    def paint(self):
        """A stroke through the middle of the editor, as soon as that has drawn the image and takes strokes."""
        canvas = self.tab.locator("canvas").first
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, "the editor shows no stroke"
            pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
            if (np.abs(pixels - (0xFF, 0x4B, 0x1F)).max(axis=2) < 40).mean() > 0.01:
                return
            if len(np.unique(pixels[..., 0])) < 20:  # not drawn yet
                continue
            box = canvas.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            self.page.mouse.move(x - 60, y)
            self.page.mouse.down()
            self.page.mouse.move(x + 60, y, steps=5)
            self.page.mouse.up()

    def error(self):
        toast = self.page.get_by_test_id("toast-body")
        toast.wait_for()
        return toast.inner_text()


def test_the_page_of_a_vae(browser, models, tmp_path):
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    path = save(exact, tmp_path / "exact.png")
    (tmp_path / "broken.png").write_text("no image at all")
    wanted = [
        sampled(models / "vae", tmp_path / f"sampled{seed}", "--num_images", 8, "--seed", seed) for seed in (0, 1)
    ]
    with serving(start("demo", "--model", models / "vae")) as address:
        page = Page(browser, address)
        assert page.tabs == ["Sample", "Interpolate", "Reconstruct", "Inpaint"]
        page.open("Sample")
        for seed in (0, 1, 0):
            page.tab.get_by_label("Seed").fill(str(seed))
            assert np.array_equal(page.click(8), wanted[seed])
        page.open("Interpolate")
        assert len(page.click(12)) == 12
        assert page.tab.get_by_alt_text("walk").bounding_box()["height"] == 224

        page.open("Reconstruct")
        page.tab.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
        page.listed("broken.png").wait_for()
        page.tab.get_by_role("button", name="Reconstruct").click()
        error = page.error()
        assert "cannot be read: it is no image, or of an unknown format" in error and "Traceback" not in error
        page.tab.get_by_role("button", name="Clear").first.click()
        page.listed("broken.png").wait_for(state="hidden")
        page.tab.locator("input[type=file]").set_input_files(path)
        page.listed("exact.png").wait_for()
        image, remade = page.click(2)
        pipe = load_pipeline(str(models / "vae"))
        assert np.array_equal(image, exact)
        assert np.array_equal(remade, pipe.reconstruct(Image.fromarray(exact))[0])

        page.open("Inpaint")
        page.tab.locator("input[type=file]").first.set_input_files(path)
        page.listed("exact.png").wait_for()
        page.tab.get_by_text("select the draw tool").wait_for(state="hidden")
        page.paint()
        known, filled = page.click(2)
        hole = known != exact
        assert 2 <= hole.sum() <= 32 and (known[hole] == 128).all()
        assert hole[3:5, 3:5].any() and not hole[[0, 7]].any()
        assert np.array_equal(filled[~hole], exact[~hole]) and (filled[hole] != exact[hole]).any()
        assert page.hosts <= {address.split("/")[2], ""}  # data: and blob: have no host


@pytest.mark.slow
def test_the_page_of_a_conditional_gan(browser, models, tmp_path):
    wanted = sampled(models / "gan", tmp_path / "sampled", "--num_images", 8, "--class_labels", "dog & co")
    with serving(start("demo", "--model", models / "gan")) as address:
        page = Page(browser, address)
        assert page.tabs == ["Sample", "Interpolate"]
        page.open("Sample")
        page.tab.get_by_label("Class").click()
        page.page.get_by_role("option", name="dog & co").click()
        assert np.array_equal(page.click(8), wanted)
        assert page.tab.get_by_text("image 0 · dog & co").count() == 1
        assert page.hosts <= {address.split("/")[2], ""}


def test_the_space_runs_with_the_library_it_holds(browser, models, tmp_path):
    space = tmp_path / "space"
    assert run("demo", "--model", models / "ddpm", "--space_dir", space).returncode == 0
    with (space / "hfgen" / "__init__.py").open("a") as file:
        file.write("\nprint('from', __file__, flush=True)\n")
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    process = Forked(["-c", code, space / "app.py"], env={"PYTHONPATH": str(space)}, cwd=tmp_path)
    with serving(process) as address:
        assert process.printed.startswith(f"from {space / 'hfgen' / '__init__.py'}\n")
        page = Page(browser, address)
        page.open("Sample")
        assert np.array_equal(page.click(8), sampled(models / "ddpm", tmp_path / "sampled", "--num_images", 8))
