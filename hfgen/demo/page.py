"""The page of the demo: a tab for each thing that a checkpoint can do. Needs gradio."""

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from hfgen.demo.actions import (
    ANY,
    CANVAS,
    Captioned,
    animate,
    class_names,
    enlarge,
    inpaint,
    interpolate,
    note,
    read_image,
    reconstruct,
    sample,
    sliders,
    translate,
    walks_any_class,
)
from hfgen.demo.guards import answer, guard, move_local
from hfgen.demo.limits import KEPT, MOST_FRAMES, MOST_SEARCH, MOST_SEED, MOST_WAITING
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Encodes, Generates, Restores, Translates

COLOURS = {1: "gray", 3: "colour", 4: "colour and transparency"}
CSS = """
img { image-rendering: pixelated }
.pixels img { object-fit: contain !important; width: 100%; height: 100% }
.pixels .grid-wrap { height: auto; max-height: none; min-height: 0 }
"""


def build(adapter: Any, name: str, max_images: int, origin: dict[str, Any] | None = None) -> Any:
    """Makes the app, with a tab for each thing that the checkpoint can do. Its images tell of their `origin`."""
    channels, height, width = adapter.image_shape
    if channels not in COLOURS:
        raise UserError(f"`model` {name} makes images with {channels} channels, which a page cannot show.")
    can = (adapter.obstacle(each) is None for each in (Generates, Encodes, Restores, Translates))
    draws, codes, restores, translates = can
    inpaints = restores and "inpaint" in adapter.tasks
    heading = f"{adapter.kind[:1].upper()}{adapter.kind[1:]}, {width}x{height} pixels, {COLOURS[channels]}"
    if adapter.classes:
        groups = "groups of similar images" if adapter.classes.groups else "classes"
        heading += f", {len(adapter.classes.names)} {groups}"

    def seed_box(label: str, value: int = 0) -> gr.Number:
        return gr.Number(value, label=label, precision=0, minimum=0, maximum=MOST_SEED)

    def whole(label: str, least: int, most: int, value: int) -> gr.Slider:
        return gr.Slider(least, most, value, step=1, precision=0, label=label)

    def class_box(any_class: bool = True) -> list[gr.Dropdown]:
        names = [("any", ANY)] * any_class + [(name, number) for number, name in enumerate(class_names(adapter))]
        return [gr.Dropdown(names, value=names[0][1], label="Class")] if adapter.classes else []

    def class_label(label: int) -> int | None:
        return label if adapter.classes and label != ANY else None

    def setting_boxes() -> list[gr.Slider]:
        return [gr.Slider(**slider) for slider in sliders(adapter).values()]

    def named(values: Sequence[Any]) -> dict[str, Any]:
        """Returns the values of a class box and of the settings, by name."""
        return dict(zip([*(["label"] if adapter.classes else []), *sliders(adapter)], values, strict=True))

    def file_box() -> gr.File:  # not an image box, whose own decoder fails without a word
        return gr.File(label="Image", file_types=["image"], height=140)

    def gallery(columns: int) -> gr.Gallery:
        style: dict[str, Any] = {"show_label": False, "object_fit": "contain", "elem_classes": "pixels"}
        return gr.Gallery(columns=columns, format="png", interactive=False, **style)

    def on(event: Any, name: str, function: Callable[..., Any], inputs: list[Any], outputs: Any) -> None:
        """Connects a click: one at a time in the whole app, and errors that say what to do."""

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
            return sample(adapter, name, max_images, seed, count, origin=origin, **named(values))

        on(button.click, "sample", run, inputs, shown)

    def interpolate_tab() -> None:
        with gr.Row():
            with gr.Column():
                inputs = [seed_box("From seed", 0), seed_box("To seed", 1), whole("Frames", 2, MOST_FRAMES, 12)]
                inputs += [*class_box(any_class=walks_any_class(adapter)), *setting_boxes()]
                button = gr.Button("Interpolate", variant="primary")
            with gr.Column(scale=2):
                walk, shown = gr.HTML(), gallery(6)

        def run(start: int, end: int, frames: int, *values: Any) -> tuple[str, Captioned]:
            images = interpolate(adapter, start, end, frames, **named(values))
            settings = named(values)
            settings |= {"seeds": [start, end], "class_label": class_label(settings.pop("label", ANY))}
            for number, image in enumerate(images):
                note(image, origin, frame=number, **settings)
            return animate(images), [(image, str(number)) for number, image in enumerate(images)]

        on(button.click, "interpolate", run, inputs, [walk, shown])

    def reconstruct_tab() -> None:
        with gr.Row():
            with gr.Column():
                inputs = [file_box(), *class_box(any_class=False)]
                button = gr.Button("Reconstruct", variant="primary")
            shown = gallery(2)

        def run(path: str | None, label: int = ANY) -> Captioned:
            shown = reconstruct(adapter, path, label)
            note(shown[1][0], origin, composite=True, task="reconstruct", class_label=class_label(label))
            return shown

        on(button.click, "reconstruct", run, inputs, shown)

    def translate_tab() -> None:
        with gr.Row():
            with gr.Column():
                file = file_box()
                button = gr.Button("Translate", variant="primary")
            shown = gallery(3 if len(adapter.ways) > 1 else 2)

        def run(path: str | None) -> Captioned:
            rows = translate(adapter, path)
            for image, caption in (made for row in rows for made in row[1:]):
                note(image, origin, composite=True, task="translate", direction=caption)
            return [each for row in rows for each in row]

        on(button.click, "translate", run, [file], shown)

    def inpaint_tab() -> None:
        image = gr.State()  # as the model sees it; the editor shows it enlarged
        with gr.Row():
            with gr.Column():
                file, classes = file_box(), class_box(any_class=False)
                usual = min(MOST_SEARCH // 2, adapter.restore_settings("inpaint")["steps"])
                inputs = [seed_box("Seed"), whole("Steps", 1, MOST_SEARCH, usual)]
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
            seen = read_image(adapter, path)
            return seen, {"background": enlarge(seen), "layers": [], "composite": None}

        on(file.upload, "open", show, [file], [image, editor])

        def run(image: Image.Image | None, drawn: dict | None, seed: int, steps: int, label: int = ANY) -> Captioned:
            shown = inpaint(adapter, image, drawn, seed, steps, label)
            settings = {"task": "inpaint", "seed": seed, "steps": steps, "class_label": class_label(label)}
            note(shown[1][0], origin, composite=True, **settings)
            return shown

        on(button.click, "inpaint", run, [image, editor, *inputs, *classes], shown)

    tabs = {"Sample": sample_tab} if draws else {}
    tabs |= {"Interpolate": interpolate_tab} if codes and draws else {}
    # Some find the code of an image by a search, which is too slow for a click; those that restore encode at once.
    tabs |= {"Reconstruct": reconstruct_tab} if codes and restores else {}
    tabs |= {"Inpaint": inpaint_tab} if inpaints else {}
    tabs |= {"Translate": translate_tab} if translates else {}
    if not tabs:
        raise UserError(f"`model` {name} neither makes images nor changes any: there is nothing to show.")
    # With analytics, Gradio asks its makers' server for a newer version of itself.
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(
            f"# {html.escape(name)}\n{heading}." + " The same seed makes the same image." * (draws or inpaints)
        )
        for title, tab in tabs.items():
            with gr.Tab(title):
                tab()
    for block in app.blocks.values():
        if hasattr(block, "async_move_resource_to_block_cache"):
            move = block.async_move_resource_to_block_cache
            block.async_move_resource_to_block_cache = functools.partial(move_local, move)
    app.process_api = functools.partial(answer, app.process_api)
    # api_open would let programs pass the queue.
    return app.queue(default_concurrency_limit=1, max_size=MOST_WAITING, api_open=False)
