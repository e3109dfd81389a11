"""Sampling: known answers, the pipeline's interface, saving and loading."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from oracle import Oracle
from PIL import Image

from hfgen.models.unet2d import build_unet
from hfgen.objectives.denoising import PREDICTION_TYPES
from hfgen.pipelines import load_pipeline
from hfgen.pipelines.classes import draw_classes
from hfgen.pipelines.ddpm_sampling import (
    SAMPLERS,
    ClassConditionalDDPMPipeline,
    denoise,
    log_snr_timesteps,
    sampling_scheduler,
    set_timesteps,
)
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import image_generators

SCHEDULES = [("linear", False), ("scaled_linear", False), ("squaredcos_cap_v2", False), ("sigmoid", False)]
SCHEDULES += [("linear", True), ("squaredcos_cap_v2", True)]
# How much of the deviation must come back for fine (0.1) and very fine (0.02) detail.
KEPT = {
    ("sde-dpmsolver++", 20): (0.97, 0.8),
    ("dpmsolver++", 15): (0.97, 0.8),
    ("dpmsolver++", 20): (0.97, 0.8),
    ("ddim", 50): (0.93, 0.8),
    ("ddpm", None): (0.95, 0.75),
}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("schedule", "zero_snr"), SCHEDULES)
@pytest.mark.parametrize(("sampler", "steps"), KEPT)
def test_a_known_distribution_is_sampled(schedule, zero_snr, kind, sampler, steps):
    if zero_snr and kind == "epsilon":
        return  # refused by DDPMConfig.validate, see test_ddpm.py
    trained = DDPMScheduler(
        beta_schedule=schedule, prediction_type=kind, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing"
    )
    for std, kept in zip((0.1, 0.02), KEPT[sampler, steps], strict=True):
        images = denoise(
            Oracle(trained, [(1.0, 0.3, std)]),
            sampling_scheduler(trained, sampler),
            batch_size=32,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=steps,
        )
        pixels = images * 2 - 1
        assert pixels.mean().item() == pytest.approx(0.3, abs=0.02)
        assert kept <= pixels.std().item() / std <= 1.06


def test_thresholding_is_a_clamp():
    """What the sampler does in its place, for speed, gives the bits of diffusers' own."""
    ours = sampling_scheduler(DDPMScheduler(prediction_type="v_prediction"))
    plain = type(ours).from_config(ours.config)
    set_timesteps(ours, 6)
    plain.set_timesteps(timesteps=ours.timesteps.tolist())
    assert plain.config.thresholding and "_threshold_sample" in {*vars(ours)} & {*dir(plain)} - {*vars(plain)}
    generator = torch.Generator().manual_seed(0)
    samples = [3 * torch.randn(2, 1, 8, 8, generator=generator)] * 2
    for timestep in plain.timesteps:
        output = 2 * torch.randn(2, 1, 8, 8, generator=generator)
        samples = [
            scheduler.step(output, timestep, sample, generator=torch.Generator().manual_seed(1)).prev_sample
            for scheduler, sample in zip((ours, plain), samples, strict=True)
        ]
        assert torch.equal(*samples)


def test_every_sampler_offered_is_tested():
    assert {sampler for sampler, _ in KEPT} == set(SAMPLERS)
    with pytest.raises(ValueError, match="sampler is 'euler'"):
        sampling_scheduler(DDPMScheduler(), "euler")


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_other_schedulers_of_diffusers_work(name):
    """They scale the noise and the input, or take no generator: stock DDPMPipeline gets these wrong."""
    trained = DDPMScheduler(prediction_type="epsilon")
    scheduler = getattr(diffusers, name).from_config(trained.config)
    images = denoise(Oracle(trained, [(1.0, 0.3, 0.3)]), scheduler, 32, torch.Generator().manual_seed(0), 50)
    pixels = images * 2 - 1
    assert pixels.mean().item() == pytest.approx(0.3, abs=0.05)
    assert pixels.std().item() == pytest.approx(0.3, rel=0.2)


@pytest.mark.parametrize(("schedule", "zero_snr"), SCHEDULES)
def test_log_snr_timesteps(schedule, zero_snr):
    scheduler = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr)
    steps = log_snr_timesteps(scheduler, 20)
    assert steps == sorted(set(steps), reverse=True)
    assert 17 <= len(steps) <= 20
    assert 0 <= steps[-1] < steps[0] <= 999


def tiny_unet(classes=None, seed=0):
    torch.manual_seed(seed)
    unet = build_unet(8, 1, (8, 8), norm_num_groups=4, attention_head_dim=8, num_class_embeds=classes)
    for parameter in unet.parameters():  # zero-initialised outputs would hide what the classes do
        torch.nn.init.normal_(parameter, std=0.2)
    return unet.eval()


@pytest.fixture
def pipe():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipe = ClassConditionalDDPMPipeline(tiny_unet(4), sampling_scheduler(scheduler), {0: "cat", 1: "dog", 2: "eel"})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_output_types(pipe):
    arguments = {"class_labels": [0, 1], "num_inference_steps": 3}
    tensors = pipe(**arguments, generator=image_generators(0, range(2)), output_type="pt").images
    arrays = pipe(**arguments, generator=image_generators(0, range(2)), output_type="np").images
    images = pipe(**arguments, generator=image_generators(0, range(2))).images
    assert tensors.shape == (2, 1, 8, 8)
    assert tensors.min() >= 0 and tensors.max() <= 1
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert isinstance(images[0], Image.Image)
    assert images[0].mode == "L"
    assert np.abs(np.asarray(images[1]) / 255 - arrays[1, ..., 0]).max() < 0.003
    (as_tuple,) = pipe(**arguments, generator=image_generators(0, range(2)), output_type="np", return_dict=False)
    assert np.array_equal(as_tuple, arrays)


def test_labels_by_number_name_and_tensor(pipe):
    def sample(labels, count=None):
        generators = image_generators(0, range(count or 2))
        return pipe(count, labels, generator=generators, num_inference_steps=3, output_type="pt").images

    by_number = sample([1, 2])
    assert torch.equal(by_number, sample(["dog", "eel"]))
    assert torch.equal(by_number, sample(torch.tensor([1, 2])))
    assert not torch.equal(by_number, sample([2, 1]))
    assert torch.equal(sample(2, 2), sample([2, 2]))
    assert sample(None, 2).shape == (2, 1, 8, 8)


def test_an_image_depends_on_its_own_seed_alone(pipe):
    def sample(indices):
        labels = [index % 3 for index in indices]
        generators = image_generators(7, indices)
        return pipe(None, labels, 2.0, generators, 4, "pt").images

    together = sample([0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([sample([3]), sample([1, 2])]), together[[3, 1, 2]], rtol=0, atol=1e-5)


def test_guidance(pipe):
    def sample(scale, labels=(1, 1)):
        generators = image_generators(0, range(2))
        return pipe(2, list(labels), scale, generators, 4, "pt").images

    plain, guided = sample(1.0), sample(4.0)
    assert not torch.allclose(plain, guided)
    # Guidance 0 is the network without the class.
    nothing = pipe(2, None, 1.0, image_generators(0, range(2)), 4, "pt").images
    torch.testing.assert_close(sample(0.0), nothing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [5]}, "class_labels has 5: use a number below 3"),
        ({"class_labels": ["cow"]}, "class_labels has 'cow'"),
        ({"class_labels": [0], "batch_size": 2}, "class_labels has 1 entries for batch_size 2"),
        (
            {"class_labels": [0], "generator": image_generators(0, range(2))},
            "generator has 2 entries for batch_size 1",
        ),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
    ],
)
def test_mistakes(pipe, arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        pipe(**arguments)


def test_without_a_null_class():
    pipe = ClassConditionalDDPMPipeline(tiny_unet(3), sampling_scheduler(DDPMScheduler()))
    assert pipe.class_names == ["0", "1", "2"]
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but this network was trained without label dropout"):
        pipe(class_labels=0, guidance_scale=2.0)
    with pytest.raises(ValueError, match="class_labels is missing"):
        pipe()


def test_save_and_load(pipe, tmp_path):
    before = pipe(
        class_labels=["eel"], generator=image_generators(0, [0]), num_inference_steps=4, output_type="pt"
    ).images
    pipe.save_pretrained(tmp_path)
    for loaded in (ClassConditionalDDPMPipeline.from_pretrained(tmp_path), load_pipeline(str(tmp_path))):
        loaded.set_progress_bar_config(disable=True)
        after = loaded(
            class_labels=["eel"], generator=image_generators(0, [0]), num_inference_steps=4, output_type="pt"
        )
        # Not bit for bit: weights mapped from a file may be aligned differently, and kernels round accordingly.
        torch.testing.assert_close(before, after.images, rtol=0, atol=1e-6)
        assert all(map(torch.equal, pipe.unet.state_dict().values(), loaded.unet.state_dict().values()))
        assert loaded.class_names == ["cat", "dog", "eel"]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if not key.startswith("_diff")} == {
        "_class_name": ["pipeline_hfgen_ddpm_sampling", "ClassConditionalDDPMPipeline"],
        "class_kind": None,
        "class_shares": None,
        "guidance_scale": 1.0,
        "id2label": {"0": "cat", "1": "dog", "2": "eel"},
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }


def test_groups_are_drawn_as_often_as_they_are_in_the_data():
    drawn = draw_classes([0.0, 0.25, 0.75], 4000, torch.Generator().manual_seed(0))
    assert drawn.bincount(minlength=3)[0] == 0
    assert drawn.double().mul(4).mean().item() == pytest.approx(7, abs=0.15)  # 4 * (0.25 * 1 + 0.75 * 2)
    alone = [draw_classes([0.5, 0.5], 1, image_generators(0, [number])).item() for number in range(8)]
    assert draw_classes([0.5, 0.5], 8, image_generators(0, range(8))).tolist() == alone
    assert set(alone) == {0, 1}


def test_without_labels_a_group_is_drawn_and_guided(tmp_path):
    pipe = ClassConditionalDDPMPipeline(
        tiny_unet(4),
        sampling_scheduler(DDPMScheduler()),
        id2label={0: "0", 1: "1", 2: "2"},
        class_shares=[0.0, 0.25, 0.75],
        guidance_scale=2.0,
    )
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(2, generator=image_generators(5, range(2)), num_inference_steps=3, output_type="pt").images
    generators = image_generators(5, range(2))
    groups = pipe.class_numbers(None, 2, generators)  # the same draws, then the same noise
    given = pipe(class_labels=groups, generator=generators, num_inference_steps=3, output_type="pt").images
    assert torch.equal(drawn, given)
    unguided = pipe(
        2, guidance_scale=1.0, generator=image_generators(5, range(2)), num_inference_steps=3, output_type="pt"
    ).images
    assert not torch.equal(drawn, unguided)
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path))
    assert loaded.config.class_shares == {"0": 0.0, "1": 0.25, "2": 0.75}
    assert loaded.config.guidance_scale == 2.0


def test_half_precision(pipe):
    pipe.to(dtype=torch.bfloat16)
    images = pipe(class_labels=[0], generator=image_generators(0, [0]), num_inference_steps=3, output_type="np").images
    assert images.dtype == np.float32


def test_denoise_takes_all_steps_of_a_ddpm_scheduler_by_default():
    scheduler = DDPMScheduler(num_train_timesteps=12)
    denoise(tiny_unet(), scheduler, generator=torch.Generator().manual_seed(0))
    assert len(scheduler.timesteps) == 12


def test_load_pipeline_knows_stock_pipelines_and_says_what_it_cannot_load(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "stock")
    assert isinstance(load_pipeline(str(tmp_path / "stock")), DDPMPipeline)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": ["evil", "EvilPipeline"]}')
    with pytest.raises(UserError, match="which hfgen does not sample from"):
        load_pipeline(str(tmp_path / "other"))
    with pytest.raises(UserError, match="holds no pipeline"):
        load_pipeline(str(tmp_path / "absent"))
