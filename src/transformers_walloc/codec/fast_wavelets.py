"""Fast routes of the wavelet packet transform for inference: images in tiles, audio as one bank of long filters.

Everything here is a batched matrix product over overlapping windows of one buffer, so no window is ever copied. For an
image tile with T the taps of `block` bands (57 samples wide for three levels of CDF 9/7):

    rows     (y, c, x)  --  for each block row i:        T @ window(y)               -->  (i, v, c, x)
    columns  (i, v, c, x)  --  for each m block columns: window(x) @ banded(T).T     -->  (x / m, i, v, c, h, m)

The second product holds all bands (v, c, h) of a position at one stride, which is what the projection multiplies by.
Synthesis runs through the same two products with its own taps. Windows reach over the borders of the image: there the
buffer continues periodically, or the first and last blocks are replaced by those of `BlockOperator.head` and `tail`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from .filter_banks import BlockOperator, block_operator, impulse_responses, stages

# Samples of all channels in a tile on a CPU (its three buffers take 4 to 12 MB), and elsewhere.
CPU_TILE_SAMPLES = 3 * 2**18
DEVICE_TILE_SAMPLES = 2**26
# Outputs of one product along the columns: wide enough for the vector units, narrow enough to waste few of them.
COLUMN_OUTPUTS = 32


def constant_tensor(array: np.ndarray, device: torch.device | None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor to be cached: made in inference mode or while a graph is traced, it would be of no use elsewhere."""
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.tensor(array, device=device, dtype=dtype)


class _Plan(NamedTuple):
    """An operator as matrices on a device; `lead` samples of a window lie before the first one of its block."""

    operator: BlockOperator
    lead: int
    group: int  # blocks that one product along the columns gives
    rows: torch.Tensor  # (block, window)
    columns: torch.Tensor  # (window + (group - 1) * block, block * group)
    head: torch.Tensor | None  # (before * block, samples)
    tail: torch.Tensor | None  # (after * block, samples)

    @property
    def block(self) -> int:
        return self.operator.block


@functools.cache
def _plan(
    direction: Literal["analysis", "synthesis"],
    num_levels: int,
    wavelet: str,
    boundary: str,
    device: torch.device,
    dtype: torch.dtype,
) -> _Plan:
    operator = block_operator(direction, num_levels, wavelet, boundary)
    block, taps = operator.block, operator.taps
    first, last = 0, taps.shape[1]
    if direction == "analysis":  # synthesis reads whole blocks of bands
        used = np.flatnonzero(np.abs(taps).max(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
    taps = taps[:, first:last]
    window, group = taps.shape[1], max(1, COLUMN_OUTPUTS // block)
    columns = np.zeros((window + (group - 1) * block, group, block))
    for k in range(group):
        columns[k * block : k * block + window, k] = taps.T
    if direction == "analysis":
        columns = columns.transpose(0, 2, 1)  # bands outside, positions inside

    def tensor(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else constant_tensor(array, device, dtype)

    matrices = tensor(taps), tensor(columns.reshape(len(columns), -1)), tensor(operator.head), tensor(operator.tail)
    return _Plan(operator, operator.before * block - first, group, *matrices)  # type: ignore[arg-type]


def fits_tiles(sizes: tuple[int, ...], num_levels: int, wavelet: str, boundary: str, direction: str) -> bool:
    """Whether the tiled route serves an image of these sizes in blocks."""
    if len(sizes) != 2 or len(stages(num_levels)) != 1:
        return False
    operator = block_operator(direction, num_levels, wavelet, boundary)
    return boundary == "periodization" or min(sizes) >= operator.min_blocks


def analyse_tiles(
    x: torch.Tensor,
    num_levels: int,
    wavelet: str,
    boundary: str,
    dtype: torch.dtype,
    write: Callable[[torch.Tensor, slice, slice, slice], None],
) -> None:
    """Analyse images (batch, channels, height, width) tile by tile, in `dtype`.

    Args:
        write: called with the bands (images, groups, rows, v, c, h, group) of a tile, its images, and its rows and
            columns in blocks; v and h are the bands along the rows' and the columns' axis. Bands after the last column
            of a tile are to be ignored.
    """
    plan = _plan("analysis", num_levels, wavelet, boundary, x.device, dtype)
    block, channels = plan.block, x.shape[1]
    height, width = x.shape[2:]

    def read(images: slice, rows: slice, columns: slice, into: torch.Tensor) -> None:  # into (y, channels, images, x)
        for source_y, y in _pieces(rows, block, plan.lead, len(into), height, boundary):
            for source_x, at in _pieces(columns, block, plan.lead, into.shape[3], width, boundary):
                into[y, :, :, at] = x[images, :, source_y, source_x].permute(2, 1, 0, 3)

    for bands, *tile in _tiles(plan, x, channels, (height // block, width // block), dtype, read):
        write(bands.unflatten(5, (block, plan.group)), *tile)


def synthesise_tiles(
    subbands: torch.Tensor, num_levels: int, wavelet: str, boundary: str, dtype: torch.dtype, order: torch.Tensor
) -> torch.Tensor:
    """Images (batch, channels, height, width) of subbands (batch, channels * bands, *grid) in public order.

    Args:
        order: of the public bands as (v, h) pairs, int64.
    """
    plan = _plan("synthesis", num_levels, wavelet, boundary, subbands.device, dtype)
    block = plan.block
    batch, channels = len(subbands), subbands.shape[1] // block**2
    grid = (subbands.shape[2], subbands.shape[3])
    bands = subbands.unflatten(1, (channels, block**2))
    out = subbands.new_empty((batch, channels, *(block * size for size in grid)), dtype=dtype)

    def read(
        images: slice, rows: slice, columns: slice, into: torch.Tensor
    ) -> None:  # into (i v, channels, images, j h)
        into = into.unflatten(3, (-1, block)).unflatten(0, (-1, block))  # (i, v, channels, images, j, h)
        before = plan.operator.before
        for source_i, i in _pieces(rows, 1, before, len(into), grid[0], boundary):
            for source_j, j in _pieces(columns, 1, before, into.shape[4], grid[1], boundary):
                part = bands[images, :, :, source_i, source_j].index_select(2, order)
                into[i, :, :, :, j] = part.unflatten(2, (block, block)).permute(4, 2, 1, 0, 5, 3)

    for x, images, rows, columns in _tiles(plan, subbands, channels, grid, dtype, read):
        inside = (slice(part.start * block, part.stop * block) for part in (rows, columns))
        put_groups(out[(images, slice(None), *inside)].unflatten(2, (-1, block)), x.permute(0, 4, 2, 3, 1, 5))
    return out


def put_groups(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy (..., groups, group) to (..., size), leaving out what goes beyond."""
    group = source.shape[-1]
    whole, rest = divmod(target.shape[-1], group)
    if whole:
        target[..., : whole * group].unflatten(-1, (whole, group)).copy_(source[..., :whole, :])
    if rest:
        target[..., whole * group :] = source[..., whole, :rest]


def _tiles(
    plan: _Plan,
    x: torch.Tensor,
    channels: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    read: Callable[[slice, slice, slice, torch.Tensor], None],
) -> Iterator[tuple[torch.Tensor, slice, slice, slice]]:
    """Run both products over all tiles: (images, groups, rows, block, channels, outputs), images, rows, columns."""
    block, group, window = plan.block, plan.group, plan.rows.shape[1]
    samples = CPU_TILE_SAMPLES if x.device.type == "cpu" else DEVICE_TILE_SAMPLES
    least = 2 * plan.operator.min_blocks
    side = math.isqrt(samples // (4 * channels)) // block  # tiles are wider than high: rows are read at a stretch
    row_parts = _parts(grid[0], max(side, least))
    column_parts = _parts(grid[1], max(4 * side, least))
    most_rows, most_columns = (max(part.stop - part.start for part in parts) for parts in (row_parts, column_parts))
    image_parts = _parts(len(x), max(1, samples // (channels * most_rows * most_columns * block**2)))
    buffers: list[torch.Tensor | None] = [None, None, None]

    def buffer(index: int, *shape: int) -> torch.Tensor:
        """Memory is taken once: all but the first of several tiles find theirs there."""
        size, made = math.prod(shape), buffers[index]
        if made is None or len(made) < size:
            buffers[index] = made = torch.empty(size, dtype=dtype, device=x.device)
        return made[:size].view(shape)

    for images, columns, rows in itertools.product(image_parts, column_parts, row_parts):
        count, m, n = (part.stop - part.start for part in (images, rows, columns))
        groups = -(-n // group)
        height, line = (k + (-k) % block for k in (m * block + window - block, groups * group * block + window - block))
        source = buffer(0, height, channels, count, line)
        read(images, rows, columns, source)
        # What a window of a banded product must not read is multiplied by zero, and might be NaN.
        at_left, at_right = columns.start == 0, columns.stop == grid[1]
        end = plan.lead + n * block
        source[..., end if plan.tail is not None and at_right else end + window - plan.lead - block :] = 0
        if plan.head is not None and at_left:
            source[..., : plan.lead] = 0
        middle = buffer(1, m, block, channels * count * line)
        _multiply_rows(plan, source.flatten(1), middle, rows.start == 0, rows.stop == grid[0])
        result = buffer(2, count, groups, m * block * channels, group * block)
        _multiply_columns(plan, middle.view(-1, count, line), result, n, at_left, at_right)
        yield result.view(count, groups, m, block, channels, group * block), images, rows, columns


def _multiply_rows(plan: _Plan, source: torch.Tensor, out: torch.Tensor, top: bool, bottom: bool) -> None:
    """source (samples, S) -> out (blocks, block, S)."""
    count, block, length = out.shape
    windows = source.as_strided((count, plan.rows.shape[1], length), (block * length, length, 1))
    torch.bmm(plan.rows.expand(count, -1, -1), windows, out=out)
    if top and plan.head is not None and len(plan.head):
        start = source[plan.lead : plan.lead + plan.head.shape[1]]
        torch.mm(plan.head, start, out=out[: plan.operator.before].flatten(0, 1))
    if bottom and plan.tail is not None and len(plan.tail):
        end = plan.lead + count * block
        after = out[count - plan.operator.after :].flatten(0, 1)
        torch.mm(plan.tail, source[end - plan.tail.shape[1] : end], out=after)


def _multiply_columns(
    plan: _Plan, source: torch.Tensor, out: torch.Tensor, count: int, left: bool, right: bool
) -> None:
    """source (R, images, samples) -> out (images, groups, R, block * group), of which `count` blocks are in use."""
    groups, rows, outputs = out.shape[1:]
    for image, result in zip(source.unbind(1), out, strict=True):
        windows = image.as_strided(
            (groups, rows, len(plan.columns)), (outputs, source.stride(0), 1), image.storage_offset()
        )
        torch.bmm(windows, plan.columns.expand(groups, -1, -1), out=result)
    if left and plan.head is not None:
        part = source[..., plan.lead : plan.lead + plan.head.shape[1]] @ plan.head.T
        _replace(plan, out, part, range(plan.operator.before))
    if right and plan.tail is not None:
        end = plan.lead + count * plan.block
        part = source[..., end - plan.tail.shape[1] : end] @ plan.tail.T
        _replace(plan, out, part, range(count - plan.operator.after, count))


def _replace(plan: _Plan, out: torch.Tensor, part: torch.Tensor, blocks: range) -> None:
    """Put blocks (R, images, blocks * block) in the place of some of out (images, groups, R, block * group)."""
    part = part.unflatten(2, (len(blocks), plan.block)).transpose(0, 1)
    if plan.operator.direction == "analysis":
        out = out.unflatten(3, (plan.block, plan.group)).transpose(3, 4)
    else:
        out = out.unflatten(3, (plan.group, plan.block))
    for k, at in enumerate(blocks):
        out[:, at // plan.group, :, at % plan.group] = part[:, :, k]


def _parts(size: int, most: int) -> list[slice]:
    """Cut `size` into parts of at most `most`, as equal as possible."""
    count = -(-size // most)
    cuts = [size * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def _pieces(part: slice, block: int, lead: int, length: int, size: int, boundary: str) -> list[tuple[slice, slice]]:
    """Where a buffer of `length` entries from `lead` before the start of `part` on comes from in a signal of `size`.

    Pairs of a slice of the signal and one of the buffer: periodically continued, or only what lies inside.
    """
    start = part.start * block - lead
    stop = start + length
    if boundary != "periodization":
        inside = slice(max(start, 0), min(stop, size))
        return [(inside, slice(inside.start - start, inside.stop - start))]
    pieces, at = [], start
    while at < stop:
        begin = at % size
        count = min(stop - at, size - begin)
        pieces.append((slice(begin, begin + count), slice(at - start, at - start + count)))
        at += count
    return pieces


class FilterBank(NamedTuple):
    """All levels of a 1-D transform as one bank of filters, for the taps of block k - `before`: (block, bands)."""

    before: int
    after: int
    taps: torch.Tensor  # (1 + before + after, block, bands)


@functools.cache
def filter_bank(num_levels: int, wavelet: str, device: torch.device, dtype: torch.dtype) -> FilterBank:
    """The impulse responses of a 1-D transform of any depth, away from the ends of the signal."""
    before, taps = impulse_responses(num_levels, wavelet)
    return FilterBank(before, len(taps) - 1 - before, constant_tensor(taps, device, dtype))


# Samples of a channel that are filtered at a time.
_RUN_SAMPLES = 2**19


def filter_and_project(x: torch.Tensor, weight: torch.Tensor, bank: FilterBank) -> torch.Tensor:
    """Periodic 1-D signals (batch, channels, length) through `weight` (outputs, channels * bands) of their bands.

    Every block of samples is multiplied by all taps that any latent has for it, and the products of neighbouring
    blocks are added up: the multiply-adds of a strided convolution as one matrix product.

    Returns:
        (batch, outputs, length / block).
    """
    reach, block, bands = bank.taps.shape
    batch, channels, length = x.shape
    blocks, outputs = length // block, len(weight)
    kernel = bank.taps.flatten(0, 1) @ weight.view(outputs * channels, bands).T  # (reach * block, outputs * channels)
    kernel = kernel.view(reach, block, outputs, channels).permute(3, 1, 0, 2).reshape(channels, block, reach * outputs)
    x = x.to(bank.taps.dtype).reshape(batch, channels, blocks, block)
    out = x.new_zeros(batch, blocks, outputs)
    run = max(1, _RUN_SAMPLES // block)
    for signal, latents in zip(x, out, strict=True):
        for start in range(0, blocks, run):
            products = signal[0, start : start + run] @ kernel[0]
            for channel in range(1, channels):
                products.addmm_(signal[channel, start : start + run], kernel[channel])
            for k, product in enumerate(products.unflatten(1, (reach, outputs)).unbind(1)):
                at, done = start + bank.before - k, 0
                while done < len(product):  # block i adds to latent i + before - k, around the ends
                    begin = at % blocks
                    count = min(len(product) - done, blocks - begin)
                    latents[begin : begin + count] += product[done : done + count]
                    at, done = at + count, done + count
    return out.transpose(1, 2).contiguous()
