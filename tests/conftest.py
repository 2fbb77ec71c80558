"""Shared fixtures. Nothing here or below uses a network or the user's own Hub cache."""

import atexit
import os
import shutil
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
