#!/usr/bin/env python
"""How far augmenting latents is from augmenting pixels and encoding them again, on photographs.

    python -m research.measure_augmentation --codec walloc/rgb-f16c48 [--images FOLDER]

The error is the root mean square of the difference of the latents, as a share of what the augmentation changes. Pixels
are squeezed to 0.1 ... 0.8 first, so that nothing is clipped. Without `--images`, four photographs of scikit-image.
"""

import argparse

import torch

from research.measure_folding import photographs
from transformers_walloc import LatentAugmentation, WallocImageModel, WallocImageProcessor, transform_latents
from transformers_walloc.codec.image_colours import LUMA
from transformers_walloc.codec.symmetries import SYMMETRIES, move_grid
from transformers_walloc.latents.augmentation import colour_matrix

CHANGES = (
    {"brightness": 0.7},
    {"brightness": 1.25},
    {"contrast": 0.6},
    {"contrast": 1.25},
    {"saturation": 0.5},
    {"saturation": 1.4},
    {"hue": 0.05},
    {"hue": 0.1},
)


def changed_pixels(unit: torch.Tensor, name: str, value: float) -> torch.Tensor:
    """Pixels in [0, 1] as torchvision's functions change them; the hue turns about the axis of greys."""
    if name == "brightness":
        return value * unit
    if name == "contrast":
        grey = torch.einsum("c,bchw->bhw", torch.tensor(LUMA), unit).mean((1, 2))[:, None, None, None]
        return value * unit + (1 - value) * grey
    return torch.einsum("pc,bchw->bphw", colour_matrix(**{name: value}), unit)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="walloc/rgb-f16c48")
    parser.add_argument("--images", help="folder")
    parser.add_argument("--max-images", type=int, default=24)
    args = parser.parse_args()
    codec = WallocImageModel.from_pretrained(args.codec).eval()
    to_pixels = WallocImageProcessor(patch_size=codec.config.patch_size)
    images = [
        0.1 + 0.7 * (to_pixels(image, return_tensors="pt")["pixel_values"][:, :, :1024, :1024] + 0.5)
        for image in photographs(args.images)[: args.max_images]
    ]
    augment = LatentAugmentation(codec)
    print(f"{len(images)} images, {args.codec}\n\n| augmentation | error, % of the change |\n|---|---:|")
    latents = [codec.encode(unit - 0.5).latents for unit in images]
    for change in CHANGES:
        ((name, value),) = change.items()
        wrong = changed = 0.0
        for unit, before in zip(images, latents, strict=True):
            after = codec.encode(changed_pixels(unit, name, value) - 0.5).latents
            wrong += (augment.adjust(before, **change) - after).square().sum().item()
            changed += (after - before).square().sum().item()
        print(f"| {name} {value:g} | {100 * (wrong / changed) ** 0.5:.3g} |")
    if codec.config.latent_symmetry is None:
        return
    worst = 0.0
    for unit, before in zip(images, latents, strict=True):
        for name in SYMMETRIES:
            after = codec.encode((move_grid(unit, name) - 0.5).contiguous()).latents
            worst = max(worst, (transform_latents(before, codec.config, name) - after).abs().max().item())
    print(f"\nthe eight symmetries: at most {worst:.1g} of latents that go up to {max(map(_largest, latents)):.0f}")


def _largest(latents: torch.Tensor) -> float:
    return latents.abs().max().item()


if __name__ == "__main__":
    main()
