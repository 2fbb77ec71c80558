"""What notebooks show of codecs and of what they return."""

import io

import numpy as np
import PIL.Image
import torch
from codec_fixtures import audio_model, image_inputs, image_model, pictures

from transformers_walloc import WallocVolumeConfig, WallocVolumeModel
from transformers_walloc.codec.outputs import WallocImageDecoderOutput


def test_decoded_pictures_show_themselves():
    inputs = image_inputs([pictures()[1]])
    with torch.inference_mode():
        decoded = image_model().decode(image_model().encode(inputs["pixel_values"]).latents)
    shown = np.asarray(PIL.Image.open(io.BytesIO(decoded._repr_png_())))
    np.testing.assert_array_equal(shown, ((decoded.pixel_values[0] + 0.5) * 255).round().permute(1, 2, 0).numpy())
    gray = WallocImageDecoderOutput(pixel_values=torch.zeros(2, 1, 5, 7))
    assert PIL.Image.open(io.BytesIO(gray._repr_png_())).size == (7, 5)
    for shape in ((1, 13, 4, 4), (1, 3, 4, 4, 4), (0, 3, 4, 4)):
        assert WallocImageDecoderOutput(pixel_values=torch.zeros(shape))._repr_png_() is None


def test_codecs_show_what_they_are(tmp_path):
    image_model().save_pretrained(tmp_path / "my <codec>")
    model = type(image_model()).from_pretrained(tmp_path / "my <codec>")
    shown = model._repr_html_()
    assert "my &lt;codec&gt;" in shown and model.fingerprint() in shown
    assert "12 numbers for 64 pixels of 3 channels" in shown
    assert "8 numbers for 32 samples of 2 channels" in audio_model()._repr_html_()
    volume = WallocVolumeModel(WallocVolumeConfig(num_levels=1, latent_channels=2, decoder_type="linear"))
    assert "2 numbers for 8 voxels of 1 channels" in volume._repr_html_()
