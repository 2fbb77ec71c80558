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


def test_the_pipeline_of_texts_and_sound_names_the_one_of_images():
    with pytest.raises(ValueError, match=r'^walloc/rgb-16x is a codec for images .* "image-feature-extraction"'):
        pipeline("feature-extraction", model="walloc/rgb-16x")


@pytest.mark.parametrize(
    ("name", "kind"), [("rgb-16x", WallocImageProcessor), ("stereo-20x", WallocAudioFeatureExtractor)]
)
def test_auto_processor(name, kind):
    assert type(AutoProcessor.from_pretrained(f"walloc/{name}")) is kind


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_pictures_of_several_sizes(batch_size):
    photos = [Image.fromarray(data.astronaut()[:height, :width]) for height, width in ((65, 90), (40, 40), (90, 65))]
    extract = pipeline("image-feature-extraction", model="walloc/rgb-16x")
    inputs = [WallocImageProcessor()(photo, return_tensors="pt")["pixel_values"] for photo in photos]
    with torch.no_grad():
        expected = [extract.model.encode(pixels).latents for pixels in inputs]
    found = extract(photos, return_tensors=True, batch_size=batch_size)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert extract.model.decode(found[0]).pixel_values.shape == inputs[0].shape


def test_a_model_and_a_processor_at_hand():
    """Not loaded by the pipeline, which cannot tell them what they are for."""
    model = AutoModel.from_pretrained("walloc/rgb-16x")
    photos = [Image.fromarray(data.astronaut()[i : i + 48, :72]) for i in (0, 30, 90)]
    extract = pipeline("image-feature-extraction", model=model, image_processor=WallocImageProcessor())
    alone = [extract(photo, return_tensors=True) for photo in photos]
    assert [one.shape for one in alone] == [(1, 12, 6, 9)] * 3
    for one, other in zip(extract(photos, return_tensors=True, batch_size=2), alone, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_sounds_of_several_lengths(batch_size):
    noise = np.random.default_rng(0)
    clips = [{"array": noise.uniform(-1, 1, (2, n)), "sampling_rate": 44100} for n in (2000, 5120, 300)]
    extract = pipeline("feature-extraction", model="walloc/stereo-20x")
    inputs = [WallocAudioFeatureExtractor()(clip, return_tensors="pt")["input_values"] for clip in clips]
    with torch.no_grad():
        expected = [extract.model.encode(samples).latents for samples in inputs]
    assert [latents.shape[2] for latents in expected] == [8, 20, 2]
    for one, other in zip(extract(clips, return_tensors=True, batch_size=batch_size), expected, strict=True):
        torch.testing.assert_close(one, other)
    latents = extract(clips[0])
    assert np.shape(latents) == (1, 27, 8)
