"""Shared fixtures. Nothing here or below uses a network or the user's own Hub cache."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

# Before any test module imports huggingface_hub, which reads both once.
_HOME = tempfile.mkdtemp(prefix="walloc-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(HF_HOME=_HOME, HF_HUB_OFFLINE="1")


@pytest.fixture
def hub():
    """A running in-process Hub (see hub_server.py), empty at first."""
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture
def run_python():
    """Run a program in a fresh Python with the given environment; returns what it printed, fails where it failed."""

    def run(code: str, environment: dict[str, str], *arguments: str) -> str:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WALLOC_"))}
        environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
