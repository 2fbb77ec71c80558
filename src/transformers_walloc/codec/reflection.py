"""Signals extended by reflection at the border sample, as `numpy.pad(mode="reflect")` does it, on any device."""

from collections.abc import Sequence

import torch


def extend(x: torch.Tensor, margins: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Extend the last axes of a tensor, as often as it takes where they are shorter than the margin.

    Args:
        x: (..., *sizes).
        margins: (before, after) of each of the last axes.
    """
    for axis, (before, after) in enumerate(margins, start=x.ndim - len(margins)):
        if before or after:
            x = x.index_select(axis, mirrored(-before, x.shape[axis] + after, x.shape[axis], x.device))
    return x


def mirrored(start: int, stop: int, length: int, device: torch.device) -> torch.Tensor:
    """Where positions `start..stop-1` of a signal of `length` samples are mirrored to: a triangle wave."""
    last = length - 1
    return last - (torch.arange(start, stop, device=device) % max(2 * last, 1) - last).abs()
