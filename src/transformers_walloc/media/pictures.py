"""Images in files without loss around the codec: 16 bits, gray, transparency and colour profiles come back.

```
file -> read_picture: Picture(pixels for the codec, sample format and side data for the .walloc file's header)
decoded pixels, header -> encode_picture: file, with what its format can hold; what it cannot is said
```
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image

from ..codec.side_data import SideData
from .colours import colours_and_profile, profile_of, to_srgb
from .messages import MediaError, warn
from .paths import IMAGE_SUFFIXES, STANDARD_STREAM
from .sixteen_bits import as_type, encode_png, encode_tiff, is_deep, sixteen_bits

# Larger pictures are refused before they are decoded unless the caller says otherwise: encoding takes up to 40 bytes of
# memory for a pixel, so about 2.5 GB for 67 megapixels.
MAX_PIXELS = 2**26

# Decoded images are stored without further loss where the format allows it, and nearly so otherwise.
_IMAGE_OPTIONS: dict[str, dict] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}

# What Pillow writes into these.
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF")
_WITH_PROFILE = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG")


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
    """An image file, upright.

    Args:
        path: the name for messages.
        data: the file.
        max_pixels: refuse larger images before they are decoded; None for no limit but Pillow's.

    Raises:
        MediaError: not an image that can be read, or too large.

    Warns:
        MediaWarning: frames, bits, or colours that are not red, green and blue, which are converted to sRGB.
    """
    image = open_image(path, data, max_pixels)
    gray = is_gray(image)
    found = sixteen_bits(path, image, data)
    if found is not None:
        pixels, alpha = found
        gray = pixels.ndim == 2  # Pillow has no mode for 16 bits of gray with transparency
        profile = profile_of(path, image, gray)
    else:
        if is_deep(image, data):
            warn(path, "samples of more than 8 bits are kept with 8 bits")
        alpha = transparency(image)
        colours, profile = colours_and_profile(path, image, gray)
        pixels = np.asarray(colours.convert("L" if gray else "RGB"))
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    alpha = None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation))
    if alpha is not None:
        pixels = pixels.copy()
        pixels[alpha == 0] = np.iinfo(pixels.dtype).max
    words = ["16-bit"] * (pixels.dtype == np.uint16) + ["gray"] * gray
    return Picture(pixels=pixels, sample_format=" ".join(words), side_data=SideData(alpha=alpha, profile=profile))


def read_pixels(path: str, data: bytes, num_channels: int = 3, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """An image file as learners and metrics take it: 8 bits in sRGB, upright, what is transparent over white.

    Arguments and errors are those of `read_picture`.

    Returns:
        (height, width, 3) uint8, or (height, width) for `num_channels=1`.
    """
    if num_channels not in (1, 3):
        raise MediaError(f"{path}: pictures of {num_channels} channels are read as rasters; valid here: 1 and 3")
    picture = read_picture(path, data, max_pixels)
    image = PIL.Image.fromarray(as_type(picture.pixels, np.uint8))
    if picture.side_data.profile:
        image.info["icc_profile"] = picture.side_data.profile
        image = to_srgb(path, image)
    if picture.side_data.alpha is not None:
        image = image.convert("RGBA")
        image.putalpha(PIL.Image.fromarray(as_type(picture.side_data.alpha, np.uint8)))
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB" if num_channels == 3 else "L"))


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
            bands = pixels if alpha is None else np.dstack([pixels, as_type(alpha, np.uint16)])
            return encode_png(bands, profile)
        if image_format == "TIFF" and (tiff := encode_tiff(pixels, alpha, profile)) is not None:
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


def open_image(path: str, data: bytes, max_pixels: int | None = MAX_PIXELS) -> PIL.Image.Image:
    """A decoded image as Pillow has it, the first frame; the arguments and errors are those of `read_picture`."""
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


def is_gray(image: PIL.Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def transparency(image: PIL.Image.Image) -> np.ndarray | None:
    """(height, width) uint8, 0 where an image is transparent; None if it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha if alpha.min() < 255 else None


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
            f"{path}: cannot write images as {suffix or 'a file without suffix'!r}; valid: {', '.join(IMAGE_SUFFIXES)}"
        )
    return image_format
