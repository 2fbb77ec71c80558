"""Images and audio in files: what the command line reads and writes.

Images go through Pillow, audio through soundfile; every file is written in one step, so that a reader never sees half.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from .files import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    STANDARD_STREAM,
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
    "atomic_file",
    "atomic_folder",
    "encode_audio",
    "encode_image",
    "find_files",
    "kind_of",
    "naming",
    "read_audio",
    "read_bytes",
    "read_image",
    "write_atomically",
    "write_bytes",
]

# Decoded images are stored without further loss where the format allows it, and nearly so otherwise.
_IMAGE_OPTIONS: dict[str, dict] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}
_AUDIO_FORMATS = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"), ".aif": ("AIFF", None)}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def kind_of(path: str, data: bytes) -> str:
    """ "image", "audio" or "walloc", by the content where the suffix does not say."""
    from .codec.bitstream import MAGIC

    suffix = Path(path).suffix.lower()
    if data[: len(MAGIC)] == MAGIC:
        return "walloc"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    try:
        with PIL.Image.open(io.BytesIO(data)):
            return "image"
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError):
        pass
    try:
        _soundfile().info(io.BytesIO(data))
        return "audio"
    except (RuntimeError, TypeError) as error:
        raise MediaError(f"{path}: neither an image nor audio that can be read") from error


def read_image(path: str, data: bytes) -> PIL.Image.Image:
    """A decoded image: upright, and in sRGB if it states another colour space."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "not an image that can be read" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise MediaError(f"{path}: {reason}") from error
    return _to_srgb(PIL.ImageOps.exif_transpose(image))


def read_audio(path: str, data: bytes, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """(channels, length) float32 and the sampling rate in Hz, of the whole file or of so many seconds in its middle."""
    try:
        with _soundfile().SoundFile(io.BytesIO(data)) as file:
            wanted = -1 if seconds is None else round(seconds * file.samplerate)
            if 0 <= wanted < file.frames:
                file.seek((file.frames - wanted) // 2)
            samples, rate = file.read(wanted, dtype="float32", always_2d=True), file.samplerate
    except (RuntimeError, TypeError) as error:
        raise MediaError(f"{path}: not audio that can be read: {error}") from error
    if not len(samples):
        raise MediaError(f"{path}: the audio is empty")
    return np.ascontiguousarray(samples.T), int(rate)


def encode_image(image: PIL.Image.Image, path: str, **options) -> bytes:
    """The image as the bytes of a file; the suffix of `path` names the format, PNG for "-"."""
    suffix = ".png" if path == STANDARD_STREAM else Path(path).suffix.lower()
    PIL.Image.init()
    image_format = PIL.Image.registered_extensions().get(suffix)
    if image_format not in PIL.Image.SAVE:
        raise MediaError(
            f"{path}: cannot write images as {suffix or 'a file without suffix'!r}; {_valid_suffixes('image')}"
        )
    file = io.BytesIO()
    try:
        image.save(file, image_format, **(options or _IMAGE_OPTIONS.get(image_format, {})))
    except (OSError, ValueError, KeyError) as error:
        raise MediaError(f"{path}: cannot write the image as {image_format}: {error}") from error
    return file.getvalue()


def encode_audio(samples: np.ndarray, rate: int, path: str, **options) -> bytes:
    """(channels, length) floats in [-1, 1] as the bytes of a file; the suffix names the format, WAV for "-"."""
    soundfile = _soundfile()
    suffix = ".wav" if path == STANDARD_STREAM else Path(path).suffix.lower()
    audio_format, subtype = _AUDIO_FORMATS.get(suffix, (suffix.lstrip(".").upper(), None))
    if suffix not in AUDIO_SUFFIXES:
        raise MediaError(
            f"{path}: cannot write audio as {suffix or 'a file without suffix'!r}; {_valid_suffixes('audio')}"
        )
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
                sound.write(samples[:, start : start + 2**16].clip(-1, 1).T)
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


def _to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Colours of phones and cameras are often not sRGB, which decoded images are: their files have no profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in PIL.ImageCms.getProfileDescription(source):
            return image
        srgb = PIL.ImageCms.createProfile("sRGB")
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = PIL.ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (OSError, PIL.ImageCms.PyCMSError):  # a damaged profile says nothing
        return image
    if converted is None:
        return image
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
