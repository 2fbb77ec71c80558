"""The parts of a codec as modules that can be traced: plain convolutions and polynomials of fixed shapes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .codec.bottleneck import MIN_PROBABILITY, code_dtype, companding_scale, decompand, latent_limit
from .codec.configuration_walloc import WallocConfig
from .codec.filter_banks import wavelet_filters

# Giles, "Approximating the erfinv function", GPU Computing Gems Jade 2 (2011): polynomials in w = -log(1 - x**2),
# shifted, below and above w = 5; highest power first.
_ERFINV_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def decompand_by_polynomial(u: torch.Tensor, latent_bits: int) -> torch.Tensor:
    """`decompand` of floats without an inverse error function, in float32.

    The relative error is below 1e-6 of the value, as is that of `torch.erfinv` itself, on the range that clamping to
    probabilities in [1e-4, 1 - 1e-4] leaves.
    """
    limit = 1.0 - 2.0 * MIN_PROBABILITY
    x = (u / latent_limit(latent_bits)).clamp(-limit, limit)
    w = -torch.log((1.0 - x) * (1.0 + x))
    centre = _polynomial(_ERFINV_CENTRE, w - 2.5)
    tail = _polynomial(_ERFINV_TAIL, torch.sqrt(w.clamp_min(0.0)) - 3.0)
    return torch.where(w < 5.0, centre, tail) * x * (math.sqrt(2.0) * companding_scale(latent_bits))


class ExportEncoder(nn.Module):
    """Signal -> latents."""

    def __init__(self, model: Any):
        super().__init__()
        self.analysis = PacketAnalysis(model.config)
        self.encoder = model.encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, num_channels, *sizes) in [-0.5, 0.5] -> (batch, latent_channels, *grid) latents."""
        return self.encoder.from_subbands(self.analysis(x))


class ExportQuantizer(nn.Module):
    """Latents and a step -> integer codes, as `model.quantize`."""

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.limit, self.dtype = int(latent_limit(config.latent_bits)), code_dtype(config.latent_bits)

    def forward(self, latents: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Latents and a step, at least 1 -> integer codes of the same shape."""
        return torch.round(latents / step).clamp(-self.limit, self.limit).to(self.dtype)


class _Synthesis(nn.Module):
    """Decompanded latents -> signal."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder, self.synthesis = model.decoder, PacketSynthesis(model.config)
        self.post_filter = model.post_filter if model.config.post_filter_size else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        signal = self.synthesis(self.decoder(z))
        network = getattr(self.decoder, "network", None)  # of decoders that restore the picture
        if network is not None:
            signal = network(signal, z)
        return self.post_filter(signal).clamp(-0.5, 0.5)


class ExportLatentDecoder(nn.Module):
    """Latents -> signal."""

    def __init__(self, model: Any):
        super().__init__()
        self.latent_bits = model.config.latent_bits
        self.synthesis = _Synthesis(model)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, latent_channels, *grid) latents -> signal in [-0.5, 0.5]."""
        return self.synthesis(decompand_by_polynomial(latents, self.latent_bits))


class ExportDecoder(nn.Module):
    """Integer codes and the step that they were quantised with -> signal."""

    levels: torch.Tensor
    values: torch.Tensor

    def __init__(self, model: Any):
        super().__init__()
        self.latent_bits = model.config.latent_bits
        self.limit = int(latent_limit(self.latent_bits))
        self.synthesis = _Synthesis(model)
        self.register_buffer("levels", torch.arange(-self.limit, self.limit + 1).float())
        self.register_buffer("values", decompand(self.levels, self.latent_bits))

    def forward(self, codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """(batch, latent_channels, *grid) codes and their step -> signal in [-0.5, 0.5]."""
        table = torch.where(step == 1.0, self.values, decompand_by_polynomial(self.levels * step, self.latent_bits))
        index = (codes.to(torch.int64) + self.limit).clamp(0, 2 * self.limit)
        return self.synthesis(table[index])


class PacketAnalysis(nn.Module):
    """`wavelet_packet_analysis` level by level: (B, C, *sizes) -> (B, C * bands, *grid)."""

    taps: torch.Tensor  # (2, 1, length), low and high band

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.num_levels, self.num_dims, self.boundary = config.num_levels, config.num_dims, config.boundary
        filters = wavelet_filters(config.wavelet)
        # Convolution layers correlate, so the taps run backwards; see `filter_banks._analysis_cascade`.
        taps = [filters.dec_lo[::-1].tolist(), filters.dec_hi[::-1].tolist()]
        self.register_buffer("taps", torch.tensor(taps)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, *sizes) -> (batch, channels * bands, *grid)."""
        for _ in range(self.num_levels):
            for axis in range(1, self.num_dims + 1):  # the last axis first: it is the higher bit of a band
                x = self._split(x, -axis)
        return x

    def _split(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """(B, K, *sizes) -> (B, 2 K, *sizes), half the size along `axis`."""
        size, length = x.shape[axis], self.taps.shape[2]
        lead = length // 2 - 1
        extended = x.index_select(axis, _inside(torch.arange(-lead, size + length - lead - 2), size, self.boundary))
        y = _convolve(extended.flatten(0, 1)[:, None], self.taps, axis, stride=2)
        return y.unflatten(0, x.shape[:2]).flatten(1, 2)


class PacketSynthesis(nn.Module):
    """`wavelet_packet_synthesis` level by level, the inverse of [`PacketAnalysis`]."""

    taps: torch.Tensor  # (2 places of a pair of samples, 2 bands, length)

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.num_levels, self.num_dims, self.boundary = config.num_levels, config.num_dims, config.boundary
        filters = wavelet_filters(config.wavelet)
        # Sample 2 i + p is the sum over a of coefficients i + a times tap p + length / 2 - 1 - 2 a of either
        # filter: see `_synthesis_cascade` in filter_banks.py.
        length = len(filters.rec_lo)
        self.before, self.after = (length - 1) // 4 + 1, length // 4
        taps = torch.zeros(2, 2, self.before + 1 + self.after)
        for place in range(2):
            for column in range(taps.shape[2]):
                tap = place + length // 2 - 1 - 2 * (column - self.before)
                if 0 <= tap < length:
                    taps[place, :, column] = torch.tensor([filters.rec_lo[tap], filters.rec_hi[tap]])
        self.register_buffer("taps", taps)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, channels * bands, *grid) -> (batch, channels, *sizes)."""
        for _ in range(self.num_levels):
            for axis in range(self.num_dims, 0, -1):
                y = self._merge(y, -axis)
        return y

    def _merge(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """(B, 2 K, *sizes) -> (B, K, *sizes), twice the size along `axis`."""
        size = y.shape[axis]
        y = y.unflatten(1, (-1, 2))
        batch, channels = y.shape[:2]
        places = torch.arange(-self.before, size + self.after)
        # Both bands lie on one lattice, low ones at even places, and the borders mirror that.
        bands = [
            y[:, :, band].index_select(axis, _inside(2 * places + band, 2 * size, self.boundary) // 2)
            for band in range(2)
        ]
        pairs = _convolve(torch.stack(bands, dim=2).flatten(0, 1), self.taps, axis, stride=1)
        # (R, 2, *sizes): the pair behind its axis, then both as one.
        pairs = pairs.movedim(1, pairs.ndim + axis)
        return pairs.flatten(axis - 1 + pairs.ndim, axis + pairs.ndim).unflatten(0, (batch, channels))


def _convolve(x: torch.Tensor, taps: torch.Tensor, axis: int, stride: int) -> torch.Tensor:
    """(R, inputs, *sizes) with (outputs, inputs, length) along `axis`."""
    if x.ndim == 3:
        return F.conv1d(x, taps, stride=stride)
    if axis == -1:
        return F.conv2d(x, taps[:, :, None], stride=(1, stride))
    return F.conv2d(x, taps[..., None], stride=(stride, 1))


def _inside(places: torch.Tensor, size: int, boundary: str) -> torch.Tensor:
    """Where the places of an endless signal lie within its `size` (even) samples."""
    # As tensors: ONNX takes no size that is known at run time only for a scalar.
    count = torch.full((1,), size)
    if boundary == "periodization":
        return torch.remainder(places, count)
    last = count - 1
    return last - (last - torch.remainder(places, 2 * last)).abs()


def _polynomial(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x + coefficient
    return y
