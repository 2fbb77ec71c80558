"""Doors that draw pictures and sounds refuse rasters and volumes by name."""

import numpy as np
import pytest

from transformers_walloc.cli.main import main
from transformers_walloc.training.fit import fit_codec


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    generator = np.random.default_rng(0)
    for name, shape, kind in (("raster", (4, 64, 80), "image"), ("volume", (16, 40, 48), "volume")):
        array = generator.integers(0, 4000, shape, dtype=np.uint16)
        np.save(folder / f"{name}.npy", array)
        quick = {"table_steps": 0, "progress": False, "dimensionality_reduction": 4, "num_levels": 2}
        fit_codec([array], folder / name, kind=kind, **quick)
    return folder


@pytest.mark.parametrize("command", ["compare", "inspect"])
@pytest.mark.parametrize("name, said", [("raster", "raster|images of 4 bands"), ("volume", "volume")])
def test_rasters_and_volumes(fitted, tmp_path, capsys, command, name, said):
    options = ["--model", str(fitted / name), "--output", str(tmp_path / "out")]
    options = options[:2] if command == "compare" else options
    assert main([command, str(fitted / f"{name}.npy"), *options]) == 1
    message = capsys.readouterr().err
    assert f"{name}.npy: " in message and any(words in message for words in said.split("|")), message
    assert f"{command} " in message and not (tmp_path / "out").exists()
