"""WaLLoC (Wavelet Learned Lossy Compression) as Hugging Face models; the import registers the Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel

from .bundled import bundled_path, link_bundled_checkpoints
from .configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig
from .feature_extraction_walloc import WallocAudioFeatureExtractor
from .image_processing_walloc import WallocImageProcessor
from .latent_datasets import latent_transform
from .latent_image_processing_walloc import WallocLatentImageProcessor
from .latent_modeling_walloc import WallocLatentConfig, WallocLatentModel
from .modeling_walloc import (
    WallocAudioEncoder,
    WallocAudioModel,
    WallocImageEncoder,
    WallocImageModel,
    WallocPreTrainedModel,
)
from .patch_embedding import latent_values, latent_windows, latents_to_pixels, load_on_latents
from .separation_walloc import WallocForAudioSourceSeparation, WallocSeparationConfig

__version__ = "0.1.0"

AutoConfig.register("walloc_image", WallocImageConfig, exist_ok=True)
AutoConfig.register("walloc_audio", WallocAudioConfig, exist_ok=True)
AutoModel.register(WallocImageConfig, WallocImageModel, exist_ok=True)
AutoModel.register(WallocAudioConfig, WallocAudioModel, exist_ok=True)
AutoImageProcessor.register(
    WallocImageConfig,
    image_processor_classes={"pil": WallocImageProcessor, "torchvision": WallocImageProcessor},
    exist_ok=True,
)
AutoConfig.register("walloc_latent", WallocLatentConfig, exist_ok=True)
AutoModel.register(WallocLatentConfig, WallocLatentModel, exist_ok=True)
AutoImageProcessor.register(
    WallocLatentConfig,
    image_processor_classes={"pil": WallocLatentImageProcessor, "torchvision": WallocLatentImageProcessor},
    exist_ok=True,
)
AutoFeatureExtractor.register(WallocAudioConfig, WallocAudioFeatureExtractor, exist_ok=True)
AutoConfig.register("walloc_separation", WallocSeparationConfig, exist_ok=True)
AutoModel.register(WallocSeparationConfig, WallocForAudioSourceSeparation, exist_ok=True)
AutoFeatureExtractor.register(WallocSeparationConfig, WallocAudioFeatureExtractor, exist_ok=True)
link_bundled_checkpoints()

__all__ = [
    "WallocAudioConfig",
    "WallocAudioEncoder",
    "WallocAudioFeatureExtractor",
    "WallocAudioModel",
    "WallocConfig",
    "WallocForAudioSourceSeparation",
    "WallocImageConfig",
    "WallocImageEncoder",
    "WallocImageModel",
    "WallocImageProcessor",
    "WallocLatentConfig",
    "WallocLatentImageProcessor",
    "WallocLatentModel",
    "WallocPreTrainedModel",
    "WallocSeparationConfig",
    "bundled_path",
    "latent_transform",
    "latent_values",
    "latent_windows",
    "latents_to_pixels",
    "load_on_latents",
]
