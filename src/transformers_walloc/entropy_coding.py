"""Integer latents <-> bytes: a range coder with context models made for WaLLoC codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import constriction
import numpy as np

_CATEGORICAL = constriction.stream.model.Categorical


@dataclass(frozen=True)
class EntropyTables:
    """What encoder and decoder must share: small integer arrays, kept with the codec's weights.

    `scales[c]` is the scale class (0..31) of latent channel c.
    """

    scales: np.ndarray

    @classmethod
    def default(cls, num_channels: int) -> EntropyTables:
        """Generic tables for a codec that nobody has fitted tables for."""
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        return cls(np.full(num_channels, 10, np.uint8))

    @property
    def num_channels(self) -> int:
        return len(self.scales)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """A flat dict of small integer arrays, fit for safetensors."""
        return {"scales": self.scales}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EntropyTables:
        """The inverse of `to_arrays`; raises ValueError for anything malformed."""
        if set(arrays) != {"scales"}:
            raise ValueError(f"entropy tables need the array 'scales', got {sorted(arrays)}")
        scales = np.asarray(arrays["scales"])
        if scales.ndim != 1 or scales.size == 0 or scales.dtype != np.uint8 or scales.max() > 31:
            raise ValueError("entropy tables: 'scales' must be a non-empty uint8 vector of values 0..31")
        return cls(scales)


def fit_entropy_tables(codes: Sequence[np.ndarray]) -> EntropyTables:
    """Fit tables to a list of int8 codes, each (C, h, w) or (C, t)."""
    if not codes:
        raise ValueError("no codes to fit entropy tables on")
    mean = np.mean([np.abs(item.astype(np.float64)).reshape(len(item), -1).mean(1) for item in codes], axis=0)
    return EntropyTables(np.clip(np.rint(np.log2(np.maximum(mean, 1e-3)) * 3 + 10), 0, 31).astype(np.uint8))


def encode_codes(codes: np.ndarray, tables: EntropyTables) -> bytes:
    """Code the int8 latents of one item, (C, h, w) or (C, t), as bytes; C may be the first few of the tables' channels."""
    codes = np.asarray(codes)
    _check_shape(codes.shape, tables)
    if codes.dtype != np.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}")
    encoder = constriction.stream.queue.RangeEncoder()
    for channel, scale in zip(codes, tables.scales, strict=False):
        encoder.encode(channel.ravel().astype(np.int32) + 128, _model(scale))
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_codes(data: bytes, shape: Sequence[int], tables: EntropyTables) -> np.ndarray:
    """The inverse of `encode_codes`: int8 codes of the given shape, or ValueError for damaged data."""
    shape = tuple(int(size) for size in shape)
    _check_shape(shape, tables)
    if len(data) % 4:
        raise ValueError("damaged codes: the length is not a multiple of 4 bytes")
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    out = np.empty(shape, np.int8)
    for channel, scale in zip(out, tables.scales, strict=False):
        channel[...] = (decoder.decode(_model(scale), channel.size) - 128).reshape(channel.shape)
    return out


def _model(scale):
    ratio = [32768 >> 1, 65536 * 255 // 256]
    decay = ratio[0] + (ratio[1] - ratio[0]) * int(scale) // 31
    weights, value = np.zeros(129), 1 << 40
    for k in range(129):
        weights[k] = max(value >> 20, 1)
        value = value * decay >> 16
    return _CATEGORICAL(np.concatenate([weights[128:0:-1], weights[:128]]), perfect=False)


def _check_shape(shape, tables):
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"codes must have the shape (C, t) or (C, h, w) without empty axes, got {shape}")
    if shape[0] > tables.num_channels:
        raise ValueError(f"codes have {shape[0]} channels, the entropy tables {tables.num_channels}")
