#!/usr/bin/env python
"""Measure codecs on any images or audio: rate, distortion and speed, ours and others in the same run.

    python scripts/evaluate_codec.py tables --data DIR --out runs/kodak               # Table 1 (images)
    python scripts/evaluate_codec.py tables --kind audio --data DIR --out runs/music  # Table 2 (stereo audio)
    python scripts/evaluate_codec.py curves --data DIR --out runs/curves              # rate-distortion, BD-rate, 3 axes
    python scripts/evaluate_codec.py speed --out runs/speed                           # throughput alone, needs no data

Every file that a codec was measured on is a line of OUT/files.jsonl, so that a run that was stopped goes on where it
was. The result is OUT/results.json with OUT/results.md and OUT/results.csv (and figures for `curves`).
--store table1 (table2, curves_image, curves_audio) keeps the result in docs/results, from where `report.py` takes it.
`evaluation/codecs.py` explains how codecs are named. Neural codecs of others take their weights from the Hub;
with --speed_only they get random weights and are timed only.
"""

import argparse
import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from transformers_walloc.evaluation import metrics
from transformers_walloc.evaluation.codecs import NEURAL, Clock, Codec, CodecUnavailableError, make_codec, parse_spec
from transformers_walloc.training.data import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_media

STORE = Path(__file__).resolve().parents[3] / "docs" / "results"
METRICS = {
    "image": ("psnr", "ssim", "ms_ssim", "lpips_db", "dists_db"),
    "audio": ("psnr", "ssdr", "srdr", "si_sdr", "zimtohrli_mos", "cdpam_db"),
}
MODELS = {"image": ["rgb-4x", "rgb-16x"], "audio": ["stereo-5x", "stereo-20x"]}
MATCHED = {"image": ["jpeg", "webp"], "audio": ["mp3", "opus"]}  # compared at the size of our files, too
FORMATS = {"image": ["jpeg", "webp", "avif", "jxl"], "audio": ["mp3", "vorbis", "opus"]}
RESIZING = ["resize@factor=2", "resize@factor=4"]
# Signals to time on: (batch, height, width) and (batch, seconds).
SPEED_SIZES = {"image": ["1x256x256", "1x512x768", "8x256x256", "1x2160x3840"], "audio": ["1x5", "1x30", "8x5"]}
CURVE_STEPS = (1, 1.5, 2, 3, 4, 6, 8)
CURVE_QUALITIES = {
    "jpeg": (5, 8, 12, 18, 26, 38, 52, 68, 80, 90),
    "webp": (1, 5, 15, 30, 50, 70, 80, 90),
    "avif": (10, 20, 30, 40, 50, 60, 70, 80),
    "jxl": (10, 25, 40, 55, 75, 90),
    "mp3": (0.0, 0.25, 0.5, 0.75, 0.9),
    "vorbis": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "opus": (0.5, 0.7, 0.8, 0.9, 0.94, 0.98),
}


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["tables", "curves", "speed"])
    parser.add_argument("--kind", choices=["image", "audio"], default="image")
    parser.add_argument("--data", metavar="DIR|ID", help="folder of images or audio, or id of a datasets repository")
    parser.add_argument("--split", default="test", help="of a datasets repository; default: %(default)s")
    parser.add_argument("--files", type=int, default=None, help="how many files, evenly spread; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every clip, from its middle; default: 30")
    parser.add_argument(
        "--models", nargs="*", metavar="MODEL", help="our codecs; default: the bundled ones of the kind"
    )
    parser.add_argument("--codecs", nargs="*", metavar="SPEC", help="exactly these rows instead of the default ones")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these; default: all that can be had")
    parser.add_argument("--data_name", metavar="TEXT", help="what results call the data; default: the folder's name")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--store", metavar="NAME", help="keep the result as docs/results/NAME.json, too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: %(default)s")
    parser.add_argument("--no_speed", action="store_true", help="leave out the timing")
    parser.add_argument("--speed_only", action="store_true", help="time neural codecs of others with random weights")
    parser.add_argument("--speed_sizes", nargs="+", metavar="BxHxW|BxS", help="signals to time on")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs, of which the median counts")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count processor seconds of one thread: for busy machines"
    )
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per codec and size before repeats stop")
    args = parser.parse_args(argv)
    if args.command != "speed" and not args.data:
        parser.error("--data is needed: a folder or the id of a datasets repository")
    for name in args.metrics or ():
        if name not in METRICS[args.kind]:
            parser.error(f"unknown metric {name!r} of {args.kind}; valid: {', '.join(METRICS[args.kind])}")
    return args


def main(argv=None) -> dict:
    args = parse_arguments(argv)
    if args.cpu_time:
        args.threads = 1
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    specs = args.codecs if args.codecs is not None else default_specs(args)
    signals = None if args.command == "speed" else Signals(args)
    available, unavailable = available_metrics(args) if signals else ([], {})
    cache = FileCache(out / "files.jsonl")
    rows, missing = [], {}
    progress = tqdm(specs, desc="codecs", unit="codec")
    for spec in progress:
        progress.set_postfix_str(spec)
        try:
            codec = make_codec(spec, args.kind, signals.sampling_rate if signals else 44100, args.speed_only)
        except CodecUnavailableError as error:
            missing[spec] = str(error)
            continue
        row = {"codec": shown_spec(spec), "dimensionality_reduction": codec.dimensionality_reduction}
        if codec.note:
            row["note"] = codec.note
        if codec.parameters:
            row["parameters"] = codec.parameters
        if signals and not codec.speed_only:
            row |= measure_quality(codec, signals, available, cache)
        # A matched row is the same format as an unmatched one, at a quality that differs from file to file.
        if not args.no_speed and args.command != "curves" and "like" not in parse_spec(spec)[1]:
            row["speed"] = measure_speed(codec, args, out / "speed.jsonl")
        rows.append(row)
    result = {
        "command": shown_command(argv),
        "kind": args.kind,
        "data": signals.description if signals else None,
        "date": datetime.date.today().isoformat(),
        "machine": machine(args.threads) | {"clock": "processor time" if args.cpu_time else "wall time"},
        "versions": versions(),
        "metrics_unavailable": unavailable,
        "codecs_unavailable": missing,
        "rows": rows,
    }
    if args.command == "curves":
        result["bd_rate"] = bd_rates(rows)
    write_atomically(out / "results.json", json.dumps(result, indent=1) + "\n")
    write_atomically(out / "results.csv", to_csv(rows))
    from transformers_walloc.evaluation.report import to_markdown

    write_atomically(out / "results.md", to_markdown(result))
    if args.store:
        write_atomically(STORE / f"{args.store}.json", json.dumps(result, indent=1) + "\n")
    if args.command == "curves":
        from transformers_walloc.evaluation import plots

        for name, figure in (
            ("rate_distortion", plots.rate_distortion(rows, args.kind)),
            ("three_axes", plots.three_axes(rows, args.kind)),
        ):
            plots.save(figure, out / name)
            if args.store:
                plots.save(figure, STORE / f"{args.store}_{name}")
    print(to_markdown(result))
    return result


def default_specs(args) -> list[str]:
    models = args.models if args.models is not None else MODELS[args.kind]
    if args.command == "curves":
        specs = [f"{model}@step={step:g}" for model in models for step in CURVE_STEPS]
        for model in models:
            try:
                channels = make_codec(model, args.kind).latent_channels
            except CodecUnavailableError:
                continue  # named in the result when its other rows are measured
            counts = sorted({max(1, round(channels * share)) for share in (0.125, 0.25, 0.5, 0.75)})
            specs += [f"{model}@channels={count}" for count in counts if count < channels]
        specs += RESIZING if args.kind == "image" else []
        return specs + [f"{name}@quality={q:g}" for name in FORMATS[args.kind] for q in CURVE_QUALITIES[name]]
    middle = {"image": "50", "audio": "0.9"}[args.kind]
    if args.command == "speed":
        specs = list(models) + [f"{name}@quality={middle}" for name in FORMATS[args.kind]]
    else:
        specs = []
        for model in models:
            specs += [model, f"{model}@linear", *(f"{name}@like={model}" for name in MATCHED[args.kind])]
        specs += [f"{name}@quality={middle}" for name in FORMATS[args.kind]]
    if args.kind == "image":
        specs += RESIZING
    return specs + list(NEURAL[args.kind])


# Data.


@dataclass
class Signal:
    name: str
    array: np.ndarray  # uint8 (height, width, 3) or float32 (channels, length)
    fingerprint: str


class Signals:
    """Images, or clips of one sampling rate, read when they are needed."""

    def __init__(self, args):
        self.kind, self.seconds, self.sampling_rate = args.kind, args.seconds, 44100
        self.dataset, self.column = None, ""
        path = Path(args.data)
        if path.exists():
            suffixes = IMAGE_SUFFIXES if args.kind == "image" else AUDIO_SUFFIXES
            self.entries: list = [path] if path.is_file() else list_media(path, suffixes)
            root = path.parent if path.is_file() else path
            self.names = [entry.relative_to(root).as_posix() for entry in self.entries]
        else:
            self._open_repository(args.data, args.split)
        if args.files and args.files < len(self.entries):
            chosen = [round(i) for i in np.linspace(0, len(self.entries) - 1, args.files)]
            self.entries, self.names = ([values[i] for i in chosen] for values in (self.entries, self.names))
        name = getattr(args, "data_name", None) or (path.name if path.exists() else args.data)
        self.description = {"name": name, "files": self.names}
        if args.kind == "audio":
            self.description["seconds"] = args.seconds

    def _open_repository(self, name: str, split: str):
        import datasets

        try:
            self.dataset = datasets.load_dataset(name, split=split)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise SystemExit(
                f"{name} is neither a folder nor a datasets repository that can be read: {error}"
            ) from error
        wanted = datasets.Image if self.kind == "image" else datasets.Audio
        columns = [column for column, feature in self.dataset.features.items() if isinstance(feature, wanted)]
        if not columns:
            raise SystemExit(f"{name} has no column of {self.kind}; its columns: {', '.join(self.dataset.features)}")
        self.column = columns[0]
        self.dataset = self.dataset.cast_column(self.column, wanted(decode=False))
        self.entries = list(range(len(self.dataset)))
        self.names = [f"{self.column}[{i}]" for i in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Signal]:
        for name, entry in zip(self.names, self.entries, strict=True):
            if self.dataset is None:
                data = Path(entry).read_bytes()
            else:
                cell = self.dataset[entry][self.column]
                data = cell["bytes"] or Path(cell["path"]).read_bytes()
            array = self._image(data) if self.kind == "image" else self._clip(data)
            yield Signal(name, array, hashlib.sha256(array.tobytes()).hexdigest()[:16])

    def _image(self, data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def _clip(self, data: bytes) -> np.ndarray:
        import soundfile

        with soundfile.SoundFile(io.BytesIO(data)) as file:
            wanted = round(self.seconds * file.samplerate)
            file.seek(max(0, (file.frames - wanted) // 2))
            x, rate = file.read(wanted, dtype="float32", always_2d=True), file.samplerate
        if rate != self.sampling_rate:
            import soxr

            x = soxr.resample(x, rate, self.sampling_rate)
        x = x[:, :2] if x.shape[1] > 1 else x.repeat(2, axis=1)
        # 16-bit PCM is what the compression ratio refers to.
        return np.ascontiguousarray((np.round(x.T * 32768).clip(-32768, 32767) / 32768).astype(np.float32))


# Quality.


def available_metrics(args) -> tuple[list[str], dict[str, str]]:
    wanted = args.metrics or METRICS[args.kind]
    available, unavailable = [], {}
    for name in wanted:
        if name in ("lpips_db", "dists_db", "cdpam_db"):
            try:
                metrics.learned_metric(name.removesuffix("_db"))
            except metrics.MetricUnavailableError as error:
                unavailable[name] = str(error)
                continue
        available.append(name)
    return available, unavailable


def measure_quality(codec: Codec, signals: Signals, names: list[str], cache: "FileCache") -> dict:
    lines = []
    for signal in tqdm(signals, total=len(signals), desc=codec.name[-40:], unit="file", leave=False):
        key = f"{codec.name} {codec.identity} {signal.fingerprint}"
        line = cache.get(key) or {}
        absent = [name for name in names if name not in line]
        if absent or "bytes" not in line:
            blob = codec.write(signal.array)
            decoded = codec.read(blob, signal.array)
            line |= {"file": signal.name, "bytes": len(blob), "shape": list(signal.array.shape)}
            line |= measure(absent, signal.array, decoded, signals)
            cache.put(key, line)
        lines.append(line)
    values = [math.prod(line["shape"]) for line in lines]
    bits = 8 if signals.kind == "image" else 16
    total = sum(line["bytes"] for line in lines)
    row = {"files": len(lines), "compression_ratio": metrics.compression_ratio(sum(values), total, bits)}
    if signals.kind == "image":
        row["bpp"] = 24 / row["compression_ratio"]
    else:
        row["kbps"] = 2 * 16 * signals.sampling_rate / 1000 / row["compression_ratio"]
    for name in names:
        known = [line[name] for line in lines if line[name] is not None]
        row[name] = float(np.mean(known)) if known else None
        if known and len(known) < len(lines):
            row[f"{name}_files"] = len(known)
    return row


def measure(names: list[str], reference: np.ndarray, decoded: np.ndarray, signals: Signals) -> dict:
    """Values by name; None where a metric is not defined for this signal (too small, silent)."""
    values: dict[str, float | None] = {}
    rate = signals.sampling_rate
    for name in names:
        try:
            if name == "psnr":
                function = metrics.psnr if signals.kind == "image" else metrics.audio_psnr
                values[name] = function(reference, decoded)
            elif name in ("ssim", "ms_ssim"):
                values[name] = getattr(metrics, name)(reference, decoded)
            elif name in ("ssdr", "srdr"):
                values["ssdr"], values["srdr"] = metrics.spatial_ratios(reference, decoded, rate)
            elif name == "si_sdr":
                values[name] = metrics.si_sdr(reference, decoded)
            elif name == "zimtohrli_mos":
                values[name] = metrics.zimtohrli_mos(reference, decoded, rate)
            elif name == "cdpam_db":
                values[name] = metrics.learned_metric("cdpam")(reference, decoded, rate)
            else:
                values[name] = metrics.learned_metric(name.removesuffix("_db"))(reference, decoded)
        except ValueError:
            values[name] = None
    return values


class FileCache:
    """Lines of JSON, one for every codec and file; the last line of a key counts."""

    def __init__(self, path: Path):
        self.path, self.lines = path, {}
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the run was stopped in the middle of the last line
                    continue
                self.lines[line.pop("key")] = line

    def get(self, key: str) -> dict | None:
        line = self.lines.get(key)
        return dict(line) if line is not None else None

    def put(self, key: str, line: dict) -> None:
        self.lines[key] = line
        fresh = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        with open(self.path, "a") as file:
            file.write(("" if fresh else "\n") + json.dumps({"key": key} | line) + "\n")


# Speed.


def measure_speed(codec: Codec, args, cache_path: Path) -> dict:
    """Median seconds of every stage by size; a size that would take too long is left out."""
    cache = FileCache(cache_path)
    speed = {}
    for size in args.speed_sizes or SPEED_SIZES[args.kind]:
        key = f"{codec.name} {codec.identity} {size} {args.threads} {'cpu' if args.cpu_time else 'wall'}"
        line = cache.get(key)
        if line is None:
            line = time_codec(codec, speed_signals(size, args.kind), args, speed)
            cache.put(key, line)
        if line["seconds"]:
            speed[size] = line
    return speed


def time_codec(codec: Codec, signals: list[np.ndarray], args, known: dict) -> dict:
    budget = args.budget
    values = sum(signal.size for signal in signals)
    positions = sum(signal.size // (3 if signal.dtype == np.uint8 else 1) for signal in signals)
    # Extrapolated from sizes that were timed already: global attention grows faster, so this is a lower bound.
    expected = max((sum(line["seconds"].values()) * values / line["values"] for line in known.values()), default=0.0)
    decode = expected < 3 * budget
    # A codec whose encoder alone is fast is still timed for that, on large signals.
    if not decode and max(line["seconds"]["encode"] * values / line["values"] for line in known.values()) > budget:
        return {"values": values, "positions": positions, "runs": 0, "seconds": {}}
    runs, spent = [], 0.0
    while len(runs) < args.repeats + 1 and (spent < budget or not runs):
        clock = Clock(args.cpu_time)
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
    batch, length = int(parts[0]), round(parts[1] * 44100)
    f = np.fft.rfftfreq(length) + 1e-3
    x = np.fft.irfft(np.fft.rfft(generator.standard_normal((batch, 2, length))) / f, length)
    return list((0.9 * x / np.abs(x).max()).astype(np.float32))


# Results.


def bd_rates(rows: list[dict]) -> dict:
    """Bjontegaard delta rates in percent (PSNR) of our codecs against every format; None where ranges do not meet."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name, options = parse_spec(row["codec"])
        if "channels" not in options and row.get("psnr") is not None:
            curves.setdefault(name, []).append((1 / row["compression_ratio"], row["psnr"]))
    formats = [name for name in curves if name in (*FORMATS["image"], *FORMATS["audio"])]
    table: dict[str, dict[str, float | None]] = {}
    for name in curves:
        if name in formats or name == "resize":
            continue
        table[name] = {}
        for anchor in formats:
            try:
                value = metrics.bd_rate(*zip(*curves[anchor], strict=True), *zip(*curves[name], strict=True))
            except ValueError:
                value = math.nan
            table[name][anchor] = None if math.isnan(value) else value
    return table


def to_csv(rows: list[dict]) -> str:
    flat = []
    for row in rows:
        line = {name: value for name, value in row.items() if name != "speed"}
        for size, timing in row.get("speed", {}).items():
            for stage, seconds in timing["seconds"].items():
                line[f"{stage}_mega_per_s_{size}"] = timing["positions"] / seconds / 1e6 if seconds else None
        flat.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def shown_spec(spec: str) -> str:
    """A spec without the folders of this machine."""
    name, options = parse_spec(spec)
    if "like" in options:
        return f"{name}@like={shown_spec(options['like'])}"
    tail = spec.partition("@")[1:]
    return (Path(name).name if Path(name).exists() else name.removeprefix("walloc/")) + "".join(tail)


def shown_command(argv, script: str = "evaluate_codec.py") -> str:
    """The command without the folders of this machine."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = [os.path.basename(word.rstrip(os.sep)) if os.path.isabs(word) else word for word in words]
    shown = [shown_spec(word) if os.sep in word else word for word in words]
    return f"python scripts/{script} " + shlex.join(shown)


def machine(threads: int) -> dict:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": name, "cores": os.cpu_count(), "threads": threads, "system": platform.system(), "load": load}


def versions() -> dict:
    names = ("torch", "transformers", "transformers-walloc", "pillow", "numpy", "soundfile", "pytorch-msssim")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
