"""Code that travels: a plug-in of several files, helpers of different versions in one process, what cannot travel."""

import json
import shutil

import pytest
from helpers import ROOT, python
from pipelines.test_self_contained import code_in, tree

from hfgen.pipelines import export
from hfgen.runtime.errors import UserError

TOY = {
    "toy_flow/__init__.py": "",
    "toy_flow/nets/__init__.py": "",
    "toy_flow/nets/parts.py": '''
"""The lowest of three files."""
import torch

def scale(latents: torch.Tensor) -> torch.Tensor:
    return 0.25 * latents
''',
    "toy_flow/nets/model.py": """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from . import parts
from .parts import (
    scale as _scale,
)
from hfgen.models.labels import check_presence

class ToyModel(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size: int = 8, channels: int = 1, num_class_embeds: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, latents, class_labels=None):
        from toy_flow.nets import parts as again
        check_presence(class_labels, self.config.num_class_embeds)
        assert again.scale is parts.scale
        return self.weight + _scale(latents)
""",
    "toy_flow/pipeline.py": """
import toy_flow.nets.parts as parts
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin
from hfgen.pipelines.base import Pipeline, at_least

class ToyPipeline(Pipeline):
    def __init__(self, flow: ModelMixin):
        super().__init__()
        self.register_modules(flow=flow)

    def __call__(self, batch_size=1, generator=None, output_type="pt"):
        at_least("batch_size", batch_size, 1)
        size = self.flow.config.sample_size
        images = self.flow(parts.scale(self._noise(batch_size, (1, size, size), generator))).detach().clamp(0, 1)
        return ImagePipelineOutput(images=self._export(images, output_type))
""",
    "toy_flow/family.py": """
from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="toy", title="A toy", options="", recipe="", card="",
    pipelines=(PipelineEntry("toy_flow.pipeline:ToyPipeline", "", ""),),
)
""",
    "toy_flow-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-flow\nVersion: 1.0\n",
    "toy_flow-1.0.dist-info/entry_points.txt": "[hfgen.families]\ntoy = toy_flow.family:FAMILY\n",
}
WITHOUT = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hfgen", "toy_flow"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nowhere())
import torch
from diffusers import DiffusionPipeline

def images(pipe):
    return pipe(2, generator=torch.Generator().manual_seed(0), output_type="pt").images

def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
"""
SAVE_TOY = """
import sys, torch
from toy_flow.nets.model import ToyModel
from toy_flow.pipeline import ToyPipeline
pipe = ToyPipeline(ToyModel())
pipe.save_pretrained(sys.argv[1])
torch.save = None
print(pipe(2, generator=torch.Generator().manual_seed(0)).images.sum().item())
"""
LOAD_TOY = """
import sys, torch
from hfgen import load_pipeline
assert not any(name.startswith("toy_flow.") for name in sys.modules)
pipe = load_pipeline(sys.argv[1])
assert type(pipe).__module__ == "toy_flow.pipeline" and type(pipe.flow).__module__ == "toy_flow.nets.model"
print(pipe(2, generator=torch.Generator().manual_seed(0)).images.sum().item())
"""


@pytest.fixture
def toy(tmp_path):
    for name, text in TOY.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    return tmp_path / "site"


def test_a_plug_in_travels_with_its_files(toy, tmp_path):
    folder = tmp_path / "it"
    total = python(SAVE_TOY, folder, path=(toy, ROOT))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_toy_flow_pipeline", "ToyPipeline"]
    assert index["flow"] == ["modeling_toy_flow_nets_model", "ToyModel"]
    names = {name.partition("__")[0].removesuffix(".py") for name in code_in(folder)}
    assert names >= {
        "flow/modeling_toy_flow_nets_model",
        "modeling_toy_flow_nets_model",
        "modeling_toy_flow_nets_parts",
    }
    assert names >= {"pipeline_toy_flow_pipeline", "pipeline_hfgen_base", "modeling_hfgen_labels"}
    for name in code_in(folder):  # nothing is left that would need either package
        assert not {"from hfgen", "from toy_flow", "import toy_flow"} & set(
            (folder / name).read_text().split("\n    ")
        )
    # Without both packages: the same images, saved by diffusers alone, loaded again.
    check = WITHOUT + (
        "pipe = load(sys.argv[1])\npipe.save_pretrained(sys.argv[2])\n"
        "assert torch.equal(images(load(sys.argv[2])), images(pipe))\nprint(images(pipe).sum().item())"
    )
    assert python(check, folder, tmp_path / "again") == total
    assert tree(tmp_path / "again") == tree(folder)
    # With them: by the installed classes, of either folder; code that lies there is not run.
    for name in code_in(folder):
        (folder / name).write_text("raise SystemExit('run')\n")
    assert (
        python(LOAD_TOY, folder, path=(toy, ROOT)) == python(LOAD_TOY, tmp_path / "again", path=(toy, ROOT)) == total
    )


def test_a_plug_in_that_is_not_installed_is_named(toy, tmp_path):
    python(SAVE_TOY, tmp_path / "it", path=(toy, ROOT))
    check = "import sys\nfrom hfgen import UserError, load_pipeline\n"
    check += "try:\n    load_pipeline(sys.argv[1])\nexcept UserError as error:\n    print(error)"
    assert "holds a ToyPipeline, which hfgen does not sample from" in python(check, tmp_path / "it", path=(ROOT,))
    index = json.loads((tmp_path / "it" / "model_index.json").read_text())
    index["_class_name"] = "GANPipeline"
    (tmp_path / "it" / "model_index.json").write_text(json.dumps(index))
    assert "install the package of its family" in python(check, tmp_path / "it", path=(ROOT,))


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("pipeline.py", "import toy_flow.nets.model", "`import toy_flow.nets.model` cannot travel with a checkpoint"),
        ("pipeline.py", "from hfgen.training.ema import EMA", "imports hfgen.training.ema, which does not travel"),
        ("pipeline.py", "from hfgen import UserError", "imports hfgen, which does not travel with checkpoints"),
        ("pipeline.py", "from hfgen.pipelines.self_contained import limited", "imports limited of"),
        ("nets/parts.py", "from toy_flow.nets.model import ToyModel", "code that imports itself cannot travel"),
    ],
)
def test_what_cannot_travel_is_said_when_it_is_saved(toy, tmp_path, file, line, message):
    path = toy / "toy_flow" / file
    path.write_text(f"def later():\n    {line}\n{path.read_text()}")
    check = "import sys\nfrom hfgen.pipelines.export import code_of\nfrom hfgen import UserError\n"
    check += "try:\n    code_of('toy_flow.pipeline') | code_of('toy_flow.nets.model')\n"
    check += "except UserError as error:\n    print(error)"
    assert message in python(check, path=(toy, ROOT))


SAVE_GAN = """
import sys, torch
from hfgen import DCGANGenerator, GANPipeline
torch.manual_seed(0)
GANPipeline(DCGANGenerator(sample_size=8, latent_dim=8, base_channels=8)).save_pretrained(sys.argv[1])
"""


def test_two_versions_in_one_process_without_hfgen(tmp_path):
    """The same names mean other things in the other version: in the entry file's class, its helper, and the base."""
    changes = {
        "pipelines/base.py": [("return randn_tensor(", "return 0.5 * randn_tensor(")],
        "models/labels.py": [("def check_presence(", "def check_presence(version, ")],
        "models/gan_base.py": [("check_presence(class", "check_presence(2, class")],
        "models/dcgan.py": [(".tanh()", ".tanh() * 0.5")],
    }
    other = tmp_path / "other"
    shutil.copytree(ROOT / "hfgen", other / "hfgen", ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in changes.items():
        text = (other / "hfgen" / name).read_text()
        for old, new in edits:
            assert old in text, (name, old)
            text = text.replace(old, new)
        (other / "hfgen" / name).write_text(text)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, root in zip(folders, (ROOT, other), strict=True):
        python(SAVE_GAN, folder, path=(root,))
    common = set(code_in(folders[0])) & set(code_in(folders[1]))
    changed = {"pipeline_hfgen_base", "pipeline_hfgen_gan", "modeling_hfgen_dcgan", "modeling_hfgen_labels"}
    assert not {name for name in common if "__" in name and name.partition("__")[0] in changed}
    alone = [python(WITHOUT + "print(images(load(sys.argv[1])).tolist())", folder) for folder in folders]
    assert alone[0] != alone[1]
    check = (
        WITHOUT + "pipes = [load(folder) for folder in sys.argv[1:]]\nfor pipe in pipes: print(images(pipe).tolist())"
    )
    for order in ([0, 1], [1, 0], [0, 1, 0]):
        printed = python(check, *(folders[number] for number in order)).splitlines()
        assert printed == [alone[number] for number in order]


def test_of_other_packages_nothing_travels():
    assert export.code_of("diffusers.models.unets.unet_2d") == {} == export.code_of("pipelines.test_export")
    with pytest.raises(UserError, match="hfgen.models.absent, which has no file"):
        export.code_of("hfgen.models.absent")
