"""Latents as a picture for the eye: every channel a gray tile."""

import io
import math

import PIL.Image
import torch
import torch.nn.functional as F

from .pixels import to_8_bits

MAX_SIDE = 2048  # pixels of a picture in a notebook


def sheet_of(latents: torch.Tensor, columns: int | None = None) -> PIL.Image.Image:
    """Channels as tiles side by side, each from black to white.

    Args:
        latents: (channels, height, width); (channels, frames) of audio, whose channels are lines.
        columns: tiles in a row; about as many as rows by default, and one of audio.
    """
    channels = latents.detach().float().cpu()
    if channels.ndim == 2:
        channels, columns = channels[:, None], 1
    columns = columns or math.ceil(math.sqrt(len(channels)))
    low, high = channels.amin((1, 2), keepdim=True), channels.amax((1, 2), keepdim=True)
    tiles = (channels - low) / (high - low).clamp_min(1e-12)
    if latents.ndim == 3:
        tiles = F.pad(tiles, (1, 0, 1, 0))
    empty = -len(tiles) % columns
    tiles = torch.cat([tiles, tiles.new_zeros(empty, *tiles.shape[1:])])
    height, width = tiles.shape[1:]
    sheet = tiles.reshape(-1, columns, height, width).transpose(1, 2).reshape(-1, columns * width)
    return PIL.Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())


def png_of(latents: object) -> bytes | None:
    """The sheet of the first signal of a batch as a PNG file; None for what has no picture, such as volumes."""
    first = latents[0] if isinstance(latents, torch.Tensor | list) and len(latents) else None
    if not isinstance(first, torch.Tensor) or first.ndim not in (2, 3) or not first.numel():
        return None
    return _png(sheet_of(first))


def png_of_pixels(pixels: object) -> bytes | None:
    """The first picture of a batch of gray or colour, in [-0.5, 0.5], as a PNG file; None for what is none."""
    first = pixels[0] if isinstance(pixels, torch.Tensor | list) and len(pixels) else None
    if not isinstance(first, torch.Tensor) or first.ndim != 3 or first.shape[0] not in (1, 3) or not first.numel():
        return None
    return _png(PIL.Image.fromarray(to_8_bits(first).permute(1, 2, 0).squeeze(2).numpy(force=True)))


def _png(picture: PIL.Image.Image) -> bytes:
    """As a file, no larger than `MAX_SIDE` a side."""
    buffer = io.BytesIO()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    picture.save(buffer, "PNG")
    return buffer.getvalue()
