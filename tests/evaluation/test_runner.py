"""The runner: every metric by its name, the same whatever the batches, features kept under the right key."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from evaluation.tiny import save_classifier, save_data, save_model
from PIL import Image
from safetensors.torch import load_file

from hfgen.data.cache import open_images
from hfgen.data.columns import Classes
from hfgen.data.config import DataConfig
from hfgen.data.splits import write_split
from hfgen.evaluation import metrics
from hfgen.evaluation.config import METRICS, ReferenceConfig
from hfgen.evaluation.features import load_extractor, metric_prefix
from hfgen.evaluation.frechet import frechet_from_features
from hfgen.evaluation.kernels import kernel_distance
from hfgen.evaluation.neighbours import precision_recall_density_coverage
from hfgen.evaluation.reference import Part, open_reference, read_cache, shares_of, transform, write_cache
from hfgen.evaluation.runner import evaluate, nearest_pairs
from hfgen.evaluation.trained import following
from hfgen.pipelines.classes import draw_classes
from hfgen.runtime.distributed import map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.capabilities import Generates
from hfgen.sampling.loading import load_pipeline
from hfgen.sampling.sampler import Sampler, load_sampler


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def config(place):
    return ReferenceConfig(dataset_name=save_data(place / "digits"), cache_dir=str(place / "cache"))


@pytest.fixture(scope="module")
def extractor(place):
    return load_extractor(save_classifier(place / "classifier"))


@pytest.fixture(scope="module")
def samplers(place):
    """By name, loaded once."""
    kinds = ("gan", "stacked", "stylegan2", "vae", "ddpm")
    return {kind: load_sampler(save_model(place / kind, kind)) for kind in kinds}


def run(sampler, config, extractor, *names, num_images=40, **options):
    return evaluate(sampler, config, extractor, Accelerator(cpu=True), names, num_images, **options)


def class_generator(seed, index):
    return torch.Generator().manual_seed(image_seed(seed, index, "class"))


def values(report):
    return {key: result["value"] for key, result in report["results"].items()}


# Numbers


def test_features_and_batches_that_no_memory_could_hold(samplers, config, extractor, monkeypatch):
    for name in ("here", "host"):
        monkeypatch.setattr(Machine, name, classmethod(lambda cls: cls("cpu", 10**6)))
    for num_images, batch_size, message in (
        (1000, 1000, "^`batch_size` 1000: 1000 images of 1x8x8 at once need 5.312 MB, and this machine has 1 MB"),
        (100_000, 8, "^`num_images` 100000: the features of so many images, which are kept, need"),
    ):
        with pytest.raises(UserError, match=message):
            run(samplers["gan"], config, extractor, "fd", num_images=num_images, batch_size=batch_size)


def test_numbers_are_those_of_the_functions(samplers, config, extractor, place):
    """Images by the pipeline alone, features by the extractor alone, all real images."""
    everything = dataclasses.replace(config, num_real_images=10_000)
    report = run(samplers["gan"], everything, extractor, "fd", "kd", "precision_recall", "density_coverage", seed=7)
    pipe = load_pipeline(str(place / "gan"))
    generators = [torch.Generator().manual_seed(image_seed(7, index)) for index in range(40)]
    reference = open_reference(everything, (1, 8, 8), 10_000, 40)
    shares = np.bincount(reference.real.data.labels) / 1100
    assert report["generation"]["class_shares"] == pytest.approx(shares.tolist())
    labels = [int(draw_classes(shares.tolist(), 1, class_generator(7, index))) for index in range(40)]
    images = pipe(40, class_labels=labels, generator=generators, output_type="pt").images
    generated = extractor((images * 255).round().to(torch.uint8))["features"]
    real = extractor(torch.from_numpy(np.array(reference.real.data.images)))["features"]
    assert len(real) == report["data"]["num_images"] == 1100

    fd, kd = metric_prefix(extractor), metric_prefix(extractor, "kd")
    distance = kernel_distance(generated, real)
    expected = {fd: frechet_from_features(generated, real), kd: distance.value}
    expected |= precision_recall_density_coverage(generated, real)
    assert values(report) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert report["results"][kd]["error"] == pytest.approx(distance.standard_error, rel=1e-4)

    held_out = extractor(reference.held_out.images(range(40)))["features"]
    assert report["results"][fd]["real"] == pytest.approx(frechet_from_features(held_out, real), rel=1e-4)
    assert json.loads(json.dumps(report)) == report


def test_batches_change_nothing_but_rounding(samplers, config, extractor):
    for kind in ("gan", "ddpm"):
        one = run(samplers[kind], config, extractor, "fd", "kd", batch_size=40)
        other = run(samplers[kind], config, extractor, "fd", "kd", batch_size=7)
        assert values(one) == pytest.approx(values(other), rel=1e-3)
        assert one["results"].keys() == other["results"].keys()


KEYS = {
    "precision_recall": {"precision", "recall"},
    "density_coverage": {"density", "coverage"},
    "vendi": {"vendi"},
    "ndb": {"ndb", "ndb_jsd"},
    "birthday": {"birthday_support"},
    "memorisation": {"near_duplicates", "authpct"},
    "confidence": {"confident_share"},
    "label_divergence": {"label_kl", "label_js", "class_coverage", "smallest_share"},
    "conditional_accuracy": {"conditional_accuracy"},
    "stacked_modes": {"modes", "reverse_kl"},
    "bits_per_dim": {"bits_per_dim"},
}


def keys(extractor, names):
    prefixes = {"fd": metric_prefix(extractor), "kd": metric_prefix(extractor, "kd")}
    prefixes |= {"is": metric_prefix(extractor, "cs")}
    slug = prefixes["fd"].removeprefix("fd_")
    prefixes |= {"cmmd": f"cmmd_{slug}", "ppl": f"ppl_{slug}"}
    return {key for name in names for key in KEYS.get(name, {prefixes.get(name)})}


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("gan", {"stacked_modes", "bits_per_dim", "ppl"}),
        ("vae", {"stacked_modes", "conditional_accuracy", "ppl"}),
        ("stylegan2", {"stacked_modes", "conditional_accuracy", "bits_per_dim"}),
        ("ddpm", {"stacked_modes", "conditional_accuracy", "ppl"}),
    ],
)
def test_every_metric(samplers, config, extractor, monkeypatch, kind, missing):
    monkeypatch.setattr("hfgen.evaluation.path_length.PATHS", 6)
    monkeypatch.setitem(metrics.LEAST, "ndb", (200, 1000))
    real = dataclasses.replace(config, num_real_images=1000)
    report = run(samplers[kind], real, extractor, "all", num_images=200, likelihood_samples=3, likelihood_images=4)
    missing = missing | {"pairs", "label_kept"}  # of translators
    assert set(report["left_out"]) == missing
    assert set(report["results"]) == keys(extractor, set(METRICS) - missing)
    for key, result in report["results"].items():
        assert result["value"] is not None or result["notes"], key
        assert result["better"] in ("lower", "higher")
        if key.startswith("ppl") or key == "bits_per_dim":
            assert result["real"] is None and result["error"] > 0
        elif key != "birthday_support":  # 200 real images have no near-duplicates
            assert result["real"] is not None, key
    # Real images are nearer to real images than those of a network without training.
    fd = report["results"][metric_prefix(extractor)]
    assert fd["real"] < fd["value"]


def test_stacked_modes(samplers, extractor, place):
    """Kinds, counted one by one."""
    folder = save_data(place / "stacks", (("train", 60), ("test", 40)), channels=3)
    config = ReferenceConfig(dataset_name=folder, cache_dir=str(place / "cache"))
    report = run(samplers["stacked"], config, extractor, "stacked_modes", "fd")
    assert "stacked_modes" not in run(samplers["stacked"], config, extractor, "all")["left_out"]
    images = samplers["stacked"](range(40), 0)
    kinds = {tuple(extractor(image[:, None])["logits"].argmax(1).tolist()) for image in images}
    assert report["results"]["modes"]["value"] == len(kinds)

    # The divergence from independent channels, on kinds that are drawn.
    draws = torch.Generator().manual_seed(0)
    real, made = (torch.randint(10, (200, 3), generator=draws) for _ in range(2))
    rows = torch.zeros(200, 1)
    results = metrics.stacked(metrics.Images(rows, kinds=made), metrics.Images(rows, kinds=real), extractor)
    expected = 0.0
    for kind in made:
        shares = [(real[:, channel] == kind[channel]).double().mean().item() for channel in range(3)]
        expected += np.log((made == kind).all(1).double().mean().item() / np.prod(shares)) / 200
    assert results[0].value == len({tuple(kind) for kind in made.tolist()})
    assert results[1].value == pytest.approx(expected)


def test_conditional_accuracy_matches_classes_by_name(samplers, config, extractor):
    """With the classifier's classes in another order, the same images are right."""
    before = run(samplers["gan"], config, extractor, "conditional_accuracy")["results"]["conditional_accuracy"]
    labels = extractor.labels
    turned = dataclasses.replace(extractor, labels=labels[::-1], fingerprint="turned")
    after = run(samplers["gan"], config, turned, "conditional_accuracy")["results"]["conditional_accuracy"]
    real = open_reference(config, (1, 8, 8), 40, 40).real
    sampler = samplers["gan"].with_shares((np.bincount(real.data.labels[real.rows], minlength=10) / 40).tolist())
    logits = extractor(sampler(range(40), 0))["logits"]
    asked = torch.tensor([sampler.class_of(index, 0) for index in range(40)])
    assert before["value"] == (logits.argmax(1) == asked).double().mean().item()
    assert after["value"] == (9 - logits.argmax(1) == asked).double().mean().item()


def test_likelihood_is_that_of_held_out_images(samplers, config, extractor):
    """Against one pass over all of them, which differs by the noise alone."""
    report = run(samplers["vae"], config, extractor, "bits_per_dim", "fd", num_images=100, likelihood_samples=20)
    found = report["results"]["bits_per_dim"]
    from hfgen.sampling.vae import log_evidence

    images = open_reference(config, (1, 8, 8), 100, 100).held_out.images(range(100)).float() / 127.5 - 1
    density = log_evidence(samplers["vae"].pipe.model.eval(), images, num_samples=20)
    assert found["value"] == pytest.approx((-density.estimate.mean() / 64 / np.log(2)).item(), rel=1e-2)
    assert found["details"]["split"] == "test" and found["details"]["num_images"] == 100


def test_names_are_those_of_the_literature_only_for_its_network(samplers, config, extractor):
    results = run(samplers["gan"], config, extractor, "fd", "kd", "is")["results"]
    assert not {"fid", "kid", "is"} & set(results)
    assert not any("FID" in result["title"] or "Inception" in result["title"] for result in results.values())
    published = dataclasses.replace(extractor, id="inception", verified=True, fingerprint="0" * 64)
    results = run(samplers["gan"], config, published, "fd", "kd", "is")["results"]
    assert {key: result["title"] for key, result in results.items()} == {
        "fid": "FID",
        "kid": "KID",
        "is": "Inception Score",
    }


def test_several_seeds(samplers, config, extractor):
    key = metric_prefix(extractor)
    report = run(samplers["gan"], config, extractor, "fd", seed=5, seeds=3)
    singles = [run(samplers["gan"], config, extractor, "fd", seed=5 + number) for number in range(3)]
    found = [values(single)[key] for single in singles]
    result = report["results"][key]
    assert report["generation"]["seeds"] == [5, 6, 7]
    assert result["details"]["values"] == found
    assert result["value"] == pytest.approx(np.mean(found)) and result["error"] == pytest.approx(np.std(found, ddof=1))
    assert "3 seeds" in result["error_kind"]


def test_a_small_sample_is_called_biased(samplers, config, extractor):
    result = run(samplers["gan"], config, extractor, "fd", num_images=20)["results"][metric_prefix(extractor)]
    assert result["value"] > 0 and "bias" in result["notes"][0]


def test_one_metric_that_fails_leaves_the_others(samplers, config, extractor, monkeypatch):
    def fails(*arguments):
        raise ValueError("there is no such thing.")

    monkeypatch.setattr(metrics, "vendi_score", fails)
    report = run(samplers["gan"], config, extractor, "fd", "vendi")
    assert report["results"]["vendi"]["value"] is None
    assert report["results"]["vendi"]["notes"] == ["there is no such thing."]
    assert report["results"][metric_prefix(extractor)]["value"] > 0
    with pytest.raises(UserError, match=r"no metric can be computed: there is no such thing"):
        run(samplers["gan"], config, extractor, "vendi")


def test_infinity_is_no_json(samplers, config, extractor):
    """A class that the reference lacks makes the divergence infinite."""
    few = dataclasses.replace(config, num_real_images=2)
    report = run(samplers["vae"], few, extractor, "label_divergence")
    result = report["results"]["label_kl"]
    if len(set(np.nonzero(result["details"]["counts"])[0]) - set(np.nonzero(result["details"]["real_counts"])[0])):
        assert result["value"] is None and "Difference of the class shares (KL, nats) is inf" in result["notes"]
    json.dumps(report, allow_nan=False)
    infinite = metrics.Result("x", "x", "Distance", float("inf"), real=float("inf"))
    from hfgen.evaluation.runner import as_json

    assert as_json(infinite)["value"] is None
    assert as_json(infinite)["notes"] == ["Distance is inf", "Distance of real images is inf"]


# Real images


def test_halves_where_nothing_is_held_out(samplers, extractor, place):
    config = ReferenceConfig(cache_dir=str(place / "cache"))
    reference = open_reference(config, (1, 8, 8), 300, 10_000)
    assert (len(reference.real.rows), len(reference.held_out.rows), len(reference.train.rows)) == (300, 899, 1797)
    assert not set(reference.real.rows) & set(reference.held_out.rows) and not reference.apart
    again = open_reference(config, (1, 8, 8), 300, 10)
    assert (again.real.rows == reference.real.rows).all() and set(again.held_out.rows) <= set(reference.held_out.rows)
    report = run(samplers["gan"], config, extractor, "fd", "memorisation", num_images=200)
    assert report["data"]["held_out"] == {**report["data"]["held_out"], "split": "train", "num_images": 200}
    assert any("half of 'train' is held out" in note for note in report["notes"])
    copies = report["results"]["near_duplicates"]
    assert "each training image, compared with the others, stands for a new one" in copies["notes"][0]
    assert copies["details"]["train_images"] == 1797 and 0 < copies["real"] < 0.03


def test_splits(config, place):
    reference = open_reference(config, (1, 8, 8), 50, 10_000)
    assert (len(reference.real.rows), len(reference.held_out.rows), len(reference.train.rows)) == (50, 400, 1100)
    assert reference.apart and not reference.notes and reference.held_out.data.info.split == "test"
    turned = dataclasses.replace(config, dataset_split="test", held_out_split="train")
    assert len(open_reference(turned, (1, 8, 8), 10_000, 10_000).held_out.rows) == 1100
    with pytest.raises(UserError, match="`held_out_split` validation"):
        open_reference(dataclasses.replace(config, held_out_split="validation"), (1, 8, 8), 50, 50)
    shutil.copytree(place / "digits", place / "one split")
    (place / "one split" / "data" / "test-00000-of-00001.parquet").unlink()
    lone = open_reference(dataclasses.replace(config, dataset_name=str(place / "one split")), (1, 8, 8), 50, 50)
    assert "the split 'test' cannot be read" in lone.notes[0] and len(lone.train.rows) == 1100
    with pytest.raises(UserError, match="only square gray and colour images"):
        open_reference(config, (1, 8, 12), 50, 50)


def test_what_a_model_was_trained_on(samplers, config, extractor, place, tmp_path):
    shutil.copytree(place / "gan", tmp_path / "gan")
    sampler = load_sampler(str(tmp_path / "gan"))
    record = {
        "data": {"name": "digits", "split": "train", "num_images": 1100, "fingerprint": "of groups"},
        "config": {},
    }
    (tmp_path / "gan" / "run.json").write_text(json.dumps(record))
    (gray,) = run(sampler, config, extractor, "memorisation", num_images=200)["notes"]
    assert gray == "gray images were repeated to the 3 channels that classifier takes"
    record["data"]["num_images"] = 1797
    (tmp_path / "gan" / "run.json").write_text(json.dumps(record))
    _, note = run(sampler, config, extractor, "memorisation", num_images=200)["notes"]
    assert "was trained on 1797 images of digits [train], and is compared with" in note
    (note,) = run(sampler, config, extractor, "fd")["notes"][-1:]
    assert "was trained on 1797 images of digits" in note and "memorisation" not in note


def test_features_are_kept(samplers, config, extractor, place, tmp_path):
    config = dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    first = run(samplers["gan"], config, extractor, "fd", "label_divergence")
    files = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(files) == 2 and all(file.suffix == ".safetensors" for file in files)  # real and held-out ones
    assert values(run(samplers["gan"], config, extractor, "fd", "label_divergence")) == values(first)
    assert sorted((tmp_path / "cache" / "features").iterdir()) == files
    for file in files:  # they are read, or this would change nothing
        tensors = load_file(file)
        write_cache(file, tensors | {"features": tensors["features"] + 3}, {})
    key = metric_prefix(extractor)
    assert values(run(samplers["gan"], config, extractor, "fd"))[key] != values(first)[key]

    def count(**options):
        arguments = {"sampler": samplers["gan"], "config": config, "extractor": extractor} | options
        run(*arguments.values(), "fd")
        return len(list((tmp_path / "cache" / "features").iterdir()))

    # Other weights, other images and other colours: each has files of its own.
    assert count(extractor=load_extractor(save_classifier(tmp_path / "other", seed=1))) == 4
    assert count(config=dataclasses.replace(config, num_real_images=41)) == 5
    assert count(sampler=samplers["stacked"]) == 7
    # The same images in other roles do not: 40 of the one split, now from a half of it, and those of both, exchanged.
    assert count(config=dataclasses.replace(config, dataset_split="test")) == 8
    assert count(config=dataclasses.replace(config, dataset_split="test", held_out_split="train")) == 8
    assert count() == 8

    for broken in (lambda content: b"nothing", lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        for file in files:  # one that cannot be read, or is not as it was written, is made anew
            file.write_bytes(broken(file.read_bytes()))
        assert values(run(samplers["gan"], config, extractor, "fd"))[key] == values(first)[key]
        assert all(read_cache(file) for file in files)


def test_a_cache_that_cannot_be_written(samplers, config, extractor, tmp_path):
    reference = dataclasses.replace(config, cache_dir=str(tmp_path))
    open_reference(reference, (1, 8, 8), 40, 40)
    (tmp_path / "features").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written.*another `cache_dir`"):
        run(samplers["gan"], reference, extractor, "fd")


# Images


def test_pairs_are_made_again(samplers, config, extractor):
    report = run(samplers["gan"], config, extractor, "memorisation", num_images=200)
    pairs = nearest_pairs(samplers["gan"], config, report)
    assert len(pairs) == 10
    train = extractor(open_reference(config, (1, 8, 8), 1, 1).train.images(range(1100)))["features"]
    distances = []
    for generated, real in pairs:
        assert generated.shape == real.shape == (8, 8, 1) and generated.dtype == np.uint8
        both = [extractor(torch.from_numpy(image).permute(2, 0, 1)[None])["features"] for image in (generated, real)]
        distances.append((both[0] - both[1]).norm().item())
        assert distances[-1] <= (both[0] - train).norm(dim=1).min().item() * 1.001 + 1e-6
    assert distances == pytest.approx(sorted(distances), rel=1e-3)
    assert nearest_pairs(samplers["gan"], config, run(samplers["gan"], config, extractor, "fd")) == []


def test_map_over_processes_keeps_the_order():
    seen = []

    def make(indices):
        seen.append(indices)
        return {"rows": torch.tensor(indices)[:, None] * torch.ones(1, 2), "numbers": torch.tensor(indices)}

    found = map_over_processes(Accelerator(cpu=True), 10, 4, make, "Rows")
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert found["numbers"].tolist() == list(range(10)) and found["rows"].shape == (10, 2)


def test_batches_are_cut_when_memory_runs_out(samplers, monkeypatch, place):
    sampler = load_sampler(str(place / "gan"))
    make, sizes = sampler._sample, []

    def limited(indices, seed):
        sizes.append(len(indices))
        if len(indices) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate much.")
        return make(indices, seed)

    monkeypatch.setattr(sampler, "_sample", limited)
    images = sampler(range(10), 0)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert (images.int() - samplers["gan"](range(10), 0).int()).abs().max() <= 1
    sampler(range(4), 0)
    assert sizes[7:] == [2, 2]  # it is remembered

    def broken(indices, seed):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(sampler, "_sample", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        sampler(range(4), 0)


def test_images_with_nan(place):
    pipe = load_pipeline(str(place / "gan"))
    pipe.model.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the model makes images with NaN or infinite values, 4 of 4"):
        Sampler(pipe)(range(4), 0)


# Mistakes


@pytest.mark.parametrize(
    ("kind", "metric", "number", "message"),
    [
        ("gan", "birthday", 40, "it needs at least 999 real images, and there are 40"),
        ("gan", "ndb", 40, "it needs at least 1000 generated images, and `num_images` is 40"),
        ("gan", "precision_recall", 3, "it needs at least 4 generated images, and `num_images` is 3"),
        ("gan", "is", 9, "it needs at least 10 generated images"),
        ("gan", "bits_per_dim", 40, "is a GAN, whose likelihood is not known"),
        ("gan", "ppl", 40, "is no StyleGAN2"),
        ("gan", "stacked_modes", 40, "these are gray"),
        ("vae", "conditional_accuracy", 40, "cannot be asked for a class"),
    ],
)
def test_metrics_that_do_not_fit(samplers, config, extractor, kind, metric, number, message):
    with pytest.raises(UserError, match=f"`metrics` {metric}: .*{message}"):
        run(samplers[kind], config, extractor, "fd", metric, num_images=number)


def test_classifiers_that_do_not_fit(samplers, config, extractor):
    with pytest.raises(UserError, match="it needs a classifier, and classifier is not one"):
        run(samplers["gan"], config, dataclasses.replace(extractor, labels=None), "label_divergence")
    others = tuple(f"kind {number}" for number in range(10))
    with pytest.raises(UserError, match="does not know the classes of"):
        run(samplers["gan"], config, dataclasses.replace(extractor, labels=others), "conditional_accuracy")


def test_groups_are_no_classes(samplers, config, extractor, place):
    """Groups of images have names that look like those of digits, and mean nothing."""
    pipe = load_pipeline(str(place / "gan"), class_shares={str(number): 0.1 for number in range(10)})
    for wanted in (None, ("1", "2")):
        sampler = Sampler(pipe, name="groups", class_labels=wanted)
        assert "conditional_accuracy" in run(sampler, config, extractor, "all", num_images=12)["left_out"]


# Classes, crops, and what training left out


def test_classes_are_as_frequent_as_in_the_reference(extractor, place):
    """A perfect generator of unbalanced data: with its classes in turn it is far from the data, by share it is not."""
    pixels = {0: 40, 1: 210}
    labels = [0] * 90 + [1] * 10
    noise = np.random.default_rng(0).integers(0, 30, (100, 8, 8), dtype=np.uint8)
    images = [Image.fromarray(noise[row] + np.uint8(pixels[label])) for row, label in enumerate(labels)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["dark", "light"])})
    (place / "unbalanced").mkdir()
    data = Dataset.from_dict({"image": images, "label": labels}, features=features)
    data.to_parquet(place / "unbalanced" / "train.parquet")
    config = ReferenceConfig(dataset_name=str(place / "unbalanced"), cache_dir=str(place / "cache"))

    class Perfect(Generates):
        kind, image_shape = "perfect", (1, 8, 8)
        classes = Classes(("light", "dark"))  # numbered otherwise than the data
        pipe = SimpleNamespace(device="cpu")

        def generate(self, generators, labels, options):
            levels = torch.tensor([pixels[1 - label] for label in labels.tolist()])[:, None, None, None]
            noise = [torch.randint(0, 30, (1, 8, 8), generator=generator) for generator in generators]
            return (torch.stack(noise) + levels) / 255

    key, adapter = metric_prefix(extractor), Perfect(Perfect.pipe)
    by_share = run(Sampler(adapter), config, extractor, "fd", num_images=100)
    in_turn = run(Sampler(adapter, class_labels=("0", "1")), config, extractor, "fd", num_images=100)
    assert by_share["generation"]["class_shares"] == pytest.approx([0.1, 0.9])
    assert in_turn["generation"]["class_shares"] is None
    assert values(by_share)[key] < 0.2 * values(in_turn)[key]


def test_classes_that_the_reference_lacks(config, samplers, extractor, place):
    unknown = SimpleNamespace(info=SimpleNamespace(name="it", class_names=("x", "2")), labels=np.array([0, 1, 1, -1]))
    part = Part(unknown, np.arange(4))
    shares, (note,) = shares_of(part, Classes(("1", "2")))
    assert shares == (0.0, 1.0) and "2 of 4 real images have no class, or one that the model does not know" in note
    assert shares_of(part, Classes(("1",))) == (None, ["it has none of the model's classes (1)"])
    unlabelled = Part(SimpleNamespace(info=unknown.info, labels=None), np.arange(4))
    assert shares_of(unlabelled, Classes(("1",)))[0] is None


def test_oblong_images_are_cropped_as_in_training(samplers, extractor, place, tmp_path):
    """Upright and lying gradients: the crops in the centre are all alike, those of a training are not."""
    (tmp_path / "wide").mkdir()
    gradient = np.linspace(0, 255, 8 * 16).astype(np.uint8).reshape(16, 8)
    for row in range(6):
        Image.fromarray(gradient if row % 2 else gradient.T).save(tmp_path / "wide" / f"{row}.png")
    config = ReferenceConfig(train_data_dir=str(tmp_path / "wide"), cache_dir=str(tmp_path / "cache"))
    shutil.copytree(place / "ddpm", tmp_path / "model")
    name = str(tmp_path / "model")
    assert following(config, name).center_crop is None  # nothing is known
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": {"center_crop": False}}))
    at_random = open_reference(following(config, name), (1, 8, 8), 6, 6)
    centred = open_reference(following(dataclasses.replace(config, center_crop=True), name), (1, 8, 8), 6, 6)
    crops = at_random.train.images(range(len(at_random.train.rows)))
    assert crops.shape[1:] == (1, 8, 8) and len(crops.flatten(1).unique(dim=0)) == len(crops)
    assert torch.equal(crops, at_random.train.images(range(len(crops))))
    for crop, row in zip(crops, at_random.train.rows, strict=True):  # a window of the image, the right way round
        whole = gradient if row % 2 else gradient.T
        windows = [whole[i : i + 8] if row % 2 else whole[:, i : i + 8] for i in range(9)]
        assert any(np.array_equal(crop[0].numpy(), window) for window in windows)
    middle = centred.train.images(range(len(crops)))
    assert len(middle.flatten(1).unique(dim=0)) == 2
    assert transform(at_random.real)["center_crop"] is False


def test_the_data_are_seen_as_training_saw_them(tmp_path, monkeypatch):
    """Its columns, its range and its background; of other data with the same name, only what any images need."""
    monkeypatch.chdir(tmp_path)
    for folder in ("deep", "elsewhere/deep", "model"):
        (tmp_path / folder).mkdir(parents=True)
    trained = {
        "train_data_dir": "deep", "dataset_split": "train", "validation_split": "0.3", "value_range": [0, 2000],
        "background": "black", "center_crop": True, "image_column": "scan", "label_column": "kind",
    }  # fmt: skip
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": trained}))

    def seen(**options):
        found = following(ReferenceConfig(**options), "model")
        return found.background, found.center_crop, found.value_range, found.image_column, found.held_out_split

    own = ("black", True, (0, 2000), "scan", "0.3")
    assert seen(train_data_dir="deep") == seen(train_data_dir=str(tmp_path / "deep")) == own
    assert seen(train_data_dir="deep", dataset_split="test") == (*own[:4], None)
    assert seen(train_data_dir="elsewhere/deep") == seen(dataset_name="a/b") == ("black", True, None, None, None)
    asked = {"background": "white", "center_crop": False, "value_range": (0.0, 9.0), "image_column": "x"}
    assert seen(train_data_dir="deep", held_out_split="0.5", **asked) == (*asked.values(), "0.5")
    (tmp_path / "deep").rename(tmp_path / "moved")
    assert seen(train_data_dir="elsewhere/deep") == own  # the name is all that is known of it now
    trained |= {"train_data_dir": None, "dataset_name": "ada/deep", "dataset_config_name": "small"}
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": trained}))
    assert seen(dataset_name="ada/deep") == own and seen(dataset_name="bob/deep")[2] is None
    assert following(ReferenceConfig(dataset_name="ada/deep"), "model").dataset_config_name == "small"
    assert seen(train_data_dir="elsewhere/deep") == own  # a copy of it


def test_other_images_of_the_same_name_are_told(samplers, extractor, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for folder in ("some", "elsewhere/some"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / folder / f"{number}.png")
    shutil.copytree(place / "ddpm", tmp_path / "model")
    record = {"config": {"train_data_dir": "some", "dataset_split": "train"}}
    record["data"] = {"name": "some", "split": "train", "num_images": 12, "fingerprint": "any"}
    (tmp_path / "model" / "run.json").write_text(json.dumps(record))
    sampler = load_sampler("model")

    def notes(folder, **options):
        config = ReferenceConfig(train_data_dir=folder, cache_dir=str(tmp_path / "cache"), **options)
        return run(sampler, config, extractor, "fd", num_images=4)["notes"]

    other = "model was trained on 12 images of some [train], and is compared with other images of some [train]"
    assert other in notes("elsewhere/some") and not any("trained on" in note for note in notes("some"))
    assert any("0.5 of some [train], on which model was trained" in n for n in notes("some", held_out_split="0.5"))


def test_what_training_left_out_is_held_out(samplers, extractor, place, tmp_path):
    shutil.copytree(place / "gan", tmp_path / "gan")
    record = {"config": {"dataset_name": "digits", "dataset_split": "train", "validation_split": "0.2"}}
    record["data"] = {"name": "digits", "split": "train", "num_images": 1438, "fingerprint": "any"}
    (tmp_path / "gan" / "run.json").write_text(json.dumps(record))
    config = ReferenceConfig(cache_dir=str(place / "cache"))
    sampler = load_sampler(str(tmp_path / "gan"))
    report = run(sampler, config, extractor, "memorisation", num_images=200)
    assert report["data"]["held_out"]["split"] == "0.2 of train" and report["data"]["held_out"]["num_images"] == 200
    assert report["results"]["near_duplicates"]["details"]["train_images"] == 1438  # all of them
    assert not any("half of" in note or "was trained on" in note for note in report["notes"])
    assert following(dataclasses.replace(config, held_out_split="0.5"), sampler.name).held_out_split == "0.5"
    assert following(dataclasses.replace(config, dataset_name="other"), sampler.name).held_out_split is None
    with pytest.raises(UserError, match="`held_out_split` 1.5 is no share of the images"):
        ReferenceConfig(held_out_split="1.5")


@pytest.fixture
def scans(tmp_path):
    """Twelve patients, from whom five images each."""
    draw = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    rows = ["file_name,patient,wing"]
    for number in range(60):
        Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "scans" / f"{number:02}.png")
        rows.append(f"{number:02}.png,p{number % 12},w{number // 30}")
    (tmp_path / "scans" / "metadata.csv").write_text("\n".join(rows))
    return str(tmp_path / "scans")


def test_the_held_out_images_are_of_whole_groups(scans, place, tmp_path):
    """Those that training left out; and the half that stands in where it left out none."""

    def sides(**options):
        config = ReferenceConfig(train_data_dir=scans, cache_dir=str(tmp_path / "cache"), **options)
        found = open_reference(following(config, str(tmp_path / "model")), (1, 8, 8), 60, 60)
        patients = [part.data.groups[part.rows] for part in (found.real, found.held_out)]
        return [len(part) for part in patients], set(patients[0]) & set(patients[1]), found

    (tmp_path / "model").mkdir()
    trained = {
        "train_data_dir": scans,
        "dataset_split": "train",
        "validation_split": "0.25",
        "group_column": "patient",
    }
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": trained}))
    counts, both, found = sides()
    assert counts == [45, 15] and not both and found.apart and not found.notes
    training = open_images(DataConfig(**trained, resolution=8, cache_dir=str(tmp_path / "cache")))
    assert set(training.groups) == set(found.train.data.groups)
    (tmp_path / "model" / "run.json").unlink()
    counts, both, found = sides(group_column="patient")
    assert counts == [30, 30] and not both and not found.apart


def test_other_groups_than_those_of_training_are_told(samplers, extractor, scans, place, tmp_path):
    shutil.copytree(place / "ddpm", tmp_path / "model")
    trained = {"train_data_dir": scans, "dataset_split": "train", "validation_split": "0.5", "group_column": "patient"}
    data = {"name": "scans", "split": "train", "num_images": 30, "fingerprint": "any"}
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": trained, "data": data}))
    sampler = load_sampler(str(tmp_path / "model"))

    def notes(**options):
        config = ReferenceConfig(train_data_dir=scans, cache_dir=str(tmp_path / "cache"), **options)
        return [note for note in run(sampler, config, extractor, "fd", num_images=4)["notes"] if "on which" in note]

    assert not notes() and not notes(group_column="patient")
    assert "the held-out images are 0.5 of scans [train], on which" in notes(group_column="wing")[0]


def test_a_split_that_shares_a_group_is_refused(scans, tmp_path):
    data = open_images(DataConfig(train_data_dir=scans, label_column="wing", cache_dir=str(tmp_path / "cache")))
    write_split(data, {"train": np.arange(30), "test": np.arange(30, 60)}, tmp_path / "split")
    config = ReferenceConfig(dataset_name=str(tmp_path / "split"), cache_dir=str(tmp_path / "cache"))
    assert open_reference(dataclasses.replace(config, group_column="wing"), (1, 8, 8), 60, 60).apart
    with pytest.raises(
        UserError, match="`group_column` patient: groups with images both to train on and held out: 12"
    ):
        open_reference(dataclasses.replace(config, group_column="patient"), (1, 8, 8), 60, 60)
