"""What users type: pipelines and AutoProcessor, by the id of a bundled codec and without a network."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import AutoModel, AutoProcessor, pipeline

from transformers_walloc import WallocAudioFeatureExtractor, WallocImageProcessor


def test_image_feature_extraction_gives_latents():
    photo = Image.fromarray(data.astronaut()[:65, :90])
    extract = pipeline("image-feature-extraction", model="walloc/rgb-16x")
    model = AutoModel.from_pretrained("walloc/rgb-16x")
    inputs = WallocImageProcessor()(photo, return_tensors="pt")
    with torch.no_grad():
        expected = model.encode(inputs["pixel_values"]).latents
    assert torch.equal(extract(photo, return_tensors=True), expected)
    listed = extract([photo, photo])
    assert np.shape(listed) == (2, 1, 12, 9, 12)
    np.testing.assert_allclose(listed[1], expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"), [("rgb-16x", WallocImageProcessor), ("stereo-20x", WallocAudioFeatureExtractor)]
)
def test_auto_processor(name, kind):
    assert type(AutoProcessor.from_pretrained(f"walloc/{name}")) is kind


def test_feature_extraction_gives_latents_of_either_kind():
    photo = Image.fromarray(data.astronaut()[:65, :90])
    extract = pipeline("feature-extraction", model="walloc/rgb-16x")
    assert torch.equal(
        extract(photo, return_tensors=True),
        pipeline("image-feature-extraction", model=extract.model, image_processor=WallocImageProcessor())(
            photo, return_tensors=True
        ),
    )
    clip = np.random.default_rng(0).uniform(-1, 1, (2, 2000))
    latents = pipeline("feature-extraction", model="walloc/stereo-20x")({"array": clip, "sampling_rate": 44100})
    assert np.shape(latents) == (1, 27, 8)
