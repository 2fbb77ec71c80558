#!/usr/bin/env python
"""The first picture of README.md and of the documentation: a page of text, resized, and decoded from as many latents.

    python -m research.overview        # docs/pictures/overview.jpg

The page is scikit-image's photograph of a printed page, as RGB.
"""

import argparse
from pathlib import Path

import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont

from research.pages import ROOT
from transformers_walloc import WallocImageModel, WallocImageProcessor
from transformers_walloc.atomic import atomic_file

CODEC, GAP, CAPTION = "walloc/rgb-16x", 8, 26


@torch.inference_mode()
def panels() -> list[tuple[str, Image.Image]]:
    """(caption, picture) of the original, the resized one and WaLLoC's, whose numbers are equally many."""
    codec, processor = (cls.from_pretrained(CODEC) for cls in (WallocImageModel, WallocImageProcessor))
    page = Image.fromarray(skimage.data.page()).convert("RGB")
    factor, unit = round(codec.config.dimensionality_reduction**0.5), codec.config.patch_size
    width, height = (size // unit * unit for size in page.size)
    page = page.crop((0, 0, width, height))
    small = page.resize((width // factor, height // factor), Image.Resampling.LANCZOS)
    inputs = processor(page, return_tensors="pt")
    codes = codec.quantize(codec.encode(inputs["pixel_values"]).latents)
    (decoded,) = processor.post_process(codec.decode(codes).pixel_values, original_sizes=inputs["original_sizes"])
    assert codes.numel() == 3 * small.width * small.height
    return [
        (f"original: {3 * width * height:,} numbers", page),
        (f"resized: {codes.numel():,} numbers", small.resize(page.size, Image.Resampling.BICUBIC)),
        (f"WaLLoC: {codes.numel():,} numbers", decoded),
    ]


def draw(found: list[tuple[str, Image.Image]]) -> Image.Image:
    width, height = found[0][1].size
    sheet = Image.new("RGB", (len(found) * (width + GAP) - GAP, height + CAPTION), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for index, (caption, picture) in enumerate(found):
        left = index * (width + GAP)
        pen.text((left + width / 2, 1), caption, "black", font, anchor="ma")
        sheet.paste(picture, (left, CAPTION))
    return sheet


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "overview.jpg", metavar="JPG")
    args = parser.parse_args(argv)
    with atomic_file(args.out) as path:
        draw(panels()).save(path, "JPEG", quality=85, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
