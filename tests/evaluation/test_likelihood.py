"""Bits per dimension by importance sampling."""

import json
import math

import pytest
import torch

from hfgen.commands import evaluate
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.residual_vae import ResidualVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.objectives import elbo
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
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
