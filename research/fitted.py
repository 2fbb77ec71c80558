#!/usr/bin/env python
"""What `walloc fit` made and the package brings: measured on other data, and made again from its own options.

    python -m research.fitted measure gray-16x kodak [--limit 24]      # a line of a table: PSNR, size, a lossless peer
    python -m research.fitted reproduce gray-16x --root corpora         # is the fit's result the same, bit for bit?

`measure` reads every file as the codec takes it (gray, mono, its sampling rate), writes finished files and decodes
them. Audio is normalised to a peak of 0.5 as by the feature extractor; raw samples have the bits and the rate of the
original. The lossless peer is JPEG XL for gray, JPEG 2000 band by band for other rasters, FLAC for audio.

`reproduce` repeats the fit that fit.json of the codec records, with its paths below --root, and compares every tensor
and the configuration. The sampling of crops is seeded and the arithmetic that of one thread, so that it may run on any
number of threads. Exit code 1 if something differs.
"""

import argparse
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import soundfile
import torch
from safetensors.numpy import load_file

from transformers_walloc.bundled import bundled_path
from transformers_walloc.loading import load_codec
from transformers_walloc.media.paths import find_files
from transformers_walloc.media.rasters import compress_raster, decompress_raster, describe
from transformers_walloc.training.fit import fit_codec
from transformers_walloc.training.fit_signals import read_signals


def measure(name: str, data: list[str], limit: int | None) -> dict[str, float]:
    """Means over the signals of folders or files: PSNR, and sizes over all of them together."""
    model, processor = load_codec(name)
    config = model.config
    audio = config.num_dims == 1
    paths = [path for path, _ in find_files(data, (".wav", ".flac", ".ogg") if audio else (".png", ".jpg", ".tif"))]
    paths = paths[:: max(1, len(paths) // limit)][:limit] if limit else paths
    values, coded, raw, lossless, seconds = [], 0, 0, 0, 0.0
    options: dict[str, Any] = {"sampling_rate": config.sampling_rate} if audio else {}
    for signal in read_signals(paths, num_channels=1 if config.num_channels == 1 else None, **options):
        if audio:
            inputs = processor(signal.values, sampling_rate=config.sampling_rate, return_tensors="pt")
            blob = model.compress(**inputs)[0]
            restored = model.decompress([blob])[0].numpy()
            span = 2 * float(np.abs(signal.values - signal.values.mean()).max())
            original, rate = soundfile.read(signal.name, dtype="int16", always_2d=True)
            original = original[:, :1]
            raw, lossless = raw + original.nbytes, lossless + _flac(original, rate)
            seconds += len(original) / rate
        else:
            blob = compress_raster(model, signal.values, describe(signal.values, "channels_first"))
            restored, raster = decompress_raster(model, blob)
            span = raster.high - raster.low
            raw, lossless = raw + signal.values.nbytes, lossless + sum(map(_lossless, signal.values))
        error = np.mean(((signal.values.astype(np.float64) - restored) / span) ** 2)
        values.append(-10 * math.log10(max(error, 1e-12)))
        coded += len(blob)
    result = {"signals": len(values), "psnr": float(np.mean(values)), "cr": raw / coded, "lossless_cr": raw / lossless}
    return result | ({"kbps": 8 * coded / seconds / 1000} if audio else {})


def _lossless(plane: np.ndarray) -> int:
    file = io.BytesIO()
    if plane.dtype == np.uint8:
        import pillow_jxl  # noqa: F401 - registers the format

        PIL.Image.fromarray(plane).save(file, "JXL", lossless=True)
    else:
        PIL.Image.fromarray(plane).save(file, "JPEG2000", irreversible=False)
    return len(file.getvalue())


def _flac(samples: np.ndarray, rate: int) -> int:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return len(file.getvalue())


def reproduce(name: str, root: str) -> list[str]:
    """What differs between a bundled codec and a fit with the same options; nothing if they are the same."""
    folder = bundled_path(name)
    options = dict(json.loads((folder / "fit.json").read_text())["options"])
    for key in ("data", "validation"):
        if key in options:
            options[key] = [str(Path(root) / path) for path in options[key]]
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / name
        fit_codec(**options, output=again)
        return differences(folder, again)


def differences(one: Path, other: Path) -> list[str]:
    """Tensors and entries of the configuration that two model folders do not share bit for bit."""
    tensors = [load_file(folder / "model.safetensors") for folder in (one, other)]
    settings = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    for config in settings:
        config.pop("transformers_version", None)
    found = []
    for first, second in (tensors, settings):
        for key in sorted(first.keys() | second.keys()):
            same = key in first and key in second and _bits(first[key]) == _bits(second[key])
            if not same:
                found.append(key)
    return found


def _bits(value: Any) -> Any:
    return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("name", help="bundled name or folder")
    measuring.add_argument("data", nargs="+")
    measuring.add_argument("--limit", type=int, help="evenly chosen files")
    again = commands.add_parser("reproduce")
    again.add_argument("name")
    again.add_argument("--root", default=".", help="where the paths of fit.json start")
    again.add_argument("--threads", type=int, help="default: those of the machine")
    arguments = parser.parse_args(argv)
    if arguments.command == "measure":
        print(json.dumps({"codec": arguments.name} | measure(arguments.name, arguments.data, arguments.limit)))
        return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found = reproduce(arguments.name, arguments.root)
    print(f"{arguments.name}: {'differs in ' + ', '.join(found) if found else 'the same, bit for bit'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
