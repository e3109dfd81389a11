"""Fixtures: no Hub, a cache of their own, this process on one core, a Hub of the tests' own."""

import os

import pytest

# Before any import of the libraries: nothing may reach for the Hub, and a process computes with the core that it has.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pytest_configure(config):
    """Gives each worker of pytest-xdist a core of its own, which all that it starts inherits; not so the process that
    starts the workers, or they would inherit its one core."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if hasattr(os, "sched_setaffinity") and (worker or not config.getoption("numprocesses", None)):
        os.sched_setaffinity(0, {CORES[int((worker or "gw0").removeprefix("gw")) % len(CORES)]})


def pytest_xdist_auto_num_workers(config):
    """`-n auto`: a worker for each core that this process may use."""
    return min(len(CORES), 8)


@pytest.fixture(scope="session", autouse=True)
def hf_home(tmp_path_factory):
    """A cache that no other run of the tests has touched; subprocesses inherit it."""
    from helpers.forked import read_environment

    home = tmp_path_factory.mktemp("hf_home")
    os.environ["HF_HOME"] = str(home)
    read_environment()
    return home


@pytest.fixture
def on_the_cpu(monkeypatch):
    """For what makes an Accelerator in this process; everything is as it was before, afterwards."""
    import torch
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture
def hub():
    """A Hub of its own for each test: see tests/hub/server.py."""
    from hub.server import Hub

    server = Hub()
    yield server
    server.close()


@pytest.fixture
def toys():
    """Two families of an installed package that hfgen has never heard of: see tests/toys."""
    from helpers import TOYS, toys_installed

    with toys_installed():
        yield TOYS
