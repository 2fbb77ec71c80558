#!/usr/bin/env python
"""Bytes and speed of the ways to store a data set of latents, beside the given files.

    python -m research.benchmark_storage PHOTOS --images 60

One process on one thread, in processor time: what a data-loader worker does for a sample.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset

from transformers_walloc import WallocImageEncoder, latent_transform
from transformers_walloc.latents.datasets import encode_rows
from transformers_walloc.media.paths import IMAGE_SUFFIXES, find_files


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of images")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--codec", default="walloc/rgb-16x", help="Hub id or folder")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="default: as they are")
    parser.add_argument("--halo", type=int, default=0)
    parser.add_argument("--step", type=float, default=1.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    files = [Path(path).read_bytes() for path, _ in find_files([args.source], IMAGE_SUFFIXES)[: args.images]]
    images = [PIL.Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    count, pixels = len(images), sum(image.width * image.height for image in images)

    def speed(read) -> float:
        read(0)
        start = time.process_time()
        for i in range(count):
            read(i)
        return count / (time.process_time() - start)

    def decode(i: int, side: int | None) -> np.ndarray:
        image = PIL.Image.open(io.BytesIO(files[i])).convert("RGB")
        if side:
            image = image.resize((side, side), PIL.Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float32)

    def line(name: str, size: int, read, write: str) -> None:
        print(f"| {name} | {size / 1e6:.2f} | {8 * size / pixels:.3f} | {speed(read):.0f} | {write} |")

    print(f"{count} images, {pixels / count / 1e6:.2f} megapixels each, one process on one thread, processor time\n")
    print("| stored as | MB | bits per pixel | read/s | written/s |\n|---|---|---|---|---|")
    total = sum(map(len, files))
    line("the given files, decoded", total, lambda i: decode(i, None), "")
    line("the given files, decoded and resized to 224 x 224", total, lambda i: decode(i, 224), "")
    encoder = WallocImageEncoder.from_pretrained(args.codec)
    for storage in ("webp", "walloc", "int8"):
        start = time.process_time()
        rows = [encode_rows([image], encoder, storage, args.size, args.halo, args.step)[0] for image in images]
        written = count / (time.process_time() - start)
        latents = Dataset.from_dict({"latents": rows}).with_transform(latent_transform(encoder))
        size = sum(len(row["bytes"]) for row in rows)
        line(f"latents, {storage}", size, lambda i, rows=latents: rows[i], f"{written:.1f}")


if __name__ == "__main__":
    main()
