#!/usr/bin/env python
"""Hold photographs out of a training corpus: some to choose by, others that decide nothing.

    python -m research.corpora.hold_out /data/corpus/images /data/photos --out /data/held

makes three folders in OUT. `train/<name of the source>/` links to the photographs that stay for training.
`validation/` and `unseen/` hold the others as lossless PNG with a short side of 512 pixels, downscaled at least 1.4
times so that little is left of an earlier compression. Checkpoints, shapes and rates are chosen on `validation`;
`unseen` is measured once, at the end. The same files and seed give the same folders.
"""

import argparse
import random
import sys
from pathlib import Path

from PIL import Image, ImageOps
from tqdm.auto import tqdm

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
SHORT_SIDE, MIN_SCALE = 512, 1.4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the three parts, made anew")
    parser.add_argument("--count", type=int, default=24, help="of photographs in each held-out part (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists already")
    files = {source: sorted(f for f in source.rglob("*") if f.suffix.lower() in SUFFIXES) for source in args.sources}
    large = {source: [f for f in found if _short_side(f) >= SHORT_SIDE * MIN_SCALE] for source, found in files.items()}
    total = sum(map(len, large.values()))
    if total < 4 * args.count:
        parser.error(
            f"{total} photographs have {SHORT_SIDE * MIN_SCALE:.0f} pixels a side; {4 * args.count} are needed"
        )

    generator = random.Random(args.seed)
    held: set[Path] = set()
    for part in ("validation", "unseen"):
        (args.out / part).mkdir(parents=True)
        chosen = []
        for source in args.sources:  # in proportion to what each has
            free = [f for f in large[source] if f not in held]
            chosen += generator.sample(free, round(args.count * len(large[source]) / total))
        for number, file in enumerate(tqdm(chosen, desc=part, unit="file")):
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
            scale = SHORT_SIDE / min(image.size)
            image = image.resize([round(scale * side) for side in image.size], Image.Resampling.LANCZOS)
            image.save(args.out / part / f"{number:02d}_{file.stem}.png")
        held.update(chosen)
    for source, found in files.items():
        for file in found:
            if file not in held:
                link = args.out / "train" / source.name / file.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
    print(f"{sum(map(len, files.values()))} photographs: {len(held)} held out, the rest linked in {args.out / 'train'}")
    return 0


def _short_side(file: Path) -> int:
    with Image.open(file) as image:
        return min(image.size)


if __name__ == "__main__":
    sys.exit(main())
