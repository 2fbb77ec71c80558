"""What a codec is compared with: image and audio formats, each at its best, and resizing.

At the same size as another file is the smallest file of a format that is no smaller, so that doubt favours the format.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from ..codec.clips import resample
from ..media.audio import encode_audio, read_audio
from ..media.messages import MediaWarning
from ..media.pictures import encode_image
from .codecs import Clock, Codec, CodecUnavailableError
from .metrics import psnr


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        options: of its encoder, for every file.
        variants: further options, of which a file at a given size takes the ones that serve it best.
        settings: of its encoder from the smallest files to the largest ones.
    """

    title: str
    suffix: str
    options: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ({},)
    settings: Sequence[Mapping[str, Any]] = ()


_QUALITIES = [{"quality": quality} for quality in range(1, 101)]
# libsndfile's scale, in which 0 is best.
_LEVELS: list[dict[str, Any]] = [{"compression_level": step / 64} for step in range(64, -1, -1)]
# Variable bit rates do better but end at some 57 kb/s; libsndfile refuses the level 1.
_MP3_LEVELS: list[dict[str, Any]] = [
    {"compression_level": level, "bitrate_mode": "CONSTANT"} for level in (0.99, 0.96, 0.93)
]
_SUBSAMPLING = [{"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}]

IMAGE_FORMATS = {
    "jpeg": Format("JPEG", ".jpg", {"optimize": True, "progressive": True}, _SUBSAMPLING, _QUALITIES),
    "webp": Format("WebP", ".webp", {"method": 6}, settings=_QUALITIES),
    # Slower ones take minutes for a photograph and gain 0.3 dB at most.
    "avif": Format("AVIF", ".avif", {"speed": 4}, settings=_QUALITIES),
    "jxl": Format("JPEG XL", ".jxl", settings=_QUALITIES),
}
AUDIO_FORMATS = {
    "mp3": Format("MP3", ".mp3", settings=_MP3_LEVELS + _LEVELS[1:]),
    "vorbis": Format("Vorbis", ".ogg", settings=_LEVELS),
    "opus": Format("Opus", ".opus", settings=_LEVELS),
}
FORMATS = {"image": IMAGE_FORMATS, "audio": AUDIO_FORMATS}


def format_options(kind: str) -> dict[str, str]:
    """How files of each format are written, in words, by title; for results to state."""
    found = {}
    for form in FORMATS[kind].values():
        words = [name if value is True else f"{name} {value}" for name, value in form.options.items()]
        variants = [f"{name} {value}" for variant in form.variants for name, value in variant.items()]
        words += [f"at a given size the better of {' and '.join(variants)}"] if variants else []
        if words:
            found[form.title] = ", ".join(words)
    return found


def same_size(
    encode: Callable[..., bytes], settings: Sequence[Mapping[str, Any]], size: int
) -> tuple[Mapping[str, Any], bytes]:
    """The smallest file of at least `size` bytes, and the settings that gave it, by bisection.

    Args:
        encode: takes one of the settings as keyword arguments.
        settings: from the smallest files to the largest ones.

    Returns:
        The largest file where all are smaller.
    """
    low, high, best = 0, len(settings) - 1, None
    while low < high:
        middle = (low + high) // 2
        blob = encode(**settings[middle])
        if len(blob) >= size:
            high, best = middle, (settings[middle], blob)
        else:
            low = middle + 1
    return best or (settings[high], encode(**settings[high]))


class ImageFormat(Codec):
    """
    Args:
        name: jpeg, webp, avif or jxl.
        quality: 1 to 100.

    Raises:
        CodecUnavailableError: this Pillow cannot write the format.
    """

    def __init__(self, name: str, quality: float = 50):
        self.name, self.form, self.quality = f"{name}@quality={quality:g}", IMAGE_FORMATS[name], round(quality)
        if name == "jxl":
            try:
                import pillow_jxl  # noqa: F401 (registers the format with Pillow)
            except ImportError as error:
                raise CodecUnavailableError(f"{error}; pip install pillow-jxl-plugin") from error
        elif name != "jpeg" and not features.check(name):
            raise CodecUnavailableError(f"this Pillow was built without {self.form.title}")

    def write(self, signal: np.ndarray) -> bytes:
        return encode_image(_to_image(signal), f"-{self.form.suffix}", quality=self.quality, **self.form.options)

    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        with Image.open(io.BytesIO(blob)) as image:
            return np.asarray(image.convert("L" if like.shape[2] == 1 else "RGB")).reshape(like.shape)

    def at_size(self, signal: np.ndarray, size: int) -> tuple[Mapping[str, Any], bytes]:
        """Settings and file of `same_size`, in that variant of the format that has the higher PSNR."""
        image, found = _to_image(signal), []
        for variant in self.form.variants:

            def encode(variant=variant, **setting):
                return encode_image(image, f"-{self.form.suffix}", **self.form.options, **variant, **setting)

            setting, blob = same_size(encode, self.form.settings, size)
            found.append((psnr(signal, self.read(blob, signal)), {**setting, **variant}, blob))
        return max(found, key=lambda entry: entry[0])[1:]


class AudioFormat(Codec):
    """
    Args:
        name: mp3, vorbis or opus.
        sampling_rate: of the clips, in Hz. Opus files have 48 kHz.
        level: 0 (best) to 1, libsndfile's `compression_level`; MP3 takes constant bit rates.
    """

    def __init__(self, name: str, sampling_rate: int, level: float = 0.5):
        self.name, self.form = f"{name}@quality={level:g}", AUDIO_FORMATS[name]
        self.sampling_rate = sampling_rate
        self.setting: dict[str, Any] = {"compression_level": level}
        if name == "mp3":
            self.setting["bitrate_mode"] = "CONSTANT"

    def encode(self, signal: np.ndarray, **setting) -> bytes:
        return encode_audio(signal, self.sampling_rate, f"-{self.form.suffix}", **setting)

    def write(self, signal: np.ndarray) -> bytes:
        return self.encode(signal, **self.setting)

    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)  # of a file that we wrote: libsndfile's MP3 may end early
            decoded, rate = read_audio(self.name, blob)
        if rate != self.sampling_rate:
            decoded = resample(torch.from_numpy(decoded), rate, self.sampling_rate).numpy()
        if self.form.suffix == ".mp3" and decoded.shape[1] > like.shape[1]:
            # Frames of low rates have no room for the tag that tells decoders to skip the encoder's delay.
            decoded = _aligned(decoded, like)
        missing = max(0, like.shape[1] - decoded.shape[1])
        return np.pad(decoded[:, : like.shape[1]], ((0, 0), (0, missing)))

    def at_size(self, signal: np.ndarray, size: int) -> tuple[Mapping[str, Any], bytes]:
        """Settings and file of `same_size`."""
        return same_size(lambda **setting: self.encode(signal, **setting), self.form.settings, size)


class SameSize(Codec):
    """A format at the size of another codec's file of the same signal."""

    def __init__(self, form: ImageFormat | AudioFormat, other: Codec):
        self.name = f"{form.name.partition('@')[0]}@like={other.name}"
        self.form, self.other, self.identity = form, other, other.file_identity

    def write(self, signal: np.ndarray) -> bytes:
        return self.form.at_size(signal, len(self.other.write(signal)))[1]

    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        return self.form.read(blob, like)


class Resizing(Codec):
    """What compressed-domain learning competes with: fewer pixels, by Lanczos filter, and bicubic enlargement.

    Args:
        factor: by which both sides shrink, 2 or more. Files are lossless WebP.
    """

    def __init__(self, factor: int = 4):
        if factor < 2:
            raise ValueError(f"the factor of resize is {factor}; it must be at least 2")
        self.name, self.factor, self.dimensionality_reduction = f"resize@factor={factor}", factor, float(factor**2)

    def write(self, signal: np.ndarray) -> bytes:
        return encode_image(self.shrink(signal), "-.webp", lossless=True, method=6)

    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        with Image.open(io.BytesIO(blob)) as small:
            return self.enlarge(small, like)

    def run(self, signals: list[np.ndarray], clock: Clock, decode: bool = True) -> None:
        with clock.stage("encode"):
            small = [self.shrink(signal) for signal in signals]
        if decode:
            with clock.stage("decode"):
                for image, signal in zip(small, signals, strict=True):
                    self.enlarge(image, signal)

    def shrink(self, image: np.ndarray) -> Image.Image:
        height, width = (max(1, round(side / self.factor)) for side in image.shape[:2])
        return Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)

    def enlarge(self, small: Image.Image, like: np.ndarray) -> np.ndarray:
        height, width = like.shape[:2]
        return np.asarray(small.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def _to_image(signal: np.ndarray) -> Image.Image:
    return Image.fromarray(signal.squeeze(2) if signal.shape[2] == 1 else signal)


def _aligned(decoded: np.ndarray, reference: np.ndarray, max_lag: int = 4096) -> np.ndarray:
    """The decoded clip without the delay at which it resembles the reference most."""
    length = min(2**20, reference.shape[1], decoded.shape[1])
    spectra = [np.fft.rfft(x[:, :length].mean(0), 2 * length) for x in (decoded, reference)]
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj())
    return decoded[:, int(correlation[: min(max_lag, length)].argmax()) :]
