#!/usr/bin/env python
"""How much the picture that `latents_to_pixels` makes of latents looks like the image.

    python -m research.measure_picture --codec walloc/rgb-16x [--images FOLDER] [--out PICTURE.png]

For the plain layout and the orthogonal picture, of values on each scale: the share of the resized
image's variance that one gain and one offset per colour explain of it, and the correlation of neighbouring pixels,
which convolutions live on. Without `--images`, four photographs of scikit-image are taken.
"""

import argparse

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from research.measure_folding import MAX_SIDE, photographs
from transformers_walloc import LatentView, WallocImageModel, WallocImageProcessor, latents_to_pixels
from transformers_walloc.latents.picture import picture_rotation


def explained(picture: torch.Tensor, target: torch.Tensor) -> float:
    """Share of the target's variance; both (3, positions)."""
    centred, wanted = (x - x.mean(1, keepdim=True) for x in (picture, target))
    gain = (centred * wanted).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
    return 1 - ((wanted - gain * centred).square().sum() / wanted.square().sum()).item()


def neighbours(pictures: list[torch.Tensor]) -> float:
    """Mean correlation of a pixel with the next, along both axes."""
    pairs = [
        (x[..., :-1].flatten(), x[..., 1:].flatten())
        for picture in pictures
        for x in (picture, picture.transpose(-1, -2))
    ]
    return float(np.mean([np.corrcoef(a.numpy(), b.numpy())[0, 1] for a, b in pairs]))


def to_image(picture: torch.Tensor, like: torch.Tensor) -> PIL.Image.Image:
    """Eight bits, with the mean and the deviation that each colour of the resized image has."""
    x = (picture - picture.mean((1, 2), keepdim=True)) / picture.std((1, 2), keepdim=True)
    x = x * like.std((1, 2), keepdim=True) + like.mean((1, 2), keepdim=True) + 0.5
    return PIL.Image.fromarray((x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="walloc/rgb-16x")
    parser.add_argument("--images", help="folder")
    parser.add_argument("--max-images", type=int, default=24)
    parser.add_argument("--out", help="PNG of the first image: resized, plain layout, orthogonal picture")
    args = parser.parse_args()
    codec = WallocImageModel.from_pretrained(args.codec).eval()
    to_pixels = WallocImageProcessor(patch_size=codec.config.patch_size)
    images = [
        to_pixels(image, return_tensors="pt")["pixel_values"][:, :, :MAX_SIDE, :MAX_SIDE]
        for image in photographs(args.images)[: args.max_images]
    ]
    print(f"{len(images)} images, {args.codec}\n")
    print("| picture | of values | explains of the resized image | correlation of neighbours |")
    print("|---|---|---|---|")
    panels = []
    for scale in ("corpus", "partial", "none"):
        view = LatentView.scaled(codec.config, scale)
        for name, rotation in (("plain layout", None), ("orthogonal", picture_rotation(codec, view))):
            pictures = [latents_to_pixels(view.from_pixels(x, codec), rotation=rotation)[0] for x in images]
            factor = images[0].shape[2] // pictures[0].shape[1]
            targets = [F.avg_pool2d(x, factor)[0] for x in images]
            share = explained(*(torch.cat([x.flatten(1) for x in xs], 1) for xs in (pictures, targets)))
            print(f"| {name} | {scale} | {100 * share:.1f}% | {neighbours(pictures):.3f} |")
            if scale == "none":
                panels.append(to_image(pictures[0], targets[0]))
    print(f"| the resized image | | 100.0% | {neighbours(targets):.3f} |")
    if args.out:
        panels = [to_image(targets[0], targets[0]), *panels]
        whole = PIL.Image.new("RGB", (sum(p.width + 4 for p in panels) - 4, panels[0].height), "white")
        for i, panel in enumerate(panels):
            whole.paste(panel, (i * (panel.width + 4), 0))
        whole.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
