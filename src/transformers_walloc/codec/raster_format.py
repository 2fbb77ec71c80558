"""What the numbers of a raster mean: their type, range, missing values, bands and layout.

Photographs are 8-bit numbers over their full range, which needs no words. Instruments write 12 bits into 16,
reflectances and temperatures as floats, and a number for "nothing was measured here". A codec states all that in its
configuration, and a .walloc file of such an image repeats it, so that what is restored has the type and layout that
went in.

```
file, (H, W), (H, W, C) or (C, H, W), dtype  ->  to_unit: (x - low) / (high - low) - 1/2  ->  codec, (C, H, W) float32
```
"""

import dataclasses
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .varints import key_of

# The numbers by which files name them.
DTYPES = {1: "uint8", 2: "int8", 3: "uint16", 4: "int16", 5: "uint32", 6: "int32", 7: "float32", 8: "float64"}
LAYOUTS = {1: "single", 2: "channels_last", 3: "channels_first"}
MAX_NAME_BYTES = 64
_FIXED = struct.Struct("<BBBddd")  # dtype, layout, kind of nodata, low, high, nodata
_NO_NODATA, _NUMBER, _NAN = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class RasterFormat:
    """Type, range and layout of a raster's samples.

    Args:
        dtype: of the file, one of `DTYPES`.
        low, high: the values that the codec maps to -0.5 and 0.5.
        nodata: the value that marks missing samples, NaN for NaN; None if none are missing.
        layout: "single" (H, W), "channels_last" (H, W, C) or "channels_first" (C, H, W); of volumes with a depth
            before H.
        names: of the bands, or none.
        tags: of the TIFF, `pack_tags` of them: they travel as side data and are no part of `to_dict` and `pack`.

    Raises:
        ValueError: an unknown type or layout, an empty range, or one that the type cannot hold.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    nodata: float | None = None
    layout: str = "channels_last"
    names: tuple[str, ...] = ()
    tags: bytes = dataclasses.field(default=b"", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES.values():
            raise ValueError(f"unknown sample type {self.dtype!r}; valid: {', '.join(DTYPES.values())}")
        if self.layout not in LAYOUTS.values():
            raise ValueError(f"unknown layout {self.layout!r}; valid: {', '.join(LAYOUTS.values())}")
        low, high = limits(self.dtype)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and low <= self.low < self.high <= high):
            raise ValueError(
                f"the range {self.low:g} to {self.high:g} does not fit {self.dtype}, which holds {low:g} to {high:g}"
            )
        if self.nodata is not None and not can_hold(self.dtype, self.nodata):
            raise ValueError(f"nodata is {self.nodata!r}, which {self.dtype} cannot hold")
        for name in self.names:
            if not (name + " ").isprintable() or len(name.encode()) > MAX_NAME_BYTES:
                raise ValueError(f"band names must be printable and at most {MAX_NAME_BYTES} bytes, got {name!r}")

    @property
    def is_float(self) -> bool:
        """Whether samples are floating point numbers."""
        return self.dtype.startswith("float")

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "RasterFormat":
        """What `to_dict` gives, as configurations hold it."""
        values = dict(options)
        if values.get("nodata") is not None:
            values["nodata"] = float(values["nodata"])
        return cls(**values | {"names": tuple(values.get("names", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN."""
        nodata = "nan" if self.nodata is not None and math.isnan(self.nodata) else self.nodata
        fields = dataclasses.asdict(self) | {"nodata": nodata, "names": list(self.names)}
        del fields["tags"]
        return fields

    @property
    def itemsize(self) -> int:
        """Bytes of a sample."""
        return np.dtype(self.dtype).itemsize

    @property
    def is_default(self) -> bool:
        """8-bit numbers over their full range, none missing, bands without names: what needs no words."""
        return (self.dtype, self.low, self.high, self.nodata, self.names) == ("uint8", 0.0, 255.0, None, ())

    def missing(self, planes: np.ndarray) -> np.ndarray | None:
        """(H, W) bool, true where any band of (C, H, W) is missing; None if nothing is.

        One mask serves all bands: where they differ in what they miss, samples of the others go, too.
        """
        if self.nodata is None:
            return None
        mask: Any = self.marked(planes).any(axis=0)
        return mask if mask.any() else None

    def marked(self, planes: np.ndarray) -> np.ndarray:
        """(C, H, W) bool, true where a sample is the number of missing ones, which must not be None."""
        nodata: Any = self.nodata
        mask: np.ndarray = np.isnan(planes) if math.isnan(nodata) else planes == np.array(nodata).astype(planes.dtype)
        return mask

    def to_unit(self, planes: np.ndarray) -> np.ndarray:
        """(C, H, W) samples -> (C, H, W) float32 in [-0.5, 0.5]; missing ones become the mean of their band.

        Raises:
            ValueError: NaN or infinite values that are not `nodata`, values outside the range, or nothing but `nodata`.
        """
        mask = self.missing(planes)
        values: Any = planes.astype(np.float64 if planes.dtype.itemsize > 2 else np.float32)
        if mask is not None:
            if mask.all():
                raise ValueError("every sample is missing (nodata)")
            for plane in values:
                plane[mask] = plane[~mask].mean()
        if self.is_float and not np.isfinite(values).all():
            raise ValueError("the image holds NaN or infinite values; state nodata if they mark missing samples")
        lowest, highest = values.min(), values.max()
        slack = 1e-6 * (self.high - self.low)
        if lowest < self.low - slack or highest > self.high + slack:
            raise ValueError(
                f"values of {lowest:g} to {highest:g} lie outside the range of the codec, {self.low:g} to {self.high:g}"
            )
        # In this form the ends of the range become exactly -0.5 and 0.5, and 8 bits what the processor makes of them.
        values -= (self.low + self.high) / 2
        values /= self.high - self.low
        unit: np.ndarray = values.astype(np.float32, copy=False)
        return unit

    def from_unit(self, planes: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """The inverse of `to_unit`, clipped to the range and rounded for integers; missing samples become `nodata`.

        No other sample does: where one would, it becomes the value next to it.
        """
        values = (np.clip(planes.astype(np.float64), -0.5, 0.5) + 0.5) * (self.high - self.low) + self.low
        result = values.astype(self.dtype) if self.is_float else np.rint(values).astype(self.dtype)
        if self.nodata is not None and not math.isnan(self.nodata):
            marker = np.array(self.nodata).astype(self.dtype)
            taken: Any = result == marker
            if taken.any():
                above, below = self._beside(marker)
                result[taken] = np.where(values[taken] < self.nodata, below, above)
        if mask is not None and self.nodata is not None:
            result[:, mask] = self.nodata
        return result

    def _beside(self, marker: np.ndarray) -> tuple[np.generic, np.generic]:
        """The values above and below a number, both on the side of it where the range of the type goes on."""
        low, high = (np.array(limit).astype(self.dtype)[()] for limit in limits(self.dtype))
        value = marker[()]
        if self.is_float:
            above, below = np.nextafter(value, high), np.nextafter(value, low)
        else:
            kind = value.dtype.type
            above = value if value == high else kind(int(value) + 1)
            below = value if value == low else kind(int(value) - 1)
        return (above if above != value else below), (below if below != value else above)

    def from_layout(self, array: np.ndarray) -> np.ndarray:
        """(H, W), (H, W, C) or (C, H, W), as `layout` says -> (C, H, W); the same with a depth before H."""
        if array.ndim not in ((2, 3) if self.layout == "single" else (3, 4)):
            raise ValueError(f"an image of shape {array.shape} is not {self.layout}")
        if self.layout == "single":
            return array[None]
        return array if self.layout == "channels_first" else np.moveaxis(array, -1, 0)

    def to_layout(self, planes: np.ndarray) -> np.ndarray:
        """The inverse of `from_layout`."""
        if self.layout == "single":
            plane: np.ndarray = planes[0]
            return plane
        return planes if self.layout == "channels_first" else np.ascontiguousarray(np.moveaxis(planes, 0, -1))

    def pack(self, mask: np.ndarray | None = None) -> bytes:
        """Bytes for a .walloc file, of the format and of which samples are missing."""
        kind = _NO_NODATA if self.nodata is None else _NAN if math.isnan(self.nodata) else _NUMBER
        parts = [
            _FIXED.pack(
                key_of(DTYPES, self.dtype),
                key_of(LAYOUTS, self.layout),
                kind,
                self.low,
                self.high,
                (self.nodata or 0.0) if kind == _NUMBER else 0.0,
            ),
            struct.pack("<H", len(self.names)),
        ]
        for name in self.names:
            parts += [bytes([len(name.encode())]), name.encode()]
        if mask is not None:
            parts.append(zlib.compress(np.packbits(mask).tobytes(), 9))
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes, num_channels: int, sizes: Sequence[int]) -> "tuple[RasterFormat, np.ndarray | None]":
        """The inverse of `pack`, for a raster of `sizes` (height, width); the mask is None if nothing is missing.

        Raises:
            ValueError: damaged, or contradicting.
        """
        try:
            dtype, layout, kind, low, high, nodata = _FIXED.unpack_from(data)
            (count,) = struct.unpack_from("<H", data, _FIXED.size)
            position, names = _FIXED.size + 2, []
            for _ in range(count):
                length = data[position]
                names.append(data[position + 1 : position + 1 + length].decode())
                position += 1 + length
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"the raster format is damaged: {error}") from error
        if dtype not in DTYPES or layout not in LAYOUTS or kind not in (_NO_NODATA, _NUMBER, _NAN):
            raise ValueError(f"unknown sample type {dtype}, layout {layout} or kind of nodata {kind}")
        found = cls(
            dtype=DTYPES[dtype],
            layout=LAYOUTS[layout],
            low=low,
            high=high,
            nodata=(None, nodata, math.nan)[kind],
            names=tuple(names),
        )
        if names and len(names) != num_channels:
            raise ValueError(f"{len(names)} names for {num_channels} bands")
        if found.layout == "single" and num_channels != 1:
            raise ValueError(f"a raster without an axis of bands cannot have {num_channels}")
        return found, _read_mask(data[position:], sizes) if position < len(data) else None


def limits(dtype: str) -> tuple[float, float]:
    """The least and the greatest value that a type holds."""
    info = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return float(info.min), float(info.max)


def can_hold(dtype: str, value: float) -> bool:
    """Whether a sample of a type can have a value; floats may be rounded."""
    low, high = limits(dtype)
    if dtype.startswith("float"):
        return not math.isfinite(value) or low <= value <= high
    return low <= value <= high and float(value).is_integer()


def _read_mask(data: bytes, sizes: Sequence[int]) -> np.ndarray:
    count = math.prod(sizes)
    expected = -(-count // 8)
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(data, expected + 1)  # no more, whatever the stream would give
    except zlib.error as error:
        raise ValueError(f"the mask of missing samples is damaged: {error}") from error
    if len(raw) != expected or not reader.eof or reader.unused_data:
        raise ValueError("the mask of missing samples is not that of the image")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).reshape(tuple(sizes)).astype(bool)
