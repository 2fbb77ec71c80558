"""What one pass over signals tells: their kind, type and range, the statistics of their subbands, and some to keep."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..codec.clips import normalise_clip
from ..codec.configuration_walloc import WallocConfig
from ..codec.raster_format import RasterFormat
from ..codec.reflection import extend
from ..loading import MODELS
from .fit_signals import Signal
from .klt import SubbandStatistics

DEFAULT_LEVELS = {"image": 3, "audio": 8, "volume": 2}
KEPT_SIZES = {"image": 512, "audio": 2**17, "volume": 64}  # of crops, per axis
MAX_CHUNK = 2**20  # samples of a clip that are analysed at a time
MAX_SLAB = 2**23  # voxels of a volume that are


class Kept:
    """Crops of signals, evenly from all that are offered (reservoir sampling with a fixed seed)."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self.signals: list[Signal] = []
        self.random = random.Random(0)

    def offer(self, signal: Signal) -> None:
        self.seen += 1
        place = len(self.signals) if len(self.signals) < self.count else self.random.randrange(self.seen)
        if place >= self.count:
            return
        size, sizes = KEPT_SIZES[signal.kind], signal.values.shape[1:]
        window = tuple(slice((n - min(n, size)) // 2, (n - min(n, size)) // 2 + min(n, size)) for n in sizes)
        crop = Signal(signal.values[(slice(None), *window)].copy(), signal.raster, signal.rate, signal.name)
        crop.is_unit = signal.is_unit
        self.signals[place : place + 1] = [crop]


class Gathered:
    """What is learnt from the signals while they pass by."""

    def __init__(
        self,
        num_levels: int | None,
        sample_range: tuple[float, float] | None,
        sampling_rate: int | None,
        band_names: Sequence[str] | None,
        hold_out: int,
        kept: int,
        measured: int,
        transform: dict[str, Any] | None = None,
    ):
        self.transform = transform or {}
        self.num_levels, self.sample_range, self.sampling_rate = num_levels, sample_range, sampling_rate
        self.band_names, self.hold_out = tuple(band_names or ()), hold_out
        self.kept, self.held = Kept(kept), Kept(measured)
        self.count = 0
        self.first: Signal | None = None
        self.range = (math.inf, -math.inf)
        self.provisional = (0.0, 1.0)  # of the statistics, until the range of all data is known
        self.nodata: float | None = None
        self.statistics: Any = None  # SubbandStatistics, from the first signal on

    def take(self, signal: Signal) -> None:
        if self.first is None:
            self._begin(signal)
        self.check(signal)
        if signal.raster is not None:
            self.range = (min(self.range[0], signal.raster.low), max(self.range[1], signal.raster.high))
            self.nodata = signal.raster.nodata if self.nodata is None else self.nodata
        self.count += 1
        if self.hold_out and self.count % self.hold_out == 0:
            self.held.offer(signal)
            return
        self.kept.offer(signal)
        unit = self._unit(signal, self.provisional)
        for piece in self._pieces(unit):
            if min(piece.shape[1:]) >= self.config.patch_size:
                self.statistics.update(_cropped(piece, self.config.patch_size)[None])

    def _pieces(self, unit: torch.Tensor) -> list[torch.Tensor]:
        """What is analysed at a time, in bounded memory: stretches of a clip, slabs of a volume."""
        if unit.ndim == 2:
            return list(unit.split(MAX_CHUNK, dim=1))
        if unit.ndim == 4:
            patch = self.config.patch_size
            slices = MAX_SLAB // math.prod(unit.shape[2:]) // patch * patch
            return list(unit.split(max(slices, 8 * patch), dim=1))
        return [unit]

    def check(self, signal: Signal) -> None:
        """ValueError unless a signal is like the first."""
        first = self.first
        assert first is not None
        if (signal.kind, len(signal.values)) != (first.kind, len(first.values)):
            raise ValueError(
                f"{signal.name or 'a signal'} is {signal.kind} of {len(signal.values)} channels, and "
                f"{first.name or 'the first'} {first.kind} of {len(first.values)}: fit a codec to one kind, or convert "
                "them with num_channels"
            )
        if signal.rate != first.rate:
            raise ValueError(
                f"{signal.name or 'a clip'} has {signal.rate} Hz, and {first.name or 'the first'} {first.rate} Hz: "
                "choose a sampling_rate, to which all are resampled"
            )
        if signal.raster and first.raster and signal.raster.dtype != first.raster.dtype:
            raise ValueError(
                f"{signal.name or 'an image'} has samples of {signal.raster.dtype}, and {first.name or 'the first'} of "
                f"{first.raster.dtype}: convert them to one type"
            )

    def finish(self) -> tuple[WallocConfig, SubbandStatistics]:
        """Configuration and statistics over the range of all data."""
        if self.statistics is None:
            raise ValueError("there are no signals to fit a codec to")
        self.config.raster_format = self.raster_format()
        low, high = self.limits()
        was_low, was_high = self.provisional
        scale = (was_high - was_low) / (high - low)
        offset = ((was_low + was_high) - (low + high)) / 2 / (high - low)
        statistics = _rescaled(self.statistics, scale, offset)
        if statistics.count < self.config.subband_channels:
            raise ValueError(
                f"the data have {statistics.count} positions of {self.config.patch_size} samples an axis, fewer than "
                f"their {self.config.subband_channels} coefficients: add data, or choose fewer num_levels"
            )
        if not np.trace(statistics.covariance) > 1e-12 * self.config.subband_channels:
            raise ValueError("the data are constant: there is nothing to fit a codec to")
        return self.config, statistics

    def limits(self) -> tuple[float, float]:
        """The values that become -0.5 and 0.5."""
        if self.first is None or self.first.raster is None or self.first.is_unit:
            return -0.5, 0.5
        return self.sample_range or self.range

    def raster_format(self) -> dict | None:
        if self.first is None or self.first.raster is None or self.first.is_unit:
            return None
        low, high = self.limits()
        found = RasterFormat(
            dtype=self.first.raster.dtype,
            low=low,
            high=high,
            nodata=self.nodata,
            layout=self.first.raster.layout,
            names=self.band_names or self.first.raster.names,
        )
        # Gray and colour pictures of 8 bits need no words.
        return None if found.is_default and len(self.first.values) in (1, 3) else found.to_dict()

    def to_unit(self, signal: Signal) -> torch.Tensor:
        """(channels, *sizes) in [-0.5, 0.5], sizes multiples of the patch."""
        unit = self._unit(signal, self.limits())
        patch = self.config.patch_size
        return _cropped(extend(unit, [(0, max(0, patch - n)) for n in unit.shape[1:]]), patch)

    def facts(self) -> dict[str, Any]:
        first = self.first
        assert first is not None
        facts: dict[str, Any] = {
            "kind": first.kind,
            "signals": self.count,
            "num_channels": len(first.values),
            "positions": self.statistics.count if self.statistics else 0,
        }
        if first.raster is None:
            return facts | {"sampling_rate": self.config.sampling_rate}
        low, high = self.limits()
        return facts | {
            "dtype": first.raster.dtype,
            "low": low,
            "high": high,
            "nodata": None if self.nodata is None else str(self.nodata),
        }

    def _begin(self, signal: Signal) -> None:
        self.first = signal
        shape: dict[str, Any] = {
            "num_channels": len(signal.values),
            "num_levels": self.num_levels or DEFAULT_LEVELS[signal.kind],
            **self.transform,
            "latent_channels": 1,
            "decoder_type": "linear",
        }
        if signal.kind == "audio":
            shape["sampling_rate"] = self.sampling_rate or signal.rate or 44100
        self.config: Any = MODELS[signal.kind][0].config_class(**shape)
        if signal.raster is not None and not signal.is_unit:
            self.provisional = self.sample_range or (signal.raster.low, signal.raster.high)
        else:
            self.provisional = (-0.5, 0.5)
        self.statistics = SubbandStatistics(self.config)

    def _unit(self, signal: Signal, limits: tuple[float, float]) -> torch.Tensor:
        try:
            if signal.is_unit:
                return torch.from_numpy(signal.values)
            if signal.raster is None:
                return _normalised(signal.values)
            low, high = limits
            if self.sample_range:  # values outside of a declared range are an error
                raster = RasterFormat.from_dict(signal.raster.to_dict() | {"low": low, "high": high})
                return torch.from_numpy(raster.to_unit(signal.values))
            own = signal.raster  # what is measured is the range of each image: bring it to the common one
            unit = own.to_unit(signal.values)
            if (own.low, own.high) != (low, high):
                unit = unit * np.float32((own.high - own.low) / (high - low))
                unit += np.float32(((own.low + own.high) - (low + high)) / 2 / (high - low))
            return torch.from_numpy(unit)
        except ValueError as error:
            raise ValueError(f"{signal.name or 'a signal'}: {error}") from error


def _normalised(clip: np.ndarray) -> torch.Tensor:
    if not np.isfinite(clip).all():
        raise ValueError("the clip holds NaN or infinite samples")
    return normalise_clip(torch.from_numpy(clip))[0]


def _cropped(unit: torch.Tensor, patch: int) -> torch.Tensor:
    return unit[(slice(None), *(slice(n // patch * patch) for n in unit.shape[1:]))].contiguous()


def _rescaled(statistics: SubbandStatistics, scale: float, offset: float) -> SubbandStatistics:
    """Statistics of `scale * x + offset` from those of x."""
    if (scale, offset) == (1.0, 0.0):
        return statistics
    config = statistics.config
    constant = SubbandStatistics(config)  # the transform is linear, and flat signals have flat subbands
    constant.update(torch.ones(1, config.num_channels, *[config.patch_size * 8] * config.num_dims))
    ones, total, count = constant.mean, statistics.total, statistics.count
    result = SubbandStatistics(config)
    result.count = count
    result.total = scale * total + count * offset * ones
    cross = np.outer(total, ones)
    result.products = (
        scale**2 * statistics.products + scale * offset * (cross + cross.T) + count * offset**2 * np.outer(ones, ones)
    )
    return result
