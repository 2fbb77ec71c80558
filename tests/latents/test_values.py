"""The view that a model has of latents: scale, windows, halo, and the way back."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import soundfile
import torch
from codec_fixtures import image_model
from pixel_models import latents_with_halo, photograph, vision_options
from transformers import AutoModelForImageClassification, ViTConfig

from transformers_walloc import (
    LatentView,
    WallocAudioEncoder,
    WallocImageConfig,
    WallocImageEncoder,
    latent_values,
    latents_to_pixels,
)
from transformers_walloc.codec.bottleneck import compand, companding_scale
from transformers_walloc.codec.reflection import extend
from transformers_walloc.latents.picture import picture_rotation, pixels_to_latents
from transformers_walloc.latents.values import ROUNDING_STD, latent_windows, value_std

NOTES = Path(__file__).parents[1] / "data" / "notes.flac"
CORPUS = {"latents_mean": [40.0, *[0.0] * 11], "latents_std": [60.0, 30.0, *[4.0] * 9, 0.01]}


@pytest.fixture(scope="module")
def scaled_codec():
    """With statistics of a corpus; its last channel is all but silent."""
    model = image_model(12)
    model.config.latents_mean, model.config.latents_std = CORPUS["latents_mean"], CORPUS["latents_std"]
    return model


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (3, 2, 1, 4), (40, 0, 13, 57)])
@pytest.mark.parametrize("size", [(1, 7), (5, 6)])
def test_reflect(size, margins):
    """Also where the margin is many times the image."""
    x = torch.arange(2.0 * size[0] * size[1]).reshape(2, *size)
    top, bottom, left, right = margins
    expected = np.pad(x.numpy(), ((0, 0), (top, bottom), (left, right)), mode="reflect")
    assert extend(x, ((top, bottom), (left, right))).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("scale", ["none", "partial", "corpus"])
@pytest.mark.parametrize("halo", [0, 1])
def test_view(halo, scale, scaled_codec):
    """From pixels, latents and codes to the same windows, and back to the latents."""
    view = LatentView.scaled(scaled_codec.config, scale, patch_size=2, halo=halo, constant_channel=True)
    x = photograph(61, 80)
    encoder = WallocImageEncoder(scaled_codec.config)
    encoder.encoder.load_state_dict(scaled_codec.encoder.state_dict())
    with torch.no_grad():
        margin = 8 * halo
        margins = ((0, 0), (0, 0), (margin, margin + 3), (margin, margin))
        latents = scaled_codec.encode(torch.from_numpy(np.pad(x.numpy(), margins, mode="reflect"))).latents
        windows = view.from_pixels(x, encoder)
    torch.testing.assert_close(windows, view.from_latents(latents))
    k = 2 + 2 * halo
    assert windows.shape == (1, 13, 4 * k, 5 * k)
    assert windows[:, 12].eq(1).all()
    inner = latents[:, :, halo : latents.shape[2] - halo, halo : latents.shape[3] - halo]
    torch.testing.assert_close(view.to_latents(view.from_windows(windows)), inner, atol=1e-3, rtol=1e-4)
    codes = scaled_codec.quantize(latents, 2.0)
    assert view.from_latents(codes, step=2.0).equal(view.from_latents(codes.float() * 2))
    assert LatentView(scaled_codec.config, **view.to_dict()) == view
    # A data set's halo may be larger than the model's.
    surplus = torch.nn.functional.pad(latents, (2,) * 4)
    assert view.from_latents(surplus, halo=halo + 2).equal(view.from_latents(latents))


def test_scale(scaled_codec):
    """Channels as the corpus has them come to mean 0 and deviation 1; what rounding adds stays below it."""
    config = scaled_codec.config
    generator = torch.Generator().manual_seed(0)
    std = torch.tensor([0.8, 0.4, *[0.05] * 9, 1e-4])
    z = torch.randn(12, 20000, generator=generator) * std[:, None] * companding_scale(8)
    latents = compand(z, 8)[None, :, :, None]
    measured = latents.std((0, 2, 3))
    torch.testing.assert_close(value_std(measured, config)[:11], std[:11], rtol=0.03, atol=0)
    own = WallocImageConfig(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=measured.tolist())
    values = LatentView.scaled(own).from_latents(latents)
    torch.testing.assert_close(values.std((0, 2, 3))[:11], torch.ones(11), rtol=0.03, atol=0)
    assert values.mean((0, 2, 3)).abs().max() < 0.02
    noise = LatentView.scaled(own).from_latents(torch.rand(latents.shape, generator=generator) - 0.5)
    assert noise[:, 11].std() < 1.1
    assert value_std(torch.zeros(1), config).equal(value_std(torch.full((1,), ROUNDING_STD), config))
    partial = LatentView.scaled(own, "partial").from_latents(latents).std((0, 2, 3))
    torch.testing.assert_close(partial[:11], (std / std[0]).sqrt()[:11], rtol=0.03, atol=0)


def test_view_errors(codec, scaled_codec):
    with pytest.raises(ValueError, match="unknown scale 'unit'; valid: none, partial, corpus"):
        LatentView.scaled(scaled_codec.config, "unit")
    with pytest.raises(ValueError, match="scale 'partial' needs latents_mean and latents_std"):
        LatentView.scaled(codec.config, "partial")
    assert LatentView.scaled(codec.config).std is None and LatentView.scaled(scaled_codec.config).std is not None
    with pytest.raises(ValueError, match="std has 2 entries for 12 latent channels"):
        LatentView(codec.config, mean=[0.0] * 12, std=[1.0, 2.0])
    with pytest.raises(ValueError, match="patch_size is 0 and halo 0; valid: at least 1"):
        LatentView(codec.config, patch_size=0)
    with pytest.raises(ValueError, match="have a halo of 1, the model wants 2"):
        LatentView(codec.config, halo=2).from_latents(torch.zeros(1, 12, 8, 8), halo=1)
    with pytest.raises(ValueError, match="are not patches of 3 with a halo of 1"):
        latent_windows(torch.zeros(1, 12, 9, 8), 3, 1)


def test_codes_are_latents_rounded(codec):
    latents = torch.tensor([[-50.0, 0.0, 100.0]])
    assert latent_values(latents.to(torch.int8), codec.config).equal(latent_values(latents, codec.config))
    coarse = latent_values((latents / 2).to(torch.int8), codec.config, step=2.0)
    assert coarse.equal(latent_values(latents, codec.config))


def test_pixel_shuffle_view(codec):
    """12 channels at H/8 as RGB at H/4, each latent a block of 2 x 2 pixels; nothing is lost."""
    latents = latents_with_halo(codec, photograph(64, 128), 0)
    view = latents_to_pixels(latents)
    assert view.shape == (1, 3, 16, 32)
    assert view[0, 1, 2:4, 6:8].flatten().equal(latents[0, 4:8, 1, 3])
    assert pixels_to_latents(view, 12).equal(latents)
    model = AutoModelForImageClassification.from_config(
        ViTConfig(**{**vision_options(), "image_size": 16}, num_labels=2)
    )
    assert model(latents_to_pixels(latents[:, :, :, :8])).logits.shape == (1, 2)
    for call in (lambda: latents_to_pixels(latents[:, :9]), lambda: pixels_to_latents(view, 9)):
        with pytest.raises(ValueError, match="9 channels of latents are not 3 times a square"):
            call()


@pytest.mark.parametrize("scale", ["corpus", "partial", "none"])
def test_orthogonal_picture(scale):
    """Nearer to the resized photograph than other rotations, and nothing is lost."""
    codec, x = image_model(12), photograph(256, 256)
    with torch.no_grad():
        latents = codec.encode(x).latents
    codec.config.latents_mean = latents.mean((0, 2, 3)).tolist()
    codec.config.latents_std = latents.std((0, 2, 3)).tolist()
    view = LatentView.scaled(codec.config, scale)
    rotation = picture_rotation(codec, view)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(12, dtype=torch.float64))
    values = view.from_latents(latents)
    picture = latents_to_pixels(values, rotation=rotation)
    assert picture.shape == (1, 3, 64, 64)
    torch.testing.assert_close(pixels_to_latents(picture, 12, rotation), values, atol=1e-5, rtol=1e-5)
    target = torch.nn.functional.avg_pool2d(x, 4)
    target = target - target.mean((2, 3), keepdim=True)

    def similarity(rotation):
        other = latents_to_pixels(values - values.mean((2, 3), keepdim=True), rotation=rotation)
        return (other * target).sum().item()

    generator = torch.Generator().manual_seed(0)
    others = [torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0] for _ in range(5)]
    near = [torch.matrix_exp(0.3 * (a - a.T)) @ rotation for a in others]
    assert similarity(rotation) > max(map(similarity, [*others, *near, torch.eye(12)]))


@pytest.mark.parametrize("name", ["stereo-5x", "stereo-20x", "rgb-4x", "rgb-16x"])
def test_mixing_values_is_encoding_the_mix(name):
    """Stems of music, or layers of a picture: values add up with their gains, companded latents do not."""
    gains = (0.3, 0.7) if name.startswith("rgb") else (0.3, 0.6)  # projections of pictures may have a bias
    if name.startswith("rgb"):
        encoder = WallocImageEncoder.from_pretrained(f"walloc/{name}")
        pictures = np.stack([skimage.data.astronaut()[:256, :256], skimage.data.coffee()[100:356, 200:456]])
        first, second = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5
    else:
        encoder = WallocAudioEncoder.from_pretrained(f"walloc/{name}")
        samples, _ = soundfile.read(NOTES, dtype="float32", frames=2 * 4864)
        stereo = 0.5 * torch.from_numpy(samples).T / np.abs(samples).max()
        first, second = stereo[:, :4864], stereo[:, 4864:] * torch.tensor([[1.0], [-0.5]])
    with torch.no_grad():
        values = latent_values(encoder(torch.stack([first, second])).latents, encoder.config)
        mix = encoder((gains[0] * first + gains[1] * second)[None]).latents
    expected = gains[0] * values[0] + gains[1] * values[1]
    found = latent_values(mix, encoder.config)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    companded = gains[0] * compand(values[0], 8) + gains[1] * compand(values[1], 8)
    assert (mix[0] - companded).abs().max() > 1  # a whole code and more
