"""What tests share: tiny options, and scripts run as users run them."""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.forked import Forked
from hfgen.commands.cli import spell
from hfgen.commands.main import load
from hfgen.registry import families
from hfgen.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "toys"  # a package that adds two families

TINY_NETWORK = "--block_out_channels 8 8 --norm_num_groups 4 --attention_head_dim 8".split()
TINY = [
    *"--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6 --lr_warmup_steps 2".split(),
    *"--logging_steps 2 --checkpointing_steps 2 --eval_batch_size 4 --ddpm_num_inference_steps 3".split(),
    *"--save_images_epochs 0 --mixed_precision no".split(),
    *TINY_NETWORK,
]
TINY_GAN = [
    *"--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6 --latent_dim 8".split(),
    *"--base_channels 8 --logging_steps 2 --checkpointing_steps 2 --eval_batch_size 4".split(),
    *"--save_images_epochs 0 --mixed_precision no".split(),
]
TINY_VAE = [
    *"--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6 --latent_channels 4".split(),
    *"--block_out_channels 8 8 --logging_steps 2 --checkpointing_steps 2 --eval_batch_size 4".split(),
    *"--save_images_epochs 0 --mixed_precision no --lr_warmup_steps 2 --prior_components 2".split(),
]
TINY_AR = [
    *"--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6 --base_channels 8".split(),
    *"--dilations 1 2 --logging_steps 2 --checkpointing_steps 2 --eval_batch_size 4".split(),
    *"--save_images_epochs 0 --mixed_precision no --lr_warmup_steps 2".split(),
]
TINY_FLOW = [
    *"--dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6 --patch_size 4".split(),
    *"--num_blocks 2 --hidden_size 16 --attention_head_dim 8 --logging_steps 2 --checkpointing_steps 2".split(),
    *"--eval_batch_size 4 --save_images_epochs 0 --mixed_precision no --lr_warmup_steps 2".split(),
]
TINY_TRANSLATION = [  # of what `save_pairs` writes
    *"--resolution 8 --train_batch_size 8 --max_train_steps 6 --base_channels 4 --num_blocks 1".split(),
    *"--discriminator_channels 4 --pool_size 5 --logging_steps 2 --checkpointing_steps 2".split(),
    *"--save_images_epochs 0 --mixed_precision no".split(),
]
TINY_GLOW = [
    *"--preset glow --dataset_name digits --resolution 8 --train_batch_size 16 --max_train_steps 6".split(),
    *"--num_steps 2 --hidden_size 8 --logging_steps 2 --checkpointing_steps 2 --eval_batch_size 4".split(),
    *"--save_images_epochs 0 --mixed_precision no --lr_warmup_steps 2".split(),
]


def load_script(name: str):
    """Imports a script as a module, to call its `main` in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Command:
    """A verb of `hfgen`, run in this process; errors say what the command line would print behind `error: `."""

    def __init__(self, verb: str):
        self.verb, *self.words = verb.split()

    def main(self, argv) -> None:
        with spelled():
            load(self.verb).main([*self.words, *argv])

    def read_options(self, argv):
        with spelled():
            return load(self.verb).read_options([*self.words, *argv])


@contextlib.contextmanager
def toys_installed():
    """Installs two families of a package that hfgen has never heard of: see tests/toys."""
    families.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOYS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOYS), os.environ.get("PYTHONPATH", "")]))
        yield
    families.cache_clear()


@contextlib.contextmanager
def spelled():
    """Writes options in errors as flags."""
    try:
        yield
    except UserError as error:
        raise UserError(spell(str(error))) from error


def verb_of(script: str) -> str:
    """The verb that a door in `scripts` opens."""
    return re.search(r'main\(verb="(.*)"\)', (ROOT / "scripts" / f"{script}.py").read_text())[1]


def start(script: str, *arguments, launcher: str | None = None, processes: int = 1, env=None, **kwargs):
    """Starts a script.

    Args:
        launcher (`str`, *optional*): `"python"`, `"accelerate"` or `"torchrun"`. Without one, it runs in a fork of a
            process that has imported the libraries, which saves the seconds that this takes; unless there are
            `kwargs` of `subprocess.Popen`, or variables in `env` that Python reads when it starts.
    """
    command = [script, *arguments] if script == "-m" else [ROOT / "scripts" / f"{script}.py", *arguments]
    if (
        launcher is None
        and not kwargs.keys() - {"cwd"}
        and not any(name.startswith("PYTHON") and name != "PYTHONPATH" for name in env or ())
    ):
        return Forked(command, processes, env, **kwargs)
    bin_dir = Path(sys.executable).parent
    front: list = [sys.executable]
    if launcher == "torchrun" or processes > 1:
        front = [bin_dir / "torchrun", "--standalone", "--nproc_per_node", processes]
    elif launcher == "accelerate":
        front = [bin_dir / "accelerate", "launch", "--num_processes", 1, "--num_machines", 1]
        front += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return subprocess.Popen(
        [str(part) for part in [*front, *command]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
        **kwargs,
    )


def run(script: str, *arguments, timeout: float = 300, **kwargs) -> subprocess.CompletedProcess:
    """Runs a script to its end, for so many seconds at most."""
    process = start(script, *arguments, **kwargs)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python(code: str, *arguments, path=(), cwd=None, env=None) -> str:
    """Runs code in a fork that has imported the libraries and nothing of hfgen; returns what it printed.

    Args:
        path (`Sequence[Path]`, *optional*): Where it finds modules first.
    """
    path = {"PYTHONPATH": os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])}
    process = Forked(["-c", code, *arguments], env=path | (env or {}), cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out.strip()


def data_info(**changes):
    """What is known of 100 gray images of 8 pixels, but for some changes."""
    from hfgen.data.columns import Classes
    from hfgen.data.info import DataInfo, ImageInfo, LabelInfo, SourceInfo

    values = {"mode": "L", "resolution": 8, "num_images": 100, "class_names": ("a", "b", "c"), "unlabelled": 0}
    values |= {"kind": "labels", "shares": None, "image": {}} | changes
    columns = {"image": ImageInfo(values["mode"], values["resolution"], **values["image"])}
    if values["class_names"]:
        classes = Classes(tuple(values["class_names"]), values["kind"], values["shares"], values["unlabelled"])
        columns["label"] = LabelInfo(classes)
    return DataInfo({"train": SourceInfo("test", "train", values["num_images"], 0, "0")}, columns)


def save_pairs(folder, count=60, splits=("train",)):
    """A data set of digits in gray, `a`, and the same in red on white, `b`; each split has others."""
    import datasets
    import numpy as np
    from PIL import Image

    from hfgen.data.sources import _digits

    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    for number, split in enumerate(splits):
        rows = slice(number * count, (number + 1) * count)
        digits = [np.asarray(image.convert("L")) for image in _digits().with_format(None)[rows]["image"]]
        red = [np.stack([np.full_like(image, 255), 255 - image, 255 - image], -1) for image in digits]
        columns = {"a": [Image.fromarray(image) for image in digits], "b": [Image.fromarray(image) for image in red]}
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def modules_of(recipe):
    """The networks of a recipe by name, without what the loop knows of them."""
    return {name: network.module for name, network in recipe.networks.items()}


CLOCK = ("images_per_second", "training_seconds")


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics of a run, without what the clock says."""
    lines = [json.loads(line) for line in (Path(folder) / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def run_benchmark(name: str, *arguments, env: dict | None = None) -> subprocess.CompletedProcess:
    """Runs `python benchmarks/NAME.py` to its end."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}), timeout=300)
