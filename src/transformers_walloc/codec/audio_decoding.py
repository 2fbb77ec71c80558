"""Audio of files, all that they hold: libsndfile decodes, and where it would stop early the bytes are prepared for it.

```
Ogg and FLAC one behind the other     split, each decoded            (libsndfile reads the first alone)
MP3 whose header is wrong or missing  split, each with a right one   (libsndfile believes it, or guesses)
WAV that was never finished           its sizes are filled in        (libsndfile sees no samples)
```

Errors are ValueError whatever a decoder raises, and do not name the file: callers do.
"""

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Note = Callable[[str], None]
Check = Callable[[int, int, int], None]

_BLOCK = 2**20  # samples that are read at a time where the length is not known
_UNKNOWN = 2**48  # longer than any recording: libsndfile's number for a length that is not stated
_FLAC_START = b"fLaC\0\0\0\x22"
# Layer III, in kbit/s (ISO/IEC 11172-3 and 13818-3), and samples a second.
_BITRATES = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
# An encoder's delay and padding, which a header takes off what the frames hold.
_TRIMMED_FRAMES = 4


def import_soundfile() -> Any:
    """The module, or ImportError with what to install; it raises OSError where its library is missing."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError(f"audio files need soundfile: pip install 'transformers-walloc[audio]' ({error})") from error
    return soundfile


def decode_audio(
    data: bytes, *, seconds: float | None = None, check: Check | None = None, note: Note = lambda text: None
) -> tuple[np.ndarray, int, str]:
    """The clip (channels, length) float32, its sampling rate in Hz, and libsndfile's name of its samples.

    Args:
        data: the file.
        seconds: read so many from its middle; all by default.
        check: called with samples per channel, rate and channels before so many are decoded; raises what is too long.
        note: called with what is lost.

    Raises:
        ValueError: not audio that can be read, or empty.
        ImportError: soundfile is not installed.
    """
    parts, total = [], 0
    for part in split_audio(data, note):
        parts.append(_decode(part, seconds, check, note))
        total += parts[-1][0].shape[1]
        if check is not None and len(parts) > 1:
            check(total, parts[-1][1], len(parts[-1][0]))
    clip, rate, subtype = parts[0]
    if len(parts) > 1:
        if any((len(other), r) != (len(clip), rate) for other, r, _ in parts[1:]):
            kinds = ", ".join(f"{len(other)} channels at {r} Hz" for other, r, _ in parts)
            raise ValueError(f"its parts differ: {kinds}; convert it to one recording")
        clip = np.concatenate([other for other, _, _ in parts], axis=1)
    if seconds is not None:
        wanted = min(clip.shape[1], round(seconds * rate))
        start = (clip.shape[1] - wanted) // 2
        clip = clip[:, start : start + wanted]
    if not clip.shape[1]:
        raise ValueError("the audio is empty")
    return np.ascontiguousarray(clip), rate, subtype


def split_audio(data: Any, note: Note = lambda text: None) -> list[bytes]:
    """The files that libsndfile has to decode for all that `data` holds: itself, mostly.

    Args:
        data: the bytes of a file, or a memory map of it.
        note: called with what is lost.
    """
    start = bytes(data[:16])
    if start.startswith(b"OggS"):
        return _cut(data, _ogg_links(data))
    if start.startswith(b"fLaC"):
        cuts, position = [0], data.find(_FLAC_START, 1)
        while position >= 0:
            cuts.append(position)
            position = data.find(_FLAC_START, position + 1)
        return _cut(data, cuts)
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        return [_finished_wav(data, note)]
    if start.startswith(b"ID3") or (start[:1] == b"\xff" and start[1] & 0xE6 == 0xE2):
        return _whole_mp3(data)
    return [data]


def _decode(data: Any, seconds: float | None, check: Check | None, note: Note) -> tuple[np.ndarray, int, str]:
    soundfile = import_soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, length, channels = max(1, file.samplerate), file.frames, file.channels
            known = length < _UNKNOWN
            wanted = length if seconds is None else min(length, round(seconds * rate))
            # Where there is no seeking, and GSM has none, the whole is read; the caller cuts.
            if wanted < length and known and file.seekable() and (start := (length - wanted) // 2):
                file.seek(start)
            elif not known or seconds is not None:
                wanted = length
            if check is not None and known:
                check(wanted, rate, channels)
            clip = file.read(wanted, dtype="float32", always_2d=True) if known else _read_blocks(file, check)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not audio that can be read: {error}") from error
    if known and len(clip) < wanted:
        note(f"the audio ends after {len(clip)} of the {wanted} samples that its header states")
    return clip.T, int(rate), file.subtype


def _read_blocks(file: Any, check: Check | None) -> np.ndarray:
    """(length, channels) of a file that does not say how much it holds."""
    file.seekable = lambda: False  # soundfile seeks after each read, which fails at an end that is not known
    blocks, length = [], 0
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        length += len(block)
        if check is not None:
            check(length, file.samplerate, file.channels)
        blocks.append(block)
        if len(block) < _BLOCK:
            return np.concatenate(blocks)


def _cut(data: Any, starts: list[int]) -> list[bytes]:
    if len(starts) < 2:
        return [data]
    return [bytes(data[start:stop]) for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]


def _ogg_links(data: Any) -> list[int]:
    """Where the links of a chain begin (RFC 3533): at pages that open streams, behind pages that do not."""
    starts, position, inside = [0], 0, False
    while data[position : position + 4] == b"OggS" and position + 27 <= len(data):
        segments = data[position + 26]
        opens = bool(data[position + 5] & 2)
        if opens and inside:
            starts.append(position)
        inside = not opens
        position += 27 + segments + sum(data[position + 27 : position + 27 + segments])
    return starts


def _finished_wav(data: Any, note: Note) -> Any:
    """A WAV whose sizes are those of the file, where its recorder did not live to write them."""
    position = 12
    while position + 8 <= len(data):
        name, (size,) = bytes(data[position : position + 4]), struct.unpack_from("<I", data, position + 4)
        rest = len(data) - position - 8
        if name == b"data":
            (stated,) = struct.unpack_from("<I", data, 4)
            if size == 0 and rest and stated + 8 != len(data):
                patched = bytearray(data)
                struct.pack_into("<I", patched, 4, len(data) - 8)
                struct.pack_into("<I", patched, position + 4, rest)
                return bytes(patched)
            if rest < size < 0x7FFFF000:  # larger ones stand for a length that was not known
                note(f"the audio ends after {rest} of the {size} bytes that its header states")
            return data
        position += 8 + size + size % 2
    return data


def _whole_mp3(data: Any) -> list[bytes]:
    """An MP3 in parts that each begin with a header (Xing's) that tells the frames behind it."""
    parts: list[dict[str, Any]] = []
    for start, stop, header, samples, rate in _mp3_frames(data):
        tag = _tag_position(header)
        stated = None
        if bytes(data[start + tag : start + tag + 4]) in (b"Xing", b"Info"):
            flags, count = struct.unpack_from(">II", data, start + tag + 4)
            stated = count if flags & 1 else 0
        if stated is not None or not parts or parts[-1]["rate"] != rate:
            parts.append(
                {"start": start, "count": 0, "stated": stated, "samples": samples, "rate": rate, "first": None}
            )
        part = parts[-1]
        if stated is None:
            part["count"] += 1
            part["first"] = part["first"] or (start, header)
        part["stop"] = stop
    parts = [part for part in parts if part["count"]]
    if not parts:
        return [data]
    soundfile = import_soundfile()
    if len(parts) == 1:
        try:
            claimed = soundfile.info(io.BytesIO(data)).frames
        except Exception:
            return [data]
        if claimed >= (parts[0]["count"] - _TRIMMED_FRAMES) * parts[0]["samples"]:
            return [data]
    pieces = []
    for part in parts:
        if part["stated"] and part["stated"] >= part["count"] - 1:
            pieces.append(bytes(data[part["start"] : part["stop"]]))
        else:
            start, header = part["first"]
            frames = bytes(data[start : part["stop"]])
            pieces.append(_xing_frame(header, part["count"], len(frames)) + frames)
    return pieces


def _mp3_frames(data: Any) -> Iterator[tuple[int, int, int, int, int]]:
    """(start, stop, header, samples, rate) of each frame of layer III."""
    position, end = 0, len(data)
    while position + 4 <= end:
        frame = _mp3_frame(data, position)
        if frame is not None:
            yield frame
            position = frame[1]
        elif data[position : position + 3] == b"ID3" and position + 10 <= end:
            size = 0
            for byte in data[position + 6 : position + 10]:
                size = size << 7 | byte & 127
            position += 10 + size
        else:
            # Two frames in a row: a single match of eleven bits is often chance.
            position = data.find(b"\xff", position + 1)
            while position >= 0:
                frame = _mp3_frame(data, position)
                if frame is not None and (frame[1] + 4 > end or _mp3_frame(data, frame[1]) is not None):
                    break
                if data[position : position + 3] == b"ID3":
                    break
                position = data.find(b"\xff", position + 1)
            if position < 0:
                return


def _mp3_frame(data: Any, position: int) -> tuple[int, int, int, int, int] | None:
    if position + 4 > len(data):
        return None
    (header,) = struct.unpack_from(">I", data, position)
    version, layer, bitrate, rate = header >> 19 & 3, header >> 17 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or not 0 < bitrate < 15 or rate == 3:
        return None
    first = version == 3
    hertz = _RATES[rate] >> (0 if first else 1 if version == 2 else 2)
    length = (144 if first else 72) * 1000 * _BITRATES[first][bitrate] // hertz + (header >> 9 & 1)
    return position, position + length, header, 1152 if first else 576, hertz


def _tag_position(header: int) -> int:
    """Where Xing's header stands in a frame: behind the side information."""
    mono, first = header >> 6 & 3 == 3, header >> 19 & 3 == 3
    return 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _xing_frame(header: int, count: int, size: int) -> bytes:
    """A frame of silence that says how many frames and bytes follow."""
    first = header >> 19 & 3 == 3
    rate = _RATES[header >> 10 & 3] >> (0 if first else 1 if header >> 19 & 3 == 2 else 2)
    tag = _tag_position(header)
    lengths = ((144 if first else 72) * 1000 * kbits // rate for kbits in _BITRATES[first])
    bitrate, length = next((i, length) for i, length in enumerate(lengths) if length >= tag + 16)
    # Without the checksum and the padding of the frame that it is like.
    word = header & ~0xF200 | bitrate << 12 | 1 << 16
    frame = struct.pack(">I", word) + bytes(tag - 4) + b"Xing" + struct.pack(">III", 3, count, size + length)
    return frame + bytes(length - len(frame))
