"""Pictures of what `walloc evaluate curves` measures: rate and distortion, and all three axes at once."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..codec.kinds import KINDS
from ..extras import naming_extras
from .plots import Plot

with naming_extras():
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

FORMAT_STYLES = {
    "jpeg": ("#999999", "-"),
    "webp": ("#009E73", "-"),
    "avif": ("#CC79A7", "-"),
    "jxl": ("#E69F00", "-"),
    "mp3": ("#999999", "-"),
    "vorbis": ("#009E73", "-"),
    "opus": ("#CC79A7", "-"),
}
OURS = ("#0072B2", "#D55E00", "#56B4E9", "#000000", "#882255", "#332288", "#8B4513")  # those that no format has


def rate_distortion(rows: Sequence[Mapping], kind: str) -> Figure:
    """PSNR over rate, one curve for each codec, ours in strong colours.

    Args:
        rows: as `walloc evaluate curves` writes them: codec (`NAME@option=value`), psnr, bpp or kbps.
        kind: "image" or "audio".
    """
    rate = KINDS[kind].rate
    figure = Plot(figsize=(7, 4.8), layout="constrained")
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
    figure = Plot(figsize=(7, 4.8), layout="constrained")
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
