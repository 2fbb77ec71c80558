"""Volumes and clips in files: stacks of slices as TIFF pages or NumPy arrays, frames of a video.

```python
from transformers_walloc.media.paths import write_bytes
from transformers_walloc.media.rasters import compress_raster, decompress_raster
from transformers_walloc.media.volumes import encode_volume, read_volume

array, raster, frame_rate = read_volume("stack.tif")      # (D, H, W), (D, H, W, C) or (C, D, H, W)
blob = compress_raster(model, array, raster)              # the same functions as for rasters of two dimensions
array, raster = decompress_raster(model, blob)
write_bytes("restored.tif", encode_volume(array, raster, "restored.tif"))
```

TIFF needs tifffile and video PyAV: `pip install 'transformers-walloc[rasters,video]'`.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.raster_format import RasterFormat
from ..codec.tiff_tags import GEOREFERENCING, ORIENTATION, reading_tiff
from .messages import MediaError, naming, warn
from .paths import RASTER_SUFFIXES, STANDARD_STREAM, VIDEO_SUFFIXES
from .rasters import reading, samples_of, volume_layout
from .sixteen_bits import DEFLATE_LEVEL
from .tiff_rasters import NODATA, check_size, load_array, number_of

MAX_VOXELS = 2**27  # of a clip, which is decoded as a whole
_CHANNEL_AXES = "SC"  # of tifffile: samples of a pixel, and channels of a microscope


def read_volume(
    path: str | Path, data: bytes | None = None, max_voxels: int | None = MAX_VOXELS
) -> tuple[np.ndarray, RasterFormat, float]:
    """A volume as it is stored, what its numbers mean, and the frames per second of a clip (0 for others).

    TIFF: pages are slices, samples of a pixel or an axis C are channels. NumPy: (D, H, W), or four axes with the
    channels at the shorter end. Video: frames (D, H, W, 3), or (D, H, W) of a gray one.

    Args:
        path: names the format by its suffix.
        data: the file, if it was read already.
        max_voxels: refuse more pixels over all frames or slices, before they are decoded; None for no limit.

    Raises:
        MediaError: not a volume that can be read, or a package for its format is missing.
    """
    suffix = Path(path).suffix.lower()
    source = io.BytesIO(Path(path).read_bytes() if data is None else data)
    frame_rate, nodata = 0.0, None
    with reading(path, "volume"):
        if suffix in VIDEO_SUFFIXES:
            array, frame_rate = _read_video(source, str(path), max_voxels)
            layout = "single" if array.ndim == 3 else "channels_last"
        elif suffix == ".npy":
            array = load_array(source, max_voxels, volume_layout)
            layout = volume_layout(array.shape)
        else:
            array, layout, nodata = _read_tiff(source, str(path), max_voxels)
    return *samples_of(path, array, layout, nodata), frame_rate


def encode_volume(array: np.ndarray, raster: RasterFormat, path: str | Path, frame_rate: float = 0.0) -> bytes:
    """The bytes of a TIFF of several pages (deflate), a NumPy file, or a video (lossless, of 8-bit colours or gray).

    Raises:
        MediaError: another suffix, samples that the format does not hold, or a package for it is missing.
    """
    suffix = ".npy" if str(path) == STANDARD_STREAM else Path(path).suffix.lower()
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, array, allow_pickle=False)
    elif suffix in VIDEO_SUFFIXES:
        _write_video(file, array, raster, str(path), frame_rate)
    elif suffix in RASTER_SUFFIXES:
        axes = {"single": "ZYX", "channels_last": "ZYXS", "channels_first": "CZYX"}[raster.layout]
        colours = array.dtype == np.uint8 and raster.layout == "channels_last" and array.shape[-1] == 3
        photometric = "rgb" if colours else "minisblack"
        options: dict[str, Any] = {"metadata": {"axes": axes}, "predictor": not raster.is_float}
        options |= {"compression": "zlib", "compressionargs": {"level": DEFLATE_LEVEL}}
        if axes == "ZYXS":
            options["planarconfig"] = "contig"
        with naming(str(path)), reading_tiff() as tifffile:
            tifffile.imwrite(file, array, photometric=photometric, **options)
    else:
        valid = ", ".join((*RASTER_SUFFIXES, ".mkv"))
        raise MediaError(f"{path}: volumes are written as {valid}")
    return file.getvalue()


def _read_tiff(source: io.BytesIO, path: str, max_voxels: int | None) -> tuple[np.ndarray, str, float | None]:
    with reading_tiff() as tifffile, tifffile.TiffFile(source) as tiff:
        series = tiff.series[0]
        if len(tiff.series) > 1:
            raise MediaError(f"{path}: {len(tiff.series)} stacks of different shapes or types; one is read")
        axes, lengths = series.axes, dict(zip(series.axes, series.shape, strict=True))
        sizes = [length for axis, length in lengths.items() if axis not in _CHANNEL_AXES and length > 1]
        channels = math.prod(length for axis, length in lengths.items() if axis in _CHANNEL_AXES)
        check_size((*sizes, channels), "channels_last", max_voxels)
        page: Any = series.keyframe
        nodata = number_of(page.tags[NODATA].value) if NODATA in page.tags else None
        lost = [number for number in (ORIENTATION, *GEOREFERENCING) if number in page.tags]
        if lost and (lost != [ORIENTATION] or page.tags[ORIENTATION].value != 1):
            warn(path, "its georeferencing or orientation is not kept")
        array = series.asarray()
    kept = [axis for axis in axes if axis in "YX" or lengths[axis] > 1]
    channels = [axis for axis in kept if axis in _CHANNEL_AXES]
    depths = [axis for axis in kept if axis not in "YX" and axis not in channels]
    if not {"Y", "X"} <= set(axes) or len(depths) != 1 or len(channels) > 1:
        raise ValueError(f"axes {axes} of {array.shape}: a volume has one axis of slices beside rows and columns")
    array = array.reshape([lengths[axis] for axis in kept])
    if not channels:
        return np.moveaxis(array, kept.index(depths[0]), 0), "single", nodata
    first = channels[0] != "S"
    wanted = [*channels, *depths, "Y", "X"] if first else [*depths, "Y", "X", *channels]
    layout = "channels_first" if first else "channels_last"
    return array.transpose([kept.index(axis) for axis in wanted]), layout, nodata


def _read_video(source: io.BytesIO, path: str, max_voxels: int | None) -> tuple[np.ndarray, float]:
    av = _av(path)
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: the file holds no video")
            stream = container.streams.video[0]
            gray = stream.codec_context.pix_fmt in ("gray", "gray8")
            frames, voxels = [], 0
            for frame in container.decode(stream):
                voxels += frame.width * frame.height
                if max_voxels is not None and voxels > max_voxels:
                    raise MediaError(f"{path}: more than {max_voxels} pixels over all frames; cut the clip")
                frames.append(frame.to_ndarray(format="gray" if gray else "rgb24"))
            rate = float(stream.average_rate or 0)
    except av.FFmpegError as error:
        raise MediaError(f"{path}: not a video that can be read: {error}") from error
    if not frames:
        raise MediaError(f"{path}: the video has no frames")
    return np.stack(frames), rate


def _write_video(file: io.BytesIO, array: np.ndarray, raster: RasterFormat, path: str, frame_rate: float) -> None:
    if Path(path).suffix.lower() != ".mkv":
        raise MediaError(f"{path}: videos are written as .mkv, without loss")
    if array.dtype != np.uint8 or not (array.ndim == 3 or (raster.layout == "channels_last" and array.shape[-1] == 3)):
        raise MediaError(
            f"{path}: {raster.dtype} of shape {array.shape} is no video of 8-bit gray or colours; write .tif or .npy"
        )
    from fractions import Fraction

    av = _av(path)
    pixels = "gray" if array.ndim == 3 else "rgb24"
    try:
        with av.open(file, "w", format="matroska") as container:
            stream = container.add_stream("ffv1", rate=Fraction(frame_rate or 25).limit_denominator(100_000))
            # FFV1 has no packed RGB: bgr0 holds the same numbers.
            stream.height, stream.width = array.shape[1:3]
            stream.pix_fmt = "gray" if pixels == "gray" else "bgr0"
            for image in array:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=pixels)))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise MediaError(f"{path}: cannot write the video: {error}") from error


def _av(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{path}: video files need PyAV: pip install 'transformers-walloc[video]'") from error
    return av
