"""Codecs measured in one run: `evaluate_codecs`, and the files of its result. The command is `walloc evaluate`."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..atomic import write_atomically
from .cache import FileCache
from .codecs import CodecUnavailableError
from .machine import machine, versions
from .neural import NEURAL
from .quality import Quality
from .rivals import FORMATS, format_options
from .signals import SAMPLING_RATE, Signals
from .specs import make_codec, parse_spec, shown_spec
from .speed import Timing, measure_speed
from .tables import to_csv, to_markdown

MODELS = {"image": ["rgb-4x", "rgb-16x"], "audio": ["stereo-5x", "stereo-20x"]}
MATCHED = {"image": ["jpeg", "webp"], "audio": ["mp3", "opus"]}  # compared at the size of our files, too
RESIZING = {"image": ["resize@factor=2", "resize@factor=4"], "audio": []}
MIDDLE = {"image": "50", "audio": "0.9"}  # quality at which formats are timed
CURVE_STEPS = (1, 1.5, 2, 3, 4, 6, 8)
REFINE = 10  # steps of the search for better codes
CURVE_QUALITIES: dict[str, dict[str, Sequence[float]]] = {
    "image": {
        "jpeg": (5, 8, 12, 18, 26, 38, 52, 68, 80, 90),
        "webp": (1, 5, 15, 30, 50, 70, 80, 90),
        "avif": (10, 20, 30, 40, 50, 60, 70, 80),
        "jxl": (10, 25, 40, 55, 75, 90),
    },
    "audio": {
        "mp3": (0.0, 0.25, 0.5, 0.75, 0.9),
        "vorbis": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "opus": (0.5, 0.7, 0.8, 0.9, 0.94, 0.98),
    },
}


def evaluate_codecs(
    codecs: Sequence[str],
    data: Signals | None = None,
    kind: str = "image",
    metrics: Sequence[str] | None = None,
    timing: Timing | None = None,
    out: str | Path = ".",
    speed_only: bool = False,
) -> dict:
    """Measure codecs in one run.

    Args:
        codecs: specs, see above and `specs.make_codec`.
        data: what quality and rate are measured on; None for speed alone.
        kind: of the codecs and the data, "image" or "audio".
        metrics: some of `METRICS[kind]`; default: all.
        timing: how to time; None for not at all.
        out: folder that keeps each measurement (files.jsonl, speed.jsonl): what lies there is not measured again.
        speed_only: give the neural codecs of others random weights and time them.

    Returns:
        A dictionary for JSON: kind, data, date, machine, versions, `rows` (one for each codec: compression_ratio, bpp
        or kbps, metrics by name, seconds of each stage), metrics_unavailable and codecs_unavailable with reasons.

    Raises:
        ValueError: a spec or a metric that means nothing.
    """
    if data is not None and data.kind != kind:
        raise ValueError(f"the data are {data.kind}, the codecs for {kind}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    quality = Quality(data, metrics, FileCache(out / "files.jsonl")) if data is not None else None
    made, missing = {}, {}
    for spec in codecs:
        try:
            made[spec] = make_codec(spec, kind, data.sampling_rate if data else SAMPLING_RATE, speed_only)
        except CodecUnavailableError as error:
            missing[spec] = str(error)
    if quality is not None:
        quality.measure_all([codec for codec in made.values() if not codec.speed_only])
    rows = []
    for spec, codec in made.items():
        row: dict = {"codec": shown_spec(spec), "dimensionality_reduction": codec.dimensionality_reduction}
        if codec.note:
            row["note"] = codec.note
        if codec.parameters:
            row["parameters"] = codec.parameters
        if quality is not None and not codec.speed_only:
            row |= quality.of(codec)
        # A matched row is the same format as an unmatched one, at a quality that differs from file to file.
        if timing is not None and "like" not in parse_spec(spec)[1]:
            row["speed"] = measure_speed(codec, kind, timing, out / "speed.jsonl")
        rows.append(row)
    clock = "processor time" if timing is not None and timing.cpu_time else "wall time"
    return {
        "kind": kind,
        "data": data.description if data else None,
        "date": datetime.date.today().isoformat(),
        "machine": machine(torch.get_num_threads()) | {"clock": clock},
        "versions": versions(),
        "format_options": format_options(kind),
        "metrics_unavailable": quality.unavailable if quality else {},
        "codecs_unavailable": missing,
        "rows": rows,
    }


def quick_codecs(kind: str, models: Sequence[str] | None = None) -> list[str]:
    """The specs that answer the question on own data in a minute: our models beside resizing to as many numbers, and
    the usual format at the size of the smallest of our files."""
    models = MODELS[kind] if models is None else models
    return [*models, *RESIZING[kind], f"{MATCHED[kind][0]}@like={models[-1]}"]


def default_codecs(command: str, kind: str, models: Sequence[str] | None = None) -> list[str]:
    """The specs of `tables`, `curves` or `speed` for our models (default: the bundled ones) and their rivals."""
    models = MODELS[kind] if models is None else models
    formats, resizing = FORMATS[kind], RESIZING[kind]
    if command == "curves":
        specs = [f"{model}@step={step:g}" for model in models for step in CURVE_STEPS]
        for model in models:
            try:
                channels = make_codec(model, kind).latent_channels
            except CodecUnavailableError:
                continue  # named in the result when its other rows are measured
            counts = sorted({max(1, round(channels * share)) for share in (0.125, 0.25, 0.5, 0.75)})
            specs += [f"{model}@channels={count}" for count in counts if count < channels]
        qualities = CURVE_QUALITIES[kind]
        return specs + resizing + [f"{name}@quality={q:g}" for name in formats for q in qualities[name]]
    specs = []
    for model in models:
        specs.append(model)
        if command == "tables":
            specs += [f"{model}@refine={REFINE}"] if kind == "image" else []
            specs += [f"{model}@linear", *(f"{name}@like={model}" for name in MATCHED[kind])]
    return specs + [f"{name}@quality={MIDDLE[kind]}" for name in formats] + resizing + list(NEURAL[kind])


def write_result(result: dict, out: str | Path, store: str | Path | None = None) -> None:
    """Write results.json, results.csv and results.md, and the figures of a result with curves.

    Args:
        out: folder for these files.
        store: JSON file to keep the result in, too; its figures go beside it.
    """
    out, text = Path(out), json.dumps(result, indent=1) + "\n"
    write_atomically(out / "results.json", text)
    write_atomically(out / "results.csv", to_csv(result["rows"]))
    write_atomically(out / "results.md", to_markdown(result))
    if store is not None:
        write_atomically(store, text)
    if "bd_rate" not in result:
        return
    from . import curves, plots

    for name, draw in (("rate_distortion", curves.rate_distortion), ("three_axes", curves.three_axes)):
        figure = draw(result["rows"], result["kind"])
        plots.save(figure, out / name)
        if store is not None:
            plots.save(figure, Path(store).with_suffix("").with_name(f"{Path(store).stem}_{name}"))
