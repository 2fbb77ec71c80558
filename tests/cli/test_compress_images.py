"""Images to files and back: formats, modes, rates, and what is kept beside the colours."""

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
import torch
from codec_fixtures import pictures
from command_line import fails, files, psnr, said, there_and_back

import transformers_walloc.cli.compress
import transformers_walloc.media.file_codec
import transformers_walloc.media.pictures
from transformers_walloc import WallocImageConfig, WallocImageModel, bundled_path
from transformers_walloc.cli.main import main
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis


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
def test_modes_of_images(here, codecs, mode, capsys):
    suffix = ".tif" if mode == "CMYK" else ".png"
    image = PIL.Image.fromarray(pictures()[1])
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(f"in{suffix}")
    assert main(["compress", f"in{suffix}", "--model", codecs["image"]]) == 0
    said = "note: in.tif: colours are converted from CMYK without a profile" in capsys.readouterr().err
    assert said == (mode == "CMYK")
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


def test_what_an_image_loses_is_said(here, codecs, capsys):
    image = PIL.Image.fromarray(pictures()[1])
    image.save("moving.gif", save_all=True, append_images=[image.transpose(PIL.Image.Transpose.ROTATE_180)])
    assert main(["compress", "moving.gif", "--model", codecs["image"]]) == 0
    assert said(capsys) == "walloc: note: moving.gif: only the first of 2 frames is kept\n"


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


def test_files_of_a_codec_before_it_was_trained_further_open_without_an_option(here, capsys):
    stored = Path(__file__).parents[1] / "data" / "rgb-16x.walloc"
    assert main(["decompress", str(stored), "-o", "old.png"]) == 0
    assert said(capsys) == ""
    original = PIL.Image.open(stored.with_name("astronaut.png"))
    expected = json.loads(stored.with_name("psnr.json").read_text())["rgb-16x"]
    assert psnr(PIL.Image.open("old.png"), original) == pytest.approx(expected, abs=0.05)
