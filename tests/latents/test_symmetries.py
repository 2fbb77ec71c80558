"""Latents of block codecs move as pictures do: against numpy's and Pillow's own flips and turns of the pixels."""

import numpy as np
import pytest
import torch
from block_codecs import block_model, photographs
from codec_fixtures import audio_model, image_model
from PIL import Image

from transformers_walloc import WallocVolumeConfig, transform_latents

MOVES = {
    "identity": lambda a: a,
    "hflip": np.fliplr,
    "vflip": np.flipud,
    "rot90": np.rot90,
    "rot180": lambda a: np.rot90(a, 2),
    "rot270": lambda a: np.rot90(a, 3),
    "transpose": lambda a: a.transpose(1, 0, 2),
    "transverse": lambda a: np.array(Image.fromarray(a).transpose(Image.Transpose.TRANSVERSE)),
}


def encode(model, array: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float() / 255 - 0.5
    with torch.no_grad():
        return model.encode(pixels).latents


def picture() -> np.ndarray:
    return ((photographs()[0, :, :240] + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()  # 240 x 256


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("latent_channels, num_levels", [(48, 4), (7, 3)])
def test_latents_and_codes_move_as_the_picture(name, latent_channels, num_levels):
    model = block_model(latent_channels, num_levels)
    latents, moved = encode(model, picture()), encode(model, MOVES[name](picture()))
    ours = transform_latents(latents, model.config, name)
    scale = moved.abs().max()
    assert ours.shape == moved.shape
    assert ((ours - moved).abs().max() / scale).item() < 1e-5
    codes = transform_latents(model.quantize(latents), model.config, name)
    assert codes.dtype == torch.int8
    differing = codes != model.quantize(moved)
    assert differing.float().mean() < 1e-3
    # Those that differ are ties: they lie halfway between two codes.
    assert ((moved[differing] % 1 - 0.5).abs() < 1e-3).all()


def test_any_number_of_axes_in_front():
    model = block_model()
    latents = encode(model, picture())
    one = transform_latents(latents[0], model.config, "rot90")
    assert torch.equal(transform_latents(latents[None], model.config, "rot90")[0, 0], one)


def test_turns_add_up():
    model, latents = block_model(), encode(block_model(), picture())
    for first, second, together in (
        ("rot90", "rot90", "rot180"),
        ("hflip", "vflip", "rot180"),
        ("rot90", "rot270", "identity"),
    ):
        moved = transform_latents(transform_latents(latents, model.config, first), model.config, second)
        assert torch.equal(moved, transform_latents(latents, model.config, together))


def test_a_file_can_be_mirrored():
    model = block_model()
    pixels = photographs()[:1]
    codes = model.decompress_codes(model.compress(pixels))[0]
    mirrored = model.decode(transform_latents(codes, model.config, "hflip")[None]).pixel_values
    torch.testing.assert_close(mirrored, model.decode(codes[None]).pixel_values.flip(-1), atol=1e-5, rtol=0)


def test_a_padded_picture_moves_with_its_padding():
    # 240 x 250 pixels are padded to 256 columns: after the flip the padding is on the left.
    from transformers_walloc import WallocImageProcessor

    model, array = block_model(), picture()[:, :250]
    pixels = WallocImageProcessor(patch_size=16)(array, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-1] == 256
    with torch.no_grad():
        moved = transform_latents(model.encode(pixels).latents, model.config, "hflip")
        torch.testing.assert_close(moved, model.encode(pixels.flip(-1)).latents, atol=1e-3, rtol=1e-5)
        other = model.encode(WallocImageProcessor(patch_size=16)(np.fliplr(array), return_tensors="pt")["pixel_values"])
    assert (moved - other.latents).abs().max() > 1  # not the latents of the flipped picture, which is padded elsewhere


def test_a_crop_on_the_grid_is_a_crop_of_latents():
    model = block_model()
    with torch.no_grad():
        whole, part = (
            model.encode(x).latents for x in (photographs(), photographs()[:, :, 32:192, 64:128].contiguous())
        )
    torch.testing.assert_close(whole[:, :, 2:12, 4:8], part, atol=1e-4, rtol=0)


def test_refusals_name_what_to_do():
    latents = torch.zeros(1, 12, 4, 4)
    with pytest.raises(ValueError, match="move the pictures before they are encoded"):
        transform_latents(latents, image_model().config, "hflip")
    with pytest.raises(ValueError, match="audio and volumes"):
        transform_latents(latents, audio_model().config, "hflip")
    with pytest.raises(ValueError, match="audio and volumes"):
        transform_latents(latents, WallocVolumeConfig(), "hflip")
    with pytest.raises(ValueError, match="unknown symmetry 'mirror'; valid: identity, hflip"):
        transform_latents(latents, block_model().config, "mirror")
    with pytest.raises(ValueError, match=r"\(\.\.\., 48, h, w\), got \(1, 12, 4, 4\)"):
        transform_latents(latents, block_model().config, "hflip")
