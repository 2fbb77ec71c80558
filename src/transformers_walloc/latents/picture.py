"""Latents as an image of few channels, which a vision model takes without any change."""

import math

import torch
import torch.nn.functional as F


def latents_to_pixels(values: torch.Tensor, num_channels: int = 3) -> torch.Tensor:
    """The `pixel_shuffle` view: latents as an image of few channels that a vision model takes without any change.

    Every pixel of the view is one number of the latents. The first `factor`^2 channels, those of the largest variance,
    make its first channel: 12 channels at H/8 become 3 at H/4, 48 become 3 at H/2.

    Args:
        values: (batch, channels, h, w), channels `num_channels` times a square.

    Returns:
        (batch, num_channels, h * factor, w * factor) with factor = sqrt(channels / num_channels).
    """
    return F.pixel_shuffle(values, _factor(values.shape[1], num_channels))


def pixels_to_latents(view: torch.Tensor, latent_channels: int) -> torch.Tensor:
    """Inverse of `latents_to_pixels`: (batch, num_channels, H, W) -> (batch, latent_channels, H/factor, W/factor)."""
    return F.pixel_unshuffle(view, _factor(latent_channels, view.shape[1]))


def _factor(latent_channels: int, num_channels: int) -> int:
    factor = math.isqrt(latent_channels // num_channels)
    if latent_channels != num_channels * factor**2:
        raise ValueError(f"{latent_channels} channels of latents are not {num_channels} times a square")
    return factor
