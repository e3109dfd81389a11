"""Checkpoints that carry their code: the same images without hfgen, no code run with it, nothing evil read."""

import ast
import filecmp
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, ModelMixin
from helpers import python

from hfgen import (
    VQVAE,
    AutoregressivePipeline,
    CausalTransformer,
    ClassConditionalDDPMPipeline,
    ConvVAE,
    DCGANGenerator,
    FastGANGenerator,
    FlowPipeline,
    GANPipeline,
    GaussianMixturePrior,
    Glow,
    HierarchicalVAE,
    ImageTranslationPipeline,
    MLPGenerator,
    PixelCNN,
    ResidualGenerator,
    ResidualVAE,
    ResNetTranslator,
    StyleGAN2Generator,
    TarFlow,
    UNetTranslator,
    UserError,
    VAEPipeline,
    load_pipeline,
    sampling_scheduler,
)
from hfgen.models.unet2d import build_unet

SIZE = {"sample_size": 8}
SMALL = SIZE | {"num_class_embeds": 3}
BLOCKS = {"block_out_channels": (8, 8)}
TRANSFORMER = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}


def vae(kind, **config):
    model = kind(**SMALL, **config)
    return VAEPipeline(model, GaussianMixturePrior(latent_shape=model.latent_shape, num_components=2))


def unet(**config):
    return build_unet(8, 1, (8, 8), norm_num_groups=4, attention_head_dim=8, **config)


PIPELINES = {
    "dcgan": lambda: GANPipeline(DCGANGenerator(**SMALL, latent_dim=8, base_channels=8)),
    "mlp_gan": lambda: GANPipeline(MLPGenerator(**SMALL, latent_dim=8)),
    "fastgan": lambda: GANPipeline(FastGANGenerator(**SMALL, latent_dim=8, base_channels=8, out_channels=1)),
    "residual_gan": lambda: GANPipeline(ResidualGenerator(**SMALL, latent_dim=8, **BLOCKS)),
    "stylegan2": lambda: GANPipeline(
        StyleGAN2Generator(**SMALL, latent_dim=8, style_dim=8, channel_base=64, channel_max=8)
    ),
    "conv_vae": lambda: vae(ConvVAE, latent_channels=4, **BLOCKS),
    "residual_vae": lambda: vae(ResidualVAE, latent_channels=4, **BLOCKS, norm_num_groups=4),
    "hierarchical_vae": lambda: vae(
        HierarchicalVAE, latent_channels=2, block_out_channels=(8,), layers_per_block=(1,)
    ),
    "vq_vae": lambda: vae(VQVAE, latent_channels=4, num_vq_embeddings=16, **BLOCKS, norm_num_groups=4),
    "pixelcnn": lambda: AutoregressivePipeline(PixelCNN(**SMALL, base_channels=8, dilations=(1, 2), num_mixtures=2)),
    "transformer": lambda: AutoregressivePipeline(CausalTransformer(**SMALL, **TRANSFORMER, num_mixtures=2)),
    "codes": lambda: AutoregressivePipeline(
        CausalTransformer(
            sample_size=2,
            num_class_embeds=3,
            **TRANSFORMER,
            likelihood="categorical",
            num_levels=16,
            embed_levels=True,
        ),
        VQVAE(sample_size=8, latent_channels=4, num_vq_embeddings=16, **BLOCKS, norm_num_groups=4),
    ),
    "tarflow": lambda: FlowPipeline(
        TarFlow(**SMALL, patch_size=4, num_blocks=2, layers_per_block=1, hidden_size=16, attention_head_dim=8),
        noise_std=0.25,
    ),
    "glow": lambda: FlowPipeline(Glow(**SMALL, num_steps=1, hidden_channels=8)),
    "resnet_translator": lambda: ImageTranslationPipeline(
        ResNetTranslator(**SIZE, in_channels=1, out_channels=3, base_channels=8, num_blocks=1),
        ResNetTranslator(**SIZE, in_channels=3, out_channels=1, base_channels=8, num_blocks=1),
    ),
    "unet_translator": lambda: ImageTranslationPipeline(
        UNetTranslator(**SIZE, in_channels=1, out_channels=1, base_channels=8)
    ),
    "unet": lambda: ClassConditionalDDPMPipeline(unet(num_class_embeds=3), DDPMScheduler(num_train_timesteps=4)),
}
every = pytest.mark.parametrize("kind", PIPELINES)


def images_of(pipe):
    pipe.set_progress_bar_config(disable=True)
    if "a2b" in pipe.components:
        return pipe(torch.linspace(0, 1, 128).view(2, 1, 8, 8) ** 2, output_type="np").images
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return pipe(class_labels=[0, 2], generator=generators, output_type="np").images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of each kind, with weights that make no two images alike; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    for name, make in PIPELINES.items():
        pipe = make()
        with torch.no_grad():
            for component in pipe.components.values():
                for parameter in component.parameters() if isinstance(component, torch.nn.Module) else ():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        pipe.save_pretrained(folder / name)
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=4)).save_pretrained(folder / "stock")
    base = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    classes = ClassConditionalDDPMPipeline(load_pipeline(str(folder / "unet")).unet, sampling_scheduler(base))
    classes.save_pretrained(folder / "classes")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    def make(kind):
        return Path(shutil.copytree(saved / kind, tmp_path / kind))

    return make


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def code_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


ENTRIES = {
    GANPipeline: {"pipeline_hfgen_gan", "model/modeling_hfgen_{kind}", "model/modeling_hfgen_auto"},
    VAEPipeline: {
        "pipeline_hfgen_vae",
        "model/modeling_hfgen_{kind}",
        "model/modeling_hfgen_auto",
        "prior/modeling_hfgen_gaussian_mixture",
        "prior/modeling_hfgen_auto",
    },
    FlowPipeline: {"pipeline_hfgen_flow", "model/modeling_hfgen_{kind}", "model/modeling_hfgen_auto"},
    ClassConditionalDDPMPipeline: {"pipeline_hfgen_ddpm_sampling"},
    ImageTranslationPipeline: {
        "pipeline_hfgen_translation",
        "a2b/modeling_hfgen_{kind}",
        "a2b/modeling_hfgen_auto",
        "b2a/modeling_hfgen_resnet_translator",
        "b2a/modeling_hfgen_auto",
    },
    AutoregressivePipeline: {
        "pipeline_hfgen_autoregressive",
        "model/modeling_hfgen_{kind}",
        "model/modeling_hfgen_auto",
        "vae/modeling_hfgen_vq_vae",
        "vae/modeling_hfgen_auto",
    },
}


@every
def test_the_code_is_in_the_folder(saved, kind):
    family, folder = type(load_pipeline(str(saved / kind))), saved / kind
    names = [name.removesuffix(".py") for name in code_in(folder)]
    parts = [part.name for part in folder.iterdir() if part.is_dir()]  # some components are optional
    kind = {"transformer": "causal_transformer", "codes": "causal_transformer"}.get(kind, kind)  # of the network
    entries = {
        name.format(kind=kind) for name in ENTRIES[family] if "/" not in name or name.partition("/")[0] in parts
    }
    assert {name for name in names if "__" not in name} == entries
    # Each entry has its code beside model_index.json, and there is what that imports; for `AutoModel` in its folder.
    code = {name.partition("__")[0] for name in names if "__" in name}
    assert code >= {name.rpartition("/")[2] for name in entries if "auto" not in name} | {"pipeline_hfgen_portable"}
    assert code >= {name for name in entries if name.partition("/")[0] in parts and "auto" not in name}
    for name in code_in(folder):
        text = (folder / name).read_text()
        if "__" in name:
            assert name == f"{name.partition('__')[0]}__{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
        place = (folder / name).parent if name.endswith("_auto.py") or "__" in name else folder
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                for file in [node.module] if node.module else [alias.name for alias in node.names]:
                    assert (place / f"{file}.py").exists(), f"{name} imports {file}"
                continue
            elif isinstance(node, ast.ImportFrom):
                imported = {node.module.split(".")[0]}
            else:
                continue
            allowed = {"torch", "numpy", "diffusers", "PIL"} | sys.stdlib_module_names
            assert imported <= allowed, f"{name} imports {imported}"


WITHOUT_HFGEN = """
import copy
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nowhere())
import numpy as np
import torch
from diffusers import AutoModel, DiffusionPipeline

saved, written, *kinds = sys.argv[1:]
import diffusers

def images_of(pipe, steps=None):
    pipe.set_progress_bar_config(disable=True)
    if "a2b" in pipe.components:
        return pipe(torch.linspace(0, 1, 128).view(2, 1, 8, 8) ** 2, output_type="np").images
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    steps = {"num_inference_steps": steps} if steps else {}
    return pipe(class_labels=[0, 2], generator=generators, output_type="np", **steps).images

first = {}
for kind in kinds:
    try:
        DiffusionPipeline.from_pretrained(f"{saved}/{kind}")
        raise SystemExit(f"{kind} was loaded without the flag")
    except ValueError as error:
        assert "Pass `trust_remote_code=True`" in str(error), error
    assert not any("hfgen" in name for name in sys.modules if not first), sys.modules
    first[kind] = DiffusionPipeline.from_pretrained(f"{saved}/{kind}", trust_remote_code=True)
    np.save(f"{written}/{kind}.npy", images_of(first[kind]))
for kind in kinds:  # again: the same files are run a second time, and what they made before still works
    options = {"trust_remote_code": True, "device_map": "cpu", "dtype": torch.float32}
    again = DiffusionPipeline.from_pretrained(f"{saved}/{kind}", **options)
    assert np.array_equal(images_of(again), images_of(first[kind])), kind
half = DiffusionPipeline.from_pretrained(f"{saved}/dcgan", trust_remote_code=True, dtype=torch.bfloat16)
assert half.model.dtype == torch.bfloat16 and images_of(half).dtype == np.float32
swapped = DiffusionPipeline.from_pretrained(f"{saved}/classes", trust_remote_code=True)
stored = swapped.scheduler
np.save(f"{written}/classes.npy", images_of(swapped, 4))
for name in sorted(kind.__name__ for kind in diffusers.DDPMScheduler().compatibles):
    try:
        options = {"algorithm_type": "deis"} if name.startswith("DEIS") else {}
        swapped.scheduler = getattr(diffusers, name).from_config(stored.config, **options)
        np.save(f"{written}/{name}.npy", images_of(swapped, 4))
    except (ImportError, ValueError) as error:
        print(name, " ".join(str(error).split()))
for kind in kinds:  # saved by diffusers alone, and loaded by it
    first[kind].save_pretrained(f"{written}/{kind}")
    again = DiffusionPipeline.from_pretrained(f"{written}/{kind}", trust_remote_code=True)
    assert np.array_equal(images_of(again), images_of(first[kind])), kind
    parts = {name: part for name, part in first[kind].components.items() if isinstance(part, torch.nn.Module)}
    for name in first[kind]._optional_components:  # which diffusers itself loads, whatever it is given
        parts.pop(name, None)
    given = DiffusionPipeline.from_pretrained(f"{saved}/{kind}", trust_remote_code=True, **parts)
    assert all(getattr(given, name) is part for name, part in parts.items())
for kind in ("dcgan", "tarflow"):  # trained on by others, who have little memory
    network = copy.deepcopy(first[kind].model)
    found = []
    for checkpointing in (False, True):
        network.enable_gradient_checkpointing() if checkpointing else network.disable_gradient_checkpointing()
        network.zero_grad()
        given = torch.linspace(-1, 1, 16).view(2, 8) if kind == "dcgan" else torch.zeros(2, 1, 8, 8)
        network.train()(given, torch.tensor([0, 2]), return_dict=False)[0].square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])
    assert network.is_gradient_checkpointing and all(map(torch.equal, *found)), kind
print("networks alone", file=sys.stderr)
for kind in kinds:
    for name, part in first[kind].components.items():
        if isinstance(part, torch.nn.Module):  # one of diffusers has no code to be trusted
            trust = {"trust_remote_code": not type(part).__module__.startswith("diffusers.")}
            whole, alone = f"{written}/{kind}", f"{written}/{kind}/{name}"
            for network in (AutoModel.from_pretrained(whole, subfolder=name, **trust),
                            AutoModel.from_pretrained(alone, **trust)):
                assert type(network) is type(part), (kind, name, type(network))
                assert all(torch.equal(value, part.state_dict()[key]) for key, value in network.state_dict().items())
"""

# A process of its own for each network, that no pipeline has told where the code is.
ALONE = """
import sys
sys.modules["hfgen"] = None
from diffusers import AutoModel
for place, subfolder in ((sys.argv[1], "prior"), (sys.argv[1] + "/model", None)):
    print(type(AutoModel.from_pretrained(place, subfolder=subfolder, trust_remote_code=True)).__name__)
"""


def test_plain_diffusers_makes_the_same_images(saved, tmp_path):
    command = [sys.executable, "-I", "-W", "ignore", "-c", WITHOUT_HFGEN, saved, tmp_path, *PIPELINES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "auto_map" not in result.stderr.partition("networks alone")[0]  # no warning of what is for `AutoModel`
    networks = python(ALONE, saved / "vq_vae", env={"HF_HOME": str(tmp_path / "home")})
    assert networks.split() == ["GaussianMixturePrior", "VQVAE"]
    for kind in PIPELINES:
        expected = images_of(load_pipeline(str(saved / kind)))
        assert expected.std() > 0.01 and not np.array_equal(expected[0], expected[1])
        assert np.array_equal(np.load(tmp_path / f"{kind}.npy"), expected), kind
        # What diffusers saved without hfgen is what hfgen had saved, file by file, and hfgen loads it.
        assert tree(tmp_path / kind) == tree(saved / kind)
        assert np.array_equal(images_of(load_pipeline(str(tmp_path / kind))), expected), kind
    # Schedulers of diffusers in place of the one that was stored.
    refused = {line.split()[0] for line in result.stdout.splitlines()}
    assert refused <= {"DPMSolverSDEScheduler", "EDMEulerScheduler"} and "has noise levels of its own" in result.stdout
    names = {kind.__name__ for kind in DDPMScheduler().compatibles} - refused | {"classes"}
    found = {name: np.load(tmp_path / f"{name}.npy") for name in names}
    assert len(found) >= 14 and all(np.isfinite(images).all() and images.std() > 0.01 for images in found.values())
    assert np.array_equal(found["classes"], found["DPMSolverMultistepScheduler"])
    assert len({images.tobytes() for images in found.values()}) == len(found) - 1


@every
def test_with_hfgen_no_code_of_the_folder_is_run(copy, saved, kind):
    folder = copy(kind)
    assert code_in(folder)
    for name in code_in(folder):
        (folder / name).write_text("raise SystemExit('run')\n")
    expected = images_of(load_pipeline(str(saved / kind)))
    family = type(load_pipeline(str(saved / kind)))
    for options in ({}, {"trust_remote_code": True}):
        assert type(family.from_pretrained(folder, **options)) is family
        assert np.array_equal(images_of(load_pipeline(str(folder), **options)), expected)
    with pytest.raises(SystemExit, match="run"):  # the code does what is feared
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


@every
def test_folders_without_code_load_as_before(copy, saved, kind):
    folder = copy(kind)
    for name in code_in(folder):
        (folder / name).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = index["_class_name"][1]
    for value in index.values():
        if isinstance(value, list) and value[0]:
            value[0] = value[0].replace("modeling_hfgen_", "hfgen.models.")
    (folder / "model_index.json").write_text(json.dumps(index))
    expected = images_of(load_pipeline(str(saved / kind)))
    assert np.array_equal(images_of(load_pipeline(str(folder))), expected)


@every
def test_what_is_loaded_and_saved_again_is_the_same(saved, kind, tmp_path):
    load_pipeline(str(saved / kind)).save_pretrained(tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(saved / kind) for path in (saved / kind).rglob("*") if path.is_file())
    same, other, broken = filecmp.cmpfiles(tmp_path, saved / kind, files, shallow=False)
    assert not other and not broken


@pytest.mark.parametrize("kind", ["stylegan2", "conv_vae", "unet"])
def test_variants_shards_precision_and_devices(saved, kind, tmp_path):
    pipe = load_pipeline(str(saved / kind))
    expected = images_of(pipe)
    family = type(pipe)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert list(tmp_path.rglob("*.index.json"))
    assert np.array_equal(images_of(family.from_pretrained(tmp_path / "shards")), expected)
    assert np.array_equal(images_of(family.from_pretrained(saved / kind, device_map="cpu")), expected)
    for option in ("dtype", "torch_dtype"):
        half = family.from_pretrained(saved / kind, **{option: torch.float16})
        network = half.unet if kind == "unet" else half.model
        assert network.dtype == torch.float16
    half.save_pretrained(tmp_path / "variant", variant="fp16")
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        family.from_pretrained(tmp_path / "variant")
    loaded = family.from_pretrained(tmp_path / "variant", variant="fp16")
    np.testing.assert_allclose(images_of(loaded), expected, atol=0.02)


def test_code_of_other_versions_goes(copy, saved, tmp_path):
    """What an earlier version, or another network, left in a folder; no file of the user's."""
    folder = copy("conv_vae")
    stale = [folder / f"{name}__0123456789ab.py" for name in ("pipeline_hfgen_vae", "hfgen_runtime_files", "model/x")]
    stale[2] = folder / "model" / "modeling_hfgen_old__0123456789ab.py"
    kept = [folder / name for name in ("mine.py", "mine__0123456789ab.py", "model/notes.py")]
    for file in (*stale, *kept):
        file.write_text("")
    load_pipeline(str(saved / "residual_vae")).save_pretrained(folder)
    assert not any(file.exists() for file in stale) and all(file.exists() for file in kept)
    for file in kept:
        file.unlink()
    assert code_in(folder) == code_in(saved / "residual_vae")
    GANPipeline(DCGANGenerator(**SMALL, latent_dim=8, base_channels=8)).save_pretrained(folder)
    top = [name for name in code_in(folder) if "/" not in name]
    assert top == [name for name in code_in(saved / "dcgan") if "/" not in name]


def test_a_network_loads_alone(saved):
    network = DCGANGenerator.from_pretrained(saved / "dcgan", subfolder="model")
    pipe = GANPipeline(network)
    assert np.array_equal(images_of(pipe), images_of(load_pipeline(str(saved / "dcgan"))))


def test_a_pipeline_may_have_a_network_of_the_users(saved, tmp_path):
    """It does not travel: the folder loads where its module was imported."""
    GANPipeline(Mine(**SMALL, latent_dim=8, base_channels=8)).save_pretrained(tmp_path)
    assert all("/" not in name and "dcgan" not in name for name in code_in(tmp_path))
    assert type(GANPipeline.from_pretrained(tmp_path).model) is Mine


class Mine(DCGANGenerator, ModelMixin):  # diffusers looks for the name ModelMixin in this file
    pass


def test_from_the_cache_without_a_network(saved, tmp_path):
    """What one download leaves, with two revisions; HF_HUB_OFFLINE is set for all tests."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    repository = tmp_path / "models--ada--digits"
    (repository / "refs").mkdir(parents=True)
    for revision, kind, commit in (("main", "dcgan", "a" * 40), ("v1", "mlp_gan", "b" * 40)):
        (repository / "refs" / revision).write_text(commit)
        # The code stays where it is.
        shutil.copytree(saved / kind, repository / "snapshots" / commit, ignore=shutil.ignore_patterns("*.py"))
    for load in (load_pipeline, GANPipeline.from_pretrained):
        for options, kind in (({}, "dcgan"), ({"revision": "v1"}, "mlp_gan"), ({"revision": "b" * 40}, "mlp_gan")):
            pipe = load("ada/digits", cache_dir=tmp_path, **options)
            assert np.array_equal(images_of(pipe), images_of(load_pipeline(str(saved / kind))))
        with pytest.raises((UserError, OSError), match="ada/digits|Cannot find an appropriate cached snapshot"):
            load("ada/digits", cache_dir=tmp_path, revision="v2")


# Malicious checkpoints


class Evil:
    """Pickled, it writes a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.pt"])
def test_pickles_are_not_read(copy, tmp_path, name):
    folder, mark = copy("dcgan"), tmp_path / "mark"
    (folder / "model" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "model" / name).write_bytes(pickle.dumps(Evil(mark)) + bytes(100_000))
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.safetensors"):
        GANPipeline.from_pretrained(folder)
    with pytest.raises(UserError, match="no file named diffusion_pytorch_model.safetensors"):
        load_pipeline(str(folder), use_safetensors=False)
    with pytest.raises(UserError, match="use_safetensors is False"):
        GANPipeline.from_pretrained(folder, use_safetensors=False)
    (folder / "model" / name).rename(folder / "model" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(OSError, match="safetensors"):
        GANPipeline.from_pretrained(folder)
    assert not mark.exists()


ELSEWHERE = [
    ["subprocess", "Popen"],
    ["os", "system"],
    ["torch.nn", "Linear"],
    ["evil", "Evil"],
    ["../../evil", "Evil"],
    ["hfgen.models.dcgan", "nn"],
    ["hfgen.models.dcgan", "Evil"],
    ["hfgen.models.evil", "Evil"],
    ["hfgen.models...evil", "Evil"],
    ["modeling_hfgen_evil", "Evil"],
    ["modeling_hfgen_dcgan", "../Evil"],
    ["diffusers", "AutoModel"],
    ["diffusers", "DiffusionPipeline"],
    ["transformers", "AutoModel"],
    ["evil"],
    ["evil", 7],
    [["evil"], "Evil"],
]


@pytest.mark.parametrize("entry", ELSEWHERE, ids=str)
def test_classes_elsewhere_are_refused(copy, tmp_path, entry):
    folder, mark = copy("dcgan"), tmp_path / "mark"
    evil = f"open({str(mark)!r}, 'w')\nfrom diffusers import ModelMixin\n\n\nclass Evil(ModelMixin):\n    pass\n"
    for place in (tmp_path, folder, folder / "model"):
        for name in ("evil", "modeling_hfgen_evil", "modeling_hfgen_dcgan", "hfgen.models.dcgan", "hfgen.models.evil"):
            (place / f"{name}.py").write_text(evil)
    change(folder / "model_index.json", model=entry)
    for load in (GANPipeline.from_pretrained, load_pipeline):
        with pytest.raises(UserError, match="model_index.json says that model is"):
            load(str(folder), trust_remote_code=True)
    assert not mark.exists()


def test_stock_pipelines_are_read_with_the_same_care(copy, tmp_path):
    folder, mark = copy("stock"), tmp_path / "mark"
    assert type(load_pipeline(str(folder))) is DDPMPipeline
    (folder / "unet" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    change(folder / "model_index.json", unet=["evil", "Evil"])
    with pytest.raises(UserError, match="model_index.json says that unet is"):
        load_pipeline(str(folder), trust_remote_code=True)
    change(folder / "model_index.json", unet=["diffusers", "UNet2DModel"])
    (folder / "None.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(UserError, match="None.py"):
        load_pipeline(str(folder), trust_remote_code=True)
    assert not mark.exists()


def test_more_components_than_there_are(copy):
    folder = copy("dcgan")
    for name, entry in (
        ("more", ["subprocess", "Popen"]),
        ("../dcgan/model", ["hfgen.models.dcgan", "DCGANGenerator"]),
    ):
        file = folder / "model_index.json"
        before = file.read_text()
        change(file, **{name: entry})
        with pytest.raises(UserError, match="model_index.json says"):
            GANPipeline.from_pretrained(folder)
        file.write_text(before)


@pytest.mark.parametrize("name", [["evil", "Evil"], ["os", "system"], "StableDiffusionPipeline", None, []], ids=str)
def test_pipelines_that_we_do_not_know_are_refused(copy, tmp_path, name):
    folder, mark = copy("dcgan"), tmp_path / "mark"
    for file in ("evil", "None", "os"):
        (folder / f"{file}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    change(folder / "model_index.json", _class_name=name)
    with pytest.raises(UserError, match="which hfgen does not sample from"):
        load_pipeline(str(folder))
    with pytest.raises(ValueError, match="None.py"):  # diffusers itself looks for this one
        GANPipeline.from_pretrained(folder)
    (folder / "None.py").unlink()
    assert type(GANPipeline.from_pretrained(folder)) is GANPipeline
    assert not mark.exists()


@pytest.mark.parametrize("target", ["../diffusion_pytorch_model.safetensors", "/tmp/x.safetensors", "a/b.safetensors"])
def test_shards_stay_in_their_folder(copy, target):
    folder = copy("dcgan") / "model"
    weights = folder / "diffusion_pytorch_model.safetensors"
    names = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], "little")])
    index = {"metadata": {}, "weight_map": {name: target for name in names if name != "__metadata__"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    weights.rename(folder.parent / weights.name)
    with pytest.raises(UserError, match="is no file of its folder"):
        GANPipeline.from_pretrained(folder.parent)


@pytest.mark.parametrize(
    "kind, component, values",
    [
        ("dcgan", "model", {"latent_dim": 10**10}),
        ("dcgan", "model", {"latent_dim": 10**30}),
        ("dcgan", "model", {"base_channels": 10**6}),
        ("mlp_gan", "model", {"latent_dim": 10**10}),
        ("residual_gan", "model", {"block_out_channels": [10**6, 10**6]}),
        ("stylegan2", "model", {"num_class_embeds": 10**10}),
        ("conv_vae", "model", {"latent_channels": 10**10}),
        ("residual_vae", "model", {"layers_per_block": 10**9}),
        ("hierarchical_vae", "model", {"block_out_channels": [10**7]}),
        ("vq_vae", "model", {"num_vq_embeddings": 10**10}),
        ("conv_vae", "prior", {"num_components": 10**10}),
        ("unet", "unet", {"layers_per_block": 10**9}),
        ("unet", "scheduler", {"num_train_timesteps": 10**10}),
        ("stock", "unet", {"layers_per_block": 10**9}),
    ],
)
def test_absurd_sizes_end_at_once(copy, kind, component, values):
    folder = copy(kind)
    (file,) = (folder / component).glob("*config.json")
    assert set(values) <= set(json.loads(file.read_text()))
    change(file, **values)
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="the checkpoint is broken|describes no network"):
        load_pipeline(str(folder))
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KB
