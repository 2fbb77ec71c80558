"""The wavelet packet transform as strided convolutions, axis by axis: any number of axes, any device, differentiable.

A cascade of up to four levels is applied at once, with the taps of its `BlockOperator`; deeper ones run in stages.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from .fast_wavelets import constant_tensor
from .filter_banks import block_operator, dense_matrix, stages

Result = TypeVar("Result")


def analysis_bands(x: torch.Tensor, num_levels: int, wavelet: str, boundary: str, num_dims: int) -> torch.Tensor:
    """`wavelet_packet_analysis` with the bands of a channel in the order that is cheapest to make, see `band_order`."""
    batch, channels = x.shape[:2]
    y = x.to(wide_dtype(x)).flatten(0, 1)  # (R, *sizes)
    for levels in stages(num_levels):
        operator = _operator("analysis", levels, wavelet, boundary)
        for axis in range(num_dims):
            y = _analyse_axis(operator, y, axis - num_dims).flatten(0, 1)
    return y.reshape(batch, channels * 2 ** (num_dims * num_levels), *y.shape[1:])


def synthesis_bands(
    subbands: torch.Tensor, num_levels: int, wavelet: str, boundary: str, num_dims: int
) -> torch.Tensor:
    """Inverse of `analysis_bands`."""
    batch, channels = subbands.shape[0], subbands.shape[1] >> (num_dims * num_levels)
    x = subbands.to(wide_dtype(subbands)).flatten(0, 1)
    for levels in reversed(stages(num_levels)):
        operator = _operator("synthesis", levels, wavelet, boundary)
        for axis in reversed(range(num_dims)):
            x = _synthesise_axis(operator, x.unflatten(0, (-1, operator.block)), axis - num_dims)
    return x.reshape(batch, channels, *x.shape[1:])


def band_order(
    num_levels: int, num_dims: int, device: torch.device | None = None, inverse: bool = False
) -> torch.Tensor:
    """Index of the bands of `analysis_bands` (axis by axis) in the public order (level by level), int64.

    `analysis_bands(x)[:, band_order]` is in public order; weights over public bands are applied to cheap ones after
    indexing with `inverse=True`.
    """
    return _band_order(num_levels, num_dims, inverse, device)[0]


def _constants(make: Callable[..., Result]) -> Callable[..., Result]:
    """A function of numpy whose results are kept, and are constants to a compiler, which would try to trace it.

    It returns tensors in tuples: on its own one would be a single constant to a compiler, whatever the arguments.
    """
    cached = functools.cache(make)

    def get(*arguments: Any) -> Result:
        return cached(*arguments)

    constant: Callable[..., Result] = torch.compiler.assume_constant_result(get)
    return constant


@_constants
def _band_order(num_levels: int, num_dims: int, inverse: bool, device: torch.device | None) -> tuple[torch.Tensor]:
    shape: list[int] = []
    axes: list[list[int]] = []  # per level: its axes' positions in `shape`, last axis first (it is the high bit)
    for levels in stages(num_levels):
        start = len(shape)
        shape += [2] * (levels * num_dims)
        axes += [[start + axis * levels + level for axis in reversed(range(num_dims))] for level in range(levels)]
    order = (
        np.arange(2 ** len(shape)).reshape(shape).transpose([position for level in axes for position in level]).ravel()
    )
    return (constant_tensor(np.argsort(order) if inverse else order, device),)


class _Operator(NamedTuple):
    """The shape of a `BlockOperator`, without its arrays."""

    direction: Literal["analysis", "synthesis"]
    num_levels: int
    wavelet: str
    boundary: str
    block: int
    before: int
    after: int
    min_blocks: int


@_constants
def _operator(direction: Literal["analysis", "synthesis"], num_levels: int, wavelet: str, boundary: str) -> _Operator:
    operator = block_operator(direction, num_levels, wavelet, boundary)
    return _Operator(
        direction, num_levels, wavelet, boundary, operator.block, operator.before, operator.after, operator.min_blocks
    )


@_constants
def _array(
    direction: Literal["analysis", "synthesis"],
    num_levels: int,
    wavelet: str,
    boundary: str,
    part: Literal["taps", "head", "tail", "matrix"],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor]:
    if part == "matrix":
        array = dense_matrix(direction, num_levels, wavelet, boundary, size)
    else:
        array = getattr(block_operator(direction, num_levels, wavelet, boundary), part)
    return (constant_tensor(array, device, dtype),)


def _tensor(
    operator: _Operator, part: Literal["taps", "head", "tail", "matrix"], like: torch.Tensor, size: int = 0
) -> torch.Tensor:
    """An array of an operator on the device of `like`; `matrix` is the map of a short signal of `size` samples."""
    key = operator.direction, operator.num_levels, operator.wavelet, operator.boundary
    return _array(*key, part, size, like.device, like.dtype)[0]


def _analyse_axis(operator: _Operator, x: torch.Tensor, axis: int) -> torch.Tensor:
    """(R, *sizes) -> (R, block, *sizes), the size along `axis` (negative) divided by `block`."""
    sizes = list(x.shape[1:])
    block = operator.block
    sizes[axis] = blocks = sizes[axis] // block
    x = _around_axis(x, axis)  # (R, P, N, S)
    if blocks < operator.min_blocks:
        y = _columns_to_bands(_tensor(operator, "matrix", x, x.shape[2]) @ x, block)
        return y.reshape(len(y), block, *sizes)
    if operator.boundary == "periodization":
        y = _strided_convolution(operator, _wrap(operator, x, block, dim=2))
    else:
        head, tail = _tensor(operator, "head", x), _tensor(operator, "tail", x)
        first = _columns_to_bands(head @ x[:, :, : head.shape[1]], block)
        last = _columns_to_bands(tail @ x[:, :, x.shape[2] - tail.shape[1] :], block)
        y = torch.cat([first, _strided_convolution(operator, x), last], dim=3)
    return y.reshape(len(y), block, *sizes)


def _synthesise_axis(operator: _Operator, y: torch.Tensor, axis: int) -> torch.Tensor:
    """(R, block, *sizes) -> (R, *sizes), the size along `axis` (negative) multiplied by `block`."""
    sizes = list(y.shape[2:])
    block = operator.block
    blocks = sizes[axis]
    sizes[axis] *= block
    y = _around_axis(y.flatten(0, 1), axis).unflatten(0, (-1, block))  # (R, block, P, n, S)
    if blocks < operator.min_blocks:
        return (_tensor(operator, "matrix", y, blocks * block) @ _bands_to_columns(y)).reshape(len(y), *sizes)
    if operator.boundary == "periodization":
        x = _bands_to_columns(_band_convolution(operator, _wrap(operator, y, 1, dim=3)))
    else:
        head, tail = _tensor(operator, "head", y), _tensor(operator, "tail", y)
        first = head @ _bands_to_columns(y[:, :, :, : head.shape[1] // block])
        last = tail @ _bands_to_columns(y[:, :, :, blocks - tail.shape[1] // block :])
        x = torch.cat([first, _bands_to_columns(_band_convolution(operator, y)), last], dim=2)
    return x.reshape(len(y), *sizes)


def _around_axis(x: torch.Tensor, axis: int) -> torch.Tensor:
    """(R, *sizes) -> (R, P, N, S) with N the size along `axis`, P and S the sizes before and behind it."""
    sizes = x.shape[1:]
    axis += len(sizes)
    return x.reshape(len(x), math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :]))


def _columns_to_bands(x: torch.Tensor, block: int) -> torch.Tensor:
    columns: torch.Tensor = x.unflatten(2, (-1, block))
    return columns.permute(0, 3, 1, 2, 4)  # (R, P, n * block, S) -> (R, block, P, n, S)


def _bands_to_columns(y: torch.Tensor) -> torch.Tensor:
    return y.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (R, block, P, n, S) -> (R, P, n * block, S)


def _wrap(operator: _Operator, x: torch.Tensor, block: int, dim: int) -> torch.Tensor:
    before, after, size = operator.before * block, operator.after * block, x.shape[dim]
    return torch.cat([x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)], dim=dim)


def _strided_convolution(operator: _Operator, x: torch.Tensor) -> torch.Tensor:
    """Interior outputs (R, block, P, n - before - after, S) of samples (R, P, N, S), as convolutions of one channel."""
    taps = _tensor(operator, "taps", x)
    block, width = taps.shape
    if x.shape[3] == 1:
        return F.conv2d(x.permute(0, 3, 1, 2), taps.view(block, 1, 1, width), stride=(1, block))[..., None]
    if x.shape[1] == 1:
        return F.conv2d(x, taps.view(block, 1, width, 1), stride=(block, 1))[:, :, None]
    return F.conv3d(x[:, None], taps.view(block, 1, 1, width, 1), stride=(1, block, 1))


def _band_convolution(operator: _Operator, y: torch.Tensor) -> torch.Tensor:
    """Interior outputs (R, block, P, n - before - after, S) of subbands (R, block, P, n, S)."""
    taps = _tensor(operator, "taps", y)
    block = operator.block
    kernel = taps.view(block, -1, block).transpose(1, 2)  # (output, input, offset)
    if y.shape[4] == 1:
        return F.conv2d(y[..., 0], kernel[:, :, None, :])[..., None]
    if y.shape[2] == 1:
        return F.conv2d(y[:, :, 0], kernel[:, :, :, None])[:, :, None]
    return F.conv3d(y, kernel[:, :, None, :, None])


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """What a transform of `x` is computed in: its type, but no less than float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
