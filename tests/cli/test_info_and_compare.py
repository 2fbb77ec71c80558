"""`walloc info` and `walloc compare`."""

import json
import os

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
from codec_fixtures import pictures
from command_line import fails, psnr

import transformers_walloc.cli.compress
import transformers_walloc.media.file_codec
import transformers_walloc.media.pictures
from transformers_walloc.cli.main import main
from transformers_walloc.evaluation.metrics import MetricUnavailableError


def test_info_needs_no_model(here, codecs, capsys, monkeypatch):
    assert main(["compress", "photo.png", "song.wav", "-o", "out/", "--model", codecs["image"]]) == 1  # no song
    assert main(["compress", "song.wav", "-o", "out/", "--model", codecs["audio"]]) == 0
    capsys.readouterr()
    monkeypatch.setattr(transformers_walloc.media.file_codec, "Codecs", None)
    assert main(["info", "out/", "--json"]) == 0
    photo, song = map(json.loads, capsys.readouterr().out.splitlines())
    size = os.path.getsize("out/photo.walloc")
    assert (photo["codec"], photo["height"], photo["width"], photo["bytes"]) == ("image", 128, 200, size)
    assert photo["bits_per_pixel"] == 8 * size / (128 * 200)
    assert photo["compression_ratio"] == 3 * 128 * 200 / size
    assert photo["latent_shape"] == [12, 16, 25] and photo["dimensionality_reduction"] == 16
    assert song["seconds"] == 0.5 and song["sampling_rate"] == 44100 and song["latent_shape"] == [8, 690]
    assert song["compression_ratio"] == 2 * 2 * 22050 / os.path.getsize("out/song.walloc")
    assert main(["info", "out/photo.walloc"]) == 0
    assert "latent_shape              12x16x25" in capsys.readouterr().out


def test_compare_image(here, codecs, capsys):
    arguments = ["compare", "photo.png", "--model", codecs["image"], "--output", "side.png"]
    assert main([*arguments, "--json"]) == 0
    ours, resized, *others = json.loads(capsys.readouterr().out)
    assert ours["codec"].startswith("WaLLoC") and {row["codec"] for row in others} >= {"JPEG", "WebP"}
    height, width = pictures()[1].shape[:2]
    small = PIL.Image.fromarray(pictures()[1]).resize((width // 4, height // 4), PIL.Image.Resampling.LANCZOS)
    enlarged = small.resize((width, height), PIL.Image.Resampling.BICUBIC)
    assert resized["codec"] == "resized 1:4" and resized["psnr"] == pytest.approx(psnr(enlarged, pictures()[1]))
    assert (
        ours["numbers"] == resized["numbers"] == 3 * height * width // 16 and others[0]["numbers"] == 3 * height * width
    )
    assert all(row["bytes"] >= ours["bytes"] or row["quality"] == 100 for row in others)
    buffer = here / "jpeg.jpg"
    jpeg = next(row for row in others if row["codec"] == "JPEG")
    image = PIL.Image.fromarray(pictures()[1])
    found = []
    for subsampling in ("4:2:0", "4:4:4"):
        image.save(buffer, quality=jpeg["quality"], optimize=True, progressive=True, subsampling=subsampling)
        found.append((buffer.stat().st_size, psnr(PIL.Image.open(buffer), image)))
    assert any(size == jpeg["bytes"] and jpeg["psnr"] == pytest.approx(quality) for size, quality in found)
    assert PIL.Image.open("side.png").height == 128 + 28
    fails(capsys, arguments, "side.png: exists already")


def test_compare_does_without_what_is_not_there(here, codecs, capsys, monkeypatch):
    def missing(*_):
        raise MetricUnavailableError("ssim: No module named 'pytorch_msssim'")

    monkeypatch.setattr("transformers_walloc.evaluation.compare.ssim", missing)
    PIL.Image.fromarray(pictures()[1][:9, :20]).save("tiny.png")
    for name in ("photo.png", "tiny.png"):
        assert main(["compare", name, "--model", codecs["image"], "--json"]) == 0
        assert all(row["ssim"] is None for row in json.loads(capsys.readouterr().out))


def test_compare_refuses_rasters_before_work(here, codecs, capsys, monkeypatch):
    np.save("scene.npy", np.zeros((32, 32, 3), np.uint16))
    monkeypatch.setattr(transformers_walloc.media.file_codec.FileCodec, "compress", None)
    arguments = ["compare", "scene.npy", "--model", codecs["image"]]
    fails(capsys, arguments, "a raster in its own type; compare is for pictures and audio")


def test_compare_audio(here, codecs, capsys):
    assert main(["compare", "song.wav", "--model", codecs["audio"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["codec", "level", "bytes", "ratio", "kbps", "psnr", "si_sdr"]
    assert {line.split()[0] for line in lines[1:]} >= {"WaLLoC", "Vorbis", "MP3"}
