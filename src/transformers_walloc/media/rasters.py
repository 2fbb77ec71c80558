"""Rasters in files, TIFF and NumPy, any number of bands, 8 to 64 bits, missing values; and as .walloc files.

```python
from transformers_walloc.media.paths import write_bytes
from transformers_walloc.media.rasters import compress_raster, decompress_raster, encode_raster, read_raster

array, raster = read_raster("scene.tif")             # as stored; RasterFormat: dtype, range, nodata, layout, names
blob = compress_raster(model, array, raster)         # a .walloc file that remembers all of it
array, raster = decompress_raster(model, blob)       # same dtype, shape and layout
write_bytes("restored.tif", encode_raster(array, raster, "restored.tif"))
```

TIFF needs tifffile: `pip install 'transformers-walloc[rasters]'`.
"""

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codec.bitstream import unpack
from ..codec.limits import MAX_MEMORY
from ..codec.raster_format import DTYPES, RasterFormat, can_hold, limits
from ..codec.reflection import extend
from ..codec.side_data import SideData
from ..codec.size_limits import MAX_ENCODED_PIXELS
from ..codec.tiff_tags import reading_tiff, unpack_tags
from .messages import MediaError, MediaWarning, naming, warn
from .paths import RASTER_SUFFIXES, STANDARD_STREAM
from .sixteen_bits import DEFLATE_LEVEL
from .tiff_rasters import NODATA, load_array, read_tiff, tiff_options


def read_raster(
    path: str | Path, data: bytes | None = None, max_pixels: int | None = MAX_ENCODED_PIXELS
) -> tuple[np.ndarray, RasterFormat]:
    """A raster as it is stored, and what its numbers mean.

    TIFF: strips or tiles, planar or interleaved, and files of several pages, which count as bands; the value for
    missing samples and the names of the bands come from GDAL's tags. NumPy: (H, W) or three axes, the bands first if
    the first is shorter than the last. The range is that of the type for 8 bits, from 0 to the next power of two above
    the data for wider integers, and that of the data for floats.

    Args:
        path: names the format by its suffix.
        data: the file, if it was read already.
        max_pixels: refuse larger rasters before anything is allocated (more than three bands count as more pixels);
            None for no limit.

    Returns:
        (H, W), (H, W, C) or (C, H, W) as `layout` says, in the byte order of this machine. Samples are as they are
        stored: what a TIFF says of their orientation, their place on Earth, white at zero and alpha is in `tags`.

    Raises:
        MediaError: not a raster that can be read, too large, or of another type than `DTYPES`.

    Warns:
        MediaWarning: a number for missing samples that the type cannot hold, which is not used.
    """
    source = io.BytesIO(Path(path).read_bytes() if data is None else data)
    nodata: Any = None
    names: tuple[str, ...] = ()
    tags = b""
    with reading(path, "raster"):
        if Path(path).suffix.lower() == ".npy":
            array = load_array(source, max_pixels, _layout_of)
            layout = _layout_of(array.shape)
        else:
            array, layout, nodata, names, tags = read_tiff(source, max_pixels)
    array, raster = samples_of(path, array, layout, nodata, names)
    return array, dataclasses.replace(raster, tags=tags)


@contextlib.contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Errors inside, of whatever decodes the file, become `MediaError` that names it, and that it is no `what`."""
    try:
        yield
    except MediaError as error:
        raise MediaError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except Exception as error:  # decoders raise anything
        raise MediaError(f"{path}: not a {what} that can be read: {error or type(error).__name__}") from error


def samples_of(
    path: str | Path, array: np.ndarray, layout: str, nodata: float | None, names: tuple[str, ...] = ()
) -> tuple[np.ndarray, RasterFormat]:
    """What was read from a file, contiguous and in this machine's order of bytes, and what its numbers mean.

    Raises:
        MediaError: a type other than `DTYPES`, no samples, or none with a range.
    """
    if array.dtype.newbyteorder("=").name not in DTYPES.values():
        raise MediaError(f"{path}: samples of {array.dtype}; valid: {', '.join(DTYPES.values())}")
    if array.size == 0:
        raise MediaError(f"{path}: there are no samples, {array.shape}")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        return array, describe(array, layout, usable_nodata(str(path), array.dtype.name, nodata), names)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error


def describe(
    array: np.ndarray, layout: str | None = None, nodata: float | None = None, names: tuple[str, ...] = ()
) -> RasterFormat:
    """The format of an array, its range measured as `read_raster` says.

    Args:
        array: (H, W), (H, W, C) or (C, H, W); the layout of volumes has to be told.
        layout: of the axes; where None, bands come first if the first axis is shorter than the last.
        nodata: the value that marks missing samples; NaN in floats counts without being named.
        names: of the bands.

    Raises:
        ValueError: nothing but missing samples, infinite values, or a type that is none of `DTYPES`.
    """
    dtype = array.dtype.name
    if dtype not in DTYPES.values():
        raise ValueError(f"samples of {dtype}; valid: {', '.join(DTYPES.values())}")
    is_float = array.dtype.kind == "f"
    if nodata is None and is_float and np.isnan(array).any():
        nodata = math.nan
    valid = array
    if nodata is not None:
        valid = array[~np.isnan(array)] if math.isnan(nodata) else array[array != np.array(nodata).astype(dtype)]
        if not valid.size:
            raise ValueError("every sample is missing (nodata)")
    low, high = float(valid.min()), float(valid.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the raster holds infinite or NaN values")
    if not is_float:
        low, high = _integer_range(dtype, low, high)
    elif low == high:
        raise ValueError(f"the raster is constant ({low:g}): it has no range to code")
    layout = layout or _layout_of(array.shape)
    return RasterFormat(dtype=dtype, low=low, high=high, nodata=nodata, layout=layout, names=names)


def encode_raster(array: np.ndarray, raster: RasterFormat, path: str | Path) -> bytes:
    """The bytes of a TIFF (deflate, with names and missing values as GDAL writes them) or NumPy file.

    Raises:
        MediaError: another suffix, or TIFF without tifffile.
    """
    suffix = ".npy" if str(path) == STANDARD_STREAM else Path(path).suffix.lower()
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, array, allow_pickle=False)
        return file.getvalue()
    if suffix not in RASTER_SUFFIXES:
        raise MediaError(f"{path}: rasters are written as {', '.join(RASTER_SUFFIXES)}")
    tags: list[tuple] = []
    if raster.names:
        items = "".join(
            f'<Item name="DESCRIPTION" sample="{i}" role="description">{_escaped(name)}</Item>'
            for i, name in enumerate(raster.names)
        )
        tags.append((42112, 2, None, f"<GDALMetadata>{items}</GDALMetadata>", True))
    if raster.nodata is not None:
        tags.append((NODATA, 2, None, repr(raster.nodata) if raster.is_float else f"{raster.nodata:.0f}", True))
    planar: dict[str, Any] = {}
    if array.ndim == 3 and raster.from_layout(array).shape[0] == 1:
        array = raster.from_layout(array)[0]  # TIFF has no axis for a single band
    elif array.ndim == 3:
        planar = {"planarconfig": "separate" if raster.layout == "channels_first" else "contig"}
        if array.dtype == np.uint8 and array.shape[-1] == 3 and raster.layout == "channels_last":
            planar["photometric"] = "rgb"
    meant = tiff_options(unpack_tags(raster.tags), array, raster, tags)
    deflate = {"compression": "zlib", "compressionargs": {"level": DEFLATE_LEVEL}}
    options: dict[str, Any] = {"photometric": "minisblack", "metadata": None} | deflate | planar | meant
    with naming(str(path)), reading_tiff() as tifffile:
        tifffile.imwrite(file, array, extratags=tags, predictor=not raster.is_float, byteorder="<", **options)
    return file.getvalue()


def compress_raster(
    model, array: np.ndarray, raster: RasterFormat | None = None, frame_rate: float = 0.0, **rate
) -> bytes:
    """A .walloc file of a raster, which keeps its type, range, bands, layout and missing samples.

    Args:
        model: a codec for images or volumes with as many channels as the raster has bands.
        array: (H, W), (H, W, C) or (C, H, W) as `raster.layout` says, with a depth before H for volumes.
        raster: as `read_raster` or `describe` gives it; `describe(array)` if None. Its range is replaced by the codec's
            where the codec states one.
        frame_rate: of a clip, in frames per second.
        **rate: `step`, `bpp`, `psnr`, `refine` and `num_channels` of the model's `compress`.

    Raises:
        ValueError: another number of bands, values outside of the codec's range.
    """
    if raster is None:
        raster = describe(array, volume_layout(array.shape) if model.config.num_dims == 3 else None)
    if model.config.raster_format:
        stated = RasterFormat.from_dict(model.config.raster_format)
        raster = dataclasses.replace(raster, low=stated.low, high=stated.high, names=raster.names or stated.names)
    planes = raster.from_layout(array)
    if planes.ndim - 1 != model.config.num_dims:
        raise ValueError(f"an array of shape {array.shape} ({raster.layout}) is not what the codec is for")
    if len(planes) != model.config.num_channels:
        raise ValueError(f"the raster has {len(planes)} bands; the codec is for {model.config.num_channels}")
    sizes, patch = planes.shape[1:], model.config.patch_size
    unit = torch.from_numpy(raster.to_unit(planes)).to(model.device)
    pixels = extend(unit[None], [(0, -size % patch) for size in sizes])
    mask = raster.missing(planes)
    if mask is not None and (lost := int((~raster.marked(planes)[:, mask]).sum())):
        text = (
            f"{lost} samples are taken for missing: at their positions other bands are, and files mark all bands alike"
        )
        warnings.warn(MediaWarning(text), stacklevel=2)
    fields = {"raster": raster.pack(mask), "frame_rate": frame_rate, "side_data": SideData(tags=raster.tags).pack()}
    (blob,) = model.compress(pixels, torch.tensor([sizes]), header_fields=[fields], **rate)
    return blob


def decompress_raster(model, blob: bytes, max_memory: int | None = MAX_MEMORY) -> tuple[np.ndarray, RasterFormat]:
    """The raster of a .walloc file in its type, shape and layout, and its format.

    Raises:
        WallocFormatError: see `model.decompress`, or the file holds no raster.
    """
    (pixels,) = model.decompress([blob], max_memory=max_memory)
    header, _ = unpack(blob, None, None)
    if header.raster:
        raster, mask = header.read_raster()
        if header.side_data:
            raster = dataclasses.replace(raster, tags=header.read_side_data().tags)
    else:  # 8-bit
        raster, mask = RasterFormat(layout="single" if header.num_channels == 1 else "channels_last"), None
    return raster.to_layout(raster.from_unit(pixels.float().numpy(force=True), mask)), raster


def usable_nodata(path: str, dtype: str, nodata: float | None) -> float | None:
    """The number that marks missing samples, as the type has it; None, and a note, for what no sample can be."""
    if nodata is None:
        return None
    if dtype.startswith("float"):
        greatest = limits(dtype)[1]
        if math.isfinite(nodata) and abs(abs(nodata) - greatest) < 1e-5 * greatest:
            return math.copysign(greatest, nodata)  # which tools write with six digits
    if not can_hold(dtype, nodata):
        warn(path, f"its number for missing samples, {nodata!r}, is none that {dtype} can hold, and is not used")
        return None
    return float(np.array(nodata).astype(dtype)) if math.isfinite(nodata) else nodata


def volume_layout(shape: tuple[int, ...]) -> str:
    """Layout of a volume: of four axes the shorter end is the channels."""
    if len(shape) not in (3, 4):
        raise ValueError(f"an array of shape {shape} is no volume; valid: (D, H, W), (D, H, W, C), (C, D, H, W)")
    if len(shape) == 3:
        return "single"
    return "channels_first" if shape[0] < shape[3] else "channels_last"


def _layout_of(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "single"
    if len(shape) != 3:
        raise ValueError(f"an array of shape {shape} is no raster; valid: (H, W), (H, W, C), (C, H, W)")
    return "channels_first" if shape[0] < shape[2] else "channels_last"


def _integer_range(dtype: str, low: float, high: float) -> tuple[float, float]:
    """Full range of 8-bit types; of wider ones from 0, or symmetric, to what the fewest bits hold."""
    if dtype in ("uint8", "int8"):
        return limits(dtype)
    bits = max(1, int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0)
    return (-(2.0**bits) if low < 0 else 0.0), 2.0**bits - 1


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
