"""Time and peak memory of the command line on files of any size: a picture as TIFF, a recording as WAV.

    python -m research.measure_memory picture 100 200 [--decode]     # megapixels; a gigapixel: 1000
    python -m research.measure_memory audio 0.5 1 [--decode]         # hours of stereo; ten: 10
    python -m research.measure_memory picture 0.1 1 10 100 1000 --write

Makes each file from a photograph of scikit-image's, or from tones and noise, piece by piece on disk, compresses it and
decodes a window in processes of their own, and with --decode all of it; prints the peak memory of each process. --write
decodes all of it by the linear decoder, and up to 10 megapixels by the network as well; it keeps the numbers in
docs/results and puts the table of pictures into docs/guides/files.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from transformers_walloc import native
from transformers_walloc.atomic import write_atomically
from transformers_walloc.evaluation.machine import machine

from .pages import RESULTS, ROOT, between

CODECS = {"picture": "rgb-16x", "audio": "stereo-20x"}
RATE = 44_100
NETWORK_UP_TO = 10  # megapixels that --write decodes by the network: it takes a second for each
UNLIMITED = ("--max-pixels", "0", "--max-samples", "0")


def write_picture(path: Path, megapixels: float) -> str:
    """A photograph, tiled, with lines of noise between; never whole in memory."""
    import skimage.data
    import tifffile

    photograph, rng = skimage.data.astronaut(), np.random.default_rng(0)
    side = math.isqrt(round(megapixels * 1e6))
    repeats = -(-side // photograph.shape[1])

    def strips():
        for start in range(0, side, 64):
            rows = photograph[np.arange(start, min(start + 64, side)) % len(photograph)]
            strip = np.tile(rows, (1, repeats, 1))[:, :side]
            strip[0] = rng.integers(0, 256, strip[0].shape)
            yield strip.tobytes()

    tifffile.imwrite(path, strips(), shape=(side, side, 3), dtype=np.uint8, photometric="rgb", rowsperstrip=64)
    return f"{side} x {side} pixels"


def write_recording(path: Path, hours: float) -> str:
    """Gliding tones under noise, 16 bits; RF64 beyond 4 GB."""
    import soundfile

    rng, length = np.random.default_rng(0), round(hours * 3600 * RATE)
    kind = "RF64" if 4 * length > 2**32 - 2**25 else "WAV"
    with soundfile.SoundFile(str(path), "w", samplerate=RATE, channels=2, subtype="PCM_16", format=kind) as file:
        for start in range(0, length, RATE * 10):
            t = np.arange(start, min(start + RATE * 10, length)) / RATE
            glide = 2 * np.pi * (220 * t + 40 * np.sin(t))
            clip = 0.3 * np.stack([np.sin(glide), np.sin(1.5 * glide)], 1)
            file.write(clip * (0.5 + 0.5 * np.sin(t / 3))[:, None] + rng.normal(0, 0.01, clip.shape))
    return f"{length} samples of stereo"


def measure(what: str, *arguments: str) -> dict[str, float]:
    """Run the command line; print and return its seconds, seconds of processors, and the most megabytes it had."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "transformers_walloc", *arguments, "--device", "cpu"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    processor = usage.ru_utime + usage.ru_stime
    print(f"  {what:<34}{seconds:8.1f} s ({processor:7.1f} CPU){usage.ru_maxrss / 1e3:9.0f} MB", flush=True)
    if process.returncode:
        raise SystemExit(f"walloc {' '.join(arguments)} failed with status {process.returncode}")
    return {"seconds": seconds, "processor": processor, "megabytes": usage.ru_maxrss / 1e3}


def page_table(result: dict[str, Any]) -> str:
    """Markdown: seconds of processors and megabytes of each step, a line for each size."""
    steps = {"compress": "compress", "decompress a window": "a window", "decompress all --linear": "all, `--linear`"}
    steps["decompress all"] = "all, by the network"
    lines = [
        f"{result['codec']} on one {result['machine']['processor']}, load {result['machine']['load']:.0f} on "
        f"{result['machine']['cores']} cores: seconds of CPU and peak memory of the whole process.",
        "",
        f"| megapixels | {' | '.join(steps.values())} |",
        "|---:" * (1 + len(steps)) + "|",
    ]
    for row in result["rows"]:
        cells = [
            f"{row[step]['processor']:.3g} s, {row[step]['megabytes']:,.0f} MB" if step in row else "" for step in steps
        ]
        lines.append(f"| {row['size']:,g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CODECS)
    parser.add_argument("sizes", type=float, nargs="+", help="megapixels, or hours")
    parser.add_argument("--model", help="a codec for it")
    parser.add_argument("--decode", action="store_true", help="all of it, too, at the speed of the decoder")
    parser.add_argument("--folder", help="for the files, which are removed (default: the system's)")
    parser.add_argument("--write", action="store_true", help="also write docs/results/growth.json and the page")
    arguments = parser.parse_args(argv)
    if arguments.write and arguments.kind != "picture":
        parser.error("--write is for pictures")
    print(native.describe())
    codec, rows = arguments.model or CODECS[arguments.kind], []
    for size in arguments.sizes:
        row: dict[str, Any] = {"size": size}
        rows.append(row)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            is_picture = arguments.kind == "picture"
            source = Path(folder, "large.tif" if is_picture else "large.wav")
            name = (write_picture if is_picture else write_recording)(source, size)
            print(f"{name}, {source.stat().st_size / 1e6:.0f} MB", flush=True)
            walloc, model = str(source.with_suffix(".walloc")), ("--model", codec)
            row["compress"] = measure("compress", "compress", str(source), "-o", walloc, *model, *UNLIMITED)
            print(f"  {os.path.getsize(walloc) / 1e6:.2f} MB")
            part = str(Path(folder, "part.png" if is_picture else "part.wav"))
            corner = min(1000, math.isqrt(round(size * 1e6)) // 3)  # small pictures have smaller windows
            window = [*2 * (corner,), *2 * (min(512, corner),)] if is_picture else [RATE, 10 * RATE]
            options = [*model, *UNLIMITED, "--max-memory", "0"]
            what = "decompress a window"
            row[what] = measure(what, "decompress", walloc, "-o", part, *options, "--window", *map(str, window))
            flags = {"decompress all --linear": ["--linear"]} if arguments.decode or arguments.write else {}
            if arguments.decode or (arguments.write and size <= NETWORK_UP_TO):
                flags["decompress all"] = []
            for what, extra in flags.items():
                whole = Path(folder, f"whole{source.suffix}")
                row[what] = measure(what, "decompress", walloc, "-o", str(whole), *options, *extra)
                whole.unlink()
        if arguments.write:
            result = {"machine": machine(1), "codec": f"`{codec}`", "rows": rows}
            write_atomically(RESULTS / "growth.json", json.dumps(result, indent=1))
            page = ROOT / "docs" / "guides" / "files.md"
            write_atomically(page, between(page.read_text(), "growth", page_table(result)))


if __name__ == "__main__":
    main()
