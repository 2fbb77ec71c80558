"""Closed-form codecs: the Karhunen-Loeve transform of the subbands.

Of all linear encoders with a given number of outputs, the leading eigenvectors of the subbands' covariance lose the
least energy (Eckart-Young). One pass over the training signals gives the covariance, an eigendecomposition the rest:
a codec with no gradient step, whose latent channels come out in order of variance, so that its first channels are the
codec of fewer channels.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..atomic import atomic_file
from ..codec.bottleneck import companding_scale, latent_limit
from ..codec.configuration_walloc import WallocConfig
from ..codec.decoders import LinearDecoder, ResidualDecoder, RestorationDecoder
from ..codec.wavelets import wavelet_packet_analysis
from .symmetric import symmetric_basis, symmetric_moments


class SubbandStatistics:
    """Running mean and covariance of a codec's subbands, accumulated in double precision.

    The result does not depend on how the signals are batched (up to rounding), so it can be accumulated in one
    streaming pass over any amount of data.
    """

    def __init__(self, config: WallocConfig):
        self.config = config
        self.count = 0
        self.total = np.zeros(config.subband_channels)
        self.products = np.zeros((config.subband_channels, config.subband_channels))

    def update(self, x: torch.Tensor) -> None:
        """Take in signals (batch, num_channels, *sizes) in [-0.5, 0.5], sizes multiples of `config.patch_size`."""
        config = self.config
        if not x.isfinite().all():
            raise ValueError("the signal holds NaN or infinite values")
        subbands = wavelet_packet_analysis(x, config.num_levels, config.wavelet, config.boundary, config.num_dims)
        columns = subbands.flatten(2).transpose(0, 1).flatten(1).double()  # (subbands, positions)
        self.count += columns.shape[1]
        self.total += columns.sum(dim=1).numpy(force=True)
        self.products += (columns @ columns.T).numpy(force=True)

    def save(self, file: str | Path) -> None:
        """Write the sums to a safetensors file, atomically."""
        with atomic_file(file) as partial:
            save_file({"count": np.array([self.count]), "total": self.total, "products": self.products}, partial)

    @classmethod
    def load(cls, file: str | Path, config: WallocConfig) -> "SubbandStatistics":
        """Read what `save` wrote; ValueError if it is of another number of subbands."""
        sums = load_file(file)
        statistics = cls(config)
        if set(sums) != {"count", "total", "products"} or sums["products"].shape != statistics.products.shape:
            raise ValueError(f"{file} does not hold statistics of {config.subband_channels} subbands")
        statistics.count = int(sums["count"][0])
        statistics.total, statistics.products = sums["total"], sums["products"]
        return statistics

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        return self.products / self.count - np.outer(self.mean, self.mean)


@torch.no_grad()
def fit_klt(model, statistics: SubbandStatistics, step: float, symmetric: bool = False) -> np.ndarray:
    """Set a model's projection and linear synthesis to the Karhunen-Loeve transform, in place.

    Args:
        model: a full model with a `residual`, `restoration` or `linear` decoder; its network starts anew from zero.
        statistics: of subbands of the model's configuration, at least as many positions as subbands.
        step: width of a quantisation cell around zero, in units of the transform's coefficients (those of an image in
            [-0.5, 0.5] have standard deviations of about 0.05 to 2 over the first 12).
        symmetric: rows that every symmetry of the square maps onto rows, so that latents can be flipped, rotated and
            transposed; for images whose blocks do not overlap. It sets `config.latent_symmetry`.

    Returns:
        Variances of the coefficients of the transform in decreasing order: of all, or if `symmetric` of those kept.

    Raises:
        ValueError: too little data, a non-positive step, or an encoder or decoder that is not linear and pointwise.
    """
    config, decoder = model.config, model.decoder
    if not isinstance(decoder, LinearDecoder | ResidualDecoder):
        raise ValueError(
            f"decoder_type is {config.decoder_type!r}; valid for a closed-form fit: residual, restoration, linear"
        )
    if not step > 0:
        raise ValueError(f"step is {step}; it must be positive")
    if statistics.count < config.subband_channels:
        raise ValueError(
            f"{statistics.count} positions cannot give the covariance of {config.subband_channels} subbands; add data"
        )
    mean, covariance = statistics.mean, statistics.covariance
    if symmetric:
        mean, covariance = symmetric_moments(config, mean, covariance)
        basis, variances, config.latent_symmetry = symmetric_basis(config, covariance)
    else:
        # Of torch, whose number of threads the caller sets: with another one the last bits differ.
        variances, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(covariance)))
        variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1]
        basis = vectors[:, : config.latent_channels].T  # (latents, subbands)
        # The sign of an eigenvector is arbitrary; fixing it makes refits reproducible.
        basis = basis * np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)])[:, None]
        config.latent_symmetry = None

    # Companding has the slope 2 m / (s sqrt(2 pi)) at zero: this scale makes `step` one unit of code there.
    scale = 1.0 / (_companding_slope(config) * step)
    kept = variances[: config.latent_channels]
    wiener = kept / (kept + step**2 / 12)  # the least-squares answer to the noise of rounding
    synthesis = (basis * (wiener / scale)[:, None]).T
    projection = model.encoder.projection
    _assign(projection.weight, basis * scale)
    _assign(projection.bias, -(basis * mean).sum(axis=1) * scale)
    _assign(decoder.linear.weight, synthesis)
    _assign(decoder.linear.bias, mean)
    if isinstance(decoder, ResidualDecoder):
        _set_scales(decoder, basis * scale, synthesis, covariance)
    network = decoder.network if isinstance(decoder, RestorationDecoder) else decoder
    if not isinstance(network, LinearDecoder):
        for parameter in network.head.parameters():
            parameter.zero_()
    return variances


@torch.no_grad()
def fit_linear_synthesis(model, statistics: SubbandStatistics) -> None:
    """Set a model's linear synthesis to the least-squares answer to the projection that it has, in place.

    With the covariance C of the subbands, a projection W and the variance v of rounding that is
    `C W' (W C W' + v I)^-1`, the linear estimate of the subbands from noisy latents.

    Args:
        model: a full model with a linear synthesis.
        statistics: of subbands of the model's configuration.

    Raises:
        ValueError: a decoder without a linear synthesis, or no data.
    """
    config = model.config
    if not isinstance(model.decoder, LinearDecoder | ResidualDecoder):
        raise ValueError(f"decoder_type is {config.decoder_type!r}; it has no linear synthesis")
    if not statistics.count:
        raise ValueError("the statistics are empty; update them with signals first")
    projection, linear = model.encoder.projection, model.decoder.linear
    weight = projection.weight.flatten(1).double().numpy(force=True)
    bias = projection.bias.double().numpy(force=True)
    rounding = 1.0 / (12 * _companding_slope(config) ** 2)
    mean, subbands = statistics.mean, statistics.covariance
    if config.latent_symmetry is not None:
        mean, subbands = symmetric_moments(config, mean, subbands)
    covariance = weight @ subbands @ weight.T + rounding * np.eye(len(weight))
    synthesis = np.linalg.solve(covariance, weight @ subbands).T
    _assign(linear.weight, synthesis)
    _assign(linear.bias, mean - synthesis @ (weight @ mean + bias))


def _companding_slope(config: WallocConfig) -> float:
    """Of latents over outputs of the projection, at zero."""
    return 2 * latent_limit(config.latent_bits) / (companding_scale(config.latent_bits) * math.sqrt(2 * math.pi))


@torch.no_grad()
def fit_decoder_scales(model, statistics: SubbandStatistics) -> None:
    """Set the scales of a residual decoder's network, in place, for the encoder and linear synthesis that it has.

    Args:
        model: a full model with a `residual` decoder.
        statistics: of subbands of the model's configuration.

    Raises:
        ValueError: another decoder, or no data.
    """
    config, decoder = model.config, model.decoder
    if not isinstance(decoder, ResidualDecoder):
        raise ValueError(f"decoder_type is {config.decoder_type!r}; only a residual decoder has scales")
    if not statistics.count:
        raise ValueError("the statistics are empty; update them with signals first")
    linear = (model.encoder.projection, decoder.linear)
    projection, synthesis = (layer.weight.flatten(1).double().numpy(force=True) for layer in linear)
    _set_scales(decoder, projection, synthesis, statistics.covariance)


def _set_scales(decoder: ResidualDecoder, projection: np.ndarray, synthesis: np.ndarray, covariance: np.ndarray):
    """Standard deviations of the latents, and of what the linear synthesis leaves of each subband."""
    residual = np.eye(len(covariance)) - synthesis @ projection
    for scales, matrix in ((decoder.latent_std, projection), (decoder.subband_scale, residual)):
        variances = np.einsum("ij,ij->i", matrix @ covariance, matrix)
        _assign(scales, np.sqrt(variances.clip(min=1e-12)))


def _assign(parameter: torch.Tensor | None, values: np.ndarray) -> None:
    if parameter is None:
        raise ValueError("a closed-form fit needs a projection and a linear synthesis with biases")
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(parameter.shape))
