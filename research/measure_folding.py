#!/usr/bin/env python
"""How far the tokens of a folded patch embedding are from those of the pixel model, for each halo.

    python -m research.measure_folding --codec walloc/rgb-16x [--images FOLDER]

The pixel model sees the codec's linear reconstruction, box resized. Filters are drawn at random: white noise, which is
the worst case, and the same smoothed over 5 x 5 pixels, which is nearer to what training makes of them. Errors are
relative to the standard deviation of the tokens. Without `--images`, four photographs of scikit-image are taken.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from transformers_walloc import WallocImageModel, WallocImageProcessor
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis
from transformers_walloc.latents.folding import (
    equal_cost_patch_size,
    exact_halo,
    fold_patch_embedding,
    resize_matrix,
)
from transformers_walloc.latents.values import LatentView
from transformers_walloc.media.paths import IMAGE_SUFFIXES, find_files

MAX_SIDE = 1024


def photographs(folder: str | None) -> list:
    if folder is not None:
        return [path for path, _ in find_files([folder], IMAGE_SUFFIXES)]
    import skimage.data

    return [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]


@torch.no_grad()
def relative_error(codec, images: list[torch.Tensor], weight: torch.Tensor, patch_size: int, halo: int) -> float:
    config, pixel_patch = codec.config, weight.shape[-1]
    folded, shift = fold_patch_embedding(weight, None, codec, patch_size, halo)
    error = energy = 0.0
    unit = patch_size * config.patch_size
    for x in images:
        height, width = (size // unit * unit for size in x.shape[2:])
        tokens = F.conv2d(
            LatentView(config, patch_size, halo).from_pixels(x[:, :, :height, :width], codec),
            folded.float(),
            shift.float(),
            stride=patch_size + 2 * halo,
        )
        # The reference has all the context it wants.
        far = 8 * config.patch_size
        extended = F.pad(x[:, :, :height, :width], (far,) * 4, mode="reflect")
        subbands = codec.decoder.linear(decompand(codec.encode(extended).latents, config.latent_bits))
        pixels = wavelet_packet_synthesis(subbands, config.num_levels, config.wavelet, config.boundary, 2)
        pixels = pixels[:, :, far:-far, far:-far]
        rows, columns = (
            torch.from_numpy(resize_matrix(size, size // unit * pixel_patch)).float() for size in (height, width)
        )
        expected = F.conv2d(2 * (rows @ pixels @ columns.T), weight, stride=pixel_patch)
        error += (tokens - expected).square().sum().item()
        energy += (expected - expected.mean((0, 2, 3), keepdim=True)).square().sum().item()
    return (error / energy) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="walloc/rgb-16x")
    parser.add_argument("--images", help="folder")
    parser.add_argument("--max-images", type=int, default=24)
    args = parser.parse_args()
    codec = WallocImageModel.from_pretrained(args.codec).eval()
    to_pixels = WallocImageProcessor(patch_size=1)
    images = [
        to_pixels(image, return_tensors="pt")["pixel_values"][:, :, :MAX_SIDE, :MAX_SIDE]
        for image in photographs(args.images)[: args.max_images]
    ]
    torch.manual_seed(0)
    print(f"{len(images)} images, {args.codec}\n")
    print("| pixel patch | latents per side | halo | inputs per token | white filters | smooth filters |")
    print("|---|---|---|---|---|---|")
    for pixel_patch in (16, 14):
        patch_size = equal_cost_patch_size(codec.config, pixel_patch)
        white = torch.randn(64, 3, pixel_patch, pixel_patch)
        smooth = F.avg_pool2d(F.pad(torch.randn(64, 3, pixel_patch, pixel_patch), (2,) * 4), 5, 1)
        exact = exact_halo(codec.config, patch_size, pixel_patch)
        for halo in sorted({*range(min(3, exact)), exact}):
            errors = [relative_error(codec, images, weight, patch_size, halo) for weight in (white, smooth)]
            inputs = codec.config.latent_channels * (patch_size + 2 * halo) ** 2
            cells = " | ".join(np.format_float_positional(e, 2, fractional=False) for e in errors)
            print(f"| {pixel_patch} | {patch_size} | {halo} | {inputs} | {cells} |")


if __name__ == "__main__":
    main()
