"""Recordings of any length in bounded memory: compressed from segments of time, decoded to segments or inside a window.

As `bands.py` does for pictures: what is kept of a whole recording is its codes, and the segments overlap by as far as
latents, and decoded samples, depend on their surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..codec.clips import gain_of
from ..codec.compression import file_of_codes, read_codes
from ..codec.filter_banks import wavelet_filters
from ..codec.limits import MAX_MEMORY

SEGMENT_SAMPLES = 2**20


@torch.no_grad()
def compress_segments(
    model: Any,
    length: int,
    read: Callable[[int, int], np.ndarray],
    *,
    gain: float = 1.0,
    offset: float = 0.0,
    step: float = 1.0,
    num_channels: int | None = None,
    sample_format: str = "",
) -> bytes:
    """The .walloc file of a recording that is read in segments; codes are those of the whole up to last bits.

    Args:
        model: an audio codec, or its encoder alone, with the boundary `symmetric`.
        length: in samples.
        read: called as `read(start, stop)` for samples start..stop - 1, (num_channels, stop - start) floats at the
            codec's rate, in order, some of them twice.
        gain, offset: of the recording, `find_level` measures them.
        step, num_channels: as for `compress`.
        sample_format: as `bitstream.Header` states it.
    """
    halo, block = _halo(model), model.config.patch_size
    step = float(np.float32(step))  # as the file states it
    grid = -(-length // block)
    codes = np.empty((model.config.latent_channels, grid), np.int8)
    for first, last in _pieces(0, grid, SEGMENT_SAMPLES // block):
        start, stop = max(first - halo, 0), min(last + halo, grid)
        samples = torch.from_numpy(np.ascontiguousarray(read(start * block, min(stop * block, length)), np.float32))
        samples = (samples - offset) / gain if gain else torch.zeros_like(samples)  # silence has gain 0
        padded = torch.nn.functional.pad(samples, (0, (stop - start) * block - samples.shape[1]))
        part = model.encode_to_codes(padded[None].to(model.device), step)[0]
        codes[:, first:last] = part[:, first - start : last - start].cpu().numpy()
    fields: dict[str, Any] = {"gain": gain, "offset": offset, "sample_format": sample_format}
    return file_of_codes(model, codes, num_channels, sizes=(length,), step=step, **fields)


@torch.no_grad()
def decompress_segments(
    model: Any,
    blob: bytes,
    *,
    window: tuple[int, int] | None = None,
    max_memory: int | None = MAX_MEMORY,
    max_samples: int | None = None,
) -> Iterator[np.ndarray]:
    """The audio of a .walloc file, segment by segment, as `decompress` gives it up to last bits.

    Args:
        model: the audio codec that wrote it, with its decoder.
        blob: the file.
        window: (start, length) in samples, all by default. Its codes are all decoded, its samples only in the window.
        max_memory, max_samples: as for `decompress_codes`, since the samples are not held; None for no limit.

    Yields:
        float32 (num_channels, samples), from the start.

    Raises:
        ValueError: a window that is not inside the recording, a decoder that needs all of it at once.
        WallocFormatError: see `decompress`.
    """
    header, codes = read_codes(model, blob, max_memory, None, max_samples)
    length, block = header.sizes[0], model.config.patch_size
    start, count = window or (0, length)
    if not 0 <= start < start + count <= length:
        raise ValueError(f"a window of {count} samples at {start} is not inside a recording of {length}")
    reach = getattr(model.decoder, "receptive_field", None)
    if reach is None:
        raise ValueError(f"the decoder {model.config.decoder_type!r} needs all of a recording at once: use decompress")
    halo = reach + _halo(model) + -(-(model.config.post_filter_size // 2) // block)
    for first, last in _pieces(start // block, -(-(start + count) // block), SEGMENT_SAMPLES // block):
        low, high = max(first - halo, 0), min(last + halo, codes.shape[1])
        part = torch.from_numpy(np.ascontiguousarray(codes[None, :, low:high])).to(model.device)
        samples = model.decode(part, step=header.step)[0][0].float()
        kept = slice(max(first * block, start) - low * block, min(last * block, start + count) - low * block)
        samples = samples[:, kept].mul(header.gain).add_(header.offset)
        if samples.sum().isnan():
            raise ValueError("the decoder gives NaN: the weights of the model are damaged")
        yield samples.cpu().numpy()


def find_level(length: int, read: Callable[[int, int], np.ndarray]) -> tuple[float, float]:
    """(gain, offset) with which a recording has mean 0 and peak 0.5, as the feature extractor finds them."""
    total, count, low, high = 0.0, 0, np.inf, -np.inf
    for start, stop in _pieces(0, length, SEGMENT_SAMPLES):
        samples = read(start, stop)
        if not np.isfinite(samples).all():
            raise ValueError("the signal holds NaN or infinite values")
        total, count = total + float(samples.sum(dtype=np.float64)), count + samples.size
        low, high = min(low, float(samples.min())), max(high, float(samples.max()))
    offset = float(np.float32(total / max(count, 1)))
    return float(np.float32(gain_of(max(high - offset, offset - low), offset))), offset


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, max(size, 1)):
        yield first, min(first + max(size, 1), stop)


def _halo(model: Any) -> int:
    """Latents on either side that the wavelet transform reaches, whatever its levels."""
    config = model.config
    if config.boundary != "symmetric" or config.encoder_padding:
        raise ValueError(f"boundary {config.boundary!r}, encoder_padding {config.encoder_padding}: use compress")
    return -(-len(wavelet_filters(config.wavelet).dec_lo) // 2) + 1
