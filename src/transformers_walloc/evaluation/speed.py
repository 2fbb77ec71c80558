"""Throughput of a codec, stage by stage, on signals that every machine can make."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cache import FileCache
from .codecs import Clock, Codec
from .signals import SAMPLING_RATE

# Signals to time on: (batch, height, width) and (batch, seconds).
SPEED_SIZES = {"image": ["1x256x256", "1x512x768", "8x256x256", "1x2160x3840"], "audio": ["1x5", "1x30", "8x5"]}


@dataclass(frozen=True)
class Timing:
    """
    Attributes:
        sizes: of the signals, `BxHxW` in pixels or `BxS` in seconds; default: `SPEED_SIZES`.
        repeats: timed runs, of which the median counts.
        budget: seconds for each codec and size before repeats stop.
        cpu_time: count processor seconds: for busy machines.
    """

    sizes: Sequence[str] | None = None
    repeats: int = 7
    budget: float = 20.0
    cpu_time: bool = False


def measure_speed(codec: Codec, kind: str, timing: Timing, cache_path: Path) -> dict[str, dict]:
    """Median seconds of every stage by size; a size that would take too long is left out."""
    cache = FileCache(cache_path)
    speed: dict[str, dict] = {}
    for size in timing.sizes or SPEED_SIZES[kind]:
        clock = "cpu" if timing.cpu_time else "wall"
        key = f"{codec.name} {codec.identity} {size} {torch.get_num_threads()} {clock}"
        line = cache.get(key)
        if line is None:
            line = _time(codec, speed_signals(size, kind), timing, speed)
            cache.put(key, line)
        if line["seconds"]:
            speed[size] = line
    return speed


def _time(codec: Codec, signals: list[np.ndarray], timing: Timing, known: dict[str, dict]) -> dict:
    values = sum(signal.size for signal in signals)
    positions = sum(signal.size // (3 if signal.dtype == np.uint8 else 1) for signal in signals)
    # Extrapolated from sizes that were timed already: global attention grows faster, so this is a lower bound.
    expected = max((sum(line["seconds"].values()) * values / line["values"] for line in known.values()), default=0.0)
    decode = expected < 3 * timing.budget
    # A codec whose encoder alone is fast is still timed for that, on large signals.
    encoding = (line["seconds"]["encode"] * values / line["values"] for line in known.values())
    if not decode and max(encoding) > timing.budget:
        return {"values": values, "positions": positions, "runs": 0, "seconds": {}}
    runs: list[dict[str, float]] = []
    spent = 0.0
    while len(runs) < timing.repeats + 1 and (spent < timing.budget or not runs):
        clock = Clock(timing.cpu_time)
        codec.run(signals, clock, decode)
        runs.append(clock.seconds)
        spent += sum(clock.seconds.values())
    timed = runs[1:] or runs  # the first warms up, unless there is no time for a second
    seconds = {stage: statistics.median(run[stage] for run in timed) for stage in timed[0]}
    return {"values": values, "positions": positions, "runs": len(timed), "seconds": seconds}


def speed_signals(size: str, kind: str) -> list[np.ndarray]:
    """Something like a photograph or music, the same on every machine: noise whose spectrum falls with frequency."""
    parts = [float(part) for part in size.split("x")]
    generator = np.random.default_rng(0)
    if kind == "image":
        batch, height, width = (int(part) for part in parts)
        f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
        signals = []
        for _ in range(batch):
            spectrum = np.fft.rfft2(generator.standard_normal((3, height, width))) / f**1.2
            x = np.fft.irfft2(spectrum, (height, width))
            x = 128 + 50 * (x - x.mean()) / x.std()
            signals.append(np.ascontiguousarray(x.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
        return signals
    batch, length = int(parts[0]), round(parts[1] * SAMPLING_RATE)
    f = np.fft.rfftfreq(length) + 1e-3
    x = np.fft.irfft(np.fft.rfft(generator.standard_normal((batch, 2, length))) / f, length)
    return list((0.9 * x / np.abs(x).max()).astype(np.float32))
