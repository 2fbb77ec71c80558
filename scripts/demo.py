#!/usr/bin/env python
"""Put a photograph through a WaLLoC codec and write original and reconstruction side by side.

python scripts/demo.py [photo] [--model walloc/rgb-16x] [--output demo_output]
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

import transformers_walloc  # noqa: F401  registers the Auto classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", help="an image file; default: the astronaut of scikit-image")
    parser.add_argument("--model", default="walloc/rgb-16x", help="a Hub id or a folder")
    parser.add_argument("--output", default="demo_output", help="folder for what is written")
    args = parser.parse_args()
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
    both = Image.new("RGB", (photo.width * 2 + 8, photo.height), "white")
    both.paste(photo, (0, 0))
    both.paste(decoded, (photo.width + 8, 0))
    both.save(output / "side_by_side.png")

    original, reconstruction = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() for picture in (photo, decoded)
    )
    psnr = 10 * torch.log10(255**2 / (original - reconstruction).square().mean())
    numbers = photo.width * photo.height * 3
    print(f"photo        {photo.width} x {photo.height} pixels, {numbers:,} numbers, {numbers:,} bytes uncompressed")
    fewer = numbers / latents.numel()
    print(f"latents      {tuple(latents.shape[1:])}, {latents.numel():,} numbers: {fewer:.1f}x fewer")
    print(f"file         {len(blob):,} bytes: {numbers / len(blob):.1f}x smaller, {output / 'photo.walloc'}")
    print(f"PSNR         {psnr:.2f} dB")
    print(f"side by side {(output / 'side_by_side.png').resolve()}")


if __name__ == "__main__":
    main()
