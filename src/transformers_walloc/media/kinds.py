"""What a file holds."""

import contextlib
import io
from pathlib import Path

import PIL.Image

from ..codec.bitstream import MAGIC
from .audio import soundfile_or_error
from .messages import MediaError
from .paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, RASTER_SUFFIXES, VIDEO_SUFFIXES

# How the common audio files begin: to know them where soundfile is not installed.
_AUDIO_STARTS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b"caff", b".snd")


def kind_of(path: str, data: bytes) -> str:
    """ "image", "audio", "volume" (a video) or "walloc", by the content where the suffix does not say."""
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
    except Exception:  # whatever a decoder raises, it is no image
        pass
    if data.startswith(_AUDIO_STARTS):
        return "audio"
    with contextlib.suppress(MediaError, RuntimeError, TypeError):  # without soundfile it is not audio that can be read
        soundfile_or_error().info(io.BytesIO(data))
        return "audio"
    raise MediaError(f"{path}: neither an image nor audio that can be read")
