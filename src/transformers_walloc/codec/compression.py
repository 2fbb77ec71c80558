"""`compress` and `decompress` of the models: tensors <-> .walloc files.

Every signal of a batch is cropped to its own size, padded to whole patches, and encoded by itself, so that its file
does not depend on what else is in the batch.

```
compress:   signal -> latents (float32) -> codes -> entropy coder -> file
decompress: file -> entropy coder -> codes -> signal, cropped to its original size
```
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from .bitstream import (
    MAX_CODEC_BYTES,
    MAX_PIXELS,
    MAX_SAMPLES,
    Header,
    WallocCodecMismatchError,
    WallocFormatError,
    pack,
    tables_id,
    unpack,
)
from .entropy_coding import EntropyTables, decode_codes, encode_codes
from .rate_control import RateControl


class _Compression:
    """What encoder-only and full models of all signals share."""

    # From the model that this class is mixed into.
    config: Any
    device: torch.device
    encoder: Any
    entropy_tables: torch.Tensor | None
    fingerprint: Callable[[], str]
    quantize: Callable[..., torch.Tensor]
    _psnr: Callable[..., float]  # of full models only

    def set_entropy_tables(self, tables: EntropyTables | None) -> None:
        """Probability tables fitted to this codec, saved with the weights; None for the generic ones.

        Files are tied to the tables that they were written with: fit them before the codec is published.
        """
        if tables is None:
            data = b""
        elif tables.num_channels != self.config.latent_channels:
            raise ValueError(
                f"the tables are for {tables.num_channels} channels; the codec has {self.config.latent_channels}"
            )
        else:
            data = safetensors.numpy.save(dict(tables.to_arrays()))
        self.config.entropy_tables_size = len(data)
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device) if data else None
        self.entropy_tables = buffer

    def get_entropy_tables(self) -> EntropyTables:
        """The tables that `compress` and `decompress` use."""
        return self._tables()[0]

    @torch.no_grad()
    def decompress_codes(
        self,
        blobs: bytes | Sequence[bytes],
        max_pixels: int | None = MAX_PIXELS,
        max_samples: int | None = MAX_SAMPLES,
    ) -> list[torch.Tensor]:
        """Codes of .walloc files without decoding them, for models that learn from latents.

        Returns:
            A list of int8 tensors (latent_channels, *grid) on the CPU. Times the step of the file,
            `bitstream.unpack(blob)[0].step`, they are latents.

        Raises:
            WallocFormatError: see `decompress`.
        """
        files = [blobs] if isinstance(blobs, bytes) else blobs
        return [torch.from_numpy(self._read(blob, max_pixels, max_samples)[1]) for blob in files]

    def _read(self, blob: bytes, max_pixels: int | None, max_samples: int | None) -> tuple[Header, np.ndarray]:
        header, payload = unpack(blob, max_pixels, max_samples)
        self._check_codec(header)
        tables, identity = self._tables()
        if header.tables != identity:
            raise WallocCodecMismatchError(
                f"the file was written with other entropy tables ({header.tables}) than this checkpoint of "
                f"{self._name()!r} carries ({identity}); load the checkpoint that wrote it"
            )
        codes = np.zeros(header.latent_shape, np.int8)
        try:
            codes[: header.coded_channels] = decode_codes(payload, header.coded_shape, tables)
        except WallocFormatError:
            raise
        except ValueError as error:
            raise WallocFormatError(f"the latents are damaged: {error}") from error
        limit = 2 ** (header.latent_bits - 1) - 1
        if codes.min() < -limit or codes.max() > limit:
            raise WallocFormatError(f"the latents are damaged: codes outside {-limit}..{limit}")
        return header, codes

    def _check_codec(self, header: Header) -> None:
        config = self.config
        kind = "audio" if config.num_dims == 1 else "image"
        if header.kind != kind:
            raise WallocCodecMismatchError(
                f"the file holds {header.kind} of codec {header.codec or header.fingerprint!r}; {self._name()!r} is "
                f"for {kind}: load the codec that the file names"
            )
        if header.fingerprint != self.fingerprint():
            raise WallocCodecMismatchError(
                f"the file was written by codec {header.codec or 'without a name'!r} (latents {header.fingerprint}), "
                f"this model is {self._name()!r} (latents {self.fingerprint()}): load the codec that wrote it, at the "
                "same revision"
            )
        names = ("num_channels", "num_levels", "latent_channels", "latent_bits", "encoder_padding")
        for name in names:
            if getattr(header, name) != getattr(config, name):
                raise WallocFormatError(
                    f"the file states {name} {getattr(header, name)}; the codec it names has {getattr(config, name)}"
                )

    def _compress_batch(
        self, signals: Sequence[torch.Tensor], fields: Sequence[dict], num_channels: int | None, rate: RateControl
    ) -> list[bytes]:
        """Signals (channels, *padded sizes), each with the header fields that belong to it alone."""
        config = self.config
        if config.latent_bits > 8:
            raise ValueError(f"latent_bits is {config.latent_bits}; .walloc files hold codes of at most 8 bits")
        kept = config.latent_channels if num_channels is None else num_channels
        if not 1 <= kept <= config.latent_channels:
            raise ValueError(f"num_channels is {num_channels}; valid: 1 to {config.latent_channels}")
        tables, identity = self._tables()
        shared = {
            "kind": "audio" if config.num_dims == 1 else "image",
            "num_channels": config.num_channels,
            "num_levels": config.num_levels,
            "latent_channels": config.latent_channels,
            "latent_bits": config.latent_bits,
            "encoder_padding": config.encoder_padding,
            "coded_channels": kept,
            "fingerprint": self.fingerprint(),
            "tables": identity,
            "codec": self._name(),
        }
        headers = [Header(**shared, **own) for own in fields]
        return [self._compress_one(*pair, rate, tables) for pair in zip(signals, headers, strict=True)]

    def _compress_one(self, signal: torch.Tensor, header: Header, rate: RateControl, tables: EntropyTables) -> bytes:
        if not signal.isfinite().all():
            raise ValueError("the signal holds NaN or infinite values")
        if rate.name == "psnr" and not hasattr(self, "_psnr"):
            raise ValueError("psnr as a target needs the decoder: load the full model, or choose a step or a rate")
        latents = self.encoder(signal[None].float())
        latents[:, header.coded_channels :] = 0

        def quantized(step: float) -> tuple[torch.Tensor, float]:
            step = float(np.float32(step))  # as the file states it
            return self.quantize(latents, step), step

        def write(codes: torch.Tensor, step: float) -> bytes:
            kept = codes[0, : header.coded_channels].cpu().contiguous().numpy()
            return pack(dataclasses.replace(header, step=step), encode_codes(kept, tables))

        if rate.name is None:
            return write(*quantized(rate.step))
        last = 2.0**header.latent_bits  # all codes are zero there
        if rate.name == "psnr":
            return write(*rate.search(quantized, lambda trial: self._psnr(signal, *trial, header.sizes), last))
        # The unit of the rate: bits per pixel, or kilobits per second.
        scale = math.prod(header.sizes) / 8
        if header.sampling_rate:
            scale = header.sizes[0] / header.sampling_rate * 125
        return rate.search(lambda step: write(*quantized(step)), lambda file: len(file) / scale, last)

    def _tables(self) -> tuple[EntropyTables, str]:
        buffer = self.entropy_tables
        data = b"" if buffer is None or not buffer.any() else buffer.cpu().numpy().tobytes()
        return _parse_tables(data, self.config.latent_channels)

    def _name(self) -> str:
        return codec_name(self.config._name_or_path)


class ImageCompression(_Compression):
    """`compress` of image codecs."""

    @torch.no_grad()
    def compress(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor | None = None,
        step: float = 1.0,
        num_channels: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
    ) -> list[bytes]:
        """
        Args:
            pixel_values: (batch, num_channels, height, width) in [-0.5, 0.5] as the processor returns them.
            original_sizes: (batch, 2), heights and widths before padding, to which `decompress` crops; by default
                nothing is padding.
            step: width of a quantisation cell, at least 1; larger gives smaller files and coarser latents.
            num_channels: latent channels to keep, from the first; the others are decoded as zero. All by default.
            bpp: bits per pixel of the whole file that must not be exceeded; the finest step that keeps to it is chosen.
            psnr: peak signal-to-noise ratio in dB of the 8-bit result that must be reached; the coarsest step that
                does is chosen. Needs a model with a decoder.

        Returns:
            A .walloc file for each image.

        Raises:
            ValueError: NaN or infinite values, sizes that do not fit, more than 8 `latent_bits`, a target out of reach.
        """
        self._check_signal(pixel_values)  # type: ignore[attr-defined]
        sizes = _image_sizes(pixel_values, original_sizes)
        patch = self.config.patch_size
        signals = [
            image[:, : -(-height // patch) * patch, : -(-width // patch) * patch]
            for image, (height, width) in zip(pixel_values, sizes, strict=True)
        ]
        rate = RateControl(step, ("bpp", bpp), psnr)
        return self._compress_batch(signals, [{"sizes": size} for size in sizes], num_channels, rate)


class ImageDecompression(ImageCompression):
    """`compress` and `decompress` of image codecs with a decoder."""

    decode: Callable[..., Any]

    @torch.no_grad()
    def decompress(self, blobs: bytes | Sequence[bytes], max_pixels: int | None = MAX_PIXELS) -> list[torch.Tensor]:
        """
        Args:
            blobs: one or more .walloc files.
            max_pixels: refuse larger images (after padding to whole patches) before anything is decoded; None for no
                limit. The default is Pillow's, 179 megapixels.

        Returns:
            A list of (num_channels, height, width) tensors in [-0.5, 0.5] on the model's device, cropped to the
            original sizes.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        files = [blobs] if isinstance(blobs, bytes) else blobs
        pixels = []
        for blob in files:
            header, codes = self._read(blob, max_pixels, MAX_SAMPLES)
            pixels.append(self._reconstruct(torch.from_numpy(codes)[None], header.step, header.sizes))
        return pixels

    def _reconstruct(self, codes: torch.Tensor, step: float, sizes: tuple[int, ...]) -> torch.Tensor:
        pixels = self.decode(codes.to(self.device), step=step).pixel_values[0].float()
        return pixels[:, : sizes[0], : sizes[1]]

    def _psnr(self, signal: torch.Tensor, codes: torch.Tensor, step: float, sizes: tuple[int, ...]) -> float:
        decoded = self._reconstruct(codes, step, sizes)
        levels = [((x.float() + 0.5).clamp(0, 1) * 255).round() for x in (signal[:, : sizes[0], : sizes[1]], decoded)]
        return _decibels(torch.mean((levels[0] - levels[1].to(signal.device)).double() ** 2).item() / 255**2)


class AudioCompression(_Compression):
    """`compress` of audio codecs."""

    @torch.no_grad()
    def compress(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | Sequence[float] | None = None,
        offset: torch.Tensor | Sequence[float] | None = None,
        step: float = 1.0,
        num_channels: int | None = None,
        kbps: float | None = None,
        psnr: float | None = None,
    ) -> list[bytes]:
        """
        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5] as the feature extractor returns them.
            padding_mask: (batch, length), 1 for samples and 0 for padding, which must come last.
            gain, offset: (batch,), stored so that `decompress` can return `gain * decoded + offset`; 1 and 0 by
                default.
            step: width of a quantisation cell, at least 1; larger gives smaller files and coarser latents.
            num_channels: latent channels to keep, from the first; the others are decoded as zero. All by default.
            kbps: kilobits per second of the whole file that must not be exceeded; the finest step that keeps to it is
                chosen.
            psnr: peak signal-to-noise ratio in dB of the normalised clip, mapped to [0, 1], that must be reached; the
                coarsest step that does is chosen. Needs a model with a decoder.

        Returns:
            A .walloc file for each clip.

        Raises:
            ValueError: NaN or infinite values, padding that is not at the end, more than 8 `latent_bits`, a target out
                of reach.
        """
        self._check_signal(input_values)  # type: ignore[attr-defined]
        lengths = _audio_lengths(input_values, padding_mask)
        gains, offsets = _scalars("gain", gain, 1.0, len(lengths)), _scalars("offset", offset, 0.0, len(lengths))
        patch = self.config.patch_size
        signals = [clip[:, : -(-n // patch) * patch] for clip, n in zip(input_values, lengths, strict=True)]
        fields = [
            {"sizes": (n,), "gain": g, "offset": o, "sampling_rate": self.config.sampling_rate}
            for n, g, o in zip(lengths, gains, offsets, strict=True)
        ]
        return self._compress_batch(signals, fields, num_channels, RateControl(step, ("kbps", kbps), psnr))


class AudioDecompression(AudioCompression):
    """`compress` and `decompress` of audio codecs with a decoder."""

    decode: Callable[..., Any]

    @torch.no_grad()
    def decompress(self, blobs: bytes | Sequence[bytes], max_samples: int | None = MAX_SAMPLES) -> list[torch.Tensor]:
        """
        Args:
            blobs: one or more .walloc files.
            max_samples: refuse clips of more samples per channel before anything is decoded; None for no limit. The
                default is three hours at 48 kHz.

        Returns:
            A list of float32 waveforms (num_channels, length) on the model's device, with their original length, gain
            and offset.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        files = [blobs] if isinstance(blobs, bytes) else blobs
        waveforms = []
        for blob in files:
            header, codes = self._read(blob, MAX_PIXELS, max_samples)
            waveform = self._reconstruct(torch.from_numpy(codes)[None], header.step, header.sizes)
            waveforms.append(waveform * header.gain + header.offset)
        return waveforms

    def _reconstruct(self, codes: torch.Tensor, step: float, sizes: tuple[int, ...]) -> torch.Tensor:
        return self.decode(codes.to(self.device), step=step).audio_values[0].float()[:, : sizes[0]]

    def _psnr(self, signal: torch.Tensor, codes: torch.Tensor, step: float, sizes: tuple[int, ...]) -> float:
        error = signal[:, : sizes[0]].float() - self._reconstruct(codes, step, sizes).to(signal.device)
        return _decibels(torch.mean(error.double() ** 2).item())


def codec_name(name_or_path: str | os.PathLike | None) -> str:
    """What files call a codec: its Hub id, without the namespace walloc, or the name of its folder.

    Never a path of the machine that wrote the file.
    """
    text = str(name_or_path or "").replace("\\", "/").rstrip("/")
    if cached := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", text):
        text = "/".join(cached.groups())
    elif text.count("/") != 1 or text[0] in "./~" or os.path.isdir(text):
        text = text.rsplit("/", 1)[-1]
    text = "".join(c if c.isprintable() else "?" for c in text.removeprefix("walloc/"))
    return text.encode(errors="replace")[:MAX_CODEC_BYTES].decode(errors="ignore")


@functools.lru_cache(maxsize=8)
def _parse_tables(data: bytes, latent_channels: int) -> tuple[EntropyTables, str]:
    if data:
        try:
            tables = EntropyTables.from_arrays(safetensors.numpy.load(data))
        except SafetensorError as error:
            raise ValueError(f"the entropy tables of the checkpoint are damaged: {error}") from error
        if tables.num_channels != latent_channels:
            raise ValueError(f"the checkpoint's entropy tables are for {tables.num_channels} channels")
    else:
        tables = EntropyTables.default(latent_channels)
    return tables, tables_id(tables.to_arrays())


def _image_sizes(pixel_values: torch.Tensor, original_sizes: Any) -> list[tuple[int, int]]:
    batch, _, height, width = pixel_values.shape
    if original_sizes is None:
        return [(height, width)] * batch
    sizes = torch.as_tensor(original_sizes)
    if sizes.shape != (batch, 2):
        raise ValueError(f"original_sizes must be ({batch}, 2), got {tuple(sizes.shape)}")
    pairs = [(int(h), int(w)) for h, w in sizes.tolist()]
    for h, w in pairs:
        if not (1 <= h <= height and 1 <= w <= width):
            raise ValueError(f"original size {h}x{w} does not fit pixel_values of {height}x{width}")
    return pairs


def _audio_lengths(input_values: torch.Tensor, padding_mask: torch.Tensor | None) -> list[int]:
    batch, _, length = input_values.shape
    if padding_mask is None:
        return [length] * batch
    mask = torch.as_tensor(padding_mask)
    if mask.shape != (batch, length):
        raise ValueError(f"padding_mask must be ({batch}, {length}), got {tuple(mask.shape)}")
    mask = mask != 0
    lengths = mask.sum(dim=1)
    if not torch.equal(mask, torch.arange(length, device=mask.device) < lengths[:, None]):
        raise ValueError("padding_mask must be 1 for the samples and then 0 for the padding: pad on the right")
    if lengths.min() < 1:
        raise ValueError("a clip of the batch is empty: its padding_mask is 0 throughout")
    return lengths.tolist()


def _scalars(name: str, values: Any, default: float, count: int) -> list[float]:
    if values is None:
        return [default] * count
    values = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    if len(values) != count:
        raise ValueError(f"{name} must have one value for each of the {count} clips, got {len(values)}")
    return values


def _decibels(mean_square_error: float) -> float:
    return math.inf if mean_square_error == 0 else -10 * math.log10(mean_square_error)
