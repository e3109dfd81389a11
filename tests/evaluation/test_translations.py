"""Measuring translators: of which images, beside which, and with what numbers."""

import json
import sys

import numpy as np
import pytest
import torch
from evaluation.tiny import save_classifier
from helpers import TINY_TRANSLATION, Command, metrics, save_pairs
from PIL import Image

from hfgen import ImageTranslationPipeline, ResNetTranslator, UserError
from hfgen.evaluation.api import evaluate
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.features import load_extractor
from hfgen.evaluation.trained import recorded_sources
from hfgen.evaluation.translations import distances, ready
from hfgen.sampling.api import ready_sampler

pytest.importorskip("torchmetrics", reason='pairs need torchmetrics: pip install "torchmetrics>=1.4"')


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return save_pairs(tmp_path_factory.mktemp("data") / "pairs", splits=("train", "test"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs):
    """A tiny model that knows both ways between halves of the data, at 16 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "both"
    given = f"--dataset_a {pairs} --image_column a --image_column_b b --image_mode RGB --resolution 16".split()
    splits = ["--dataset_split", "train[:50%]", "--dataset_b_split", "train[50%:]"]
    Command("train translation").main([*TINY_TRANSLATION, *given, *splits, "--output_dir", str(folder)])
    return folder


def run(model, classifier, metrics=("pairs", "label_kept"), **options):
    return evaluate(str(model), metrics, extractor=classifier, num_images=20, **options)


def test_sources_of_the_record(trained, pairs):
    sources = recorded_sources(str(trained))
    assert {name: (source.image_column, source.dataset_split) for name, source in sources.items()} == {
        "a": ("a", "train[:50%]"),
        "b": ("b", "train[50%:]"),
    }
    assert sources["b"].dataset_name == str(pairs)
    assert recorded_sources("nowhere") == {}


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_pairs_by_hand(trained, classifier, pairs, direction):
    """Held-out images are those of the split test, whose rows are pairs whatever the model was trained on."""
    report = run(trained, classifier, direction=direction)
    assert report["data"]["name"] == "pairs" and report["data"]["split"] == "train[" + (
        "50%:]" if direction == "a2b" else ":50%]"
    )
    assert report["data"]["held_out"]["split"] == "test" and report["generation"]["num_images"] == 20
    sampler, _, notes = ready(
        ready_sampler(str(trained), {"direction": direction}, "cpu", translates=True), ReferenceConfig(), 20
    )
    assert notes == [] and len(sampler.given) == len(sampler.others) == 20
    given, made = direction.split("2")
    test = load_parquet(pairs / "data" / "test-00000-of-00001.parquet")
    row = sampler.given.data.rows[sampler.given.rows[3]]
    for column, part in ((given, sampler.given), (made, sampler.others)):
        image = test[int(row)][column].convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image).astype(int) - part.images([3])[0].permute(1, 2, 0).numpy()).mean() < 8
    pipe = ImageTranslationPipeline.from_pretrained(trained)
    inputs, others = sampler.given.images(range(20)), sampler.others.images(range(20))
    translated = pipe(inputs / 255, direction, output_type="pt").images
    results = report["results"]
    expected = ((translated * 255).round() - others).abs().mean() / 255
    assert results["pair_l1"]["value"] == pytest.approx(expected.item(), abs=1e-4)
    untranslated = (inputs.float() - others).abs().mean().item() / 255
    assert results["pair_l1"]["details"]["untranslated"] == pytest.approx(untranslated, abs=1e-6)
    (note,) = results["pair_l1"]["notes"]
    assert f"{untranslated:.4g} for the images as they are, before translation, which changes it by" in note
    extractor = load_extractor(classifier)
    answers = [extractor(images)["logits"].argmax(1) for images in (inputs, others)]
    assert results["label_kept"]["real"] == pytest.approx((answers[0] == answers[1]).double().mean().item())


def load_parquet(file):
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(file), split="train")


def test_distances():
    one = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    same = distances(one, one)
    assert same["l1"].tolist() == [0] * 3 and same["psnr"].tolist() == pytest.approx([100] * 3)
    assert same["ssim"].tolist() == pytest.approx([1] * 3)
    other = (one.int() + 10).clamp(0, 255).to(torch.uint8)
    apart = distances(one, other)
    error = ((one.double() - other.double()) / 255).square().flatten(1).mean(1)
    assert apart["psnr"].tolist() == pytest.approx((-10 * error.log10()).tolist(), rel=1e-5)
    assert (apart["ssim"] < 1).all() and apart["ssim"].shape == (3,)
    clear = torch.cat([one, torch.zeros_like(one[:, :1])], 1)  # nothing of it is to be seen
    white = torch.full_like(clear, 255)
    assert distances(clear, white)["l1"].tolist() == [0] * 3


def test_named_images(trained, classifier, pairs, tmp_path):
    """Other images than those of the training, which are no pairs."""
    for number in range(7):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new("L", (20, 9 + number), 30 * number).save(tmp_path / "mine" / f"{number}.png")
    report = run(trained, classifier, ("fd", "label_kept"), inputs=str(tmp_path / "mine"))
    assert report["generation"]["num_images"] == 7 and report["results"]["label_kept"]["real"] is None
    assert "7 images were translated: there are no more" in report["notes"]
    assert next(iter(report["results"].values()))["real"] is not None
    with pytest.raises(UserError, match="pairs: it needs pairs: what is translated and what it should become"):
        run(trained, classifier, inputs=str(tmp_path / "mine"))
    with pytest.raises(UserError, match="`inputs` nowhere"):
        run(trained, classifier, ("fd",), inputs="nowhere")
    with pytest.raises(UserError, match="Unknown split .*`inputs_split` and"):
        run(trained, classifier, ("fd",), inputs=str(pairs), inputs_split="dev", inputs_column="a")
    with pytest.raises(UserError, match="`inputs_column` a belongs to `inputs`"):
        run(trained, classifier, ("fd",), inputs_column="a")


def test_without_a_record(classifier, pairs, tmp_path):
    ImageTranslationPipeline(ResNetTranslator(16, base_channels=4, num_blocks=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="`dataset_name` is missing: .* has no record of its training"):
        run(tmp_path, classifier, ("fd",))
    with pytest.raises(UserError, match="`inputs` is missing: .* has no record"):
        run(tmp_path, classifier, ("fd",), dataset_name=str(pairs), image_column="b")
    both = {"dataset_name": str(pairs), "image_column": "b", "inputs": str(pairs), "inputs_column": "a"}
    report = run(tmp_path, classifier, ("fd", "precision_recall"), **both)
    assert report["model"]["family"] == "translator" and report["data"]["held_out"]["split"] == "test"


def test_what_does_not_fit(trained, classifier):
    report = run(trained, classifier, "all")
    assert {"pairs", "label_kept"}.isdisjoint(report["left_out"])
    assert "is a translator, whose likelihood is not known" in report["left_out"]["bits_per_dim"]
    with pytest.raises(UserError, match="`metrics` bits_per_dim: .* is a translator"):
        run(trained, classifier, ("bits_per_dim",))
    with pytest.raises(UserError, match="class_labels"):
        run(trained, classifier, ("fd",), class_labels=("3",))


def test_without_the_library(trained, classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(UserError, match="`metrics` pairs: torchmetrics, .* cannot be imported .*: pip install"):
        run(trained, classifier, ("pairs",))
    assert "pip install" in run(trained, classifier, "all")["left_out"]["pairs"]


def test_measured_while_it_trains(pairs, classifier, tmp_path):
    given = f"--dataset_a {pairs} --image_column a --image_column_b b --image_mode RGB --resolution 16".split()
    measured = f"--eval_every 3 --eval_metrics fd pairs --eval_extractor {classifier} --eval_num_images 30".split()
    measured += ["--metric_for_best_model", "fd"]
    Command("train translation").main([*TINY_TRANSLATION, *given, *measured, "--output_dir", str(tmp_path / "run")])
    lines = [line for line in metrics(tmp_path / "run") if "eval_pair_ssim" in line]
    assert [line["images_seen"] for line in lines] == [24, 48]
    assert any(key.startswith("eval_fd_") for key in lines[0])
    record = json.loads((tmp_path / "run" / "best" / "run.json").read_text())
    assert record["evaluation"]["num_images"] == 30
    assert ImageTranslationPipeline.from_pretrained(tmp_path / "run" / "best").directions == ("a2b", "b2a")


def test_compared(trained, classifier, tmp_path, capsys):
    models = ["--model", str(trained), str(trained)]
    given = [*models, "--extractor", classifier, "--metrics", "fd", "pairs", "--num_images", "10"]
    with pytest.raises(UserError, match="twice"):
        Command("compare").main([*given, "--output_dir", str(tmp_path / "c")])
    given.remove(str(trained))
    Command("compare").main([*given, "--output_dir", str(tmp_path / "c")])
    report = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert {"pair_l1", "pair_psnr", "pair_ssim"} <= report["models"][0]["results"].keys()
    assert "Structural similarity" in capsys.readouterr().out and (tmp_path / "c" / "compare.png").exists()


def test_shown(trained, tmp_path):
    for direction in ("a2b", "b2a"):
        out = tmp_path / direction
        given = f"--model {trained} --pictures translations --direction {direction} --num_images 3".split()
        Command("show").main([*given, "--output_dir", str(out)])
        picture = np.asarray(Image.open(out / "translations.png").convert("RGB")).astype(int)
        is_red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
        assert is_red.any() == (direction == "b2a")  # what is given, not what so small a model makes
