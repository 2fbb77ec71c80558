import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
import soundfile
import torch
from codec_fixtures import audio_model, image_model, pictures, sound

import transformers_walloc.cli.compress
import transformers_walloc.media.file_codec
import transformers_walloc.media.pictures
from transformers_walloc import WallocImageConfig, WallocImageModel, bundled_path
from transformers_walloc.cli.main import COMMANDS, main
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis
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


def said(capsys) -> str:
    """On the standard error, but for the line that says what was written."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"walloc: .* (s|min)\n", line))


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fails(capsys, arguments: list[str], message: str, status: int = 1) -> None:
    """One line on the standard error, nothing on the standard output."""
    capsys.readouterr()
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("walloc: error: ") and message in err, err


# Images


def test_there_and_back(here, codecs, capsys):
    assert main(["compress", "photo.png", "--model", codecs["image"]]) == 0
    assert main(["decompress", "photo.walloc", "-o", "back.png", "--model", codecs["image"]]) == 0
    assert said(capsys) == ""
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
    grey = PIL.Image.open("out.png")
    grey = np.asarray(grey) / 257 if grey.mode == "I;16" else grey.convert("L")
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


def test_rate_and_channels(here, codecs):
    sizes = {}
    for name, arguments in {
        "plain": [],
        "bpp": ["--bpp", "0.3"],
        "refined": ["--refine", "1"],
        "psnr": ["--psnr", "22"],
        "step": ["--step", "8"],
        "channels": ["--channels", "3"],
    }.items():
        arguments += ["-o", f"{name}.walloc", "--model", codecs["image"]]
        assert main(["compress", "photo.png", *arguments]) == 0
        sizes[name] = os.path.getsize(f"{name}.walloc")
    assert abs(sizes.pop("refined") / sizes["plain"] - 1) < 0.1
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
    assert re.fullmatch(r"(walloc: 6 files: 6 written, .* \(.*:.*\), .* s\n){2}", capsys.readouterr().err)  # no bar


def test_patterns_that_the_shell_left_alone(here, codecs):
    for name in ("a.png", "b.png", "c.jpg"):
        PIL.Image.fromarray(pictures()[1]).save(name)
    assert main(["compress", "?.png", "-o", "out/", "--model", codecs["image"]]) == 0
    assert files(here / "out") == ["a.walloc", "b.walloc"]


def test_the_codec_that_fits_is_chosen(here, codecs, monkeypatch):
    monkeypatch.setattr(transformers_walloc.cli.compress, "DEFAULT_CODECS", codecs)
    assert main(["compress", "photo.png", "song.wav"]) == 0
    kinds = [unpack((here / name).read_bytes())[0].kind for name in ("photo.walloc", "song.walloc")]
    assert kinds == ["image", "audio"]


def test_one_bad_file_does_not_stop_the_others(here, codecs, capsys):
    (here / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    assert main(["compress", "bad.png", "photo.png", "-o", "out/", "--model", codecs["image"]]) == 1
    err = capsys.readouterr().err
    assert "bad.png" in err and "2 files: 1 written, 1 failed" in err and err.count("\n") == 2
    assert files(here / "out") == ["photo.walloc"]


def test_nothing_is_overwritten_unless_forced(here, codecs, capsys):
    (here / "photo.walloc").write_text("precious")
    fails(capsys, ["compress", "photo.png", "--model", codecs["image"]], "photo.walloc: exists already; --force")
    assert main(["compress", "photo.png", "--skip-existing", "--model", codecs["image"]]) == 0
    assert (here / "photo.walloc").read_text() == "precious" and said(capsys) == ""
    assert main(["compress", "photo.png", "--force", "--model", codecs["image"]]) == 0
    assert unpack((here / "photo.walloc").read_bytes())


def test_a_job_goes_on_past_outputs_that_exist(here, codecs, capsys):
    for name in ("a", "b", "c"):
        PIL.Image.fromarray(pictures()[1]).save(f"{name}.png")
    (here / "b.walloc").write_text("precious")
    arguments = ["compress", "a.png", "b.png", "c.png", "--model", codecs["image"]]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "b.walloc: exists already" in err and "walloc: 3 files: 2 written, 1 failed" in err
    os.remove("c.walloc")
    assert main([*arguments, "--skip-existing"]) == 0
    assert capsys.readouterr().err.startswith("walloc: 3 files: 1 written, 2 skipped, ")
    assert (here / "b.walloc").read_text() == "precious"


def test_names_that_differ_in_their_suffix_only(here, codecs, capsys):
    PIL.Image.fromarray(pictures()[1]).save("photo.jpg")
    PIL.Image.fromarray(pictures()[1]).save("other.jpg")
    assert main(["compress", "photo.png", "photo.jpg", "other.jpg", "-o", "out/", "--model", codecs["image"]]) == 0
    assert files(here / "out") == ["other.walloc", "photo.jpg.walloc", "photo.png.walloc"]
    assert main(["decompress", "out", "-o", "back", "--model", codecs["image"]]) == 0
    assert files(here / "back") == ["other.png", "photo.jpg.png", "photo.png"]
    capsys.readouterr()
    fails(capsys, ["compress", "photo.png", "song.wav", "-o", "one.walloc"], "2 input files need a folder")


def test_folders_are_kept(here, codecs, capsys):
    for name in ("in/a/1.png", "in/b/1.png", "in/b/deep/2.png", "in/.hidden.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pictures()[1][:40, :40]).save(name)
    model = ["--model", codecs["image"]]
    assert main(["compress", "in/*/1.png", "-o", "pattern/", *model]) == 0
    assert main(["compress", "in/*", "-o", "folders/", *model]) == 0
    assert main(["compress", "in/a/1.png", "in/b/1.png", "-o", "named/", *model]) == 0
    assert main(["compress", "in/**/2.png", "in/a/1.png", "-o", "mixed/", *model]) == 0
    assert files(here / "pattern") == files(here / "named") == ["a/1.walloc", "b/1.walloc"]
    assert files(here / "folders") == ["a/1.walloc", "b/1.walloc", "b/deep/2.walloc"]
    assert files(here / "mixed") == ["1.walloc", "b/deep/2.walloc"]


# Nothing changes silently


def test_what_an_image_loses_is_said(here, codecs, capsys):
    image = PIL.Image.fromarray(pictures()[1])
    image.save("moving.gif", save_all=True, append_images=[image.transpose(PIL.Image.Transpose.ROTATE_180)])
    assert main(["compress", "moving.gif", "--model", codecs["image"]]) == 0
    assert said(capsys) == "walloc: note: moving.gif: only the first of 2 frames is kept\n"


def there_and_back(codec: str, source: str, target: str) -> None:
    assert main(["compress", source, "-o", "between.walloc", "-f", "--model", codec]) == 0
    assert main(["decompress", "between.walloc", "-o", target, "-f", "--model", codec]) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_kept_without_loss(here, codecs, capsys, mode):
    image = PIL.Image.fromarray(pictures()[1])
    alpha = np.arange(128 * 200).reshape(128, 200).astype(np.uint8)
    alpha[:40] = 0
    if mode == "P":
        image = image.quantize(64)
        image.info["transparency"] = 3
        alpha = np.where(np.asarray(image) == 3, 0, 255).astype(np.uint8)
    else:
        image = image.convert(mode)
        image.putalpha(PIL.Image.fromarray(alpha))
    image.save("in.png")
    for suffix in ("png", "webp", "tif"):
        there_and_back(codecs["image"], "in.png", f"out.{suffix}")
        with PIL.Image.open(f"out.{suffix}") as back:
            assert np.array_equal(back.getchannel("A"), alpha)
            back, shown = (np.asarray(i.convert("RGBA"), int) for i in (back, image))
            assert psnr((back[..., :3] * back[..., 3:])[40:] / 255, (shown[..., :3] * shown[..., 3:])[40:] / 255) > 20
    assert said(capsys) == ""
    there_and_back(codecs["image"], "in.png", "out.jpg")
    assert said(capsys).endswith("JPEG has no transparency: transparent parts become white\n")
    if mode != "P":
        assert np.asarray(PIL.Image.open("out.jpg"))[:32].min() > 230
    image = PIL.Image.fromarray(pictures()[1]).convert("RGBA")
    image.save("opaque.png")
    there_and_back(codecs["image"], "opaque.png", "out.png")
    assert PIL.Image.open("out.png").mode == "RGB" and main(["info", "between.walloc"]) == 0
    assert "transparency" not in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_gray_codec_keeps_transparency_and_no_profile_of_colours(here, tmp_path, capsys, mode):
    torch.manual_seed(0)
    config = WallocImageConfig(num_channels=1, num_levels=2, latent_channels=16, decoder_type="linear", latent_bits=8)
    WallocImageModel(config).save_pretrained(tmp_path / "gray")
    alpha = np.arange(128 * 200).reshape(128, 200).astype(np.uint8)
    image = PIL.Image.fromarray(pictures()[1]).convert(mode)
    image.putalpha(PIL.Image.fromarray(alpha))
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    wide = srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    image.save("in.png", icc_profile=wide if mode == "RGBA" else None)
    there_and_back(str(tmp_path / "gray"), "in.png", "out.png")
    with PIL.Image.open("out.png") as back:
        assert back.mode == "LA" and "icc_profile" not in back.info
        assert np.array_equal(back.getchannel("A"), alpha)
    said = "has one channel, and their profile is not kept" if mode == "RGBA" else ""
    assert said in capsys.readouterr().err


def test_a_codec_of_other_channels_names_the_bands_of_a_picture(here, tmp_path, capsys):
    config = WallocImageConfig(num_channels=2, num_levels=2, latent_channels=8, decoder_type="linear")
    WallocImageModel(config).save_pretrained(tmp_path / "two")
    image = PIL.Image.fromarray(pictures()[1])
    image.putalpha(128)
    image.save("in.png")
    capsys.readouterr()  # a bar of transformers
    fails(capsys, ["compress", "in.png", "-o", "out.walloc", "--model", str(tmp_path / "two")], "has 4 bands")


def test_colour_profiles_are_kept(here, codecs, capsys):
    image = PIL.Image.fromarray(pictures()[1])
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    wide = srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    image.save("in.png", icc_profile=wide)
    for suffix in ("png", "jpg", "tif", "webp"):
        there_and_back(codecs["image"], "in.png", f"out.{suffix}")
        with PIL.Image.open(f"out.{suffix}") as back:
            assert back.info["icc_profile"] == wide and psnr(back, image) > 22  # the numbers are what they were
    assert said(capsys) == ""
    there_and_back(codecs["image"], "in.png", "out.bmp")
    assert "out.bmp: colours are converted from wide" in capsys.readouterr().err
    damaged = wide[:200]
    for name, profile, words in (("srgb", srgb, ""), ("damaged", damaged, "its colour profile is damaged")):
        image.save(f"{name}.png", icc_profile=profile)
        there_and_back(codecs["image"], f"{name}.png", "out.png")
        assert "icc_profile" not in PIL.Image.open("out.png").info and words in capsys.readouterr().err
    image.convert("CMYK").save("print.jpg", quality=95)
    there_and_back(codecs["image"], "print.jpg", "out.png")
    assert psnr(PIL.Image.open("out.png"), image) > 20


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(here, codecs, capsys, suffix, bands):
    tifffile = pytest.importorskip("tifffile")
    if suffix == "tif" and bands in (2, 4):
        pytest.skip("written with transparency only as PNG")
    # Steeper than the error of the codec, in steps that 8 bits do not have.
    levels = np.linspace(0, 65535, 128 * 200).reshape(128, 200).astype(np.uint16)
    image = np.dstack([levels, levels[::-1], levels, levels[:, ::-1]][:bands])
    image[..., -1] = np.maximum(image[..., -1], 1 if bands in (2, 4) else 0)  # what is transparent becomes white
    image = image[..., 0] if bands == 1 else image
    if suffix == "png":
        Path("in.png").write_bytes(transformers_walloc.media.sixteen_bits.encode_png(image, b""))
    else:
        tifffile.imwrite("in.tif", image, photometric="rgb" if bands == 3 else "minisblack")
    there_and_back(codecs["image"], f"in.{suffix}", f"out.{suffix}")
    assert said(capsys) == ""
    side = transformers_walloc.media.pictures.read_picture("", Path(f"out.{suffix}").read_bytes())
    given = transformers_walloc.media.pictures.read_picture("", Path(f"in.{suffix}").read_bytes())
    assert side.pixels.dtype == np.uint16 and side.sample_format == given.sample_format
    assert np.array_equal(given.pixels, image[..., 0] if bands == 2 else image[..., :3] if bands == 4 else image)
    if bands in (2, 4):
        assert np.array_equal(side.alpha, image[..., -1])
    error = side.pixels.astype(float) - given.pixels
    assert 20 * np.log10(65535 / np.sqrt(np.mean(error**2))) > 20 and np.unique(side.pixels).size > 3000
    there_and_back(codecs["image"], f"in.{suffix}", "out.jpg")
    assert "out.jpg: samples of 16 bits are written with 8 bits" in capsys.readouterr().err


def test_what_is_kept_beside_the_latents_counts_for_the_rate(here, codecs, capsys):
    image = PIL.Image.fromarray(pictures()[1]).convert("RGBA")
    noise = np.random.default_rng(0).integers(256, size=(128, 200)).astype(np.uint8)
    noise[:, 20:] = 255
    image.putalpha(PIL.Image.fromarray(noise))
    image.save("in.png")
    model = ["--model", codecs["image"]]
    assert main(["compress", "in.png", "--bpp", "1.5", *model]) == 0
    assert 1.2 < 8 * os.path.getsize("in.walloc") / (128 * 200) <= 1.5
    fails(capsys, ["compress", "in.png", "-f", "--bpp", "0.5", *model], "what is kept beside the latents takes 0.95")


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGB"])
def test_gray_stays_gray(here, codecs, mode):
    PIL.Image.fromarray(pictures()[1]).convert(mode).save("in.png")
    assert main(["compress", "in.png", "--model", codecs["image"]]) == 0
    assert main(["decompress", "in.walloc", "-o", "out.png", "--model", codecs["image"]]) == 0
    with PIL.Image.open("out.png") as back:
        assert back.mode == ("RGB" if mode == "RGB" else "L")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_audio_returns_at_its_depth(here, codecs, capsys, suffix, subtype):
    if not soundfile.check_format(suffix.upper(), subtype):
        pytest.skip(f"{suffix} has no {subtype}")
    loud = 1.5 if subtype in ("FLOAT", "DOUBLE") else 0.5
    soundfile.write(f"in.{suffix}", loud * sound(0.2).T, 44100, subtype=subtype)
    model = ["--model", codecs["audio"]]
    assert main(["compress", f"in.{suffix}", *model]) == 0
    assert main(["decompress", "in.walloc", "-o", f"out.{suffix}", *model]) == 0
    assert soundfile.info(f"out.{suffix}").subtype == subtype
    assert said(capsys) == ""
    if loud > 1:  # where the samples cannot be kept it is said
        assert np.abs(soundfile.read(f"out.{suffix}")[0]).max() > 1
        assert main(["decompress", "in.walloc", "-o", "out.mp3", *model]) == 0
        assert "out.mp3: " in (err := capsys.readouterr().err) and "are clipped" in err


def test_more_channels_are_mixed_when_told(here, codecs, capsys):
    clip = sound(0.3)
    silence = 0 * clip[0]
    # Left, right, centre, low frequencies, back left, back right.
    soundfile.write("surround.wav", np.stack([clip[0], clip[1], silence, clip[0], silence, silence], axis=1), 44100)
    fails(capsys, ["compress", "surround.wav", "--model", codecs["audio"]], "6 channels")
    assert main(["compress", "surround.wav", "--downmix", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "surround.walloc", "-o", "back.wav", "--model", codecs["audio"]]) == 0
    back, _ = soundfile.read("back.wav")
    assert np.abs(back.T - clip / (1 + 2**0.5)).max() < 0.05


# Files made to harm


def test_the_sampling_rate_of_a_header_is_no_bomb(here, codecs, capsys):
    """4 kB that state 1 Hz would become 44 million samples; 8 kHz is a telephone."""
    soundfile.write("bomb.wav", np.zeros((1000, 2)), 1)
    fails(capsys, ["compress", "bomb.wav", "--model", codecs["audio"]], "bomb.wav: sampling_rate is 1; for 44100")
    soundfile.write("telephone.wav", sound(0.1, 1, 8000).T, 8000)
    assert main(["compress", "telephone.wav", "--model", codecs["audio"]]) == 0


def test_long_and_large_files_are_refused_before_they_are_decoded(here, codecs, capsys, monkeypatch):
    with soundfile.SoundFile("silence.flac", "w", 44100, 2) as file:
        for _ in range(70):
            file.write(np.zeros((2**20, 2), np.int16))
    assert os.path.getsize("silence.flac") < 2**20
    PIL.Image.new("1", (13000, 13000)).save("white.png")
    assert os.path.getsize("white.png") < 2**16
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    for name, kind, message in (
        ("silence.flac", "audio", f"silence.flac: {70 * 2**20} samples per channel, more than the limit of {2**26}"),
        ("white.png", "image", f"white.png: 13000 x 13000 pixels, more than the limit of {2**26}"),
    ):
        fails(capsys, ["compress", name, "--model", codecs[kind]], message)
    option = ["--max-samples", "1000"]
    fails(capsys, ["compress", "song.wav", *option, "--model", codecs["audio"]], "more than the limit of 1000")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "nothing.png"], "nothing.png: no such file"),
        (["compress", "*.tiff"], "no file matches"),
        (["compress", "empty"], "the folder has no file"),
        (["compress", "text.txt"], "text.txt: neither an image nor audio"),
        (["compress", "text.png"], "text.png: not an image"),
        (["compress", "photo.png", "-o", "text.txt/x.walloc"], "text.txt: is not a folder, so text.txt/x.walloc"),
        (["compress", "photo.png", "-o", "text.txt/"], "text.txt: is not a folder"),
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
    assert said(capsys) == ""
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


@pytest.mark.parametrize("arguments", [["shrink"], ["compress"], ["compress", "a.png", "--bpp", "1", "--psnr", "30"]])
def test_wrong_usage_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and "usage" in capsys.readouterr().err


def test_a_text_is_refused_by_name_without_soundfile(here, codecs, capsys, monkeypatch):
    (here / "text.txt").write_text("words")
    (here / "song").write_bytes((here / "song.wav").read_bytes())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    fails(capsys, ["compress", "text.txt", "--model", codecs["image"]], "text.txt: neither an image nor audio")
    fails(capsys, ["compress", "song", "--model", codecs["audio"]], "audio files need soundfile: pip install")


def test_what_fails_fails_before_the_heavy_imports(here):
    (here / "photo.walloc").write_text("precious")
    code = (
        "import sys\n"
        "from transformers_walloc.cli.main import main\n"
        "for arguments in (['compress', 'photo.png'], ['compress', 'nothing.png'], ['info', 'photo.walloc'],\n"
        "                  ['compress', 'photo.png', '-o', 'photo.png/x'],\n"
        "                  ['decompress', 'photo.walloc', '-o', 'x.y']):\n"
        "    assert main(arguments) == 1\n"
        "for arguments in (['--help'], ['--version'], ['compress', '--help'], ['decompress', '--help']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 0\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n") and "walloc 0." in done.stdout


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    out = capsys.readouterr().out
    assert error.value.code == 0 and all(f"  {name}" in out for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as error:
            main([name, "--help"])
        out = capsys.readouterr().out
        assert error.value.code == 0 and f"usage: walloc {name}" in out


@pytest.mark.parametrize("command", ["compress", "decompress", "info", "compare", "inspect"])
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


def test_threads_are_divided_once():
    """However many commands a process runs."""
    import torch

    from transformers_walloc.media.file_codec import Codecs, _threads_at_first

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        _threads_at_first.cache_clear()
        found = [(Codecs(workers=workers), torch.get_num_threads())[1] for workers in (2, 2, 4, 1, 100)]
        assert found == [4, 4, 2, 8, 1]
    finally:
        torch.set_num_threads(threads)
        _threads_at_first.cache_clear()


def test_decompress_linear_is_the_linear_part_of_the_decoder(tmp_path):
    """Against the synthesis of what the decoder's own linear layer gives, without the network."""
    blob = tmp_path / "picture.walloc"
    PIL.Image.open(Path(__file__).parents[1] / "data" / "astronaut.png").convert("RGB").save(tmp_path / "picture.png")
    assert main(["compress", str(tmp_path / "picture.png"), "-o", str(blob), "--model", "rgb-16x"]) == 0
    model = WallocImageModel.from_pretrained(bundled_path("rgb-16x"))
    with torch.no_grad():
        (codes,) = model.decompress_codes(blob.read_bytes())
        subbands = model.decoder.linear(decompand(codes[None].float(), 8))
        config = model.config
        pixels = wavelet_packet_synthesis(subbands, config.num_levels, config.wavelet, config.boundary)[0]
    expected = ((pixels.clamp(-0.5, 0.5) + 0.5) * 255).round().permute(1, 2, 0).numpy()
    results = {}
    for name, options in (("linear", ["--linear"]), ("whole", [])):
        assert main(["decompress", str(blob), "-o", str(tmp_path / f"{name}.png"), *options]) == 0
        results[name] = np.asarray(PIL.Image.open(tmp_path / f"{name}.png")).astype(float)
    height, width = results["linear"].shape[:2]
    assert np.abs(results["linear"] - expected[:height, :width]).max() <= 1
    assert np.abs(results["linear"] - results["whole"]).mean() > 1
