"""What can be chosen of the image processor of models on latents."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

# Of pixel values, by layout.
COMPANIONS = {
    "masked": ["pixel_attention_mask"],
    "tiles": ["image_sizes"],
    "rows": ["image_grid_thw"],
    "padded_rows": ["image_grid_thw"],
    "patches": ["image_grid_thw"],
    "naflex": ["pixel_attention_mask", "spatial_shapes"],
    "positions": ["image_position_ids"],
}
# What processors of text and images pass on to any image processor, and where there is nothing to choose here.
PASSED_ON = ("return_row_col_info", "data_format", "do_convert_rgb", "input_data_format")


class WallocLatentImageProcessorKwargs(TypedDict, total=False):
    """Options of [`WallocLatentImageProcessor`], settable at construction and overridable in each call."""

    codec: str
    size: dict[str, int]
    do_resize: bool
    patch_size: int
    halo: int
    constant_channel: bool
    scale: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    layout: str
    merge_size: int
    output_name: str
    device: str | torch.device | None
    return_tensors: str | None
    fingerprint: str | None
    encoder: dict[str, Any] | None
    tiling: dict[str, Any] | None
    pixel_patch_size: int | None
    # Options of the pixel model's own image processor, see `Tiling`.
    min_pixels: int
    max_pixels: int
    max_num_patches: int
    max_soft_tokens: int
    max_image_size: dict[str, int]
    do_image_splitting: bool
    crop_to_patches: bool
    min_patches: int
    max_patches: int
    dense_max_patches: int
    dense_max_scale: float
    dense_min_aspect: float
    dense_max_aspect: float
    do_pan_and_scan: bool
    pan_and_scan_min_crop_size: int
    pan_and_scan_max_num_crops: int
    pan_and_scan_min_ratio_to_activate: float
    return_row_col_info: bool | None
    data_format: str | None
    do_convert_rgb: bool | None
    input_data_format: str | None
