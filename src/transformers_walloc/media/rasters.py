"""Rasters in files, TIFF and NumPy, any number of bands, 8 to 64 bits, missing values; and as .walloc files.

```python
array, raster = read_raster("scene.tif")             # as stored; RasterFormat: dtype, range, nodata, layout, names
blob = compress_raster(model, array, raster)         # a .walloc file that remembers all of it
array, raster = decompress_raster(model, blob)       # same dtype, shape and layout
write_bytes("restored.tif", encode_raster(array, raster, "restored.tif"))
```

TIFF needs tifffile: `pip install 'transformers-walloc[rasters]'`.
"""

import dataclasses
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codec.bitstream import pack, unpack
from ..codec.limits import MAX_MEMORY
from ..codec.raster_format import DTYPES, RasterFormat, limits
from .messages import MediaError
from .paths import RASTER_SUFFIXES, STANDARD_STREAM

# Axes of tifffile: everything but rows and columns counts as bands, samples of a pixel last, pages first.
_ROWS_AND_COLUMNS = "YX"


def read_raster(path: str | Path, data: bytes | None = None) -> tuple[np.ndarray, RasterFormat]:
    """A raster as it is stored, and what its numbers mean.

    TIFF: strips or tiles, planar or interleaved, and files of several pages, which count as bands; the value for
    missing samples and the names of the bands come from GDAL's tags. NumPy: (H, W) or three axes, the bands first if
    the first is shorter than the last. The range is that of the type for 8 bits, from 0 to the next power of two above
    the data for wider integers, and that of the data for floats.

    Args:
        path: names the format by its suffix.
        data: the file, if it was read already.

    Returns:
        (H, W), (H, W, C) or (C, H, W) as `layout` says, in the byte order of this machine.

    Raises:
        MediaError: not a raster that can be read, or of another type than `DTYPES`.
        ImportError: TIFF without tifffile.
    """
    source = io.BytesIO(Path(path).read_bytes() if data is None else data)
    nodata: Any = None
    names: tuple[str, ...] = ()
    try:
        if Path(path).suffix.lower() == ".npy":
            array = np.load(source, allow_pickle=False)
            layout = _layout_of(array.shape)
        else:
            array, layout, nodata, names = _read_tiff(source)
    except MediaError:
        raise
    except ImportError as error:
        raise MediaError(f"{path}: TIFF files need tifffile: pip install 'transformers-walloc[rasters]'") from error
    except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise MediaError(f"{path}: not a raster that can be read: {error}") from error
    array = native_samples(path, array, "raster")
    try:
        return array, describe(array, layout, nodata, names)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error


def native_samples(path: str | Path, array: np.ndarray, what: str) -> np.ndarray:
    """Samples that were read from a file, contiguous and in this machine's order of bytes.

    Raises:
        MediaError: a type other than `DTYPES`, or no samples; `what` names them.
    """
    if array.dtype.newbyteorder("=").name not in DTYPES.values():
        raise MediaError(f"{path}: samples of {array.dtype}; valid: {', '.join(DTYPES.values())}")
    if array.size == 0:
        raise MediaError(f"{path}: the {what} is empty, {array.shape}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


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
    try:
        import tifffile
    except ImportError as error:
        raise MediaError(f"{path}: TIFF files need tifffile: pip install 'transformers-walloc[rasters]'") from error
    tags: list[tuple] = []
    if raster.names:
        items = "".join(
            f'<Item name="DESCRIPTION" sample="{i}" role="description">{_escaped(name)}</Item>'
            for i, name in enumerate(raster.names)
        )
        tags.append((42112, 2, None, f"<GDALMetadata>{items}</GDALMetadata>", True))
    if raster.nodata is not None:
        tags.append((42113, 2, None, f"{raster.nodata:g}" if raster.is_float else f"{raster.nodata:.0f}", True))
    planar: dict[str, Any] = {}
    if array.ndim == 3 and raster.from_layout(array).shape[0] == 1:
        array = raster.from_layout(array)[0]  # TIFF has no axis for a single band
    elif array.ndim == 3:
        planar = {"planarconfig": "separate" if raster.layout == "channels_first" else "contig"}
        if array.dtype == np.uint8 and array.shape[-1] == 3 and raster.layout == "channels_last":
            planar["photometric"] = "rgb"
    options: dict[str, Any] = {"photometric": "minisblack", "metadata": None, "compression": "zlib"} | planar
    tifffile.imwrite(file, array, extratags=tags, predictor=not raster.is_float, **options)
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
        **rate: `step`, `bpp` or `num_channels` of the model's `compress`.

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
    unit = np.pad(raster.to_unit(planes), ((0, 0), *((0, -size % patch) for size in sizes)), "reflect")
    pixels = torch.from_numpy(unit)[None].to(model.device)
    (blob,) = model.compress(pixels, torch.tensor([sizes]), **rate)
    header, payload = unpack(blob, None, None)
    mask = raster.missing(planes)
    if mask is not None and (lost := int((~raster.marked(planes)[:, mask]).sum())):
        warnings.warn(
            f"{lost} samples are taken for missing: at their positions other bands are, and files mark all bands alike",
            stacklevel=2,
        )
    facts: dict[str, Any] = {"raster": raster.pack(mask), "frame_rate": frame_rate}
    return pack(dataclasses.replace(header, **facts), payload)


def decompress_raster(model, blob: bytes, max_memory: int | None = MAX_MEMORY) -> tuple[np.ndarray, RasterFormat]:
    """The raster of a .walloc file in its type, shape and layout, and its format.

    Raises:
        WallocFormatError: see `model.decompress`, or the file holds no raster.
    """
    (pixels,) = model.decompress([blob], max_memory=max_memory)
    header, _ = unpack(blob, None, None)
    if header.raster:
        raster, mask = header.read_raster()
    else:  # 8-bit
        raster, mask = RasterFormat(layout="single" if header.num_channels == 1 else "channels_last"), None
    return raster.to_layout(raster.from_unit(pixels.float().numpy(force=True), mask)), raster


def _read_tiff(source: io.BytesIO) -> tuple[np.ndarray, str, float | None, tuple[str, ...]]:
    import tifffile

    try:
        with tifffile.TiffFile(source) as tiff:
            series, page = tiff.series[0], tiff.pages[0]
            if len(tiff.series) > 1:
                raise MediaError(f"the TIFF holds {len(tiff.series)} images of different shapes or types; one is read")
            array, axes = series.asarray(), series.axes
            tags: Any = getattr(page, "tags", {})
            nodata = float(tags[42113].value) if 42113 in tags else None
            names = _band_names(tags[42112].value) if 42112 in tags else ()
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error
    lengths = dict(zip(axes, array.shape, strict=True))
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
    return array, layout, nodata, names


def _band_names(metadata: str) -> tuple[str, ...]:
    """Descriptions of the bands in GDAL's XML."""
    import xml.etree.ElementTree as ElementTree

    try:
        items = ElementTree.fromstring(metadata).iter("Item")
        found = {int(i.get("sample", 0)): i.text or "" for i in items if i.get("role") == "description"}
    except (ElementTree.ParseError, ValueError):
        return ()
    return tuple(found[i] for i in sorted(found)) if sorted(found) == list(range(len(found))) else ()


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
