"""Stored latents where a processor takes images: rows of a data set, or tensors of codes and latents."""

from typing import Any

import torch
import torch.nn.functional as F

from ..codec.configuration_walloc import WallocImageConfig
from .datasets import RowReader
from .values import LatentView


class StoredLatents(torch.Tensor):
    """Companded latents (latent_channels, h + 2 halo, w + 2 halo), a tensor that processors of text take for an image.

    Attributes:
        halo: latents on each side beyond the image.
    """

    halo: int


def is_row(image: Any) -> bool:
    """Whether something is a row of the column `latents`, see `datasets`."""
    return isinstance(image, dict) and {"bytes", "storage", "shape", "codec"} <= image.keys()


def stored_latents(image: Any, config: WallocImageConfig, reader: Any = None) -> StoredLatents | None:
    """Latents that an image is; None for pictures.

    Args:
        image: a row of a data set, int8 codes, or companded latents in floating point, channels first.
        config: of the codec.
        reader: gives a `RowReader` for what a row's `storage` says.

    Raises:
        ValueError: a row of another codec, or a damaged one.
    """
    if isinstance(image, StoredLatents):
        return image
    if is_row(image):
        rows: RowReader = reader(image["storage"])
        return _wrap(rows.codes(image).float() * image["step"], int(image["halo"]))
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.dtype == torch.uint8:
        return None
    is_latents = image.shape[0] == config.latent_channels != config.num_channels
    return _wrap(image.detach().float(), 0) if is_latents else None


def to_whole_patches(
    latents: StoredLatents, view: LatentView, merge_size: int, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Windows of one picture's latents, (channels, height, width).

    A grid that is no whole number of tokens goes on at the bottom and at the right as it ends there.

    Args:
        grid: patches per column and row that the model wants; None for any.

    Raises:
        ValueError: latents of another size than the model's, or without the halo that it wants.
    """
    halo, token = latents.halo, view.patch_size * merge_size
    height, width = (length - 2 * halo for length in latents.shape[1:])
    if grid is not None and (height, width) != (grid[0] * view.patch_size, grid[1] * view.patch_size):
        block = view.codec.patch_size
        raise ValueError(
            f"the latents are of an image of {height * block} x {width * block} pixels, the model takes "
            f"{grid[0] * view.patch_pixels} x {grid[1] * view.patch_pixels}: write them at that size"
        )
    plain = latents.as_subclass(torch.Tensor)[None]
    plain = F.pad(plain, (0, -width % token, 0, -height % token), mode="replicate")
    return view.from_latents(plain, halo=halo)[0]


def _wrap(latents: torch.Tensor, halo: int) -> StoredLatents:
    stored: StoredLatents = latents.as_subclass(StoredLatents)
    stored.halo = halo
    return stored


def samples_of(images: Any) -> list[list[Any]]:
    """Images of each sample; an image that is in no list of its own is a sample."""
    if not isinstance(images, list | tuple):
        return [[image] for image in _flat(images)]
    return [_flat(sample) for sample in images]


def _flat(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [leaf for image in images for leaf in _flat(image)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]
