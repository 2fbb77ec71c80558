"""Codecs for volumes and clips: fitted, saved, loaded, and their files in kind."""

import dataclasses
import math

import numpy as np
import PIL.Image
import pytest
import skimage.data
import tifffile
import torch
from transformers import AutoImageProcessor, AutoModel

from transformers_walloc import WallocVolumeConfig, WallocVolumeEncoder, WallocVolumeImageProcessor, WallocVolumeModel
from transformers_walloc.cli.main import main as command
from transformers_walloc.codec.bitstream import Header, WallocFormatError, pack, unpack
from transformers_walloc.codec.entropy_coding import decode_codes
from transformers_walloc.codec.raster_format import RasterFormat
from transformers_walloc.codec.wavelets import wavelet_packet_analysis
from transformers_walloc.media.rasters import compress_raster, decompress_raster, describe
from transformers_walloc.media.volumes import encode_volume, read_volume
from transformers_walloc.training.fit import fit_codec

QUICK = {"table_steps": 0, "progress": False}


def stack(depth: int = 30, size: int = 50, channels: int = 0) -> np.ndarray:
    """(depth, size, size - 3) uint16, with `channels` a last axis: a photograph that moves and brightens."""
    photo = skimage.data.astronaut()[:, :, : channels or 1].astype(np.float64)
    slices = [photo[d : d + size, 100 + 2 * d : 97 + 2 * d + size] * (0.5 + 0.5 * d / depth) for d in range(depth)]
    volume = np.stack(slices) * 16
    return (volume if channels else volume[..., 0]).astype(np.uint16)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A codec of gray stacks in a folder, and what the fit said."""
    folder = tmp_path_factory.mktemp("codec") / "stacks-8x"
    return folder, fit_codec(
        [stack()], folder, kind="volume", dimensionality_reduction=8, table_steps=5, progress=False
    )


def psnr(x, y, span) -> float:
    return -10 * math.log10(np.mean(((np.asarray(x, np.float64) - y) / span) ** 2))


def test_fitted_codec_loads_and_keeps_type_and_shape(fitted):
    folder, fit = fitted
    assert fit.facts["kind"] == "volume" and fit.facts["dtype"] == "uint16" and fit.facts["high"] == 4095
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(model) is WallocVolumeModel and type(processor) is WallocVolumeImageProcessor
    assert model.config.dimensionality_reduction == 8 and model.config.entropy_tables_size > 0
    volume = stack(21)  # no multiple of the patch along any axis
    inputs = processor(volume, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 24, 52, 48)
    assert inputs["original_sizes"].tolist() == [[21, 50, 47]]
    assert model.encode(inputs["pixel_values"]).latents.shape == (1, 8, 6, 13, 12)
    (blob,) = model.compress(**inputs)
    (decoded,) = model.decompress([blob])
    assert decoded.shape == (1, 21, 50, 47)
    (restored,) = processor.post_process([decoded])
    assert restored.dtype == np.uint16 and restored.shape == volume.shape
    assert psnr(volume, restored, 4095) > 28
    assert len(blob) < volume.nbytes / 20
    encoder = WallocVolumeEncoder.from_pretrained(folder)
    assert encoder.compress(**inputs) == [blob]
    (codes,) = encoder.decompress_codes(blob)
    assert torch.equal(codes[None], model.quantize(model.encode(inputs["pixel_values"]).latents))


def test_encoder_is_analysis_then_projection(fitted):
    """Against the transform of three axes, which the tests of wavelets compare with PyWavelets."""
    model = fitted[1].model
    x = torch.rand(1, 1, 16, 24, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    subbands = wavelet_packet_analysis(x.double(), 2, num_dims=3)
    weight, bias = model.encoder.projection.weight.double(), model.encoder.projection.bias.double()
    expected = torch.einsum("oi,bidhw->bodhw", weight.flatten(1), subbands) + bias[:, None, None, None]
    latents = model.encoder.from_subbands(subbands.float())
    torch.testing.assert_close(model.encode(x).latents, latents, rtol=1e-4, atol=1e-4)
    assert latents.shape == expected.shape and torch.isfinite(expected).all()


@pytest.mark.parametrize("decoder_type", ["linear", "residual"])
def test_tiles_give_the_same_voxels(decoder_type):
    shape = {"decoder_hidden_size": 8, "decoder_num_layers": 1}
    model = WallocVolumeModel(WallocVolumeConfig(latent_channels=5, decoder_type=decoder_type, **shape)).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        codes = torch.randint(-9, 10, (1, 5, 7, 9, 11), generator=torch.Generator().manual_seed(2), dtype=torch.int8)
        whole, tiles = model.decode(codes).pixel_values, model.decode(codes, tile_size=3).pixel_values
    torch.testing.assert_close(tiles, whole, rtol=0, atol=1e-5)


def test_files_hold_slices_one_below_the_other(fitted):
    """The payload as docs/concepts/format.md describes it, read without the model's `decompress`."""
    model = fitted[1].model
    x = torch.rand(1, 1, 16, 24, 32, generator=torch.Generator().manual_seed(3)) - 0.5
    blob = model.compress(x, torch.tensor([[15, 22, 31]]), step=2.0)[0]
    header, payload = unpack(blob)
    assert blob[5] == 0x13 and (header.kind, header.sizes, header.grid) == ("volume", (15, 22, 31), (4, 6, 8))
    codes = decode_codes(payload, (8, 24, 8), model.get_entropy_tables())
    # `compress` encodes the part that is not padding, to whole patches: here all of it.
    expected = model.quantize(model.encode(x).latents, 2.0)
    np.testing.assert_array_equal(codes.reshape(8, 4, 6, 8), expected[0].numpy())
    assert pack(header, payload) == blob


def test_headers_of_volumes_are_checked():
    fields = {"num_channels": 1, "num_levels": 2, "latent_channels": 4, "fingerprint": "0" * 16, "tables": "0" * 8}
    header = Header(kind="volume", sizes=(5, 6, 7), frame_rate=29.97, **fields)
    data = pack(header, b"xyz")
    assert unpack(data) == (header, b"xyz") and header.padded_size == 8 * 8 * 8
    with pytest.raises(WallocFormatError, match="more than the limit"):
        unpack(data, max_pixels=511)
    for wrong in ({"sizes": (5, 6)}, {"frame_rate": -1.0}, {"gain": 2.0}, {"sampling_rate": 8000}):
        with pytest.raises(WallocFormatError):
            dataclasses.replace(header, **wrong)
    with pytest.raises(WallocFormatError, match="frame_rate"):
        Header(kind="image", sizes=(5, 6), frame_rate=25.0, **fields)
    for cut in range(len(data)):
        with pytest.raises(WallocFormatError):
            unpack(data[:cut])


def test_large_volumes_are_refused_before_they_are_decoded(fitted):
    model = fitted[1].model
    blob = model.compress(torch.zeros(1, 1, 16, 16, 16))[0]
    with pytest.raises(WallocFormatError, match="memory"):
        model.decompress(blob, max_memory=10_000)
    header, payload = unpack(blob)
    for sizes in ((2**12, 2**12, 2**10), (2**31, 4, 4)):
        with pytest.raises(WallocFormatError):
            model.decompress(pack(dataclasses.replace(header, sizes=sizes), payload), max_pixels=None)
    with pytest.raises(WallocFormatError, match="for volume"):
        fields = dataclasses.asdict(header) | {"kind": "image", "sizes": (16, 16), "coded_channels": 0}
        model.decompress(pack(Header(**fields), payload))


@pytest.mark.parametrize("layout", ["single", "channels_last", "channels_first"])
def test_command_line_keeps_stacks_in_kind(tmp_path, layout):
    volume = stack(channels=0 if layout == "single" else 3)
    volume = np.moveaxis(volume, -1, 0) if layout == "channels_first" else volume
    (tmp_path / "in").mkdir()
    raster = describe(volume, layout)
    (tmp_path / "in" / "stack.tif").write_bytes(encode_volume(volume, raster, "stack.tif"))
    np.save(tmp_path / "in" / "array.npy", volume)
    codec, out = tmp_path / "codec", tmp_path / "out"
    options = ["--kind", "volume", "--dimensionality-reduction", "8", "--table-steps", "0"]
    assert command(["fit", str(tmp_path / "in"), "--output", str(codec), *options]) == 0
    assert command(["compress", str(tmp_path / "in"), "-o", str(out) + "/", "--model", str(codec)]) == 0
    assert command(["info", str(out)]) == 0
    assert command(["decompress", str(out), "-o", str(tmp_path / "back") + "/", "--model", str(codec)]) == 0
    restored, found, _ = read_volume(tmp_path / "back" / "stack.tif")
    assert restored.dtype == volume.dtype and restored.shape == volume.shape and found.layout == layout
    assert psnr(volume, restored, 4095) > 26
    target = tmp_path / "back.npy"
    assert command(["decompress", str(out / "array.walloc"), "-o", str(target), "--model", str(codec)]) == 0
    np.testing.assert_array_equal(np.load(target), restored)


def test_microscope_axes_and_pages(tmp_path):
    volume = np.arange(4 * 2 * 5 * 6, dtype=np.uint16).reshape(4, 2, 5, 6)
    tifffile.imwrite(tmp_path / "m.tif", volume, imagej=True, metadata={"axes": "ZCYX"})
    array, raster, _ = read_volume(tmp_path / "m.tif")
    assert raster.layout == "channels_first"
    np.testing.assert_array_equal(array, volume.transpose(1, 0, 2, 3))
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        for page in volume[:, 0]:
            writer.write(page, contiguous=False, metadata=None)
    array, raster, _ = read_volume(tmp_path / "p.tif")
    assert raster.layout == "single"
    np.testing.assert_array_equal(array, volume[:, 0])
    tifffile.imwrite(tmp_path / "flat.tif", volume[0, 0])
    with pytest.raises(ValueError, match="one axis of slices"):
        read_volume(tmp_path / "flat.tif")


def test_missing_voxels_and_floats_survive(fitted):
    volume = stack(16, 32).astype(np.float32)
    volume[3:6, 4:9] = np.nan
    fit = fit_codec([volume], kind="volume", dimensionality_reduction=8, **QUICK)
    blob = compress_raster(fit.model, volume)
    restored, raster = decompress_raster(fit.model, blob)
    assert restored.dtype == np.float32 and raster.layout == "single"
    np.testing.assert_array_equal(np.isnan(restored), np.isnan(volume))
    with pytest.raises(ValueError, match="not what the codec is for"):
        compress_raster(fit.model, volume[0], describe(volume[0]))


def test_clips_of_frames_come_back(tmp_path):
    frames = (stack(channels=3) // 16).astype(np.uint8)[:, :48, :44]
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    fit = fit_codec([frames], tmp_path / "clips", dimensionality_reduction=8, **QUICK)
    assert fit.facts["num_channels"] == 3 and fit.model.config.raster_format is None  # 8-bit colours
    by_pictures, by_array = fit.processor(pictures, return_tensors="pt"), fit.processor(frames, return_tensors="pt")
    assert torch.equal(by_pictures["pixel_values"], by_array["pixel_values"])
    (restored,) = fit.processor.post_process(fit.model.decompress(fit.model.compress(**by_array)))
    assert restored.dtype == np.uint8 and restored.shape == frames.shape
    assert psnr(frames, restored, 255) > 24

    pytest.importorskip("av")
    raster = RasterFormat()
    (tmp_path / "clip.mkv").write_bytes(encode_volume(frames, raster, "clip.mkv", 12.5))
    array, found, rate = read_volume(tmp_path / "clip.mkv")
    assert found.layout == "channels_last" and rate == 12.5
    np.testing.assert_array_equal(array, frames)
    small, back = tmp_path / "clip.walloc", tmp_path / "back.mkv"
    model = ["--model", str(tmp_path / "clips")]
    assert command(["compress", str(tmp_path / "clip.mkv"), "-o", str(small), *model]) == 0
    assert command(["decompress", str(small), "-o", str(back), *model]) == 0
    decoded, _, rate = read_volume(back)
    assert rate == 12.5
    np.testing.assert_array_equal(decoded, restored)


def test_video_without_pyav_says_what_to_install(tmp_path, monkeypatch, capsys, fitted):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"not read")
    assert command(["compress", str(tmp_path / "clip.mp4"), "--model", str(fitted[0])]) == 1
    assert "transformers-walloc[video]" in capsys.readouterr().err
    assert command(["compress", str(tmp_path / "clip.mp4")]) == 1
    assert "no bundled codec is for volumes" in capsys.readouterr().err


def test_training_mode_learns_and_leaves_padding_out():
    config = WallocVolumeConfig(latent_channels=4, decoder_type="residual", decoder_hidden_size=8, decoder_num_layers=1)
    model = WallocVolumeModel(config).train()
    x = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    output = model(x, original_sizes=torch.tensor([[8, 8, 8], [5, 6, 7]]))
    output.loss.backward()
    assert model.encoder.projection.weight.grad.abs().sum() > 0
    assert output.reconstruction.shape == x.shape
    changed = x.clone()
    model.eval()
    sizes = torch.tensor([[8, 8, 8], [5, 6, 7]])
    with torch.no_grad():
        reconstruction = model(x).reconstruction
        loss = model(x, original_sizes=sizes).loss
    error = (reconstruction - changed) ** 2
    kept = torch.cat([error[0].flatten(), error[1, :, :5, :6, :7].flatten()])
    torch.testing.assert_close(loss, kept.mean(), rtol=1e-2, atol=1e-3)


def test_bad_volumes_are_named():
    processor = WallocVolumeImageProcessor()
    with pytest.raises(TypeError, match="cannot be of type"):
        processor("volume.tif")
    with pytest.raises(ValueError, match="empty batch"):
        processor([])
    with pytest.raises(ValueError, match="three axes"):
        processor(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="channels"):
        WallocVolumeImageProcessor(num_channels=2)(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="num_levels is 6"):
        WallocVolumeConfig(num_levels=6)
    with pytest.raises(ValueError, match="not for volume codecs"):
        WallocVolumeConfig(decoder_type="restoration")
    with pytest.raises(ValueError, match="fewer than"):
        fit_codec([stack(8, 12)], kind="volume", **QUICK)
    mixed = [stack(), stack(channels=3)]
    with pytest.raises(ValueError, match="fit a codec to one kind"):
        fit_codec(mixed, kind="volume", **QUICK)
