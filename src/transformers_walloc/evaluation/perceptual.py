"""Measures of what eyes and ears notice, by other packages.

Of images: GMSD, VSI, FSIM and HaarPSI (package piq) and SSIMULACRA2 (package ssimulacra2), which need no weights, and
LPIPS and DISTS (piq), which do; of audio: CDPAM. What is not to be had raises [`MetricUnavailableError`].

piq asks for torchvision, which only LPIPS and DISTS use: `pip install --no-deps piq` is enough for the others.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..codec.rate_control import decibels
from .metrics import MetricUnavailableError, image_pair, pair
from .stand_ins import stand_ins

PIQ_METRICS = ("gmsd", "vsi", "fsim", "haarpsi")
LEARNED_METRICS = ("lpips", "dists", "cdpam")


def similarity(name: str, reference, estimate) -> float:
    """A measure of two uint8 RGB images without trained weights, on the scale of its authors.

    Args:
        name: `gmsd` (Xue et al. 2014, 0 is best), or `vsi` (Zhang et al. 2014), `fsim` (with colour, Zhang et al. 2011)
            or `haarpsi` (Reisenhofer et al. 2018), of which 1 is best. Sides of at least 32.

    Raises:
        ValueError: another name, or images that are too small or differ in shape.
        MetricUnavailableError: the package piq is not installed.
    """
    if name not in PIQ_METRICS:
        raise ValueError(f"unknown metric {name!r}; valid: {', '.join(PIQ_METRICS)}")
    piq = _piq(name)
    x, y = (image / 255 for image in image_pair(reference, estimate, smallest=32))
    with torch.inference_mode():
        return float(getattr(piq, name)(y, x, data_range=1.0))


def ssimulacra2(reference, estimate) -> float:
    """SSIMULACRA2 of two uint8 RGB images (Cloudinary 2023): 100 for equal ones, 70 high quality, 50 medium quality.

    Raises:
        MetricUnavailableError: the package ssimulacra2 is not installed.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise MetricUnavailableError(f"SSIMULACRA2: {error}; pip install ssimulacra2") from error
    image_pair(reference, estimate, smallest=8)
    files = [io.BytesIO(), io.BytesIO()]
    for file, image in zip(files, (reference, estimate), strict=True):
        Image.fromarray(image).save(file, "PNG", compress_level=0)
    return float(compute_ssimulacra2(*files))


def learned(name: str, *signals) -> float:
    """`learned_metric(name)` of two signals and, for audio, their sampling rate in Hz."""
    return learned_metric(name)(*signals)


@functools.cache
def learned_metric(name: str) -> Callable[..., float]:
    """A measure by a trained network, in dB: `-10 log10` of its distance.

    Args:
        name: `lpips` or `dists` for two uint8 images (packages piq and torchvision), `cdpam` for two waveforms and
            their sampling rate (package cdpam, mean over channels).

    Raises:
        MetricUnavailableError: the package or the weights, which it downloads on first use, are not to be had.
    """
    if name not in LEARNED_METRICS:
        raise ValueError(f"unknown metric {name!r}; valid: {', '.join(LEARNED_METRICS)}")
    try:
        return _cdpam() if name == "cdpam" else _piq_network(name)
    # No common base: absent package, absent network, a package built for another torch, a pickle that torch refuses.
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise MetricUnavailableError(f"{name.upper()}: {first_line}") from error


def _piq(name: str):
    try:
        with stand_ins("torchvision"):
            import piq
    except ImportError as error:
        raise MetricUnavailableError(f"{name.upper()}: {error}; pip install --no-deps piq") from error
    return piq


def _piq_network(name: str) -> Callable[..., float]:
    import torchvision  # noqa: F401 (whose networks piq takes)

    piq = _piq(name)
    network = piq.LPIPS() if name == "lpips" else piq.DISTS()

    @torch.inference_mode()
    def measure(reference, estimate) -> float:
        x, y = (image / 255.0 for image in image_pair(reference, estimate, smallest=32))
        return decibels(max(float(network(y, x)), 0.0))

    return measure


def _cdpam() -> Callable[..., float]:
    """Takes 7 seconds of a core for each second of audio: give it short clips."""
    import soxr

    with stand_ins("librosa", "resampy"):  # for its own reading of files
        import cdpam
        from cdpam.models import FINnet

    class OnCpu(cdpam.CDPAM):
        """As its own constructor, which wants a GPU and reads a pickle that torch takes for unsafe by default.

        The file is a part of the installed package, like the code that is imported above.
        """

        def __init__(self):
            self.device = torch.device("cpu")
            shape = {"encoder_layers": 16, "encoder_filters": 64, "ndim": [16, 6], "input_size": 512}
            self.model = FINnet(dev=self.device, classif_dp=0.05, classif_BN=0, classif_act="no", **shape)
            weights = Path(cdpam.__file__).parent / "CDPAM_trained" / "scratchJNDdefault_best_model.pth"
            self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=False)["state"])
            self.model.eval()

    network = OnCpu()

    @torch.inference_mode()
    def measure(reference, estimate, sampling_rate: int) -> float:
        distances = []
        for x, y in zip(*pair(reference, estimate), strict=True):
            # 22,050 Hz and the range of 16-bit integers are what the network was trained on.
            x, y = (np.round(soxr.resample(a, sampling_rate, 22050) * 32768).astype(np.float32)[None] for a in (x, y))
            distances.append(float(network.forward(x, y)))
        return decibels(float(np.mean(distances)))

    return measure
