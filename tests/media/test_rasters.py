"""Rasters and volumes in files: what a TIFF says of its samples comes back, as tifffile reads it."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.raster_format import RasterFormat
from transformers_walloc.codec.tiff_tags import pack_tags, unpack_tags
from transformers_walloc.codec.varints import WallocFormatError
from transformers_walloc.media.messages import MediaError, MediaWarning
from transformers_walloc.media.rasters import compress_raster, decompress_raster, encode_raster, read_raster
from transformers_walloc.media.volumes import read_volume

LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    config = WallocImageConfig(num_channels=1, num_levels=2, latent_channels=16, decoder_type="linear")
    return WallocImageModel(config).eval()


def there_and_back(codec, path):
    """The page that tifffile finds in what `walloc compress` and `decompress` make of a TIFF."""
    blob = compress_raster(codec, *read_raster(path))
    back = path.with_name("back.tif")
    back.write_bytes(encode_raster(*decompress_raster(codec, blob), str(back)))
    with tifffile.TiffFile(back) as file:
        return file.pages[0].asarray(), {tag.code: tag.value for tag in file.pages[0].tags}


def hills(shape=(40, 48)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return 500 + 300 * np.sin(y / 9) * np.cos(x / 7)


@pytest.mark.parametrize("text", [repr(LOWEST), "-3.40282e+38"])
def test_the_number_for_missing_samples_is_that_of_the_type(codec, tmp_path, text):
    values = hills().astype(np.float32)
    values[5:9, 3:20] = LOWEST
    tifffile.imwrite(tmp_path / "dem.tif", values, metadata=None, extratags=[(42113, 2, None, text, True)])
    found, tags = there_and_back(codec, tmp_path / "dem.tif")
    assert np.float32(float(tags[42113])) == np.float32(LOWEST)
    assert np.array_equal(found == LOWEST, values == LOWEST)
    assert found[found != LOWEST].min() > 0
    there_and_back(codec, tmp_path / "back.tif")  # again


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("uint16", 700), ("uint8", 255), ("float32", 500.0)])
def test_valid_samples_never_become_the_number_for_missing_ones(dtype, nodata):
    low, high = {"uint16": (0, 1023), "uint8": (0, 255), "float32": (200.0, 800.0)}[dtype]
    raster = RasterFormat(dtype=dtype, low=low, high=high, nodata=nodata, layout="single")
    unit = np.linspace(-0.5, 0.5, 4800 * 10 + 1).reshape(1, 1, -1)[:, :, :-1].reshape(1, 40, -1)
    unit[0, 0, :4] = -2, 2, (nodata - low) / (high - low) - 0.5, 0.5
    mask = np.zeros(unit.shape[1:], bool)
    mask[3, 4:9] = True
    found = raster.from_unit(unit, mask)[0]
    assert np.array_equal(found == np.array(nodata, dtype), mask)
    exact = (np.clip(unit[0], -0.5, 0.5) + 0.5) * (high - low) + low
    assert np.abs(found.astype(float) - exact)[~mask].max() <= (1.01 if dtype != "float32" else 1e-3)


@pytest.mark.parametrize(
    ("dtype", "text"), [("uint8", "-9999"), ("uint16", "nan"), ("uint16", "0.5"), ("int16", "1e30")]
)
def test_a_number_that_no_sample_can_be_is_not_used_and_said(tmp_path, dtype, text):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (hills() / 4).astype(dtype), metadata=None, extratags=[(42113, 2, None, text, True)])
    with pytest.warns(MediaWarning, match=rf"a\.tif: its number for missing samples.*{dtype}"):
        assert read_raster(path)[1].nodata is None


def test_words_in_the_place_of_the_number_are_passed_over(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, hills().astype(np.uint16), metadata=None, extratags=[(42113, 2, None, "none", True)])
    assert read_raster(path)[1].nodata is None


def test_georeferencing_orientation_and_white_at_zero_come_back(codec, tmp_path):
    given = {
        33550: (12, (10.0, 10.0, 0.0)),
        33922: (12, (0.0, 0.0, 0.0, 440720.1, 3751320.7, 0.0)),
        34735: (3, (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1)),
        34737: (2, b"WGS 84|\0"),
    }
    extra = [(n, kind, len(value), value, True) for n, (kind, value) in {**given, 274: (3, (6,))}.items()]
    path = tmp_path / "geo.tif"
    tifffile.imwrite(path, hills().astype(np.uint16), metadata=None, photometric="miniswhite", extratags=extra)
    found, tags = there_and_back(codec, path)
    assert found.shape == hills().shape and tags[274] == 6 and tags[262] == 0  # as stored
    for number, (kind, value) in given.items():
        assert tags[number] == (value.rstrip(b"\0").decode() if kind == 2 else value)


def test_files_without_such_tags_have_no_field_for_them(codec, tmp_path):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, hills().astype(np.uint16), metadata=None)
    header, _ = unpack(compress_raster(codec, *read_raster(path)))
    assert not header.side_data and header.raster


def test_tags_of_hostile_files_are_refused():
    tags = pack_tags({274: (3, 6), 33550: (12, (1.0, 2.0, 3.0)), 305: (2, "not kept")})
    assert unpack_tags(tags) == {274: (3, (6,)), 33550: (12, (1.0, 2.0, 3.0))}
    for damaged in (
        tags[:-1],
        tags[10:] + tags[:10],
        struct.pack("<HHI", 305, 3, 0),
        struct.pack("<HHI", 274, 3, 2**31),
    ):
        with pytest.raises(WallocFormatError):
            unpack_tags(damaged)


def sparse_tiff(width: int, height: int) -> bytes:
    """A TIFF of one strip that holds less than it states, made by hand."""
    strip = zlib.compress(bytes(64))
    entries = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, height), (279, 4, len(strip))]
    directory = struct.pack("<H", len(entries))
    for number, kind, value in entries:
        directory += struct.pack("<HHII", number, kind, 1, value)
    offset = 8 + len(strip) + len(strip) % 2
    return b"II*\0" + struct.pack("<I", offset) + strip + bytes(len(strip) % 2) + directory + bytes(4)


def test_large_rasters_are_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    for owner in (tifffile.TiffPage, tifffile.TiffPageSeries):
        monkeypatch.setattr(owner, "asarray", lambda *_, **__: pytest.fail("the samples were decoded"))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the samples were read"))
    path = tmp_path / "bomb.tif"
    path.write_bytes(sparse_tiff(20000, 20000))
    with pytest.raises(MediaError, match=r"bomb\.tif: 20000 x 20000 pixels, more than the limit of 67108864"):
        read_raster(path)
    path = tmp_path / "bomb.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (224, 1000, 1500)})
    with pytest.raises(MediaError, match=r"1500 x 1000 pixels of 224 bands, which count as 112000000, more"):
        read_raster(path)
    with pytest.raises(MediaError, match=r"224 x 1500 x 1000 pixels, more than the limit of 1000000"):
        read_volume(path, max_voxels=10**6)


def test_volumes_know_missing_samples_and_limits(tmp_path):
    stack = np.stack([hills()] * 6).astype(np.float32)
    stack[2, 3:5] = -1
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack, metadata={"axes": "ZYX"}, extratags=[(42113, 2, None, "-1", True)])
    array, raster, _ = read_volume(path)
    assert raster.nodata == -1 and raster.low > 100 and array.shape == stack.shape
    with pytest.raises(MediaError, match=r"6 x 48 x 40 pixels, more than the limit of 1000"):
        read_volume(path, max_voxels=1000)


DAMAGED = (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<u2'\n", b"II*\0\x08\0\0\0\xff\xff", b"", b"MM\0*" + bytes(40))


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_damaged_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    for read in (read_raster, read_volume):
        with pytest.raises(MediaError, match=r"bad\.(npy|tif)"):
            read(path)
