"""Codecs whose latents can be flipped, rotated and transposed: their closed form, and how training keeps them so.

The covariance of the subbands, averaged over the eight symmetries of the square, commutes with them, so that its
eigenvectors can be chosen even or odd under every flip; with a transposition they are even, odd, or come in pairs that
it swaps (Serre, "Linear Representations of Finite Groups", section 2.6). That halves the free parameters and more, and
costs nothing: photographs have no preferred side, but for the sky.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from ..codec.configuration_walloc import WallocConfig
from ..codec.symmetries import SignedPermutation, subband_symmetry, symmetric_bands, symmetric_rows


class SymmetricBasis(NamedTuple):
    """Rows (latents, subbands), their variances, and `latent_symmetry` of a configuration."""

    rows: np.ndarray
    variances: np.ndarray
    symmetry: dict[str, list[int]]


def symmetric_moments(config: WallocConfig, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (subbands,) and covariance (subbands, subbands) as if every signal had been seen in all eight positions."""
    second = covariance + np.outer(mean, mean)
    for name in ("vflip", "hflip", "transpose"):
        moved = subband_symmetry(config, name)
        second = 0.5 * (second + _move(moved, _move(moved, second).T).T)
        mean = 0.5 * (mean + _move(moved, mean))
    return mean, second - np.outer(mean, mean)


def symmetric_basis(config: WallocConfig, covariance: np.ndarray) -> SymmetricBasis:
    """The leading eigenvectors of a covariance that is symmetric (see `symmetric_moments`), in order of variance.

    A pair that the last channel would cut is left out for the next single row.
    """
    flips = [subband_symmetry(config, name).signs for name in ("vflip", "hflip")]
    transpose = subband_symmetry(config, "transpose")
    identity = np.eye(len(covariance))
    transposed = _move(transpose, identity)
    found: list[tuple[float, np.ndarray, tuple[int, int, int]]] = []  # variance, row, signs; 0 for one of a pair
    for vertical, horizontal, transposition in ((1, 1, 1), (1, 1, -1), (-1, -1, 1), (-1, -1, -1), (1, -1, 0)):
        inside = (flips[0] == vertical) & (flips[1] == horizontal)
        space = identity[:, inside]
        if transposition:
            projector = 0.5 * (space.T @ (identity + transposition * transposed) @ space)
            values, vectors = np.linalg.eigh(projector)
            space = space @ vectors[:, values > 0.5]
        variances, vectors = _eigh(space.T @ covariance @ space)
        for variance, row in zip(variances, (space @ vectors).T, strict=True):
            row = row * np.sign(row[np.abs(row).argmax()])  # the sign of an eigenvector is arbitrary
            found.append((float(variance), row, (vertical, horizontal, transposition)))
    found.sort(key=lambda entry: -entry[0])

    rows: list[np.ndarray] = []
    kept: list[float] = []
    symmetry: dict[str, list[int]] = {"vflip": [], "hflip": [], "transpose": []}
    for variance, row, (vertical, horizontal, transposition) in found:
        number = len(rows) + 1
        size = 1 if transposition else 2
        if len(rows) + size > config.latent_channels:
            continue
        rows += [row] if transposition else [row, _move(transpose, row)]
        kept += [variance] * size
        symmetry["vflip"] += [vertical] if transposition else [vertical, horizontal]
        symmetry["hflip"] += [horizontal] if transposition else [horizontal, vertical]
        symmetry["transpose"] += [transposition * number] if transposition else [number + 1, number]
    return SymmetricBasis(np.array(rows), np.array(kept), symmetry)


def keep_symmetric(model: Any) -> None:
    """Have every later gradient of the projection and the linear synthesis obey the symmetry that the model has.

    Optimisers that treat all weights alike then keep it, up to rounding, which `make_symmetric` removes at the end.
    Nothing is done for a model without one.
    """
    config = model.config
    if config.latent_symmetry is None:
        return
    for parameter, project in _projections(model):
        if parameter.requires_grad:
            parameter.register_hook(project)


@torch.no_grad()
def make_symmetric(model: Any) -> None:
    """Project the projection and the linear synthesis of a model onto the symmetry that its configuration has."""
    if model.config.latent_symmetry is None:
        return
    for parameter, project in _projections(model):
        parameter.copy_(project(parameter))


def _projections(model: Any) -> list[tuple[Any, Any]]:
    config = model.config
    encoder, linear = model.encoder.projection, model.decoder.linear

    def rows(weight: torch.Tensor) -> torch.Tensor:
        return symmetric_rows(config, weight.flatten(1)).view_as(weight)

    def columns(weight: torch.Tensor) -> torch.Tensor:
        return symmetric_rows(config, weight.flatten(1).T).T.reshape(weight.shape)

    def latents(bias: torch.Tensor) -> torch.Tensor:
        return symmetric_rows(config, bias[:, None])[:, 0]

    def subbands(bias: torch.Tensor) -> torch.Tensor:
        return symmetric_bands(config, bias)

    return [(encoder.weight, rows), (encoder.bias, latents), (linear.weight, columns), (linear.bias, subbands)]


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Of torch, whose number of threads the caller sets: with another one the last bits differ.
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix)))
    return values.numpy()[::-1].clip(min=0), vectors.numpy()[:, ::-1]


def _move(moved: SignedPermutation, x: np.ndarray) -> np.ndarray:
    return x[moved.index] * moved.signs.astype(np.float64).reshape(-1, *[1] * (x.ndim - 1))
