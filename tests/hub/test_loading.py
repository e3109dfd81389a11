"""Checkpoints that carry their code, over real HTTP: pushed, then loaded with hfgen, without it, and offline."""

import re

import pytest
from helpers import run
from hub.server import ADA, File

from hfgen.models.conv_vae import ConvVAE
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.pipelines.vae import VAEPipeline

IMAGES = """
import sys, torch
def images(pipe):
    return pipe(2, generator=torch.Generator().manual_seed(0), output_type="pt").images
"""
WITH_HFGEN = f"""{IMAGES}
from hfgen import VAEPipeline, load_pipeline
wanted = images(VAEPipeline.from_pretrained(sys.argv[1]))
for load in (VAEPipeline.from_pretrained, load_pipeline):
    assert torch.equal(images(load("ada/digits")), wanted)
    assert torch.equal(images(load("ada/digits", revision="main", local_files_only=True)), wanted)
"""
WITHOUT_HFGEN = f"""{IMAGES}
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nowhere())
from diffusers import AutoModel, DiffusionPipeline
from huggingface_hub import snapshot_download
try:
    DiffusionPipeline.from_pretrained("ada/digits")
    raise SystemExit("loaded without the flag")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
first = images(DiffusionPipeline.from_pretrained("ada/digits", trust_remote_code=True))
assert torch.equal(images(DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)), first)
network = AutoModel.from_pretrained("ada/digits", subfolder="model", trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained("ada/digits", trust_remote_code=True, model=network)
assert pipe.model is network and torch.equal(images(pipe), first)
"""


@pytest.fixture
def folder(tmp_path):
    model = ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8))
    VAEPipeline(model, GaussianMixturePrior(latent_shape=model.latent_shape)).save_pretrained(tmp_path / "it")
    return tmp_path / "it"


def test_pushed_code_and_weights_are_all_that_is_needed(hub, folder, tmp_path):
    options = ["--folder", folder, "--hub_model_id", "ada/digits", "--private"]
    result = run("push_to_hub", *options, env=hub.environment(ADA))
    assert result.returncode == 0, result.stderr
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: content for name, content in hub["ada/digits"].files().items() if name in files} == files
    hub.python(WITH_HFGEN, folder, token=ADA, HF_HOME=str(tmp_path / "with"))
    hub.python(WITH_HFGEN, folder, HF_HOME=str(tmp_path / "with"), HF_HUB_OFFLINE="1")
    assert not list((tmp_path / "with").rglob("*.py"))  # the code was not even downloaded
    hub.python(WITHOUT_HFGEN, folder, token=ADA, HF_HOME=str(tmp_path / "without"))


OUTSIDE = ("../../../../evil.json", "model/../../../../../evil.safetensors", "/evil.json")
LOAD_ALL = """
import sys
import hfgen
for name in sys.argv[1:]:
    try:
        hfgen.load_pipeline(name)
    except (ValueError, OSError) as error:
        print(name, "is refused:", " ".join(str(error).split()))
"""


def test_file_names_that_lead_elsewhere_write_nothing(hub, folder, tmp_path):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for number, name in enumerate(OUTSIDE):
        content = {path: File(content) for path, content in files.items()}
        hub.create(f"ada/evil{number}").add("main", "evil", {**content, name: File(b"{}")}, "ada")
    names = [f"ada/evil{number}" for number in range(len(OUTSIDE))]
    lines = hub.python(LOAD_ALL, *names, token=ADA, HF_HOME=str(tmp_path / "home")).splitlines()
    assert [line.split()[0] for line in lines] == names
    assert all(re.search("(?i)is refused: .*(invalid|cannot be loaded)", line) for line in lines)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil.json", "evil.safetensors")]
