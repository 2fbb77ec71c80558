import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from transformers_walloc.evaluation import metrics


@pytest.fixture
def images():
    reference = data.astronaut()[64:272, 100:292]
    noise = np.random.default_rng(0).normal(0, 12, reference.shape)
    blurred = gaussian_filter(reference.astype(float), (1, 1, 0))
    return reference, np.clip(blurred + noise, 0, 255).round().astype(np.uint8)


@pytest.fixture
def stereo():
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, 24000)) * 0.1


def test_psnr_agrees_with_scikit_image(images):
    assert metrics.psnr(*images) == pytest.approx(peak_signal_noise_ratio(*images), abs=1e-9)


def test_psnr_of_a_constant_error():
    assert metrics.psnr(np.zeros((4, 4)), np.full((4, 4), 0.1)) == pytest.approx(20.0)
    assert metrics.psnr(np.zeros((4, 4)), np.zeros((4, 4))) == math.inf


def test_8bit_rounding():
    x = torch.tensor([-0.6, -0.5, 0.0, 0.5, 0.7]).reshape(1, 1, 5)
    assert metrics.to_images(x).ravel().tolist() == [0, 0, 128, 255, 255]


def test_audio_psnr_is_that_of_the_normalised_clip():
    reference = np.array([[1.0, 3.0], [2.0, 2.0]])  # mean 2, peak 1: normalised values are half the centred ones
    assert metrics.audio_psnr(reference, reference + 0.2) == pytest.approx(20.0)
    assert metrics.audio_psnr(7 * reference - 3, 7 * (reference + 0.2) - 3) == pytest.approx(20.0)


def test_ssim_agrees_with_scikit_image(images):
    expected = structural_similarity(
        *images, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(*images) == pytest.approx(expected, abs=1e-5)


def reference_ms_ssim(x, y, weights=(0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
    """Slow and literal: Wang, Simoncelli and Bovik 2003. Sizes that halve evenly, the sources differ on the rest."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    scores = []
    for a, b in zip(np.moveaxis(x.astype(float), -1, 0), np.moveaxis(y.astype(float), -1, 0), strict=True):
        terms = []
        for scale in range(5):

            def blur(image):
                return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

            ma, mb = blur(a), blur(b)
            va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
            contrast = (2 * cov + c2) / (va + vb + c2)
            luminance = (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
            terms.append(np.mean(contrast * luminance) if scale == 4 else np.mean(contrast))
            a, b = (uniform_filter(image, 2, origin=-1)[: len(a) // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2]
                    for image in (a, b))  # fmt: skip
        scores.append(terms)
    return np.prod(np.mean(scores, axis=0) ** np.array(weights))


def test_ms_ssim_agrees_with_the_definition(images):
    assert metrics.ms_ssim(*images) == pytest.approx(reference_ms_ssim(*images), abs=1e-5)


def test_images_that_cannot_be_compared(images):
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.ssim(images[0], images[1][:-1])
    with pytest.raises(TypeError, match="uint8"):
        metrics.ssim(images[0] / 255, images[1] / 255)
    with pytest.raises(ValueError, match="at least 161"):
        metrics.ms_ssim(images[0][:160], images[1][:160])


def test_si_sdr_is_the_ratio_of_the_projection(stereo):
    # Noise made orthogonal to the signal, at a tenth of its norm, survives any gain and offset as -20 dB.
    stereo = stereo - stereo.mean(axis=1, keepdims=True)
    noise = np.random.default_rng(2).standard_normal(stereo.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    noise -= (noise * stereo).sum(axis=1, keepdims=True) / (stereo**2).sum(axis=1, keepdims=True) * stereo
    noise *= 0.1 * np.linalg.norm(stereo, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    assert metrics.si_sdr(stereo, -0.3 * (stereo + noise) + 0.05) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="silent"):
        metrics.si_sdr(0 * stereo, stereo)


def test_spatial_ratios_of_gains_have_a_closed_form(stereo):
    # s_hat = A s with no residual: the spatial error is (A - 1) s. (A zero in A would leave a delay undetermined.)
    mixing = np.array([[1.0, 0.1], [0.3, 0.8]])
    ssdr, srdr = metrics.spatial_ratios(stereo, mixing @ stereo, 8000)
    expected = [
        10 * np.log10((s**2).sum() / (((mixing - np.eye(2)) @ s) ** 2).sum())
        for s in (stereo[:, :16000], stereo[:, 8000:])
    ]
    assert ssdr == pytest.approx(np.mean(expected), abs=1e-6)
    assert srdr == metrics.MAX_RATIO_DB


def test_spatial_ratios_of_noise(stereo):
    # Noise that no channel of the reference explains is a residual, and hardly spatial.
    noise = np.random.default_rng(3).standard_normal(stereo.shape) * 0.01
    ssdr, srdr = metrics.spatial_ratios(stereo, stereo + noise, 8000)
    assert srdr == pytest.approx(20.0, abs=0.1)
    assert ssdr > 50


def test_spatial_ratios_find_delays(stereo):
    delayed = np.stack([stereo[0], np.roll(stereo[1], 25)])
    ssdr, srdr = metrics.spatial_ratios(stereo, delayed, 8000)
    # White noise and its delayed copy are uncorrelated: the error of that channel has twice its energy.
    assert ssdr == pytest.approx(10 * np.log10(2 / 2), abs=0.2)
    assert srdr == metrics.MAX_RATIO_DB


def slow_spatial_ratios(s, s_hat, max_shift):
    """One frame, with the delays by exhaustive search in the time domain and the gains by lstsq."""
    channels, length = s.shape

    def delayed(x, k):
        return np.array([x[n - k] if 0 <= n - k < length else 0.0 for n in range(length)])

    shifts = np.array(
        [
            [
                max(range(-max_shift, max_shift + 1), key=lambda k, c=c, d=d: abs(s_hat[c] @ delayed(s[d], k)))
                for d in range(channels)
            ]
            for c in range(channels)
        ]
    )
    valid = slice(max(0, shifts.max()), length + min(0, shifts.min()))
    model = np.empty_like(s[:, valid])
    for c in range(channels):
        basis = np.stack([delayed(s[d], shifts[c, d])[valid] for d in range(channels)], axis=1)
        model[c] = basis @ np.linalg.lstsq(basis, s_hat[c, valid], rcond=None)[0]
    spatial, residual = model - s[:, valid], s_hat[:, valid] - model
    return tuple(10 * np.log10((a**2).sum() / (b**2).sum()) for a, b in ((s[:, valid], spatial), (model, residual)))


def test_spatial_ratios_agree_with_a_slow_implementation():
    rng = np.random.default_rng(4)
    s = np.cumsum(rng.standard_normal((3, 400)), axis=1) * 0.01
    s_hat = np.array([[0.9, 0.1, 0], [0, 1, 0], [0.2, 0, 1]]) @ np.roll(s, 3, axis=1) + 0.02 * rng.standard_normal(
        s.shape
    )
    ours = metrics.spatial_ratios(s, s_hat, 100, frame_seconds=4, max_shift_seconds=0.2)
    assert ours == pytest.approx(slow_spatial_ratios(s, s_hat, 20), abs=1e-6)


def test_spatial_ratios_without_a_solution(stereo):
    with pytest.raises(ValueError, match="silent"):
        metrics.spatial_ratios(0 * stereo, stereo, 8000)
    with pytest.raises(ValueError, match="at least 2 channels"):
        metrics.spatial_ratios(stereo[:1], stereo[:1], 8000)
    same = np.stack([stereo[0], stereo[0]])  # dual mono: singular, but nothing is wrong with it
    assert metrics.spatial_ratios(same, same, 8000) == (metrics.MAX_RATIO_DB, metrics.MAX_RATIO_DB)


def test_rates():
    assert metrics.compression_ratio(768 * 512 * 3, 768 * 512 * 3 // 40, 8) == pytest.approx(40, rel=1e-3)
    assert metrics.compression_ratio(2 * 44100, 44100, 16) == 4.0
    assert metrics.bits_per_pixel(512, 768, 49152) == 1.0
    with pytest.raises(ValueError, match="num_bytes"):
        metrics.compression_ratio(10, 0, 8)


def test_bd_rate():
    rates, qualities = np.array([0.1, 0.25, 0.5, 1.2]), np.array([28.0, 31.0, 34.0, 38.5])
    assert metrics.bd_rate(rates, qualities, 0.8 * rates, qualities) == pytest.approx(-20.0)
    assert metrics.bd_rate(0.8 * rates, qualities, rates, qualities) == pytest.approx(25.0)
    # log-rate linear in quality: the average offset over the common range is exact.
    q = np.linspace(30, 40, 6)
    assert metrics.bd_rate(np.exp(q / 5), q, np.exp(q / 5 + 0.1), q + 2) == pytest.approx(
        (math.exp(0.1 - 2 / 5) - 1) * 100
    )
    assert math.isnan(metrics.bd_rate(rates, qualities, rates, qualities + 50))
    with pytest.raises(ValueError, match="two or more"):
        metrics.bd_rate([1.0], [30.0], rates, qualities)


def test_decibels():
    assert metrics.decibels(0.01) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="negative"):
        metrics.decibels(-1)


@pytest.mark.skipif(not importlib.util.find_spec("zimtohrli"), reason="no wheel for this platform")
def test_zimtohrli_prefers_less_noise(stereo):
    noise = np.random.default_rng(5).standard_normal(stereo.shape)
    scores = [metrics.zimtohrli_mos(stereo, stereo + level * noise, 24000) for level in (0.0, 0.01, 0.1)]
    assert scores[0] > scores[1] > scores[2] and scores[0] == pytest.approx(5, abs=0.1)
