"""A codec's file beside those of common formats at the same size."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageDraw
import torch

from ..media import MediaError, encode_audio, encode_image, read_audio
from .metrics import audio_psnr, psnr, si_sdr, ssim, to_8bit

PANEL_SIZE = 384  # pixels of the centre of each image that the picture shows
CAPTION_HEIGHT = 28

# At the slowest setting of each that takes seconds at most, and with the chroma subsampling of its default.
_IMAGE_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": (".jpg", {"optimize": True, "progressive": True}),
    "WebP": (".webp", {"method": 6}),
    "AVIF": (".avif", {"speed": 6}),
}
_IMAGE_QUALITIES = [{"quality": quality} for quality in range(1, 96)]
_LEVELS = [{"compression_level": step / 64} for step in range(64, -1, -1)]
# Variable bit rates do better but end at some 57 kb/s; libsndfile refuses the level 1.
_MP3_LEVELS = [{"compression_level": level, "bitrate_mode": "CONSTANT"} for level in (0.99, 0.96, 0.93)]
_AUDIO_ENCODERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "MP3": (".mp3", _MP3_LEVELS + _LEVELS[1:]),
    "Vorbis": (".ogg", _LEVELS),
    "Opus": (".opus", _LEVELS),
}


def compare_image(codec, source: str, data: bytes, blob: bytes) -> tuple[list[dict[str, Any]], Callable]:
    """
    Args:
        codec: a `cli.Codec` for images.
        source, data: name and bytes of the original's file.
        blob: the .walloc file that the codec made of it.

    Returns:
        A row for each codec (codec, quality, bytes, ratio, bpp, psnr, ssim; None where there is no number), and a
        function that draws them side by side.
    """
    inputs, _ = codec.inputs(source, data)
    height, width = inputs["original_sizes"][0].tolist()
    reference = to_8bit(inputs["pixel_values"][0, :, :height, :width])
    (pixels,) = codec.model.decompress([blob], max_pixels=None)
    results = [(f"WaLLoC {codec.name}", None, blob, to_8bit(pixels))]
    if reference.shape[2] in (1, 3):
        image = PIL.Image.fromarray(reference.squeeze(2) if reference.shape[2] == 1 else reference)
        for name, (suffix, options) in _IMAGE_ENCODERS.items():
            if name == "JPEG" or PIL.features.check(name.lower()):
                encode = functools.partial(encode_image, image, f"-{suffix}", **options)
                option, encoded = _at_size(encode, _IMAGE_QUALITIES, len(blob))
                decoded = np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert(image.mode))
                results.append((name, option["quality"], encoded, decoded.reshape(reference.shape)))
    rows = [
        {
            "codec": name,
            "quality": quality,
            "bytes": len(encoded),
            "ratio": reference.size / len(encoded),
            "bpp": 8 * len(encoded) / (height * width),
            "psnr": psnr(reference, decoded),
            "ssim": _ssim(reference, decoded),
        }
        for name, quality, encoded, decoded in results
    ]
    panels = [("original", reference)]
    panels += [(_caption(row), decoded) for row, (*_, decoded) in zip(rows, results, strict=True)]
    return rows, lambda: _side_by_side(panels)


def compare_audio(codec, source: str, data: bytes, blob: bytes) -> list[dict[str, Any]]:
    """The same for audio: rows of codec, level (libsndfile's, 0 is best), bytes, ratio, kbps, psnr, si_sdr."""
    from ..codec.bitstream import unpack
    from ..codec.feature_extraction_walloc import resample

    reference, rate = read_audio(source, data)
    seconds = reference.shape[1] / rate
    header, _ = unpack(blob, None, None)
    decoded, _ = codec.waveform(blob, header, None)
    results = [(f"WaLLoC {codec.name}", None, blob, decoded)]
    peak = max(1.0, float(np.abs(reference).max()))
    for name, (suffix, settings) in _AUDIO_ENCODERS.items():
        encode = functools.partial(encode_audio, reference / peak, rate, f"-{suffix}")
        try:
            option, encoded = _at_size(encode, settings, len(blob))
        except MediaError:  # not in this build of libsndfile, or not at this sampling rate
            continue
        decoded, decoded_rate = read_audio(source, encoded)
        if decoded_rate != rate:
            decoded = resample(torch.from_numpy(decoded), decoded_rate, rate).numpy()
        results.append((name, option["compression_level"], encoded, _align(decoded, reference) * peak))
    return [
        {
            "codec": name,
            "level": level,
            "bytes": len(encoded),
            "ratio": 2 * reference.size / len(encoded),
            "kbps": len(encoded) / seconds / 125,
            "psnr": audio_psnr(reference, decoded),
            "si_sdr": si_sdr(reference, decoded) if np.ptp(reference, axis=1).all() else None,
        }
        for name, level, encoded, decoded in results
    ]


def format_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `compare_image` or `compare_audio` as aligned text."""

    def text(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def _ssim(reference: np.ndarray, decoded: np.ndarray) -> float | None:
    if min(reference.shape[:2]) < 11:  # the window does not fit
        return None
    try:
        return ssim(reference, decoded)
    except ImportError:  # without the extra "eval"
        return None


def _at_size(encode: Callable[..., bytes], settings: list[dict[str, Any]], size: int) -> tuple[dict[str, Any], bytes]:
    """The best of the encoder's settings, which come worst first, whose file has at most `size` bytes, by bisection.

    The worst if even its file is larger.
    """
    best = settings[0], encode(**settings[0])
    low, high = 0, len(settings)
    while high - low > 1:
        middle = (low + high) // 2
        encoded = encode(**settings[middle])
        if len(encoded) <= size:
            low, best = middle, (settings[middle], encoded)
        else:
            high = middle
    return best


def _align(decoded: np.ndarray, reference: np.ndarray, max_lag: int = 4096) -> np.ndarray:
    """Undo the delay of codecs that do not do so themselves, and make the length that of the reference."""
    length = min(2**20, reference.shape[1], decoded.shape[1])
    spectra = [np.fft.rfft(x[:, :length].mean(0), 2 * length) for x in (decoded, reference)]
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj())
    lags = np.arange(-min(max_lag, length - 1), min(max_lag, length - 1) + 1)
    lag = int(lags[correlation[lags].argmax()])
    decoded = np.pad(decoded, ((0, 0), (max(0, -lag), 0)))[:, max(0, lag) :]
    missing = max(0, reference.shape[1] - decoded.shape[1])
    return np.pad(decoded, ((0, 0), (0, missing)))[:, : reference.shape[1]]


def _caption(row: dict[str, Any]) -> str:
    quality = "" if row["quality"] is None else f" q{row['quality']}"
    return f"{row['codec']}{quality}: {row['bytes']} bytes, {row['psnr']:.2f} dB"


def _side_by_side(panels: list[tuple[str, np.ndarray]]) -> PIL.Image.Image:
    height, width, _ = panels[0][1].shape
    shown_height, shown_width = min(height, PANEL_SIZE), min(width, PANEL_SIZE)
    top, left = (height - shown_height) // 2, (width - shown_width) // 2
    column = max(shown_width, PANEL_SIZE)
    canvas = PIL.Image.new("RGB", (len(panels) * (column + 4) - 4, shown_height + CAPTION_HEIGHT), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    for index, (caption, pixels) in enumerate(panels):
        crop = pixels[top : top + shown_height, left : left + shown_width]
        crop = np.repeat(crop, 3, axis=2) if crop.shape[2] == 1 else np.ascontiguousarray(crop[:, :, :3])
        canvas.paste(PIL.Image.fromarray(crop), (index * (column + 4), CAPTION_HEIGHT))
        draw.text((index * (column + 4) + 4, 6), caption, fill="black", font_size=14)
    return canvas
