"""Wavelet packet analysis and synthesis in one, two or three dimensions.

A level splits every band in two along every axis (Mallat, "A Wavelet Tour of Signal Processing", chapter 8), so
`num_levels` levels turn the `block = 2**num_levels` samples of a block into `block` subbands per axis. Both directions
are linear, and away from the ends they treat every block alike. A cascade of up to four levels is therefore applied at
once, as one strided convolution per axis whose taps are read off the cascade's own impulse responses:

    samples    |. . . . . . . .|. . . . . . . .|. . . . . . . .|    blocks of 2**3 samples
                          \\___________ | ___________/
    subbands               (b0 b1 b2 b3 b4 b5 b6 b7)                one column of 8 coefficients for a block

Nothing here holds state: taps are computed in double precision from the filters, cached per device, and never pass
through a checkpoint.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F

Boundary = Literal["periodization", "symmetric"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)

# One stage of s levels costs 2**s * (filter length) multiply-adds a sample, so deep transforms run in several stages.
MAX_LEVELS_PER_STAGE = 4


class TensorOptions(NamedTuple):
    device: torch.device
    dtype: torch.dtype


class WaveletFilters(NamedTuple):
    """Analysis (`dec_*`) and synthesis (`rec_*`) taps in PyWavelets' order, float64, all of the same even length."""

    dec_lo: np.ndarray
    dec_hi: np.ndarray
    rec_lo: np.ndarray
    rec_hi: np.ndarray


# CDF 9/7 (Cohen, Daubechies and Feauveau 1992; JPEG 2000's irreversible filters), the halves from the centre outwards.
_CDF97_DEC_LO = (
    0.8526986790088938,
    0.37740285561283066,
    -0.11062440441843718,
    -0.023849465019556843,
    0.03782845550726404,
)
_CDF97_REC_LO = (0.7884856164055829, 0.41809227322161724, -0.04068941760916406, -0.06453888262869706)


@functools.cache
def wavelet_filters(name: str = "bior4.4") -> WaveletFilters:
    """Filters of a discrete wavelet by its PyWavelets name; `bior4.4` (CDF 9/7) is built in.

    Raises:
        ValueError: the name is not that of a discrete wavelet.
        ImportError: a wavelet other than `bior4.4` is asked for and PyWavelets is not installed.
    """
    if name == "bior4.4":
        dec_lo = np.array([0.0, *_CDF97_DEC_LO[:0:-1], *_CDF97_DEC_LO])
        rec_lo = np.array([0.0, *_CDF97_REC_LO[:0:-1], *_CDF97_REC_LO, 0.0, 0.0])
        sign = (-1.0) ** np.arange(10)
        return WaveletFilters(dec_lo, -sign * rec_lo, rec_lo, sign * dec_lo)
    try:
        import pywt
    except ImportError as error:
        raise ImportError(
            f"wavelet {name!r} needs PyWavelets: pip install 'transformers-walloc[wavelets]'; 'bior4.4' is built in"
        ) from error
    known = pywt.wavelist(kind="discrete")
    if name not in known:
        raise ValueError(f"unknown wavelet {name!r}; valid: {', '.join(known)}")
    return WaveletFilters(*(np.array(taps, dtype=np.float64) for taps in pywt.Wavelet(name).filter_bank))


def check_wavelet(wavelet: str, boundary: str) -> None:
    """Refuse combinations that have no perfect reconstruction: `symmetric` needs odd-length symmetric filters."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"unknown boundary {boundary!r}; valid: {', '.join(BOUNDARIES)}")
    filters = wavelet_filters(wavelet)
    if boundary == "symmetric" and not (_is_whole_sample(filters.dec_lo) and _is_whole_sample(filters.dec_hi)):
        raise ValueError(
            f"boundary 'symmetric' (whole-sample) needs a wavelet with symmetric filters of odd length, as 'bior4.4', "
            f"'bior2.2' or 'bior6.8'; {wavelet!r} has none: use boundary='periodization'"
        )


def wavelet_packet_analysis(
    x: torch.Tensor, num_levels: int, wavelet: str = "bior4.4", boundary: Boundary = "periodization", num_dims: int = 2
) -> torch.Tensor:
    """Full wavelet packet decomposition of the last `num_dims` axes.

    Args:
        x: real signal (batch, channels, *sizes); each size must be a multiple of `2**num_levels`.
        num_levels: how often every band is split in two along every axis; 0 leaves the signal as it is.
        wavelet: a PyWavelets name.
        boundary: `periodization` (the signal repeats; what the original WaLLoC uses) or `symmetric` (whole-sample
            reflection as in JPEG 2000, so that opposite borders do not leak into each other).
        num_dims: 1 (audio), 2 (images) or 3 (volumes, video).

    Returns:
        Subbands (batch, channels * 2**(num_dims * num_levels), *(sizes / 2**num_levels)) in at least float32. Bands are
        ordered by level, coarsest split first: the index of a level is the sum of bits `high along axis a` << a, with
        the rows as axis 0, so (LL, LH, HL, HH) in two dimensions. That is the order of the original implementation.
    """
    check_wavelet(wavelet, boundary)
    _check_signal(x, num_dims, num_levels)
    bands = analysis_bands(x, num_levels, wavelet, boundary, num_dims)
    if num_dims > 1:
        bands = bands.unflatten(1, (-1, 2 ** (num_dims * num_levels)))
        bands = bands[:, :, band_order(num_levels, num_dims, bands.device)].flatten(1, 2)
    return bands


def wavelet_packet_synthesis(
    subbands: torch.Tensor,
    num_levels: int,
    wavelet: str = "bior4.4",
    boundary: Boundary = "periodization",
    num_dims: int = 2,
) -> torch.Tensor:
    """Inverse of `wavelet_packet_analysis`: (batch, channels * bands, *grid) -> (batch, channels, *sizes)."""
    check_wavelet(wavelet, boundary)
    _check_signal(subbands, num_dims, 0)
    num_bands = 2 ** (num_dims * num_levels)
    if subbands.shape[1] % num_bands:
        raise ValueError(
            f"{subbands.shape[1]} channels are not a multiple of {num_bands} subbands ({num_levels} levels)"
        )
    if num_dims > 1:
        subbands = subbands.unflatten(1, (-1, num_bands))
        subbands = subbands[:, :, band_order(num_levels, num_dims, subbands.device, inverse=True)].flatten(1, 2)
    return synthesis_bands(subbands, num_levels, wavelet, boundary, num_dims)


def analysis_bands(x: torch.Tensor, num_levels: int, wavelet: str, boundary: str, num_dims: int) -> torch.Tensor:
    """`wavelet_packet_analysis` with the bands of a channel in the order that is cheapest to make, see `band_order`."""
    batch, channels = x.shape[:2]
    y = _at_least_float32(x).flatten(0, 1)  # (R, *sizes)
    for levels in _stages(num_levels):
        operator = block_operator("analysis", levels, wavelet, boundary)
        for axis in range(num_dims):
            y = _analyse_axis(operator, y, axis - num_dims).flatten(0, 1)
    return y.reshape(batch, channels * 2 ** (num_dims * num_levels), *y.shape[1:])


def synthesis_bands(
    subbands: torch.Tensor, num_levels: int, wavelet: str, boundary: str, num_dims: int
) -> torch.Tensor:
    """Inverse of `analysis_bands`."""
    batch, channels = subbands.shape[0], subbands.shape[1] >> (num_dims * num_levels)
    x = _at_least_float32(subbands).flatten(0, 1)
    for levels in reversed(_stages(num_levels)):
        operator = block_operator("synthesis", levels, wavelet, boundary)
        for axis in reversed(range(num_dims)):
            x = _synthesise_axis(operator, x.unflatten(0, (-1, operator.block)), axis - num_dims)
    return x.reshape(batch, channels, *x.shape[1:])


def analyse_and_project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    num_levels: int,
    wavelet: str,
    boundary: str,
    num_dims: int,
) -> torch.Tensor:
    """`wavelet_packet_analysis` followed by a pointwise projection, as one linear operator.

    Args:
        x: (batch, channels, *sizes), sizes multiples of `2**num_levels`.
        weight: (outputs, channels * bands) over subbands in public order; bias: (outputs,).

    Returns:
        (batch, outputs, *(sizes / 2**num_levels)) in at least float32.
    """
    bands = analysis_bands(x, num_levels, wavelet, boundary, num_dims)
    weight = weight.to(bands.dtype).unflatten(1, (x.shape[1], -1))
    weight = weight[:, :, band_order(num_levels, num_dims, weight.device, inverse=True)].flatten(1, 2)
    y = weight @ bands.flatten(2)
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None]
    return y.unflatten(2, bands.shape[2:])


def band_order(
    num_levels: int, num_dims: int, device: torch.device | None = None, inverse: bool = False
) -> torch.Tensor:
    """Index of the bands of `analysis_bands` (axis by axis) in the public order (level by level), int64.

    `analysis_bands(x)[:, band_order]` is in public order; weights over public bands are applied to cheap ones after
    indexing with `inverse=True`.
    """
    return _band_order(num_levels, num_dims, inverse, device)


@functools.cache
def _band_order(num_levels: int, num_dims: int, inverse: bool, device: torch.device | None) -> torch.Tensor:
    shape: list[int] = []
    axes: list[list[int]] = []  # per level: its axes' positions in `shape`, last axis first (it is the high bit)
    for levels in _stages(num_levels):
        start = len(shape)
        shape += [2] * (levels * num_dims)
        axes += [[start + axis * levels + level for axis in reversed(range(num_dims))] for level in range(levels)]
    order = (
        np.arange(2 ** len(shape)).reshape(shape).transpose([position for level in axes for position in level]).ravel()
    )
    if inverse:
        order = np.argsort(order)
    with torch.inference_mode(False):
        return torch.tensor(order, device=device)


@dataclass(frozen=True, eq=False)
class BlockOperator:
    """A linear map of a signal in blocks that treats all blocks alike away from the ends; arrays are float64.

    Block i of the output is `taps @ x[(i - before) * block : (i + 1 + after) * block]`. With `symmetric` boundaries the
    first `before` blocks are `head @ x[:head.shape[1]]` instead and the last `after` ones `tail @ x[-tail.shape[1]:]`;
    `head` and `tail` are None where the signal is periodic. A signal shorter than `min_blocks` blocks, where both ends
    act on the same block, is mapped by the matrix of its size.
    """

    direction: Literal["analysis", "synthesis"]
    num_levels: int
    wavelet: str
    boundary: str
    before: int
    after: int
    taps: np.ndarray  # (block, (before + 1 + after) * block)
    head: np.ndarray | None  # (before * block, columns)
    tail: np.ndarray | None  # (after * block, columns)

    @property
    def block(self) -> int:
        return 2**self.num_levels

    @property
    def min_blocks(self) -> int:
        return max(m.shape[1] for m in (self.taps, self.head, self.tail) if m is not None) // self.block

    @functools.cache  # noqa: B019  operators are few and live as long as the process
    def tensor(
        self, part: Literal["taps", "head", "tail", "matrix"], like: TensorOptions, size: int = 0
    ) -> torch.Tensor:
        """An array of the operator on a device; `matrix` is the map of a short signal of `size` samples."""
        if part == "matrix":
            array = _dense_matrix(self.direction, self.num_levels, self.wavelet, self.boundary, size)
        else:
            array = getattr(self, part)
        with torch.inference_mode(False):  # what is cached in inference mode could never be used in training
            return torch.tensor(array, device=like.device, dtype=like.dtype)


@functools.cache
def block_operator(
    direction: Literal["analysis", "synthesis"], num_levels: int, wavelet: str, boundary: str
) -> BlockOperator:
    """Read the operator of `num_levels` levels off the matrix of a signal long enough for its ends not to meet."""
    block = 2**num_levels
    num_blocks = 4 * math.ceil(len(wavelet_filters(wavelet).dec_lo) * (block - 1) / block + 2)
    matrix = _dense_matrix(direction, num_levels, wavelet, boundary, num_blocks * block)
    rows = matrix.reshape(num_blocks, block, num_blocks, block)
    reach = np.abs(rows).max(axis=(1, 3)) > 0  # (output block, input block)
    middle = num_blocks // 2
    used = np.flatnonzero(reach[middle])
    before, after = int(middle - used[0]), int(used[-1] - middle)
    taps = rows[middle, :, used[0] : used[-1] + 1].reshape(block, -1)
    head = tail = None
    if boundary == "symmetric":
        head_columns = (np.flatnonzero(reach[:before].any(axis=0))[-1] + 1) * block
        tail_columns = np.flatnonzero(reach[num_blocks - after :].any(axis=0))[0] * block
        head, tail = matrix[: before * block, :head_columns], matrix[(num_blocks - after) * block :, tail_columns:]
    return BlockOperator(direction, num_levels, wavelet, boundary, before, after, taps, head, tail)


@functools.cache
def _dense_matrix(direction: str, num_levels: int, wavelet: str, boundary: str, size: int) -> np.ndarray:
    """Matrix (size, size) of the transform of `size` samples; the subbands of a block are side by side."""
    cascade = _analysis_cascade if direction == "analysis" else _synthesis_cascade
    return np.ascontiguousarray(cascade(np.eye(size), num_levels, wavelet_filters(wavelet), boundary).T)


def _analyse_axis(operator: BlockOperator, x: torch.Tensor, axis: int) -> torch.Tensor:
    """(R, *sizes) -> (R, block, *sizes), the size along `axis` (negative) divided by `block`."""
    sizes = list(x.shape[1:])
    block, options = operator.block, TensorOptions(x.device, x.dtype)
    sizes[axis] = blocks = sizes[axis] // block
    x = _around_axis(x, axis)  # (R, P, N, S)
    if blocks < operator.min_blocks:
        y = _columns_to_bands(operator.tensor("matrix", options, x.shape[2]) @ x, block)
        return y.reshape(len(y), block, *sizes)
    if operator.boundary == "periodization":
        y = _strided_convolution(operator, _wrap(operator, x, block, dim=2))
    else:
        head, tail = operator.tensor("head", options), operator.tensor("tail", options)
        first = _columns_to_bands(head @ x[:, :, : head.shape[1]], block)
        last = _columns_to_bands(tail @ x[:, :, x.shape[2] - tail.shape[1] :], block)
        y = torch.cat([first, _strided_convolution(operator, x), last], dim=3)
    return y.reshape(len(y), block, *sizes)


def _synthesise_axis(operator: BlockOperator, y: torch.Tensor, axis: int) -> torch.Tensor:
    """(R, block, *sizes) -> (R, *sizes), the size along `axis` (negative) multiplied by `block`."""
    sizes = list(y.shape[2:])
    block, options = operator.block, TensorOptions(y.device, y.dtype)
    blocks = sizes[axis]
    sizes[axis] *= block
    y = _around_axis(y.flatten(0, 1), axis).unflatten(0, (-1, block))  # (R, block, P, n, S)
    if blocks < operator.min_blocks:
        return (operator.tensor("matrix", options, blocks * block) @ _bands_to_columns(y)).reshape(len(y), *sizes)
    if operator.boundary == "periodization":
        x = _bands_to_columns(_band_convolution(operator, _wrap(operator, y, 1, dim=3)))
    else:
        head, tail = operator.tensor("head", options), operator.tensor("tail", options)
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
    return x.unflatten(2, (-1, block)).permute(0, 3, 1, 2, 4)  # (R, P, n * block, S) -> (R, block, P, n, S)


def _bands_to_columns(y: torch.Tensor) -> torch.Tensor:
    return y.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (R, block, P, n, S) -> (R, P, n * block, S)


def _wrap(operator: BlockOperator, x: torch.Tensor, block: int, dim: int) -> torch.Tensor:
    before, after, size = operator.before * block, operator.after * block, x.shape[dim]
    return torch.cat([x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)], dim=dim)


def _strided_convolution(operator: BlockOperator, x: torch.Tensor) -> torch.Tensor:
    """Interior outputs (R, block, P, n - before - after, S) of samples (R, P, N, S), as convolutions of one channel."""
    taps = operator.tensor("taps", TensorOptions(x.device, x.dtype))
    block, width = taps.shape
    if x.shape[3] == 1:
        return F.conv2d(x.permute(0, 3, 1, 2), taps.view(block, 1, 1, width), stride=(1, block))[..., None]
    if x.shape[1] == 1:
        return F.conv2d(x, taps.view(block, 1, width, 1), stride=(block, 1))[:, :, None]
    return F.conv3d(x[:, None], taps.view(block, 1, 1, width, 1), stride=(1, block, 1))


def _band_convolution(operator: BlockOperator, y: torch.Tensor) -> torch.Tensor:
    """Interior outputs (R, block, P, n - before - after, S) of subbands (R, block, P, n, S)."""
    taps = operator.tensor("taps", TensorOptions(y.device, y.dtype))
    block = operator.block
    kernel = taps.view(block, -1, block).transpose(1, 2)  # (output, input, offset)
    if y.shape[4] == 1:
        return F.conv2d(y[..., 0], kernel[:, :, None, :])[..., None]
    if y.shape[2] == 1:
        return F.conv2d(y[:, :, 0], kernel[:, :, :, None])[:, :, None]
    return F.conv3d(y, kernel[:, :, None, :, None])


def _analysis_cascade(x: np.ndarray, num_levels: int, filters: WaveletFilters, boundary: str) -> np.ndarray:
    """Level by level as in the textbook: (R, N) -> (R, N), the subbands of a block side by side."""
    length = len(filters.dec_lo)
    x = x[:, None]
    for _ in range(num_levels):
        size = x.shape[-1]
        extended = _extend(x, length, boundary)
        starts = length + np.arange(0, size, 2) + length // 2  # y[n] = sum_k f[k] x[2n + length/2 - k]
        low, high = (
            sum(tap * extended[..., starts - k] for k, tap in enumerate(taps))
            for taps in (filters.dec_lo, filters.dec_hi)
        )
        x = np.stack([low, high], axis=2).reshape(len(x), -1, size // 2)
    return x.transpose(0, 2, 1).reshape(len(x), -1)


def _synthesis_cascade(y: np.ndarray, num_levels: int, filters: WaveletFilters, boundary: str) -> np.ndarray:
    length = len(filters.rec_lo)
    y = y.reshape(len(y), -1, 2**num_levels).transpose(0, 2, 1)
    for _ in range(num_levels):
        size = 2 * y.shape[-1]
        upsampled = np.zeros((len(y), y.shape[1] // 2, 2, size))
        upsampled[:, :, 0, 0::2] = y[:, 0::2]
        # Odd places, where a whole-sample reflection of the signal maps the high band onto itself.
        upsampled[:, :, 1, 1::2] = y[:, 1::2]
        extended = _extend(upsampled, length, boundary)
        at = length + np.arange(size) + length // 2 - 1  # x[m] = sum_k f[k] u[m + length/2 - 1 - k]
        low = sum(tap * extended[:, :, 0, at - k] for k, tap in enumerate(filters.rec_lo))
        high = sum(tap * extended[:, :, 1, at + 1 - k] for k, tap in enumerate(filters.rec_hi))
        y = low + high
    return y.reshape(len(y), -1)


def _extend(x: np.ndarray, margin: int, boundary: str) -> np.ndarray:
    mode: Literal["wrap", "reflect"] = "wrap" if boundary == "periodization" else "reflect"
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(margin, margin)], mode=mode)


def _stages(num_levels: int) -> list[int]:
    """Levels of each stage: as even as possible, as few as allowed."""
    count = max(1, math.ceil(num_levels / MAX_LEVELS_PER_STAGE))
    return [num_levels // count + (i < num_levels % count) for i in range(count)] if num_levels else []


def _is_whole_sample(taps: np.ndarray) -> bool:
    taps = np.trim_zeros(taps)
    return len(taps) % 2 == 1 and bool(np.allclose(taps, taps[::-1], atol=1e-12))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check_signal(x: torch.Tensor, num_dims: int, num_levels: int) -> None:
    if num_dims not in (1, 2, 3):
        raise ValueError(f"num_dims is {num_dims}; valid: 1, 2, 3")
    if x.ndim != num_dims + 2:
        raise ValueError(f"expected (batch, channels, *{num_dims} sizes), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"expected a floating point tensor, got {x.dtype}")
    if 0 in x.shape:
        raise ValueError(f"empty input of shape {tuple(x.shape)}")
    if any(size % 2**num_levels for size in x.shape[2:]):
        raise ValueError(
            f"sizes {tuple(x.shape[2:])} must be multiples of {2**num_levels} (2**num_levels): pad with the processor"
        )
