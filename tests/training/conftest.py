"""Photographs to train on."""

from pathlib import Path

import pytest
import skimage.data
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Folders `train` and `held`, and a cache of decoded images."""
    root = tmp_path_factory.mktemp("photos")
    for folder, names in {"train": ("astronaut", "coffee", "rocket"), "held": ("chelsea",)}.items():
        (root / folder).mkdir()
        for name in names:
            Image.fromarray(getattr(skimage.data, name)()[:256, :320]).save(root / folder / f"{name}.png")
    return root
