"""The compiled encoder (native/encoder.cpp): 8-bit pictures to latents or codes without a picture of floats."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np

from .bottleneck import companding_scale, latent_limit
from .filter_banks import dense_matrix
from .kernels import address, check, library

# What the lifting steps of CDF 9/7 multiply by: odd samples, even samples, odd, even (Daubechies and Sweldens 1998).
_LIFT = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_LANES = 8
_MAX_LEVELS = 4
BLOCKS_BEFORE, BLOCKS_AFTER = 4, 3  # that a block's latents depend on
_TILE_ROWS, _TILE_COLUMNS = 24, 128  # blocks at a time, so that the buffers fit the caches
_PIXELS_PER_THREAD = 2**18  # below, starting one costs more than it saves


class _Picture(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row_stride", "column_stride", "channel_stride")),
        *((name, ctypes.c_int32) for name in ("height", "width", "first_row", "num_rows", "margin")),
        *((name, ctypes.c_int32) for name in ("padded_height", "padded_width")),
    )


class _Encoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("channels", "num_levels", "outputs", "padded_outputs")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias")),
        *((name, ctypes.c_float) for name in ("scale", "limit", "step", "reserved")),
    )


def fits_kernel(config: Any) -> bool:
    """Whether pictures of a codec can be encoded by the kernel, and it is there."""
    return (
        config.num_dims == 2
        and (config.wavelet, config.boundary) == ("bior4.4", "symmetric")
        and 1 <= config.num_levels <= _MAX_LEVELS
        and config.latent_bits <= 8
        and not config.encoder_padding
        and library() is not None
    )


class PictureEncoder:
    """The encoder of a codec in the kernel's layout.

    Args:
        config: of an image codec that `fits_kernel`.
        weight: (latent_channels, subbands) of the projection, finite.
        bias: (latent_channels,).
    """

    def __init__(self, config: Any, weight: np.ndarray, bias: np.ndarray):
        self.channels, self.block = config.num_channels, 2**config.num_levels
        self.outputs = len(weight)
        padded = -(-self.outputs // _LANES) * _LANES
        bands, gains = _band_layout(config.num_levels)
        weight = weight.astype(np.float64).reshape(self.outputs, self.channels, -1)
        # Pixels are 0..255, which are mapped to [-0.5, 0.5]: the mean gray goes through the lowest band alone.
        self._bias = np.zeros(padded, np.float32)
        self._bias[: self.outputs] = bias.astype(np.float64) - 0.5 * self.block * weight[:, :, 0].sum(1)
        self._weights = np.zeros((self.block, self.channels, self.block, padded), np.float32)
        # (outputs, channels, along x, along y) -> (along x, channels, along y, outputs)
        self._weights[..., : self.outputs] = (weight[:, :, bands] * (gains / 255)).transpose(2, 1, 3, 0)
        self._scale = math.sqrt(0.5) / companding_scale(config.latent_bits)
        self._limit = latent_limit(config.latent_bits)
        self._num_levels = config.num_levels

    def encode(
        self,
        pixels: np.ndarray,
        step: float | None = None,
        margin: int = 0,
        num_threads: int = 1,
        height: int | None = None,
        first_row: int = 0,
        blocks: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """
        Args:
            pixels: uint8 (height, width, channels) of any strides; padded to whole blocks by reflection, as the
                processor does.
            step: width of a quantisation cell, for codes; None for latents.
            margin: pixels of reflection to add on each side first, a multiple of the block.
            height, first_row: of the whole picture, and where in it `pixels` start, if they are a band of its rows.
            blocks: (first, last + 1) rows of blocks to encode; `band_rows` tells which pixels they need.

        Returns:
            (latent_channels, rows, columns) int8 codes or float32 latents.
        """
        kernels = library()
        if kernels is None:
            raise RuntimeError("the compiled kernels are switched off")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self.channels or 0 in pixels.shape:
            raise ValueError(
                f"pixels must be uint8 (height, width, {self.channels}), got {pixels.dtype} {pixels.shape}"
            )
        height = len(pixels) if height is None else height
        padded = [-(-size // self.block) * self.block + 2 * margin for size in (height, pixels.shape[1])]
        first, last = (0, padded[0] // self.block) if blocks is None else blocks
        needed = band_rows(first, last, height, self.block, margin)
        if not (0 <= first < last <= padded[0] // self.block) or margin % self.block:
            raise ValueError(f"no rows of blocks {first}..{last - 1} in a picture of {height} rows, margin {margin}")
        if needed[0] < first_row or needed[1] > first_row + len(pixels):
            raise ValueError(
                f"rows of blocks {first}..{last - 1} need rows {needed[0]}..{needed[1] - 1} of the picture, got "
                f"{first_row}..{first_row + len(pixels) - 1}"
            )
        picture = _Picture(
            pixels.ctypes.data, *pixels.strides, height, pixels.shape[1], first_row, len(pixels), margin, *padded
        )
        encoder = _Encoder(
            self.channels,
            self._num_levels,
            self.outputs,
            self._bias.size,
            self._weights.ctypes.data,
            self._bias.ctypes.data,
            self._scale,
            self._limit,
            1.0 if step is None else step,
        )
        shape = self.outputs, last - first, padded[1] // self.block
        out = np.empty(shape, np.float32 if step is None else np.int8)
        num_threads = max(1, min(num_threads, math.prod(shape[1:]) * self.block**2 // _PIXELS_PER_THREAD))
        targets = (address(out), None) if step is None else (None, address(out))
        check(
            kernels.walloc_encode(
                ctypes.byref(encoder), ctypes.byref(picture), first, last - first, num_threads, _TILE_ROWS,
                _TILE_COLUMNS, *targets,
            )
        )  # fmt: skip
        return out


def band_rows(first: int, last: int, height: int, block: int, margin: int = 0) -> tuple[int, int]:
    """Rows of pixels (start, stop) that rows of blocks first..last - 1 are computed from."""
    start, stop = (first - BLOCKS_BEFORE) * block - margin, (last + BLOCKS_AFTER) * block - margin
    rows = np.arange(max(start, -margin), min(stop, -(-height // block) * block + margin))
    period = max(2 * (height - 1), 1)
    mirrored = rows % period
    mirrored = np.where(mirrored > height - 1, 2 * (height - 1) - mirrored, mirrored)
    return int(mirrored.min()), int(mirrored.max()) + 1


@functools.cache
def _band_layout(num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the place (x, y) in a lifted block: the number of its band in public order, and the band's gain."""
    low, high = _lifting_gains()
    place = np.arange(2**num_levels)
    number = np.zeros((2**num_levels, 2**num_levels), np.int64)
    gains = np.ones(number.shape)
    for level in range(num_levels):  # the finest split leaves its bands in the lowest bit of the place
        along = place >> level & 1
        number |= (along[None] | along[:, None] << 1) << 2 * (num_levels - 1 - level)
        gain = np.where(along, high, low)
        gains *= gain[None] * gain[:, None]
    return number, gains


@functools.cache
def _lifting_gains() -> tuple[float, float]:
    """What the low and the high band of lifting are multiplied by to be those of `filter_banks`."""
    size, middle = 64, 20
    lifted = np.eye(size)
    for step, factor in enumerate(_LIFT):
        odd = step % 2 == 0
        around = np.pad(lifted, ((1, 1), (0, 0)), mode="reflect")
        lifted[odd::2] += factor * (around[:-2] + around[2:])[odd::2]
    matrix = dense_matrix("analysis", 1, "bior4.4", "symmetric", size)
    low, high = (float(matrix[row] @ lifted[row] / (lifted[row] @ lifted[row])) for row in (middle, middle + 1))
    return low, high
