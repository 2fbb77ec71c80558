"""Pictures of 16 bits per sample as files, of which Pillow writes gray ones only."""

import io
import struct
import zlib

import numpy as np

from ..codec.image_colours import as_type
from ..codec.side_data import SideData
from ..codec.tiff_tags import extra_tags

DEFLATE_LEVEL = 1  # zlib's default writes photographs a few percent smaller, and takes several times as long


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
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), DEFLATE_LEVEL)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts])


def encode_tiff(pixels: np.ndarray, alpha: np.ndarray | None, side_data: SideData) -> bytes | None:
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
        compressionargs={"level": DEFLATE_LEVEL},
        predictor=True,
        metadata=None,
        iccprofile=side_data.profile or None,
        byteorder="<",
        extratags=extra_tags(side_data.tags),
    )
    return file.getvalue()
