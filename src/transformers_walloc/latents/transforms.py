"""Latents as a transform of pictures, in a row with those of torchvision."""

from typing import Any

import torch
from torch import nn

from ..codec.image_processing_walloc import WallocImageProcessor
from .processors import load_encoder
from .values import LatentView, Scale


class ToLatents(nn.Module):
    """Pictures to what a model on latents learns from, as a transform of `torchvision.transforms.v2`.

    ```python
    transform = v2.Compose([v2.RandomResizedCrop(512), v2.RandomHorizontalFlip(), ToLatents("walloc/rgb-16x")])
    ```

    Args:
        codec: bundled name, Hub id, folder or model of the codec.
        scale: of the values, see [`LatentView.scaled`].
        patch_size: latents per side of a patch; pictures are reflected up to whole patches.
    """

    def __init__(self, codec: Any = "walloc/rgb-16x", scale: Scale | None = None, patch_size: int = 1):
        super().__init__()
        self.name, self.encoder = load_encoder(codec)
        self.encoder.requires_grad_(False)
        self.view = LatentView.scaled(self.encoder.config, scale, patch_size=patch_size)
        pixels = self.view.patch_pixels
        self.to_pixels = WallocImageProcessor(
            num_channels=self.encoder.config.num_channels, patch_size=pixels, do_rescale=False
        )

    @torch.no_grad()
    def forward(self, image: Any, *others: Any) -> Any:
        """
        Args:
            image: PIL image, array or tensor, uint8 or floats in [0, 1]; a batch of tensors of one size, too.
            *others: come back as they are, so that a sample with its label may be passed.

        Returns:
            (latent_channels, h, w), or a batch of that, on the encoder's device; with `others`, a tuple.
        """
        pixels = self.to_pixels(image, return_tensors="pt")["pixel_values"]
        values = self.view.from_pixels(pixels, self.encoder)
        values = values if getattr(image, "ndim", 3) == 4 else values[0]
        return (values, *others) if others else values

    def extra_repr(self) -> str:
        """The codec, its grid and its channels."""
        config = self.encoder.config
        return f"{self.name!r}, grid of {config.patch_size} pixels, {config.latent_channels} channels"
