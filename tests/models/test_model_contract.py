"""What diffusers promises of every model, for each of ours: files, precision, outputs, training.

Sizes, classes and mistakes of one model are tested in the file named after it.
"""

import copy
import importlib
import inspect
import json
import pkgutil

import pytest
import torch
from diffusers import ConfigMixin
from diffusers.training_utils import EMAModel

import hfgen.models
from hfgen import (
    VQVAE,
    CausalTransformer,
    ConvVAE,
    DCGANDiscriminator,
    DCGANGenerator,
    FastGANDiscriminator,
    FastGANGenerator,
    GaussianMixturePrior,
    Glow,
    HierarchicalVAE,
    MLPDiscriminator,
    MLPGenerator,
    PatchDiscriminator,
    PixelCNN,
    ResidualDiscriminator,
    ResidualGenerator,
    ResidualVAE,
    ResNetTranslator,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    TarFlow,
    UNetTranslator,
)

GAN = {"sample_size": 8, "num_class_embeds": 3}
VAE = GAN | {"latent_channels": 4}
LEVELS = GAN | {"likelihood": "categorical", "num_levels": 8}  # whose images are integers
LATENTS, IMAGES, NOISE = (2, 6), (2, 1, 8, 8), (2, 1 + 4)
# by name: the class, its configuration, and the shapes of what goes in and comes out
MODELS = {
    "mlp_generator": (MLPGenerator, GAN | {"latent_dim": 6, "base_channels": 8}, LATENTS, IMAGES),
    "mlp_discriminator": (MLPDiscriminator, GAN | {"base_channels": 8}, IMAGES, (2,)),
    "spectral_norm": (MLPDiscriminator, GAN | {"base_channels": 8, "spectral_norm": True}, IMAGES, (2,)),
    "dcgan_generator": (DCGANGenerator, GAN | {"latent_dim": 6, "base_channels": 8}, LATENTS, IMAGES),
    "dcgan_discriminator": (DCGANDiscriminator, GAN | {"base_channels": 8}, IMAGES, (2,)),
    "fastgan_generator": (
        FastGANGenerator,
        GAN | {"latent_dim": 6, "base_channels": 8, "out_channels": 1},
        LATENTS,
        IMAGES,
    ),
    "fastgan_discriminator": (FastGANDiscriminator, GAN | {"base_channels": 8, "in_channels": 1}, IMAGES, (2,)),
    "residual_generator": (
        ResidualGenerator,
        GAN | {"latent_dim": 6, "out_channels": 1, "block_out_channels": (16, 8), "group_width": 4},
        LATENTS,
        IMAGES,
    ),
    "residual_discriminator": (
        ResidualDiscriminator,
        GAN | {"in_channels": 1, "block_out_channels": (16, 8), "group_width": 4},
        IMAGES,
        (2,),
    ),
    "stylegan2_generator": (
        StyleGAN2Generator,
        GAN | {"latent_dim": 6, "style_dim": 8, "out_channels": 1, "channel_base": 64, "channel_max": 8},
        LATENTS,
        IMAGES,
    ),
    "stylegan2_discriminator": (
        StyleGAN2Discriminator,
        GAN | {"in_channels": 1, "channel_base": 64, "channel_max": 8},
        IMAGES,
        (2,),
    ),
    "conv_vae": (ConvVAE, VAE | {"block_out_channels": (8, 8)}, IMAGES, IMAGES),
    "residual_vae": (ResidualVAE, VAE | {"block_out_channels": (8, 8), "norm_num_groups": 4}, IMAGES, IMAGES),
    "hierarchical_vae": (
        HierarchicalVAE,
        VAE | {"block_out_channels": (8, 8), "layers_per_block": (1, 1)},
        IMAGES,
        IMAGES,
    ),
    "vq_vae": (
        VQVAE,
        VAE | {"num_vq_embeddings": 8, "block_out_channels": (8, 8), "norm_num_groups": 4},
        IMAGES,
        IMAGES,
    ),
    "pixelcnn": (PixelCNN, LEVELS | {"base_channels": 8, "dilations": (1, 2)}, IMAGES, (2, 8, 8, 8)),
    "causal_transformer": (
        CausalTransformer,
        LEVELS | {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2},
        IMAGES,
        (2, 8, 8, 8),
    ),
    "tarflow": (
        TarFlow,
        GAN | {"patch_size": 4, "num_blocks": 2, "layers_per_block": 1, "hidden_size": 16, "attention_head_dim": 8},
        IMAGES,
        IMAGES,
    ),
    "glow": (Glow, GAN | {"num_levels": 2, "num_steps": 2, "hidden_channels": 8}, IMAGES, IMAGES),
    "resnet_translator": (
        ResNetTranslator,
        {"sample_size": 8, "in_channels": 1, "out_channels": 3, "base_channels": 8, "num_blocks": 2},
        IMAGES,
        (2, 3, 8, 8),
    ),
    "unet_translator": (
        UNetTranslator,
        {"sample_size": 8, "in_channels": 1, "out_channels": 1, "base_channels": 8},
        IMAGES,
        IMAGES,
    ),
    "patch_discriminator": (
        PatchDiscriminator,
        {"in_channels": 1, "base_channels": 8, "num_layers": 1},
        IMAGES,
        (2, 2, 2),
    ),
    "mixture": (
        GaussianMixturePrior,
        {"latent_shape": (4, 1, 1), "num_components": 2, "num_class_embeds": 3},
        NOISE,
        (2, 4, 1, 1),
    ),
}
every = pytest.mark.parametrize("name", MODELS)
trained = pytest.mark.parametrize("name", [name for name in MODELS if name != "mixture"])  # which is only fitted


def make(name):
    """A model in evaluation mode, all of whose weights matter."""
    torch.manual_seed(0)
    kind, config, *_ = MODELS[name]
    model = kind(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    _, config, shape, _ = MODELS[name]
    labels = (torch.tensor([0, 2]),) if "num_class_embeds" in config else ()
    if levels := config.get("num_levels"):
        return torch.randint(levels, shape, generator=generator), *labels
    return torch.randn(shape, generator=generator), *labels


@torch.no_grad()
def output(model, name, **kwargs):
    """The first output; random numbers that a model may draw are the same each time."""
    torch.manual_seed(2)
    given, *labels = inputs(name)
    found = model(given.to(model.dtype) if given.is_floating_point() else given, *labels, **kwargs)
    return found[0] if isinstance(found, tuple | dict) else found


def test_every_model_is_here():
    found = set()
    for module in pkgutil.iter_modules(hfgen.models.__path__, "hfgen.models."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, ConfigMixin) and value.__module__ == module.name:
                found.add(value)
    assert found == {kind for kind, *_ in MODELS.values()}


@every
def test_output(name):
    model = make(name)
    first = output(model, name)
    assert first.shape == MODELS[name][3] and first.dtype == torch.float32 and first.isfinite().all()
    assert first.std() > 0  # or equality below would say little
    assert torch.equal(output(model, name), first)
    (*values,) = model(*inputs(name), return_dict=False)
    named = model(*inputs(name))
    assert list(named.keys()) == list(type(named).__dataclass_fields__)
    for value, (key, other) in zip(values, named.items(), strict=True):
        assert torch.equal(value, other) and named[key] is other and getattr(named, key) is other
    assert torch.equal(output(model, name, return_dict=False), first)


@every
def test_what_is_saved_is_loaded(name, tmp_path):
    model = make(name)
    expected, state = output(model, name), model.state_dict()
    ways = [
        ({}, {}),
        ({}, {"low_cpu_mem_usage": False}),
        ({}, {"device_map": "cpu"}),
        ({"variant": "fp16"}, {"variant": "fp16"}),
        ({"max_shard_size": 200}, {}),
        ({"max_shard_size": 200, "variant": "fp16"}, {"variant": "fp16", "low_cpu_mem_usage": False}),
    ]
    for number, (saving, loading) in enumerate(ways):
        folder = tmp_path / str(number)
        model.save_pretrained(folder, **saving)
        indices = list(folder.glob("*.index*.json"))
        files = {path.name for path in folder.glob("*.safetensors")}
        assert bool(indices) == ("max_shard_size" in saving) and len(files) > len(indices)
        if indices:
            assert set(json.loads(indices[0].read_text())["weight_map"].values()) == files
        assert all(("fp16" in file) == ("variant" in saving) for file in files)
        assert len(list(folder.iterdir())) == len(files) + len(indices) + 1  # and config.json
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True, **loading)
        assert not any(info.values()), info
        assert not loaded.training and loaded.device.type == "cpu"
        assert loaded.state_dict().keys() == state.keys()
        assert all(map(torch.equal, loaded.state_dict().values(), state.values()))
        torch.testing.assert_close(output(loaded, name), expected, rtol=1e-6, atol=1e-6)
        # Where tensors lie in a file is where they come to lie in memory, and some kernels round by that.
        assert torch.equal(output(copy.deepcopy(loaded), name), expected)
        if "variant" in saving:
            with pytest.raises(OSError, match="no file named"):
                type(model).from_pretrained(folder)


@every
def test_a_configuration_makes_the_same_model(name, tmp_path):
    model = make(name)
    again = type(model).from_config(model.config)
    model.save_config(tmp_path)
    for config in (again.config, type(model).load_config(tmp_path)):
        given = {key: value for key, value in config.items() if key[0] != "_"}
        assert json.dumps(given) == json.dumps({key: model.config[key] for key in given})
        assert MODELS[name][1].keys() <= given.keys()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    again.load_state_dict(model.state_dict())
    assert torch.equal(output(again.eval(), name), output(model, name))
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every
def test_half_precision(name, dtype, tmp_path):
    model = make(name)
    exact = output(model, name)
    model.save_pretrained(tmp_path)
    kind = type(model)
    loaded = [kind.from_pretrained(tmp_path, **{option: dtype}) for option in ("dtype", "torch_dtype")]
    for half in (*loaded, make(name).to(dtype)):
        values = [value for value in half.state_dict().values() if value.is_floating_point()]
        assert half.dtype == dtype and all(value.dtype == dtype for value in values)
        result = output(half, name)
        assert result.dtype == torch.float32  # what it promises, whatever it computes in
        assert (result - exact).square().mean().sqrt() < 0.05 * max(1, exact.abs().max())
    half.save_pretrained(tmp_path / "half", variant="half")
    again = kind.from_pretrained(tmp_path / "half", variant="half", dtype=dtype)
    assert all(map(torch.equal, again.state_dict().values(), half.state_dict().values()))
    assert kind.from_pretrained(tmp_path / "half", variant="half").dtype == torch.float32  # diffusers' default


@trained
def test_training_reaches_every_parameter(name):
    model = make(name).train()
    torch.manual_seed(2)
    options = {"sample_posterior": True} if "sample_posterior" in inspect.signature(model.forward).parameters else {}
    found = model(*inputs(name), return_dict=False, **options)
    weights = [torch.randn(value.shape) for value in found]  # so that no two gradients cancel
    sum((value * weight).sum() for value, weight in zip(found, weights, strict=True)).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not without
    assert not any(value.requires_grad for value in model.buffers())


@trained
def test_moving_average_of_diffusers(name, tmp_path):
    model = make(name)
    average = EMAModel(model.parameters(), decay=0.5, model_cls=type(model), model_config=model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, type(model))
    assert all(map(torch.equal, loaded.shadow_params, average.shadow_params))


WITHOUT_CHECKPOINTING = {
    "mlp_generator",
    "mlp_discriminator",
    "spectral_norm",
    "mixture",
}  # which keep next to nothing
DROPOUT = {"pixelcnn": {"dropout": 0.3}, "causal_transformer": {"dropout": 0.3}}


@pytest.mark.parametrize("name", sorted(WITHOUT_CHECKPOINTING))
def test_gradient_checkpointing_is_not_claimed(name):
    """A model that cannot do it must say so, instead of doing nothing."""
    model = make(name)
    assert not model._supports_gradient_checkpointing
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model.enable_gradient_checkpointing()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WITHOUT_CHECKPOINTING])
def test_gradient_checkpointing_changes_nothing_but_memory(name):
    """To the last bit: gradients, also of a penalty on gradients, buffers, and the random numbers that come next."""
    kind, config, *_ = MODELS[name]
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = kind(**config, **DROPOUT.get(name, {})).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        given, *labels = inputs(name)
        options = (
            {"sample_posterior": True} if "sample_posterior" in inspect.signature(model.forward).parameters else {}
        )
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            values = model(given.requires_grad_(given.is_floating_point()), *labels, return_dict=False, **options)
        loss = sum((value * torch.linspace(-1, 2, value.numel()).view_as(value)).sum() for value in values)
        if given.requires_grad:
            (slope,) = torch.autograd.grad(loss, given, create_graph=True)
            loss = loss + slope.square().sum()
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        found.append((gradients, dict(model.named_buffers()), {"next": torch.rand(3)}, kept))
    assert found[1][3] < found[0][3], "less is kept"
    assert any(gradient.any() for gradient in found[0][0].values())
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


class Evil:
    """Leaves a file where it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


def test_no_pickles_are_read_or_written(tmp_path):
    """diffusers alone would fall back on them."""
    model = MLPGenerator(sample_size=8, latent_dim=6, base_channels=8)
    with pytest.raises(ValueError, match="written as safetensors"):
        model.save_pretrained(tmp_path / "it", safe_serialization=False)
    assert not (tmp_path / "it").exists()
    model.save_config(tmp_path / "it")
    torch.save({"evil": Evil(tmp_path / "run")}, tmp_path / "it" / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        MLPGenerator.from_pretrained(tmp_path / "it")
    with pytest.raises(ValueError, match="safetensors alone"):
        MLPGenerator.from_pretrained(tmp_path / "it", use_safetensors=False)
    assert not (tmp_path / "run").exists()
