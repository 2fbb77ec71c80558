"""Latents as images: lossless both ways, and pixel for pixel what the package `walloc` writes and reads."""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_walloc.latents.packing import (
    FORMATS,
    MODES,
    codes_from_bytes,
    codes_from_image,
    codes_to_bytes,
    codes_to_image,
    fold,
    tile_grid,
    unfold,
)


def codes_of(shape, seed=0, bits=8):
    high = 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(-high, high, shape).astype(np.int8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize(
    ("channels", "mode"), [(16, "L"), (12, "RGB"), (48, "RGB"), (108, "RGB"), (16, "CMYK"), (4, "CMYK")]
)
def test_same_pixels_as_the_original(original, channels, mode, bits):
    codes = codes_of((channels, 5, 7), bits=bits)
    (theirs,) = original.latent_to_pil(torch.from_numpy(codes)[None].float(), bits, MODES[mode])
    ours = codes_to_image(codes, mode, bits)
    assert ours.mode == theirs.mode and ours.size == theirs.size and ours.tobytes() == theirs.tobytes()
    back = original.pil_to_latent([ours], channels, bits, MODES[mode])[0].numpy()
    assert np.array_equal(back, codes)
    assert np.array_equal(codes_from_image(theirs, codes.shape, bits), codes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("format", "channels"), [("PNG", 16), ("WEBP", 12), ("TIFF", 16)])
def test_reads_files_of_the_original(original, format, channels):
    codes = codes_of((channels, 8, 6), seed=1)
    (image,) = original.latent_to_pil(torch.from_numpy(codes)[None].float(), 8, MODES[FORMATS[format]])
    buffer = io.BytesIO()
    image.save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(codes_from_bytes(buffer.getvalue(), codes.shape), codes)


def test_tiles_lie_where_the_picture_shows():
    codes = np.arange(12, dtype=np.int8).reshape(12, 1, 1)
    pixels = np.asarray(codes_to_image(codes)).astype(int) - 128
    assert pixels[..., 0].tolist() == [[0, 1], [2, 3]]
    assert pixels[..., 2].tolist() == [[8, 9], [10, 11]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [(1, 3, 4), (2, 5, 1), (7, 4, 4), (13, 3, 2), (27, 200), (108, 129), (5, 1), (3, 128)]
)
def test_any_number_of_channels(mode, shape):
    codes = codes_of(shape)
    again = codes_from_image(codes_to_image(codes, mode), shape)
    assert again.dtype == np.int8 and np.array_equal(again, codes)


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", None), ("PNG", "RGB"), ("WEBP", None), ("TIFF", None), ("TIFF", "L")]
)
def test_files_are_lossless(format, mode):
    for shape in ((12, 16, 12), (27, 150)):
        codes = codes_of(shape, seed=2)
        data = codes_to_bytes(codes, format, mode)
        assert Image.open(io.BytesIO(data)).mode == (mode or FORMATS[format])
        assert np.array_equal(codes_from_bytes(data, shape), codes)


def test_grids_are_square_where_they_can_be():
    assert [tile_grid(c, "RGB") for c in (12, 27, 48, 108)] == [(2, 2), (3, 3), (4, 4), (6, 6)]
    assert tile_grid(12, "L") == (3, 4) and tile_grid(1, "CMYK") == (1, 1) and tile_grid(7, "L") == (1, 7)


def test_folding():
    codes = codes_of((2, 300))
    folded = fold(codes)
    assert (
        folded.shape == (2, 3, 128)
        and np.array_equal(folded[:, 1, :3], codes[:, 128:131])
        and not folded[:, 2, 44:].any()
    )
    assert np.array_equal(unfold(folded, 300), codes)


def test_whole_floats_are_taken():
    codes = codes_of((3, 2, 2))
    assert np.array_equal(codes_from_image(codes_to_image(codes.astype(np.float32)), codes.shape), codes)
    with pytest.raises(ValueError, match="whole"):
        codes_to_image(codes + 0.5, "RGB")


def test_misuse():
    codes = codes_of((12, 4, 4))
    image = codes_to_image(codes)
    with pytest.raises(ValueError, match="mode 'P'"):
        codes_to_image(codes, "P")
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        codes_to_image(codes, bits=4)
    with pytest.raises(ValueError, match="bits"):
        codes_to_image(codes, bits=9)
    with pytest.raises(ValueError, match="shape"):
        codes_to_image(codes[0, 0])
    with pytest.raises(ValueError, match="8x8"):
        codes_from_image(image, (12, 4, 5))
    with pytest.raises(ValueError, match="empty axes"):
        codes_from_image(image, (12, 0, 4))
    with pytest.raises(ValueError, match="mode 'P'"):
        codes_from_image(image.convert("P"), (12, 4, 4))
    with pytest.raises(ValueError, match="above 15"):
        codes_from_image(image, (12, 4, 4), bits=4)
    with pytest.raises(ValueError, match="GIF"):
        codes_to_bytes(codes, "GIF")
    with pytest.raises(ValueError, match="mode CMYK"):
        codes_to_bytes(codes, "PNG", "CMYK")


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_files():
    codes = codes_of((12, 8, 8))
    rng = np.random.default_rng(3)
    for format in FORMATS:
        data = codes_to_bytes(codes, format, "RGB")
        for _ in range(40):
            bad = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.5 else data)
            for place in rng.integers(0, max(len(bad), 1), 3):
                if bad:
                    bad[place] ^= 1 << rng.integers(8)
            with contextlib.suppress(ValueError):
                assert codes_from_bytes(bytes(bad), codes.shape).shape == codes.shape
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="16x16"):
        codes_from_bytes(buffer.getvalue(), codes.shape)
