"""Shared fixtures. Nothing here or below uses a network or the user's own Hub cache."""

import atexit
import os
import shutil
import sys
import tempfile
import types

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


@pytest.fixture(scope="session")
def original():
    """The original's module `walloc.walloc`. Of torchvision, which it imports, it uses two conversions."""
    pytest.importorskip("pytorch_wavelets")
    # Before the stand-in: both look for torchvision's specification, which a stand-in has none of.
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers.models.autoencoders")
    import numpy as np
    import torch

    class PILToTensor:
        def __call__(self, image):
            pixels = np.array(image)
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    transforms = types.ModuleType("torchvision.transforms")
    transforms.PILToTensor, transforms.ToPILImage = PILToTensor, object
    stand_ins = {"torchvision": types.ModuleType("torchvision"), "torchvision.transforms": transforms}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return pytest.importorskip("walloc.walloc", reason="the original package is not installed (walloc==1.2.1)")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
