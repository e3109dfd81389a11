"""Programs in forks of a process that has imported the libraries: as far apart as started ones, and there at once.

What Python itself reads in its environment when it starts, but for `PYTHONPATH`, needs a process that is started for
real.
"""

import atexit
import importlib
import multiprocessing
import multiprocessing.util  # its exit handler waits for children; ours, which is registered later, runs before it
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("torch.distributed", "accelerate", "datasets", "transformers", "diffusers", "sklearn.datasets"),
        *("hfgen.training.run", "hfgen.evaluation.runner", "hfgen.hub.push", "hfgen.demo"),
        *(f"hfgen.families.{name}.recipe" for name in ("ddpm", "gan", "vae", "autoregressive", "flow", "translation")),
        *(f"hfgen.sampling.{name}" for name in ("ddpm", "gan", "vae", "autoregressive", "flow", "translation")),
    ]
)


@atexit.register
def _kill_what_is_left() -> None:
    for process in multiprocessing.active_children():
        process.kill()


# Where the libraries keep what they have read in the environment when they were imported.
READERS = ("huggingface_hub.constants", "diffusers.utils.constants", "datasets.config")


def read_environment() -> None:
    """Lets the libraries that are imported read their environment as if they were imported now."""
    # Where a process before this one kept code of checkpoints: it would be found before that of this one.
    sys.path[:] = [path for path in sys.path if not (Path(path) / "diffusers_modules").is_dir()]
    for reader in filter(None, map(sys.modules.get, READERS)):
        before = {name: value for name, value in vars(reader).items() if name.isupper()}
        importlib.reload(reader)
        changed = {name for name, value in before.items() if vars(reader)[name] != value}
        for module in list(sys.modules.values()):  # names that were imported from there
            for name in changed & vars(module).keys():
                if vars(module)[name] == before[name]:
                    setattr(module, name, vars(reader)[name])
    if "huggingface_hub.hf_api" in sys.modules:
        client = sys.modules["huggingface_hub.hf_api"].api  # of which the functions of the module are the methods
        client.endpoint = sys.modules["huggingface_hub.constants"].ENDPOINT


def _program(argv: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    """What a fork does: it becomes `python argv...`."""
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    read_environment()
    path = list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))
    for folder in path:
        if (Path(folder) / "sitecustomize.py").exists():
            runpy.run_path(f"{folder}/sitecustomize.py")
    if argv[0] == "-c":
        for name in [name for name in sys.modules if name.partition(".")[0] == "hfgen"]:
            del sys.modules[name]
        sys.argv = ["-c", *argv[2:]]
        sys.path[:0] = path
        exec(argv[1], {"__name__": "__main__"})
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")


class Forked:
    """A program of one or several processes, with the interface of a `subprocess.Popen`.

    Args:
        argv (`list`): What would stand behind `python`: a script, `-m` and a module, or `-c` and code, which begins
            without hfgen and finds it first where `PYTHONPATH` of `env` says; and arguments.
        processes (`int`, *optional*, defaults to 1): How many that know of each other, as torchrun starts them. When
            one fails, the others are killed.
    """

    def __init__(self, argv, processes: int = 1, env: dict[str, str] | None = None, cwd=None):
        self.args = [str(word) for word in argv]
        self.returncode = None
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("out", "err")]
        for file in self._files:
            file.touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._processes = []
        for rank in range(processes):
            more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
            more |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            known = {name: str(value) for name, value in more.items()} if processes > 1 else {}
            arguments = (self.args, os.environ | known | (env or {}), str(cwd or Path.cwd()), *map(str, self._files))
            self._processes.append(CONTEXT.Process(target=_program, args=arguments))
        for process in self._processes:
            process.start()

    def poll(self) -> int | None:
        """The exit code; `None` while there is none."""
        codes = [process.exitcode for process in self._processes]
        if any(codes):  # the others would wait for it
            self.kill()
        if self.returncode is None and None not in codes:
            self.returncode = next((code for code in codes if code), 0)
        return self.returncode

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits for the end; returns what was printed.

        Raises:
            subprocess.TimeoutExpired: If it takes longer; it goes on then.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            for process in self._processes:
                process.join(0.02)
        out, err = (file.read_text() for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        """Sends a signal to each process."""
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def kill(self) -> None:
        """Kills the processes and what they have started."""
        for process in self._processes:
            if process.exitcode is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # before it could make a group of its own
                    process.kill()
