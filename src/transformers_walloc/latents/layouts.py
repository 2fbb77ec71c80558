"""How models take patches: as an image, as rows of flattened patches, as several images a sample."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.nn.utils.rnn import pad_sequence

Layout = Literal["image", "nested", "masked", "tiles", "rows", "padded_rows", "patches", "naflex", "positions"]


def model_inputs(
    windows: Sequence[torch.Tensor] | torch.Tensor,
    kernel_size: int,
    layout: Layout = "image",
    merge_size: int = 1,
    counts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Windows of latents as keyword arguments of a model, under the names that it has for pixels.

    * `image`: (B, channels, height, width).
    * `nested`: (B, images, channels, height, width), filled up with zeros, for Idefics3 and its kin.
    * `masked`: the same, with a `pixel_attention_mask` (B, images) of those that are there, for Granite-Docling.
    * `tiles`: (B, tiles, channels, height, width), the overview of an image first, filled up with zeros, with
      `image_sizes`, for LLaVA-OneVision. Without `counts` an image is its own overview and only tile.
    * `rows`: (patches of all images, channels * k * k) in the order of `flatten_patches`, with `image_grid_thw`, for
      Qwen and GLM; `padded_rows` (B, patches, ...), filled up with zeros, for ColQwen2.
    * `patches`: (patches of all images, channels, k, k), line by line, with `image_grid_thw`, for PaddleOCR-VL.
    * `naflex`: (B, patches, k * k * channels), filled up with zeros, with `pixel_attention_mask` and `spatial_shapes`,
      for SigLIP 2.
    * `positions`: (B, patches, `padded_row_length`) with `image_position_ids`, for Gemma 4.

    Args:
        windows: of each image, (channels, gh * kernel_size, gw * kernel_size).
        kernel_size: latents per side of a window, k.
        merge_size: patches per side of a token, where the model merges them.
        counts: of `nested` and `masked`, images of each sample; of `tiles`, those of each image. One each by default.

    Raises:
        ValueError: an unknown layout, images of different sizes in a batch that must be of one.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; valid: {', '.join(get_args(Layout))}")
    grids = [tuple(size // kernel_size for size in image.shape[1:]) for image in windows]
    if layout in ("image", "nested", "masked", "tiles"):
        if any(grid != grids[0] for grid in grids):
            sizes = ", ".join(f"{gh}x{gw}" for gh, gw in grids)
            raise ValueError(f"images of different sizes in one batch ({sizes} patches); use do_resize")
        batch = windows if isinstance(windows, torch.Tensor) else torch.stack(list(windows))
        if layout == "image":
            return {"pixel_values": batch}
        if layout == "tiles" and counts is not None:
            return {"pixel_values": pad_sequence(batch.split(list(counts)), batch_first=True)}
        if layout == "tiles":
            image_sizes = torch.tensor([image.shape[1:] for image in windows], device=batch.device)
            return {"pixel_values": torch.stack([batch, batch], 1), "image_sizes": image_sizes}
        counts = list(counts or [1] * len(batch))
        nested = {"pixel_values": pad_sequence(batch.split(counts), batch_first=True)}
        if layout == "masked":
            there = [torch.ones(count, dtype=torch.bool, device=batch.device) for count in counts]
            nested["pixel_attention_mask"] = pad_sequence(there, batch_first=True)
        return nested
    device = windows[0].device
    grid_thw = torch.tensor([(1, *grid) for grid in grids], device=device)
    if layout in ("rows", "padded_rows"):
        rows = [flatten_patches(image[None], kernel_size, merge_size)[0] for image in windows]
        merged = torch.cat(rows) if layout == "rows" else pad_sequence(rows, batch_first=True)
        return {"pixel_values": merged, "image_grid_thw": grid_thw}
    k = kernel_size
    if layout == "patches":
        patches = [rearrange(image, "c (gh i) (gw j) -> (gh gw) c i j", i=k, j=k) for image in windows]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grid_thw}
    rows = [rearrange(image, "c (gh i) (gw j) -> (gh gw) (i j c)", i=k, j=k) for image in windows]
    if layout == "naflex":
        mask = pad_sequence([torch.ones(len(r), dtype=torch.int32, device=device) for r in rows], batch_first=True)
        filled = pad_sequence(rows, batch_first=True)
        return {"pixel_values": filled, "pixel_attention_mask": mask, "spatial_shapes": grid_thw[:, 1:]}
    # The model computes 2 (x - 1/2) before it projects: let that give values, a one, and zeros.
    rows = [F.pad(F.pad(r, (0, 1), value=1.0), (0, padded_row_length(r.shape[1]) - r.shape[1] - 1)) for r in rows]
    columns = [torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid)).flip(1) for grid in grids]
    return {
        "pixel_values": pad_sequence([r / 2 + 0.5 for r in rows], batch_first=True),
        "image_position_ids": pad_sequence(columns, batch_first=True, padding_value=-1),  # x, y
    }


def padded_row_length(numbers: int) -> int:
    """Length of a row of Gemma 4, whose patches are 3 K K numbers by its code: room for the numbers of a window and a
    one that makes up for the bias that the model does not have."""
    return 3 * padded_patch_size(numbers) ** 2


def padded_patch_size(numbers: int) -> int:
    """K of `padded_row_length`."""
    return math.ceil(math.sqrt((numbers + 1) / 3))


def flatten_patches(windows: torch.Tensor, patch_size: int, merge_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows as rows in the order of Qwen2-VL, where the `merge_size`^2 patches of a token stand together.

    Returns:
        (batch * gh * gw, channels * patch_size^2) and the grid (batch, 3) of (1, gh, gw).
    """
    gh, gw = (size // patch_size for size in windows.shape[2:])
    if gh % merge_size or gw % merge_size:
        raise ValueError(f"a grid of {gh} x {gw} patches cannot be merged by {merge_size}")
    rows = rearrange(
        windows,
        "b c (gh mh i) (gw mw j) -> (b gh gw mh mw) (c i j)",
        i=patch_size,
        j=patch_size,
        mh=merge_size,
        mw=merge_size,
    )
    return rows, torch.tensor([[1, gh, gw]] * len(windows), device=windows.device)


def kernels_of(weight: torch.Tensor, layout: Layout, num_channels: int) -> torch.Tensor:
    """The weight of a patch embedding on pixels as (D, num_channels, P, P), whatever its module is."""
    if weight.ndim == 5:
        return weight.sum(dim=2)  # a still image fills all frames of a patch alike
    if weight.ndim == 4:
        return weight
    side = math.isqrt(weight.shape[1] // num_channels)
    if layout in ("naflex", "positions"):
        return rearrange(weight, "d (i j c) -> d c i j", i=side, j=side)
    return rearrange(weight, "d (c i j) -> d c i j", i=side, j=side)


def arrange_kernels(
    kernels: torch.Tensor, shift: torch.Tensor, layout: Layout, like: torch.Tensor, bias: bool
) -> torch.Tensor:
    """Kernels on windows of latents (D, channels, k, k) as the weight of a model's patch embedding.

    Args:
        shift: (D,), which goes into a channel of ones where there is no bias.
        like: that weight, for its shape.
    """
    if layout in ("naflex", "positions"):
        rows = rearrange(kernels, "d c i j -> d (i j c)")
        if bias:
            return rows
        return F.pad(torch.cat([rows, shift[:, None]], 1), (0, like.shape[1] - rows.shape[1] - 1))
    if not bias:
        ones = (shift / kernels[0, 0].numel())[:, None, None, None].expand(-1, 1, *kernels.shape[2:])
        kernels = torch.cat([kernels, ones], dim=1)
    return kernels.reshape(like.shape)
