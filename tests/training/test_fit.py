"""Fitting codecs to tiny signals of every kind: what is found, what is refused, what comes back from files."""

import dataclasses
import itertools
import json
import math
import warnings

import numpy as np
import PIL.Image
import pytest
import skimage.data
import soundfile
import tifffile
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.cli.fit import main
from transformers_walloc.cli.main import main as command
from transformers_walloc.cli.train import parse_recipe
from transformers_walloc.codec.bitstream import WallocFormatError, pack, unpack
from transformers_walloc.codec.raster_format import RasterFormat
from transformers_walloc.media.paths import list_files
from transformers_walloc.media.rasters import compress_raster, decompress_raster, describe, encode_raster, read_raster
from transformers_walloc.training.data import ImageCrops, MediaCache
from transformers_walloc.training.fit import fit_codec
from transformers_walloc.training.fit_statistics import _rescaled
from transformers_walloc.training.klt import SubbandStatistics, fit_klt
from transformers_walloc.training.recipe import train_codec

QUICK = {"table_steps": 0, "progress": False, "num_levels": 2}


def bands(count: int = 4, size: int = 96, dtype=np.uint16, top: float = 4000.0) -> np.ndarray:
    """(count, size, size): correlated bands of a photograph, smooth and rough parts."""
    photo = skimage.data.astronaut()[:size, 100 : 100 + size].astype(np.float64) / 255
    mix = np.random.default_rng(0).random((count, 3))
    planes = np.einsum("bc,hwc->bhw", mix / mix.sum(axis=1, keepdims=True), photo)
    return (planes * top).astype(dtype)


def clip(channels: int, length: int = 2**15) -> np.ndarray:
    generator = np.random.default_rng(channels)
    noise = generator.standard_normal((channels, length)).cumsum(axis=1)
    noise = np.einsum("cd,dt->ct", generator.random((channels, channels)), noise)
    return (noise / np.abs(noise).max()).astype(np.float32)


def psnr(x: np.ndarray, y: np.ndarray, span: float) -> float:
    return float(-10 * np.log10(np.mean(((x.astype(np.float64) - y) / span) ** 2)))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_multi_band_tiff_comes_back_in_kind(tmp_path, layout, capsys):
    scene = bands()
    array = scene.transpose(1, 2, 0) if layout == "channels_last" else scene
    planar = "contig" if layout == "channels_last" else "separate"
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "scene.tif"
    tifffile.imwrite(file, array, photometric="minisblack", planarconfig=planar, tile=(32, 32))
    options = [
        "--num-levels",
        "2",
        "--latent-channels",
        "24",
        "--table-steps",
        "20",
        "--band-names",
        "blue",
        "green",
        "red",
        "nir",
    ]
    assert main([str(tmp_path / "in"), "--output", str(tmp_path / "codec"), *options]) == 0
    printed = capsys.readouterr().out
    assert "1 signal: images of 4 channels, uint16, range 0 to 4095" in printed
    assert "measured_on" not in printed and "dB" in printed

    model = AutoModel.from_pretrained(tmp_path / "codec").eval()
    assert model.config.dimensionality_reduction == 4 * 16 / 24
    assert model.config.entropy_tables_size > 0 and len(model.config.latents_std) == 24
    facts = json.loads((tmp_path / "codec" / "fit.json").read_text())
    assert f"PSNR {facts['psnr']:.2f} dB" in (tmp_path / "codec" / "README.md").read_text()

    read, raster = read_raster(file)
    assert raster.layout == layout and read.shape == array.shape
    blob = compress_raster(model, read, raster)
    restored, stated = decompress_raster(model, blob)
    assert restored.dtype == np.uint16 and restored.shape == array.shape
    assert stated.names == ("blue", "green", "red", "nir") and stated.high == 4095
    assert psnr(array, restored, 4095) > 30
    assert len(blob) < array.nbytes / 5

    (tmp_path / "out.tif").write_bytes(encode_raster(restored, stated, "out.tif"))
    again, kept = read_raster(tmp_path / "out.tif")
    assert np.array_equal(again, restored) and (kept.layout, kept.names) == (layout, stated.names)
    # The processor says the same as the file.
    processor = AutoImageProcessor.from_pretrained(tmp_path / "codec")
    inputs = processor(read, return_tensors="pt", input_data_format=layout)
    pixels = model.decode(model.quantize(model.encode(inputs["pixel_values"]).latents)).pixel_values
    (array_again,) = processor.post_process(pixels, inputs["original_sizes"])
    assert array_again.dtype == np.uint16 and array_again.shape == array.shape
    assert np.abs(array_again - restored.astype(int)).mean() < 1  # codes that lie on a half may round either way


def test_the_command_line_keeps_type_layout_and_bands(tmp_path, capsys):
    scene = bands(4, 96, np.int16, 900.0) - 100
    fit_codec([scene], tmp_path / "codec", latent_channels=16, **QUICK)
    np.save(tmp_path / "scene.npy", scene)
    tifffile.imwrite(tmp_path / "scene.tif", scene, photometric="minisblack", planarconfig="separate")
    model = ["--model", str(tmp_path / "codec")]
    for suffix in (".npy", ".tif"):
        source = str(tmp_path / f"scene{suffix}")
        assert command(["compress", source, "-o", str(tmp_path / "x.walloc"), "--force", *model]) == 0
        assert command(["decompress", str(tmp_path / "x.walloc"), "-o", str(tmp_path / f"y{suffix}"), *model]) == 0
        restored, raster = read_raster(tmp_path / f"y{suffix}")
        assert (restored.dtype, restored.shape) == (np.int16, scene.shape)
        assert psnr(scene, restored, raster.high - raster.low) > 28
    assert command(["info", str(tmp_path / "x.walloc")]) == 0
    assert "int16" in capsys.readouterr().out
    assert command(["decompress", str(tmp_path / "x.walloc"), *model]) == 0
    assert (tmp_path / "x.tif").is_file()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [(np.float32, math.nan), (np.float64, None), (np.int16, -9999.0), (np.uint8, 0.0)]
)
def test_types_and_missing_samples(dtype, nodata):
    scene = bands(2, 64, dtype, 100.0)
    if nodata is None:
        hole = np.zeros((64, 64), bool)
    else:
        hole = np.zeros((64, 64), bool)
        hole[10:20, 30:50] = True
        scene = np.maximum(scene, 1)
        scene[:, hole] = nodata
    fit = fit_codec([scene], latent_channels=24, nodata=nodata, **QUICK)
    raster = describe(scene, nodata=nodata)
    restored, stated = decompress_raster(fit.model, compress_raster(fit.model, scene, raster))
    assert restored.dtype == dtype
    missing = np.isnan(restored) if nodata is not None and math.isnan(nodata) else restored == nodata
    assert np.array_equal(missing, np.broadcast_to(hole, missing.shape))
    span = stated.high - stated.low
    assert psnr(scene[:, ~hole], restored[:, ~hole], span) > 28


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_audio_of_any_channels_and_rate(tmp_path, channels):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", clip(channels).T, 16000, subtype="PCM_24")
    options = {**QUICK, "dimensionality_reduction": 8, "num_levels": 5}
    fit = fit_codec(tmp_path / "in", tmp_path / "codec", **options)
    assert fit.facts["sampling_rate"] == 16000 and fit.facts["num_channels"] == channels
    model = AutoModel.from_pretrained(tmp_path / "codec").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "codec")
    assert extractor.sampling_rate == 16000 and extractor.feature_size == channels
    samples = clip(channels)
    inputs = extractor(samples, sampling_rate=16000, return_tensors="pt")
    (restored,) = model.decompress(model.compress(**inputs))
    assert restored.shape == samples.shape
    assert psnr(samples, restored.numpy(), 2) > 30


def test_the_closed_form_is_that_of_training(tmp_path):
    for folder, names in {"train": ("astronaut", "coffee"), "held": ("chelsea",)}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            picture = getattr(skimage.data, name)()[:128, :160]
            PIL.Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    arguments = "--kind image --latent_channels 6 --step 0.1 --decoder_type linear --max_steps 0 --klt_draws 30 --cpu"
    arguments += f" --piece_size 64 --train {tmp_path}/train --validation {tmp_path}/held --output {tmp_path}/run"
    train_codec(parse_recipe(arguments.split()))
    trained = AutoModel.from_pretrained(tmp_path / "run" / "model")

    cache = MediaCache(list_files(tmp_path / "train", [".png"]), "image", tmp_path / "run" / "cache")
    pieces = itertools.islice(ImageCrops([cache], [1.0], 64, "0-0"), 30)
    fit = fit_codec(
        pieces, latent_channels=6, step=0.1, validation=str(tmp_path / "held"), **QUICK | {"num_levels": None}
    )
    assert fit.model.fingerprint() == trained.fingerprint()
    for name, value in trained.state_dict().items():
        assert torch.equal(fit.model.state_dict()[name], value), name
    assert fit.model.config.raster_format is None


def test_the_range_of_all_data_counts_not_that_of_the_first():
    scene = bands(2, 64, np.float32, 1.0)
    first, second = scene * 0.5, scene * 3 - 1
    fit = fit_codec([first, second], latent_channels=8, step=0.05, **QUICK)
    raster = RasterFormat.from_dict(fit.model.config.raster_format)
    assert (raster.low, raster.high) == (pytest.approx(second.min()), pytest.approx(second.max()))
    declared = (float(second.min()), float(second.max()))
    again = fit_codec([first, second], latent_channels=8, step=0.05, sample_range=declared, **QUICK)
    x = torch.from_numpy(raster.to_unit(second))[None]
    torch.testing.assert_close(again.model.encode(x).latents, fit.model.encode(x).latents, rtol=1e-2, atol=1e-2)


def test_targets():
    scene = bands(3, 96, np.uint8, 255)
    for target in (28.0, 34.0):
        fit = fit_codec([scene], psnr=target, **QUICK)
        assert fit.facts["psnr"] >= target
        fewer = fit.facts["latent_channels"] - 1
        assert fewer == 0 or fit_codec([scene], latent_channels=fewer, **QUICK).facts["psnr"] < target
    assert fit_codec([scene], rate=0.7, **QUICK).facts["bpp"] == pytest.approx(0.7, rel=0.1)
    with pytest.raises(ValueError, match="out of reach"):
        fit_codec([scene], psnr=90.0, **QUICK)


def test_step_follows_the_noise_of_the_data():
    generator = np.random.default_rng(0)
    clean = np.kron(generator.random((1, 12, 12)), np.ones((1, 16, 16))) * 2000 + 1000
    steps = [
        fit_codec(
            [(clean + generator.normal(0, sigma, clean.shape)).astype(np.uint16)],
            latent_channels=16,
            sample_range=(0, 4095),
            **QUICK,
        ).facts["step"]
        for sigma in (40.0, 160.0)
    ]
    assert steps[1] > 2 * steps[0]


def test_other_sources_and_determinism():
    photo = skimage.data.chelsea()[:96, :128]
    by_row = fit_codec([{"image": PIL.Image.fromarray(photo)}], latent_channels=6, **QUICK)
    by_array = fit_codec(iter([photo]), latent_channels=6, **QUICK)
    assert by_row.model.fingerprint() == by_array.model.fingerprint()
    assert by_row.model.config.raster_format is None and by_row.processor.num_channels == 3
    gray = fit_codec([photo[:, :, 0]], latent_channels=6, **QUICK)
    (picture,) = gray.processor.post_process(torch.zeros(1, 1, 8, 8))
    assert isinstance(picture, PIL.Image.Image) and picture.mode == "L"
    sound = fit_codec([{"array": clip(1)[0], "sampling_rate": 8000}], **QUICK | {"num_levels": 4})
    assert sound.facts["sampling_rate"] == 8000


@pytest.mark.parametrize(
    ("signals", "options", "message"),
    [
        ([bands(3, 64), bands(4, 64)], {}, "of 4 channels, and the first image of 3: fit a codec to one kind"),
        ([bands(2, 64), bands(2, 64, np.float32)], {}, "samples of float32, and the first of uint16"),
        ([np.full((64, 64), 7, np.uint8)], {}, "constant"),
        ([np.full((64, 64), 7, np.float32)], {}, "constant"),
        ([np.zeros((0, 64), np.uint8)], {}, "empty"),
        ([], {}, "no signals"),
        ([bands(2, 64)], {"sample_range": (0, 100_000)}, "does not fit uint16"),
        ([bands(2, 64)], {"sample_range": (0, 100)}, "lie outside the range of the codec, 0 to 100"),
        ([np.where(bands(1, 64, np.float32) > 0, np.inf, 0)], {}, "infinite"),
        ([bands(8, 64)], {"num_levels": 3}, "fewer than their 512 coefficients"),
        ([np.repeat(bands(1, 96), 2, axis=0)], {"latent_channels": 30}, "vary independently: choose fewer"),
        ([bands(2, 64)], {"latent_channels": 4, "psnr": 30}, "choose one of"),
        ([bands(2, 64)], {"step": 0.1, "rate": 1.0}, "choose one of step and rate"),
        ([bands(2, 64, np.float32) * np.nan], {}, "every sample is missing"),
        ([np.concatenate([bands(1, 64, np.float32), np.full((1, 64, 64), np.nan, np.float32)])], {}, "missing"),
        ([clip(1, 4096), clip(2, 4096)], {"kind": "audio"}, "audio of 2 channels, and the first audio of 1"),
        ([np.full((1, 4096), np.nan, np.float32)], {"kind": "audio"}, "NaN or infinite"),
        ([np.zeros((2, 4096), np.float32)], {"kind": "audio"}, "constant"),
        ([bands(1, 64)[0]], {"kind": "volume"}, "no volume"),
        ([np.full((8, 64, 64), 3, np.uint8)], {"kind": "volume"}, "constant"),
        ([np.zeros((0, 8, 8, 1), np.uint8)], {}, "empty"),
        (["a", 3], {}, "a signal cannot be of type str"),
        (3, {}, "data is int"),
    ],
)
def test_bad_input_is_refused(signals, options, message):
    with pytest.raises(ValueError, match=message):
        fit_codec(signals, **{**QUICK, **options})


def test_a_band_without_content_costs_nothing():
    """A constant band beside others: no error, no channel is spent on it, and it comes back."""
    scene = bands(3, 96)
    scene[1] = 700
    fit = fit_codec([scene], latent_channels=8, **QUICK)
    restored, _ = decompress_raster(fit.model, compress_raster(fit.model, scene))
    assert np.abs(restored[1].astype(int) - 700).max() <= 1
    assert psnr(scene, restored, 4095) > 26


def test_rates_that_differ_are_refused_or_resampled():
    rows = [{"array": clip(1)[0], "sampling_rate": rate} for rate in (8000, 16000)]
    with pytest.raises(ValueError, match="16000 Hz, and the first 8000 Hz: choose a sampling_rate"):
        fit_codec(rows, **QUICK | {"num_levels": 4})
    assert fit_codec(rows, sampling_rate=8000, **QUICK | {"num_levels": 4}).facts["sampling_rate"] == 8000


def test_training_goes_on_from_the_closed_form(tmp_path):
    scene = bands(3, 96, np.uint8, 255)
    closed = fit_codec([scene], latent_channels=4, **QUICK)
    fit = fit_codec([scene], tmp_path / "codec", latent_channels=4, minutes=0.02, **QUICK)
    assert fit.model.config.decoder_type == "residual"
    assert fit.model.fingerprint() == closed.model.fingerprint()
    assert fit.facts["psnr"] > closed.facts["psnr"] - 0.5
    assert AutoModel.from_pretrained(tmp_path / "codec").fingerprint() == closed.model.fingerprint()
    with pytest.raises(FileExistsError):
        fit_codec([scene], tmp_path / "codec", **QUICK)


def test_damaged_raster_formats_are_refused():
    scene = bands(2, 64)
    fit = fit_codec([scene], latent_channels=8, **QUICK)
    header, payload = unpack(compress_raster(fit.model, scene))
    raster, _ = header.read_raster()
    hole = np.zeros((64, 64), bool)
    hole[3] = True
    packed = RasterFormat.from_dict(raster.to_dict() | {"nodata": 0}).pack(hole)
    assert np.array_equal(RasterFormat.unpack(packed, 2, (64, 64))[1], hole)
    with pytest.raises(ValueError, match="not that of the image"):
        RasterFormat.unpack(packed, 2, (64, 65))
    for cut in range(len(packed)):
        with (
            pytest.raises(ValueError, match=r"damaged|not that of the image|unknown|range")
            if cut not in (29,)
            else (__import__("contextlib").nullcontext())
        ):
            RasterFormat.unpack(packed[:cut], 2, (64, 64))
    named = RasterFormat.from_dict(raster.to_dict() | {"names": ["a", "b", "c"]}).pack()
    with pytest.raises(WallocFormatError, match="3 names for 2 bands"):
        unpack(pack(dataclasses.replace(header, raster=named), payload))


def test_statistics_of_other_ranges_are_those_of_the_data():
    config = WallocImageConfig(num_channels=2, latent_channels=4, decoder_type="linear")
    x = torch.rand(3, 2, 64, 72, generator=torch.Generator().manual_seed(0)) - 0.5
    one, other = SubbandStatistics(config), SubbandStatistics(config)
    one.update(x)
    other.update(0.3 * x + 0.1)
    scaled = _rescaled(one, 0.3, 0.1)
    np.testing.assert_allclose(scaled.mean, other.mean, atol=1e-5)
    np.testing.assert_allclose(scaled.covariance, other.covariance, atol=1e-5)
    fit_klt(WallocImageModel(config), scaled, 0.1)


def test_samples_that_go_because_other_bands_are_missing_are_counted():
    planes = np.random.default_rng(0).integers(1, 255, (2, 64, 64)).astype(np.uint8)
    planes[:, :4] = 0  # both bands
    fit = fit_codec([planes], num_levels=1, dimensionality_reduction=4, nodata=0, table_steps=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress_raster(fit.model, planes, describe(planes, "channels_first", nodata=0))
    planes[1, 10, :7] = 0  # one of them
    with pytest.warns(UserWarning, match="7 samples are taken for missing"):
        blob = compress_raster(fit.model, planes, describe(planes, "channels_first", nodata=0))
    restored, _ = decompress_raster(fit.model, blob)
    assert not restored[:, :4].any() and not restored[:, 10, :7].any()
