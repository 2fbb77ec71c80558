"""Images in files without loss around the codec: 16 bits, gray, transparency and colour profiles come back.

```
file -> read_picture: Picture(pixels for the codec, alpha and profile for the .walloc file's header)
     -> read_opaque, read_pixels: what is seen of it on white, in sRGB, for learners and measurements
decoded pixels, header -> encode_picture: file, with what its format can hold; what it cannot is said
```

`codec/image_decoding.py` decodes, for processors and for files.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin

from ..codec.image_colours import as_type, to_gray, to_srgb
from ..codec.image_decoding import Picture, decode_picture
from ..codec.side_data import MAX_PROFILE, SideData
from ..codec.size_limits import MAX_ENCODED_PIXELS
from ..codec.tiff_tags import MAX_BYTES, unpack_tags
from .messages import MediaError, noting, warn
from .paths import IMAGE_SUFFIXES, STANDARD_STREAM
from .sixteen_bits import DEFLATE_LEVEL, encode_png, encode_tiff

# Decoded images are stored without further loss where the format allows it, and nearly so otherwise.
_IMAGE_OPTIONS: dict[str, dict] = {
    "PNG": {"compress_level": DEFLATE_LEVEL},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}

# What Pillow writes into these.
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF")
_WITH_PROFILE = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG")


def read_picture(path: str, data: bytes, max_pixels: int | None = MAX_ENCODED_PIXELS) -> Picture:
    """An image file with all that it says of itself, upright; white where it is transparent throughout.

    Args:
        path: the name for messages.
        data: the file.
        max_pixels: refuse larger images before they are decoded; None for no limit but Pillow's.

    Raises:
        MediaError: not an image that can be read, or too large.

    Warns:
        MediaWarning: frames, bits, bands, or colours that are not red, green and blue, which are converted to sRGB.
    """
    try:
        picture = decode_picture(data, max_pixels, noting(path))
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
    if len(picture.profile) > MAX_PROFILE:
        warn(path, f"its colour profile of {len(picture.profile)} bytes is not kept")
        picture = dataclasses.replace(picture, profile=b"")
    if len(picture.tags) > MAX_BYTES:
        warn(path, f"its georeferencing of {len(picture.tags)} bytes is not kept")
        picture = dataclasses.replace(picture, tags=b"")
    if picture.alpha is not None:
        pixels = picture.pixels.copy()
        pixels[picture.alpha == 0] = np.iinfo(pixels.dtype).max
        picture = dataclasses.replace(picture, pixels=pixels)
    return picture


def read_opaque(path: str, data: bytes, max_pixels: int | None = MAX_ENCODED_PIXELS) -> Picture:
    """What is seen of an image file: upright, in sRGB, transparent parts on white, with all its bits.

    Arguments and errors are those of `read_picture`.

    Warns:
        MediaWarning: as `read_picture`, and transparency and colour spaces that the result does not have.
    """
    picture = read_picture(path, data, max_pixels)
    if picture.alpha is not None:
        warn(path, "transparent parts become white")
    return Picture(pixels=picture.on_white(noting(path)))


def read_pixels(
    path: str, data: bytes, num_channels: int = 3, max_pixels: int | None = MAX_ENCODED_PIXELS
) -> np.ndarray:
    """An image file as learners and metrics take it: what `read_opaque` gives, with 8 bits.

    Arguments and errors are those of `read_picture`.

    Returns:
        (height, width, 3) uint8, or (height, width) for `num_channels=1`.

    Warns:
        MediaWarning: also of bits that the result does not have.
    """
    if num_channels not in (1, 3):
        raise MediaError(f"{path}: pictures of {num_channels} channels are read as rasters; valid here: 1 and 3")
    pixels = read_opaque(path, data, max_pixels).pixels
    if pixels.dtype == np.uint16:
        warn(path, "samples of more than 8 bits are taken with 8 bits")
        pixels = as_type(pixels, np.uint8)
    if num_channels == 1:
        return pixels if pixels.ndim == 2 else to_gray(pixels)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


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
    if side_data.tags and image_format != "TIFF":
        warn(path, f"{image_format} has no georeferencing: that of the image is not kept")
    if pixels.dtype == np.uint16:
        if image_format == "PNG":
            bands = pixels if alpha is None else np.dstack([pixels, as_type(alpha, np.uint16)])
            return encode_png(bands, profile)
        if image_format == "TIFF" and (tiff := encode_tiff(pixels, alpha, side_data)) is not None:
            return tiff
        warn(path, "samples of 16 bits are written with 8 bits")
        pixels = as_type(pixels, np.uint8)
    image = PIL.Image.fromarray(pixels)
    if alpha is not None and image_format not in _WITH_ALPHA:
        warn(path, f"{image_format} has no transparency: transparent parts become white")
    if alpha is not None:
        image.putalpha(PIL.Image.fromarray(as_type(alpha, np.uint8)))
        if image_format not in _WITH_ALPHA:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA")).convert(image.mode[:-1])
    if profile and image_format not in _WITH_PROFILE:
        image.info["icc_profile"] = profile
        if image.mode == "RGB":
            image = to_srgb(image, noting(path))
        else:
            warn(path, f"{image_format} has no colour profile: that of the image is not kept")
        profile = b""
    tags = side_data.tags if image_format == "TIFF" else b""
    return encode_image(image, path, profile, **({"tiffinfo": _as_tiffinfo(tags)} if tags else {}))


def encode_image(image: PIL.Image.Image, path: str, profile: bytes = b"", **options) -> bytes:
    """The image as the bytes of a file.

    Args:
        path: the suffix names the format, PNG for "-".
        profile: ICC profile of its colours; empty for none.
        **options: of Pillow's `save`; those that lose least, unless a `quality` is asked for.
    """
    image_format = image_format_of(path)
    file = io.BytesIO()
    defaults = {} if "quality" in options else _IMAGE_OPTIONS.get(image_format, {})
    options = {**defaults, **options}
    try:
        image.save(file, image_format, **options, **({"icc_profile": profile} if profile else {}))
    except (OSError, ValueError, KeyError) as error:
        raise MediaError(f"{path}: cannot write the image as {image_format}: {error}") from error
    return file.getvalue()


def _as_tiffinfo(tags: bytes) -> PIL.TiffImagePlugin.ImageFileDirectory_v2:
    directory = PIL.TiffImagePlugin.ImageFileDirectory_v2()
    for number, (kind, value) in unpack_tags(tags).items():
        directory.tagtype[number] = kind
        directory[number] = value.rstrip(b"\0").decode(errors="replace") if isinstance(value, bytes) else value
    return directory


def image_format_of(path: str) -> str:
    """Pillow's name of the format that the suffix of a path stands for; MediaError if it cannot be written."""
    suffix = ".png" if path == STANDARD_STREAM else Path(path).suffix.lower()
    PIL.Image.init()
    image_format = PIL.Image.registered_extensions().get(suffix, "")
    if image_format not in PIL.Image.SAVE:
        raise MediaError(
            f"{path}: cannot write images as {suffix or 'a file without suffix'!r}; valid: {', '.join(IMAGE_SUFFIXES)}"
        )
    return image_format
