"""The training script as users run it, and all that they can get wrong."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from evaluation.tiny import save_classifier
from helpers import ROOT, TINY, TINY_NETWORK, Command, metrics, run
from helpers.forked import Forked
from PIL import Image

from hfgen.runtime.errors import UserError
from hfgen.training import checkpoint


@pytest.fixture(scope="module")
def script():
    return Command("train ddpm")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, trained through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("runs") / "ddpm-tiny"
    result = run("train_ddpm", *TINY, "--output_dir", folder, "--logger", "tensorboard", launcher="accelerate")
    assert result.returncode == 0, result.stderr
    return folder, result


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_run_directory(trained):
    folder, result = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "README.md",
        "checkpoint-000000000064",
        "checkpoint-000000000096",
        "logs",
        "model_index.json",
        "overview",
        "run.json",
        "samples",
        "samples.png",
        "scheduler",
        "unet",
    ]
    assert "digits [train]: 1797 images, 8x8 L, 10 classes" in result.stdout
    threads = len(os.sched_getaffinity(0))
    assert re.search(rf"CPU(| \(.*\)), {threads} threads? of {threads} cores, precision no", result.stdout)
    for line in ("Samples:", f"Pipeline: {folder}", "Use it:   hfgen sample --model"):
        assert line in result.stdout
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("_diffusers_version")
    assert index == {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert Image.open(folder / "samples" / "000000000096.png").size == (2 * 68 + 4, 2 * 68 + 4)
    assert [line["images_seen"] for line in metrics(folder)] == [32, 64, 96]
    assert {"loss", "lr", "grad_norm", "step", "epoch", "noise_mse_1"} <= set(metrics(folder)[0])
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_plain_diffusers_loads_and_samples_it(trained, tmp_path):
    code = """
import sys; sys.modules["hfgen"] = None
import torch
from diffusers import DDPMPipeline
pipe = DDPMPipeline.from_pretrained(sys.argv[1])
print(pipe(batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(0)).images[1].size)
"""
    out, err = Forked(["-c", code, trained[0]], cwd=tmp_path).communicate()
    assert out.strip() == "(8, 8)", err
    assert "Expected types" not in err


def test_the_record_and_the_card(trained, monkeypatch):
    folder, _ = trained
    record = json.loads((folder / "run.json").read_text())
    assert record["family"] == "ddpm"
    assert record["config"]["train_batch_size"] == 16
    assert record["images_seen"] == record["images_total"] == 96
    assert record["command"].startswith("accelerate launch scripts/train_ddpm.py --dataset_name digits")
    assert "hub_token" not in record["config"]
    card = (folder / "README.md").read_text()
    from huggingface_hub import ModelCard

    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    assert record["data"]["fingerprint"] in card
    assert "hfgen train ddpm --config run.json" in card and str(folder) not in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code.replace("num_inference_steps=50", "num_inference_steps=4"), namespace)  # the card's own snippet
    assert len(namespace["images"]) == 4


def test_class_conditional_run(tmp_path, script, monkeypatch):
    script.main([*TINY, "--class_conditional", "--output_dir", str(tmp_path)])
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert len(namespace["images"]) == 2
    assert namespace["pipe"].class_names == [str(digit) for digit in range(10)]


def test_groups_by_the_features_of_a_network(tmp_path, script):
    classifier = save_classifier(tmp_path / "classifier")
    options = [*TINY, "--num_clusters", "6", "--cluster_features", classifier]
    script.main([*options, "--output_dir", str(tmp_path / "one")])
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["config"]["cluster_features"] == classifier
    script.main([*TINY, "--num_clusters", "6", "--output_dir", str(tmp_path / "two")])
    other = json.loads((tmp_path / "two" / "run.json").read_text())
    assert other["config"]["cluster_features"] == "pixels"  # of gray images
    assert other["data"]["fingerprint"] != record["data"]["fingerprint"]
    with pytest.raises(UserError, match="--cluster_features no/such: the extractor no/such cannot be loaded"):
        script.main([*options[:-1], "no/such", "--output_dir", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_a_run_on_groups_of_similar_images(tmp_path, script, monkeypatch):
    script.main([*TINY, "--num_clusters", "6", "--guidance_scale", "2.5", "--output_dir", str(tmp_path)])
    card = (tmp_path / "README.md").read_text()
    assert "which of 6 groups of similar images" in card
    assert "{{" not in card and "{%" not in card and "None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert len(namespace["images"]) == 4
    assert namespace["pipe"].config.guidance_scale == 2.5
    Command("sample").main(
        [
            "--model",
            str(tmp_path),
            "--num_images",
            "2",
            "--num_inference_steps",
            "2",
            "--output_dir",
            str(tmp_path / "x"),
        ]
    )
    record = json.loads((tmp_path / "x" / "samples.json").read_text())
    assert record["guidance_scale"] == 2.5
    assert record["images"][0]["class_label"] is None  # no label was asked for


def test_a_finished_run_can_be_started_again_by_a_scheduler(tmp_path, script, capsys):
    command = [*TINY, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest"]
    script.main(command)  # a fresh directory: starts from zero
    before = contents(tmp_path)
    script.main(command)
    assert "Done: 96 images" in capsys.readouterr().out
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    same = [name for name in after if after[name] == before[name]]
    assert set(after) - set(same) <= {"run.json", "README.md", ".lock"}  # only dates and times


def test_colour_alpha_and_other_options(tmp_path, script):
    (tmp_path / "photos").mkdir()
    for number in range(20):
        Image.new("RGBA", (12, 16), (number, 9 * number, 5, 200)).save(tmp_path / "photos" / f"{number}.png")
    options = ["--train_data_dir", str(tmp_path / "photos"), "--color_jitter", "0.1", "--random_scale", "0.1"]
    options += [
        "--no_use_ema",
        "--gradient_checkpointing",
        "--channels_last",
        "--snr_gamma",
        "5",
        "--ddpm_num_steps",
        "50",
    ]
    tiny = TINY[TINY.index("--resolution") :]
    script.main([*tiny, *options, "--output_dir", str(tmp_path / "out")])
    unet = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert (unet["in_channels"], unet["sample_size"]) == (4, 8)
    assert not list((tmp_path / "out").rglob("ema_*"))
    assert Image.open(tmp_path / "out" / "samples.png").mode == "RGB", "laid over squares"


def test_gradient_checkpointing_computes_the_same(tmp_path, script):
    for name, extra in (("plain", []), ("checkpointed", ["--gradient_checkpointing", "--dropout", "0"])):
        script.main([*TINY, *extra, "--output_dir", str(tmp_path / name)])
    tensors = [
        checkpoint.load(checkpoint.list_checkpoints(tmp_path / n)[-1])[0]["unet"] for n in ("plain", "checkpointed")
    ]
    for key in tensors[0]:
        torch.testing.assert_close(tensors[0][key], tensors[1][key], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_compile(tmp_path):
    result = run("train_ddpm", *TINY, "--compile", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    (saved, _) = checkpoint.load(checkpoint.list_checkpoints(tmp_path)[-1])
    assert "conv_in.weight" in saved["unet"]  # no _orig_mod


def test_help_answers_without_torch():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "scripts" / "train_ddpm.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert "--ddpm_beta_schedule" in result.stdout
    assert " torch\n" not in result.stderr


# What users get wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset_name nobody/nothing", "--dataset_name nobody/nothing cannot be loaded"),
        ("--train_data_dir EMPTY", "holds no images"),
        ("--image_column picture", "--image_column picture is not a column of the data; it has: image (Image)"),
        ("--label_column kind --class_conditional", "--label_column kind is not a column"),
        (
            "--resolution 9",
            "--resolution does not fit --resolution 9 and --block_out_channels 8 8: 9 pixels cannot be",
        ),
        ("--resolution 2", "--resolution 2 is out of range"),
        ("--mixed_precision fp16", "--mixed_precision fp16 does not exist on a CPU: use bf16 or no."),
        ("--model_config_name_or_path EMPTY", "--model_config_name_or_path"),
        ("--rezolution 8", "unknown flag --rezolution. Did you mean --resolution?"),
        ("--ema_max_decay 0.9", "--ema_max_decay does not exist here: the moving average is set by its half-life"),
        ("--config CONFIG", "has the unknown key 'learning_rat'. Did you mean learning_rate?"),
        ("--push_to_hub", "--push_to_hub: there is no token of the Hub"),
        ("--resume_from_checkpoint absent", "--resume_from_checkpoint absent is no checkpoint"),
        ("--logger wandb", "--logger wandb is not installed"),
        ("--train_batch_size 0", "--train_batch_size 0 is out of range"),
        ("--lr_warmup_steps -1", "--lr_warmup_steps -1 is out of range"),
        ("--prediction_type noise", "invalid choice: 'noise'"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--streaming", "--streaming needs --dataset_name"),
        ("--random_flip --no_random_flip --seed", "expected one argument"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, script, arguments, message):
    from hfgen.models.unet2d import build_unet

    (tmp_path / "empty").mkdir()
    (tmp_path / "config.yaml").write_text("learning_rat: 1\n")
    build_unet(8, 1, (8, 8), norm_num_groups=4, attention_head_dim=8, num_class_embeds=4).save_config(
        tmp_path / "unet"
    )
    names = {"EMPTY": "empty", "CONFIG": "config.yaml", "UNET": "unet"}
    words = [str(tmp_path / names[word]) if word in names else word for word in arguments.split()]
    tiny = TINY[2:] if "dataset_name" in arguments or "train_data_dir" in arguments else TINY
    with pytest.raises(UserError) as error:
        script.main([*tiny, "--output_dir", str(tmp_path / "out"), *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_scripts_end_with_one_line_and_exit_code_2():
    for command in (["train_ddpm", "--resolutoin", "8"], ["sample", "--model", "absent"], ["evaluate"]):
        result = run(*command)
        assert result.returncode == 2
        assert result.stdout == ""
        assert re.fullmatch(r"error: .*\n", result.stderr), result.stderr


def test_processes_say_what_is_wrong(tmp_path):
    result = run("train_ddpm", "--train_data_dir", tmp_path / "absent", processes=2)
    assert result.returncode != 0
    assert "error: --train_data_dir" in result.stderr


def test_an_output_directory_in_use_is_left_alone(trained, script):
    folder, _ = trained
    before = contents(folder)
    base = [*TINY, "--output_dir", str(folder), "--logger", "tensorboard"]
    cases = [
        (base, "already holds a run. Go on with it"),
        ([*base, "--learning_rate", "0.5"], "whose options differ (--learning_rate 0.001 there, 0.5 here)"),
        (
            [*base, "--learning_rate", "0.5", "--resume_from_checkpoint", "latest"],
            "holds a different run, whose options",
        ),
        ([*base, "--overwrite_output_dir", "--resume_from_checkpoint", "latest"], "exclude each other"),
        ([*base, "--train_batch_size", "32", "--resume_from_checkpoint", "latest"], "took 16 images per step"),
    ]
    for command, message in cases:
        with pytest.raises(UserError) as error:
            script.main(command)
        assert message in str(error.value)
        assert contents(folder) == before


def test_a_checkpoint_of_another_architecture_or_other_data(trained, script, tmp_path):
    folder, _ = trained
    saved = checkpoint.list_checkpoints(folder)[-1]
    base = [*TINY, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", str(saved)]
    with pytest.raises(UserError, match=r"options differ \(--block_out_channels \[8, 8\] there, \[8, 16\] here\)"):
        script.main([*base, "--block_out_channels", "8", "16"])
    state = json.loads((saved / "state.json").read_text())
    del state["digest"]
    copy = tmp_path / "checkpoint-000000000096"
    copy.mkdir()
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    base[-1] = str(copy)
    (copy / "state.json").write_text(json.dumps(state | {"data": "other"}))
    with pytest.raises(UserError, match="was trained on other data than digits now holds"):
        script.main(base)
    # The options agree, but the tensors do not: a file exchanged by hand.
    (copy / "state.json").write_text(json.dumps({key: state[key] for key in state if key != "files"}))  # no digests
    from safetensors.torch import save_file

    save_file({"conv_in.weight": torch.zeros(3)}, copy / "unet.safetensors")
    with pytest.raises(UserError, match=r"has another architecture: \d+ tensors of 'unet' are missing or differ"):
        script.main(base)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_not_touched(tmp_path, script):
    (tmp_path / "README.md").write_text("mine")
    for extra in ([], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
        with pytest.raises(UserError, match=r"holds README\.md of something else than a run of hfgen"):
            script.main([*TINY, "--output_dir", str(tmp_path), *extra])
    for outside in ("..", ".", "/tmp"):
        with pytest.raises(UserError, match="is outside of --output_dir"):
            script.main([*TINY, "--output_dir", str(tmp_path / "out"), "--logging_dir", outside])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_rewinding_keeps_the_later_checkpoints(tmp_path, script):
    command = [*TINY, "--output_dir", str(tmp_path), "--checkpoints_total_limit", "none"]
    script.main(command)
    first, *later = checkpoint.list_checkpoints(tmp_path)
    script.main([*command, "--max_train_steps", "3", "--resume_from_checkpoint", first.name])
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [first.name, "checkpoint-000000000048"]
    assert sorted(path.name for path in tmp_path.glob("abandoned-*")) == [f"abandoned-{path.name}" for path in later]
    with pytest.raises(UserError, match="holds a run of its own"):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "run.json").write_text("{}")
        script.main([*command, "--output_dir", str(tmp_path / "b"), "--resume_from_checkpoint", str(first)])


def test_resuming_with_channels_last_is_exact(tmp_path, script):
    command = [*TINY, "--channels_last", "--checkpoints_total_limit", "none"]
    script.main([*command, "--output_dir", str(tmp_path / "a")])
    saved = checkpoint.list_checkpoints(tmp_path / "a")[0]
    script.main([*command, "--output_dir", str(tmp_path / "b"), "--resume_from_checkpoint", str(saved)])
    ours, theirs = (checkpoint.load(checkpoint.list_checkpoints(tmp_path / n)[-1])[0] for n in "ab")
    for file in ("unet", "ema_unet", "optimizer_unet"):
        assert all(torch.equal(ours[file][name], theirs[file][name]) for name in ours[file])


def test_a_rerun_writes_no_line_of_metrics_twice(tmp_path, script):
    command = [*TINY, "--output_dir", str(tmp_path), "--logging_steps", "4", "--resume_from_checkpoint", "latest"]
    for _ in range(3):
        script.main(command)
        assert [line["images_seen"] for line in metrics(tmp_path)] == [64, 96]


def test_a_folder_of_images_takes_the_place_of_a_presets_data(script):
    data, _, _ = script.read_options(["--preset", "mnist", "--train_data_dir", "photos"])
    assert (data.dataset_name, data.train_data_dir, data.resolution) == (None, "photos", 28)


def test_going_on_from_a_named_checkpoint_in_a_new_folder(trained, script, tmp_path):
    saved = checkpoint.list_checkpoints(trained[0])[0]
    script.main([*TINY, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", str(saved)])
    ours, theirs = (
        checkpoint.load(checkpoint.list_checkpoints(f)[-1])[0]["unet"] for f in (tmp_path / "out", trained[0])
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_overwriting_deletes_only_what_hfgen_wrote(tmp_path, script):
    command = [*TINY, "--output_dir", str(tmp_path)]
    script.main(command)
    (tmp_path / "notes.txt").write_text("mine")
    script.main([*command, "--max_train_steps", "3", "--overwrite_output_dir"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        "checkpoint-000000000032",
        "checkpoint-000000000048",
    ]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, script):
    command = [*TINY, *"--max_train_steps 40 --lr_warmup_steps 20 --lr_scheduler linear --max_grad_norm 0".split()]
    with pytest.raises(UserError) as error:
        script.main([*command, "--learning_rate", "100", "--output_dir", str(tmp_path)])
    message = str(error.value)
    assert re.search(r"phase 'unet' became infinite or NaN in step \d+, after \d+ images", message)
    assert not (tmp_path / "model_index.json").exists()
    for path in checkpoint.list_checkpoints(tmp_path):  # none holds a NaN
        for value in checkpoint.load(path)[0]["unet"].values():
            assert value.isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the file size as Linux does")
def test_no_disk_space_keeps_the_last_good_checkpoint(tmp_path):
    command = [*TINY, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest"]
    assert run("train_ddpm", *command, "--max_train_steps", 4).returncode == 0
    before = contents(checkpoint.list_checkpoints(tmp_path)[-1])

    limited = """
import resource, signal, sys
from hfgen.commands.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(sys.argv[1:], verb="train ddpm")
"""
    process = Forked(["-c", limited, *command])
    _, said = process.communicate()
    assert process.returncode == 2
    error = said.strip().splitlines()[-1]
    last = checkpoint.list_checkpoints(tmp_path)[-1]
    assert "error: --output_dir" in error
    assert f"The last good checkpoint is {last}" in error
    assert contents(last) == before
    result = run("train_ddpm", *command)  # and with room again
    assert result.returncode == 0, result.stderr


def test_accelerate_flags_that_hfgen_cannot_honour(tmp_path):
    result = run("train_ddpm", *TINY, "--output_dir", tmp_path, env={"WORLD_SIZE": "2"})
    assert result.returncode == 2
    assert "error: the processes of this run cannot be started" in result.stderr
    assert "MASTER_ADDR" in result.stderr
    env = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    result = run("train_ddpm", *TINY, "--output_dir", tmp_path, env=env)
    assert result.returncode == 2
    assert "--gradient_accumulation_steps" in result.stderr


@pytest.mark.slow
def test_the_main_job_as_it_stands(tmp_path):
    """`accelerate launch scripts/train_ddpm.py`, without arguments: digits that a classifier recognises."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    result = run("train_ddpm", cwd=tmp_path, launcher="accelerate", timeout=1800)
    assert result.returncode == 0, result.stderr
    result = run("sample", "--model", "out/ddpm-digits", "--num_images", 200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    paths = sorted((tmp_path / "out" / "ddpm-digits" / "images").glob("0*.png"))
    small = [
        np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BOX), dtype=float) / 255 * 16 for path in paths
    ]
    digits = load_digits()
    judge = SVC(gamma=0.001, probability=True, random_state=0).fit(digits.data, digits.target)
    sure = judge.predict_proba(np.stack(small).reshape(len(small), -1)).max(1)
    assert (sure > 0.8).mean() > 0.8
    found = np.bincount(judge.predict(np.stack(small).reshape(len(small), -1)), minlength=10)
    assert (found >= 5).all()


def test_tiny_network_flags_fit():
    assert TINY[-len(TINY_NETWORK) :] == TINY_NETWORK
