"""Integer latents <-> bytes: a range coder whose probabilities come from small context networks in exact integers.

```
codes (C, h, w) or (C, t)
  groups of channels, largest variance first; in each group a few passes over a refining lattice
  pass: features of what is already known                 (K, n) small integers held in float32
        -> matrix product, clipped ramp, matrix product    every sum below 2**24, so exact in any order
        -> expected value in 1/8 of a code, scale class    row number of a table of 16-bit frequencies
        -> range coder of `constriction`                   one call for the whole pass
```

Why it is built this way:

* *Neighbours.* A raster scan, whose every code sees W, N, NW and NE, is better in the first channels, which are smooth
  (1-10% there with least squares). But it is a loop over codes, which numpy cannot run at millions of codes a second; a
  refining lattice (every 2**n-th position, then the positions between) takes a handful of steps. In the later channels
  the neighbours in earlier channels, known on all sides, carry nearly all of the information.
* *Networks.* Least-squares prediction with contexts of summed magnitudes is the classical choice; one hidden layer
  of ramps on the same inputs is 5% smaller, because it also sees differences and products. The matrix product runs
  at tens of GFLOP/s, so the networks cost about as much as the arithmetic coder.
* *Exactness.* A float32 sum of integers is exact, whatever the order, BLAS, thread count or use of FMA, as long as no
  partial sum reaches 2**24. `Network` proves that bound for its weights when it is built. Everything else is scaling
  by powers of two, floor and comparison. So encoder and decoder agree bit by bit on all machines.
* *Coder.* `constriction` takes one row of frequencies per symbol at 25-45 ns; sorting symbols by context, or a model
  object for each context, was no faster. The compiled kernel (`entropy_kernel.py`) runs the same passes position by
  position and leaves out the features that are zero.

`docs/concepts/entropy_coding.md` describes the bytes: the mean magnitude of each channel in a
byte (for generic tables 4 bytes per channel, `GenericHeader`), then the range coder's 32-bit words, little endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np

from .entropy_context import INPUT_MAX, Key, mean_magnitudes, walk
from .entropy_kernel import kernel_levels
from .entropy_tables import CLASS_SHIFT, NUM_PHASES, NUM_SYMBOLS, WINDOW, EntropyTables, GenericHeader
from .kernels import library

__all__ = ["EntropyTables", "decode_codes", "encode_codes"]

_ROW_SHIFT = np.repeat(CLASS_SHIFT, NUM_PHASES)
_ROWS = constriction.stream.model.Categorical(perfect=False)
_PLAIN_BITS = constriction.stream.model.Uniform()
_ANY_CODE = constriction.stream.model.Uniform(256)


def encode_codes(codes: np.ndarray, tables: EntropyTables) -> bytes:
    """Code the latents of one item as bytes.

    Args:
        codes: int8 (C, h, w) or (C, t); C may be the first few of the tables' channels.
        tables: fitted or default tables; `decode_codes` needs the same ones.

    Raises:
        TypeError: codes of another dtype.
        ValueError: an empty axis, or a shape that the tables are not for.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}")
    _check_shape(codes.shape, tables)
    if tables.ndim == 0:
        generic = GenericHeader.measure(codes)
        header, levels, tables = generic.values.tobytes(), generic.values[:, 3], generic.tables(codes.ndim - 1)
    else:
        measured = kernel_levels(codes)
        levels = mean_magnitudes(codes) if measured is None else measured
        header = levels.tobytes()
    words = tables.kernel.encode(codes, levels) if library() and tables.kernel else None
    return header + (_encode_words(codes, tables, levels) if words is None else words)


def _encode_words(codes: np.ndarray, tables: EntropyTables, levels: np.ndarray) -> bytes:
    """The range coder's words, little endian, by numpy."""
    planes = codes.reshape(len(codes), -1, codes.shape[-1])
    encoder = constriction.stream.queue.RangeEncoder()

    def code(key: Key, features: np.ndarray, where: tuple[Any, ...]) -> np.ndarray:
        target: np.ndarray = planes[where].astype(np.int32)
        values = target.ravel()
        expected, rows = _predict(tables, key, features, values.size)
        residuals, shifts = values - expected, _ROW_SHIFT[rows]
        wide = np.flatnonzero(shifts)
        bins = residuals
        if wide.size:
            bins, shift = residuals.copy(), shifts[wide]
            offset = residuals[wide] + (1 << shift >> 1)
            bins[wide] = offset >> shift
        symbols = np.minimum(bins + WINDOW, NUM_SYMBOLS - 1)
        escapes = np.flatnonzero((symbols < 0) | (symbols == NUM_SYMBOLS - 1))
        symbols[escapes] = NUM_SYMBOLS - 1
        encoder.encode(symbols, _ROWS, tables.frequencies.take(rows, 0))
        if wide.size:
            encoder.encode(offset & ((1 << shift) - 1), _PLAIN_BITS, 1 << shift)
        if escapes.size:
            encoder.encode(values[escapes] + 128, _ANY_CODE)
        return target

    walk(codes.shape, tables.plan, levels, code)
    words: np.ndarray = encoder.get_compressed()
    return words.astype("<u4").tobytes()


def decode_codes(data: bytes, shape: Sequence[int], tables: EntropyTables) -> np.ndarray:
    """The inverse of `encode_codes`.

    Any bytes give codes of the given shape or ValueError, in time and memory bounded by the shape. Damage that is not
    noticed gives wrong codes: keep a checksum beside the bytes.

    Raises:
        ValueError: damaged data, an empty axis, or a shape that the tables are not for.
    """
    shape = tuple(int(size) for size in shape)
    _check_shape(shape, tables)
    if tables.ndim == 0:
        generic, data = GenericHeader.parse(data, shape[0])
        levels, tables = generic.values[:, 3], generic.tables(len(shape) - 1)
    else:
        if len(data) < shape[0]:
            raise ValueError(f"damaged codes: {len(data)} bytes are too short for the levels of {shape[0]} channels")
        levels, data = np.frombuffer(data[: shape[0]], np.uint8), data[shape[0] :]
        if levels.max() > INPUT_MAX:
            raise ValueError(f"damaged codes: a level of {levels.max()}, above {INPUT_MAX}")
    if len(data) % 4:
        raise ValueError(f"damaged codes: {len(data)} bytes are no whole number of 32-bit words")
    codes = tables.kernel.decode(data, levels, shape) if library() and tables.kernel else None
    return _decode_words(data, shape, tables, levels) if codes is None else codes


def _decode_words(data: bytes, shape: tuple[int, ...], tables: EntropyTables, levels: np.ndarray) -> np.ndarray:
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    out = np.empty(shape, np.int8)
    planes = out.reshape(shape[0], -1, shape[-1])

    def code(key: Key, features: np.ndarray, where: tuple[Any, ...]) -> np.ndarray:
        target: np.ndarray = planes[where]
        expected, rows = _predict(tables, key, features, target.size)
        values = decoder.decode(_ROWS, tables.frequencies.take(rows, 0))
        values -= WINDOW
        escapes = np.flatnonzero(values == NUM_SYMBOLS - 1 - WINDOW)
        shifts = _ROW_SHIFT[rows]
        wide = np.flatnonzero(shifts)
        if wide.size:
            shift = shifts[wide]
            values[wide] = (values[wide] << shift) - (1 << shift >> 1) + decoder.decode(_PLAIN_BITS, 1 << shift)
        values += expected
        if escapes.size:
            values[escapes] = decoder.decode(_ANY_CODE, escapes.size) - 128
        # Only damaged data leaves int8; wrapping keeps the features, and with them the sums, in their range.
        target[...] = values.astype(np.int8).reshape(target.shape)
        return target

    try:
        walk(shape, tables.plan, levels, code)
    except AssertionError as error:  # what constriction raises for words that no encoder writes
        raise ValueError(f"damaged codes: {error}") from error
    if not decoder.maybe_exhausted():
        raise ValueError("damaged codes: data are left over")
    return out


def _predict(tables: EntropyTables, key: Key, features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    # The last group may be cut off: its first channels come first.
    expected, rows = tables.networks[key](features)
    return expected[:count], rows[:count]


def _check_shape(shape: tuple[int, ...], tables: EntropyTables) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"codes must have the shape (C, t) or (C, h, w) without empty axes, got {shape}")
    if tables.ndim not in (0, len(shape) - 1):
        raise ValueError(f"the entropy tables are for codes of {tables.ndim + 1} axes, the shape is {shape}")
    if shape[0] > tables.num_channels:
        raise ValueError(f"codes have {shape[0]} channels, the entropy tables {tables.num_channels}")
