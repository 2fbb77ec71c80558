"""Latents as a transform, models and data sets that check the codec, and pictures of latents."""

import io

import PIL.Image
import pytest
import skimage.data
import torch
from block_codecs import block_model, photographs
from codec_fixtures import audio_model, image_model
from pixel_models import AUTO_CLASSES, MEAN, STD, normalised_pixels, photograph, tokens_and_output
from torch import nn

from transformers_walloc import (
    LatentView,
    ToLatents,
    WallocAudioFeatureExtractor,
    WallocEncoderOutput,
    WallocImageProcessor,
    WallocLatentModel,
    WallocVolumeImageProcessor,
    latent_transform,
    load_on_latents,
    show_latents,
)
from transformers_walloc.latents.datasets import encode_rows
from transformers_walloc.latents.folding import equal_cost_patch_size, exact_halo, fold_patch_embedding, resize_matrix

PHOTO = skimage.data.astronaut()[:64, 100:196]


def test_to_latents(codec, codec_folder):
    transform = nn.Sequential(ToLatents(codec_folder, scale="none"))
    expected = LatentView(codec.config).from_pixels(torch.from_numpy(PHOTO / 255 - 0.5).permute(2, 0, 1)[None], codec)[
        0
    ]
    tensor = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    for image in (PIL.Image.fromarray(PHOTO), PHOTO, tensor, tensor / 255):
        torch.testing.assert_close(transform(image), expected, rtol=1e-3, atol=1e-3)
    assert transform[0](tensor[None].expand(2, -1, -1, -1)).shape == (2, *expected.shape)
    values, label = transform[0](tensor, 7)
    assert values.shape == expected.shape and label == 7
    assert "grid of 8 pixels, 12 channels" in repr(transform)


def test_show_latents():
    sheet = show_latents(torch.randn(1, 12, 5, 7))
    assert sheet.size == (4 * 8, 3 * 6)
    assert sheet.getextrema() == (0, 255)
    with pytest.raises(ValueError, match=r"latents of shape \(5, 7\)"):
        show_latents(torch.zeros(5, 7))


@pytest.mark.parametrize("family", ["vit", "qwen2_vl", "gemma4"])
def test_data_set_of_a_model(family, codec, folders):
    """Rows come as the model takes an image, and of another codec not at all."""
    model = load_on_latents(folders(family), codec, AUTO_CLASSES[family], image_mean=MEAN, image_std=STD)
    rows = encode_rows([PHOTO], codec, "int8", size=(64, 64))
    read = latent_transform(codec, windows=model.config, output_name="pixel_values")
    example = {name: values[0] for name, values in read({"latents": rows}).items()}
    shapes = {"vit": (12, 8, 8), "qwen2_vl": (16, 13 * 4), "gemma4": (16, 75)}
    assert example["pixel_values"].shape == shapes[family]
    if family == "qwen2_vl":
        assert example["image_grid_thw"].tolist() == [1, 4, 4]
    with pytest.raises(ValueError, match="the data set is of a codec without a name"):
        other = image_model(12)
        with torch.no_grad():
            other.encoder.projection.weight.mul_(1.01)
        latent_transform(other, windows=model.config)


def test_pixels_of_another_range(codec, folders):
    """Floats in 0..1 or 0..255 would be encoded saturated."""
    model = WallocLatentModel.from_pixel_model(
        folders("vit"), codec, AUTO_CLASSES["vit"], image_mean=MEAN, image_std=STD
    )
    pixels = photograph(64, 64)
    assert model(pixel_values=pixels).logits.isfinite().all()
    for other in (pixels + 0.5, (pixels + 0.5) * 255, pixels * 4):
        with pytest.raises(ValueError, match=r"pixels lie in .*; valid: \[-0.5, 0.5\], a mean of 0.5 and a standard"):
            model(pixel_values=other)


@pytest.mark.parametrize(("pixel_patch", "patch_size", "image"), [(16, 4, 1024), (14, 4, 1024)])
def test_grids_of_16_pixels(pixel_patch, patch_size, image):
    """Block codecs of 16 x 16 pixels fold exactly without a halo, and as many tokens stand for more pixels."""
    codec = block_model(48)
    config = codec.config
    assert config.patch_size == 16 and equal_cost_patch_size(config, pixel_patch) == patch_size
    assert exact_halo(config, patch_size, pixel_patch) == 0
    assert image // (patch_size * 16) == 16 == (224 if pixel_patch == 14 else 256) // pixel_patch
    weight = torch.randn(8, 3, pixel_patch, pixel_patch, generator=torch.Generator().manual_seed(0)) * 0.1
    folded, shift = fold_patch_embedding(weight, None, codec, patch_size, image_mean=MEAN, image_std=STD)
    x = photographs()[:1]
    with torch.no_grad():
        latents = codec.encode(x).latents
        pixels = codec.decode(latents).pixel_values  # a linear decoder, within range
        side = pixel_patch * 256 // (16 * patch_size)
        matrix = torch.from_numpy(resize_matrix(256, side)).float()  # averages areas, of parts of pixels too
        resized = matrix @ pixels @ matrix.T + 0.5
        normalised = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        expected = nn.functional.conv2d(normalised, weight, stride=pixel_patch)
        values = LatentView(config, patch_size=patch_size).from_latents(latents)
        tokens = nn.functional.conv2d(values, folded.float(), shift.float(), stride=patch_size)
    assert tokens.shape == expected.shape
    assert ((tokens - expected).norm() / expected.norm()).item() < 1e-2  # `decode` clamps its pixels


def test_model_on_grids_of_16_pixels(folders):
    """A folded ViT sees what its pixel model sees of decoded pictures, without a halo."""
    codec = block_model(48)
    model = load_on_latents(folders("vit"), codec, AUTO_CLASSES["vit"], image_mean=MEAN, image_std=STD)
    assert model.config.walloc_latents["patch_size"] == 1 and model.config.walloc_latents["halo"] == 0
    with torch.no_grad():
        latents = codec.encode(photographs(64)[:1]).latents
        pixels = codec.decode(latents).pixel_values
    pixel_model = AUTO_CLASSES["vit"].from_pretrained(folders("vit"))
    _, expected = tokens_and_output(pixel_model, {"pixel_values": normalised_pixels(pixels, 0, 4)})
    windows = LatentView(codec.config, **model.config.walloc_latents).from_latents(latents)
    _, output = tokens_and_output(model, {"pixel_values": windows})
    assert ((output - expected).norm() / expected.norm()).item() < 1e-2


def test_representations():
    """Models say DR, grid and channels in their first line, processors in their only one."""
    codec = image_model(12)
    first = repr(codec).splitlines()[1].strip()
    assert first == "DR 16, grid of 8 x 8 pixels, 12 channels"
    codec.config.name_or_path = "walloc/rgb-16x"
    assert "'rgb-16x', DR 16, " in repr(codec)
    assert "DR 8, grid of 32 samples, 8 channels" in repr(audio_model())
    assert repr(WallocImageProcessor()) == "WallocImageProcessor(3 channels, sizes padded to multiples of 8)"
    assert "44100 Hz, padded to a grid of 256 samples" in repr(WallocAudioFeatureExtractor())
    assert len(repr(WallocVolumeImageProcessor()).splitlines()) == 1


def test_latents_are_pictures_in_notebooks():
    codec = image_model(12)
    with torch.no_grad():
        output = codec.encode(torch.rand(2, 3, 64, 48) - 0.5)
    shown = PIL.Image.open(io.BytesIO(output._repr_png_()))
    assert shown.tobytes() == show_latents(output.latents[0]).tobytes()
    frames = WallocEncoderOutput(latents=torch.randn(1, 27, 50))
    assert PIL.Image.open(io.BytesIO(frames._repr_png_())).size == (50, 27)
    assert WallocEncoderOutput(latents=torch.randn(1, 8, 4, 4, 4))._repr_png_() is None
