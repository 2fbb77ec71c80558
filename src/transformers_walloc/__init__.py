"""WaLLoC (Wavelet Learned Lossy Compression) as Hugging Face models; the import registers the Auto classes."""

from transformers import AutoConfig, AutoModel

from .configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig
from .modeling_walloc import (
    WallocAudioEncoder,
    WallocAudioModel,
    WallocImageEncoder,
    WallocImageModel,
    WallocPreTrainedModel,
)

__version__ = "0.1.0"

AutoConfig.register("walloc_image", WallocImageConfig, exist_ok=True)
AutoConfig.register("walloc_audio", WallocAudioConfig, exist_ok=True)
AutoModel.register(WallocImageConfig, WallocImageModel, exist_ok=True)
AutoModel.register(WallocAudioConfig, WallocAudioModel, exist_ok=True)

__all__ = [
    "WallocAudioConfig",
    "WallocAudioEncoder",
    "WallocAudioModel",
    "WallocConfig",
    "WallocImageConfig",
    "WallocImageEncoder",
    "WallocImageModel",
    "WallocPreTrainedModel",
]
