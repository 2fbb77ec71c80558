"""Images of different sizes in one batch, for the layouts that take them."""

import pytest
import torch

from transformers_walloc.latents.layouts import model_inputs, padded_row_length

K = 2


def _images() -> list[torch.Tensor]:
    """Of 2 x 4 and 2 x 2 patches, whose first number tells the patch."""
    images = []
    for gh, gw in ((2, 4), (2, 2)):
        image = torch.zeros(5, gh * K, gw * K)
        image[0, ::K, ::K] = torch.arange(1.0, gh * gw + 1).reshape(gh, gw)
        images.append(image)
    return images


def test_rows():
    inputs = model_inputs(_images(), K, "rows", merge_size=2)
    assert inputs["pixel_values"].shape == (12, 5 * K * K)
    assert inputs["pixel_values"][:, 0].tolist() == [1, 2, 5, 6, 3, 4, 7, 8, 1, 2, 3, 4]  # patches of a token together
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 2]]
    padded = model_inputs(_images(), K, "padded_rows", merge_size=2)
    assert padded["pixel_values"].shape == (2, 8, 5 * K * K) and not padded["pixel_values"][1, 4:].any()


def test_patches():
    inputs = model_inputs(_images(), K, "patches")
    assert inputs["pixel_values"].shape == (12, 5, K, K)
    assert inputs["pixel_values"][:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]


def test_naflex():
    inputs = model_inputs(_images(), K, "naflex")
    assert inputs["pixel_values"].shape == (2, 8, K * K * 5)
    assert inputs["pixel_attention_mask"].tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert inputs["spatial_shapes"].tolist() == [[2, 4], [2, 2]]


def test_positions():
    """The model's 2 (x - 1/2) gives the values, a one and zeros."""
    inputs = model_inputs(_images(), K, "positions")
    rows = 2 * (inputs["pixel_values"][0] - 0.5)
    assert rows.shape == (8, padded_row_length(20)) == (8, 27)
    assert rows[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and rows[:, 20].eq(1).all() and not rows[:, 21:].any()
    assert inputs["image_position_ids"][0].tolist() == [[x, y] for y in range(2) for x in range(4)]
    assert inputs["image_position_ids"][1, 4:].eq(-1).all()


def test_tiles_and_masks():
    images = _images()[:1] * 3
    tiles = model_inputs(images, K, "tiles")
    assert tiles["pixel_values"].shape == (3, 2, 5, 4, 8) and tiles["image_sizes"].tolist() == [[4, 8]] * 3
    masked = model_inputs(images, K, "masked", counts=[2, 1])
    assert masked["pixel_values"].shape == (2, 2, 5, 4, 8)
    assert masked["pixel_attention_mask"].tolist() == [[True, True], [True, False]]


def test_errors():
    with pytest.raises(ValueError, match="unknown layout 'column'; valid: image, nested, masked, tiles, rows"):
        model_inputs(_images(), K, "column")
    with pytest.raises(ValueError, match=r"different sizes in one batch \(2x4, 2x2 patches\)"):
        model_inputs(_images(), K)
