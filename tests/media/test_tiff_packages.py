"""TIFF files that only an optional package reads: every reader names it with the command that installs it."""

import importlib
import io
import struct
import sys
import warnings

import numpy as np
import PIL.Image
import pytest
import tifffile

from transformers_walloc.codec.image_sources import open_source
from transformers_walloc.media.messages import MediaError
from transformers_walloc.media.pictures import read_opaque, read_picture
from transformers_walloc.media.rasters import encode_raster, read_raster
from transformers_walloc.media.volumes import encode_volume, read_volume

COMMAND = r"pip install 'transformers-walloc\[rasters\]'"
LZW = rf"LZW coding of TIFF files needs imagecodecs: {COMMAND}"
COLOURS = (np.random.default_rng(0).integers(0, 65536, (12, 20, 3))).astype(np.uint16)


def lzw(data: bytes) -> bytes:
    """As TIFF wants it, of single bytes alone: tables are cleared before codes become longer than nine bits."""
    codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def tiff(array: np.ndarray, pages: int = 1, **options) -> bytes:
    """A TIFF of LZW; `array` holds each page or plane in turn."""
    file = io.BytesIO()
    planes = array if pages > 1 or options.get("planarconfig") == "separate" else array[None]
    tifffile.imwrite(
        file, (lzw(plane.tobytes()) for plane in planes), shape=array.shape, dtype=array.dtype, compression="zlib",
        rowsperstrip=array.shape[-2 if planes is array else 0], predictor=False, metadata=None, byteorder="<",
        **options,
    )  # fmt: skip
    deflate, as_lzw = (struct.pack("<HHIHH", 259, 3, 1, number, 0) for number in (8, 5))
    return file.getvalue().replace(deflate, as_lzw)


@pytest.fixture
def without_imagecodecs(monkeypatch):
    """As tifffile is where imagecodecs is not installed."""
    own = importlib.import_module("tifffile._imagecodecs")
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", own)
    monkeypatch.setattr(tifffile.TIFF.DECOMPRESSORS, "_codecs", {1: tifffile.TIFF.DECOMPRESSORS[1]})


def test_colours_of_16_bits(without_imagecodecs):
    """Pillow reads half of their bits: that is said, and how to have all."""
    data = tiff(COLOURS, photometric="rgb")
    for read in (read_picture, read_opaque):
        with pytest.warns(UserWarning, match=f"a.tif: samples of more than 8 bits are kept with 8 bits: {LZW}"):
            picture = read("a.tif", data)
        assert np.array_equal(picture.pixels, COLOURS >> 8)


def test_sources_of_processors(without_imagecodecs, caplog):
    import logging

    with caplog.at_level(logging.WARNING, "transformers"):
        logging.getLogger("transformers").propagate = True
        found = open_source(tiff(COLOURS, photometric="rgb"))
        logging.getLogger("transformers").propagate = False
    assert np.array_equal(found.pixels, COLOURS >> 8)
    assert "needs imagecodecs: pip install" in caplog.text


PLANES = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "read, data",
    [
        (read_picture, tiff(PLANES, photometric="rgb", planarconfig="separate")),
        (read_opaque, tiff(PLANES, photometric="rgb", planarconfig="separate")),
        (read_raster, tiff(COLOURS, photometric="rgb")),
        (read_raster, tiff(COLOURS[..., 0], photometric="minisblack")),
        (read_volume, tiff(PLANES, 3, photometric="minisblack")),
    ],
)
def test_what_is_not_read_at_all(read, data, without_imagecodecs):
    with pytest.raises(MediaError, match=f"a.tif: .*{LZW}"):
        read("a.tif", data)


def test_all_bits_with_imagecodecs():
    pytest.importorskip("imagecodecs")
    data = tiff(COLOURS, photometric="rgb")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_picture("a.tif", data).pixels, COLOURS)
        assert np.array_equal(read_raster("a.tif", data)[0], COLOURS)
        assert np.array_equal(read_volume("a.tif", tiff(PLANES, 3, photometric="minisblack"))[0], PLANES)


def test_no_tifffile(monkeypatch):
    data, gray = tiff(COLOURS, photometric="rgb"), tiff(COLOURS[..., 0], photometric="minisblack")
    needs = f"a.tif: .*TIFF files need tifffile: {COMMAND}"
    array, raster = read_raster("a.npy", npy(PLANES))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.warns(UserWarning, match=needs):
        read_picture("a.tif", data)
    assert np.array_equal(read_picture("a.tif", gray).pixels, COLOURS[..., 0])  # which Pillow reads
    for read in (read_raster, read_volume):
        with pytest.raises(MediaError, match=needs):
            read("a.tif", data)
    for encode in (encode_raster, encode_volume):
        with pytest.raises(MediaError, match=needs):
            encode(array, raster, "a.tif")


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_files_of_these_tests():
    """Pillow's own reading of them."""
    with PIL.Image.open(io.BytesIO(tiff(COLOURS[..., 0], photometric="minisblack"))) as image:
        assert np.array_equal(np.asarray(image), COLOURS[..., 0])
