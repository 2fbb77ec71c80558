#!/usr/bin/env python
"""Put a photograph through a WaLLoC codec; the original, resizing to as many numbers and WaLLoC come side by side.

python scripts/demo.py [photo] [--model walloc/rgb-16x] [--output demo_output]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

import transformers_walloc  # noqa: F401  registers the Auto classes
from transformers_walloc.evaluation.compare import resized_to_as_many, side_by_side
from transformers_walloc.evaluation.metrics import psnr

SHOWN = 768  # pixels of a side; of larger photographs the centre


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", help="an image file; default: the astronaut of scikit-image")
    parser.add_argument("--model", default="walloc/rgb-16x", help="a Hub id or a folder")
    parser.add_argument("--output", default="demo_output", help="folder for what is written")
    args = parser.parse_args(arguments)
    logging.disable_progress_bar()

    if args.photo:
        photo = ImageOps.exif_transpose(Image.open(args.photo)).convert("RGB")
    else:
        from skimage import data

        photo = Image.fromarray(data.astronaut())

    processor = AutoImageProcessor.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model)
    inputs = processor(photo, return_tensors="pt")
    with torch.inference_mode():
        latents = model.encode(inputs["pixel_values"]).latents
        blob = model.compress(**inputs)[0]
        pixels = model.decompress([blob])
    decoded = processor.post_process(pixels)[0]

    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "photo.walloc").write_bytes(blob)
    original, restored = np.asarray(photo), np.asarray(decoded)
    numbers, fewer = original.size, original.size / latents.numel()
    quality = psnr(original, restored)
    panels = [(f"original: {numbers:,} numbers", original)]
    for title, _, _, resized in resized_to_as_many(original, model.config.dimensionality_reduction):
        panels.append((f"{title}: {fewer:.3g}x fewer numbers, {psnr(original, resized):.2f} dB", resized))
    panels.append((f"WaLLoC: {fewer:.3g}x fewer numbers, {quality:.2f} dB", restored))
    side_by_side(panels, SHOWN).save(output / "side_by_side.png")

    print(f"photo        {photo.width} x {photo.height} pixels, {numbers:,} numbers, {numbers:,} bytes uncompressed")
    print(f"latents      {tuple(latents.shape[1:])}, {latents.numel():,} numbers: {fewer:.1f}x fewer")
    print(f"file         {len(blob):,} bytes: {numbers / len(blob):.1f}x smaller, {output / 'photo.walloc'}")
    print(f"PSNR         {quality:.2f} dB")
    print(f"side by side {(output / 'side_by_side.png').resolve()}")


if __name__ == "__main__":
    main()
