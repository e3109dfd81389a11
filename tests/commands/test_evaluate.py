"""evaluate.py as users run it: one process and two, the report, the card, several checkpoints, and mistakes."""

import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest
from evaluation.tiny import README, save_classifier, save_data, save_model
from helpers import Command, run
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hfgen.evaluation.config import METRICS
from hfgen.evaluation.inception import sha256_of
from hfgen.evaluation.report import chart, comparable, number, table
from hfgen.hub.card import UNMEASURED, insert_section
from hfgen.runtime.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    save_data(folder / "digits")
    save_classifier(folder / "classifier")
    for kind in ("gan", "vae", "ddpm"):
        save_model(folder / kind, kind)
    return folder


@pytest.fixture
def evaluate():
    return Command("evaluate").main


def options(place, *models, **more):
    given = {"extractor": place / "classifier", "dataset_name": place / "digits", "cache_dir": place / "cache"}
    given |= {"num_images": 40, **more}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return ["--model", *(place / model for model in models), *flags]


def texts(arguments):
    return [str(argument) for argument in arguments]


def what_was_found(path):
    """A report without what the clock and the machine say."""
    report = json.loads(path.read_text())
    for name in ("written", "machine", "command", "config"):
        del report[name]
    for model in report["models"]:
        del model["seconds"]
    return report


def test_one_process_equals_two(place, tmp_path):
    """To the last bit: the batches are the same, and so is the number of threads."""
    more = {"metrics": "all", "batch_size": 7, "cpu_threads": 1, "num_images": 100}
    for processes in (1, 2):
        cache = {"cache_dir": tmp_path / f"cache{processes}", "output": tmp_path / f"{processes}.json"}
        result = run("evaluate", *options(place, "gan", **more, **cache), processes=processes)
        assert result.returncode == 0, result.stderr
    assert what_was_found(tmp_path / "1.json") == what_was_found(tmp_path / "2.json")
    kept = [sorted((tmp_path / f"cache{processes}" / "features").iterdir()) for processes in (1, 2)]
    assert [path.name for path in kept[0]] == [path.name for path in kept[1]]
    for one, two in zip(*kept, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert "fewer than the generated" not in result.stdout and "| real images" in result.stdout


def test_report(place, tmp_path, evaluate, capsys):
    output = tmp_path / "report.json"
    evaluate(texts(options(place, "ddpm", output=output, num_inference_steps=3, seed=9)) + ["--hub_token", "geheim"])
    report = json.loads(output.read_text())
    assert "geheim" not in output.read_text() and "--hub_token '***'" in report["command"]
    assert report["config"]["num_images"] == 40 and report["config"]["extractor"] == str(place / "classifier")
    assert {"python", "torch", "transformers"} <= set(report["versions"]) and "thread" in report["machine"]
    assert report["extractor"]["id"] == "classifier" and len(report["extractor"]["fingerprint"]) == 64
    (found,) = report["models"]
    weights = place / "ddpm" / "unet" / "diffusion_pytorch_model.safetensors"
    assert found["model"]["weights"] == {"unet/diffusion_pytorch_model.safetensors": sha256_of(weights)}
    assert found["model"]["pipeline"] == "DDPMPipeline" and found["model"]["image_shape"] == [1, 8, 8]
    assert found["data"]["split"] == "train" and found["data"]["held_out"]["split"] == "test"
    assert found["data"]["transform"]["resolution"] == 8 and len(found["data"]["fingerprint"]) == 32
    assert found["generation"] == {
        "num_images": 40,
        "seeds": [9],
        "batch_size": 64,
        "sampler": "dpmsolver++",
        "num_inference_steps": 3,
        "guidance_scale": None,
        "classes": None,
        "class_shares": None,
        "precision": "no",
    }
    assert set(found["seconds"]) == {"real_images", "generated_images"}
    shown = capsys.readouterr().out
    assert "40 images against 40 of digits [train], features of classifier" in shown
    for result in found["results"].values():
        assert result["title"] in shown and number(result["value"]) in shown and number(result["real"]) in shown
    assert "Gray images were repeated" in shown and "they are no FID or KID" in shown


@pytest.mark.parametrize(
    ("model", "given"),
    [("gan", {"truncation": 1.0}), ("vae", {"temperature": 0.5}), ("ddpm", {"num_inference_steps": 3})],
)
def test_a_report_is_a_config_file(place, tmp_path, evaluate, model, given):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    evaluate(texts(options(place, model, metrics="fd", output=first, **given)) + ["--overwrite_report"])
    with pytest.raises(UserError, match="first.json is another report"):  # a record does not overwrite
        evaluate(["--config", str(first)])
    evaluate(["--config", str(first), "--output", str(second)])
    assert what_was_found(first) == what_was_found(second)
    before, after = (json.loads(path.read_text())["config"] for path in (first, second))
    assert after == before | {"output": str(second), "overwrite_report": False}


def test_the_digits_need_no_data(place, tmp_path, evaluate):
    arguments = ["--model", place / "gan", "--extractor", place / "classifier", "--num_images", 30]
    evaluate(texts([*arguments, "--output", tmp_path / "a" / "b.json", "--cache_dir", tmp_path]))
    report = json.loads((tmp_path / "a" / "b.json").read_text())
    assert report["models"][0]["data"]["name"] == "digits"
    assert any("half of 'train' is held out" in note for note in report["models"][0]["notes"])


def test_reports_are_not_replaced_unasked(place, tmp_path, evaluate):
    shutil.copytree(place / "gan", tmp_path / "gan")
    arguments = texts(options(place, tmp_path / "gan", metrics="vendi"))
    evaluate(arguments)
    before = (tmp_path / "gan" / "evaluation.json").read_text()
    with pytest.raises(UserError, match=r"evaluation.json is another report: add --overwrite_report"):
        evaluate(arguments)
    assert (tmp_path / "gan" / "evaluation.json").read_text() == before
    evaluate([*arguments, "--overwrite_report", "--num_images", "41"])
    assert (tmp_path / "gan" / "evaluation.json").read_text() != before


def test_nearest_pairs_are_shown(place, tmp_path, evaluate):
    evaluate(texts(options(place, "vae", metrics="memorisation", num_images=200, output=tmp_path / "report.json")))
    assert Image.open(tmp_path / "report-nearest.png").size == (10 * 68 + 4, 2 * 68 + 4)


def test_several_checkpoints(place, tmp_path, evaluate, capsys):
    output = tmp_path / "all.json"
    arguments = texts(options(place, "gan", "vae", "ddpm", output=output, num_inference_steps="none"))
    evaluate([*arguments, "--seeds", "2", "--metrics", "fd", "kd", "label_divergence"])
    models = json.loads(output.read_text())["models"]
    assert [model["model"]["name"] for model in models] == [str(place / kind) for kind in ("gan", "vae", "ddpm")]
    shown = capsys.readouterr().out.partition("All checkpoints:")[2]
    first = next(line for line in shown.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in first.split("|")] == ["", "", "gan", "vae", "ddpm", "real images", ""]
    for model in models:
        for result in model["results"].values():
            assert number(result["value"], result["error"]) in shown
    assert Image.open(output.with_suffix(".png")).size[0] == 900


def test_table_and_chart_say_what_the_numbers_are():
    def report(name, value, error=None, real=0.5, data=1):
        result = {"title": "Thing", "better": "lower", "value": value, "error": error, "real": real}
        return {"model": {"name": name}, "data": {"fingerprint": data}, "results": {"thing": result}}

    reports = [report("out/first/", 2.0), report("second", 1.0, 0.25), report("third", None), report("fourth", -0.5)]
    assert table(reports).splitlines()[2].split("|")[1:-1] == [
        " Thing ↓ ", " 2     ", " 1 ± 0.25 ", " –     ", " -0.5   ", " 0.5         "
    ]  # fmt: skip
    assert "real images" not in table([report("a", 1.0), report("b", 1.0, data=2)])
    assert "| a/x | b/x |" in table([report("a/x", 1.0), report("b/x", 1.0)])
    assert [number(value) for value in (None, 0.123456, 12345.6)] == ["–", "0.1235", "12,346"]

    assert comparable(reports) and not comparable([reports[0], report("b", 1.0, data=2)])

    # Bars are as long as the numbers are large, from 0 on.
    pixels = np.asarray(chart(reports)).astype(int)
    widths = []
    for colour in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77), (0xCC, 0xBB, 0x44)):
        columns = np.nonzero((pixels == colour).all(2).any(0))[0]
        widths.append((columns.min(), columns.max()))
    unit = (widths[0][1] - widths[0][0]) / 2
    assert abs(widths[1][1] - widths[1][0] - unit) <= 2 and abs(widths[2][1] - widths[2][0] - unit / 2) <= 2
    assert abs(widths[1][0] - widths[0][0]) <= 1 and abs(widths[2][1] - widths[0][0]) <= 2


def test_card(place, tmp_path, evaluate, monkeypatch):
    shutil.copytree(place / "gan", tmp_path / "gan")
    path = tmp_path / "gan" / "README.md"
    arguments = texts(options(place, tmp_path / "gan", metrics="all", num_images=100))
    evaluate([*arguments, "--update_card"])
    report = json.loads((tmp_path / "gan" / "evaluation.json").read_text())["models"][0]
    card = ModelCard.load(path)
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {key: result.metric_value for key, result in found.items()} == {
        key: result["value"] for key, result in report["results"].items() if result["value"] is not None
    }
    for result in found.values():
        assert "classifier" in result.metric_name and "100 images" in result.metric_name
        assert result.task_type == "unconditional-image-generation" and result.dataset_split == "train"
        assert "FID" not in result.metric_name and "fid" not in result.metric_type.split("_")
        assert math.isfinite(result.metric_value)
    assert card.data.model_name == "A card" and card.data.license == "apache-2.0" and card.data.tags == ["hfgen"]

    # The rest of the card is as it was, and a second time changes nothing.
    before, _, after = README.partition("---\n\n# A card")[2].partition("## Intended use and limits")
    text = path.read_text()
    assert before in text and text.endswith(f"## Intended use and limits{after}")
    assert text.index("## Results") < text.index("## Intended use and limits") and text.count("## Results") == 1
    assert text.count("\n### ") == 1 and "they are no FID or KID" in text
    for result in report["results"].values():  # every number is explained, and which way is better
        assert re.search(rf"(?m)^- \*\*{re.escape(result['title'])}:\*\* .*(lower|higher) is better", text)

    # Its command repeats the numbers from the folder that the card lies in.
    command = shlex.split(re.search(r"(?m)^hfgen evaluate (.*)$", text)[1])
    assert command[:2] == ["--model", "."] and str(tmp_path) not in " ".join(command)
    monkeypatch.chdir(tmp_path / "gan")
    assert "--extractor=classifier" in command
    command.append(f"--extractor={place}/classifier")  # which nothing says how to make
    command = [part.replace("dataset_name=digits", f"dataset_name={place}/digits") for part in command]
    evaluate([*command, "--output", "again.json", "--cache_dir", str(place / "cache")])
    again = json.loads((tmp_path / "gan" / "again.json").read_text())["models"][0]
    assert again["results"] == report["results"]
    evaluate([*arguments, "--update_card", "--overwrite_report"])
    assert path.read_text() == text
    assert [result.metric_value for result in ModelCard.load(path).data.eval_results] == [
        result.metric_value for result in card.data.eval_results
    ]

    # Another number of images stands beside it, and so does what others wrote.
    evaluate(texts(options(place, tmp_path / "gan", metrics="fd", num_images=50, output=tmp_path / "other.json"))
             + ["--update_card"])  # fmt: skip
    again = ModelCard.load(path)
    assert len(again.data.eval_results) == len(card.data.eval_results) + 1
    assert path.read_text().count("\n### ") == 2 and path.read_text().count("## Results") == 1


def test_card_says_fid_only_of_the_published_network():
    from hfgen.evaluation.report import heading, remarks
    from hfgen.hub.card import eval_results

    def parts(key, title, verified):
        extractor = {"id": "inception", "fingerprint": "1a2b3c4d" * 8, "verified": verified, "notes": []}
        result = {"title": title, "value": 3.0, "better": "lower", "error": None, "real": 1.0, "notes": [],
                  "details": {}}  # fmt: skip
        return {
            "model": {"name": "it"},
            "data": {"name": "user/data", "split": "train", "num_images": 50_000, "held_out": None},
            "generation": {"num_images": 50_000, "seeds": [0], "precision": "no"},
            "results": {key: result},
            "notes": [],
        }, extractor

    report, extractor = parts("fid", "FID", True)
    (entry,) = eval_results(report, extractor)
    assert entry.metric_type == "fid" and entry.metric_name == "FID (inception 1a2b3c4d, 50,000 images)"
    assert heading(report, extractor) == ("50,000 images against 50,000 of user/data [train], features of inception")
    assert remarks(report, extractor) == []
    report, extractor = parts("bits_per_dim", "Bits per dimension", True)
    report["data"]["held_out"] = {"split": "test"}
    for details, about in (({"kind": "bound"}, "bound, "), ({}, "")):
        report["results"]["bits_per_dim"]["details"] = {"num_images": 1000, **details}
        (entry,) = eval_results(report, extractor)
        assert (entry.metric_value, entry.metric_name) == (3.0, f"Bits per dimension ({about}1,000 images)")
    report, extractor = parts("fd_inception-1a2b3c4d", "Fréchet distance", False)
    assert "no FID" in remarks(report, extractor)[0] and "(1a2b3c4d)" in heading(report, extractor)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\n", "# A\n\n## Results\n\n### New\n\nrow\n"),
        ("# A\n\n## Intended use and limits\n\nb\n",
         "# A\n\n## Results\n\n### New\n\nrow\n\n## Intended use and limits\n\nb\n"),
        (f"## Results\n\n{UNMEASURED}\n\n## Z\n", "## Results\n\n### New\n\nrow\n\n## Z\n"),
        ("## Results\n\nmine\n\n### New\n\nold\n\n### Other\n\nc\n\n## Z\n",
         "## Results\n\nmine\n\n### New\n\nrow\n\n### Other\n\nc\n\n## Z\n"),
        ("## Results\n\n### Other\n\nc\n", "## Results\n\n### Other\n\nc\n\n### New\n\nrow\n"),
    ],
)  # fmt: skip
def test_sections(text, expected):
    assert insert_section(text, "### New\n\nrow\n") == expected
    assert insert_section(expected, "### New\n\nrow\n") == expected


def test_broken_weights(place, tmp_path, evaluate):
    """NaN in a network is seen before the real images are looked at."""
    shutil.copytree(place / "gan", tmp_path / "gan")
    weights = tmp_path / "gan" / "model" / "diffusion_pytorch_model.safetensors"
    numbers = {name: tensor for name, tensor in load_file(weights).items() if tensor.is_floating_point()}
    save_file(load_file(weights) | {name: tensor * float("nan") for name, tensor in numbers.items()}, weights)
    with pytest.raises(UserError, match="gan makes images with NaN or infinite values"):
        evaluate(texts(options(place, tmp_path / "gan", cache_dir=tmp_path / "cache")))
    assert not (tmp_path / "cache").exists() and not (tmp_path / "gan" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--model is missing"),
        ("--model {gan} --metrics fdd", "invalid choice: 'fdd'"),
        ("--model {gan} --metrics", "--metrics has no names"),
        ("--model {gan} --num_images 1", "--num_images 1 is out of range: use 2 to 10000000"),
        ("--model {gan} --seeds 0", "--seeds 0 is out of range"),
        ("--model {gan} --seed -1", "--seed -1 is out of range"),
        ("--model {gan} --num_real_images 1", "--num_real_images 1 is out of range"),
        ("--model {gan} --model_name x", "unknown flag --model_name"),
        ("--model {gan} {gan}", "has a checkpoint twice"),
        ("--model {gan} {vae} --revision main", "--revision main belongs to one checkpoint"),
        ("--model {gan}/absent", "holds no pipeline"),
        ("--model {gan} {gan}/absent", "holds no pipeline"),
        ("--model {gan} --output {gan}", "it is a folder. Give another file"),
        ("--model {gan} --output {gan}/README.md/report.json", "report.json cannot be written: Not a directory"),
        ("--model user/gan --update_card", "user/gan is no folder with a README.md"),
        ("--model {gan}/absent --extractor inception", "holds no pipeline"),
        ("--model {gan} --extractor inception", "curl -L --create-dirs -o"),
        ("--model {gan} --extractor facebook/dinov2-small", "hf download facebook/dinov2-small"),
        ("--model {gan} --extractor {gan}", "cannot be loaded"),
        ("--model {gan} --dataset_name {gan}/absent", "cannot be loaded"),
        ("--model {gan} --sampler ddim", "is a GAN, which has truncation instead"),
        ("--model {gan} --class_labels cow", "has no such class"),
        ("--model {vae} --prior mixture", "--prior mixture: none was fitted to this model"),
        ("--model {gan} --mixed_precision fp16", "fp16 does not exist on a CPU"),
        ("--model {gan} --metrics ppl", "--metrics ppl: "),
        ("--model {gan} --metrics birthday", "it needs at least 999 real images, and there are 40"),
    ],
)
def test_mistakes(place, tmp_path, evaluate, monkeypatch, arguments, message):
    monkeypatch.setattr("hfgen.evaluation.inception.cache_path", lambda: tmp_path / "weights.pth")
    names = {kind: place / kind for kind in ("gan", "vae")}
    given = [part.format(**names) for part in arguments.split()]
    defaults = {"extractor": place / "classifier", "dataset_name": place / "digits", "cache_dir": tmp_path,
                "num_images": 40, "output": tmp_path / "report.json"}  # fmt: skip
    for name, value in defaults.items():
        given += [] if f"--{name}" in given else [f"--{name}", str(value)]
    with pytest.raises(UserError) as error:
        evaluate(given)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "report.json").exists()


def test_mistakes_are_one_line(place):
    result = run("evaluate", *options(place, "gan", metrics="ppl"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: --metrics ppl: ")


def test_help_names_every_metric(capsys, evaluate):
    with pytest.raises(SystemExit):
        evaluate(["--help"])
    shown = capsys.readouterr().out
    assert all(metric in shown for metric in METRICS)
