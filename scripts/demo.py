"""Shows a checkpoint in the browser: samples, walks, and what a VAE makes of your images. Or writes that as a Space.

Needs gradio: `pip install -c constraints.txt -e ".[demo]"`. Examples:

    python scripts/demo.py --model out/gan-mnist
    python scripts/demo.py --model user/ddpm-mnist --host 0.0.0.0 --port 8000
    python scripts/demo.py --model user/ddpm-mnist --space_dir out/space
    python scripts/push_to_hub.py --folder out/space --repo_type space --hub_model_id user/demo
"""

import base64
import functools
import html
import io
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfgen.commands.cli import one_line_errors, parse
from hfgen.data.config import IMAGE_MODES
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option
from hfgen.sampling.config import SamplingConfig

# What one click of anybody may cost.
MOST_IMAGES = 64  # as many as sample.py makes at once
MOST_FRAMES = 32
MOST_STEPS = 100  # of a DDPM
MOST_SEARCH = 200  # steps of the search for what fills a hole
MOST_SEED = 2**32 - 1 - MOST_IMAGES
MOST_PIXELS = 20_000_000  # of an uploaded image; PIL refuses twice as many
MOST_OBLONG = 20  # its longer side, in shorter ones
MOST_BYTES = "20mb"
MOST_WAITING = 32  # clicks in the queue
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of uploads

ANY = -1  # the class that stands for none in particular
CANVAS = 448  # pixels; what is painted on is enlarged to about this size
COLOURS = {1: "gray", 3: "colour", 4: "colour and transparency"}
CSS = """
img { image-rendering: pixelated }
.pixels img { object-fit: contain !important; width: 100%; height: 100% }
.pixels .grid-wrap { height: auto; max-height: none; min-height: 0 }
"""

Captioned = list[tuple[Image.Image, str]]


@dataclass(frozen=True)
class DemoConfig:
    """Demo: of what, and where."""

    model: str | None = option(None, "folder or Hub id of the checkpoint")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    max_images: int = option(16, f"images per click, {MOST_IMAGES} at most")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in")
    port: int | None = option(None, "port to listen on (default: the first that is free, from 7860 on)")
    provenance: bool = option(True, "write into the images which model made them, and how")
    share: bool = option(False, "open a public address, through Gradio's servers")
    space_dir: str | None = option(
        None, "write a Gradio Space into this folder, which must be new or empty, and show nothing"
    )
    hub_token: str | None = option(None, "token for a private model; never written into a Space", secret=True)


def read_options(argv: Sequence[str] | None = None) -> DemoConfig:
    (config,) = parse((DemoConfig,), argv, description=str(__doc__).partition("\n")[0])
    if not config.model:
        raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
    if not 1 <= config.max_images <= MOST_IMAGES:
        raise UserError(f"--max_images {config.max_images} is out of range: use 1 to {MOST_IMAGES}.")
    if config.port is not None and not 1 <= config.port <= 65535:
        raise UserError(f"--port {config.port} is out of range: use 1 to 65535.")
    return config


# What clicks do


def sliders(pipe: Any) -> dict[str, dict[str, Any]]:
    """What decides an image beside its seed and class: the arguments of a slider, by name in [`SamplingConfig`]."""

    def slider(label: str, least: float, most: float, step: float, value: float) -> dict[str, Any]:
        return {"label": label, "minimum": least, "maximum": most, "step": step, "value": value}

    if type(pipe).__name__ == "GANPipeline":
        return {"truncation": slider("Truncation", 0, 1, 0.05, 1)} if pipe.style_based else {}
    if type(pipe).__name__ == "VAEPipeline":
        return {"temperature": slider("Temperature", 0, 2, 0.05, 1)}
    most = min(MOST_STEPS, pipe.scheduler.config.num_train_timesteps)
    found = {"num_inference_steps": slider("Steps", 1, most, 1, min(20, most)) | {"precision": 0}}
    if getattr(pipe, "null_class", None) is not None:
        usual = pipe.config.guidance_scale
        found["guidance_scale"] = slider("Guidance", 0, max(10, usual), 0.1, usual)
    return found


def class_names(pipe: Any) -> list[str]:
    return getattr(pipe, "class_names", [])


def within(name: str, value: Any, least: float, most: float) -> None:
    """Stops what no widget sends, but a program may."""
    if not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{name} is {value}: use {least:g} to {most:g}.")


def check(pipe: Any, label: int, settings: dict[str, float], any_class: bool = True) -> int | None:
    """Checks what decides an image beside its seed; returns the class, `None` for any."""
    for name, value in settings.items():
        slider = sliders(pipe)[name]
        within(slider["label"], value, slider["minimum"], slider["maximum"])
    names = class_names(pipe)
    within("Class", label, ANY if any_class or not names else 0, len(names) - 1)
    return None if label == ANY else label


def note(image: Image.Image, origin: dict[str, Any] | None, composite: bool = False, **how: Any) -> Image.Image:
    """Has a downloaded PNG say what made it, as those of `sample.py` do."""
    from hfgen.runtime.png import notes

    texts = {} if origin is None else notes(origin | how, composite)
    for key, text in texts.items():
        image.info[key] = text
    return image


def sample(
    pipe: Any,
    name: str,
    max_images: int,
    seed: int,
    count: int,
    label: int = ANY,
    origin: dict[str, Any] | None = None,
    **settings: float,
) -> Captioned:
    """The images that `sample.py --seed` makes. `ANY` means all classes in turn, or if they are groups, drawn ones."""
    from hfgen.runtime.png import to_pil
    from hfgen.sampling.sampler import Sampler

    within("Seed", seed, 0, MOST_SEED)
    within("Images", count, 1, max_images)
    chosen, names = check(pipe, label, settings), class_names(pipe)
    config = SamplingConfig(class_labels=None if chosen is None else (names[chosen],), **settings)  # type: ignore[arg-type]
    sampler = Sampler(pipe, config, name)
    arrays = sampler(range(count), seed).permute(0, 2, 3, 1).cpu().numpy()
    classes = [sampler.class_of(index) for index in range(count)]
    captions = [f"seed {seed + i}" + ("" if c is None else f" · {names[c]}") for i, c in enumerate(classes)]
    images = [
        note(to_pil(array), origin, **sampler.how, precision="no", seed=seed + index, class_label=classes[index])
        for index, array in enumerate(arrays)
    ]
    return list(zip(images, captions, strict=True))


def interpolate(
    pipe: Any, start: int, end: int, frames: int, label: int = ANY, **settings: float
) -> list[Image.Image]:
    """A walk from the image of one seed to that of another. A VAE walks between the codes of these two images, so that
    its ends are reconstructions of them."""
    from hfgen.sampling.sampler import image_generators

    within("From seed", start, 0, MOST_SEED)
    within("To seed", end, 0, MOST_SEED)
    within("Frames", frames, 2, MOST_FRAMES)
    gan = type(pipe).__name__ == "GANPipeline"
    chosen = check(pipe, label, settings, any_class=gan)
    options: dict[str, Any] = {"class_labels": chosen, "generator": image_generators(0, (start, end)), **settings}
    if gan:
        return pipe.interpolate(frames=frames - 1, **options)
    ends = pipe(2, output_type="pt", **options).images
    return pipe.interpolate(ends[0], ends[1], frames, chosen)


def read_image(pipe: Any, path: str | None) -> Image.Image:
    """An uploaded image with the size and channels of the model's, cropped in the centre."""
    from hfgen.data.decode import decode, fit, to_mode
    from hfgen.runtime.png import to_pil

    if path is None:
        raise UserError("There is no image: upload one first.")
    channels, resolution, _ = pipe.image_shape
    try:
        image = decode({"path": path})
        if max(image.size) > MOST_OBLONG * min(image.size):
            raise UserError(f"The image has {image.width}x{image.height} pixels, which is too oblong: crop it first.")
        mode = next(mode for mode, number in IMAGE_MODES.items() if number == channels)
        pixels, _, _ = fit(to_mode(image, mode), resolution, center_crop=True)
    except OSError as error:
        raise UserError(f"The image cannot be read: {error}. Upload another.") from None
    return to_pil(pixels.transpose(1, 2, 0))


def reconstruct(pipe: Any, path: str | None, label: int = ANY) -> Captioned:
    chosen, image = check(pipe, label, {}, any_class=False), read_image(pipe, path)
    return [(image, "image"), (pipe.reconstruct(image, chosen)[0], "reconstruction")]


def inpaint(
    pipe: Any, image: Image.Image | None, drawn: dict | None, seed: int, steps: int, label: int = ANY
) -> Captioned:
    """Fills the hole: what was painted, in the layers `(H, W, 4)` of `drawn`, over the image at any size."""
    import torch

    within("Seed", seed, 0, MOST_SEED)
    within("Steps", steps, 1, MOST_SEARCH)
    chosen = check(pipe, label, {}, any_class=False)
    if image is None:
        raise UserError("There is no image: upload one first.")
    mask = np.zeros((image.height, image.width), dtype=bool)
    for layer in (drawn or {}).get("layers", ()):
        mask |= np.asarray(Image.fromarray(layer[..., 3]).resize(image.size, Image.Resampling.BOX)) >= 128
    if not mask.any():
        raise UserError("There is no hole: paint over a part of the image first.")
    generator = torch.Generator().manual_seed(seed)
    filled = pipe.inpaint(image, mask, chosen, steps=steps, generator=generator)[0]
    known = Image.composite(Image.new(image.mode, image.size, "gray"), image, Image.fromarray(mask))
    return [(known, "what is known"), (filled, "filled")]


def guard(editor: Any, most: int) -> None:
    """Has an image editor take no more than its page sends, before anything is decoded: a layer, `most` pixels wide.

    A subclass would say so, but Gradio writes a file beside the source of each subclass.
    """
    import gradio as gr

    preprocess, accept_blobs = editor.preprocess, editor.accept_blobs

    def refuse() -> None:
        raise gr.Error(f"Send one layer of at most {most}x{most} pixels.", print_exception=False)

    @functools.wraps(preprocess)
    def one_layer(payload: Any) -> Any:
        sent = payload if payload is None or payload.id is None else editor.blob_storage.get(payload.id)
        if sent is not None:
            sent.background = sent.composite = None  # which are not needed
            if len(sent.layers) > 1:
                refuse()
            for layer in filter(None, sent.layers):
                with Image.open(io.BytesIO(layer) if isinstance(layer, bytes) else layer.path) as image:
                    if max(image.size) > most:
                        refuse()
        return preprocess(payload)

    @functools.wraps(accept_blobs)
    def accept_one(data: Any) -> Any:
        if data.data["index"] not in (None, "", "null", "0", 0):  # it makes a list that long
            refuse()
        return accept_blobs(data)

    editor.preprocess, editor.accept_blobs = one_layer, accept_one


async def move_local(move: Callable[[Any], Any], path: Any) -> Any:
    """Gradio's `move` of a file that a click names, but not of one elsewhere, which it would download."""
    import gradio as gr

    if str(path).lower().startswith(("http:", "https:")):
        raise gr.Error("An address is no file: upload it.", print_exception=False)
    return await move(path)


def limit_decoders() -> None:
    """Leaves PIL the common formats: others start programs (Ghostscript), or are hardly ever tested."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    Image.init()  # else it would add the others later
    Image.ID[:] = FORMATS


def animate(pipe: Any, frames: Sequence[Image.Image]) -> str:
    """HTML that shows frames forth and back, without a file that someone would have to clear away."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.gif"
        pipe.save_gif([*frames, *frames[-2:0:-1]], path)
        content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="walk" src="data:image/gif;base64,{content}" style="height: {CANVAS // 2}px">'


def enlarge(image: Image.Image) -> Image.Image:
    """By a whole factor and without smoothing, to at most `CANVAS` pixels."""
    factor = max(1, CANVAS // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


# The page


def build(pipe: Any, name: str, max_images: int, origin: dict[str, Any] | None = None) -> Any:
    """Makes the app, with a tab for each thing that the checkpoint can do. Its images tell of their `origin`."""
    import gradio as gr

    from hfgen.sampling.sampler import Sampler

    sampler = Sampler(pipe, SamplingConfig(), name)
    channels, height, width = sampler.image_shape
    if channels not in COLOURS:
        raise UserError(f"--model {name} makes images with {channels} channels, which a page cannot show.")
    gan, vae = sampler.family == "GAN", sampler.family == "VAE"
    codes = vae and pipe.config.task is None  # the others encode damaged images
    draws = not vae or not pipe.quantises or pipe.prior is not None
    what = f"{sampler.family}, {width}x{height} pixels, {COLOURS[channels]}"
    if sampler.class_names:
        what += f", {len(sampler.class_names)} {'groups of similar images' if sampler.grouped else 'classes'}"

    def seed_box(label: str, value: int = 0) -> gr.Number:
        return gr.Number(value, label=label, precision=0, minimum=0, maximum=MOST_SEED)

    def whole(label: str, least: int, most: int, value: int) -> gr.Slider:
        return gr.Slider(least, most, value, step=1, precision=0, label=label)

    def class_box(any_class: bool = True) -> list[gr.Dropdown]:
        names = [("any", ANY)] * any_class + [(name, number) for number, name in enumerate(sampler.class_names)]
        return [gr.Dropdown(names, value=names[0][1], label="Class")] if sampler.class_names else []

    def class_label(label: int) -> int | None:
        return label if sampler.class_names and label != ANY else None

    def setting_boxes() -> list[gr.Slider]:
        return [gr.Slider(**slider) for slider in sliders(pipe).values()]

    def named(values: Sequence[Any]) -> dict[str, Any]:
        """The values of a class box and of the settings."""
        return dict(zip([*(["label"] if sampler.class_names else []), *sliders(pipe)], values, strict=True))

    def file_box() -> gr.File:  # not an image box, whose own decoder fails without a word
        return gr.File(label="Image", file_types=["image"], height=140)

    def gallery(columns: int) -> gr.Gallery:
        look: dict[str, Any] = {"show_label": False, "object_fit": "contain", "elem_classes": "pixels"}
        return gr.Gallery(columns=columns, format="png", interactive=False, **look)

    def on(event: Any, name: str, function: Callable[..., Any], inputs: list[Any], outputs: Any) -> None:
        """One click at a time in the whole app, and errors that say what to do."""

        @functools.wraps(function)
        def call(*values: Any) -> Any:
            try:
                return function(*values)
            except ValueError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from None

        event(call, inputs, outputs, api_name=name, concurrency_limit=1, concurrency_id="model")

    def sample_tab() -> None:
        with gr.Row():
            with gr.Column():
                inputs = [seed_box("Seed"), whole("Images", 1, max_images, min(8, max_images))]
                inputs += [*class_box(), *setting_boxes()]
                button = gr.Button("Sample", variant="primary")
            shown = gallery(4)

        def run(seed: int, count: int, *values: Any) -> Captioned:
            return sample(pipe, name, max_images, seed, count, origin=origin, **named(values))

        on(button.click, "sample", run, inputs, shown)

    def interpolate_tab() -> None:
        with gr.Row():
            with gr.Column():
                inputs = [seed_box("From seed", 0), seed_box("To seed", 1), whole("Frames", 2, MOST_FRAMES, 12)]
                inputs += [*class_box(any_class=gan), *setting_boxes()]
                button = gr.Button("Interpolate", variant="primary")
            with gr.Column(scale=2):
                walk, shown = gr.HTML(), gallery(6)

        def run(start: int, end: int, frames: int, *values: Any) -> tuple[str, Captioned]:
            images = interpolate(pipe, start, end, frames, **named(values))
            how = named(values)
            how |= {"seeds": [start, end], "class_label": class_label(how.pop("label", ANY))}
            for number, image in enumerate(images):
                note(image, origin, frame=number, **how)
            return animate(pipe, images), [(image, str(number)) for number, image in enumerate(images)]

        on(button.click, "interpolate", run, inputs, [walk, shown])

    def reconstruct_tab() -> None:
        with gr.Row():
            with gr.Column():
                inputs = [file_box(), *class_box(any_class=False)]
                button = gr.Button("Reconstruct", variant="primary")
            shown = gallery(2)

        def run(path: str | None, label: int = ANY) -> Captioned:
            shown = reconstruct(pipe, path, label)
            note(shown[1][0], origin, composite=True, task="reconstruct", class_label=class_label(label))
            return shown

        on(button.click, "reconstruct", run, inputs, shown)

    def inpaint_tab() -> None:
        image = gr.State()  # as the model sees it; the editor shows it enlarged
        with gr.Row():
            with gr.Column():
                file, classes = file_box(), class_box(any_class=False)
                inputs = [seed_box("Seed"), whole("Steps", 1, MOST_SEARCH, MOST_SEARCH // 2)]
                button = gr.Button("Inpaint", variant="primary")
            with gr.Column(scale=2):
                editor = gr.ImageEditor(
                    label="Paint the hole",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=48, colors=["#ff4b1f"], color_mode="fixed"),
                    canvas_size=(CANVAS, CANVAS),
                    height=CANVAS + 52,
                    format="png",
                )
                guard(editor, max(CANVAS, width, height))
            shown = gallery(1)

        def show(path: str | None) -> tuple[Image.Image, dict]:
            seen = read_image(pipe, path)
            return seen, {"background": enlarge(seen), "layers": [], "composite": None}

        on(file.upload, "open", show, [file], [image, editor])

        def run(image: Image.Image | None, drawn: dict | None, seed: int, steps: int, label: int = ANY) -> Captioned:
            shown = inpaint(pipe, image, drawn, seed, steps, label)
            how = {"task": "inpaint", "seed": seed, "steps": steps, "class_label": class_label(label)}
            note(shown[1][0], origin, composite=True, **how)
            return shown

        on(button.click, "inpaint", run, [image, editor, *inputs, *classes], shown)

    tabs = {"Sample": sample_tab} if draws else {}
    tabs |= {"Interpolate": interpolate_tab} if gan or (codes and draws) else {}
    tabs |= {"Reconstruct": reconstruct_tab, "Inpaint": inpaint_tab} if codes else {}
    if not tabs:
        raise UserError(f"--model {name} neither makes images nor was trained to keep them: there is nothing to show.")
    # With analytics, Gradio asks its makers' server for a newer version of itself.
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(f"# {html.escape(name)}\n{what}. The same seed makes the same image.")
        for title, tab in tabs.items():
            with gr.Tab(title):
                tab()
    for block in app.blocks.values():
        if hasattr(block, "async_move_resource_to_block_cache"):
            move = block.async_move_resource_to_block_cache
            block.async_move_resource_to_block_cache = functools.partial(move_local, move)
    # api_open would let programs pass the queue.
    return app.queue(default_concurrency_limit=1, max_size=MOST_WAITING, api_open=False)


def serve(
    model: str,
    name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    max_images: int = 16,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    provenance: bool = True,
) -> None:
    """Shows a checkpoint until it is interrupted, and prints where. Without `host`, that is up to Gradio: this machine
    alone, or in a Space all."""
    import gradio as gr
    from accelerate import PartialState

    from hfgen.sampling.loading import load_pipeline

    pipe: Any = load_pipeline(model, revision=revision, token=token).to(PartialState().device)
    pipe.set_progress_bar_config(disable=True)
    origin = {"model": name or (Path(model).resolve().name if Path(model).is_dir() else model), "revision": revision}
    app = build(pipe, name or Path(model).name, max_images, origin if provenance else None)
    limit_decoders()
    try:
        _, address, public = app.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            css=CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port} cannot be listened on: {error} Give others.") from None
    print(f"Demo:     {public or address}", flush=True)
    app.block_thread()


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    assert config.model is not None
    if find_spec("gradio") is None:
        raise UserError('gradio is not installed, which the demo needs: pip install "gradio>=6.31".')
    if config.space_dir is None:
        where: dict[str, Any] = {"host": config.host, "port": config.port, "share": config.share}
        where["provenance"] = config.provenance
        serve(config.model, None, config.revision, config.hub_token, config.max_images, **where)
        return

    from hfgen.hub.space import write_space

    how: dict[str, Any] = {"max_images": config.max_images, "provenance": config.provenance}
    write_space(Path(config.space_dir), Path(__file__), config.model, config.revision, **how)
    push = ["python", "scripts/push_to_hub.py", "--folder", config.space_dir, "--repo_type", "space"]
    print(f"Space:    {config.space_dir}")
    print(f"Push it:  {shlex.join(push)} --hub_model_id USER/NAME")


if __name__ == "__main__":
    with one_line_errors():
        main()
