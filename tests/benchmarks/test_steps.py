"""The benchmark of samplers with networks that make no errors: its report, and what the documentation says of it."""

import json
import re

import pytest
import steps as BENCHMARK
import torch
from diffusers import DDPMScheduler
from helpers import ROOT, spelled
from oracle import Oracle

from hfgen import sampling_scheduler
from hfgen.runtime.errors import UserError


def test_the_network_makes_no_errors():
    """Its prediction is the mean over all pixels that could have become the noisy one, found here by trying them."""
    trained, mixture = DDPMScheduler(prediction_type="sample"), BENCHMARK.DATA["strokes"]
    network, noisy = Oracle(trained, mixture), torch.tensor([[-0.7, 0.0, 0.5, 1.3]])
    pixels = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    prior = sum(weight * torch.distributions.Normal(mean, std).log_prob(pixels).exp() for weight, mean, std in mixture)
    for timestep in (20, 300, 700):
        alpha = trained.alphas_cumprod[timestep].double()
        log_likelihood = -0.5 * (noisy.double().T - alpha.sqrt() * pixels) ** 2 / (1 - alpha)
        expected = (log_likelihood + prior.log()).softmax(1) @ pixels
        torch.testing.assert_close(network(noisy, timestep).sample[0], expected.float(), rtol=0, atol=1e-5)
    quantiles = network.quantiles(1001)
    assert quantiles[500].item() == pytest.approx(-0.8 + 0.05 * 0.3186, abs=1e-3)  # 0.625 of the dark ones are below
    assert quantiles.mean().item() == pytest.approx((prior @ pixels / prior.sum()).item(), abs=1e-3)


def test_a_run(tmp_path, capsys):
    options = "--samplers dpmsolver++ --steps 10 --schedules linear --num_images 8 --rescale_betas_zero_snr"
    BENCHMARK.main([*options.split(), "--output", str(tmp_path / "steps.json")])
    report = json.loads((tmp_path / "steps.json").read_text())
    row = report["measured"][0]
    assert row["kept"] == pytest.approx(1, abs=0.05) and row["evaluations"] == 10 and len(report["measured"]) == 3
    assert "| dpmsolver++ | 10 |" in capsys.readouterr().out


def test_the_documentation_has_the_figures_of_the_report():
    report = json.loads((ROOT / "benchmarks" / "steps.json").read_text())
    rows = {(row[0], row[1]): row for row in report["tables"]["Exact denoisers"][1:]}
    told = re.findall(r'\| `"(.*?)"`.* \| (\d+) \| ([\d.]+) \| ([\d.]+) \|', sampling_scheduler.__doc__)
    assert {name for name, *_ in told} == set(BENCHMARK.SAMPLERS)
    for name, steps, kept, levels in told:
        assert (kept, levels) == (rows[name, steps][2], rows[name, steps][6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--steps 0 is out of range"),
        ("--prediction_type epsilon --rescale_betas_zero_snr", "--rescale_betas_zero_snr does not go with"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value)
