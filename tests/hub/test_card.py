"""Cards of every kind of run: what they say is true, their snippets run, with hfgen and without, pushes keep them."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, TINY_GAN, TINY_VAE, Command, python, run, verb_of
from hub.server import ADA, File
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import hfgen.hub.card
from hfgen import GANPipeline, UserError
from hfgen.hub.card import (
    UNMEASURED,
    Shown,
    add_results,
    escape_markdown,
    license_of_data,
    public_record,
    render,
    repeating_commands,
    shown_command,
    with_location,
    write_card,
)
from hfgen.registry import Family, PipelineEntry, find_family
from hfgen.runtime.seeds import image_seed

RUNS = {
    "gan": ("train_gan", TINY_GAN, []),
    "gan-class": ("train_gan", [*TINY_GAN, "--preset", "conditional"], ["0", "9"]),
    "vae": ("train_vae", TINY_VAE, []),
    "vae-class": ("train_vae", [*TINY_VAE, "--preset", "conditional"], ["0", "9"]),
    "vae-denoise": ("train_vae", [*TINY_VAE, "--preset", "denoise"], []),
    "vae-large": ("train_vae", [*TINY_VAE, "--preset", "super_resolve", "--hub_license", "apache-2.0"], []),
    "ddpm": ("train_ddpm", TINY, []),
    "ddpm-class": ("train_ddpm", [*TINY, "--class_conditional"], ["0", "9"]),
    "ddpm-groups": ("train_ddpm", [*TINY, "--num_clusters", "4", "--no_provenance"], []),
}
WITHOUT_HFGEN = """
import json, os, sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nowhere())
for name, (folder, code) in json.loads(sys.argv[1]).items():
    os.chdir(folder)
    namespace = {}
    exec(code, namespace)
    print(name, len(namespace["images"]))
"""


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name, (script, options, _) in RUNS.items():
        short = ["--max_train_steps", "2", "--checkpointing_steps", "100"]
        Command(verb_of(script)).main([*options, *short, "--output_dir", str(folder / name)])
    return {name: folder / name for name in RUNS}


def snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", RUNS)
def test_what_cards_say(cards, name):
    folder = cards[name]
    card = ModelCard.load(folder / "README.md")
    record = json.loads((folder / "run.json").read_text())
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.tags[:2] == ["hfgen", name.partition("-")[0]]
    assert card.data.license == ("apache-2.0" if name == "vae-large" else None)
    assert card.data.datasets is None  # the digits come with the installation
    text = card.text
    assert text.startswith(f"\n# {name}\n") and record["data"]["fingerprint"] in text
    family = name.partition("-")[0]
    assert f"\nhfgen train {family} --config run.json --output_dir again\n" in text
    assert str(folder.parent) not in text
    assert not re.search(r"\{\{|\{%|\bNone\b|\n\n\n|[^\n]\n#|[^\n]\n```(python|bash|bibtex)", text)
    order = ["## Use", "## Training", "## Results", "## Intended use and limits", "## Licence", "## Citation"]
    assert re.findall("(?m)^## .*$", text) == order
    licence = "The licence of this model is `apache-2.0`." if name == "vae-large" else "No licence was chosen"
    assert licence in text.partition("## Licence")[2]
    assert f"## Results\n\n{UNMEASURED}\n" in text
    for word in RUNS[name][2]:
        assert word in re.search(r"[Cc]lasses.*?: (.*)", text)[1]
    (row,) = [line for line in text.splitlines() if line.startswith("| Data |")]
    assert "1797 images" in row and "licence" not in row


@pytest.mark.parametrize("name", RUNS)
def test_snippets_run_with_hfgen(cards, name, monkeypatch):
    monkeypatch.chdir(cards[name])  # from where the card lies
    first, *_ = snippets(cards[name])
    assert ("from hfgen import" in first) == (name != "ddpm")
    namespace = {}
    exec(first.replace("num_inference_steps=50", "num_inference_steps=4"), namespace)
    assert len(namespace["images"]) == (2 if name == "ddpm-class" else 4)
    for other in ("same", "clean", "large"):
        assert len(namespace.get(other, "four")) == 4


@pytest.mark.parametrize("name", ["gan", "vae-denoise", "ddpm", "ddpm-class"])
def test_commands_repeat_the_run(cards, name, tmp_path, monkeypatch):
    """As they are printed, from where the card lies: the weights are equal."""
    folder = Path(shutil.copytree(cards[name], tmp_path / name))
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == (2 if name == "ddpm" else 1)
    for line in lines:
        assert line.startswith("hfgen ")
        verb, *words = shlex.split(line)[1:]
        Command(verb).main(words)
    for file in cards[name].rglob("*.safetensors"):
        one, other = load_file(file), load_file(folder / "again" / file.relative_to(cards[name]))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (folder / "images" / "000063.png").exists() == (name == "ddpm")


def test_commands_name_data_and_extractors_of_this_machine(cards, tmp_path, monkeypatch):
    record = json.loads((cards["gan"] / "run.json").read_text())
    (tmp_path / "my photos").mkdir()
    (tmp_path / "features").mkdir()
    (tmp_path / "patches").mkdir()
    made = {"command": f"hfgen classify --dataset_name=ylecun/mnist --output_dir {tmp_path}/features"}
    (tmp_path / "features" / "eval.json").write_text(json.dumps(made))
    record["config"] |= {"train_data_dir": str(tmp_path / "my photos"), "dataset_name": None, "eval_every": 2}
    record["config"] |= {"metric_for_best_model": "fd", "eval_extractor": str(tmp_path / "features")}
    record["images_per_step"] *= 2
    (train,) = repeating_commands(record, tmp_path / "out" / "gan")
    assert train == (
        "torchrun --nproc_per_node 2 -m hfgen train gan --config run.json --train_data_dir '../../my photos' "
        "--eval_every none --metric_for_best_model none --output_dir again"
    )
    best = {"metric": "fd", "value": 1.0, "images_seen": 32}
    classify, train = repeating_commands(record | {"evaluation": best}, tmp_path / "out" / "gan" / "best")
    assert classify == "hfgen classify --dataset_name=ylecun/mnist --output_dir features --output_dir features"
    assert "--eval_extractor features" in train and "'../../../my photos'" in train and "none" not in train
    monkeypatch.chdir(tmp_path)
    card = f'GANPipeline.from_pretrained(".")\n{train}\n'
    for given, shown in ((str(tmp_path / "features"), "--cluster_features ../../features "), ("patches", None)):
        record["config"]["cluster_features"] = given
        (again,) = repeating_commands(record, tmp_path / "out" / "gan")
        assert (shown in again) if shown else ("cluster_features" not in again)  # a kind, whatever lies here
    pushed = with_location(card, "ada/gan", revision="try").splitlines()
    assert pushed[1] == "hf download ada/gan run.json --local-dir . --revision try"
    assert "--train_data_dir 'my photos' " in pushed[2]


def test_a_published_record_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = {
        "command": "hfgen train gan --train_data_dir /home/me/photos --x=/home/me/y",
        "config": {"train_data_dir": "/home/me/my photos", "output_dir": f"{tmp_path}/out/gan", "n": [1, "/a/b"]},
        "python": "hfgen.train('gan', output_dir='/home/me/out/gan', dataset_name='user/set')",
        "data": {"name": "https://huggingface.co/a/b", "scale": 1.5, "none": None},
    }
    found = public_record(record)
    assert found["command"] == "hfgen train gan --train_data_dir photos --x=y"
    assert found["config"] == {"train_data_dir": "my photos", "output_dir": "out/gan", "n": [1, "b"]}
    assert found["python"] == "hfgen.train('gan', output_dir='gan', dataset_name='user/set')"
    assert found["data"] == record["data"]


def test_snippets_run_without_hfgen(cards):
    code = {name: [str(folder), snippets(folder)[-1]] for name, folder in cards.items()}
    assert all("hfgen" not in text for _, text in code.values())
    code["ddpm"][1] = code["ddpm"][1].replace("num_inference_steps=50", "num_inference_steps=4")
    counts = {name: 1 if name.endswith("class") else 4 for name in RUNS}
    printed = python(WITHOUT_HFGEN, json.dumps(code)).splitlines()
    assert printed == [f"{name} {count}" for name, count in counts.items()]


def test_pictures_say_what_made_them(cards, tmp_path):
    """Source, software and IPTC's mark; not where on this machine the model is; nothing if that is not wanted."""
    for name in ("samples.png", "reconstructions.png"):
        info = Image.open(cards["vae"] / name).info
        assert info["Source"] == "vae" and info["Software"].startswith("hfgen ")
        assert json.loads(info["Comment"]) == {"model": "vae", "images_seen": 32, "seed": 0}
        kind = "trainedAlgorithmicMedia" if name == "samples.png" else "compositeWithTrainedAlgorithmicMedia"
        assert f'/digitalsourcetype/{kind}"' in info["XML:com.adobe.xmp"]
    assert not Image.open(cards["ddpm-groups"] / "samples.png").info

    sample = Command("sample")
    options = ["--num_images", "3", "--seed", "5", "--output_dir"]
    sample.main(["--model", str(cards["gan-class"]), *options, str(tmp_path / "images")])
    sample.main(["--model", str(cards["gan-class"]), *options, str(tmp_path / "bare"), "--no_provenance"])
    for number in range(3):
        image, bare = (Image.open(tmp_path / place / f"{number:06d}.png") for place in ("images", "bare"))
        comment = json.loads(image.info["Comment"])
        assert comment["model"] == "gan-class" and comment["class_label"] == number
        assert comment["seed"] == image_seed(5, number)
        assert comment["truncation"] == 1.0 and comment["commit"] is None
        assert [len(digest) for digest in comment["weights"].values()] == [64]
        assert str(tmp_path.parent) not in str(image.info)
        assert not bare.info and bare.tobytes() == image.tobytes()
    assert json.loads(Image.open(tmp_path / "images" / "grid.png").info["Comment"])["num_images"] == 3


def test_images_from_the_hub_name_the_commit(hub, cards, tmp_path):
    files = {path.relative_to(cards["gan"]).as_posix(): File(path.read_bytes()) for path in cards["gan"].rglob("*.*")}
    commit = hub.create("ada/gan").add("main", "it", files, "ada")
    options = ["--model", "ada/gan", "--num_images", "1", "--output_dir", tmp_path / "images"]
    result = run("sample", *options, env=hub.environment(HF_HOME=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    info = Image.open(tmp_path / "images" / "000000.png").info
    assert info["Source"] == "ada/gan" and json.loads(info["Comment"])["commit"] == commit


def test_a_pushed_card_says_where_it_is(hub, cards, tmp_path):
    """The snippets load from the Hub; what was run stays as it was run; the card on disk stays, too."""
    folder = cards["ddpm"]
    before = (folder / "README.md").read_text()
    options = ["--folder", folder, "--hub_model_id", "ada/digits"]
    result = run("push_to_hub", *options, env=hub.environment(ADA))
    assert result.returncode == 0, result.stderr
    after = hub["ada/digits"].files()["README.md"].decode()
    assert (folder / "README.md").read_text() == before
    assert 'from_pretrained("ada/digits")' in after and "hfgen sample --model ada/digits " in after
    assert "\nhf download ada/digits run.json --local-dir .\nhfgen train ddpm --config run.json" in after
    files = hub["ada/digits"].files()
    assert json.loads(files["run.json"])["data"] == json.loads((folder / "run.json").read_text())["data"]
    assert not any(str(folder.parent).encode() in content for content in files.values())
    here = ("from_pretrained(", "hfgen sample --model", "Run from the folder")
    assert [line for line in before.splitlines() if line not in after.splitlines()] == [
        line for line in before.splitlines() if any(text in line for text in here)
    ]
    old = 'DDPMPipeline.from_pretrained("/home/it")\n`python scripts/sample.py --model /home/it --num_images 64`'
    assert "`python scripts/sample.py --model a/b --num" in with_location(old, "a/b")  # cards of earlier versions
    assert with_location("# Mine\n\nNo code.\n", "ada/digits") == "# Mine\n\nNo code.\n"
    other = 'AutoModel.from_pretrained("other/model")\n'
    ours = other + 'GANPipeline.from_pretrained("/home/it")\nDiffusionPipeline.from_pretrained("/home/it", x=1)'
    assert with_location(ours, "a/b", variant="fp16", revision=None) == (
        other + 'GANPipeline.from_pretrained("a/b", variant="fp16")\n'
        'DiffusionPipeline.from_pretrained("a/b", variant="fp16", x=1)'
    )


PUSH = """
import sys
from hfgen import GANPipeline, UserError
pipe = GANPipeline.from_pretrained(sys.argv[1])
print(pipe.push_to_hub("ada/with-card", revision="try"))
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="ada/saved", private=True, commit_message="Saved")
made = GANPipeline(pipe.model, class_shares=pipe.config.class_shares)
print(made.push_to_hub("ada/made"))
made.push_to_hub("ada/with-card")
pipe.push_to_hub("ada/half", variant="fp16")
next(pipe.model.parameters()).data.add_(1)
pipe.push_to_hub("ada/other-weights")
try:
    pipe.push_to_hub("ada/refused")
except UserError as error:
    print(error)
"""


def test_pipelines_push_cards_that_are_true(hub, cards, tmp_path):
    hub.fail("POST /api/models/ada/refused/commit", times=9, status=403)
    *printed, refused = hub.python(PUSH, cards["gan"], tmp_path / "saved", token=ADA).splitlines()
    assert printed == [f"{hub.url}/ada/with-card/tree/try", f"{hub.url}/ada/made"]
    assert "403" in refused and ADA not in refused
    ours = (cards["gan"] / "README.md").read_text()
    found = hub["ada/with-card"].files("try")
    card = found["README.md"].decode()
    assert card.splitlines()[:19] == ours.splitlines()[:19]
    assert card.count('from_pretrained("ada/with-card", revision="try"') == 2
    assert {"samples.png", "run.json", "pipeline_hfgen_gan.py", "model/modeling_hfgen_dcgan.py"} <= found.keys()
    assert hub["ada/saved"].private and hub["ada/saved"].history()[0] == "Saved"
    assert (tmp_path / "saved" / "model_index.json").exists()
    short = hub["ada/made"].files()["README.md"].decode()
    assert "how, is not known here" in short and "More Information Needed" not in short
    for name, extra in (("half", ', variant="fp16"'), ("other-weights", "")):  # these weights were never measured
        text = hub[f"ada/{name}"].files()["README.md"].decode()
        assert "how, is not known here" in text and text.count(f'from_pretrained("ada/{name}"{extra}') == 2
        assert "samples.png" not in hub[f"ada/{name}"].files()
    namespace = {}
    code = re.search(r"```python\n(.*?)```", short, re.DOTALL)[1].replace("ada/made", str(tmp_path / "saved"))
    exec(code, namespace)
    assert len(namespace["images"]) == 4


def test_no_pickles_are_written(cards, tmp_path):
    pipe = GANPipeline.from_pretrained(cards["gan"])
    for save in (pipe.save_pretrained, pipe.push_to_hub):
        with pytest.raises(ValueError, match="safetensors alone"):
            save(str(tmp_path / "it"), safe_serialization=False)
    assert not (tmp_path / "it").exists()


def test_licence_of_the_data(hub):
    hub.create("ada/free", kind="datasets").add("main", "it", {"README.md": File(b"---\nlicense: mit\n---\n")}, "ada")
    hub.create("ada/odd", kind="datasets").add("main", "it", {"README.md": File(b"---\nlicense: [\n---\n")}, "ada")
    hub.create("ada/bare", kind="datasets")
    code = "import sys\nfrom hfgen.hub.card import license_of_data\nprint(*map(license_of_data, sys.argv[1:]))"
    printed = hub.python(code, "ada/free", "ada/odd", "ada/bare", "ada/absent")
    assert printed.split() == ["mit", "None", "None", "None"]
    assert license_of_data("no/such/name") is None


def test_templates_are_in_the_package():
    """They are found beside the code, so that a wheel has them."""
    package = Path(hfgen.hub.card.__file__).parent
    templates = sorted(path.name for path in (package / "templates").iterdir())
    assert templates == ["base.md", "classifier.md", "dataset.md", "short.md"]
    shown = Shown.of("hfgen.pipelines.gan:GANPipeline")
    values = {"card_data": "", "title": "it", "model_id": "user/it", "pipeline": shown, "call": "class_labels=[0]"}
    text = render("short.md", **values)
    assert "# it\n" in text and text.count("pipe(class_labels=[0], generator") == 2
    assert "from hfgen import GANPipeline" in text


@pytest.mark.parametrize(
    "template", ["{% extends 'base.md' %}", "{% extends 'base.md' %}{% block what %}A toy.{% endblock %}"]
)
def test_a_foreign_family_needs_hardly_a_template(cards, tmp_path, monkeypatch, template):
    (tmp_path / "toy_cards").mkdir()
    (tmp_path / "toy_cards" / "card.md").write_text(template)
    (tmp_path / "toy_cards" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("toy_cards", None)
    entry = PipelineEntry("toy_cards.pipeline:ToyPipeline", "", "")
    toy = Family("toy", "A toy of a model", "", "", (entry,), "toy_cards:card.md", task="image-to-image")
    monkeypatch.setattr(hfgen.hub.card, "find_family", {"toy": toy}.__getitem__)
    record = json.loads((cards["gan"] / "run.json").read_text()) | {"family": "toy"}
    own = set(find_family("gan").load("options").__dataclass_fields__)
    record["config"] = {name: value for name, value in record["config"].items() if name not in own}
    record["data"]["class_shares"] = None
    write_card(tmp_path, record)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-to-image" and card.data.tags == ["hfgen", "toy", "unconditional"]
    assert ("A toy. Trained from scratch" if "what" in template else "A toy of a model. It was trained") in card.text
    with_it, without = snippets(tmp_path)
    assert "from toy_cards.pipeline import ToyPipeline\n" in with_it and "ToyPipeline.from_pretrained(" in with_it
    assert "trust_remote_code=True" in without and "## Citation" not in card.text
    assert not re.search(r"\{\{|\{%|\bNone\b|\n\n\n|[^\n]\n#|[^\n]\n```(python|bash)", card.text)
    write_card(tmp_path, record | {"init_from": "user/older"})
    assert "began with the weights of `user/older`" in (tmp_path / "README.md").read_text()
    broken = Family("toy", "A toy", "", "", (entry,), "toy_cards:absent.md")
    monkeypatch.setattr(hfgen.hub.card, "find_family", {"toy": broken}.__getitem__)
    with pytest.raises(UserError, match="the model card toy_cards:absent.md cannot be filled"):
        write_card(tmp_path, record)


def test_what_nobody_should_see_or_click(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (
        f"python scripts/x.py --model /home/me/out/gan --data_dir=/home/me/x {tmp_path}/y -n 3 --name a=/b '/c d'"
    )
    assert shown_command(command) == "python scripts/x.py --model gan --data_dir=x y -n 3 --name a=/b 'c d'"
    assert escape_markdown({"a|b": ["https://evil.example", "www.evil.example", 3]}) == {
        "a&#124;b": ["https&#58;//evil.example", "www&#46;evil.example", 3]
    }


def test_results_say_how_they_came_about(cards, tmp_path):
    """Other settings are other results; the same ones replace those before."""
    shutil.copytree(cards["gan"], tmp_path / "best")
    data = {"name": "d", "split": "train", "num_images": 50, "held_out": None}
    result = {"value": 1.0, "title": "T", "details": {}}
    for truncation, value in ((1.0, 1.0), (0.5, 2.0), (1.0, 3.0)):
        generation = {
            "num_images": 9,
            "seeds": [0],
            "batch_size": 4,
            "truncation": truncation,
            "classes": None,
            "precision": "no",
        }
        results = {name: result | {"value": value, "title": name} for name in ("fd_x", "near_duplicates")}
        report = {"data": data, "generation": generation, "results": results}
        add_results(tmp_path / "best", report, {"id": "x", "fingerprint": "0" * 64}, "### New\n\nrow\n")
    found = ModelCard.load(tmp_path / "best" / "README.md").data
    assert found.model_name == "gan"  # not "best"
    entries = found.eval_results
    assert sorted((each.metric_type, each.metric_args["truncation"], each.metric_value) for each in entries) == [
        ("fd_x", 0.5, 2.0), ("fd_x", 1.0, 3.0), ("near_duplicates", 0.5, 2.0), ("near_duplicates", 1.0, 3.0),
    ]  # fmt: skip
    for each in entries:
        assert ("num_real_images" in each.metric_args) == (each.metric_type == "fd_x")
        assert "classes" not in each.metric_args and "batch_size" not in each.metric_args
