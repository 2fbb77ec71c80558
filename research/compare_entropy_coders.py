#!/usr/bin/env python
"""Compare lossless coders on the codes of a WaLLoC codec: bytes, and speed on one core.

    OMP_NUM_THREADS=1 python -m research.compare_entropy_coders rgb-16x --data DIR [--bound 300] [--store]

DIR holds images or audio that neither codec nor tables were fitted to. Rows:

    order-0           entropy of each channel of each item, without the cost of the table: not a coder
    png webp tiff     the original's packing of latents into images (tiling; audio folded to rows of 128)
    webp, best tiling the smallest of RGB and grey tilings, chosen for each item
    jpeg-xl           lossless, effort 7, if `pillow-jxl-plugin` is installed: one grey tiling
    zlib lzma zstd    the codes as bytes, channel after channel
    generic           our coder without fitted tables; the 4 header bytes per channel are counted
    walloc            our coder with the checkpoint's tables, if it has any
    bound             with --bound: larger networks, fitted to the very codes that are measured. No tables fitted to
                      other data can be expected to reach it, so it bounds what more context or more fitting would give

Every coder's output is decoded and compared with the codes.
"""

import argparse
import datetime
import importlib.util
import io
import json
import lzma
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from research.pages import RESULTS
from research.report import coders_table
from transformers_walloc.atomic import write_atomically
from transformers_walloc.codec.entropy_coding import EntropyTables, decode_codes, encode_codes
from transformers_walloc.evaluation.machine import machine, shown_command, versions
from transformers_walloc.latents.packing import (
    codes_from_bytes,
    codes_from_image,
    codes_to_bytes,
    codes_to_image,
)
from transformers_walloc.loading import load_codec
from transformers_walloc.training.entropy_fitting import fit_entropy_tables
from transformers_walloc.training.fit_tables import codes_of_folder

Coder = tuple[Callable[[np.ndarray], bytes], Callable[[bytes, tuple[int, ...]], np.ndarray]]


def order0_bits(codes: np.ndarray) -> float:
    """Sum over the channels of count * entropy of the histogram, in bits."""
    bits = 0.0
    for channel in codes:
        counts = np.bincount(channel.ravel().astype(np.int64) + 128)
        counts = counts[counts > 0]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


def make_coders(tables: EntropyTables) -> dict[str, Coder]:
    """Lossless coders of codes by name, (encode, decode); only what can be had here."""

    def from_bytes(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(data, np.int8).reshape(shape)

    def with_tables(tables: EntropyTables) -> Coder:
        return lambda codes: encode_codes(codes, tables), lambda data, shape: decode_codes(data, shape, tables)

    coders: dict[str, Coder] = {
        "zlib": (lambda c: zlib.compress(c.tobytes(), 9), lambda d, s: from_bytes(zlib.decompress(d), s)),
        "lzma": (lambda c: lzma.compress(c.tobytes(), preset=9), lambda d, s: from_bytes(lzma.decompress(d), s)),
        "png": (lambda c: codes_to_bytes(c, "PNG"), codes_from_bytes),
        "tiff": (lambda c: codes_to_bytes(c, "TIFF"), codes_from_bytes),
        "webp": (lambda c: codes_to_bytes(c, "WEBP"), codes_from_bytes),
        "webp, best tiling": (_best_webp, _read_best_webp),
    }
    if importlib.util.find_spec("zstandard"):
        import zstandard

        coders["zstd"] = (
            lambda c: zstandard.ZstdCompressor(level=22).compress(c.tobytes()),
            lambda d, s: from_bytes(zstandard.ZstdDecompressor().decompress(d), s),
        )
    if importlib.util.find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401

        coders["jpeg-xl"] = (_jxl, lambda d, s: codes_from_image(Image.open(io.BytesIO(d)), s))
    coders["generic"] = with_tables(EntropyTables.default(tables.num_channels))
    if tables.ndim:
        coders["walloc"] = with_tables(tables)
    return coders


def compare(items: Sequence[np.ndarray], tables: EntropyTables, repeats: int = 3) -> list[dict]:
    """One row for each coder: bytes of all items, bits per code, codes per second each way (best of `repeats`)."""
    count = sum(item.size for item in items)
    bits = sum(order0_bits(item) for item in items)
    rows = [{"coder": "order-0", "bytes": bits / 8, "bits_per_code": bits / count}]
    for name, (encode, decode) in make_coders(tables).items():
        ours = name in ("generic", "walloc")
        size, encode_seconds, decode_seconds = 0, 0.0, 0.0
        for item in items:
            data, seconds = _timed(lambda encode=encode, item=item: encode(item), repeats if ours else 1)
            encode_seconds += seconds
            decoded, seconds = _timed(
                lambda decode=decode, data=data, item=item: decode(data, item.shape), repeats if ours else 1
            )
            decode_seconds += seconds
            if not np.array_equal(decoded, item):
                raise RuntimeError(f"{name} is not lossless")
            size += len(data)
        rows.append(
            {
                "coder": name,
                "bytes": size,
                "bits_per_code": 8 * size / count,
                "encode_mega_codes_per_s": count / encode_seconds / 1e6,
                "decode_mega_codes_per_s": count / decode_seconds / 1e6,
            }
        )
    return rows


def _timed(run: Callable, repeats: int):
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return result, best


def _best_webp(codes: np.ndarray) -> bytes:
    """The smaller of RGB and grey tilings, with a byte that says which."""
    files = [codes_to_bytes(codes, "WEBP")]
    grey = codes_to_image(codes, "L")
    out = io.BytesIO()
    grey.convert("RGB").save(out, "WEBP", lossless=True, quality=100, method=6)
    files.append(out.getvalue())
    best = min(range(2), key=lambda i: len(files[i]))
    return bytes([best]) + files[best]


def _read_best_webp(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    if data[0] == 0:
        return codes_from_bytes(data[1:], shape)
    return codes_from_image(Image.open(io.BytesIO(data[1:])).convert("RGB").getchannel(0), shape)


def _jxl(codes: np.ndarray) -> bytes:
    out = io.BytesIO()
    codes_to_image(codes, "L").save(out, "JXL", lossless=True, effort=7)
    return out.getvalue()


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help="bundled name, Hub id or checkpoint folder")
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--files", type=int, help="how many files, evenly spread; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every clip, from its middle; default: 30")
    parser.add_argument("--code-step", type=float, default=1.0, help="coarser codes; default: 1")
    parser.add_argument("--bound", type=int, metavar="STEPS", help="add the bound, with so many steps per network")
    parser.add_argument("--store", action="store_true", help="keep the result in docs/results for research.report")
    parser.add_argument("--data-name", metavar="NAME", help="what to call the data; default: the folder's name")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = load_codec(arguments.codec)
    kind = "image" if model.config.num_dims == 2 else "audio"
    items = list(
        codes_of_folder(model, processor, kind, arguments.data, arguments.files, arguments.seconds, arguments.code_step)
    )
    count = sum(item.size for item in items)
    rows = compare(items, model.get_entropy_tables())
    if arguments.bound:
        fitted = fit_entropy_tables(
            items, hidden=48, steps=arguments.bound, progress=lambda line: print(line, file=sys.stderr)
        )
        size = sum(len(encode_codes(item, fitted)) for item in items)
        rows.append({"coder": "bound", "bytes": size, "bits_per_code": 8 * size / count})
    codec = Path(arguments.codec).name
    print(f"{codec}: {len(items)} items, {count} codes")
    print(coders_table(rows))
    if arguments.store:
        result = {
            "codec": codec,
            "command": shown_command("python -m research.compare_entropy_coders", argv),
            "data": {"name": arguments.data_name or Path(arguments.data).name, "items": len(items), "codes": count},
            "rows": sorted(rows, key=lambda row: -row["bytes"]),
            "machine": machine(1) | {"clock": "processor time"},
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
        }
        write_atomically(RESULTS / f"coders_{codec}.json", json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
