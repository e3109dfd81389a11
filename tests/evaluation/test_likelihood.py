"""Bits per dimension by importance sampling."""

import json
import math

import pytest
import torch
from helpers import load_script

from hfgen.models.conv_vae import ConvVAE
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.residual_vae import ResidualVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.objectives import elbo
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.vae import log_evidence

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


def test_the_script(tmp_path):
    VAEPipeline(made(ConvVAE, "logistic")).save_pretrained(tmp_path / "vae")
    script = load_script("measure_likelihood")
    script.main(f"--model {tmp_path / 'vae'} --num_images 20 --num_samples 5".split())
    report = json.loads((tmp_path / "vae" / "likelihood.json").read_text())
    assert report["num_images"] == 20 and report["num_samples"] == 5
    assert 0 < report["bits_per_dim"] <= report["bits_per_dim_elbo"] < 100
    script.main(f"--model {tmp_path / 'vae'} --num_images 20 --num_samples 5 --output {tmp_path / 'b.json'}".split())
    assert json.loads((tmp_path / "b.json").read_text()) == report  # the seed decides
    with pytest.raises(UserError, match="--model is missing"):
        script.main([])
    with pytest.raises(UserError, match="--num_samples 0 is out of range"):
        script.main(["--model", "x", "--num_samples", "0"])
    VAEPipeline(made(ConvVAE, "gaussian"), task="denoise", task_level=0.3).save_pretrained(tmp_path / "task")
    with pytest.raises(UserError, match="is trained to denoise"):
        script.main(["--model", str(tmp_path / "task")])
