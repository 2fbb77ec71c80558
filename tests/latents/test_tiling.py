"""Tiles of pictures against what the image processors of the pixel models make of them."""

import numpy as np
import pytest
import skimage.data
import torch
import transformers
from PIL import Image
from pixel_models import PATCH

from transformers_walloc.latents.tiling import PLANNERS, Tiling, render

SIZES = [(90, 60), (61, 200), (33, 33), (8, 9), (300, 70)]
FILTER = {"resample": Image.Resampling.BICUBIC, "do_normalize": False}
BUDGET = {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 512, "longest_edge": 2048}}
SQUARE = {"size": {"height": 16, "width": 16}}
OWN = {
    "Qwen2VLImageProcessor": [BUDGET],
    "PaddleOCRVLImageProcessor": [BUDGET],
    "Glm4vImageProcessor": [BUDGET],
    "Glm46VImageProcessor": [BUDGET],
    "Siglip2ImageProcessor": [{"patch_size": PATCH, "max_num_patches": 40}],
    "Gemma4ImageProcessor": [{"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2}],
    "PixtralImageProcessor": [{"patch_size": {"height": PATCH, "width": PATCH}, "size": {"longest_edge": 64}}],
    **{
        name: [
            {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": split}
            for split in (True, False)
        ]
        for name in ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
    },
    "GotOcr2ImageProcessor": [{**SQUARE, "crop_to_patches": cut, "max_patches": 6} for cut in (True, False)],
    "GraniteDoclingImageProcessor": [{**SQUARE, "max_patches": 6}],
    "LlavaOnevisionImageProcessor": [
        {**SQUARE, "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32], [48, 16]]}
    ],
    "Gemma3ImageProcessor": [
        {
            **SQUARE,
            "do_pan_and_scan": scan,
            "pan_and_scan_min_crop_size": 8,
            "pan_and_scan_max_num_crops": 3,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        }
        for scan in (True, False)
    ],
}


def _own(name: str, options: dict):
    return getattr(transformers, f"{name}Pil")(**options, **FILTER)


def _picture(height: int, width: int) -> np.ndarray:
    return skimage.data.astronaut()[:height, 100 : 100 + width]


def _tiles_of(name: str, output: dict) -> list[np.ndarray]:
    """Images (3, h, w) in [0, 1], from the output of the image processor of a single picture."""
    values = np.asarray(output["pixel_values"])
    if "image_grid_thw" in output:  # rows, or patches, of a picture
        _, rows, columns = np.asarray(output["image_grid_thw"])[0]
        if values.ndim == 2:
            frames = values.shape[1] // (3 * PATCH**2)
            patches = values.reshape(rows // 2, columns // 2, 2, 2, 3, frames, PATCH, PATCH)[:, :, :, :, :, 0]
            return [patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * PATCH, columns * PATCH)]
        patches = values.reshape(rows, columns, -1, PATCH, PATCH)[:, :, :3]
        return [patches.transpose(2, 0, 3, 1, 4).reshape(3, rows * PATCH, columns * PATCH)]
    if "spatial_shapes" in output or "image_position_ids" in output:
        positions = np.asarray(output.get("image_position_ids", [[[-1, -1]]]))[0]
        rows, columns = np.asarray(output.get("spatial_shapes", [positions.max(0)[::-1] + 1]))[0]
        patches = values[0, : rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
        return [patches.transpose(4, 0, 2, 1, 3).reshape(3, rows * PATCH, columns * PATCH)]
    return list(values.reshape(-1, *values.shape[-3:]))


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, each in OWN.items() for options in each])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_the_pixel_models(name, options, size):
    """At a zoom of 1 they are its very pixels, and its count of them is the number of ours."""
    own, picture = _own(name, options), _picture(*size)
    tiling = Tiling(Tiling.options_of(own, PATCH))
    expected = _tiles_of(name, own(Image.fromarray(picture), return_tensors="np"))
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    plan = tiling.plan(*size)
    tiles = render(pixels, plan, 1.0, PATCH, PATCH)
    assert [tuple(tile.shape[2:]) for tile in tiles] == [tile.shape[1:] for tile in expected]
    for tile, other in zip(tiles, expected, strict=True):
        assert np.abs(tile[0].numpy() / 255 - other).mean() < 0.03
    if hasattr(own, "get_number_of_image_patches"):
        assert tiling.number_of_patches(*size) == own.get_number_of_image_patches(*size, {})
    # Four times as many pixels per side, twice as many per patch: the same tiles, larger.
    larger = render(pixels, plan, 4.0, PATCH, 4 * PATCH)
    assert [tuple(tile.shape[2:]) for tile in larger] == [(4 * t.shape[2], 4 * t.shape[3]) for t in tiles]
    for tile, other in zip(larger, tiles, strict=True):
        small = torch.nn.functional.avg_pool2d(tile.float(), 4)
        assert (small - other.float()).abs().mean() < 6


def test_every_image_processor_is_tried():
    assert OWN.keys() == PLANNERS.keys()


def test_options_of_a_call():
    own = _own("Qwen2VLImageProcessor", BUDGET)
    tiling = Tiling(Tiling.options_of(own, PATCH))
    for options in ({"max_pixels": 1024}, {"size": {"longest_edge": 1024}}, {"min_pixels": 1600, "max_pixels": 4096}):
        kwargs = {"min_pixels": 512, "max_pixels": 2048}
        kwargs |= {key: value for key, value in options.items() if key != "size"}
        if "size" in options:
            kwargs["max_pixels"] = options["size"]["longest_edge"]
        expected = own.get_number_of_image_patches(90, 60, kwargs)
        assert tiling.with_options(options).number_of_patches(90, 60) == expected
    assert tiling.number_of_patches(90, 60) == own.get_number_of_image_patches(90, 60, {})


def test_several_pictures_of_a_sample():
    """LLaVA-OneVision puts each in the middle of one square."""
    own = _own("LlavaOnevisionImageProcessor", OWN["LlavaOnevisionImageProcessor"][0])
    tiling, picture = Tiling(Tiling.options_of(own, PATCH)), _picture(20, 40)
    expected = own([[Image.fromarray(picture)] * 2], return_tensors="np")["pixel_values"][0]
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    tiles = render(pixels, tiling.plan(20, 40, alone=False), 1.0, PATCH, PATCH)
    assert len(tiles) == len(expected) == 1
    assert np.abs(tiles[0][0].numpy() / 255 - expected[0]).mean() < 0.05


def test_errors():
    tiling = Tiling(Tiling.options_of(_own("Qwen2VLImageProcessor", BUDGET), PATCH))
    with pytest.raises(ValueError, match="max_pixels is 63; a token alone has 8 x 8 = 64 pixels"):
        tiling.with_options({"max_pixels": 63}).plan(20, 20)
    with pytest.raises(ValueError, match="min_pixels is 4096, more than max_pixels, 2048"):
        tiling.with_options({"min_pixels": 4096}).plan(20, 20)
    with pytest.raises(ValueError, match="max_num_patches is no option of Qwen2VLImageProcessor; valid: min_pixels"):
        tiling.with_options({"max_num_patches": 4})
    with pytest.raises(ValueError, match="size has height; valid for Qwen2VLImageProcessor: longest_edge, shortest"):
        tiling.with_options({"size": {"height": 4}})
    with pytest.raises(ValueError, match="no image processor is known by the name 'ViTImageProcessor'; valid: Qwen"):
        Tiling({"image_processor_type": "ViTImageProcessor"})
    assert Tiling.options_of(transformers.ViTImageProcessorPil(), 16) is None
