"""Malicious repositories, over real HTTP: no code of theirs runs, nothing elsewhere is read or written, all ends soon.

More of them, as folders, are in tests/pipelines/test_self_contained.py.
"""

import json
import pickle
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from diffusers import DDPMPipeline, DDPMScheduler
from evaluation.tiny import save_classifier
from helpers import python, run
from hub.server import File
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from pipelines.test_self_contained import PIPELINES, unet
from transformers import CLIPTextConfig, CLIPTextModel

from hfgen import UserError
from hfgen.evaluation.features import load_extractor
from hfgen.hub.card import with_location
from hfgen.training import checkpoint

INDEX, CONFIG, WEIGHTS = "model_index.json", "model/config.json", "model/diffusion_pytorch_model.safetensors"
SHARDS = "model/diffusion_pytorch_model.safetensors.index.json"
CODE = ("pipeline_hfgen_gan.py", "pipeline_hfgen_base.py", "model/modeling_hfgen_dcgan.py", "model/code.py", "None.py")
SECONDS, MEGABYTES = 20, 500


class Evil:
    """Pickled, it makes a file called `ran` when it is read."""

    def __reduce__(self):
        return (eval, ("open('ran', 'w')",))


PICKLE = pickle.dumps(Evil()) + bytes(100_000)
EVIL_CODE = b"open('ran', 'w')\nfrom diffusers import ModelMixin\n\n\nclass Evil(ModelMixin):\n    pass\n"


def edit(file, **values):
    def change(files):
        files[file] = json.dumps(json.loads(files[file]) | values).encode()

    return change


def replace(old, new, content):
    def change(files):
        files.pop(old, None)
        files[new] = content

    return change


def header(content, length=None):
    content = json.dumps(content).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content


def run_by_nobody(files):
    for name in CODE:
        files[name] = EVIL_CODE
    edit(CONFIG, auto_map={"AutoModel": "code.Evil", "DCGANGenerator": "code.Evil"}, _class_name="Evil")(files)


def shards(target):
    def change(files):
        names = ["linear.weight", "linear.bias"]
        files[SHARDS] = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, target)}).encode()

    return change


def module(*entry, name="model"):
    return edit(INDEX, **{name: list(entry)})


def text_shards(target):
    index = json.dumps({"metadata": {}, "weight_map": {"a": target}}).encode()
    return replace(None, "model/model.safetensors.index.json", index)


HUGE = {"big": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
LARGE = b'{"a": [' + b"[]," * 16_000_000 + b"[]]}"
BROKEN, NO_WEIGHTS, NO_CLASS = "checkpoint is broken", "no file named .*safetensors", "model_index.json says"

# by name: a checkpoint, what is done to it, and the error; None where it must load, as the evil is not looked at
CASES = {
    "bin": ("dcgan", replace(WEIGHTS, "model/diffusion_pytorch_model.bin", PICKLE), NO_WEIGHTS),
    "pt": ("dcgan", replace(WEIGHTS, "model/diffusion_pytorch_model.pt", PICKLE), NO_WEIGHTS),
    "pkl": ("dcgan", replace(WEIGHTS, "model/diffusion_pytorch_model.pkl", PICKLE), NO_WEIGHTS),
    "pickle-beside": ("dcgan", replace(None, "model/diffusion_pytorch_model.bin", PICKLE), None),
    "pickle-renamed": ("dcgan", replace(WEIGHTS, WEIGHTS, PICKLE), "safetensors"),
    "header-long": ("dcgan", replace(WEIGHTS, WEIGHTS, header({}, 2**62)), "safetensors|Safetensor|[Hh]eader"),
    "header-90-mb": ("dcgan", replace(WEIGHTS, WEIGHTS, header({}, 90 * 10**6)), "[Hh]eader"),
    "header-huge": ("dcgan", replace(WEIGHTS, WEIGHTS, header(HUGE)), BROKEN),
    "header-huge-large-file": ("dcgan", replace(WEIGHTS, WEIGHTS, header(HUGE) + bytes(10**6)), "safetensors|etadata"),
    "code": ("dcgan", run_by_nobody, None),
    "os-system": ("dcgan", module("os", "system"), NO_CLASS),
    "popen": ("dcgan", module("subprocess", "Popen"), NO_CLASS),
    "exec": ("dcgan", module("builtins", "exec"), NO_CLASS),
    "our-functions": ("dcgan", module("hfgen.hub.push", "push_folder"), NO_CLASS),
    "our-recipes": ("dcgan", module("hfgen.families.gan.recipe", "GANRecipe"), NO_CLASS),
    "our-scripts": ("dcgan", module("hfgen.models.__main__", "DCGANGenerator"), NO_CLASS),
    "plug-in-absent": ("dcgan", module("modeling_evil_model", "Evil"), NO_CLASS),
    "plug-in-escape": ("dcgan", module("modeling_hfgen_.._hub_push", "push_folder"), NO_CLASS),
    "plug-in-words": ("dcgan", module("modeling_hfgen_" + "_" * 5000, "Evil"), NO_CLASS),
    "auto-model": ("dcgan", module("transformers", "AutoModel"), NO_CLASS),
    "transformers-function": ("dcgan", module("transformers", "pipeline"), NO_CLASS),
    "transformers-inner": ("dcgan", module("transformers.dynamic_module_utils", "get_class_in_module"), NO_CLASS),
    "transformers-trainer": ("dcgan", module("transformers", "Trainer"), NO_CLASS),
    "text-huge": ("text", edit("model/config.json", hidden_size=10**6, intermediate_size=10**6), BROKEN),
    "text-code": ("text", edit("model/config.json", auto_map={"AutoModel": "code.Evil"}), "has auto_map"),
    "text-kernel": ("text", edit("model/config.json", _attn_implementation="evil/kernel"), "has _attn_implementation"),
    "text-quantised": ("text", edit("model/config.json", quantization_config={"quant_method": "x"}), "quantization"),
    "text-adapter": ("text", replace(None, "model/adapter_config.json", b"{}"), "may bring code"),
    "text-pickle": ("text", replace("model/model.safetensors", "model/pytorch_model.bin", PICKLE), "safetensors"),
    "text-shard-above": ("text", text_shards("../../x.safetensors"), BROKEN),
    "text": ("text", lambda files: None, None),
    "our-pipelines": ("dcgan", module("hfgen.pipelines.gan", "GANPipeline"), NO_CLASS),
    "dunder": ("dcgan", module("os", "system", name="__class__"), NO_CLASS),
    "from-pretrained": ("dcgan", module("os", "system", name="from_pretrained"), NO_CLASS),
    "pipeline-class": ("dcgan", edit(INDEX, _class_name=["os", "system"]), "does not sample from"),
    "pipeline-dunder": ("dcgan", edit(INDEX, _class_name="__class__"), "does not sample from"),
    "component-above": ("dcgan", module("hfgen.models.dcgan", "DCGANGenerator", name="../../model"), NO_CLASS),
    "scheduler-above": ("unet", module("diffusers", "DDPMScheduler", name="../scheduler"), NO_CLASS),
    "scheduler-root": ("unet", module("diffusers", "DDPMScheduler", name="/etc"), NO_CLASS),
    "shard-above": ("dcgan", shards("../../x.safetensors"), BROKEN),
    "shard-root": ("dcgan", shards("/etc/x.safetensors"), BROKEN),
    "latents": ("dcgan", edit(CONFIG, latent_dim=10**10), BROKEN),
    "channels": ("unet", edit("unet/config.json", block_out_channels=[10**6, 10**6]), BROKEN),
    "pixels": ("unet", edit("unet/config.json", sample_size=10**6), BROKEN),
    "pixels-stock": ("stock", edit("unet/config.json", sample_size=[8, 10**6]), BROKEN),
    "pixels-vae": ("vq_vae", edit(CONFIG, sample_size=10**6), BROKEN),
    "empty-layers": ("vq_vae", edit(CONFIG, block_out_channels=[0] * 100_000), BROKEN),
    "layers-of-nothing": ("vq_vae", edit(CONFIG, block_out_channels=[0, 0], layers_per_block=10**9), BROKEN),
    "nothing": ("vq_vae", edit(CONFIG, block_out_channels=[]), "no network"),
    "steps": ("unet", edit("scheduler/scheduler_config.json", num_train_timesteps=10**12), BROKEN),
    "solver-order": ("unet", edit("scheduler/scheduler_config.json", solver_order=10**10), BROKEN),
    "steps-text": ("unet", edit("scheduler/scheduler_config.json", num_train_timesteps="many"), BROKEN),
    "schedule": ("unet", edit("scheduler/scheduler_config.json", beta_schedule="evil"), "evil is not implemented"),
    "mixture": ("conv_vae", edit("prior/config.json", num_components=10**10), BROKEN),
    "names": ("dcgan", edit(INDEX, id2label={str(number): "x" for number in range(10**6)}), BROKEN),
    "names-number": ("dcgan", edit(INDEX, id2label=7), "cannot be loaded"),
    "component-number": ("dcgan", edit(INDEX, model=7), "cannot be loaded"),
    "list": ("dcgan", replace(INDEX, INDEX, b"[1]"), "holds no pipeline"),
    "deep": ("dcgan", replace(INDEX, INDEX, DEEP), "recursion"),
    "deep-config": ("dcgan", replace(CONFIG, CONFIG, DEEP), "recursion"),
    "deep-shards": ("dcgan", replace(SHARDS, SHARDS, DEEP), "recursion"),
    "large": ("dcgan", replace(INDEX, INDEX, LARGE), BROKEN),
    "large-config": ("dcgan", replace(CONFIG, CONFIG, LARGE), BROKEN),
}

LOAD = """
import json, resource, sys, time
from hfgen import UserError, load_pipeline

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

found = {}
load_pipeline("evil/good")
for name in sys.argv[1:]:
    start, before, error = time.monotonic(), peak(), None
    try:
        load_pipeline(f"evil/{name}", trust_remote_code=True)
    except UserError as said:
        error = str(said)
    found[name] = {"error": error, "seconds": time.monotonic() - start, "megabytes": peak() - before}
print(json.dumps(found))
"""


def save_with_text_encoder(folder):
    """A pipeline of ours whose network is one of transformers: not good for images, but made of what may be loaded."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    PIPELINES["dcgan"]().save_pretrained(folder)
    shutil.rmtree(folder / "model")
    CLIPTextModel(CLIPTextConfig(**size, vocab_size=16, max_position_embeddings=8)).save_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"num_class_embeds": None}))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"model": ["transformers", "CLIPTextModel"], "id2label": None}
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of checkpoints that nothing is wrong with."""
    folder, found = tmp_path_factory.mktemp("good"), {}
    for kind in ("dcgan", "vq_vae", "conv_vae", "unet"):
        PIPELINES[kind]().save_pretrained(folder / kind)
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=4)).save_pretrained(folder / "stock")
    save_with_text_encoder(folder / "text")
    for kind in folder.iterdir():
        paths = [path for path in kind.rglob("*") if path.is_file()]
        found[kind.name] = {path.relative_to(kind).as_posix(): path.read_bytes() for path in paths}
    return found


def test_they_end_soon_and_run_nothing(good, hub, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    for name, (kind, change, _) in (CASES | {"good": ("dcgan", lambda files: None, None)}).items():
        files = dict(good[kind])
        change(files)
        hub.create(f"evil/{name}").add("main", name, {path: File(files[path]) for path in files}, "evil")
    found = json.loads(python(LOAD, *CASES, env=hub.environment(HF_HOME=str(place / "home")), cwd=place))
    assert found.keys() == CASES.keys()
    for name, result in found.items():
        pattern, error = CASES[name][2], result["error"]
        if pattern is None:
            assert error is None, name
        else:
            assert re.search(pattern, error or "it was loaded"), (name, error)
            assert "\n" not in error and len(error) < 1000, (name, error)
        assert result["seconds"] < SECONDS and result["megabytes"] < MEGABYTES, name
        # Neither written nor run: code and pickles are not even asked for.
        assert not hub.count(rf"evil/{name}/.*\.(py|bin|pt|pkl)$"), name
        kept = [path.name for path in (place / "home" / "hub" / f"models--evil--{name}").rglob("*") if path.is_file()]
        assert kept and not [path for path in kept if path.endswith((".py", ".bin", ".pt", ".pkl"))], name
    assert [path.name for path in place.iterdir()] == ["home"]  # the cache is all there is


def test_scripts_say_so_in_one_line(hub, good, tmp_path):
    files = good["dcgan"] | {INDEX: DEEP}
    hub.create("evil/deep").add("main", "deep", {path: File(files[path]) for path in files}, "evil")
    env = hub.environment(HF_HOME=str(tmp_path / "home"))
    result = run("sample", "--model", "evil/deep", env=env, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search("^error: evil/deep holds no pipeline: .*recursion.*\n$", result.stderr, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


EXTRACT = """
import sys
from hfgen import UserError
from hfgen.evaluation.features import load_extractor
for name in sys.argv[1:]:
    try:
        load_extractor(f"evil/{name}")
    except UserError as error:
        print(name, str(error))
"""


def test_extractors_are_no_pickles(hub, tmp_path):
    folder = Path(save_classifier(tmp_path / "classifier"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForImageClassification"), "code.Evil")
    index = "model.safetensors.index.json"
    odd = (b"[" * 100_000, b"[1]", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}')
    changes = {
        **{f"index-{at}": replace("model.safetensors", index, content) for at, content in enumerate(odd)},
        "pickle": replace("model.safetensors", "pytorch_model.bin", PICKLE),
        "pickle-renamed": replace("model.safetensors", "model.safetensors", PICKLE),
        "code": edit("config.json", model_type="evil", auto_map=auto),
        "shards": replace(
            "model.safetensors",
            "model.safetensors.index.json",
            json.dumps({"metadata": {}, "weight_map": {"a": "../../../config.json"}}).encode(),
        ),
    }
    for name, change in changes.items():
        changed = files | {"code.py": EVIL_CODE}
        change(changed)
        hub.create(f"evil/{name}").add("main", name, {path: File(changed[path]) for path in changed}, "evil")
    place = tmp_path / "place"
    place.mkdir()
    printed = python(EXTRACT, *changes, env=hub.environment(HF_HOME=str(place / "home")), cwd=place)
    errors = dict(line.split(" ", 1) for line in printed.splitlines())
    assert all("broken" in errors[f"index-{number}"] for number in range(len(odd)))
    assert "model.safetensors" in errors["pickle"]
    assert re.search("[Hh]eader|safetensors", errors["pickle-renamed"])
    assert "evil" in errors["code"]
    assert "no file of its folder" in errors["shards"]
    assert [path.name for path in place.iterdir()] == ["home"]
    assert not hub.count(r"GET .*\.(py|bin)$") and not list(place.rglob("*.bin")) + list(place.rglob("*.py"))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"hidden_sizes": [10**5, 10**5]}, "larger than its weights"),
        ("config.json", {"depths": [10**6, 1]}, "larger than its weights"),
        ("config.json", {"num_channels": 10**9}, "larger than its weights"),
        ("config.json", {"id2label": {str(number): "x" for number in range(10**6)}}, "checkpoint is broken"),
        ("preprocessor_config.json", {"size": {"height": 10**5, "width": 10**5}}, "size height 100000"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 10**9}}, "size shortest_edge 1000000000"),
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": 10**5}, "crop_size height 100000"),
    ],
)
def test_extractors_of_absurd_sizes(tmp_path, file, values, message):
    folder = Path(save_classifier(tmp_path / "it"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load_extractor(str(folder))
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024


def test_checkpoints_hold_no_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors, state = {"model": {"weight": torch.ones(3)}}, {"more": 1}
    path = checkpoint.save(tmp_path, 64, tensors, state)
    for name in ("optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scheduler.bin", "model.bin"):
        (path / name).write_bytes(PICKLE)
    loaded, also = checkpoint.load(path)
    assert loaded.keys() == {"model"} and torch.equal(loaded["model"]["weight"], torch.ones(3)) and also["more"] == 1
    (path / "optimizer.safetensors").write_bytes(PICKLE)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    (path / "optimizer.safetensors").unlink()
    (path / "state.json").write_bytes(PICKLE)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(TypeError):
        pickle.loads(PICKLE)(1)  # the pickle does what is feared
    assert (tmp_path / "ran").exists()


# A server that does not answer, or one byte at a time


HANG = """
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import file_download
from hfgen import UserError, load_pipeline

file_download._ETAG_RETRY_TIMEOUT = 1  # a minute, for the last attempt


def load(name):
    try:
        load_pipeline(f"evil/{name}")
    except UserError as error:
        return str(error)


with ThreadPoolExecutor() as pool:
    print(*pool.map(load, ("silent", "dripping")), sep="\\n")
"""


def test_servers_that_hang(hub, good, tmp_path):
    """The client waits so many seconds for each answer, and for each byte of it, 10 by default; here, one."""
    for name, fault in (("silent", {"delay": 8.0}), ("dripping", {"drip": 3.0})):
        files = {path: File(content) for path, content in good["dcgan"].items()}
        hub.create(f"evil/{name}").add("main", name, files, "evil")
        hub.fail(f"evil/{name}", times=1000, **fault)
    options = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    said = hub.python(HANG, hurry=True, **options)
    assert "evil/silent holds no pipeline" in said and "evil/dripping holds no pipeline" in said
    assert time.monotonic() - start < 120


# Cards

NAMES = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "a\n---\nlicense: mit\n---\n# b",
    "{{ 42+7 }}",
    "`` ```|",
]


def test_names_in_cards_are_names(tmp_path):
    data = tmp_path / "evil <img src=x onerror=alert(1)> {{ 42+7 }}"
    (data / "data").mkdir(parents=True)
    images = [PILImage.fromarray(np.full((8, 8), 12 * number, np.uint8)) for number in range(20)]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    rows = Dataset.from_dict({"image": images, "label": [number % 5 for number in range(20)]}, features=features)
    rows.to_parquet(data / "data" / "train-00000-of-00001.parquet")
    options = (
        "--resolution 8 --train_batch_size 16 --max_train_steps 1 --latent_dim 8 --base_channels 8 --cpu_threads 1"
    )
    options += " --save_images_epochs 0 --mixed_precision no --eval_batch_size 4 --class_conditional"
    output = tmp_path / "run <b>`[x](y)"
    result = run("train_gan", *options.split(), "--dataset_name", data, "--output_dir", output)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((output / "run.json").read_text())["data"]["class_names"] == NAMES  # the record keeps them
    card = ModelCard.load(output / "README.md")
    tags = ["hfgen", "gan", "class-conditional"]
    head = {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation", "tags": tags}
    assert card.data.to_dict() == head
    assert [line for line in card.text.splitlines() if line.startswith("#")][0] == "# run &lt;b>'&#91;x&#93;(y)"
    prose = "".join(card.text.split("```")[::2])
    code = "".join(card.text.split("```")[1::2])
    assert card.text.count("```") == 8  # those of the template
    assert "&lt;script>alert(1)&lt;/script>" in prose and "evil &lt;img src=x onerror=alert(1)> {{ 42+7 }}" in prose
    assert not re.search(r"<(script|img|b)|\]\(javascript|\]\(y|49|^license", prose, re.MULTILINE)
    assert "a --- license: mit --- # b" in prose and "'' '''&#124;" in prose
    assert f"'../{data.name}'" in code and str(tmp_path) not in card.text  # a command, without our folders
    assert f"--dataset_name '{data.name}'" in with_location(card.text, "ada/gan")
