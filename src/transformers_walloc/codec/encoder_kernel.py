"""The compiled encoders: pictures of bytes or floats to latents or codes, in bands of rows.

Wavelets that overlap go through native/encoder.cpp, blocks that do not through native/block_encoder.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np
import torch

from .bottleneck import companding_scale, latent_limit
from .filter_banks import dense_matrix
from .kernels import address, check, library
from .reflection import mirrored
from .wavelets import wavelet_packet_analysis

# What the lifting steps of CDF 9/7 multiply by: odd samples, even samples, odd, even (Daubechies and Sweldens 1998).
_LIFT = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_LANES = 8
_MAX_LEVELS = 4
_BLOCKS_BEFORE, _BLOCKS_AFTER = 4, 3  # that a block's latents depend on where wavelets overlap
_TILE_ROWS, _TILE_COLUMNS = 24, 128  # blocks at a time, so that the buffers fit the caches
_PIXELS_PER_THREAD = 2**18  # below, starting one costs more than it saves
_HALF_BLOCK, _PADDED_OUTPUTS = 8, 16  # of native/block_encoder.cpp
_NOT_FINITE = 5
# Of an output's weights, those of a part of a block are left out below this: what rounding to float32 leaves.
_NEGLIGIBLE = 3e-7


class _Picture(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("is_float", "row_stride", "column_stride", "channel_stride")),
        *((name, ctypes.c_int32) for name in ("height", "width", "first_row", "num_rows", "margin")),
        *((name, ctypes.c_int32) for name in ("padded_height", "padded_width")),
    )


class _Encoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("channels", "num_levels", "outputs", "padded_outputs")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias")),
        *((name, ctypes.c_float) for name in ("scale", "limit", "step", "reserved")),
    )


class _BlockEncoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("channels", "outputs")),
        ("counts", ctypes.c_int32 * 4),
        *((name, ctypes.c_void_p) for name in ("order", "weights", "bias")),
        *((name, ctypes.c_float) for name in ("scale", "limit", "step", "reserved")),
    )


def fits_kernel(config: Any) -> bool:
    """Whether pictures of a codec can be encoded by a kernel, and it is there."""
    if config.num_dims != 2 or config.latent_bits > 8 or config.encoder_padding or library() is None:
        return False
    if blocks_around(config) == (0, 0):
        return bool(config.num_levels == 4)
    return (config.wavelet, config.boundary) == ("bior4.4", "symmetric") and 1 <= config.num_levels <= _MAX_LEVELS


def blocks_around(config: Any) -> tuple[int, int]:
    """How many blocks before and behind the latents of a block depend on."""
    return (0, 0) if config.wavelet in ("haar", "db1") else (_BLOCKS_BEFORE, _BLOCKS_AFTER)


class PictureEncoder:
    """The encoder of a codec in the layout of its kernel.

    Args:
        config: of an image codec that `fits_kernel`.
        weight: (latent_channels, subbands) of the projection, finite.
        bias: (latent_channels,).
    """

    def __init__(self, config: Any, weight: np.ndarray, bias: np.ndarray):
        self.channels, self.block = config.num_channels, 2**config.num_levels
        self.outputs = len(weight)
        self._around = blocks_around(config)
        scale, limit = math.sqrt(0.5) / companding_scale(config.latent_bits), latent_limit(config.latent_bits)
        layout = _Packets if any(self._around) else _Blocks
        # Bytes are mapped to [-0.5, 0.5] by the weights.
        self._layouts = {
            np.dtype(dtype): layout(config, weight.astype(np.float64), bias, gain, offset, scale, limit)
            for dtype, gain, offset in ((np.uint8, 1 / 255, -0.5), (np.float32, 1.0, 0.0))
        }

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
            pixels: uint8, or float32 in [-0.5, 0.5], (height, width, channels) of any strides; fastest where the
                values of a plane lie side by side, or those of three channels. Padded to whole blocks by reflection,
                as the processor does.
            step: width of a quantisation cell, for codes; None for latents.
            margin: pixels of reflection to add on each side first, a multiple of the block.
            height, first_row: of the whole picture, and where in it `pixels` start, if they are a band of its rows.
            blocks: (first, last + 1) rows of blocks to encode; `band_rows` tells which pixels they need.

        Returns:
            (latent_channels, rows, columns) int8 codes or float32 latents.

        Raises:
            ValueError: NaN or infinite values, pixels that are not there.
        """
        kernels = library()
        if kernels is None:
            raise RuntimeError("the compiled kernels are switched off")
        layout = self._layouts.get(pixels.dtype)
        if layout is None or pixels.ndim != 3 or pixels.shape[2] != self.channels or 0 in pixels.shape:
            raise ValueError(
                f"pixels must be uint8 or float32 (height, width, {self.channels}), got {pixels.dtype} {pixels.shape}"
            )
        height = len(pixels) if height is None else height
        padded = [-(-size // self.block) * self.block + 2 * margin for size in (height, pixels.shape[1])]
        first, last = (0, padded[0] // self.block) if blocks is None else blocks
        needed = band_rows(first, last, height, self.block, margin, self._around)
        if not (0 <= first < last <= padded[0] // self.block) or margin % self.block:
            raise ValueError(f"no rows of blocks {first}..{last - 1} in a picture of {height} rows, margin {margin}")
        if needed[0] < first_row or needed[1] > first_row + len(pixels):
            raise ValueError(
                f"rows of blocks {first}..{last - 1} need rows {needed[0]}..{needed[1] - 1} of the picture, got "
                f"{first_row}..{first_row + len(pixels) - 1}"
            )
        picture = _Picture(
            pixels.ctypes.data, pixels.dtype == np.float32, *pixels.strides, height, pixels.shape[1], first_row,
            len(pixels), margin, *padded,
        )  # fmt: skip
        shape = self.outputs, last - first, padded[1] // self.block
        out = np.empty(shape, np.float32 if step is None else np.int8)
        num_threads = max(1, min(num_threads, math.prod(shape[1:]) * self.block**2 // _PIXELS_PER_THREAD))
        targets = (address(out), None) if step is None else (None, address(out))
        if check(layout.run(kernels, step or 1.0, picture, (first, last - first, num_threads), targets)) == _NOT_FINITE:
            raise ValueError("pixel_values holds NaN or infinite values")
        return out


class _Packets:
    """Weights of native/encoder.cpp, for pixels that are to be multiplied by `gain` and moved by `offset`."""

    def __init__(self, config: Any, weight: np.ndarray, bias: np.ndarray, gain: float, offset: float, *bounds: float):
        channels, block, outputs = config.num_channels, 2**config.num_levels, len(weight)
        padded = -(-outputs // _LANES) * _LANES
        bands, gains = _band_layout(config.num_levels)
        weight = weight.reshape(outputs, channels, -1)
        # The mean gray goes through the lowest band alone.
        self._bias = np.zeros(padded, np.float32)
        self._bias[:outputs] = bias + offset * block * weight[:, :, 0].sum(1)
        self._weights = np.zeros((block, channels, block, padded), np.float32)
        # (outputs, channels, along x, along y) -> (along x, channels, along y, outputs)
        self._weights[..., :outputs] = (weight[:, :, bands] * (gains * gain)).transpose(2, 1, 3, 0)
        self._fields = channels, config.num_levels, outputs, padded, self._weights.ctypes.data, self._bias.ctypes.data
        self._bounds = bounds

    def run(self, kernels: Any, step: float, picture: _Picture, rows: tuple[int, ...], targets: tuple[Any, ...]) -> int:
        encoder = _Encoder(*self._fields, *self._bounds, step)
        arguments = ctypes.byref(encoder), ctypes.byref(picture), *rows, _TILE_ROWS, _TILE_COLUMNS
        return int(kernels.walloc_encode(*arguments, *targets))


class _Blocks:
    """Weights of native/block_encoder.cpp, as for `_Packets`."""

    def __init__(self, config: Any, weight: np.ndarray, bias: np.ndarray, gain: float, offset: float, *bounds: float):
        channels, block, outputs = config.num_channels, 2**config.num_levels, len(weight)
        images = torch.eye(block**2, dtype=torch.float64).view(-1, 1, block, block)
        bands = wavelet_packet_analysis(images, config.num_levels, config.wavelet, config.boundary).flatten(1).numpy()
        pixels = (weight.reshape(outputs, channels, -1) @ bands.T).reshape(outputs, channels, block, block)
        self._bias = (bias + offset * pixels.sum((1, 2, 3))).astype(np.float32)
        sizes = np.sqrt(np.sum(pixels**2, (1, 2, 3)))
        half, order, parts, counts = _HALF_BLOCK, [], [], []
        for along_y, along_x in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            part = (pixels + along_y * pixels[:, :, ::-1])[:, :, :half] / 2
            part = (part + along_x * part[..., ::-1])[..., :half] / 2
            used = np.flatnonzero(2 * np.sqrt(np.sum(part**2, (1, 2, 3))) > _NEGLIGIBLE * sizes)
            laid = np.zeros((channels, half, half, -(-len(used) // _PADDED_OUTPUTS) * _PADDED_OUTPUTS), np.float32)
            laid[..., : len(used)] = (part[used] * gain).transpose(1, 2, 3, 0)
            order.append(used)
            parts.append(laid.ravel())
            counts.append(len(used))
        self._order, self._weights = np.concatenate(order).astype(np.int32), np.concatenate(parts)
        addresses = (array.ctypes.data for array in (self._order, self._weights, self._bias))
        self._fields = channels, outputs, (ctypes.c_int32 * 4)(*counts), *addresses
        self._bounds = bounds

    def run(self, kernels: Any, step: float, picture: _Picture, rows: tuple[int, ...], targets: tuple[Any, ...]) -> int:
        encoder = _BlockEncoder(*self._fields, *self._bounds, step)
        return int(kernels.walloc_encode_blocks(ctypes.byref(encoder), ctypes.byref(picture), *rows, *targets))


def band_rows(
    first: int,
    last: int,
    height: int,
    block: int,
    margin: int = 0,
    around: tuple[int, int] = (_BLOCKS_BEFORE, _BLOCKS_AFTER),
) -> tuple[int, int]:
    """Rows of pixels (start, stop) that rows of blocks first..last - 1 are computed from.

    Args:
        around: blocks before and behind that a block's latents depend on.
    """
    start, stop = (first - around[0]) * block - margin, (last + around[1]) * block - margin
    first_row, end = max(start, -margin), min(stop, -(-height // block) * block + margin)
    rows = mirrored(first_row, end, height, torch.device("cpu"))
    return int(rows.min()), int(rows.max()) + 1


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
