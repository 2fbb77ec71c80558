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
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

INPUT_MAX = 128  # no feature is larger
WIDE_CHANNELS = 8  # channels that later groups see at neighbouring places as they are; of later ones the mean magnitude

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
    counts, first, wide = {}, 0, 0
    for group, (size, halvings) in enumerate(plan):
        for index, step in enumerate(lattice(halvings, ndim)):
            counts[group, index] = 2 * first + wide * 4 + 2 * size * len(step.neighbours)
        first += size
        wide += 2 * size if first <= WIDE_CHANNELS else 1
    return counts


def walk(shape: tuple[int, ...], plan: Plan, code: Callable[[Key, np.ndarray, tuple], np.ndarray]) -> None:
    """Visit all codes of an item in coding order.

    Args:
        shape: (C, h, w) or (C, t).
        plan: groups of channels; its channels beyond C are left out.
        code: called as `code(key, features, where)` for each pass with float32 features (K, n), integers of at most
            INPUT_MAX, and the place of its codes in an array (C, h, w), where h is 1 for (C, t). Returns these codes.
    """
    channels, height, width = shape[0], shape[1] if len(shape) == 3 else 1, shape[-1]
    ndim = len(shape) - 1
    margin = 1 if ndim == 2 else 0
    shifts = _DIRECT if ndim == 2 else ((0, -2), (0, -1), (0, 1), (0, 2))
    total = sum(size for size, _ in plan)
    point = np.empty((2 * total, height, width), np.float32)  # codes and magnitudes
    wide = np.empty((2 * total, height + 2 * margin, width + 4), np.float32)  # the same with mirrored margins
    wide_count = first = 0
    for group, (size, halvings) in enumerate(plan):
        if first >= channels:
            return
        own = np.zeros((2 * size, height, width), np.float32)
        kept = min(size, channels - first)
        for index, (rows, columns, stride, neighbours, _) in enumerate(lattice(halvings, ndim)):
            place = (slice(rows[0], None, rows[1]), slice(columns[0], None, columns[1]))
            ny, nx = -((rows[0] - height) // rows[1]), -((columns[0] - width) // columns[1])
            if ny <= 0 or nx <= 0:
                continue
            features = np.empty((2 * first + 4 * wide_count + 2 * size * len(neighbours), ny, nx), np.float32)
            features[: 2 * first] = point[(slice(2 * first), *place)]
            at = 2 * first
            if wide_count:
                for dy, dx in shifts:
                    y, x = margin + dy + rows[0], 2 + dx + columns[0]
                    features[at : at + wide_count] = wide[:wide_count, y :: rows[1], x :: columns[1]][:, :ny, :nx]
                    at += wide_count
            if neighbours:
                known = own[:, _mirrored(height, stride, 2 * margin)[:, None], _mirrored(width, stride, 3)]
                for dy, dx in neighbours:
                    y, x = 2 * margin + dy + rows[0] // stride, 3 + dx + columns[0] // stride
                    part = known[:, y :: max(rows[1] // stride, 1), x :: columns[1] // stride]
                    features[at : at + 2 * size] = part[:, :ny, :nx]
                    at += 2 * size
            where = (slice(first, first + kept), *place)
            codes = code((group, index), features.reshape(len(features), ny * nx), where)
            own[(slice(kept), *place)] = codes
            own[(slice(size, size + kept), *place)] = MAGNITUDE.take(codes.astype(np.int32) & 255)
        point[2 * first : 2 * first + 2 * size] = own
        first += size
        # Floor of the exact sum's product with 1 / size: one rounding, the same on all machines.
        new = own if first <= WIDE_CHANNELS else np.floor(own[size:].sum(0, keepdims=True) * np.float32(1 / size))
        wide[wide_count : wide_count + len(new)] = new[:, _mirrored(height, 1, margin)[:, None], _mirrored(width, 1, 2)]
        wide_count += len(new)


@functools.lru_cache(maxsize=256)
def _mirrored(size: int, stride: int, margin: int) -> np.ndarray:
    """Indices of every stride-th position and of `margin` more on both sides, mirrored at the ends."""
    count = -(-size // stride)
    index = np.abs(np.arange(-margin, count + margin))
    index = np.where(index > count - 1, 2 * (count - 1) - index, index)
    return np.clip(index, 0, count - 1) * stride
