"""Images in files without loss around the codec: 16 bits, gray, transparency and colour profiles come back.

```
file -> read_picture: Picture(pixels for the codec, sample format and side data for the .walloc file's header)
decoded pixels, header -> encode_picture: file, with what its format can hold; what it cannot is said
```
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms

from .codec.side_data import MAX_PROFILE, SideData
from .files import MediaError
from .media import (
    MAX_PIXELS,
    encode_image,
    image_format_of,
    is_deep,
    is_gray,
    open_image,
    to_srgb,
    transparency,
    warn,
)

# What Pillow writes into these.
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF")
_WITH_PROFILE = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG")

# How Pillow takes each byte of 16-bit samples in turn: it has no mode for more than one of them in a pixel.
_HALVES = {
    "RGB;16B": ("RGB", ("RGB;16B", "RGB;16L")),
    "RGBA;16B": ("RGBA", ("RGBA;16B", "RGBA;16L")),
    "LA;16B": ("RGBA", ("RGBA",)),
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Args:
    pixels: (height, width) or (height, width, 3), uint8 or uint16; white where the image is transparent throughout.
    sample_format: of the image, as a header states it.
    side_data: what a file keeps beside them.
    """

    pixels: np.ndarray
    sample_format: str
    side_data: SideData


def read_picture(path: str, data: bytes, max_pixels: int | None = MAX_PIXELS) -> Picture:
    """An image file, upright. Arguments and errors are those of `media.read_image`.

    Warns:
        MediaWarning: frames, bits, or colours that are not red, green and blue, which are converted to sRGB.
    """
    image = open_image(path, data, max_pixels)
    gray = is_gray(image)
    found = _sixteen_bits(path, image, data)
    if found is not None:
        pixels, alpha = found
        gray = pixels.ndim == 2  # Pillow has no mode for 16 bits of gray with transparency
        profile = _profile(path, image, gray)
    else:
        if is_deep(image, data):
            warn(path, "samples of more than 8 bits are kept with 8 bits")
        alpha = transparency(image)
        colours, profile = _colours(path, image, gray)
        pixels = np.asarray(colours.convert("L" if gray else "RGB"))
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    alpha = None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation))
    if alpha is not None:
        pixels = pixels.copy()
        pixels[alpha == 0] = np.iinfo(pixels.dtype).max
    words = ["16-bit"] * (pixels.dtype == np.uint16) + ["gray"] * gray
    return Picture(pixels=pixels, sample_format=" ".join(words), side_data=SideData(alpha=alpha, profile=profile))


def encode_picture(pixels: np.ndarray, side_data: SideData, path: str) -> bytes:
    """The bytes of an image file; the suffix of `path` names the format, PNG for "-".

    Args:
        pixels: (height, width) or (height, width, 3), uint8 or uint16.
        side_data: what the .walloc file keeps beside them.

    Raises:
        MediaError: a format that cannot be written.

    Warns:
        MediaWarning: what the format cannot hold.
    """
    image_format, alpha, profile = image_format_of(path), side_data.alpha, side_data.profile
    if pixels.dtype == np.uint16:
        if image_format == "PNG":
            bands = pixels if alpha is None else np.dstack([pixels, _as_type(alpha, np.uint16)])
            return _encode_png(bands, profile)
        if image_format == "TIFF" and (tiff := _encode_tiff(pixels, alpha, profile)) is not None:
            return tiff
        warn(path, "samples of 16 bits are written with 8 bits")
        pixels = _as_type(pixels, np.uint8)
    image = PIL.Image.fromarray(pixels)
    if alpha is not None and image_format not in _WITH_ALPHA:
        warn(path, f"{image_format} has no transparency: transparent parts become white")
    if alpha is not None:
        image.putalpha(PIL.Image.fromarray(_as_type(alpha, np.uint8)))
        if image_format not in _WITH_ALPHA:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA")).convert(image.mode[:-1])
    if profile and image_format not in _WITH_PROFILE:
        image.info["icc_profile"] = profile
        if image.mode == "RGB":
            image = to_srgb(path, image)
        else:
            warn(path, f"{image_format} has no colour profile: that of the image is not kept")
        profile = b""
    return encode_image(image, path, profile)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) turned as the EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _sixteen_bits(path: str, image: PIL.Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None] | None:
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


def _colours(path: str, image: PIL.Image.Image, gray: bool) -> tuple[PIL.Image.Image, bytes]:
    """An image whose colours are red, green and blue, or gray, and the profile that says which."""
    if gray or image.mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        return image, _profile(path, image, gray)
    return to_srgb(path, image), b""


def _profile(path: str, image: PIL.Image.Image, gray: bool) -> bytes:
    """The ICC profile of an image; empty for sRGB, and for what is none."""
    profile = image.info.get("icc_profile") or b""
    if not profile:
        return b""
    try:
        opened = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, name = opened.profile.xcolor_space.strip(), PIL.ImageCms.getProfileDescription(opened).strip()
    except (OSError, PIL.ImageCms.PyCMSError):
        space, name = "", ""
    if "sRGB" in name:
        return b""
    if space != ("GRAY" if gray else "RGB"):
        warn(path, "its colour profile is damaged and not used")
        return b""
    if len(profile) > MAX_PROFILE:
        warn(path, f"its colour profile of {len(profile)} bytes is not kept")
        return b""
    return profile


def _as_type(samples: np.ndarray, dtype: type) -> np.ndarray:
    """uint8 or uint16 over their full range as the other."""
    if samples.dtype == dtype:
        return samples
    if dtype is np.uint16:
        return samples.astype(np.uint16) * 257
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _encode_png(bands: np.ndarray, profile: bytes) -> bytes:
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


def _encode_tiff(pixels: np.ndarray, alpha: np.ndarray | None, profile: bytes) -> bytes | None:
    """A TIFF of 16 bits; None without tifffile."""
    try:
        import tifffile
    except ImportError:
        return None
    file = io.BytesIO()
    bands = pixels if alpha is None else np.dstack([pixels, _as_type(alpha, np.uint16)])
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
