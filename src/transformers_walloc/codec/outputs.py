"""What the models return, one small `ModelOutput` for each stage."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class WallocEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`):
            Companded, not rounded; within `+-(2**(latent_bits - 1) - 0.5)`.
    """

    latents: torch.Tensor | None = None


@dataclass
class WallocImageDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): in [-0.5, 0.5].
    """

    pixel_values: torch.Tensor | None = None


@dataclass
class WallocVolumeDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, depth, height, width)`): in [-0.5, 0.5].
    """

    pixel_values: torch.Tensor | None = None


@dataclass
class WallocAudioDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, num_channels, length)`): in [-0.5, 0.5].
    """

    audio_values: torch.Tensor | None = None


@dataclass
class WallocModelOutput(ModelOutput):
    """
    The latents come first, which is what pipelines take as the features of a model.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`): companded, not rounded.
        reconstruction (`torch.FloatTensor`, shaped as the input): in [-0.5, 0.5].
        loss (`torch.FloatTensor` of shape `()`): mean squared error of the reconstruction, before clamping.
    """

    latents: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    loss: torch.Tensor | None = None
