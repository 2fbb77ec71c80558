"""Audio of any kind -> float32 clips (channels, length) at the codec's sampling rate."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .audio_decoding import decode_audio
from .runtime import is_traced as is_traced  # the module makes forked processes safe

logger = logging.get_logger(__name__)

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Zero level and full scale of integer PCM; 8-bit PCM is unsigned in WAV files.
PCM_RANGES = {
    torch.uint8: (128, 2**7),
    torch.int8: (0, 2**7),
    torch.int16: (0, 2**15),
    torch.int32: (0, 2**31),
}
MAX_RATE = 1_000_000  # Hz
MAX_UPSAMPLING = 64  # a few bytes that claim to be sampled once a second would be resampled to gigabytes
MAX_SAMPLES = 2**28  # of a channel: 1.7 hours at 44.1 kHz, 2 GB of stereo


def split_batch(raw_audio: Any) -> list[Any]:
    """One clip or a batch of clips -> a list of clips, or of whatever else `open_clip` takes."""
    if isinstance(raw_audio, np.ndarray | torch.Tensor):
        clips = list(raw_audio) if raw_audio.ndim == 3 else [raw_audio]
    elif isinstance(raw_audio, list | tuple):
        is_clip = bool(raw_audio) and isinstance(raw_audio[0], int | float | np.number)
        clips = [raw_audio] if is_clip else list(raw_audio)
    else:
        clips = [raw_audio]
    if not clips:
        raise ValueError("empty batch: there is no audio to process")
    return clips


def open_clip(clip: Any, sampling_rate: int | None) -> tuple[Any, int | None]:
    """The samples of a clip, (T,) or (C, T), and their sampling rate.

    Args:
        clip: an array, tensor or list of numbers; a path or the bytes of a file; what `datasets` gives for a column of
            audio: a dict of `array` and `sampling_rate`, one of `bytes` and `path`, or a decoder of torchcodec.
        sampling_rate: of clips that do not state their own; others must agree with it.
    """
    if isinstance(clip, np.ndarray | torch.Tensor | list | tuple):
        return clip, sampling_rate
    if isinstance(clip, Mapping) and "array" in clip and "sampling_rate" in clip:
        samples, rate = clip["array"], clip["sampling_rate"]
    elif isinstance(clip, Mapping) and clip.get("bytes") is not None:
        samples, rate = _read(clip["bytes"], str(clip.get("path") or "audio"))
    elif isinstance(clip, Mapping) and clip.get("path"):
        samples, rate = _read(clip["path"], str(clip["path"]))
    elif isinstance(clip, bytes):
        samples, rate = _read(clip, "audio")
    elif isinstance(clip, str | os.PathLike):
        samples, rate = _read(clip, str(clip))
    elif hasattr(clip, "get_all_samples"):
        decoded = clip.get_all_samples()
        samples, rate = decoded.data, decoded.sample_rate
    else:
        raise TypeError(
            f"audio cannot be of type {type(clip).__name__}; valid: numpy arrays, torch tensors, lists of them, paths, "
            "and what datasets gives: dicts of array and sampling_rate, of bytes and path, decoders of torchcodec"
        )
    if sampling_rate not in (None, rate):
        raise ValueError(
            f"a clip states a sampling rate of {rate} Hz and sampling_rate is {sampling_rate}: leave it out"
        )
    return samples, rate


def _read(source: bytes | str | os.PathLike[str], name: str) -> tuple[np.ndarray, int]:
    """(C, T) samples and the sampling rate of a file."""
    if not isinstance(source, bytes):
        if not Path(source).is_file():
            raise ValueError(f"there is no file {name!r}")
        source = Path(source).read_bytes()

    def check(samples: int, rate: int, channels: int) -> None:
        check_length(samples, rate, rate)

    try:
        samples, rate, _ = decode_audio(source, check=check, note=lambda text: logger.warning(f"{name}: {text}"))
    except ValueError as error:
        raise ValueError(f"cannot read {name!r} as audio: {error}") from error
    return samples, rate


def mix(samples: torch.Tensor, channels: int, downmix: bool = False) -> torch.Tensor:
    """(T,) or (C, T) -> (channels, T): mono is copied, stereo averaged; other mismatches only mix with `downmix`."""
    shape = tuple(samples.shape)
    if samples.ndim == 1:
        samples = samples[None]
    count = samples.shape[0]
    if count == channels:
        return samples
    if count == 1 and channels == 2:
        return samples.expand(2, -1)
    if count == 2 and channels == 1:
        return samples.mean(0, keepdim=True)
    looks_transposed = samples.shape[1] in {channels, 1, 2}
    if downmix and channels <= 2 < count and not looks_transposed:
        if channels == 2:
            return torch.from_numpy(stereo_weights(count)).to(samples) @ samples
        return samples.mean(0, keepdim=True)
    hint = ""
    if looks_transposed:
        hint = "; this looks like (T, C), which soundfile reads: pass its transpose"
    elif channels <= 2 < count:
        hint = "; downmix=True mixes them"
    raise ValueError(f"a clip of shape {shape}, (C, T), has {count} channels; valid: {channels}{hint}")


def stereo_weights(channels: int) -> np.ndarray:
    """(2, channels) float32 that mix channels in the order of WAV files to stereo, no louder than before.

    Centre and rear channels count 3 dB less (ITU-R BS.775); the low-frequency channel is left out, as there. Other
    numbers of channels than 3 to 8 are averaged.
    """
    half = 0.5**0.5
    left, right, both = [1, 0], [0, 1], [half, half]
    back_left, back_right = [half, 0], [0, half]
    layouts = {
        3: [left, right, both],
        4: [left, right, back_left, back_right],
        5: [left, right, both, back_left, back_right],
        6: [left, right, both, [0, 0], back_left, back_right],
        7: [left, right, both, [0, 0], both, back_left, back_right],
        8: [left, right, both, [0, 0], back_left, back_right, back_left, back_right],
    }
    weights = np.array(layouts.get(channels, [[1, 1]] * channels), np.float32)
    return np.ascontiguousarray((weights / weights.sum(axis=0)).T)


def check_length(samples: int, from_rate: int, to_rate: int, max_samples: int | None = MAX_SAMPLES) -> None:
    """Refuse audio that would be too long at `to_rate` Hz, and rates that no audio has."""
    if not 1 <= from_rate <= MAX_RATE or int(from_rate) != from_rate:
        raise ValueError(f"sampling_rate is {from_rate}; valid: whole numbers from 1 to {MAX_RATE}, in Hz")
    if to_rate > MAX_UPSAMPLING * from_rate:
        raise ValueError(f"sampling_rate is {from_rate}; for {to_rate} Hz valid: at least {to_rate / MAX_UPSAMPLING:g}")
    length = samples * to_rate / from_rate
    if max_samples is not None and length > max_samples:
        raise ValueError(
            f"a clip has {length:.0f} samples at {to_rate} Hz, more than max_samples={max_samples}; raise it, or cut it"
        )


def resample(samples: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """(C, T) float32 at `from_rate` Hz -> (C, T') at `to_rate` Hz, by torchaudio or else soxr; else ImportError."""
    # torchaudio raises OSError where it was built for another torch.
    try:
        from torchaudio.functional import resample as torchaudio_resample
    except (ImportError, OSError):
        try:
            import soxr
        except ImportError as error:
            raise ImportError(
                f"resampling from {from_rate} to {to_rate} Hz needs soxr (pip install soxr) or torchaudio"
            ) from error
        resampled = soxr.resample(samples.T.cpu().numpy().copy(), from_rate, to_rate).T  # contiguous, as soxr wants it
        result = torch.from_numpy(np.ascontiguousarray(resampled)).to(samples.device)
    else:
        result = torchaudio_resample(samples, from_rate, to_rate)
    if result.shape[1] == 0:
        raise ValueError(f"a clip of {samples.shape[1]} samples at {from_rate} Hz is empty at {to_rate} Hz")
    return result


def to_floats(clip: Any, device: Any) -> torch.Tensor:
    """Any clip -> float32 tensor (T,) or (C, T), integers scaled to [-1, 1); refuses empty and non-finite ones."""
    if not isinstance(clip, torch.Tensor):
        try:
            array = np.asarray(clip)
        except ValueError as error:
            raise ValueError(f"a clip given as a list has channels of different lengths: {error}") from error
        if array.dtype.kind not in "uif":
            raise TypeError(f"a clip of dtype {array.dtype} is no audio; valid: floats and integer PCM")
        clip = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if clip.ndim not in (1, 2):
        raise ValueError(f"a clip of shape {tuple(clip.shape)}; valid: (T,) and (C, T)")
    if clip.numel() == 0:
        raise ValueError(f"a clip of shape {tuple(clip.shape)} is empty")
    samples: torch.Tensor = clip.detach() if device is None else clip.detach().to(device)
    if samples.dtype in PCM_RANGES:
        zero, full_scale = PCM_RANGES[samples.dtype]
        return (samples.float() - zero) / full_scale
    if samples.dtype not in FLOAT_DTYPES:
        valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*PCM_RANGES, *FLOAT_DTYPES))
        raise TypeError(f"a clip of {samples.dtype} has no known full scale; convert it to one of {valid}")
    samples = samples.float()
    if not torch.isfinite(samples).all():
        raise ValueError("a clip holds NaN or infinite samples")
    return samples


def normalise_clip(samples: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """A clip with mean 0 and peak 0.5, over all channels and samples together, and the way back.

    Args:
        samples: floats (C, T).

    Returns:
        (normalised, gain, offset), so that `samples = normalised * gain + offset`. Silence has gain 0, which
        makes silence of whatever a network answers to it.
    """
    offset = samples.mean().item()
    centred = samples - offset
    gain = gain_of(centred.abs().max().item(), offset)
    return (centred / gain if gain else torch.zeros_like(centred)), gain, offset


def gain_of(peak: float, offset: float) -> float:
    """What a clip with this peak around its mean is divided by; 0 for silence.

    What the rounding of the mean leaves of a constant clip is silence, too, and must not be amplified.
    """
    return 0.0 if peak <= max(1e-6 * abs(offset), torch.finfo(torch.float32).tiny) else 2 * peak
