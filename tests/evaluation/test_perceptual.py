import importlib.util

import numpy as np
import pytest
from scipy.ndimage import convolve, gaussian_filter
from skimage import data

from transformers_walloc.evaluation import perceptual
from transformers_walloc.evaluation.metrics import MetricUnavailableError

YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
needs_piq = pytest.mark.skipif(not importlib.util.find_spec("piq"), reason="piq is not installed")
needs_ssimulacra2 = pytest.mark.skipif(not importlib.util.find_spec("ssimulacra2"), reason="not installed")


def distorted(level: float) -> tuple[np.ndarray, np.ndarray]:
    reference = data.astronaut()[64:192, 100:228]
    noise = np.random.default_rng(0).normal(0, 20 * level, reference.shape)
    blurred = gaussian_filter(reference.astype(float), (level, level, 0))
    return reference, np.clip(blurred + noise, 0, 255).round().astype(np.uint8)


def halved(plane: np.ndarray) -> np.ndarray:
    return plane.reshape(len(plane) // 2, 2, -1, 2).mean((1, 3))


def reference_gmsd(x: np.ndarray, y: np.ndarray) -> float:
    """Xue, Zhang, Mou and Bovik 2014: Prewitt gradients of the luma at half the size, in 0..255."""
    magnitudes = []
    for image in (x, y):
        luma = halved(image @ YIQ[0])
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        gradients = [convolve(luma, kernel, mode="constant") for kernel in (prewitt, prewitt.T)]
        magnitudes.append(np.hypot(*gradients))
    a, b = magnitudes
    return ((2 * a * b + 170) / (a * a + b * b + 170)).std()


def reference_haarpsi(x: np.ndarray, y: np.ndarray, c: float = 30.0, alpha: float = 4.2) -> float:
    """Reisenhofer, Bosse, Kutyniok and Wiegand 2018, for colour images."""

    def similarity(a, b):
        return (2 * a * b + c) / (a * a + b * b + c)

    def haar(plane, scale, axis):
        kernel = 2.0**-scale * np.ones((2**scale, 2**scale))
        kernel[: 2**scale // 2] *= -1
        return np.abs(convolve(plane, kernel if axis == 0 else kernel.T, mode="constant"))

    planes = [[halved(plane) for plane in np.moveaxis(image @ YIQ.T, -1, 0)] for image in (x, y)]
    similarities, weights = [], []
    for axis in (0, 1):
        detail = [similarity(*(haar(image[0], scale, axis) for image in planes)) for scale in (1, 2)]
        similarities.append(np.mean(detail, axis=0))
        weights.append(np.maximum(*(haar(image[0], 3, axis) for image in planes)))
    box = np.full((2, 2), 0.25)
    colour = [similarity(*(np.abs(convolve(image[k], box, mode="constant")) for image in planes)) for k in (1, 2)]
    similarities.append(np.mean(colour, axis=0))
    weights.append(np.mean(weights, axis=0))
    squashed = 1 / (1 + np.exp(-alpha * np.array(similarities)))
    mean = (squashed * weights).sum() / np.sum(weights)
    return (np.log(mean / (1 - mean)) / alpha) ** 2


@needs_piq
@pytest.mark.parametrize(("name", "reference"), [("gmsd", reference_gmsd), ("haarpsi", reference_haarpsi)])
def test_measures_agree_with_their_definition(name, reference):
    for level in (0.3, 1.0):
        x, y = distorted(level)
        # Definitions differ at the border, where kernels reach over it.
        assert perceptual.similarity(name, x, y) == pytest.approx(reference(x.astype(float), y.astype(float)), abs=4e-3)


@needs_piq
@pytest.mark.parametrize("name", perceptual.PIQ_METRICS)
def test_measures_prefer_less_distortion(name):
    scores = [perceptual.similarity(name, *distorted(level)) for level in (0, 0.3, 1.0)]
    best = 0 if name == "gmsd" else 1
    assert scores[0] == pytest.approx(best, abs=1e-5)
    assert abs(scores[0] - best) < abs(scores[1] - best) < abs(scores[2] - best)


@needs_ssimulacra2
def test_ssimulacra2_is_100_for_equal_images_and_falls():
    scores = [perceptual.ssimulacra2(*distorted(level)) for level in (0, 0.3, 1.0)]
    assert scores[0] == 100 and 100 > scores[1] > scores[2]


def test_images_that_cannot_be_measured():
    with pytest.raises(ValueError, match="gmsd, vsi, fsim, haarpsi"):
        perceptual.similarity("vmaf", *distorted(0))


@pytest.mark.parametrize("name", perceptual.LEARNED_METRICS)
def test_learned_metrics_never_make_a_number_up(name):
    packages = ["cdpam"] if name == "cdpam" else ["piq", "torchvision"]
    try:
        measure = perceptual.learned_metric(name)
    except MetricUnavailableError as error:
        assert str(error).startswith(name.upper())
    else:
        assert callable(measure) and all(map(importlib.util.find_spec, packages))
    with pytest.raises(ValueError, match="lpips, dists, cdpam"):
        perceptual.learned_metric("vmaf")


def test_dists_and_lpips_measure_distortion_where_their_weights_are():
    for name in ("dists", "lpips"):
        try:
            measure = perceptual.learned_metric(name)
        except MetricUnavailableError:
            continue
        assert measure(*distorted(0.3)) > measure(*distorted(1.0))


def test_cdpam_measures_distortion_where_it_is_installed():
    try:
        measure = perceptual.learned_metric("cdpam")
    except MetricUnavailableError:
        pytest.skip("pip install --no-deps cdpam")
    rng = np.random.default_rng(0)
    clip, noise = 0.2 * np.sin(np.arange(1, 4411)[None] ** 1.3 / 40), rng.normal(0, 1, (1, 4410))
    worse, better, same = (measure(clip, clip + level * noise, 44100) for level in (0.05, 0.005, 0.0))
    assert worse < better < same
