"""Time and peak memory of coding a picture of any size in bands: a gigapixel by default.

    python -m research.measure_memory [--megapixels 1000] [--model rgb-16x] [--decode]

The picture is a photograph of scikit-image's, tiled and never whole in memory. Without --decode only a window of the
file is decoded, which decodes all of its codes; with it every band is, at the speed of the decoder.
"""

from __future__ import annotations

import argparse
import math
import resource
import time

import numpy as np
import torch

from transformers_walloc import WallocImageModel, bundled_path, native
from transformers_walloc.codec.bands import compress_rows, decompress_rows


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(argv: list[str] | None = None) -> None:
    import skimage.data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=1000)
    parser.add_argument("--model", default="rgb-16x")
    parser.add_argument("--decode", action="store_true", help="all of it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    photograph = skimage.data.astronaut()
    model = WallocImageModel.from_pretrained(bundled_path(arguments.model)).eval()
    side = math.isqrt(round(arguments.megapixels * 1e6))
    tiles = -(-side // photograph.shape[1])

    def read(start: int, stop: int) -> np.ndarray:
        rows = photograph[np.arange(start, stop) % len(photograph)]
        return np.tile(rows, (1, tiles, 1))[:, :side]

    def report(what: str, begin: float, pixels: float) -> None:
        seconds = time.perf_counter() - begin
        print(
            f"{what:<40}{seconds:9.1f} s{pixels / 1e6 / seconds:9.2f} MP/s   peak {peak_megabytes():7.0f} MB",
            flush=True,
        )

    print(f"{native.describe()}\n{side} x {side} pixels, {arguments.threads} threads; start {peak_megabytes():.0f} MB")
    begin = time.perf_counter()
    blob = compress_rows(model, side, side, read)
    report(f"compressed to {len(blob) / 1e6:.1f} MB", begin, side**2)
    size = min(side, 512)
    window = ((side - size) // 2, (side - size) // 2, size, size)
    begin = time.perf_counter()
    rows = np.concatenate(list(decompress_rows(model, blob, window=window, max_memory=None)))
    report(f"a window of {size} x {size} decoded", begin, size**2)
    original = read(window[0], window[0] + size)[:, window[1] : window[1] + size]
    error = np.mean((rows.astype(float) - original) ** 2)
    print(f"PSNR of the window: {10 * math.log10(255**2 / error):.2f} dB")
    if arguments.decode:
        begin, count = time.perf_counter(), 0
        for rows in decompress_rows(model, blob, max_memory=None):
            count += rows.shape[0] * rows.shape[1]
        report("all decoded", begin, count)


if __name__ == "__main__":
    main()
