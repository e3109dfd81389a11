"""The benchmark of sampling: speeds, starts, and steps against quality."""

import json
import statistics
import subprocess
import sys

import pytest
import sample as BENCHMARK
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from evaluation.tiny import save_classifier, save_data, save_model
from helpers import ROOT, run_benchmark, spelled

from hfgen.evaluation.frechet import frechet_from_features
from hfgen.evaluation.statistics import FeatureStatistics
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import image_generators, load_sampler

STEPS = 100  # of the training: as few as count as many


def save_ddpm(folder, classes=None, schedule="linear"):
    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=classes,
    )  # fmt: skip
    kind = ClassConditionalDDPMPipeline if classes else DDPMPipeline
    kind(unet, DDPMScheduler(num_train_timesteps=STEPS, beta_schedule=schedule)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return {
        "gan": save_model(folder / "gan", "gan"),
        "plain": save_ddpm(folder / "plain"),
        "classes": save_ddpm(folder / "classes", 3),
        "sigmoid": save_ddpm(folder / "sigmoid", schedule="sigmoid"),
        "classifier": save_classifier(folder / "classifier"),
        "data": save_data(folder / "data"),
    }


@pytest.mark.slow
def test_a_run(files, tmp_path):
    options = "--batch_sizes 1 3 --repeats 1 --steps 5 20 --num_images 40 --num_images_full 20 --batch_size 15"
    result = run_benchmark(
        "sample", "--model", files["gan"], files["plain"], "--extractor", files["classifier"],
        "--dataset_name", files["data"], *options.split(), "--cpu_threads", 1, "--output", tmp_path / "sample.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "sample.json").read_text())
    measured = report["measured"]
    assert [(row["model"], row["batch_size"]) for row in measured["speeds"]] == [
        (files[name], size) for size in (1, 3) for name in ("gan", "plain")
    ]
    assert all(len(row["images_per_second"]) == 1 and min(row["images_per_second"]) > 0 for row in measured["speeds"])
    for row in measured["starts"]:
        assert len(row["turns"]) == 1
        assert all(min(turn.values()) > 0 and set(turn) == {"import", "load", "sample"} for turn in row["turns"])

    (quality,) = measured["quality"]
    rows = quality["rows"]
    assert [(row["sampler"], row["steps"], len(row["seconds_per_image"])) for row in rows[2:]] == [
        ("stock DDPMScheduler, leading", STEPS, 2),
        ("stock DDIMScheduler, leading", 20, 3),
        ("stock DPMSolverMultistepScheduler, linspace", 20, 3),
    ]
    assert [row["sampler"] for row in rows[:2]] == ["dpmsolver++", "sde-dpmsolver++"]  # the defaults of 5 and 20 steps
    assert rows[0]["steps"] < rows[1]["steps"] <= 20
    for row in rows:
        assert [point["images"] for point in row["distances"]] == ([20] if row["steps"] == STEPS else [20, 40])
        assert row["images_per_second"] == pytest.approx(1 / statistics.median(row["seconds_per_image"]))
        assert all(point["value"] > 0 and point["error"] > 0 for point in row["distances"])

    (compared,) = quality["against_many_steps"]
    few, many = rows[1], rows[2]
    assert compared["images"] == 20
    assert compared["distance_ratio"] == pytest.approx(few["distances"][0]["value"] / many["distances"][0]["value"])
    pairs = zip(few["seconds_per_image"], many["seconds_per_image"], strict=False)
    assert compared["speed_ratio"] == pytest.approx(statistics.median(b / a for a, b in pairs))
    assert compared["distance_holds"] == (compared["distance_ratio"] <= 1.05)
    assert not compared["speed_holds"]  # of 100 steps against 20
    assert "Few steps against many, plain" in report["tables"] and "FD of 20 | FD of 40" in result.stdout
    assert any("40 images of data [train]" in note for note in report["notes"])


def test_stock_images_are_those_of_diffusers(files):
    config = BENCHMARK.SampleBenchmark(model=(files["plain"],), steps=())
    methods, notes = BENCHMARK.methods_of(load_sampler(files["plain"]), config, {})
    found = methods[0].make([4, 5], 100)
    pipe = DDPMPipeline.from_pretrained(files["plain"])
    pipe.set_progress_bar_config(disable=True)
    generators = image_generators(100, [4, 5])
    expected = pipe(2, generators, STEPS, output_type="np").images
    assert found.dtype == torch.uint8 and not notes
    assert torch.equal(found, torch.from_numpy((expected * 255).round()).permute(0, 3, 1, 2).to(torch.uint8))


@pytest.mark.parametrize(
    ("model", "samplers", "note"),
    [
        ("classes", [("sde-dpmsolver++", 10), ("ddpm", STEPS)], "takes classes, which the stock DDPMPipeline"),
        ("sigmoid", [("sde-dpmsolver++", 10), ("stock DDPMScheduler, leading", STEPS)], "does not know the sigmoid"),
    ],
)
def test_what_plain_diffusers_cannot_do(files, model, samplers, note):
    config = BENCHMARK.SampleBenchmark(model=(files[model],), steps=(10,))
    methods, notes = BENCHMARK.methods_of(load_sampler(files[model]), config, {})
    assert [(method.name, method.steps) for method in methods] == samplers
    assert all(note in text for text in notes) and notes
    assert [method.count for method in methods] == [5000, 1000]


def test_distances_and_their_error():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(2000, 6, generator=generator) + 0.3 for _ in range(30)]
    target = torch.randn(4000, 6, generator=generator)
    real = FeatureStatistics(6)
    real.update(target)
    value, *left_out = BENCHMARK.distances(draw[0], real)
    assert value == pytest.approx(frechet_from_features(draw[0], target))
    assert len(left_out) == 10
    kept = draw[0][torch.arange(2000) % 10 != 3]
    assert left_out[3] == pytest.approx(frechet_from_features(kept, target))
    values, errors = [], []
    for features in draw:
        first, *others = BENCHMARK.distances(features, real)
        values.append(first)
        errors.append(BENCHMARK.standard_error(others))
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(values), rel=0.35)


def test_help_imports_no_torch():
    command = [sys.executable, "-X", "importtime", ROOT / "benchmarks" / "sample.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--num_images_full" in result.stdout
    assert " torch\n" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--model is missing"),
        ("--model a a", "has a checkpoint twice"),
        ("--model a --batch_sizes", "--batch_sizes has no numbers"),
        ("--model a --batch_sizes 1 0", "--batch_sizes 0 is out of range: use 1 or more."),
        ("--model a --steps 0", "--steps 0 is out of range"),
        ("--model a --num_images_full 19", "--num_images_full 19 is out of range: use 20 or more."),
        ("--model a --seed -1", "--seed -1 is out of range"),
        ("--model a --output .", "--output . is a folder: give a file."),
        ("--model {absent}", "holds no pipeline"),
        ("--model {gan} --guidance_scale 2", "no model here has it (GAN)"),
        ("--model {plain} --extractor {absent}", "absent is neither a folder nor a name on the Hub"),
    ],
)
def test_mistakes(files, arguments, message, tmp_path):
    names = files | {"absent": str(tmp_path / "absent")}
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.format(**names).split())
    assert message in str(error.value) and "\n" not in str(error.value)
