"""The eight symmetries of the square, and what they do to the latents of symmetric block codecs.

A codec whose blocks do not overlap (`wavelet="haar"`, `boundary="periodization"`) can have rows of its projection that
each symmetry maps onto rows, up to sign: an even row stays as it is where an odd one changes its sign, and a transposed
picture swaps the two rows of a pair. Encoding a moved picture then is moving the latents:
`encode(g(x)) == signs * g(encode(x))[channels]`. Companding and rounding are odd functions, so it holds for codes too.
`config.latent_symmetry` says which rows are which.
"""

import functools
import reprlib
from typing import Any, NamedTuple

import numpy as np
import torch

from .wavelets import wavelet_packet_analysis

# What each does to (..., height, width): a transposition first or none, then flips of rows and columns.
_STEPS: dict[str, tuple[bool, bool, bool]] = {
    "identity": (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, True, False),
    "rot270": (True, False, True),
    "transverse": (True, True, True),
}
SYMMETRIES: tuple[str, ...] = tuple(_STEPS)
_GENERATORS = ("vflip", "hflip", "transpose")  # in this order the fields of `latent_symmetry`


class SignedPermutation(NamedTuple):
    """`(p x)[i] = signs[i] * x[index[i]]`; int64 and float32 arrays of the same length."""

    index: np.ndarray  # type: ignore[assignment]
    signs: np.ndarray


def move_grid(x: torch.Tensor, name: str) -> torch.Tensor:
    """Flip, rotate (counter-clockwise, as `numpy.rot90`) or transpose the last two axes; a view where torch has one.

    Args:
        x: (..., height, width).
        name: one of `SYMMETRIES`.

    Raises:
        ValueError: an unknown name.
    """
    transposed, rows, columns = _steps(name)
    x = x.transpose(-2, -1) if transposed else x
    axes = [axis for axis, flipped in ((-2, rows), (-1, columns)) if flipped]
    return x.flip(axes) if axes else x


def channel_symmetry(config: Any, name: str) -> SignedPermutation:
    """What a symmetry does to the latent channels, beside moving them.

    Raises:
        ValueError: an unknown name, or a codec without symmetries.
    """
    transposed, rows, columns = _steps(name)
    symmetry = config.latent_symmetry
    if symmetry is None:
        raise ValueError(
            "this codec's transform overlaps its neighbours or its rows have no symmetry, so its latents cannot be "
            f"moved by {name!r}: move the pictures before they are encoded, or use a symmetric block codec such as "
            "walloc/rgb-f16c48"
        )
    index = np.arange(config.latent_channels)
    signs = np.ones(config.latent_channels, np.float32)
    if transposed:
        index = np.abs(symmetry["transpose"]) - 1
        signs = np.sign(symmetry["transpose"]).astype(np.float32)
    for name, applied in (("vflip", rows), ("hflip", columns)):
        if applied:
            signs = signs * np.asarray(symmetry[name], np.float32)
    return SignedPermutation(index, signs)


def subband_symmetry(config: Any, name: str) -> SignedPermutation:
    """What a symmetry does to the subbands of a block.

    Raises:
        ValueError: an unknown name, or a transform whose blocks overlap or have no such symmetry.
    """
    spatial = _block_symmetry(config.num_levels, config.wavelet, config.boundary, name)
    bands = len(spatial.index)
    index = (np.arange(config.num_channels)[:, None] * bands + spatial.index).ravel()
    return SignedPermutation(index, np.tile(spatial.signs, config.num_channels))


@functools.cache
def _block_symmetry(num_levels: int, wavelet: str, boundary: str, name: str) -> SignedPermutation:
    if (wavelet, boundary) != ("haar", "periodization"):
        raise ValueError(
            f"wavelet {wavelet!r} with boundary {boundary!r} overlaps the neighbours of a block; symmetric codecs need "
            "wavelet 'haar' and boundary 'periodization'"
        )
    size = 2**num_levels
    blocks = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    bands, moved = (
        wavelet_packet_analysis(x, num_levels, wavelet, boundary).flatten(1) for x in (blocks, move_grid(blocks, name))
    )
    matrix = (bands.T @ moved).T.numpy()  # the transform is orthonormal
    index = np.abs(matrix).argmax(axis=1)
    return SignedPermutation(index, np.sign(matrix[np.arange(len(matrix)), index]).astype(np.float32))


def symmetric_rows(config: Any, weight: torch.Tensor) -> torch.Tensor:
    """The projection nearest to `weight` that has the symmetry of the configuration: its mean over the group.

    Args:
        weight: (latent_channels, subband_channels); also (subband_channels, latent_channels) of a synthesis, given
            transposed, since a signed permutation is its own transpose's inverse; (latent_channels, 1) for a bias.
    """
    for name in _GENERATORS:
        inputs = subband_symmetry(config, name) if weight.shape[1] > 1 else None
        weight = 0.5 * (weight + _conjugate(weight, channel_symmetry(config, name), inputs))
    return weight


def symmetric_bands(config: Any, bias: torch.Tensor) -> torch.Tensor:
    """The mean over the group of a vector of subbands (subband_channels,)."""
    for name in _GENERATORS:
        bias = 0.5 * (bias + _apply(subband_symmetry(config, name), bias))
    return bias


def has_symmetry(encoder: Any) -> bool:
    """Whether the projection of an encoder has the symmetry of its configuration, up to rounding."""
    weight, bias = encoder.projection.weight.detach().flatten(1), encoder.projection.bias.detach()[:, None]
    if weight.device.type == "meta":
        return True  # nothing to look at yet
    return all(
        torch.allclose(part.float(), symmetric_rows(encoder.config, part.float()), rtol=0, atol=1e-4 * scale)
        for part, scale in ((weight, float(weight.abs().max())), (bias, float(weight.abs().max())))
    )


def _conjugate(weight: torch.Tensor, outputs: SignedPermutation, inputs: SignedPermutation | None) -> torch.Tensor:
    """P weight Q for involutions P of the outputs and Q of the inputs."""
    weight = _apply(outputs, weight)
    return weight if inputs is None else _apply(inputs, weight.T).T


def _apply(permutation: SignedPermutation, x: torch.Tensor) -> torch.Tensor:
    index, signs = (torch.from_numpy(part).to(x.device) for part in permutation)
    return x[index] * signs.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def check_symmetry(config: Any) -> None:
    """Raises ValueError unless `config.latent_symmetry` describes symmetries that the configuration can have."""
    symmetry = config.latent_symmetry
    if symmetry is None:
        return
    if config.num_dims != 2:
        raise ValueError("latent_symmetry is for images: audio and volumes have no symmetries of the square")
    if not isinstance(symmetry, dict) or set(symmetry) != set(_GENERATORS):
        raise ValueError(
            f"latent_symmetry is {reprlib.repr(symmetry)}; valid: a dictionary of {', '.join(_GENERATORS)}, or None"
        )
    channels = config.latent_channels
    for name, values in symmetry.items():
        if not isinstance(values, list | tuple) or any(type(value) is not int for value in values):
            raise ValueError(f"latent_symmetry[{name!r}] is {reprlib.repr(values)}; valid: a list of whole numbers")
        if name == "transpose":
            valid = sorted(map(abs, values)) == list(range(1, channels + 1))
            # Transposing twice is doing nothing.
            valid = valid and all(
                abs(values[abs(v) - 1]) == i and values[abs(v) - 1] * v > 0 for i, v in enumerate(values, 1)
            )
        else:
            valid = len(values) == channels and set(values) <= {-1, 1}
        if not valid:
            kind = "a signed permutation of 1 to" if name == "transpose" else "1 or -1 for each of"
            raise ValueError(
                f"latent_symmetry[{name!r}] is {reprlib.repr(values)}; valid: {kind} {channels} latent channels"
            )
    _block_symmetry(config.num_levels, config.wavelet, config.boundary, "transpose")


def _steps(name: str) -> tuple[bool, bool, bool]:
    if name not in _STEPS:
        raise ValueError(f"unknown symmetry {name!r}; valid: {', '.join(SYMMETRIES)}")
    return _STEPS[name]
