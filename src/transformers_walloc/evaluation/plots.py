"""Pictures of codecs and of what they do to signals (matplotlib figures), those of `walloc inspect`.

```python
codes = model.quantize(latents)[0].numpy()
figure = channel_maps(codes)  # the last line of a notebook's cell shows it
paths = save(figure, "channels", ["png"])
```

Needs `pip install 'transformers-walloc[eval]'`.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import atomic_file
from ..extras import naming_extras

with naming_extras():
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
IMPULSE = 31  # code of the atlas' impulses, as in Figures 10 and 11 of the paper
_SMALL: dict[str, Any] = {"fontsize": 8}


class Plot(Figure):
    """A figure that a notebook shows, with or without matplotlib's own support for it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=90, bbox_inches="tight", facecolor="white")
        return file.getvalue()


def save(
    figure: Figure, stem: str | os.PathLike, formats: Sequence[str] = ("png", "svg"), dpi: float = 110
) -> list[Path]:
    """Write a figure as `stem.png`, `stem.svg`, ..., each in one step; returns the paths."""
    paths = []
    for suffix in formats:
        path = Path(f"{os.fspath(stem)}.{suffix}")
        # Without dates and random ids the same figure gives the same file.
        metadata = {"Date": None} if suffix == "svg" else {}
        with atomic_file(path) as file:
            figure.savefig(file, format=suffix, dpi=dpi, bbox_inches="tight", facecolor="white", metadata=metadata)
        paths.append(path)
    return paths


def reconstructions(
    images: Mapping[str, np.ndarray], crops: Sequence[tuple[int, int]] | None = None, crop_size: int = 96
) -> Figure:
    """Images side by side with magnified details below (Figures 5-8 of the paper).

    Args:
        images: uint8 (height, width, 3) by caption, all of one size, the original first.
        crops: (top, left) of the details in pixels; by default two places with much texture that lie apart.
        crop_size: side of a detail in pixels.
    """
    original = next(iter(images.values()))
    height, width = original.shape[:2]
    crop_size = min(crop_size, height, width)
    crops = textured_crops(original, crop_size) if crops is None else list(crops)
    rows = 1 + len(crops)
    column = 3.4
    heights = [column * height / width] + [column] * len(crops)
    figure = Plot(figsize=(column * len(images), sum(heights) + 0.4))
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01))
    axes = figure.subplots(rows, len(images), squeeze=False, height_ratios=heights)
    for j, (caption, image) in enumerate(images.items()):
        axes[0, j].imshow(image, interpolation="antialiased")
        axes[0, j].set_title(caption, fontsize=9)
        for i, (top, left) in enumerate(crops):
            detail = image[top : top + crop_size, left : left + crop_size]
            axes[i + 1, j].imshow(detail, interpolation="nearest")
            corner = (left - 0.5, top - 0.5)
            box = _rectangle(corner, crop_size, COLOURS[(1, 5)[i % 2]])
            axes[0, j].add_patch(box)
            for spine in axes[i + 1, j].spines.values():
                spine.set(edgecolor=COLOURS[(1, 5)[i % 2]], linewidth=2)
        for axis in axes[:, j]:
            axis.set(xticks=[], yticks=[])
    return figure


def textured_crops(image: np.ndarray, size: int, count: int = 2) -> list[tuple[int, int]]:
    """Corners (top, left) of the places of an image with the strongest gradients, at least twice their size apart."""
    grey = image.astype(np.float64).mean(axis=2)
    energy = np.zeros_like(grey)
    energy[:-1] += np.abs(np.diff(grey, axis=0))
    energy[:, :-1] += np.abs(np.diff(grey, axis=1))
    total = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    score = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    found: list[tuple[int, int]] = []
    for _ in range(count):
        top, left = (int(i) for i in np.unravel_index(score.argmax(), score.shape))
        if score[top, left] < 0:
            break
        found.append((top, left))
        score[max(0, top - 2 * size) : top + 2 * size, max(0, left - 2 * size) : left + 2 * size] = -1
    return found


def waveforms(clips: Mapping[str, np.ndarray], sampling_rate: int) -> Figure:
    """Stereo waveforms and spectrograms side by side (Figure 9 of the paper).

    Args:
        clips: float (channels, length) by caption, all of one shape, the original first.
        sampling_rate: in Hz.
    """
    channels, length = next(iter(clips.values())).shape
    figure = Plot(figsize=(3.6 * len(clips), 2.9 * channels + 0.8), layout="constrained")
    heights = [0.7] * channels + [1.3] * channels
    axes = figure.subplots(2 * channels, len(clips), squeeze=False, sharex=True, height_ratios=heights)
    seconds = np.arange(length) / sampling_rate
    loudest = max(float(np.abs(clip).max()) for clip in clips.values()) or 1.0
    every = max(1, length // 20000)
    spectra = {caption: [_spectrogram(x, sampling_rate) for x in clip] for caption, clip in clips.items()}
    top = max(float(s.max()) for s in spectra[next(iter(clips))])
    names = channel_names(channels)
    for j, (caption, clip) in enumerate(clips.items()):
        for c in range(channels):
            wave, spectrum = axes[c, j], axes[channels + c, j]
            colour = COLOURS[c % len(COLOURS)]
            wave.plot(seconds[::every], clip[c][::every], color=colour, lw=0.4, rasterized=True, label=names[c])
            wave.set_ylim(-1.05 * loudest, 1.05 * loudest)
            picture = spectrum.imshow(
                spectra[caption][c],
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=top - 90,
                vmax=top,
                extent=(0, length / sampling_rate, 0, sampling_rate / 2000),
            )
            if j == 0:
                wave.set_ylabel("amplitude", **_SMALL)
                wave.legend(fontsize=7, loc="upper right", handlelength=1)
                spectrum.set_ylabel(f"{names[c]}, kHz", **_SMALL)
        axes[0, j].set_title(caption, fontsize=9)
        axes[-1, j].set_xlabel("seconds", **_SMALL)
        for axis in axes[:, j]:
            axis.tick_params(labelsize=7, labelleft=j == 0)
    bar = figure.colorbar(picture, ax=axes[channels:, -1], pad=0.02)
    bar.set_label("dB", **_SMALL)
    bar.ax.tick_params(labelsize=7)
    return figure


def channel_names(count: int) -> tuple[str, ...]:
    """Of audio."""
    return ("left", "right") if count == 2 else tuple(f"channel {c + 1}" for c in range(count))


def _spectrogram(x: np.ndarray, sampling_rate: int) -> np.ndarray:
    size = min(2048, 2 ** int(math.log2(max(len(x), 4))))
    spectrum = torch.stft(
        torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32),
        size,
        hop_length=max(size // 4, len(x) // 1500),
        window=torch.hann_window(size),
        return_complex=True,
    )
    return (20 * torch.log10(spectrum.abs() + 1e-7)).numpy()


@torch.no_grad()
def latent_atlas(model, impulse: int = IMPULSE) -> Figure:
    """What each latent channel paints: an impulse in the middle of a 3x3 (audio: 3) latent of zeros, decoded.

    Figures 10 and 11 of the paper. Images are scaled to the full range of brightness around mid-grey, one by one.
    """
    config = model.config
    channels = config.latent_channels
    codes = torch.zeros(channels + 1, channels, *[3] * config.num_dims, dtype=torch.int8)
    middle = (1,) * config.num_dims
    for c in range(channels):
        codes[(c, c, *middle)] = impulse
    decoded = model.decode(codes.to(model.device))[0].float().cpu().numpy()
    responses = decoded[:-1] - decoded[-1:]  # the last is that of no impulse at all
    columns, rows = _grid(channels, 1.35 if config.num_dims == 2 else 1.0)
    if config.num_dims == 2:
        figure, axes = _panels(columns, rows, 1.15, 1.3)
        for c, axis in enumerate(_without_ticks(axes, channels)):
            scale = np.abs(responses[c]).max() or 1.0
            image = (0.5 + 0.5 * responses[c] / scale).transpose(1, 2, 0)
            axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", interpolation="nearest")
            axis.set_title(str(c + 1), fontsize=7, pad=2)
        return figure
    figure, axes = _panels(columns, rows, 1.7, 1.2, 0.4)
    names = channel_names(config.num_channels)
    milliseconds = 1000 * (np.arange(decoded.shape[-1]) - decoded.shape[-1] / 2) / config.sampling_rate
    for c, axis in enumerate(axes.flat):
        axis.set_yticks([])
        if c >= channels:
            axis.set_axis_off()
            continue
        for k, wave in enumerate(responses[c]):
            axis.plot(milliseconds, wave, color=COLOURS[k % len(COLOURS)], lw=0.6, label=names[k])
        axis.set_title(str(c + 1), fontsize=7, pad=2)
        axis.tick_params(labelsize=6)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.06), title="ms")
    return figure


def latent_histograms(codes: np.ndarray) -> Figure:
    """How often each code occurs, on a logarithmic scale, channel by channel, with the order-0 entropy in bits.

    Args:
        codes: integers (channels, *grid).
    """
    channels = len(codes)
    columns, rows = _grid(channels, 1.4)
    figure, axes = _panels(columns, rows, 1.35, 1.3, 0.4)
    for c, axis in enumerate(axes.flat):
        if c >= channels:
            axis.set_axis_off()
            continue
        values, counts = np.unique(codes[c], return_counts=True)
        share = counts / counts.sum()
        entropy = (share * np.log2(1 / share)).sum()
        limit = max(3, int(np.abs(values).max()))
        floor = 0.5 / codes[c].size  # half of a single occurrence
        axis.vlines(values, floor, share, color=COLOURS[0], lw=max(0.5, 40 / limit))
        axis.set(yscale="log", ylim=(floor, 1.5), xlim=(-limit - 1, limit + 1), xticks=[-limit, 0, limit])
        axis.set_yticks([], minor=True)
        axis.set_yticks([0.01, 1], ["1%", "100%"] if c % columns == 0 else ["", ""])
        axis.tick_params(labelsize=6)
        axis.set_title(f"{c + 1}: {entropy:.2f} bit", fontsize=7, pad=2)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    return figure


def channel_maps(codes: np.ndarray, seconds: float | None = None) -> Figure:
    """The latents themselves: one picture for each channel (images) or channels over time (audio).

    Args:
        codes: integers or floats (channels, height, width) or (channels, length).
        seconds: duration of audio, for the axis.
    """
    if codes.ndim == 2:
        figure = Plot(figsize=(9, max(2.5, 0.045 * len(codes) + 1.5)), layout="constrained")
        axis = figure.subplots()
        limit = float(np.percentile(np.abs(codes), 99.5)) or 1.0
        end = seconds if seconds is not None else codes.shape[1]
        picture = axis.imshow(
            codes,
            aspect="auto",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
            extent=(0, end, len(codes) + 0.5, 0.5),
        )
        axis.set_xlabel("seconds" if seconds is not None else "latent", **_SMALL)
        axis.set_ylabel("channel", **_SMALL)
        figure.colorbar(picture, pad=0.02).set_label("code", **_SMALL)
        return figure
    channels, height, width = codes.shape
    columns, rows = _grid(channels, 1.4 * height / width)
    side = 11 / columns
    figure, axes = _panels(columns, rows, side, side * height / width + 0.22)
    for c, axis in enumerate(_without_ticks(axes, channels)):
        limit = max(float(np.percentile(np.abs(codes[c]), 99.5)), 1.0)
        axis.imshow(codes[c], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{c + 1} (±{limit:.0f})", fontsize=7, pad=2)
    return figure


def _without_ticks(panels: Any, count: int) -> list[Any]:
    """The first panels, for so many pictures; the rest of the grid stays empty."""
    axes = list(panels.flat)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    for axis in axes[count:]:
        axis.set_axis_off()
    return axes[:count]


def _panels(columns: int, rows: int, width: float, height: float, gap: float = 0.26) -> tuple[Plot, Any]:
    """A figure and its panels of so many inches. Their places are given: to find them takes seconds for a hundred."""
    figure = Plot(figsize=(columns * width, rows * height))
    gaps = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.12, "hspace": gap / max(height - gap, 0.1)}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=gaps)


def _grid(count: int, aspect: float) -> tuple[int, int]:
    """Columns and rows for so many panels, `aspect` as many columns as rows, without gaps where that is near."""
    wanted = max(1.0, math.sqrt(aspect * count))
    columns = min(count, math.ceil(wanted))
    divisors = [d for d in range(1, count + 1) if count % d == 0 and 0.6 < d / wanted < 1.7]
    if divisors:
        columns = min(divisors, key=lambda d: abs(math.log(d / wanted)))
    return columns, math.ceil(count / columns)


def _rectangle(corner: tuple[float, float], size: int, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=1.5)
