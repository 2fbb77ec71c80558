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
import PIL.ImageOps
import torch

from ..codec.feature_extraction_walloc import resample
from ..codec.raster_format import RasterFormat
from ..media.paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, RASTER_SUFFIXES, VIDEO_SUFFIXES, find_files
from ..media.rasters import describe, read_raster, volume_layout
from ..media.volumes import read_volume

Kind = Literal["image", "audio", "volume"]
Item = TypeVar("Item")
Result = TypeVar("Result")
_GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


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
    wanted = suffixes[kind] if kind else (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, *VIDEO_SUFFIXES, ".npy")
    for path, _ in find_files([os.fspath(name) for name in names], wanted):
        yield _Path(path)


def _read_file(path: str, kind: Kind | None, num_channels: int | None) -> Signal:
    suffix = Path(path).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        import soundfile

        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: not audio that can be read: {error}") from error
        return Signal(np.ascontiguousarray(samples.T), rate=int(rate), name=path)
    if kind == "volume" or suffix in VIDEO_SUFFIXES:
        array, raster, _ = read_volume(path)
        return Signal(raster.from_layout(array), raster, name=path)
    if suffix == ".npy" and kind == "audio":
        return _from_object(np.load(path, allow_pickle=False), kind, path)
    if suffix in RASTER_SUFFIXES and (num_channels is None or suffix == ".npy"):
        array, raster = read_raster(path)
        return Signal(raster.from_layout(array), raster, name=path)
    try:
        with PIL.Image.open(path) as image:
            return _from_pil(image, num_channels, path)
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image that can be read: {error}") from error


def _from_object(entry: Any, kind: Kind | None, name: str = "") -> Signal:
    if isinstance(entry, Mapping):
        return _from_row(entry, kind)
    if isinstance(entry, PIL.Image.Image):
        return _from_pil(entry, None, name)
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
            if name == "image":
                with PIL.Image.open(io.BytesIO(value["bytes"])) as image:
                    return _from_pil(image, None, str(value.get("path") or ""))
            import soundfile

            samples, rate = soundfile.read(io.BytesIO(value["bytes"]), dtype="float32", always_2d=True)
            return Signal(np.ascontiguousarray(samples.T), rate=int(rate))
        if value is not None:
            return _from_object(value, "audio" if name == "audio" else kind)
    raise ValueError(f"a row with {', '.join(map(str, row))}; valid: image, audio, array, pixel_values, input_values")


def _from_pil(image: PIL.Image.Image, num_channels: int | None, name: str) -> Signal:
    image = PIL.ImageOps.exif_transpose(image)
    wide = image.mode.startswith("I;16") or image.mode in ("I", "F")
    if num_channels in (1, 3) and not wide:
        image = image.convert("L" if num_channels == 1 else "RGB")
    elif not wide and image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in _GRAY_MODES else "RGB")
    array = np.asarray(image)
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:  # Pillow's way with 16 bits
        array = array.astype(np.uint16)
    raster = describe(array, "single" if array.ndim == 2 else "channels_last")
    return Signal(np.ascontiguousarray(raster.from_layout(array)), raster, name=name)


def _convert_audio(signal: Signal, num_channels: int | None, sampling_rate: int | None) -> Signal:
    if num_channels == 1 and len(signal.values) > 1:
        signal.values = signal.values.mean(axis=0, keepdims=True, dtype=np.float32)
    if sampling_rate and signal.rate not in (0, sampling_rate):
        clip = torch.from_numpy(np.ascontiguousarray(signal.values))
        signal.values = resample(clip, int(signal.rate or 0), sampling_rate).numpy()
    if sampling_rate:
        signal.rate = sampling_rate
    return signal
