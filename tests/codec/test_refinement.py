"""Codes found by descent decode to something nearer to the signal; files stay ordinary ones."""

import numpy as np
import pytest
import torch

from transformers_walloc import WallocAudioModel, WallocImageModel
from transformers_walloc.codec import refinement
from transformers_walloc.codec.refinement import _Problem, refine_latents


@pytest.fixture(scope="module")
def model():
    return WallocImageModel.from_pretrained("walloc/rgb-16x").eval()


@pytest.fixture(scope="module")
def picture(photograph):
    return torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255 - 0.5


@pytest.fixture(scope="module")
def photograph():
    from skimage import data

    return data.astronaut()[40:136, 160:272].copy()


def error(model, signal, blob):
    (decoded,) = model.decompress(blob)
    return (decoded - signal[0, ..., : decoded.shape[-2], : decoded.shape[-1]]).square().mean().item()


def test_refined_files_are_nearer_at_about_the_same_size(model, picture):
    (plain,), (refined,) = model.compress(picture), model.compress(picture, refine=4)
    assert error(model, picture, refined) < 0.94 * error(model, picture, plain)
    assert len(refined) < 1.05 * len(plain)
    assert model.compress(picture, refine=4) == [refined]  # nothing random
    with torch.inference_mode():
        assert model.compress(picture, refine=4) == [refined]


def test_what_weights_learn_stays_as_it_was(model, picture):
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learning
    model.compress(picture, refine=1)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == learning
    assert all(weight.grad is None for weight in model.parameters())


def test_refined_uint8_pictures(model, picture, photograph):
    """Up to rounding: the scale of bytes is applied in another place."""
    (blob,) = model.compress(torch.from_numpy(photograph).permute(2, 0, 1)[None], refine=2)
    (other,) = model.compress(picture, refine=2)
    assert error(model, picture, blob) == pytest.approx(error(model, picture, other), rel=1e-3)


def test_padding_is_free(model, picture):
    """What lies outside the picture has no say."""
    noise = picture.clone()
    noise[..., 90:] = torch.rand(noise[..., 90:].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    sizes = torch.tensor([[96, 90]])
    (plain,), (refined,) = (model.compress(noise, sizes, refine=steps) for steps in (0, 3))
    assert error(model, noise, refined) < 0.95 * error(model, noise, plain)


@pytest.mark.parametrize("target", [{"bpp": 0.4}, {"psnr": 27.0}, {"step": 3.0}, {"num_channels": 6}])
def test_with_each_target(model, picture, target):
    (plain,), (refined,) = model.compress(picture, **target), model.compress(picture, refine=3, **target)
    if "bpp" in target:
        assert 8 * len(refined) <= 0.4 * 96 * 112
        assert error(model, picture, refined) < error(model, picture, plain)
    elif "psnr" in target:
        assert len(refined) < len(plain)
        assert -10 * np.log10(error(model, picture, refined)) > 26.9
    else:
        assert error(model, picture, refined) < error(model, picture, plain)
        assert len(refined) < 1.05 * len(plain)
    if "num_channels" in target:
        from transformers_walloc.codec.compression import decompress_codes

        assert not decompress_codes(model, refined)[0][6:].any()


def test_tiles_have_the_gradient_of_the_whole(model, picture, monkeypatch):
    model.requires_grad_(False)
    latents = model.encode(picture).latents
    problem = _Problem(model, picture[0], 1.0)
    whole = problem.evaluate(latents, gradient=True)
    monkeypatch.setattr(refinement, "TILE_SIZE", 7)
    parts = problem.evaluate(latents, gradient=True)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-5 * float(whole[1].abs().max()))


def test_gradient_is_that_of_the_error(model, picture):
    """Against central differences of the unrounded problem, down the slope."""
    double = WallocImageModel.from_pretrained("walloc/rgb-16x", dtype=torch.float64).eval()
    latents = double.encode(picture.double()).latents
    problem = _Problem(double, picture[0].double(), 1.0)
    with torch.no_grad():
        gradient = problem.evaluate(latents.round(), gradient=True)[1]

    def value(distance):
        moved = latents.round() + distance * gradient / gradient.norm()
        return problem.evaluate(moved, gradient=False, rounded=False)[0]

    assert gradient.norm().item() == pytest.approx((value(0.1) - value(-0.1)) / 0.2, rel=2e-2)


def test_never_worse_by_its_own_measure(model):
    flat = torch.zeros(1, 3, 32, 32)
    latents = model.encode(flat).latents
    refined = refine_latents(model, flat[0], latents, (32, 32), 1.0, 3)
    problem = _Problem(model, flat[0], 1.0)
    assert problem.evaluate(refined, gradient=False)[0] <= problem.evaluate(latents, gradient=False)[0] * (1 + 1e-6)


@pytest.mark.parametrize("bpp", [0.3, 0.45, 0.8])
@pytest.mark.parametrize("refine", [0, 2])
def test_the_size_that_was_asked_for(picture, bpp, refine):
    """Also where the rate is far from linear in the logarithm of the step, which refining changes once more."""
    sharp = WallocImageModel.from_pretrained("walloc/rgb-4x").eval()
    (blob,) = sharp.compress(picture, bpp=bpp, refine=refine)
    assert 0.98 * bpp <= 8 * len(blob) / (96 * 112) <= bpp


def test_quality_that_only_refining_reaches(model, picture):
    (plain,), (refined,) = model.compress(picture), model.compress(picture, refine=3)
    low, high = (-10 * np.log10(error(model, picture, blob)) for blob in (plain, refined))
    target = (low + high) / 2
    with pytest.raises(ValueError, match="out of reach"):
        model.compress(picture, psnr=target)
    (blob,) = model.compress(picture, psnr=target, refine=3)
    assert -10 * np.log10(error(model, picture, blob)) > target - 0.02  # of floats, where rounding to 8 bits counts
    with pytest.raises(ValueError, match="out of reach"):
        model.compress(picture, psnr=high + 6, refine=3)


def test_audio():
    model = WallocAudioModel.from_pretrained("walloc/stereo-20x").eval()
    time = torch.arange(256 * 40) / 44100
    clip = 0.2 * torch.stack([torch.sin(2 * torch.pi * 440 * time), torch.sin(2 * torch.pi * 660 * time * time)])[None]
    (plain,), (refined,) = model.compress(clip), model.compress(clip, refine=3)
    errors = [(model.decompress(blob)[0] - clip[0]).square().mean().item() for blob in (plain, refined)]
    assert errors[1] < errors[0]


def test_bad_calls(model, picture):
    from transformers_walloc import WallocImageEncoder

    with pytest.raises(ValueError, match="refine is -1"):
        model.compress(picture, refine=-1)
    with pytest.raises(ValueError, match="refining codes needs the decoder"):
        WallocImageEncoder.from_pretrained("walloc/rgb-16x").compress(picture, refine=1)
