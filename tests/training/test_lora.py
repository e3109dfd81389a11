"""LoRA: adapters learn and the checkpoint stays, a run goes on to the bit, and what is published is plain."""

import importlib.util
import json
import re
import shutil
import sys

import pytest
import torch
from diffusers import DDPMPipeline
from helpers import run as run_script
from helpers.exactness import assert_identical
from hub.server import ADA
from safetensors import safe_open
from safetensors.torch import load_file

import hfgen
from hfgen.hub.contents import ADAPTERS, pipeline_contents
from hfgen.runtime.errors import UserError
from hfgen.training.api import prepare
from hfgen.training.lora import adapter_weights, adapters, merged
from hfgen.training.options import collect

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SHARED = {
    **{"dataset_name": "digits", "train_batch_size": 8, "max_train_steps": 4, "eval_batch_size": 2, "cpu_threads": 1},
    **{"mixed_precision": "no", "save_images_epochs": 0, "lr_warmup_steps": 1, "checkpointing_steps": 2},
    **{"ddpm_num_inference_steps": 2, "logging_steps": 1, "num_clusters": 0},
}
NETWORK = {"resolution": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny DDPM."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    hfgen.train("ddpm", output_dir=str(folder), say=lambda text: None, **SHARED, **NETWORK)
    return folder


def options(base, folder, **changes):
    return SHARED | {"init_from": str(base), "lora_rank": 2, "output_dir": str(folder)} | changes


@pytest.fixture(scope="module")
def adapted(base):
    """A run of LoRA that is done, and what it said."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        run = hfgen.train("ddpm", say=said.append, **options(base, base.parent / "adapted", learning_rate=0.05))
    return run, said


def test_only_adapters_learn(base, adapted):
    run, said = adapted
    unet, before = run.engine.modules["unet"], DDPMPipeline.from_pretrained(base).unet.state_dict()
    after = unet.state_dict()
    assert all(
        torch.equal(before[name.replace(".base_layer", "")], after[name]) for name in after if "lora" not in name
    )
    up = [value for name, value in after.items() if ".lora_B." in name]
    assert len(up) == len(adapters(unet)) > 10 and all(value.abs().sum() > 0 for value in up)
    count = sum(value.numel() for value in adapter_weights(unet).values())
    optimised = {id(p) for group in run.engine.optimizers["unet"].param_groups for p in group["params"]}
    assert optimised == {id(p) for name, p in unet.named_parameters() if "lora" in name}
    assert sum(p.numel() for p in run.engine.parameters["unet"].values()) == count
    assert f"LoRA of rank 2: {count:,} parameters are trained, beside {len(up)} layers" in said
    mean = run.engine.ema.modules["unet"]
    assert mean.conv_out.weight is unet.conv_out.weight, "what stays is there once"
    assert not torch.equal(*(net.conv_in.lora_B["default"].weight for net in (mean, unet)))


def test_the_pipeline_is_plain_and_does_what_the_adapted_network_does(base, adapted):
    run, _ = adapted
    stock, original = DDPMPipeline.from_pretrained(run.folder.path).unet, DDPMPipeline.from_pretrained(base).unet
    assert stock.state_dict().keys() == original.state_dict().keys()
    noise, mean = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), run.engine.ema.modules["unet"]
    with torch.no_grad():
        expected = mean(noise, 500).sample
        torch.testing.assert_close(stock(noise, 500).sample, expected, rtol=1e-4, atol=1e-5)
        assert (original(noise, 500).sample - expected).abs().max() > 1e-2, "the adapters do something"
    plain = merged(mean)
    assert type(plain) is type(stock) and not adapters(plain) and adapters(mean), "a copy is merged"
    record = json.loads((run.folder.path / "run.json").read_text())
    assert record["parameters"]["unet"] == sum(parameter.numel() for parameter in stock.parameters())
    assert record["lora"]["parameters"] == sum(map(torch.numel, adapter_weights(mean).values()))


def test_the_adapter_alone_goes_onto_the_base_again_as_the_card_says(base, adapted, monkeypatch):
    run, _ = adapted
    folder = run.folder.path
    assert (folder / ADAPTERS).stat().st_size < (
        folder / "unet" / "diffusion_pytorch_model.safetensors"
    ).stat().st_size
    with safe_open(folder / ADAPTERS, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["r"] == config["lora_alpha"] == 2
    card = (folder / "README.md").read_text()
    assert "It is `base` with a LoRA adapter of rank 2, merged" in card and "\n- lora\n" in card
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "peft" in text]
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)
    noise = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        again = namespace["pipe"].unet(noise, 500).sample
        whole = DDPMPipeline.from_pretrained(folder).unet(noise, 500).sample
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)
    assert ADAPTERS in pipeline_contents(folder)


def test_diffusers_reads_the_adapter(base, adapted):
    from diffusers import UNet2DModel
    from diffusers.loaders import PeftAdapterMixin

    class Adapted(UNet2DModel, PeftAdapterMixin):
        """A UNet that takes adapters."""

    unet = Adapted.from_pretrained(base / "unet")
    unet.load_lora_adapter(adapted[0].folder.path, prefix=None, weight_name=ADAPTERS)
    noise = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        whole = DDPMPipeline.from_pretrained(adapted[0].folder.path).unet(noise, 500).sample
        torch.testing.assert_close(unet(noise, 500).sample, whole, rtol=1e-4, atol=1e-5)


def test_a_run_that_goes_on_ends_the_same(base, adapted, tmp_path):
    whole, again = adapted[0].folder.path, tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(sorted(again.glob("checkpoint-*"))[-1])
    given = options(base, again, learning_rate=0.05)
    hfgen.train("ddpm", say=lambda text: None, **given, resume_from_checkpoint="latest")
    assert_identical(whole, again)
    tensors, others = load_file(whole / ADAPTERS), load_file(again / ADAPTERS)
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    with pytest.raises(UserError, match="`lora_rank` 2 there, 3 here"):
        prepare(collect("ddpm", **(given | {"lora_rank": 3}), resume_from_checkpoint="latest"))


def test_some_layers(base, tmp_path):
    changes = {"lora_target_modules": ("to_q", "mid_block.attentions.0.to_out.0"), "lora_alpha": 8.0, "use_ema": False}
    run = prepare(collect("ddpm", **options(base, tmp_path / "a", **changes)), lambda text: None)
    run.lock.release()
    layers = adapters(run.engine.modules["unet"])
    assert {name.partition(".to_")[2] for name in layers} == {"q", "out.0"}
    assert all(layer.scaling == {"default": 4.0} for layer in layers.values())
    assert [name for name in layers if name.endswith("to_out.0")] == ["mid_block.attentions.0.to_out.0"]


def test_a_larger_rank_than_a_layer_is_worth(base, tmp_path):
    run = prepare(collect("ddpm", **options(base, tmp_path / "a", lora_rank=6)), lambda text: None)
    run.lock.release()
    assert {"conv_in", "conv_out"}.isdisjoint(adapters(run.engine.modules["unet"]))
    with pytest.raises(
        UserError, match="`lora_rank` 900: an adapter of this rank has no fewer weights than any layer"
    ):
        prepare(collect("ddpm", **options(base, tmp_path / "b", lora_rank=900)), lambda text: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None}, "`lora_rank` 2 adapts the network of a checkpoint: give `init_from`, too"),
        ({"freeze": ("unet.conv_in",)}, "`freeze` unet.conv_in: with `lora_rank` all weights .* stay"),
        ({"lora_rank": None, "lora_alpha": 2.0}, "`lora_alpha` 2 is about adapters: give `lora_rank`"),
        ({"lora_rank": None, "lora_target_modules": ("to_q",)}, "`lora_target_modules` to_q is about adapters"),
        (
            {"lora_target_modules": ("to_q", "query")},
            r"`lora_target_modules` query is the name of no .* end in: conv, conv1, .*, to_k, to_out\.0, to_q",
        ),
        ({"class_conditional": True}, "`lora_rank` keeps the network .* needs other inputs for classes"),
    ],
)  # fmt: skip
def test_what_does_not_go(base, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(collect("ddpm", **options(base, tmp_path / "new", **changes)), lambda text: None)
    assert not (tmp_path / "new").exists()


def test_a_family_whose_network_cannot_be_adapted(tmp_path):
    shared = {name: value for name, value in SHARED.items() if name != "ddpm_num_inference_steps"}
    given = shared | {"resolution": 8, "base_channels": 8, "latent_dim": 4}
    hfgen.train("gan", say=lambda text: None, output_dir=str(tmp_path / "gan"), **given)
    del given["resolution"]
    with pytest.raises(
        UserError, match="`lora_rank`: no network of gan can be adapted. Leave it out, and use `freeze`"
    ):
        given |= {"output_dir": str(tmp_path / "new"), "init_from": str(tmp_path / "gan"), "lora_rank": 2}
        prepare(collect("gan", **given), lambda text: None)


def test_without_peft(base, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "peft" and find_spec(name, *rest))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'`lora_rank` needs peft, .*`pip install "hfgen\[lora\]"`'):
        prepare(collect("ddpm", **options(base, tmp_path / "new")), lambda text: None)


def test_under_a_launcher(base, tmp_path):
    given = options(base, tmp_path / "new", lora_target_modules=("to_q", "to_v"))
    words = []
    for name, value in given.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    result = run_script("train_ddpm", *words, launcher="accelerate")
    assert result.returncode == 0, result.stderr
    assert re.search(r"LoRA of rank 2: [\d,]+ parameters are trained, beside \d+ layers", result.stdout)
    assert DDPMPipeline.from_pretrained(tmp_path / "new")(batch_size=1, num_inference_steps=2).images
    assert (tmp_path / "new" / ADAPTERS).is_file()


THERE = """
import sys
from diffusers import DDPMPipeline
from hfgen.hub.push import push_folder
from pathlib import Path

push_folder(Path(sys.argv[1]), "ada/adapted")
pipe = DDPMPipeline.from_pretrained("ada/adapted")
print(sum(parameter.numel() for parameter in pipe.unet.parameters()))
"""


def test_from_the_hub(base, adapted, hub):
    """The file beside the components does not confuse diffusers; the card names no folder of this machine."""
    hub.create("ada/adapted")
    printed = hub.python(THERE, adapted[0].folder.path, token=ADA)
    unet = DDPMPipeline.from_pretrained(base).unet
    assert int(printed.splitlines()[-1]) == sum(parameter.numel() for parameter in unet.parameters())
    files = hub["ada/adapted"].files()
    assert ADAPTERS in files
    card = files["README.md"].decode()
    assert 'pipe = DDPMPipeline.from_pretrained("ada/adapted")' in card
    assert 'pipe = DDPMPipeline.from_pretrained("base")' in card and "../" not in card
