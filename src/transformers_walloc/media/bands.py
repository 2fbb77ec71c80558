"""Pictures of any size in bounded memory: compressed from bands of rows, decoded to bands of rows or inside a window.

What is kept of a whole picture is its codes, about a fifth of a byte for each pixel at 16x, since the entropy coder
visits them channel by channel. Pixels exist a band at a time, and the bands that overlap because latents depend on
their surroundings give the same files and the same pixels as the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..codec.compression import file_of_codes, read_codes
from ..codec.encoder_kernel import band_rows, blocks_around
from ..codec.limits import MAX_MEMORY
from ..codec.pixels import encode_pixels, picture_encoder, to_8_bits
from ..codec.tiles import decoding_halo

if TYPE_CHECKING:
    from ..codec.encoders import ImageEncodingModel

BAND_PIXELS = 2**22


@torch.no_grad()
def compress_rows(
    model: ImageEncodingModel,
    height: int,
    width: int,
    read: Callable[[int, int], np.ndarray],
    *,
    step: float = 1.0,
    num_channels: int | None = None,
    side_data: bytes = b"",
) -> bytes:
    """The .walloc file of a picture that is read in bands, the same as `compress` writes of the whole.

    Args:
        model: an image codec, or its encoder alone, with the boundary `symmetric`.
        height, width: in pixels.
        read: called as `read(start, stop)` for the rows start..stop - 1, uint8 (rows, width, num_channels), in order,
            some of them twice. `lambda start, stop: array[start:stop]` serves arrays and memory maps.
        step, num_channels: as for `compress`.
        side_data: as `bitstream.Header` states it.
    """
    config, block = model.config, model.config.patch_size
    around = blocks_around(config)
    if config.boundary != "symmetric" and any(around):
        raise ValueError(f"boundary {config.boundary!r} joins the first and the last rows: use compress")
    step = float(np.float32(step))  # as the file states it
    rows, columns = -(-height // block), -(-width // block)
    codes = np.empty((config.latent_channels, rows, columns), np.int8)
    band = max(1, BAND_PIXELS // (width * block))
    for first in range(0, rows, band):
        last = min(first + band, rows)
        start, stop = band_rows(first, last, height, block, around=around)
        pixels = np.require(read(start, stop), requirements=("C", "W"))  # a band of a read-only memory map is copied
        if pixels.dtype != np.uint8 or pixels.shape != (stop - start, width, config.num_channels):
            expected = (stop - start, width, config.num_channels)
            raise ValueError(f"rows {start}..{stop - 1} must be uint8 {expected}, got {pixels.dtype} {pixels.shape}")
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        kernel = picture_encoder(model.encoder, tensor)
        if kernel is not None:
            threads = torch.get_num_threads()
            codes[:, first:last] = kernel.encode(
                pixels, step, num_threads=threads, height=height, first_row=start, blocks=(first, last)
            )
        else:
            # With the blocks around, whose own results are wrong where the picture goes on.
            above = first - max(first - around[0], 0)
            whole = encode_pixels(model.encoder, tensor.to(model.device), step)[0].cpu().numpy()
            codes[:, first:last] = whole[:, above : above + last - first]
    return file_of_codes(model, codes, num_channels, sizes=(height, width), step=step, side_data=side_data)


@torch.no_grad()
def decompress_rows(
    model: Any,
    blob: bytes,
    *,
    window: tuple[int, int, int, int] | None = None,
    max_memory: int | None = MAX_MEMORY,
    max_pixels: int | None = None,
) -> Iterator[np.ndarray]:
    """The 8-bit picture of a .walloc file, band by band, as `post_process` makes it of what `decompress` gives.

    Args:
        model: the image codec that wrote it, with its decoder.
        blob: the file.
        window: (top, left, height, width) in pixels, all of the picture by default. Its codes are all decoded, its
            pixels only in the window.
        max_memory, max_pixels: as for `decompress_codes`, since the pixels are not held; None for no limit.

    Yields:
        uint8 (rows, width, num_channels), from the top.

    Raises:
        ValueError: a window that is not inside the picture.
        WallocFormatError: see `decompress`.
    """
    header, codes = read_codes(model, blob, max_memory, max_pixels, None)
    height, width = header.sizes
    top, left, rows, columns = window or (0, 0, height, width)
    if not (0 <= top < top + rows <= height and 0 <= left < left + columns <= width):
        raise ValueError(f"a window of {rows}x{columns} at {top}, {left} is not inside a picture of {height}x{width}")
    block, halo = model.config.patch_size, decoding_halo(model)
    band = max(block, BAND_PIXELS // columns // block * block)
    if halo is None:
        halo, band = max(header.grid), rows
    across = slice(max(left // block - halo, 0), -(-(left + columns) // block) + halo)
    for start in range(top, top + rows, band):
        stop = min(start + band, top + rows)
        down = slice(max(start // block - halo, 0), -(-stop // block) + halo)
        part = torch.from_numpy(np.ascontiguousarray(codes[None, :, down, across])).to(model.device)
        pixels = model.decode(part, step=header.step)[0][0]
        y, x = start - down.start * block, left - across.start * block
        pixels = pixels[:, y : y + stop - start, x : x + columns]
        if pixels.sum().isnan():
            raise ValueError("the decoder gives NaN: the weights of the model are damaged")
        yield to_8_bits(pixels).permute(1, 2, 0).contiguous().cpu().numpy()
