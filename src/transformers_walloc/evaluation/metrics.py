"""Measures of quality and rate, as pure functions on arrays.

Images are uint8 (height, width, channels), waveforms float (channels, length). What needs a package that is not there
raises [`MetricUnavailableError`]: no number is better than a wrong one. Measures of perception are in perceptual.py.

Needs `pip install 'transformers-walloc[eval]'` for all but PSNR, the rates and SI-SDR.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..codec.clips import normalise_clip
from ..codec.pixels import to_8_bits
from ..codec.rate_control import decibels

# SSDR and SRDR of frames without any error, which would be infinite, count as this many dB.
MAX_RATIO_DB = 100.0


class MetricUnavailableError(RuntimeError):
    """A measure needs a package or network weights that this machine does not have; the message says which."""


def to_images(pixel_values: torch.Tensor) -> np.ndarray:
    """Tensors (..., C, H, W) in [-0.5, 0.5] as uint8 images (..., H, W, C)."""
    return np.ascontiguousarray(to_8_bits(pixel_values).movedim(-3, -1).cpu().numpy())


def psnr(reference, estimate, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all samples of two arrays of one shape; infinite if they are equal.

    Args:
        data_range: largest possible difference; 255 for uint8 arrays and 1 for floats unless given.
    """
    reference, estimate = pair(reference, estimate)
    if data_range is None:
        data_range = 255.0 if reference.dtype == np.uint8 else 1.0
    error = np.mean((reference.astype(np.float64) - estimate.astype(np.float64)) ** 2)
    return decibels(float(error) / data_range**2)


def audio_psnr(reference, estimate) -> float:
    """PSNR in dB of a clip that is normalised to zero mean and peak 0.5 and mapped to [0, 1] by adding 0.5."""
    reference, estimate = pair(reference, estimate)
    normalised, gain, offset = _normalised(reference)
    return psnr(normalised, (np.asarray(estimate, dtype=np.float64) - offset) / gain, data_range=1.0)


def ssim(reference, estimate) -> float:
    """Structural similarity of two uint8 images, mean over channels (Wang et al. 2004: Gaussian window of 1.5 px)."""
    return _structural_similarity("ssim", reference, estimate, smallest=11)


def ms_ssim(reference, estimate) -> float:
    """Multi-scale structural similarity of two uint8 images, five scales (Wang et al. 2003); sides of at least 161."""
    return _structural_similarity("ms_ssim", reference, estimate, smallest=161)


def _structural_similarity(name: str, reference, estimate, smallest: int) -> float:
    try:
        import pytorch_msssim
    except ImportError as error:
        raise MetricUnavailableError(f"{name}: {error}; pip install 'transformers-walloc[eval]'") from error
    x, y = image_pair(reference, estimate, smallest)
    return float(getattr(pytorch_msssim, name)(y, x, data_range=255.0))


def si_sdr(reference, estimate) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, mean over channels (Le Roux et al. 2019, zero-mean signals)."""
    x, y = (np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in pair(reference, estimate))
    x, y = (a - a.mean(axis=-1, keepdims=True) for a in (x, y))
    energy = (x**2).sum(axis=-1, keepdims=True)
    if not energy.all():
        raise ValueError("SI-SDR is not defined for a silent reference")
    target = (x * y).sum(axis=-1, keepdims=True) / energy * x
    with np.errstate(divide="ignore"):
        ratio = 10 * np.log10((target**2).sum(axis=-1) / ((y - target) ** 2).sum(axis=-1))
    return float(ratio.mean())


def spatial_ratios(
    reference,
    estimate,
    sampling_rate: int,
    frame_seconds: float = 2.0,
    hop_seconds: float = 1.0,
    max_shift_seconds: float = 1.0,
) -> tuple[float, float]:
    """Signal-to-spatial-distortion and signal-to-residual-distortion ratio (SSDR, SRDR) in dB.

    Each channel of the estimate is modelled as a sum of delayed and scaled channels of the reference,

        s_hat_c[n] = s_tilde_c[n] + e_resid,   s_tilde_c[n] = sum_d A_cd s_d[n - tau_cd],   s_tilde = s + e_spat,

    with the delays from the peaks of the cross-correlations and the gains from least squares. Then
    `SSDR = 10 log10(|s|^2 / |e_spat|^2)` and `SRDR = 10 log10(|s_tilde|^2 / |e_resid|^2)`, both computed in frames and
    averaged. After Watcharasupat & Lerch, Quantifying Spatial Audio Quality Impairment (ICASSP 2024), who call them
    SSR and SRR and also take frames of 2 s with half of them overlapping.

    Args:
        reference, estimate: (channels, length), at least two channels.
        sampling_rate: in Hz.
        max_shift_seconds: bound of the delays.

    Raises:
        ValueError: one channel only, different shapes, or a silent reference.
    """
    reference, estimate = (np.asarray(a, dtype=np.float64) for a in pair(reference, estimate))
    if reference.ndim != 2 or len(reference) < 2:
        raise ValueError(f"waveforms must be (channels, length) with at least 2 channels, got {reference.shape}")
    length = reference.shape[1]
    frame, hop = (max(1, round(seconds * sampling_rate)) for seconds in (frame_seconds, hop_seconds))
    starts = range(0, max(length - frame, 0) + 1, hop)
    ratios = []
    for start in starts:
        s, s_hat = reference[:, start : start + frame], estimate[:, start : start + frame]
        if (s**2).mean() > 1e-12:
            ratios.append(_frame_ratios(s, s_hat, min(round(max_shift_seconds * sampling_rate), s.shape[1] // 2)))
    if not ratios:
        raise ValueError("SSDR and SRDR are not defined for a silent reference")
    ssdr, srdr = np.mean(ratios, axis=0)
    return float(ssdr), float(srdr)


def _frame_ratios(s: np.ndarray, s_hat: np.ndarray, max_shift: int) -> tuple[float, float]:
    from scipy.fft import irfft, next_fast_len, rfft

    channels, length = s.shape
    size = next_fast_len(length + max_shift, real=True)  # long enough that the wanted shifts do not wrap around
    spectra, spectra_hat = rfft(s, size), rfft(s_hat, size)
    correlation = irfft(spectra_hat[:, None] * spectra[None].conj(), size)  # (estimate, reference, shift)
    correlation = np.concatenate([correlation[..., -max_shift:], correlation[..., : max_shift + 1]], axis=-1)
    shifts = np.abs(correlation).argmax(axis=-1) - max_shift if max_shift else np.zeros((channels, channels), int)

    # Only samples for which every delayed reference lies within the frame.
    first, last = max(0, int(shifts.max())), length + min(0, int(shifts.min()))
    signal_energy = spatial_energy = model_energy = residual_energy = 0.0
    for c in range(channels):
        delayed = np.stack([s[d, first - shifts[c, d] : last - shifts[c, d]] for d in range(channels)])
        target, original = s_hat[c, first:last], s[c, first:last]
        # Silent or equal channels make the Gram matrix singular: the smallest solution leaves them out.
        gains = np.linalg.pinv(delayed @ delayed.T, rcond=1e-10, hermitian=True) @ (delayed @ target)
        model = gains @ delayed
        signal_energy += (original**2).sum()
        spatial_energy += ((model - original) ** 2).sum()
        model_energy += (model**2).sum()
        residual_energy += ((target - model) ** 2).sum()
    return _ratio_db(signal_energy, spatial_energy), _ratio_db(model_energy, residual_energy)


def _ratio_db(signal: float, noise: float) -> float:
    if noise <= signal * 10 ** (-MAX_RATIO_DB / 10):
        return MAX_RATIO_DB
    return max(-MAX_RATIO_DB, 10 * math.log10(max(signal, 1e-300) / noise))


def zimtohrli_mos(reference, estimate, sampling_rate: int) -> float:
    """Mean opinion score, 1 to 5, predicted by Zimtohrli (Google 2025); mean over channels, clip at its own peak.

    Raises:
        MetricUnavailableError: the package zimtohrli is not installed; it has wheels for Linux and macOS.
    """
    try:
        import soxr
        import zimtohrli
    except ImportError as error:
        raise MetricUnavailableError(f"Zimtohrli: {error}; pip install zimtohrli soxr") from error
    normalised, gain, offset = _normalised(reference)
    scores = []
    for x, y in zip(normalised, (np.asarray(estimate, dtype=np.float64) - offset) / gain, strict=True):
        x, y = (soxr.resample(2 * a, sampling_rate, 48000).clip(-1, 1).astype(np.float32) for a in (x, y))
        scores.append(zimtohrli.mos_from_signals(x, y))
    return float(np.mean(scores))


def compression_ratio(num_values: int, num_bytes: int, bits_per_value: int) -> float:
    """Size of the raw signal over the size of the finished file, header included.

    Args:
        num_values: pixels x channels, or samples x channels, of the original without padding.
        num_bytes: size of the file.
        bits_per_value: 8 for images (24 bits per pixel), 16 for audio (PCM).
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes is {num_bytes}; a file has at least one byte")
    return num_values * bits_per_value / (8 * num_bytes)


def bits_per_pixel(height: int, width: int, num_bytes: int) -> float:
    """Bits of the finished file per pixel."""
    return 8 * num_bytes / (height * width)


def bd_rate(
    anchor_rates: Sequence[float],
    anchor_qualities: Sequence[float],
    rates: Sequence[float],
    qualities: Sequence[float],
) -> float:
    """Bjontegaard delta rate in percent: by how much `rates` differ at equal quality; negative is a saving.

    The logarithm of the rate is interpolated over the quality by a monotone piecewise cubic (as in the JVET common
    test conditions) and averaged over the range of qualities that both curves reach.

    Args:
        anchor_rates, anchor_qualities: the curve to compare with, at least two points in any order.
        rates, qualities: the curve of interest.

    Returns:
        NaN where the curves have no quality in common.
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for given_rates, given_qualities in ((anchor_rates, anchor_qualities), (rates, qualities)):
        rate, quality = np.asarray(given_rates, dtype=np.float64), np.asarray(given_qualities, dtype=np.float64)
        if rate.shape != quality.shape or rate.ndim != 1 or len(rate) < 2 or not np.all(rate > 0):
            raise ValueError(f"a curve needs two or more positive rates with a quality each, got {rate}, {quality}")
        points, first = np.unique(quality, return_index=True)
        if len(points) < 2:
            raise ValueError("all points of a curve have the same quality")
        curves.append((points, np.log(rate[first])))
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if high <= low:
        return math.nan
    anchor, curve = (PchipInterpolator(quality, rate).integrate(low, high) / (high - low) for quality, rate in curves)
    return float((np.exp(curve - anchor) - 1) * 100)


def _normalised(waveform) -> tuple[np.ndarray, float, float]:
    normalised, gain, offset = normalise_clip(torch.from_numpy(np.asarray(waveform, dtype=np.float64)))
    return normalised.numpy(), gain, offset


def pair(reference, estimate) -> tuple[np.ndarray, np.ndarray]:
    """Two signals as arrays of one shape, or ValueError."""
    reference, estimate = (a.numpy(force=True) if isinstance(a, torch.Tensor) else a for a in (reference, estimate))
    reference, estimate = np.asarray(reference), np.asarray(estimate)
    if reference.shape != estimate.shape or not reference.size:
        raise ValueError(f"reference and estimate differ in shape or are empty: {reference.shape}, {estimate.shape}")
    return reference, estimate


def image_pair(reference, estimate, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two uint8 images with sides of at least `smallest` as floats (1, C, H, W) in 0..255, or ValueError, TypeError."""
    reference, estimate = pair(reference, estimate)
    if reference.dtype != np.uint8 or estimate.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {reference.dtype} and {estimate.dtype}")
    if reference.ndim != 3 or min(reference.shape[:2]) < smallest:
        raise ValueError(
            f"images must be (height, width, channels) with sides of at least {smallest}, got {reference.shape}"
        )
    x, y = (torch.tensor(image).movedim(-1, 0)[None].float() for image in (reference, estimate))
    return x, y
