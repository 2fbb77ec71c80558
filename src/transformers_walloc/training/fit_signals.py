"""Signals of any kind for fitting a codec: files, folders, arrays, PIL images and what `datasets` yields.

Everything becomes (channels, *sizes) arrays: images and volumes in their own type with a `RasterFormat` that says what
their numbers mean, audio as float32 with its sampling rate.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import PIL.Image
import torch

from ..codec.clips import resample
from ..codec.image_colours import to_gray
from ..codec.image_decoding import Picture, picture_of
from ..codec.raster_format import RasterFormat
from ..media.audio import read_audio
from ..media.messages import noting
from ..media.paths import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    MEDIA_SUFFIXES,
    RASTER_SUFFIXES,
    VIDEO_SUFFIXES,
    find_files,
)
from ..media.pictures import read_opaque
from ..media.rasters import describe, read_raster, volume_layout
from ..media.tiff_rasters import holds_picture
from ..media.volumes import read_volume

Kind = Literal["image", "audio", "volume"]
Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_SAMPLED = 2**29  # pixels of a file, of which crops are kept: what larger ones state is hardly there


@dataclass
class Signal:
    """One image, clip or volume.

    Args:
        values: (channels, height, width) or (channels, depth, height, width) in the type of the raster, or (channels,
            length) float32.
        raster: of images and volumes.
        rate: of audio, in Hz.
        name: for messages.
        is_unit: the values lie in [-0.5, 0.5] already, as a codec takes them.
    """

    values: np.ndarray
    raster: RasterFormat | None = None
    rate: int | None = None
    name: str = ""
    is_unit: bool = False

    @property
    def kind(self) -> Kind:
        if self.raster is None:
            return "audio"
        return "volume" if self.values.ndim == 4 else "image"


def read_signals(
    data: Any,
    kind: Kind | None = None,
    num_channels: int | None = None,
    sampling_rate: int | None = None,
    nodata: float | None = None,
) -> Iterator[Signal]:
    """Signals of a file, a folder, a glob pattern, a list of these, or any iterable of images or clips.

    Args:
        data: paths; or arrays and tensors, (H, W), (H, W, C), (C, H, W) for images, (T,), (C, T) for audio and
            (D, H, W), (D, H, W, C), (C, D, H, W) for volumes; PIL
            images; rows of `datasets` (dicts with an image, or with array and sampling_rate); dicts with `pixel_values`
            or `input_values` as processors give them, in [-0.5, 0.5].
        kind: takes arrays of two axes for clips if "audio", and of three axes and files of several pages for volumes if
            "volume"; leaves other files of a folder out.
        num_channels: images are converted to gray for 1 and to colour for 3, clips averaged for 1; otherwise signals
            keep the channels that they have.
        sampling_rate: clips are resampled to it; otherwise they keep theirs.
        nodata: marks missing samples of rasters that do not say so themselves.

    Raises:
        ValueError: nothing to read, or something that is no signal.
    """

    def read(entry: Any) -> Signal:
        signal = _read_file(entry, kind, num_channels) if isinstance(entry, _Path) else _from_object(entry, kind)
        if nodata is not None and signal.raster is not None and signal.raster.nodata is None:
            planes = signal.values
            raster = describe(planes, "channels_first", nodata, signal.raster.names)
            signal.raster = RasterFormat.from_dict(raster.to_dict() | {"layout": signal.raster.layout})
        if signal.rate is not None:
            signal = _convert_audio(signal, num_channels, sampling_rate)
        return signal

    return ahead(read, _entries(data, kind))


def count_signals(data: Any, kind: Kind | None = None) -> int | None:
    """How many signals there are, for a progress bar; None if only reading tells."""
    if _is_paths(data):
        return sum(1 for _ in _entries(data, kind))
    return len(data) if hasattr(data, "__len__") else None


def ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 2) -> Iterator[Result]:
    """`map`, in order, whose next few results are computed meanwhile."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Path(str):
    """Tells files from other strings."""


def _is_paths(data: Any) -> bool:
    return isinstance(data, str | os.PathLike) or (
        isinstance(data, list | tuple) and bool(data) and all(isinstance(x, str | os.PathLike) for x in data)
    )


def _entries(data: Any, kind: Kind | None) -> Iterator[Any]:
    if not _is_paths(data):
        if isinstance(data, Mapping) or not isinstance(data, Iterable):
            raise ValueError(f"data is {type(data).__name__}; valid: paths, or an iterable of images or clips")
        yield from data
        return
    suffixes = {
        "image": (*IMAGE_SUFFIXES, ".npy"),
        "audio": (*AUDIO_SUFFIXES, ".npy"),
        "volume": (*RASTER_SUFFIXES, *VIDEO_SUFFIXES),
    }
    names = [data] if isinstance(data, str | os.PathLike) else data
    wanted = suffixes[kind] if kind else MEDIA_SUFFIXES
    for path, _ in find_files([os.fspath(name) for name in names], wanted):
        yield _Path(path)


def _read_file(path: str, kind: Kind | None, num_channels: int | None) -> Signal:
    suffix = Path(path).suffix.lower()
    data = Path(path).read_bytes()
    if suffix in AUDIO_SUFFIXES:
        samples, rate = read_audio(path, data, max_samples=None)
        return Signal(samples, rate=rate, name=path)
    if kind == "volume" or suffix in VIDEO_SUFFIXES:
        array, raster, _ = read_volume(path, data, MAX_SAMPLED)
        return Signal(raster.from_layout(array), raster, name=path)
    if suffix == ".npy" and kind == "audio":
        return _from_object(np.load(io.BytesIO(data), allow_pickle=False), kind, path)
    if suffix in RASTER_SUFFIXES and (suffix == ".npy" or (num_channels is None and not holds_picture(data))):
        array, raster = read_raster(path, data, MAX_SAMPLED)
        return Signal(raster.from_layout(array), raster, name=path)
    return _from_picture(read_opaque(path, data, MAX_SAMPLED), num_channels, path)


def _from_object(entry: Any, kind: Kind | None, name: str = "") -> Signal:
    if isinstance(entry, Mapping):
        return _from_row(entry, kind)
    if isinstance(entry, PIL.Image.Image):
        noted = noting(name or "image")
        return _from_picture(Picture(pixels=picture_of(entry, b"", noted).on_white(noted)), None, name)
    if isinstance(entry, torch.Tensor):
        entry = entry.numpy(force=True)
    if not isinstance(entry, np.ndarray):
        raise ValueError(f"a signal cannot be of type {type(entry).__name__}; valid: arrays, PIL images, dicts")
    if not entry.size:
        raise ValueError(f"an empty signal, of shape {entry.shape}")
    if kind == "audio" or entry.ndim == 1:
        clip = entry[None] if entry.ndim == 1 else entry
        if clip.dtype.kind == "i":
            clip = clip / -float(np.iinfo(clip.dtype).min)
        return Signal(clip.astype(np.float32), rate=0, name=name)
    raster = describe(entry, volume_layout(entry.shape) if kind == "volume" or entry.ndim == 4 else None)
    return Signal(np.ascontiguousarray(raster.from_layout(entry)), raster, name=name)


def _from_row(row: Mapping, kind: Kind | None) -> Signal:
    for name in ("pixel_values", "input_values"):
        if name in row:
            values = torch.as_tensor(row[name]).numpy(force=True)
            if name == "pixel_values":
                return Signal(values, RasterFormat(), is_unit=True)
            return Signal(values, rate=int(row.get("sampling_rate", 0)), is_unit=True)
    if "array" in row:
        clip = _from_object(np.asarray(row["array"]), "audio")
        clip.rate = int(row.get("sampling_rate") or 0)
        return clip
    for name in ("image", "audio"):
        value = row.get(name)
        if isinstance(value, Mapping) and value.get("bytes"):
            source = str(value.get("path") or name)
            if name == "image":
                return _from_picture(read_opaque(source, value["bytes"]), None, source)
            samples, rate = read_audio(source, value["bytes"], max_samples=None)
            return Signal(samples, rate=rate, name=source)
        if value is not None:
            return _from_object(value, "audio" if name == "audio" else kind)
    raise ValueError(f"a row with {', '.join(map(str, row))}; valid: image, audio, array, pixel_values, input_values")


def _from_picture(picture: Picture, num_channels: int | None, name: str) -> Signal:
    pixels = picture.pixels
    if num_channels == 1 and pixels.ndim == 3:
        pixels = to_gray(pixels)
    elif num_channels == 3 and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    raster = describe(pixels, "single" if pixels.ndim == 2 else "channels_last")
    return Signal(np.ascontiguousarray(raster.from_layout(pixels)), raster, name=name)


def _convert_audio(signal: Signal, num_channels: int | None, sampling_rate: int | None) -> Signal:
    if num_channels == 1 and len(signal.values) > 1:
        signal.values = signal.values.mean(axis=0, keepdims=True, dtype=np.float32)
    if sampling_rate and signal.rate not in (0, sampling_rate):
        clip = torch.from_numpy(np.ascontiguousarray(signal.values))
        signal.values = resample(clip, int(signal.rate or 0), sampling_rate).numpy()
    if sampling_rate:
        signal.rate = sampling_rate
    return signal
