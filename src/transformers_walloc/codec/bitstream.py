"""The .walloc container: a checked header, the entropy-coded latents of one signal, a checksum.

```
| magic 4 | version 1 | header, about 30 bytes | payload of the entropy coder | CRC-32 4 |
```

docs/concepts/format.md describes every byte. Reading allocates nothing that the header could inflate: all fields are
checked against each other and against the caller's limit first, and whatever is wrong ends in a `WallocFormatError`.
"""

import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from .kinds import KINDS
from .raster_format import RasterFormat
from .side_data import SideData, split_records
from .size_limits import MAX_DECODED_PIXELS, MAX_DECODED_SAMPLES
from .varints import Reader, WallocFormatError, key_of, varint

MAGIC = b"\x89WLC"
VERSION = 1
CODERS = {1: "range"}  # entropy_coding.py
# What the samples of a source were where it is not the usual three colours of 8 bits, or 16 bits of audio.
SAMPLE_FORMATS: dict[str, dict[int, str]] = {
    "image": {1: "gray", 2: "16-bit", 3: "16-bit gray"},
    "audio": {1: "8-bit", 2: "24-bit", 3: "32-bit", 4: "float", 5: "double"},
    "volume": {},
}

MAX_CODEC_BYTES = 64
_MAX_CHANNELS = 2**16
_MAX_SIZE = 2**32 - 1
_MAX_RATE = 2**24  # Hz
_MAX_FLOAT = float(np.finfo(np.float32).max)
# Magic, version, coder << 4 | kind, flags, fingerprint, tables, encoder_padding << 4 | num_levels, latent_bits.
_FIXED = struct.Struct("<4sBBB8s4sBB")
_HAS_STEP, _HAS_CODED_CHANNELS, _HAS_SOURCE, _HAS_SAMPLE_FORMAT, _HAS_RASTER, _HAS_SIDE_DATA = 1, 2, 4, 8, 16, 32


class WallocCodecMismatchError(WallocFormatError):
    """The file is intact but belongs to another codec than the one that should open it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a .walloc file says about itself.

    Args:
        kind: "image", "audio" or "volume".
        sizes: (height, width) in pixels, (length,) in samples or (depth, height, width), before padding.
        num_channels: channels of the signal.
        num_levels: levels of the wavelet packet transform; a latent covers `2**num_levels` samples per axis.
        encoder_padding: latents that the encoder adds at either end of an axis, 0 or 1.
        latent_bits: codes lie in `-(2**(latent_bits - 1) - 1) .. 2**(latent_bits - 1) - 1`; 2 to 8.
        latent_channels: channels of the latents.
        coded_channels: how many of them, from the first, are in the file; the others are zero. All by default.
        step: latents are codes times this factor, at least 1, of float32 precision.
        fingerprint: 16 hexadecimal digits, `model.fingerprint()` of the codec that gives the codes their meaning.
        tables: 8 hexadecimal digits, `tables_id` of the entropy coder's tables.
        codec: name of the codec, a hint for people; at most 64 bytes of UTF-8.
        sampling_rate: of audio, in Hz.
        gain, offset: audio is `gain * decoded + offset`, of float32 precision.
        source: (channels, sampling rate in Hz, length in samples) of the recording that was converted to this audio, if
            they differ; what reads the file may convert back.
        sample_format: what the samples of the source were, so that what reads the file may write the like: "gray",
            "16-bit" or "16-bit gray" of an image; "8-bit", "24-bit", "32-bit", "float" or "double" of audio. Empty for
            the usual, colours of 8 bits and audio of 16.
        frame_rate: of a volume that is a clip, in frames per second; 0 otherwise.
        raster: of an image or a volume of other samples than 8-bit ones, `RasterFormat.pack` of their type, range,
            bands, layout and of which are missing.
        side_data: of an image, `SideData.pack` of its transparency, its colour profile and its TIFF tags.
        coder: entropy coder of the payload, "range".

    Raises:
        WallocFormatError: values that are out of range or contradict each other.
    """

    kind: str
    sizes: tuple[int, ...]
    num_channels: int
    num_levels: int
    latent_channels: int
    fingerprint: str
    tables: str
    coded_channels: int = 0
    latent_bits: int = 8
    encoder_padding: int = 0
    step: float = 1.0
    codec: str = ""
    sampling_rate: int | None = None
    gain: float = 1.0
    offset: float = 0.0
    source: tuple[int, int, int] | None = None
    frame_rate: float = 0.0
    sample_format: str = ""
    raster: bytes = b""
    side_data: bytes = b""
    coder: str = "range"

    def __post_init__(self) -> None:
        for name in ("step", "gain", "offset", "frame_rate"):
            object.__setattr__(self, name, _float32(name, getattr(self, name)))
        if not self.coded_channels:
            object.__setattr__(self, "coded_channels", self.latent_channels)
        if self.kind not in KINDS:
            raise WallocFormatError(f"unknown kind of signal {self.kind!r}; valid: {', '.join(KINDS)}")
        if self.coder not in CODERS.values():
            raise WallocFormatError(f"unknown entropy coder {self.coder!r}; valid: {', '.join(CODERS.values())}")
        if len(self.sizes) != self.num_dims:
            raise WallocFormatError(f"sizes of {self.kind} are {self.num_dims} numbers, got {self.sizes}")
        for size in self.sizes:
            _check_range("size", size, 1, _MAX_SIZE)
        _check_range("num_channels", self.num_channels, 1, _MAX_CHANNELS)
        _check_range("num_levels", self.num_levels, 1, 12)
        _check_range("encoder_padding", self.encoder_padding, 0, 1)
        _check_range("latent_bits", self.latent_bits, 2, 8)
        subbands = self.num_channels * self.patch_size**self.num_dims
        _check_range("latent_channels", self.latent_channels, 1, min(subbands, _MAX_CHANNELS))
        _check_range("coded_channels", self.coded_channels, 1, self.latent_channels)
        if not 1 <= self.step <= 2**16:
            raise WallocFormatError(f"step is {self.step}; valid: 1 to {2**16}")
        for name, digits in (("fingerprint", 16), ("tables", 8)):
            if not re.fullmatch(f"[0-9a-f]{{{digits}}}", getattr(self, name)):
                raise WallocFormatError(f"{name} must be {digits} hexadecimal digits, got {getattr(self, name)!r}")
        if len(self.codec.encode()) > MAX_CODEC_BYTES or not (self.codec + " ").isprintable():
            raise WallocFormatError(f"codec must be printable and at most {MAX_CODEC_BYTES} bytes, got {self.codec!r}")
        formats = SAMPLE_FORMATS[self.kind].values()
        if self.sample_format and self.sample_format not in formats:
            raise WallocFormatError(
                f"unknown sample format {self.sample_format!r} of {self.kind}; valid: {', '.join(formats)}"
            )
        if self.kind == "audio":
            if self.raster:
                raise WallocFormatError("raster belongs to an image or a volume, not to audio")
            _check_range("sampling_rate", self.sampling_rate or 0, 1, _MAX_RATE)
            if 0.5 * abs(self.gain) + abs(self.offset) > _MAX_FLOAT:  # decoded samples lie in [-0.5, 0.5]
                raise WallocFormatError(f"gain {self.gain} and offset {self.offset} lead to samples beyond float32")
            self._check_source()
        elif (self.sampling_rate, self.gain, self.offset, self.source) != (None, 1.0, 0.0, None):
            raise WallocFormatError(f"sampling_rate, gain, offset and source belong to audio, not to {self.kind}s")
        if self.side_data and self.kind != "image":
            raise WallocFormatError(f"side_data belongs to an image, not to {self.kind}")
        if self.frame_rate < 0 or (self.frame_rate and self.kind != "volume"):
            raise WallocFormatError(f"frame_rate is {self.frame_rate}; valid: positive, of a volume, or 0")

    def _check_source(self) -> None:
        if self.source is None:
            return
        channels, rate, length = self.source
        _check_range("channels of the source", channels, 1, _MAX_CHANNELS)
        _check_range("sampling rate of the source", rate, 1, _MAX_RATE)
        _check_range("length of the source", length, 1, _MAX_SIZE)
        # Whoever converts back allocates what the source says, so it has to be the same recording.
        expected = self.sizes[0] * rate / (self.sampling_rate or 1)
        if channels > self.num_channels or abs(length - expected) > 2 + 2 * rate / (self.sampling_rate or 1):
            raise WallocFormatError(
                f"source of {channels} channels and {length} samples at {rate} Hz contradicts audio of "
                f"{self.num_channels} channels and {self.sizes[0]} samples at {self.sampling_rate} Hz"
            )

    def read_raster(self) -> tuple[RasterFormat, np.ndarray | None]:
        """Format of the samples, and where they are missing: (height, width) bool, or None if nowhere."""
        try:
            return RasterFormat.unpack(self.raster, self.num_channels, self.sizes)
        except ValueError as error:
            raise WallocFormatError(str(error)) from error

    def read_side_data(self) -> SideData:
        """Transparency and colour profile, expanded."""
        return SideData.unpack(self.side_data, self.sizes)

    @property
    def num_dims(self) -> int:
        """Axes of the signal: 1 of audio, 2 of images, 3 of volumes."""
        return KINDS[self.kind].num_dims

    @property
    def patch_size(self) -> int:
        """Samples per axis that one latent stands for."""
        return 1 << self.num_levels

    @property
    def grid(self) -> tuple[int, ...]:
        """Positions of the latents per axis."""
        return tuple(-(-size // self.patch_size) + 2 * self.encoder_padding for size in self.sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_channels, *grid) of the codes."""
        return (self.latent_channels, *self.grid)

    @property
    def coded_shape(self) -> tuple[int, ...]:
        """Shape of the codes in the payload. The slices of a volume are one below the other."""
        grid = self.grid if self.num_dims < 3 else (self.grid[0] * self.grid[1], self.grid[2])
        return (self.coded_channels, *grid)

    @property
    def padded_size(self) -> int:
        """Pixels or samples (of one channel) that decoding makes, before they are cropped to `sizes`."""
        return math.prod(size * self.patch_size for size in self.grid)


def pack(header: Header, payload: bytes) -> bytes:
    """Header and payload as one file. The same arguments give the same bytes."""
    coder, kind = key_of(CODERS, header.coder), KINDS[header.kind].code
    partial = header.coded_channels != header.latent_channels
    flags = _HAS_STEP * (header.step != 1) | _HAS_CODED_CHANNELS * partial | _HAS_SOURCE * bool(header.source)
    flags |= _HAS_SAMPLE_FORMAT * bool(header.sample_format)
    flags |= _HAS_RASTER * bool(header.raster) | _HAS_SIDE_DATA * bool(header.side_data)
    codec = header.codec.encode()
    parts = [
        _FIXED.pack(
            MAGIC,
            VERSION,
            coder << 4 | kind,
            flags,
            bytes.fromhex(header.fingerprint),
            bytes.fromhex(header.tables),
            header.encoder_padding << 4 | header.num_levels,
            header.latent_bits,
        ),
        *(varint(size) for size in header.sizes),
        varint(header.num_channels),
        varint(header.latent_channels),
        varint(header.coded_channels) if partial else b"",
        struct.pack("<f", header.step) if flags & _HAS_STEP else b"",
    ]
    if header.kind == "audio":
        parts += [varint(header.sampling_rate or 0), struct.pack("<ff", header.gain, header.offset)]
        parts += [varint(value) for value in header.source or ()]
    if header.kind == "volume":
        parts.append(struct.pack("<f", header.frame_rate))
    if header.sample_format:
        parts.append(varint(key_of(SAMPLE_FORMATS[header.kind], header.sample_format)))
    if header.raster:
        parts += [varint(len(header.raster)), header.raster]
    if header.side_data:
        parts += [varint(len(header.side_data)), header.side_data]
    parts += [varint(len(codec)), codec, payload]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(
    data: bytes, max_pixels: int | None = MAX_DECODED_PIXELS, max_samples: int | None = MAX_DECODED_SAMPLES
) -> tuple[Header, bytes]:
    """The inverse of `pack`.

    Args:
        data: a whole .walloc file.
        max_pixels: refuse images and volumes that decode to more pixels, counted after padding to whole patches; None
            for no limit.
        max_samples: the same for samples per channel of audio.

    Raises:
        WallocFormatError: foreign, damaged, truncated, too new, contradictory or too large.
        TypeError: `data` is not bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a .walloc file is bytes, got {type(data).__name__}")
    data = bytes(data)
    if not data:
        raise WallocFormatError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise WallocFormatError("not a .walloc file: it does not start with the magic bytes")
    if len(data) < _FIXED.size + 4:
        raise WallocFormatError(f"the file is truncated: {len(data)} bytes are less than the shortest header")
    if data[4] != VERSION:
        raise WallocFormatError(
            f"version {data[4]} of the format is not supported, only {VERSION}; upgrade the package"
        )
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise WallocFormatError("the file is damaged or truncated: its checksum does not match")
    header, position = _read_header(data)
    limit, unit = (max_samples, "samples") if header.kind == "audio" else (max_pixels, "pixels")
    decoded_size = max(header.padded_size, header.source[2] if header.source else 0)
    if limit is not None and decoded_size > limit:
        raise WallocFormatError(
            f"{header.kind} of {'x'.join(map(str, header.sizes))} decodes to {decoded_size} {unit}, more than the "
            f"limit of {limit}; raise max_{unit} if you trust the file"
        )
    if header.raster:
        header.read_raster()
    return header, data[position:-4]


def peek_kind(start: bytes) -> str | None:
    """Kind of signal by the first 7 bytes of a file, "raster" for an image with a raster format; None if foreign."""
    if start[:4] != MAGIC or len(start) < 7:
        return None
    kind = _kind_of(start[5] & 15)
    return "raster" if kind == "image" and start[6] & _HAS_RASTER else kind


def tables_id(arrays: Mapping[str, np.ndarray]) -> str:
    """Identifies the entropy coder's tables: 8 hexadecimal digits over names, dtypes, shapes and values."""
    digest = sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()[:8]


def _read_header(data: bytes) -> tuple[Header, int]:
    """The checked header, and where the payload starts."""
    _, _, identity, flags, fingerprint, tables, transform, latent_bits = _FIXED.unpack_from(data)
    kind, coder = _kind_of(identity & 15), CODERS.get(identity >> 4)
    if kind is None or coder is None:
        raise WallocFormatError(f"unknown kind of signal {identity & 15} or entropy coder {identity >> 4}")
    valid = _HAS_STEP | _HAS_CODED_CHANNELS | _HAS_SAMPLE_FORMAT
    valid |= {"audio": _HAS_SOURCE, "image": _HAS_RASTER | _HAS_SIDE_DATA, "volume": _HAS_RASTER}[kind]
    if flags & ~valid:
        raise WallocFormatError(f"unknown flags {flags:#04x} in the header")
    reader = Reader(data, _FIXED.size, len(data) - 4)
    fields: dict[str, Any] = {
        "sizes": tuple(reader.varint() for _ in range(KINDS[kind].num_dims)),
        "num_channels": reader.varint(),
        "latent_channels": reader.varint(),
    }
    if flags & _HAS_CODED_CHANNELS:
        fields["coded_channels"] = reader.varint()
        if not 1 <= fields["coded_channels"] < fields["latent_channels"]:
            raise WallocFormatError(
                f"coded_channels is {fields['coded_channels']}; valid: 1 to {fields['latent_channels'] - 1}"
            )
    if flags & _HAS_STEP:
        (fields["step"],) = reader.floats(1)
        if fields["step"] == 1:
            raise WallocFormatError("the header states a step of 1, which it must leave out")
    if kind == "audio":
        fields["sampling_rate"] = reader.varint()
        fields["gain"], fields["offset"] = reader.floats(2)
        if flags & _HAS_SOURCE:
            fields["source"] = (reader.varint(), reader.varint(), reader.varint())
    if kind == "volume":
        (fields["frame_rate"],) = reader.floats(1)
    if flags & _HAS_SAMPLE_FORMAT:
        sample_format = reader.varint()
        fields["sample_format"] = SAMPLE_FORMATS[kind].get(sample_format)
        if fields["sample_format"] is None:
            raise WallocFormatError(f"unknown sample format {sample_format} of {kind}")
    if flags & _HAS_RASTER:
        fields["raster"] = reader.take(reader.varint())
        if not fields["raster"]:
            raise WallocFormatError("the header states an empty raster format, which it must leave out")
    if flags & _HAS_SIDE_DATA:
        fields["side_data"] = reader.take(reader.varint())
        if not split_records(fields["side_data"]):
            raise WallocFormatError("the header states empty side data, which it must leave out")
    try:
        fields["codec"] = reader.take(reader.varint()).decode()
    except UnicodeDecodeError as error:
        raise WallocFormatError("the name of the codec is not UTF-8") from error
    header = Header(
        kind=kind,
        coder=coder,
        fingerprint=fingerprint.hex(),
        tables=tables.hex(),
        num_levels=transform & 15,
        encoder_padding=transform >> 4,
        latent_bits=latent_bits,
        **fields,
    )
    return header, reader.position


def _kind_of(code: int) -> str | None:
    return next((kind.name for kind in KINDS.values() if kind.code == code), None)


def _float32(name: str, value: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error) as error:
        raise WallocFormatError(f"{name} is {value!r}; it must be a finite number of float32") from error
    if not math.isfinite(rounded):
        raise WallocFormatError(f"{name} is {value!r}; it must be a finite number of float32")
    return rounded


def _check_range(name: str, value: int, low: int, high: int) -> None:
    # bool is an int and floats compare well, but neither can be written.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise WallocFormatError(f"{name} is {value!r}; valid: {low} to {high}")
