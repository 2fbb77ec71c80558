"""WaLLoC codecs for volumes and video: a wavelet packet transform over three axes in front of the same codec."""

from .configuration_walloc import WallocVolumeConfig
from .encoders import PixelEncodingModel
from .modeling_walloc import PixelCodecModel, PixelEncoder

__all__ = ["WallocVolumeEncoder", "WallocVolumeModel"]


class VolumeEncodingModel(PixelEncodingModel):
    """`encode` and `compress` of codecs for volumes."""

    config: WallocVolumeConfig
    config_class = WallocVolumeConfig


class WallocVolumeEncoder(VolumeEncodingModel, PixelEncoder):
    r"""
    The encoder of a WaLLoC codec for volumes alone. It loads the same checkpoints as [`WallocVolumeModel`] and leaves
    the decoder's weights unread.
    """


class WallocVolumeModel(VolumeEncodingModel, PixelCodecModel):
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
