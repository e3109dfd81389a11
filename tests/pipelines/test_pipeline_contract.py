"""What diffusers promises of every pipeline, for each of ours with each of its networks.

What only one family has is tested in the file named after it; folders and their code in test_self_contained.py.
"""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.callbacks import PipelineCallback
from pipelines.test_self_contained import PIPELINES, unet

from hfgen import AutoregressivePipeline, ClassConditionalDDPMPipeline, UserError, VAEPipeline, load_pipeline
from hfgen.pipelines.base import SteppedPipeline

DRAWING = [kind for kind in PIPELINES if "translator" not in kind]  # those that make images of nothing
every = pytest.mark.parametrize("kind", DRAWING)


def make(kind):
    torch.manual_seed(0)
    pipe = PIPELINES[kind]()
    for network in networks(pipe):
        network.eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def networks(pipe):
    return [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]


def images_of(pipe, labels=(0, 2), seeds=(0, 1), output_type="pt", **kwargs):
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(class_labels=list(labels), generator=generators, output_type=output_type, **kwargs)[0]


@every
def test_the_call_takes_the_usual_arguments(kind):
    pipe = make(kind)
    taken = inspect.signature(pipe.__call__).parameters
    wanted = {"batch_size": None, "class_labels": None, "generator": None, "output_type": "pil", "return_dict": True}
    wanted |= {"latents": None}
    if isinstance(pipe, SteppedPipeline):
        wanted |= {"num_inference_steps": None, "guidance_scale": None, "callback_on_step_end": None}
        wanted |= {"callback_on_step_end_tensor_inputs": ("latents",)}
    else:
        assert not {"num_inference_steps", "callback_on_step_end"} & taken.keys()  # one pass has no steps
    assert {name: taken[name].default for name in wanted} == wanted
    for name in pipe.model_cpu_offload_seq.split("->"):
        part = pipe.components[name]
        assert isinstance(part, torch.nn.Module) or (part is None and name in pipe._optional_components)


@every
def test_saved_and_loaded_the_images_are_equal(kind, tmp_path):
    pipe = make(kind)
    expected = images_of(pipe)
    assert expected.std() > 0.01 and not torch.equal(expected[0], expected[1])
    pipe.save_pretrained(tmp_path / "plain")
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    pipe.save_pretrained(tmp_path / "both", variant="fp16")
    pipe.save_pretrained(tmp_path / "both")
    family = type(pipe)
    for folder, options in (
        ("plain", {}),
        ("plain", {"device_map": "cpu"}),
        ("plain", {"low_cpu_mem_usage": False}),
        ("variant", {"variant": "fp16"}),
        ("both", {"variant": "fp16"}),
        ("both", {}),
    ):
        loaded = family.from_pretrained(tmp_path / folder, **options)
        assert torch.equal(images_of(loaded), expected), (folder, options)
        assert {key: value for key, value in loaded.config.items() if key[0] != "_"} == {
            key: value for key, value in pipe.config.items() if key[0] != "_"
        }
        assert not any(network.training for network in networks(loaded))
        for before, after in zip(networks(pipe), networks(loaded), strict=True):
            assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))
    for folder, options in (("variant", {}), ("plain", {"variant": "fp16"})):
        with pytest.raises((OSError, ValueError), match="no file named|variant=fp16"):
            family.from_pretrained(tmp_path / folder, **options)
    index = family.load_config(tmp_path / "plain")
    assert {name for name, value in index.items() if isinstance(value, list)} == pipe.components.keys()
    components = {name: component for name, component in pipe.components.items() if component is not None}
    given = family.from_pretrained(tmp_path / "plain", **components)
    assert all(getattr(given, name) is component for name, component in components.items())


@every
def test_weights_are_written_as_safetensors_alone(kind, tmp_path):
    with pytest.raises(UserError, match="safe_serialization is False"):
        make(kind).save_pretrained(tmp_path / "it", safe_serialization=False)
    assert not (tmp_path / "it").exists()


@every
def test_components_make_another_pipeline(kind):
    pipe = make(kind)
    names = {name for name in inspect.signature(pipe.__init__).parameters if name in pipe.components}
    assert names == pipe.components.keys()
    for other in (type(pipe)(**pipe.components), type(pipe).from_pipe(pipe)):
        assert all(getattr(other, name) is component for name, component in pipe.components.items())
        assert other.class_names == pipe.class_names == ["0", "1", "2"]
        assert torch.equal(images_of(other), images_of(pipe))


@every
def test_names_and_shares_go_along_with_components(kind):
    pipe = make(kind)
    names, shares = {0: "cat", 1: "dog", 2: "eel"}, {0: 0.5, 1: 0.25, 2: 0.25}
    named = type(pipe)(**pipe.components, id2label=names, class_shares=shares)
    assert type(pipe).from_pipe(named).config == named.config
    assert type(pipe).from_pipe(named).class_names == ["cat", "dog", "eel"]
    again = type(pipe).from_pipe(named, class_shares=None)
    assert again.config.class_shares is None and again.class_names == ["cat", "dog", "eel"]


@every
def test_a_batch_is_its_images(kind):
    pipe = make(kind)
    labels, seeds = (0, 2, 1, 1), (0, 1, 2, 1)
    together = images_of(pipe, labels, seeds)
    assert together.shape == (4, *together.shape[1:]) and together.min() >= 0 and together.max() <= 1
    for row in range(4):
        alone = images_of(pipe, labels[row : row + 1], seeds[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    one = pipe(2, class_labels=[0, 2], generator=torch.Generator().manual_seed(5), output_type="pt").images
    same = pipe(2, class_labels=[0, 2], generator=torch.Generator().manual_seed(5), output_type="pt").images
    assert torch.equal(one, same) and not torch.allclose(one, together[:2], atol=1e-3)
    assert torch.equal(together, images_of(pipe, labels, seeds))
    assert pipe(class_labels=1, generator=torch.Generator(), output_type="pt").images.shape == together[:1].shape


@every
def test_output_types_agree(kind):
    pipe = make(kind)
    tensors, arrays, pictures = (images_of(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensors.dtype == torch.float32 and arrays.dtype == np.float32
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    for picture, array in zip(pictures, arrays, strict=True):
        assert np.array_equal(np.asarray(picture).reshape(array.shape), (array * 255).round().astype(np.uint8))
    result = images_of(pipe, return_dict=False), pipe(class_labels=0, return_dict=False)
    assert torch.equal(result[0], tensors) and type(result[1]) is tuple
    named = pipe(class_labels=0)
    assert named.images is named["images"] is named[0] and len(named.to_tuple()) == 1
    with pytest.raises(ValueError, match="output_type is 'jpg'"):
        pipe(output_type="jpg")


@every
def test_latents_go_out_and_come_in(kind):
    pipe = make(kind)
    images, latents = (images_of(pipe, output_type=output_type) for output_type in ("pt", "latent"))
    assert latents.dtype == torch.float32 and len(latents) == 2
    if isinstance(pipe, SteppedPipeline):  # the latents of the end go out, those of the beginning come in
        assert torch.equal((latents / 2 + 0.5).clamp(0, 1), images)
        noise = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # which draws nothing itself
        assert torch.equal(images_of(pipe, latents=noise), images_of(pipe))
    else:
        space = {"latents_space": "w"} if kind == "stylegan2" else {}
        assert torch.equal(images_of(pipe, latents=latents, **space), images)
    given = torch.zeros(3, *latents.shape[1:])
    with pytest.raises(ValueError, match=r"latents has shape \(3, .*, but must have \(2, "):
        pipe(2, class_labels=0, latents=given)
    assert pipe(class_labels=0, latents=given, output_type="pt").images.shape[0] == 3
    for method in ("interpolate", "reconstruct"):
        if hasattr(pipe, method):
            with pytest.raises(ValueError, match="output_type is 'latent', but must be one of pil, np, pt"):
                getattr(pipe, method)(images[:1], images[1:], output_type="latent")


@every
def test_mistakes_are_told_alike(kind):
    pipe = make(kind)
    mistakes = [
        ({"output_type": "jpg"}, "output_type is 'jpg', but must be one of pil, np, pt, latent"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"class_labels": [0, 1], "batch_size": 3}, "class_labels has 2 entries for batch_size 3: give one per image"),
        ({"class_labels": 3}, "class_labels has 3: use a number below 3 or one of"),
        ({"class_labels": [0], "generator": [torch.Generator()] * 2}, "generator has 2 entries for batch_size 1"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(ValueError, match=message):
            pipe(**{"class_labels": 0} | arguments)
    with pytest.raises(ValueError, match=r"id2label has the keys \['0', '7'\], but the model has 3 classes"):
        type(pipe)(**pipe.components, id2label={0: "a", 7: "b"})
    assert pipe.image_shape[1:] == (8, 8)


WHOLE = "but must be a whole number of at least 1"
BAD = [
    ("batch_size", 2.5, f"batch_size is 2.5, {WHOLE}"),
    ("batch_size", "2", f"batch_size is '2', {WHOLE}"),
    ("batch_size", True, f"batch_size is True, {WHOLE}"),
    (
        "generator",
        5,
        r"generator: 5 is no torch.Generator. Give one, such as torch.Generator\(\).manual_seed\(0\), or",
    ),
    ("generator", [None], "generator: None is no torch.Generator"),
    ("latents", "x", r"latents is a str, but must be a tensor of shape \(1, "),
    ("class_labels", True, "class_labels has True: use a number below 3 or one of"),
    ("class_labels", torch.tensor([True]), "class_labels has True"),
    ("class_labels", np.array([True]), "class_labels has True"),
    ("class_labels", [np.True_], "class_labels has .*True"),
]
STEPPED = [
    ("guidance_scale", float("nan"), "guidance_scale is nan, but must be a finite number of at least 0"),
    ("guidance_scale", float("inf"), "guidance_scale is inf, but must be a finite number of at least 0"),
    ("guidance_scale", -1, "guidance_scale is -1, but must be at least 0"),
    ("guidance_scale", "2", "guidance_scale is '2', but must be a finite number"),
    ("num_inference_steps", 2.5, f"num_inference_steps is 2.5, {WHOLE}"),
    ("num_inference_steps", 0, "num_inference_steps is 0, but must be at least 1"),
    ("num_inference_steps", 5, "num_inference_steps is 5, but .* trained with 4 timesteps: use 4 or fewer"),
    (
        "callback_on_step_end",
        3,
        r"callback_on_step_end is 3, but must be a function: callback_on_step_end\(pipe, step,",
    ),
    ("callback_on_step_end", lambda *given: 7, "callback_on_step_end returned 7, but must return callback_kwargs, or"),
    ("callback_on_step_end", lambda *given: {"latents": "x"}, "returned latents that are no tensor of shape"),
    ("callback_on_step_end_tensor_inputs", None, "callback_on_step_end_tensor_inputs is None, but must be a list"),
]
OWN = {"temperature": "temperature is {!r}, but must be a finite number of at least 0"}
OWN |= {"truncation": "truncation is {!r}, but must be a finite number"}


@every
def test_values_that_cannot_be_are_refused_alike(kind):
    pipe = make(kind)
    taken = inspect.signature(pipe.__call__).parameters
    cases = BAD + STEPPED * isinstance(pipe, SteppedPipeline)
    cases += [(name, value, OWN[name].format(value)) for name in OWN if name in taken for value in (True, "1")]
    for name, value, message in cases:
        with pytest.raises(ValueError, match=message):
            pipe(**{"class_labels": 0, name: value})
    latents = images_of(pipe, output_type="latent")
    with pytest.raises(ValueError, match="latents has NaN or infinite values"):
        pipe(class_labels=0, latents=latents * float("nan"))
    assert len(pipe(np.int64(2), np.array([0, 2]), output_type="pt").images) == 2  # numbers of numpy are numbers


def test_a_callback_may_return_nothing():
    pipe = make("unet")
    assert torch.equal(images_of(pipe, callback_on_step_end=lambda *given: None), images_of(pipe))


@every
def test_a_call_leaves_the_networks_as_they_were(kind):
    pipe = make(kind)
    expected = images_of(pipe)
    pipe.network.train()
    assert torch.equal(images_of(pipe), expected)
    assert all(module.training for module in pipe.network.modules())


@every
def test_half_precision(kind, tmp_path):
    pipe = make(kind)
    expected = images_of(pipe)
    pipe.save_pretrained(tmp_path)
    first = next(name for name, value in pipe.components.items() if isinstance(value, torch.nn.Module))
    ways = [make(kind).to(torch.bfloat16), make(kind).to("cpu", torch.bfloat16)]
    for dtype in (torch.bfloat16, {first: torch.bfloat16, "default": torch.float32}):
        ways.append(type(pipe).from_pretrained(tmp_path, dtype=dtype))
    for number, half in enumerate(ways):
        types = [network.dtype for network in networks(half)]
        assert types == [torch.bfloat16, torch.float32 if number == 3 else torch.bfloat16][: len(types)]
        images = images_of(half)
        assert images.dtype == torch.float32
        assert (images - expected).abs().mean() < 0.02
        # Codes that are drawn from nearly the same shares are the same, for a decoder in float32.
        assert (kind == "codes" and number == 3) or not torch.equal(images, expected)
        assert images_of(half, output_type="np").dtype == np.float32
        assert len(images_of(half, output_type="pil")) == 2
    assert torch.equal(images_of(pipe.to(torch.float64).to(torch.float32)), expected)


def test_optional_components(tmp_path):
    pipe = make("conv_vae")
    assert VAEPipeline._optional_components == ["prior"]
    pipe.save_pretrained(tmp_path / "with")
    without = VAEPipeline.from_pretrained(tmp_path / "with", prior=None)
    assert without.prior is None
    without.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "prior").exists()
    for folder in ("without", "with"):
        loaded = load_pipeline(str(tmp_path / folder), prior=None)
        assert loaded.prior is None and loaded.components.keys() == {"model", "prior"}
        assert torch.equal(images_of(loaded), images_of(without))


@every
def test_progress_is_shown_unless_it_is_turned_off(kind, capfd):
    pipe = make(kind)
    pipe(class_labels=0)
    assert not capfd.readouterr().err
    pipe.set_progress_bar_config(desc="denoising")
    pipe(class_labels=0)
    assert ("denoising" in capfd.readouterr().err) == isinstance(pipe, SteppedPipeline | AutoregressivePipeline)


# Callbacks and guidance, which only pipelines with steps have


def guided(**config):
    """A pipeline with a class for "no class", which guidance needs."""
    torch.manual_seed(0)
    network = unet(num_class_embeds=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = {0: "cat", 1: "dog"}
    pipe = ClassConditionalDDPMPipeline(network, DDPMScheduler(num_train_timesteps=4), names, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided_images(pipe, **kwargs):
    return images_of(pipe, labels=(0, 1), **kwargs)


def test_guidance_can_be_seen_and_changed_by_callbacks():
    pipe, seen = guided(guidance_scale=1.5), []
    assert pipe.guidance_scale == 1.5 and not pipe.do_classifier_free_guidance and pipe.num_timesteps == 0
    plain, strong = (guided_images(pipe, guidance_scale=scale) for scale in (1.0, 3.0))
    assert pipe.guidance_scale == 3 and pipe.do_classifier_free_guidance and pipe.num_timesteps == 4

    def raise_it(given, step, timestep, kwargs):
        seen.append((given.guidance_scale, given.do_classifier_free_guidance, given.num_timesteps))
        given._guidance_scale += 1.0
        return kwargs

    raised = guided_images(pipe, guidance_scale=0.0, callback_on_step_end=raise_it)
    assert seen == [(0, True, 4), (1, False, 4), (2, True, 4), (3, True, 4)]
    assert pipe.guidance_scale == 0 + pipe.num_timesteps
    assert not torch.equal(raised, plain) and not torch.equal(raised, strong)

    def set_it(given, step, timestep, kwargs):
        given._guidance_scale = 3.0
        return kwargs

    later = guided_images(pipe, guidance_scale=1.0, callback_on_step_end=set_it)  # from the second step on
    assert not torch.equal(later, plain) and not torch.equal(later, strong)
    assert torch.equal(guided_images(pipe, guidance_scale=1.0), plain) and not pipe.do_classifier_free_guidance
    assert torch.equal(guided_images(pipe), guided_images(pipe, guidance_scale=1.5)) and pipe.guidance_scale == 1.5
    images_of(pipe, labels=(0, 1))
    pipe(2, generator=torch.Generator())  # of no class: there is nothing to follow
    assert pipe.guidance_scale == 1.5 and not pipe.do_classifier_free_guidance


def test_guidance_without_no_class_is_refused_whoever_asks():
    pipe = make("unet")
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but this network was trained without label dropout"):
        images_of(pipe, guidance_scale=2.0)

    def guide(given, step, timestep, kwargs):
        given._guidance_scale = 2.5
        return kwargs

    with pytest.raises(ValueError, match="guidance_scale is 2.5, but this network was trained without label dropout"):
        images_of(pipe, callback_on_step_end=guide)


def test_callbacks_see_every_step():
    pipe, seen = make("unet"), []
    expected = images_of(pipe)

    def look(given, step, timestep, kwargs):
        assert given is pipe and list(kwargs) == ["latents"]
        assert kwargs["latents"].shape == (2, 1, 8, 8) and kwargs["latents"].dtype == torch.float32
        seen.append((step, int(timestep)))
        return kwargs

    assert torch.equal(images_of(pipe, callback_on_step_end=look), expected)
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist())) and len(seen) == 4
    images = images_of(
        pipe, callback_on_step_end=lambda *given: given[3], callback_on_step_end_tensor_inputs=[], guidance_scale=1
    )
    assert torch.equal(images, expected)


@pytest.mark.parametrize("labels", [[0, 2], [1]])
def test_callbacks_change_the_images(labels):
    pipe = make("unet")
    seeds = range(len(labels))

    def blacken(pipe, step, timestep, kwargs):
        return {"latents": torch.full_like(kwargs["latents"], -1.0)} if step == 3 else {}

    assert not images_of(pipe, labels, seeds, callback_on_step_end=blacken).any()

    def shift(pipe, step, timestep, kwargs):
        kwargs["latents"] = kwargs["latents"] + (step == 0)
        return kwargs

    assert not torch.equal(images_of(pipe, labels, seeds, callback_on_step_end=shift), images_of(pipe, labels, seeds))


def test_callbacks_stop_the_sampling():
    pipe, seen = make("unet"), []
    expected = images_of(pipe)

    def stop(pipe, step, timestep, kwargs):
        seen.append(step)
        pipe._interrupt = step == 1
        return {"latents": torch.ones_like(kwargs["latents"])} if pipe.interrupt else kwargs

    assert (images_of(pipe, callback_on_step_end=stop) == 1).all()  # what it gave with its last step counts
    assert seen == [0, 1] and pipe.interrupt
    assert torch.equal(images_of(pipe), expected) and not pipe.interrupt


def test_callbacks_of_diffusers_say_what_they_need():
    class Latents(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            return {"latents": -torch.ones_like(callback_kwargs["latents"])}

    class Prompts(Latents):
        tensor_inputs = ["prompt_embeds"]

    pipe = make("unet")
    assert not images_of(pipe, callback_on_step_end=Latents()).any()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs is .*'prompt_embeds'.*'latents'"):
        images_of(pipe, callback_on_step_end=Prompts())
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs is .*'noise'"):
        images_of(pipe, callback_on_step_end_tensor_inputs=["latents", "noise"])
