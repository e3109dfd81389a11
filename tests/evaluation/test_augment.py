"""What generated images are worth to a classifier: scores, filters, pairs of seeds, the verdict, who has seen what."""

import json
import math

import numpy as np
import pytest
import torch
from evaluation.tiny import save_model
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import hfgen
from hfgen.data.cache import cut_squares, open_images
from hfgen.data.config import DataConfig
from hfgen.evaluation.augment import Trained, memorised, score, train_one, unlikely
from hfgen.evaluation.augment_report import compare, verdict
from hfgen.evaluation.augment_splits import has_seen, open_split, write_split_only
from hfgen.evaluation.classifier import Part, build_model, build_processor
from hfgen.evaluation.config import AugmentConfig, ClassifierConfig
from hfgen.evaluation.generated import Folder, Generator, Images, Mixture, as_data, choose
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import load_sampler

TINY = {"resolution": 8, "base_channels": 4, "num_epochs": 2, "train_batch_size": 16}


def pictures(folder, counts, names=("dark", "light"), size=(8, 8), seed=0, noise=40):
    """A folder of gray images by class: the greater the number of the class, the lighter."""
    generator = np.random.default_rng(seed)
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = generator.integers(0, noise, size[::-1], dtype=np.uint8) + np.uint8(30 * number)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("augment")
    pictures(home / "real", (45, 15))
    pictures(home / "generated", (50, 50), seed=1)
    pictures(home / "others", (9, 9), names=("light", "medium"))
    pictures(home / "flat", (9,), names=(".",))
    return home


def opened(folder, **options):
    data = DataConfig(train_data_dir=str(folder), resolution=8)
    return open_split(data, ClassifierConfig(**options))


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 5):
        logits, labels = torch.randn(60, classes, generator=generator), np.arange(60) % classes
        shares = logits.double().softmax(1).numpy()
        expected = roc_auc_score(labels, shares[:, 1] if classes == 2 else shares, multi_class="ovr", average="macro")
        scores = score(logits, labels)
        assert scores["auc"] == pytest.approx(expected)
        assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_generated_images_take_the_form_of_real_ones(folders, tmp_path):
    """Gray, of their size, and a transparent one over white; behind oblong real ones, which are cropped at random."""
    info = opened(folders / "real").train.data.info
    images = torch.full((2, 4, 16, 16), 100, dtype=torch.uint8)
    images[1, 3] = 0
    assert as_data(images, info, "white").shape == (2, 1, 8, 8)
    assert as_data(images, info, "white")[1].min() == 255
    pictures(tmp_path / "oblong", (20, 20), size=(12, 8))
    split = opened(tmp_path / "oblong")
    square = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    both = Mixture(split.train, Images(info, square, np.array([1, 0, 1])))
    count = len(split.train.rows)
    rows = np.array([count + 2, 0, count])
    strips = both.strips(rows)
    assert strips.shape == (3, 1, 8, 12) and both.labels[rows].tolist()[::2] == [1, 1]
    for offset in (0.0, 0.5, 0.99):
        squares = cut_squares(strips, both.layout[rows], np.full(3, offset))
        assert (squares[[0, 2]] == square[[2, 0]]).all()
    assert (strips[1] == split.train.data.strips(split.train.rows[:1])[0]).all()


def test_a_generator_makes_the_classes_of_the_data_by_name(folders, tmp_path):
    """The model numbers them otherwise, and knows more of them."""
    sampler = load_sampler(save_model(tmp_path / "gan", "gan"))
    info = opened(folders / "real").train.data.info
    made = Generator(sampler, ("8", "3")).images(5, 7, info, "white")
    assert made.labels.tolist() == [0, 1] * 5
    expected = hfgen.sample(str(tmp_path / "gan"), 10, seed=7, class_labels=["8", "3"])
    assert all((np.asarray(one) == two[0]).all() for one, two in zip(expected, made.images, strict=True))
    with pytest.raises(UserError, match=r"does not know 2 of the 2 classes of the data: dark, light. It has 0, 1, 2"):
        Generator(load_sampler(str(tmp_path / "gan")), ("dark", "light"))
    with pytest.raises(UserError, match=r"knows no classes, and images without a class teach none: train it by class"):
        Generator(load_sampler(save_model(tmp_path / "vae", "vae")), ("3", "8"))


def test_a_folder_of_generated_images(folders):
    split = opened(folders / "real")
    folder = Folder(str(folders / "generated"), split.train.data.info, split.data)
    some = folder.images(10, 0, split.train.data.info, "white")
    assert np.bincount(some.labels).tolist() == [10, 10] and some.images[some.labels == 1].min() >= 30
    again, other = (folder.images(10, seed, split.train.data.info, "white") for seed in (0, 1))
    assert (again.images == some.images).all() and (other.images != some.images).any()
    assert np.bincount(folder.images(900, 0, split.train.data.info, "white").labels).tolist() == [50, 50]
    with pytest.raises(UserError, match=r"does not know 1 of the 2 classes of the data: dark. It has medium instead"):
        Folder(str(folders / "others"), split.train.data.info, split.data)
    with pytest.raises(UserError, match=r"`generated` .*flat has no classes: give a folder with a sub-folder"):
        Folder(str(folders / "flat"), split.train.data.info, split.data)
    with pytest.raises(UserError, match=r"`generated` /no/where: "):
        Folder("/no/where", split.train.data.info, split.data)


def test_all_classes_alike(folders):
    split = opened(folders / "real")
    pool = Images(split.train.data.info, np.zeros((30, 1, 8, 8), np.uint8), np.array([0] * 20 + [1] * 10))
    assert np.bincount(choose(pool, 11).labels).tolist() == [6, 5]
    assert np.bincount(choose(pool, 40).labels).tolist() == [20, 10]  # what there is


@pytest.fixture(scope="module")
def real(folders):
    """A classifier of real images, a little trained."""
    split = opened(folders / "real")
    return split, train_one(
        split.train, split.test, split.data, ClassifierConfig(base_channels=4).suited([36, 12]), 30
    )


def test_unlikely_images_are_the_lightest_dark_ones(real):
    """By another way: the probabilities of each class in order."""
    split, trained = real
    generator = np.random.default_rng(3)
    pool = Images(split.train.data.info, generator.integers(0, 90, (50, 1, 8, 8), dtype=np.uint8), np.arange(50) % 2)
    drop = unlikely(trained, pool, 0.3)
    pixels = torch.from_numpy(pool.images).expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.inference_mode():
        shares = trained.model(pixels).logits.softmax(1)[torch.arange(50), torch.arange(50) % 2]
    for number in (0, 1):
        own, gone = shares[number::2], torch.from_numpy(drop[number::2])
        assert gone.sum() == 7 and own[gone].max() <= own[~gone].min()
    assert not unlikely(trained, pool, 0.0).any()


def test_copies_are_found(real, tmp_path):
    """Training images among new ones. Of these about a hundredth is near, too, as of those held out."""
    split, trained = real
    pictures(tmp_path / "held_out", (150, 150), seed=4)
    held_out = open_images(DataConfig(train_data_dir=str(tmp_path / "held_out"), resolution=8))
    pictures(tmp_path / "new", (100, 100), seed=5)
    new = open_images(DataConfig(train_data_dir=str(tmp_path / "new"), resolution=8))
    copies = split.train.data.squares(split.train.rows[:12])
    pool = Images(split.train.data.info, np.concatenate([copies, new.images]), np.zeros(212, np.int64))
    drop = memorised(trained, pool, split.train, Part(held_out, np.arange(300)))
    assert drop[:12].all() and drop[12:].mean() < 0.06


def conditions_of(**values):
    return {name: {"values": {"balanced_accuracy": list(own), "auc": list(own)}} for name, own in values.items()}


def test_pairs_of_seeds():
    conditions = conditions_of(**{"real only": (0.5, 0.7, 0.9), "real + 1 x generated": (0.52, 0.73, 0.94)})
    compare(conditions)
    found = conditions["real + 1 x generated"]
    assert found["difference"]["auc"] == pytest.approx(0.03)
    assert found["standard_error"]["auc"] == pytest.approx(np.std([0.02, 0.03, 0.04], ddof=1) / math.sqrt(3))
    assert conditions["real only"]["deviation"]["auc"] == pytest.approx(0.2)
    alone = conditions_of(**{"real only": (0.5,), "real + 1 x generated": (0.6,)})
    compare(alone)
    assert alone["real only"]["deviation"]["auc"] is alone["real + 1 x generated"]["standard_error"]["auc"] is None


@pytest.mark.parametrize(
    ("gains", "text"),
    [
        ((0.02, 0.03, 0.025, 0.02, 0.03), "Adding generated images helped, 1 x generated by +2.50 ± 0.22 points"),
        ((-0.02, -0.03, -0.025, -0.02, -0.03), "Adding generated images hurt, 1 x generated by -2.50 ± 0.22 points"),
        ((0.02, -0.03, 0.025, -0.02, 0.03), "No difference that 5 seeds can show: the largest, of 1 x generated by"),
        ((0.02, 0.02), "2 seeds show no difference, whichever way it goes: use `num_seeds` 3 or more"),
    ],
)
def test_the_verdict(gains, text):
    real = np.linspace(0.6, 0.9, len(gains))
    conditions = conditions_of(**{"real only": real, "generated only": real - 0.3, "real + 1 x": real})
    conditions |= conditions_of(**{"real + 1 x generated": real + np.array(gains)})
    compare(conditions)
    assert verdict(conditions, ["real + 1 x generated"]).startswith(text)
    assert "has seen the held-out images" in verdict(conditions, ["real + 1 x generated"], seen=True) or len(gains) < 3


def test_the_chance_is_of_all_ratios_together():
    """A difference that one comparison would call one, at t = 3.2 of 4 degrees of freedom, is none among three."""
    gains = np.array([0.01, 0.02, 0.03, 0.02, 0.005])
    real = np.full(5, 0.7)
    names = [f"real + {ratio} x generated" for ratio in (1, 2, 3)]
    conditions = conditions_of(**{"real only": real, names[0]: real + gains, names[1]: real, names[2]: real})
    compare(conditions)
    assert verdict(conditions, names[:1]).startswith("Adding generated images helped")
    assert verdict(conditions, names).startswith("No difference that 5 seeds can show")


def test_a_whole_comparison(folders, tmp_path):
    """Every seed's classifiers are pairs; the report says what was compared, and the files are there."""
    options = dict(train_data_dir=str(folders / "real"), num_seeds=3, ratios=(0.5, 1), **TINY)
    lines = []
    report = hfgen.augment(
        generated=str(folders / "generated"), output_dir=str(tmp_path / "out"), say=lines.append, **options
    )
    names = ["real only", "generated only", "real + 0.5 x generated", "real + 1 x generated"]
    assert list(report["conditions"]) == names
    counts = [(each["real"], each["generated"]) for each in report["conditions"].values()]
    assert counts == [([48] * 3, [0] * 3), ([0] * 3, [48] * 3), ([48] * 3, [24] * 3), ([48] * 3, [48] * 3)]
    for condition in report["conditions"].values():
        assert [len(values) for values in condition["values"].values()] == [3, 3]
    (split,) = report["splits"]
    assert split["train_data"]["class_counts"] == {"dark": 36, "light": 12}
    assert split["test_data"]["class_counts"] == {"dark": 9, "light": 3}
    assert "All classes count alike in each training, whatever their share of its images." in report["notes"]
    assert any("has only 3 held-out images: each is 33 points" in note for note in report["notes"])
    assert any("Nothing here says what" in note for note in report["notes"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"augment.json", "augment.png", "README.md"}
    assert json.loads((tmp_path / "out" / "augment.json").read_text()) == report
    text = (tmp_path / "out" / "README.md").read_text()
    assert report["verdict"] in text and "| real + 0.5 x generated | 72 |" in text
    assert Image.open(tmp_path / "out" / "augment.png").size[0] == 900
    assert sum(line.startswith("Seed ") for line in lines) == 12
    again = hfgen.augment(generated=str(folders / "generated"), say=lines.append, **options)
    assert again["conditions"] == report["conditions"], "the seeds decide all of it"


def test_splits_take_turns_and_images_are_left_out(folders, tmp_path):
    for seed in (0, 1):
        values = {"train_data_dir": str(folders / "real"), "seed": seed, "test_split": "0.4"}
        sizes = hfgen.augment(split_only=str(tmp_path / f"split-{seed}"), **values)
        assert sizes["test"]["class_counts"] == {"dark": 18, "light": 6}
    report = hfgen.augment(
        generated=str(folders / "generated"), splits=[str(tmp_path / f"split-{seed}") for seed in (0, 1)],
        num_seeds=2, ratios=(2.0,), drop_unlikely=0.5, drop_memorised=True, say=lambda text: None, **TINY,
    )  # fmt: skip
    digests = [split["test_data"]["fingerprint"] for split in report["splits"]]
    assert len(set(digests)) == 2, "other images are held out"
    for line in report["dropped"]:
        assert line["generated"] == 100 and line["unlikely"] == 50
    assert max(report["conditions"]["real + 2 x generated"]["generated"]) <= 50
    notes = " ".join(report["notes"])
    assert "too few generated images for real + 2 x generated" in notes and "take turns in 2 splits" in notes
    assert "100 of 200 generated images were left out as unlikely of their class" in notes


def write_record(folder, **config):
    folder.mkdir(exist_ok=True)
    data = {"name": "x", "split": "train", "num_images": 1, "class_names": None}
    (folder / "run.json").write_text(json.dumps({"config": config, "data": data}))
    return str(folder)


def test_whether_a_generator_has_seen_what_is_held_out(folders, tmp_path):
    """As far as records tell."""
    real = str(folders / "real")
    model = write_record(tmp_path / "model", train_data_dir=real, dataset_split="train")
    drawn = opened(folders / "real")
    seen, text = has_seen(model, drawn)
    assert seen and "was trained on images that are held out here: its record names real [train]" in text

    data = DataConfig(train_data_dir=real, resolution=8, validation_split="0.2")
    careful = write_record(tmp_path / "careful", train_data_dir=real, dataset_split="train", validation_split="0.2")
    left_out = open_split(data, ClassifierConfig())
    assert not has_seen(careful, left_out)[0] and has_seen(model, left_out)[0]
    others = {"validation_split": "0.2", "group_column": "patient"}  # it left out, then
    by_patient = write_record(tmp_path / "by-patient", train_data_dir=real, dataset_split="train", **others)
    assert has_seen(by_patient, left_out)[0]

    write_split_only(DataConfig(train_data_dir=real), ClassifierConfig(), tmp_path / "split")
    split = open_split(DataConfig(dataset_name=str(tmp_path / "split"), resolution=8), ClassifierConfig())
    seen, text = has_seen(model, split)
    assert seen and "out of which the split split was written" in text
    honest = write_record(tmp_path / "honest", dataset_name=str(tmp_path / "split"), dataset_split="train")
    seen, text = has_seen(honest, split)
    assert not seen and text.endswith("was trained on split [train], not on the held-out images.")
    all_of_it = write_record(tmp_path / "all", dataset_name=str(tmp_path / "split"), dataset_split="train+test")
    assert has_seen(all_of_it, split)[0]
    tuned = write_record(tmp_path / "tuned", dataset_name=str(tmp_path / "split"), init_from=model)
    seen, text = has_seen(tuned, split)
    assert seen and text.startswith(f"{tuned} began with the weights of {model}. {model} was trained on")
    for name, other in (("one", "two"), ("two", "one")):  # a folder that was written again
        write_record(tmp_path / name, dataset_name="a/b", init_from=str(tmp_path / other))
    assert not has_seen(str(tmp_path / "one"), split)[0]
    foreign = write_record(tmp_path / "foreign", dataset_name="a/b", dataset_split="train")
    assert not has_seen(foreign, split)[0] and "other data than split" in has_seen(foreign, split)[1]


def test_images_of_a_generator_that_has_seen_them_are_told(folders, tmp_path):
    """The folder of generated images says which model made them, whose record says the rest."""
    pictures(tmp_path / "made", (10, 10))
    model = write_record(tmp_path / "model", train_data_dir=str(folders / "real"), dataset_split="train")
    (tmp_path / "made" / "samples.json").write_text(json.dumps({"model": model}))
    report = hfgen.augment(
        generated=str(tmp_path / "made"), train_data_dir=str(folders / "real"), num_seeds=3, ratios=[1],
        say=lambda text: None, **TINY,
    )  # fmt: skip
    (warning,) = report["warnings"]
    assert "was trained on images that are held out here" in warning
    assert "this says nothing" in report["verdict"]


def test_what_a_training_left_out_is_held_out(folders, tmp_path):
    """Without being asked: its record says what."""
    model = save_model(tmp_path / "gan", "gan")
    names = {"train_data_dir": str(folders / "digits"), "num_seeds": 1, "ratios": (1,), **TINY}
    pictures(folders / "digits", (20, 20), names=("3", "8"))
    write_record(
        tmp_path / "gan", train_data_dir=str(folders / "digits"), dataset_split="train", validation_split="0.3"
    )
    report = hfgen.augment(model, say=lambda text: None, **names)
    assert not report["warnings"] and report["splits"][0]["test_data"]["split"] == "0.3 of train"
    assert report["splits"][0]["test_data"]["num_images"] == 12
    assert report["splits"][0]["settings"] and report["config"]["validation_split"] == "0.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`model` is missing: give a generator that knows the classes, or images by `generated`"),
        ({"generated": "g", "ratios": ()}, "`ratios` has no values"),
        ({"generated": ("g", "g")}, "`generated` g g has a value twice"),
        ({"generated": "g", "splits": ("a", "b"), "num_seeds": 1}, "`num_seeds` 1 is too few for 2 `splits`"),
        ({"generated": ("g", "h", "i"), "splits": ("a", "b")}, "has 3 values for 2 `splits`: give one, or one for"),
        ({"generated": "g", "ratio": 1}, "`ratio` is no option here. Did you mean ratios?"),
        ({"generated": "{generated}", "class_labels": ["dark"]}, "`class_labels`: all classes of the data are"),
        ({"generated": "{generated}", "train_data_dir": "{few}"}, "class 'b' there are only 1 images"),
        (
            {"generated": "{generated}", "train_data_dir": "{real}", "test_split": "0.2", "drop_memorised": True},
            "`drop_memorised` needs 20 held-out images to compare with: there are 12",
        ),
        ({"split_only": "{new}", "test_split": "test"}, "names them already: give a share"),
        ({"split_only": "{real}"}, "`split_only` .* is not empty: give a new folder"),
    ],
)
def test_mistakes(folders, tmp_path, options, message):
    pictures(tmp_path / "few", (20, 2), names=("a", "b"))
    places = {"real": folders / "real", "generated": folders / "generated", "few": tmp_path / "few"}
    places["new"] = tmp_path / "new"
    given = {name: value.format(**places) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        hfgen.augment(say=lambda text: None, **{"resolution": 8, "train_data_dir": str(places["real"])} | given)


def test_the_random_state_is_that_of_the_seed(folders):
    """Two classifiers of one seed begin with the same weights, whatever was trained before."""
    split = opened(folders / "real")
    config = ClassifierConfig(base_channels=4, seed=5).suited([36, 12])
    first = train_one(split.train, split.test, split.data, config, 2)
    torch.rand(7)
    second = train_one(split.train, split.test, split.data, config, 2)
    assert isinstance(first, Trained) and first.scores == second.scores
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    info = split.train.data.info
    assert build_processor(info).size["height"] == 8 and build_model(info, config).config.num_labels == 2
    assert AugmentConfig(model=("m",)).num_seeds == 5
