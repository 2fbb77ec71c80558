"""The public interface as users' scripts call it, on a real photograph and with the checkpoints of the package."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

import transformers_walloc


@pytest.mark.parametrize(
    ("name", "latent_channels"), [(f"rgb-{dr}x{kind}", 192 // dr) for dr in (4, 16) for kind in ("", "-klt")]
)
def test_images(name, latent_channels):
    images = [Image.fromarray(data.astronaut()[:301, :450]), Image.fromarray(data.coffee()[:200, :333])]
    processor = AutoImageProcessor.from_pretrained(f"walloc/{name}")
    model = AutoModel.from_pretrained(f"walloc/{name}")
    assert type(model) is transformers_walloc.WallocImageModel
    assert not model.training and model.dtype == torch.float32

    inputs = processor(images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 304, 456)
    assert inputs["pixel_values"].abs().max() <= 0.5
    assert inputs["original_sizes"].tolist() == [[301, 450], [200, 333]]
    latents = model.encode(inputs["pixel_values"]).latents
    assert latents.shape == (2, latent_channels, 38, 57) and latents.is_floating_point()
    assert (latents - latents.round()).abs().max() > 0.4  # not rounded
    codes = model.quantize(latents)
    assert codes.dtype == torch.int8 and codes.shape == latents.shape
    pixels = model.decode(codes).pixel_values
    assert pixels.shape == (2, 3, 304, 456) and pixels.abs().max() <= 0.5
    pil_images = processor.post_process(pixels, original_sizes=inputs["original_sizes"])
    assert [image.size for image in pil_images] == [(450, 301), (333, 200)]
    output = model(**inputs)
    assert (
        output.loss.ndim == 0 and output.reconstruction.shape == pixels.shape and output.latents.shape == latents.shape
    )

    blobs = model.compress(**inputs)
    assert [type(blob) for blob in blobs] == [bytes, bytes]
    tensors = model.decompress(blobs)
    assert [tuple(tensor.shape) for tensor in tensors] == [(3, 301, 450), (3, 200, 333)]
    for image, restored, blob in zip(images, processor.post_process(tensors), blobs, strict=True):
        error = np.asarray(image, dtype=float) - np.asarray(restored, dtype=float)
        assert 10 * np.log10(255**2 / np.mean(error**2)) > (32 if latent_channels == 48 else 25)
        assert len(blob) < image.width * image.height * 3 / (8 if latent_channels == 48 else 25)


@pytest.mark.parametrize(("name", "latent_channels"), [("stereo-5x", 108), ("stereo-20x", 27)])
def test_audio(name, latent_channels):
    time = np.arange(30_011) / 44_100
    waveform = 0.3 * np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time + 1)]) + 0.01
    extractor = AutoFeatureExtractor.from_pretrained(f"walloc/{name}")
    model = AutoModel.from_pretrained(f"walloc/{name}")
    assert type(model) is transformers_walloc.WallocAudioModel
    inputs = extractor(waveform, sampling_rate=44_100, return_tensors="pt")
    assert inputs["input_values"].shape == (1, 2, 30_208)
    assert inputs["padding_mask"].sum() == 30_011
    assert inputs["gain"].shape == inputs["offset"].shape == (1,)
    latents = model.encode(inputs["input_values"]).latents
    assert latents.shape == (1, latent_channels, 118)
    codes = model.quantize(latents)
    assert codes.dtype == torch.int8
    assert model.decode(codes).audio_values.shape == (1, 2, 30_208)
    (restored,) = model.decompress(model.compress(**inputs))
    assert restored.shape == (2, 30_011)
    assert np.abs(restored.numpy() - waveform).mean() < 0.02  # at the original level


def test_derived_properties_and_bundled_paths():
    expected = {"rgb-4x": (4, 8), "rgb-16x": (16, 8), "stereo-5x": (512 / 108, 256), "stereo-20x": (512 / 27, 256)}
    expected |= {"rgb-f16c12": (64, 16), "rgb-f16c48": (16, 16), "rgb-f16c192": (4, 16)}
    for name, (reduction, patch_size) in expected.items():
        path = transformers_walloc.bundled_path(name)
        config = AutoModel.from_pretrained(path).config
        assert config.dimensionality_reduction == pytest.approx(reduction)
        assert config.patch_size == patch_size
        assert sum(file.stat().st_size for file in path.iterdir()) <= 11e6


@pytest.mark.parametrize(
    "name", ["rgb-f16c48", "rgb-4x", "rgb-4x-klt", "rgb-16x", "rgb-16x-klt", "stereo-5x", "stereo-20x"]
)
def test_encoder_only_models_are_small(name):
    image = name.startswith("rgb")
    encoder_class = transformers_walloc.WallocImageEncoder if image else transformers_walloc.WallocAudioEncoder
    encoder = encoder_class.from_pretrained(f"walloc/{name}")
    assert encoder.num_parameters() < 100_000
    full = AutoModel.from_pretrained(f"walloc/{name}")
    x = torch.rand(1, 3, 64, 96) - 0.5 if image else torch.rand(1, 2, 8192) - 0.5
    torch.testing.assert_close(encoder.encode(x).latents, full.encode(x).latents, rtol=0, atol=0)


def test_nested_channels():
    """The latents of rgb-16x-klt are the first ones of rgb-4x-klt, before companding and up to its finer step."""
    small, large = (
        AutoModel.from_pretrained(f"walloc/{name}").encoder.projection for name in ("rgb-16x-klt", "rgb-4x-klt")
    )
    torch.testing.assert_close(2 * small.weight, large.weight[:12], rtol=1e-4, atol=1e-4)


def test_import_is_quiet(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import transformers_walloc"],
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert "transformers_walloc" not in done.stderr
