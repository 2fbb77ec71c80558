"""Running what has a bounded receptive field on a large grid, tile by tile, in bounded memory."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .filter_banks import block_operator, stages


def run_in_tiles(
    function: Callable[[tuple[Any, ...]], torch.Tensor],
    grid: Sequence[int],
    halo: int,
    tile_size: int,
    magnification: int = 1,
) -> torch.Tensor:
    """What `function` gives for a whole grid of latents, made of what it gives for parts of it.

    Args:
        function: of the ranges of a part along the axes, gives (batch, channels, *sizes) with `magnification` values
            per axis for a latent.
        grid: latents along each axis.
        halo: latents around a part that have to be known for it.
        tile_size: latents of a tile along each axis.

    Returns:
        (batch, channels, *(grid * magnification)).
    """
    result: torch.Tensor | None = None
    for corner in itertools.product(*(range(0, size, tile_size) for size in grid)):
        ends = [min(start + tile_size, size) for start, size in zip(corner, grid, strict=True)]
        froms = [max(start - halo, 0) for start in corner]
        untils = [min(end + halo, size) for end, size in zip(ends, grid, strict=True)]
        tile = function(tuple(map(slice, froms, untils)))
        if result is None:
            result = tile.new_empty((*tile.shape[:2], *(size * magnification for size in grid)))
        first, last = ([edge - start for edge, start in zip(edges, froms, strict=True)] for edges in (corner, ends))
        result[_box(corner, ends, magnification)] = tile[_box(first, last, magnification)]
    if result is None:
        raise ValueError(f"the grid {tuple(grid)} is empty")
    return result


def decoding_halo(model: Any) -> int | None:
    """Latents around a place that its pixels depend on; None if all do."""
    config, decoder = model.config, model.decoder
    reach = getattr(decoder, "receptive_field", None)
    if reach is None or len(stages(config.num_levels)) > 1:
        return None
    synthesis = block_operator("synthesis", config.num_levels, config.wavelet, config.boundary)
    overlap = max(synthesis.before, synthesis.after)
    if overlap and config.boundary != "symmetric":  # what is wrapped around comes from the other end
        return None
    reach += overlap
    network = getattr(decoder, "network", None)
    return int(reach + (network.receptive_field if network is not None else 0))


def _box(starts: Sequence[int], ends: Sequence[int], magnification: int) -> tuple[Any, ...]:
    """Index of a box in the last axes, which is given on a grid coarser by `magnification`."""
    return (..., *(slice(magnification * a, magnification * b) for a, b in zip(starts, ends, strict=True)))
