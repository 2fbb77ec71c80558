"""Large files from disk to disk give what the usual way gives."""

import numpy as np
import pytest
import skimage.data
import skimage.io
import soundfile
import tifffile

from transformers_walloc.cli import compress, decompress
from transformers_walloc.media import bands, streams
from transformers_walloc.media.paths import read_bytes


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(streams, "LARGE_FILE", 0)
    monkeypatch.setattr(streams, "LARGE_SIGNAL", {"image": 0, "audio": 0})


@pytest.mark.parametrize("layout", ["strips", "tiles", "one", "planar"])
def test_pictures(layout, tmp_path, monkeypatch):
    picture = skimage.data.coffee()[:200, :300]
    options = {
        "strips": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
        "tiles": {"tile": (32, 48), "compression": "zlib"},
        "one": {},
        "planar": {"planarconfig": "separate"},
    }[layout]
    data = np.moveaxis(picture, 2, 0) if layout == "planar" else picture
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", **options)
    source, usual, streamed = (str(tmp_path / name) for name in ("a.tif", "usual.walloc", "streamed.walloc"))
    assert compress.run([source], usual, device="cpu") == 0
    used = []

    def noted(*arguments, **options):
        used.append(arguments)
        return bands.compress_rows(*arguments, **options)

    monkeypatch.setattr(streams, "LARGE_FILE", 0)
    monkeypatch.setattr(streams, "compress_rows", noted)
    monkeypatch.setattr(bands, "BAND_PIXELS", 24 * 300)
    assert compress.run([source], streamed, device="cpu") == 0
    assert bool(used) == (layout != "planar")  # planes go the usual way
    assert read_bytes(streamed) == read_bytes(usual)


def test_results(tmp_path, everything_is_large):
    picture = skimage.data.coffee()[:200, :300]
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb")
    blob, whole, png, part = (str(tmp_path / name) for name in ("a.walloc", "b.tif", "b.png", "part.tif"))
    assert compress.run([str(tmp_path / "a.tif")], blob, device="cpu") == 0
    assert decompress.run([blob], whole, device="cpu") == 0
    assert decompress.run([blob], png, device="cpu") == 0
    expected = skimage.io.imread(png)
    assert np.array_equal(tifffile.imread(whole), expected)
    assert decompress.run([blob], part, window=[20, 30, 100, 150], device="cpu") == 0
    assert np.array_equal(tifffile.imread(part), expected[20:120, 30:180])
    assert decompress.run([blob], str(tmp_path / "part.png"), window=[20, 30, 100, 150], device="cpu") == 0
    assert np.array_equal(skimage.io.imread(tmp_path / "part.png"), expected[20:120, 30:180])
    assert decompress.run([blob], str(tmp_path / "bad.png"), window=[20, 30], device="cpu") == 1
    assert compress.run([str(tmp_path / "a.tif")], blob, max_pixels=1000, force=True, device="cpu") == 1


def test_recordings(tmp_path, everything_is_large):
    t = np.arange(50_001) / 44100
    soundfile.write(tmp_path / "a.wav", 0.3 * np.stack([np.sin(3000 * t), np.sin(500 * t)], 1), 44100, "PCM_24")
    blob, whole, flac, part = (str(tmp_path / name) for name in ("a.walloc", "b.wav", "b.flac", "part.wav"))
    assert compress.run([str(tmp_path / "a.wav")], blob, device="cpu") == 0
    assert decompress.run([blob], whole, device="cpu") == 0
    assert decompress.run([blob], flac, device="cpu") == 0
    (samples, rate), (expected, _) = soundfile.read(whole), soundfile.read(flac)
    assert rate == 44100 and soundfile.info(whole).subtype == "PCM_24"
    np.testing.assert_allclose(samples, expected, atol=1e-5)
    assert decompress.run([blob], part, window=[1000, 30_000], device="cpu") == 0
    np.testing.assert_allclose(soundfile.read(part)[0], expected[1000:31_000], atol=1e-5)
    assert compress.run([str(tmp_path / "a.wav")], blob, max_samples=1000, force=True, device="cpu") == 1
