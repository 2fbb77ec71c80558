"""Wavelet packet analysis and synthesis in one, two or three dimensions.

A level splits every band in two along every axis (Mallat, "A Wavelet Tour of Signal Processing", chapter 8), so
`num_levels` levels turn the `block = 2**num_levels` samples of a block into `block` subbands per axis. Both directions
are linear, and away from the ends they treat every block alike. A cascade of up to four levels is therefore applied at
once, as one strided convolution per axis whose taps are read off the cascade's own impulse responses:

    samples    |. . . . . . . .|. . . . . . . .|. . . . . . . .|    blocks of 2**3 samples
                          \\___________ | ___________/
    subbands               (b0 b1 b2 b3 b4 b5 b6 b7)                one column of 8 coefficients for a block

Nothing here holds state: taps are computed in double precision from the filters, cached per device, and never pass
through a checkpoint. Where no gradient is needed, images and long audio take the routes of `fast_wavelets.py`, which
compute the same numbers faster.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from .fast_wavelets import analyse_tiles, filter_and_project, filter_bank, fits_tiles, put_groups, synthesise_tiles
from .filter_banks import BOUNDARIES, Boundary, check_wavelet, stages, wavelet_filters
from .runtime import is_traced
from .wavelet_convolutions import analysis_bands, band_order, synthesis_bands, wide_dtype

__all__ = [
    "BOUNDARIES",
    "analyse_and_project",
    "check_wavelet",
    "wavelet_filters",
    "wavelet_packet_analysis",
    "wavelet_packet_synthesis",
]


Route: TypeAlias = Callable[..., torch.Tensor]

_check_wavelet = torch.compiler.assume_constant_result(check_wavelet)  # numpy inside, see wavelet_convolutions.py


def wavelet_packet_analysis(
    x: torch.Tensor,
    num_levels: int,
    wavelet: str = "bior4.4",
    boundary: Boundary | str = "symmetric",
    num_dims: int = 2,
) -> torch.Tensor:
    """Full wavelet packet decomposition of the last `num_dims` axes.

    Args:
        x: real signal (batch, channels, *sizes); each size must be a multiple of `2**num_levels`.
        num_levels: how often every band is split in two along every axis; 0 leaves the signal as it is.
        wavelet: a PyWavelets name.
        boundary: `symmetric` (whole-sample reflection as in JPEG 2000, so that opposite borders do not leak into each
            other) or `periodization` (the signal repeats; what the original WaLLoC uses).
        num_dims: 1 (audio), 2 (images) or 3 (volumes, video).

    Returns:
        Subbands (batch, channels * 2**(num_dims * num_levels), *(sizes / 2**num_levels)) in at least float32. Bands are
        ordered by level, coarsest split first: the index of a level is the sum of bits `high along axis a` << a, with
        the rows as axis 0, so (LL, LH, HL, HH) in two dimensions. That is the order of the original implementation.
    """
    _check_wavelet(wavelet, boundary)
    _check_signal(x, num_dims, num_levels)
    if _is_plain_inference(x) and fits_tiles(_grid(x, num_levels), num_levels, wavelet, boundary, "analysis"):
        return _analyse_by_tiles(x, num_levels, wavelet, boundary)
    bands = analysis_bands(x, num_levels, wavelet, boundary, num_dims)
    if num_dims > 1:
        bands = bands.unflatten(1, (-1, 2 ** (num_dims * num_levels)))
        bands = bands[:, :, band_order(num_levels, num_dims, bands.device)].flatten(1, 2)
    return bands


def wavelet_packet_synthesis(
    subbands: torch.Tensor,
    num_levels: int,
    wavelet: str = "bior4.4",
    boundary: Boundary | str = "symmetric",
    num_dims: int = 2,
) -> torch.Tensor:
    """Inverse of `wavelet_packet_analysis`: (batch, channels * bands, *grid) -> (batch, channels, *sizes)."""
    _check_wavelet(wavelet, boundary)
    _check_signal(subbands, num_dims, 0)
    num_bands = 2 ** (num_dims * num_levels)
    if subbands.shape[1] % num_bands:
        raise ValueError(
            f"{subbands.shape[1]} channels are not a multiple of {num_bands} subbands ({num_levels} levels)"
        )
    if _is_plain_inference(subbands) and fits_tiles(subbands.shape[2:], num_levels, wavelet, boundary, "synthesis"):
        order = band_order(num_levels, num_dims, subbands.device, inverse=True)
        return synthesise_tiles(subbands, num_levels, wavelet, boundary, wide_dtype(subbands), order)
    if num_dims > 1:
        subbands = subbands.unflatten(1, (-1, num_bands))
        subbands = subbands[:, :, band_order(num_levels, num_dims, subbands.device, inverse=True)].flatten(1, 2)
    return synthesis_bands(subbands, num_levels, wavelet, boundary, num_dims)


def analyse_and_project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    num_levels: int,
    wavelet: str,
    boundary: str,
    num_dims: int,
) -> torch.Tensor:
    """`wavelet_packet_analysis` followed by a pointwise projection, as one linear operator.

    Args:
        x: (batch, channels, *sizes), sizes multiples of `2**num_levels`.
        weight: (outputs, channels * bands) over subbands in public order; bias: (outputs,).

    Returns:
        (batch, outputs, *(sizes / 2**num_levels)) in at least float32. Unless a gradient of
        `x` is needed this is several times faster than the two steps, and equal up to rounding.
    """
    if _is_plain_inference(x) and not is_traced(weight, bias):
        grid = _grid(x, num_levels)
        route: Route | None = None
        if fits_tiles(grid, num_levels, wavelet, boundary, "analysis"):
            route = _project_by_tiles
        elif num_dims == 1 and _filter_bank_is_cheaper(grid[0], len(weight), num_levels, wavelet):
            route = _project_by_filter_bank
        if route is not None:
            apply: Route = _FastProjection.apply
            return apply(x, weight, bias, route, num_levels, wavelet, boundary, num_dims)
    bands = analysis_bands(x, num_levels, wavelet, boundary, num_dims)
    weight = weight.to(bands.dtype).unflatten(1, (x.shape[1], -1))
    weight = weight[:, :, band_order(num_levels, num_dims, weight.device, inverse=True)].flatten(1, 2)
    y = weight @ bands.flatten(2)
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None]
    latents: torch.Tensor = y.unflatten(2, bands.shape[2:])
    return latents


class _FastProjection(torch.autograd.Function):
    """A fast route of `analyse_and_project` for signals that need no gradient; the weights may."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, route: Route, *transform: Any) -> Any:
        return route(x, weight, bias, *transform[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, bias, _, *ctx.transform = inputs
        ctx.save_for_backward(x)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        by_weight = by_bias = None
        if ctx.needs_input_grad[1]:
            bands = wavelet_packet_analysis(x, *ctx.transform)
            by_weight = torch.einsum("bop,bip->oi", grad.flatten(2), bands.flatten(2)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(dim=(0, *range(2, grad.ndim))).to(ctx.dtypes[1])
        return None, by_weight, by_bias, None, *[None] * len(ctx.transform)


def _project_by_tiles(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, num_levels: int, wavelet: str, boundary: str
) -> torch.Tensor:
    dtype, channels, block, outputs = wide_dtype(x), x.shape[1], 2**num_levels, len(weight)
    weight = weight.to(dtype).unflatten(1, (channels, -1))[:, :, band_order(num_levels, 2, weight.device, inverse=True)]
    weight = weight.unflatten(2, (block, block)).permute(2, 1, 3, 0).reshape(-1, outputs)  # ((v, c, h), outputs)
    out = x.new_empty((len(x), outputs, *_grid(x, num_levels)), dtype=dtype)

    def project(bands: torch.Tensor, images: slice, rows: slice, columns: slice) -> None:
        count, groups, height, *_, group = bands.shape
        positions = bands.reshape(count * groups * height, -1, group).transpose(1, 2)
        y = torch.bmm(positions, weight.expand(len(positions), -1, -1))
        if bias is not None:
            y += bias
        y = y.view(count, groups, height, group, outputs).permute(0, 4, 2, 1, 3)
        put_groups(out[images, :, rows, columns], y)

    analyse_tiles(x, num_levels, wavelet, boundary, dtype, project)
    return out


def _analyse_by_tiles(x: torch.Tensor, num_levels: int, wavelet: str, boundary: str) -> torch.Tensor:
    dtype, channels = wide_dtype(x), x.shape[1]
    out = x.new_empty((len(x), channels * 4**num_levels, *_grid(x, num_levels)), dtype=dtype)
    # The bits of a public band, coarsest level first: the columns' before the rows'.
    bits = out.view(len(x), channels, *[2] * (2 * num_levels), *out.shape[2:])
    interleaved = [axis + level for level in range(num_levels) for axis in (num_levels, 0)]

    def write(bands: torch.Tensor, images: slice, rows: slice, columns: slice) -> None:
        bands = bands.permute(0, 4, 3, 5, 2, 1, 6)  # (images, c, v, h, rows, groups, group)
        bands = bands.unflatten(3, [2] * num_levels).unflatten(2, [2] * num_levels)
        after = 2 + 2 * num_levels
        bands = bands.permute(0, 1, *(2 + bit for bit in interleaved), after, after + 1, after + 2)
        put_groups(bits[(images, ..., rows, columns)], bands)

    analyse_tiles(x, num_levels, wavelet, boundary, dtype, write)
    return out


def _filter_bank_is_cheaper(blocks: int, outputs: int, num_levels: int, wavelet: str) -> bool:
    """Compare multiply-adds per sample and channel of the two exact forms of a 1-D encoder."""
    if num_levels <= 1:
        return False
    length = len(wavelet_filters(wavelet).dec_lo)
    reach = length + 1  # blocks that the response to one block spans, about
    in_stages = 2 * sum(length * 2**levels for levels in stages(num_levels)) + outputs  # convolutions are half as fast
    # Long filters are derived from the weights first, and the ends of the signal are made apart.
    return blocks >= 4 * reach and reach * outputs * (1 + 2**num_levels / blocks) < in_stages


def _project_by_filter_bank(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, num_levels: int, wavelet: str, boundary: str
) -> torch.Tensor:
    dtype, block = wide_dtype(x), 2**num_levels
    weight = weight.to(dtype)
    bank = filter_bank(num_levels, wavelet, x.device, dtype)
    y = filter_and_project(x, weight, bank)
    if boundary == "symmetric":
        # The reflected ends reach `before` and `after` blocks into the signal: short pieces of it give those.
        piece = 2 * (bank.before + bank.after + 1) * block
        if bank.before:
            bands = analysis_bands(x[..., :piece], num_levels, wavelet, boundary, 1)
            y[..., : bank.before] = weight @ bands[..., : bank.before]
        if bank.after:
            bands = analysis_bands(x[..., -piece:], num_levels, wavelet, boundary, 1)
            y[..., -bank.after :] = weight @ bands[..., -bank.after :]
    return y if bias is None else y + bias.to(dtype)[:, None]


def _is_plain_inference(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing records the operations: no gradient, no graph capture by the compiler."""
    if is_traced(*tensors):
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _grid(x: torch.Tensor, num_levels: int) -> tuple[int, ...]:
    return tuple(size >> num_levels for size in x.shape[2:])


def _check_signal(x: torch.Tensor, num_dims: int, num_levels: int) -> None:
    if num_dims not in (1, 2, 3):
        raise ValueError(f"num_dims is {num_dims}; valid: 1, 2, 3")
    if x.ndim != num_dims + 2:
        raise ValueError(f"expected (batch, channels, *{num_dims} sizes), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"expected a floating point tensor, got {x.dtype}")
    if 0 in x.shape:
        raise ValueError(f"empty input of shape {tuple(x.shape)}")
    if any(size % 2**num_levels for size in x.shape[2:]):
        raise ValueError(
            f"sizes {tuple(x.shape[2:])} must be multiples of {2**num_levels} (2**num_levels): pad with the processor"
        )
