"""Rate and distortion of a codec over many files."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tqdm.auto import tqdm

from . import metrics, perceptual
from .cache import FileCache
from .codecs import Codec
from .signals import SAMPLING_RATE, Signals

# What is measured, by the names of what each function gives. Functions for audio take the sampling rate, too.
_MEASURES: dict[str, dict[tuple[str, ...], Callable]] = {
    "image": {
        ("psnr",): metrics.psnr,
        ("ssim",): metrics.ssim,
        ("ms_ssim",): metrics.ms_ssim,
        **{(name,): partial(perceptual.similarity, name) for name in perceptual.PIQ_METRICS},
        ("ssimulacra2",): perceptual.ssimulacra2,
        ("lpips_db",): partial(perceptual.learned, "lpips"),
        ("dists_db",): partial(perceptual.learned, "dists"),
    },
    "audio": {
        ("psnr",): lambda reference, decoded, rate: metrics.audio_psnr(reference, decoded),
        ("ssdr", "srdr"): metrics.spatial_ratios,
        ("si_sdr",): lambda reference, decoded, rate: metrics.si_sdr(reference, decoded),
        ("zimtohrli_mos",): metrics.zimtohrli_mos,
        ("cdpam_db",): partial(perceptual.learned, "cdpam"),
    },
}
METRICS = {kind: tuple(name for names in measures for name in names) for kind, measures in _MEASURES.items()}


class Quality:
    """Measures a codec on signals.

    Args:
        names: of the metrics, from `METRICS`; default: all of the kind.
        cache: of what was measured before.

    Attributes:
        unavailable: metrics that this machine cannot compute, with the reason.

    Raises:
        ValueError: an unknown metric.
    """

    def __init__(self, signals: Signals, names: Sequence[str] | None, cache: FileCache):
        known = METRICS[signals.kind]
        if unknown := [name for name in names or () if name not in known]:
            raise ValueError(f"unknown metric {unknown[0]!r} of {signals.kind}; valid: {', '.join(known)}")
        self.signals, self.names, self.cache = signals, list(names or known), cache
        self.unavailable: dict[str, str] = {}
        # Something to measure, so that what is not installed is known before the first file.
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        self.measure(self.names, *[noise if signals.kind == "image" else _clip_of_noise()] * 2)

    def measure_all(self, codecs: Sequence[Codec]) -> None:
        """Measure every codec on every signal, under one bar.

        File by file, so that the time of the files that are done tells that of those to come.
        """
        with tqdm(total=len(codecs) * len(self.signals), desc="evaluate", unit="measurement") as bar:
            for signal in self.signals:
                for codec in codecs:
                    self._line(codec, signal)
                    bar.update()

    def of(self, codec: Codec) -> dict:
        """Compression ratio, bpp or kbps over all files together, and the mean of each metric over files."""
        lines = [self._line(codec, signal) for signal in self.signals]
        values, total = sum(math.prod(line["shape"]) for line in lines), sum(line["bytes"] for line in lines)
        image = self.signals.kind == "image"
        ratio = metrics.compression_ratio(values, total, 8 if image else 16)
        row: dict = {"files": len(lines), "compression_ratio": ratio}
        row |= {"bpp": 24 / ratio} if image else {"kbps": 2 * 16 * self.signals.sampling_rate / 1000 / ratio}
        for name in self.names:
            if name in self.unavailable:
                continue
            known = [line[name] for line in lines if line[name] is not None]
            row[name] = float(np.mean(known)) if known else None
            if known and len(known) < len(lines):
                row[f"{name}_files"] = len(known)
        return row

    def _line(self, codec: Codec, signal) -> dict:
        key = f"{codec.name} {codec.identity} {signal.fingerprint}"
        line = self.cache.get(key) or {}
        absent = [name for name in self.names if name not in self.unavailable and name not in line]
        if absent or "bytes" not in line:
            blob = codec.write(signal.array)
            decoded = codec.read(blob, signal.array)
            line |= {"file": signal.name, "bytes": len(blob), "shape": list(signal.array.shape)}
            line |= self.measure(absent, signal.array, decoded)
            self.cache.put(key, line)
        return line

    def measure(self, names: Sequence[str], reference: np.ndarray, decoded: np.ndarray) -> dict[str, float | None]:
        """Values by name; None where a metric is not defined for this signal (too small, silent)."""
        found: dict[str, float | None] = {}
        rate = () if self.signals.kind == "image" else (self.signals.sampling_rate,)
        for given, function in _MEASURES[self.signals.kind].items():
            wanted = [name for name in given if name in names]
            if not wanted:
                continue
            try:
                values = np.atleast_1d(function(reference, decoded, *rate)).tolist()
            except metrics.MetricUnavailableError as error:
                self.unavailable |= dict.fromkeys(wanted, str(error))
                continue
            except ValueError:
                values = [None] * len(given)
            found |= {name: value for name, value in zip(given, values, strict=True) if name in wanted}
        return found


def _clip_of_noise() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((2, SAMPLING_RATE))).astype(np.float32)


def bd_rates(rows: Sequence[dict], curve_of: Callable[[dict], str | None], formats: Sequence[str]) -> dict:
    """Bjontegaard delta rates in percent (PSNR) of our codecs against every format; None where ranges do not meet.

    Args:
        curve_of: the curve that a row is a point of, or None.
        formats: the curves that are formats.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = curve_of(row)
        if name is not None and row.get("psnr") is not None:
            curves.setdefault(name, []).append((1 / row["compression_ratio"], row["psnr"]))
    anchors = [name for name in curves if name in formats]
    table: dict[str, dict[str, float | None]] = {}
    for name in curves:
        if name in anchors:
            continue
        table[name] = {}
        for anchor in anchors:
            try:
                value = metrics.bd_rate(*zip(*curves[anchor], strict=True), *zip(*curves[name], strict=True))
            except ValueError:
                value = math.nan
            table[name][anchor] = None if math.isnan(value) else value
    return table
