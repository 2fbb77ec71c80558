#!/usr/bin/env python
"""Turn a data set of images into one of WaLLoC latents: a folder of images, a saved data set or a repository.

    python -m transformers_walloc.latents.compress_dataset PHOTOS LATENTS --codec walloc/rgb-16x --num_proc 8
    python -m transformers_walloc.latents.compress_dataset beans latents --size 896 896 --push_to_hub user/beans-latents

The same command continues an interrupted run. Reading it back:

    dataset = load_dataset("latents", split="train").with_transform(latent_transform("walloc/rgb-16x"))

With `--benchmark N` the first N images are stored in all ways in memory and the table of bytes and images per second is
printed.
"""

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Image, load_dataset, load_from_disk
from datasets.utils.logging import disable_progress_bar
from huggingface_hub import HfApi
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_walloc import WallocImageEncoder
from transformers_walloc.latents.datasets import encode_image, latent_transform, write_latent_dataset
from transformers_walloc.media import IMAGE_SUFFIXES


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of images, folder of save_to_disk, or Hub id of a data set")
    parser.add_argument("output", help="folder to write; load_dataset reads it")
    parser.add_argument("--codec", default="walloc/rgb-16x", help="Hub id or folder")
    parser.add_argument("--storage", choices=["webp", "walloc", "int8"], default="webp")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="resize to; default: as they are"
    )
    parser.add_argument("--halo", type=int, default=0, help="latents on each side beyond the image")
    parser.add_argument("--step", type=float, default=1.0, help="width of a quantisation cell")
    parser.add_argument("--split", nargs="*", help="default: all")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--shard_rows", type=int, default=1000)
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--device", help="of the encoder, as cuda; default: cpu")
    parser.add_argument("--push_to_hub", metavar="REPOSITORY", help="upload the result")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--benchmark", type=int, default=0, metavar="N", help="compare ways to store N images")
    return parser.parse_args(argv)


def load(source: str) -> dict:
    """Splits by name."""
    if Path(source, "dataset_info.json").exists() or Path(source, "dataset_dict.json").exists():
        loaded = load_from_disk(source)
    elif Path(source).is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in Path(source).rglob("*")):
        loaded = load_dataset("imagefolder", data_dir=source)
    else:
        loaded = load_dataset(source)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def stored_bytes(row: dict) -> bytes:
    return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()


def benchmark(original, args) -> None:
    """One process, one thread: what a data-loader worker does for a sample."""
    torch.set_num_threads(1)
    count = min(args.benchmark, len(original))
    undecoded = original.select(range(count)).cast_column(args.image_column, Image(decode=False))
    files = [stored_bytes(row[args.image_column]) for row in undecoded]
    images = [PIL.Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    pixels = sum(image.width * image.height for image in images)

    def speed(read) -> float:
        read(0)
        start = time.perf_counter()
        for i in range(count):
            read(i)
        return count / (time.perf_counter() - start)

    def decode(i: int, side: int | None) -> np.ndarray:
        image = PIL.Image.open(io.BytesIO(files[i])).convert("RGB")
        if side:
            image = image.resize((side, side), PIL.Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float32)

    def line(name: str, size: int, read, write: str) -> None:
        print(f"| {name} | {size / 1e6:.2f} | {8 * size / pixels:.3f} | {speed(read):.0f} | {write} |")

    print(f"{count} images, {pixels / count / 1e6:.2f} megapixels each, one process on one thread\n")
    print("| stored as | MB | bits per pixel | read/s | written/s |\n|---|---|---|---|---|")
    total = sum(map(len, files))
    line("the given files, decoded", total, lambda i: decode(i, None), "")
    line("the given files, decoded and resized to 224 x 224", total, lambda i: decode(i, 224), "")
    encoder = WallocImageEncoder.from_pretrained(args.codec)
    for storage in ("webp", "walloc", "int8"):
        start = time.perf_counter()
        rows = [encode_image(image, encoder, storage, args.size, args.halo, args.step) for image in images]
        written = count / (time.perf_counter() - start)
        latents = Dataset.from_dict({"latents": rows}).with_transform(latent_transform(encoder))
        size = sum(len(row["bytes"]) for row in rows)
        line(f"latents, {storage}", size, lambda i, rows=latents: rows[i], f"{written:.1f}")


def main(argv=None) -> None:
    args = parse_arguments(argv)
    splits = load(args.source)
    disable_progress_bar()  # one bar for all shards is enough
    logging.disable_progress_bar()
    for name in args.split or splits:
        if name not in splits:
            sys.exit(f"no split {name!r}; the data set has {', '.join(splits)}")
        progress = tqdm(total=len(splits[name]), desc=name, unit=" images")
        done = write_latent_dataset(
            splits[name], args.output, args.codec, name, args.image_column, args.shard_rows, args.num_proc, args.device,
            storage=args.storage, size=args.size, halo=args.halo, step=args.step,
        )  # fmt: skip
        try:
            for rows in done:
                progress.update(rows - progress.n)
        except ValueError as error:
            sys.exit(f"{name}: {error}")
        progress.close()
    size = sum(path.stat().st_size for path in Path(args.output, "data").glob("*.parquet"))
    print(f"{args.output}: {size / 1e6:.2f} MB of Parquet")
    if args.benchmark:
        benchmark(splits[(args.split or list(splits))[0]], args)
    if args.push_to_hub:
        api = HfApi()
        api.create_repo(args.push_to_hub, repo_type="dataset", private=args.private, exist_ok=True)
        api.upload_folder(
            repo_id=args.push_to_hub, folder_path=args.output, repo_type="dataset", ignore_patterns=["*.partial"]
        )


if __name__ == "__main__":
    main()
