"""Diffusion models that are trained to restore: from the command to the pipeline, and what users can get wrong."""

import json

import numpy as np
import pytest
import torch
from helpers import Command, save_pairs
from PIL import Image

from hfgen import DDPMRestorationPipeline, restore
from hfgen.families.ddpm import options as ddpm_options
from hfgen.families.ddpm.recipe import draw_holes
from hfgen.pipelines.ddpm_restoration import RESTORERS, beside, channels_beside
from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Generates, Restores, adapter_of

TINY = [
    *"--resolution 8 --train_batch_size 8 --max_train_steps 3 --block_out_channels 8 8 --norm_num_groups 4".split(),
    *"--attention_head_dim 8 --ddpm_num_inference_steps 3 --ddpm_num_steps 50 --mixed_precision no".split(),
    *"--save_images_epochs 0 --lr_warmup_steps 1".split(),
]
TASKS = ("inpaint", "super_resolve", "colorize", "denoise")


@pytest.fixture(scope="module")
def script():
    return Command("train ddpm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return save_pairs(tmp_path_factory.mktemp("data") / "pairs", 40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, script, pairs):
    """A model for each task, of images in red."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        given = ["--dataset_name", str(pairs), "--image_column", "b", "--task", task]
        script.main([*TINY, *given, "--output_dir", str(folder / task)])
    return folder


def damaged(task):
    """An image as a model of the task takes it, and a mask if it takes one."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image, mask = Image.fromarray(pixels), None
    if task == "inpaint":
        mask = Image.fromarray(np.pad(np.full((4, 3), 255, np.uint8), ((2, 2), (5, 0))))
    if task == "super_resolve":
        image = image.resize((2, 2))
    if task == "colorize":
        image = image.convert("L")
    return image, mask


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_a_task(trained, task, tmp_path):
    folder = trained / task
    record = json.loads((folder / "run.json").read_text())
    level = {"super_resolve": 4, "denoise": 0.3}.get(task)
    assert record["config"]["task"] == task and record["config"]["task_level"] == level
    pipe = DDPMRestorationPipeline.from_pretrained(folder)
    assert pipe.unet.config.in_channels == 3 + channels_beside(task, 3) and pipe.unet.config.out_channels == 3
    adapter = adapter_of(pipe)
    assert adapter.tasks == (task,) and adapter.obstacle(Generates) and adapter.obstacle(Restores) is None
    image, mask = damaged(task)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    made = pipe([image] * 2, mask, seeds, 3, output_type="np").images
    assert made.shape == (2, 8, 8, 3) and not np.array_equal(*made)
    (alone,) = pipe(image, mask, torch.Generator().manual_seed(1), 3, output_type="np").images
    np.testing.assert_allclose(alone, made[1], atol=1e-5)
    (found,) = restore(str(folder), task, image, mask, steps=3)
    assert found.size == (8, 8) and found.mode == "RGB"
    card = (folder / "README.md").read_text()
    assert "{{" not in card and "{%" not in card and "None" not in card and "image-to-image" in card
    assert f"hfgen restore --model . --task {task}" in card
    assert Image.open(folder / "samples.png").height > 2 * 64  # damaged, restored, and as they were
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png")
    given = ["--model", str(folder), "--task", task, "--input", str(tmp_path / "in"), "--steps", "2"]
    if mask:
        mask.save(tmp_path / "mask.png")
        given += ["--mask", str(tmp_path / "mask.png")]
    Command("restore").main([*given, "--output_dir", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "a.png").size == (8, 8)


def test_options_and_pipeline_know_the_same_tasks():
    assert TASKS == RESTORERS == ddpm_options.RESTORERS


def test_what_is_known_stays(trained):
    pipe = DDPMRestorationPipeline.from_pretrained(trained / "inpaint")
    image, mask = damaged("inpaint")
    (made,) = pipe(image, mask, num_inference_steps=2).images
    known = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(made)[known], np.asarray(image)[known])


def test_what_is_seen_beside_the_noise():
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    hole = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hole[:, :, :2] = True
    seen = beside("inpaint", images, hole=hole)
    assert (seen[:, :3, :2] == 0).all() and torch.equal(seen[:, :3, 2:], images[:, :, 2:])
    assert (seen[:, 3, :2] == 1).all() and (seen[:, 3, 2:] == -1).all()
    assert beside("super_resolve", images[..., :2, :2], 2).shape == images.shape
    assert torch.equal(beside("denoise", images), images)
    assert {task: channels_beside(task, 4) for task in TASKS} == {
        "inpaint": 5,
        "super_resolve": 4,
        "colorize": 2,
        "denoise": 4,
    }


def test_holes_for_training():
    draws = torch.rand(500, 5, generator=torch.Generator().manual_seed(0))
    holes = draw_holes(draws, 16)
    shares = holes.float().flatten(1).mean(1)
    assert holes.shape == (500, 1, 16, 16) and shares.min() >= 1 / 16 and 0.6 < shares.max() <= 0.75
    assert holes.float().mean(0).min() > 0.02  # each place is missing at times
    high, wide = holes.any(3)[:, 0].sum(1), holes.any(2)[:, 0].sum(1)
    assert (high == 16).any() and (wide == 16).any() and torch.equal(high * wide, holes.flatten(1).sum(1))


def test_callbacks_and_mistakes_of_calls(trained):
    pipe = DDPMRestorationPipeline.from_pretrained(trained / "super_resolve")
    pipe.set_progress_bar_config(disable=True)
    image, _ = damaged("super_resolve")
    seen = []

    def stop(pipe, step, timestep, kwargs):
        seen.append(tuple(kwargs["latents"].shape))
        pipe._interrupt = True
        return kwargs

    pipe(image, num_inference_steps=3, callback_on_step_end=stop)
    assert seen == [(1, 3, 8, 8)]
    with pytest.raises(ValueError, match="image is 2 times smaller than the model's, but it was trained to enlarge 4"):
        pipe(image.resize((4, 4)))
    with pytest.raises(ValueError, match="mask: this model was trained to super_resolve, and fills no holes"):
        pipe(image, image)
    with pytest.raises(ValueError, match="mask is missing"):
        DDPMRestorationPipeline.from_pretrained(trained / "inpaint")(damaged("inpaint")[0])
    with pytest.raises(UserError, match="noise_level is 0.1, but this model was trained for 0.3"):
        restore(str(trained / "denoise"), "denoise", damaged("denoise")[0], noise_level=0.1)
    with pytest.raises(UserError, match="`task` denoise: .* cannot do that. It can colorize"):
        restore(str(trained / "colorize"), "denoise", damaged("denoise")[0])
    with pytest.raises(ValueError, match="task is 'sharpen', but must be one of inpaint"):
        DDPMRestorationPipeline(pipe.unet, pipe.scheduler, "sharpen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task colorize", "--task colorize needs images in colour, and these are L"),
        ("--task super_resolve --task_level 3", "--task_level 3 does not divide the 8 pixels"),
        ("--task super_resolve --task_level 2.5", "--task_level 2.5: the factor must be a whole number"),
        ("--task inpaint --task_level 2", "--task_level 2.0 has nothing to be the level of"),
        ("--task_level 2", "--task_level 2.0 has nothing to be the level of"),
        (
            "--task denoise --class_conditional",
            "--class_conditional: a model with a --task .denoise. knows no classes",
        ),
        ("--task denoise --num_clusters 3", "--num_clusters: a model with a --task .denoise. knows no groups"),
        ("--task denoise --eval_every 2", "makes no images from seeds"),
    ],
)
def test_mistakes(script, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        script.main([*TINY, *arguments.split(), "--output_dir", str(tmp_path / "x")])
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()
