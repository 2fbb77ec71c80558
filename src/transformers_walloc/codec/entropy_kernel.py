"""The compiled inner loops of the entropy coder (native/entropy.cpp): its tables, and arrays in and out.

The kernel takes pairs of features at a time, which are zero together where they can be: code and magnitude of a
place, mean magnitudes along both axes, codes on opposite sides.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from .entropy_context import MAGNITUDE, SHIFTED_CHANNELS, Plan, lattice
from .kernels import address, check, library

PRECISION = 24  # bits of the range coder's probabilities
_HALF, _LANES, _UNITS, _ROW_LENGTH = 4, 8, 16, 32
_UNIT_ORDER = np.r_[0:4, 8:12, 4:8, 12:16]  # of `activate` in native/context_network.h
# Space for the result: nearly always enough, and always enough: a symbol, plain bits and an escape are 37 bits.
_BYTES_PER_CODE = (1, 5)
_DAMAGED, _LEFT_OVER = 1, 2


class _Pass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("row_start", "row_step", "column_start", "column_step", "stride")),
        *((name, ctypes.c_int32) for name in ("num_neighbours", "hidden", "sums", "outputs", "reserved")),
        *((name, ctypes.c_void_p) for name in ("neighbours", "levels", "first", "first_bias", "second", "second_bias")),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("first", "size", "num_passes", "reserved")),
        ("passes", ctypes.c_void_p),
    )


class _Tables(ctypes.Structure):
    _fields_ = (
        ("num_dims", ctypes.c_int32),
        ("num_groups", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("groups", "cumulative", "coarse", "magnitude", "shift")),
    )


class EntropyKernel:
    """`entropy_tables.EntropyTables` in the kernel's layout."""

    def __init__(self, tables: Any, shifts: np.ndarray):
        self._arrays: list[object] = []  # kept alive: the structures hold addresses
        groups, first = [], 0
        for group, (size, halvings) in enumerate(tables.plan):
            passes = []
            for index, step in enumerate(lattice(halvings, tables.ndim)):
                pairs = _pairs(tables.plan, group, len(step.neighbours))
                network = self._network(tables.networks[group, index], size, pairs)
                neighbours = self._put(np.array(step.neighbours).reshape(-1, 2), np.int32)
                passes.append(
                    _Pass(
                        *step.rows, *step.columns, step.stride, len(step.neighbours), *network[:3], 0, neighbours,
                        *network[3:],
                    )
                )  # fmt: skip
            groups.append(_Group(first, size, len(passes), 0, self._put_structures(passes)))
            first += size
        cumulative = _cumulative(tables.frequencies)
        coarse = np.full(cumulative.shape, np.iinfo(np.int16).max)
        symbols = tables.frequencies.shape[1]
        coarse[:, : symbols - 1] = (cumulative[:, 1:symbols] >> (PRECISION - 16)).astype(np.int64) - 2**15
        self._tables = _Tables(
            tables.ndim,
            len(groups),
            self._put_structures(groups),
            self._put(cumulative, np.uint32),
            self._put(coarse, np.int16),
            self._put(MAGNITUDE, np.uint8),
            self._put(shifts, np.uint8),
        )

    def encode(self, codes: np.ndarray, levels: np.ndarray) -> bytes | None:
        """Words of the range coder for int8 codes (C, h, w) or (C, t); None if the kernels are switched off."""
        kernels = library()
        if kernels is None:
            return None
        codes, levels = np.ascontiguousarray(codes), np.ascontiguousarray(levels)
        for space in _BYTES_PER_CODE:
            data = np.empty(space * codes.size + 64, np.uint8)
            size = ctypes.c_int64(data.size)
            status = kernels.walloc_entropy_encode(
                ctypes.byref(self._tables), *_sizes(codes.shape), address(levels), address(codes), address(data),
                ctypes.byref(size),
            )  # fmt: skip
            if check(status) == 0:
                return data[: size.value].tobytes()
        raise RuntimeError(f"the compiled entropy coder failed: state {status}")

    def decode(self, data: bytes, levels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The inverse of `encode`.

        Raises:
            ValueError: damaged data.
        """
        kernels = library()
        if kernels is None:
            return None
        codes, words, levels = np.empty(shape, np.int8), np.frombuffer(data, np.uint8), np.ascontiguousarray(levels)
        status = kernels.walloc_entropy_decode(
            ctypes.byref(self._tables), *_sizes(shape), address(levels), address(words), ctypes.c_int64(words.size),
            address(codes),
        )  # fmt: skip
        if check(status) == _DAMAGED:
            raise ValueError("damaged codes: no encoder writes these words")
        if status == _LEFT_OVER:
            raise ValueError("damaged codes: data are left over")
        return codes

    def _network(self, network: Any, size: int, pairs: np.ndarray) -> tuple[int, ...]:
        """Sizes, padded, and addresses of the weights of a pass."""
        units = len(network.first) - size
        hidden, direct, outputs = _round_up(max(units, 1), _UNITS), _round_up(size, _HALF), _round_up(2 * size, _HALF)
        # A further feature, of weight 0, is what fills up.
        first = np.zeros((hidden + direct, network.first.shape[1] + 1))
        first_bias = np.zeros(hidden + direct)
        second, second_bias = np.zeros((outputs, hidden)), np.zeros(outputs)
        for target, source in ((first[:, :-1], network.first), (first_bias, network.first_bias)):
            target[:units] = source[:units]
            target[hidden : hidden + size] = source[units:]
        second[: 2 * size, :units] = network.second
        second_bias[: 2 * size] = network.second_bias
        return (
            hidden,
            hidden + direct,
            outputs,
            self._put(first[:, :size].T, np.int16),
            self._put(first[:, pairs].transpose(1, 0, 2), np.int16),
            self._put(first_bias, np.int32),
            self._put(second.reshape(outputs, -1, _UNITS)[..., _UNIT_ORDER], np.int16),
            self._put(second_bias, np.int32),
        )

    def _put(self, array: np.ndarray, dtype: type) -> int:
        packed: np.ndarray = np.ascontiguousarray(array, dtype)
        self._arrays.append(packed)
        return packed.ctypes.data

    def _put_structures(self, structures: list[Any]) -> int:
        packed: ctypes.Array[Any] = (type(structures[0]) * len(structures))(*structures)
        self._arrays.append(packed)
        return ctypes.addressof(packed)


def fits_kernel(tables: Any) -> bool:
    """Whether all weights are of 16 bits; fitted tables are, but nothing forces them to be."""
    return all(
        np.abs(weights).max(initial=0) < 2**15
        for network in tables.networks.values()
        for weights in (network.first, network.second)
    )


def kernel_levels(codes: np.ndarray) -> np.ndarray | None:
    """`mean_magnitudes`, or None if the kernels are switched off."""
    kernels = library()
    if kernels is None:
        return None
    codes = np.ascontiguousarray(codes)
    positions = codes[0].size
    counts = np.zeros((len(codes), 256), np.int64)
    kernels.walloc_histograms(address(codes), len(codes), ctypes.c_int64(positions), address(counts))
    levels: np.ndarray = np.rint(counts @ MAGNITUDE.astype(np.int64) / positions).astype(np.uint8)
    return levels


def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1] if len(shape) == 3 else 1, shape[-1]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _cumulative(frequencies: np.ndarray) -> np.ndarray:
    """(rows, 32) uint32: what `constriction` makes of frequencies with `perfect=False`, in the same float32 steps."""
    rows, symbols = frequencies.shape
    sums = np.zeros((rows, symbols + 1), np.float32)
    np.cumsum(frequencies, axis=1, dtype=np.float32, out=sums[:, 1:])
    scale = np.float32((1 << PRECISION) - symbols) / sums[:, -1:]
    cumulative = np.full((rows, _ROW_LENGTH), 1 << PRECISION, np.uint32)
    cumulative[:, :symbols] = (sums[:, :-1] * scale).astype(np.uint32) + np.arange(symbols, dtype=np.uint32)
    return cumulative


@lru_cache(maxsize=1024)  # the same for all weights, and the tables of files without fitted ones are made for each
def _pairs(plan: Plan, group: int, num_neighbours: int) -> np.ndarray:
    """(pairs, 2) numbers of features (see `entropy_context`) in the kernel's order; the levels come apart.

    Codes and magnitudes here and around, mean magnitudes along both axes, codes on opposite sides along each: each of
    these three a multiple of `_LANES`, with -1 for none.
    """
    size = plan[group][0]
    at, first = size, 0
    none = np.zeros((0, 2), np.int64)
    codes, means, sides = [none], [none], np.full((2, _HALF, 2), -1)
    for count, _ in plan[:group]:
        channel = at + np.arange(count)
        codes.append(np.stack([channel, channel + count], 1))
        means.append(np.stack([channel + 2 * count, channel + 3 * count], 1))
        at += 4 * count
        shifted = min(count, max(SHIFTED_CHANNELS - first, 0))
        for c in range(shifted):
            sides[:, first + c] = at + c + shifted * np.arange(4).reshape(2, 2)
        at += 4 * shifted
        first += count
    for _ in range(num_neighbours):
        channel = at + np.arange(size)
        codes.append(np.stack([channel, channel + size], 1))
        at += 2 * size
    parts = [np.concatenate(codes), np.concatenate(means), sides.reshape(-1, 2)[: _LANES if first else 0]]
    return np.concatenate([np.pad(part, ((0, -len(part) % _LANES), (0, 0)), constant_values=-1) for part in parts])
