"""Training a classifier: what it leaves behind, what it measures on, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from helpers import Command, data_info, run
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hfgen.data.cache import open_images
from hfgen.data.config import DataConfig
from hfgen.evaluation.classifier import build_model, open_parts, weighted_loss
from hfgen.evaluation.config import ClassifierConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import as_dict

FILES = {"README.md", "config.json", "eval.json", "model.safetensors", "preprocessor_config.json"}
TINY = "--dataset_name digits --resolution 8 --base_channels 8 --num_epochs 1".split()


@pytest.fixture(scope="module")
def script():
    return Command("classify")


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """The job without arguments, shortened."""
    folder = tmp_path_factory.mktemp("out") / "digits"
    script.main(["--num_epochs", "8", "--base_channels", "16", "--output_dir", str(folder)])
    return folder


def squares(folder, split="train", names=("dark", "light"), number=40, labels=None):
    """Oblong colour images, dark ones and light ones; without names, the classes are strings."""
    labels = [index % 2 for index in range(number)] if labels is None else labels
    noise = np.random.default_rng(0).integers(0, 60, (number, 8, 12, 3), dtype=np.uint8)
    images = [
        Image.fromarray(pixels + np.uint8(90 * (label or 0))) for pixels, label in zip(noise, labels, strict=True)
    ]
    kind = ClassLabel(names=list(names)) if names else Value("string")
    columns = {"image": images, "label": labels if names else [f"kind {label}" for label in labels]}
    rows = Dataset.from_dict(columns, features=Features({"image": ImageFeature(), "label": kind}))
    rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data sets that cannot be used as they are."""
    folder = tmp_path_factory.mktemp("data")
    squares(folder / "one", names=("dark",), labels=[0] * 4, number=4)
    squares(squares(folder / "other", names=None), "test", names=None, labels=[2] * 40)
    squares(folder / "empty", labels=[None] * 4, number=4)
    rows = Dataset.from_dict({"image": [Image.new("L", (8, 8))] * 4}, features=Features({"image": ImageFeature()}))
    rows.to_parquet(folder / "bare" / "data" / "train.parquet")
    return folder


def test_the_report_is_a_config_file(trained, script):
    """As the card says, from where it lies."""
    card = (trained / "README.md").read_text()
    assert "\nhfgen classify --config eval.json --output_dir again\n" in card and str(trained.parent) not in card
    made = script.read_options(["--config", str(trained / "eval.json"), "--output_dir", "again"])
    assert as_dict(made) == json.loads((trained / "eval.json").read_text())["config"] | {"output_dir": "again"}


def load(folder):
    return AutoModelForImageClassification.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)


def test_the_folder_is_one_of_transformers(trained):
    assert {path.name for path in trained.iterdir()} == FILES
    assert [path.name for path in trained.parent.iterdir()] == ["digits"]  # nothing temporary is left
    model, processor = load(trained)
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}
    assert processor.size == {"height": 16, "width": 16}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    expected = torch.from_numpy(pixels[:, None].astype(np.float32)).expand(-1, 3, -1, -1) / 127.5 - 1
    found = processor([Image.fromarray(image) for image in pixels], return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected)
    features = AutoModel.from_pretrained(trained)(expected).pooler_output
    assert features.shape == (5, 32, 1, 1)
    digit = Image.fromarray(open_images(DataConfig(resolution=16)).images[0, 0])
    assert pipeline("image-classification", str(trained))(digit)[0]["label"] == "0"


def test_the_accuracy_is_that_on_images_held_out(trained):
    """Computed again from the digits themselves."""
    report = json.loads((trained / "eval.json").read_text())
    images = open_images(DataConfig(resolution=16)).images[:, 0]
    held_out = open_parts(DataConfig(resolution=16), ClassifierConfig())[1].rows
    counts = np.bincount(load_digits().target)
    assert np.bincount(load_digits().target[held_out]).tolist() == np.round(counts / 5).tolist(), (
        "a fifth of each class"
    )
    model, processor = load(trained)
    with torch.inference_mode():
        logits = model(**processor([Image.fromarray(images[row]) for row in held_out], return_tensors="pt")).logits
    right = logits.argmax(1).numpy() == load_digits().target[held_out]
    assert report["held_out"] and report["test_data"]["num_images"] == len(held_out)
    assert report["test_accuracy"] == pytest.approx(right.mean())
    assert right.mean() > 0.95
    counts = [report[part]["class_counts"] for part in ("train_data", "test_data")]
    assert [counts[0][str(d)] + counts[1][str(d)] for d in range(10)] == np.bincount(load_digits().target).tolist()
    by_class = report["test_accuracy_by_class"]
    assert sum(by_class[name] * count for name, count in counts[1].items()) / len(right) == pytest.approx(right.mean())


def test_the_card_says_what_was_measured(trained):
    report = json.loads((trained / "eval.json").read_text())
    card = ModelCard.load(trained / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == report["test_accuracy"]
    assert (result.metric_type, result.dataset_name, result.dataset_split) == ("accuracy", "digits", "train")
    assert f"**Test accuracy: {report['test_accuracy']:.2%}** of 359 images of digits" in card.text
    assert "held out from training" in card.text and "too low" not in card.text
    assert report["command"].endswith(f"--num_epochs 8 --base_channels 16 --output_dir {trained}")
    assert (report["config"]["random_crop"], report["config"]["num_epochs"]) == (1, 8)


def test_the_seed_decides(script, tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        script.main([*TINY, "--random_crop", "1", "--seed", str(seed), "--output_dir", str(tmp_path / name)])
    assert "is too low to measure other images by" in capsys.readouterr().out
    assert "too low to measure other images by" in (tmp_path / "a" / "README.md").read_text()
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.1.weight"], other["classifier.1.weight"])


def test_colour_with_a_split_of_its_own(script, tmp_path):
    """Oblong images, random crops, and rows without a class."""
    folder = squares(tmp_path / "squares", number=60, labels=[0, 1, None] * 20)
    squares(folder, "test", labels=[1, 0, 0, None] * 5, number=20)
    output = tmp_path / "out"
    options = "--resolution 8 --base_channels 8 --num_epochs 20 --train_batch_size 8 --random_flip"
    script.main(["--dataset_name", str(folder), *options.split(), "--output_dir", str(output)])
    report = json.loads((output / "eval.json").read_text())
    assert report["test_accuracy"] == 1 and not report["held_out"]
    assert report["train_data"]["class_counts"] == {"dark": 20, "light": 20}
    assert report["test_data"]["class_counts"] == {"dark": 10, "light": 5}
    model, processor = load(output)
    light = processor(Image.new("L", (20, 20), 120), return_tensors="pt")  # converted and resized
    assert model.config.id2label[model(**light).logits.argmax().item()] == "light"


@pytest.mark.parametrize(("resolution", "stages"), [(4, 1), (8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (256, 6)])
def test_the_network_comes_down_to_four_pixels(resolution, stages):
    info = data_info(mode="RGB", resolution=resolution, class_names=tuple("0123456789"))
    model = build_model(info, ClassifierConfig(base_channels=4))
    widths = [min(4 * 2**stage, 32) for stage in range(stages)]
    assert model.config.hidden_sizes == widths
    out = model.eval().regnet(torch.zeros(1, 3, resolution, resolution))
    assert out.last_hidden_state.shape == (1, widths[-1], *[min(4, resolution // 2)] * 2)


def test_parts(script, tmp_path):
    parse = script.read_options
    train, test = open_parts(*parse(["--dataset_name", "digits", "--seed", "3"]))
    assert np.array_equal(np.sort(np.concatenate([train.rows, test.rows])), np.arange(1797))
    folder = squares(tmp_path / "only_train")
    train, test = open_parts(*parse(["--dataset_name", str(folder), "--test_split", "train"]))
    assert (len(train.rows), len(test.rows)) == (32, 8)
    assert train.data.images.shape[2:] == (64, 96)  # to be cropped at random places
    assert test.data.images.shape[2:] == (64, 64)
    with pytest.raises(UserError, match=r"`test_split` test: .*To hold out a fifth .* add `test_split` train"):
        open_parts(*parse(["--dataset_name", str(folder)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num_epochs 0", "--num_epochs 0 is out of range"),
        ("--learning_rate 0", "--learning_rate 0.0 is out of range"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--dataset_name x --streaming", "--streaming is not for classifiers"),
        ("--balance_classes", "--balance_classes is not for classifiers"),
        ("--resolution 2", "--resolution 2 is out of range"),
        ("--epochs 3", "unknown flag --epochs. Did you mean --num_epochs"),
        ("--output_dir {full}", "is not empty"),
        ("--output_dir {full}/file", "it is a file"),
        ("--dataset_name {data}/one --test_split train", "has only the class 'dark'"),
        (
            "--dataset_name {data}/other --label_column label",
            "--test_split test has other classes than",
        ),
        ("--dataset_name {data}/bare", "has no classes to learn: name the column with --label_column"),
        ("--dataset_name {data}/empty --test_split train", "has too few images with a class"),
    ],
)
def test_mistakes(script, data, tmp_path, arguments, message):
    full, output = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    (full / "file").write_text("mine")
    given = arguments.format(full=full, data=data).split()
    with pytest.raises(UserError, match=message) as error:
        script.main(given if "--output_dir" in given else [*given, "--output_dir", str(output)])
    assert "\n" not in str(error.value)
    assert not output.exists() and (full / "file").read_text() == "mine"


def test_a_training_that_diverges_leaves_nothing(script, tmp_path):
    with pytest.raises(UserError, match="the training diverged: use a smaller --learning_rate"):
        script.main([*TINY, *"--num_epochs 3 --learning_rate 100".split(), "--output_dir", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused(script, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process"):
        script.main([*TINY, "--output_dir", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_job_without_arguments(tmp_path):
    result = run("train_classifier", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "classifier-digits" / "eval.json").read_text())
    assert report["test_accuracy"] > 0.98
    result = run("train_classifier", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "error: --output_dir out/classifier-digits is not empty" in result.stderr


def test_few_and_unequal_images(script, tmp_path, capsys):
    """240 images of one class and 60 of another: 6 epochs of 128 were 12 steps, and the accuracy 13 %."""
    labels = [int(index % 5 == 0) for index in range(100)]
    folder = squares(tmp_path / "data", labels=labels, number=100)
    options = ["--dataset_name", str(folder), "--test_split", "train", "--base_channels", "8", "--resolution", "8"]
    script.main([*options, "--num_epochs", "40", "--output_dir", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert report["config"]["class_weights"] is True and report["config"]["train_batch_size"] == 16
    by_class = report["test_accuracy_by_class"].values()
    assert report["test_balanced_accuracy"] == pytest.approx(sum(by_class) / 2) and sum(by_class) / 2 > 0.9
    out = capsys.readouterr().out
    assert "in steps of 16 images; all classes count alike" in out and "Balanced: " in out
    assert "balanced, the mean over the classes: " in (tmp_path / "out" / "README.md").read_text()


def test_defaults_follow_the_images():
    few, many = ClassifierConfig().suited([240, 60]), ClassifierConfig().suited([6000] * 10)
    assert (few.num_epochs, few.train_batch_size, few.class_weights) == (134, 16, True)
    assert (many.num_epochs, many.train_batch_size, many.class_weights) == (6, 128, False)
    given = ClassifierConfig(num_epochs=2, train_batch_size=5, class_weights=False).suited([240, 60])
    assert (given.num_epochs, given.train_batch_size, given.class_weights) == (2, 5, False)


def test_weighted_classes_count_alike():
    logits, labels = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 0, 1, 1])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    loss = weighted_loss(torch.tensor([6 / 8, 6 / 4]), {"logits": logits}, labels)
    torch.testing.assert_close(loss, (each[:4].mean() + each[4:].mean()) / 2)


def test_transparent_images_lie_over_white(tmp_path):
    for number, colour in enumerate(((200, 0, 0, 128), (0, 0, 200, 0)) * 6):
        folder = tmp_path / "clear" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (8, 8), colour).save(folder / f"{number}.png")
    train, test = open_parts(DataConfig(train_data_dir=str(tmp_path / "clear")), ClassifierConfig())
    assert train.data.info.mode == test.data.info.mode == "RGB"
    assert {tuple(image[:, 0, 0]) for image in train.data.images} == {(227, 127, 127), (255, 255, 255)}
