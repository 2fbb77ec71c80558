#!/usr/bin/env python
"""Copies of pictures that are small enough to travel to a machine without a network.

    python -m research.corpora.shrink /data/corpus/images --out /data/small/images --short-side 720 --quality 80

Each picture is made smaller, where it is larger, and stored as AVIF with chroma at full resolution; crops for training
are taken at half to all of that size, so little of what the format loses is left. Run it again to go on where it was
stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from transformers_walloc.atomic import atomic_file
from transformers_walloc.media.paths import IMAGE_SUFFIXES, list_files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of pictures, with what is below it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the copies, made if need be")
    parser.add_argument("--short-side", type=int, default=720, help="pixels at most (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=80, help="of AVIF, 0 to 100 (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="only every so many files (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.short_side < 8 or not 0 <= args.quality <= 100 or args.every < 1:
        parser.error("--short-side must be at least 8, --quality 0 to 100, --every at least 1")
    try:
        files = list_files(args.folder, IMAGE_SUFFIXES)[:: args.every]
    except ValueError as error:
        parser.error(str(error))
    jobs = []
    for file in files:
        copy = args.out / f"{'-'.join(file.relative_to(args.folder).parts)}.avif"
        if not copy.exists():
            jobs.append((file, copy, args.short_side, args.quality))
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.workers) as pool:
        for _ in tqdm(pool.map(_shrink, jobs), total=len(jobs), unit="file"):
            pass
    total = sum(copy.stat().st_size for copy in args.out.glob("*.avif"))
    print(f"{args.out}: {len(files)} pictures, {total / 1e6:.1f} MB")
    return 0


def _shrink(job: tuple[Path, Path, int, int]) -> None:
    file, copy, short_side, quality = job
    with Image.open(file) as image:
        picture = image.convert("RGB")
    factor = short_side / min(picture.size)
    if factor < 1:
        picture = picture.resize([round(factor * size) for size in picture.size], Image.Resampling.LANCZOS)
    with atomic_file(copy) as partial:
        picture.save(partial, format="AVIF", quality=quality, subsampling="4:4:4", speed=7, max_threads=1)


if __name__ == "__main__":
    sys.exit(main())
