"""A codec's file beside those of common formats at the same size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from ..media.audio import read_audio
from ..media.messages import MediaError
from .codecs import CodecUnavailableError
from .metrics import (
    MetricUnavailableError,
    audio_psnr,
    bits_per_pixel,
    compression_ratio,
    psnr,
    si_sdr,
    ssim,
    to_images,
)
from .rivals import AUDIO_FORMATS, AudioFormat, ImageFormat, Resizing

PANEL_SIZE = 384  # pixels of the centre of each image that the picture shows
CAPTION_HEIGHT = 28
IMAGE_RIVALS = ("jpeg", "webp", "avif")


def compare_image(codec, source: str, data: bytes, blob: bytes) -> tuple[list[dict[str, Any]], Callable]:
    """
    Args:
        codec: a `cli.Codec` for images.
        source, data: name and bytes of the original's file.
        blob: the .walloc file that the codec made of it.

    Returns:
        A row for each codec (codec, numbers that a model reads, quality, bytes, ratio, bpp, psnr, ssim; None where
        there is none), and a function that draws them side by side: the codec, the image resized to as many numbers,
        and formats at the size of the codec's file, which give a model as many numbers as there are pixels.
    """
    inputs, _ = codec.inputs(source, data)
    height, width = inputs["original_sizes"][0].tolist()
    reference = to_images(inputs["pixel_values"][0, :, :height, :width])
    (pixels,) = codec.model.decompress([blob], max_memory=None)
    results: list[tuple] = [(f"WaLLoC {codec.name}", None, blob, to_images(pixels))]
    reduction = codec.model.config.dimensionality_reduction
    results += (resized := resized_to_as_many(reference, reduction))
    numbers = [reference.size / reduction, *[reference.size / reduction for _ in resized]]
    if reference.shape[2] in (1, 3):
        results += formats_at_size(reference, len(blob), IMAGE_RIVALS)
    numbers += [reference.size] * (len(results) - len(numbers))
    rows = [
        {
            "codec": name,
            "numbers": round(count),
            "quality": quality,
            "bytes": len(encoded),
            "ratio": compression_ratio(reference.size, len(encoded), 8),
            "bpp": bits_per_pixel(height, width, len(encoded)),
            "psnr": psnr(reference, decoded),
            "ssim": _ssim(reference, decoded),
        }
        for count, (name, quality, encoded, decoded) in zip(numbers, results, strict=True)
    ]
    panels = [("original", reference)]
    panels += [(_caption(row), decoded) for row, (*_, decoded) in zip(rows, results, strict=True)]
    return rows, lambda: side_by_side(panels)


def compare_audio(codec, source: str, data: bytes, blob: bytes) -> list[dict[str, Any]]:
    """The same for audio: rows of codec, level (libsndfile's, 0 is best), bytes, ratio, kbps, psnr, si_sdr."""
    from ..codec.bitstream import unpack

    reference, rate = read_audio(source, data)
    seconds = reference.shape[1] / rate
    header, _ = unpack(blob, None, None)
    decoded, _ = codec.waveform(blob, header, None)
    results = [(f"WaLLoC {codec.name}", None, blob, decoded)]
    peak = max(1.0, float(np.abs(reference).max()))
    for name, form in AUDIO_FORMATS.items():
        rival = AudioFormat(name, rate)
        try:
            setting, encoded = rival.at_size(reference / peak, len(blob))
            decoded = rival.read(encoded, reference / peak) * peak
        except MediaError:  # not in this build of libsndfile, or not at this sampling rate
            continue
        results.append((form.title, setting["compression_level"], encoded, decoded))
    return [
        {
            "codec": name,
            "level": level,
            "bytes": len(encoded),
            "ratio": compression_ratio(reference.size, len(encoded), 16),
            "kbps": len(encoded) / seconds / 125,
            "psnr": audio_psnr(reference, decoded),
            "si_sdr": si_sdr(reference, decoded) if np.ptp(reference, axis=1).all() else None,
        }
        for name, level, encoded, decoded in results
    ]


def resized_to_as_many(image: np.ndarray, reduction: float) -> list[tuple[str, None, bytes, np.ndarray]]:
    """Title, lossless file and enlarged pixels of an RGB image resized to `reduction` times fewer numbers, as the only
    item of a list; none where no whole factor does that."""
    factor = round(math.sqrt(reduction))
    if image.shape[2] != 3 or factor < 2 or abs(factor**2 - reduction) > 0.01 * reduction:
        return []
    resizing = Resizing(factor)
    blob = resizing.write(image)
    return [(f"resized 1:{factor}", None, blob, resizing.read(blob, image))]


def formats_at_size(
    image: np.ndarray, size: int, names: Sequence[str]
) -> list[tuple[str, int | None, bytes, np.ndarray]]:
    """Title, quality, file and decoded pixels of each format that this Pillow has, by `ImageFormat.at_size`."""
    found = []
    for name in names:
        try:
            rival = ImageFormat(name)
        except CodecUnavailableError:
            continue
        setting, blob = rival.at_size(image, size)
        found.append((rival.form.title, setting["quality"], blob, rival.read(blob, image)))
    return found


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


def side_by_side(panels: Sequence[tuple[str, np.ndarray]], size: int = PANEL_SIZE) -> PIL.Image.Image:
    """A picture of the centres of images, each under its caption.

    Args:
        panels: caption and uint8 pixels (height, width, channels) of each, all of one size.
        size: pixels of a side that are shown at most.
    """
    height, width, _ = panels[0][1].shape
    shown_height, shown_width = min(height, size), min(width, size)
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


def _ssim(reference: np.ndarray, decoded: np.ndarray) -> float | None:
    if min(reference.shape[:2]) < 11:  # the window does not fit
        return None
    try:
        return ssim(reference, decoded)
    except MetricUnavailableError:  # without the extra "eval"
        return None


def _caption(row: dict[str, Any]) -> str:
    quality = "" if row["quality"] is None else f" q{row['quality']}"
    return f"{row['codec']}{quality}: {row['bytes']} bytes, {row['psnr']:.2f} dB"
