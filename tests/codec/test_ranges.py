"""Signals that no processor has scaled are said, once, and only they."""

import warnings

import pytest
import torch
from codec_fixtures import audio_model, image_inputs, image_model, pictures


@pytest.mark.parametrize(("scale", "seen"), [(1.0, "0 to 1,"), (255.0, "0 to 255,")])
def test_floats_of_another_range(scale, seen):
    pixels = torch.from_numpy(pictures()[1].copy()).permute(2, 0, 1)[None] / 255
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * scale
    model = image_model()
    with pytest.warns(UserWarning, match=f"pixel_values lie in {seen} and the codec takes -0.5 to 0.5.*processor"):
        model.encode(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(pixels)  # said once
        image_model().compress(**image_inputs(pictures()[:1]))
        image_model().encode(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8))


def test_audio_and_tracers():
    with pytest.warns(UserWarning, match="input_values lie in -2 to 2"):
        audio_model().encode(torch.tensor([-2.0, 2.0]).repeat(1, 2, 512))
    model = image_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.vmap(lambda x: model.encode(x[None]).latents)(torch.rand(2, 3, 16, 16) - 0.5)
