"""Pictures of files: orientation, depth, transparency, colour profile and which end is white are what the file says.

```
bytes -> open_image: a PIL image, loaded              what processors take as it is
      -> decode_picture: Picture, pixels and alpha    with all bits, upright, colours not multiplied by alpha
```

Pillow decodes. It has no mode for 16 bits in several bands, so these are taken from PNG byte by byte, and from TIFF by
tifffile where that is installed. Errors are ValueError whatever a decoder raises, and do not name the file: callers do.
"""

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms

from .image_colours import Note, as_type, profile_of, to_srgb
from .size_limits import check_pixels
from .tiff_tags import GEOREFERENCING, ORIENTATION, MissingTiffReaderError, pack_tags, reading_tiff

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# How Pillow takes each byte of 16-bit samples in turn: it has no mode for more than one of them in a pixel.
_HALVES = {
    "RGB;16B": ("RGB", ("RGB;16B", "RGB;16L")),
    "RGBA;16B": ("RGBA", ("RGBA;16B", "RGBA;16L")),
    "LA;16B": ("RGBA", ("RGBA",)),
}
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_LOST_BANDS = "{} more band(s) than colours are not kept: a codec fitted to all keeps them (walloc fit)"
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # TIFF's photometric interpretations that are read here
_PREMULTIPLIED, _STRAIGHT = 1, 2  # TIFF's kinds of extra samples that are alpha


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Args:
    pixels: (height, width) or (height, width, 3), uint8 or uint16, not multiplied by alpha.
    alpha: (height, width) uint8 or uint16, 0 where it is transparent; None if it is opaque.
    profile: ICC profile of the colours; empty for sRGB.
    tags: of a TIFF, where on Earth it lies, as `pack_tags` gives them; empty for none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes = b""
    tags: bytes = b""

    @property
    def sample_format(self) -> str:
        """As a header states it."""
        return " ".join(["16-bit"] * (self.pixels.dtype == np.uint16) + ["gray"] * (self.pixels.ndim == 2))

    def on_white(self, note: Note) -> np.ndarray:
        """(height, width) or (height, width, 3) in sRGB, composited on white, in the depth of the pixels."""
        pixels, alpha = self.pixels, self.alpha
        if self.profile:
            if pixels.dtype == np.uint16:
                note("samples of 16 bits are converted with 8 bits")
            image = PIL.Image.fromarray(as_type(pixels, np.uint8))
            image.info["icc_profile"] = self.profile
            pixels = as_type(np.asarray(to_srgb(image, note)), pixels.dtype.type)
        if alpha is None:
            return pixels
        if pixels.dtype == np.uint8:
            image = PIL.Image.fromarray(pixels)
            image.putalpha(PIL.Image.fromarray(as_type(alpha, np.uint8)))
            white = PIL.Image.new("RGBA", image.size, "white")
            composite = PIL.Image.alpha_composite(white, image.convert("RGBA"))
            return np.asarray(composite.convert("L" if pixels.ndim == 2 else "RGB"))
        weight = as_type(alpha, np.uint16).astype(np.float64) / 65535
        weight = weight if pixels.ndim == 2 else weight[..., None]
        return np.rint(pixels * weight + 65535 * (1 - weight)).astype(np.uint16)


def open_image(data: bytes, max_pixels: int | None, note: Note) -> PIL.Image.Image:
    """The first frame as Pillow has it, loaded.

    Args:
        data: the file.
        max_pixels: refuse larger images before they are decoded; None for no limit but Pillow's.
        note: called with what is lost.

    Raises:
        ValueError: not an image that can be read, or too large.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data))
    except Exception as error:  # decoders raise anything: SyntaxError, IndexError, zlib.error, struct.error, ...
        reason = "not an image that can be read" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise ValueError(_text(reason)) from error
    check_pixels((image.height, image.width), max_pixels)
    try:
        image.load()
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise ValueError(_text(error)) from error
    if frames > 1 and image.format != "MPO":  # a photograph with its preview
        note(f"only the first of {frames} frames is kept")
    if not is_deep(image, data):
        _note_lost_bands(image, note)
    return image


def decode_picture(data: bytes, max_pixels: int | None, note: Note) -> Picture:
    """An image file, upright; arguments and errors are those of `open_image`.

    Colours that are not red, green and blue become sRGB. Floats in [0, 1] become integers of 16 bits.
    """
    notes: list[str] = []
    try:
        image = open_image(data, max_pixels, notes.append)
    except ValueError:
        if not data.startswith(_TIFF_STARTS):
            raise
        found = _tiff_picture(data, max_pixels, note)
        if found is None:
            raise
        return found
    for text in notes:
        note(text)
    tags = b""
    if image.format == "TIFF" and (tags := _georeferencing(image)) and _is_turned(data):
        note("it is turned, and its georeferencing is not kept")
        tags = b""
    return dataclasses.replace(picture_of(image, data, note), tags=tags)


def picture_of(image: PIL.Image.Image, data: bytes, note: Note) -> Picture:
    """The picture of an image that `open_image` made of these bytes; of any image where they are none."""
    image.load()
    missing = None
    if image.format == "TIFF" and is_deep(image, data):
        try:
            if (found := _tiff_picture(data, None, note)) is not None:
                return found
        except MissingTiffReaderError as error:
            missing = error
    orientation = orientation_of(image, note)
    bands = _sixteen_bits(image, data, note)
    if bands is None:
        if is_deep(image, data):
            if missing and getattr(image, "tag_v2").get(284, 1) == 2:  # noqa: B009 - of TIFF only: planes
                raise missing
            note(f"samples of more than 8 bits are kept with 8 bits{f': {missing}' if missing else ''}")
            _note_lost_bands(image, note)
        gray = is_gray(image)
        alpha = transparency(image)
        colours, profile = _colours(image, gray, note)
        pixels = np.asarray(colours.convert("L" if gray else "RGB"))
    else:
        colours_count = 1 if bands.shape[2] < 3 else 3
        pixels, rest = bands[..., :colours_count], bands[..., colours_count:]
        key = image.info.get("transparency")
        if key is not None and not rest.size:  # the one colour that is transparent
            rest = np.where((pixels == np.asarray(key)).all(axis=2), 0, 65535).astype(np.uint16)[..., None]
        gray = colours_count == 1
        pixels = pixels[..., 0] if gray else pixels
        alpha = rest[..., 0] if rest.size and rest.min() < 65535 else None
        profile = profile_of(image.info.get("icc_profile"), gray, note)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    alpha = None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation))
    return Picture(pixels=pixels, alpha=alpha, profile=profile)


def is_deep(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file has samples of more than 8 bits, of which Pillow may have dropped some."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009 - of TIFF only
        return bool(max(tags.get(258, (1,))) > 8)  # BitsPerSample
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or _png_depth(image, data) > 8


def is_gray(image: PIL.Image.Image) -> bool:
    """Whether an image has one band of light, be it with transparency."""
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def transparency(image: PIL.Image.Image) -> np.ndarray | None:
    """(height, width) uint8, 0 where an image is transparent; None if it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha if alpha.min() < 255 else None


def orientation_of(image: PIL.Image.Image, note: Note) -> int:
    """1 to 8 as EXIF counts them; 1 where the EXIF block is damaged, since the picture is not."""
    try:
        found = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except Exception:
        note("its EXIF block is damaged and not used")
        return 1
    return found if found in _TURNS else 1


def upright(image: PIL.Image.Image, note: Note) -> PIL.Image.Image:
    """Turned as its EXIF block says, which `PIL.ImageOps.exif_transpose` would also write again, or fail to."""
    image.load()  # Pillow turns TIFF itself then
    orientation = orientation_of(image, note)
    if orientation == 1:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info = {
        name: value for name, value in image.info.items() if name not in ("exif", "xmp", "XML:com.adobe.xmp")
    }
    return turned


def _note_lost_bands(image: PIL.Image.Image, note: Note) -> None:
    """Of a TIFF: samples of a pixel that Pillow passes over."""
    if image.format == "TIFF":
        stored: int = getattr(image, "tag_v2").get(277, 1)  # noqa: B009 - of TIFF only: SamplesPerPixel
        if (lost := stored - len(image.getbands())) > 0:
            note(_LOST_BANDS.format(lost))


def _text(error: Any) -> str:
    return str(error) or type(error).__name__


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) turned as the EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _colours(image: PIL.Image.Image, gray: bool, note: Note) -> tuple[PIL.Image.Image, bytes]:
    """An image whose colours are red, green and blue, or gray, and the profile that says which."""
    if gray or image.mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        return image, profile_of(image.info.get("icc_profile"), gray, note)
    if image.mode == "LAB":
        lab, srgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
        image = PIL.ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    converted = to_srgb(image, note)
    if converted is image and image.mode == "CMYK":
        note("colours are converted from CMYK without a profile")
    return converted, b""


def _sixteen_bits(image: PIL.Image.Image, data: bytes, note: Note) -> np.ndarray | None:
    """(H, W, bands) uint16 as stored; None if the file has no such samples, or none that Pillow can give."""
    if image.mode in ("I", "F"):
        bands = _to_sixteen_bits(np.asarray(image), note)[..., None]
    elif image.mode.startswith("I;16"):
        bands = np.asarray(image).astype(np.uint16)[..., None]
    elif _png_depth(image, data) == 16:
        return _png_bands(data)
    else:
        return None
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009 - of TIFF only
        bands = _full_range(bands, tags.get(258, (16,))[0])
        bands = 65535 - bands if tags.get(262) == _WHITE_IS_ZERO else bands
    return bands


def _georeferencing(image: PIL.Image.Image) -> bytes:
    found: Any = getattr(image, "tag_v2")  # noqa: B009 - of TIFF only
    try:
        return pack_tags(
            {number: (found.tagtype[number], found[number]) for number in GEOREFERENCING if number in found}
        )
    except Exception:  # tags may be damaged in any way; the picture is not
        return b""


def _is_turned(data: bytes) -> bool:
    """Whether a TIFF states an orientation, which Pillow forgets when it has turned the pixels."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        return bool(getattr(image, "tag_v2").get(ORIENTATION, 1) != 1)  # noqa: B009 - of TIFF only


def _png_depth(image: PIL.Image.Image, data: bytes) -> int:
    """Bits of a PNG's samples; 0 of other files, and of images without their file."""
    return data[24] if image.format == "PNG" and len(data) > 24 else 0


def _to_sixteen_bits(samples: np.ndarray, note: Note) -> np.ndarray:
    """Samples of 32 bits, of which only integers of 16 bits and floats in [0, 1] have a known range."""
    low, high = samples.min(), samples.max()
    if samples.dtype.kind == "f":
        if not 0 <= low <= high <= 1:
            raise ValueError(f"floats of {low:g} to {high:g}; valid: 0 to 1, or a codec fitted to such rasters")
        note("floats are kept as integers of 16 bits")
        samples = np.rint(samples * 65535)
    elif not 0 <= low <= high <= 65535:
        raise ValueError(f"integers of {low} to {high}; valid: 0 to 65535, or a codec fitted to such rasters")
    whole: np.ndarray = samples.astype(np.uint16)
    return whole


def _full_range(samples: np.ndarray, bits: int) -> np.ndarray:
    """uint16 samples of 9 to 15 bits over all 16."""
    if not 8 < bits < 16:
        return samples
    stretched: np.ndarray = np.rint(samples * (65535 / (2**bits - 1))).astype(np.uint16)
    return stretched


def _png_bands(data: bytes) -> np.ndarray:
    """(H, W, bands) uint16 of a PNG of 16 bits in more than one band."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        rawmode: Any = image.tile[0].args
    mode, halves = _HALVES[rawmode if isinstance(rawmode, str) else rawmode[0]]
    decoded = [_decode(data, mode, half) for half in halves]
    if len(decoded) == 1:  # the bytes of a gray pixel and its alpha
        decoded = [decoded[0][..., 0::2], decoded[0][..., 1::2]]
    samples: np.ndarray = decoded[0].astype(np.uint16) << 8 | decoded[1]
    return samples


def _decode(data: bytes, mode: str, rawmode: str) -> np.ndarray:
    """(H, W, bands) uint8 of a PNG, one byte of each sample."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.tile = [image.tile[0]._replace(args=rawmode)]
        image._mode = mode
        image.info.pop("transparency", None)
        image.load()
        return np.asarray(image)


def _tiff_picture(data: bytes, max_pixels: int | None, note: Note) -> Picture | None:
    """The first page of a TIFF of gray or colours, by tifffile; None for others, or where it cannot."""
    try:
        with reading_tiff() as tifffile:
            page: Any = tifffile.TiffFile(io.BytesIO(data)).pages[0]
        photometric, count, depth = int(page.photometric), int(page.samplesperpixel), int(page.bitspersample)
        extra = [int(kind) for kind in page.extrasamples]
        tags = {number: page.tags[number].value for number in (274, 34675) if number in page.tags}
        colour_count = 3 if photometric == _RGB else 1
        if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or page.axes not in ("YX", "YXS", "SYX"):
            return None
    except MissingTiffReaderError:
        raise
    except Exception:
        return None
    check_pixels((page.imagelength, page.imagewidth), max_pixels, count)
    try:
        with reading_tiff():
            bands = page.asarray()
    except MissingTiffReaderError:
        raise
    except Exception:  # damage that Pillow may see past
        return None
    bands = {"YX": bands[..., None], "YXS": bands}.get(page.axes, np.moveaxis(bands, 0, -1))
    if colour_count == 1 and count > 2:
        raise ValueError(f"{count} bands that are no colours: choose a codec fitted to such rasters (walloc fit)")
    if bands.dtype == np.uint8:
        top = 255
    else:
        bands = _full_range(bands, depth) if bands.dtype == np.uint16 else _to_sixteen_bits(bands, note)
        top = 65535
    extra += [0] * (count - colour_count - len(extra))
    kinds = [kind for kind in extra if kind in (_PREMULTIPLIED, _STRAIGHT)]
    alpha = bands[..., colour_count + extra.index(kinds[0])] if kinds else None
    if lost := count - colour_count - (alpha is not None):
        note(_LOST_BANDS.format(lost))
    pixels = bands[..., :colour_count]
    pixels = top - pixels if photometric == _WHITE_IS_ZERO else pixels
    if alpha is not None and kinds[0] == _PREMULTIPLIED:
        straight = pixels * (float(top) / np.maximum(alpha, 1))[..., None]
        pixels = np.rint(straight.clip(0, top)).astype(bands.dtype)
    if alpha is not None and alpha.min() == top:
        alpha = None
    pixels = pixels[..., 0] if colour_count == 1 else pixels
    orientation = tags.get(274, 1)
    return Picture(
        pixels=np.ascontiguousarray(_upright(pixels, orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation)),
        profile=profile_of(tags.get(34675), colour_count == 1, note),
    )
