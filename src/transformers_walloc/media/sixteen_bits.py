"""Pictures of 16 bits per sample, of which Pillow reads and writes gray ones only."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image

from .messages import MediaError, warn

# How Pillow takes each byte of 16-bit samples in turn: it has no mode for more than one of them in a pixel.
_HALVES = {
    "RGB;16B": ("RGB", ("RGB;16B", "RGB;16L")),
    "RGBA;16B": ("RGBA", ("RGBA;16B", "RGBA;16L")),
    "LA;16B": ("RGBA", ("RGBA",)),
}


def is_deep(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file has samples of more than 8 bits, of which Pillow may have dropped some."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009 - of TIFF only
        return max(tags.get(258, (1,))) > 8  # BitsPerSample
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.format == "PNG" and data[24] > 8)


def sixteen_bits(path: str, image: PIL.Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Pixels and alpha as stored, (H, W) or (H, W, 3) and (H, W) uint16; None if the file has no such samples."""
    if image.mode in ("I", "F"):
        bands = _to_sixteen_bits(path, np.asarray(image))[..., None]
    elif image.mode.startswith("I;16"):
        bands = np.asarray(image).astype(np.uint16)[..., None]
    elif image.format == "PNG" and data[24] == 16:
        bands = _png_bands(data)
    elif image.format == "TIFF" and is_deep(image, data) and (found := _tiff_bands(data)) is not None:
        bands = found
    else:
        return None
    colours = 1 if bands.shape[2] < 3 else 3
    pixels, alpha = bands[..., :colours], bands[..., colours:]
    key = image.info.get("transparency")
    if key is not None and not alpha.size:  # the one colour that is transparent
        alpha = np.where((pixels == np.asarray(key)).all(axis=2), 0, 65535).astype(np.uint16)[..., None]
    opaque = not alpha.size or alpha.min() == 65535
    return (pixels[..., 0] if colours == 1 else pixels), (None if opaque else alpha[..., 0])


def _to_sixteen_bits(path: str, samples: np.ndarray) -> np.ndarray:
    """Gray of 32 bits, of which only integers of 16 bits and floats in [0, 1] have a known range."""
    low, high = samples.min(), samples.max()
    if samples.dtype.kind == "f":
        if not 0 <= low <= high <= 1:
            raise MediaError(f"{path}: floats of {low:g} to {high:g}; valid: 0 to 1, or a codec fitted to such rasters")
        warn(path, "floats are kept as integers of 16 bits")
        return np.rint(samples * 65535).astype(np.uint16)
    if not 0 <= low <= high <= 65535:
        raise MediaError(f"{path}: integers of {low} to {high}; valid: 0 to 65535, or a codec fitted to such rasters")
    return samples.astype(np.uint16)


def _png_bands(data: bytes) -> np.ndarray:
    """(H, W, bands) uint16 of a PNG of 16 bits in more than one band."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        rawmode: Any = image.tile[0].args
    mode, halves = _HALVES[rawmode if isinstance(rawmode, str) else rawmode[0]]
    decoded = [_decode(data, mode, half) for half in halves]
    if len(decoded) == 1:  # the bytes of a gray pixel and its alpha
        decoded = [decoded[0][..., 0::2], decoded[0][..., 1::2]]
    return decoded[0].astype(np.uint16) << 8 | decoded[1]


def _decode(data: bytes, mode: str, rawmode: str) -> np.ndarray:
    """(H, W, bands) uint8 of a PNG, one byte of each sample."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.tile = [image.tile[0]._replace(args=rawmode)]
        image._mode = mode
        image.info.pop("transparency", None)
        image.load()
        return np.asarray(image)


def _tiff_bands(data: bytes) -> np.ndarray | None:
    """(H, W, bands) of a TIFF of three or four bands of unsigned 16 bits; None for others, or without tifffile."""
    try:
        import tifffile
    except ImportError:
        return None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        bands = page.asarray()
        turned = page.tags.get(274) is not None and page.tags[274].value != 1
    if bands.ndim == 3 and bands.shape[2] > 4:
        bands = np.moveaxis(bands, 0, 2)
    return None if turned or bands.ndim != 3 or bands.dtype != np.uint16 or bands.shape[2] not in (3, 4) else bands


def as_type(samples: np.ndarray, dtype: type) -> np.ndarray:
    """uint8 or uint16 over their full range as the other."""
    if samples.dtype == dtype:
        return samples
    if dtype is np.uint16:
        return samples.astype(np.uint16) * 257
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def encode_png(bands: np.ndarray, profile: bytes) -> bytes:
    """A PNG of 16 bits, (height, width) or (height, width, bands), which Pillow writes of one band only."""
    height, width = bands.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[bands[0, 0].size]
    rows = np.ascontiguousarray(bands, ">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # each byte less the one above
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts])


def encode_tiff(pixels: np.ndarray, alpha: np.ndarray | None, profile: bytes) -> bytes | None:
    """A TIFF of 16 bits; None without tifffile."""
    try:
        import tifffile
    except ImportError:
        return None
    file = io.BytesIO()
    bands = pixels if alpha is None else np.dstack([pixels, as_type(alpha, np.uint16)])
    tifffile.imwrite(
        file,
        bands,
        photometric="rgb" if pixels.ndim == 3 else "minisblack",
        planarconfig="contig" if bands.ndim == 3 else None,
        extrasamples=None if alpha is None else ["unassalpha"],
        compression="zlib",
        predictor=True,
        metadata=None,
        iccprofile=profile or None,
    )
    return file.getvalue()
