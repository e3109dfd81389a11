"""Evaluation from Python, of our families and of one from outside, by what each can do."""

import json

import pytest
import torch
from accelerate import Accelerator
from evaluation.tiny import save_classifier, save_data, save_model

import hfgen
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.features import load_extractor, metric_prefix
from hfgen.evaluation.likelihood import measure_likelihood
from hfgen.evaluation.reference import open_reference
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler, load_sampler


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    save_classifier(folder / "classifier")
    save_data(folder / "digits", (("train", 60), ("test", 50)))
    for kind in ("gan", "vae"):
        save_model(folder / kind, kind)
    return folder


@pytest.fixture
def options(place):
    data = {"dataset_name": str(place / "digits"), "cache_dir": str(place / "cache")}
    return {**data, "extractor": str(place / "classifier"), "num_images": 30, "cpu_threads": 1}


@pytest.fixture
def toy(toys, tmp_path):
    from toy_ar.model import PixelCNN
    from toy_ar.pipeline import ToyARPipeline

    torch.manual_seed(0)
    ToyARPipeline(PixelCNN(sample_size=8)).save_pretrained(tmp_path / "toy")
    return str(tmp_path / "toy")


def test_the_report_is_that_of_the_parts(place, options, on_the_cpu):
    report = hfgen.evaluate(str(place / "gan"), metrics=("fd",), seed=3, class_labels=("1", "2"), **options)
    key = metric_prefix(load_extractor(options["extractor"]))
    assert report["results"][key]["value"] > 0 and json.loads(json.dumps(report)) == report
    assert report["generation"]["classes"] == ["1", "2"] and report["generation"]["seeds"] == [3]
    assert report["model"]["pipeline"] == "GANPipeline" and report["extractor"]["id"] == "classifier"
    again = hfgen.evaluate(str(place / "gan"), metrics=("fd",), seed=3, class_labels=(1, 2), **options)
    assert again["results"] == report["results"]


def test_a_family_from_outside_is_measured(toy, options, on_the_cpu):
    report = hfgen.evaluate(toy, metrics=("fd", "bits_per_dim"), **options)
    bits = report["results"]["bits_per_dim"]
    assert bits["details"]["bound"] == "exact" and bits["details"]["num_images"] == 30
    assert report["model"]["family"] == "PixelCNN" and len(report["results"]) == 2
    sampler = load_sampler(toy)
    reference = ReferenceConfig(dataset_name=options["dataset_name"], cache_dir=options["cache_dir"])
    images = open_reference(reference, (1, 8, 8), 30, 30).held_out.images(range(30)).float() / 127.5 - 1
    with torch.no_grad():
        nats = sampler.pipe.model.nats(images)
    expected = nats.mean().item() / 64 / torch.log(torch.tensor(2.0)).item()
    assert bits["value"] == bits["details"]["elbo"] == pytest.approx(expected, rel=1e-5)


def test_likelihood_needs_no_extractor(place, toy, options, monkeypatch, on_the_cpu):
    monkeypatch.setattr(Sampler, "__call__", lambda self, indices, seed: torch.zeros(len(indices), 1, 8, 8).byte())
    del options["extractor"]
    for model in (toy, str(place / "vae")):
        report = hfgen.evaluate(
            model, metrics=("bits_per_dim",), likelihood_images=20, likelihood_samples=3, **options
        )
        assert report["results"]["bits_per_dim"]["details"]["num_images"] == 20
        assert report["extractor"]["id"] == "none" and set(report["results"]) == {"bits_per_dim"}
    assert report["results"]["bits_per_dim"]["details"]["bound"] == "iwae-3"


def test_more_images_are_a_longer_part_of_one_order(place, options):
    sampler = load_sampler(str(place / "vae"))
    reference = ReferenceConfig(dataset_name=options["dataset_name"], cache_dir=options["cache_dir"])
    part = open_reference(reference, (1, 8, 8), 30, 50).held_out
    (few,), (all_,) = (measure_likelihood(sampler, part, Accelerator(cpu=True), count, 2) for count in (10, 99))
    assert few.details["num_images"] == 10 and all_.details["num_images"] == 50 and few.value != all_.value


def test_names_and_the_model_are_looked_at_before_weights_are_asked_for(place, tmp_path, monkeypatch, on_the_cpu):
    monkeypatch.setattr("hfgen.evaluation.inception.cache_path", lambda: tmp_path / "weights.pth")  # not there
    gan = str(place / "gan")
    for model, metrics, message in (
        (gan, ["bits_per_dimm"], r"`metrics` 'bits_per_dimm' is no choice: use fd, .* Did you mean bits_per_dim\?"),
        (gan, "diversit", "`metrics` 'diversit' is no choice: use fd, "),
        (gan, [], "`metrics` has no names"),
        (gan, "fd", "curl -L"),
        (str(place / "absent"), "fd", "holds no pipeline"),
    ):
        with pytest.raises(UserError, match=message):
            hfgen.evaluate(model, metrics=metrics, dataset_name="digits", num_images=20)


def test_mistakes(place, options, on_the_cpu):
    gan = str(place / "gan")
    for arguments, message in (
        (
            {"metrics": ("bits_per_dim",)},
            "`metrics` bits_per_dim: .*gan is a GAN, whose likelihood is not known: leave",
        ),
        ({"metrics": ("ppl",)}, "`metrics` ppl: .*gan is no StyleGAN2"),
        ({"metrics": ("fd",), "dataset_nam": "x"}, "`dataset_nam` is no option here. Did you mean dataset_name?"),
        ({"metrics": ("fd",), "temperature": 0.5}, "`temperature` 0.5: .*gan is a GAN, which has truncation instead"),
    ):
        with pytest.raises(UserError, match=message):
            hfgen.evaluate(gan, **options | arguments)
