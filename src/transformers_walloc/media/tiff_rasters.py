"""TIFF of any bands, bits and pages, by tifffile: samples as they are stored, and the tags that say what they mean."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..codec.raster_format import RasterFormat
from ..codec.size_limits import check_pixels
from ..codec.tiff_tags import EXTRA_SAMPLES, KEPT, ORIENTATION, PHOTOMETRIC, pack_tags, reading_tiff
from .messages import MediaError

# Axes of tifffile: everything but rows and columns counts as bands, samples of a pixel last, pages first.
_ROWS_AND_COLUMNS = "YX"
NODATA = 42113  # GDAL's tag
_PALETTE = 3
_CONVERTED = (_PALETTE, 5, 6, 8)  # photometric interpretations that pictures are converted from: CMYK, YCbCr, CIELAB


def holds_picture(data: bytes) -> bool:
    """Whether a TIFF is a picture of gray or colours of at most 8 bits, as photographs are, and no raster."""
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            photometric, count, depth = int(page.photometric), int(page.samplesperpixel), int(page.bitspersample)
            extra = tuple(map(int, page.extrasamples))
            if photometric in _CONVERTED:
                return True
            colours = {0: 1, 1: 1, 2: 3}.get(photometric, 0)
            as_alpha = count == colours or (count == colours + 1 and extra[:1] in ((1,), (2,)))
            return as_alpha and depth <= 8 and len(file.pages) == 1 and NODATA not in page.tags
    except Exception:
        return True  # the reader of pictures says what is wrong


def _kept_tags(page: Any) -> bytes:
    """Tags that say where samples lie and what they mean, but those that say the usual."""
    usual = {ORIENTATION: (1,), PHOTOMETRIC: (1, 2, 3, 5, 6, 8), EXTRA_SAMPLES: (0,)}
    tags = {}
    for number in KEPT:
        tag = page.tags.get(number)
        if tag is None:
            continue
        values = tuple(map(int, np.ravel(tag.value))) if number in usual else ()
        if number not in usual or any(value not in usual[number] for value in values):
            tags[number] = (int(tag.dtype), values or tag.value)
    return pack_tags(tags)


def tiff_options(
    kept: Mapping[int, tuple[int, Any]], array: np.ndarray, raster: RasterFormat, tags: list
) -> dict[str, Any]:
    """Options of `tifffile.imwrite` for what is kept; other tags are appended to `tags`."""
    options: dict[str, Any] = {}
    for number, (kind, value) in kept.items():
        if number == PHOTOMETRIC:
            options["photometric"] = "miniswhite" if value[0] == 0 else "minisblack"
        elif number == EXTRA_SAMPLES:
            bands = 1 if raster.layout == "single" or array.ndim == 2 else len(raster.from_layout(array))
            options["extrasamples"] = list(value)
            options["photometric"] = "rgb" if bands - len(value) == 3 else "minisblack"
        else:
            tags.append((number, kind, len(value), value, True))
    return options


def read_tiff(
    source: io.BytesIO, max_pixels: int | None
) -> tuple[np.ndarray, str, float | None, tuple[str, ...], bytes]:
    """Samples, layout, missing value, names of bands and georeferencing of a TIFF.

    Raises:
        MediaError: several images, a palette, too many pixels, or a package is missing.
        ValueError: damaged, or with axes that are not those of a raster.
    """
    with reading_tiff() as tifffile, tifffile.TiffFile(source) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        if len(tiff.series) > 1:
            raise MediaError(f"the TIFF holds {len(tiff.series)} images of different shapes or types; one is read")
        axes, shape = series.axes, series.shape
        lengths = dict(zip(axes, shape, strict=True))
        rows, columns = lengths.get("Y", 1), lengths.get("X", 1)
        if getattr(page, "photometric", None) == _PALETTE:
            raise MediaError("the numbers are those of a palette, not of a raster: choose a codec for pictures")
        check_size((rows, columns, math.prod(shape) // max(1, rows * columns)), "channels_last", max_pixels)
        array = series.asarray()
        tags: Any = getattr(page, "tags", {})
        nodata = number_of(tags[NODATA].value) if NODATA in tags else None
        names = _band_names(tags[42112].value) if 42112 in tags else ()
        tagged = _kept_tags(page)
    bands = [axis for axis in axes if axis not in _ROWS_AND_COLUMNS and lengths[axis] > 1]
    if not set(_ROWS_AND_COLUMNS) <= set(axes):
        raise ValueError(f"axes {axes}")
    if len(bands) > 1:
        raise ValueError(f"axes {axes} of {array.shape}: more than one axis beside rows and columns")
    kept = [axis for axis in axes if axis in (*_ROWS_AND_COLUMNS, *bands)]
    array = array.reshape([lengths[axis] for axis in kept])
    if not bands:
        layout = "single"
    elif kept[-1] == bands[0]:
        layout = "channels_last"
    else:
        layout = "channels_first"
    return array, layout, nodata, names, tagged


def number_of(text: Any) -> float | None:
    """What a GDAL tag says, None for words."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _band_names(metadata: str) -> tuple[str, ...]:
    """Descriptions of the bands in GDAL's XML."""
    import xml.etree.ElementTree as ElementTree

    try:
        items = ElementTree.fromstring(metadata).iter("Item")
        found = {int(i.get("sample", 0)): i.text or "" for i in items if i.get("role") == "description"}
    except (ElementTree.ParseError, ValueError):
        return ()
    return tuple(found[i] for i in sorted(found)) if sorted(found) == list(range(len(found))) else ()


def load_array(source: io.BytesIO, max_pixels: int | None, layout_of: Callable[[tuple[int, ...]], str]) -> np.ndarray:
    """An array of a NumPy file; MediaError if it is too large, before anything is allocated."""
    version = np.lib.format.read_magic(source)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, _ = read(source)
    check_size(shape, layout_of(shape), max_pixels)
    source.seek(0)
    return np.load(source, allow_pickle=False)


def check_size(shape: tuple[int, ...], layout: str, max_pixels: int | None) -> None:
    """MediaError for a raster or a volume that is too large; more than three bands count as so many more pixels."""
    bands = {"single": 1, "channels_first": shape[0], "channels_last": shape[-1]}[layout]
    sizes = {"single": shape, "channels_first": shape[1:], "channels_last": shape[:-1]}[layout]
    try:
        check_pixels(sizes, max_pixels, bands)
    except ValueError as error:
        raise MediaError(str(error)) from error
