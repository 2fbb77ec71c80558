"""Integer latents <-> ordinary images, as the original WaLLoC stores them: PNG (L), WebP (RGB), TIFF (CMYK).

The C latent channels are dealt out to the 1, 3 or 4 channels of the image, and what falls to one of them is tiled row
by row (`latent_to_pil` of the package walloc 1.2.1, for which C must be 1, 3 or 4 times a square number):

```
12 channels of h x w in RGB:   red 0 1   green 4 5   blue 8  9      an image of 2h x 2w
                                   2 3         6 7        10 11
```

Here any C is possible: a grid of tiles that is as square as C allows is used, and if C is not a multiple of the
image's channels, empty tiles (code 0) are added at the end. A code is stored as itself plus 2**(bits - 1). Audio
latents (C, t) are first folded to rows of `FOLD` frames, (C, ceil(t / FOLD), FOLD). `codes_from_image` undoes all of
that, given the shape of the codes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

MODES = {"L": 1, "RGB": 3, "CMYK": 4}
FORMATS = {"PNG": "L", "WEBP": "RGB", "TIFF": "CMYK"}  # lossless formats and the mode that the original stores in each
FOLD = 128


def codes_to_image(codes: np.ndarray, mode: str = "RGB", bits: int = 8) -> Image.Image:
    """The codes of one item as an image.

    Args:
        codes: whole numbers (C, h, w) or (C, t) in -2**(bits-1) .. 2**(bits-1) - 1, of any dtype.
        mode: "L", "RGB" or "CMYK".
        bits: of a code, 1..8.

    Raises:
        ValueError: an unknown mode, an empty axis, values outside of the range.
    """
    depth = _depth(mode)
    codes = np.asarray(codes)
    if codes.ndim not in (2, 3) or codes.size == 0:
        raise ValueError(f"codes must have the shape (C, t) or (C, h, w) without empty axes, got {codes.shape}")
    low, high = _range(bits)
    if codes.min() < low or codes.max() > high:
        raise ValueError(f"codes of {bits} bits lie in {low}..{high}, got {codes.min()}..{codes.max()}")
    if codes.dtype.kind == "f" and not np.array_equal(codes, np.rint(codes)):
        raise ValueError("codes must be whole numbers: quantise the latents first")
    rows, columns = tile_grid(len(codes), mode)
    if codes.ndim == 2:
        codes = fold(codes)
    height, width = codes.shape[1:]
    tiles = np.full((depth * rows * columns, height, width), -low, np.uint8)
    tiles[: len(codes)] = (codes.astype(np.int16) - low).astype(np.uint8)
    tiles = tiles.reshape(depth, rows, columns, height, width).transpose(1, 3, 2, 4, 0)
    pixels = np.ascontiguousarray(tiles).reshape(rows * height, columns * width, depth)
    if mode == "CMYK":
        return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def codes_from_image(image: Image.Image, shape: Sequence[int], bits: int = 8) -> np.ndarray:
    """The inverse of `codes_to_image`.

    Args:
        image: of mode "L", "RGB" or "CMYK", from a lossless file. Its size is checked before its pixels are decoded.
        shape: of the codes, (C, h, w) or (C, t).

    Returns:
        int8 codes of that shape.

    Raises:
        ValueError: an image of another mode, or one whose size does not fit the shape.
    """
    low, high = _range(bits)
    depth = _depth(image.mode)
    expected = _image_size(shape, image.mode)
    if image.size != expected:
        raise ValueError(
            f"codes of shape {tuple(shape)} fill {expected[0]}x{expected[1]} pixels of mode {image.mode}, "
            f"the image has {image.size[0]}x{image.size[1]}"
        )
    rows, columns = tile_grid(shape[0], image.mode)
    height, width = image.size[1] // rows, image.size[0] // columns
    pixels = np.asarray(image).reshape(rows, height, columns, width, depth)
    tiles = pixels.transpose(4, 0, 2, 1, 3).reshape(-1, height, width)[: shape[0]]
    if tiles.max() > high - low:
        raise ValueError(f"the image holds values above {high - low}: these are no codes of {bits} bits")
    codes = (tiles.astype(np.int16) + low).astype(np.int8)
    return codes if len(shape) == 3 else unfold(codes, shape[1])


def codes_to_bytes(codes: np.ndarray, format: str = "WEBP", mode: str | None = None, bits: int = 8) -> bytes:
    """The file of such an image, losslessly as WebP (the paper's choice), PNG or TIFF, as small as Pillow makes it.

    Args:
        codes, bits: see `codes_to_image`.
        format: "PNG", "WEBP" or "TIFF".
        mode: "L", "RGB" or "CMYK"; None for the one that the original stores in this format. PNG takes L and RGB, WebP
            RGB alone.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; valid: {', '.join(FORMATS)}")
    mode = FORMATS[format] if mode is None else mode
    if (format, mode) in {("WEBP", "L"), ("WEBP", "CMYK"), ("PNG", "CMYK")}:
        raise ValueError(f"{format} does not store images of mode {mode}")
    options: dict[str, dict[str, Any]] = {
        "PNG": {"optimize": True},
        "WEBP": {"lossless": True, "quality": 100, "method": 6},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    buffer = io.BytesIO()
    codes_to_image(codes, mode, bits).save(buffer, format, **options[format])
    return buffer.getvalue()


def codes_from_bytes(data: bytes, shape: Sequence[int], bits: int = 8) -> np.ndarray:
    """The inverse of `codes_to_bytes`; ValueError for what is no such file or does not fit the shape."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            return codes_from_image(image, shape, bits)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"no readable image of latents: {error}") from error


def tile_grid(num_channels: int, mode: str) -> tuple[int, int]:
    """Rows and columns of tiles in each channel of an image: as square as possible, not fewer columns than rows.

    For numbers of channels that the original takes it is its n x n.
    """
    tiles = -(-num_channels // _depth(mode))
    rows = math.isqrt(tiles)
    while tiles % rows:
        rows -= 1
    return rows, tiles // rows


def fold(codes: np.ndarray, width: int = FOLD) -> np.ndarray:
    """(C, t) -> (C, ceil(t / width), width), zeros at the end, as the original folds audio latents."""
    channels, frames = codes.shape
    return np.pad(codes, ((0, 0), (0, -frames % width))).reshape(channels, -1, width)


def unfold(codes: np.ndarray, num_frames: int) -> np.ndarray:
    """The inverse of `fold`: (C, rows, width) -> (C, num_frames)."""
    return np.ascontiguousarray(codes.reshape(len(codes), -1)[:, :num_frames])


def _depth(mode: str) -> int:
    if mode not in MODES:
        raise ValueError(f"unknown image mode {mode!r}; valid: {', '.join(MODES)}")
    return MODES[mode]


def _range(bits: int) -> tuple[int, int]:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie in 1..8, got {bits}")
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _image_size(shape: Sequence[int], mode: str) -> tuple[int, int]:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape must be (C, t) or (C, h, w) without empty axes, got {tuple(shape)}")
    rows, columns = tile_grid(shape[0], mode)
    height, width = shape[1:] if len(shape) == 3 else (-(-shape[1] // FOLD), FOLD)
    return columns * width, rows * height
