"""Audio in files, read and written with soundfile."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codec.audio_decoding import decode_audio, import_soundfile
from ..codec.clips import mix, resample
from ..codec.size_limits import MAX_ENCODED_SAMPLES
from .messages import MediaError, noting, warn
from .paths import AUDIO_SUFFIXES, STANDARD_STREAM

_AUDIO_FORMATS = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"), ".aif": ("AIFF", None)}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
# What a .walloc file calls the samples of its source, by the names of libsndfile, the best that a format has first.
_SUBTYPES = {
    "8-bit": ("PCM_U8", "PCM_S8"),
    "24-bit": ("PCM_24",),
    "32-bit": ("PCM_32", "PCM_24"),
    "float": ("FLOAT", "PCM_24"),
    "double": ("DOUBLE", "FLOAT", "PCM_24"),
}


def read_audio(
    path: str, data: bytes, seconds: float | None = None, max_samples: int | None = MAX_ENCODED_SAMPLES
) -> tuple[np.ndarray, int]:
    """(channels, length) float32 and the sampling rate in Hz.

    Args:
        path: the name for messages.
        data: the file.
        seconds: read so many from the middle of the file; all by default.
        max_samples: refuse longer clips (in samples of one channel, counted as if they were two channels at 44.1 kHz
            if that is more) before they are decoded; None for no limit.

    Raises:
        MediaError: not audio that can be read, empty, or too long.

    Warns:
        MediaWarning: the file ends before what its header states.
    """
    return read_recording(path, data, seconds, max_samples)[:2]


def read_recording(
    path: str, data: bytes, seconds: float | None = None, max_samples: int | None = MAX_ENCODED_SAMPLES
) -> tuple[np.ndarray, int, str]:
    """What `read_audio` gives, and what a .walloc file states about the samples, see `bitstream.SAMPLE_FORMATS`."""

    def check(length: int, rate: int, channels: int) -> None:
        samples = round(length * max(1, 44_100 / rate) * max(1, channels / 2))
        if max_samples is not None and samples > max_samples:
            raise ValueError(
                f"{samples} samples per channel, more than the limit of {max_samples}; raise max_samples "
                f"if there are {40 * samples / 1e9:.1f} GB of memory"
            )

    try:
        clip, rate, subtype = decode_audio(data, seconds=seconds, check=check, note=noting(path))
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
    except ImportError as error:
        raise MediaError(str(error)) from error
    return clip, rate, sample_format_of(subtype)


def read_clip(
    path: str,
    data: bytes,
    sampling_rate: int,
    num_channels: int,
    seconds: float | None = None,
    max_samples: int | None = MAX_ENCODED_SAMPLES,
) -> np.ndarray:
    """(num_channels, length) float32 at a sampling rate: what learners and measurements hear of files of any kind.

    Mono is copied, and more channels are mixed as for `--downmix` (ITU-R BS.775), which is said.

    Raises:
        MediaError: as `read_audio`, or channels that cannot be mixed to so many.

    Warns:
        MediaWarning: more than two channels are mixed.
    """
    samples, rate = read_audio(path, data, seconds, max_samples)
    if len(samples) > max(2, num_channels):
        warn(path, f"its {len(samples)} channels are mixed to {'stereo' if num_channels == 2 else num_channels}")
    try:
        clip = mix(torch.from_numpy(samples), num_channels, downmix=True)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
    return (clip if rate == sampling_rate else resample(clip, rate, sampling_rate)).contiguous().numpy()


def sample_format_of(subtype: str) -> str:
    """The same of one of libsndfile's subtypes."""
    subtype = "PCM_U8" if subtype == "PCM_S8" else subtype
    return next((name for name, subtypes in _SUBTYPES.items() if subtype == subtypes[0]), "")


def encode_audio(samples: np.ndarray, rate: int, path: str, sample_format: str = "", **options) -> bytes:
    """(channels, length) floats in [-1, 1] as the bytes of a file.

    Args:
        samples: louder ones are clipped, but in files of floats.
        rate: in Hz.
        path: the suffix names the format, WAV for "-".
        sample_format: as a .walloc file states it; the nearest that the format has is written, 16 bits by default.
        **options: of `soundfile.SoundFile`.

    Raises:
        MediaError: samples that are not finite, or a format that does not take them.

    Warns:
        MediaWarning: samples were clipped.
    """
    soundfile = soundfile_or_error()
    suffix = ".wav" if path == STANDARD_STREAM else Path(path).suffix.lower()
    audio_format, subtype = _AUDIO_FORMATS.get(suffix, (suffix.lstrip(".").upper(), None))
    if suffix not in AUDIO_SUFFIXES:
        raise MediaError(
            f"{path}: cannot write audio as {suffix or 'a file without suffix'!r}; valid: {', '.join(AUDIO_SUFFIXES)}"
        )
    if not np.isfinite(samples).all():
        raise MediaError(f"{path}: the samples are not finite")
    for better in _SUBTYPES.get(sample_format, ()) if subtype is None else ():
        if soundfile.check_format(audio_format, better):
            subtype = better
            break
    limit = np.inf if subtype in ("FLOAT", "DOUBLE") else 1
    if clipped := np.count_nonzero(np.abs(samples) > limit):
        warn(path, f"{clipped} of {samples.size} samples were louder than full scale and are clipped")
    if subtype == "OPUS" and rate not in _OPUS_RATES:
        samples = resample(torch.from_numpy(np.ascontiguousarray(samples, np.float32)), rate, 48000).numpy()
        rate = 48000
    file = io.BytesIO()
    try:
        with soundfile.SoundFile(file, "w", rate, len(samples), subtype, format=audio_format, **options) as sound:
            # In one piece, Vorbis overflows the stack of libsndfile.
            for start in range(0, samples.shape[1], 2**16):
                sound.write(samples[:, start : start + 2**16].clip(-limit, limit).T)
    except (RuntimeError, TypeError, ValueError) as error:
        raise MediaError(f"{path}: cannot write the audio as {audio_format}: {error}") from error
    return file.getvalue()


def soundfile_or_error() -> Any:
    """The module; MediaError where it is not installed."""
    try:
        return import_soundfile()
    except ImportError as error:
        raise MediaError(str(error)) from error
