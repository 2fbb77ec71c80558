"""Images and audio in files: what the command line reads and writes.

Images go through Pillow, audio through soundfile; every file is written in one step, so that a reader never sees half.
What a conversion cannot keep it says, as a `MediaWarning`; what is too large it refuses before it allocates.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from .files import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    RASTER_SUFFIXES,
    STANDARD_STREAM,
    VIDEO_SUFFIXES,
    WALLOC_SUFFIX,
    MediaError,
    atomic_file,
    atomic_folder,
    find_files,
    read_bytes,
    write_atomically,
    write_bytes,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "STANDARD_STREAM",
    "WALLOC_SUFFIX",
    "MediaError",
    "MediaWarning",
    "atomic_file",
    "atomic_folder",
    "encode_audio",
    "encode_image",
    "find_files",
    "image_format_of",
    "is_deep",
    "is_gray",
    "kind_of",
    "naming",
    "open_image",
    "read_audio",
    "read_bytes",
    "read_image",
    "sample_format",
    "to_srgb",
    "transparency",
    "warn",
    "write_atomically",
    "write_bytes",
]

# Larger signals are refused before they are decoded unless the caller says otherwise: encoding takes up to 40 bytes of
# memory for a pixel, or for a sample of every channel, so about 2.5 GB. 67 megapixels, 25 minutes at 44.1 kHz.
MAX_PIXELS = MAX_SAMPLES = 2**26

# Decoded images are stored without further loss where the format allows it, and nearly so otherwise.
_IMAGE_OPTIONS: dict[str, dict] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}
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
# How the common audio files begin: to know them where soundfile is not installed.
_AUDIO_STARTS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b"caff", b".snd")


class MediaWarning(UserWarning):
    """Something of a file that the result does not keep."""


def kind_of(path: str, data: bytes) -> str:
    """ "image", "audio", "volume" (a video) or "walloc", by the content where the suffix does not say."""
    from .codec.bitstream import MAGIC

    suffix = Path(path).suffix.lower()
    if data[: len(MAGIC)] == MAGIC:
        return "walloc"
    if suffix in IMAGE_SUFFIXES or suffix in RASTER_SUFFIXES:
        return "image"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    if suffix in VIDEO_SUFFIXES:
        return "volume"
    try:
        with PIL.Image.open(io.BytesIO(data)):
            return "image"
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError):
        pass
    if data.startswith(_AUDIO_STARTS):
        return "audio"
    with contextlib.suppress(MediaError, RuntimeError, TypeError):  # without soundfile it is not audio that can be read
        _soundfile().info(io.BytesIO(data))
        return "audio"
    raise MediaError(f"{path}: neither an image nor audio that can be read")


def read_image(path: str, data: bytes, max_pixels: int | None = MAX_PIXELS) -> PIL.Image.Image:
    """A decoded image: upright, and in sRGB if it states another colour space.

    `picture_files.read_picture` also gives what such an image does not have.

    Args:
        path: the name for messages.
        data: the file.
        max_pixels: refuse larger images before they are decoded; None for no limit but Pillow's.

    Raises:
        MediaError: not an image that can be read, or too large.

    Warns:
        MediaWarning: frames, transparency, colour spaces or bits that the result does not have.
    """
    image = open_image(path, data, max_pixels)
    if is_deep(image, data):
        warn(path, "samples of more than 8 bits are kept with 8 bits")
    if transparency(image) is not None:
        warn(path, "transparent parts become white")
    return to_srgb(path, PIL.ImageOps.exif_transpose(image))


def open_image(path: str, data: bytes, max_pixels: int | None = MAX_PIXELS) -> PIL.Image.Image:
    """A decoded image as Pillow has it, the first frame; the arguments and errors are those of `read_image`."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise MediaError(
                f"{path}: {image.width} x {image.height} pixels, more than the limit of {max_pixels}; raise max_pixels "
                f"if there are {40 * pixels / 1e9:.1f} GB of memory"
            )
        image.load()
    except MediaError:
        raise
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "not an image that can be read" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise MediaError(f"{path}: {reason}") from error
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its preview
        warn(path, f"only the first of {frames} frames is kept")
    return image


def is_deep(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file has samples of more than 8 bits, of which Pillow may have dropped some."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009 - of TIFF only
        return max(tags.get(258, (1,))) > 8  # BitsPerSample
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.format == "PNG" and data[24] > 8)


def is_gray(image: PIL.Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def transparency(image: PIL.Image.Image) -> np.ndarray | None:
    """(height, width) uint8, 0 where an image is transparent; None if it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha if alpha.min() < 255 else None


def read_audio(
    path: str, data: bytes, seconds: float | None = None, max_samples: int | None = MAX_SAMPLES
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
    """
    try:
        with _soundfile().SoundFile(io.BytesIO(data)) as file:
            rate, length = max(1, file.samplerate), file.frames
            wanted = length if seconds is None else min(length, round(seconds * rate))
            samples = round(wanted * max(1, 44_100 / rate) * max(1, file.channels / 2))
            if max_samples is not None and samples > max_samples:
                raise MediaError(
                    f"{path}: {samples} samples per channel, more than the limit of {max_samples}; raise max_samples "
                    f"if there are {40 * samples / 1e9:.1f} GB of memory"
                )
            file.seek((length - wanted) // 2)
            clip = file.read(wanted, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise MediaError(f"{path}: not audio that can be read: {error}") from error
    if not len(clip):
        raise MediaError(f"{path}: the audio is empty")
    return np.ascontiguousarray(clip.T), int(rate)


def sample_format(data: bytes) -> str:
    """What a .walloc file states about the samples of audio, see `bitstream.SAMPLE_FORMATS`."""
    return sample_format_of(_soundfile().info(io.BytesIO(data)).subtype)


def sample_format_of(subtype: str) -> str:
    """The same of one of libsndfile's subtypes."""
    subtype = "PCM_U8" if subtype == "PCM_S8" else subtype
    return next((name for name, subtypes in _SUBTYPES.items() if subtype == subtypes[0]), "")


def encode_image(image: PIL.Image.Image, path: str, profile: bytes = b"", **options) -> bytes:
    """The image as the bytes of a file.

    Args:
        path: the suffix names the format, PNG for "-".
        profile: ICC profile of its colours; empty for none.
        **options: of Pillow's `save`; by default those that lose least.
    """
    image_format = image_format_of(path)
    file = io.BytesIO()
    options = options or _IMAGE_OPTIONS.get(image_format, {})
    try:
        image.save(file, image_format, **options, **({"icc_profile": profile} if profile else {}))
    except (OSError, ValueError, KeyError) as error:
        raise MediaError(f"{path}: cannot write the image as {image_format}: {error}") from error
    return file.getvalue()


def image_format_of(path: str) -> str:
    """Pillow's name of the format that the suffix of a path stands for; MediaError if it cannot be written."""
    suffix = ".png" if path == STANDARD_STREAM else Path(path).suffix.lower()
    PIL.Image.init()
    image_format = PIL.Image.registered_extensions().get(suffix, "")
    if image_format not in PIL.Image.SAVE:
        raise MediaError(
            f"{path}: cannot write images as {suffix or 'a file without suffix'!r}; {_valid_suffixes('image')}"
        )
    return image_format


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
    soundfile = _soundfile()
    suffix = ".wav" if path == STANDARD_STREAM else Path(path).suffix.lower()
    audio_format, subtype = _AUDIO_FORMATS.get(suffix, (suffix.lstrip(".").upper(), None))
    if suffix not in AUDIO_SUFFIXES:
        raise MediaError(
            f"{path}: cannot write audio as {suffix or 'a file without suffix'!r}; {_valid_suffixes('audio')}"
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
        import torch

        from .codec.feature_extraction_walloc import resample

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


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Errors that do not name the file yet get its name in front."""
    try:
        yield
    except MediaError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        message = "not enough memory" if isinstance(error, MemoryError) else str(error)
        raise MediaError(f"{source}: {message}") from error


def warn(path: str, text: str) -> None:
    """Say what the result of a file does not keep."""
    warnings.warn(MediaWarning(f"{path}: {text}"), stacklevel=3)


def to_srgb(path: str, image: PIL.Image.Image) -> PIL.Image.Image:
    """Colours of phones and cameras are often not sRGB, which decoded images are: their files have no profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = PIL.ImageCms.getProfileDescription(source).strip()
        if "sRGB" in name:
            return image
        srgb = PIL.ImageCms.createProfile("sRGB")
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = PIL.ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (OSError, PIL.ImageCms.PyCMSError):
        converted = None
    if converted is None:
        warn(path, "its colour profile is damaged and not used")
        return image
    warn(path, f"colours are converted from {name or 'its colour profile'} to sRGB")
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _valid_suffixes(kind: str) -> str:
    return f"valid: {', '.join(IMAGE_SUFFIXES if kind == 'image' else AUDIO_SUFFIXES)}"


def _soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MediaError(f"audio files need soundfile: pip install 'transformers-walloc[audio]' ({error})") from error
    return soundfile
