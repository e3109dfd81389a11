"""Metrics by name: which classifiers may be asked, and what the classifier's answers come to."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from evaluation.tiny import save_classifier, save_data, save_model

from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.features import load_extractor
from hfgen.evaluation.metrics import Images, compare
from hfgen.evaluation.runner import Evaluator, evaluate
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import load_sampler


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """A classifier that was measured and is wrong about four images in ten."""
    folder = tmp_path_factory.mktemp("weak") / "classifier"
    save_classifier(folder)
    (folder / "eval.json").write_text(json.dumps({"test_accuracy": 0.6}))
    return load_extractor(str(folder))


def answers(numbers, scale=9.0, **more):
    """Images that show these digits to a classifier that is confident about it, or less so."""
    rows = scale * torch.eye(10)[torch.tensor(numbers)]
    return Images(rows + torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)), rows, **more)


def values(metrics, images, real, extractor):
    return {result.key: result.value for result in compare(metrics, images, real, extractor, "")}


@pytest.mark.parametrize("metric", ["confidence", "label_divergence", "conditional_accuracy"])
def test_a_weak_classifier_is_not_asked(weak, metric, tmp_path):
    sampler = load_sampler(save_model(tmp_path / "gan", "gan"))
    config = ReferenceConfig(dataset_name=save_data(tmp_path / "digits"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="`extractor` classifier is only 60.0%, and it needs 90%: train it"):
        evaluate(sampler, config, weak, Accelerator(cpu=True), [metric], 20)
    assert metric in Evaluator(sampler, config, weak, Accelerator(cpu=True), ["all"], 20).left_out
    for accuracy in (0.9, None):  # good enough, and not known
        classifier = dataclasses.replace(weak, accuracy=accuracy)
        assert evaluate(sampler, config, classifier, Accelerator(cpu=True), [metric], 20)["results"]


def test_the_rarest_class_is_named(weak):
    classifier = dataclasses.replace(weak, accuracy=None, labels=tuple("abcdefghij"))
    found = compare(["label_divergence"], answers([0, 0, 0, 3, 7, 7]), answers([0, 3, 7]), classifier, "")
    (result,) = [each for each in found if each.key == "smallest_share"]
    assert (result.value, result.details) == (pytest.approx(1 / 6), {"class": "d"})


def test_confidence(weak):
    classifier = dataclasses.replace(weak, accuracy=None)
    confident, doubtful = answers([1, 2]), answers([1, 2], scale=1.0)
    assert values(["confidence"], confident, confident, classifier) == {"confident_share": 1}
    assert values(["confidence"], doubtful, confident, classifier) == {"confident_share": 0}


def test_what_copies_in_the_data_do_to_coverage_is_said(weak):
    """The ball of an image with five copies is empty: no image can cover it."""
    real = torch.cat([torch.randn(30, 10, generator=torch.Generator().manual_seed(0)), torch.zeros(10, 10)])
    for images, notes in ((real, ["25.0% of the real images have 5 copies or more among them"]), (real[:35], [])):
        results = compare(["precision_recall", "density_coverage"], Images(images), Images(images), weak, "")
        found = {result.key: result.notes for result in results}
        assert found["precision"] == found["recall"] == []
        for key in ("density", "coverage"):
            assert [note.partition(", which")[0] for note in found[key]] == notes
