"""compare.py as users run it: from nothing to the picture, existing checkpoints, times to a quality, and mistakes."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation.tiny import save_classifier, save_data, save_model
from helpers import Command, run, start
from huggingface_hub import ModelCard
from PIL import Image

from hfgen.evaluation import compare
from hfgen.evaluation.report import COLOURS, curves
from hfgen.registry import families
from hfgen.runtime.errors import UserError

FAMILIES = ("ddpm", "gan", "vae")
ALL = [name for name, family in families().items() if family.compare is not None]  # trained where no model is named


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    save_data(folder / "digits")
    save_classifier(folder / "classifier")
    for kind in (*FAMILIES, "stacked"):
        save_model(folder / kind, kind)
    return folder


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(compare, "TURN_SECONDS", 0.01)
    return Command("compare")


def options(place, output, *models, **more):
    given = {"extractor": place / "classifier", "dataset_name": place / "digits", "cache_dir": place / "cache"}
    given |= {"num_images": 40, "cpu_threads": 1, "output_dir": output, **more}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*(["--model", *(str(place / model) for model in models)] if models else []), *flags]


def as_trained(folder, key, values):
    """A record and a log as a training leaves them, with a line for each value of the Frechet distance."""
    (folder / "logs").mkdir()
    record = {
        "config": {"logging_dir": "logs"}, "parameters": {"model": 7, "critic": 5}, "machine": "CPU",
        "training_seconds": 30.0, "images_seen": 300,
        "data": {"name": "digits", "split": "train", "num_images": 1100, "fingerprint": "0"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"images_seen": 100 * number, "images_per_second": 10.0 * number} for number in (1, 2, 3)]
    lines += [
        {"images_seen": 100 * number, "training_seconds": 10.0 * number, key: value}
        for number, value in enumerate(values, 1)
    ]
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
def test_from_nothing_to_the_picture(place, tmp_path):
    folder = tmp_path / "all"
    arguments = options(place, folder, extractor=None, max_train_steps=3)
    result = run("compare", *arguments, "--update_card", timeout=1800)  # a classifier and one of each family
    assert result.returncode == 0, result.stderr
    for verb in ("classify", *(f"train {family}" for family in ALL)):
        assert result.stdout.count(f"\nhfgen {verb} ") == 1
    report = json.loads((folder / "compare.json").read_text())
    models = [str(folder / f"{family}-digits") for family in ALL]
    assert [model["model"]["name"] for model in report["models"]] == models
    for model, family in zip(models, ALL, strict=True):
        card = ModelCard.load(Path(model) / "README.md")
        assert card.text.startswith(f"\n# {family}-digits\n") and card.text.count("## Results") == 1
        assert "40 images against 40 of digits" in card.text and len(card.data.eval_results) == 5
    for model in report["models"]:
        steps_of = json.loads((Path(model["model"]["name"]) / "run.json").read_text())["images_per_step"]
        assert model["cost"]["training_images_seen"] == 3 * steps_of and steps_of in (16, 64)
        assert model["cost"]["training_seconds"] is not None  # it may be 0.0, as it is rounded
    assert Image.open(folder / "compare.png").width > 900


@pytest.mark.slow
def test_what_is_missing_is_trained(place, tmp_path, script, capfd):
    for family in ALL[1:]:
        save_model(tmp_path / f"{family}-digits", family)
    arguments = options(place, tmp_path, extractor=None, max_train_steps=3)
    script.main(arguments)
    shown = capfd.readouterr().out
    assert shown.count("is already trained") == 4
    assert shown.count("\nhfgen classify ") == shown.count("\nhfgen train ") == 1
    report = json.loads((tmp_path / "compare.json").read_text())
    assert report["extractor"]["id"] == "classifier" and report["config"]["max_train_steps"] == 3
    (cost,) = (model["cost"] for model in report["models"] if model["model"]["family"] == "DDPM")
    assert cost["training_images_seen"] == 3 * 64 and cost["training_images_per_second"] > 0
    assert cost["network_evaluations_per_image"] == 2 * 20  # guided by groups

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    script.main([*arguments, "--overwrite_report", "--metrics", "precision_recall"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")} == written
    shown = capfd.readouterr().out
    assert shown.count("is already trained") == 5 and "hfgen train" not in shown


def test_what_is_found(place, tmp_path, script, capsys):
    output = tmp_path / "out"
    script.main(options(place, output, *FAMILIES, num_inference_steps=3, seeds=2))
    report = json.loads((output / "compare.json").read_text())
    (again, *_), given = script.read_options(["--config", str(output / "compare.json"), "--output_dir", "again"])
    assert again.model == tuple(str(place / family) for family in FAMILIES) and given["num_inference_steps"] == 3
    assert {"hfgen", "command", "config", "versions", "machine", "extractor", "models", "remarks"} <= set(report)
    assert report["quality"] is None
    ddpm, gan, vae = (model["cost"] for model in report["models"])
    assert [cost["network_evaluations_per_image"] for cost in (gan, vae, ddpm)] == [1, 1, 3]
    assert report["models"][0]["generation"]["num_inference_steps"] == 3
    samplers = compare.load_samplers([str(place / family) for family in FAMILIES], {}, "cpu")
    for cost, sampler in zip((ddpm, gan, vae), samplers, strict=True):
        network = sampler.pipe.unet if sampler.adapter.kind == "DDPM" else sampler.pipe.model
        assert cost["parameters"] == network.num_parameters()
        assert cost["sampling_images_per_second"] == sorted(cost["sampling_turns"])[compare.TURNS // 2] > 0
        assert cost["training_seconds"] is None and cost["time_to_quality"]["status"] == "not measured"
    shown = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in shown.splitlines() if line.startswith("|")}
    assert [cell.strip() for cell in rows[""]] == [*FAMILIES, "real images"]
    assert [cell.strip() for cell in rows["Seconds of training ↓"]] == ["–"] * 4
    missing = rows["Seconds of training to Fréchet distance ↓"]
    assert [cell.strip() for cell in missing] == [*["not measured"] * 3, "–"]
    assert "±" in rows["Fréchet distance ↓"][0] and "±" in rows["Images/s at sampling ↑"][0]
    for remark in report["remarks"]:
        assert remark in shown


def test_slower_models_are_said_to_be_slower(place, script):
    samplers = compare.load_samplers([str(place / "gan"), str(place / "ddpm")], {}, "cpu")
    fast, slow = compare.time_samplers(samplers, 8, seed=0)
    assert len(fast) == len(slow) == compare.TURNS and min(fast) > max(slow)


def test_time_to_quality(place, tmp_path, script):
    """The first time that is good enough, by what was measured in training only."""
    from hfgen.evaluation.features import load_extractor, metric_prefix

    key = f"eval_{metric_prefix(load_extractor(str(place / 'classifier')))}"
    for family, values in (("gan", (9.0, 2.0, 4.0)), ("vae", (9.0, 5.0, 1.0))):
        save_model(tmp_path / family, family)
        as_trained(tmp_path / family, key, values)
    arguments = options(place, tmp_path / "out", metrics="fd")
    arguments += ["--model", *(str(tmp_path / family) for family in ("gan", "vae")), str(place / "ddpm")]
    script.main(arguments)
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    gan, vae, ddpm = (model["cost"] for model in report["models"])
    assert report["quality"] == 4.0 and any("worst of the last" in remark for remark in report["remarks"])
    assert any("not trained on the same data" in remark for remark in report["remarks"])
    assert gan["time_to_quality"] == {"status": "reached", "seconds": 20.0, "images_seen": 200}
    assert vae["time_to_quality"] == {"status": "reached", "seconds": 30.0, "images_seen": 300}
    assert ddpm["time_to_quality"]["status"] == "not measured"
    assert gan["training_images_per_second"] == 20.0 and gan["training_parameters"] == 12

    script.main([*arguments, "--overwrite_report", "--quality", "1.5"])
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [model["cost"]["time_to_quality"]["status"] for model in report["models"]] == [
        "not reached", "reached", "not measured"
    ]  # fmt: skip


def test_a_record_may_lack_its_log(tmp_path, script):
    as_trained(tmp_path, "eval_fd", (1.0,))
    assert compare.read_run(tmp_path)[0]["images_seen"] == 300 and len(compare.read_run(tmp_path)[1]) == 4
    (tmp_path / "logs" / "metrics.jsonl").unlink()
    assert compare.read_run(tmp_path)[0]["images_seen"] == 300 and compare.read_run(tmp_path)[1] == []
    assert compare.read_run(tmp_path / "absent") == ({}, [])


def test_curves():
    """Later points lie to the right, larger values above, and the level between them."""
    canvas = Image.new("RGB", (400, 300), "white")
    curves(canvas, [[(0.0, 100.0), (10.0, 1.0)], []], "", 10.0, (0, 0, 400, 300))
    pixels = np.asarray(canvas).astype(int)
    colour = tuple(int(COLOURS[0][start : start + 2], 16) for start in (1, 3, 5))
    rows, columns = np.nonzero((pixels == colour).all(2))
    assert columns[rows.argmin()] < 80 and columns[rows.argmax()] > 350
    middle = (rows.min() + rows.max()) / 2
    grays = np.nonzero((pixels[:, 300] == 0x88).all(1))[0]
    assert np.abs(grays - middle).min() <= 2


@pytest.mark.slow
def test_a_signal_is_handed_on(place, tmp_path):
    process = start("compare", *options(place, tmp_path), "--max_train_steps=100000")
    log = tmp_path / "ddpm-digits" / "logs" / "metrics.jsonl"
    while not (log.exists() and log.read_text()) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "hfgen train ddpm" in err and "ended with exit code 143" in err
    assert list((tmp_path / "ddpm-digits").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model", "--model has no names"),
        ("--model {gan} {gan}", "has a checkpoint twice"),
        ("--model {gan} {gan}/absent", "holds no pipeline"),
        ("--model {gan} {stacked}", "images of different sizes cannot be compared: 1x8x8 of "),
        ("--model {gan} --quality 0", "--quality 0.0 is out of range"),
        ("--model {gan} --quality=nan", "--quality is nan, but must be a finite number"),
        ("--model {gan} --max_train_steps 5", "with --model nothing is trained"),
        ("--model {gan} --num_images 1", "--num_images 1 is out of range"),
        ("--model {gan} --seeds 0", "--seeds 0 is out of range"),
        ("--model {gan} --seed -1", "--seed -1 is out of range"),
        ("--model {gan} --metrics", "--metrics has no names"),
        ("--model {gan} --temperature 0.5", "--temperature 0.5: no model here has it (GAN)"),
        ("--model {gan} --truncation 0.5", "has no mean latent"),
        ("--model {gan} --extractor {gan}/absent", "absent"),
        ("--model {gan} {gan}/model --update_card", "is no folder with a README.md"),
        ("--model {gan} --output_dir {gan}/README.md", "README.md cannot be written: it is a file"),
        ("--extractor {gan}/absent", "absent"),
    ],
)
def test_mistakes(place, tmp_path, script, arguments, message):
    given = arguments.format(**{kind: place / kind for kind in ("gan", "stacked")}).split()
    with pytest.raises(UserError) as error:
        script.main([*options(place, tmp_path / "out"), *given])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_is_said_to_be_one(place, tmp_path, script, capsys):
    script.main(options(place, tmp_path / "out", "gan"))
    assert "There is only one checkpoint" in capsys.readouterr().out
    before = (tmp_path / "out" / "compare.json").read_text()
    with pytest.raises(UserError, match=r"compare.json is another report: add --overwrite_report"):
        script.main(options(place, tmp_path / "out", "gan"))
    assert (tmp_path / "out" / "compare.json").read_text() == before


def test_a_training_that_fails_is_named(place, tmp_path, script):
    with pytest.raises(UserError, match=r"^hfgen classify .* ended with exit code 2") as error:
        script.main(options(place, tmp_path, extractor=None, label_column="absent"))
    assert "\n" not in str(error.value) and "the same command goes on" in str(error.value)


def test_several_processes_are_refused(place, tmp_path, script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start this without a launcher"):
        script.main(options(place, tmp_path, "gan"))
