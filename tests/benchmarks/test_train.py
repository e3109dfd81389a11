"""The benchmark of training: all three loops train, and a run says what it measured."""

import json
import statistics
import subprocess
import sys

import loops
import pytest
import torch
import train as BENCHMARK
from common import separate
from helpers import ROOT, modules_of, spelled
from torch.utils.flop_counter import FlopCounterMode

from hfgen.runtime.errors import UserError
from hfgen.training import api

SMALL = "--dataset_name digits --resolution 8 --train_batch_size 16 --mixed_precision no --cpu_threads 1".split()
NETWORKS = {
    "ddpm": "--block_out_channels 8 8 --norm_num_groups 4 --attention_head_dim 8".split(),
    "gan": "--latent_dim 8 --base_channels 8 --class_conditional --penalty_interval 2".split(),
    "flow": "--patch_size 4 --num_blocks 2 --hidden_size 16 --attention_head_dim 8".split(),
    "vae": "--block_out_channels 8 8 --latent_channels 4".split(),
}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def run_of(family, *more):
    return loops.read_run(family, [*SMALL, *NETWORKS[family], *more])


@pytest.mark.parametrize("loop", loops.LOOPS)
@pytest.mark.parametrize("family", NETWORKS)
def test_the_loops_train(family, loop, monkeypatch):
    opened, make, averages = [], api.open_recipe, []
    monkeypatch.setattr(api, "open_recipe", lambda *args: opened.append(make(*args)) or opened[-1])
    for path in ("hfgen.training.ema.EMA", "diffusers.training_utils.EMAModel"):
        module, _, name = path.rpartition(".")
        kind = getattr(__import__(module, fromlist=[name]), name)
        update = "update" if name == "EMA" else "step"
        method = getattr(kind, update)
        monkeypatch.setattr(kind, update, lambda *args, _method=method: averages.append(_method(*args)))
    with loops.in_a_folder(run_of(family, "--lr_scheduler", "constant")) as options:
        step = loops.LOOPS[loop](options)
        ((recipe, *_),) = opened
        before = {id(p): p.detach().clone() for m in modules_of(recipe).values() for p in m.parameters()}
        for _ in range(3):
            step()
    for module in modules_of(recipe).values():
        module.requires_grad_(True)
    for name, parameters in loops.phase_parameters(recipe).items():
        changed = [not torch.equal(parameter, before[id(parameter)]) for parameter in parameters.values()]
        assert sum(changed) > 0.8 * len(changed), name  # what has no gradient yet, such as class embeddings, stays
    assert len(averages) == 3


def test_our_loop_is_that_of_a_run(tmp_path):
    """The same bits as `hfgen train`."""
    short = "--max_train_steps 3 --save_images_epochs 0 --seed 5".split()
    with loops.in_a_folder(run_of("vae", *short)) as options:
        run = api.prepare(options, say=lambda text: None).train()
    expected = {name: module.state_dict() for name, module in run.engine.modules.items()}
    prepared, make = [], api.prepare
    with pytest.MonkeyPatch.context() as patch, loops.in_a_folder(run_of("vae", *short)) as options:
        patch.setattr(api, "prepare", lambda *args, **more: prepared.append(make(*args, **more)) or prepared[-1])
        step = loops.hfgen_loop(options)
        for _ in range(3):
            step()
    for name, module in prepared[0].engine.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, expected[name][key]), key


def test_the_example_sees_the_same_images():
    from hfgen.data.cache import open_images

    options = run_of("ddpm")
    stored = open_images(options.data)
    dataset = loops.transformed(options, stored.info)
    assert len(dataset) == len(stored.images) == 1797
    for number in (0, 5, 1796):
        torch.testing.assert_close(
            dataset[number]["image"], torch.from_numpy(stored.images[number] / 127.5 - 1).float(), atol=1e-6, rtol=0
        )
        assert dataset[number]["label"] == stored.labels[number]


def test_flops_are_counted_per_image():
    """As torch counts them, where it can."""
    with loops.in_a_folder(run_of("vae")) as options:
        step = loops.bare_loop(options)
        with FlopCounterMode(display=False) as counter:
            step()
        assert loops.count_flops(options) == counter.get_total_flops() / 16
    counts = []
    for batch in (8, 16):
        with loops.in_a_folder(run_of("vae", "--train_batch_size", str(batch))) as options:
            counts.append(loops.count_flops(options))
    assert counts[0] == counts[1] > 1e5


@pytest.mark.slow
def test_a_run_of_all_families(tmp_path, capsys):
    output = tmp_path / "train.json"
    options = "--rounds 3 --round_seconds 0.01 --start_ups 0 --clock cpu".split()
    BENCHMARK.main([*options, *SMALL, "--output", str(output)])
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert report["command"].endswith(f"--clock cpu {' '.join(SMALL)} --output {output}")
    assert report["config"]["benchmark"]["clock"] == "cpu" and report["config"]["gan"]["r1_gamma"] > 0
    for family in NETWORKS:
        found = report["measured"][family]
        assert len(found["turns"]) == 3 and found["flops_per_image"] > 0
        for other, ratio in found["hfgen_over"].items():
            expected = statistics.median(turn["hfgen"] / turn[other] for turn in found["turns"])
            assert ratio["median"] == pytest.approx(expected)
        (row,) = [row for row in report["tables"]["Images per second"] if row[0] == family]
        assert row[4].startswith(f"{found['hfgen_over']['bare']['median']:.3f} ± ")
        overhead = f"{family}: overhead over the bare loop {1 - found['hfgen_over']['bare']['median']:.1%}"
        assert any(note.startswith(overhead) for note in report["notes"]) and overhead in printed


@pytest.mark.slow
def test_processes_of_their_own(tmp_path, capsys):
    output = tmp_path / "train.json"
    options = "--family vae --rounds 1 --round_seconds 0.01 --start_ups 1".split()
    BENCHMARK.main([*options, *SMALL, *NETWORKS["vae"], "--output", str(output)])
    report = json.loads(output.read_text())
    for process in report["measured"]["vae"]["processes"].values():
        assert process["seconds"]["median"] > 0.5 and process["megabytes"]["median"] > 100
    starts = report["measured"]["starts"]
    assert list(starts) == ["import torch", "import hfgen", "hfgen --help", "hfgen train gan --help"]
    assert starts["import torch"]["median"] > starts["import hfgen"]["median"] > 0
    assert [row[1] for row in report["tables"]["Memory and start-up of training"][1:]] == list(loops.LOOPS)
    printed = capsys.readouterr().out
    assert "| `import hfgen` | 0.0" in printed and "the slowest help takes " in printed


@pytest.mark.parametrize("name", ["train", "memory", "throughput", "write", "pairs"])
def test_help_imports_no_torch(name):
    command = [sys.executable, "-X", "importtime", ROOT / "benchmarks" / f"{name}.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--config" in result.stdout
    assert " torch\n" not in result.stderr and " numpy\n" not in result.stderr


def test_flags_are_told_apart():
    mine, others = separate(
        BENCHMARK.TrainBenchmark, "--resolution 8 --family gan vae --snr_gamma -1 --rounds=3 --num_epochs 2".split()
    )
    assert mine == ["--family", "gan", "vae", "--rounds=3"]
    assert others == ["--resolution", "8", "--snr_gamma", "-1", "--num_epochs", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rounds 0", "--rounds 0 is out of range"),
        ("--start_ups -1", "--start_ups -1 is out of range"),
        ("--family", "--family is empty"),
        ("--family dit", "invalid choice: 'dit'"),
        ("--r1_gamma 1", "unknown flag --r1_gamma"),
        ("--family gan --r1_gamma -1", "--r1_gamma -1.0 is out of range"),
        ("--gradient_accumulation_steps 2", "--gradient_accumulation_steps 2: the loops are compared"),
        ("--mixed_precision fp16", "--mixed_precision fp16: the bare loop cannot do that"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as error, spelled():
        BENCHMARK.main(arguments.split())
    assert message in str(error.value)
