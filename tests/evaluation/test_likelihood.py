"""Bits per dimension by importance sampling."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from evaluation.tiny import save_data

from hfgen.commands import evaluate
from hfgen.evaluation.config import ReferenceConfig
from hfgen.evaluation.explanations import KINDS as DENSITIES
from hfgen.evaluation.likelihood import measure_likelihood
from hfgen.evaluation.reference import Part, open_reference
from hfgen.evaluation.report import chart, mixed_remarks, remarks, table
from hfgen.evaluation.runner import lacking
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.residual_vae import ResidualVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.objectives import elbo
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import notes_to
from hfgen.sampling.sampler import Sampler
from hfgen.sampling.vae import VAEAdapter, log_evidence

KINDS = {"conv": ConvVAE, "residual": ResidualVAE, "hierarchical": HierarchicalVAE}


def levels(count, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator) / 127.5 - 1


def made(kind, likelihood):
    torch.manual_seed(0)
    model = kind(sample_size=8, in_channels=1, latent_channels=2, block_out_channels=(8, 8), likelihood=likelihood)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if kind is HierarchicalVAE else 0.2)
    return model.eval()


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic_mixture"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_samples_are_nearer_to_the_evidence(kind, likelihood):
    """Against averaging p(x|z) over the prior, which needs far more samples, and few latents that matter little."""
    model, images = made(KINDS[kind], likelihood), levels(3)
    generator = torch.Generator().manual_seed(1)
    density = log_evidence(model, images, num_samples=200, generator=generator)
    lower, weighted = density.lower, density.estimate
    assert (lower <= weighted + 1e-4).all()
    with torch.no_grad():
        latents = torch.randn(20_000, *model.latent_shape, generator=generator)
        found = []
        for part in latents.split(2000):
            parameters = model.decode(part).parameters
            each = []
            for image in images.unsqueeze(1).expand(-1, len(part), -1, -1, -1):
                if likelihood == "gaussian":
                    each.append(elbo.discretised_gaussian(image, parameters, model.variance))
                else:
                    each.append(elbo.log_likelihood(image, parameters, likelihood))
            found.append(torch.stack(each))
        truth = torch.cat(found, dim=1).logsumexp(1) - math.log(len(latents))
    torch.testing.assert_close(weighted, truth, rtol=0.01, atol=0.5)


def test_a_codebook_pays_for_each_code():
    torch.manual_seed(0)
    model = VQVAE(
        sample_size=8, in_channels=1, latent_channels=4, block_out_channels=(8, 8), num_vq_embeddings=16,
        likelihood="logistic",
    ).eval()  # fmt: skip
    images = levels(2)
    density = log_evidence(model, images)
    lower = density.lower
    assert torch.equal(lower, density.estimate)
    with torch.no_grad():
        parameters = model(images).parameters
    torch.testing.assert_close(lower, elbo.log_likelihood(images, parameters, "logistic") - 4 * math.log(16))


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic"])
def test_the_bound_of_a_codebook_is_one(likelihood):
    """Against the sum over all codes that an image may have, each as likely as the others."""
    torch.manual_seed(0)
    model = VQVAE(
        sample_size=8, in_channels=1, latent_channels=4, block_out_channels=(8, 8), num_vq_embeddings=3,
        likelihood=likelihood,
    ).eval()  # fmt: skip
    image = levels(1)
    adapter = VAEAdapter(VAEPipeline(model))
    with torch.no_grad():
        bound = adapter.log_prob(image).estimate
        codes = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(-1, 2, 2)
        every = model.codes[codes].permute(0, 3, 1, 2)
        parameters = model.decode(every).parameters
        if likelihood == "gaussian":
            each = elbo.discretised_gaussian(image.expand(81, -1, -1, -1), parameters, model.variance)
        else:
            each = elbo.log_likelihood(image.expand(81, -1, -1, -1), parameters, likelihood)
    terms = each - 4 * math.log(3)
    assert bound < terms.logsumexp(0) and (terms - bound).abs().min() < 1e-3  # it is one of them
    assert adapter.details(100)["bound"] == "elbo, codes equally likely"


@pytest.mark.usefixtures("on_the_cpu")
def test_the_command(tmp_path):
    VAEPipeline(made(ConvVAE, "logistic")).save_pretrained(tmp_path / "vae")
    flags = ["--model", str(tmp_path / "vae"), "--metrics", "bits_per_dim"]
    evaluate.main([*flags, *"--num_images 50 --likelihood_images 20 --likelihood_samples 5 --cpu_threads 1".split()])
    (report,) = json.loads((tmp_path / "vae" / "evaluation.json").read_text())["models"]
    result = report["results"]["bits_per_dim"]
    details = result["details"]
    assert (details["bound"], details["likelihood"], details["num_images"]) == ("iwae-5", "logistic", 20)
    assert 0 < result["value"] <= details["elbo"] < 100 and result["error"] > 0
    again = [*flags, "--num_images", "50", "--output", str(tmp_path / "b.json")]
    evaluate.main([*again, *"--likelihood_images 20 --likelihood_samples 5 --cpu_threads 1".split()])
    (other,) = json.loads((tmp_path / "b.json").read_text())["models"]
    assert other["results"] == report["results"]  # no chance is left
    with pytest.raises(UserError, match="`likelihood_samples` 0 is out of range"):
        evaluate.main([*flags, "--likelihood_samples", "0"])
    VAEPipeline(made(ConvVAE, "gaussian"), task="denoise", task_level=0.3).save_pretrained(tmp_path / "task")
    with pytest.raises(UserError, match="is trained to denoise"):
        evaluate.main(["--model", str(tmp_path / "task"), "--metrics", "bits_per_dim", "--cpu_threads", "1"])


# Kinds, classes, and how much is drawn


def denoiser(**options):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, **options,
    )  # fmt: skip
    if unet.class_embedding is not None:
        torch.nn.init.normal_(unet.class_embedding.weight, std=3)
    return unet.eval()


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    place = tmp_path_factory.mktemp("likelihood")
    config = ReferenceConfig(dataset_name=save_data(place / "digits"), cache_dir=str(place / "cache"))
    return open_reference(config, (1, 8, 8), 40, 40).held_out


def measure(pipe, part, *amounts):
    (result,) = measure_likelihood(Sampler(pipe, name="it"), part, Accelerator(cpu=True), *amounts)
    return result


def by_class(classes=11, **options):
    names = {number: str(number) for number in range(10)}
    return ClassConditionalDDPMPipeline(denoiser(num_class_embeds=classes), DDPMScheduler(), names, **options)


def test_classes_are_given_where_the_images_have_them(part):
    given = measure(by_class(), part, 3)
    assert given.details["class_given"] and given.notes == [
        "it is told the class of each image, worth 0.052 bits per dimension at most"
    ]
    groups = by_class(class_kind="groups")
    alone = measure(groups, part, 3)
    assert alone.details["class_given"] is False and alone.notes == [] and alone.value != given.value
    assert lacking("bits_per_dim", Sampler(groups, name="it")) is None
    info = dataclasses.replace(part.data.info, columns={"image": part.data.info.columns["image"]})
    unnamed = Part(dataclasses.replace(part.data, info=info), part.rows)
    assert measure(by_class(), unnamed, 3).value == alone.value  # no class, as of images of groups
    without_null = Sampler(by_class(10, class_kind="groups"), name="it")
    assert "are groups of images, and those of real images" in lacking("bits_per_dim", without_null)
    assert "class_given" not in measure(DDPMPipeline(denoiser(), DDPMScheduler()), part, 3).details


def test_how_much_is_drawn(part, monkeypatch):
    pipe = DDPMPipeline(denoiser(), DDPMScheduler())
    monkeypatch.setattr("hfgen.sampling.ddpm.DDPMAdapter.usual_images", 7)
    monkeypatch.setattr("hfgen.sampling.ddpm.MOST_SAMPLES", 2)
    usual = measure(pipe, part)
    assert (usual.details["num_images"], usual.details["probes"], usual.notes) == (7, 1, [])
    assert usual.details["kind"] == "estimate" and usual.error > 0
    many = measure(pipe, part, 2, 50)
    assert (many.details["num_images"], many.details["probes"]) == (2, 2)
    assert many.notes == ["of `likelihood_samples` 50, it takes 2: each takes long"]
    vae = measure(VAEPipeline(made(ConvVAE, "logistic")), part, 5)
    assert (vae.details["kind"], vae.details["bound"]) == ("bound", "iwae-100")


def test_what_takes_long_is_said_beforehand(part, monkeypatch):
    monkeypatch.setattr("hfgen.evaluation.likelihood.LONG", 0)
    lines = []
    with notes_to(lines.append):
        measure(VAEPipeline(made(ConvVAE, "logistic")), part, 5, 2)
    assert lines == ["bits per dimension of it, of 5 images, take up to 0 minutes: `likelihood_images` takes fewer"]


def reported(name, kind, value=1.25):
    details = {"kind": kind, "bound": kind, "num_images": 1000} if kind else {"bound": "iwae-100", "num_images": 1000}
    result = {"title": "Bits", "better": "lower", "value": value, "error": 0.01, "real": None, "notes": []}
    return {
        "model": {"name": name}, "data": {}, "notes": [], "results": {"bits_per_dim": result | {"details": details}},
    }  # fmt: skip


@pytest.mark.usefixtures("on_the_cpu")
def test_models_of_different_kinds_in_one_table(tmp_path, capsys):
    VAEPipeline(made(ConvVAE, "logistic")).save_pretrained(tmp_path / "vae")
    DDPMPipeline(denoiser(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    flags = ["--model", str(tmp_path / "vae"), str(tmp_path / "ddpm"), "--output", str(tmp_path / "both.json")]
    evaluate.main([*flags, *"--metrics bits_per_dim --num_images 50 --likelihood_images 3 --cpu_threads 1".split()])
    shown = capsys.readouterr().out.partition("All checkpoints:")[2]
    assert re.search(r"\| [\d.]+ ± [\d.]+ \(bound\) \| [\d.]+ ± [\d.]+ \(estimate\) +\|", shown)
    assert "- Bits per dimension of different kinds: where a bound is below" in shown


def test_remarks_leave_names_of_models_as_they_are():
    notes = ["out/gan was trained elsewhere", "gan is small", "gangs of images"]
    report = reported("out/gan", "exact") | {"notes": notes}
    said = ["out/gan was trained elsewhere.", "gan is small.", "Gangs of images."]
    assert remarks(report, {"notes": []})[:3] == said


def test_each_number_says_what_it_is():
    reports = [reported("ar", "exact"), reported("vae", "bound"), reported("ddpm", "estimate"), reported("old", None)]
    assert table(reports).splitlines()[2].split(" | ")[1:] == [
        "1.25 ± 0.01 (exact)", "1.25 ± 0.01 (bound)", "1.25 ± 0.01 (estimate)", "1.25 ± 0.01", "–           |",
    ]  # fmt: skip
    said = [remarks(report, {"notes": []}) for report in reports]
    for kind, (first, limits) in zip(DENSITIES, said[:3], strict=True):
        assert first.startswith(f"Bits per dimension ({kind})") and "error over 1,000 images" in first
        assert "1810.09136" in limits and "1511.01844" in limits
    assert said[3] == [said[0][1]]
    assert len(mixed_remarks(reports)) == 1 and mixed_remarks(reports[1:2] + reports[3:]) == []
    pictures = [np.asarray(chart([reported("one", kind)])).tobytes() for kind in (*DENSITIES, None)]
    assert len(set(pictures)) == 4


def test_the_chart_has_room_for_it():
    """Between the bar of the greatest number, with its error, and its text."""
    picture = np.asarray(chart([reported("vae", "estimate", 123.456)]))
    bar = (picture == (0x44, 0x77, 0xAA)).all(2)
    rows = picture[bar.any(1)]
    end = bar.any(0).nonzero()[0].max() + 2  # the error of this one is hardly longer
    assert (rows[:, end : end + 10] == 255).all() and (rows[:, end:] < 128).any()
