"""Records what tiny training runs compute, to the last bit, and compares another checkout with it.

It knows a checkout by its command lines alone, so how the code is laid out within does not matter. Run it with
`tests/` on PYTHONPATH:

    python -m helpers.golden record --checkout . --output tests/golden.json
    python -m helpers.golden compare --checkout ../other --golden tests/golden.json --only gan-stable

Bits depend on the processor and on the version of torch, so the record names both.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Record = dict[str, Any]

CLOCK = re.compile("per_second|seconds|memory")  # what a line of metrics says of time and place
PATIENCE = 300  # seconds that a command may take
RESOLVED = {"image_mode", "image_column", "label_column", "attention_resolutions", "discriminator_learning_rate"}
RESOLVED |= {"group_width", "task_level"}
CLASSIFIER = "classifier"  # folder of the extractor, beside the runs
THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# What a launcher or an earlier run may have left, and what would let a run leave this machine.
UNWANTED = re.compile("RANK|LOCAL_|WORLD_SIZE|MASTER_|TORCHELASTIC_|ACCELERATE_|HF_|HUGGING_FACE_|PYTHONPATH")

# The runs


@dataclass(frozen=True)
class GoldenRun:
    """A training run, and what is done with its pipeline."""

    name: str
    family: str
    options: str
    slow: bool = False  # whether the default tests leave it out
    processes: int = 1
    sample: str | None = None  # options of sample.py
    evaluate: str | None = None  # options of evaluate.py


COMMON = (
    "--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 8 --logging_steps 3 "
    "--checkpointing_steps 4 --eval_batch_size 4 --save_images_epochs 0 --mixed_precision no"
)
FAMILY = {
    "ddpm": "--block_out_channels 8 8 --norm_num_groups 4 --attention_head_dim 8 --lr_warmup_steps 2 "
    "--ddpm_num_inference_steps 3",
    "gan": "--latent_dim 8 --base_channels 8 --ada_target none --ada_images 500000",
    "autoregressive": "--lr_warmup_steps 2",
    "flow": "--lr_warmup_steps 2",
    "vae": "--latent_channels 4 --block_out_channels 8 8 --lr_warmup_steps 2 --prior_components 2",
}
AUGMENTED = "--random_flip --random_rotation 10 --random_scale 0.1 --random_crop 1 --color_jitter 0.2"
MEASURED = (
    f"--extractor {CLASSIFIER} --num_images 40 --batch_size 16 --metrics fd kd precision_recall label_divergence"
)

ALL = (
    GoldenRun("ddpm-plain", "ddpm", "--save_images_steps 4 --save_model_epochs 0.03"),
    GoldenRun(
        "ddpm-classes",
        "ddpm",
        f"--class_conditional --label_dropout 0.3 --dropout 0.1 --attention_resolutions 8 4 {AUGMENTED}",
        sample="--guidance_scale 2",
        evaluate=f"{MEASURED} conditional_accuracy --num_inference_steps 3",
    ),
    GoldenRun(
        "ddpm-groups",
        "ddpm",
        "--num_clusters 5 --train_batch_size 8 --gradient_accumulation_steps 2 --prediction_type epsilon "
        "--ddpm_beta_schedule linear --lr_scheduler linear --adam_weight_decay 0.1",
    ),
    GoldenRun(
        "ddpm-evaluated",
        "ddpm",
        f"--eval_every 3 --eval_num_images 40 --eval_metrics fd precision_recall --eval_extractor {CLASSIFIER} "
        "--metric_for_best_model fd --rescale_betas_zero_snr --snr_gamma 5 --learning_rate 0.05 "
        "--gradient_checkpointing",
    ),
    GoldenRun("gan-stable", "gan", "--preset stable --num_clusters 10", sample="", evaluate=f"{MEASURED} vendi"),
    GoldenRun("gan-dcgan", "gan", "--preset dcgan --no_use_ema"),
    GoldenRun("gan-wgan-gp", "gan", "--preset wgan-gp --discriminator_learning_rate 0.001"),
    GoldenRun("gan-stylegan2", "gan", "--preset stylegan2 --base_channels 4 --penalty_interval 4 --truncation 0.7"),
    GoldenRun("gan-residual", "gan", "--architecture residual --group_width 4 --objective hinge"),
    GoldenRun("gan-mlp", "gan", f"--preset mlp --base_channels 8 --spectral_norm --label_smoothing 0.1 {AUGMENTED}"),
    GoldenRun(
        "gan-adaptive",
        "gan",
        "--ada_target 0.6 --augment_probability 0.3 --balance_classes --class_conditional --train_batch_size 8 "
        "--gradient_accumulation_steps 2",
    ),
    GoldenRun(
        "gan-two-processes",
        "gan",
        "--preset dcgan --class_conditional --train_batch_size 4 --gradient_accumulation_steps 2",
        slow=True,  # two processes import the libraries
        processes=2,
    ),
    GoldenRun(
        "vae-residual",
        "vae",
        "--preset residual --beta 2 --random_flip",
        sample="--temperature 0.7",
        evaluate=f"{MEASURED} bits_per_dim",
    ),
    GoldenRun("vae-conv", "vae", "--preset conv --likelihood gaussian --lr_scheduler constant --channels_last"),
    GoldenRun(
        "vae-hierarchical", "vae", "--preset hierarchical --train_batch_size 16 --kl_warmup 0.5 --prior_components 0"
    ),
    GoldenRun("vae-vq", "vae", "--preset vq --num_vq_embeddings 16"),
    GoldenRun("vae-denoise", "vae", "--preset denoise"),
    GoldenRun("vae-classes-bf16", "vae", "--preset conditional --mixed_precision bf16 --spatial_latent"),
    GoldenRun(
        "autoregressive-pixelcnn",
        "autoregressive",
        "--base_channels 8 --dilations 1 2 --class_conditional --dropout 0.1",
        sample="--temperature 0.8 --top_p 0.9",
        evaluate=f"{MEASURED} bits_per_dim",
    ),
    GoldenRun(
        "autoregressive-transformer-colours",
        "autoregressive",
        "--preset transformer --hidden_size 16 --num_layers 1 --image_mode RGB --mixed_precision bf16 --random_flip",
    ),
    GoldenRun(
        "flow-tarflow",
        "flow",
        "--patch_size 4 --num_blocks 2 --hidden_size 16 --attention_head_dim 8 --class_conditional "
        "--label_dropout 0.3",
        sample="--temperature 0.7 --guidance_scale 2",
        evaluate=f"{MEASURED} bits_per_dim",
    ),
    GoldenRun(
        "flow-glow",
        "flow",
        f"--preset glow --num_steps 2 --hidden_size 8 --dequantisation uniform {AUGMENTED}",
    ),
)
RUNS = {run.name: run for run in ALL}


# The other side: one process with a checkout's modules, which carries out command lines


def drive() -> None:
    """Reads commands as lines of JSON, and answers each with a line: what went wrong, or null.

    Importing the libraries takes longer than a run does, so all runs share one process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what scripts print goes where the errors go
    for line in sys.stdin:
        command = json.loads(line)
        if command[0] == CLASSIFIER:
            save_classifier(Path(CLASSIFIER))
            problem = None
        else:
            problem = execute(Path(command[0]), command[1:])
        sys.stdout.flush()
        print(json.dumps(problem), file=answers, flush=True)


def execute(script: Path, arguments: list[str]) -> str | None:
    """Runs a script as `python script arguments` would, in an interpreter that looks as if it had just started."""
    import accelerate.state
    import torch

    import hfgen

    if not Path(hfgen.__file__).is_relative_to(script.parent.parent):
        return f"hfgen is {hfgen.__file__}, not that of {script.parent.parent}"
    environment, path, argv = dict(os.environ), list(sys.path), sys.argv
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    torch.set_num_threads(1)
    try:
        sys.argv, sys.path[0] = [str(script), *arguments], str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        return f"exit code {error.code}" if error.code else None
    except BaseException:
        return traceback.format_exc()
    finally:
        sys.argv, sys.path[:] = argv, path
        os.environ.clear()
        os.environ.update(environment)
    return None


def save_classifier(folder: Path) -> None:
    """Writes a classifier of digits with random weights, which is all that the metrics need."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    names = {number: str(number) for number in range(10)}
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", id2label=names,
        label2id={name: number for number, name in names.items()}, architectures=["ResNetForImageClassification"],
    )  # fmt: skip
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


# This side: it starts the other, and reads what the runs have written


class Driver:
    """Carries out golden runs in a checkout.

    Args:
        checkout (`Path`): The repository's folder.
        folder (`Path`): An empty folder for runs and caches.
        fresh (`bool`): Whether each command line gets a process of its own; to verify that this changes nothing.
    """

    def __init__(self, checkout: Path, folder: Path, fresh: bool = False):
        self.checkout, self.folder, self.fresh = checkout.resolve(), folder, fresh
        self.log = folder / "log.txt"
        own = {name: value for name, value in os.environ.items() if not UNWANTED.match(name)}
        home = {"HF_HOME": str(folder / "hf_home"), "PYTHONPATH": str(self.checkout), "ACCELERATE_USE_CPU": "1"}
        self.environment = own | THREAD | OFFLINE | home
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def measure(self, run: GoldenRun) -> Record:
        """Trains, samples and evaluates, and digests what was written."""
        if not (self.folder / CLASSIFIER).exists():
            self._send(CLASSIFIER)
        options = [*COMMON.split(), *FAMILY[run.family].split(), *run.options.split()]
        # Given relative to the working folder, so that the record of the options holds no temporary names.
        self._call(f"train_{run.family}", *options, "--cpu_threads", "1", "--output_dir", run.name, n=run.processes)
        folder = self.folder / run.name
        found = read_run(folder)
        if run.sample is not None:
            options = [*"--num_images 4 --output_dir".split(), f"{run.name}-images", *run.sample.split()]
            self._call("sample", "--model", run.name, *options)
            images = sorted((self.folder / f"{run.name}-images").glob("*.png"))
            found["sampled"] = {path.name: pixels(path) for path in images}
        if run.evaluate is not None:
            output = ["--output", f"{run.name}.json", "--cpu_threads", "1"]
            self._call("evaluate", "--model", run.name, *run.evaluate.split(), *output)
            report = json.loads((self.folder / f"{run.name}.json").read_text())
            (model,) = report["models"]
            found["evaluated"] = {name: digest(result) for name, result in model["results"].items()}
        return found

    def _call(self, script: str, *arguments: str, n: int = 1) -> None:
        path = self.checkout / "scripts" / f"{script}.py"
        if n == 1 and not self.fresh:
            return self._send(str(path), *arguments)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []
        command = [sys.executable, *launcher, str(path), *arguments]
        with self.log.open("a") as log, one_core(script == "sample"):
            code = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=PATIENCE,
            ).returncode
        if code:
            raise RuntimeError(f"{' '.join(command)}: exit code {code}\n{self._last_words()}")

    def _send(self, *command: str) -> None:
        if self._process is None:
            with self.log.open("a") as log:
                self._process = subprocess.Popen(
                    [sys.executable, str(Path(__file__).resolve()), "drive"],
                    cwd=self.folder, env=self.environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        # sample.py takes as many threads as it may use cores.
        with one_core("sample.py" in command[0], self._process.pid):
            watchdog = threading.Timer(PATIENCE, self._process.kill)
            watchdog.start()
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            watchdog.cancel()
        problem = json.loads(answer) if answer else f"the process has died, or took more than {PATIENCE} seconds"
        if problem:
            raise RuntimeError(f"{' '.join(command)}: {problem}\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def _stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.close()  # the end of its commands
            self._process.wait(60)
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def one_core(wanted: bool, pid: int = 0):
    """Lets a process, or the children of this one, use a single core for a while, where the system can do that."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(pid)
    os.sched_setaffinity(pid, {min(before)})
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, before)


# Digests


def digest(value: Any) -> str:
    """Half of the SHA-256 of bytes, or of a value as JSON, which writes numbers with all their digits."""
    return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value).encode()).hexdigest()[:32]


def tensors(paths: Sequence[Path]) -> str:
    """A digest of names, types, shapes and bytes of the tensors in safetensors files, whatever the files' layout."""
    found = []
    for path in paths:
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                own = digest(content[start + first : start + last])
                found.append([path.name, name, entry["dtype"], entry["shape"], own])
    return digest(sorted(found))


def pixels(path: Path) -> str:
    """A digest of what an image shows; its file may hold other notes, or be packed in another way."""
    from PIL import Image

    with Image.open(path) as image:
        return digest(f"{image.mode} {image.size} ".encode() + image.tobytes())


def read_run(folder: Path) -> Record:
    """What a training run has left, in digests; its options as they are, for a later version may have more."""
    places = [folder, *([folder / "best"] if (folder / "best").exists() else [])]
    components: dict[str, str] = {}
    for place in places:
        for path in sorted(place.glob("[a-z]*/*.safetensors")):
            name = str(path.parent.relative_to(folder))
            if not path.parent.name.startswith("checkpoint-"):
                components.setdefault(name, tensors(sorted(path.parent.glob("*.safetensors"))))
    columns: dict[str, list[Any]] = {}
    for number, line in enumerate((folder / "logs" / "metrics.jsonl").read_text().splitlines()):
        for name, value in json.loads(line).items():
            if not CLOCK.search(name):
                columns.setdefault(name, []).append([number, value])
    return {
        "components": components,
        # The last one, and one between two lines of metrics, which holds their sums.
        "checkpoints": {
            str(path.relative_to(folder)): tensors([path])
            for path in sorted(folder.glob("checkpoint-*/*.safetensors"))
        },
        "metrics": {name: digest(values) for name, values in columns.items()},
        "pictures": {
            str(path.relative_to(folder)): pixels(path) for place in places for path in sorted(place.glob("*.png"))
        },
        "config": json.loads((folder / "run.json").read_text())["config"],
    }


def differences(before: Record, after: Record) -> list[str]:
    """Says in what a run differs from its record; options that the record does not know are no difference."""
    found = []
    for part in [*before, *(part for part in after if part not in before)]:
        old, new = before.get(part, {}), after.get(part, {})
        for name in [*old, *(name for name in new if name not in old and part != "config")]:
            if name not in new:
                found.append(f"{part}: {name} is missing")
            elif name not in old:
                found.append(f"{part}: {name} is new")
            elif part == "config" and old[name] is None and name in RESOLVED:
                continue  # it was recorded as it was left out, and is now as data and machine decided it
            elif old[name] != new[name]:
                values = f": {old[name]} before, {new[name]} now" if part == "config" else ""
                found.append(f"{part}: {name} differs{values}")
    return found


def this_machine() -> dict[str, Any]:
    """What bits depend on: the processor with its vector instructions, and versions."""
    text = ""
    with contextlib.suppress(OSError):  # on Linux alone
        text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    vectors = [flag for flag in (flags[1].split() if flags else []) if re.match("avx|amx|fma", flag)]
    return {
        "cpu": model[1] if model else "unknown",
        "instructions": " ".join(sorted(vectors)),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def why_not_comparable(machine: dict[str, Any]) -> str | None:
    """The reason why bits recorded on `machine` cannot be expected here, or None."""
    here = this_machine()
    for name in ("cpu", "instructions", "torch"):
        if machine[name] != here[name]:
            return f"recorded with {name} {machine[name]!r}, and here it is {here[name]!r}"
    return None


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("record", "compare"):
        command = kinds.add_parser(kind)
        command.add_argument("--checkout", type=Path, required=True, help="the repository's folder")
        name = "--output" if kind == "record" else "--golden"
        command.add_argument(name, dest="file", type=Path, required=True, help="JSON file of the records")
        command.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="names of runs")
        command.add_argument("--fresh", action="store_true", help="a new process for each command line (slow)")
    kinds.add_parser("drive")
    options = parser.parse_args(argv)
    if options.kind == "drive":
        drive()
        return 0
    return record_or_compare(options.kind == "record", options.checkout, options.file, options.only, options.fresh)


def write(file: Path, runs: dict[str, Record]) -> None:
    """Writes the records, one line for each part of a run."""
    lines = [f'{{"machine": {json.dumps(this_machine())},', '"runs": {']
    for name, record in runs.items():
        parts = ",\n".join(f"{json.dumps(part)}: {json.dumps(values)}" for part, values in record.items())
        lines.append(f"{json.dumps(name)}: {{\n{parts}}}{',' if name != list(runs)[-1] else ''}")
    file.write_text("\n".join([*lines, "}}"]) + "\n")


def record_or_compare(record: bool, checkout: Path, file: Path, names: Sequence[str], fresh: bool) -> int:
    """Records runs, beside those that the file has already, or compares them with it."""
    golden: Record = json.loads(file.read_text()) if file.exists() or not record else {"runs": {}}
    reason = why_not_comparable(golden["machine"]) if "machine" in golden else None
    if reason and record and set(names) != set(RUNS):
        raise SystemExit(f"error: {file} was {reason}: record all runs anew.")
    if reason and not record:
        print(f"Bits may differ: {reason}.")
    failed = False
    with tempfile.TemporaryDirectory() as folder, Driver(checkout, Path(folder), fresh) as driver:
        for name in names:
            start = time.perf_counter()
            try:
                found = driver.measure(RUNS[name])
                wrong = [] if record else differences(golden["runs"].get(name, {}), found)
            except RuntimeError as error:
                wrong = [str(error)]
            else:
                if record:
                    golden["runs"][name] = found
            failed |= bool(wrong)
            print(f"{name}: {'OK' if not wrong else 'differs'} ({time.perf_counter() - start:.1f} s)", flush=True)
            print("".join(f"  {line}\n" for line in wrong), end="", flush=True)
    if record and not failed:
        write(file, {name: golden["runs"][name] for name in RUNS if name in golden["runs"]})
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
