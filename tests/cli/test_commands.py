import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import soundfile
from codec_fixtures import audio_model, image_model, pictures, sound

import transformers_walloc.cli.main as cli
from transformers_walloc.cli.main import main
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.evaluation.metrics import MetricUnavailableError


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    image_model().save_pretrained(folder / "image")
    audio_model().save_pretrained(folder / "audio")
    return {"image": str(folder / "image"), "audio": str(folder / "audio")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a photo and a song."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(pictures()[1]).save("photo.png")
    soundfile.write("song.wav", sound(0.5).T, 44100)
    return tmp_path


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fails(capsys, arguments: list[str], message: str, status: int = 1) -> None:
    """One line on the standard error, nothing on the standard output."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("walloc: error: ") and message in err, err


# Images


def test_there_and_back(here, codecs, capsys):
    assert main(["compress", "photo.png", "--model", codecs["image"]]) == 0
    assert main(["decompress", "photo.walloc", "-o", "back.png", "--model", codecs["image"]]) == 0
    assert capsys.readouterr() == ("", "")
    back = PIL.Image.open("back.png")
    assert back.mode == "RGB" and back.size == (200, 128) and psnr(back, pictures()[1]) > 24
    assert files(here) == ["back.png", "photo.png", "photo.walloc", "song.wav"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".avif", ".bmp"])
def test_image_formats_in_and_out(here, codecs, suffix):
    original = PIL.Image.fromarray(pictures()[1])
    original.save(f"in{suffix}", quality=95)
    assert main(["compress", f"in{suffix}", "-o", "a.walloc", "--model", codecs["image"]]) == 0
    assert main(["decompress", "a.walloc", "-o", f"out{suffix}", "--model", codecs["image"]]) == 0
    with PIL.Image.open(f"out{suffix}") as back:
        assert back.size == original.size and psnr(back.convert("RGB"), original) > 23


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_modes_of_images(here, codecs, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    image = PIL.Image.fromarray(pictures()[1])
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(f"in{suffix}")
    assert main(["compress", f"in{suffix}", "--model", codecs["image"]]) == 0
    assert main(["decompress", "in.walloc", "-o", "out.png", "--model", codecs["image"]]) == 0
    grey = PIL.Image.open("out.png").convert("L")
    assert psnr(grey, PIL.Image.fromarray(pictures()[1]).convert("L")) > 22


def test_exif_orientation_is_applied(here, codecs):
    image = PIL.Image.fromarray(pictures()[1])
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6  # the camera was turned: 90 degrees clockwise to be upright
    image.save("turned.jpg", exif=exif, quality=95)
    assert main(["compress", "turned.jpg", "--model", codecs["image"]]) == 0
    assert main(["decompress", "turned.walloc", "--model", codecs["image"]]) == 0
    back = PIL.Image.open("turned.png")
    assert back.size == (128, 200) and psnr(back, image.transpose(PIL.Image.Transpose.ROTATE_270)) > 22


def test_colour_profiles_become_srgb(here, codecs):
    image = PIL.Image.fromarray(pictures()[1])
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    same = profile.replace(b"rXYZ", b"????")  # a damaged profile changes nothing
    # A profile whose red is green, and the other way round.
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    red, green, blue = image.split()
    for icc, expected in ((profile, image), (same, image), (swapped, PIL.Image.merge("RGB", (green, red, blue)))):
        image.save("in.png", icc_profile=icc)
        assert main(["compress", "in.png", "-f", "--model", codecs["image"]]) == 0
        assert main(["decompress", "in.walloc", "-o", "out.png", "-f", "--model", codecs["image"]]) == 0
        assert psnr(PIL.Image.open("out.png"), expected) > 22


def test_rate_and_channels(here, codecs):
    sizes = {}
    for name, arguments in {
        "plain": [],
        "bpp": ["--bpp", "0.3"],
        "psnr": ["--psnr", "22"],
        "step": ["--step", "8"],
        "channels": ["--channels", "3"],
    }.items():
        arguments += ["-o", f"{name}.walloc", "--model", codecs["image"]]
        assert main(["compress", "photo.png", *arguments]) == 0
        sizes[name] = os.path.getsize(f"{name}.walloc")
    assert sizes["plain"] == max(sizes.values()) and 8 * sizes["bpp"] / (128 * 200) <= 0.3
    with open("step.walloc", "rb") as file:
        assert unpack(file.read())[0].step == 8
    assert main(["decompress", "psnr.walloc", "--model", codecs["image"]]) == 0
    assert 22 <= psnr(PIL.Image.open("psnr.png"), pictures()[1]) < 22.5


# Audio


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_audio_formats_in_and_out(here, codecs, suffix):
    clip = sound(0.5)
    soundfile.write(f"in{suffix}", clip.T, 44100)
    length = soundfile.info(f"in{suffix}").frames
    assert main(["compress", f"in{suffix}", "-o", "a.walloc", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "a.walloc", "-o", f"out{suffix}", "--model", codecs["audio"]]) == 0
    back, rate = soundfile.read(f"out{suffix}")
    assert rate == 44100 and len(back) == length
    assert np.sqrt(np.mean((back[:20000] - clip.T[:20000]) ** 2)) < 0.05


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (16000, 2), (22050, 1), (44100, 1)])
def test_rate_length_and_channels_of_the_recording_are_restored(here, codecs, rate, channels):
    clip = sound(0.4, channels, rate)[:, : int(0.4 * rate) - 7]
    soundfile.write("in.flac", clip.T, rate)
    assert main(["compress", "in.flac", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "in.walloc", "--model", codecs["audio"], "--format", "wav"]) == 0
    back, back_rate = soundfile.read("in.wav", always_2d=True)
    assert back_rate == rate and back.shape == clip.T.shape
    assert np.sqrt(np.mean((back - clip.T) ** 2)) < 0.05


# Many files


def test_a_folder_with_subfolders_and_workers(here, codecs, capsys):
    (here / "in" / "deep").mkdir(parents=True)
    for index in range(5):
        PIL.Image.fromarray(pictures()[1][10 * index :]).save(f"in/deep/{index}.png")
    PIL.Image.fromarray(pictures()[1]).save("in/top.jpg")
    (here / "in" / "notes.txt").write_text("not an image")
    assert main(["compress", "in", "-o", "small", "-j", "3", "--model", codecs["image"]]) == 0
    assert files(here / "small") == [*(f"deep/{i}.walloc" for i in range(5)), "top.walloc"]
    assert main(["decompress", "small", "-o", "out/", "--model", codecs["image"], "--format", "webp"]) == 0
    assert files(here / "out") == [*(f"deep/{i}.webp" for i in range(5)), "top.webp"]
    assert PIL.Image.open("out/deep/3.webp").size == (200, 98)
    assert capsys.readouterr() == ("", "")  # the progress bar is for terminals


def test_patterns_that_the_shell_left_alone(here, codecs):
    for name in ("a.png", "b.png", "c.jpg"):
        PIL.Image.fromarray(pictures()[1]).save(name)
    assert main(["compress", "?.png", "-o", "out/", "--model", codecs["image"]]) == 0
    assert files(here / "out") == ["a.walloc", "b.walloc"]


def test_the_codec_that_fits_is_chosen(here, codecs, monkeypatch):
    monkeypatch.setattr(cli, "DEFAULT_CODECS", codecs)
    assert main(["compress", "photo.png", "song.wav"]) == 0
    kinds = [unpack((here / name).read_bytes())[0].kind for name in ("photo.walloc", "song.walloc")]
    assert kinds == ["image", "audio"]


def test_one_bad_file_does_not_stop_the_others(here, codecs, capsys):
    (here / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    assert main(["compress", "bad.png", "photo.png", "-o", "out/", "--model", codecs["image"]]) == 1
    err = capsys.readouterr().err
    assert "bad.png" in err and "1 of 2 files failed" in err and err.count("\n") == 2
    assert files(here / "out") == ["photo.walloc"]


def test_nothing_is_overwritten_unless_forced(here, codecs, capsys):
    (here / "photo.walloc").write_text("precious")
    fails(capsys, ["compress", "photo.png", "--model", codecs["image"]], "photo.walloc: exists already; --force")
    assert (here / "photo.walloc").read_text() == "precious"
    assert main(["compress", "photo.png", "--force", "--model", codecs["image"]]) == 0
    assert unpack((here / "photo.walloc").read_bytes())


def test_outputs_that_collide(here, codecs, capsys):
    PIL.Image.fromarray(pictures()[1]).save("photo.jpg")
    fails(
        capsys, ["compress", "photo.png", "photo.jpg"], "photo.png and photo.jpg would both be written to photo.walloc"
    )
    fails(capsys, ["compress", "photo.png", "song.wav", "-o", "one.walloc"], "2 input files need a folder")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "nothing.png"], "nothing.png: no such file"),
        (["compress", "*.tiff"], "no file matches"),
        (["compress", "empty"], "the folder has no file"),
        (["compress", "text.txt"], "text.txt: neither an image nor audio"),
        (["compress", "text.png"], "text.png: not an image"),
        (["compress", "photo.png", "--model", "empty"], "empty: the folder has no config.json"),
        (["compress", "photo.png", "--kbps", "9"], "--kbps is not for image; use --bpp"),
        (["compress", "song.wav"], "is for image and the file is audio"),
        (["compress", "photo.png", "--bpp", "0.0001"], "photo.png: bpp 0.0001 is out of reach"),
        (["compress", "photo.png", "--step", "0.1"], "photo.png: step is 0.1"),
        (["compress", "photo.png", "--channels", "99"], "photo.png: num_channels is 99; valid: 1 to 12"),
        (["compress", "photo.png", "--max-pixels", "100"], "photo.png: "),
        (["decompress", "photo.png", "-o", "x.png"], "photo.png: not a .walloc file"),
        (["info", "photo.png"], "photo.png: not a .walloc file"),
        (["compare", "nothing.png"], "nothing.png: No such file"),
    ],
)
def test_errors_are_one_line(here, codecs, capsys, arguments, message):
    (here / "text.txt").write_text("words")
    (here / "text.png").write_text("words")
    (here / "empty").mkdir()
    before = files(here)
    if arguments[0] != "info" and "--model" not in arguments:
        arguments = [*arguments, "--model", codecs["image"]]
    fails(capsys, arguments, message)
    assert files(here) == before


def test_errors_of_audio(here, codecs, capsys):
    (here / "text.wav").write_text("words")
    soundfile.write("empty.wav", np.zeros((0, 2)), 44100)
    soundfile.write("surround.wav", np.zeros((100, 6)), 44100)
    for name, message in (("text", "not audio"), ("empty", "is empty"), ("surround", "6 channels")):
        fails(capsys, ["compress", f"{name}.wav", "--model", codecs["audio"]], message)
    fails(capsys, ["compress", "song.wav", "--bpp", "1", "--model", codecs["audio"]], "use --kbps")
    fails(capsys, ["compare", "song.wav", "--output", "x.png", "--model", codecs["audio"]], "not for audio")
    assert files(here) == ["empty.wav", "photo.png", "song.wav", "surround.wav", "text.wav"]


def test_files_of_a_codec_before_it_was_trained_further_open_without_an_option(here, capsys):
    stored = Path(__file__).parents[1] / "data" / "rgb-16x.walloc"
    assert main(["decompress", str(stored), "-o", "old.png"]) == 0
    assert capsys.readouterr() == ("", "")
    original = PIL.Image.open(stored.with_name("astronaut.png"))
    expected = json.loads(stored.with_name("psnr.json").read_text())["rgb-16x"]
    assert psnr(PIL.Image.open("old.png"), original) == pytest.approx(expected, abs=0.05)


def test_errors_of_decompress(here, codecs, capsys):
    assert main(["compress", "photo.png", "--model", codecs["image"]]) == 0
    model = ["--model", codecs["image"]]
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png"], "codec 'image', which is not bundled")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.xyz", *model], "x.xyz: unknown suffix")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.mp3", *model], "x.mp3: cannot write images")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png", "--max-pixels", "100", *model], "limit of 100")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png", "--model", codecs["audio"]], "is for audio")
    data = (here / "photo.walloc").read_bytes()
    (here / "cut.walloc").write_bytes(data[:-10])
    fails(capsys, ["decompress", "cut.walloc", *model], "cut.walloc: the file is damaged or truncated")
    assert files(here) == ["cut.walloc", "photo.png", "photo.walloc", "song.wav"]


@pytest.mark.parametrize(
    "arguments", [[], ["shrink"], ["compress"], ["compress", "a.png", "--bpp", "1", "--psnr", "30"]]
)
def test_wrong_usage_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compress", "decompress", "info", "compare"])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert error.value.code == 0 and f"  walloc {command} " in out.split("examples:")[1]


# info and compare


def test_info_needs_no_model(here, codecs, capsys, monkeypatch):
    assert main(["compress", "photo.png", "song.wav", "-o", "out/", "--model", codecs["image"]]) == 1  # no song
    assert main(["compress", "song.wav", "-o", "out/", "--model", codecs["audio"]]) == 0
    capsys.readouterr()
    monkeypatch.setattr(cli, "Codecs", None)
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
    ours, *others = json.loads(capsys.readouterr().out)
    assert ours["codec"].startswith("WaLLoC") and {row["codec"] for row in others} >= {"JPEG", "WebP"}
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


def test_compare_audio(here, codecs, capsys):
    assert main(["compare", "song.wav", "--model", codecs["audio"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["codec", "level", "bytes", "ratio", "kbps", "psnr", "si_sdr"]
    assert {line.split()[0] for line in lines[1:]} >= {"WaLLoC", "Vorbis", "MP3"}


# Streams and processes


def test_standard_streams(here, codecs, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((here / "photo.png").read_bytes())))
    assert main(["compress", "-", "--model", codecs["image"]]) == 0
    blob, error = capsysbinary.readouterr()
    assert error == b"" and unpack(blob)[0].sizes == (128, 200)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(blob)))
    assert main(["decompress", "-", "--model", codecs["image"], "--format", "jpg"]) == 0
    jpeg, error = capsysbinary.readouterr()
    assert error == b"" and jpeg[:2] == b"\xff\xd8"
    assert files(here) == ["photo.png", "song.wav"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_compress_leaves_no_half_file(here, codecs):
    (here / "in").mkdir()
    for index in range(300):
        PIL.Image.fromarray(pictures()[1]).save(f"in/{index}.png")
    command = [sys.executable, "-m", "transformers_walloc", "compress", "in", "-o", "out/", "--model", codecs["image"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((here / "out").glob("*.walloc")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = list((here / "out").glob("*.walloc"))
    assert 0 < len(written) < 300
    for path in written:
        assert unpack(path.read_bytes())[0].sizes == (128, 200)
