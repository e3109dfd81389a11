"""The benchmark of throughput: settings reach the loop, one that fails is left out, and its commands can be run."""

import json
import shlex
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
import throughput as BENCHMARK
import torch
from helpers import modules_of, spelled

from hfgen.commands.train import read_options
from hfgen.runtime.errors import UserError
from hfgen.training import api

SMALL = "--dataset_name digits --resolution 8 --train_batch_size 16 --cpu_threads 1".split()
QUICK = "--rounds 3 --round_seconds 0.01".split()
VAE = "--block_out_channels 8 8 --latent_channels 4".split()


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def run_of(network, *more):
    flags = BENCHMARK.network_flags(network, [*SMALL, *more])
    return BENCHMARK.read_run(BENCHMARK.NETWORKS[network][0], flags)


@pytest.mark.parametrize("setting", BENCHMARK.SETTINGS)
def test_settings_reach_the_loop(setting, monkeypatch):
    opened, make, seen = [], api.open_recipe, []
    monkeypatch.setattr(api, "open_recipe", lambda *args: opened.append(make(*args)) or opened[-1])
    with BENCHMARK.in_a_folder(BENCHMARK.with_setting(run_of("vae", *VAE), setting)) as options:
        step = BENCHMARK.hfgen_loop(options)
        modules = modules_of(opened[0][0]).values()
        compiled = {module._compiled_call_impl is not None for module in modules}
        assert compiled == {"compile" in setting}
        for module in modules:
            module._compiled_call_impl = None  # compiling takes long
        convolutions = [m for module in modules for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        convolution = next(m for m in convolutions if m.in_channels > 1)  # with one both layouts are the same
        convolution.register_forward_hook(lambda _, inputs, output: seen.append(output))
        step()
    features = seen[0]
    channels_last = "channels_last" in setting
    assert features.dtype == (torch.bfloat16 if "bf16" in setting else torch.float32)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert features.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BENCHMARK, "worker", lambda: ThreadPoolExecutor(1))  # a process takes long to start
    output = tmp_path / "throughput.json"
    options = "--networks gan-mlp --base_channels 32 --settings float32 --minutes 2".split()
    BENCHMARK.main([*options, *QUICK, *SMALL, "--output", str(output)])
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    found = report["measured"]["gan-mlp"]
    assert report["machine"].startswith("CPU") and report["config"]["gan-mlp"]["objective"] == "nonsaturating"
    assert report["command"].startswith("python benchmarks/throughput.py --networks gan-mlp ")
    median = found["images_per_second"]["float32"]["median"]
    assert [set(turn) for turn in found["turns"]] == 3 * [{"float32"}] and found["flops_per_image"] > 1e5
    assert f"| gan-mlp | {median:,.0f} ± " in printed
    assert f"--max_train_steps {int(120 * median / 16)} " in report["notes"][0]


@pytest.mark.slow
def test_settings_take_turns(tmp_path, capsys, monkeypatch):
    """One setting fails, as without a C++ compiler nothing is compiled for a CPU; the others are measured."""
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # where nothing is compiled already
    output = tmp_path / "throughput.json"
    options = "--networks gan-mlp --base_channels 32 --settings float32+compile float32 bf16 --minutes 2".split()
    BENCHMARK.main([*options, *QUICK, *SMALL, "--output", str(output)])
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    found = report["measured"]["gan-mlp"]
    assert [set(turn) for turn in found["turns"]] == 3 * [{"float32", "bf16"}] and found["flops_per_image"] > 1e5
    assert list(found["failed"]) == ["float32+compile"] and "compiler" in found["failed"]["float32+compile"]
    speeds, ratios, work = (table[1] for table in report["tables"].values())
    medians = {setting: speed["median"] for setting, speed in found["images_per_second"].items()}
    assert speeds[:2] == ["gan-mlp", "failed"] and speeds[3].startswith(f"{medians['bf16']:,.0f} ± ")
    expected = statistics.median(turn["bf16"] / turn["float32"] for turn in found["turns"])
    assert ratios == ["gan-mlp", f"{expected:.2f}", "", ""]
    assert work[2:] == ["16", f"{found['flops_per_image'] / 1e6:,.0f}"]
    fastest, failed, _ = report["notes"]
    best = max(medians, key=lambda setting: medians[setting])
    assert fastest.startswith(f"gan-mlp: fastest with {best}. About 2 minutes: `accelerate launch ")
    assert f"--max_train_steps {int(120 * medians[best] / 16)} " in fastest and fastest in printed
    assert failed.startswith("gan-mlp: float32+compile failed: ") and failed in printed


@pytest.mark.slow
def test_compiled(capsys):
    options = "--networks gan-mlp --base_channels 8 --settings float32 float32+compile".split()
    BENCHMARK.main([*options, *QUICK, *SMALL])
    assert "failed" not in capsys.readouterr().out


@pytest.mark.parametrize("setting", BENCHMARK.SETTINGS)
@pytest.mark.parametrize("name", BENCHMARK.NETWORKS)
def test_commands_do_what_was_measured(name, setting):
    _, runs, others = BENCHMARK.read_options(["--networks", name, "--seed", "3"])  # the data are CIFAR-10
    words = shlex.split(BENCHMARK.training_command(name, runs[name], setting, 1234, others))
    assert words[:5] == "accelerate launch -m hfgen train".split()
    data, training, own = read_options(words[5:])
    expected = BENCHMARK.with_setting(runs[name], setting)
    assert data == expected.data and own == expected.own and data.dataset_name == "uoft-cs/cifar10"
    assert training.max_train_steps == 1234 and training.output_dir == f"out/{name}-cifar10" and training.seed == 3
    for switch in ("mixed_precision", "compile", "channels_last"):
        assert getattr(training, switch) == getattr(expected.training, switch)


def test_a_network_whose_penalty_is_a_gradient_by_images():
    found = BENCHMARK.describe_run(BENCHMARK.with_setting(run_of("gan-wgan-gp", "--base_channels", "8"), "float32"))
    assert found["batch"] == 16 and list(found["uncompiled"]) == ["discriminator"]
    assert found["flops_per_image"] > 1e5


def test_tables_of_a_gpu():
    config = BENCHMARK.ThroughputBenchmark(settings=("float32", "bf16", "bf16+compile"))
    found = {
        "machine": "NVIDIA H100 80GB HBM3, precision by setting",
        "flops_per_image": 1e11,
        "images_per_second": {setting: {"median": 989.0, "deviation": 1.0} for setting in ("float32", "bf16")},
        "gpu_megabytes": {"float32": 2000.0, "bf16": 1000.0},
        "failed": {"bf16+compile": "OutOfMemoryError: CUDA out of memory."},
    }
    assert BENCHMARK.gpu_table(config, {"ddpm": found})[1] == ["ddpm", "2,000 MB", "1,000 MB, 10.0%", ""]
    assert BENCHMARK.speed_table(config, {"ddpm": found})[1] == ["ddpm", "989 ± 1", "989 ± 1", "out of memory"]
    assert BENCHMARK.work_table({"ddpm": found | {"data": "digits", "batch": 16}})[1][3] == "100,000"
    found["machine"] = "NVIDIA Unknown, precision by setting"
    assert BENCHMARK.gpu_table(config, {"ddpm": found})[1][2] == "1,000 MB"


def test_pairs_of_settings():
    turns = [{setting: 2.0 ** len(setting.split("+")) for setting in BENCHMARK.SETTINGS}]
    found = BENCHMARK.speed_ups(turns)
    assert {switch: len(pairs) for switch, pairs in found.items()} == {"bf16": 4, "compile": 4, "channels_last": 4}
    ratios = {switch: {pair["median"] for pair in pairs.values()} for switch, pairs in found.items()}
    assert ratios == {"bf16": {1.0}, "compile": {2.0}, "channels_last": {2.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rounds 0", "--rounds 0 is out of range"),
        ("--minutes -1", "--minutes -1.0 is out of range"),
        ("--networks", "--networks is empty"),
        ("--settings fp16", "invalid choice: 'fp16'"),
        ("--preset mlp", "--preset does not go with this benchmark: the networks have theirs."),
        ("--no_compile", "--no_compile does not go with this benchmark: it is compared."),
        ("--mixed_precision=bf16", "--mixed_precision does not go with this benchmark: it is compared."),
        ("--r1_gamma 1", "unknown flag --r1_gamma"),
        ("--networks vae --beta -1", "--beta -1.0 is out of range"),
        ("--gradient_accumulation_steps 2", "--gradient_accumulation_steps 2: the loops are compared"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_that_data_show(monkeypatch):
    """They come before anything is measured."""
    monkeypatch.setattr(BENCHMARK, "worker", lambda: ThreadPoolExecutor(1))
    options = "--networks ddpm --dataset_name digits --resolution 8 --cpu_threads 1".split()
    with pytest.raises(UserError, match="--attention_resolutions does not fit --resolution 8"), spelled():
        BENCHMARK.main(options)
