"""WaLLoC codecs for volumes and video: a wavelet packet transform over three axes in front of the same codec."""

from collections.abc import Sequence

import torch
from transformers.utils.generic import can_return_tuple

from .compression import compress, decompress, image_sizes
from .configuration_walloc import WallocConfig, WallocVolumeConfig
from .encoders import EncodingModel
from .limits import MAX_MEMORY
from .modeling_walloc import CodecModel
from .outputs import WallocEncoderOutput, WallocImageModelOutput, WallocVolumeDecoderOutput

__all__ = ["WallocVolumeEncoder", "WallocVolumeModel"]


class VolumeEncodingModel(EncodingModel):
    """`encode` and `compress` of codecs for volumes."""

    config: WallocVolumeConfig
    config_class = WallocVolumeConfig
    main_input_name = "pixel_values"

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> WallocEncoderOutput:
        """
        Args:
            pixel_values: (batch, num_channels, depth, height, width) in [-0.5, 0.5], sizes multiples of
                `config.patch_size`.
        """
        return WallocEncoderOutput(latents=self._encode(pixel_values))

    def compress(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor | None = None,
        step: float = 1.0,
        num_channels: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
    ) -> list[bytes]:
        """
        Args:
            pixel_values: (batch, num_channels, depth, height, width) in [-0.5, 0.5], as the processor returns them.
            original_sizes: (batch, 3), depths, heights and widths before padding, to which `decompress` crops; by
                default nothing is padding.
            step: width of a quantisation cell, at least 1; larger gives smaller files and coarser latents.
            num_channels: latent channels to keep, from the first; the others are decoded as zero. All by default.
            bpp: bits per voxel of the whole file that must not be exceeded; the finest step that keeps to it is chosen.
            psnr: peak signal-to-noise ratio in dB over the range of the samples that must be reached; the coarsest
                step that does is chosen. Needs a model with a decoder.

        Returns:
            A .walloc file for each volume.

        Raises:
            ValueError: NaN or infinite values, sizes that do not fit, more than 8 `latent_bits`, a target out of reach.
        """
        self.check_signal(pixel_values)
        sizes = image_sizes(original_sizes, len(pixel_values), num_dims=3)
        return compress(self, pixel_values, sizes=sizes, step=step, num_channels=num_channels, bpp=bpp, psnr=psnr)


class WallocVolumeEncoder(VolumeEncodingModel):
    r"""
    The encoder of a WaLLoC codec for volumes alone. It loads the same checkpoints as [`WallocVolumeModel`] and leaves
    the decoder's weights unread.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, original_sizes: torch.Tensor | None = None) -> WallocEncoderOutput:
        """The same as `encode`; `original_sizes` is accepted so that a processor's output can be passed as it is."""
        return WallocEncoderOutput(latents=self._encode(pixel_values))


class WallocVolumeModel(VolumeEncodingModel, CodecModel):
    r"""
    WaLLoC codec for volumes and video: encoder, bottleneck and decoder. `fit_codec` makes one of your data.

    ```python
    >>> from transformers import AutoImageProcessor, AutoModel
    >>> import transformers_walloc

    >>> processor = AutoImageProcessor.from_pretrained("my-scanner")
    >>> model = AutoModel.from_pretrained("my-scanner")
    >>> inputs = processor(volume, return_tensors="pt")  # (D, H, W)
    >>> latents = model.encode(inputs["pixel_values"]).latents  # (1, 4, D/4, H/4, W/4)
    ```"""

    @can_return_tuple
    def decode(self, codes: torch.Tensor, step: float = 1.0, tile_size: int | None = None) -> WallocVolumeDecoderOutput:
        """
        Args:
            codes: integer codes or floating-point latents (batch, latent_channels, depth/patch, height/patch,
                width/patch).
            step: the one that `quantize` was given; only integer codes are multiplied by it.
            tile_size: latents per axis of the tiles that the decoder runs on; chosen by itself if None. Tiles give the
                same voxels as the whole volume.
        """
        return WallocVolumeDecoderOutput(pixel_values=self._decode(codes, step, tile_size).clamp(-0.5, 0.5))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, original_sizes: torch.Tensor | None = None, return_loss: bool = True
    ) -> WallocImageModelOutput:
        """Encode, quantise (uniform noise in training, rounding in evaluation) and decode.

        Args:
            pixel_values: (batch, num_channels, depth, height, width) in [-0.5, 0.5], sizes multiples of
                `config.patch_size`.
            original_sizes: (batch, 3), depth, height and width before padding; the loss leaves the padding out.
            return_loss: whether to compute the loss.
        """
        return self._forward(pixel_values, return_loss, self._inside(pixel_values, original_sizes))

    def decompress(
        self, blobs: bytes | Sequence[bytes], max_memory: int | None = MAX_MEMORY, max_pixels: int | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            blobs: one or more .walloc files.
            max_memory: refuse files that would take more bytes of memory before anything is decoded; None for no limit.
            max_pixels: refuse volumes of more voxels (after padding to whole patches), too.

        Returns:
            A list of (num_channels, depth, height, width) tensors in [-0.5, 0.5] on the model's device, cropped to the
            original sizes.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        return decompress(self, blobs, max_memory=max_memory, max_pixels=max_pixels)
