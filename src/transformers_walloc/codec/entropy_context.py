"""What the entropy coder knows when it comes to a code: the order of coding and the features of the neighbourhood.

Channels come in groups, largest variance first. A group with n halvings is coded on a refining lattice: every 2**n-th
row and column first, then, at each halving, the centres (D) of the known positions (o) and the places between (1, 2):

```
    o 1 o        o  known          D: 4 diagonal neighbours
    2 D 2                          1: 4 direct neighbours, 4 a knight's move away
    o 1 o                          2: 8 direct and diagonal neighbours
```

n = 0 means two passes, even and odd columns. In one dimension a halving adds the positions between the known ones.
Neighbours outside of the grid are mirrored, which keeps them on the known part of the lattice.

Features of a code: the mean magnitudes of the group's channels in this item; from each earlier channel its code and its
magnitude at the same place and the mean magnitudes of the two neighbours along each axis (in one dimension: one and two
places away); from the first channels also the codes next to the place; from all channels of the group, codes and
magnitudes of the known neighbours on the lattice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

INPUT_MAX = 128  # no feature is larger
SHIFTED_CHANNELS = 3  # smooth channels, whose differences predict others
BLOCK = 2048  # positions that are coded at once

# floor(16 * log2(1 + 2 * |code|)) at index code & 255, computed in integers
MAGNITUDE = np.array([((1 + 2 * min(i, 256 - i)) ** 16).bit_length() - 1 for i in range(256)], np.float32)

Key = tuple[int, int]  # group, pass
Plan = tuple[tuple[int, int], ...]  # of each group: channels, halvings of its lattice

_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_DIRECT = ((0, -1), (0, 1), (-1, 0), (1, 0))
_KNIGHT = ((-2, -1), (-2, 1), (2, -1), (2, 1))
_IN_TIME = ((0, -1), (0, 1), (0, -3), (0, 3))


class Pass(NamedTuple):
    """Positions rows[0]::rows[1], columns[0]::columns[1], and the known neighbours in units of `stride`.

    The first `near` of the neighbours are the nearest ones.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    stride: int
    neighbours: tuple[tuple[int, int], ...]
    near: int


@functools.lru_cache(maxsize=64)
def lattice(halvings: int, ndim: int) -> tuple[Pass, ...]:
    """The passes over one group of channels."""
    every = (0, 1)
    if halvings == 0:
        between = _IN_TIME if ndim == 1 else _DIRECT[:2] + _DIAGONAL
        return Pass(every, (0, 2), 1, (), 0), Pass(every, (1, 2), 1, between, 2)
    step = 1 << halvings
    passes = [Pass(every if ndim == 1 else (0, step), (0, step), 1, (), 0)]
    while step > 1:
        half = step // 2
        if ndim == 1:
            passes.append(Pass(every, (half, step), half, _IN_TIME, 2))
        else:
            passes.append(Pass((half, step), (half, step), half, _DIAGONAL, 4))
            passes.append(Pass((0, step), (half, step), half, _DIRECT + _KNIGHT, 4))
            passes.append(Pass((half, step), (0, step), half, _DIRECT + _DIAGONAL, 4))
        step = half
    return tuple(passes)


def feature_counts(plan: Plan, ndim: int) -> dict[Key, int]:
    """Number of features of each pass."""
    counts: dict[Key, int] = {}
    first = known = 0
    for group, (size, halvings) in enumerate(plan):
        for index, step in enumerate(lattice(halvings, ndim)):
            counts[group, index] = size + known + 2 * size * len(step.neighbours)
        known += _num_planes(first, size)
        first += size
    return counts


def magnitude_features(plan: Plan) -> list[int]:
    """Of each channel, the index of its magnitude at the same place in later groups, whose own levels come before."""
    features: list[int] = []
    first = known = 0
    for size, _ in plan:
        features += range(known + size, known + 2 * size)
        known += _num_planes(first, size)
        first += size
    return features


def mean_magnitudes(codes: np.ndarray) -> np.ndarray:
    """(C,) uint8, the rounded mean magnitude of each channel: part of the bytes, so only the encoder computes it."""
    magnitudes = MAGNITUDE.take(codes.reshape(len(codes), -1).astype(np.int32) & 255)
    levels: np.ndarray = np.rint(magnitudes.mean(1, dtype=np.float64)).astype(np.uint8)
    return levels


def walk(
    shape: tuple[int, ...],
    plan: Plan,
    levels: np.ndarray,
    code: Callable[[Key, np.ndarray, tuple[Any, ...]], np.ndarray],
) -> None:
    """Visit all codes of an item in coding order.

    Args:
        shape: (C, h, w) or (C, t).
        plan: groups of channels; its channels beyond C are left out.
        levels: (C,) mean magnitude of each channel, see `mean_magnitudes`.
        code: called as `code(key, features, where)` for each block of a pass with float32 features (K, n), integers of
            at most INPUT_MAX, and the place of its codes in an array (C, h, w), where h is 1 for (C, t). Returns these
            codes.
    """
    channels, height, width = shape[0], shape[1] if len(shape) == 3 else 1, shape[-1]
    ndim = len(shape) - 1
    margin = 2 if ndim == 2 else 0
    known = np.empty((sum(_num_planes(0, size) for size, _ in plan), height, width), np.float32)
    count = first = 0
    for group, (size, halvings) in enumerate(plan):
        if first >= channels:
            return
        own = np.zeros((2 * size, height, width), np.float32)
        kept = min(size, channels - first)
        for index, step in enumerate(lattice(halvings, ndim)):
            ny, nx = (len(range(start, n, by)) for (start, by), n in zip(step[:2], (height, width), strict=True))
            if step.neighbours:
                margins = _mirrored(height, step.stride, margin), _mirrored(width, step.stride, 3)
                around = own[:, margins[0][:, None], margins[1]]
            for y, x, by, bx in _blocks(ny, nx):
                place = _positions(step.rows, y, by), _positions(step.columns, x, bx)
                features = np.empty((size + count + 2 * size * len(step.neighbours), by, bx), np.float32)
                features[:size] = 0
                features[:kept] = levels[first : first + kept, None, None]
                features[size : size + count] = known[(slice(count), *place)]
                at = size + count
                for dy, dx in step.neighbours:
                    features[at : at + 2 * size] = around[
                        :,
                        _positions((margin + dy + step.rows[0] // step.stride, step.rows[1] // step.stride), y, by),
                        _positions((3 + dx + step.columns[0] // step.stride, step.columns[1] // step.stride), x, bx),
                    ]
                    at += 2 * size
                where = (slice(first, first + kept), *place)
                codes = code((group, index), features.reshape(len(features), by * bx), where)
                own[(slice(kept), *place)] = codes
                own[(slice(size, size + kept), *place)] = MAGNITUDE.take(codes.astype(np.int32) & 255)
        if first + size < channels:
            count = _append_planes(known, count, own, first, ndim)
        first += size


def _blocks(ny: int, nx: int) -> Iterator[tuple[int, int, int, int]]:
    """(y, x, height, width) of blocks of whole rows, or of pieces of one row, that fit the cache."""
    width = max(min(nx, BLOCK), 1)
    height = max(BLOCK // width, 1)
    for y in range(0, ny, height):
        for x in range(0, nx, width):
            yield y, x, min(height, ny - y), min(width, nx - x)


def _positions(axis: tuple[int, int], skip: int, count: int) -> slice:
    """`count` positions of start::step after the first `skip`; a step of 0 is one position."""
    start, step = axis[0] + skip * axis[1], max(axis[1], 1)
    return slice(start, start + (count - 1) * step + 1, step)


def _num_planes(first: int, size: int) -> int:
    return 4 * size + 4 * min(size, max(SHIFTED_CHANNELS - first, 0))


def _append_planes(known: np.ndarray, count: int, own: np.ndarray, first: int, ndim: int) -> int:
    """What later groups see of a finished group: codes, magnitudes, their means along both axes, shifted codes."""
    size, (height, width) = len(own) // 2, own.shape[1:]
    known[count : count + 2 * size] = own
    if ndim == 2:
        wide = own[:, _mirrored(height, 1, 1)[:, None], _mirrored(width, 1, 1)]
        sides = [wide[:, 1:-1, :-2], wide[:, 1:-1, 2:], wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]]
    else:
        wide = own[:, :, _mirrored(width, 1, 2)]
        sides = [wide[:, :, 1:-3], wide[:, :, 3:-1], wide[:, :, :-4], wide[:, :, 4:]]
    at = count + 2 * size
    for one, other in (sides[:2], sides[2:]):
        mean = known[at : at + size]
        np.add(one[size:], other[size:], out=mean)
        mean *= np.float32(0.5)
        np.floor(mean, out=mean)
        at += size
    shifted = min(size, max(SHIFTED_CHANNELS - first, 0))
    for side in sides:
        known[at : at + shifted] = side[:shifted]
        at += shifted
    return at


@functools.lru_cache(maxsize=256)
def _mirrored(size: int, stride: int, margin: int) -> np.ndarray:
    """Indices of every stride-th position and of `margin` more on both sides, mirrored at the ends."""
    count = -(-size // stride)
    index = np.abs(np.arange(-margin, count + margin))
    index = np.where(index > count - 1, 2 * (count - 1) - index, index)
    return np.clip(index, 0, count - 1) * stride
