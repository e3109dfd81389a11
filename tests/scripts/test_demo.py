"""The demo: what it makes, what it refuses, and its page in a real browser. Needs gradio; the page, Chromium too."""

import base64
import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import load_script, run, start
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from hfgen.errors import UserError
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.pipelines import load_pipeline
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline

pytest.importorskip("gradio", minversion="6.31", reason='the demo needs gradio: pip install "gradio>=6.31"')

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
    return load_script("demo")


@pytest.fixture
def vae(models):
    return load_pipeline(str(models / "vae"))


@pytest.fixture
def gan(models):
    return load_pipeline(str(models / "gan"))


def sampled(model, output, *options):
    """What sample.py makes."""
    load_script("sample").main(["--model", str(model), "--output_dir", str(output), *map(str, options)])
    return [np.asarray(Image.open(path)) for path in sorted(output.glob("[0-9]*.png"))]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_seed_makes_the_image_of_sample_py(demo, models, tmp_path, kind):
    pipe = load_pipeline(str(models / kind))
    flags = [word for name, value in OPTIONS[kind].items() for word in (f"--{name}", value)]
    shown = demo.sample(pipe, kind, 16, 7, 5, **OPTIONS[kind])
    wanted = sampled(models / kind, tmp_path / "any", "--seed", 7, "--num_images", 5, *flags)
    assert all(np.array_equal(image, want) for (image, _), want in zip(shown, wanted, strict=True))
    names = ["", " · cat", " · dog & co", " · 7"]
    order = [1, 2, 3, 1, 2] if kind in ("gan", "labelled") else [0] * 5
    assert [caption for _, caption in shown] == [f"seed {7 + i}{names[c]}" for i, c in enumerate(order)]
    if kind in ("gan", "labelled"):
        shown = demo.sample(pipe, kind, 16, 0, 2, 1, **OPTIONS[kind])
        wanted = sampled(models / kind, tmp_path / "one", "--class_labels", 1, "--num_images", 2, *flags)
        assert all(np.array_equal(image, want) for (image, _), want in zip(shown, wanted, strict=True))


def test_walks_begin_and_end_at_the_seeds(demo, gan, vae):
    walk = demo.interpolate(gan, 3, 9, 5, 2, truncation=0.8)
    ends = [demo.sample(gan, "gan", 16, seed, 1, 2, truncation=0.8)[0][0] for seed in (3, 9)]
    # On the way to w, the GAN maps two latents at once.
    assert len(walk) == 5
    for found, wanted in zip((walk[0], walk[-1]), ends, strict=True):
        assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= 1
    assert len(demo.interpolate(vae, 0, 1, 4, temperature=1)) == 4
    gif = base64.b64decode(demo.animate(gan, walk).partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(gif)).n_frames == 8  # forth and back


def save(image, path):
    Image.fromarray(image).save(path)
    return str(path)


def test_uploads_become_what_the_model_sees(demo, vae, gan, tmp_path):
    columns = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 12, axis=0)  # 24x12: the middle 12 columns stay
    seen = demo.read_image(vae, save(np.stack([columns] * 3, axis=2), tmp_path / "wide.png"))
    assert (seen.mode, seen.size) == ("L", (8, 8))
    assert np.asarray(seen).min() > 55 and np.asarray(seen).max() < 185
    assert demo.read_image(gan, save(columns, tmp_path / "gray.png")).mode == "RGB"
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    path = save(exact, tmp_path / "exact.png")
    (image, _), (remade, _) = demo.reconstruct(vae, path)
    assert np.array_equal(image, exact)
    assert np.array_equal(remade, vae.reconstruct(Image.fromarray(exact))[0])


def test_only_the_hole_is_filled(demo, vae):
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    stroke = np.zeros((80, 80, 4), dtype=np.uint8)
    stroke[20:40, 33:60, 3] = 255  # rows 2 and 3; of column 3 the larger part
    (known, _), (filled, _) = demo.inpaint(vae, Image.fromarray(exact), {"layers": [stroke]}, 0, 3)
    hole = np.zeros((8, 8), dtype=bool)
    hole[2:4, 3:6] = True
    assert np.array_equal(np.asarray(filled)[~hole], exact[~hole])
    assert (np.asarray(known)[hole] == 128).all() and (np.asarray(filled)[hole] != exact[hole]).any()


BAD_CLICKS = {
    "Images is 17": lambda d, g, v, p: d.sample(g, "g", 16, 0, 17, truncation=1),
    "Images is 0": lambda d, g, v, p: d.sample(g, "g", 16, 0, 0, truncation=1),
    "Seed is -1": lambda d, g, v, p: d.sample(g, "g", 16, -1, 1, truncation=1),
    "Seed is None": lambda d, g, v, p: d.sample(g, "g", 16, None, 1, truncation=1),
    "Class is 3": lambda d, g, v, p: d.sample(g, "g", 16, 0, 1, 3, truncation=1),
    "Truncation is nan": lambda d, g, v, p: d.sample(g, "g", 16, 0, 1, truncation=float("nan")),
    "Temperature is 1000": lambda d, g, v, p: d.interpolate(v, 0, 1, 4, temperature=1000),
    "Frames is 1000": lambda d, g, v, p: d.interpolate(g, 0, 1, 1000, truncation=1),
    "Steps is 10000": lambda d, g, v, p: d.inpaint(v, Image.new("L", (8, 8)), None, 0, 10000),
    "no hole": lambda d, g, v, p: d.inpaint(v, Image.new("L", (8, 8)), {"layers": []}, 0, 1),
    "no image": lambda d, g, v, p: d.inpaint(v, None, None, 0, 1),
    "upload one first": lambda d, g, v, p: d.reconstruct(v, None),
    "too oblong": lambda d, g, v, p: d.reconstruct(v, save(np.zeros((8, 200), np.uint8), p / "long.png")),
}


@pytest.mark.parametrize("message", BAD_CLICKS)
def test_the_code_has_limits_too(demo, gan, vae, tmp_path, message):
    with pytest.raises(UserError, match=message):
        BAD_CLICKS[message](demo, gan, vae, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing"),
        (["--model", "x", "--max_images", 65], "--max_images 65 is out of range"),
        (["--model", "x", "--port", 0], "--port 0 is out of range"),
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


def test_a_port_that_is_taken(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("demo", "--model", models / "vae", "--port", port, launcher=False)
    assert result.returncode == 2 and f"--port {port} cannot be listened on" in result.stderr.splitlines()[-1]


def test_a_space_of_a_model_on_the_hub(demo, tmp_path, capsys):
    demo.main(["--model", "ada/digits", "--revision", "v1", "--space_dir", str(tmp_path / "it")])
    assert f"--folder {tmp_path / 'it'} --repo_type space" in capsys.readouterr().out
    head = yaml.safe_load((tmp_path / "it" / "README.md").read_text().split("---\n")[1])
    assert head["models"] == ["ada/digits"] and (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    assert "serve('ada/digits', name='ada/digits', revision='v1'" in (tmp_path / "it" / "app.py").read_text()
    assert not (tmp_path / "it" / "model").exists()


# The page


@contextlib.contextmanager
def serving(process):
    """The address that a demo prints, while it runs."""
    try:
        line = process.stdout.readline()
        while line and not line.startswith("Demo:"):
            line = process.stdout.readline()
        assert line, process.stderr.read()
        yield line.split()[1]
    finally:
        process.terminate()
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

    def error(self):
        toast = self.page.get_by_test_id("toast-body")
        toast.wait_for()
        return toast.inner_text()


def test_the_page_of_a_vae(browser, models, tmp_path):
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    path = save(exact, tmp_path / "exact.png")
    (tmp_path / "broken.png").write_text("no image at all")
    wanted = sampled(models / "vae", tmp_path / "sampled", "--num_images", 8)
    with serving(start("demo", "--model", models / "vae", launcher=False)) as address:
        page = Page(browser, address)
        assert page.tabs == ["Sample", "Interpolate", "Reconstruct", "Inpaint"]
        page.open("Sample")
        for seed in (0, 1, 0):
            page.tab.get_by_label("Seed").fill(str(seed))
            assert np.array_equal(page.click(8)[: 8 - seed], wanted[seed:])
        page.open("Interpolate")
        assert len(page.click(12)) == 12
        assert page.tab.get_by_alt_text("walk").bounding_box()["height"] == 224

        page.open("Reconstruct")
        page.tab.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
        page.tab.get_by_text("broken.png").wait_for()
        page.tab.get_by_role("button", name="Reconstruct").click()
        error = page.error()
        assert "cannot be read: it is no image, or of an unknown format" in error and "Traceback" not in error
        page.tab.get_by_role("button", name="Clear").first.click()
        page.tab.locator("input[type=file]").set_input_files(path)
        page.tab.get_by_text("exact.png").wait_for()
        image, remade = page.click(2)
        pipe = load_pipeline(str(models / "vae"))
        assert np.array_equal(image, exact)
        assert np.array_equal(remade, pipe.reconstruct(Image.fromarray(exact))[0])

        page.open("Inpaint")
        page.tab.locator("input[type=file]").first.set_input_files(path)
        page.tab.get_by_text("exact.png").wait_for()
        page.tab.get_by_text("select the draw tool").wait_for(state="hidden")
        page.page.wait_for_timeout(1000)  # until the editor has drawn it
        box = page.tab.locator("canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.page.mouse.move(x - 60, y)
        page.page.mouse.down()
        page.page.mouse.move(x + 60, y, steps=5)
        page.page.mouse.up()
        known, filled = page.click(2)
        hole = known != exact
        assert 2 <= hole.sum() <= 32 and (known[hole] == 128).all()
        assert hole[3:5, 3:5].any() and not hole[[0, 7]].any()
        assert np.array_equal(filled[~hole], exact[~hole]) and (filled[hole] != exact[hole]).any()
        assert page.hosts <= {address.split("/")[2], ""}  # data: and blob: have no host


def test_the_page_of_a_conditional_gan(browser, models, tmp_path):
    wanted = sampled(models / "gan", tmp_path / "sampled", "--num_images", 8, "--class_labels", "dog & co")
    with serving(start("demo", "--model", models / "gan", launcher=False)) as address:
        page = Page(browser, address)
        assert page.tabs == ["Sample", "Interpolate"]
        page.open("Sample")
        page.tab.get_by_label("Class").click()
        page.page.get_by_role("option", name="dog & co").click()
        assert np.array_equal(page.click(8), wanted)
        assert page.tab.get_by_text("seed 0 · dog & co").count() == 1
        assert page.hosts <= {address.split("/")[2], ""}


def test_the_space_runs_with_the_library_it_holds(browser, models, tmp_path):
    space = tmp_path / "space"
    assert run("demo", "--model", models / "ddpm", "--space_dir", space, launcher=False).returncode == 0
    with (space / "hfgen" / "__init__.py").open("a") as file:
        file.write("\nprint('from', __file__, flush=True)\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, str(space / "app.py")], cwd=tmp_path, env=env, **pipes)
    assert process.stdout.readline() == f"from {space / 'hfgen' / '__init__.py'}\n"
    with serving(process) as address:
        page = Page(browser, address)
        page.open("Sample")
        assert np.array_equal(page.click(8), sampled(models / "ddpm", tmp_path / "sampled", "--num_images", 8))
