"""Codecs that `walloc fit` made: measured on files, and made again bit for bit."""

import json

import numpy as np
import pytest
import skimage.data
import soundfile
import tifffile
import torch

from research import fitted
from transformers_walloc.cli.fit import main as fit


@pytest.fixture
def codec(tmp_path, monkeypatch):
    """A codec of two bands in 16 bits, as if it were bundled, and the folder where its data lie."""
    photo = skimage.data.astronaut()[:160, 100:260, :2].astype(np.uint16) * 16
    for name, part in (("fit", photo[:96]), ("held-out", photo[96:])):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "scene.tif", part, photometric="minisblack", planarconfig="contig")
    folder = tmp_path / "codec"
    monkeypatch.chdir(tmp_path)
    options = ["--num-levels", "2", "--latent-channels", "6", "--table-steps", "5"]
    assert fit(["fit", "--validation", str(tmp_path / "held-out"), "-o", str(folder), *options]) == 0
    monkeypatch.setattr(fitted, "bundled_path", lambda name: folder)
    return folder


def test_the_recorded_options_give_the_same_bits_on_other_numbers_of_threads(codec, tmp_path, capsys):
    options = json.loads((codec / "fit.json").read_text())["options"]
    assert options == {
        "data": ["fit"],
        "validation": ["held-out"],  # given as an absolute path, of which nothing is told
        "num_levels": 2,
        "latent_channels": 6,
        "table_steps": 5,
    }
    before = torch.get_num_threads()
    try:
        for threads in ("1", "8"):
            assert fitted.main(["reproduce", "codec", "--root", str(tmp_path), "--threads", threads]) == 0
    finally:
        torch.set_num_threads(before)
    assert "bit for bit" in capsys.readouterr().out

    scene = tifffile.imread(tmp_path / "fit" / "scene.tif")
    scene[0, 0] += 1
    tifffile.imwrite(tmp_path / "fit" / "scene.tif", scene, photometric="minisblack", planarconfig="contig")
    assert fitted.main(["reproduce", "codec", "--root", str(tmp_path)]) == 1
    assert "differs in" in (printed := capsys.readouterr().out) and "encoder.projection.weight" in printed


def test_measured_files(codec, tmp_path):
    result = fitted.measure(str(codec), [str(tmp_path / "held-out")], None)
    assert result["signals"] == 1 and result["psnr"] > 20
    assert result["cr"] > result["lossless_cr"] > 1
    generator = np.random.default_rng(0)
    sound = generator.standard_normal(2**16).cumsum()
    soundfile.write(tmp_path / "a.wav", (sound / np.abs(sound).max() / 2).astype(np.float32), 16000, subtype="PCM_16")
    assert fit(["a.wav", "-o", str(tmp_path / "mono"), "--num-levels", "5", "--table-steps", "0"]) == 0
    result = fitted.measure(str(tmp_path / "mono"), [str(tmp_path / "a.wav")], None)
    assert result["cr"] == pytest.approx(16 * 16 / result["kbps"])  # 16 bits at 16 kHz
