"""Tensors <-> .walloc files.

Every signal of a batch is cropped to its own size, padded to whole patches, and encoded by itself, so that its file
does not depend on what else is in the batch.

```
compress:   signal -> latents (float32) -> codes -> entropy coder -> file
decompress: file -> entropy coder -> codes -> signal, cropped to its original size
```
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from .bitstream import (
    Header,
    WallocCodecMismatchError,
    pack,
    unpack,
)
from .entropy_coding import EntropyTables, decode_codes, encode_codes
from .identity import called, codec_name, tables_from_buffer
from .kernels import library
from .limits import MAX_MEMORY, check_memory, check_payload
from .pixels import scale_pixels, to_8_bits
from .rate_control import RateControl, decibels
from .refinement import refine_latents
from .varints import WallocFormatError

Item = TypeVar("Item")


@torch.no_grad()
def compress(
    model: Any,
    signals: torch.Tensor,
    *,
    sizes: Sequence[tuple[int, ...]] | None = None,
    gains: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    header_fields: Sequence[Mapping[str, Any]] | None = None,
    step: float = 1.0,
    num_channels: int | None = None,
    bpp: float | None = None,
    kbps: float | None = None,
    psnr: float | None = None,
    refine: int = 0,
) -> list[bytes]:
    """A .walloc file for each signal of a batch; see the models' own `compress` for what is not said here.

    Args:
        model: a codec, or its encoder alone.
        sizes: of each signal without its padding, (height, width), (length,) or (depth, height, width); by default
            nothing is padding.
        header_fields: of each signal, what its file says beside that, see `bitstream.Header`: `source`,
            `sample_format`, `raster`, `side_data`, `frame_rate`. A target of size counts them.

    Raises:
        ValueError: NaN or infinite values, sizes that do not fit, a rate of the other kind of signal, more than 8
            `latent_bits`, a target out of reach, a PSNR or a search without a decoder.
    """
    model.check_signal(signals)
    config = model.config
    audio = config.kind == "audio"
    if (bpp if audio else kbps) is not None:
        raise ValueError("bpp is for images: use kbps" if audio else "kbps is for audio: use bpp")
    if not audio and (gains is not None or offsets is not None):
        raise ValueError("gains and offsets are for audio")
    rate = RateControl(step, ("kbps", kbps) if audio else ("bpp", bpp), psnr)
    if refine < 0:
        raise ValueError(f"refine is {refine}; it must be 0 or more steps")
    if (psnr is not None or refine) and not hasattr(model, "decode"):
        wish = "refining codes" if refine else "psnr as a target"
        raise ValueError(
            f"{wish} needs the decoder, which {type(model).__name__} lacks: load the full model, or choose a step or a "
            "rate"
        )
    shared, tables = _shared_fields(model, num_channels)
    count, patch = len(signals), config.patch_size
    headers = [
        Header(**shared, sizes=size, gain=gain, offset=offset, **fields)
        for size, gain, offset, fields in zip(
            _sizes(signals, sizes),
            _one_each("gain", gains, 1.0, count),
            _one_each("offset", offsets, 0.0, count),
            _one_each("header_fields", header_fields, {}, count),
            strict=True,
        )
    ]
    files = []
    for signal, header in zip(signals, headers, strict=True):
        whole = (slice(None), *(slice(-(-size // patch) * patch) for size in header.sizes))
        files.append(_compress_one(model, signal[whole], header, rate, tables, refine))
    return files


def file_of_codes(model: Any, codes: np.ndarray, num_channels: int | None = None, **fields: Any) -> bytes:
    """The .walloc file of int8 codes (latent_channels, *grid); `fields` of its header: `sizes`, `step` and others."""
    shared, tables = _shared_fields(model, num_channels)
    header = Header(**shared, **fields)
    return pack(header, encode_codes(codes[: header.coded_channels], tables))


def read_codes(model: Any, blob: bytes, *limits: int | None) -> tuple[Header, np.ndarray]:
    """Header and codes of one file; the limits are `max_memory`, `max_pixels`, `max_samples` of `decompress_codes`."""
    return next(_read(model, blob, False, *limits))


@torch.no_grad()
def decompress(
    model: Any,
    blobs: bytes | Sequence[bytes],
    *,
    max_memory: int | None = MAX_MEMORY,
    max_pixels: int | None = None,
    max_samples: int | None = None,
) -> list[torch.Tensor]:
    """The signals of .walloc files, as the models' own `decompress` says; `limits.decoding_memory` tells what it takes.

    Returns:
        A list of float32 tensors on the model's device: images (num_channels, height, width) or volumes (num_channels,
        depth, height, width) in [-0.5, 0.5], or waveforms (num_channels, length) at their original level.
    """
    signals = []
    limits = max_memory, max_pixels, max_samples
    for header, codes in _read(model, blobs, True, *limits):
        signal = _decode(model, torch.from_numpy(codes)[None], header.step, header.sizes)
        if signal.sum().isnan():  # infinite values were clamped
            raise ValueError("the decoder gives NaN: the weights of the model are damaged")
        signals.append(signal.mul_(header.gain).add_(header.offset) if header.kind == "audio" else signal)
    return signals


@torch.no_grad()
def decompress_codes(
    model: Any,
    blobs: bytes | Sequence[bytes],
    *,
    max_memory: int | None = MAX_MEMORY,
    max_pixels: int | None = None,
    max_samples: int | None = None,
) -> list[torch.Tensor]:
    """Codes of .walloc files, as the models' own `decompress_codes` says; the encoder alone is enough."""
    limits = max_memory, max_pixels, max_samples
    files = [blobs] if isinstance(blobs, bytes) else blobs
    threads = min(torch.get_num_threads(), len(files))
    if threads <= 1 or library() is None:  # Python's lock would let one thread run at a time
        return [torch.from_numpy(codes) for _, codes in _read(model, files, False, *limits)]
    parts = [files[k::threads] for k in range(threads)]
    codes: list[Any] = [None] * len(files)
    with ThreadPoolExecutor(threads) as pool:
        for k, part in enumerate(pool.map(lambda part: list(_read(model, part, False, *limits)), parts)):
            codes[k::threads] = [torch.from_numpy(read) for _, read in part]
    return codes


def image_sizes(original_sizes: Any, batch: int, num_dims: int = 2) -> list[tuple[int, ...]] | None:
    """Sizes for `compress` of the (batch, num_dims) that an image processor gives."""
    if original_sizes is None:
        return None
    sizes = torch.as_tensor(original_sizes)
    if sizes.shape != (batch, num_dims):
        raise ValueError(f"original_sizes must be ({batch}, {num_dims}), got {tuple(sizes.shape)}")
    return [tuple(map(int, size)) for size in sizes.tolist()]


def audio_sizes(padding_mask: Any, input_values: torch.Tensor) -> list[tuple[int, ...]] | None:
    """Sizes for `compress` of the (batch, length) that a feature extractor gives."""
    if padding_mask is None:
        return None
    mask = torch.as_tensor(padding_mask)
    batch, length = len(input_values), input_values.shape[-1]
    if mask.shape != (batch, length):
        raise ValueError(f"padding_mask must be ({batch}, {length}), got {tuple(mask.shape)}")
    mask = mask != 0
    lengths = mask.sum(dim=1)
    if not torch.equal(mask, torch.arange(length, device=mask.device) < lengths[:, None]):
        raise ValueError("padding_mask must be 1 for the samples and then 0 for the padding: pad on the right")
    if lengths.min() < 1:
        raise ValueError("a clip of the batch is empty: its padding_mask is 0 throughout")
    return [(count,) for count in lengths.tolist()]


def as_floats(values: Any) -> list[float] | None:
    """Gains or offsets for `compress` of anything that a tensor can be made of."""
    return None if values is None else torch.as_tensor(values, dtype=torch.float64).flatten().tolist()


def _shared_fields(model: Any, num_channels: int | None) -> tuple[dict[str, Any], EntropyTables]:
    """What the headers of all signals have in common, and the tables to code them with."""
    config = model.config
    if config.latent_bits > 8:
        raise ValueError(f"latent_bits is {config.latent_bits}; .walloc files hold codes of at most 8 bits")
    kept = config.latent_channels if num_channels is None else num_channels
    if not 1 <= kept <= config.latent_channels:
        raise ValueError(f"num_channels is {num_channels}; valid: 1 to {config.latent_channels}")
    tables, identity = tables_from_buffer(model.entropy_tables, config.latent_channels)
    shared: dict[str, Any] = {
        "kind": config.kind,
        "num_channels": config.num_channels,
        "num_levels": config.num_levels,
        "latent_channels": config.latent_channels,
        "latent_bits": config.latent_bits,
        "encoder_padding": config.encoder_padding,
        "coded_channels": kept,
        "fingerprint": model.fingerprint(),
        "tables": identity,
        "codec": codec_name(config._name_or_path),
    }
    if config.kind == "audio":
        shared["sampling_rate"] = getattr(config, "sampling_rate")  # noqa: B009 - of audio configurations only
    return shared, tables


def _compress_one(
    model: Any,
    signal: torch.Tensor,
    header: Header,
    rate: RateControl,
    tables: EntropyTables,
    refine: int,
) -> bytes:
    if not signal.isfinite().all():
        raise ValueError("the signal holds NaN or infinite values")
    signal = signal if signal.dtype == torch.uint8 else signal.float()

    def write(codes: torch.Tensor, step: float) -> bytes:
        kept = codes[0, : header.coded_channels].cpu().contiguous().numpy().reshape(header.coded_shape)
        return pack(dataclasses.replace(header, step=step), encode_codes(kept, tables))

    step = float(np.float32(rate.step))  # as the file states it
    if rate.name is None and not refine:
        return write(model.encode_to_codes(signal[None], step), step)
    latents = model.encoder(signal[None])
    latents[:, header.coded_channels :] = 0

    def quantized(step: float) -> tuple[torch.Tensor, float]:
        step = float(np.float32(step))
        return model.quantize(latents, step), step

    def refined(trial: tuple[torch.Tensor, float]) -> tuple[torch.Tensor, float]:
        values = (scale_pixels(signal) if signal.dtype == torch.uint8 else signal).to(latents.device)
        better = refine_latents(model, values, latents, header.sizes, trial[1], refine)
        return model.quantize(better, trial[1]), trial[1]

    # Bytes in the unit of the rate: bits per pixel, or kilobits per second.
    unit = header.sizes[0] / header.sampling_rate * 125 if header.sampling_rate else math.prod(header.sizes) / 8
    beside = len(header.raster) + len(header.side_data)
    if rate.name in ("bpp", "kbps") and beside / unit >= rate.target:
        raise ValueError(
            f"{rate.name} {rate.target:g} is out of reach: what is kept beside the latents takes {beside / unit:.4g}"
        )

    def measure(trial: tuple[torch.Tensor, float]) -> float:
        if rate.name == "psnr":
            return _psnr(model, signal, *trial, header)
        return len(write(*trial)) / unit

    last = 2.0**header.latent_bits  # all codes are zero there
    if rate.name is None:
        return write(*refined(quantized(step)))
    return write(*rate.search(quantized, measure, last, refined if refine else None))


def _decode(model: Any, codes: torch.Tensor, step: float, sizes: tuple[int, ...]) -> torch.Tensor:
    """(1, latent_channels, *grid) codes -> (num_channels, *sizes)."""
    signal = model.decode(codes.to(model.device), step=step)[0][0].float()
    cropped: torch.Tensor = signal[(slice(None), *map(slice, sizes))]
    return cropped


def _psnr(model: Any, signal: torch.Tensor, codes: torch.Tensor, step: float, header: Header) -> float:
    decoded = _decode(model, codes, step, header.sizes).to(signal.device)
    signal = signal[(slice(None), *map(slice, header.sizes))]
    signal = scale_pixels(signal) if signal.dtype == torch.uint8 else signal.float()
    if header.kind == "image":
        signal, decoded = (to_8_bits(x).float() / 255 for x in (signal, decoded))
    error = torch.mean((signal - decoded).double() ** 2).item()
    return decibels(error)


def _read(
    model: Any,
    blobs: bytes | Sequence[bytes],
    decode: bool,
    max_memory: int | None,
    max_pixels: int | None,
    max_samples: int | None,
) -> Iterator[tuple[Header, np.ndarray]]:
    """Headers and codes (latent_channels, *grid), one file at a time."""
    tables, identity = tables_from_buffer(model.entropy_tables, model.config.latent_channels)
    own: set[str] = set()  # fingerprints
    for blob in [blobs] if isinstance(blobs, bytes) else blobs:
        header, payload = unpack(blob, max_pixels, max_samples)
        if header.fingerprint not in own and model.reads(header.fingerprint):
            own.add(header.fingerprint)
        _check_codec(model, header, header.fingerprint in own, identity)
        check_memory(header, model.config, decode, max_memory)
        check_payload(payload, header, tables)
        codes = np.zeros(header.latent_shape, np.int8)
        try:
            read = decode_codes(payload, header.coded_shape, tables)
            codes[: header.coded_channels] = read.reshape(header.coded_channels, *header.grid)
        except WallocFormatError:
            raise
        except ValueError as error:
            raise WallocFormatError(f"the latents are damaged: {error}") from error
        limit = 2 ** (header.latent_bits - 1) - 1
        if codes.min() < -limit or codes.max() > limit:
            raise WallocFormatError(f"the latents are damaged: codes outside {-limit}..{limit}")
        yield header, codes


def _check_codec(model: Any, header: Header, reads: bool, tables: str) -> None:
    config = model.config
    own_name, name = codec_name(config._name_or_path), header.codec
    kind = config.kind
    if header.kind != kind:
        raise WallocCodecMismatchError(
            f"the file holds {header.kind} of {called(name)}; {called(own_name)} is for {kind}: load the codec that "
            "wrote it"
        )
    if not reads:
        raise WallocCodecMismatchError(
            f"the file was written by {called(name)} (latents {header.fingerprint}), this model is "
            f"{called(own_name)} (latents {model.fingerprint()}): load the codec that wrote it, at the same revision"
        )
    for field in ("num_channels", "num_levels", "latent_channels", "latent_bits", "encoder_padding"):
        if getattr(header, field) != getattr(config, field):
            raise WallocFormatError(
                f"the file states {field} {getattr(header, field)}; the codec it names has {getattr(config, field)}"
            )
    if header.tables != tables:
        raise WallocCodecMismatchError(
            f"the file was written with other entropy tables ({header.tables}) than this checkpoint of {own_name!r} "
            f"carries ({tables}); load the checkpoint that wrote it"
        )


def _sizes(signals: torch.Tensor, sizes: Sequence[tuple[int, ...]] | None) -> list[tuple[int, ...]]:
    available = tuple(signals.shape[2:])
    if sizes is None:
        return [available] * len(signals)
    if len(sizes) != len(signals):
        raise ValueError(f"sizes has {len(sizes)} entries for {len(signals)} signals")
    for size in sizes:
        if len(size) != len(available) or not all(1 <= n <= most for n, most in zip(size, available, strict=True)):
            raise ValueError(f"size {'x'.join(map(str, size))} does not fit signals of {'x'.join(map(str, available))}")
    return list(sizes)


def _one_each(name: str, values: Sequence[Item] | None, default: Item, count: int) -> Sequence[Item]:
    if values is None:
        return [default] * count
    if len(values) != count:
        raise ValueError(f"{name} must have one value for each of the {count} signals, got {len(values)}")
    return values
