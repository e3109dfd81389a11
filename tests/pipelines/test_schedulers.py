"""Every scheduler that diffusers calls compatible in the place of ours: images like the data, or words that say why.

The network makes no errors (`benchmarks/oracle.py`), so what is wrong with an image is the scheduler's fault, or ours.
"""

import inspect
import warnings

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from oracle import Oracle

from hfgen import ClassConditionalDDPMPipeline, UserError, sampling_scheduler
from hfgen.pipelines.ddpm_sampling import default_sampler, set_timesteps
from hfgen.sampling.config import DDPMSamplingConfig
from hfgen.sampling.ddpm import DDPMAdapter
from hfgen.sampling.sampler import Sampler

MEAN, DEVIATION = 0.3, 0.3  # of the data
SPACINGS = ("", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
COMPATIBLE = sorted(kind.__name__ for kind in DDPMScheduler().compatibles)
KINDS = [*COMPATIBLE, "SASolverScheduler", "LCMScheduler", "TCDScheduler", "IPNDMScheduler"]
FOREIGN = {"EDMEulerScheduler", "IPNDMScheduler"}  # noise levels of their own
BLURRED = {"DDIMScheduler", "DDPMScheduler", "LCMScheduler"}  # by evenly spaced steps, or on purpose


def trained(schedule="squaredcos_cap_v2", zero_snr=False):
    return DDPMScheduler(
        beta_schedule=schedule,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
    )


def pipeline(base):
    network = Oracle(base, [(1.0, MEAN, DEVIATION)], num_class_embeds=3)
    pipe = ClassConditionalDDPMPipeline(network, sampling_scheduler(base), {0: "a", 1: "b"})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def attempt(pipe, scheduler, steps):
    """Mean and deviation of some images, and what was said about them."""
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            images = pipe(8, class_labels=1, generator=generator, num_inference_steps=steps, output_type="pt").images
        except ValueError as error:
            return None, str(error)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    pixels = images * 2 - 1
    return (pixels.mean().item(), pixels.std().item()), " ".join(str(warning.message) for warning in caught)


def spacings(kind):
    taken = inspect.signature(kind.__init__).parameters
    return [flag for flag in SPACINGS if not flag or flag in taken]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_any_scheduler_takes_the_place_of_ours(name, zero_snr):
    base, kind = trained(zero_snr=zero_snr), getattr(diffusers, name)
    pipe = pipeline(base)
    if name == "DPMSolverSDEScheduler" and not diffusers.utils.is_torchsde_available():
        with pytest.raises(ImportError, match="requires the torchsde library"):
            kind.from_config(base.config)
        return
    flags = spacings(kind)[: 2 if zero_snr else None]  # some schedulers take half a second to be made
    attempts = [(flag, kind.from_config(base.config, **({flag: True} if flag else {}))) for flag in flags]
    if name not in FOREIGN:
        attempts.append(("", sampling_scheduler(pipe.scheduler, kind)))
    for flag, scheduler in attempts:
        for steps in (20,) if zero_snr else (1, 4, 20):
            found, words = attempt(pipe, scheduler, steps)
            where = (name, flag, steps, found, words)
            if name in FOREIGN:
                assert found is None and "has noise levels of its own" in words, where
            elif flag == "use_beta_sigmas":
                assert "use_beta_sigmas gives" in words or "it would end in noise" in words, where
            elif steps == 1:
                assert found is not None or f"which {name} cannot take" in words, where
            elif steps == 20:
                assert bool(words) == (name in BLURRED - {"LCMScheduler"}), where
                assert found[0] == pytest.approx(MEAN, abs=0.02), where
                assert (0.6 if name in BLURRED else 0.8) < found[1] / DEVIATION < 1.3, where
            elif not words:
                assert found[0] == pytest.approx(MEAN, abs=0.05) and 0.05 < found[1] < 0.45, where


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler", "HeunDiscreteScheduler"])
def test_schedulers_get_schedules_that_they_do_not_know(schedule, name):
    """`from_config` alone fails with what our checkpoints hold: another algorithm, betas whose name is unknown."""
    pipe, kind = pipeline(trained(schedule)), getattr(diffusers, name)
    if name != "HeunDiscreteScheduler":
        with pytest.raises(NotImplementedError, match="sde-dpmsolver"):
            kind.from_config(pipe.scheduler.config)
    if schedule == "sigmoid":
        with pytest.raises(NotImplementedError, match="sigmoid is not implemented"):
            kind.from_config(trained(schedule).config)
    found, words = attempt(pipe, sampling_scheduler(pipe.scheduler, kind), 20)
    assert found[0] == pytest.approx(MEAN, abs=0.02) and 0.8 < found[1] / DEVIATION < 1.2 and not words


def test_what_the_documentation_says_of_plain_diffusers():
    config = pipeline(trained()).scheduler.config
    for name, algorithm in (("DEISMultistepScheduler", "deis"), ("SASolverScheduler", "data_prediction")):
        kind = getattr(diffusers, name)
        assert algorithm in sampling_scheduler.__doc__
        assert kind.from_config(config, algorithm_type=algorithm).config.algorithm_type == algorithm


def test_noise_levels_of_flow_matching_are_refused():
    pipe = pipeline(trained())
    scheduler = sampling_scheduler(pipe.scheduler, diffusers.UniPCMultistepScheduler, use_flow_sigmas=True)
    assert "UniPCMultistepScheduler with use_flow_sigmas has noise levels of its own" in attempt(pipe, scheduler, 4)[1]


def test_checkpoints_with_other_schedulers():
    """hfgen's commands make theirs from the checkpoint's own, of whatever kind."""
    base = trained()
    for name in KINDS:
        if name == "DPMSolverSDEScheduler":
            continue
        kind = getattr(diffusers, name)
        pipe = DDPMPipeline(Oracle(base, [(1.0, MEAN, DEVIATION)]), kind.from_config(base.config))
        if name in FOREIGN:
            with pytest.raises(UserError, match=f"^it: {name} has noise levels of its own"):
                Sampler(pipe, name="it")
            continue
        images = Sampler(pipe, DDPMSamplingConfig(num_inference_steps=10))(range(8), 0).float() / 127.5 - 1
        assert images.mean().item() == pytest.approx(MEAN, abs=0.03)
        assert images.std().item() / DEVIATION == pytest.approx(1, abs=0.05)


def test_the_default_suits_the_steps():
    adapter = DDPMAdapter(DDPMPipeline(Oracle(trained(), [(1.0, MEAN, 0.1)]), trained()))
    used = {steps: adapter.settings(DDPMSamplingConfig(num_inference_steps=steps)) for steps in (None, 20, 10, 9, 1)}
    names = ["sde-dpmsolver++"] * 3 + ["dpmsolver++"] * 2
    assert [settings["sampler"] for settings in used.values()] == names
    assert [settings["num_inference_steps"] for settings in used.values()] == [20, 20, 10, 9, 1]
    assert (
        adapter.settings(DDPMSamplingConfig(sampler="sde-dpmsolver++", num_inference_steps=3))["sampler"][:3] == "sde"
    )
    assert adapter.settings(DDPMSamplingConfig(sampler="ddim"))["num_inference_steps"] == 50
    assert default_sampler() == default_sampler(10) == "sde-dpmsolver++" and default_sampler(9) == "dpmsolver++"


@pytest.mark.parametrize(
    ("sampler", "steps", "words"),
    [
        ("sde-dpmsolver++", 9, "9 steps are too few for fresh noise in each: take 'dpmsolver++', or 10 or more"),
        ("sde-dpmsolver++", 10, ""),
        ("dpmsolver++", 5, ""),
        ("ddim", 20, "20 steps of DDIM (DPMSolverMultistepScheduler of first order) lose fine detail: take 50 or"),
        ("ddim", 50, ""),
        ("ddpm", 50, "50 steps of DDPMScheduler lose fine detail: take 250 or more, or sampling_scheduler"),
        ("ddpm", 250, ""),
        (diffusers.DDIMScheduler, 50, "50 steps of DDIMScheduler lose fine detail: take 100 or more"),
        (diffusers.SASolverScheduler, 5, "5 steps of SASolverScheduler are too few, and give noise: take 10 or more"),
    ],
)
def test_too_few_steps_are_told(sampler, steps, words):
    base = trained()
    said = attempt(pipeline(base), sampling_scheduler(base, sampler), steps)[1]
    assert said.startswith(words) and bool(said) == bool(words)


def test_zero_terminal_snr_is_sampled_from_its_end():
    for schedule in ("linear", "squaredcos_cap_v2"):
        for sampler in ("sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm"):
            scheduler = sampling_scheduler(trained(schedule, zero_snr=True), sampler)
            set_timesteps(scheduler, 20)
            assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == 20
