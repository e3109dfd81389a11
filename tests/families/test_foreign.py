"""A family from outside: an installed package of three files goes every way that ours go."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.tiny import save_classifier
from helpers import TINY_GAN, metrics, python, start, toys_installed
from hub.server import ADA
from PIL import Image
from safetensors.torch import load_file

import hfgen
from hfgen.commands.main import main
from hfgen.hub.card import write_short_card
from hfgen.runtime.errors import UserError

TINY = {"dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "max_train_steps": 6, "logging_steps": 2}
TINY |= {"checkpointing_steps": 2, "eval_batch_size": 4, "save_images_epochs": 0.0, "mixed_precision": "no"}
TINY |= {"lr_warmup_steps": 2, "cpu_threads": 1}
AR = ["train", "toy_ar", *(f"--{name}={value}" for name, value in TINY.items())]
PAIR = ["train", "toy_pair", *AR[2:]]


def command(*arguments, **kwargs):
    """Starts `hfgen ...`."""
    return start("-m", "hfgen", *arguments, **kwargs)


def run(*arguments, **kwargs):
    """Runs `hfgen ...` to its end, which must be a good one; returns what it printed."""
    process = command(*arguments, **kwargs)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def weights(folder):
    return {
        f"{file.parent.name}/{file.name}:{name}": tensor
        for file in sorted(Path(folder).rglob("*.safetensors"))
        if "checkpoint-000000000096" in str(file) or "model" in file.parent.name
        for name, tensor in load_file(file).items()
    }


def assert_same(first, second):
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(first) == metrics(second)


@pytest.fixture(scope="module", autouse=True)
def toys():
    with toys_installed():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the autoregressive toy, by command."""
    folder = tmp_path_factory.mktemp("foreign") / "ar"
    return folder, run(*AR, "--output_dir", folder)


def test_a_declaration_imports_no_torch():
    code = "import sys; from hfgen.registry import families; f = families()['toy_ar']; f.load('options'); "
    code += "f.load('spec'); print(f.origin, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["toys", "False"]


def test_train_by_command(trained):
    folder, text = trained
    assert {"model_index.json", "README.md", "samples.png", "run.json", "model"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "run.json").read_text())["family"] == "toy_ar"
    assert f"--model {folder}" in text
    assert (folder / "samples" / "000000000096.png").exists()
    assert "An autoregressive toy, pixel by pixel" in (folder / "README.md").read_text()  # its title
    assert "ToyARPipeline.from_pretrained" in (folder / "README.md").read_text()


def test_train_under_a_launcher(trained, tmp_path):
    run(*AR, "--output_dir", tmp_path / "ar", launcher="accelerate")
    assert_same(trained[0], tmp_path / "ar")


def test_train_from_python(trained, tmp_path, on_the_cpu):
    said = []
    options = TINY | {"output_dir": str(tmp_path / "ar")}
    result = hfgen.train("toy_ar", say=said.append, **options)
    assert result.images_seen == 96 and result.folder.path == tmp_path / "ar"
    assert_same(trained[0], tmp_path / "ar")
    second = hfgen.train("toy_ar", **options | {"output_dir": str(tmp_path / "again"), "mixed_precision": "bf16"})
    assert second.accelerator.mixed_precision == "bf16"  # two runs in one process, each as it was asked for


def test_two_processes(trained, tmp_path):
    run(*AR, "--train_batch_size", 8, "--output_dir", tmp_path / "ar", processes=2)
    one, two = weights(trained[0]), weights(tmp_path / "ar")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_killed_and_resumed(tmp_path):
    longer = [*AR, "--max_train_steps", 60, "--checkpointing_steps", 5]
    run(*longer, "--output_dir", tmp_path / "whole")
    process = command(*longer, "--output_dir", tmp_path / "killed")
    for _ in range(1200):
        if list((tmp_path / "killed").glob("checkpoint-*")):
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    resumed = ["train", "toy_ar", "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "killed"]
    run(*resumed)  # its own record says the rest
    assert (tmp_path / "killed" / "model_index.json").exists()
    last = "checkpoint-000000000960"
    for file in (tmp_path / "whole" / last).glob("*.safetensors"):
        one, other = load_file(file), load_file(tmp_path / "killed" / last / file.name)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_load_with_hfgen(trained):
    pipe = hfgen.load_pipeline(str(trained[0]))
    images = pipe(2, [torch.Generator().manual_seed(i) for i in range(2)], output_type="pt").images
    assert images.shape == (2, 1, 8, 8)


WITHOUT = """
import sys
for name in ("hfgen", "toy_ar"):
    sys.modules[name] = None  # an import of it fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipe(2, [torch.Generator().manual_seed(i) for i in range(2)], output_type="pt").images
torch.testing.assert_close(images, torch.tensor(eval(sys.argv[2])), rtol=0, atol=0)
"""


def test_load_without_hfgen(trained):
    images = hfgen.load_pipeline(str(trained[0]))(
        2, [torch.Generator().manual_seed(i) for i in range(2)], output_type="pt"
    ).images
    python(WITHOUT, trained[0], images.tolist())


def test_sample(trained, tmp_path):
    run("sample", "--model", trained[0], "--num_images", 3, "--output_dir", tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == [
        "000000.png", "000001.png", "000002.png", "grid.png",
    ]  # fmt: skip
    images = hfgen.sample(str(trained[0]), num_images=3)
    from PIL import Image

    with Image.open(tmp_path / "images" / "000001.png") as image:
        assert image.tobytes() == images[1].tobytes()


def test_an_option_that_it_lacks_is_named(trained, tmp_path):
    process = command("sample", "--model", trained[0], "--truncation", 0.5, "--output_dir", tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and err.count("\n") == 1 and "--truncation" in err


def test_evaluate_its_likelihood(trained, tmp_path):
    report = tmp_path / "report.json"
    run("evaluate", "--model", trained[0], "--metrics", "bits_per_dim", "--num_images", 20, "--output", report)
    (model,) = json.loads(report.read_text())["models"]
    bits = model["results"]["bits_per_dim"]["value"]
    assert 0 < bits < 12


def test_evaluation_while_training(tmp_path):
    flags = ["--eval_every", 3, "--eval_metrics", "bits_per_dim", "--eval_num_images", 20]
    run(*AR, *flags, "--metric_for_best_model", "bits_per_dim", "--output_dir", tmp_path / "ar")
    lines = [line for line in metrics(tmp_path / "ar") if "eval_bits_per_dim" in line]
    assert [line["images_seen"] for line in lines] == [48, 96]
    assert (tmp_path / "ar" / "best" / "model_index.json").exists()


def test_push(trained, hub):
    run("push", "--folder", trained[0], "--hub_model_id", "ada/toy", env=hub.environment(ADA))
    assert {"model_index.json", "model/config.json", "pipeline_toy_ar_pipeline.py"} <= set(hub["ada/toy"].files())


def test_a_part_that_lacks_is_named(monkeypatch):
    from hfgen.registry import Family, find_family

    family = find_family("toy_ar")
    broken = Family(**{**vars(family), "recipe": "toy_ar.family:Absent"})
    with pytest.raises(UserError, match="recipe of the family 'toy_ar' .* toy_ar.family:Absent"):
        broken.load("recipe")


def test_an_unknown_family_suggests_the_nearest():
    process = command("train", "toy_at")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "toy_ar" in err and err.count("\n") == 1


# Two sources, a frozen network with a derived column, a pool of each process's own


@pytest.mark.parametrize("processes", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("live", [False, True], ids=["cached", "live"])
def test_the_pair_resumes_exactly(tmp_path, processes, live):
    flags = [*PAIR, *["--live"] * live, "--lr_scheduler", "constant"]
    run(*flags, "--output_dir", tmp_path / "whole", processes=processes)
    run(*flags, "--max_train_steps", 4, "--output_dir", tmp_path / "half", processes=processes)
    resume = ["--resume_from_checkpoint", "latest", "--max_train_steps", 6]
    run("train", "toy_pair", *resume, "--output_dir", tmp_path / "half", processes=processes)
    assert_same(tmp_path / "half", tmp_path / "whole")
    last = tmp_path / "half" / f"checkpoint-{96 * processes:012d}"
    assert not (last / "features.safetensors").exists()
    record = json.loads((tmp_path / "half" / "run.json").read_text())
    assert record["frozen"]["features"]["origin"] == "toys/features@1"
    assert set(record["parameters"]) == {"translator", "pool"}
    if processes > 1:
        pools = [load_file(last / f"buffers_pool_{process}.safetensors") for process in range(2)]
        assert not torch.equal(pools[0]["past"], pools[1]["past"]) and pools[0]["count"] == 96
    head = load_file(last / "translator.safetensors")["head.weight"]
    assert not torch.equal(head, torch.zeros_like(head))


def test_of_a_translator_only_what_is_true_is_said(tmp_path, monkeypatch, capsys, on_the_cpu):
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    main([*PAIR, "--max_train_steps=1", "--output_dir=pair"])
    shown = capsys.readouterr()
    assert shown.out.endswith("Use it:   hfgen translate --model pair --input FOLDER\n")
    assert "hfgen sample" not in shown.out
    card = ModelCard.load("pair/README.md")
    for untrue in ("batch_size=", "seed 0", "encoder", "hfgen sample", "Samples, not"):
        assert untrue not in card.text
    assert card.data.tags == ["hfgen", "toy_pair"] and card.data.pipeline_tag == "image-to-image"
    assert "*Training images, in the first row, and what it makes of them.*" in card.text
    assert not re.search(r"\{\{|\{%|\bNone\b|\n\n\n", card.text)
    snippets = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(snippets) == 2
    monkeypatch.chdir("pair")
    for snippet in snippets:
        made = {}
        exec(snippet, made)
        (image,) = made["images"]
        shown = np.asarray(Image.open("samples.png"))[4:68, 4:68]
        assert image.size == (8, 8) and np.array_equal(np.asarray(made["image"]).repeat(8, 0).repeat(8, 1), shown)
    Image.new("L", (8, 8)).save(tmp_path / "given.png")
    main(["translate", "--model=.", f"--input={tmp_path / 'given.png'}", f"--output_dir={tmp_path / 'translated'}"])
    assert Image.open(tmp_path / "translated" / "given.png").size == (8, 8)
    write_short_card(tmp_path, hfgen.load_pipeline("."), "ada/pair")
    assert "batch_size=" not in (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit):
        main(["sample", "--model=."])
    assert "is a translator, which makes no images from seeds" in capsys.readouterr().err
    given = ["--metrics", "fd", "label_kept", f"--extractor={save_classifier(tmp_path / 'classifier')}"]
    main(["evaluate", "--model=.", *given, "--num_images=20", f"--output={tmp_path / 'it.json'}"])
    (report,) = json.loads((tmp_path / "it.json").read_text())["models"]
    assert report["model"]["family"] == "translator" and 0 <= report["results"]["label_kept"]["value"] <= 1


def test_the_frozen_part_of_a_network_stays(tmp_path, on_the_cpu):
    from hfgen.training.api import prepare
    from hfgen.training.options import collect

    run = prepare(collect("toy_pair", **TINY, output_dir=str(tmp_path)))
    module = run.engine.modules["translator"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run.train()
    after = module.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"base.weight", "base.bias"}
    assert not run.engine.modules["features"].training


def test_compare_beside_a_gan(trained, tmp_path):
    gan = tmp_path / "gan"
    run("train", "gan", *TINY_GAN, "--output_dir", gan)
    flags = ["--metrics", "bits_per_dim", "--num_images", 20, "--output_dir", tmp_path / "compared"]
    run("compare", "--model", trained[0], gan, *flags)
    assert (tmp_path / "compared" / "compare.png").exists()
    report = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert f"Without bits_per_dim: {gan} is a GAN, whose likelihood is not known." in report["remarks"]
