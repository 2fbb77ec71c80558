"""Files that are too large to be held: TIFF pictures and recordings, from disk to disk in bands and segments.

Only what needs no conversion is streamed: 8-bit TIFF of the codec's channels, upright and without a colour profile, and
audio of the codec's channels and rate. All else goes the usual way, as a whole.
"""

import contextlib
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_file
from ..codec.audio_decoding import split_audio
from ..codec.bitstream import Header
from ..codec.side_data import SideData
from ..codec.size_limits import check_pixels
from ..codec.tiff_tags import GEOREFERENCING, extra_tags, pack_tags, reading_tiff
from .audio import sample_format_of
from .bands import compress_rows, decompress_rows
from .messages import MediaError
from .paths import AUDIO_SUFFIXES
from .segments import SEGMENT_SAMPLES, compress_segments, decompress_segments, find_level
from .sixteen_bits import DEFLATE_LEVEL

LARGE_FILE = 2**27  # bytes from which on a file is streamed
LARGE_SIGNAL = {"image": 2**25, "audio": 16 * SEGMENT_SAMPLES}  # pixels or samples, from which on results are
TIFF_SUFFIXES = (".tif", ".tiff")
_READABLE_COMPRESSION = (1, 8, 32946)  # none and deflate, which tifffile reads by itself
_STRIP_ROWS = 64
_SUBTYPES = {"8-bit": "PCM_U8", "24-bit": "PCM_24", "32-bit": "PCM_32", "float": "FLOAT"}  # of WAV; 16 bits otherwise
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3}  # others have 4
_CLASSIC_BYTES = 2**32 - 2**25  # more does not fit the 32-bit offsets of classic TIFF and WAV


def compress_stream(load: Callable[[str], Any], source: str, limits: dict[str, Any], **options: Any) -> bytes | None:
    """The .walloc file of a large file, or None where it has to go the usual way.

    Args:
        load: the codec for a kind of signal, `FileCodec`.
        limits: `max_pixels` and `max_samples`.
        options: `step` and `num_channels` of `compress`.
    """
    suffix = Path(source).suffix.lower()
    if not os.path.isfile(source) or os.path.getsize(source) < LARGE_FILE:
        return None
    if suffix in TIFF_SUFFIXES:
        return _compress_tiff(load("image"), source, limits["max_pixels"], options)
    if suffix in AUDIO_SUFFIXES:
        return _compress_audio(load("audio"), source, limits["max_samples"], options)
    return None


def decompress_stream(
    codec: Any, data: bytes, header: Header, target: str, window: tuple[int, ...] | None, max_memory: int | None
) -> bool:
    """Write a large file piece by piece; False where it has to go the usual way."""
    suffix = Path(target).suffix.lower()
    if header.kind not in LARGE_SIGNAL:
        return False
    size = math.prod(header.sizes if window is None else window[len(header.sizes) :])
    if size < LARGE_SIGNAL[header.kind]:
        return False
    beside = header.read_side_data() if header.side_data else SideData()
    usual = not (header.raster or header.sample_format) and beside.alpha is None
    if codec.kind == "image" and suffix in TIFF_SUFFIXES and header.num_channels in (1, 3) and usual:
        _write_tiff(codec.model, data, header, target, window, max_memory)
        return True
    if codec.kind == "audio" and suffix == ".wav" and header.source is None:
        _write_wav(codec.model, data, header, target, window, max_memory)
        return True
    return False


class TiffRows:
    """Rows of an 8-bit TIFF, called as `rows(start, stop)` with starts that do not decrease."""

    def __init__(self, page: Any):
        self.height, self.width, self.channels = page.imagelength, page.imagewidth, page.samplesperpixel
        self._page, self._segments = page, None  # type: tuple[Any, Any]
        self._first, self._kept = 0, np.empty((0, self.width, self.channels), np.uint8)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` as (rows, width, channels) uint8."""
        if self._page.is_contiguous:
            line, handle = self.width * self.channels, self._page.parent.filehandle
            handle.seek(self._page.dataoffsets[0] + start * line)
            return handle.read_array(np.uint8, (stop - start) * line).reshape(-1, self.width, self.channels)
        parts = [self._kept[start - self._first :]]
        self._first, rows = start, len(parts[0])
        while rows < stop - start:
            parts.append(self._next_rows())
            rows += len(parts[-1])
        self._kept = np.concatenate(parts)
        return self._kept[: stop - start]

    def _next_rows(self) -> np.ndarray:
        """A strip, or a row of tiles."""
        page = self._page
        across = -(-self.width // page.tilewidth) if page.is_tiled else 1
        if self._segments is None:
            self._segments = page.segments(maxworkers=1, sort=True, buffersize=2**24)
        parts = []
        for data, _, shape in (next(self._segments) for _ in range(across)):
            if data is None:  # not written: empty
                data = np.zeros(shape, np.uint8)
            parts.append(data.reshape(-1, *data.shape[-2:]))
        return np.concatenate(parts, axis=1)[:, : self.width]


def _compress_tiff(codec: Any, source: str, max_pixels: int | None, options: dict[str, Any]) -> bytes | None:
    try:
        import tifffile
    except ImportError:
        return None
    if codec.kind != "image":
        return None
    with contextlib.ExitStack() as stack:
        try:
            tiff = stack.enter_context(tifffile.TiffFile(source))
            page: Any = tiff.pages[0]
        except (tifffile.TiffFileError, OSError, IndexError):
            return None
        config = codec.model.config
        usual = len(tiff.pages) == 1 and page.dtype == np.uint8 and page.planarconfig == 1
        usual = usual and page.samplesperpixel == config.num_channels and page.photometric == 2
        usual = usual and page.compression in _READABLE_COMPRESSION
        if not usual or config.boundary != "symmetric" or config.raster_format or config.num_channels != 3:
            return None
        if 34675 in page.tags or (274 in page.tags and page.tags[274].value != 1):  # profile, orientation
            return None
        check_pixels((page.imagelength, page.imagewidth), max_pixels)
        tags = {n: (int(page.tags[n].dtype), page.tags[n].value) for n in GEOREFERENCING if n in page.tags}
        options["side_data"] = SideData(tags=pack_tags(tags)).pack()
        return compress_rows(codec.model, page.imagelength, page.imagewidth, TiffRows(page), **options)


def _compress_audio(codec: Any, source: str, max_samples: int | None, options: dict[str, Any]) -> bytes | None:
    import soundfile

    config = codec.model.config
    if codec.kind != "audio" or not _is_whole(source):
        return None
    try:
        file = soundfile.SoundFile(source)
    except soundfile.SoundFileError:
        return None
    with file:
        fits = (file.channels, file.samplerate) == (config.num_channels, config.sampling_rate) and file.frames
        if not fits or config.boundary != "symmetric" or config.encoder_padding or not file.seekable():
            return None
        if max_samples is not None and file.frames > max_samples:
            raise MediaError(f"{source}: {file.frames} samples per channel, more than the limit of {max_samples}")

        def read(start: int, stop: int) -> np.ndarray:
            file.seek(start)
            samples = file.read(stop - start, dtype="float32", always_2d=True).T
            if samples.shape[1] != stop - start:
                raise MediaError(f"{source}: the audio ends before sample {stop}")
            return samples

        gain, offset = find_level(file.frames, read)
        levels: dict[str, Any] = {"gain": gain, "offset": offset, "sample_format": sample_format_of(file.subtype)}
        return compress_segments(codec.model, file.frames, read, **levels, **options)


def _is_whole(source: str) -> bool:
    """Whether libsndfile decodes all that a file of audio holds."""
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            (part,) = split_audio(data)
        except Exception:  # several, or none that can be told apart
            return False
        return part is data


def _write_tiff(
    model: Any, data: bytes, header: Header, target: str, window: tuple[int, ...] | None, max_memory: int | None
) -> None:
    area: Any = window
    beside = header.read_side_data() if header.side_data and not area else SideData()
    height, width = (area[2], area[3]) if area else header.sizes
    shape = (height, width, header.num_channels) if header.num_channels == 3 else (height, width)
    bands = decompress_rows(model, data, window=area, max_memory=max_memory)
    strips = (_deflate(strip) for strip in _regrouped(bands, _STRIP_ROWS))
    big = np.prod(shape) > _CLASSIC_BYTES
    with reading_tiff() as tifffile, atomic_file(target) as partial, tifffile.TiffWriter(partial, bigtiff=big) as tiff:
        tiff.write(
            strips,
            shape=shape,
            dtype=np.uint8,
            photometric="rgb" if header.num_channels == 3 else "minisblack",
            rowsperstrip=_STRIP_ROWS,
            compression="zlib",
            predictor=True,
            metadata=None,
            iccprofile=beside.profile or None,
            extratags=extra_tags(beside.tags),
        )


def _write_wav(
    model: Any, data: bytes, header: Header, target: str, window: tuple[int, ...] | None, max_memory: int | None
) -> None:
    import soundfile

    area: Any = window
    subtype = _SUBTYPES.get(header.sample_format, "PCM_16")
    samples = (area[1] if area else header.sizes[0]) * header.num_channels
    large = samples * _SAMPLE_BYTES.get(subtype, 4) > _CLASSIC_BYTES
    with atomic_file(target) as partial:
        options = {"samplerate": header.sampling_rate, "channels": header.num_channels, "subtype": subtype}
        with soundfile.SoundFile(str(partial), "w", format="RF64" if large else "WAV", **options) as file:
            for part in decompress_segments(model, data, window=area, max_memory=max_memory):
                file.write(part.T)


def _deflate(rows: np.ndarray) -> bytes:
    """A strip with horizontal differences, as TIFF's predictor 2 wants it."""
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    return zlib.compress(differences.tobytes(), DEFLATE_LEVEL)


def _regrouped(bands: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows, so many at a time."""
    rest: list[np.ndarray] = []
    for band in bands:
        joined = np.concatenate([*rest, band])
        whole = len(joined) // rows * rows
        for start in range(0, whole, rows):
            yield joined[start : start + rows]
        rest = [joined[whole:]]
    if rest and len(rest[0]):
        yield rest[0]
