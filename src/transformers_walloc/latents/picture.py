"""Latents as a picture of few channels, which convolutional networks and vision models take without any change."""

import math

import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange

from ..codec.modeling_walloc import WallocImageModel
from ..codec.sheets import sheet_of
from .folding import fold_patch_embedding
from .values import LatentView, value_std


def latents_to_pixels(
    values: torch.Tensor, num_channels: int = 3, rotation: torch.Tensor | None = None
) -> torch.Tensor:
    """Spread the channels of every latent over a block of pixels: 12 at H/8 become 3 at H/4, 48 become 3 at H/2.

    Every number of the latents is one of the picture. The `rotation` of a codec (`picture_rotation`) makes it look like
    the image: a network that has seen images starts from what it knows. Without one, channels are laid out as they
    come: the first `factor`^2, those of the largest variance, make the first channel of the picture.

    Args:
        values: (batch, channels, h, w), channels `num_channels` times a square.
        rotation: (channels, channels), orthogonal.

    Returns:
        (batch, num_channels, h * factor, w * factor) with factor = sqrt(channels / num_channels).
    """
    factor = _factor(values.shape[1], num_channels)
    if rotation is not None:
        values = torch.einsum("pc,bchw->bphw", rotation.to(values), values)
    return F.pixel_shuffle(values, factor)


def pixels_to_latents(
    picture: torch.Tensor, latent_channels: int, rotation: torch.Tensor | None = None
) -> torch.Tensor:
    """Inverse of `latents_to_pixels`: (batch, num_channels, H, W) -> (batch, latent_channels, H/factor, W/factor)."""
    values = F.pixel_unshuffle(picture, _factor(latent_channels, picture.shape[1]))
    return values if rotation is None else torch.einsum("pc,bphw->bchw", rotation.to(values), values)


@torch.no_grad()
def picture_rotation(codec: WallocImageModel, view: LatentView | None = None) -> torch.Tensor:
    """The orthogonal picture: the rotation of a latent's values that is nearest to the pixels of the resized image.

    The pixels of a block are, linearly, A v of its latent v (a fold of the box resize, without a halo). Of all
    orthogonal R, the one with the least squared error of R values against them is U V^T of the singular value
    decomposition U S V^T of their covariance (orthogonal Procrustes problem, Schoenemann 1966). Channels count as
    uncorrelated, as they are after a Karhunen-Loeve transform. Nothing is lost: R^T leads back.

    Args:
        codec: full model whose decoder has a linear synthesis, with `latents_std` in its config.
        view: scale of the values that are to be rotated; by default none, `latent_values` as they are. The more the
            scale whitens them, the less the picture looks like the image: noise gets as much of it as light.

    Returns:
        (latent_channels, latent_channels), for `latents_to_pixels`.

    Raises:
        ValueError: latent channels are not the codec's channels times a square, or the codec lacks `latents_std`.
    """
    config = codec.config
    factor = _factor(config.latent_channels, config.num_channels)
    view = LatentView(config) if view is None else view
    if config.latents_std is None:
        raise ValueError("the picture needs latents_std, which this codec's config lacks")
    outputs = torch.eye(config.latent_channels, dtype=torch.float64)
    kernels = rearrange(outputs, "d (c i j) -> d c i j", i=factor, j=factor)
    mean, std = (0.0,) * config.num_channels, (1.0,) * config.num_channels
    synthesis, _ = fold_patch_embedding(kernels, None, codec, 1, 0, mean, std)
    variance = value_std(torch.tensor(config.latents_std, dtype=torch.float64), config).square()
    if view.std is not None:
        variance = variance / torch.tensor(view.std, dtype=torch.float64)
    left, _, right = torch.linalg.svd(synthesis[:, :, 0, 0] * variance)
    product: torch.Tensor = left @ right
    return product


def _factor(latent_channels: int, num_channels: int) -> int:
    factor = math.isqrt(latent_channels // num_channels)
    if latent_channels != num_channels * factor**2:
        raise ValueError(f"{latent_channels} channels of latents are not {num_channels} times a square")
    return factor


def show_latents(latents: torch.Tensor, columns: int | None = None) -> PIL.Image.Image:
    """Channels of latents as tiles of a gray picture, which a notebook shows; each channel fills black to white.

    Args:
        latents: (channels, height, width), or a batch of one; latents, codes or values.
        columns: tiles in a row; about as many as rows by default.
    """
    if latents.ndim not in (3, 4) or (latents.ndim == 4 and len(latents) != 1):
        raise ValueError(f"latents of shape {tuple(latents.shape)}; valid: (channels, height, width)")
    return sheet_of(latents.reshape(-1, *latents.shape[-2:]), columns)
