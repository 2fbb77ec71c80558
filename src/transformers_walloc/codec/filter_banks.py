"""Filter banks of wavelets and what a cascade of them does to a block of samples, in double precision with numpy.

Away from the ends of a signal a cascade of `s` levels maps every block of `2**s` samples and its neighbours to `2**s`
coefficients in the same way. `block_operator` reads these taps, and what happens at the ends, off the cascade.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

Boundary = Literal["periodization", "symmetric"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)

# One stage of s levels costs 2**s * (filter length) multiply-adds a sample, so deep transforms run in several stages.
MAX_LEVELS_PER_STAGE = 4


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
    """Filters of a discrete wavelet by its PyWavelets name; `bior4.4` (CDF 9/7) and `haar` are built in.

    Raises:
        ValueError: the name is not that of a discrete wavelet.
        ImportError: another wavelet is asked for and PyWavelets is not installed.
    """
    if name == "bior4.4":
        dec_lo = np.array([0.0, *_CDF97_DEC_LO[:0:-1], *_CDF97_DEC_LO])
        rec_lo = np.array([0.0, *_CDF97_REC_LO[:0:-1], *_CDF97_REC_LO, 0.0, 0.0])
        sign = (-1.0) ** np.arange(10)
        return WaveletFilters(dec_lo, -sign * rec_lo, rec_lo, sign * dec_lo)
    if name == "haar":
        low, high = np.full(2, math.sqrt(0.5)), np.array([-math.sqrt(0.5), math.sqrt(0.5)])
        return WaveletFilters(low, high, low, -high)
    try:
        import pywt
    except ImportError as error:
        raise ImportError(
            f"wavelet {name!r} needs PyWavelets: pip install 'transformers-walloc[wavelets]'; 'bior4.4' and 'haar' are "
            "built in"
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
    min_blocks: int

    @property
    def block(self) -> int:
        """Samples of a block, as many as subbands."""
        return 1 << self.num_levels


@functools.cache
def block_operator(
    direction: Literal["analysis", "synthesis"], num_levels: int, wavelet: str, boundary: str
) -> BlockOperator:
    """Read the operator of `num_levels` levels off the matrix of a signal long enough for its ends not to meet."""
    block = 2**num_levels
    num_blocks = 2 * (len(wavelet_filters(wavelet).dec_lo) + 1)
    matrix = dense_matrix(direction, num_levels, wavelet, boundary, num_blocks * block)
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
    min_blocks = max(m.shape[1] for m in (taps, head, tail) if m is not None) // block
    return BlockOperator(direction, num_levels, wavelet, boundary, before, after, taps, head, tail, min_blocks)


def impulse_responses(num_levels: int, wavelet: str) -> tuple[int, np.ndarray]:
    """What the samples of a block contribute to the subbands of the blocks around it, in the middle of a long signal.

    Returns:
        `before` and an array (1 + before + after, block, bands): coefficients of block i are the sum over k of block
        i + k - before of the signal times `array[k]`. Any depth; the bands of 1-D signals are in public order.
    """
    block = 2**num_levels
    filters = wavelet_filters(wavelet)
    reach = len(filters.dec_lo) + 1  # in blocks, to either side
    signal = np.zeros((block, (2 * reach + 1) * block))
    signal[:, reach * block : (reach + 1) * block] = np.eye(block)
    bands = _analysis_cascade(signal, num_levels, filters, "periodization").reshape(block, 2 * reach + 1, block)
    responses = bands.transpose(1, 0, 2)[::-1]  # (offset of the input, samples, bands)
    used = np.flatnonzero(np.abs(responses).max(axis=(1, 2)))
    return reach - int(used[0]), np.ascontiguousarray(responses[used[0] : used[-1] + 1])


@functools.cache
def dense_matrix(direction: str, num_levels: int, wavelet: str, boundary: str, size: int) -> np.ndarray:
    """Matrix (size, size) of the transform of `size` samples; the subbands of a block are side by side."""
    cascade = _analysis_cascade if direction == "analysis" else _synthesis_cascade
    return np.ascontiguousarray(cascade(np.eye(size), num_levels, wavelet_filters(wavelet), boundary).T)


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


def stages(num_levels: int) -> list[int]:
    """Levels of each stage: as even as possible, as few as allowed."""
    count = max(1, math.ceil(num_levels / MAX_LEVELS_PER_STAGE))
    return [num_levels // count + (i < num_levels % count) for i in range(count)] if num_levels else []


def _is_whole_sample(taps: np.ndarray) -> bool:
    taps = np.trim_zeros(taps)
    return len(taps) % 2 == 1 and bool(np.allclose(taps, taps[::-1], atol=1e-12))
