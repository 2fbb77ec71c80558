"""Pictures of codecs and of what they do to signals (matplotlib figures).

Every function returns a figure and shows nothing; `save` writes it. Needs `pip install 'transformers-walloc[eval]'`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import atomic_file
from ..codec.kinds import KINDS
from ..extras import naming_extras

with naming_extras():
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
FORMAT_STYLES = {
    "jpeg": ("#999999", "-"),
    "webp": ("#009E73", "-"),
    "avif": ("#CC79A7", "-"),
    "jxl": ("#E69F00", "-"),
    "mp3": ("#999999", "-"),
    "vorbis": ("#009E73", "-"),
    "opus": ("#CC79A7", "-"),
}
OURS = ("#0072B2", "#D55E00", "#56B4E9", "#000000")  # those that no format has
IMPULSE = 31  # code of the atlas' impulses, as in Figures 10 and 11 of the paper
_SMALL: dict[str, Any] = {"fontsize": 8}


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
    figure = Figure(figsize=(column * len(images), sum(heights) + 0.4))
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
    figure = Figure(figsize=(3.6 * len(clips), 2.2 * channels + 2.4), layout="constrained")
    axes = figure.subplots(1 + channels, len(clips), squeeze=False, sharex=True, height_ratios=[1.0] + [1.3] * channels)
    seconds = np.arange(length) / sampling_rate
    loudest = max(float(np.abs(clip).max()) for clip in clips.values()) or 1.0
    every = max(1, length // 20000)
    spectra = {caption: [_spectrogram(x, sampling_rate) for x in clip] for caption, clip in clips.items()}
    top = max(float(s.max()) for s in spectra[next(iter(clips))])
    names = ("left", "right") if channels == 2 else tuple(f"channel {c}" for c in range(channels))
    for j, (caption, clip) in enumerate(clips.items()):
        for c in range(channels):
            axes[0, j].plot(seconds[::every], clip[c][::every], color=COLOURS[c], lw=0.4, alpha=0.6, rasterized=True)
            picture = axes[1 + c, j].imshow(
                spectra[caption][c],
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=top - 90,
                vmax=top,
                extent=(0, length / sampling_rate, 0, sampling_rate / 2000),
            )
            if j == 0:
                axes[1 + c, j].set_ylabel(f"{names[c]}, kHz", **_SMALL)
        axes[0, j].set_title(caption, fontsize=9)
        axes[0, j].set_ylim(-1.05 * loudest, 1.05 * loudest)
        axes[-1, j].set_xlabel("seconds", **_SMALL)
        for axis in axes[:, j]:
            axis.tick_params(labelsize=7, labelleft=j == 0)
    axes[0, 0].set_ylabel("amplitude", **_SMALL)
    bar = figure.colorbar(picture, ax=axes[1:, -1], pad=0.02)
    bar.set_label("dB", **_SMALL)
    bar.ax.tick_params(labelsize=7)
    return figure


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
        figure = Figure(figsize=(1.15 * columns, 1.3 * rows), layout="constrained")
        for c, axis in enumerate(_picture_axes(figure, rows, columns, channels)):
            scale = np.abs(responses[c]).max() or 1.0
            image = (0.5 + 0.5 * responses[c] / scale).transpose(1, 2, 0)
            axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", interpolation="nearest")
            axis.set_title(str(c + 1), fontsize=7, pad=2)
        return figure
    figure = Figure(figsize=(1.7 * columns, 1.0 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    milliseconds = 1000 * (np.arange(decoded.shape[-1]) - decoded.shape[-1] / 2) / config.sampling_rate
    for c, axis in enumerate(axes.flat):
        axis.set_yticks([])
        if c >= channels:
            axis.set_axis_off()
            continue
        for k, wave in enumerate(responses[c]):
            axis.plot(milliseconds, wave, color=COLOURS[k], lw=0.6)
        axis.set_title(str(c + 1), fontsize=7, pad=2)
        axis.tick_params(labelsize=6)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.supxlabel("ms; left channel blue, right channel orange", **_SMALL)
    return figure


def latent_histograms(codes: np.ndarray) -> Figure:
    """How often each code occurs, channel by channel, with the order-0 entropy in bits.

    Args:
        codes: integers (channels, *grid).
    """
    channels = len(codes)
    columns, rows = _grid(channels, 1.4)
    figure = Figure(figsize=(1.35 * columns + 0.3, 1.0 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for c, axis in enumerate(axes.flat):
        if c >= channels:
            axis.set_axis_off()
            continue
        values, counts = np.unique(codes[c], return_counts=True)
        share = counts / counts.sum()
        entropy = (share * np.log2(1 / share)).sum()
        limit = max(3, int(np.abs(values).max()))
        axis.bar(values, share, width=1.0, color=COLOURS[0])
        axis.set(xlim=(-limit - 1, limit + 1), yticks=[], xticks=[-limit, 0, limit])
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
        figure = Figure(figsize=(9, max(2.5, 0.045 * len(codes) + 1.5)), layout="constrained")
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
    figure = Figure(figsize=(11, rows * (side * height / width + 0.22)), layout="constrained")
    for c, axis in enumerate(_picture_axes(figure, rows, columns, channels)):
        limit = max(float(np.percentile(np.abs(codes[c]), 99.5)), 1.0)
        axis.imshow(codes[c], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{c + 1} (±{limit:.0f})", fontsize=7, pad=2)
    return figure


def _picture_axes(figure: Figure, rows: int, columns: int, count: int) -> list[Any]:
    """Axes without ticks for so many pictures; the rest of the grid stays empty."""
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    for axis in axes[count:]:
        axis.set_axis_off()
    return axes[:count]


def _grid(count: int, aspect: float) -> tuple[int, int]:
    """Columns and rows for so many panels, `aspect` as many columns as rows, without gaps where that is near."""
    wanted = max(1.0, math.sqrt(aspect * count))
    columns = min(count, math.ceil(wanted))
    divisors = [d for d in range(1, count + 1) if count % d == 0 and 0.6 < d / wanted < 1.7]
    if divisors:
        columns = min(divisors, key=lambda d: abs(math.log(d / wanted)))
    return columns, math.ceil(count / columns)


def rate_distortion(rows: Sequence[Mapping], kind: str) -> Figure:
    """PSNR over rate, one curve for each codec, ours in strong colours.

    Args:
        rows: as `walloc evaluate curves` writes them: codec (`NAME@option=value`), psnr, bpp or kbps.
        kind: "image" or "audio".
    """
    rate = KINDS[kind].rate
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axis = figure.subplots()
    ours = 0
    for name, points in _curves(rows, rate).items():
        if name in FORMAT_STYLES:
            colour, line = FORMAT_STYLES[name]
            axis.plot(*zip(*sorted(points["quality"]), strict=True), line, color=colour, marker=".", lw=1.2, label=name)
            continue
        colour = OURS[ours % len(OURS)]
        ours += 1
        if points["step"]:
            points["step"].sort()
            axis.plot(*zip(*points["step"], strict=True), "-", color=colour, marker="o", ms=4, lw=2, label=name)
        if points["channels"]:
            points["channels"].sort()
            style: dict[str, Any] = {"marker": "s", "ms": 4, "lw": 1.2, "mfc": "white"}
            axis.plot(
                *zip(*points["channels"], strict=True), "--", color=colour, label=f"{name}, first k channels", **style
            )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    axis.tick_params(which="both", labelsize=8)
    axis.set_xlabel(KINDS[kind].rate_unit)
    axis.set_ylabel("PSNR, dB")
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize=8, frameon=False)
    return figure


def three_axes(rows: Sequence[Mapping], kind: str) -> Figure:
    """Dimensionality reduction, compression ratio and PSNR of every row in one picture (Figure 2 of the paper)."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axis = figure.subplots()
    known = [row for row in rows if row.get("psnr") is not None and "like=" not in row["codec"]]
    known = [row for row in known if "step" not in row["codec"] or row["codec"].endswith("step=1")]
    # Formats reduce nothing and would lie on one line: each has its own column beside it.
    names = [row["codec"].partition("@")[0] for row in known]
    columns = [name for name in FORMAT_STYLES if name in names]
    offsets = {name: 1.2 ** (columns.index(name) - len(columns) + 1) if name in columns else 1.0 for name in names}
    places = [
        (row["dimensionality_reduction"] * offsets[name], row["compression_ratio"])
        for row, name in zip(known, names, strict=True)
    ]
    picture = axis.scatter(
        [x for x, _ in places],
        [y for _, y in places],
        c=[row["psnr"] for row in known],
        cmap="viridis",
        s=70,
        edgecolor="black",
        linewidth=0.5,
        zorder=3,
    )
    for name in columns:
        own = [place for place, other in zip(places, names, strict=True) if other == name]
        top = max(own, key=lambda place: place[1])
        axis.annotate(name, top, xytext=(0, 8), textcoords="offset points", fontsize=7, rotation=90, ha="center")
    for row, name, place in zip(known, names, places, strict=True):
        if name not in columns:
            label = re.sub("@(channels|factor)=", lambda match: f", {match[1]} ", row["codec"]).replace("@step=1", "")
            aside = (-7, "right") if name == "resize" else (7, "left")
            axis.annotate(label, place, xytext=(aside[0], -3), textcoords="offset points", fontsize=7, ha=aside[1])
    for scale, setter in ((axis.xaxis, axis.set_xscale), (axis.yaxis, axis.set_yscale)):
        setter("log")
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    axis.set_xlim(right=axis.get_xlim()[1] * 3)
    axis.set_ylim(top=axis.get_ylim()[1] * 1.3)
    axis.tick_params(which="both", labelsize=8)
    axis.set_xlabel("dimensionality reduction (formats: 1)")
    axis.set_ylabel("compression ratio")
    axis.grid(alpha=0.25)
    figure.colorbar(picture, pad=0.02).set_label("PSNR, dB")
    return figure


def _curves(rows: Sequence[Mapping], rate: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        name, _, option = row["codec"].partition("@")
        axis = option.partition("=")[0] or "step"
        if row.get("psnr") is not None and axis in ("step", "channels", "quality"):
            curves.setdefault(name, {"step": [], "channels": [], "quality": []})[axis].append((row[rate], row["psnr"]))
    return curves


def _rectangle(corner: tuple[float, float], size: int, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=1.5)
